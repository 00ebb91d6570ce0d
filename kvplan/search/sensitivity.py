"""What would turn a choice: which stated value, how far from where it stands, and to whom.

Verifier rates, their correlation, the spread of lengths and what revisions mend are moved one at a time, and strategies
expected anew on the same problems and luck, to where another is surely the most accurate; in between by bisection. The
more branches they take, the fewer the problems: intervals are paired, so a lead shows on few, and which would is said.
Times and prices move a choice in proportion; load is simulated, where answers have a limit and arrive by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, NamedTuple

from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario
from kvplan.search.strategy_row import StrategyRow
from kvplan.simulation.deploy import Setup
from kvplan.simulation.simulator import solve
from kvplan.workload.expectation import AccuracyDifference, Expectation, expect
from kvplan.workload.population import MOST
from kvplan.workload.problems import Problems, StrategySpec

SPANS: dict[str, tuple[float, float]] = {
    "verifier.true_positive_rate": (0.5, 0.999),
    "verifier.true_negative_rate": (0.5, 0.999),
    "verifier.correlation": (0.0, 0.95),
    "quality.sigma_within": (0.0, 1.2),
    "quality.revision_gain": (0.0, 0.6),
}
"""Key of `problems` -> from where to where it is moved."""
BUDGET = 1_000_000
"""Branches to draw for all of it, or as many as the accuracies took, if that is more."""
FOR_ENDS = 0.6
"""Part of them for both ends of every value; the rest finds where it turns."""
STEPS = 4
"""Halvings between where nothing turns and where something does, at most."""
SIZES = (128, 64, 32, 16, 8)
"""Problems at each value looked at: the first that the draws are enough for."""
LOAD_STEPS = 5
"""Halvings of the load between what is stated and `MOST_LOAD`."""
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
    """Where another is chosen, beyond doubt; None: nowhere between `low` and `high`, or nobody looked."""
    to: str
    """Who is; "" where nothing turns."""
    low: float
    high: float
    looked: bool = True
    even: float | None = None
    """Where that one is as accurate as the choice, as far as so few problems say; None where it is from the start."""
    points: float | None = None
    """Where nothing turns: a lead of so many points at an end would have been seen."""
    num_problems: int = 0
    """That were expected at each value."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None for an end that is open."""
        return {k: None if v == inf else v for k, v in self._asdict().items()}


class ValueLook(NamedTuple):
    """All strategies at one value."""

    value: float
    accuracies: tuple[float, ...]
    ahead: tuple[AccuracyDifference, ...]
    """Each other less the chosen one."""

    @property
    def leader(self) -> str:
        """Who is surely more accurate than the chosen strategy; "" for nobody."""
        over = [d for d in self.ahead if d.low > 0]
        return max(over, key=lambda d: (d.points, d.a)).a if over else ""

    @property
    def unseen(self) -> float:
        """The lead in points that the nearest to it could have without being surely ahead."""
        nearest = max(self.ahead, key=lambda d: d.low)
        return nearest.points - nearest.low


