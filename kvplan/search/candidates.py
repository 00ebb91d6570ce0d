"""One candidate of a recommendation, measured: what a worker process does. Flat rows in and out.

The closed form comes first: what does not fit, has no room in the allowed GPUs, or cannot be in time is not simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf, sqrt
from statistics import fmean, stdev
from typing import Any

from kvplan.errors import DoesNotFit, KvplanError
from kvplan.limits import Limit
from kvplan.scenario.schema import Scenario
from kvplan.scenario.space import Search
from kvplan.search.highest_load import Bench, Highest, Trial, highest_load
from kvplan.search.point_row import Interrupted, Row, error_row
from kvplan.simulation.deploy import Setup
from kvplan.simulation.run import simulate
from kvplan.simulation.solve import solve
from kvplan.simulation.staffing import set_up_all
from kvplan.workload.arrivals import ClosedLoop

MEASURED = (
    "highest", "missed", "low", "high", "num_draws", "copies", "num_gpus_per_copy", "usd_per_hour_per_copy", "pruned",
    "cause", "num_simulations", "num_closed_form", "limit",
)  # fmt: skip
"""What a candidate's row says beside `figures.FIGURES`, which are those at its highest load."""
OVERLOAD = 1.5
"""What gives out first is read off a run at so many times the highest load."""
CALM = 4
"""Problems at a time when accuracy is measured."""
PLENTY = 2
"""Times the asked load that one copy is tried with at most."""
ROUGH = 0.25
"""Relative width to which the highest load is narrowed at first: the best rows, and what decides copies, get more."""
NEAR = (1.2, 3.0)
"""A miss at so many times the highest load shows what gives out first as well."""
T_90 = {3: 2.920, 4: 2.353, 5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895, 9: 1.860, 10: 1.833}
"""Student's t for a two-sided 90 % interval, by number of draws; the normal's 1.645 beyond."""


@dataclass(frozen=True, slots=True)
class Measure:
    """The task: a scenario to its row."""

    search: Search

    def __call__(self, scenario: Scenario) -> Row:
        """Find the highest load and how many copies carry the asked one."""
        row = error_row("") | dict.fromkeys(MEASURED)
        try:
            bench = make_bench(scenario, self.search)
            setups = bench.setups() or set_up_all(bench.scenario)
        except DoesNotFit as error:
            return row | {"pruned": True, "cause": "memory", "error": str(error)}
        except KvplanError as error:
            return row | {"pruned": True, "cause": "refused", "error": str(error)}
        try:
            return row | self._measured(bench, setups)
        except KvplanError as error:
            return row | {"pruned": False, "cause": "refused", "error": str(error)}

    def _measured(self, bench: Bench, setups: Mapping[str, Setup]) -> Row:
        gpus, usd = hardware(bench.scenario, setups)
        row: Row = {"num_gpus_per_copy": gpus, "usd_per_hour_per_copy": usd}
        room = most_copies(self.search, gpus)
        if room < 1:
            why = f"one copy and {self.search.spare} spare take {gpus * (1 + self.search.spare)} GPUs"
            return row | {
                "pruned": True,
                "cause": "gpus",
                "error": f"{why}, {self.search.max_gpus} are allowed",
            }
        least = least_load(bench.scenario, self.search, room)
        hopeless = bench.closed_form(least) if least else ""
        if hopeless:
            short = self.search.max_gpus is not None and hopeless.startswith("cannot keep up")
            why = (
                f"{room} copies, as many as {self.search.max_gpus} GPUs hold: {hopeless}"
                if short
                else hopeless
            )
            cause = "gpus" if short else "time"
            return row | {"pruned": True, "cause": cause, "error": why, "num_closed_form": 1}
        accuracy = accuracy_of(bench)
        wanted = bench.scenario.problems.min_accuracy if bench.scenario.problems else 0.0
        if accuracy is not None and accuracy < wanted:
            why = f"accuracy {accuracy:.1%}, {wanted:.1%} is asked"
            return row | {
                "pruned": False,
                "cause": "accuracy",
                "error": why,
                "num_simulations": 1,
                "accuracy": accuracy,
            }
        found = first_look(bench, self.search)
        spent = found.num_simulations + (accuracy is not None)
        row |= {"num_simulations": spent, "num_closed_form": found.num_pruned}
        if found.met is None:
            return row | _never(found)
        copies, met, found = copies_needed(bench, found, found.met, self.search)
        limit, more = what_limits(bench, met, found)
        missed = None if found.missed is None else found.missed.load
        row |= met.row | {"highest": met.load, "missed": missed, "limit": limit}
        row |= {"pruned": False, "num_draws": 1, "copies": copies, "accuracy": accuracy}
        row["num_simulations"] = found.num_simulations + (accuracy is not None) + more
        return row | _too_many(copies, room, gpus, self.search)


