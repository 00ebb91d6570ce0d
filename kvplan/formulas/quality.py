"""What tokens buy: the chance that a strategy ends on the right answer. Pure; every function broadcasts.

A problem is a number p, the chance that one sample solves it; a benchmark is a distribution of p. A verifier
is a pair of rates, or the d' they stand for. Knows no tokens' cost, no clock and no engine; the draws that
a simulation needs come from the same model (`workload/outcomes.py`), and tests hold the two together.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb, erf, exp, lgamma, log, sqrt
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvplan.ground.errors import KvplanError

Array: TypeAlias = NDArray[np.float64]

_ERF = np.vectorize(erf, otypes=[float])
_LGAMMA = np.vectorize(lgamma, otypes=[float])
_GRID = np.linspace(-9.0, 9.0, 1441)
_STEP = float(_GRID[1] - _GRID[0])


def probability(name: str, value: ArrayLike) -> Array:
    """Return `value` as an array, or raise KvplanError unless all of it lies in [0, 1].

    >>> probability("p", 0.25)
    array(0.25)
    """
    array = np.asarray(value, dtype=float)
    if not np.all((array >= 0) & (array <= 1)):
        raise KvplanError(f"{name} must lie in [0, 1], not {value!r}; 70 % is 0.7")
    return array


def count(name: str, value: ArrayLike) -> Array:
    """Return `value` as an array, or raise KvplanError unless all of it is 1 or more."""
    array = np.asarray(value, dtype=float)
    if not np.all(array >= 1):
        raise KvplanError(f"{name} must be 1 or more, not {value!r}")
    return array


def normal_cdf(x: ArrayLike) -> Array:
    """Standard normal distribution function."""
    return np.asarray(0.5 * (1.0 + _ERF(np.asarray(x, dtype=float) / sqrt(2.0))))


def coverage(p: ArrayLike, n: ArrayLike) -> Array:
    """Chance that at least one of n independent samples is right: 1 - (1 - p)^n.

    Source: Brown et al. 2024, "Large Language Monkeys" (arXiv 2407.21787), eq. for coverage at one p.

    >>> coverage(0.25, [1, 4, 16, 64]).round(3).tolist()
    [0.25, 0.684, 0.99, 1.0]
    """
    return np.asarray(-np.expm1(count("n", n) * np.log1p(-np.minimum(probability("p", p), 1 - 1e-16))))


def expected(values: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Mean over problems: the last axis of `values`, by `weights` (equal when None).

    Coverage of a benchmark is the mean of coverages, never the coverage of the mean p (Jensen).

    >>> float(expected(coverage([0.1, 0.9], 4)).round(3)), float(coverage(0.5, 4).round(3))
    (0.672, 0.938)
    """
    share = None if weights is None else np.asarray(weights, dtype=float)
    return np.asarray(np.average(np.asarray(values, dtype=float), axis=-1, weights=share))


def beta_coverage(a: ArrayLike, b: ArrayLike, n: ArrayLike) -> Array:
    """Coverage over problems whose p is Beta(a, b): 1 - B(a, b + n) / B(a, b).

    a < 1 and b < 1 is the U shape of reasoning benchmarks: most problems are nearly always or nearly never
    solved. Source: the Beta-binomial's zero term; Brown et al. 2024, sec. 3, fit such curves.

    >>> beta_coverage(1, 1, [1, 9]).round(3).tolist()
    [0.5, 0.9]
    """
    a, b, n = np.asarray(a, float), np.asarray(b, float), count("n", n)
    log_none = _LGAMMA(b + n) + _LGAMMA(a + b) - _LGAMMA(a + b + n) - _LGAMMA(b)
    return np.asarray(-np.expm1(log_none))


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> Array:
    """Unbiased coverage at k from n samples of which c were right: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. 2021 (arXiv 2107.03374), eq. 1.

    >>> pass_at_k(10, [0, 3, 10], 1).round(3).tolist()
    [0.0, 0.3, 1.0]
    """
    n, c, k = (np.asarray(x, dtype=float) for x in (num_samples, num_correct, k))
    if np.any(k > n) or np.any(c > n) or np.any(k < 1) or np.any(c < 0):
        raise KvplanError("pass@k needs 1 <= k <= samples and 0 <= correct <= samples")
    short = n - c < k
    safe = np.where(short, 0.0, c)
    log_ratio = (
        _LGAMMA(n - safe + 1)
        - _LGAMMA(np.where(short, 0, n - safe - k) + 1)
        - _LGAMMA(n + 1)
        + _LGAMMA(n - k + 1)
    )
    return np.asarray(np.where(short, 1.0, 1 - np.exp(log_ratio)))


