"""Sums and means that come out the same whatever order, vector width or numpy version adds them up."""

from __future__ import annotations

from math import fsum, inf
from typing import Any

from numpy.typing import NDArray


def exact_sum(values: NDArray[Any]) -> float:
    """The sum of all values, rounded once (`math.fsum`); numpy's own depends on how a version adds in parallel."""
    try:
        return fsum(values.ravel().tolist())
    except OverflowError:
        return inf


def exact_mean(values: NDArray[Any]) -> float:
    """The sum by the number of values."""
    return exact_sum(values) / values.size
