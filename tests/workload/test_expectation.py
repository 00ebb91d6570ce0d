"""Expectations of strategies: formulas lie inside what draws say, intervals hold, the same twice is a tie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvplan.formulas import quality
from kvplan.formulas.intervals import student_t
from kvplan.workload import expectation
from kvplan.workload.closed_forms import exact_accuracy
from kvplan.workload.expectation import AccuracyDifference, Expectation, expect
from kvplan.workload.population import spread_skills
from kvplan.workload.problems import Problems, StrategySpec, draw_tasks, task_sampler
from kvplan.workload.strategies.catalog import STRATEGIES
from kvplan.workload.strategies.session import Problem, Session

NOISY = {"kind": "rule", "true_positive_rate": 0.85, "true_negative_rate": 0.8}
SHORT = {"thinking_tokens": 400, "answer_tokens": 20, "difficulty": {"beta": [0.5, 0.6]}}


def told(strategies: list[Any], **more: Any) -> tuple[Problems, list[StrategySpec]]:
    problems = Problems(**{"quality": SHORT, "verifier": NOISY, "strategies": strategies, **more})
    return problems, [spec for said in problems.strategies for spec in said.expanded()]


def expected(strategies: list[Any], precision: float = 2.0, **more: Any) -> Expectation:
    folder = more.pop("folder", Path())
    problems, specs = told(strategies, **more)
    return expect(problems, specs, folder, precision=precision)


PERFECT = {"kind": "rule"}
LONG_WRONG = SHORT | {"wrong_to_right_length": 1.4}
TURNS = SHORT | {"thinking_curve": [[0, 0.1], [300, 0.5], [800, 0.4]]}
PROBED: dict[str, Any] = {"probe": 4, "hard": 0.25, "easy": 0.75, "n_hard": 24, "n_medium": 8}
SEEDS, LEAST = 24, 18
"""Of so many 95 % intervals at least so many hold the value; fewer would come about once in 1,000 times."""


def closed_form(problems: Problems, spec: StrategySpec) -> float:
    """A strategy's formula over all of a set's difficulties and lengths: the 987 points of a Fibonacci lattice."""
    at = np.arange(987)
    place, length = (at + 0.5) / 987, (at * 610 + 0.5) / 987 % 1
    facts, scores = problems.quality, problems.verifier.score_model
    chances = exact_accuracy(spec.strategy, spec.settings, spread_skills(facts, place, length), facts, scores)
    assert chances is not None
    return float(chances.mean())


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ({"strategy": "single_pass", "max_tokens": 500}, {}),
        ({"strategy": "extended_thinking", "thinking_token_budget": 300, "max_tokens": 400}, {}),
        ({"strategy": "extended_thinking", "thinking_token_budget": 300}, {"quality": TURNS}),
        ({"strategy": "extended_thinking", "length_scale": 0.5}, {"quality": LONG_WRONG}),
        ({"strategy": "best_of_n", "n": 8}, {"verifier": PERFECT}),
        ({"strategy": "best_of_n", "n": 8, "max_tokens": 450}, {"quality": LONG_WRONG}),
        ({"strategy": "best_of_n", "n": 4, "thinking_token_budget": 250}, {}),
        ({"strategy": "self_consistency", "n": 9}, {}),
        ({"strategy": "adaptive_best_of_n", "n_hard": 24, "n_medium": 8}, {}),
        ({"strategy": "adaptive_best_of_n", "n_hard": 24, "max_tokens": 450}, {"verifier": PERFECT}),
        ({"strategy": "first_finish", "m": 1, "k": 5}, {"quality": LONG_WRONG}),
        ("grpo_group", {}),
    ],
    ids=str,
)
def test_formulas_lie_inside_the_intervals_of_draws(
    strategy: Any, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formula over the whole set lies within the reported 95 % interval, as often as one holds it, and the
    mean of many is no further off than luck has it; that of the formula holds it too, and leaves less open."""
    problems, [spec] = told([strategy], **more)
    value = closed_form(problems, spec)
    exact = expect(problems, [spec]).strategies[0]
    assert exact.is_exact
    assert value in exact.interval
    monkeypatch.setattr(expectation, "exact_accuracy", lambda *told: None)
    seeds = (problems.model_copy(update={"seed": seed}) for seed in range(SEEDS))
    drawn = [expect(one, [spec], precision=100, min_rounds=2).strategies[0] for one in seeds]
    assert not any(one.is_exact for one in drawn)
    assert sum(value in one.interval for one in drawn) >= LEAST
    means = np.array([one.accuracy for one in drawn])
    assert value == pytest.approx(
        means.mean(), abs=student_t(SEEDS - 1, 0.999) * means.std(ddof=1) / SEEDS**0.5
    )
    assert exact.estimate.within < 0.5 * drawn[0].estimate.within


