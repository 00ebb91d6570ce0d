"""What an SGLang server is told at start-up, by its flags' names and with its defaults (0.5.23)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kvplan.ground.config import Config

SchedulePolicyName = Literal["fcfs", "lof", "lpm", "dfs-weight", "hrrn", "shortest-prefill-first"]

CACHE_AWARE = ("lpm", "dfs-weight", "hrrn", "shortest-prefill-first")
"""Policies that look at what the radix cache holds (SGLang `CacheAwarePolicy`)."""


class SGLangConfig(Config):
    """Everything that SGLang's scheduler and radix cache decide by."""

    max_total_tokens: int = Field(ge=2)
    """Tokens of the KV pool (SGLang prints it as max_total_num_tokens); all can be used."""
    context_length: int = Field(ge=1)
    """Longest prompt + output."""
    page_size: int = Field(1, ge=1)
    """Tokens per page; 1 = token granularity."""
    max_running_requests: int | None = Field(None, ge=1)
    """Most requests that hold KV; None = SGLang's own default for the pool."""
    chunked_prefill_size: int = Field(8192, ge=-1)
    """Most prompt tokens of a prefill pass; -1 or 0 = whole prompts."""
    max_prefill_tokens: int = Field(16384, ge=1)
    """Prompt tokens after which no further request joins a prefill pass."""
    prefill_max_requests: int | None = Field(None, ge=1)
    """Most requests in a prefill pass."""
    enable_mixed_chunk: bool = False
    """Running requests decode inside the prefill pass."""
    prefill_decode_interval: int = Field(0, ge=0)
    """Decode passes between two prefill passes."""
    disable_radix_cache: bool = False
    """Reuse nothing."""
    radix_eviction_policy: Literal["lru", "lfu"] = "lru"
    """Which cached leaf goes first."""
    schedule_policy: SchedulePolicyName = "fcfs"
    """Order of the waiting queue."""
    schedule_conservativeness: float = Field(1.0, gt=0)
    """Scales the share of future tokens that running requests are expected to use."""
    enable_priority_scheduling: bool = False
    """Larger priorities first, under fcfs and lof."""
    schedule_low_priority_values_first: bool = False
    """Smaller priorities first instead."""
    priority_scheduling_preemption_threshold: int = Field(10, ge=0)
    """A waiting request takes the place of one whose priority is lower by more than this."""
    disable_priority_preemption: bool = False
    """Priorities order the queue only."""
    enable_overlap: bool = False
    """Schedule a pass while the one before it runs; SGLang's default on a GPU (--disable-overlap-schedule)."""

    @property
    def max_req_len(self) -> int:
        """Longest sequence (SGLang `ModelRunner`: one less than the smaller of context and pool)."""
        return min(self.context_length, self.max_total_tokens) - 1

    @property
    def max_req_input_len(self) -> int:
        """A prompt of so many tokens is refused (SGLang keeps five tokens for the output)."""
        return self.max_req_len - 5

    @property
    def num_request_slots(self) -> int:
        """Rows for requests that hold KV (SGLang `resolve_max_num_reqs`)."""
        asked = self.max_running_requests
        if asked is None:
            asked = max(min(int(self.max_total_tokens / self.context_length * 512), 4096), 2048)
        return max(1, min(asked, self.max_total_tokens // 2))

    @property
    def chunk_size(self) -> int | None:
        """Chunk budget of a pass; None = chunking is off."""
        return self.chunked_prefill_size if self.chunked_prefill_size > 0 else None

    @model_validator(mode="after")
    def _flags_agree(self) -> SGLangConfig:
        page, chunk = self.page_size, self.chunk_size
        if self.max_total_tokens % page:
            raise ValueError(f"max_total_tokens {self.max_total_tokens} is no multiple of page_size {page}")
        if chunk and chunk % page:
            raise ValueError(f"chunked_prefill_size {chunk} is no multiple of page_size {page}")
        if self.disable_radix_cache and self.schedule_policy == "shortest-prefill-first":
            raise ValueError("schedule_policy shortest-prefill-first needs the radix cache")
        if self.enable_priority_scheduling and self.schedule_policy not in ("fcfs", "lof"):
            raise ValueError(
                f"schedule_policy {self.schedule_policy}: SGLang orders by priority under fcfs and lof only"
            )
        return self
