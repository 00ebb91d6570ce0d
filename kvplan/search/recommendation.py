"""A recommendation: candidates, the best first; as a document, a frame, and text that ranks and explains them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from functools import partial
from html import escape
from math import inf
from typing import Any, ClassVar

import kvplan
from kvplan.ground.frames import make_frame
from kvplan.ground.pictures import Pictures
from kvplan.ground.tables import Column, Part, Table, counted, folded, make_table, range_text, text_of
from kvplan.scenario.schema import Scenario
from kvplan.scenario.space import Search
from kvplan.search.day_plan import DayPlan
from kvplan.search.grid import settings_text, value_text
from kvplan.search.point_row import ACCURACY, RANGED, Row, accuracy_text, asked_latencies
from kvplan.simulation.pricing import find_grid
from kvplan.simulation.result import ENERGY

SCHEMA_VERSION = 1
SHOWN = (
    "p99_ttft_ms",
    "p99_ttfvt_ms",
    "p99_tpot_ms",
    "p99_e2el_ms",
    "kv_peak_fraction",
    "kv_mean_fraction",
    *ACCURACY,
    *ENERGY,
)
"""Figures at the highest load that the document gives of a candidate, with their ranges; watts are of one copy."""

ASKED = ("usd_per_hour",)
"""What ranks candidates for an asked load."""
UNASKED = ("usd_per_correct", "usd_per_million_visible_tokens", "usd_per_hour")
"""Without one: the first that a candidate has."""
SHOWN_ROWS = 12
EXPLAINED = (
    "* = no other candidate is as cheap, as fast (p99) and as accurate; copies x GPUs of each, spares included",
    "copies: by the least that one carries over the draws of the load; the row's own load is that of the first draw",
    "$/M: per million visible tokens; room: the load may grow by so much; latencies: p99 at a copy's highest load",
    "90 %: from errors on models left out, simulated; ~: in proportion to the steps, not simulated",
)
ASSUMED = "~ = no profile of this card: another's, scaled by data sheets (half to twice); after the rows that one times"
LOADS = {"rate": "rate/s", "users": "users", "batch": "by deadline"}
SHORT = {
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "data_parallel_size": "dp",
    "kv_cache_dtype": "kv",
    "max_num_seqs": "seqs",
}
TITLES = {
    "ttft_ms": ("ttft s", 1e3),
    "ttfvt_ms": ("visible s", 1e3),
    "tpot_ms": ("tpot ms", 1.0),
    "e2el_ms": ("e2e s", 1e3),
}
"""Latency -> title, divisor of its p99 at the highest load. What has no target is not shown."""


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
    """Range over draws of the load, `highest` among them: 90 % of the mean, and all draws; None = one draw."""
    highest_low: float | None = None
    highest_high: float | None = None
    """90 % range of `highest`: at the slow and the quick end of what its steps may take, and over draws."""
    is_range_simulated: bool = False
    """Whether the ends were simulated, through the queue; else ranges follow the steps' in proportion."""
    num_draws: int = 0
    copies: int | None = None
    """For the asked load, without spares."""
    copies_low: float | None = None
    copies_high: float | None = None
    """At the quick and the slow end; None: at the slow end no number of them carries it."""
    num_gpus: int | None = None
    """All copies and spares."""
    usd_per_hour: float | None = None
    usd_per_hour_low: float | None = None
    usd_per_hour_high: float | None = None
    usd_per_million_visible_tokens: float | None = None
    usd_per_million_visible_tokens_low: float | None = None
    usd_per_million_visible_tokens_high: float | None = None
    usd_per_correct: float | None = None
    usd_per_correct_low: float | None = None
    usd_per_correct_high: float | None = None
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
    step_time: str = ""
    """What times its steps: measured, by which profile; or assumed, another card's."""
    step_time_error: str = ""
    """Held-out error of that profile."""
    step_low: float = 1.0
    """Its steps may take from so many times as long, in nine cases of ten."""
    step_high: float = 1.0
    step_time_range: str = ""
    """That range, and which points it rests on."""
    unsure: tuple[str, ...] = ()
    """What the range could turn, a sentence each."""
    price_source: str = ""
    """Where the price of a GPU-hour comes from."""
    day: DayPlan | None = None
    num_simulations: int = 0
    figures: Row = field(default_factory=dict)
    """As in a sweep, at the highest load of one copy."""

    @property
    def label(self) -> str:
        """Its settings in few words, e.g. h100-sxm, tp 2, kv fp8."""
        words = []
        for key, value in self.settings.items():
            end, text = key.rpartition(".")[2], value_text(value)
            words.append(
                text.rpartition("/")[2] if end in ("gpu", "model") else f"{SHORT.get(end, end)} {text}"
            )
        return ", ".join(words)

    @property
    def is_assumed(self) -> bool:
        """Whether another card's profile times it, scaled by data sheets: half to twice; measured rows come first."""
        return self.step_time.startswith("assumed")

    def cost(self, search: Search, end: str = "") -> float:
        """What it is ranked by: dollars an hour for the asked load, else per answer or token; `end`: "", _low, _high.

        inf where at that end no load is sustained.
        """
        names = ASKED if search.is_asked else UNASKED
        name = next(name for name in names if getattr(self, name) is not None)
        value: float | None = getattr(self, f"{name}{end}")
        return inf if value is None else value

    def pessimistic_cost(self, search: Search) -> float:
        """The same at the slow end of what its steps may take."""
        return self.cost(search, "_high")

    def shares_error(self, other: Candidate) -> bool:
        """Whether one model is timed by one profile in both: what is wrong in one is wrong in the other."""
        models = [str(c.settings.get("model")) for c in (self, other)]
        return self.step_time == other.step_time and models[0] == models[1]

    def may_beat(self, best: Candidate, search: Search) -> bool:
        """Whether this one may be as cheap as the best within the error of their steps."""
        if self.is_assumed != best.is_assumed:
            return False
        if self.shares_error(best):
            return not search.is_asked and self.may_be_righter(best)
        return self.cost(search, "_low") <= best.cost(search, "_high")

    def may_be_righter(self, best: Candidate) -> bool:
        """Whether another accuracy, within the intervals of both, makes its correct answers as cheap."""
        ends = [(one.usd_per_correct, one.accuracy_ends) for one in (self, best)]
        (usd, mine), (least, theirs) = ends
        if (
            usd is None or least is None or mine == theirs
        ):  # the same strategy: what is wrong in one is in both
            return False
        return usd / mine[1] <= least / theirs[0]

    @property
    def accuracy_ends(self) -> tuple[float, float]:
        """Ends of its accuracy's interval as multiples of it; 1 where it has none."""
        value, low, high = (self.figures.get(name) for name in ACCURACY)
        return (low / value, high / value) if value and low is not None and high is not None else (1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the same keys always."""
        left_out = {"scenario", "figures", "day", "settings"}
        plain = {f.name: getattr(self, f.name) for f in fields(Candidate) if f.name not in left_out}
        day = None if self.day is None else {**self.day._asdict(), "saved": self.day.saved}
        ends = [f"{name}{end}" for name in SHOWN if name in RANGED for end in ("_low", "_high")]
        shown = {name: self.figures.get(name) for name in (*SHOWN, *ends)}
        plain["is_assumed"], plain["unsure"] = self.is_assumed, list(self.unsure)
        return {"settings": self.settings, **plain, "commands": list(self.commands), **shown, "day": day}


@dataclass(slots=True)
class Recommendation:
    """All candidates, the best first."""

    plot: ClassVar[Pictures] = Pictures()
    """Pictures of it, Altair charts: `dir(result.plot)` names them."""

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

    @property
    def rests_on(self) -> list[str]:
        """The ranges of the rows whose ends were simulated, the first's energy, what times and prices the rows."""
        feasible = [c for c in self.candidates if c.feasible]
        if not feasible:
            return []
        return [*_ranged(self, feasible), *_energy(self, feasible[0]), *_rests_on(feasible)]

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
        rows = [candidate.to_dict() for candidate in self.candidates]
        return make_frame([row.pop("settings") | row for row in rows]).drop(columns=["commands", "day"])

    def _repr_html_(self) -> str:
        """The table of `kvplan recommend`, for notebooks."""
        return f"<pre>{escape(str(self))}</pre>"

    def parts(self) -> list[Part]:
        """The table of what is feasible, best first, and what stands behind it."""
        feasible = [c for c in self.candidates if c.feasible]
        parts: list[Part] = [ranking_table(self, feasible[:SHOWN_ROWS])] if feasible else []
        more = len(feasible) - SHOWN_ROWS
        parts += [f"... and {more} more"] if more > 0 else []
        return [*parts, *([""] if parts else []), *_notes(self, feasible)]

    def __str__(self) -> str:
        return text_of(self.parts())

    def __repr__(self) -> str:
        """How many there are and why the first; `print` has the table."""
        feasible = sum(c.feasible for c in self.candidates)
        return f"<Recommendation: {feasible} of {counted(len(self.candidates), 'candidate')} feasible; {self.reason}>"


def tie(feasible: list[Candidate], search: Search) -> str:
    """Whether another row may be cheaper than the first within the error of their step times, and what would settle it;
    or within the intervals of their accuracies, where correct answers are priced.

    "" where none is. Rows in which one profile times one model share its error, so their order stands.
    """
    best = feasible[0]
    for other in feasible[1:]:
        if other.may_beat(best, search):
            if other.shares_error(best):
                return (
                    f"; tied with {settings_text(other.settings)} within the intervals of their accuracies "
                    f"({accuracy_text(best.figures)} against {accuracy_text(other.figures)})"
                )
            wide = max((best, other), key=lambda c: c.step_high / c.step_low)
            return (
                f"; tied with {settings_text(other.settings)} within the error of step times ({_cost(best, search)} "
                f"against {_cost(other, search)}). What settles it: {_settled_by(wide)}"
            )
    return ""


def _cost(row: Candidate, search: Search) -> str:
    low, high = (row.cost(search, end) for end in ("_low", "_high"))
    upper = "no load at all" if high == inf else _number(high)
    return f"${_number(low)} to {upper}"


def _settled_by(row: Candidate) -> str:
    """The figure whose measurement would narrow the wider of two ranges, as this one predicts it."""
    figures, end = row.figures, f"{row.step_low - 1:+.0%} to {row.step_high - 1:+.0%}"
    tpot, batch = figures.get("mean_tpot_ms"), figures.get("mean_batch_size")
    step = f" (predicted: {tpot:.3g} ms, {end})" if tpot else f" ({end})"
    many = f" at {batch:.0f} sequences" if batch else ""
    return f"the time per output token of {settings_text(row.settings)}{many}{step}"


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "-"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _load(row: Candidate) -> str:
    return (">=" if row.at_least else "") + _number(row.highest, 3)


def _interval(row: Candidate) -> str:
    if row.highest_low is None or row.highest_high is None:
        return "-"
    about = "" if row.is_range_simulated else "~"
    return f"{about}{_number(row.highest_low, 3)}..{_number(row.highest_high, 3)}"


def _share(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def _copies(row: Candidate) -> str:
    each = row.figures.get("num_gpus_per_copy")
    return f"{(row.num_gpus or 0) // each} x {each}" if each else "-"


def _settings(found: Recommendation) -> list[Column[Candidate]]:
    """The keys that tell candidates apart; one that follows from another to its left is left out."""
    keys = list(dict.fromkeys(key for c in found.candidates for key in c.settings))
    told: list[str] = []

    def differ(*some: str) -> int:
        """How many combinations of values some keys have."""
        return len({tuple(str(c.settings.get(key)) for key in some) for c in found.candidates})

    for key in keys:
        if (differ(key) > 1 or found.interrupted) and all(differ(k, key) > differ(k) for k in told):
            told.append(key)
    told = told or keys
    last = Counter(key.rpartition(".")[2] for key in told)
    names = {key: key if last[end := key.rpartition(".")[2]] > 1 else SHORT.get(end, end) for key in told}
    return [(names[key], partial(_setting, key)) for key in told]


def _setting(key: str, row: Candidate) -> str:
    text = value_text(row.settings.get(key))
    text = text.rpartition("/")[2] if key == "model" else text
    return text if len(text) <= 40 else text[:37] + "..."


def _figures(found: Recommendation) -> list[Column[Candidate]]:
    cost: list[Column[Candidate]] = [("$/M", lambda c: _number(c.usd_per_million_visible_tokens, 3))]
    if _is_judged(found):
        cost += [("accuracy", _accuracy)]
        cost += [("$/correct", lambda c: _number(c.usd_per_correct, 3))]
    return [
        (LOADS[found.search.kind], _load),
        ("90 %", _interval),
        ("copies", _copies),
        ("$/h", lambda c: _number(c.usd_per_hour)),
        *cost,
        ("room", lambda c: _share(c.headroom)),
        *_latencies(found),
        ("J/tok", _joules),
        ("KV", lambda c: _share(c.figures.get("kv_peak_fraction"))),
        ("limited by", lambda c: c.limited_by),
    ]


def _is_judged(found: Recommendation) -> bool:
    """Whether who is right matters: not for rollouts of which no accuracy is asked."""
    problems = found.scenario.problems
    return problems is not None and (found.search.kind != "batch" or problems.min_accuracy > 0)


def _accuracy(row: Candidate) -> str:
    return "-" if row.figures.get("accuracy") is None else accuracy_text(row.figures)


def _latencies(found: Recommendation) -> list[Column[Candidate]]:
    """p99 of what has a target, of the whole answer when nothing has."""

    def column(target: str) -> Column[Candidate]:
        (title, unit), figure = TITLES[target], f"p99_{target}"
        return title, lambda c: "-" if c.figures.get(figure) is None else _number(c.figures[figure] / unit, 3)

    return [column(target) for target in asked_latencies(found.scenario)]


def _joules(row: Candidate) -> str:
    return _number(row.figures.get("joules_per_output_token"), 3)


def ranking_table(found: Recommendation, rows: list[Candidate]) -> Table:
    """The table of some candidates: what is run, and how it does."""
    mark: Column[Candidate] = ("", lambda c: "*" if c.pareto else "~" if c.is_assumed else "")
    settings = [mark, *_settings(found)]
    return make_table([*settings, *_figures(found)], rows, fold=len(settings))


def _notes(found: Recommendation, feasible: list[Candidate]) -> list[str]:
    notes = [found.reason]
    if feasible:
        notes[:0] = EXPLAINED
        notes += found.rests_on
        best = feasible[0]
        notes += [f"run: {command}" for command in best.commands]
        spare = 0 if best.headroom is None else found.search.spare
        copies = (best.copies or 1) + spare
        notes += [f"copies: {copies}" + (f", {spare} of them spare" if spare else "")] if copies > 1 else []
        notes += [f"to lift the limit ({best.limited_by}): {best.lift}"] if best.lift else []
        notes += [_day(best.day)] if best.day else []
    ruled = [c for c in found.candidates if not c.feasible]
    for said, some in (
        ("never simulated, the closed form rules them out", [c for c in ruled if c.pruned]),
        ("simulated and not feasible", [c for c in ruled if not c.pruned]),
    ):
        notes += [f"{said}: {len(some)} of {len(found.candidates)} {_ruled_out(some)}"] if some else []
    notes.append(f"simulations: {sum(c.num_simulations for c in found.candidates):,}")
    return [one for note in notes for one in ([note] if note.startswith("run: ") else folded([note]))]


def _ranged(found: Recommendation, feasible: list[Candidate]) -> list[str]:
    """The ranges of the rows whose ends were simulated, and what those could turn."""
    latencies = [(*TITLES[target], f"p99_{target}") for target in asked_latencies(found.scenario)]
    lines = []
    for row in (c for c in feasible if c.is_range_simulated and c.step_low < c.step_high):
        money = [("copies", 1.0, "copies"), ("$/h", 1.0, "usd_per_hour")]
        said = [f"{title} {range_text(row.to_dict(), name, unit)}" for title, unit, name in money]
        said += [f"{title} {range_text(row.figures, name, unit)}" for title, unit, name in latencies]
        said += [f"J/tok {range_text(row.figures, 'joules_per_output_token')}"]
        unsure = f"; unsure: {'; '.join(row.unsure)}" if row.unsure else ""
        lines.append(f"90 % of {settings_text(row.settings)}: {', '.join(said)}{unsure}")
    return lines


def _energy(found: Recommendation, best: Candidate) -> list[str]:
    """Watts, kWh and CO2 of the first row, and what they are counted with."""
    watts, *_, kwh, grams = (range_text(best.figures, name) for name in ENERGY)
    if watts == "-":
        return []
    pricing, (grams_per_kwh, grid) = found.scenario.pricing, find_grid(found.scenario)
    return [
        f"energy of a copy at its highest load: {watts} W; {kwh} kWh and {grams} g of CO2 per million output tokens "
        f"at PUE {pricing.pue:g} and {grams_per_kwh:g} g a kWh ({grid}); {best.figures.get('energy_source') or ''}"
    ]


def _rests_on(feasible: list[Candidate]) -> list[str]:
    """What times and prices the rows, each source once, with a row that it holds for where there are several."""
    notes = [ASSUMED] if any(c.is_assumed for c in feasible) else []
    for what, told in (("step times", _timed), ("prices", lambda c: c.price_source)):
        first = {told(c): c for c in reversed(feasible) if told(c)}
        notes += [
            f"{what}{f' of {settings_text(c.settings)}' if len(first) > 1 else ''}: {source}"
            for source, c in reversed(first.items())
        ]
    return notes


def _timed(row: Candidate) -> str:
    return "; ".join(filter(None, (row.step_time, row.step_time_range, row.step_time_error)))


def _ruled_out(rows: list[Candidate]) -> str:
    """By what, and one example of each."""
    causes = Counter(c.cause for c in rows)
    counts = ", ".join(f"{number} by {cause}" for cause, number in causes.most_common())
    first = {c.cause: c for c in reversed(rows)}
    told = "; ".join(
        f"{settings_text(first[cause].settings)}: {first[cause].why}" for cause, _ in causes.most_common()
    )
    return f"({counts}), for example {told}"


def _day(day: DayPlan) -> str:
    return (
        f"over the day: static {counted(day.static_copies, 'copy', 'copies')}, {day.static_gpu_hours:,.0f} GPU-hours, "
        f"${day.static_usd:,.0f}; by the hour {min(day.copies)} to {counted(max(day.copies), 'copy', 'copies')}, "
        f"{day.scheduled_gpu_hours:,.0f} GPU-hours, ${day.scheduled_usd:,.0f} ({day.saved:.0%} less)"
    )