def selected(covered: ArrayLike, recall: ArrayLike) -> Array:
    """Accuracy of a selector that finds a right answer among the samples with this recall when there is one.

    >>> (100 * selected(coverage(0.25, [1, 4, 16]), 0.8)).round(1).tolist()
    [20.0, 54.7, 79.2]
    """
    return probability("coverage", covered) * probability("recall", recall)


def d_prime(true_positive_rate: float, true_negative_rate: float) -> float:
    """Distance, in standard deviations, between a verifier's scores of right and of wrong work.

    Equal-variance signal detection: d' = z(TPR) + z(TNR); 0 is a verifier that guesses.
    Source: Green & Swets 1966. Rates of exactly 0 or 1 are taken as 1e-9 away from them.

    >>> round(d_prime(0.84, 0.84), 2), d_prime(0.5, 0.5)
    (1.99, 0.0)
    """
    rates = (
        probability("true_positive_rate", true_positive_rate),
        probability("true_negative_rate", true_negative_rate),
    )
    return sum(NormalDist().inv_cdf(min(max(float(r), 1e-9), 1 - 1e-9)) for r in rates)


def rate_of_pairs(pairwise_accuracy: float) -> float:
    """The rate, equal for right and wrong work, of a verifier that scores right above wrong so often.

    Two scores d' apart differ by a normal with deviation sqrt(2), so that d' = sqrt(2) z(accuracy), and a threshold
    half way is passed by Phi(d' / 2) of either. Source: Green & Swets 1966, two-alternative forced choice.

    >>> round(rate_of_pairs(0.707), 3), rate_of_pairs(0.5), round(d_prime(*[rate_of_pairs(0.9)] * 2), 3)
    (0.65, 0.5, 1.812)
    """
    accuracy = min(max(float(probability("pairwise_accuracy", pairwise_accuracy)), 1e-9), 1 - 1e-9)
    return NormalDist().cdf(NormalDist().inv_cdf(accuracy) / sqrt(2))


def best_of_n(p: ArrayLike, n: ArrayLike, d: ArrayLike, *, unanswered: ArrayLike = 0.0) -> Array:
    """Chance that the highest-scored of n samples is right, when scores differ by d' standard deviations.

    n * integral of p f1(x) F(x)^(n-1) dx, where F mixes the scores of right and wrong samples. d = 0 gives
    p whatever n is; a large d gives `coverage`. A share `unanswered` of the samples has no answer to be chosen;
    p is the share that is right and answered.

    >>> best_of_n(0.25, [1, 16], 0.0).round(3).tolist(), best_of_n(0.25, 16, 9.0).round(2).tolist()
    ([0.25, 0.25], 0.99)
    >>> best_of_n(0.25, [1, 2], 0.0, unanswered=0.5).round(3).tolist()  # one of two answers, if there are two
    [0.25, 0.375]
    """
    p, n, d, none = (
        np.asarray(x, float)[..., None]
        for x in (probability("p", p), count("n", n), d, probability("unanswered", unanswered))
    )
    stretch = 1 + np.abs(d) / 18
    x = _GRID * stretch + d / 2  # from 9 deviations below the wrong ones to 9 above the right ones
    mixed = none + p * normal_cdf(x - d) + (1 - p - none) * normal_cdf(x)
    density = n * p * _normal(x - d) * mixed ** (n - 1)
    return np.asarray(np.minimum((density * stretch).sum(axis=-1) * _STEP, 1.0))


