"""The highest load that a deployment sustains: raise it until a target is missed, halve the step, stop when narrow.

The load is a rate, a number of users, or a number of requests done by a deadline. Every trial sees the same draws
(common random numbers), squeezed or stretched in time, so that neighbouring loads differ by their load alone.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf
from typing import Any, NamedTuple

from kvplan.errors import KvplanError
from kvplan.scenario import Scenario
from kvplan.simulate import simulate
from kvplan.simulation.deploy import Setup
from kvplan.sweeping.bounds import cannot_meet, mean_alone_s
from kvplan.sweeping.figures import Row, cached_setups, result_row, run_point
from kvplan.workload.arrivals import AllAtOnce, ClosedLoop, Poisson

MAX_REQUESTS = 5000
"""More in one trial are not simulated for that; then the queue of an overload may go unseen."""
PER_USER = 4
"""Requests each user asks at least."""
MIN_STEPS = 12
"""Loads are lowered by half so many times before the answer is that no load is sustained."""


class Trial(NamedTuple):
    """One load, and whether it was sustained."""

    load: float
    met: bool
    row: Row
    """The figures of the simulation; empty when the closed form answered."""
    why: str = ""
    """The closed form's reason."""


class Highest(NamedTuple):
    """Where the search ended."""

    met: Trial | None
    """The highest load that was sustained; None = none was."""
    missed: Trial | None
    """The lowest load that was not; None = none was tried."""
    num_simulations: int
    num_pruned: int
    """Trials that the closed form answered."""

    @property
    def load(self) -> float:
        """The highest sustained load, 0 if none."""
        return self.met.load if self.met else 0.0


class Bench(NamedTuple):
    """One candidate: tries loads on one copy of it."""

    scenario: Scenario
    kind: str
    """rate, users or batch."""
    deadline_s: float = inf
    span: float = 10.0
    """Arrivals go on for so many times the longest latency target: a queue that grows is then seen to miss it."""
    seed_shift: int = 0
    """Added to the scenario's seeds: other draws of the same load."""

    def at(self, load: float) -> Scenario:
        """The scenario under a load."""
        scenario, shift = self.scenario, self.seed_shift
        problems = scenario.problems
        if problems is not None:
            said = problems.num_problems
            number = (
                said if self.kind == "rate" else self._number(load, said)
            )  # as many: accuracy stays the same
            changed = {"arrivals": self._arrivals(load, problems.arrivals), "seed": problems.seed + shift}
            changed["min_accuracy"] = 0.0  # does not depend on the load; it is looked at once
            grown = problems.model_copy(update={**changed, "num_problems": number})
            return scenario.model_copy(update={"problems": grown})
        work = scenario.workload
        changed = {"arrivals": self._arrivals(load, work.arrivals), "seed": work.seed + shift}
        if work.trace is None:
            changed["num_requests"] = self._number(load, work.num_requests)
        return scenario.model_copy(update={"workload": work.model_copy(update=changed)})

    def _arrivals(self, load: float, now: Any) -> Any:
        if self.kind == "batch":
            return AllAtOnce(kind="all_at_once")
        if self.kind == "users":
            return ClosedLoop(kind="closed_loop", concurrency=int(load), pause_s=getattr(now, "pause_s", 0.0))
        if now.kind == "replay":
            return now.model_copy(update={"speed": load})
        if now.kind == "ramp":
            return now.model_copy(update={"rate": load, "end_rate": load * now.end_rate / now.rate})
        return (
            now.model_copy(update={"rate": load})
            if hasattr(now, "rate")
            else Poisson(kind="poisson", rate=load)
        )

    def _number(self, load: float, said: int) -> int:
        """Requests or problems of a trial."""
        if self.kind == "batch":
            return int(load)
        wanted = PER_USER * load if self.kind == "users" else self.span * self._longest_target_s() * load
        return max(said, min(MAX_REQUESTS, ceil(wanted)))

    def _longest_target_s(self) -> float:
        slos = [self.scenario.slo, *(cls.slo for cls in self.scenario.workload.by_name.values() if cls.slo)]
        targets = [t for slo in slos for t in (slo.ttft_ms, slo.ttfvt_ms, slo.e2el_ms) if t is not None]
        return max(targets, default=0.0) / 1e3

    def try_load(self, load: float, setups: dict[str, Setup] | None) -> Trial:
        """Simulate a load, unless the closed form says that it cannot be sustained."""
        scenario = self.at(load)
        why = self.closed_form(load, setups)
        if why:
            return Trial(load, False, {}, why)
        row = self.simulate(scenario, setups)
        if row["error"]:
            raise KvplanError(row["error"])
        in_time = row["duration_s"] <= self.deadline_s if self.kind == "batch" else True
        complete = (
            row["verdict"] == "completed"
            and row["slo_met"] is not False
            and not row["failed"] * (self.kind == "batch")
        )
        return Trial(load, bool(in_time and complete), row)

    def closed_form(self, load: float, setups: dict[str, Setup] | None = None) -> str:
        """Why a load cannot be sustained, "" where nothing forbids it or nothing can be said."""
        setups = setups or self.setups()
        if setups is None or self.kind != "rate":
            return ""
        return cannot_meet(self.at(load), setups)

    def simulate(self, scenario: Scenario, setups: dict[str, Setup] | None) -> Row:
        """The figures of one run."""
        if scenario.problems is not None:
            return run_point(scenario)
        return result_row(simulate(scenario, setups=setups, keep_records=False, keep_samples=False))

    def setups(self) -> dict[str, Setup] | None:
        """The planned engines; None where strategies plan their own."""
        return None if self.scenario.problems is not None else cached_setups(self.scenario)

    def guess(self, setups: dict[str, Setup] | None) -> float:
        """A load to begin with."""
        if self.kind != "rate":
            return 16.0
        if setups is None:
            return 1 / 60
        return 4 / max(1e-9, mean_alone_s(self.scenario, setups))


