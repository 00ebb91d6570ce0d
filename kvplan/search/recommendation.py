"""`recommend`: from a workload, targets and what may be changed to a ranked list of deployments.

    candidates -> closed form -> highest load of one copy -> copies, cost -> interval of the best -> ranking

What a candidate's row says is `measure_load`'s; where candidates run is `search`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from html import escape
from math import ceil, inf
from pathlib import Path
from typing import Any

import kvplan
from kvplan.errors import KvplanError
from kvplan.memory.serve_command import shell_command
from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.scenario.space import Search
from kvplan.search.candidates import Measure, Refine, make_bench, total_load
from kvplan.search.choices import pareto
from kvplan.search.day_plan import DayPlan, day_shares, plan_day
from kvplan.search.grid import Point, make_axes, make_points, read_base
from kvplan.search.lift import find_lifts
from kvplan.search.nearest import Ruled, nothing_feasible, said_of
from kvplan.search.point_row import Row
from kvplan.search.sweeping import Execution, Progress, execute

SCHEMA_VERSION = 1
ROUNDS = 4
"""Times the best rows get their intervals: one may cost them the first place."""
SHOWN = (
    "p99_ttft_ms",
    "p99_ttfvt_ms",
    "p99_tpot_ms",
    "p99_e2el_ms",
    "kv_peak_fraction",
    "kv_mean_fraction",
    "accuracy",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination and what came of it. Figures are None where nothing was simulated or no target is stated."""

    settings: dict[str, Any]
    scenario: Scenario | None
    feasible: bool
    pruned: bool
    """The closed form answered; no simulation."""
    cause: str
    """What rules it out: memory, refused, gpus, time, accuracy; empty when nothing does."""
    why: str
    """The same in a sentence."""
    highest: float | None = None
    """Load that one copy sustains: requests or problems a second, users, or requests by the deadline."""
    low: float | None = None
    high: float | None = None
    """90 % interval of `highest` over draws of the load; None = one draw."""
    num_draws: int = 0
    copies: int | None = None
    """For the asked load, without spares."""
    num_gpus: int | None = None
    """All copies and spares."""
    usd_per_hour: float | None = None
    usd_per_million_visible_tokens: float | None = None
    usd_per_correct: float | None = None
    headroom: float | None = None
    """Share by which the load may grow before a copy is missing, spares not counted."""
    limited_by: str = ""
    """What gives out first above the highest load."""
    at_least: bool = False
    """`highest` is as far as was looked, twice the asked load; one copy may carry more."""
    pareto: bool = False
    """No other feasible candidate is as cheap, as fast (p99) and as accurate."""
    commands: tuple[str, ...] = ()
    """What starts one copy."""
    lift: str = ""
    """The cheapest single change that carries more load, simulated."""
    day: DayPlan | None = None
    num_simulations: int = 0
    figures: Row = field(default_factory=dict)
    """As in a sweep, at the highest load of one copy."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the same keys always."""
        left_out = {"scenario", "figures", "day", "settings"}
        plain = {f.name: getattr(self, f.name) for f in fields(Candidate) if f.name not in left_out}
        day = None if self.day is None else {**self.day._asdict(), "saved": self.day.saved}
        shown = {name: self.figures.get(name) for name in SHOWN}
        return {"settings": self.settings, **plain, "commands": list(self.commands), **shown, "day": day}


@dataclass(slots=True)
class Recommendation:
    """All candidates, the best first."""

    scenario: Scenario
    search: Search
    candidates: list[Candidate]
    reason: str
    """Why the first one; or what rules out all, and what comes nearest."""
    interrupted: bool = False

    @property
    def best(self) -> Candidate | None:
        """The first, if anything is feasible."""
        return self.candidates[0] if self.candidates and self.candidates[0].feasible else None

    @property
    def exit_code(self) -> int:
        """1 when nothing is feasible, 130 when interrupted."""
        return 130 if self.interrupted else 0 if self.best else 1

    @property
    def num_pruned(self) -> int:
        """Candidates that were never simulated."""
        return sum(c.pruned for c in self.candidates)

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kvplan_version": kvplan.__version__,
            "inputs": self.scenario.model_dump(mode="json"),
            "load": self.search.kind,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "num_feasible": sum(c.feasible for c in self.candidates),
            "num_pruned": self.num_pruned,
            "num_simulations": sum(c.num_simulations for c in self.candidates),
            "reason": self.reason,
        }

    def to_frame(self) -> Any:
        """A row per candidate as a pandas DataFrame, its settings as columns."""
        import pandas as pd

        rows = [c.to_dict() for c in self.candidates]
        drop = ("settings", "commands", "day")
        return pd.DataFrame(
            [{**row["settings"], **{k: v for k, v in row.items() if k not in drop}} for row in rows]
        )

    def _repr_html_(self) -> str:
        """The table of `kvplan recommend`, for notebooks."""
        from kvplan.search.recommend_text import recommend_text

        return f"<pre>{escape(recommend_text(self))}</pre>"


