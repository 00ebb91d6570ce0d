"""Which of several strategies: the most accurate within the limits, if its interval says so; else a tie, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf, sqrt

from kvplan.formulas.intervals import Interval, student_t
from kvplan.ground.errors import DoesNotFit
from kvplan.ground.tables import counted
from kvplan.scenario.schema import Scenario
from kvplan.search.choices import Choice, best_within
from kvplan.search.sampling import Sampling, cost_ratio
from kvplan.search.strategy_row import StrategyRow
from kvplan.workload.expectation import AccuracyDifference, Expectation

TAIL_PROBLEMS = 368
"""Independent problems from which on a 99th percentile has an upper bound (0.99^368 < 2.5 %)."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What to run, and why."""

    name: str
    """A strategy; "" where none keeps the limits."""
    reason: str
    place: int = -1
    """Of the strategy among the rows."""
    tied: tuple[int, ...] = ()
    """Places of all that cannot be told from the most accurate, it included."""
    fit: tuple[int, ...] = ()
    """Places of all that keep the limits."""
    ties: tuple[AccuracyDifference, ...] = ()
    """The most accurate and those that cannot be told from it; none of them is the best."""

    @property
    def best(self) -> str | None:
        """The strategy that is the most accurate beyond doubt; None for a tie."""
        return self.name if self.name and not self.ties else None


@dataclass(slots=True)
class Field:
    """All that a choice looks at. The rows of all three stand in one order."""

    scenario: Scenario
    expectation: Expectation
    samples: Sequence[Sampling]
    max_usd_per_hour: float = inf

    def choose(self, rows: Sequence[StrategyRow]) -> Chosen:
        """Of these rows, which may be those at an end of what steps may take."""
        problems, slo = self.scenario.problems, self.scenario.slo
        assert problems is not None
        limit = slo.e2el_ms / 1000 if slo.e2el_ms else inf
        cheap = [i for i, r in enumerate(rows) if r.usd_per_hour <= self.max_usd_per_hour * (1 + 1e-9)]
        if not cheap:
            least = min(rows, key=lambda r: r.usd_per_hour)
            return Chosen("", f"no strategy runs on GPUs of ${self.max_usd_per_hour:g} an hour; {least.strategy} comes "
                          f"closest with ${least.usd_per_hour:.2f}")  # fmt: skip
        options = [
            Choice(rows[i].strategy, rows[i].accuracy, rows[i].latency_p99_s, rows[i].usd_per_correct or inf)
            for i in cheap
        ]
        try:
            best_within(options, limit, problems.min_accuracy)
        except DoesNotFit as error:
            return Chosen("", str(error))
        fit = [
            i for i in cheap if rows[i].latency_p99_s <= limit and rows[i].accuracy >= problems.min_accuracy
        ]
        first = min(fit, key=lambda i: (-rows[i].accuracy, *_price(rows[i])))
        within = f" within {limit:g} s (p99)" if limit < inf else ""
        within += f" at up to ${self.max_usd_per_hour:g} an hour" if self.max_usd_per_hour < inf else ""
        beside = {i: self.expectation.difference(first, i) for i in fit if i != first}
        tied = [first, *(i for i, apart in beside.items() if apart.is_tie)]
        ties = tuple(apart for apart in beside.values() if apart.is_tie)
        chosen = min(tied, key=lambda i: _price(rows[i]))
        row = rows[chosen]
        if ties:
            said = "; ".join(map(str, sorted(ties, key=str)))
            reason = f"tie: {said}{within}; {self._cheaper(rows, tied, chosen)}"
        else:
            what = (
                "the most accurate"
                if len(fit) > 1
                else "the only one" + ("" if len(rows) > 1 else " compared")
            )
            reason = f"{row.strategy} is {what}{within}: {accuracy_text(row)} in {row.latency_p99_s:.1f} s"
        if (row.accuracy_low or 0.0) < problems.min_accuracy:
            reason += f"; it may be below the {100 * problems.min_accuracy:g} % asked for"
        if limit < inf:
            reason += self._doubts(rows, chosen, limit)
        return Chosen(row.strategy, reason, chosen, tuple(tied), tuple(fit), ties)

    def _cheaper(self, rows: Sequence[StrategyRow], tied: Sequence[int], chosen: int) -> str:
        """Whether the cheapest of equally accurate ones is so beyond doubt."""
        row = rows[chosen]
        if row.usd_per_correct is None:
            return f"{row.strategy} is taken"
        price = f"${row.usd_per_correct:.4f} per correct answer"
        others = [i for i in tied if i != chosen]
        if all(self._is_cheaper(rows, chosen, i) for i in others):
            dearest = ", ".join(f"${rows[i].usd_per_correct or inf:.4f}" for i in others)
            return f"{row.strategy} is the cheapest of them: {price} against {dearest}"
        return f"none of them is the cheapest for sure; {row.strategy} takes {price}"

    def _is_cheaper(self, rows: Sequence[StrategyRow], a: int, b: int) -> bool:
        """By the interval of what a correct answer costs with one over what it costs with the other."""
        one, other = rows[a].usd_per_correct, rows[b].usd_per_correct
        found = cost_ratio(self.samples[a], self.samples[b])
        if not one or not other or found is None:
            return False
        variance, degrees = found
        points = self.expectation.difference(a, b)
        accuracy_half = (points.high - points.low) / 200 / rows[a].accuracy
        return one / other - 1 < -hypot(student_t(degrees) * sqrt(variance), accuracy_half)

    def _doubts(self, rows: Sequence[StrategyRow], chosen: int, limit: float) -> str:
        """What the 99th percentiles of so few problems leave open."""
        tail = rows[chosen].sampling.get("latency_p99_s", Interval(0.0, inf))
        said = ""
        if tail.high == inf:
            number = rows[chosen].num_problems
            do = "does" if number == 1 else "do"
            said += f"; {counted(number, 'problem')} {do} not bound its p99, {TAIL_PROBLEMS} would"
        elif tail.high > limit:
            said += f"; its p99 may be {tail.high:.0f} s"
        maybe = [
            rows[i].strategy
            for i in range(len(rows))
            if rows[i].latency_p99_s > limit
            and rows[i].sampling.get("latency_p99_s", Interval(inf, inf)).low <= limit
            and self.expectation.difference(i, chosen).low > 0
        ]
        return said + (f"; more accurate, and may keep it too: {', '.join(maybe)}" if maybe else "")


def accuracy_text(row: StrategyRow) -> str:
    """E.g. 75.0 % (74.7..75.4)."""
    value = f"{100 * row.accuracy:.1f} %"
    if row.accuracy_low is None or row.accuracy_high is None:
        return value
    return f"{value} ({100 * row.accuracy_low:.1f}..{100 * row.accuracy_high:.1f})"


def _price(row: StrategyRow) -> tuple[float, float, str]:
    """What of equals decides: the cheaper, the faster, the first by name."""
    return (inf if row.usd_per_correct is None else row.usd_per_correct, row.latency_p99_s, row.strategy)
