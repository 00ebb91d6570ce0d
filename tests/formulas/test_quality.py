"""Laws and figures of `kvplan.formulas.quality`."""

from __future__ import annotations

from itertools import product
from math import factorial, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.formulas import quality as q
from kvplan.ground.errors import KvplanError
from kvplan.workload.quality_sets import quality_set, quality_sets

chances = st.floats(0, 1)
sizes = st.integers(1, 64)


def test_best_of_n_at_a_quarter() -> None:
    """p = 0.25: 25.0, 68.4, 99.0, 100.0 % covered with 1, 4, 16, 64 samples; 20.0, 54.7, 79.2 % at recall 0.8."""
    covered = q.coverage(0.25, [1, 4, 16, 64])
    assert (100 * covered).round(1).tolist() == [25.0, 68.4, 99.0, 100.0]
    assert (100 * q.selected(covered[:3], 0.8)).round(1).tolist() == [20.0, 54.7, 79.2]


@given(chances, sizes, sizes)
def test_coverage_grows_with_samples_and_stays_a_chance(p: float, n: int, m: int) -> None:
    """More samples never cover less; p = 0 and p = 1 gain nothing from any number of them."""
    low, high = q.coverage(p, [min(n, m), max(n, m)])
    assert 0 <= low <= high <= 1
    assert q.coverage(0.0, n) == 0
    assert q.coverage(1.0, n) == pytest.approx(1)


@given(st.lists(chances, min_size=1, max_size=8), sizes)
def test_a_distribution_covers_less_than_its_mean(p: list[float], n: int) -> None:
    """Jensen: coverage is concave in p, so the mean of coverages is at most the coverage of the mean."""
    assert q.expected(q.coverage(p, n)) <= q.coverage(np.mean(p), n) + 1e-9


@given(st.floats(0.05, 5), st.floats(0.05, 5), sizes)
@settings(deadline=None, max_examples=30)
def test_beta_coverage_is_the_integral(a: float, b: float, n: int) -> None:
    """The closed form equals a direct count of the Beta-binomial's zeros: prod (b + i) / (a + b + i)."""
    none = prod((b + i) / (a + b + i) for i in range(n))
    assert q.beta_coverage(a, b, n) == pytest.approx(1 - none, abs=1e-9)


def test_pass_at_k_is_exact_over_all_subsets() -> None:
    """pass@k of (n, c) equals the share of k-subsets of n samples with a right one among the first c."""
    from itertools import combinations

    for n, c, k in [(5, 2, 3), (6, 1, 2), (4, 4, 1), (4, 0, 4), (7, 5, 3)]:
        subsets = list(combinations(range(n), k))
        share = sum(min(s) < c for s in subsets) / len(subsets)
        assert q.pass_at_k(n, c, k) == pytest.approx(share)


