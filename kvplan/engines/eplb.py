"""`--enable-eplb`, `--eplb-config`: experts balanced over ranks, as vLLM 0.32 checks it and what it takes.

Source: `config/parallel.py: EPLBConfig`, `distributed/eplb/eplb_state.py: add_model`.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from kvplan.ground.config import Config, read_object

Communicator = Literal["torch_nccl", "torch_gloo", "torch_xccl", "nixl", "pynccl"]
BLOCKING = ("torch_nccl", "pynccl")
"""Communicators that stand in the way of steps running beside them."""


class EplbConfig(Config):
    """vLLM's config of the balancing."""

    window_size: int = Field(default=1000, gt=0)
    """Steps whose loads are remembered."""
    step_interval: int = Field(default=3000, gt=0)
    """Steps from one rearrangement to the next."""
    num_redundant_experts: int = Field(default=0, ge=0, le=1023)
    """Experts of a layer that are there twice, over all ranks."""
    log_balancedness: bool = False
    log_balancedness_interval: int = Field(default=1, gt=0)
    use_async: bool = True
    policy: Literal["default"] = "default"
    communicator: Communicator | None = None
    enable_migration_batching: bool = False


def eplb_text(value: Any) -> str | None:
    """The flag's value as vLLM takes it, in one spelling; raises ValueError for another.

    >>> eplb_text('{"num_redundant_experts": 32, "window_size": 1000}')
    '{"num_redundant_experts": 32}'
    """
    if value is None:
        return None
    found = read_object(EplbConfig, value)
    if found.use_async and found.communicator in BLOCKING:
        raise ValueError(
            f"communicator {found.communicator} does not run beside steps; use_async false would do"
        )
    told = found.model_dump(exclude_defaults=True)
    return json.dumps(told, sort_keys=True) if told else None


def eplb_config(text: str | None) -> EplbConfig:
    """The config that a flag's value means."""
    return EplbConfig(**json.loads(text)) if text else EplbConfig.model_construct()
