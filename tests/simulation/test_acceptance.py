"""Whose drafts are right: fixed by request and token, drawn one by one or for a stretch of positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.ground.content import Segment
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.acceptance import accept_drafts
from kvplan.simulation.sim_request import SimRequest


@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=4), row=st.integers(0, 10**6), first=st.integers(0, 10**5),
    num_drafts=st.integers(1, 6), seed=st.integers(0, 2**40),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_all_draws_at_once(rates: list[float], row: int, first: int, num_drafts: int, seed: int) -> None:
    """Drawing a stretch of positions is drawing each, bit for bit; fewer drafts are the first of more."""
    accept, request = accept_drafts(tuple(rates), (seed, 2, 0)), SimRequest(row, (Segment("x", 3),), 10, 10)
    one_by_one = []
    for position in range(first, first + 9):
        request.num_tokens = 3 + position
        one_by_one.append(accept(request, num_drafts))
        assert accept(request, 1) == min(1, one_by_one[-1])
    assert accept.runs(request, first, 9, num_drafts).tolist() == one_by_one


@given(st.lists(st.integers(0, 100), min_size=2, max_size=6).filter(lambda shares: sum(shares) > 0))
@settings(max_examples=30, deadline=None)
def test_lengths_come_out_as_measured(counts: list[int]) -> None:
    """Of thousands of positions, as many keep 0, 1, 2 ... drafts as the distribution says; none keeps more."""
    shares = [count / sum(counts) for count in counts]
    accept = accept_drafts(0.7, (1, 2, 0), tuple(shares))
    runs = accept.runs(SimRequest(5, (Segment("x", 3),), 10, 10), 0, 20_000, len(counts) + 2)
    found = np.bincount(runs, minlength=len(counts)) / len(runs)
    assert found.tolist() == pytest.approx(shares, abs=0.02)


def test_a_distribution_is_its_rates() -> None:
    """Three of four keep the first draft, two of three of these the second: the same draws either way."""
    by_length = accept_drafts(0.7, (9,), (0.25, 0.25, 0.5))
    by_rate = accept_drafts((0.75, 2 / 3, 0.0), (9,))
    request = SimRequest(5, (Segment("x", 3),), 10, 10)
    assert by_length.runs(request, 1, 500, 4).tolist() == by_rate.runs(request, 1, 500, 4).tolist()


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({"accepted_lengths": [0.5, 0.4]}, "adds up to 0.9"),
        ({"accepted_lengths": [0.5, 0.5], "acceptance_rate": 0.7}, "give one of them"),
        ({"accepted_lengths": []}, "at least 1"),
    ],
)
def test_bad_distributions(told: dict[str, Any], complaint: str) -> None:
    """One line says what is wrong with them."""
    engine = {"num_speculative_tokens": 2, "speculative_method": "ngram"}
    with pytest.raises(KvplanError, match=complaint):
        parse_scenario({"model": "Qwen/Qwen3-8B", "engine": engine, **told})
