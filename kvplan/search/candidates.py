"""One candidate of a recommendation, measured: what a worker process does. Flat rows in and out.

The closed form comes first: what does not fit, has no room in the allowed GPUs, or cannot be in time is not simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf, sqrt
from statistics import fmean, stdev

from kvplan.ground.errors import DoesNotFit, KvplanError
from kvplan.ground.limits import Limit
from kvplan.ground.tables import counted
from kvplan.scenario.schema import Scenario
from kvplan.scenario.space import Search
from kvplan.search.expected_accuracy import expected_alone
from kvplan.search.highest_load import Highest, LoadTest, Trial, highest_load
from kvplan.search.point_row import (
    ACCURACY,
    Interrupted,
    Row,
    accuracy_text,
    error_row,
    point_setups,
    run_point,
    with_ranges,
)
from kvplan.simulation.deploy import model_beside
from kvplan.simulation.pricing import find_price
from kvplan.simulation.simulator import simulate, solve
from kvplan.simulation.solve_setup import set_up_all
from kvplan.simulation.uncertainty import find_ends, is_doubted

MEASURED = (
    "highest", "missed", "low", "high", "num_draws", "copies", "num_gpus_per_copy", "usd_per_hour_per_copy", "pruned",
    "cause", "num_simulations", "num_closed_form", "limit",
)  # fmt: skip
"""What a candidate's row says beside `figures.FIGURES`, which are those at its highest load."""
AT_ENDS = ("highest_low", "highest_high", "limit_low", "limit_high")
"""What a row says once the ends of what its steps may take were simulated: the highest load of one copy from the slow
end to the quick one, and what gives out first there."""
END_PRECISION = 0.03
"""Relative width to which the highest load is narrowed at the ends."""
DRAW_PRECISION = 0.03
"""And under other draws, where a rate counts as the middle of its gap: draws differ by more than that."""
END_FACTOR = 1.1
"""Between two loads tried there."""
OVERLOAD = 1.5
"""What gives out first is read off a run at so many times the highest load."""
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
        row = error_row("") | dict.fromkeys((*MEASURED, *AT_ENDS))
        try:
            test = make_load_test(scenario, self.search)
            gpus, usd = hardware(test)
        except KvplanError as error:
            return row | _ruled_out("memory" if isinstance(error, DoesNotFit) else "refused", str(error))
        row |= {"num_gpus_per_copy": gpus, "usd_per_hour_per_copy": usd}
        try:
            return row | self._measured(test, gpus, usd)
        except KvplanError as error:
            return row | _ruled_out("refused", str(error), pruned=False)

    def _measured(self, test: LoadTest, gpus: int, usd: float) -> Row:
        search, scenario = self.search, test.scenario
        room = most_copies(search, gpus, usd)
        if room < 1:
            least = 1 + search.spare
            why = f"one copy and {search.spare} spare take {counted(least * gpus, 'GPU')}, ${least * usd:,.2f} an hour"
            return _ruled_out("gpus", f"{why}; {allowed(search)} allowed")
        share = share_of(total_load(scenario, search), room, search.kind)
        hopeless = test.closed_form(share) if share else ""
        if hopeless and room < search.max_copies and hopeless.startswith("cannot keep up"):
            why = f"{counted(room, 'copy', 'copies')}, as many as {allowed(search)} allowed: {hopeless}"
            return _ruled_out("gpus", why, num_closed_form=1)
        if hopeless:
            return _ruled_out("time", hopeless, num_closed_form=1)
        accuracy = accuracy_of(scenario)
        if wrong := _wrong_too_often(accuracy, scenario):
            return wrong
        found = first_look(test, self.search)
        row: Row = {"num_simulations": found.num_simulations, "num_closed_form": found.num_pruned}
        if found.met is None:
            return row | _never(test, found)
        copies, met, found = copies_needed(test, found, found.met, self.search)
        limit, more = what_limits(test, met, found)
        missed = None if found.missed is None else found.missed.load
        row |= met.row | {"highest": met.load, "missed": missed, "limit": limit}
        setups = point_setups(scenario)
        row |= _rests_on(setups[""].sources) | {"price_source": find_price(scenario, setups[""]).source}
        quick, slow = find_ends(met.row["is_extrapolated"])
        row |= {"step_low": min(quick.factors(s)[0] for s in setups.values())}
        row |= {"step_high": max(slow.factors(s)[0] for s in setups.values())}
        row["energy_source"] = "" if (power := setups[""].power) is None else power.source
        row |= {"pruned": False, "num_draws": 1, "copies": copies}
        row["num_simulations"] = found.num_simulations + more
        if wrong := _wrong_too_often(row, scenario):  # as the engine prunes at that load
            return row | wrong
        return row | _too_many(copies, room, gpus, usd, self.search)


