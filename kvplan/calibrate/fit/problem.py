"""One family of measurements as a problem to solve: rows, prediction, where to start, what is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kvplan.calibrate.fit.least_squares import Array, Predict, Solution, solve
from kvplan.calibrate.fit.terms import Term, column
from kvplan.calibrate.measurements import Row
from kvplan.profiles.timing_profile import Regime

NOISE = 0.02
"""Relative error of a row that a prior is weighed against."""
EFFECTIVE_ROWS = 200
"""However many rows a family has, beliefs weigh as against this many."""


class FitProblem(NamedTuple):
    """One family to fit: rows, how to predict them, where to start, what is believed."""

    name: str
    rows: list[Row]
    term: Term
    build: Callable[[Sequence[Row]], Predict]


def run(
    problem: FitProblem, rows: Sequence[Row], start: Mapping[str, float], max_iterations: int = 60
) -> Solution:
    """Solve one family, its beliefs as extra rows; every regime weighs the same, however many rows it has."""
    return solve_rows(problem, rows, column(rows, "time_s"), start, max_iterations)


def solve_rows(
    problem: FitProblem, rows: Sequence[Row], measured: Array, start: Mapping[str, float], max_iterations: int
) -> Solution:
    """Solve for given times of the rows, such as resampled ones."""
    predict, priors = problem.build(rows), problem.term.priors
    regimes = np.array([regime(row) for row in rows])
    share = {name: np.mean(regimes == name) for name in set(regimes.tolist())}
    total = min(len(rows), EFFECTIVE_ROWS)
    weights = np.array([total / (len(rows) * len(share) * share[name]) for name in regimes.tolist()])

    def with_beliefs(v: Mapping[str, float]) -> Array:
        pulls = [(v[k] / p.middle) ** (NOISE / p.width) for k, p in priors.items()]
        return np.concatenate([predict(v), pulls])

    target = np.concatenate([measured, np.ones(len(priors))])
    weights = np.concatenate([weights, np.ones(len(priors))])
    found = solve(with_beliefs, start, target, weights=weights, max_iterations=max_iterations)
    return Solution(found.values, found.residuals[: len(rows)])


def scaled(name: str, value: float, scale: float) -> float:
    """A rate falls and a time grows when everything takes `scale` times as long."""
    if name.endswith("bytes_per_s") or name.endswith("flops_per_s"):
        return value / scale
    return value * scale if name.endswith("_s") else value


def regime(row: Row) -> Regime:
    """What kind of step or kernel a row is."""
    op = row["op"]
    if op in ("gemm", "moe", "all_reduce"):
        return op  # type: ignore[no-any-return]
    if not row.get("num_prefill_tokens"):
        return "decode"
    return "mixed" if row.get("num_decodes") else "prefill"
