"""Strategies at one price: the knob of each (N, beam width, a budget) solved for, and curves over the knob.

Tokens are expected without an engine (`workload.expectation`); GPU-seconds, dollars and latency are simulated, a few
runs a strategy, on the scenario's own problems. Prices are per problem, right or wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, inf, log
from typing import Any, Literal, NamedTuple

import numpy as np

from kvplan.formulas.quality import Array
from kvplan.formulas.sums import exact_mean
from kvplan.ground.errors import KvplanError
from kvplan.ground.tables import short
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario
from kvplan.search.expected_accuracy import lengths_of
from kvplan.simulation.simulator import solve
from kvplan.simulation.solve_setup import only_models_of, set_up_all
from kvplan.workload.expectation import MAX_DRAWS, PRECISION, Expectation, expect
from kvplan.workload.problems import StrategySpec
from kvplan.workload.strategies.catalog import parameters

Price = Literal["gpu-seconds", "dollars", "tokens", "latency"]
UNITS: dict[Price, str] = {"gpu-seconds": "GPU-s", "dollars": "$", "tokens": "tokens", "latency": "s"}

KNOBS = ("n", "beam_width", "num_simulations", "n_hard", "k", "max_rounds", "num_waits", "thinking_token_budget",
         "rollouts", "group_size", "length_scale")  # fmt: skip
"""Parameters that say how much is spent, the first that a strategy has."""
HIGHEST = {"beam_width": 64, "thinking_token_budget": 131_072, "num_waits": 64, "max_rounds": 64}
"""Values to try at most; 512 of anything else."""
NEAR = 0.02
"""A price this close is the price."""
FAR = 0.25
"""The nearest whole knob may be this far off; further is out of reach."""
MAX_TRIES = 12
AROUND = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Where a curve looks, in multiples of the stated knob."""


class Stand(NamedTuple):
    """One strategy at the price, or as near as it comes."""

    spec: StrategySpec
    price: float
    reason: str
    """Why it cannot be had at the price; "" where it can."""


@dataclass(slots=True)
class Equal:
    """All strategies brought to one price."""

    price: Price
    at: float
    """What a problem takes, in the price's unit."""
    stands: list[Stand]
    at_of: str = ""
    """Whose price that is; "" where it was told."""

    @property
    def reached(self) -> list[StrategySpec]:
        """Strategies that can be had at the price, each once."""
        return list({stand.spec.name: stand.spec for stand in self.stands if not stand.reason}.values())

    def __str__(self) -> str:
        """The price, where each stands, and who cannot be had at it."""
        unit = UNITS[self.price]
        whose = f" ({self.at_of})" if self.at_of else ""
        near = ", ".join(f"{s.spec.name} {short(s.price)}" for s in self.stands if not s.reason)
        far = "; ".join(f"{s.spec.name} {s.reason}" for s in self.stands if s.reason)
        parts = [f": {near}"] * bool(near) + [f"; out of reach: {far}"] * bool(far)
        return f"equal {self.price}: {short(self.at)} {unit} a problem{whose}{''.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "price": self.price,
            "at": self.at,
            "strategies": [
                {
                    "strategy": s.spec.name,
                    "price": s.price,
                    "reached": not s.reason,
                    "reason": s.reason or None,
                }
                for s in self.stands
            ],
        }


def knob_of(spec: StrategySpec) -> str | None:
    """The parameter that says how much the strategy spends; None for one that has none."""
    if spec.router is not None:
        return None
    fields = parameters(spec.strategy).model_fields
    if spec.settings.get("effort") is not None:
        return None  # a name for a budget
    return next((knob for knob in KNOBS if knob in fields), None)


def with_knob(spec: StrategySpec, value: float) -> StrategySpec:
    """The strategy at another value of its knob."""
    knob = knob_of(spec)
    assert knob is not None
    label = f"{_label_without(spec, knob)} {knob}={value:g}" if spec.label else ""
    return spec.model_copy(update={"params": {**spec.params, knob: value}, "label": label})


def _label_without(spec: StrategySpec, knob: str) -> str:
    """A label without the knob's value, which a list of values has put there."""
    return re.sub(rf"( |, ){knob}=[^ ,]+$|\b{knob}=[^ ,]+, ", "", spec.label)


def _without_knob(spec: StrategySpec) -> str:
    """What two specs have alike that differ in their knob alone."""
    knob = knob_of(spec)
    if knob is None:
        return repr(spec)
    rest = {key: value for key, value in spec.settings.items() if key != knob}
    return repr((spec.strategy, spec.model, _label_without(spec, knob), rest))


def with_strategies(scenario: Scenario, specs: Sequence[StrategySpec]) -> Scenario:
    """The scenario with other strategies to compare."""
    assert scenario.problems is not None
    problems = scenario.problems.model_copy(update={"strategies": tuple(specs)})
    return scenario.model_copy(update={"problems": problems})


