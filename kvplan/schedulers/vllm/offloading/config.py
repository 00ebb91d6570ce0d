"""What the offloading connector is told, by vLLM's names and with vLLM's defaults. Knows no engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kvplan.ground.config import Config


class SecondaryTierConfig(Config):
    """One tier below host memory: an entry of `secondary_tiers` of vLLM's TieringOffloadingSpec."""

    type: Literal["fs", "example"] = "fs"
    """fs: files of one chunk each, which are never deleted; example: vLLM's in-memory tier, which takes no time."""
    n_read_threads: int = Field(16, ge=1)
    """Threads of the fs tier that prefer loads."""
    n_write_threads: int = Field(16, ge=1)
    """Threads of the fs tier that prefer stores."""


class OffloadingConfig(Config):
    """The CPU tier of one engine: `kv_connector_extra_config` of vLLM's OffloadingConnector."""

    num_chunks: int = Field(ge=1)
    """Slots of the tier; a chunk of any KV cache group takes one (memory/offloading.py has the arithmetic)."""
    blocks_per_chunk: int = Field(1, ge=1)
    """GPU blocks of a group that are stored and loaded together."""
    eviction_policy: Literal["lru", "arc"] = "lru"
    """Which chunk leaves a full tier."""
    offload_prompt_only: bool = True
    """Store prompts alone; answers reach the tier as part of the next turn's prompt."""
    store_threshold: int = Field(0, ge=0)
    """Store a chunk from this offer on; 0 and 1 = at once."""
    max_tracker_size: int = Field(64_000, ge=1)
    """Chunks whose offers are counted for store_threshold."""
    sync_load_budget_bytes: int = Field(0, ge=0)
    """Bytes that a rank may load inside a step, before its forward pass, instead of behind it; from 0.33 on."""
    kv_bytes_per_token: int = Field(1, ge=1)
    """Of one rank, all groups together: what that budget is counted in."""
    secondary_tiers: tuple[SecondaryTierConfig, ...] = ()
    """Tiers below host memory (TieringOffloadingSpec)."""

    @model_validator(mode="after")
    def _tiers_take_all(self) -> OffloadingConfig:
        if self.secondary_tiers and self.store_threshold >= 2:
            raise ValueError("store_threshold is not supported with secondary_tiers")
        return self
