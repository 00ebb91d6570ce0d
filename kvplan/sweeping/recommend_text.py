"""A recommendation as text: the ranked table, what it means, how to start the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from kvplan.recommend import Candidate, Recommendation
from kvplan.sweeping.fleet import DayPlan
from kvplan.sweeping.nearest import said_value

SHOWN_ROWS = 12
LOADS = {"rate": "highest/s", "users": "most users", "batch": "by deadline"}


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:,.{digits}g}" if abs(value) < 1e5 else f"{value:,.0f}"


def _interval(row: Candidate) -> str:
    return "-" if row.low is None or row.high is None else f"{row.low:.3g}..{row.high:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _seconds(row: Candidate, name: str) -> str:
    value = row.figures.get(name)
    return "-" if value is None else f"{value / 1e3:,.3g}"


Column = tuple[str, Callable[[Candidate], str]]


def _columns(found: Recommendation) -> list[Column]:
    keys = list(dict.fromkeys(key for c in found.candidates for key in c.settings))
    short = Counter(key.rpartition(".")[2] for key in keys)
    names = {key: key if short[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys}
    settings: list[Column] = [(names[key], partial(_setting, key)) for key in keys]
    quality: list[Column] = []
    if found.scenario.problems is not None:
        quality = [
            (
                "accuracy",
                lambda c: "-" if c.figures.get("accuracy") is None else f"{c.figures['accuracy']:.1%}",
            ),
            ("$/correct", lambda c: _number(c.usd_per_correct, 3)),
        ]
    return [
        ("", lambda c: "*" if c.pareto else ""),
        *settings,
        (LOADS[found.search.kind], lambda c: _number(c.highest, 3)),
        ("90 %", _interval),
        ("copies", lambda c: _number(c.copies)),
        ("GPUs", lambda c: _number(c.num_gpus)),
        ("$/h", lambda c: _number(c.usd_per_hour)),
        ("$/M visible", lambda c: _number(c.usd_per_million_visible_tokens, 3)),
        *quality,
        ("headroom", lambda c: _share(c.headroom)),
        ("visible p99 s", lambda c: _seconds(c, "p99_ttfvt_ms")),
        ("e2e p99 s", lambda c: _seconds(c, "p99_e2el_ms")),
        ("KV peak", lambda c: _share(c.figures.get("kv_peak_fraction"))),
        ("limited by", lambda c: c.limited_by),
    ]


def _setting(key: str, row: Candidate) -> str:
    text = said_value(row.settings.get(key))
    return text if len(text) <= 40 else text[:37] + "..."


def recommend_text(found: Recommendation) -> str:
    """The table of what is feasible, best first, and what stands behind it."""
    feasible = [c for c in found.candidates if c.feasible]
    lines = _table(found, feasible[:SHOWN_ROWS]) if feasible else []
    more = len(feasible) - SHOWN_ROWS
    lines += [f"... and {more} more"] if more > 0 else []
    return "\n".join([*lines, *([""] if lines else []), *_notes(found, feasible)])


def _table(found: Recommendation, rows: list[Candidate]) -> list[str]:
    columns = _columns(found)
    table = [[title for title, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]


def _notes(found: Recommendation, feasible: list[Candidate]) -> list[str]:
    notes = [found.reason]
    if feasible:
        notes.insert(0, "* = no other candidate is as cheap, as fast (p99) and as accurate")
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
    causes = Counter(c.cause for c in found.candidates if c.pruned)
    if causes:
        said = ", ".join(f"{number} by {cause}" for cause, number in causes.most_common())
        notes.append(
            f"never simulated, the closed form rules them out: {found.num_pruned} of {len(found.candidates)} ({said})"
        )
    notes.append(f"simulations: {sum(c.num_simulations for c in found.candidates):,}")
    return notes


def _day(day: DayPlan) -> str:
    return (
        f"over the day: static {day.static_copies} copies, {day.static_gpu_hours:,.0f} GPU-hours, "
        f"${day.static_usd:,.0f}; by the hour {min(day.copies)} to {max(day.copies)} copies, "
        f"{day.scheduled_gpu_hours:,.0f} GPU-hours, ${day.scheduled_usd:,.0f} ({day.saved:.0%} less)"
    )