@given(st.floats(0.01, 0.99), st.integers(1, 5), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_majority_equals_counting_every_ballot(p: float, n: int, wrong: int) -> None:
    """The plurality formula equals a sum over all vote counts, ties shared out by lot."""
    total = 0.0
    for counts in product(range(n + 1), repeat=wrong):
        right = n - sum(counts)
        if right <= 0 or right < max(counts):
            continue
        ways = factorial(n) / factorial(right) / prod(factorial(c) for c in counts)
        chance = ways * p**right * prod(((1 - p) / wrong) ** c for c in counts)
        total += chance / (1 + sum(c == right for c in counts))
    assert q.majority(p, n, wrong) == pytest.approx(total, abs=1e-9)


def test_majority_converges_to_who_is_ahead() -> None:
    """512 votes find the right answer when it leads, and lose it when a wrong one leads."""
    assert q.majority(0.3, 512, 10) == pytest.approx(1, abs=1e-6)
    assert q.majority(0.3, 513, 1) < 1e-6


@given(chances, st.floats(0, 6), sizes)
@settings(deadline=None, max_examples=50)
def test_a_verifier_lies_between_guessing_and_knowing(p: float, d: float, n: int) -> None:
    """Best-of-n under d' is at least p and at most the coverage; d' = 0 is p for every n."""
    accuracy = q.best_of_n(p, n, d)
    assert p - 1e-6 <= accuracy <= q.coverage(p, n) + 1e-6
    assert q.best_of_n(p, n, 0.0) == pytest.approx(p, abs=1e-6)


def test_d_prime_of_a_guesser_is_zero_and_grows_with_the_rates() -> None:
    assert q.d_prime(0.7, 0.3) == pytest.approx(0)
    assert q.d_prime(0.9, 0.9) > q.d_prime(0.8, 0.9) > q.d_prime(0.8, 0.8)


def test_correlated_candidates_are_worth_fewer() -> None:
    """16 beams that err alike with rho 0.2 are worth 4: counting them as 16 overestimates coverage."""
    assert q.effective_samples(16, 0.2) == pytest.approx(4)
    worth = q.coverage(0.25, q.effective_samples(16, [0.0, 0.2, 1.0]))
    assert worth.tolist() == pytest.approx(q.coverage(0.25, [16, 4, 1]).tolist())


def test_steps_multiply_back_to_the_whole() -> None:
    assert q.step_success(0.37, 20) ** 20 == pytest.approx(0.37)
    assert q.pruned_correct(0.5, [1, 4], 0.9).tolist() == pytest.approx([0.05, 0.5 * (1 - 0.9**4)])


def test_a_thinking_curve_may_turn_down_again() -> None:
    """0.71, 0.78, 0.83, 0.80: the curve passes through its points and peaks inside."""
    points = [(0, 0.71), (128, 0.78), (512, 0.83), (2048, 0.80)]
    at = q.thinking_curve([0, 128, 512, 2048, 1 << 20], points)
    assert at.tolist() == pytest.approx([0.71, 0.78, 0.83, 0.80, 0.80])


def test_truncation_counts_the_upper_tail() -> None:
    """Half of all traces are longer than the median; a cap at the 99th percentile cuts one in a hundred."""
    cap = 8000 * np.exp(0.45 * 2.3263478740408408)
    assert q.truncated_share(8000, 0.45, [8000, cap]).tolist() == pytest.approx([0.5, 0.01])


def test_monkeys_set_goes_through_the_published_points() -> None:
    """DeepSeek-Coder-V2 on SWE-bench Lite: 15.9 % with one sample, 56 % with 250 (arXiv 2407.21787, abstract)."""
    beta = quality_set("monkeys-swe-bench-lite").difficulty.beta
    assert beta is not None
    assert q.beta_coverage(*beta, [1, 250]).tolist() == pytest.approx([0.159, 0.56], abs=5e-4)


@pytest.mark.parametrize("name", quality_sets())
def test_every_set_names_its_source(name: str) -> None:
    """A set either cites a paper or card, or says that its chances are assumed; both never."""
    found = quality_set(name)
    assert found.is_assumed == name.startswith("assumed")
    assert found.is_assumed or any(word in found.source for word in ("arXiv", "README", "docs/"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: q.coverage(1.2, 4), "must lie in [0, 1]"),
        (lambda: q.coverage(0.2, 0), "1 or more"),
        (lambda: q.selected(0.5, -0.1), "recall"),
        (lambda: q.d_prime(2, 0.5), "true_positive_rate"),
        (lambda: q.majority(0.5, 0), "n >= 1"),
        (lambda: q.pass_at_k(4, 5, 1), "correct <= samples"),
        (lambda: q.thinking_curve(1, [(5, 0.1), (2, 0.3)]), "rising tokens"),
        (lambda: quality_set("assumed-u-shap"), "assumed-u-shape"),
    ],
)
def test_bad_input_is_one_clear_line(call, words: str) -> None:
    with pytest.raises(KvplanError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
