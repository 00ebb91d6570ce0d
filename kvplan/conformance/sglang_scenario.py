"""Scenarios for SGLang: the format of `vllm_scenario` with SGLang's flags.

Keys that both engines have keep vLLM's names: `block_size` is --page-size, `max_num_seqs` --max-running-requests,
`max_num_batched_tokens` --chunked-prefill-size, `max_model_len` --context-length, `async_scheduling` the overlap loop.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from kvplan.conformance.scenario import ScenarioRequest, check_requests, name_prompts
from kvplan.ground.config import Config
from kvplan.ground.content import Content, length_of
from kvplan.schedulers.request import Request
from kvplan.schedulers.sglang.config import SGLangConfig


class SGLangRequest(ScenarioRequest):
    """One request of a scenario."""

    ignore_eos: bool = False
    """It always runs to max_tokens, and the engine knows."""


class SGLangScenario(Config):
    """An SGLang engine and its requests."""

    name: str = ""
    """Free text."""
    note: str = ""
    """Free text."""
    block_size: int = Field(1, ge=1)
    """--page-size."""
    num_gpu_blocks: int | None = Field(None, ge=1)
    """Pages of the pool; all can be used."""
    max_total_tokens: int | None = Field(None, ge=1)
    """--max-total-tokens, instead of `num_gpu_blocks`."""
    max_num_seqs: int = Field(256, ge=1)
    """--max-running-requests."""
    max_num_batched_tokens: int = Field(8192, ge=1)
    """--chunked-prefill-size."""
    enable_chunked_prefill: bool = True
    """False: --chunked-prefill-size -1."""
    max_model_len: int = Field(ge=1)
    """--context-length."""
    enable_prefix_caching: bool = True
    """False: --disable-radix-cache."""
    policy: Literal["fcfs", "lof", "lpm", "dfs-weight", "hrrn", "shortest-prefill-first", "priority"] = "fcfs"
    """--schedule-policy; priority: fcfs with --enable-priority-scheduling."""
    async_scheduling: bool = False
    """The overlap loop."""
    max_prefill_tokens: int = Field(16384, ge=1)
    """--max-prefill-tokens."""
    schedule_conservativeness: float = Field(1.0, gt=0)
    """--schedule-conservativeness."""
    enable_mixed_chunk: bool = False
    """--enable-mixed-chunk."""
    prefill_max_requests: int | None = Field(None, ge=1)
    """--prefill-max-requests."""
    prefill_decode_interval: int = Field(0, ge=0)
    """--prefill-decode-interval."""
    radix_eviction_policy: Literal["lru", "lfu"] = "lru"
    """--radix-eviction-policy."""
    low_priority_first: bool = False
    """--schedule-low-priority-values-first."""
    priority_preemption_threshold: int = Field(10, ge=0)
    """--priority-scheduling-preemption-threshold."""
    disable_priority_preemption: bool = False
    """--disable-priority-preemption."""
    requests: tuple[SGLangRequest, ...]
    """What arrives; the order breaks ties."""

    @cached_property
    def engine_config(self) -> SGLangConfig:
        """The engine's part, by SGLang's names."""
        same = SGLangConfig.model_fields.keys() & type(self).model_fields.keys() - {"max_total_tokens"}
        return SGLangConfig(
            **{name: getattr(self, name) for name in same},
            max_total_tokens=self.max_total_tokens or (self.num_gpu_blocks or 0) * self.block_size,
            context_length=self.max_model_len,
            page_size=self.block_size,
            max_running_requests=self.max_num_seqs,
            chunked_prefill_size=self.max_num_batched_tokens if self.enable_chunked_prefill else -1,
            disable_radix_cache=not self.enable_prefix_caching,
            schedule_policy="fcfs" if self.policy == "priority" else self.policy,
            enable_priority_scheduling=self.policy == "priority",
            schedule_low_priority_values_first=self.low_priority_first,
            priority_scheduling_preemption_threshold=self.priority_preemption_threshold,
            enable_overlap=self.async_scheduling,
        )

    @cached_property
    def prompts(self) -> dict[str, Content]:
        """Request id -> what its prompt says."""
        return name_prompts(self.requests)

    def make_request(self, request: SGLangRequest, arrival: int) -> Request:
        """Return the request as it reaches the engine."""
        prompt = self.prompts[request.id]
        ends_by_stop = request.stop == "eos"
        max_tokens = request.output_len
        if ends_by_stop:
            max_tokens = request.max_tokens or max(1, self.max_model_len - length_of(prompt))
        stop_at = request.output_len if ends_by_stop else None
        return Request(request.id, prompt, max_tokens, request.priority, arrival, stop_at)

    @model_validator(mode="after")
    def _makes_sense(self) -> SGLangScenario:
        if (self.max_total_tokens is None) == (self.num_gpu_blocks is None):
            raise ValueError("give num_gpu_blocks or max_total_tokens")
        check_requests(self.requests)
        for request in self.requests:
            if not self.prompts[request.id]:
                raise ValueError(f"request {request.id} has an empty prompt")
            if request.stop == "length" and request.max_tokens not in (None, request.output_len):
                raise ValueError(f"request {request.id}: with stop length, max_tokens is output_len")
        try:
            assert self.engine_config
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self
