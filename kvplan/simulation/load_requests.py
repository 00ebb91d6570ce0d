"""The requests of a load: what each asks, and when it comes.

By the clock of an open loop, or after what it waits for: a client's last one, the turn before. Knows no engine: it
sends requests to the run and is told who has ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvplan.ground.content import Content, Segment, prompt_of
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import MAX_HORIZON_S
from kvplan.simulation.in_flight import NEVER_COMES
from kvplan.simulation.misses import Misses
from kvplan.simulation.observer import Progress
from kvplan.simulation.replica_process import ReplicaProcess
from kvplan.simulation.run import Run
from kvplan.simulation.sim_request import LENGTH, REJECTED, TIMEOUT, SimRequest
from kvplan.workload.load import Load, settle_lengths


class LoadRequests:
    """A run's source of requests (`run.Source`): those of a load that have not come yet."""

    abort_reason = TIMEOUT

    def __init__(self, load: Load, seed: int, progress: Progress | None) -> None:
        self.load, self.seed, self.progress = load, seed, progress
        self.class_names = load.class_names
        self.span_s = float(np.nanmax(load.arrival_s))
        if not self.span_s <= MAX_HORIZON_S:
            raise KvplanError(
                f"the last request arrives after {self.span_s / 86400:,.4g} days, the clock ends after"
                f" {MAX_HORIZON_S / 86400:.0f}; raise the rate, or ask for fewer requests"
            )
        self.next_at, self.runs_ahead = NEVER_COMES, False
        self.open = len(load)
        """Requests that have not ended and still can."""
        self.misses: Misses | None = None
        """Ends the run once its targets are surely missed; None lets it go on."""
        self._any_follow = load.closed_loop is not None or load.previous_turn is not None
        self._any_leave = bool(np.isfinite(load.leaves_after_s).any())
        self._coming: Iterator[tuple[int, int]] = iter(())
        self._clients: Iterator[int] = iter(())
        self._pauses = np.zeros(0)
        self._due: dict[int, list[int]] = {}
        """Time -> rows that follow others and come then."""

    def start(self, run: Run) -> None:
        """Let the first ones come."""
        self.run, load = run, self.load
        self._fleets = [run.fleets[cls.model] for cls in load.classes]
        self._rows = RequestRows(load, [fleet.setup.config.max_model_len for fleet in self._fleets])
        is_alone = len(run.engines) == 1 and not self._any_follow
        self.runs_ahead = is_alone and not self._any_leave
        self._tells_next = is_alone and run.replicas[0].api is None
        first_turns = np.flatnonzero(~np.isnan(load.arrival_s))
        if load.closed_loop is not None:
            self._start_clients(first_turns.tolist(), load.closed_loop.concurrency, load.closed_loop.pause_s)
        else:
            ticks = np.rint(load.arrival_s[first_turns] * TICKS_PER_S).astype(np.int64)
            self._coming = _pairs(first_turns, ticks)
            self._await_next()

    def _start_clients(self, rows: list[int], concurrency: int, pause_s: float) -> None:
        """Each client begins at once, or after a pause where clients pause."""
        self._clients = iter(rows)
        rng = np.random.default_rng([self.seed, 1])
        self._pauses = rng.exponential(pause_s or 1.0, len(self.load)) * (pause_s > 0)
        first = list(islice(self._clients, concurrency))
        for row, begins_s in zip(first, rng.exponential(pause_s, len(first)), strict=True):
            if pause_s:
                self._send_after(float(begins_s), row)
            else:
                self._send(row)

    def _await_next(self) -> None:
        row, at = next(self._coming, (0, NEVER_COMES))
        if self._tells_next:
            self.next_at = at
        if at != NEVER_COMES:
            self.run.at(at - self.run.env.now, partial(self._come, row))

    def _come(self, row: int) -> None:
        if not self.run.stop.triggered:  # else many of one moment would all come before the end is noticed
            self._send(row)
            self._await_next()

    def _send(self, row: int) -> None:
        """A request arrives: refused, or on its way to a replica; its client may give up."""
        run, request = self.run, self._rows.request(row)
        request.arrival = run.env.now
        run.alive[row] = request
        if self.misses is not None:
            self.misses.sent(request)
        if self._rows.refused[row]:
            run.note("prompts longer than max_model_len - 1 were refused, as vLLM refuses them")
            run.ended(request, run.env.now, REJECTED, 0)
        else:
            run.send(self._fleets[request.class_id], request, run.place)
        if self._any_leave and row in run.alive and self.load.leaves_after_s[row] != np.inf:
            run.at(round(float(self.load.leaves_after_s[row]) * TICKS_PER_S), partial(run.leave, request))

    def ended(self, request: SimRequest, reason: int, generated: int, process: ReplicaProcess | None) -> None:
        """Let come what waited for this request; after the last one the run is over."""
        self.open -= 1
        if self.misses is not None and self.misses.settle(request, self.run.now, reason, generated):
            self.run.halt("missed")
        if self.progress is not None:
            self.progress(len(self.run.records), len(self.load))
        if self._any_follow:
            self.open -= self._follow(request.row, reason, request.finish_delay)
        if not self.open:
            self.run.halt("completed")

    def _follow(self, row: int, reason: int, seen_after: int) -> int:
        """Send what waited for this request; return how many never will come, their session cut short.

        Its client sees the end so many ticks from now.
        """
        load, lost = self.load, 0
        following = int(load.next_turn[row])
        if following >= 0 and reason <= LENGTH:
            self._send_after(float(load.pause_s[following]), following, seen_after)
            return 0
        while following >= 0:
            lost += 1
            following = int(load.next_turn[following])
        client = next(self._clients, None)
        if client is not None:
            self._send_after(float(self._pauses[row]), client, seen_after)
        return lost

    def _send_after(self, pause_s: float, row: int, seen_after: int = 0) -> None:
        """Send a request after a pause of at least one tick, which begins in so many ticks.

        So it comes after all that ends now, on whatever replica; requests of one moment come in order of rows.
        """
        delay = seen_after + max(1, round(pause_s * TICKS_PER_S))
        when = self.run.env.now + delay
        if when not in self._due:
            self.run.at(delay, self._send_due)
        self._due.setdefault(when, []).append(row)

    def _send_due(self) -> None:
        for row in sorted(self._due.pop(self.run.env.now)):
            self._send(row)


