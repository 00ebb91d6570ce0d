"""How sure simulated latencies and costs are, given that so many problems were simulated and not others like them.

95 % intervals over problems, beside the range of what steps may take (`simulation.uncertainty`), which is about the
same problems on a quicker or slower engine. Problems of a quality set are spread evenly over difficulty and length, so
that what these two explain varies no more; problems that are under way together are taken in batches. Knows finished
problems; runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, isfinite, sqrt
from typing import Any

import numpy as np

from kvplan.formulas.intervals import Interval, quantile_interval, student_t
from kvplan.formulas.quality import Array
from kvplan.ground.units import TICKS_PER_S
from kvplan.simulation.branch_requests import Solved
from kvplan.workload.problems import Problems, Task

BATCHES = 10
"""That problems which share an engine are put into, by their arrival."""
TAIL = 5
"""Problems that must lie beyond a quantile for its interval to go by their share; with fewer it goes by ranks."""
PER_CORRECT = ("gpu_s_per_correct", "usd_per_correct", "joules_per_correct")


@dataclass(slots=True)
class Sampling:
    """The problems that one strategy was simulated on, and how their figures vary."""

    problems: Problems
    took: Array
    """Seconds from arrival to answer, in order of arrival."""
    seen: Array
    """Seconds to the first that the user sees."""
    traits: Array
    """(problems, traits): what the problems were spread evenly over; no columns where they were not."""
    batch: int = 1
    """Problems in a batch."""
    figures: dict[str, Interval] = field(default_factory=dict)

    @property
    def is_one_draw(self) -> bool:
        """All at once are one draw of their crowd; nothing tells how another crowd would fare."""
        return self.problems.arrivals.kind == "all_at_once" and len(self.took) > 1

    def mean(self, values: Array, traits: Array | None = None) -> tuple[float, float, float]:
        """Mean, variance of it, degrees of freedom; what goes with `traits` (the problems' own) does not vary."""
        rest, rank = _unexplained(values, self.traits if traits is None else traits)
        batches = [rest[i : i + self.batch] for i in range(0, len(rest) - len(rest) % self.batch, self.batch)]
        sums = np.array([part.mean() for part in batches])
        degrees = len(sums) - max(1.0, rank / self.batch)
        if degrees < 1:
            return float(values.mean()), inf, 1.0
        return float(values.mean()), float((sums**2).sum() / degrees / len(sums)), degrees

    def quantile(self, values: Array, q: float) -> Interval:
        """Interval of a quantile: the ranks around it, as far as the share below it is sure."""
        n = len(values)
        if min(q, 1 - q) * n < TAIL:
            return quantile_interval(values, q)
        below = self.traits <= np.quantile(
            self.traits, q, axis=0
        )  # as a share of the traits goes with the traits
        traits = np.hstack([self.traits, below.astype(float)])
        _, variance, degrees = self.mean((values <= np.quantile(values, q)).astype(float), traits)
        half = student_t(degrees) * sqrt(variance)
        low, high = q - half, q + half
        ordered = np.sort(values)
        at = (np.arange(n) + 0.5) / n
        return Interval(
            float(np.interp(low, at, ordered)) if low >= at[0] else 0.0,
            float(np.interp(high, at, ordered)) if high <= at[-1] else inf,
        )

    def relative_duration(self) -> tuple[float, float]:
        """Variance of the run's length relative to its square, degrees; clients that wait make it their latencies'."""
        arrivals = self.problems.arrivals
        if arrivals.kind == "closed_loop":
            mean, variance, degrees = self.mean(self.took)
            return (variance / mean**2 if mean else inf), degrees
        gaps = _GAPS.get(arrivals.kind)
        return (gaps(arrivals) / len(self.took) if gaps else inf), inf


_GAPS: dict[str, Callable[[Any], float]] = {
    "poisson": lambda a: 1 / a.burstiness,
    "gamma": lambda a: a.cv**2,
    "constant": lambda a: 0.0,
}
"""Variance of the time between arrivals over its mean squared."""


def sample_of(problems: Problems, tasks: Sequence[Task], solved: Sequence[Solved]) -> Sampling:
    """Of a run's finished problems, in order of arrival."""
    ordered = sorted(solved, key=lambda s: (s.arrival, s.problem))
    by_id = {task.problem.id: task for task in tasks}
    traits = np.array([[by_id[s.problem].skill.p, by_id[s.problem].skill.thinking_tokens] for s in ordered])
    alone = problems.arrivals.kind == "closed_loop" and problems.arrivals.concurrency == 1
    return Sampling(
        problems=problems,
        took=np.array([s.finish - s.arrival for s in ordered]) / TICKS_PER_S,
        seen=np.array([s.first_visible - s.arrival for s in ordered]) / TICKS_PER_S,
        traits=traits if problems.pass_table is None else traits[:, :0],
        batch=1 if alone else max(1, len(ordered) // BATCHES),
    )


def sampled(
    sample: Sampling, costs: Mapping[str, float | None], accuracy: float, variance: float
) -> dict[str, Interval]:
    """Figure -> interval; those that nothing bounds are left out.

    `costs`: figures per correct answer, which are the run's length over its problems and the `accuracy`, whose
    `variance` they share.
    """
    if sample.is_one_draw or len(sample.took) < 3:
        return {}
    mean, spread, degrees = sample.mean(sample.took)
    half = student_t(degrees) * sqrt(spread) if isfinite(spread) else inf
    found = {
        "latency_mean_s": Interval(max(0.0, mean - half), mean + half),
        "latency_p50_s": sample.quantile(sample.took, 0.5),
        "latency_p99_s": sample.quantile(sample.took, 0.99),
        "first_visible_p50_s": sample.quantile(sample.seen, 0.5),
    }
    relative, degrees = sample.relative_duration()
    if not isfinite(relative) or not accuracy:
        return found
    factor = exp(student_t(degrees) * sqrt(relative + variance / accuracy**2))
    for name in PER_CORRECT:
        value = costs.get(name)
        if value is not None:
            found[name] = Interval(value / factor, value * factor)
    rate = costs.get("correct_per_s")
    if rate is not None:
        found["correct_per_s"] = Interval(rate / factor, rate * factor)
    return found


def cost_ratio(a: Sampling, b: Sampling) -> tuple[float, float] | None:
    """How sure the ratio of two runs' lengths on the same problems is: its relative variance, degrees of freedom.

    None where the length is not made by the problems' latencies alone.
    """
    few = len(a.took) != len(b.took) or len(a.took) < 3
    if few or a.is_one_draw or b.is_one_draw or a.problems.arrivals.kind != "closed_loop":
        return None
    _, variance, degrees = a.mean(a.took / a.took.mean() - b.took / b.took.mean())
    return variance, degrees


def _unexplained(values: Array, traits: Array) -> tuple[Array, float]:
    """What is left of values after their mean and what goes with the traits; how many figures that took."""
    design = np.column_stack([np.ones(len(values)), *((t - t.mean()) / (t.std() or 1.0) for t in traits.T)])
    fit, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    return values - design @ fit, float(rank)
