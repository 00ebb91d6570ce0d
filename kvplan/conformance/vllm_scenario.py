"""Scenarios: an engine and the requests it gets, counted in steps; one JSON file each.

The format is that of the project's reference logs of vLLM's own scheduler (tests/conformance/README.md).
Knows how a scenario is written, not how it runs (`replay`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from kvplan.config import Config
from kvplan.content import Content, Segment, length_of, merge_segments, output_of
from kvplan.errors import KvplanError
from kvplan.schedulers.request import Request, cdiv
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup

S = TypeVar("S", bound=Config)


class PromptSegment(Config):
    """A piece of a prompt: shared tokens, tokens of its own, or an earlier request's prompt or output."""

    len: int | None = Field(None, ge=0)
    """Tokens of the piece; not given with `prompt_of`."""
    prefix_id: str | int | None = None
    """Name of tokens that several requests share; None = tokens that nobody else has."""
    start: int = Field(0, ge=0)
    """Where in the named tokens the piece starts."""
    prompt_of: str | None = None
    """The whole prompt of this earlier request."""
    output_of: str | None = None
    """The first `len` output tokens of this request."""

    @model_validator(mode="after")
    def _one_source(self) -> PromptSegment:
        sources = [self.prefix_id is not None, self.prompt_of is not None, self.output_of is not None]
        if sum(sources) > 1:
            raise ValueError("a segment has one of prefix_id, prompt_of, output_of")
        if self.prompt_of is None and self.len is None:
            raise ValueError("a segment needs `len`")
        return self


class ScenarioRequest(Config):
    """One request of a scenario."""

    id: str
    """Names it in the log."""
    prompt: tuple[int, ...] | tuple[PromptSegment, ...]
    """Token ids, or segments."""
    output_len: int = Field(ge=1)
    """Tokens it generates, a stop token included."""
    arrival_step: int = Field(0, ge=0)
    """The step before which it arrives."""
    after: str | tuple[str, ...] = ()
    """It arrives when these have finished, `delay_steps` + 1 steps after the last one."""
    delay_steps: int = Field(0, ge=0)
    """Steps that follow-up requests wait."""
    priority: int = 0
    """Smaller is served first, under the priority policy."""
    stop: Literal["length", "eos"] = "length"
    """length: the scheduler knows `output_len`; eos: it learns of the end when the stop token is sampled."""
    max_tokens: int | None = Field(None, ge=1)
    """What the scheduler is told; None = output_len, or with eos all that max_model_len leaves."""
    abort_step: int | None = Field(None, ge=0)
    """Abort it at that step."""
    abort_after: str | tuple[str, ...] = ()
    """Abort it when these have finished, `abort_delay_steps` + 1 steps after the last one."""
    abort_delay_steps: int = Field(0, ge=0)
    """Steps between the last finish and the abort."""
    abort_when: Literal["before_schedule", "before_output"] = "before_schedule"
    """Before the step is scheduled, or after that, just before the next output is applied."""
    accept_rate: float | None = Field(None, ge=0, le=1)
    """Chance that a draft is right; None = the scenario's."""
    accept: tuple[int, ...] = ()
    """Which drafts are right (1) or wrong (0), by output position, repeated."""

    @property
    def follows(self) -> tuple[str, ...]:
        """Ids it waits for."""
        return (self.after,) if isinstance(self.after, str) else self.after

    @property
    def abort_follows(self) -> tuple[str, ...]:
        """Ids whose end aborts it."""
        return (self.abort_after,) if isinstance(self.abort_after, str) else self.abort_after


def name_prompts(requests: Sequence[ScenarioRequest]) -> dict[str, Content]:
    """Request id -> what its prompt says, as runs of named tokens."""
    prompts: dict[str, Content] = {}
    for request in requests:
        pieces: list[Segment] = []
        prompt: Sequence[int | PromptSegment] = request.prompt
        for k, piece in enumerate(prompt):
            if isinstance(piece, int):
                pieces.append(Segment(f"token:{piece}", 1))
            elif piece.prompt_of is not None:
                pieces += prompts[piece.prompt_of]
            elif piece.output_of is not None:
                pieces.append(Segment(output_of(piece.output_of), piece.len or 0))
            else:
                name = f"{request.id}/{k}" if piece.prefix_id is None else piece.prefix_id
                pieces.append(Segment(f"pre:{name}", piece.len or 0, piece.start))
        prompts[request.id] = merge_segments(pieces)
    return prompts


def check_requests(requests: Sequence[ScenarioRequest]) -> None:
    """Raise ValueError for ids given twice, prompts of later requests, and waits that never end."""
    seen: set[str] = set()
    known = {request.id for request in requests}
    for request in requests:
        if request.id in seen:
            raise ValueError(f"request {request.id} is there twice")
        for piece in request.prompt:
            if isinstance(piece, PromptSegment) and piece.prompt_of not in (None, *seen):
                raise ValueError(f"request {request.id}: prompt_of {piece.prompt_of} is no earlier request")
        for other in (*request.follows, *request.abort_follows):
            if other not in known:
                raise ValueError(f"request {request.id} waits for {other}, which is not there")
        seen.add(request.id)
    _check_cycles(requests)


def _check_cycles(requests: Sequence[ScenarioRequest]) -> None:
    """Follow `after` backwards from every request; a request met twice on one way waits for itself."""
    follows = {request.id: request.follows for request in requests}
    done: set[str] = set()

    def visit(request_id: str, way: tuple[str, ...]) -> None:
        if request_id in way:
            raise ValueError(f"requests wait for each other: {' -> '.join((*way, request_id))}")
        if request_id not in done:
            for other in follows[request_id]:
                visit(other, (*way, request_id))
            done.add(request_id)

    for request_id in follows:
        visit(request_id, ())


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


class Scenario(EngineConfig):
    """An engine and its requests."""

    name: str = ""
    """Free text."""
    note: str = ""
    """Free text."""
    accept_rate: float = Field(0.7, ge=0, le=1)
    """Chance that a draft is right."""
    kv_cache_layers: tuple[KVCacheLayers, ...] = ()
    """Layers to group, instead of `kv_cache_groups`."""
    requests: tuple[ScenarioRequest, ...]
    """What arrives; the order breaks ties."""

    @property
    def engine_config(self) -> EngineConfig:
        """The engine's part, layers grouped."""
        fields = {name: getattr(self, name) for name in EngineConfig.model_fields}
        if self.kv_cache_layers:
            fields["kv_cache_groups"] = group_layers(
                self.kv_cache_layers, self.block_size, self.max_model_len
            )
        return EngineConfig(**fields)

    @model_validator(mode="after")
    def _groups_agree(self) -> Scenario:
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

    def make_request(self, request: ScenarioRequest, arrival: int) -> Request:
        """Return the request as the engine sees it."""
        return Request(
            request.id,
            self.prompts[request.id],
            self.max_tokens(request),
            priority=request.priority,
            arrival_time=arrival,
            stop_at=request.output_len if request.stop == "eos" else None,
        )

    @model_validator(mode="after")
    def _requests_make_sense(self) -> Scenario:
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


def load_scenario(path: str | Path, **changes: Any) -> Scenario:
    """Read a scenario file; `changes` replace its keys. Errors are one line and name file and place."""
    return read_scenario(Scenario, path, **changes)


def read_scenario(kind: type[S], path: str | Path, **changes: Any) -> S:
    """Read a scenario file as one engine's kind of scenario."""
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise KvplanError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise KvplanError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise KvplanError(f"{path}: a scenario is a JSON object, not a {type(data).__name__}")
    try:
        return kind(**data | changes)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise KvplanError(
            f"{path}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None
