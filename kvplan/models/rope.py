"""Rotary embeddings: how long a context they allow, and the tables the engine builds for them.

Follows vLLM 0.32 (`config/model.py`, `model_executor/layers/rotary_embedding`).
"""

from __future__ import annotations

from collections.abc import Iterator

from kvplan.models.config import Keys
from kvplan.models.spec import LayerSpec, RotaryTable

NO_ROTARY = ("NemotronH", "KimiLinear", "Jamba", "Zamba2")
TWO_ROTARIES = ("Gemma3", "Gemma4", "MiMoV2")
"""Families whose windowed layers have a rotary embedding of their own."""

_MAX_LEN_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
)
_ALREADY_SCALED = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}


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


def yarn_max_model_len(text: Keys) -> int:
    """`original_max_position_embeddings` times the factor where the rope type is yarn, else 0.

    vLLM up to 0.29 took this for the longest context; since 0.30 (PR 56446) `max_position_embeddings` counts as scaled.
    """
    rope = text.section("rope_scaling" if "rope_scaling" in text else "rope_parameters")
    factor, original = rope.raw.get("factor"), rope.raw.get("original_max_position_embeddings")
    if rope.raw.get("rope_type", rope.raw.get("type")) != "yarn" or not isinstance(original, int):
        return 0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 4096:
        return 0
    return int(rope.count("original_max_position_embeddings") * factor)


def _rope_factors(text: Keys) -> Iterator[float]:
    key, rope = text.first("rope_scaling", "rope_parameters")
    if rope is None:
        return
    outer = text.section(key)
    nested = [outer.section(name) for name, value in outer.raw.items() if isinstance(value, dict)]
    for part in nested or [outer]:
        kind = part.text("rope_type", "type", default="default")
        factor = part.raw.get("factor")
        if kind in _ALREADY_SCALED or factor is None:
            continue
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 4096:
            raise text.error(f"{key}: factor must be a number above 0 and at most 4096")
        yield float(factor)


def rotary_tables(text: Keys, architecture: str, layers: tuple[LayerSpec, ...]) -> tuple[RotaryTable, ...]:
    """The cosine and sine tables vLLM builds: one per kind of rotary embedding among the attention layers."""
    if architecture.startswith(NO_ROTARY) or text.text("position_embedding_type") == "nope":
        return ()
    attentions = [a for layer in layers for a in layer.mixers if a.num_heads]
    positions, latent = rotary_positions(text), any(a.kv_lora_rank for a in attentions)
    dims = {(a.window > 0, a.qk_rope_head_dim or a.head_dim) for a in attentions}
    share, fixed = partial_rotary(text), text.count("rotary_dim", default=0, low=0)
    if not architecture.startswith(TWO_ROTARIES):
        dims = {(False, max(d for _, d in dims))} if dims else set()
    longest = text.count("max_position_embeddings", default=2048)
    # DeepSeek's yarn keeps its table in float32
    itemsize = 4 if latent and text.section("rope_scaling").text("rope_type", "type") == "yarn" else 2
    sparse = any(a.index_head_dim for a in attentions)
    indexers = 2 if sparse and not text.flag("indexer_rope_interleave") else 1
    return tuple(
        RotaryTable(longest if local else positions, fixed or (d if latent else int(d * share)), itemsize)
        for local, d in sorted(dims)
        for _ in range(indexers)
    )


def rotary_positions(text: Keys) -> int:
    """Rows of the rotary table: scaled positions for linear and yarn scaling, both tables for longrope."""
    longest = text.count("max_position_embeddings", default=2048)
    key, rope = text.first("rope_scaling", "rope_parameters")
    k = text.section(key) if rope is not None else Keys(text.name, {})
    if original := longrope_original_len(text):
        return longest + original
    factor = k.raw.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 4096:
        return longest
    kind = k.text("rope_type", "type")
    if kind == "linear":
        return int(longest * factor)
    if kind in ("yarn", "deepseek_yarn"):
        return int(k.count("original_max_position_embeddings", default=longest) * factor)
    return longest


def partial_rotary(text: Keys) -> float:
    """Share of each head that is rotated."""
    value = text.raw.get(
        "partial_rotary_factor", text.section("rope_parameters").raw.get("partial_rotary_factor")
    )
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise text.error("partial_rotary_factor must be a number between 0 and 1")
    return float(value)
