"""Whose drafts are right: fixed by request and token, drawn one by one or for a stretch of positions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.content import Segment
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
