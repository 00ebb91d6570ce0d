"""Configs with one switch of the language model turned: which there are, and where they stand."""

from __future__ import annotations

import copy
from typing import Any

ALWAYS = ("tie_word_embeddings", "attention_bias")
"""Turned in every config: classes read them, or not, whether or not a config has them."""
SWITCHES = (
    *ALWAYS,
    *("mlp_bias", "use_bias", "bias", "qkv_bias", "add_bias_linear", "add_qkv_bias", "use_qkv_bias"),
    *("attention_qkv_bias", "use_qk_norm", "qk_layernorm", "qk_norm", "mamba_proj_bias", "use_conv_bias"),
    *("mamba_conv_bias", "conv_bias", "layer_norm_bias", "parallel_attn", "sandwich_norm", "enable_bias"),
)
TEXT = ("text_config", "llm_config", "language_config", "thinker_config", "text", "config")


def first_cases(cases: dict[str, Any]) -> list[str]:
    """One case of each architecture: the first that vLLM ran on one rank without drafts."""
    found: dict[str, str] = {}
    for name, case in sorted(cases.items()):
        if "error" not in case["vllm"]["1"] and "speculative_config" not in case.get("flags", {}):
            found.setdefault(case["config"].get("architectures", [name])[0], name)
    return sorted(found.values())


def sections(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config and those of its sections that are a language model's."""
    inner = [v for k, v in config.items() if k in TEXT and isinstance(v, dict)]
    return [config, *(s for v in inner for s in sections(v))]


TOPS = {"yes over no": (True, False), "no over yes": (False, True), "none over yes": (None, True)}
"""What the top of a config and its language model's section say of a tie."""


def topped(config: dict[str, Any], told: tuple[bool | None, bool]) -> dict[str, Any] | None:
    """The config with a tie told so at its top and in its sections; None where it has none."""
    changed = copy.deepcopy(config)
    top, *inner = sections(changed)
    if not inner:
        return None
    for part, value in ((top, told[0]), *((p, told[1]) for p in inner)):
        part.pop("tie_word_embeddings", None)
        if value is not None:
            part["tie_word_embeddings"] = value
    return changed


def turned(config: dict[str, Any], switch: str, value: bool) -> dict[str, Any] | None:
    """The config with the switch so; None where it is so already or has no such switch.

    A tie is told in every section, other switches where they stand, else beside the heads.
    """
    changed = copy.deepcopy(config)
    parts = sections(changed)
    if switch == "tie_word_embeddings":
        told = parts
    else:
        told = [p for p in parts if isinstance(p.get(switch), bool)]
        if not told and switch in ALWAYS:
            told = [p for p in parts if "num_attention_heads" in p]
    if not told or all(p.get(switch, None) is value for p in told):
        return None
    for part in told:
        part[switch] = value
    return changed
