"""What would turn a choice: where it is said to turn it does, and nowhere before."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from test_compare import SHORT, engine, table

from kvplan.scenario.schema import parse_scenario
from kvplan.search import sensitivity
from kvplan.search.comparison import compare
from kvplan.search.sensitivity import Turn, accuracy_turns, turns_text
from kvplan.workload.expectation import expect
from kvplan.workload.problems import Problems

BEAM = {"strategy": "beam_search", "step_tokens": 100, "beam_width": 4, "branch_factor": 4}
HALF = SHORT | {"difficulty": {"beta": [4.0, 4.0]}, "wrong_answers": 3}


def test_a_verifier_worse_than_so_much_loses_to_a_vote() -> None:
    """Best-of-8 against a vote of 8: the stated rate chooses one, beyond the turn the other is surely ahead."""
    told: list[Any] = [{"strategy": "best_of_n", "n": 8}, {"strategy": "self_consistency", "n": 8}]
    verifier = {"kind": "rule", "true_positive_rate": 0.95, "true_negative_rate": 0.55}
    found = table(told, 4, quality=HALF, verifier=verifier)
    assert found.choice == "best_of_n(n=8)"
    [turn] = [t for t in found.turns if t.key == "verifier.true_positive_rate"]
    assert turn.to == "self_consistency(n=8)"
    assert turn.at is not None
    assert 0.5 < turn.at < 0.95
    for rate, sign in ((turn.at, -1), (turn.at + 0.04, 1)):
        problems = Problems(quality=HALF, verifier=verifier | {"true_positive_rate": rate}, strategies=told)
        apart = expect(problems, list(problems.strategies)).difference(0, 1)
        assert sign * apart.points > (0 if sign < 0 else -1.0)
    assert turn.even is not None
    assert turn.at < turn.even < 0.95
    level = Problems(quality=HALF, verifier=verifier | {"true_positive_rate": turn.even}, strategies=told)
    assert abs(expect(level, list(level.strategies)).difference(0, 1).points) < 2
    said = f"true_positive_rate of {turn.at:.3g}, stated 0.95 (self_consistency; as accurate from {turn.even:.3g})"
    assert said in " ".join(str(found).split())


@pytest.mark.parametrize("budget", [40_000, 15_000, 1])
def test_trees_are_looked_at_within_the_branches_allowed(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beam takes fifty times the branches of a sample: every value is looked at on as many problems as the branches
    allow, or the accuracies took; the fewer, the larger the lead that shows, and it is said."""
    drawn: list[int] = []

    def counting(*told: Any, **named: Any) -> Any:
        found = expect(*told, **named)
        drawn.append(sum(one.num_branches for one in found.drawn))
        return found

    monkeypatch.setattr(sensitivity, "expect", counting)
    problems = {"quality": HALF, "verifier": {"kind": "prm", "model": "Qwen/Qwen3-0.6B", "true_positive_rate": 0.8,
                             "true_negative_rate": 0.75},
                "strategies": [BEAM, {"strategy": "best_of_n", "n": 4}]}  # fmt: skip
    scenario = parse_scenario({"model": "Qwen/Qwen3-8B", "problems": problems})
    assert scenario.problems is not None
    expectation = expect(scenario.problems, list(scenario.problems.strategies), precision=8)
    spent = sum(one.num_branches for one in expectation.drawn)
    best = max((0, 1), key=lambda i: expectation.expected(i).accuracy)
    turns = accuracy_turns(scenario, expectation, (0, 1), best, budget)
    assert sum(drawn) <= 1.05 * max(budget, spent)
    assert {turn.key for turn in turns} >= {"verifier.true_positive_rate", "verifier.correlation"}
    assert all(turn.looked for turn in turns)
    assert {turn.num_problems for turn in turns} == {{40_000: 16, 15_000: 8, 1: 8}[budget]}
    unmoved = [turn for turn in turns if turn.at is None]
    assert all(turn.points is not None and turn.points > 0 for turn in unmoved)
    text = turns_text(turns)
    assert "not looked at" not in text
    assert not unmoved or f"(on {turns[0].num_problems} problems, where a lead of " in text


def test_what_nobody_depends_on_is_not_listed() -> None:
    """Votes ask no verifier and revise nothing."""
    told: list[Any] = [{"strategy": "self_consistency", "n": n} for n in (3, 9)]
    keys = {turn.key for turn in table(told, 4, quality=HALF).turns}
    assert not keys & {"verifier.true_positive_rate", "verifier.correlation", "quality.revision_gain"}


def test_steps_that_are_slower_break_the_limit() -> None:
    """The limit over the chosen one's p99, and over that of a better one that misses it."""
    told: list[Any] = [{"strategy": "best_of_n", "n": [1, 8]}]
    free = table(told, 8)
    small, large = (row.latency_p99_s for row in free.rows)
    limit = (small + large) / 2
    found = table(told, 8, slo={"e2el_ms": 1000 * limit})
    slower, quicker = [turn for turn in found.turns if turn.key == "step_time"]
    assert slower.at == pytest.approx(limit / small)
    assert quicker.at == pytest.approx(limit / large)
    assert quicker.to == "best_of_n(n=8)"


def test_load_is_looked_at_where_it_can_turn() -> None:
    """Arrivals that come so many times as often break the limit; without a limit load turns nothing."""
    problems = {"num_problems": 30, "quality": SHORT, "arrivals": {"kind": "poisson", "rate": 0.05},
                "strategies": ["single_pass"]}  # fmt: skip
    tight = engine(60)
    told = {"model": "Qwen/Qwen3-8B", "problems": problems, "slo": {"e2el_ms": 20_000}}
    found = compare(parse_scenario(told), setups=tight, ranges=False)
    [turn] = [turn for turn in found.turns if turn.key == "load"]
    if turn.at is not None:
        more = {**problems, "arrivals": {"kind": "poisson", "rate": 0.05 * turn.at}}
        late = compare(parse_scenario({**told, "problems": more}), setups=tight, ranges=False)
        assert late.choice == ""
    free = compare(parse_scenario({**told, "slo": {}}), setups=tight, ranges=False)
    assert not [turn for turn in free.turns if turn.key == "load"]


def test_the_line_says_what_was_not_looked_at() -> None:
    turns = [
        Turn("verifier.correlation", 0.5, None, "", 0, 0.95, looked=False),
        Turn("price", 1.0, 1.7, "b", 0, 9),
    ]
    assert (
        turns_text(turns) == "the choice is turned by GPUs 1.7 times as dear (b); not looked at: correlation"
    )
    assert turns_text([]) == ""
    assert turns_text(turns[:1]) == "whether correlation would turn the choice was not looked at"


def test_a_turn_is_told_from_what_is_stated() -> None:
    """Steps 1.2 % longer are not "1 times as long"."""
    assert "steps 1.01 times as long" in turns_text([Turn("step_time", 1.0, 1.012, "b", 0.0, inf)])
