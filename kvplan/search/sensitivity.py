"""What would turn a choice: which stated value, how far from where it stands, and to whom.

Verifier rates, their correlation, the spread of lengths and what revisions mend are moved one at a time, and strategies
expected anew on the same problems and luck, to where another is surely the most accurate; in between by bisection.
Times and prices move a choice in proportion; load is simulated, where answers have a limit and arrive by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, sqrt
from typing import Any, NamedTuple

from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario
from kvplan.search.strategy_row import StrategyRow
from kvplan.simulation.deploy import Setup
from kvplan.simulation.simulator import solve
from kvplan.workload.expectation import Expectation, expect
from kvplan.workload.problems import Problems, StrategySpec

SPANS: dict[str, tuple[float, float]] = {
    "verifier.true_positive_rate": (0.5, 0.999),
    "verifier.true_negative_rate": (0.5, 0.999),
    "verifier.correlation": (0.0, 0.95),
    "quality.sigma_within": (0.0, 1.2),
    "quality.revision_gain": (0.0, 0.6),
}
"""Key of `problems` -> from where to where it is moved."""
BUDGET = 200_000
"""Branches to draw for all of it."""
STEPS = 5
"""Halvings between where nothing turns and where something does."""
ROUNDS = 2
"""Of the population, at each value looked at."""
MOST_LOAD = 8.0
"""Times the stated load to look at."""


TIMES = {
    "step_time": "steps {} times as long",
    "price": "GPUs {} times as dear",
    "load": "{} times the arrivals",
}
"""Values that are moved in multiples of what is stated."""


class Turn(NamedTuple):
    """One stated value, and where the choice turns."""

    key: str
    stated: float
    at: float | None
    """Where another is chosen; None: nowhere between `low` and `high`, or nobody looked."""
    to: str
    """Who is; "" where nothing turns."""
    low: float
    high: float
    looked: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None for an end that is open."""
        return {k: None if v == inf else v for k, v in self._asdict().items()}


def accuracy_turns(
    scenario: Scenario, expectation: Expectation, fit: Sequence[int], chosen: int, budget: int = BUDGET
) -> list[Turn]:
    """Which values of the quality model make another of the strategies `fit` surely more accurate than the `chosen`."""
    problems = scenario.problems
    assert problems is not None
    places = [chosen, *(i for i in fit if i != chosen)]
    specs = [expectation.drawn[i].spec for i in places]
    limits = [expectation.drawn[i].max_model_len for i in places]
    each = sum(expectation.drawn[i].num_branches for i in places) / expectation.num_rounds * ROUNDS
    left = budget

    def leader(told: Problems) -> Leader:
        found = expect(told, specs, scenario.folder, precision=100, over=expectation.over,
                       max_model_len=limits, min_rounds=ROUNDS)  # fmt: skip
        beside = [found.difference(i, 0) for i in range(1, len(specs))]
        over = [d for d in beside if d.low > 0]
        name = max(over, key=lambda d: (d.points, d.a)).a if over else ""
        return Leader(name, tuple(one.accuracy for one in found.strategies))

    if len(specs) < 2 or left < each:
        return []
    here, turns = leader(problems).accuracies, []
    left -= round(each)
    for key, (low, high) in SPANS.items():
        stated = _stated(problems, key)
        if stated is None or not min(low, stated) <= stated <= max(high, stated):
            continue
        if left < 2 * each:
            turns.append(Turn(key, stated, None, "", low, high, looked=False))
            continue
        found = [_turn(problems, key, stated, end, leader) for end in (low, high) if end != stated]
        left -= round(each * sum(1 + STEPS if one.name else 1 for one, _ in found))
        if all(one.accuracies == here for one, _ in found):
            continue  # nobody's accuracy depends on it
        near = [(one.name, at) for one, at in found if one.name]
        to, at = min(near, key=lambda one: abs(one[1] - stated)) if near else ("", None)
        turns.append(Turn(key, stated, at, to, low, high))
    return turns


class Leader(NamedTuple):
    """Who is surely more accurate than the chosen strategy."""

    name: str
    """ "" for nobody."""
    accuracies: tuple[float, ...]


def _turn(
    problems: Problems, key: str, stated: float, end: float, leader: Callable[[Problems], Leader]
) -> tuple[Leader, float]:
    """Who leads at an end, and from where on somebody does."""
    last = leader(_moved(problems, key, end))
    here, there = stated, end
    for _ in range(STEPS if last.name else 0):
        middle = (here + there) / 2
        found = leader(_moved(problems, key, middle))
        here, there, last = (here, middle, found) if found.name else (middle, there, last)
    return last, there


