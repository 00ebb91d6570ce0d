"""Models that embed or score instead of generating: what vLLM makes of an architecture's name, labels and modules.

vLLM serves a generating class for pooling by leaving its LM head out (`as_embedding_model`) or by putting one layer
there, labels wide and in float32 (`as_seq_cls_model`); reward models have classes of their own. Encoders, whose tokens
see each other both ways, keep no KV and are refused. Source: vLLM 0.32 `config/model.py`,
`model_executor/models/registry.py`, `model_executor/models/adapters.py`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.models.config import MAX_CONFIG_BYTES, Keys, read_json
from kvplan.models.spec import ModelSpec

Pools = Literal["", "embed", "classify", "own"]

SUFFIXES: dict[str, Pools] = {
    **dict.fromkeys(("ForTextEncoding", "EmbeddingModel"), "embed"),
    **dict.fromkeys(("ForSequenceClassification", "ForTokenClassification", "ClassificationModel"), "classify"),
    **dict.fromkeys(("ForRewardModeling", "RewardModel", "TextModel", "Model"), "embed"),
}  # fmt: skip
"""Ends of architectures' names -> what their class is converted to; longer ends first (`_SUFFIX_TO_DEFAULTS`)."""
GENERATES = ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")
"""Ends of the names of generating classes."""
GENERATING = ("Gemma2Model", "LlamaModel", "MistralModel", "Qwen2Model")
"""Bodies that vLLM's registry knows by its generating classes: they pool if a flag or modules.json says so."""
OWN: dict[str, tuple[int | str, ...]] = {
    "Qwen2ForRewardModel": ("hidden", 1),
    "Qwen2ForProcessRewardModel": ("hidden", 2),
    "InternLM2ForRewardModel": (1,),
    "JinaVLForRanking": ("hidden", 1),
    "JinaEmbeddingsV5Model": (),
}
"""Classes that pool by themselves -> widths of the layers that score."""
PLAIN_SCORES = ("InternLM2ForRewardModel", "JinaVLForRanking")
"""Of these, those whose scoring layers stay in the checkpoint's dtype."""
BASE_OF_OWN = {"InternLM2ForRewardModel": "InternLM2ForCausalLM"}
"""Whose body they have, where no builder has their name."""
ENCODERS = (
    *(
        "Bert",
        "Roberta",
        "XLMRoberta",
        "ModernBert",
        "NomicBert",
        "Gte",
        "BgeM3",
        "HF_ColBERT",
        "ColBERTModern",
    ),
    *("ColBERTJina", "ColModernVBert", "CLIPModel", "SiglipModel", "OpenAIPrivacyFilter", "EmbeddingGemma2"),
)
"""vLLM's classes whose tokens see each other both ways (prefixes)."""
BOTH_WAYS = ("Llama", "Mistral", "Qwen2For", "Qwen2Model", "Qwen3For", "Qwen3Model", "Apertus", "Gemma3", "DeepseekV2",
             "DeepseekV3", "IQuestLoop")  # fmt: skip
"""Those that read `is_causal` from a config (prefixes)."""


class PooledClass(NamedTuple):
    """An architecture's name, read."""

    architecture: str
    """The class whose body it has."""
    pools: Pools
    """What vLLM converts that to by itself; own: it needs no conversion; empty: it generates."""


def check_encoder(k: Keys, architecture: str) -> None:
    """Refuse what keeps no KV cache; raises KvplanError naming the class or the key."""
    both = architecture.startswith(BOTH_WAYS) and not k.flag("is_causal", default=True)
    both = both or (
        architecture.startswith("Gemma3TextModel") and k.flag("use_bidirectional_attention", True)
    )
    if both or "Bidirectional" in architecture or architecture.startswith(ENCODERS):
        raise k.error(
            f"{architecture[:80]} is an encoder, whose tokens see each other both ways: vLLM keeps no KV cache for it,"
            " so there is none to plan"
        )


