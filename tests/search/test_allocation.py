"""Strategies at one price, and curves over it: knobs solved for, who cannot be had named, limits kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_compare import SHORT

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import Scenario, load_scenario, parse_scenario
from kvplan.search.allocation import around, equalise, frontier, knob_of, price_of
from kvplan.search.comparison import compare
from kvplan.workload.problems import StrategySpec

BEAM = {"strategy": "beam_search", "step_tokens": 100}


def scenario(strategies: list[Any], **more: Any) -> Scenario:
    problems = {"num_problems": 6, "quality": SHORT, "strategies": strategies, **more}
    return parse_scenario({"model": "Qwen/Qwen3-8B", "problems": problems})


def test_tokens_of_samples_are_n_times_one() -> None:
    """Best-of-N at the tokens of N votes is N samples: both take N traces, whatever their lengths."""
    told = scenario(
        [{"strategy": "self_consistency", "n": 11, "vote_stop": False}, {"strategy": "best_of_n", "n": 3}]
    )
    found = equalise(told, "tokens")
    assert [stand.spec.settings["n"] for stand in found.stands] == [11, 11]
    assert found.at_of == "self_consistency(n=11, vote_stop=False)"
    one = price_of(told, "tokens", StrategySpec(strategy="best_of_n", params={"n": 1}))
    assert found.at == pytest.approx(11 * one(None), rel=0.05)


@pytest.mark.parametrize("price", ["gpu-seconds", "dollars", "latency"])
def test_simulated_prices_are_met(price: Any) -> None:
    """Each stands within a quarter of the price, as its own run says; a beam has the width for it."""
    told = scenario([{"strategy": "best_of_n", "n": 8}, BEAM])
    found = equalise(told, price)
    for stand in found.stands:
        assert not stand.reason
        assert stand.price == pytest.approx(found.at, rel=0.25)
        assert price_of(told, price, stand.spec)(None) == stand.price


def test_one_strategy_stands_once_at_a_price() -> None:
    """Of a list of knobs the nearest is brought there, whatever the order, and bears one value in its label; others
    that differ elsewhere stay."""
    for values in ([2, 8, 11], [11, 8, 2]):
        lists = [
            {"strategy": "best_of_n", "n": values, "label": "wide"},
            {"strategy": "best_of_n", "n": 3, "max_tokens": 600},
        ]
        found = equalise(
            scenario([{"strategy": "self_consistency", "n": 12, "vote_stop": False}, *lists]), "tokens"
        )
        assert [stand.spec.name for stand in found.stands] == [
            "self_consistency(n=12, vote_stop=False)", "wide n=12", "best_of_n(n=12, max_tokens=600)",
        ]  # fmt: skip


def test_who_cannot_be_had_is_named() -> None:
    """One trace has no knob, a thousand tokens are under one of two; each with what it takes."""
    found = equalise(scenario(["single_pass", {"strategy": "best_of_n", "n": 4}, BEAM]), "tokens", 150.0)
    assert found.reached == []
    assert "single_pass takes 4" in str(found)
    assert "has no knob" in str(found)
    assert "best_of_n(n=1) takes at least 4" in str(found)
    with pytest.raises(KvplanError, match="above 0"):
        equalise(scenario(["single_pass"]), "tokens", 0)


def test_curves_are_compared_and_not_points() -> None:
    """With a checker, samples beat a vote at any price; beyond where both are nothing is said."""
    told = scenario(
        [{"strategy": "best_of_n", "n": 8}, {"strategy": "self_consistency", "n": 8, "vote_stop": False}]
    )
    found = frontier(told)
    assert [curve.name for curve in found.curves] == ["best_of_n", "self_consistency(vote_stop=False)"]
    assert [len(curve.places) for curve in found.curves] == [5, 5]
    [(low, high, said)] = found.spans()
    assert said == "best_of_n leads"
    assert high / low == pytest.approx(16, rel=0.1)
    point = found.to_dict()["curves"][0]["points"][0]
    assert point["accuracy_low"] <= point["accuracy"] <= point["accuracy_high"]


def test_a_curve_beside_itself_is_a_tie() -> None:
    told = scenario([{"strategy": "first_finish", "m": 3, "label": name} for name in ("one", "other")])
    assert {said for *_, said in frontier(told, precision=4).spans()} == {"tie of one and other"}


def test_allocation_keeps_the_limits() -> None:
    """Under a deadline a smaller N is chosen than without; under a price an hour only what runs on such GPUs."""
    told = around(scenario([{"strategy": "best_of_n", "n": 4}]))
    assert told.problems is not None
    assert [s.settings["n"] for s in told.problems.strategies] == [1, 2, 4, 8, 16]
    free = compare(told, ranges=False)
    assert free.choice == "best_of_n(n=16)"
    limit = (free.rows[2].latency_p99_s + free.rows[3].latency_p99_s) / 2
    tight = compare(
        told.model_copy(update={"slo": told.slo.model_copy(update={"e2el_ms": 1000 * limit})}), ranges=False
    )
    assert tight.choice == "best_of_n(n=4)"
    two = load_scenario("strategy_small_against_large", ["problems.num_problems=4"])
    poor = compare(two, ranges=False, max_dollars_per_hour=3.5)
    assert "on large" not in poor.choice
    assert "at up to $3.5 an hour" in poor.reason
    none = compare(two, ranges=False, max_dollars_per_hour=0.1)
    assert none.exit_code == 1
    assert "no strategy runs on GPUs of $0.1 an hour" in none.reason


def test_knobs() -> None:
    """Of every strategy the parameter that is spent; a router and one pass have none."""
    known = {
        "best_of_n": "n",
        "beam_search": "beam_width",
        "extended_thinking": "thinking_token_budget",
        "single_pass": None,
    }
    assert {name: knob_of(StrategySpec(strategy=name)) for name in known} == known


def test_the_command_says_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "two.yaml"
    strategies = [{"strategy": "best_of_n", "n": 4}, "single_pass"]
    problems = {"num_problems": 3, "quality": SHORT, "strategies": strategies}
    file.write_text(json.dumps({"model": "Qwen/Qwen3-8B", "problems": problems}))
    flags = ["--equal", "tokens", "--frontier", "--quiet", "--no-range"]
    assert run(["compare", str(file), *flags]) == 0
    text = capsys.readouterr().out
    assert "equal tokens: " in text
    assert "out of reach: single_pass takes" in " ".join(text.split())
    assert "frontier: " in text
    assert run(["compare", str(file), "--at", "5", "--quiet"]) == 2
    assert "--at is a price" in capsys.readouterr().err
    assert run(["compare", str(file), "--equal", "tokens", "--at", "1", "--quiet"]) != 0
    assert run(["compare", str(file), "--deadline", "0.001", "--quiet", "--no-range"]) == 1


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_price_is_a_number_above_0(at: float) -> None:
    with pytest.raises(KvplanError, match="a number above 0"):
        equalise(scenario(["single_pass"]), "tokens", at)


@pytest.mark.parametrize("flag", ["--deadline", "--max-dollars-per-hour", "--requests-per-day"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_limits_are_numbers_above_0(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A deadline of 0 is no missing deadline, and not a number limits nothing: one line each, before any run."""
    assert run(["compare", "strategy_best_of_n", flag, value, "--quiet"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{flag} {value}: must be a number above 0" in told


def test_a_precision_is_a_number_above_0() -> None:
    """Not a number would never be reached."""
    with pytest.raises(KvplanError, match="must be above 0"):
        compare(scenario(["single_pass"]), precision=float("nan"))


def test_a_frontier_draws_no_more_than_it_may() -> None:
    """A precision that nothing reaches ends where the draws do."""
    told = frontier(scenario([BEAM, {"strategy": "best_of_n"}]), precision=0.001, max_draws=1)
    assert "branches drawn, at most 1 allowed" in told.expectation.why
