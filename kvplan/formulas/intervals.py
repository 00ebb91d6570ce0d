"""How sure a mean is: 95 % intervals of shares, means, quantiles and differences from what was drawn. Pure.

Says nothing about where the draws come from; whoever calls knows what they are over.
"""

from __future__ import annotations

from math import comb, inf, isfinite, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_Z = NormalDist()


class Interval(NamedTuple):
    """Both ends; infinite where the draws do not bound a side."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of what lies between its ends."""
        return (self.high - self.low) / 2

    def __contains__(self, value: object) -> bool:
        """Whether a number lies inside, ends included."""
        return isinstance(value, float | int) and self.low <= value <= self.high


def student_t(degrees: float, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t: the mean of few draws lies within so many standard errors.

    Expansion in 1 / degrees around the normal's quantile (Abramowitz & Stegun 26.7.5), within 1 % from 3 degrees on.

    >>> round(student_t(5), 2), round(student_t(30), 3), round(student_t(inf), 3)
    (2.57, 2.042, 1.96)
    """
    z = _Z.inv_cdf((1 + level) / 2)
    if not isfinite(degrees):
        return z
    if degrees < 3:  # exact
        return {1: 12.706, 2: 4.303}.get(int(degrees), inf) if level == LEVEL else inf
    terms = (
        z**3 + z,
        5 * z**5 + 16 * z**3 + 3 * z,
        3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z,
        79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z,
    )
    scale = (4, 96, 384, 92160)
    return z + sum(t / (s * degrees ** (i + 1)) for i, (t, s) in enumerate(zip(terms, scale, strict=True)))


def share_interval(share: float, variance: float, num_draws: float, degrees: float = inf) -> Interval:
    """Interval of a share whose estimate has this variance.

    Wilson's, for as many independent draws as would have that variance: it stays inside [0, 1] and does not vanish
    where all draws agree. `num_draws` stands in there (inf: the share is exact); next to 0 and 1, where a share's own
    spread says nothing of what else makes it unsure, one draw in 1 / standard error may be otherwise.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22; the effective number of draws: Kish 1965.

    >>> [round(x, 3) for x in share_interval(0.5, 0.25 / 100, 100)], round(share_interval(0.0, 0.0, 20).high, 3)
    ([0.404, 0.596], 0.161)
    """
    spread = share * (1 - share)
    n = num_draws if variance <= 0 else max(spread / variance, min(num_draws, 1 / sqrt(variance)))
    if n == inf:
        return Interval(share, share)
    z2 = student_t(degrees) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2 * (spread / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(mean: float, variance: float, degrees: float) -> Interval:
    """Student's interval of a mean whose estimate has this variance."""
    half = student_t(degrees) * sqrt(variance)
    return Interval(mean - half, mean + half)


def quantile_interval(values: ArrayLike, q: float, level: float = LEVEL) -> Interval:
    """Interval of a quantile from independent draws, by their ranks; infinite where there are too few to bound it.

    Between two draws the end is interpolated in the chance that it stands for (Nyblom 1992, Stat. Prob. Lett. 14).
    A 99th percentile has an upper bound from 368 draws on.

    >>> [round(end, 2) for end in quantile_interval(range(1, 21), 0.5)], quantile_interval(range(20), 0.99).high
    ([6.12, 14.88], inf)
    """
    x: NDArray[np.float64] = np.sort(np.asarray(values, float))
    n, tail = len(x), (1 - level) / 2
    below = np.cumsum([comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n)]) if n <= 1000 else _cdf(n, q)
    # below[k - 1] = P(the k-th smallest draw lies above the quantile)
    return Interval(_rank_end(x, below, tail, -inf), -_rank_end(-x[::-1], 1 - below[::-1], tail, -inf))


def _rank_end(x: NDArray[np.float64], risk: NDArray[np.float64], tail: float, none: float) -> float:
    """Where the chance to be beyond the quantile is `tail`; `risk` rises with the rank."""
    rank = int(np.searchsorted(risk, tail, side="right"))
    if rank == 0:
        return none
    if rank == len(x):
        return float(x[-1])
    share = (tail - risk[rank - 1]) / (risk[rank] - risk[rank - 1])
    return float(x[rank - 1] + share * (x[rank] - x[rank - 1]))


def _cdf(n: int, q: float) -> NDArray[np.float64]:
    """Binomial distribution function by its normal limit, continuity corrected; for thousands of draws."""
    at = (np.arange(n) + 0.5 - n * q) / sqrt(n * q * (1 - q))
    return np.array([_Z.cdf(float(z)) for z in at])