@pytest.mark.parametrize(
    ("strategy", "verifier", "value"),
    [
        ("single_pass", PERFECT, 0.3),
        ({"strategy": "best_of_n", "n": 8}, PERFECT, 1 - 0.7**8),
        ({"strategy": "best_of_n", "n": 8}, NOISY, quality.best_of_n(0.3, 8, quality.d_prime(0.85, 0.8))),
        ({"strategy": "self_consistency", "n": 3}, PERFECT, 0.3**3 + 3 * 0.3**2 * 0.7 + 3 * 0.3 * 0.7**2 * 0.75 / 3),
        ({"strategy": "adaptive_best_of_n", **PROBED}, NOISY, quality.adaptive_best_of_n(0.3, 0.85, 0.8, **PROBED)),
        ({"strategy": "first_finish", "m": 1, "k": 5}, PERFECT, 0.3),
    ],
    ids=str,
)  # fmt: skip
def test_a_formula_is_exact_where_all_problems_are_alike(strategy: Any, verifier: Any, value: float) -> None:
    """Every problem of one difficulty: the expectation is the formula to rounding, and nothing about it is unsure.

    A vote of three with four wrong answers: two right, or one right beside two that differ, and the lot."""
    alike = SHORT | {"difficulty": {"levels": [[0.3, 1.0]]}}
    one = expected([strategy], quality=alike, verifier=verifier).strategies[0]
    assert one.is_exact
    assert one.accuracy == pytest.approx(float(value), abs=1e-9)
    assert one.interval == pytest.approx((float(value), float(value)), abs=1e-9)


def test_the_mean_is_the_distributions() -> None:
    """One trace of each problem is right as often as the Beta's mean says, to a tenth of a point."""
    one = expected(["single_pass"]).strategies[0]
    assert one.accuracy == pytest.approx(0.5 / 1.1, abs=0.004)
    assert one.interval.low <= 0.5 / 1.1 <= one.interval.high


def test_the_same_twice_is_a_tie() -> None:
    """Two names for one strategy differ in nothing, and a strategy's place in the list changes none of its figures."""
    vote = {"strategy": "first_finish", "m": 3, "k": 5}
    named = [
        {**vote, "label": "one"},
        {**vote, "label": "other"},
        {"strategy": "beam_search", "step_tokens": 100},
    ]
    found, turned = expected(named, 4.0), expected(named[::-1], 4.0)
    assert found.difference(0, 1).is_tie
    assert found.difference(0, 1).high == 0
    assert str(found.difference(0, 1)) == "one and other: no difference"
    for a, b in zip(found.strategies, turned.strategies[::-1], strict=True):
        assert a == b
    assert found.difference(0, 2).low == pytest.approx(-turned.difference(0, 2).high)


def test_draws_grow_until_the_interval_is_narrow() -> None:
    """Twice the precision takes about four times the problems; a cap ends it and says so."""
    wide, narrow = (expected([{"strategy": "first_finish", "m": 3}], precision=p) for p in (4.0, 2.0))
    assert 100 * narrow.strategies[0].interval.half_width <= 2
    assert 2.5 * wide.num_problems < narrow.num_problems < 6 * wide.num_problems
    problems, specs = told([{"strategy": "first_finish", "m": 3}])
    capped = expect(problems, specs, precision=0.1, max_draws=1000)
    assert "branches drawn, at most 1,000 allowed" in capped.why


def test_as_few_draws_as_were_allowed() -> None:
    """Never a round beyond `max_draws`, the first ones included; one round, which is needed, is run and says so. What
    so few say is no surer for it."""
    vote = {"strategy": "first_finish", "m": 3, "k": 3}
    problems, specs = told([vote])
    whole = expect(problems, specs)
    for allowed, spent in ((1, 192), (400, 384), (600, 576)):
        found = expect(problems, specs, max_draws=allowed)
        assert found.drawn[0].num_branches == spent
        assert found.why == f"{spent} branches drawn, at most {allowed} allowed"
        assert found.strategies[0].interval.half_width > whole.strategies[0].interval.half_width
        assert whole.strategies[0].accuracy in found.strategies[0].interval
    assert not whole.why
    few, both = problems.model_copy(update={"num_problems": 5}), told([vote, "single_pass"])[1]
    once = expect(few, both, max_draws=1, over="draws")
    assert once.strategies[0].interval == (0, 1)
    assert (once.difference(0, 1).low, once.difference(0, 1).high) == (-100, 100)


def test_hardly_a_difference_has_no_sign() -> None:
    """Nothing is "-0.0"; what a tenth of a point does not show has its first digit."""
    assert str(AccuracyDifference("a", "b", 0.0, -1e-12, 1e-12)) == "a and b: no difference"
    assert str(AccuracyDifference("a", "b", 0.0, -0.04, 3.14)) == "a and b: -0.04 to +3.1 points"


def table(folder: Path, num_problems: int = 12) -> str:
    rng = np.random.default_rng(1)
    rows = [
        f"{i},{k},{int(rng.integers(100, 900))},{int(rng.random() < (i + 0.5) / num_problems)}"
        for i in range(num_problems)
        for k in range(8)
    ]
    (folder / "t.csv").write_text("problem,sample,tokens,correct\n" + "\n".join(rows) + "\n")
    return "t.csv"