def adaptive_best_of_n(
    p: ArrayLike,
    true_positive_rate: float,
    true_negative_rate: float,
    *,
    probe: int,
    hard: float,
    easy: float,
    n_hard: int,
    n_medium: int,
    unanswered: ArrayLike = 0.0,
) -> Array:
    """Chance that best-of-N is right when N follows from how many of a probe of samples look right.

    Summed over k, the samples of the probe that score above the threshold; the probe's samples stand for choice with
    the rest. From `easy` on N is the probe, above `hard` `n_medium`, else `n_hard`. A sample without an answer looks
    like a wrong one. After Snell et al. 2024 (arXiv 2408.03314) and Damani et al. 2024 (arXiv 2410.04707).

    >>> told = dict(probe=4, hard=0.2, easy=0.8, n_hard=4, n_medium=4)
    >>> bool(np.isclose(adaptive_best_of_n(0.25, 0.9, 0.8, **told), best_of_n(0.25, 4, d_prime(0.9, 0.8))))
    True
    """
    p, none = probability("p", p)[..., None], probability("unanswered", unanswered)[..., None]
    d = d_prime(true_positive_rate, true_negative_rate)
    cut = d - NormalDist().inv_cdf(min(max(true_positive_rate, 1e-9), 1 - 1e-9))
    stretch = 1 + abs(d) / 18
    x = _GRID * stretch + d / 2
    x = (
        x + ((cut - x[0]) / (_STEP * stretch) % 1 - 0.5) * _STEP * stretch
    )  # the threshold halfway between points
    below = none + p * normal_cdf(x - d) + (1 - p - none) * normal_cdf(x)
    dull = none * normal_cdf(cut) + p * normal_cdf(np.minimum(x, cut) - d)
    dull = dull + (1 - p - none) * normal_cdf(np.minimum(x, cut))  # looks wrong, and is beaten by x
    bright = below - dull
    found = np.zeros(np.broadcast_shapes(p.shape, none.shape)[:-1])
    for k in range(probe + 1):
        share = k / probe
        total = probe if share >= easy else max(probe, n_hard if share <= hard else n_medium)
        rest = total - probe
        lit, unlit = bright ** max(k - 1, 0), dull ** max(probe - k - 1, 0)
        of_probe = np.where(
            x > cut,
            probe * comb(probe - 1, k - 1) * lit * dull ** (probe - k) if k else 0.0,
            probe * comb(probe - 1, k) * bright**k * unlit if k < probe else 0.0,
        )
        density = of_probe * below**rest
        if rest:
            density = density + rest * comb(probe, k) * bright**k * dull ** (probe - k) * below ** (rest - 1)
        found += (p * _normal(x - d) * density * stretch).sum(axis=-1) * _STEP
    return np.asarray(np.minimum(found, 1.0))


def first_finish(p: ArrayLike, k: int, wrong_to_right_length: float, sigma: float) -> Array:
    """Chance that the shortest of k traces is right: short-1@k, whose lengths are lognormal.

    A wrong trace of the same problem is so many times as long. k * integral of p f_right(t) S(t)^(k-1) dt over the
    log length. Source of the method: Hassid et al. 2025 (arXiv 2505.17813); at ratio 1 it is p, whatever k.

    >>> first_finish([0.3, 0.6], 5, 1.0, 0.3).round(3).tolist(), first_finish(0.5, 5, 1.4, 0.3).round(2).tolist()
    ([0.3, 0.6], 0.79)
    """
    p, k = probability("p", p)[..., None], int(count("k", k))
    shift = log(wrong_to_right_length) / sigma
    stretch = 1 + abs(shift) / 18
    x = _GRID * stretch + shift / 2
    longer = p * normal_cdf(-x) + (1 - p) * normal_cdf(shift - x)
    density = k * p * _normal(x) * longer ** (k - 1)
    return np.asarray(np.minimum((density * stretch).sum(axis=-1) * _STEP, 1.0))


def _normal(x: Array) -> Array:
    """Density of the standard normal distribution."""
    return np.asarray(np.exp(-(x**2) / 2) / sqrt(2 * np.pi))