@dataclass(slots=True)
class ValueLooks:
    """Looks at a scenario's strategies, on the same problems and luck at every value, within a number of branches."""

    scenario: Scenario
    expectation: Expectation
    places: Sequence[int]
    """Of the strategies in the expectation, the chosen one first."""
    left: float
    """Branches that may still be drawn."""
    size: int = 0

    @property
    def cost(self) -> float:
        """Branches that one look takes, about."""
        drawn = sum(self.expectation.drawn[i].num_branches for i in self.places)
        return drawn / self.expectation.num_rounds / self.expectation.population.round_size * self.size

    def at(self, problems: Problems, value: float) -> ValueLook:
        """One look."""
        specs = [self.expectation.drawn[i].spec for i in self.places]
        limits = [self.expectation.drawn[i].max_model_len for i in self.places]
        found = expect(
            problems, specs, self.scenario.folder, precision=100, over=self.expectation.over, max_model_len=limits,
            min_rounds=max(1, self.size // MOST), round_size=min(self.size, MOST),
        )  # fmt: skip
        self.left -= sum(one.num_branches for one in found.drawn)
        ahead = tuple(found.difference(i, 0) for i in range(1, len(specs)))
        return ValueLook(value, tuple(one.accuracy for one in found.strategies), ahead)


def accuracy_turns(
    scenario: Scenario, expectation: Expectation, fit: Sequence[int], chosen: int, budget: int = BUDGET
) -> list[Turn]:
    """Which values of the quality model make another of the strategies `fit` surely more accurate than the `chosen`.

    Where strategies take many branches, on fewer problems: what that leaves open is `Turn.points`. A value that no
    accuracy depends on is left out, where there are problems enough to tell.
    """
    problems = scenario.problems
    assert problems is not None
    places = [chosen, *(i for i in fit if i != chosen)]
    spent = sum(expectation.drawn[i].num_branches for i in places)
    looks = ValueLooks(scenario, expectation, places, max(budget, spent))
    keys = {key: value for key in SPANS if (value := _stated(problems, key)) is not None}
    keys = {key: value for key, value in keys.items() if SPANS[key][0] <= value <= SPANS[key][1]}
    if len(places) < 2 or not keys:
        return []
    for looks.size in SIZES:
        if (1 + 2 * len(keys)) * looks.cost <= FOR_ENDS * looks.left:
            break
    here, ends = looks.at(problems, 0.0), {}
    for key, stated in keys.items():
        if looks.left >= 2 * looks.cost:
            ends[key] = [looks.at(_moved(problems, key, end), end) for end in SPANS[key] if end != stated]
    turns = []
    for key, stated in keys.items():
        if key not in ends:
            turns.append(Turn(key, stated, None, "", *SPANS[key], looked=False))
        elif looks.size < SIZES[0] or any(end.accuracies != here.accuracies for end in ends[key]):
            turns.append(_turn(looks, key, here._replace(value=stated), ends[key]))
    return turns


def _turn(looks: ValueLooks, key: str, here: ValueLook, ends: Sequence[ValueLook]) -> Turn:
    """Where one value turns the choice, nearest to what is stated, between there and the ends looked at."""
    problems = looks.scenario.problems
    assert problems is not None
    found: list[tuple[float, str, float | None]] = []
    nearest = inf
    for end in ends:
        way = [here, end]
        while end.leader and len(way) < 2 + STEPS and looks.left >= looks.cost:
            before, after = _bracket(way)
            if abs(before.value - here.value) >= nearest:
                break  # the other end turns sooner
            middle = (before.value + after.value) / 2
            way.append(looks.at(_moved(problems, key, middle), middle))
        if end.leader:
            turned = _bracket(way)[1]
            nearest = min(nearest, abs(turned.value - here.value))
            found.append((turned.value, turned.leader, _even(way, turned.leader)))
    if not found:
        unseen = max(end.unseen for end in ends)
        return Turn(key, here.value, None, "", *SPANS[key], points=unseen, num_problems=looks.size)
    at, to, even = min(found, key=lambda one: abs(one[0] - here.value))
    return Turn(key, here.value, at, to, *SPANS[key], even=even, num_problems=looks.size)


def _bracket(way: Sequence[ValueLook]) -> tuple[ValueLook, ValueLook]:
    """The last look before somebody leads, and the first where somebody does; the first of `way` is what is stated."""
    ordered = sorted(way, key=lambda look: abs(look.value - way[0].value))
    first = next(i for i, look in enumerate(ordered) if look.leader and i)
    return ordered[first - 1], ordered[first]


def _even(way: Sequence[ValueLook], name: str) -> float | None:
    """Where a strategy draws level with the chosen one, on a line between two looks; None: it was from the start."""
    ordered = sorted(way, key=lambda look: abs(look.value - way[0].value))
    ahead = [next(d.points for d in look.ahead if d.a == name) for look in ordered]
    if ahead[0] >= 0:
        return None
    after = next(i for i, points in enumerate(ahead) if points >= 0)
    low, high = ahead[after - 1], ahead[after]
    share = -low / (high - low)
    return ordered[after - 1].value + share * (ordered[after].value - ordered[after - 1].value)


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
    for _ in range(LOAD_STEPS):
        middle = sqrt(low * high)
        low, high = (low, middle) if misses(middle) else (middle, high)
    return [Turn("load", 1.0, high, f"no longer {spec.name}", 1.0, MOST_LOAD)]


def turns_text(turns: Sequence[Turn]) -> str:
    """One line: what turns the choice and where, what does not and how sure, what nobody looked at."""
    moved = [_moved_text(turn) for turn in turns if turn.at is not None]
    unmoved = [turn for turn in turns if turn.at is None and turn.looked]
    still = [f"{turn.key.rpartition('.')[2]} from {turn.low:g} to {turn.high:g}" for turn in unmoved]
    unseen = [turn.key.rpartition(".")[2] for turn in turns if not turn.looked]
    parts = [f"turned by {', '.join(moved)}"] if moved else []
    if still:
        least = max((turn.points for turn in unmoved if turn.points is not None), default=0.0)
        number = max(turn.num_problems for turn in unmoved)
        sure = f" (on {number} problems, where a lead of {least:.1f} points shows)" if least >= 0.05 else ""
        parts.append(f"not turned by {', '.join(still)}{sure}")
    if not parts:
        return f"whether {' or '.join(unseen)} would turn the choice was not looked at" if unseen else ""
    parts += [f"not looked at: {', '.join(unseen)}"] if unseen else []
    return "the choice is " + "; ".join(parts)


def _moved_text(turn: Turn) -> str:
    at = f"{turn.at:.3g}"
    if turn.key in TIMES:
        return f"{TIMES[turn.key].format(at)} ({turn.to})"
    even = "" if turn.even is None else f"; as accurate from {turn.even:.3g}"
    return f"{turn.key.rpartition('.')[2]} of {at}, stated {turn.stated:g} ({turn.to}{even})"
