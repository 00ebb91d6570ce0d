"""What tokens cost: figures worked by hand, and laws of billing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvplan.formulas import accounting as acc
from kvplan.ground.errors import DoesNotFit, KvplanError
from kvplan.search.choices import Choice, best_within, pareto


def test_hidden_tokens_are_billed() -> None:
    """180 visible of 1,400 billed tokens at $10 a million cost $0.0140, 7.8 times what is seen."""
    price = acc.api_price("gpt-5")
    assert price.output == 10
    assert float(acc.api_cost_usd(price, 0, 180, 1220)) == pytest.approx(0.0140)
    assert float(acc.api_cost_usd(price, 0, 180)) == pytest.approx(0.0018)


def test_first_visible_token_under_a_hidden_budget() -> None:
    """80 tok/s over 180 ms: 180, 1,780, 6,580, 12,980 ms with 0, 128, 512, 1,024 hidden; two keep a 3 s target."""
    seconds = acc.time_to_first_visible_s(0.180, [0, 128, 512, 1024], 80)
    assert (1000 * seconds).tolist() == pytest.approx([180, 1780, 6580, 12980])
    assert (seconds <= 3).tolist() == [True, True, False, False]


def test_routing_tickets() -> None:
    """100,000 tickets, 85/10/5 over tiers of $0.001, $0.01, $0.05: $435 a day."""
    routes = [acc.Route(0.85, 0.001), acc.Route(0.10, 0.01), acc.Route(0.05, 0.05)]
    assert acc.routing_cost_usd(100_000, routes) == pytest.approx(435)


def test_measured_budgets_choose_512() -> None:
    """0.71/0.78/0.83/0.80 at 220/310/610/1840 ms under 1 s: the 512 budget, not the longest."""
    budgets = [
        Choice("0", 0.71, 0.220),
        Choice("128", 0.78, 0.310),
        Choice("512", 0.83, 0.610),
        Choice("2048", 0.80, 1.840),
    ]
    assert best_within(budgets, max_latency_s=1.0).name == "512"
    assert best_within(budgets).name == "512"


def test_routes_choose_bounded_reasoning() -> None:
    """0.78/240 ms, 0.86/780, 0.90/2600 under 1 s and at least 0.84: bounded reasoning."""
    routes = [
        Choice("direct", 0.78, 0.24),
        Choice("bounded reasoning", 0.86, 0.78),
        Choice("search", 0.90, 2.6),
    ]
    assert best_within(routes, max_latency_s=1.0, min_accuracy=0.84).name == "bounded reasoning"
    with pytest.raises(DoesNotFit, match="bounded reasoning comes closest"):
        best_within(routes, max_latency_s=1.0, min_accuracy=0.88)


def test_deepseek_revenue() -> None:
    """C08: 342B hit, 266B miss, 168B out at R1's prices are $562,027 a day within 0.1 %, the fleet $87,072."""
    r1 = acc.api_price("deepseek-r1")
    revenue = acc.api_cost_usd(r1, (342 + 266) * 1e9, 168e9, cached_tokens=342e9)
    assert float(revenue) == pytest.approx(562_027, rel=1e-3)
    assert float(acc.gpu_cost_usd(226.75 * 8, 24, 2)) == 87_072


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_cost_adds_up_over_requests(prompt: int, visible: int, hidden: int) -> None:
    """Cost is linear, and hidden tokens cost what visible ones do."""
    price = acc.api_price("o3")
    both = acc.api_cost_usd(price, 2 * prompt, 2 * visible, 2 * hidden)
    assert float(both) == pytest.approx(2 * float(acc.api_cost_usd(price, prompt, hidden, visible)))


def test_every_price_has_date_and_source() -> None:
    for price in acc.api_prices().values():
        assert price.date.year >= 2024
        assert price.source
        assert price.cached_input is None or price.cached_input <= price.input


def test_break_even_is_where_costs_meet() -> None:
    per_request = float(acc.api_cost_usd(acc.api_price("deepseek-r1"), 500, 400, 8000))
    rate = acc.break_even_requests_per_hour(3.0, 2, per_request)
    assert rate * per_request == pytest.approx(6.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=12))
def test_the_front_is_never_empty_and_never_beaten(rows: list[tuple[float, float, float]]) -> None:
    """Someone is on the front, and every row off it is beaten by one on it."""
    accuracy, latency, cost = zip(*rows, strict=True)
    front = pareto(accuracy, [latency, cost])
    assert front.any()
    for i, row in enumerate(rows):
        if not front[i]:
            assert any(
                f and o[0] >= row[0] and o[1] <= row[1] and o[2] <= row[2] and o != row
                for f, o in zip(front, rows, strict=True)
            )


def test_bad_input_is_named() -> None:
    with pytest.raises(KvplanError, match="did you mean gpt-5"):
        acc.api_price("gpt-55")
    with pytest.raises(KvplanError, match="add up to 1"):
        acc.routing_cost_usd(10, [acc.Route(0.5, 1.0)])
