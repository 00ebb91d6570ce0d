"""`recommend`: from a workload, targets and what may be changed to a ranked list of deployments.

    candidates -> closed form -> highest load of one copy -> copies, cost -> interval of the best -> ranking

What a candidate's row says is `candidates`'; where candidates run is `execution`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, inf, isfinite
from pathlib import Path
from typing import Any

from kvplan.ground.errors import KvplanError
from kvplan.ground.tables import counted
from kvplan.memory.serve_command import shell_command
from kvplan.models.load import load_model
from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.scenario.space import Search
from kvplan.search.candidate_range import CostEnd, find_costs, find_ends, unsure
from kvplan.search.candidates import AtEnds, Measure, Refine, make_load_test, total_load
from kvplan.search.choices import pareto
from kvplan.search.day_plan import day_shares, plan_day
from kvplan.search.execution import Execution, default_workers, execute
from kvplan.search.grid import Point, make_axes, make_points, read_base, settings_text
from kvplan.search.lift import find_lifts
from kvplan.search.nearest import nothing_feasible
from kvplan.search.point_row import ACCURACY, Row, slos_of
from kvplan.search.recommendation import Candidate, Recommendation, tie
from kvplan.search.sweeping import Progress
from kvplan.simulation.pricing import check_prices

ROUNDS = 4
"""Times the best rows get their intervals: one may cost them the first place."""
TIES = 4
"""Rows beyond the best ones whose ends are simulated, because they may be as cheap as the first."""


def recommend(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    over: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    overrides: Iterable[str] = (),
    backend: str = "local",
    workers: int | None = 1,
    address: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Recommendation:
    """Rank the deployments that a scenario's `search` allows; `over` adds keys and values to it.

    Raises KvplanError for a scenario without targets, a key that does not exist, a space of absurd size. That nothing
    is feasible is an answer: `best` is None and `reason` says why.
    """
    base = read_base(scenario, overrides)
    whole = parse_scenario(dict(base.data), base.name, base.folder)
    search = whole.search or Search()
    axes = make_axes({**search.over, **{axis.key: axis.values for axis in (make_axes(over) if over else ())}})
    check_targets(whole, search)
    if search.day is not None:
        day_shares(search.day)
    points = make_points(base, axes, force=force)
    check_prices(p.scenario for p in points if p.scenario)
    execution = Execution(backend, default_workers() if workers is None else workers, address)
    rows: dict[int, Row] = {}
    try:
        _gather(rows, points, execution, Measure(search), progress)
        _refine(rows, points, execution, search, whole)
        if search.ranges:
            _look_at_ends(rows, points, execution, search)
        candidates = _ranked(points, rows, search)
        if candidates[0].feasible:
            candidates = _lifted(candidates, execution, search)
            reason = _best_reason(candidates[0], search) + tie([c for c in candidates if c.feasible], search)
        else:
            reason = nothing_feasible(candidates, execution, search)
        return Recommendation(whole, search, candidates, reason)
    except KeyboardInterrupt:
        candidates = _ranked(points, rows, search)
        reason = f"interrupted: {len(candidates)} of {counted(len(points), 'candidate')} were looked at"
        return Recommendation(whole, search, candidates, reason, interrupted=True)


def check_targets(scenario: Scenario, search: Search) -> None:
    """Raise KvplanError when nothing says how slow is too slow: every load would be sustained."""
    if search.kind != "batch" and all(slo.is_empty for slo in slos_of(scenario)):
        raise KvplanError(
            "nothing says how slow is too slow: set slo (ttft_ms, ttfvt_ms, tpot_ms, e2el_ms) or search.deadline_s"
        )


def _gather(
    rows: dict[int, Row],
    points: Sequence[Point],
    execution: Execution,
    task: Callable[[Scenario], Row],
    progress: Progress | None = None,
) -> None:
    """Run a task over points; rows by their index, those of invalid points included."""
    for number, (point, row) in enumerate(execute(points, execution, task)):
        rows[point.index] = row
        if progress is not None:
            progress(number + 1, len(points))


def _refine(
    rows: dict[int, Row], points: Sequence[Point], execution: Execution, search: Search, whole: Scenario
) -> None:
    """Narrow the best rows, and give them an interval over draws; what they then need follows from its low end."""
    feasible = [p for p in points if not rows[p.index]["error"]]
    done = {p.index for p in feasible if rows[p.index]["missed"] is None}
    for number in range(ROUNDS if search.refine else 0):
        ranked = sorted(feasible, key=lambda p: cost_key(_candidate(p, rows[p.index], search), search))
        chosen = [p for p in ranked[: search.refine] if p.index not in done]
        if not chosen or (number and ranked[0].index in done):
            return
        rough = {p.scenario.model_dump_json(): (rows[p.index]["highest"], rows[p.index]["missed"])
                 for p in chosen if p.scenario}  # fmt: skip
        found: dict[int, Row] = {}
        _gather(found, chosen, execution, Refine(search, rough))
        done |= found.keys()
        for index, interval in found.items():
            _narrow(rows[index], interval, total_load(whole, search))


def _narrow(row: Row, interval: Row, load: float) -> None:
    """Take an interval into a row."""
    row["num_simulations"] += interval.pop("num_simulations")
    row |= interval
    if load and row["low"] and row["num_draws"] > 1:
        row["copies"] = max(row["copies"], ceil(load / row["low"] - 1e-9))


def _look_at_ends(
    rows: dict[int, Row], points: Sequence[Point], execution: Execution, search: Search
) -> None:
    """Simulate the best rows, and those that may be as cheap as the first, at the ends of what their steps may take."""
    feasible = [p for p in points if not rows[p.index]["error"]]
    done: set[int] = set()
    for _ in range(ROUNDS if search.refine else 0):
        ranked = sorted(feasible, key=lambda p: cost_key(_candidate(p, rows[p.index], search), search))
        near = [*ranked[: search.refine], *_may_tie(ranked, rows, search)[:TIES]]
        chosen = [p for p in dict.fromkeys(p.index for p in near) if p not in done]
        if not chosen:
            return
        named = {p.index: p for p in near}
        found: dict[int, Row] = {}
        measured = {p.scenario.model_dump_json(): rows[p.index] for p in near if p.scenario}
        _gather(found, [named[index] for index in chosen], execution, AtEnds(search, measured))
        done |= found.keys()
        for index, row in found.items():
            spent = rows[index]["num_simulations"] + row.pop("num_simulations")
            rows[index] |= row | {"num_simulations": spent}


def _may_tie(ranked: Sequence[Point], rows: Mapping[int, Row], search: Search) -> list[Point]:
    """Those below the best rows that would be as cheap as the first at one end of the ranges."""
    if not ranked:
        return []
    best = _candidate(ranked[0], rows[ranked[0].index], search)
    others = [(p, _candidate(p, rows[p.index], search)) for p in ranked[search.refine :]]
    return [p for p, other in others if other.may_beat(best, search)]


def _candidate(point: Point, row: Row, search: Search) -> Candidate:
    """A measured row as users read it."""
    spent = row.get("num_simulations") or 0
    if row["error"] or point.scenario is None:
        return Candidate(
            settings=point.settings, scenario=point.scenario, feasible=False, pruned=bool(row.get("pruned", True)),
            cause=row.get("cause") or "refused", why=row["error"], highest=row.get("highest"),
            copies=row.get("copies"), limited_by=row.get("limit") or "", num_simulations=spent, figures=row,
        )  # fmt: skip
    scenario = make_load_test(point.scenario, search).scenario
    load, copies, highest = total_load(scenario, search), row["copies"], row["highest"]
    gpus, usd = row["num_gpus_per_copy"], row["usd_per_hour_per_copy"]
    bought = copies + (search.spare if load else 0)
    costs = find_costs(row, bought * usd, load or highest, search)
    slow, quick = find_ends(row, load, search)
    day = None
    if search.day is not None and load:
        day = plan_day(day_shares(search.day), load, row["low"] or highest, search.spare, gpus, usd)
    return Candidate(
        settings=point.settings, scenario=scenario, feasible=True, pruned=False, cause="", why="",
        highest=highest, low=row["low"], high=row["high"], num_draws=row["num_draws"], at_least=row["missed"] is None,
        copies=copies, num_gpus=bought * gpus, headroom=highest / (load / copies) - 1 if load else None,
        **costs._asdict(), **_ranges(slow, quick), is_range_simulated=row["highest_low"] is not None,
        unsure=unsure(row, load, slow, quick, search, scenario.problems), step_time_range=row["step_time_range"],
        limited_by=row["limit"], step_time=row["step_time"], step_time_error=row["step_time_error"],
        step_low=row["step_low"], step_high=row["step_high"],
        price_source=row["price_source"], commands=_commands(scenario), day=day, num_simulations=spent, figures=row,
    )  # fmt: skip


def _ranges(slow: CostEnd, quick: CostEnd) -> Row:
    """The fields of a candidate that its ends say, low and high."""
    found: Row = {"highest_low": slow.highest, "highest_high": quick.highest}
    pairs = [("copies", quick.copies, slow.copies)]
    pairs += [(name, getattr(quick.costs, name), getattr(slow.costs, name)) for name in quick.costs._fields]
    for name, low, high in pairs:
        found[f"{name}_low"] = low
        found[f"{name}_high"] = high if high is not None and isfinite(high) else None
    return found


def _commands(scenario: Scenario) -> tuple[str, ...]:
    return tuple(
        shell_command(d.model, d.engine, d.engine_name, experts=load_model(d.model).is_moe)
        for d in scenario.deployments.values()
    )


def cost_key(candidate: Candidate, search: Search) -> tuple[float, ...]:
    """What is better is smaller: feasible, timed by a profile, cheap for the load (else per answer or token)."""
    if not candidate.feasible:
        return (1.0, inf, inf)
    cost = candidate.pessimistic_cost(search) if search.robust else candidate.cost(search)
    return (
        (0.5 if candidate.is_assumed else 0.0),
        cost,
        -(candidate.headroom or candidate.highest or 0.0),
    )


def _ranked(points: Sequence[Point], rows: Mapping[int, Row], search: Search) -> list[Candidate]:
    """Those measured, best first, the Pareto front marked, the infeasible ones last."""
    candidates = [_candidate(point, rows[point.index], search) for point in points if point.index in rows]
    found = sorted(candidates, key=lambda c: cost_key(c, search))
    feasible = [c for c in found if c.feasible]
    feasible = [c for c in feasible if not c.is_assumed] or feasible
    if not feasible:
        return found
    cost = [c.cost(search) for c in feasible]
    late = [c.figures["p99_e2el_ms"] or inf for c in feasible]
    right, *ends = ([c.figures[name] or 0.0 for c in feasible] for name in ACCURACY)
    front = pareto(right, [cost, late], (ends[0], ends[1]))
    marked = [replace(c, pareto=bool(on)) for c, on in zip(feasible, front, strict=True)]
    return marked + found[len(feasible) :]


def _lifted(candidates: list[Candidate], execution: Execution, search: Search) -> list[Candidate]:
    """The best rows with the change that would lift their limit; another card only if the space allows it."""
    gpus = sorted({str(c.settings["gpu"]) for c in candidates if "gpu" in c.settings})
    chosen = [c for c in candidates if c.feasible and c.figures["missed"]][: max(1, search.refine)]
    lifts = find_lifts([(c.scenario, c.highest) for c in chosen], execution, search, gpus)
    said = {id(c): str(lifts.get(i) or "") for i, c in enumerate(chosen)}
    return [replace(c, lift=said.get(id(c), "")) for c in candidates]


def _best_reason(best: Candidate, search: Search) -> str:
    cost = f"{counted(best.num_gpus or 0, 'GPU')}, ${best.usd_per_hour:,.2f} an hour"
    among = " of cards without a profile" if best.is_assumed else ""
    if search.robust:
        among = f" at the slow end of its steps' range{among}"
    return f"{settings_text(best.settings)} is the cheapest{among}: {cost}, limited by {best.limited_by}"