def equalise(scenario: Scenario, price: Price, at: float | None = None) -> Equal:
    """Solve every strategy's knob so that a problem takes `at`, or what the dearest takes as it is stated.

    A knob is a whole number: its nearest value counts if it is within `FAR` of the price. Of several that differ in
    their knob alone one is brought there, the one that stands nearest. Raises KvplanError for a scenario without
    problems, or a price that is no number above 0.
    """
    if scenario.problems is None:
        raise KvplanError("nothing to bring to one price: the scenario has no `problems` with `strategies`")
    if at is not None and not 0 < at < inf:
        raise KvplanError(f"--at {at:g}: a price must be a number above 0")
    specs = [spec for said in scenario.problems.strategies for spec in said.expanded()]
    asks = [price_of(scenario, price, spec) for spec in specs]
    stated = [ask(None) for ask in asks]
    whose = specs[stated.index(max(stated))].name if at is None else ""
    target = max(stated) if at is None else at
    nearest: dict[str, int] = {}
    for place, spec in enumerate(specs):
        known = nearest.setdefault(_without_knob(spec), place)
        if abs(log(stated[place] / target)) < abs(log(stated[known] / target)):
            nearest[_without_knob(spec)] = place
    return Equal(price, target, [_stand(specs[i], asks[i], target) for i in nearest.values()], whose)


def price_of(scenario: Scenario, price: Price, spec: StrategySpec) -> Callable[[float | None], float]:
    """What a problem takes at a value of the strategy's knob (None: as it is stated)."""
    problems = scenario.problems
    assert problems is not None
    planned = set_up_all(only_models_of(scenario, spec))
    limits = [lengths_of(planned)]

    def ask(value: float | None) -> float:
        one = spec if value is None else with_knob(spec, value)
        if price == "tokens":
            drawn = expect(problems, [one], scenario.folder, precision=100, max_model_len=limits)
            return drawn.strategies[0].tokens
        found = solve(scenario, one, setups=planned)
        if not found.solved:
            return float("inf")
        if price == "latency":
            return exact_mean(np.array([s.finish - s.arrival for s in found.solved])) / TICKS_PER_S
        seconds = found.duration / TICKS_PER_S / len(found.solved)
        return seconds * (
            found.result.num_gpus if price == "gpu-seconds" else found.result.usd_per_hour / 3600
        )

    return ask


@dataclass(slots=True)
class _Tries:
    """A knob's values tried so far."""

    ask: Callable[[float | None], float]
    seen: dict[int, float] = field(default_factory=dict)

    def at(self, value: int) -> float:
        if value not in self.seen:
            self.seen[value] = self.ask(value)
        return self.seen[value]

    def nearest(self, target: float) -> int:
        return min(self.seen, key=lambda v: (abs(log(self.seen[v] / target)), v))


def _stand(spec: StrategySpec, ask: Callable[[float | None], float], target: float) -> Stand:
    """The strategy at the whole knob whose price is nearest: a bracket, narrowed as if price were a power of it."""
    knob = knob_of(spec)
    if knob is None or knob == "length_scale":
        price = ask(None)
        if abs(log(price / target)) <= log(1 + FAR):
            return Stand(spec, price, "")
        return Stand(spec, price, f"takes {short(price)} and has no knob")
    tries, low, high = _Tries(ask), 1, HIGHEST.get(knob, 512)
    value = min(max(int(spec.settings[knob]), low), high)
    while len(tries.seen) < MAX_TRIES:
        price = tries.at(value)
        if abs(log(price / target)) <= NEAR:
            break
        low, high = (value + 1, high) if price < target else (low, value - 1)
        if low > high:
            break
        guess = value * target / price
        value = min(max(_whole(guess, price < target), low), high)
    value = tries.nearest(target)
    price, found = tries.seen[value], spec if value == spec.settings[knob] else with_knob(spec, value)
    if abs(log(price / target)) <= log(1 + FAR):
        return Stand(found, price, "")
    side = "at least" if price > target else "at most"
    return Stand(found, price, f"takes {side} {short(price)}" if value in (1, HIGHEST.get(knob, 512)) else
                 f"takes {short(price)}, the nearest of whole {knob}")  # fmt: skip


def _whole(guess: float, is_rising: bool) -> int:
    return max(1, min(floor(guess) if is_rising else ceil(guess), 1 << 20))


@dataclass(slots=True)
class PriceCurve:
    """One strategy over its knob: places in an expectation, and the price of each, rising."""

    name: str
    places: list[int]
    prices: list[float]

    def right(self, expectation: Expectation, price: float) -> Array | None:
        """Chance on each problem at a price, between two knobs by the logarithm of price; None beyond the curve."""
        if not self.prices[0] <= price <= self.prices[-1]:
            return None
        at = int(np.searchsorted(self.prices, price))
        here = np.array(expectation.drawn[self.places[at]].right)
        if at == 0 or self.prices[at] == price:
            return here
        before = np.array(expectation.drawn[self.places[at - 1]].right)
        share = log(price / self.prices[at - 1]) / log(self.prices[at] / self.prices[at - 1])
        return np.asarray((1 - share) * before + share * here)


