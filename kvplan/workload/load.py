"""Draw a workload: columns of numbers, one row per request, everything that is known before the first step.

A follow-up turn is a row too; it starts when the turn before it is answered and its pause is over. Content is
named, not spelled (`kvplan.ground.content`): equal segments are equal tokens.
Knows no clock and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvplan.ground.content import Content, Segment, output_of, prompt_of
from kvplan.ground.errors import KvplanError
from kvplan.workload.arrivals import Arrivals, ClosedLoop, Poisson, TraceReplay, arrival_times
from kvplan.workload.classes import MAX_REQUESTS, RequestClass, Turns, Workload
from kvplan.workload.lengths import correlated_uniforms, quantile
from kvplan.workload.traces import Trace, read_trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(slots=True)
class Load:
    """All requests of a run, in columns; a request's id is its row."""

    arrival_s: Floats
    """When it arrives; NaN for a turn that follows another one."""
    class_id: Ints
    """Index into `class_names`."""
    prompt_tokens: Ints
    thinking_tokens: Ints
    """Hidden output tokens; they come first."""
    output_tokens: Ints
    """Thinking and answer."""
    max_tokens: Ints
    """What the client sends; 0 = nothing, so up to max_model_len."""
    ends_by_length: NDArray[np.bool_]
    """The scheduler is told `output_tokens` as max_tokens."""
    never_stops: NDArray[np.bool_]
    """Runs to max_tokens."""
    leaves_after_s: Floats
    """Seconds until the client gives up; inf = never."""
    prefix_group: Ints
    """Which shared prefix its prompt begins with; -1 = none."""
    next_turn: Ints
    """The row of the turn that follows; -1 = none."""
    pause_s: Floats
    """Seconds between the answer to the turn before and this one."""
    class_names: list[str]
    classes: list[RequestClass]
    arrivals: Arrivals
    """How they come, in the end: a trace without times may say it."""
    block_ids: list[tuple[int, ...]] | None = None
    """A trace's block names per request."""
    block_tokens: int = 0
    num_bad_rows: int = 0
    """Rows of the trace that were left out: damaged, or requests that had failed."""
    notes: tuple[str, ...] = ()
    """What of the trace is not as one might think."""
    previous_turn: Ints | None = None
    """The inverse of `next_turn`; None without sessions."""

    def __len__(self) -> int:
        return len(self.class_id)

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """The clients, if each waits for its answer."""
        return self.arrivals if isinstance(self.arrivals, ClosedLoop) else None

    def prompt(self, i: int) -> Content:
        """What request `i` asks: shared parts first, its own tokens last."""
        if self.block_ids is not None and self.block_ids[i]:
            return self._trace_prompt(i)
        if self.previous_turn is not None and self.previous_turn[i] >= 0:
            return self._conversation(i)
        group, length = int(self.prefix_group[i]), int(self.prompt_tokens[i])
        if group < 0:
            return (Segment(prompt_of(i), length),)
        shared = min(self.classes[self.class_id[i]].shared_prefix_tokens, length)
        prefix = Segment(f"shared{self.class_id[i]}.{group}", shared)
        return (prefix, Segment(prompt_of(i), length - shared)) if length > shared else (prefix,)

    def _trace_prompt(self, i: int) -> Content:
        assert self.block_ids is not None
        size, left = self.block_tokens, int(self.prompt_tokens[i])
        return tuple(Segment(f"b{b}", min(size, left - k * size)) for k, b in enumerate(self.block_ids[i]))

    def _conversation(self, i: int) -> Content:
        """The turns before, what each answered, and the new message."""
        assert self.previous_turn is not None
        chain = [i]
        while (before := int(self.previous_turn[chain[-1]])) >= 0:
            chain.append(before)
        session = self.classes[self.class_id[i]].session
        keep = session is not None and session.keep_thinking
        pieces = list(self.prompt(chain[-1]))
        for before, turn in zip(chain[:0:-1], chain[-2::-1], strict=True):
            skip = 0 if keep else int(self.thinking_tokens[before])
            said = int(self.output_tokens[before]) - skip
            own = int(self.prompt_tokens[turn] - self.prompt_tokens[before]) - said
            pieces += (Segment(output_of(before), said, skip), Segment(prompt_of(turn), own))
        return tuple(piece for piece in pieces if piece.length)


def draw_load(workload: Workload, folder: Path = Path()) -> Load:
    """Draw every request of a workload. Same seed, same load; each quantity has a random stream of its own.

    Raises KvplanError for an unreadable trace or an empty workload.
    """
    streams = dict(zip(_STREAMS, np.random.default_rng(workload.seed).spawn(len(_STREAMS)), strict=True))
    if workload.trace is not None:
        trace = read_trace(workload.trace, folder, streams["trace"])
        load = _from_trace(workload, trace, streams)
    else:
        load = _from_classes(workload, streams)
    _draw_leavers(load, streams["leave"])
    return load


_STREAMS = ("trace", "arrivals", "class", "lengths", "prefix", "leave", "session")