def pooled_class(architecture: str, known: Collection[str]) -> PooledClass:
    """Which class an architecture is read as, of those that are `known`.

    >>> pooled_class("Qwen3ForSequenceClassification", {"Qwen3ForCausalLM"})
    PooledClass(architecture='Qwen3ForCausalLM', pools='classify')
    >>> pooled_class("Qwen3Model", {"Qwen3ForCausalLM"}).pools, pooled_class("MistralModel", ()).pools
    ('embed', '')
    """
    if architecture in OWN:
        return PooledClass(BASE_OF_OWN.get(architecture, architecture), "own")
    if architecture in GENERATING:
        return PooledClass(f"{architecture.removesuffix('Model')}ForCausalLM", "")
    if architecture in known:
        scores = architecture.endswith("ForSequenceClassification")
        return PooledClass(architecture, "classify" if scores else "")
    end = next((end for end in SUFFIXES if architecture.endswith(end)), "")
    if not end or architecture.endswith(GENERATES):
        return PooledClass(architecture, "")
    stem = architecture.removesuffix(end)
    return PooledClass(next((stem + g for g in GENERATES if stem + g in known), architecture), SUFFIXES[end])


def num_labels(outer: Keys, text: Keys) -> int:
    """Labels of what scores: one for each word that a reranker answers by, else the config's, which has two by default.

    Source: `SequenceClassificationConfig`, `_resolve_num_labels`; transformers' `PretrainedConfig.num_labels`.
    """
    for k in (outer, text):
        if words := k.texts("classifier_from_token"):
            return 1 if k.text("method", default=text.text("method")) == "from_2_way_softmax" else len(words)
    for k in (outer, text):
        if "num_labels" in k:
            return k.count("num_labels", high=1 << 16)
        if names := k.section("id2label").raw:
            return len(names)
    return 2


def score_widths(architecture: str, pools: Pools, hidden_size: int, labels: int) -> tuple[int, ...]:
    """Widths of the layers that stand where an LM head would."""
    if pools == "own":
        return tuple(hidden_size if width == "hidden" else int(width) for width in OWN[architecture])
    return (labels,) if pools == "classify" else ()


def score_converts(architecture: str, outer: Keys, text: Keys) -> bool:
    """Whether formats of weights hold for what scores: not where it is made of the LM head's rows, or by a class that
    gives it none (vLLM 0.32 `as_seq_cls_model`, `internlm2.py`, `jina_vl.py`)."""
    by_words = any(key in k for k in (outer, text) for key in ("classifier_from_token", "method"))
    return not by_words and architecture not in PLAIN_SCORES


def head_itemsize(k: Keys, dtype: str) -> int:
    """Bytes per weight of what scores: float32 unless the config's `head_dtype` says otherwise."""
    said = k.text("head_dtype", default="float32")
    return 4 if (dtype if said == "model" else said) in ("float32", "float") else 2


def as_pooled(model: ModelSpec, convert: Literal["", "embed", "classify"]) -> ModelSpec:
    """The model as an engine has it that generates (empty), embeds or classifies."""
    if model.pools == "own" or convert == model.pools:
        return model
    scores = (model.num_labels,) if convert == "classify" else ()
    return replace(model, pools=convert, score_head=scores, headless=convert == "embed")


SENTENCE_MODES = {
    **dict.fromkeys(("lasttoken", "pooling_mode_lasttoken"), "LAST"),
    **dict.fromkeys(("mean", "pooling_mode_mean_tokens"), "MEAN"),
    **dict.fromkeys(("cls", "pooling_mode_cls_token"), "CLS"),
}


MODULES = "modules.json"


def pooling_files(folder: Path) -> tuple[str, ...]:
    """The config of a checkpoint's pooling module, relative to its folder; none where it has no such module."""
    file = folder / MODULES
    if not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES:
        return ()
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise KvplanError(f"{file}: cannot be read as JSON") from None
    modules = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
    pools = (m for m in modules if str(m.get("type", "")).endswith("Pooling"))
    return tuple(f"{Path(str(m.get('path', ''))).name}/config.json" for m in pools)[:1]


def sentence_pooling(folder: Path) -> str:
    """How a checkpoint's sentence-transformers modules pool: LAST, MEAN or CLS; empty where there are none.

    vLLM serves what has such modules for pooling. Source: `transformers_utils/config.py: get_pooling_config`.
    """
    files = pooling_files(folder)
    if not files:
        return ""
    inner = folder / files[0]
    told = read_json(inner) if inner.is_file() else {}
    said = [str(told.get("pooling_mode")), *(key for key, on in told.items() if on is True)]
    return next((SENTENCE_MODES[one] for one in said if one in SENTENCE_MODES), "LAST")
