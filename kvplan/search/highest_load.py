"""The highest load that a deployment sustains: raise it until a target is missed, halve the step, stop when narrow.

The load is a rate, a number of users, or a number of requests done by a deadline. Every trial sees the same draws
(common random numbers), squeezed or stretched in time, so that neighbouring loads differ by their load alone.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf
from typing import Any, NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import Scenario
from kvplan.search.bounds import cannot_meet, mean_stay_s
from kvplan.search.point_row import CUT, Row, cached_setups, run_point, slos_of
from kvplan.simulation.deploy import Setup
from kvplan.simulation.uncertainty import End
from kvplan.workload.arrivals import AllAtOnce, ClosedLoop, Poisson

MAX_REQUESTS = 5000
"""More in one trial are not simulated for that; then the queue of an overload may go unseen."""
MOST_USERS = 1_000_000
"""Of one copy. Where more share it, these are missed already."""
PER_USER = 4
"""Requests each user asks at least."""
LOWEST = 1 / 4096
"""Where so small a share of the first load is missed too, none is sustained."""
LONGEST_S = 5e6
"""Nor are rates tried whose arrivals would go on for longer than this (two months): nobody meets anybody by then."""


class Trial(NamedTuple):
    """One load, and whether it was sustained."""

    load: float
    met: bool
    row: Row
    """The figures of the simulation; empty when the closed form answered, `CUT` when it stopped at the first proof of a
    miss."""
    why: str = ""
    """The closed form's reason."""


class Highest(NamedTuple):
    """Where the search ended."""

    met: Trial | None
    """The highest load that was sustained; None = none was."""
    missed: Trial | None
    """The lowest load that was not; None = none was tried."""
    over: tuple[Trial, ...]
    """All simulated loads that were missed."""
    num_simulations: int
    num_pruned: int
    """Trials that the closed form answered."""

    @property
    def load(self) -> float:
        """The highest sustained load, 0 if none."""
        return self.met.load if self.met else 0.0

    @property
    def middle(self) -> float:
        """Of the gap between the two, in proportion; the highest sustained load where there is no gap."""
        return (self.load * self.missed.load) ** 0.5 if self.load and self.missed else self.load

    def after(self, trial: Trial) -> Highest:
        """What is known after one more trial, between the two."""
        spent = bool(trial.row)
        met, missed = (trial, self.missed) if trial.met else (self.met, trial)
        over = self.over if trial.met or not spent else (*self.over, trial)
        return Highest(met, missed, over, self.num_simulations + spent, self.num_pruned + (not spent))


class LoadTest(NamedTuple):
    """One copy of a candidate, tried with loads."""

    scenario: Scenario
    kind: str
    """rate, users or batch."""
    deadline_s: float = inf
    span: float = 10.0
    """Arrivals go on for so many times the longest latency target, or the time a request stays where that is longer: a
    queue that grows is then seen to miss it, and the KV cache to fill."""
    seed_shift: int = 0
    """Added to the scenario's seeds: other draws of the same load, looked at for that alone."""
    end: End | None = None
    """All steps at one end of what they may take."""

    def at(self, load: float) -> Scenario:
        """The scenario under a load."""
        scenario, shift = self.scenario, self.seed_shift
        problems = scenario.problems
        if problems is not None:
            number = self._number(load, problems.num_problems)
            changed = {"arrivals": self._arrivals(load, problems.arrivals), "seed": problems.seed + shift}
            changed["min_accuracy"] = 0.0  # hardly depends on the load; looked at before and after
            grown = problems.model_copy(update={**changed, "num_problems": number})
            return scenario.model_copy(update={"problems": grown})
        work = scenario.workload
        said = work.arrivals if "arrivals" in work.model_fields_set else None
        changed = {"arrivals": self._arrivals(load, said), "seed": work.seed + shift}
        if work.trace is None:
            changed["num_requests"] = self._number(load, work.num_requests)
        return scenario.model_copy(update={"workload": work.model_copy(update=changed)})

    def _arrivals(self, load: float, now: Any) -> Any:
        if self.kind == "batch":
            return AllAtOnce(kind="all_at_once")
        if self.kind == "users":
            users = min(int(load), MOST_USERS)
            return ClosedLoop(kind="closed_loop", concurrency=users, pause_s=getattr(now, "pause_s", 0.0))
        if now is None:
            return Poisson(kind="poisson", rate=load)
        if now.kind == "replay":
            return now.model_copy(update={"speed": load})
        if now.kind == "ramp":
            return now.model_copy(update={"rate": load, "end_rate": load * now.end_rate / now.rate})
        if hasattr(now, "rate"):
            return now.model_copy(update={"rate": load})
        return Poisson(kind="poisson", rate=load)

    def _number(self, load: float, said: int) -> int:
        """Requests or problems of a trial."""
        if self.kind == "batch":
            return int(load)
        wanted = PER_USER * load if self.kind == "users" else self.span * self._turnover_s() * load
        return max(said, min(MAX_REQUESTS, ceil(wanted)))

    def _turnover_s(self) -> float:
        """The longest target, or the time that a request may take by its target per token, or takes at least."""
        slos = slos_of(self.scenario)
        targets = [t for slo in slos for t in (slo.ttft_ms, slo.ttfvt_ms, slo.e2el_ms) if t is not None]
        longest = max(targets, default=0.0) / 1e3
        if self.scenario.problems is not None or any(slo.e2el_ms is not None for slo in slos):
            return longest
        per_token = max((slo.tpot_ms for slo in slos if slo.tpot_ms is not None), default=None)
        return max(longest, mean_stay_s(self.scenario, cached_setups(self.scenario), per_token))

    def try_load(self, load: float) -> Trial:
        """Simulate a load, unless the closed form says that it cannot be sustained."""
        why = self.closed_form(load)
        if why:
            return Trial(load, False, {}, why)
        row = self._first_proof(self.at(load))
        if row["error"]:
            raise KvplanError(row["error"])
        met = row["verdict"] == "completed" and row["slo_met"] is not False
        if self.kind == "batch":
            met = met and not row["failed"] and row["duration_s"] <= self.deadline_s
        return Trial(load, met, row)

    def _first_proof(self, scenario: Scenario) -> Row:
        """The figures of a run, or `CUT` where it is surely missed: too many are late, or the deadline has passed."""
        limits, last = scenario.limits, self.deadline_s * (1 + 1e-9)
        if last >= limits.horizon_s:
            return run_point(scenario, self.end, stop_when_missed=True, expects=not self.seed_shift)
        limits = limits.model_copy(update={"horizon_s": last})
        scenario = scenario.model_copy(update={"limits": limits})
        row = run_point(scenario, self.end, stop_when_missed=True, expects=not self.seed_shift)
        return CUT if row["verdict"] == "horizon" else row

    def whole(self, trial: Trial) -> Trial:
        """A trial with all figures of its simulation, also where it stopped as soon as it had missed."""
        return trial._replace(row=run_point(self.at(trial.load), self.end)) if trial.row is CUT else trial

    def closed_form(self, load: float) -> str:
        """Why a load cannot be sustained, "" where nothing forbids it or nothing can be said."""
        setups = self.setups()
        return "" if setups is None else cannot_meet(self.at(load), setups)

    def setups(self) -> dict[str, Setup] | None:
        """The planned engines; None where strategies plan their own."""
        return None if self.scenario.problems is not None else cached_setups(self.scenario, self.end)

    def guess(self) -> float:
        """A load to begin with."""
        if self.kind != "rate":
            return 64.0 if self.kind == "users" else 16.0
        problems, setups = self.scenario.problems, self.setups()
        if problems is not None:  # a trial of a few times the stated problems
            return 4 * problems.num_problems / (self.span * (self._turnover_s() or 60.0))
        assert setups is not None
        return 16 / max(1e-9, mean_stay_s(self.scenario, setups))

    def least(self) -> float:
        """Lower loads are not tried."""
        if self.kind != "rate":
            return 1.0
        problems = self.scenario.problems
        return (problems.num_problems if problems else self.scenario.workload.num_requests) / LONGEST_S