def _from_trace(workload: Workload, trace: Trace, streams: dict[str, np.random.Generator]) -> Load:
    rows = trace.rows
    if "num_requests" in workload.model_fields_set:
        rows = rows[: workload.num_requests]
    n = len(rows)
    spec, notes = _how_sent(workload.arrivals, trace)
    if isinstance(spec, TraceReplay):
        arrival = np.array([row.arrival_s for row in rows], float) / spec.speed
    else:
        arrival = arrival_times(spec, n, streams["arrivals"])
    load = _empty_load(workload, np.zeros(n, np.int64), arrival)
    load.arrivals, load.notes = spec, notes
    load.prompt_tokens = np.array([row.prompt_tokens for row in rows], np.int64)
    load.output_tokens = np.array([row.output_tokens for row in rows], np.int64)
    load.thinking_tokens = np.array([row.thinking_tokens for row in rows], np.int64)
    load.block_ids = [row.block_ids for row in rows] if trace.block_tokens else None
    load.block_tokens, load.num_bad_rows = trace.block_tokens, trace.num_bad_rows
    _draw_prefix(load, streams["prefix"])
    return load


def _how_sent(said: Arrivals, trace: Trace) -> tuple[Arrivals, tuple[str, ...]]:
    """How the requests of a trace come, and what to say about it. Raises KvplanError if nothing tells."""
    notes = []
    if trace.num_failed:
        notes.append(f"requests of the trace that had failed were left out: {trace.num_failed:,}")
    if not isinstance(said, TraceReplay):
        if trace.has_times:
            notes.append(f"the trace's own arrival times were not used: workload.arrivals is {said.kind}")
        return said, tuple(notes)
    if trace.has_times:
        return said, tuple(notes)
    if trace.sent is None:
        raise KvplanError(
            "the trace has no arrival times; say workload.arrivals, e.g. {kind: poisson, rate: 1.0}"
            " (or --request-rate)"
        )
    how = ", ".join(
        f"{k} {v:g}" for k, v in trace.sent.model_dump(exclude_defaults=True, exclude={"kind"}).items()
    )
    notes.append(
        f"the bench result has no start times: arrivals are drawn as it was sent, {trace.sent.kind}"
        + (f" at {how}" if how else "")
    )
    faster = (
        trace.sent.model_copy(update={"rate": trace.sent.rate * said.speed})
        if isinstance(trace.sent, Poisson)
        else trace.sent
    )
    return faster, tuple(notes)


def _from_classes(workload: Workload, streams: dict[str, np.random.Generator]) -> Load:
    n = workload.num_requests
    shares = np.array([c.share for c in workload.by_name.values()])
    class_id = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], streams["class"].random(n), "right")
    load = _empty_load(
        workload, class_id.astype(np.int64), arrival_times(workload.arrivals, n, streams["arrivals"])
    )
    for index, (cls, rng) in enumerate(zip(load.classes, streams["lengths"].spawn(len(shares)), strict=True)):
        rows = np.flatnonzero(load.class_id == index)
        _draw_lengths(load, cls, rows, rng)
    _draw_prefix(load, streams["prefix"])
    if any(cls.session for cls in load.classes):
        load = _with_sessions(load, streams["session"])
    return load


def _empty_load(workload: Workload, class_id: Ints, arrival_s: Floats) -> Load:
    n = len(class_id)
    if not n:
        raise KvplanError("the workload is empty: no requests")
    classes = list(workload.by_name.values())
    stop = np.array([c.stop for c in classes])[class_id]
    limits = np.array([c.max_tokens or 0 for c in classes], np.int64)[class_id]
    zeros = np.zeros(n, np.int64)
    return Load(
        arrival_s=arrival_s, class_id=class_id, prompt_tokens=zeros, thinking_tokens=zeros.copy(),
        output_tokens=zeros.copy(), max_tokens=limits, ends_by_length=stop == "length", never_stops=stop == "never",
        leaves_after_s=np.full(n, np.inf), prefix_group=np.full(n, -1), next_turn=np.full(n, -1), pause_s=np.zeros(n),
        class_names=list(workload.by_name), classes=classes, arrivals=workload.arrivals,
    )  # fmt: skip


def _draw_lengths(load: Load, cls: RequestClass, rows: Ints, rng: np.random.Generator) -> None:
    u = correlated_uniforms(cls.correlation, len(rows), rng)
    load.prompt_tokens[rows] = np.maximum(1, quantile(cls.prompt, u[:, 0]))
    load.thinking_tokens[rows] = quantile(cls.thinking, u[:, 1])
    answer = quantile(cls.answer, u[:, 2])
    load.output_tokens[rows] = np.maximum(1, load.thinking_tokens[rows] + answer)


def _draw_prefix(load: Load, rng: np.random.Generator) -> None:
    groups = np.array([c.shared_prefix_groups if c.shared_prefix_tokens else 0 for c in load.classes])[
        load.class_id
    ]
    drawn = np.floor(rng.random(len(load)) * groups).astype(np.int64)
    load.prefix_group = np.where(groups > 0, drawn, -1)


