"""What to say when nothing is feasible: which constraint rules out how many candidates, and which comes nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from kvplan.ground.tables import counted
from kvplan.scenario.schema import Scenario
from kvplan.scenario.space import MOST_COPIES, Search
from kvplan.search.candidates import Alone, Measure, allowed
from kvplan.search.execution import Execution, Task, run_scenarios
from kvplan.search.grid import settings_text
from kvplan.search.point_row import LATENCIES, Row, accuracy_text, asked_latencies
from kvplan.search.recommendation import Candidate

WORDS = {
    "memory": "do not fit in memory",
    "refused": "are refused",
    "gpus": "need more GPUs or dollars than allowed",
    "time": "are too slow",
    "accuracy": "are wrong too often",
}


def nothing_feasible(ruled: Sequence[Candidate], execution: Execution, search: Search) -> str:
    """One line: the constraints and the nearest candidate."""
    counts = Counter(one.cause for one in ruled).most_common()
    said = ", ".join(f"{number} {WORDS[cause]}" for cause, number in counts)
    return f"nothing is feasible: of {counted(len(ruled), 'candidate')} {said}; {_nearest(ruled, execution, search)}"


def _nearest(ruled: Sequence[Candidate], execution: Execution, search: Search) -> str:
    """The candidate that misses by least: by GPUs, measured without their limit; else by time; else by memory."""
    free = search.model_copy(
        update={"max_gpus": None, "max_dollars_per_hour": None, "max_copies": MOST_COPIES}
    )
    short = [one for one in ruled if one.cause == "gpus"]
    carrying = [(_bought(row, search), one) for one, row in _run(short, execution, Measure(free))]
    if carrying:
        (gpus, usd), one = min(carrying, key=lambda each: each[0])
        enough = f"{counted(gpus, 'GPU')} (${usd:,.2f} an hour) would do, {allowed(search)} allowed"
        return f"nearest: {settings_text(one.settings)}: {enough}"
    slow = [one for one in ruled if one.cause in ("time", "accuracy")]
    tried = _run(slow, execution, Alone(search))
    if tried:
        one, row = max(
            tried, key=lambda pair: (pair[1]["goodput_share"] or 0.0, -(pair[1]["p99_e2el_ms"] or inf))
        )
        assert one.scenario is not None
        return f"nearest: {settings_text(one.settings)}: with next to no load {_slow(one.scenario, row)}"
    best = max(ruled, key=lambda one: one.cause == "memory")
    return f"for example {settings_text(best.settings)}: {best.why}"


def _run(candidates: Sequence[Candidate], execution: Execution, task: Task) -> list[tuple[Candidate, Row]]:
    """Candidates with their rows, where the task succeeds."""
    rows = run_scenarios([one.scenario for one in candidates if one.scenario], execution, task)
    return [(one, row) for one, row in zip(candidates, rows, strict=True) if not row["error"]]


def _bought(row: Row, search: Search) -> tuple[int, float]:
    """GPUs, and dollars an hour, of all copies and spares."""
    copies = row["copies"] + search.spare
    return copies * row["num_gpus_per_copy"], copies * row["usd_per_hour_per_copy"]


def _slow(scenario: Scenario, row: Row) -> str:
    """Who is in time, how often right, and the latencies that have targets."""
    share = row["goodput_share"]
    met = [f"{share:.1%} of requests in time"] if share is not None else []
    met += [f"accuracy {accuracy_text(row)}"] if row["accuracy"] is not None else []
    p99 = {LATENCIES[name]: row[f"p99_{name}"] for name in asked_latencies(scenario)}
    took = [f"{words} {_time(ms)}" for words, ms in p99.items() if ms is not None]
    return ", ".join([*met, "p99 " + ", ".join(took)])


def _time(ms: float) -> str:
    """Milliseconds below a second, else seconds.

    >>> _time(22.013), _time(1503.2)
    ('22 ms', '1.503 s')
    """
    return f"{ms:,.3g} ms" if ms < 1e3 else f"{ms / 1e3:,.4g} s"