def beta_quantile(a: float, b: float, share: ArrayLike) -> Array:
    """The p that this share of a Beta(a, b)'s mass lies below.

    By the log-odds t of p, in which the density p^a (1 - p)^b is smooth and bell-shaped for any a and b, integrated
    over 8,193 points.

    >>> beta_quantile(1, 1, [0.1, 0.7]).round(4).tolist(), beta_quantile(0.5, 0.5, 0.25).round(4).tolist()
    ([0.1, 0.7], 0.1464)
    """
    grid, mass = _beta_table(a, b)
    t = np.interp(np.asarray(share, float), mass, grid)
    return np.asarray(1 / (1 + np.exp(-np.clip(t, -700, 700))))


@lru_cache(maxsize=64)
def _beta_table(a: float, b: float) -> tuple[Array, Array]:
    """Log-odds, and the mass below each."""

    def height(t: Array) -> Array:
        return np.asarray(-a * np.logaddexp(0, -t) - b * np.logaddexp(0, t))

    centre = log(a / b)
    top = float(height(np.asarray(centre)))
    ends = []
    for side in (-1.0, 1.0):
        reach = 1e-3
        while float(height(np.asarray(centre + side * reach))) > top - 45:
            reach *= 1.5
        ends.append(centre + side * reach)
    grid = np.linspace(ends[0], ends[1], 8193)
    density = np.exp(height(grid) - top)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return grid, mass / mass[-1]


@lru_cache(maxsize=256)
def _vote_weights(n: int, wrong_answers: int) -> Array:
    """Chance that the right answer wins the vote given that it has c of n votes, for c = 0 ... n.

    The other n - c fall evenly on `wrong_answers` answers; with t of them level, the right one wins 1 in
    t + 1. Multinomial maxima by conditioned Poisson variables (Levin 1981), so that n = 512 does not overflow.
    """
    wins = np.zeros(n + 1)
    for c in range(n + 1):
        left, k = n - c, wrong_answers
        if left == 0:
            wins[c] = 1.0
            continue
        rate = left / k
        pmf = np.exp(
            np.arange(min(c, left) + 1) * log(rate) - rate - _LGAMMA(np.arange(min(c, left) + 1) + 1)
        )
        level = pmf[c] if c <= left else 0.0
        norm = exp(left * log(left) - left - lgamma(left + 1))
        below = np.ones(1)  # distribution of the sum of those k - t answers that have fewer than c votes
        sums = [below]
        for _ in range(k):
            sums.append(np.convolve(sums[-1], pmf[:c])[: left + 1] if c else np.zeros(1))
        for t in range(k + 1):
            rest = left - t * c
            if 0 <= rest < len(sums[k - t]):
                wins[c] += comb(k, t) / (t + 1) * level**t * sums[k - t][rest] / norm
    return wins


def majority(p: ArrayLike, n: int, wrong_answers: int = 1) -> Array:
    """Chance that a vote of n samples picks the right answer; ties are broken by lot.

    Right with chance p, else one of `wrong_answers` answers, all equally likely. A vote helps where p beats
    each wrong answer, not where it beats one half. Source: Wang et al. 2022 (arXiv 2203.11171) for the
    method; the exact multinomial here.

    >>> majority([0.3, 0.6], 5).round(3).tolist(), majority(0.3, 5, wrong_answers=10).round(3).tolist()
    ([0.163, 0.683], 0.463)
    """
    if n < 1 or wrong_answers < 1:
        raise KvplanError(f"a vote needs n >= 1 and wrong_answers >= 1, not {n} and {wrong_answers}")
    p = probability("p", p)[..., None]
    c = np.arange(n + 1)
    choose = np.array([comb(n, int(k)) for k in c], dtype=float)
    return np.asarray((choose * p**c * (1 - p) ** (n - c) * _vote_weights(n, wrong_answers)).sum(axis=-1))


