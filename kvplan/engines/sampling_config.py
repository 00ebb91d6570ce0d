"""Flags of sampling and of kernels' order that are JSON objects, as vLLM 0.32 reads them.

Source: `config/watermarking.py`, `config/kernel.py: IrOpPriorityConfig`.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from kvplan.ground.config import Config, json_object, read_object


class WatermarkConfig(Config):
    """vLLM's config of marks in text; the key itself is nobody's business."""

    key: int = Field(ge=0, lt=1 << 64)
    algorithm: Literal["gumbel", "dual_key_gumbel"] = "gumbel"
    alpha: float = Field(default=0.1, ge=0, le=1)
    context_width: int = Field(default=4, ge=1)
    deduplicate_contexts: Literal["none", "single_turn", "all"] = "single_turn"
    deduplicate_contexts_max_history: int | None = Field(default=8192, ge=1)
    prf: Literal["philox"] = "philox"
    allow_target_only_watermarking: bool = False


def watermark_text(value: Any) -> str | None:
    """The flag's value as vLLM takes it, in one spelling; raises ValueError for another.

    >>> watermark_text('{"key": 7, "alpha": 0.1}')
    '{"key": 7}'
    """
    if value is None:
        return None
    return json.dumps(read_object(WatermarkConfig, value).model_dump(exclude_defaults=True), sort_keys=True)


def watermark_config(text: str) -> WatermarkConfig:
    """The config that a flag's value means."""
    return WatermarkConfig(**json.loads(text))


OPS = ("rms_norm", "fused_add_rms_norm", "gelu_and_mul_sparse")
"""Operations with kernels to choose from."""


def priority_text(value: Any) -> str | None:
    """Operation -> its kernels in the order of choice; raises ValueError for an operation that vLLM has not.

    >>> priority_text('{"rms_norm": ["native"]}')
    '{"rms_norm": ["native"]}'
    """
    if value is None:
        return None
    told = {}
    for name, kernels in json_object(value).items():
        if name not in OPS:
            raise ValueError(f"{str(name)[:40]} is not one of {', '.join(OPS)}")
        told[name] = [part.strip() for part in kernels.split(",")] if isinstance(kernels, str) else kernels
        if not isinstance(kernels, str | list) or not all(isinstance(kernel, str) for kernel in told[name]):
            raise ValueError(f"{name}: names of kernels, first choice first")
    return json.dumps(told, sort_keys=True) if told else None