def _never(found: Highest) -> Row:
    """No load is sustained."""
    missed = found.missed
    assert missed is not None
    row = missed.row
    if not row:
        return {"pruned": True, "cause": "time", "error": missed.why}
    accuracy = f", accuracy {row['accuracy']:.1%}" if row["accuracy"] is not None else ""
    share = f"{row['goodput_share']:.1%} of requests meet their targets" if row["goodput_share"] is not None else (
        f"it takes {row['duration_s']:,.0f} s"
    )  # fmt: skip
    return {**row, "pruned": False, "cause": "time", "error": f"even at {missed.load:.3g}, {share}{accuracy}"}


def _too_many(copies: int, room: int, gpus: int, search: Search) -> Row:
    if copies <= room:
        return {}
    needed = (copies + search.spare) * gpus
    limit = f"{search.max_gpus} GPUs" if search.max_gpus else f"{search.max_copies} copies"
    return {"cause": "gpus", "error": f"the load needs {copies} copies, {needed} GPUs; {limit} are allowed"}


def make_bench(scenario: Scenario, search: Search) -> Bench:
    """A candidate with its price."""
    price = search.usd_per_gpu_hour.get(scenario.gpu)
    if price is not None:
        pricing = scenario.pricing.model_copy(update={"usd_per_gpu_hour": price})
        scenario = scenario.model_copy(update={"pricing": pricing})
    return Bench(scenario, search.kind, search.deadline_s or inf, search.span)


def hardware(scenario: Scenario, setups: Mapping[str, Setup]) -> tuple[int, float]:
    """GPUs of one copy of the scenario, and their price an hour."""
    gpus, usd = 0, 0.0
    for name, deployment in scenario.deployments.items():
        setup, apart = setups[name], deployment.disaggregation
        places = deployment.replicas * setup.replicas_per_copy + (apart.prefill_replicas if apart else 0)
        number = places * setup.lockstep_ranks * setup.num_gpus
        price = scenario.pricing.usd_per_gpu_hour
        gpus, usd = gpus + number, usd + number * (setup.usd_per_gpu_hour if price is None else price)
    return gpus, usd