def test_a_table_stops_at_what_its_problems_allow(tmp_path: Path) -> None:
    """Over problems 12 of them cannot say 2 points, and it says how many could; over draws of them there is no end."""
    problems, specs = told(["single_pass", {"strategy": "best_of_n", "n": 4}], pass_table=table(tmp_path))
    found = expect(problems, specs, tmp_path)
    one = found.strategies[0]
    assert found.over == "problems"
    assert found.num_problems == 12
    assert "12 problems allow no more; some " in found.why
    assert 100 * one.interval.half_width > 10
    assert one.estimate.between > one.estimate.within / found.num_rounds
    over = expect(problems, specs, tmp_path, over="draws")
    assert over.why == ""
    assert 100 * over.strategies[0].interval.half_width <= 2
    rows = (tmp_path / "t.csv").read_text().splitlines()[1:]
    assert over.strategies[0].accuracy == pytest.approx(
        np.mean([int(row[-1]) for row in rows]), abs=3 * over.strategies[0].estimate.variance ** 0.5
    )


def test_nothing_right_is_no_certainty() -> None:
    """All wrong in so many draws bounds the accuracy, it does not make it 0 for sure; a formula does."""
    never = SHORT | {"difficulty": {"levels": [[0.0, 1.0]]}}
    drawn = expected([{"strategy": "first_finish", "m": 3}], quality=never).strategies[0]
    assert drawn.accuracy == drawn.interval.low == 0 < drawn.interval.high
    assert expected(["single_pass"], quality=never).strategies[0].interval == (0, 0)


def test_further_models_meet_the_same_problems() -> None:
    """A model of its own quality set solves its own share."""
    better = SHORT | {"difficulty": {"beta": [4.0, 1.0]}}
    found = expected(["single_pass", {"strategy": "single_pass", "model": "big"}], qualities={"big": better})
    assert found.strategies[1].accuracy == pytest.approx(0.8, abs=0.01)
    assert found.difference(1, 0).low > 0


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_counted_prompts_are_as_long_as_spelled_out(name: str) -> None:
    """Without an engine prompts are only counted."""
    problems = Problems(quality=SHORT, num_problems=3)
    extra = {"step_tokens": 100} if "step" in name or name in ("beam_search", "tree_search") else {}
    try:
        spec = StrategySpec(strategy=name, params=extra)
    except ValueError:
        spec = StrategySpec(strategy=name)
    for task in draw_tasks(problems):
        lengths = []
        for spells in (True, False):
            sampler = task_sampler(problems, spec, task)
            session = Session(Problem(0, 77, 20), spec.start(), sampler, spells=spells)
            orders, queue = session.begin(), []
            while orders.answer is None:
                queue += orders.start
                gone = set(orders.cancel)
                queue = [launch for launch in queue if launch.request_id not in gone]
                orders = session.finish(queue.pop(0).branch.id)
            lengths.append([launch.prompt_tokens for launch in session.launches.values()])
        assert lengths[0] == lengths[1]


def of_table(tmp_path: Path, num_problems: int, strategies: list[Any]) -> Expectation:
    """Expectations over a table whose problems are alike: one of four samples right, and its score says so."""
    rows = [f"p{i},{s},{int(s == 0)},{100 + s},{int(s == 0)}" for i in range(num_problems) for s in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["problem,sample,correct,tokens,score", *rows]) + "\n")
    return expected(strategies, folder=tmp_path, pass_table="t.csv")


ALL_FOUR = {"strategy": "best_of_n", "n": 4}
NO_CHANCE = {"strategy": "best_of_n", "n": 4, "max_tokens": 1}


def test_one_problem_says_nothing_of_others(tmp_path: Path) -> None:
    """A table of one problem has no best strategy, however far apart they are on it, and ends its draws at once."""
    found = of_table(tmp_path, 1, [ALL_FOUR, NO_CHANCE])
    apart = found.difference(0, 1)
    assert apart.points == 100
    assert apart.is_tie
    assert -100 <= apart.low < 0 < apart.high == 100
    assert found.num_rounds <= 4
    assert "1 problem allows no more" in found.why


@pytest.mark.parametrize(("num_problems", "is_tie"), [(2, True), (5, True), (6, False), (40, False)])
def test_problems_that_agree_may_have_been_luck(tmp_path: Path, num_problems: int, is_tie: bool) -> None:
    """All n problems 100 points apart: others may be the other way round, a share of 1 - 0.025^(1/n) at most, with
    2.5 %, so that six tell them apart, as in a sign test. Not so for one strategy under two names."""
    found = of_table(tmp_path, num_problems, [ALL_FOUR, NO_CHANCE, ALL_FOUR | {"label": "again"}])
    apart, unlike = found.difference(0, 1), 1 - 0.025 ** (1 / num_problems)
    assert apart.low == pytest.approx(100 * (1 - 2 * unlike))
    assert apart.is_tie is is_tie
    assert str(found.difference(0, 2)).endswith(": no difference")