def recommend(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    over: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    overrides: Iterable[str] = (),
    backend: str = "local",
    workers: int = 1,
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
    axes = make_axes(
        {**search.over, **{axis.key: axis.values for axis in make_axes(over)}} if over else search.over
    )
    check_targets(whole, search)
    if search.day is not None:
        day_shares(search.day)
    points = make_points(base, axes, force=force)
    execution = Execution(backend, workers, address)
    rows: dict[int, Row] = {}
    interrupted = False
    try:
        _gather(rows, points, execution, Measure(search), progress)
        _refine(rows, points, execution, search, whole)
    except KeyboardInterrupt:
        interrupted = True
    candidates = [_candidate(point, rows[point.index], search) for point in points if point.index in rows]
    candidates = _ranked(candidates, search)
    try:
        if interrupted:
            raise KeyboardInterrupt
        if not candidates[0].feasible:
            return Recommendation(
                whole, search, candidates, _nothing(points, rows, candidates, execution, search)
            )
        candidates = _lifted(candidates, execution, search)
    except KeyboardInterrupt:
        said = f"interrupted: {len(candidates)} of {len(points)} candidates were looked at"
        return Recommendation(whole, search, candidates, said, interrupted=True)
    return Recommendation(whole, search, candidates, _best_reason(candidates[0], search))


def check_targets(scenario: Scenario, search: Search) -> None:
    """Raise KvplanError when nothing says how slow is too slow: every load would be sustained."""
    slos = [scenario.slo, *(cls.slo for cls in scenario.workload.by_name.values() if cls.slo)]
    timed = any(slo.model_copy(update={"share": 0.5}) != type(slo)(share=0.5) for slo in slos)
    if search.kind != "batch" and not timed:
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
        ranked = sorted(feasible, key=lambda p: _cost_key(_candidate(p, rows[p.index], search), search))
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


def _candidate(point: Point, row: Row, search: Search) -> Candidate:
    """A measured row as users read it."""
    cause, why = row.get("cause") or "", row["error"]
    spent = row.get("num_simulations") or 0
    if why or point.scenario is None:
        pruned = bool(row.get("pruned", True))
        return Candidate(
            point.settings, point.scenario, False, pruned, cause or "refused", why, row.get("highest"),
            copies=row.get("copies"), limited_by=row.get("limit") or "", num_simulations=spent, figures=row,
        )  # fmt: skip
    scenario = make_bench(point.scenario, search).scenario
    load = total_load(scenario, search)
    copies, highest = row["copies"], row["highest"]
    bought = copies + (search.spare if load else 0)
    usd = bought * row["usd_per_hour_per_copy"]
    per_copy = load / copies if load else highest
    visible, correct = _costs(row, usd, load or highest, search)
    day = None
    if search.day is not None and load:
        day = plan_day(day_shares(search.day), load, row["low"] or highest, search.spare, row["num_gpus_per_copy"],
                       row["usd_per_hour_per_copy"])  # fmt: skip
    return Candidate(
        point.settings, scenario, True, False, "", "", highest, row["low"], row["high"], row["num_draws"], copies,
        bought * row["num_gpus_per_copy"], usd, visible, correct, highest / per_copy - 1 if load else None,
        row["limit"], row["missed"] is None, commands=_commands(scenario), day=day, num_simulations=spent, figures=row,
    )  # fmt: skip


def _costs(row: Row, usd_per_hour: float, load: float, search: Search) -> tuple[float | None, float | None]:
    """Dollars per million visible tokens and per correct answer, under the load that is planned for."""
    done = row["completed"]
    visible = row["visible_throughput"] * row["duration_s"] / done if done else 0.0
    per_s = load if search.kind == "rate" else done / row["duration_s"] * load / row["highest"]
    if not per_s:
        return None, None
    each = usd_per_hour / 3600 / per_s
    return (each / visible * 1e6 if visible else None), (each / row["accuracy"] if row["accuracy"] else None)


def _commands(scenario: Scenario) -> tuple[str, ...]:
    return tuple(shell_command(d.model, d.engine) for d in scenario.deployments.values())


def _cost_key(candidate: Candidate, search: Search) -> tuple[float, ...]:
    """What is better is smaller: feasible, cheap for the load, or per answer or token where no load is asked."""
    if not candidate.feasible:
        return (1.0, inf, inf)
    figures = (candidate.usd_per_correct, candidate.usd_per_million_visible_tokens, candidate.usd_per_hour)
    asked = search.kind == "batch" or search.rate is not None or search.users is not None
    cost = candidate.usd_per_hour if asked else next(c for c in figures if c is not None)
    return 0.0, cost or 0.0, -(candidate.headroom or candidate.highest or 0.0)


def _ranked(candidates: list[Candidate], search: Search) -> list[Candidate]:
    """Best first, the Pareto front marked, the infeasible ones last."""
    found = sorted(candidates, key=lambda c: _cost_key(c, search))
    feasible = [c for c in found if c.feasible]
    if not feasible:
        return found
    cost = [_cost_key(c, search)[1] for c in feasible]
    late = [c.figures["p99_e2el_ms"] or inf for c in feasible]
    front = pareto([c.figures["accuracy"] or 0.0 for c in feasible], [cost, late])
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
    cost = f"${best.usd_per_hour:,.2f} an hour"
    gpus = f"{best.num_gpus} GPUs"
    return f"{said_of(best.settings)} is the cheapest: {gpus}, {cost}, limited by {best.limited_by}"


def _nothing(
    points: Sequence[Point],
    rows: dict[int, Row],
    candidates: list[Candidate],
    execution: Execution,
    search: Search,
) -> str:
    mine = {id(one.settings): one for one in candidates}
    found = [(p, mine[id(p.settings)]) for p in points]
    ruled = [Ruled(p, one.cause, one.why, rows[p.index]) for p, one in found]
    return nothing_feasible(ruled, execution, search)