def _draw_leavers(load: Load, rng: np.random.Generator) -> None:
    """When clients give up: at their time-out, or earlier if they are of those who leave."""
    n = len(load)
    timeout = np.array([c.timeout_s or np.inf for c in load.classes])[load.class_id]
    share = np.array([c.abort_share for c in load.classes])[load.class_id]
    mean = np.array([c.abort_after_s for c in load.classes])[load.class_id]
    leaves = np.where(rng.random(n) < share, rng.exponential(1.0, n) * mean, np.inf)
    load.leaves_after_s = np.minimum(timeout, leaves)


def _with_sessions(load: Load, rng: np.random.Generator) -> Load:
    """Append the later turns of every session as rows of their own."""
    turns = np.ones(len(load), np.int64)
    for index, cls in enumerate(load.classes):
        if cls.session:
            rows = load.class_id == index
            turns[rows] = np.maximum(1, quantile(cls.session.turns, rng.random(rows.sum())))
    later = int(turns.sum()) - len(load)
    if later > MAX_REQUESTS:
        raise KvplanError(f"the sessions have {later} turns in all; at most {MAX_REQUESTS} fit in one run")
    first = np.repeat(np.arange(len(load)), turns - 1)
    grown = _repeat_rows(load, first, turns)
    for index, cls in enumerate(load.classes):
        if cls.session:
            rows = np.flatnonzero((load.class_id == index) & np.isnan(load.arrival_s))
            _draw_turns(grown, cls, cls.session, rows, rng)
    return grown


def _repeat_rows(load: Load, first: Ints, turns: Ints) -> Load:
    """The load with one more row per later turn, linked to the turn before."""
    n, more = len(load), len(first)
    names = ("class_id", "prompt_tokens", "thinking_tokens", "output_tokens", "max_tokens", "ends_by_length",
             "never_stops", "leaves_after_s", "prefix_group")  # fmt: skip
    for name in names:
        column = getattr(load, name)
        setattr(load, name, np.concatenate([column, column[first]]))
    load.arrival_s = np.concatenate([load.arrival_s, np.full(more, np.nan)])
    load.pause_s = np.zeros(n + more)
    previous = np.full(n + more, -1)
    starts = np.cumsum(turns - 1) - (turns - 1)
    rows = np.arange(n, n + more)
    previous[n:] = np.where(np.arange(more) == starts[first], first, rows - 1)
    load.next_turn = np.full(n + more, -1)
    load.next_turn[previous[n:]] = rows
    load.previous_turn = previous
    return load


def _draw_turns(load: Load, cls: RequestClass, session: Turns, rows: Ints, rng: np.random.Generator) -> None:
    """Lengths and pauses of later turns; a prompt is the whole conversation before it and a new message."""
    u = correlated_uniforms(cls.correlation, len(rows), rng)
    load.thinking_tokens[rows] = quantile(cls.thinking, u[:, 1])
    load.output_tokens[rows] = np.maximum(1, load.thinking_tokens[rows] + quantile(cls.answer, u[:, 2]))
    load.prompt_tokens[rows] = np.maximum(1, quantile(session.message, u[:, 0]))
    exponential = session.pause == "exponential"
    load.pause_s[rows] = session.pause_s * (rng.exponential(1.0, len(rows)) if exponential else 1.0)


def settle_lengths(load: Load, max_model_len: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Cut outputs as vLLM does, and let conversations grow by what was really said.

    `max_model_len` is per class. Returns what the scheduler is told as max_tokens, and which requests are refused
    because prompt and one output token do not fit (vLLM refuses them as well). Follow-up rows lie behind the turns
    they follow, so one pass in order of rows settles all.
    """
    longest = max_model_len[load.class_id]
    if load.previous_turn is None:
        return _settle(load, np.arange(len(load)), longest)
    told, refused = np.zeros(len(load), np.int64), np.zeros(len(load), bool)
    rows = np.flatnonzero(load.previous_turn < 0)
    while len(rows):
        told[rows], refused[rows] = _settle(load, rows, longest)
        rows = load.next_turn[rows]
        rows = rows[rows >= 0]
        _grow_prompts(load, rows)
    return told, refused


def _settle(load: Load, rows: Ints, longest: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    room = longest[rows] - load.prompt_tokens[rows]
    asked = np.where(load.max_tokens[rows] > 0, load.max_tokens[rows], room)
    cap = np.maximum(1, np.minimum(asked, room))
    output = np.where(load.never_stops[rows], cap, np.minimum(load.output_tokens[rows], cap))
    load.output_tokens[rows] = output
    load.thinking_tokens[rows] = np.minimum(load.thinking_tokens[rows], output)
    return np.where(load.ends_by_length[rows], output, cap), room < 1


def _grow_prompts(load: Load, rows: Ints) -> None:
    """Turn new messages into whole prompts: the prompt before, what was kept of its output, the message."""
    if not len(rows):
        return
    assert load.previous_turn is not None
    before = load.previous_turn[rows]
    keeps = np.array([bool(c.session and c.session.keep_thinking) for c in load.classes])[load.class_id[rows]]
    said = load.output_tokens[before] - np.where(keeps, 0, load.thinking_tokens[before])
    load.prompt_tokens[rows] += load.prompt_tokens[before] + said