def lead_confidence(first: int, second: int) -> float:
    """How sure it is that the answer with `first` votes stays ahead of the one with `second`, whatever follows.

    P(share of the leader among the two > 1/2) under a Beta(first + 1, second + 1): a binomial tail, exact.
    Source: Aggarwal et al. 2023 (arXiv 2305.11860), the Beta stopping criterion.

    >>> [round(lead_confidence(n, 0), 4) for n in (1, 3, 4)], lead_confidence(5, 5)
    ([0.75, 0.9375, 0.9688], 0.5)
    """
    if first < 0 or second < 0:
        raise KvplanError(f"votes cannot be negative, not {first} and {second}")
    flips = first + second + 1
    return float(sum(comb(flips, heads) for heads in range(second + 1, flips + 1)) / 2**flips)


def effective_samples(n: ArrayLike, correlation: ArrayLike) -> Array:
    """How many independent candidates n correlated ones are worth: n / (1 + (n - 1) rho).

    Beams descend from few parents and a reward model errs alike on siblings, so a tree's n overstates its
    choice. Source: Kish 1965, the design effect.

    >>> effective_samples(16, [0.0, 0.2, 1.0]).tolist()
    [16.0, 4.0, 1.0]
    """
    n = count("n", n)
    return np.asarray(n / (1 + (n - 1) * probability("correlation", correlation)))


def step_success(p: ArrayLike, num_steps: ArrayLike) -> Array:
    """Chance that one step stays right, so that all of them do with chance p: p^(1 / steps).

    >>> step_success(0.25, 2).tolist()
    0.5
    """
    return np.asarray(probability("p", p) ** (1 / count("num_steps", num_steps)))


def pruned_correct(p: ArrayLike, num_checks: ArrayLike, true_positive_rate: ArrayLike) -> Array:
    """Share of all chains that were right and were pruned all the same, over `num_checks` independent checks.

    >>> pruned_correct(0.5, 4, 0.9).round(3).tolist()
    0.172
    """
    kept = probability("true_positive_rate", true_positive_rate) ** count("num_checks", num_checks)
    return probability("p", p) * (1 - kept)


def thinking_curve(tokens: ArrayLike, points: ArrayLike) -> Array:
    """Accuracy at a thinking budget, linear in log2(tokens + 1) between measured (tokens, accuracy) points.

    Flat outside the points. Curves may rise and fall again: longer thinking can talk itself out of a right
    answer. Source for the shape: Ghosal et al. 2025 (arXiv 2506.04210), Gema et al. 2025 (arXiv 2507.14417).

    >>> thinking_curve([0, 512, 1024], [(0, 0.71), (512, 0.83), (2048, 0.80)]).round(3).tolist()
    [0.71, 0.83, 0.815]
    """
    table = np.asarray(points, dtype=float)
    if table.ndim != 2 or table.shape[1] != 2 or np.any(np.diff(table[:, 0]) <= 0) or np.any(table[:, 0] < 0):
        raise KvplanError(
            "a thinking curve is a list of (tokens, accuracy) with rising tokens, none negative"
        )
    at = np.log2(np.asarray(tokens, dtype=float) + 1)
    return np.asarray(np.interp(at, np.log2(table[:, 0] + 1), probability("accuracy", table[:, 1])))


def truncated_share(median_tokens: ArrayLike, sigma: ArrayLike, cap: ArrayLike) -> Array:
    """Share of lognormal traces that a cap cuts: P(length > cap). A cut trace has no answer and counts wrong.

    >>> truncated_share(8192, 0.5, [8192, 32768]).round(4).tolist()
    [0.5, 0.0028]
    """
    z = (np.log(np.asarray(cap, float)) - np.log(np.asarray(median_tokens, float))) / np.asarray(sigma, float)
    return np.asarray(1 - normal_cdf(z))


def flops_matched_multiplier(size_ratio: ArrayLike, inference_to_pretraining: ArrayLike) -> Array:
    """How many times the inference tokens a small model may spend to match a larger one's FLOPs over its life.

    M + 3 (M - 1) / R for a model M times smaller and R = D_inference / D_pretrain.
    Source: Snell et al. 2024 (arXiv 2408.03314), sec. 7.

    >>> flops_matched_multiplier(14, [0.16, 0.79, 22]).round(2).tolist()
    [257.75, 63.37, 15.77]
    """
    m, r = np.asarray(size_ratio, float), np.asarray(inference_to_pretraining, float)
    return np.asarray(m + 3 * (m - 1) / r)