def _pairs(rows: NDArray[np.int64], ticks: NDArray[np.int64], chunk: int = 4096) -> Iterator[tuple[int, int]]:
    """Go through two columns together; a million numbers of Python's own would take 40 MB."""
    starts = range(0, len(rows), chunk)
    parts = (zip(rows[i : i + chunk].tolist(), ticks[i : i + chunk].tolist(), strict=True) for i in starts)
    return chain.from_iterable(parts)


class RequestRows:
    """Turns the load's columns into requests, a chunk of rows at a time."""

    CHUNK = 4096
    MAX_CHUNKS = 32

    def __init__(self, load: Load, max_model_len: list[int]) -> None:
        self.load = load
        self.told, self.refused = settle_lengths(load, np.array(max_model_len))
        self._is_plain = load.block_ids is None and load.previous_turn is None
        self._chunks: dict[int, list[tuple[int, ...]]] = {}

    def request(self, row: int) -> SimRequest:
        """The request of a row."""
        index, offset = divmod(row, self.CHUNK)
        chunk = self._chunks.get(index) or self._fill(index)
        told, output, thinking, class_id, prompt, group = chunk[offset]
        if self._is_plain and group < 0:
            segments: Content = (Segment(prompt_of(row), prompt),)
        else:
            segments = self.load.prompt(row)
        priority = self.load.classes[class_id].priority
        request = SimRequest(row, segments, told, output, thinking, class_id=class_id, priority=priority)
        if self.load.previous_turn is not None:
            request.session, request.turn = self._place_in_session(row)
        return request

    def _place_in_session(self, row: int) -> tuple[int, int]:
        """The row of the session's first turn, and how many turns came before."""
        turn = 0
        previous: Any = self.load.previous_turn
        while previous[row] >= 0:
            row, turn = int(previous[row]), turn + 1
        return row, turn

    def _fill(self, index: int) -> list[tuple[int, ...]]:
        load, rows = self.load, slice(index * self.CHUNK, (index + 1) * self.CHUNK)
        columns = (self.told, load.output_tokens, load.thinking_tokens, load.class_id, load.prompt_tokens,
                   load.prefix_group)  # fmt: skip
        if len(self._chunks) >= self.MAX_CHUNKS:
            self._chunks.clear()
        chunk = self._chunks[index] = list(zip(*(c[rows].tolist() for c in columns), strict=True))
        return chunk
