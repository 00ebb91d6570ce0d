"""A replica as a process on the clock: what wakes it, and what cuts its leap short.

Holds the clock's events and processes without knowing whose clock it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from kvplan.simulation.replica import Replica
from kvplan.simulation.scoring import ScoreBatch
from kvplan.simulation.sim_request import SimRequest


@dataclass(slots=True, eq=False)
class ReplicaProcess:
    """A replica, and the process that steps it."""

    replica: Replica
    process: Any = None
    sleeper: Any = None
    """Set while nothing is there to do; ranks in lockstep share one."""
    can_cut: bool = False
    """In a leap that can still be cut."""
    score_batches: deque[ScoreBatch] = field(default_factory=deque)
    """Scores by a verifier on the same GPUs; the engine waits for them between two steps."""

    def submit(self, request: SimRequest, now: int) -> None:
        """Hand a request over; wake the replica, or cut its leap."""
        self.replica.submit(request, now)
        leap = self.replica.leap
        if self.sleeper is not None:
            self.wake()
        elif self.can_cut and leap is not None and leap.open:
            self._cut()

    def wake(self) -> None:
        """Something is there to do."""
        if self.sleeper is not None:
            if not self.sleeper.triggered:
                self.sleeper.succeed()
            self.sleeper = None

    def leave(self, request: SimRequest) -> None:
        """A client gives up."""
        self.replica.leave(request)
        if self.can_cut:
            self._cut()

    def _cut(self) -> None:
        assert self.process is not None
        self.can_cut = False
        self.process.interrupt()
