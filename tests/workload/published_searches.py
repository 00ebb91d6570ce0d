"""Published searches over steps: the figures, and what kvplan makes of their inputs.

Chances are a Beta through pass@1 and pass@8, or what a row says; a verifier's d' comes from its own best-of-8 on the
same problems, or from its measured rates. Solutions are 400 tokens and an answer of 20, in steps of 100; verifiers err
alike on what texts have in common with a correlation of 0.5, assumed for all.
"""

from __future__ import annotations

from functools import cache
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from kvplan.formulas import quality
from kvplan.workload.expectation import expect
from kvplan.workload.population import difficulty_quantile
from kvplan.workload.problems import Problems, StrategySpec
from kvplan.workload.quality_sets import Difficulty, QualitySet
from kvplan.workload.verifiers import Verifier, measured_rates

CORRELATION = 0.5
EACH = 64
"""Chances that stand for one set of problems."""
BINS = 5
COUNTS = tuple(2**i for i in range(11))


class Guided(NamedTuple):
    """One step at a time, the best of eight goes on: mean accuracy over sets of problems, percent."""

    best_of_8: float
    """Of whole solutions by the same verifier, on the six sets."""
    published: float


SIX = ((11.2, 33.3), (47.8, 82.5), (73.0, 88.8), (38.0, 58.5), (38.6, 47.5), (37.2, 57.7))
"""pass@1 and pass@8 of Qwen2.5-7B-Instruct on AIME24, AMC23, MATH, OlympiadBench, College and Minerva Math."""
GUIDED = {  # arXiv 2503.21295, tables 3 and 4
    "Math-Shepherd-7B": Guided(42.3, 42.8),
    "Math-PSA-7B": Guided(47.2, 44.5),
    "RLHFlow-PRM-Mistral-8B": Guided(43.4, 42.9),
    "RLHFlow-PRM-DeepSeek-8B": Guided(44.3, 43.0),
    "Llemma-PRM800K-7B": Guided(43.9, 43.2),
    "Skywork-PRM-7B": Guided(47.0, 44.9),
    "ReasonEval-7B": Guided(43.1, 40.4),
    "Qwen2.5-Math-7B-PRM800K": Guided(47.7, 43.8),
    "Qwen2.5-Math-PRM-7B": Guided(48.0, 46.8),
    "R-PRM-7B-DPO": Guided(49.6, 49.4),
}
SEVEN = ((91.2, 96.9), (74.0, 89.6), (32.0, 48.2), (64.7, 79.7), (36.9, 58.4), (46.2, 55.0), (57.1, 81.6))
"""The same model on GSM8K, MATH, Minerva, GaoKao 2023, OlympiadBench, College Math and MMLU STEM."""
ELSEWHERE = {  # arXiv 2501.07301, table 8; their best-of-8 is the six sets'
    "Skywork-PRM-7B": Guided(47.0, 62.2),
    "Qwen2.5-Math-PRM-7B": Guided(48.0, 63.5),
}


def beta_through(mean: float, samples: int, covered: float) -> tuple[float, float]:
    """The Beta with a mean whose coverage at so many samples is as measured, by bisection of its size."""
    low, high = 1e-4, 1e4
    for _ in range(200):
        size = sqrt(low * high)
        if float(quality.beta_coverage(mean * size, (1 - mean) * size, samples)) < covered:
            low = size
        else:
            high = size
    return mean * size, (1 - mean) * size


def chances(beta: tuple[float, float], num: int) -> quality.Array:
    """So many chances, spread evenly over a Beta."""
    return difficulty_quantile(Difficulty(beta=beta), (np.arange(num) + 0.5) / num)


@cache
def pooled(sets: tuple[tuple[float, float], ...]) -> quality.Array:
    """Chances of several sets of problems, each as heavy."""
    betas = (beta_through(one / 100, 8, covered / 100) for one, covered in sets)
    return np.concatenate([chances(beta, EACH) for beta in betas])


def d_from(best_of_8: float) -> float:
    """The d' with which best-of-8 has this accuracy on the six sets."""
    low, high = 0.0, 8.0
    for _ in range(40):
        d = (low + high) / 2
        low, high = (d, high) if quality.best_of_n(pooled(SIX), 8, d).mean() < best_of_8 / 100 else (low, d)
    return d


def beam(p: quality.Array, rate: float, width: int, branches: int, rounds: int) -> float:
    """Accuracy of a beam that starts from width x branches steps, over problems of these chances."""
    verifier = Verifier(
        kind="prm", placement="remote", true_positive_rate=rate, true_negative_rate=rate, correlation=CORRELATION
    )  # fmt: skip
    facts = QualitySet(
        difficulty=Difficulty(levels=tuple((float(chance), 1 / len(p)) for chance in p)),
        thinking_tokens=400, answer_tokens=20, sigma_between=0.0,
    )  # fmt: skip
    told = {
        "beam_width": width,
        "branch_factor": branches,
        "first_steps": width * branches,
        "step_tokens": 100,
    }
    search = StrategySpec(strategy="beam_search", params=told)
    found = expect(Problems(quality=facts, verifier=verifier), [search], precision=100, min_rounds=rounds)
    return found.strategies[0].accuracy


@cache
def guided(sets: tuple[tuple[float, float], ...], best_of_8: float) -> float:
    """Percent that one step at a time gets right, of eight each."""
    rate = NormalDist().cdf(d_from(best_of_8) / 2)
    return 100 * beam(pooled(sets), rate, 1, 8, rounds=12)


@cache
def times_of_best_of_n(mean: float, num: int) -> float:
    """How many times `num` generations best-of-N needs for the accuracy of the best search with `num`.

    Each fifth of the problems is searched by what suits it: best-of-N, or beams of which a quarter goes on, four ways.
    Between powers of two by the logarithm; 1,024 are the most looked at.
    """
    rate = measured_rates()["armorm-llama3-8b-math"].rate
    d, p = quality.d_prime(rate, rate), chances((mean, 1 - mean), 100 * BINS)
    fifths = p.reshape(BINS, -1)
    alone = [quality.best_of_n(fifth, num, d).mean() for fifth in fifths]
    searched = [beam(fifth[::4], rate, max(num // 4, 1), 4, rounds=12) for fifth in fifths]
    reached = float(np.mean(np.maximum(alone, searched)))
    sampled = [quality.best_of_n(p, n, d).mean() for n in COUNTS]
    return float(2 ** np.interp(reached, sampled, np.log2(COUNTS)) / num)


@cache
def at_256(mean: float) -> float:
    """Points that 256 beams, of which a quarter goes on, are better than best-of-256."""
    rate = measured_rates()["armorm-llama3-8b-math"].rate
    p = chances((mean, 1 - mean), 100)
    sampled = quality.best_of_n(p, 256, quality.d_prime(rate, rate)).mean()
    return 100 * (beam(p, rate, 64, 4, rounds=4) - float(sampled))
