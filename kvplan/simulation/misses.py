"""The first proof that a run misses its targets: so many requests have missed theirs that the others cannot make up.

What is counted is what a record says, so that a run that is stopped for it is one whose result would say missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from kvplan.simulation.metrics import TICKS_PER_MS
from kvplan.simulation.records import UNSET
from kvplan.simulation.sim_request import LENGTH, SimRequest
from kvplan.workload.classes import Slo

HAIR = 1 + 1e-9
"""Latencies nearer to a target than rounding are not counted: the result is to say what they are."""


class Misses:
    """Counts, by class, the requests that missed a target."""

    def __init__(self, slos: Sequence[Slo], num_requests: Sequence[int]) -> None:
        """`num_requests` of each class are to come, at most."""
        self._slos = slos
        self._left = [
            inf if slo.is_empty else n - slo.share * n for slo, n in zip(slos, num_requests, strict=True)
        ]
        """How many more may miss."""

    def settle(self, request: SimRequest, now: int, reason: int, generated: int) -> bool:
        """Take in a request that has ended; return whether its class has missed its targets whatever comes."""
        if reason > LENGTH or self._is_late(request, now, generated):
            self._left[request.class_id] -= 1
        return self._left[request.class_id] < -1e-6

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


def is_over(ticks: float, limit_ms: float | None) -> bool:
    """Whether so many ticks are surely more than a target; None = there is none."""
    return limit_ms is not None and ticks > limit_ms * TICKS_PER_MS * HAIR
