"""Rotary embeddings: how long a context they allow, and the tables the engine builds for them.

Follows vLLM 0.32 (`config/model.py`, `model_executor/layers/rotary_embedding`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from kvplan.models.config import Keys
from kvplan.models.spec import LayerSpec, RotaryTable

NO_ROTARY = (
    "NemotronH",
    "KimiLinear",
    "Jamba",
    "Zamba2",
    "Glm5Next",
    "Inkling",
    "Gemma4Assistant",
    "Gemma4UnifiedAssistant",
)
TWO_ROTARIES = ("Gemma3", "Dots3Note", "Gemma4", "DiffusionGemma", "MiMoV2", "Laguna", "Step3p5", "Step3p7")
"""Families whose windowed layers have a rotary embedding of their own."""
WIDE_ROTARY = ("GptOss", "PanguUltra", "DeepseekV4")
"""Families that keep the table in float32."""
ONE_INDEXER_ROTARY = ("HYV4", "Dots3Note")
"""Families whose indexer rotates as attention does, by the same table."""
SHORT_MROPE = ("Qwen3VL", "Qwen3_5", "Qwen4Exp")
"""Families whose multimodal table vLLM 0.32 leaves as long as the context: their positions never exceed the tokens;
their classes ask for no more. Up to 0.31 every such table was four times as long (0.8.5, 0.18, 0.28 to 0.31)."""
NO_SECTIONS = ("BailingMoeV3", "MiMoV2")
"""Families whose classes read no sections there (Ling's multimodal class reads them at the config's top)."""
MROPE_EACH = ("Ernie4_5_VLMoe",)
"""Families whose attention layers build a multimodal table each."""
MROPE_POSITIONS = 4
"""Rows of a multimodal rotary table per position: a video's duration may exceed its tokens (`MRotaryEmbedding`)."""

_MAX_LEN_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
)
_ALREADY_SCALED = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
MAX_FACTOR = 4096
"""Times that a context may be longer than it was trained for; more is no model."""


def max_model_len(text: Keys, model_type: str) -> int:
    """The longest context, as vLLM 0.32 derives it: the smallest length key times linear rope scaling."""
    lengths = [text.count(key) for key in _MAX_LEN_KEYS if key in text]
    longest = text.count("model_max_length") if "model_max_length" in text else min(lengths, default=2048)
    if "gemma3" in model_type:
        return longest
    factors = list(_rope_factors(text))
    return int(longest * (factors[-1] if factors else 1))


def states_max_model_len(text: Keys) -> bool:
    """Whether the config says how long a context may be."""
    return any(key in text for key in (*_MAX_LEN_KEYS, "model_max_length"))


def longrope_original_len(text: Keys) -> int:
    """`original_max_position_embeddings` where the rope type is longrope (Phi), else 0."""
    rope = text.section("rope_scaling" if "rope_scaling" in text else "rope_parameters")
    if rope.text("rope_type", "type") not in ("longrope", "su"):
        return 0
    return Keys(text.name, {**rope.raw, **text.raw}).count("original_max_position_embeddings", default=0)


ROPE_TYPES = {
    **dict.fromkeys(("default", "proportional", "mllama4", "mrope", "bailing_mrope", "openpangu"), ()),
    **dict.fromkeys(("longrope", "su"), ()),
    **dict.fromkeys(("linear", "ntk", "yarn", "deepseek_yarn", "telechat3-yarn"), ("factor",)),
    "deepseek_llama_scaling": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "dynamic": (),
}
"""Kinds of rotary embeddings that vLLM 0.32 knows, with the numbers that each needs (`rotary_embedding/__init__.py:
get_rope`, and transformers' checks before it)."""
_ROPE_NUMBERS = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "alpha")


def rope_parts(text: Keys) -> Iterator[Keys]:
    """The sections that each describe a rotary embedding: one, or one for each kind of layer."""
    key, rope = text.first("rope_scaling", "rope_parameters")
    if rope is not None:
        outer = text.section(key)
        yield from [outer.section(name) for name, v in outer.raw.items() if isinstance(v, dict)] or [outer]


