"""What to say when nothing is feasible: which constraint rules out how many candidates, and which comes nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from kvplan.search import Execution, execute
from kvplan.sweeping.figures import Row
from kvplan.sweeping.grid import Point
from kvplan.sweeping.measure_load import Alone
from kvplan.sweeping.space import Search

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
    """The candidate that misses by least: by GPUs, else by its share of requests in time, else by memory."""
    short = [one for one in ruled if one.cause == "gpus"]
    if short:
        best = min(short, key=lambda one: (one.row.get("copies") or 1) * one.row["num_gpus_per_copy"])
        return f"nearest: {said_of(best.point.settings)}: {best.why}"
    slow = [one for one in ruled if one.cause in ("time", "accuracy")]
    tried = list(execute([one.point for one in slow], execution, Alone(search)))
    found = [(point, row) for point, row in tried if not row["error"]]
    if found:
        return _slow(*max(found, key=lambda pair: _in_time(pair[1])))
    best = max(ruled, key=lambda one: one.cause == "memory")
    return f"for example {said_of(best.point.settings)}: {best.why}"


def _in_time(row: Row) -> tuple[float, float]:
    return row["goodput_share"] or 0.0, -(row["p99_e2el_ms"] or inf)


def _slow(point: Point, row: Row) -> str:
    took = [
        f"{name} {row[key] / 1e3:,.4g} s"
        for name, key in (("first visible token", "p99_ttfvt_ms"), ("end to end", "p99_e2el_ms"))
        if row[key] is not None
    ]
    share, accuracy = row["goodput_share"], row["accuracy"]
    met = [f"{share:.1%} of requests in time"] if share is not None else []
    met += [f"accuracy {accuracy:.1%}"] if accuracy is not None else []
    return f"nearest: {said_of(point.settings)}: with next to no load {', '.join([*met, 'p99 ' + ', '.join(took)])}"
