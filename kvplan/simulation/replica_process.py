"""A replica as a process on the clock: what wakes it, and what cuts its leap short.

Holds the clock's events and processes without knowing whose clock it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from kvplan.simulation.admission_control import AdmissionControl
from kvplan.simulation.lockstep import LockstepGroup
from kvplan.simulation.replica import Replica
from kvplan.simulation.scoring import ScoreBatch
from kvplan.simulation.sim_request import SimRequest


@dataclass(slots=True, eq=False)
class EngineProcess:
    """What steps as one, and the process that steps it."""

    engine: Replica | LockstepGroup
    process: Any = None
    sleeper: Any = None
    """Set while nothing is there to do."""
    can_cut: bool = False
    """In a leap that can still be cut."""
    score_batches: deque[ScoreBatch] = field(default_factory=deque)
    """Scores by a verifier on the same GPUs; the engine waits for them between two steps."""

    def wake(self) -> None:
        """Something is there to do."""
        if self.sleeper is not None:
            self.sleeper.succeed()
            self.sleeper = None

    def cut(self) -> None:
        """End the leap under way with the step under way, if that can still be done."""
        if self.can_cut:
            self.can_cut = False
            self.process.interrupt()


@dataclass(slots=True, eq=False)
class ReplicaProcess:
    """A replica, alone or a rank of a lockstep group, and the process that steps it."""

    replica: Replica
    steps: EngineProcess
    admission: AdmissionControl | None = None
    """What its API servers, those of the whole copy, refuse; None: nothing."""

    def submit(self, request: SimRequest, now: int) -> None:
        """Hand a request over; wake the replica, or cut the leap that it would end."""
        self.replica.submit(request, now)
        leap = self.replica.leap
        if self.steps.sleeper is not None:
            self.steps.wake()
        elif leap is None or leap.open:
            self.steps.cut()

    def leave(self, request: SimRequest) -> None:
        """A client gives up."""
        self.replica.leave(request)
        self.steps.cut()