def highest_load(
    test: LoadTest,
    precision: float = 0.01,
    guess: float | None = None,
    factor: float = 2.0,
    most: float = inf,
    between: tuple[Trial, Trial] | None = None,
) -> Highest:
    """Find the highest load that one copy sustains, to a relative `precision` (whole numbers for users and batches).

    Starts at `guess`, multiplies or divides by `factor` and more until the answer is between two loads, then halves the
    gap; or starts `between` a load that is sustained and one that is not. Loads above `most` are not tried. Raises
    KvplanError or DoesNotFit for what cannot be simulated at all.
    """
    whole = test.kind != "rate"
    trials: list[Trial] = []

    def met(load: float) -> bool:
        trials.append(test.try_load(load))
        return trials[-1].met

    if between:
        low, high = between[0].load, between[1].load
    else:
        start = max(min(guess or test.guess(), most), test.least())
        low, high = _bracket(met, start, factor, whole, most, test.least())
    while low and high < inf and _gap(low, high, whole, precision):
        middle = (low * high) ** 0.5
        middle = min(max(float(round(middle)), low + 1), high - 1) if whole else middle
        low, high = (middle, high) if met(middle) else (low, middle)
    simulated = sum(bool(t.row) for t in trials)
    known = [*(between or ()), *trials]
    best = next((t for t in known if t.met and t.load == low), None)
    missed = min((t for t in known if not t.met), key=lambda t: t.load, default=None)
    over = tuple(t for t in trials if t.row and not t.met)
    return Highest(best, missed, over, simulated, len(trials) - simulated)


def _gap(low: float, high: float, whole: bool, precision: float) -> bool:
    return high - low > max(1.0, precision * low) if whole else high > low * (1 + precision)


def _bracket(
    met: Callable[[float], bool], start: float, factor: float, whole: bool, most: float, least: float
) -> tuple[float, float]:
    """A sustained load and one that is not: (0, x) when none is, (most, inf) when all are. Steps grow as they go."""
    load = float(max(1, round(start))) if whole else start
    if met(load):
        while load < most and load < 1e9:
            higher = min(most, max(load + 1, round(load * factor)) if whole else load * factor)
            if not met(higher):
                return load, higher
            load, factor = higher, min(factor**2, max(2.0, factor))
        return load, inf
    least = max(least, load * LOWEST)
    while load > least:
        lower = max(least, load / factor)
        lower = min(float(round(lower)), load - 1) if whole else lower
        if met(lower):
            return lower, load
        load, factor = lower, min(factor**2, 64.0)
    return 0.0, load
