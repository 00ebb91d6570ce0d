"""What runs of a scenario share, whichever engine: who is due when, and what is kept. Counted in steps, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar

from kvplan.conformance.scenario import ScenarioRequest
from kvplan.ground.errors import DoesNotFit

STUCK_STEPS = 20
"""A run ends after more than so many steps in a row in which nothing happens."""
MAX_STEPS = 200_000


class LogRecord(Protocol):
    """One step of a log."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as one line of the log."""

    def sched_line(self) -> str:
        """Return the line that `sched_sha256` hashes."""

    def state_line(self) -> str:
        """Return the line that `state_sha256` hashes."""


L = TypeVar("L", bound=LogRecord)
Q = TypeVar("Q", bound=ScenarioRequest)


def sha256_of(lines: Iterable[str]) -> str:
    """Return the hash by which two engines are compared."""
    return sha256("".join(lines).encode()).hexdigest()


@dataclass(slots=True)
class ReplayResult(Generic[L]):
    """A whole run."""

    steps: list[L]
    stuck: bool

    @property
    def sched_sha256(self) -> str:
        """Hash over every decision."""
        return sha256_of(step.sched_line() for step in self.steps)

    @property
    def state_sha256(self) -> str:
        """Hash over the cache, and who ended."""
        return sha256_of(step.state_line() for step in self.steps)


class ScenarioReplay(Generic[Q, L]):
    """One run of a scenario: the twins add what a step is."""

    def __init__(self, requests: Sequence[Q]) -> None:
        self.step = 0
        self.stuck = False
        """Whether the last run ended because nothing could ever run again."""
        self.finish: dict[str, int] = {}
        """id -> step in which it finished or was aborted."""
        self._pending = list(requests)
        self._to_abort = [r for r in requests if r.abort_step is not None or r.abort_follows]

    def run(self, max_steps: int = MAX_STEPS) -> ReplayResult[L]:
        """Run to the end and keep all records."""
        steps = list(self.iter_steps(max_steps))
        return ReplayResult(steps, self.stuck)

    def iter_steps(self, max_steps: int = MAX_STEPS) -> Iterator[L]:
        """Yield a record per step until all is done, or stuck for good."""
        raise NotImplementedError

    def find_stuck(self) -> DoesNotFit | None:
        """Say what a run that is stuck waits for."""
        raise NotImplementedError

    def totals(self, result: ReplayResult[L]) -> dict[str, object]:
        """Return a run's totals and hashes."""
        raise NotImplementedError

    def _after(self, ids: Sequence[str], delay: int) -> int | None:
        """Return the step `delay` + 1 after the last of these has finished; None while one has not."""
        if any(i not in self.finish for i in ids):
            return None
        return max(self.finish[i] for i in ids) + 1 + delay

    def _due(self, request: Q) -> int | None:
        return self._after(request.follows, request.delay_steps) if request.follows else request.arrival_step

    def _abort_due(self, request: Q) -> int | None:
        if not request.abort_follows:
            return request.abort_step
        return self._after(request.abort_follows, request.abort_delay_steps)

    def _abort_ahead(self) -> bool:
        return any((due := self._abort_due(r)) is not None and due >= self.step for r in self._to_abort)

    def _next_arrival(self) -> int | None:
        return min((due for r in self._pending if (due := self._due(r)) is not None), default=None)

    def _take_arrivals(self) -> list[Q]:
        """Return the requests that are due, the earliest first, and wait for them no longer."""
        dues = [(due, r) for r in self._pending if (due := self._due(r)) is not None and due <= self.step]
        ready = [request for _, request in sorted(dues, key=lambda pair: pair[0])]
        for request in ready:
            self._pending.remove(request)
        return ready
