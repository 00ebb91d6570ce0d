"""Scenarios for vLLM: an engine and the requests it gets, counted in steps; one JSON file each."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

from pydantic import Field, model_validator

from kvplan.conformance.scenario import ScenarioRequest, check_requests, name_prompts
from kvplan.conformance.vllm_offload import OffloadScenario, VLLMRequest
from kvplan.ground.content import Content, length_of
from kvplan.ground.units import cdiv
from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup


class KVCacheLayers(KVCacheGroup):
    """Layers of one kind, before they are grouped."""

    layers: int = Field(1, ge=1)
    """Layers of this kind."""

    def page_size(self, block_size: int) -> int:
        """Return the bytes of a block of one layer, in bf16."""
        page = (self.block_size or block_size) * 4
        if self.kind == "mamba":
            return self.state_bytes or block_size * 16 * 4
        return page * self.kv_heads * self.head_size


def group_layers(
    layers: tuple[KVCacheLayers, ...], block_size: int, max_model_len: int
) -> tuple[KVCacheGroup, ...]:
    """Split layers into groups of equal size, as vLLM does (`_get_kv_cache_groups_uniform_page_size`).

    A group has as many layers as the rarest kind, or as the commonest if that is less than 1.5 times as many.
    """
    page = max(layer.page_size(block_size) for layer in layers)
    counts: dict[KVCacheGroup, int] = defaultdict(int)
    for layer in layers:
        own_page, size = layer.page_size(block_size), layer.block_size or block_size
        if layer.kind == "mamba" and layer.mode == "none":
            size = layer.block_size or max_model_len
        elif layer.kind != "mamba" and page % own_page == 0:
            size *= page // own_page  # smaller pages take more tokens
        spec = layer.model_dump(exclude={"layers", "repeat", "eagle"}) | {"block_size": size}
        counts[KVCacheGroup(**spec)] += layer.layers
    if len({(s.kind, s.window, s.chunk, s.block_size) for s in counts}) == 1:
        return (next(iter(counts)),)  # one kind needs no second block table
    fewest, most = min(counts.values()), max(counts.values())
    group_size = most if most < fewest * 1.5 else fewest
    return tuple(spec.model_copy(update={"repeat": cdiv(n, group_size)}) for spec, n in counts.items())


class VLLMScenario(EngineConfig):
    """An engine and its requests."""

    name: str = ""
    """Free text."""
    note: str = ""
    """Free text."""
    num_gpu_blocks: int = Field(ge=2, le=2_000_000)
    """Blocks of the pool, null block included; each is an object, as in vLLM."""
    accept_rate: float = Field(0.7, ge=0, le=1)
    """Chance that a draft is right."""
    kv_cache_layers: tuple[KVCacheLayers, ...] = ()
    """Layers to group, instead of `kv_cache_groups`."""
    requests: tuple[VLLMRequest, ...]
    """What arrives; the order breaks ties."""
    offload: OffloadScenario | None = None
    """A tier in host memory, instead of `kv_offloading`; its copies take steps."""

    @property
    def engine_config(self) -> EngineConfig:
        """The engine's part, layers grouped."""
        fields = {name: getattr(self, name) for name in EngineConfig.model_fields}
        if self.kv_cache_layers:
            fields["kv_cache_groups"] = group_layers(
                self.kv_cache_layers, self.block_size, self.max_model_len
            )
        if self.offload is not None:
            fields["kv_offloading"] = self.offload.engine_part
        return EngineConfig(**fields)

    @model_validator(mode="after")
    def _groups_agree(self) -> VLLMScenario:
        """Check the engine's part with its layers grouped, instead of without groups."""
        assert self.engine_config
        return self

    @cached_property
    def prompts(self) -> dict[str, Content]:
        """Request id -> what its prompt says."""
        return name_prompts(self.requests)

    def max_tokens(self, request: ScenarioRequest) -> int:
        """Return what the scheduler is told of a request's length."""
        if request.stop == "length":
            return request.output_len
        prompt = length_of(self.prompts[request.id])
        return request.max_tokens or self.max_model_len - prompt

    def make_request(self, request: VLLMRequest, arrival: int) -> Request:
        """Return the request as the engine sees it."""
        return Request(
            request.id,
            self.prompts[request.id],
            self.max_tokens(request),
            priority=request.priority,
            arrival_time=arrival,
            stop_at=request.output_len if request.stop == "eos" else None,
            max_load_tokens=request.max_load_tokens,
            max_offload_tokens=request.max_offload_tokens,
        )

    @model_validator(mode="after")
    def _requests_make_sense(self) -> VLLMScenario:
        check_requests(self.requests)
        for request in self.requests:
            self._check_lengths(request)
        return self

    def _check_lengths(self, request: ScenarioRequest) -> None:
        prompt = length_of(self.prompts[request.id])
        if prompt == 0:
            raise ValueError(f"request {request.id} has an empty prompt")
        if request.stop == "length" and request.max_tokens not in (None, request.output_len):
            raise ValueError(f"request {request.id}: with stop length, max_tokens is output_len")
        total = prompt + max(request.output_len, self.max_tokens(request))
        if total > self.max_model_len:
            raise ValueError(
                f"request {request.id} has {prompt} prompt tokens and up to {total - prompt} more,"
                f" over max_model_len {self.max_model_len}"
            )
