"""How good a fit is on points it had not seen, how sure it is of itself, and where it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvplan.calibrate.fit.least_squares import Array, Solution
from kvplan.calibrate.fit.problem import FitProblem, regime, run, scaled, solve_rows
from kvplan.calibrate.fit.terms import column, shapes
from kvplan.calibrate.measurements import Row
from kvplan.profiles.timing_profile import RegimeError

BINS = (0, 1024, 4096, 16384, 65536, math.inf)
"""Context ranges that are left out in turn."""


def held_out_errors(problem: FitProblem, rows: list[Row], solution: Solution) -> list[RegimeError]:
    """Errors on points the fit had not seen: context ranges left out in turn, models likewise, marked rows."""
    found: list[RegimeError] = []
    for what, label in (("ranges left out in turn", _range_of), ("models left out in turn", _model_of)):
        labels = np.array([label(row) for row in rows])
        if len(set(labels.tolist())) > 1:
            found += _left_out(problem, rows, labels, solution, what)
    marked = [row for row in problem.rows if row.get("held_out")]
    if marked:
        ratio = np.log(problem.build(marked)(solution.values) / column(marked, "time_s"))
        found += summaries(problem.name, marked, ratio, "points marked held_out")
    return found


def _left_out(
    problem: FitProblem, rows: list[Row], labels: Any, solution: Solution, what: str
) -> list[RegimeError]:
    seen: list[Row] = []
    ratios: list[Array] = []
    for label in sorted(set(labels.tolist())):
        inside = [row for row, one in zip(rows, labels, strict=True) if one != label]
        outside = [row for row, one in zip(rows, labels, strict=True) if one == label]
        if len(inside) < max(3, len(problem.term.start)):
            continue
        again = run(problem, inside, solution.values, 15)
        ratios.append(np.log(problem.build(outside)(again.values) / column(outside, "time_s")))
        seen += outside
    return summaries(problem.name, seen, np.concatenate(ratios), what) if ratios else []


def summaries(family: str, rows: Sequence[Row], ratio: Array, what: str) -> list[RegimeError]:
    """Median, 95th percentile and bias per regime, from ln(predicted / measured) of every row."""
    regimes = np.array([regime(row) for row in rows])
    found = []
    for name in sorted(set(regimes.tolist())):
        part = ratio[regimes == name]
        size = np.abs(np.expm1(part))
        found.append(
            RegimeError(
                regime=name,
                family=family,
                held_out=what,
                num_points=len(part),
                median=round(float(np.median(size)), 4),
                p90=round(float(np.quantile(size, 0.9)), 4),
                p95=round(float(np.quantile(size, 0.95)), 4),
                bias=round(float(part.mean()), 4),
            )
        )
    return found


def bootstrap(
    problem: FitProblem, rows: Sequence[Row], solution: Solution, errors: Sequence[RegimeError], num_draws: int,
    rng: np.random.Generator,
) -> list[dict[str, float]]:  # fmt: skip
    """Refits to resampled residuals, each scaled by a common error as large as the held-out bias.

    Residuals alone would say how well the coefficients of these points are known; a question about other
    points or another model is off by what the held-out points were off together.
    """
    predicted = problem.build(rows)(solution.values)
    common = max((abs(error.bias) for error in errors), default=0.0)
    draws = []
    for _ in range(num_draws):
        noise = rng.choice(solution.residuals, len(rows)) - solution.residuals.mean()
        scale = math.exp(common * rng.standard_normal())
        again = solve_rows(problem, rows, predicted * np.exp(noise), solution.values, 4)
        draws.append({k: scaled(k, v, scale) for k, v in again.values.items()})
    return draws


def _range_of(row: Row) -> int:
    """The context range of a row; for products and reductions, of its tokens or kilobytes."""
    if row["op"] in ("gemm", "moe"):
        size = 16 * row["num_tokens"]
    elif row["op"] == "all_reduce":
        size = row["num_bytes"] / 64
    elif row.get("num_decodes"):
        size = row["decode_context"] / row["num_decodes"]
    else:
        size = row["prefill_attention"] / row["num_prefill_tokens"]
    return int(np.searchsorted(BINS, size, side="right"))


def _model_of(row: Row) -> str:
    return str(row.get("model", "")) if regime(row) in ("decode", "prefill", "mixed") else ""


def measured_ranges(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """From-to of batch, mean context and chunk over all rows with attention."""
    rows = [row for row in rows if row["op"] not in ("gemm", "moe", "all_reduce")]
    if not rows:
        return {}
    shape = shapes(rows)
    decodes = shape.num_decodes > 0
    found = {
        "num_decodes": shape.num_decodes[decodes],
        "mean_context": shape.decode_context[decodes] / shape.num_decodes[decodes],
        "chunk_tokens": shape.num_prefill_tokens[shape.num_prefill_tokens > 0],
    }
    return {k: (float(v.min()), float(v.max())) for k, v in found.items() if len(v)}
