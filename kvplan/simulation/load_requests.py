"""When requests come: by the clock of an open loop, or after what they wait for (a client's last one, a session).

Knows no engine: it says `launch` to the run and is told who has ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from kvplan.simulation.in_flight import NEVER_COMES
from kvplan.simulation.sim_request import LENGTH
from kvplan.units import TICKS_PER_S

if TYPE_CHECKING:
    from kvplan.simulation.run import Run


class Arrivals:
    """The requests of a load that have not come yet."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.load = run.load
        self.any_follow = self.load.closed_loop is not None or self.load.previous_turn is not None
        """Whether some wait for others to end."""
        self.next_at = NEVER_COMES
        """When the next request of an open loop comes."""
        self._row = 0
        """Which one that is."""
        self._coming: Iterator[tuple[int, int]] = iter(())
        self._clients: Iterator[int] = iter(())
        self._pauses = np.zeros(0)
        self._due: dict[int, list[int]] = {}
        """Time -> rows that follow others and come then."""

    def start(self) -> None:
        """Let the first ones come."""
        load, first_turns = self.load, np.flatnonzero(~np.isnan(self.load.arrival_s))
        if load.closed_loop is not None:
            self._start_clients(first_turns.tolist(), load.closed_loop.concurrency, load.closed_loop.pause_s)
        else:
            ticks = np.rint(load.arrival_s[first_turns] * TICKS_PER_S).astype(np.int64)
            self._coming = zip(first_turns.tolist(), ticks.tolist(), strict=True)
            self._await_next()

    def _start_clients(self, rows: list[int], concurrency: int, pause_s: float) -> None:
        """Each client begins at once, or after a pause where clients pause."""
        self._clients = iter(rows)
        rng = np.random.default_rng([self.run.scenario.workload.seed, 1])
        self._pauses = rng.exponential(pause_s or 1.0, len(self.load)) * (pause_s > 0)
        first = list(islice(self._clients, concurrency))
        for row, begins_s in zip(first, rng.exponential(pause_s, len(first)), strict=True):
            if pause_s:
                self._launch_after(float(begins_s), row)
            else:
                self.run.launch(row)

    def _await_next(self) -> None:
        self._row, self.next_at = next(self._coming, (0, NEVER_COMES))
        if self.next_at != NEVER_COMES:
            self.run.at(self.next_at - self.run.env.now, self._come)

    def _come(self, _: Any) -> None:
        self.run.launch(self._row)
        self._await_next()

    def ended(self, row: int, reason: int) -> int:
        """Let come what waited for this request; return how many never will, their session cut short."""
        load, lost = self.load, 0
        following = int(load.next_turn[row])
        if following >= 0 and reason <= LENGTH:
            self._launch_after(float(load.pause_s[following]), following)
            return 0
        while following >= 0:
            lost += 1
            following = int(load.next_turn[following])
        client = next(self._clients, None)
        if client is not None:
            self._launch_after(float(self._pauses[row]), client)
        return lost

    def _launch_after(self, pause_s: float, row: int) -> None:
        """Launch a request after a pause of at least one tick.

        So it comes after all that ends now, on whatever replica; requests of one moment come in order of rows.
        """
        delay = max(1, round(pause_s * TICKS_PER_S))
        when = self.run.env.now + delay
        if when not in self._due:
            self.run.at(delay, self._launch_due)
        self._due.setdefault(when, []).append(row)

    def _launch_due(self, _: Any) -> None:
        for row in sorted(self._due.pop(self.run.env.now)):
            self.run.launch(row)