def check_rope(text: Keys) -> None:
    """Refuse kinds of rotary embeddings that vLLM does not know, and what must be a number and is none.

    Asked of vLLM 0.32 with each of these keys as a text or left out: it ends with a TypeError or KeyError.
    """
    for part in rope_parts(text):
        kind = part.text("rope_type", "type", default="default")
        if kind not in ROPE_TYPES:
            raise text.error(f"rope_type {kind[:40]!r} is not one of {', '.join(ROPE_TYPES)}")
        if kind == "dynamic" and "alpha" not in part:
            part.number("factor", high=MAX_FACTOR)
        for name in {*ROPE_TYPES[kind], *(n for n in _ROPE_NUMBERS if n in part)}:
            part.number(name, high=MAX_FACTOR if name == "factor" else 1e15)
        if "factor" in part:
            part.number("factor", high=MAX_FACTOR)
        part.count("original_max_position_embeddings", default=1)
    for part in (text, *rope_parts(text)):
        if not isinstance(part.raw.get("rope_theta"), list):  # Step's: one a layer
            part.number("rope_theta", 1e4)


def yarn_max_model_len(text: Keys) -> int:
    """`original_max_position_embeddings` times the factor where the rope type is yarn, else 0.

    vLLM up to 0.29 took this for the longest context; since 0.30 (PR 56446) `max_position_embeddings` counts as scaled.
    """
    rope = text.section("rope_scaling" if "rope_scaling" in text else "rope_parameters")
    original = rope.raw.get("original_max_position_embeddings")
    if rope.raw.get("rope_type", rope.raw.get("type")) != "yarn" or original is None:
        return 0
    return int(rope.count("original_max_position_embeddings") * rope.number("factor", high=MAX_FACTOR))


def _rope_factors(text: Keys) -> Iterator[float]:
    for part in rope_parts(text):
        if part.text("rope_type", "type", default="default") not in _ALREADY_SCALED and "factor" in part:
            yield part.number("factor", high=MAX_FACTOR)


def fourier_frequencies(text: Keys) -> int:
    """Frequencies that Fourier position embeddings keep (Intern-S1-Pro); 0 where the config has none.

    Those of which a context sees a whole turn, unless told. Source: vLLM 0.32 `rotary_embedding/fope.py`.
    """
    rope = text.section("rope_scaling" if "rope_scaling" in text else "rope_parameters")
    if not any(
        rope.raw.get(key) is not None for key in ("fope_init_factor", "fope_sep_head", "num_inv_freq")
    ):
        return 0
    if not rope.flag("fope_sep_head"):
        raise text.error("fope_sep_head must be true: vLLM's class multiplies head by head")
    if rope.raw.get("num_inv_freq") is not None:
        return rope.count("num_inv_freq", high=1 << 10)
    theta = text.number("rope_theta", rope.number("rope_theta", 1e4, above=1), above=1)
    dims, turn = text.count("head_dim", high=1 << 12), 2 * math.pi / text.count("max_position_embeddings")
    return sum(theta ** (-i / dims) > turn for i in range(0, dims, 2))


