"""Bundled sets and verifier rates: cited, and their chances go through the points that they name."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from kvplan.formulas import quality
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import parse_scenario
from kvplan.workload.expectation import expect
from kvplan.workload.outcomes import ScoreModel, TraceSampler
from kvplan.workload.problems import Problems, StrategySpec
from kvplan.workload.quality_sets import QualitySet, Skill, quality_sets
from kvplan.workload.strategies import Problem
from kvplan.workload.strategies.alone import run_alone
from kvplan.workload.strategies.catalog import make
from kvplan.workload.verifiers import Verifier, measured_rates

SETS = quality_sets()
CITED = [name for name, found in SETS.items() if not found.is_assumed]


def voted(facts: QualitySet, n: int) -> float:
    """Share of problems that a vote gets right, over the set's difficulty."""
    assert facts.difficulty.beta is not None
    drawn = np.random.default_rng(0).beta(*facts.difficulty.beta, 400_000)
    grid = np.linspace(0, 1, 1001)
    return float(np.interp(drawn, grid, quality.majority(grid, n, facts.wrong_answers)).mean())


@pytest.mark.parametrize("name", CITED)
def test_a_set_says_where_it_is_from(name: str) -> None:
    """Source, date, model; what it calls assumed are fields of it, and its chances are none of them."""
    facts = SETS[name]
    assert facts.source
    assert set(facts.assumed) <= QualitySet.model_fields.keys()
    assert facts.date
    assert facts.model


def test_there_are_curves_of_each_kind() -> None:
    """At least eight sets with measured points: coverage, votes, and thinking that turns down."""
    assert sum(bool(f.coverage or f.votes or f.thinking_curve) for f in SETS.values()) >= 8
    curves = [f.thinking_curve for f in SETS.values() if f.thinking_curve]
    assert sum(max(y for _, y in curve) > curve[-1][1] + 0.05 for curve in curves) >= 2


@pytest.mark.parametrize("name", [n for n, f in SETS.items() if f.coverage])
def test_chances_go_through_the_ends_of_the_coverage(name: str) -> None:
    facts = SETS[name]
    assert facts.difficulty.beta is not None
    for samples, share in (facts.coverage[0], facts.coverage[-1]):
        found = float(quality.beta_coverage(*facts.difficulty.beta, samples))
        assert found == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize("name", [n for n, f in SETS.items() if f.votes and not f.coverage])
def test_chances_go_through_votes_where_there_is_nothing_else(name: str) -> None:
    facts = SETS[name]
    for samples, share in facts.votes:
        assert voted(facts, samples) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("name", [n for n, f in SETS.items() if f.votes and f.coverage])
def test_votes_come_near_where_coverage_sets_the_chances(name: str) -> None:
    """Within 1.5 points; with 30 problems, within one standard error of the measured vote."""
    [(samples, share)] = SETS[name].votes
    slack = 0.046 if name.endswith("aime25") else 0.015
    assert voted(SETS[name], samples) == pytest.approx(share, abs=slack)


@pytest.mark.parametrize("name", [n for n, f in SETS.items() if f.thinking_curve])
def test_thinking_curves_pass_the_natural_length(name: str) -> None:
    """So that a trace which nobody cuts or extends is right as often as its difficulty says."""
    facts = SETS[name]
    a, b = facts.difficulty.beta or (0, 1)
    assert (facts.thinking_tokens, pytest.approx(a / (a + b), abs=1e-4)) in facts.thinking_curve


@pytest.mark.parametrize("tokens", [2000, 6000, 12000, 20000, 24000])
def test_a_budget_held_to_gives_the_measured_accuracy(tokens: int) -> None:
    """Every trace of one length, held to a budget of the curve: right as often as was measured there."""
    facts = SETS["qwen3-8b-aime24"].model_copy(update={"sigma_within": 0.0, "sigma_between": 0.0})
    spec = StrategySpec(strategy="extended_thinking", params={"length_scale": tokens / facts.thinking_tokens})
    problems = Problems(quality=facts, strategies=(spec,))
    assert expect(problems, [spec]).strategies[0].accuracy == pytest.approx(
        dict(facts.thinking_curve)[tokens], abs=0.01
    )


def test_a_thinking_curve_holds_beyond_the_natural_length() -> None:
    """Natural, longer, too long: as measured, drawn."""
    facts = SETS["r1-distill-qwen-1.5b-gsm8k"]
    a, b = facts.difficulty.beta or (0, 1)

    def share(scale: float) -> float:
        start, right = make("extended_thinking", length_scale=scale), []
        for i in range(1500):
            p = float(np.random.default_rng(i).beta(a, b))
            sampler = TraceSampler(Skill(p, 385), facts, ScoreModel(), np.random.default_rng((1, i)))
            right.append(run_alone(Problem(i, 100), start(), sampler).answer.correct)
        return float(np.mean(right))

    natural, best, too_long = share(1.0), share(1100 / 385), share(15980 / 385)
    for found, expected in ((natural, 0.822), (best, 0.873), (too_long, 0.703)):
        assert found == pytest.approx(expected, abs=4 * sqrt(0.2 / 1500))


# --- verifiers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [0.5, 0.65, 0.8, 0.97])
def test_a_rate_of_pairs_gives_those_pairs(accuracy: float) -> None:
    """Right and wrong samples scored with that rate: the right one is higher as often as was measured."""
    rate = quality.rate_of_pairs(accuracy)
    facts, count, higher = QualitySet(sigma_between=0.0), 2500, 0
    for i in range(count):
        score = [
            TraceSampler(Skill(p, 100), facts, ScoreModel(rate, rate), np.random.default_rng((i, k)))
            for k, p in enumerate((1.0, 0.0))
        ]
        [right, wrong] = [run_alone(Problem(0, 10), make("best_of_n", n=1)(), s) and s for s in score]
        higher += _score(right) > _score(wrong)
    assert higher / count == pytest.approx(accuracy, abs=4 * sqrt(accuracy * (1 - accuracy) / count))


def _score(sampler: TraceSampler) -> float:
    return sampler.traces[0].bias + (sampler._d if sampler.traces[0].right else 0.0)


def test_measured_rates_fill_a_verifier() -> None:
    found = Verifier(kind="orm", placement="remote", rates="armorm-llama3-8b-math")
    assert found.true_positive_rate == found.true_negative_rate == pytest.approx(0.65, abs=0.001)
    assert "70.7% of pairs on MATH" in found.source
    assert Verifier.model_validate(found.model_dump()) == found
    assert all(0.49 < rates.rate < 1 for rates in measured_rates().values())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rates": "armorm-llama3-8b-maths"}, "did you mean armorm-llama3-8b-math"),
        ({"rates": "armorm-llama3-8b-math", "true_positive_rate": 0.9}, "contradict each other"),
    ],
)
def test_unknown_or_double_rates_are_one_line(more: dict[str, object], words: str) -> None:
    verifier = {"kind": "orm", "placement": "remote", **more}
    with pytest.raises(KvplanError, match=words) as caught:
        parse_scenario({"model": "Qwen/Qwen3-8B", "problems": {"verifier": verifier}})
    assert "\n" not in str(caught.value)