def _stated(problems: Problems, key: str) -> float | None:
    part, name = key.split(".")
    if part == "quality" and problems.pass_table is not None:
        return None
    return float(getattr(getattr(problems, part), name))


def _moved(problems: Problems, key: str, value: float) -> Problems:
    part, name = key.split(".")
    return problems.model_copy(update={part: getattr(problems, part).model_copy(update={name: value})})


def time_turns(scenario: Scenario, rows: Sequence[StrategyRow], chosen: int) -> list[Turn]:
    """How many times as long steps must take for the limit on latency to admit a better one, or no longer this one."""
    limit = scenario.slo.e2el_ms / 1000 if scenario.slo.e2el_ms else inf
    if limit == inf:
        return []
    factor = limit / rows[chosen].latency_p99_s
    turns = [Turn("step_time", 1.0, factor, "no longer " + rows[chosen].strategy, 0.0, inf)]
    better = [
        r
        for r in rows
        if r.latency_p99_s > limit and (r.accuracy_low or 0) > (rows[chosen].accuracy_high or 1)
    ]
    if better:
        nearest = min(better, key=lambda r: r.latency_p99_s)
        turns.append(Turn("step_time", 1.0, limit / nearest.latency_p99_s, nearest.strategy, 0.0, inf))
    return turns


def price_turns(rows: Sequence[StrategyRow], tied: Sequence[int], chosen: int) -> list[Turn]:
    """Of a tie that cost decides: how many times as dear the chosen one's GPUs must be for another to be cheaper."""
    row = rows[chosen]
    others = [rows[i] for i in tied if i != chosen and rows[i].usd_per_hour != row.usd_per_hour]
    priced = [r for r in others if r.usd_per_correct and row.usd_per_correct]
    if not priced:
        return []
    nearest = min(priced, key=lambda r: r.usd_per_correct or inf)
    factor = (nearest.usd_per_correct or inf) / (row.usd_per_correct or inf)
    return [Turn("price", 1.0, factor, nearest.strategy, 0.0, inf)]


def load_turns(scenario: Scenario, spec: StrategySpec, setups: Mapping[str, Setup]) -> list[Turn]:
    """At how many times the stated rate of arrivals the choice misses its limit; nothing without either."""
    problems = scenario.problems
    assert problems is not None
    limit, rate = scenario.slo.e2el_ms, getattr(problems.arrivals, "rate", None)
    if not limit or rate is None:
        return []

    def misses(times: float) -> bool:
        arrivals = problems.arrivals.model_copy(update={"rate": rate * times})
        told = scenario.model_copy(update={"problems": problems.model_copy(update={"arrivals": arrivals})})
        solved = solve(told, spec, setups=dict(setups)).solved
        took = sorted((s.finish - s.arrival) / TICKS_PER_S for s in solved)
        return not took or took[min(int(0.99 * len(took)), len(took) - 1)] * 1000 > limit

    if not misses(MOST_LOAD):
        return [Turn("load", 1.0, None, "", 1.0, MOST_LOAD)]
    low, high = 1.0, MOST_LOAD
    for _ in range(STEPS):
        middle = sqrt(low * high)
        low, high = (low, middle) if misses(middle) else (middle, high)
    return [Turn("load", 1.0, high, f"no longer {spec.name}", 1.0, MOST_LOAD)]


def turns_text(turns: Sequence[Turn]) -> str:
    """One line: what turns the choice and where, what does not, what nobody looked at."""
    moved = [_moved_text(turn) for turn in turns if turn.at is not None]
    still = [
        f"{turn.key.rpartition('.')[2]} from {turn.low:g} to {turn.high:g}"
        for turn in turns
        if turn.at is None and turn.looked
    ]
    unseen = [turn.key.rpartition(".")[2] for turn in turns if not turn.looked]
    parts = [f"turned by {', '.join(moved)}"] if moved else []
    parts += [f"not turned by {', '.join(still)}"] if still else []
    parts += [f"not looked at: {', '.join(unseen)}"] if unseen else []
    return "the choice is " + "; ".join(parts) if parts else ""


def _moved_text(turn: Turn) -> str:
    at = f"{turn.at:.3g}"
    if turn.key in TIMES:
        return f"{TIMES[turn.key].format(at)} ({turn.to})"
    return f"{turn.key.rpartition('.')[2]} of {at}, stated {turn.stated:g} ({turn.to})"
