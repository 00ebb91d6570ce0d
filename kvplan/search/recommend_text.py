"""A recommendation as text: the ranked table, what it means, how to start the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from kvplan.search.day_plan import DayPlan
from kvplan.search.nearest import said_of, said_value
from kvplan.search.recommendation import Candidate, Recommendation

SHOWN_ROWS = 12
EXPLAINED = (
    "* = no other candidate is as cheap, as fast (p99) and as accurate; copies x GPUs of each, spares included",
    "$/M: per million visible tokens; room: the load may grow by so much; latencies: p99 at a copy's highest load",
)
WIDTH = 100
"""A table that is wider has two lines a row: what is run, and how it does."""
LOADS = {"rate": "rate/s", "users": "users", "batch": "by deadline"}
SHORT = {
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "data_parallel_size": "dp",
    "kv_cache_dtype": "kv",
    "max_num_seqs": "seqs",
}
TARGETS = {
    "ttft_ms": ("ttft s", "p99_ttft_ms", 1e3),
    "ttfvt_ms": ("visible s", "p99_ttfvt_ms", 1e3),
    "tpot_ms": ("tpot ms", "p99_tpot_ms", 1.0),
    "e2el_ms": ("e2e s", "p99_e2el_ms", 1e3),
}
"""Target -> title, figure at the highest load, divisor. What has no target is not shown."""


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "-"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _load(row: Candidate) -> str:
    return (">=" if row.at_least else "") + _number(row.highest, 3)


def _interval(row: Candidate) -> str:
    return "-" if row.low is None or row.high is None else f"{row.low:.3g}..{row.high:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _copies(row: Candidate) -> str:
    each = row.figures.get("num_gpus_per_copy")
    return f"{(row.num_gpus or 0) // each} x {each}" if each else "-"


Column = tuple[str, Callable[[Candidate], str]]


def _settings(found: Recommendation) -> list[Column]:
    """The keys that tell candidates apart; one that follows from another to its left is left out."""
    keys = list(dict.fromkeys(key for c in found.candidates for key in c.settings))
    told: list[str] = []
    for key in keys:
        both = [{(str(c.settings.get(k)), str(c.settings.get(key))) for c in found.candidates} for k in told]
        values = {str(c.settings.get(key)) for c in found.candidates}
        alone = [len({str(c.settings.get(k)) for c in found.candidates}) for k in told]
        if (len(values) > 1 or found.interrupted) and not any(
            len(b) == a for b, a in zip(both, alone, strict=True)
        ):
            told.append(key)
    told = told or keys
    last = Counter(key.rpartition(".")[2] for key in told)
    names = {key: key if last[end := key.rpartition(".")[2]] > 1 else SHORT.get(end, end) for key in told}
    return [(names[key], partial(_setting, key)) for key in told]


def _setting(key: str, row: Candidate) -> str:
    text = said_value(row.settings.get(key))
    text = text.rpartition("/")[2] if key == "model" else text
    return text if len(text) <= 40 else text[:37] + "..."


def _figures(found: Recommendation) -> list[Column]:
    cost: list[Column] = [("$/M", lambda c: _number(c.usd_per_million_visible_tokens, 3))]
    if any(c.figures.get("accuracy") is not None for c in found.candidates):
        cost += [("accuracy", lambda c: _accuracy(c)), ("$/correct", lambda c: _number(c.usd_per_correct, 3))]
    return [
        (LOADS[found.search.kind], _load),
        ("90 %", _interval),
        ("copies", _copies),
        ("$/h", lambda c: _number(c.usd_per_hour)),
        *cost,
        ("room", lambda c: _share(c.headroom)),
        *_latencies(found),
        ("KV", lambda c: _share(c.figures.get("kv_peak_fraction"))),
        ("limited by", lambda c: c.limited_by),
    ]


def _accuracy(row: Candidate) -> str:
    found = row.figures.get("accuracy")
    return "-" if found is None else f"{found:.1%}"


def _latencies(found: Recommendation) -> list[Column]:
    """p99 of what has a target, of the whole answer when nothing has."""
    slos = [found.scenario.slo, *(c.slo for c in found.scenario.workload.by_name.values() if c.slo)]
    asked = [name for name in TARGETS if any(getattr(slo, name) is not None for slo in slos)]

    def column(title: str, figure: str, unit: float) -> Column:
        return title, lambda c: "-" if c.figures.get(figure) is None else _number(c.figures[figure] / unit, 3)

    return [column(*TARGETS[name]) for name in asked or ["e2el_ms"]]


def recommend_text(found: Recommendation) -> str:
    """The table of what is feasible, best first, and what stands behind it."""
    feasible = [c for c in found.candidates if c.feasible]
    lines = _table(found, feasible[:SHOWN_ROWS]) if feasible else []
    more = len(feasible) - SHOWN_ROWS
    lines += [f"... and {more} more"] if more > 0 else []
    return "\n".join([*lines, *([""] if lines else []), *_notes(found, feasible)])


def _table(found: Recommendation, rows: list[Candidate]) -> list[str]:
    mark: Column = ("", lambda c: "*" if c.pareto else "")
    settings, figures = [mark, *_settings(found)], _figures(found)
    one = _lines([*settings, *figures], rows)
    if len(max(one, key=len)) <= WIDTH:
        return one
    pairs = zip(_lines(settings, rows), _lines([("", lambda c: ""), *figures], rows), strict=True)
    return [line for pair in pairs for line in pair]


def _lines(columns: list[Column], rows: list[Candidate]) -> list[str]:
    table = [[title for title, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]


def _notes(found: Recommendation, feasible: list[Candidate]) -> list[str]:
    notes = [found.reason]
    if feasible:
        notes[:0] = EXPLAINED
        best = feasible[0]
        notes += [f"run: {command}" for command in best.commands]
        copies = (best.copies or 1) + (found.search.spare if best.headroom is not None else 0)
        spare = (
            f", {found.search.spare} of them spare"
            if found.search.spare and best.headroom is not None
            else ""
        )
        notes += [f"copies: {copies}{spare}"] if copies > 1 else []
        notes += [f"to lift the limit ({best.limited_by}): {best.lift}"] if best.lift else []
        notes += [_day(best.day)] if best.day else []
    ruled = [c for c in found.candidates if not c.feasible]
    for said, some in (
        ("never simulated, the closed form rules them out", [c for c in ruled if c.pruned]),
        ("simulated and not feasible", [c for c in ruled if not c.pruned]),
    ):
        notes += [f"{said}: {len(some)} of {len(found.candidates)} {_ruled_out(some)}"] if some else []
    notes.append(f"simulations: {sum(c.num_simulations for c in found.candidates):,}")
    return notes


def _ruled_out(rows: list[Candidate]) -> str:
    """By what, and one example of each."""
    causes = Counter(c.cause for c in rows)
    counts = ", ".join(f"{number} by {cause}" for cause, number in causes.most_common())
    first = {c.cause: c for c in reversed(rows)}
    told = "; ".join(
        f"{said_of(first[cause].settings)}: {first[cause].why}" for cause, _ in causes.most_common()
    )
    return f"({counts}), for example {told}"


def _day(day: DayPlan) -> str:
    return (
        f"over the day: static {day.static_copies} copies, {day.static_gpu_hours:,.0f} GPU-hours, "
        f"${day.static_usd:,.0f}; by the hour {min(day.copies)} to {max(day.copies)} copies, "
        f"{day.scheduled_gpu_hours:,.0f} GPU-hours, ${day.scheduled_usd:,.0f} ({day.saved:.0%} less)"
    )
