"""What to say when nothing is feasible: which constraint rules out how many candidates, and which comes nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from kvplan.scenario.space import Search
from kvplan.search.candidates import Alone, Measure
from kvplan.search.grid import Point
from kvplan.search.point_row import Row
from kvplan.search.sweeping import Execution, execute

MOST_COPIES = 100_000
"""Looked at when nobody counts them."""
WORDS = {
    "memory": "do not fit in memory",
    "refused": "are refused",
    "gpus": "need more GPUs than allowed",
    "time": "are too slow",
    "accuracy": "are wrong too often",
}


class Ruled(NamedTuple):
    """A candidate and what rules it out."""

    point: Point
    cause: str
    why: str
    row: Row


def said_of(settings: dict[str, Any]) -> str:
    """A combination in words."""
    return ", ".join(f"{key.rpartition('.')[2]} {said_value(value)}" for key, value in settings.items())


def said_value(value: Any) -> str:
    """A value as a table shows it.

    >>> said_value([{"strategy": "best_of_n", "n": 4}]), said_value(True)
    ('best_of_n n=4', 'True')
    """
    if isinstance(value, list) and len(value) == 1:
        return said_value(value[0])
    if isinstance(value, dict) and "strategy" in value:
        rest = [f"{key}={one}" for key, one in value.items() if key != "strategy"]
        return " ".join([str(value["strategy"]), *rest])
    return str(value)


def nothing_feasible(ruled: Sequence[Ruled], execution: Execution, search: Search) -> str:
    """One line: the constraints and the nearest candidate."""
    counts = Counter(one.cause for one in ruled).most_common()
    said = ", ".join(f"{number} {WORDS[cause]}" for cause, number in counts)
    return f"nothing is feasible: of {len(ruled)} candidates {said}; {_nearest(ruled, execution, search)}"


def _nearest(ruled: Sequence[Ruled], execution: Execution, search: Search) -> str:
    """The candidate that misses by least: by GPUs, measured without their limit; else by time; else by memory."""
    short = [one.point for one in ruled if one.cause == "gpus"]
    carrying = _with_more(short, execution, search) if short else []
    if carrying:
        gpus, usd, point = min(carrying, key=lambda each: each[:2])
        limit = f"{search.max_gpus} GPUs" if search.max_gpus else f"{search.max_copies} copies"
        return f"nearest: {said_of(point.settings)}: {gpus:,} GPUs (${usd:,.2f} an hour) would do, {limit} are allowed"
    slow = [one for one in ruled if one.cause in ("time", "accuracy")]
    tried = list(execute([one.point for one in slow], execution, Alone(search)))
    found = [(point, row) for point, row in tried if not row["error"]]
    if found:
        return _slow(*max(found, key=lambda pair: _in_time(pair[1])))
    best = max(ruled, key=lambda one: one.cause == "memory")
    return f"for example {said_of(best.point.settings)}: {best.why}"


def _with_more(
    points: Sequence[Point], execution: Execution, search: Search
) -> list[tuple[int, float, Point]]:
    """GPUs and dollars an hour that candidates need when nobody counts GPUs; of those that then do."""
    free = search.model_copy(update={"max_gpus": None, "max_copies": MOST_COPIES})
    found = []
    for point, row in execute(points, execution, Measure(free)):
        if not row["error"]:
            copies = row["copies"] + search.spare
            found.append((copies * row["num_gpus_per_copy"], copies * row["usd_per_hour_per_copy"], point))
    return found


def _in_time(row: Row) -> tuple[float, float]:
    return row["goodput_share"] or 0.0, -(row["p99_e2el_ms"] or inf)


LATENCIES = (
    ("ttft_ms", "first token", "p99_ttft_ms"),
    ("ttfvt_ms", "first visible token", "p99_ttfvt_ms"),
    ("tpot_ms", "per token", "p99_tpot_ms"),
    ("e2el_ms", "end to end", "p99_e2el_ms"),
)
"""Target, in words, figure."""


def _slow(point: Point, row: Row) -> str:
    assert point.scenario is not None
    slos = [point.scenario.slo, *(c.slo for c in point.scenario.workload.by_name.values() if c.slo)]
    asked = {name for name, *_ in LATENCIES if any(getattr(slo, name) is not None for slo in slos)} or {
        "e2el_ms"
    }
    took = [
        f"{name} {row[key] / 1e3:,.4g} s"
        for target, name, key in LATENCIES
        if target in asked and row[key] is not None
    ]
    share, accuracy = row["goodput_share"], row["accuracy"]
    met = [f"{share:.1%} of requests in time"] if share is not None else []
    met += [f"accuracy {accuracy:.1%}"] if accuracy is not None else []
    return f"nearest: {said_of(point.settings)}: with next to no load {', '.join([*met, 'p99 ' + ', '.join(took)])}"