def _rests_on(sources: Mapping[str, str]) -> Row:
    """What a row's step times come from."""
    return {
        "step_time": sources["step_time"],
        "step_time_error": sources.get("step_time_error", ""),
        "step_time_range": sources.get("step_time_range", ""),
    }


def _ruled_out(cause: str, why: str, *, pruned: bool = True, **more: float) -> Row:
    """What rules a candidate out: the closed form, or (not `pruned`) what came of a simulation or was expected."""
    return {"pruned": pruned, "cause": cause, "error": why, **more}


def _never(test: LoadTest, found: Highest) -> Row:
    """No load is sustained."""
    assert found.missed is not None
    missed = test.whole(found.missed)
    row = missed.row
    if not row:
        return _ruled_out("time", missed.why)
    accuracy = f", accuracy {accuracy_text(row)}" if row["accuracy"] is not None else ""
    share = f"{row['goodput_share']:.1%} of requests meet their targets" if row["goodput_share"] is not None else (
        f"it takes {row['duration_s']:,.0f} s"
    )  # fmt: skip
    return row | _ruled_out("time", f"even at {missed.load:.3g}, {share}{accuracy}", pruned=False)


def _too_many(copies: int, room: int, gpus: int, usd: float, search: Search) -> Row:
    if copies <= room:
        return {}
    bought = copies + search.spare
    needed = (
        f"{counted(copies, 'copy', 'copies')}, {counted(bought * gpus, 'GPU')}, ${bought * usd:,.2f} an hour"
    )
    return {"cause": "gpus", "error": f"the load needs {needed}; {allowed(search)} allowed"}


def allowed(search: Search) -> str:
    """What may be bought, with its verb: "8 GPUs are", "$20.00 an hour is", or all the copies that are thought of."""
    gpus = search.max_gpus
    limits = [f"{gpus} GPUs are" if gpus > 1 else "1 GPU is"] if gpus else []
    limits += [f"${search.max_dollars_per_hour:,.2f} an hour is"] if search.max_dollars_per_hour else []
    return " and ".join(limits) or f"{search.max_copies} copies are"


def make_load_test(scenario: Scenario, search: Search) -> LoadTest:
    """A candidate with its price."""
    price = search.usd_per_gpu_hour.get(scenario.gpu)
    if price is not None:
        pricing = scenario.pricing.model_copy(update={"usd_per_gpu_hour": price})
        scenario = scenario.model_copy(update={"pricing": pricing})
    return LoadTest(scenario, search.kind, search.deadline_s or inf, search.span)


def hardware(test: LoadTest) -> tuple[int, float]:
    """GPUs of one copy, and their price an hour. Raises DoesNotFit, KvplanError for what cannot be planned."""
    scenario = test.scenario
    setups = test.setups() or set_up_all(scenario)
    gpus, usd = 0, 0.0
    for name, deployment in scenario.deployments.items():
        if assumed := model_beside(deployment.model, scenario.folder).assumed:
            raise KvplanError(f"{deployment.model} is {assumed}: what is assumed is never ranked")
        setup, apart = setups[name], deployment.disaggregation
        places = deployment.replicas * setup.replicas_per_copy + (apart.prefill_replicas if apart else 0)
        number = places * setup.lockstep_ranks * setup.num_gpus
        gpus, usd = gpus + number, usd + number * find_price(scenario, setup).usd_per_hour
    return gpus, usd