@dataclass(slots=True)
class Frontier:
    """Accuracy of each strategy over its price, curve beside curve, on the same problems and luck."""

    price: Price
    expectation: Expectation
    curves: list[PriceCurve]

    def leader(self, price: float) -> str:
        """Who is the most accurate at a price, beyond doubt; else the tie; "" where fewer than two curves are."""
        found = {c.name: r for c in self.curves if (r := c.right(self.expectation, price)) is not None}
        if len(found) < 2:
            return ""
        population = self.expectation.population
        first = max(sorted(found), key=lambda name: found[name].mean())
        tied = [first]
        for name in sorted(found.keys() - {first}):
            if population.apart(population.mean(found[first] - found[name])).low <= 0:
                tied.append(name)
        return f"{first} leads" if len(tied) == 1 else f"tie of {' and '.join(sorted(tied))}"

    def spans(self, num_prices: int = 25) -> list[tuple[float, float, str]]:
        """From what price to what price who leads, over where at least two curves are."""
        ends = sorted(p for curve in self.curves for p in (curve.prices[0], curve.prices[-1]))
        low, high = ends[0], ends[-1]
        found: list[tuple[float, float, str]] = []
        for price in np.geomspace(low, high, num_prices).clip(low, high).tolist():
            said = self.leader(price)
            if found and found[-1][2] == said:
                found[-1] = (found[-1][0], price, said)
            else:
                found.append((price, price, said))
        return [span for span in found if span[2]]

    def __str__(self) -> str:
        """Who leads at which price."""
        unit = UNITS[self.price]
        spans = "; ".join(
            f"{said} {f'at {short(low)}' if low == high else f'from {short(low)} to {short(high)}'} {unit} a problem"
            for low, high, said in self.spans()
        )
        return f"frontier: {spans or 'no two strategies can be had at one price'}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: each curve's points, and who leads where."""
        told = self.expectation.strategies
        return {
            "price": self.price,
            "curves": [
                {
                    "strategy": curve.name,
                    "points": [
                        {"strategy": told[i].strategy, "price": price, "accuracy": told[i].accuracy,
                         "accuracy_low": told[i].interval.low, "accuracy_high": told[i].interval.high}
                        for i, price in zip(curve.places, curve.prices, strict=True)
                    ],
                }
                for curve in self.curves
            ],
            "leaders": [{"from": low, "to": high, "text": said} for low, high, said in self.spans()],
        }  # fmt: skip


def frontier(
    scenario: Scenario, price: Price = "tokens", *, precision: float = PRECISION, max_draws: int = MAX_DRAWS
) -> Frontier:
    """Each strategy at a quarter to four times its knob: what it takes and how often it is right."""
    problems = scenario.problems
    if problems is None:
        raise KvplanError("no frontier: the scenario has no `problems` with `strategies`")
    specs: list[StrategySpec] = []
    curves: dict[str, list[int]] = {}
    for spec in (one for said in problems.strategies for one in said.expanded()):
        rest = {key: value for key, value in spec.params.items() if key != knob_of(spec)}
        name = spec.label or spec.model_copy(update={"params": rest}).name
        for one in _around(spec):
            if all(one.name != specs[i].name for i in curves.setdefault(name, [])):
                curves[name].append(len(specs))
                specs.append(one)
    limits = []
    for spec in specs:
        planned = set_up_all(only_models_of(scenario, spec))
        limits.append(lengths_of(planned))
    found = expect(
        problems, specs, scenario.folder, precision=precision, max_draws=max_draws, max_model_len=limits
    )
    told = found.strategies
    asked = [
        e.tokens if price == "tokens" else price_of(scenario, price, s)(None)
        for e, s in zip(told, specs, strict=True)
    ]
    made = []
    for name, places in curves.items():
        order = sorted(places, key=lambda i: asked[i])
        made.append(PriceCurve(name, order, [asked[i] for i in order]))
    return Frontier(price, found, made)


def around(scenario: Scenario) -> Scenario:
    """The scenario with each strategy at a quarter to four times its knob: what to choose an allocation from."""
    if scenario.problems is None:
        raise KvplanError("nothing to allocate: the scenario has no `problems` with `strategies`")
    said = [one for said in scenario.problems.strategies for one in said.expanded()]
    found = {one.name: one for spec in said for one in _around(spec)}
    return with_strategies(scenario, list(found.values()))


def _around(spec: StrategySpec) -> list[StrategySpec]:
    knob = knob_of(spec)
    if knob is None or knob == "length_scale" or spec.settings[knob] > 1 << 20:
        return [spec]
    stated, found = max(int(spec.settings[knob]), 1), {}
    for factor in AROUND:
        value = min(max(round(stated * factor), 1), HIGHEST.get(knob, 512))
        found[value] = spec if value == spec.settings[knob] else with_knob(spec, value)
    return list(found.values())