def highest_load(
    bench: Bench, precision: float = 0.01, guess: float | None = None, factor: float = 2.0, most: float = inf
) -> Highest:
    """Find the highest load that one copy sustains, to a relative `precision` (whole numbers for users and batches).

    Starts at `guess`, multiplies or divides by `factor` until the answer is between two loads, then halves the gap.
    Loads above `most` are not tried. Raises KvplanError or DoesNotFit for what cannot be simulated at all.
    """
    setups = bench.setups()
    whole = bench.kind != "rate"
    trials: list[Trial] = []

    def met(load: float) -> bool:
        trials.append(bench.try_load(load, setups))
        return trials[-1].met

    low, high = _bracket(met, min(guess or bench.guess(setups), most), factor, whole, most)
    while low and high < inf and _gap(low, high, whole, precision):
        middle = (low + high) // 2 if whole else (low * high) ** 0.5
        low, high = (middle, high) if met(middle) else (low, middle)
    best = next((t for t in trials if t.met and t.load == low), None)
    missed = min((t for t in trials if not t.met), key=lambda t: t.load, default=None)
    simulated = sum(bool(t.row) for t in trials)
    return Highest(best, missed, simulated, len(trials) - simulated)


def _gap(low: float, high: float, whole: bool, precision: float) -> bool:
    return high - low > max(1.0, precision * low) if whole else high > low * (1 + precision)


def _bracket(
    met: Callable[[float], bool], start: float, factor: float, whole: bool, most: float
) -> tuple[float, float]:
    """A sustained load and one that is not: (0, x) when none is, (most, inf) when all are."""
    load = float(max(1, round(start))) if whole else start
    if met(load):
        while load < most:
            higher = min(most, max(load + 1, round(load * factor)) if whole else load * factor)
            if not met(higher):
                return load, higher
            load = higher
            if load > 1e9:
                break
        return load, inf
    for _ in range(MIN_STEPS):
        lower = float(round(load / factor)) if whole else load / factor
        if (whole and lower < 1) or lower == load:
            break
        if met(lower):
            return lower, load
        load = lower
    return 0.0, load
