"""Positive least squares on relative errors, and which coefficients the data cannot tell. numpy only.

Coefficients are fitted as logarithms (Levenberg-Marquardt), so they stay positive by construction and errors are
relative: ln(predicted / measured). Knows no physics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Predict = Callable[[Mapping[str, float]], Array]
"""Coefficients by name in, predicted seconds of every row out."""

_STEP = 1e-4
_SETTLED = 1e-9


class Solution(NamedTuple):
    """Fitted coefficients and the rows' residuals ln(predicted / measured)."""

    values: dict[str, float]
    residuals: Array


class Prior(NamedTuple):
    """What is believed of a coefficient before measuring: a middle and a relative width (one sigma of ln)."""

    middle: float
    width: float


class Blind(NamedTuple):
    """Coefficients that the rows cannot tell apart, or cannot see (a single name)."""

    names: tuple[str, ...]


def solve(
    predict: Predict,
    start: Mapping[str, float],
    measured_s: Array,
    *,
    huber: float = 0.1,
    max_iterations: int = 60,
    weights: Array | None = None,
) -> Solution:
    """Minimise a Huber loss of ln(predicted / measured) over positive coefficients, from `start`.

    `huber` is the relative error beyond which a row counts linearly, so that a few odd rows do not steer the rest.
    """
    names = list(start)
    theta = np.log([start[name] for name in names])
    target = np.log(measured_s)
    base = np.ones_like(target) if weights is None else np.sqrt(weights)

    def residual(at: Array) -> Array:
        return np.log(predict(dict(zip(names, np.exp(at), strict=True)))) - target

    damping, now = 1e-2, residual(theta)
    for _ in range(max_iterations):
        w = base * np.sqrt(huber / np.maximum(np.abs(now), huber))
        jacobian = _jacobian(residual, theta, now) * w[:, None]
        theta, better, damping = _step(residual, theta, now, jacobian, w, base, damping, huber)
        settled = _loss(now, base, huber) - _loss(better, base, huber) < _SETTLED * (
            1 + _loss(now, base, huber)
        )
        now = better
        if settled and damping > 1e6:
            break
        if settled:
            damping *= 1e3
    return Solution(dict(zip(names, np.exp(theta).tolist(), strict=True)), now)


def _step(
    residual: Callable[[Array], Array], theta: Array, now: Array, jacobian: Array, w: Array, base: Array,
    damping: float, huber: float,
) -> tuple[Array, Array, float]:  # fmt: skip
    """One damped Gauss-Newton step: retried with more damping until the loss falls, or given up."""
    normal = jacobian.T @ jacobian
    gradient = jacobian.T @ (w * now)
    while damping <= 1e7:
        scaled = normal + damping * (np.diag(np.diag(normal)) + 1e-12 * np.eye(len(theta)))
        move = np.clip(-np.linalg.solve(scaled, gradient), -1.5, 1.5)
        trial = residual(theta + move)
        if _loss(trial, base, huber) < _loss(now, base, huber):
            return theta + move, trial, max(damping / 5, 1e-9)
        damping *= 4
    return theta, now, damping


def _loss(residuals: Array, base: Array, huber: float) -> float:
    size = np.abs(residuals)
    each = np.where(size <= huber, 0.5 * size**2, huber * (size - 0.5 * huber))
    return float(np.sum(base**2 * each))


def _jacobian(residual: Callable[[Array], Array], theta: Array, now: Array) -> Array:
    columns = []
    for i in range(len(theta)):
        moved = theta.copy()
        moved[i] += _STEP
        columns.append((residual(moved) - now) / _STEP)
    return np.stack(columns, axis=1)


def sensitivities(predict: Predict, at: Mapping[str, float]) -> Array:
    """d ln(seconds) / d ln(coefficient), a row per measurement, a column per coefficient."""
    names = list(at)
    theta = np.log([at[name] for name in names])

    def log_seconds(log_values: Array) -> Array:
        return np.log(predict(dict(zip(names, np.exp(log_values), strict=True))))

    return _jacobian(log_seconds, theta, log_seconds(theta))


def blind_spots(
    jacobian: Array, names: Sequence[str], *, seen: float = 5e-3, apart: float = 2e-2
) -> list[Blind]:
    """Coefficients that no row feels by `seen` of its time, then sets that only move together.

    Columns are scaled to unit length; a singular value below `apart` times the largest is a combination that
    leaves every row's time as it is.
    """
    size = np.abs(jacobian).max(axis=0)
    unseen = [Blind((name,)) for name, s in zip(names, size, strict=True) if s < seen]
    kept = [i for i, s in enumerate(size) if s >= seen]
    if len(kept) < 2:
        return unseen
    scaled = jacobian[:, kept] / np.linalg.norm(jacobian[:, kept], axis=0)
    _, values, directions = np.linalg.svd(scaled, full_matrices=False)
    values = np.pad(values, (0, len(kept) - len(values)))
    full = np.linalg.svd(scaled)[2] if len(values) > len(directions) else directions
    for value, direction in zip(values, full, strict=True):
        if value < apart * values[0]:
            unseen.append(Blind(tuple(names[kept[i]] for i in np.flatnonzero(np.abs(direction) > 0.3))))
    return unseen
