"""Accuracy in sweeps and recommendations: the expectation of `compare`, with its interval, found once a strategy."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.scenario.schema import parse_scenario
from kvplan.scenario.space import Search
from kvplan.search import expected_accuracy
from kvplan.search.choices import pareto
from kvplan.search.comparison import compare
from kvplan.search.point_row import accuracy_text, run_point
from kvplan.search.recommendation import Candidate, tie
from kvplan.search.recommending import recommend
from kvplan.search.sweeping import sweep_rows

QUALITY = {"thinking_tokens": 400, "answer_tokens": 20, "difficulty": {"beta": [0.5, 0.5]}}
VOTE = {"strategy": "first_finish", "m": 3, "k": 5}


def told(*strategies: Any, **more: Any) -> dict[str, Any]:
    problems = {"num_problems": 4, "quality": QUALITY, "strategies": list(strategies)}
    return {"model": "Qwen/Qwen3-8B", "gpu": "h100", "problems": problems | more.pop("problems", {})} | more


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the strategies that were expected, one for each time."""
    found: list[str] = []
    plain = expected_accuracy.expect

    def counting(problems: Any, specs: Any, *args: Any, **named: Any) -> Any:
        found.extend(spec.name for spec in specs)
        return plain(problems, specs, *args, **named)

    monkeypatch.setattr(expected_accuracy, "expect", counting)
    expected_accuracy._expected.cache_clear()
    return found


def test_a_sweep_says_what_compare_says(counted: list[str]) -> None:
    """The same figure with the same interval, whatever the card and however few problems were simulated; expected once
    for each strategy."""
    data = told()
    axes = {
        "problems.strategies": [["single_pass"], [VOTE]],
        "gpu": ["h100", "h200"],
        "problems.num_problems": [3, 9],
    }
    rows = sweep_rows(data, axes, ranges=False).rows
    assert len(counted) == 2
    assert len({(row["accuracy"], row["accuracy_low"], row["accuracy_high"]) for row in rows}) == 2
    beside = [compare(parse_scenario(told(one)), ranges=False).rows[0] for one in ("single_pass", VOTE)]
    for row, other in zip((rows[0], rows[4]), beside, strict=True):
        assert row["accuracy"] == pytest.approx(other.accuracy)
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(
            (other.accuracy_low, other.accuracy_high)
        )
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]


def test_a_load_alone_needs_no_expectation(counted: list[str]) -> None:
    """Other draws of a load are looked at for the load; their accuracy is the run's own, without an interval."""
    row = run_point(parse_scenario(told(VOTE)), expects=False)
    assert counted == []
    assert row["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert row["accuracy_low"] is row["accuracy_high"] is None
    assert accuracy_text(row).endswith("%")


def test_an_accuracy_that_may_be_too_low_is_said(counted: list[str]) -> None:
    """Just above what is asked: feasible, and said to be unsure; far above, nothing is said; below, it is ruled out
    with its interval. No simulation is spent on it."""
    asked = {"slo": {"e2el_ms": 60_000}, "search": {"users": 2, "refine": 0, "ranges": False}}
    accuracy = run_point(parse_scenario(told(VOTE)))["accuracy"]
    near, far, beyond = (
        recommend(told(VOTE, **asked, problems={"min_accuracy": least}), {"gpu": ["h100"]}).candidates[0]
        for least in (accuracy - 0.003, accuracy - 0.1, accuracy + 0.01)
    )
    assert near.feasible
    assert f"it may be below the {accuracy - 0.003:.1%} asked" in near.unsure[-1]
    assert not far.unsure
    assert beyond.cause == "accuracy"
    assert beyond.num_simulations == 0
    assert beyond.why.startswith(f"accuracy {100 * accuracy:.1f}% (")
    document = near.to_dict()
    assert document["accuracy_low"] < document["accuracy"] < document["accuracy_high"]
    assert len(counted) == 1


def test_who_cannot_be_told_apart_is_as_accurate() -> None:
    """Of two whose intervals overlap the dearer is beaten; apart, both stand."""
    cost = [[1.0, 2.0]]
    assert pareto([0.5, 0.52], cost, ([0.48, 0.5], [0.52, 0.54])).tolist() == [True, False]
    assert pareto([0.5, 0.62], cost, ([0.48, 0.6], [0.52, 0.64])).tolist() == [True, True]


def candidate(strategy: str, usd: float, accuracy: float, half: float) -> Candidate:
    figures = {"accuracy": accuracy, "accuracy_low": accuracy - half, "accuracy_high": accuracy + half}
    return Candidate(
        {"strategies": strategy}, None, feasible=True, pruned=False, cause="", why="", usd_per_correct=usd,
        step_time="measured", figures=figures,
    )  # fmt: skip


def test_a_tie_of_accuracies_leaves_the_cheapest_open() -> None:
    """Correct answers of two strategies on one card, 2 % apart in price: their step times err alike, their accuracies
    do not. Known to 5 % they are tied, known to 0.1 % not; nor is one strategy with itself, or where nobody asks."""
    for half, is_tied in ((0.025, True), (0.0005, False)):
        rows = [candidate("a", 1.0, 0.5, half), candidate("b", 1.02, 0.51, half)]
        said = tie(rows, Search())
        assert (
            "; tied with strategies b within the intervals of their accuracies (50.0% (" in said
        ) is is_tied
        assert tie(rows, Search(rate=1.0)) == ""
    assert tie([candidate("a", 1.0, 0.5, 0.1), candidate("a", 1.02, 0.5, 0.1)], Search()) == ""
