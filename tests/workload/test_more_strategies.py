"""Stopping, joining, searching and cascading strategies: where each becomes a simpler one, and one figure by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_strategies import FACTS, PROMPT, Scripted, accuracy, endless, many, near, run, tokens, traces

from kvplan.formulas import quality
from kvplan.ground.errors import KvplanError
from kvplan.workload.outcomes import ScoreModel, TraceSampler
from kvplan.workload.quality_sets import QualitySet, Skill
from kvplan.workload.strategies import RIGHT, Branch, BranchOutcome, Problem
from kvplan.workload.strategies.alone import Ledger, run_alone
from kvplan.workload.strategies.catalog import make, model_names

TWO_ANSWERS = FACTS.model_copy(update={"wrong_answers": 1})
UNEVEN = st.lists(
    st.tuples(st.integers(1, 900), st.sampled_from([RIGHT, 1, 2, None])), min_size=1, max_size=12
)


def drawn(name: str, p: float, count: int, facts: QualitySet = FACTS, **params: object) -> list[Ledger]:
    """As `many`, with other facts and a perfect verifier."""
    start = make(name, **params)
    skill, sure = Skill(p, facts.thinking_tokens), ScoreModel(1, 1)
    return [
        run_alone(Problem(i, 500), start(), TraceSampler(skill, facts, sure, np.random.default_rng((7, i))))
        for i in range(count)
    ]


# --- votes that stop -----------------------------------------------------------------------------------------


def test_a_lead_is_a_beta_tail() -> None:
    """P(x > 1/2) under Beta(a + 1, b + 1), by integrating the density; 1 - it when the votes change places."""
    x = np.linspace(0, 1, 200_001)
    for first, second in ((0, 0), (1, 0), (4, 1), (7, 5), (20, 12)):
        density = x**first * (1 - x) ** second
        tail = float(np.trapezoid(density[x >= 0.5], x[x >= 0.5]) / np.trapezoid(density, x))
        assert quality.lead_confidence(first, second) == pytest.approx(tail, abs=1e-6)
        assert quality.lead_confidence(second, first) == pytest.approx(1 - tail, abs=1e-6)
    with pytest.raises(KvplanError, match="negative"):
        quality.lead_confidence(-1, 0)


def test_a_confidence_of_one_is_the_full_vote() -> None:
    """Same answers and the same tokens as a vote of all n, whatever the batch."""
    full = many("self_consistency", 0.4, 60, n=12, vote_stop=False)
    for batch in (1, 5, 12):
        stopped = many("confidence_stopped_vote", 0.4, 60, n=12, batch=batch, confidence=1.0)
        assert [s.answer.answer for s in stopped] == [f.answer.answer for f in full]
        assert tokens(stopped) == tokens(full)


def expected_samples(p: float, n: int, confidence: float) -> float:
    """Of two answers, one sample at a time: exact, over all paths of votes."""
    alive, total = {(0, 0): 1.0}, 0.0
    for taken in range(1, n + 1):
        following: dict[tuple[int, int], float] = {}
        for (right, wrong), chance in alive.items():
            for votes, share in (((right + 1, wrong), p), ((right, wrong + 1), 1 - p)):
                if taken == n or quality.lead_confidence(max(votes), min(votes)) > confidence:
                    total += taken * chance * share
                else:
                    following[votes] = following.get(votes, 0.0) + chance * share
        alive = following
    return total


@pytest.mark.parametrize("p", [0.95, 0.7, 0.5])
def test_confidence_stops_after_the_expected_number_of_samples(p: float) -> None:
    """The mean number of samples is that of the exact walk; four agreeing ones are enough at 0.95."""
    count = 400
    stopped = drawn("confidence_stopped_vote", p, count, TWO_ANSWERS)
    found = [ledger.num_branches for ledger in stopped]
    assert min(found) == 4
    spread = float(np.std(found)) / count**0.5
    assert np.mean(found) == pytest.approx(expected_samples(p, 40, 0.95), abs=4 * spread)


def test_windows_stop_when_they_agree() -> None:
    """A window of w agrees with chance s = p^w + q^w: (1 - (1 - s)^(n / w)) / s windows of it are taken."""
    p, window, n, count = 0.8, 4, 24, 500
    found = [
        s.num_branches / window
        for s in drawn("early_stopped_vote", p, count, TWO_ANSWERS, n=n, window=window)
    ]
    agree = p**window + (1 - p) ** window
    expected = (1 - (1 - agree) ** (n // window)) / agree
    assert np.mean(found) == pytest.approx(expected, abs=4 * float(np.std(found)) / count**0.5)


@given(UNEVEN)
@settings(max_examples=60, deadline=None)
def test_first_agreement_lies_between_first_finish_and_the_vote(rows: list[tuple[int, int | None]]) -> None:
    """m = 1 is the first trace with an answer; an m that nobody reaches is the majority of all."""
    lengths, answers = [list(column) for column in zip(*rows, strict=True)]

    def script() -> Scripted:
        return Scripted(lambda b, _: BranchOutcome(lengths[b.id], 0, "stop", answers[b.id], 0.5))

    n = len(rows)
    if answers[int(np.argmin(lengths))] is not None:
        first = run("first_finish", script(), m=1, k=n)
        assert run("first_agreement", script(), m=1, n=n) == first
    full = run("self_consistency", script(), n=n, vote_stop=False)
    assert run("first_agreement", script(), m=n + 1, n=n).answer.answer == full.answer.answer


def test_first_agreement_by_hand() -> None:
    """Traces of 100 ... 500 tokens say 1, 0, 2, 0, 0: at tick 400 two agree; 100 + 200 + 300 + 400 + 400 tokens."""
    ledger = run("first_agreement", traces([100, 200, 300, 400, 500], [1, 0, 2, 0, 0]), m=2, n=5)
    assert ledger.answer.correct
    assert (ledger.ticks, ledger.generated_tokens) == (400, 1400)


# --- votes by weight, threads that join ---------------------------------------------------------------------------


@given(UNEVEN)
@settings(max_examples=60, deadline=None)
def test_equal_weights_are_a_majority_vote(rows: list[tuple[int, int | None]]) -> None:
    lengths, answers = [list(column) for column in zip(*rows, strict=True)]
    script = Scripted(lambda b, _: BranchOutcome(lengths[b.id], 0, "stop", answers[b.id], 0.25))
    full = run("self_consistency", script, n=len(rows), vote_stop=False)
    assert run("weighted_vote", script, n=len(rows)).answer == full.answer


def test_weights_help_as_far_as_they_know() -> None:
    """With a guessing reward model a weighted vote is about as good as a plain one; with a good one better."""
    count = 400
    plain, guess, good = (
        accuracy(many(name, 0.35, count, ScoreModel(rate, rate), n=9))
        for name, rate in (("self_consistency", 0.5), ("weighted_vote", 0.5), ("weighted_vote", 0.85))
    )
    assert abs(plain - guess) < 0.06
    assert good > plain + 0.1


def test_one_thread_is_a_single_pass() -> None:
    for single, joined in zip(many("single_pass", 0.5, 40), many("fork_join", 0.5, 40, n=1), strict=True):
        assert (joined.answer.answer, joined.generated_tokens) == (
            single.answer.answer,
            single.generated_tokens,
        )


def test_threads_share_their_prefix_and_are_read_once() -> None:
    """2,000 tokens together, 4 threads of 1,000, three summaries of 200: peak KV 500 + 2,000 + 4 x 1,000 tokens."""
    sampler = Scripted(
        lambda b, p: (
            BranchOutcome(2000, 2000, "length", None, 0.0)
            if b.kind == "step"
            else BranchOutcome(100 if b.kind == "answer" else 1000, 0, "stop", RIGHT, 0.0)
        )
    )
    start = make("fork_join", n=4, prefix_tokens=2000)
    ledger = run_alone(PROMPT, start(), sampler, block_size=16)
    assert ledger.peak is not None
    assert ledger.peak.physical_tokens == 500 + 2000 + 4 * 1000
    assert ledger.prompt_tokens == 500 + 4 * 2500 + (3500 + 3 * 200)
    assert ledger.ticks == 2000 + 1000 + 100


def test_a_shared_prefix_shares_its_mistakes() -> None:
    """Threads that think half of it together vote worse than threads that are independent."""
    apart, half = (accuracy(many("fork_join", 0.6, 300, n=9, prefix_tokens=k)) for k in (0, 2000))
    assert apart == near(float(quality.majority(0.6, 9, 4)), 300)
    assert half < apart - 0.1


# --- searches -----------------------------------------------------------------------------------------------


def test_one_rollout_is_a_single_pass() -> None:
    """MCTS with one simulation of one whole step is the very trace; in small steps it is right as often."""
    single = many("single_pass", 0.4, 300)
    whole = many("tree_search", 0.4, 300, num_simulations=1, branch_factor=1, step_tokens=100_000)
    assert [w.answer.answer for w in whole] == [s.answer.answer for s in single]
    assert tokens(whole) == tokens(single)
    steps = many("tree_search", 0.4, 300, num_simulations=1, branch_factor=1, step_tokens=500)
    assert accuracy(steps) == near(0.4, 300)
    assert tokens(steps) == pytest.approx(tokens(single), rel=0.01)


def test_concurrent_simulations_take_turns_not_the_same_path() -> None:
    """16 simulations, four at once: as many scored rollouts, in a third of the time or less, on different leaves."""
    sampler = Scripted(lambda b, p: endless(b, p)._replace(tokens=64))
    alone = run("tree_search", Scripted(sampler.script), num_simulations=16)
    virtual = run("tree_search", Scripted(sampler.script), num_simulations=16, num_concurrent=4)
    assert virtual.ticks <= alone.ticks / 3
    roots = Scripted(sampler.script)
    run("tree_search", roots, num_simulations=4, num_concurrent=4)
    rollouts = [b.parent for b in roots.asked if b.kind == "trace"]
    assert sorted(rollouts) == [0, 1, 2, 3]  # the virtual loss sends each to a child of its own
    good = accuracy(many("tree_search", 0.3, 150, step_tokens=500, num_simulations=8, num_concurrent=4))
    assert good > 0.5


def test_keeping_all_is_best_of_n() -> None:
    """Speculative rejection that rejects nothing: the tokens of best-of-N, and its accuracy."""
    rates, n = ScoreModel(0.85, 0.8), 8
    kept = many("speculative_rejection", 0.3, 400, rates, n=n, keep=1.0, step_tokens=500)
    assert tokens(kept) == tokens(many("best_of_n", 0.3, 400, rates, n=n))
    assert accuracy(kept) == near(float(quality.best_of_n(0.3, n, quality.d_prime(0.85, 0.8))), 400)


def test_half_are_rejected_each_round() -> None:
    """16, 8, 4, 2, 1, 1, 1, 1 traces of 100 tokens each: 34 pieces instead of 128."""
    depth: dict[int, int] = {}

    def script(b: Branch, parent: BranchOutcome | None) -> BranchOutcome:
        depth[b.id] = 1 if b.parent is None else depth[b.parent] + 1
        end = depth[b.id] == 8
        return BranchOutcome(100, 100, "stop" if end else "length", RIGHT if end else None, 1 / (1 + b.id))

    ledger = run("speculative_rejection", Scripted(script), n=16, step_tokens=100)
    assert ledger.generated_tokens == (16 + 8 + 4 + 2 + 1 + 1 + 1 + 1) * 100
    assert ledger.answer.correct


def test_rejecting_early_costs_what_the_scores_on_the_way_miss() -> None:
    """Fewer tokens, and no more right answers than scoring every whole trace."""
    rates = ScoreModel(0.85, 0.8)
    early, late = (
        many("speculative_rejection", 0.3, 400, rates, n=16, keep=keep, step_tokens=500)
        for keep in (0.5, 1.0)
    )
    assert tokens(early) < 0.35 * tokens(late)
    assert accuracy(early) <= accuracy(late) + 0.02


def test_subtrees_keep_apart() -> None:
    """4 trees x 4 steps x 20 iterations; with one step each they are best-of-4 in steps."""
    ledger = run("diverse_tree_search", Scripted(endless), num_iterations=20, step_tokens=64)
    assert ledger.num_branches == ledger.scored == 4 * 4 * 20
    assert ledger.answer.answer is None
    rates = ScoreModel(0.85, 0.8)
    plain = many("diverse_tree_search", 0.3, 400, rates, branch_factor=1, step_tokens=500)
    assert tokens(plain) == tokens(many("best_of_n", 0.3, 400, rates, n=4))
    assert accuracy(plain) == near(float(quality.best_of_n(0.3, 4, quality.d_prime(0.85, 0.8))), 400)


def test_without_a_threshold_nothing_is_taken_back() -> None:
    """One step at a time, all accepted: a single pass in steps."""
    single = many("single_pass", 0.4, 300)
    chain = many("backtracking_search", 0.4, 300, branch_factor=1, threshold=0.0, step_tokens=500)
    assert tokens(chain) == tokens(single)
    assert accuracy(chain) == near(0.4, 300)


def test_backtracking_by_hand() -> None:
    """Steps 0, 1 score 0.9, 0.6; both children of 0 fail, so 1 goes on, and its child 4 ends: six steps in all."""
    marks = {0: 0.9, 1: 0.6, 2: 0.3, 3: 0.2, 4: 0.8, 5: 0.1}
    sampler = Scripted(
        lambda b, p: BranchOutcome(
            10, 10, "stop" if b.id == 4 else "length", RIGHT if b.id == 4 else None, marks[b.id]
        )
    )
    ledger = run("backtracking_search", sampler, branch_factor=2, step_tokens=10)
    assert [b.parent for b in sampler.asked] == [None, None, 0, 0, 1, 1]
    assert ledger.answer.branch == 4
    stuck = Scripted(lambda b, p: BranchOutcome(10, 10, "length", None, 0.1))
    assert run("backtracking_search", stuck, step_tokens=10).answer.answer is None


# --- two models ------------------------------------------------------------------------------------------------

SMALL, LARGE = 0.3, 0.8


def routed(
    name: str, count: int, rates: ScoreModel | None = None, **params: object
) -> list[tuple[Ledger, set[str]]]:
    """Each problem with a small model right with chance 0.3 and a large one with 0.8; who was asked."""
    start, found = make(name, large_model="large", **params), []
    for i in range(count):
        others = {"large": (Skill(LARGE, 4000), FACTS)}
        sampler = TraceSampler(
            Skill(SMALL, 4000), FACTS, rates or ScoreModel(), np.random.default_rng((7, i)), others=others
        )
        asked: set[str] = set()

        def script(b: Branch, p: BranchOutcome | None, sampler=sampler, asked=asked) -> BranchOutcome:
            asked.add(b.model)
            return sampler.draw(b, p)

        found.append((run_alone(Problem(i, 500), start(), Scripted(script)), asked))
    return found


@pytest.mark.parametrize("name", ["cascade", "draft_then_verify"])
def test_thresholds_of_nought_and_one_trust_one_model_alone(name: str) -> None:
    small, large = (routed(name, 300, threshold=threshold) for threshold in (0.0, 1.0))
    assert all("large" in asked for _, asked in large)
    assert accuracy([ledger for ledger, _ in large]) == near(LARGE, 300)
    expected = float(quality.majority(SMALL, 5, 4)) if name == "cascade" else SMALL
    assert accuracy([ledger for ledger, _ in small]) == near(expected, 300)
    if name == "cascade":
        assert all(asked == {""} for _, asked in small)
        voted = many("self_consistency", SMALL, 300, n=5, vote_stop=False)
        assert tokens([ledger for ledger, _ in small]) == tokens(voted)


def test_a_perfect_judge_adds_the_large_models_share() -> None:
    """Right drafts are kept, the rest solved again: p + (1 - p) q."""
    found = routed("draft_then_verify", 500, ScoreModel(1, 1))
    assert accuracy([ledger for ledger, _ in found]) == near(SMALL + (1 - SMALL) * LARGE, 500)
    drafts = [ledger for ledger, _ in found if ledger.num_branches == 2]
    assert len(drafts) / 500 == near(SMALL, 500)


def test_a_cascade_meets_its_closed_form() -> None:
    """More than 3 of 5 agree on the right answer with P(Bin(5, p) > 3); all else goes to the large model."""
    found = routed("cascade", 600, n=5, threshold=0.6)
    agree = sum(comb(5, k) * SMALL**k * (1 - SMALL) ** (5 - k) for k in (4, 5))
    each_wrong = (1 - SMALL) / FACTS.wrong_answers
    wrong = FACTS.wrong_answers * sum(
        comb(5, k) * each_wrong**k * (1 - each_wrong) ** (5 - k) for k in (4, 5)
    )
    assert accuracy([ledger for ledger, _ in found]) == near(agree + (1 - agree - wrong) * LARGE, 600)


def test_a_strategys_models_are_known() -> None:
    """So that a scenario starts the engines it needs, and no others."""
    assert model_names("cascade", large_model="big") == {"big"}
    assert model_names("cascade") == model_names("best_of_n") == set()


# --- budgets that are asked for, context that is folded --------------------------------------------------------------


def test_a_stated_budget_is_heeded_as_far_as_told() -> None:
    """heed 1 = the budget, 0 = the natural length, 1/2 = their geometric mean; shorter traces stay as they are."""
    free = [c.generated_tokens - 100 for c in many("single_pass", 1.0, 60)]
    for heed, rule in (
        (1.0, lambda natural: 2000),
        (0.0, lambda natural: natural),
        (0.5, lambda natural: (2000 * natural) ** 0.5),
    ):
        asked = many("stated_budget", 1.0, 60, budget_tokens=2000, heed=heed)
        for natural, ledger in zip(free, asked, strict=True):
            expected = rule(natural) if natural > 2000 else natural
            assert ledger.generated_tokens - 100 == pytest.approx(expected, abs=1)
    assert accuracy(many("stated_budget", 0.6, 300, budget_tokens=2000)) < 0.5


def folding(
    segment: int, summary: int, pieces: int
) -> Callable[[Branch, BranchOutcome | None], BranchOutcome]:
    def script(b: Branch, parent: BranchOutcome | None) -> BranchOutcome:
        if b.kind == "summary":
            return BranchOutcome(summary, summary, "stop", None, 0.0)
        last = b.id == 2 * (pieces - 1)
        return BranchOutcome(segment, segment, "stop" if last else "length", RIGHT if last else None, 0.0)

    return script


def test_folding_keeps_the_context_short() -> None:
    """Four pieces of 1,000 with summaries of 100: KV never above 500 + 100 + 1,000 + 100, where a trace holds 4,500."""
    start = make("compaction", segment_tokens=1000, summary_tokens=100)
    ledger = run_alone(PROMPT, start(), Scripted(folding(1000, 100, 4)), block_size=1)
    assert ledger.answer.correct
    assert ledger.generated_tokens == ledger.ticks == 4 * 1000 + 3 * 100
    assert ledger.prompt_tokens == 500 + 3 * 600 + (1500 + 1600 + 1600)
    assert ledger.peak is not None
    assert ledger.peak.physical_tokens == 500 + 100 + 1000 + 100


def test_one_segment_is_a_single_pass() -> None:
    """A trace that fits into a segment is never folded; folding changes how often it is right by chance only."""
    single = many("single_pass", 0.4, 300)
    whole = many("compaction", 0.4, 300, segment_tokens=100_000)
    assert [w.answer.answer for w in whole] == [s.answer.answer for s in single]
    assert tokens(whole) == tokens(single)
    folded = many("compaction", 0.4, 300, segment_tokens=1000, summary_tokens=100)
    assert accuracy(folded) == near(0.4, 300)
    summaries = [(f.generated_tokens - s.generated_tokens) / 100 for f, s in zip(folded, single, strict=True)]
    assert all(n == int(n) and n >= 1 for n in summaries)


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("confidence_stopped_vote", {"confidence": 1.2}, "confidence"),
        ("speculative_rejection", {"keep": 0}, "greater than 0"),
        ("cascade", {"large_model": 7}, "large_model"),
        ("tree_search", {"num_concurrent": 0}, "num_concurrent"),
        ("diverse_tree_search", {"num_subtrees": 10_000, "branch_factor": 10_000}, "branches at once"),
    ],
)
def test_bad_parameters_are_one_clear_line(name: str, params: dict[str, object], words: str) -> None:
    with pytest.raises(KvplanError) as caught:
        make(name, **params)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
