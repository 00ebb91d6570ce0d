"""The first proof that a run misses its targets: so many requests have missed theirs that the others cannot make up.

What is counted is what a record says, or will surely say: who still waits for the first token or for the end when that
is due is late already. So a run that is stopped for it is one whose result would say missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from math import inf

from kvplan.simulation.metrics import TICKS_PER_MS
from kvplan.simulation.records import UNSET
from kvplan.simulation.sim_request import LENGTH, SimRequest
from kvplan.workload.classes import Slo

HAIR = 1 + 1e-9
"""Latencies nearer to a target than rounding are not counted: the result is to say what they are."""


class Due:
    """The requests of a class that have not come to one of its deadlines yet, in the order in which they were sent."""

    __slots__ = ("ends", "limit", "requests")

    def __init__(self, limit_ms: float, ends: bool) -> None:
        self.limit = limit_ms * TICKS_PER_MS * HAIR
        """From the arrival, ticks."""
        self.ends = ends
        """Whether the end is due; else the first token."""
        self.requests: deque[SimRequest] = deque()

    def late(self, now: int) -> Iterator[SimRequest]:
        """Take out those whose deadline has passed; yield who lacks what was due, also those that have ended."""
        waiting = self.requests
        while waiting and now > waiting[0].arrival + self.limit:
            request = waiting.popleft()
            if self.ends or request.first_token == UNSET:
                yield request


class Misses:
    """Counts, by class, the requests that missed a target."""

    def __init__(self, slos: Sequence[Slo], num_requests: Sequence[int]) -> None:
        """`num_requests` of each class are to come, at most."""
        self._slos = slos
        self._left = [
            inf if slo.is_empty else n - slo.share * n for slo, n in zip(slos, num_requests, strict=True)
        ]
        """How many more may miss."""
        self._due = [list(_deadlines(slo)) for slo in slos]
        self._open: set[int] = set()
        """Rows of requests that have not ended and are not known to be late."""

    def sent(self, request: SimRequest) -> None:
        """Take in a request that has come."""
        if due := self._due[request.class_id]:
            self._open.add(request.row)
            for deadline in due:
                deadline.requests.append(request)

    def settle(self, request: SimRequest, now: int, reason: int, generated: int) -> bool:
        """Take in a request that has ended; return whether its class has missed its targets whatever comes."""
        class_id = request.class_id
        for deadline in self._due[class_id]:
            for late in deadline.late(now):
                self._count(late)
        if not self._due[class_id] or request.row in self._open:
            self._open.discard(request.row)
            if reason > LENGTH or self._is_late(request, now, generated):
                self._left[class_id] -= 1
        return self._left[class_id] < -1e-6

    def _count(self, request: SimRequest) -> None:
        """One that is late, unless it has been counted."""
        if request.row in self._open:
            self._open.remove(request.row)
            self._left[request.class_id] -= 1

    def _is_late(self, request: SimRequest, now: int, generated: int) -> bool:
        slo, arrival = self._slos[request.class_id], request.arrival
        seen = request.first_visible
        per_token = (now - request.first_token) / (generated - 1) if generated > 1 else 0.0
        return (
            is_over(now - arrival, slo.e2el_ms)
            or is_over(request.first_token - arrival, slo.ttft_ms)
            or is_over(inf if seen == UNSET else seen - arrival, slo.ttfvt_ms)
            or is_over(per_token, slo.tpot_ms)
        )


def _deadlines(slo: Slo) -> Iterator[Due]:
    if slo.ttft_ms is not None:
        yield Due(slo.ttft_ms, ends=False)
    if slo.e2el_ms is not None:
        yield Due(slo.e2el_ms, ends=True)


def is_over(ticks: float, limit_ms: float | None) -> bool:
    """Whether so many ticks are surely more than a target; None = there is none."""
    return limit_ms is not None and ticks > limit_ms * TICKS_PER_MS * HAIR
