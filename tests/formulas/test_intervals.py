"""Intervals of means, shares and quantiles: they cover as often as they say, and stay where figures can be."""

from __future__ import annotations

import numpy as np
import pytest

from kvplan.formulas.intervals import mean_interval, quantile_interval, share_interval, student_t
from kvplan.formulas.quality import beta_quantile


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (29, 2.045), (120, 1.980)]
)
def test_students_t_is_the_tables(degrees: int, t: float) -> None:
    """Two-sided 95 %, as every table of the distribution prints them."""
    assert student_t(degrees) == pytest.approx(t, rel=2e-3)


@pytest.mark.parametrize("share", [0.03, 0.3, 0.9])
def test_shares_are_covered(share: float) -> None:
    """Of 2,000 samples of 100 draws, 93 to 98 % of intervals hold the true share; all of them lie in [0, 1]."""
    counts = np.random.default_rng(1).binomial(100, share, 2000) / 100
    found = [share_interval(float(m), float(m * (1 - m) / 100), 100) for m in counts]
    assert 0.93 <= np.mean([low <= share <= high for low, high in found]) <= 0.98
    assert all(0 <= low <= high <= 1 for low, high in found)


@pytest.mark.parametrize(("q", "num_draws"), [(0.5, 21), (0.5, 60), (0.9, 80), (0.99, 400)])
def test_quantiles_are_covered(q: float, num_draws: int) -> None:
    """By ranks, whatever the distribution: 93 to 98.5 % of 1,000 intervals hold the lognormal's quantile."""
    rng = np.random.default_rng(2)
    truth = float(np.exp(0.5 * {0.5: 0.0, 0.9: 1.281552, 0.99: 2.326348}[q]))
    found = [quantile_interval(np.exp(0.5 * rng.standard_normal(num_draws)), q) for _ in range(1000)]
    assert 0.93 <= np.mean([low <= truth <= high for low, high in found]) <= 0.985


def test_few_draws_do_not_bound_a_tail() -> None:
    """Twenty draws say how long at least one in a hundred takes, not how long at most; 368 do."""
    assert np.isinf(quantile_interval(range(20), 0.99).high)
    assert np.isinf(quantile_interval(range(367), 0.99).high)
    assert np.isfinite(quantile_interval(range(368), 0.99).high)
    assert mean_interval(1.0, 0.0, 5) == (1, 1)


@pytest.mark.parametrize(("a", "b"), [(0.35, 0.35), (0.05, 2.0), (8.0, 3.0), (1e4, 2e4)])
def test_beta_quantiles_have_the_betas_moments(a: float, b: float) -> None:
    """Mean a / (a + b) and variance a b / (a + b)^2 / (a + b + 1), over even shares of the mass."""
    p = beta_quantile(a, b, (np.arange(20_000) + 0.5) / 20_000)
    assert p.mean() == pytest.approx(a / (a + b), rel=1e-3)
    assert p.var() == pytest.approx(a * b / (a + b) ** 2 / (a + b + 1), rel=5e-3)
    assert np.all(np.diff(p) >= 0)
