"""Where replicas sit on the clock: who wakes them, who cuts their leaps, who belongs to whom.

Holds the clock's events and processes without knowing whose clock it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvplan.scenario.schema import Frontend
from kvplan.simulation.deploy import Setup
from kvplan.simulation.replica import Replica
from kvplan.simulation.router import Router
from kvplan.simulation.sim_request import Live
from kvplan.units import TICKS_PER_S


class Aside(Protocol):
    """A piece of work that another model does on a replica's GPUs."""

    def begin(self) -> int:
        """Return the ticks it takes from now."""
        ...

    def end(self) -> None:
        """It is done."""
        ...


@dataclass(slots=True)
class Seat:
    """A replica's place on the clock."""

    env: Any
    replica: Replica
    process: Any = None
    sleeper: Any = None
    """Set while nothing is there to do."""
    gliding: bool = False
    """In a leap that can still be cut."""
    aside: deque[Aside] = field(default_factory=deque)
    """Work of other models on the same GPUs; the engine waits for it between two steps."""

    def submit(self, live: Live) -> None:
        """Hand a request over; wake the replica, or cut its leap."""
        self.replica.submit(live, self.env.now)
        if self.sleeper is not None:
            if not self.sleeper.triggered:
                self.sleeper.succeed()
            self.sleeper = None
        elif self.gliding and self.replica.glide is not None and self.replica.glide.open:
            self._cut()

    def wake(self) -> None:
        """Something other than a request is there to do."""
        if self.sleeper is not None:
            self.sleeper.succeed()
            self.sleeper = None

    def leave(self, live: Live) -> None:
        """A client gives up."""
        self.replica.leave(live)
        if self.gliding:
            self._cut()

    def _cut(self) -> None:
        assert self.process is not None
        self.gliding = False
        self.process.interrupt()


@dataclass(slots=True)
class Fleet:
    """The replicas of one deployment."""

    setup: Setup
    router: Router
    max_queue: int | None
    frontend: Frontend
    seats: list[Seat] = field(default_factory=list)
    prefill: list[Seat] = field(default_factory=list)
    """Disaggregated: where prompts are computed."""
    prefill_router: Router | None = None
    transfer_ticks: Callable[[int], int] | None = None
    """Ticks to move so many tokens of KV."""
    replicas: list[Replica] = field(default_factory=list)

    def frontend_ticks(self, num_prompt_tokens: int) -> int:
        """Ticks until a request reaches the engine."""
        return round(self.frontend.seconds(num_prompt_tokens) * TICKS_PER_S)


@dataclass(slots=True)
class Lockstep:
    """Data-parallel ranks of one mixture-of-experts engine."""

    seats: list[Seat]
    process: Any = None
    sleeper: Any = None