def most_copies(search: Search, gpus: int, usd_per_hour: float) -> int:
    """Copies that the allowed GPUs and dollars pay for, spares taken off."""
    limits = [search.max_copies]
    limits += [search.max_gpus // gpus - search.spare] if search.max_gpus else []
    if search.max_dollars_per_hour and usd_per_hour:
        limits.append(int(search.max_dollars_per_hour / usd_per_hour + 1e-9) - search.spare)
    return min(limits)


def total_load(scenario: Scenario, search: Search) -> float:
    """The load that all copies together must carry; 0 = as much as fits."""
    if search.kind == "batch":
        return scenario.problems.num_problems if scenario.problems else scenario.workload.num_requests
    return float(search.users or search.rate or 0)


def most_load(scenario: Scenario, search: Search) -> float:
    """Loads of one copy beyond this are not looked for: nobody has so many requests, or it is plenty."""
    load = total_load(scenario, search)
    return load if search.kind == "batch" else PLENTY * load or inf


def first_look(test: LoadTest, search: Search) -> Highest:
    """The highest load, roughly; from the asked one, if that is not far above what one copy can be expected to do."""
    guess, asked = test.guess(), total_load(test.scenario, search)
    start = min(guess, asked) if asked else guess
    return highest_load(test, max(ROUGH, search.precision), start, most=most_load(test.scenario, search))


def accuracy_of(scenario: Scenario) -> Row:
    """What the strategy may expect before an engine prunes, with its interval; nothing without problems."""
    if scenario.problems is None:
        return {}
    spec = scenario.problems.strategies[0].expanded()[0]
    found = expected_alone(scenario, spec, point_setups(scenario))
    return {
        "accuracy": found.accuracy,
        "accuracy_low": found.interval.low,
        "accuracy_high": found.interval.high,
    }


def _wrong_too_often(row: Row, scenario: Scenario) -> Row:
    """What rules a candidate out whose accuracy is less than asked; empty where it is enough."""
    wanted = scenario.problems.min_accuracy if scenario.problems else 0.0
    if row.get("accuracy") is None or row["accuracy"] >= wanted:
        return {}
    return _ruled_out("accuracy", f"accuracy {accuracy_text(row)}, {wanted:.1%} is asked", pruned=False) | {
        name: row[name] for name in ACCURACY
    }


def share_of(load: float, copies: int, kind: str) -> float:
    """The load of one copy: even shares, whole users and requests."""
    return load / copies if kind == "rate" else float(ceil(load / copies))


def copies_needed(test: LoadTest, found: Highest, met: Trial, search: Search) -> tuple[int, Trial, Highest]:
    """The fewest copies that carry the asked load, to the search's precision; the highest load by then; all trials."""
    load = total_load(test.scenario, search)
    if not load:
        return 1, met, found
    enough = ceil(load / met.load - 1e-9)
    short = int(load / found.missed.load + 1e-9) if found.missed else 0
    while enough - short > max(1, search.precision * enough):
        copies = (short + enough) // 2
        share = share_of(load, copies, search.kind)
        if found.missed is not None and share >= found.missed.load:
            short = copies
            continue
        trial = test.try_load(share)
        found = found.after(trial)
        short, enough, met = (short, copies, trial) if trial.met else (copies, enough, met)
    return enough, met, found


def what_limits(test: LoadTest, met: Trial, found: Highest) -> tuple[str, int]:
    """What gives out first above the highest load, and the simulations it took to see it.

    Where nobody waits, steps are too long: bandwidth or arithmetic. Where nothing was missed, what the last run says.
    """
    if found.missed is None:
        return str(met.row["limited_by"]), 0
    for trial in sorted(found.over, key=lambda t: abs(t.load / met.load - OVERLOAD)):
        if NEAR[0] <= trial.load / met.load <= NEAR[1]:
            limit = test.whole(trial).row["limited_by"]
            if limit != Limit.ARRIVAL_RATE:
                return str(limit), 0
    over = test.at(ceil(met.load * OVERLOAD) if test.kind != "rate" else met.load * OVERLOAD)
    if over.problems is not None:
        result = solve(over).result
    else:
        result = simulate(over, setups=test.setups(), keep_records=False, keep_samples=False)
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
        test = make_load_test(scenario, self.search)
        low, high = self.rough[scenario.model_dump_json()]
        ends = Trial(low, True, {}), Trial(high, False, {})
        sharp = highest_load(test, self.search.precision, between=ends)
        row: Row = {"num_draws": 1, "num_simulations": sharp.num_simulations}
        if sharp.met and sharp.met.row:
            row |= sharp.met.row | {"highest": sharp.load}
        return row | self._interval(test, sharp.load, row["num_simulations"])

    def _interval(self, test: LoadTest, load: float, simulations: int) -> Row:
        loads, most = [load], most_load(test.scenario, self.search)
        while len(loads) < self.search.seeds and not (
            len(loads) >= 3 and _width(loads) <= self.search.target_width
        ):
            other = test._replace(seed_shift=1000 * len(loads))
            found = highest_load(other, max(DRAW_PRECISION, self.search.precision), loads[0], 1.06, most)
            loads.append(found.middle if self.search.kind == "rate" else found.load)
            simulations += found.num_simulations
        if len(loads) < 2:
            return {"num_simulations": simulations}
        low, high = range_over(loads)
        return {"low": low, "high": high, "num_draws": len(loads), "num_simulations": simulations}


def range_over(loads: list[float]) -> tuple[float, float]:
    """The mean's 90 % interval, widened to the draws themselves: no copy may count on more than the least of them."""
    half = _width(loads) * fmean(loads)
    return max(0.0, min(*loads, fmean(loads) - half)), max(*loads, fmean(loads) + half)


def _width(loads: list[float]) -> float:
    """Half width of the mean's 90 % interval, relative."""
    if len(loads) < 3 or not fmean(loads):
        return 0.0
    return T_90.get(len(loads), 1.645) * stdev(loads) / sqrt(len(loads)) / fmean(loads)


@dataclass(frozen=True, slots=True)
class AtEnds:
    """The task: figures at a candidate's highest load, and that load, at both ends of what its steps may take."""

    search: Search
    found: dict[str, Row]
    """Scenario as JSON -> the row that `Measure` and `Refine` made of it."""

    def __call__(self, scenario: Scenario) -> Row:
        """The row's ranges; a few simulations, from loads that its steps alone would allow."""
        row = self.found[scenario.model_dump_json()]
        test = make_load_test(scenario, self.search)
        load, setups = row["highest"], point_setups(test.scenario)
        if not is_doubted(setups):
            stated = {"highest_low": load, "highest_high": load, "num_simulations": 0}
            return with_ranges(row, [row, row], setups) | stated
        ends = find_ends(row["is_extrapolated"])
        rows = [run_point(test.at(load), end) for end in ends]
        spent = len(rows)
        found: Row = {}
        for end, name, steps in zip(ends, ("high", "low"), ("step_low", "step_high"), strict=True):
            at_end = test._replace(end=end)
            top = self._highest(at_end, load / row[steps])
            spent += top.num_simulations
            found |= {f"highest_{name}": top.load, f"limit_{name}": _seen_limit(at_end, top)}
        return with_ranges(row, rows, setups) | found | {"num_simulations": spent}

    def _highest(self, test: LoadTest, guess: float) -> Highest:
        precision = max(END_PRECISION, self.search.precision)
        return highest_load(test, precision, guess, END_FACTOR, most_load(test.scenario, self.search))


def _seen_limit(test: LoadTest, found: Highest) -> str:
    """What gave out in the trials that were missed; empty where none says."""
    load = found.load or 1.0
    for trial in sorted(found.over, key=lambda t: abs(t.load / load - OVERLOAD)):
        if trial.load / load >= NEAR[0]:
            limit = test.whole(trial).row["limited_by"]
            if limit != Limit.ARRIVAL_RATE:
                return str(limit)
    return ""


@dataclass(frozen=True, slots=True)
class Alone:
    """The task: how near a candidate that cannot meet its targets comes, at next to no load."""

    search: Search

    def __call__(self, scenario: Scenario) -> Row:
        """Simulate it without asking the closed form."""
        try:
            test = make_load_test(scenario, self.search)
            load = max(test.least(), test.guess() / 1000) if test.kind == "rate" else 1.0
            return run_point(test.at(load))
        except KvplanError as error:
            return error_row(str(error))


@dataclass(frozen=True, slots=True)
class Carries:
    """The task: whether as many copies as are allowed carry the asked load. One trial, at an even share of it."""

    search: Search

    def __call__(self, scenario: Scenario) -> Row:
        """`met` says whether they do; a scenario that cannot be planned does not."""
        try:
            test = make_load_test(scenario, self.search)
            room = most_copies(self.search, *hardware(test))
            load = total_load(scenario, self.search)
            met = room >= 1 and test.try_load(share_of(load, room, self.search.kind)).met
        except KvplanError as error:
            return {"met": False, "error": str(error)}
        return {"met": met, "error": ""}


@dataclass(frozen=True, slots=True)
class TryLoad:
    """The task: whether a changed candidate sustains a load."""

    search: Search
    load: float

    def __call__(self, scenario: Scenario) -> Row:
        """One trial; `met` says how it went."""
        try:
            test = make_load_test(scenario, self.search)
            trial = test.try_load(self.load)
            gpus, usd = hardware(test)
        except KvplanError as error:
            return {"met": False, "error": str(error)}
        return {"met": trial.met, "error": "", "num_gpus_per_copy": gpus, "usd_per_hour_per_copy": usd}