def most_copies(search: Search, gpus: int) -> int:
    """Copies that the allowed GPUs hold, spares taken off."""
    if search.max_gpus is None:
        return search.max_copies
    return min(search.max_copies, search.max_gpus // gpus - search.spare)


def total_load(scenario: Scenario, search: Search) -> float:
    """The load that all copies together must carry; 0 = as much as fits."""
    if search.kind == "batch":
        return scenario.problems.num_problems if scenario.problems else scenario.workload.num_requests
    return float(search.users or search.rate or 0)


def most_load(scenario: Scenario, search: Search) -> float:
    """Loads of one copy beyond this are not looked for: nobody has so many requests, or it is plenty."""
    load = total_load(scenario, search)
    return load if search.kind == "batch" else PLENTY * load or inf


def first_look(bench: Bench, search: Search) -> Highest:
    """The highest load, roughly; from the asked one, if that is not far above what one copy can be expected to do."""
    guess, asked = bench.guess(bench.setups()), total_load(bench.scenario, search)
    start = min(guess, asked) if asked else guess
    return highest_load(bench, max(ROUGH, search.precision), start, most=most_load(bench.scenario, search))


def accuracy_of(bench: Bench) -> float | None:
    """Share of the stated problems that are solved, few at a time: it does not depend on the load.

    None without problems, and for batches of which no accuracy is asked.
    """
    problems = bench.scenario.problems
    if problems is None or (bench.kind == "batch" and not problems.min_accuracy):
        return None
    calm = ClosedLoop(kind="closed_loop", concurrency=CALM)
    alone = bench.scenario.model_copy(update={"problems": problems.model_copy(update={"arrivals": calm})})
    row = bench.simulate(alone, None)
    if row["error"]:
        raise KvplanError(row["error"])
    accuracy: float | None = row["accuracy"]
    return accuracy


def least_load(scenario: Scenario, search: Search, room: int) -> float:
    """What each copy must carry when there are as many as are allowed; 0 when nothing says how much."""
    load = total_load(scenario, search)
    return share_of(load, room, search.kind) if load else 0.0


def share_of(load: float, copies: int, kind: str) -> float:
    """The load of one copy: even shares, whole users and requests."""
    return load / copies if kind == "rate" else float(ceil(load / copies))


def copies_needed(bench: Bench, found: Highest, met: Trial, search: Search) -> tuple[int, Trial, Highest]:
    """The fewest copies that carry the asked load, to the search's precision; the highest load by then; all trials."""
    load = total_load(bench.scenario, search)
    if not load:
        return 1, met, found
    enough, setups = ceil(load / met.load - 1e-9), bench.setups()
    short = int(load / found.missed.load + 1e-9) if found.missed else 0
    while enough - short > max(1, search.precision * enough):
        copies = (short + enough) // 2
        share = share_of(load, copies, search.kind)
        if found.missed is not None and share >= found.missed.load:
            short = copies
            continue
        trial = bench.try_load(share, setups)
        found = found.after(trial)
        short, enough, met = (short, copies, trial) if trial.met else (copies, enough, met)
    return enough, met, found


def what_limits(bench: Bench, met: Trial, found: Highest) -> tuple[str, int]:
    """What gives out first above the highest load, and the simulations it took to see it.

    Where nobody waits, steps are too long: bandwidth or arithmetic. Where nothing was missed, what the last run says.
    """
    if found.missed is None:
        return str(met.row["limited_by"]), 0
    for trial in sorted(found.over, key=lambda t: abs(t.load / met.load - OVERLOAD)):
        if NEAR[0] <= trial.load / met.load <= NEAR[1] and trial.row["limited_by"] != Limit.ARRIVAL_RATE:
            return str(trial.row["limited_by"]), 0
    over = bench.at(ceil(met.load * OVERLOAD) if bench.kind != "rate" else met.load * OVERLOAD)
    if over.problems is not None:
        result = solve(over).result
    else:
        result = simulate(over, setups=bench.setups(), keep_records=False, keep_samples=False)
    if result.verdict == "interrupted":
        raise Interrupted
    if result.limited_by != Limit.ARRIVAL_RATE:
        return str(result.limited_by), 1
    t = result.totals
    busy = Limit.COMPUTE if t.prefill_ticks + t.mixed_ticks > t.decode_ticks else Limit.MEMORY_BANDWIDTH
    return str(busy), 1


@dataclass(frozen=True, slots=True)
class Refine:
    """The task: the highest load to the asked precision, and its interval over other draws of the same workload."""

    search: Search
    rough: dict[str, tuple[float, float]]
    """Scenario as JSON -> a load that it sustains under its own seed, and one that it does not."""

    def __call__(self, scenario: Scenario) -> Row:
        """Narrow it, then draw until the interval is narrow."""
        bench = make_bench(scenario, self.search)
        low, high = self.rough[scenario.model_dump_json()]
        ends = Trial(low, True, {}), Trial(high, False, {})
        sharp = highest_load(bench, self.search.precision, between=ends)
        row: Row = {"num_draws": 1, "num_simulations": sharp.num_simulations}
        if sharp.met and sharp.met.row:
            row |= {k: v for k, v in sharp.met.row.items() if k != "accuracy"} | {"highest": sharp.load}
        return row | self._interval(bench, sharp.load, row["num_simulations"])

    def _interval(self, bench: Bench, load: float, simulations: int) -> Row:
        loads, most = [load], most_load(bench.scenario, self.search)
        while len(loads) < self.search.seeds and not (
            len(loads) >= 3 and _width(loads) <= self.search.target_width
        ):
            other = bench._replace(seed_shift=1000 * len(loads))
            found = highest_load(other, self.search.precision, loads[0], 1.06, most)
            loads.append(found.load)
            simulations += found.num_simulations
        if len(loads) < 2:
            return {"num_simulations": simulations}
        half = _width(loads) * fmean(loads)
        low, high = (
            (fmean(loads) - half, fmean(loads) + half) if len(loads) >= 3 else (min(loads), max(loads))
        )
        return {"low": max(0.0, low), "high": high, "num_draws": len(loads), "num_simulations": simulations}


def _width(loads: list[float]) -> float:
    """Half width of the mean's 90 % interval, relative."""
    if len(loads) < 3 or not fmean(loads):
        return 0.0
    return T_90.get(len(loads), 1.645) * stdev(loads) / sqrt(len(loads)) / fmean(loads)


@dataclass(frozen=True, slots=True)
class Alone:
    """The task: how near a candidate that cannot meet its targets comes, at next to no load."""

    search: Search

    def __call__(self, scenario: Scenario) -> Row:
        """Simulate it without asking the closed form."""
        try:
            bench = make_bench(scenario, self.search)
            setups = bench.setups()
            load = max(bench.least(), bench.guess(setups) / 1000) if bench.kind == "rate" else 1.0
            return bench.simulate(bench.at(load), setups)
        except KvplanError as error:
            return error_row(str(error))


@dataclass(frozen=True, slots=True)
class TryLoad:
    """The task: whether a changed candidate sustains a load."""

    search: Search
    load: float

    def __call__(self, scenario: Scenario) -> Row:
        """One trial; `met` says how it went."""
        try:
            bench = make_bench(scenario, self.search)
            setups = bench.setups() or set_up_all(bench.scenario)
            trial: Trial = bench.try_load(self.load, bench.setups())
        except KvplanError as error:
            return {"met": False, "error": str(error)}
        gpus, usd = hardware(bench.scenario, setups)
        found: dict[str, Any] = {"met": trial.met, "error": "", "num_gpus_per_copy": gpus}
        return found | {"usd_per_hour_per_copy": usd}
