"""What scenarios of both engines share: requests, what their prompts say, and how a file is read.

The format is that of the project's reference logs (tests/conformance/README.md). Knows how a scenario is written, not
how it runs (`replay`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from kvplan.ground.config import Config
from kvplan.ground.content import Content, Segment, merge_segments, output_of
from kvplan.ground.errors import KvplanError

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
    """A request that waits for itself, over others, never comes."""
    try:
        TopologicalSorter({request.id: request.follows for request in requests}).prepare()
    except CycleError as error:
        raise ValueError(f"requests wait for each other: {' -> '.join(error.args[1][:20])}") from None


def read_scenario(kind: type[S], path: str | Path, **changes: Any) -> S:
    """Read a scenario file as one engine's kind of scenario."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise KvplanError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise KvplanError(f"{path} is not JSON: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise KvplanError(f"{path}: a scenario is a JSON object, not a {type(data).__name__}")
    return make_scenario(kind, data | changes, str(path))


def make_scenario(kind: type[S], data: dict[str, Any], name: str) -> S:
    """Make a scenario of JSON; raises KvplanError that says of which file or log it is."""
    try:
        return kind(**data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise KvplanError(
            f"{name}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None