def rotary_tables(
    text: Keys, architecture: str, layers: tuple[LayerSpec, ...], *, newest: bool = True
) -> tuple[RotaryTable, ...]:
    """The cosine and sine tables vLLM builds: one per kind of rotary embedding among the attention layers.

    `newest`: as vLLM 0.32 does; else as 0.31 and before.
    """
    if architecture.startswith(NO_ROTARY) or text.text("position_embedding_type") == "nope":
        return ()
    attentions = [a for layer in layers for a in layer.mixers if a.num_heads]
    if fourier_frequencies(text) and attentions:
        return (
            RotaryTable(rotary_positions(text), 2 * attentions[0].head_dim, 2, attentions[0].num_kv_heads),
        )
    positions, latent = rotary_positions(text), any(a.kv_lora_rank for a in attentions)
    two = architecture.startswith(TWO_ROTARIES)
    fixed = text.count("rotary_dim", "rope_head_dim", "qk_rope_dim", default=0, low=0)
    dims = {
        (a.window > 0, fixed or a.qk_rope_head_dim or int(a.head_dim * partial_rotary(text, a.window > 0)))
        for a in attentions
    }
    if not two:
        dims = {(False, max(d for _, d in dims))} if dims else set()
    longest = text.count("max_position_embeddings", "max_position_embedding", default=2048)
    itemsize = 4 if architecture.startswith(WIDE_ROTARY) or (latent and _is_yarn(text)) else 2
    sparse = latent and any(a.index_head_dim for a in attentions)
    shared = text.flag("indexer_rope_interleave") or architecture.startswith(ONE_INDEXER_ROTARY)
    copies = 2 if sparse and not shared else 1
    each = architecture.startswith(MROPE_EACH)
    short = (*NO_SECTIONS, *SHORT_MROPE) if newest else NO_SECTIONS
    if each or "mrope_section" in text or (_has_sections(text) and not architecture.startswith(short)):
        positions *= MROPE_POSITIONS
        copies = len(attentions) if each else copies
    if len({bool(a.compress_ratio) for a in attentions}) > 1:
        return (RotaryTable(longest, fixed or attentions[0].qk_rope_head_dim, itemsize),) * 2
    if any(m.state and m.state.family == "linear_attention" for layer in layers for m in layer.mixers):
        copies = 2  # linear attention has a rotary embedding of its own
    return tuple(
        RotaryTable(longest if local else positions, d, itemsize)
        for local, d in sorted(dims)
        for _ in range(copies)
    )


def _has_sections(text: Keys) -> bool:
    """Whether positions have sections of their own for time, height and width."""
    return any("mrope_section" in text.section(s) for s in ("rope_scaling", "rope_parameters"))


def _is_yarn(text: Keys) -> bool:
    """DeepSeek's yarn keeps its table in float32."""
    return any(
        text.section(s).text("rope_type", "type") == "yarn" for s in ("rope_scaling", "rope_parameters")
    )


def rotary_positions(text: Keys) -> int:
    """Rows of the rotary table: scaled positions for linear and yarn scaling, both tables for longrope."""
    longest = text.count("max_position_embeddings", "max_position_embedding", default=2048)
    key, rope = text.first("rope_scaling", "rope_parameters")
    k = text.section(key) if rope is not None else Keys(text.name, {})
    if original := longrope_original_len(text):
        return longest + original
    if "factor" not in k:
        return longest
    factor, kind = k.number("factor", high=MAX_FACTOR), k.text("rope_type", "type")
    if kind == "linear":
        return int(longest * factor)
    if kind in ("yarn", "deepseek_yarn"):
        return int(k.count("original_max_position_embeddings", default=longest) * factor)
    return longest


def partial_rotary(text: Keys, windowed: bool = False) -> float:
    """Share of each head that is rotated, in windowed layers or in the others."""
    rope = text.section("rope_parameters")
    nested = rope.raw.get("sliding_attention" if windowed else "full_attention")
    listed = _listed_share(text, windowed)
    if listed is not None:
        value: object = listed
    elif isinstance(nested, dict):
        value = nested.get("partial_rotary_factor") if nested.get("rope_type") != "proportional" else 1.0
    else:
        value = rope.raw.get("partial_rotary_factor", text.raw.get("partial_rotary_factor"))
    part = Keys(text.name, {"partial_rotary_factor": value})
    return 0.0 if value == 0 and value is not False else part.number("partial_rotary_factor", 1.0, high=1)


def _listed_share(text: Keys, windowed: bool) -> object:
    """Step's list of shares, one a layer."""
    shares, types = text.raw.get("partial_rotary_factors"), text.texts("layer_types")
    if not isinstance(shares, list) or len(shares) < len(types):
        return None
    kind = "sliding_attention" if windowed else "full_attention"
    return next((share for share, t in zip(shares, types, strict=False) if t == kind), None)
