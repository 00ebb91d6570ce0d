"""Each strategy under the bare loop: one law and one hand-worked or published figure for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.formulas import quality
from kvplan.ground.content import Segment
from kvplan.ground.errors import KvplanError
from kvplan.workload.outcomes import ScoreModel, TraceSampler
from kvplan.workload.problems import StrategySpec
from kvplan.workload.quality_sets import Difficulty, QualitySet, Skill, skills
from kvplan.workload.strategies import RIGHT, Branch, BranchOutcome, Launch, Problem, Session
from kvplan.workload.strategies.alone import Ledger, run_alone
from kvplan.workload.strategies.catalog import STRATEGIES, make
from kvplan.workload.strategies.footprint import Held, footprint

PROMPT = Problem(0, 500)
FACTS = QualitySet(sigma_between=0.0, thinking_tokens=4000, answer_tokens=100)


class Scripted:
    """A sampler that does as told: what each branch does is a function of the branch and its parent."""

    def __init__(self, script: Callable[[Branch, BranchOutcome | None], BranchOutcome]) -> None:
        self.script = script
        self.asked: list[Branch] = []

    def draw(self, branch: Branch, parent: BranchOutcome | None) -> BranchOutcome:
        self.asked.append(branch)
        return self.script(branch, parent)


def traces(lengths: list[int], answers: list[int], scores: list[float] | None = None) -> Scripted:
    """Branch i ends by itself after lengths[i] tokens with answers[i] and scores[i]."""
    marks = scores or [0.5] * len(lengths)
    return Scripted(lambda b, _: BranchOutcome(lengths[b.id], 0, "stop", answers[b.id], marks[b.id]))


def run(name: str, sampler: object, **params: object) -> Ledger:
    return run_alone(PROMPT, make(name, **params)(), sampler)


def many(
    name: str, p: float | list[float], count: int = 400, verifier: ScoreModel | None = None, **params: object
) -> list[Ledger]:
    """The same strategy on `count` problems drawn at chance p."""
    start, chances = make(name, **params), np.broadcast_to(p, count)
    return [
        run_alone(
            Problem(i, 500),
            start(),
            TraceSampler(
                Skill(float(q), 4000), FACTS, verifier or ScoreModel(), np.random.default_rng((7, i))
            ),
        )
        for i, q in enumerate(chances)
    ]


def accuracy(ledgers: list[Ledger]) -> float:
    return float(np.mean([ledger.answer.correct for ledger in ledgers]))


def tokens(ledgers: list[Ledger]) -> float:
    return float(np.mean([ledger.generated_tokens for ledger in ledgers]))


def near(share: float, count: int) -> object:
    """Within four standard errors of a proportion."""
    return pytest.approx(share, abs=4 * math.sqrt(max(share * (1 - share), 0.01) / count))


# --- sharing ---------------------------------------------------------------------------------------------


def test_eight_branches_over_a_shared_prompt() -> None:
    """8 x 1,000 over 4,000: 40,000 apart, 12,000 and 754 blocks shared, 761 as vLLM hits (249 + 8 x 64)."""
    sampler = traces([1000] * 8, [RIGHT] * 8)
    ledger = run_alone(Problem(0, 4000), make("best_of_n", n=8)(), sampler, block_size=16)
    assert ledger.peak is not None
    assert ledger.peak.logical_tokens == 40_000
    assert ledger.peak.physical_tokens == 12_000
    assert ledger.peak.copy_on_write_blocks == 754
    assert ledger.peak.full_block_blocks == 761
    assert ledger.peak.none_blocks == 8 * 313


@st.composite
def forests(draw: st.DrawFn) -> list[Launch]:
    """Random trees of branches: forks from anywhere, own prompts, dropped thinking."""
    prompt = (Segment("system", draw(st.integers(0, 40))), Segment("p", draw(st.integers(1, 70))))
    made = [Launch(Branch(0), 0, prompt, BranchOutcome(draw(st.integers(1, 60)), 5, "stop", None, 0.0))]
    session = Session(Problem(0, 1), make("single_pass")(), Scripted(lambda b, p: made[0].outcome))
    for i in range(1, draw(st.integers(1, 9))):
        parent = draw(st.sampled_from(made))
        child = Branch(
            i,
            parent.branch.id,
            draw(st.none() | st.integers(1, 60)),
            draw(st.integers(0, 20)),
            draw(st.booleans()),
        )
        outcome = BranchOutcome(draw(st.integers(1, 60)), draw(st.integers(0, 60)), "stop", None, 0.0)
        made.append(Launch(child, i, session._prompt(child, parent), outcome))
    return made


def spelled(held: Held) -> list[tuple[str, int]]:
    """Every token by name."""
    parts = (*held.prompt, Segment(held.output, held.num_output_tokens))
    return [(s.name, s.start + i) for s in parts for i in range(s.length)]


@given(forests(), st.sampled_from([1, 4, 16]))
@settings(deadline=None, max_examples=150)
def test_sharing_never_costs_blocks(launches: list[Launch], block_size: int) -> None:
    """physical <= logical; sharing never needs more blocks than none; the trie counts what spelling out counts."""
    held = [Held.of(launch) for launch in launches]
    found = footprint(held, block_size)
    contents = [tuple(spelled(h)) for h in held]
    prefixes = {c[:i] for c in contents for i in range(1, len(c) + 1)}
    full = {c[:i] for c in contents for i in range(block_size, len(c) + 1, block_size)}
    assert found.physical_tokens == len(prefixes) <= found.logical_tokens
    assert found.copy_on_write_blocks <= found.full_block_blocks <= found.none_blocks
    tails = sum(len(c) % block_size > 0 for c in contents)
    assert found.full_block_blocks - len(full) - tails >= 0
    assert found.copy_on_write_blocks * block_size >= found.physical_tokens


def test_a_child_names_its_parents_tokens() -> None:
    """A fork from the middle names the parent's first tokens; a next turn leaves the thinking out."""
    parent = Launch(Branch(0), 7, (Segment("problem0", 500),), BranchOutcome(1000, 800, "stop", RIGHT, 0.0))
    session = Session(PROMPT, make("single_pass")(), Scripted(lambda b, p: parent.outcome))
    assert session._prompt(Branch(1, 0, 300), parent) == (Segment("problem0", 500), Segment("out:7", 300))
    turn = session._prompt(Branch(2, 0, extra_prompt=40, drop_thinking=True), parent)
    assert turn == (Segment("problem0", 500), Segment("out:7", 200, 800), Segment("own0.2", 40))


# --- one trace ---------------------------------------------------------------------------------------------


def test_single_pass_solves_p_of_them() -> None:
    assert accuracy(many("single_pass", 0.3, 600)) == near(0.3, 600)


def test_what_max_tokens_cuts_is_wrong() -> None:
    """Accuracy under a hard cap is p times the share that ends before it; the rest has no answer."""
    capped = many("single_pass", 0.6, 600, max_tokens=4100)
    cut = quality.truncated_share(4000 * math.exp(-(0.3**2) / 2), 0.3, 4000)
    assert np.mean([c.answer.answer is None for c in capped]) == near(float(cut), 600)
    assert accuracy(capped) == near(0.6 * (1 - float(cut)), 600)
    assert max(c.generated_tokens for c in capped) == 4100


def test_a_thinking_budget_still_answers() -> None:
    """A soft budget ends the thinking at exactly that token and the answer follows, at some loss of accuracy."""
    free, bounded = many("single_pass", 0.6), many("extended_thinking", 0.6, thinking_token_budget=2000)
    for a, b in zip(free, bounded, strict=True):
        assert b.generated_tokens == min(a.generated_tokens, 2100)
    assert all(c.answer.answer is not None for c in bounded)
    assert accuracy(bounded) < accuracy(free)


def test_a_measured_curve_is_reproduced_and_may_turn_down() -> None:
    """Budgets 0.71, 0.78, 0.83 and 0.80 in full: cutting at 512 of 2,048 tokens is better than thinking on."""
    points = ((1, 0.71), (128, 0.78), (512, 0.83), (2048, 0.80))
    facts = QualitySet(
        thinking_tokens=2048, answer_tokens=50, sigma_within=0, sigma_between=0, thinking_curve=points
    )

    def share(**params: object) -> float:
        samplers = (
            TraceSampler(Skill(0.8, 2048), facts, ScoreModel(), np.random.default_rng(i)) for i in range(1500)
        )
        return accuracy([run_alone(PROMPT, make("extended_thinking", **params)(), s) for s in samplers])

    for tokens, expected in points[:3]:
        assert share(thinking_token_budget=tokens) == near(expected, 1500)
    assert share() == near(0.80, 1500)
    assert share(thinking_token_budget=512) > share()


def test_effort_is_a_named_budget() -> None:
    """high = 4,096 thinking tokens (LiteLLM's default); low = 1,024."""
    assert max(c.generated_tokens for c in many("extended_thinking", 0.5, 50, effort="low")) == 1024 + 100
    assert max(c.generated_tokens for c in many("extended_thinking", 0.5, 200, effort="high")) == 4096 + 100


def test_a_stated_budget_scales_lengths() -> None:
    """A prompt that asks for half the thinking halves each trace, not only the long ones."""
    free, half = many("single_pass", 1.0, 50), many("extended_thinking", 1.0, 50, length_scale=0.5)
    for a, b in zip(free, half, strict=True):
        assert b.generated_tokens - 100 == pytest.approx((a.generated_tokens - 100) / 2, abs=1)


def test_budget_forcing_waits_and_ends() -> None:
    """Thinking 1,000 + 300 + 300 with two waits: 1,600 generated, 2 extra prompt tokens, then the answer."""
    sampler = Scripted(
        lambda b, p: (
            BranchOutcome(100, 0, "stop", RIGHT, 0.0)
            if b.kind == "answer"
            else BranchOutcome(min(1000 if p is None else 300, b.max_tokens), 0, "stop", None, 0.0)
        )
    )
    ledger = run("budget_forcing", sampler, num_waits=2)
    assert ledger.generated_tokens == 1000 + 300 + 300 + 100
    assert ledger.num_branches == 4
    assert ledger.prompt_tokens == 500 + (1500 + 1) + (1801 + 1) + (2102 + 8)


def test_budget_forcing_reaches_its_minimum_and_keeps_its_maximum() -> None:
    """s1: whatever the trace wants, its thinking lies between the two bounds."""
    for ledger in many("budget_forcing", 0.5, 100, min_tokens=5000, max_thinking_tokens=6000):
        waits = ledger.num_branches - 2  # each is one prompt token, and counts as thinking
        assert 5000 <= ledger.ticks - 100 + waits <= 6000


def test_sequential_revision_selects_round_three_and_pays_for_four() -> None:
    """Scores 0.61, 0.76, 0.78, 0.781: round 4 gains less than 0.01, so round 3 is kept and four are paid."""
    scores = {0: 0.61, 2: 0.76, 4: 0.78, 6: 0.781, 8: 0.9}
    sampler = Scripted(lambda b, p: BranchOutcome(1000, 800, "stop", RIGHT, scores[b.id]))
    ledger = run("sequential_revision", sampler, max_rounds=5, min_gain=0.01)
    assert ledger.answer.branch == 4
    assert ledger.num_branches == ledger.answer.samples == 4
    assert ledger.generated_tokens == 4000


def test_critiques_are_passes_of_their_own() -> None:
    """With critiques three rounds take five passes, and each critique re-reads the draft's answer."""
    sampler = Scripted(
        lambda b, p: (
            BranchOutcome(120, 120, "stop", None, 0.0)
            if b.kind == "critique"
            else BranchOutcome(1000, 800, "stop", RIGHT, 0.3 + 0.1 * b.id)
        )
    )
    ledger = run("sequential_revision", sampler, max_rounds=3, critique_tokens=120)
    assert [b.kind for b in sampler.asked] == ["trace", "critique", "revision", "critique", "revision"]
    assert ledger.generated_tokens == 3 * 1000 + 2 * 120
    assert ledger.prompt_tokens == 500 + 750 + (750 + 120 + 50) + (920 + 200 + 50) + (1170 + 120 + 50)


# --- many traces -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 16])
def test_best_of_n_meets_the_closed_form(n: int) -> None:
    """The draws and `quality.best_of_n` are the same model; with a perfect verifier it is the coverage."""
    rates = ScoreModel(0.85, 0.8)
    drawn = accuracy(many("best_of_n", 0.25, 500, rates, n=n))
    assert drawn == near(float(quality.best_of_n(0.25, n, quality.d_prime(0.85, 0.8))), 500)
    perfect = accuracy(many("best_of_n", 0.25, 500, ScoreModel(1, 1), n=n))
    assert perfect == near(float(quality.coverage(0.25, n)), 500)


def test_self_consistency_meets_the_closed_form() -> None:
    """A vote of 9 at p = 0.4 against four wrong answers."""
    voted = many("self_consistency", 0.4, 600, n=9)
    assert accuracy(voted) == near(float(quality.majority(0.4, 9, 4)), 600)


def test_vote_stop_changes_tokens_and_not_answers() -> None:
    """Stopping when nothing can change any more gives the same winner for fewer tokens."""
    stop, full = (many("self_consistency", 0.7, 100, n=9, vote_stop=flag) for flag in (True, False))
    for a, b in zip(stop, full, strict=True):
        assert a.answer.answer == b.answer.answer
        assert a.generated_tokens <= b.generated_tokens
    assert tokens(stop) < 0.97 * tokens(full)


def test_vote_stop_by_hand() -> None:
    """Five traces of 100 ... 500 tokens; the first three agree, so at tick 300 the other two stop: 1,200 tokens."""
    ledger = run("self_consistency", traces([100, 200, 300, 400, 500], [1, 1, 1, 0, 0]), n=5)
    assert ledger.answer.answer == 1
    assert ledger.ticks == 300
    assert ledger.generated_tokens == 100 + 200 + 300 + 300 + 300


def test_first_finish_takes_the_shortest() -> None:
    """short-1@5 ends with the first trace; short-3@5 lets three vote, ties to the shortest."""
    sampler = traces([500, 300, 400, 900, 200], [0, 1, 1, 0, 2])
    assert run("first_finish", sampler, m=1, k=5).answer.branch == 4
    ledger = run("first_finish", traces([500, 300, 400, 900, 200], [0, 1, 1, 0, 2]), m=3, k=5)
    assert ledger.answer.answer == 1
    assert (ledger.ticks, ledger.generated_tokens) == (400, 400 + 300 + 400 + 400 + 200)


def test_first_finish_wins_where_wrong_traces_are_long() -> None:
    """Published direction (arXiv 2505.17813, table 1): the shortest of many is right more often than a random one."""
    facts = FACTS.model_copy(update={"wrong_to_right_length": 1.5})

    def share(name: str, **params: object) -> float:
        samplers = [
            TraceSampler(Skill(0.5, 4000), facts, ScoreModel(), np.random.default_rng(i)) for i in range(300)
        ]
        return accuracy([run_alone(PROMPT, make(name, **params)(), s) for s in samplers])

    assert share("first_finish", m=1, k=20) > share("single_pass") + 0.2


def test_adaptive_stops_on_easy_and_spends_on_hard() -> None:
    """Four promising probes end it at 4 samples; one of four in the middle makes 16; none, 64."""

    def probe(good: int) -> Ledger:
        marks = [0.9] * good + [0.1] * (64 - good)
        return run("adaptive_best_of_n", traces([100] * 64, [RIGHT] * 64, marks))

    assert [probe(good).num_branches for good in (4, 3, 2, 1, 0)] == [4, 16, 16, 16, 64]


def test_a_probe_errs_as_probes_do() -> None:
    """With a guessing verifier an always-solved problem still draws extra samples."""
    sure, guess = ScoreModel(1, 1), ScoreModel(0.5, 0.5)
    assert np.mean([c.num_branches for c in many("adaptive_best_of_n", 1.0, 100, sure)]) == 4
    assert np.mean([c.num_branches for c in many("adaptive_best_of_n", 1.0, 100, guess)]) > 10


@cache
def adaptive_saving() -> float:
    """How many times the samples of adaptive best-of-N uniform sampling needs for its accuracy, on a U shape."""
    facts = QualitySet(difficulty=Difficulty(beta=(0.35, 0.35)), sigma_between=0.0)
    chances = [s.p for s in skills(facts, 600, np.random.default_rng(0))]
    sure = ScoreModel(0.97, 0.97)
    adaptive = many("adaptive_best_of_n", chances, 600, sure, n_medium=8, n_hard=64)
    spent, reached = np.mean([c.num_branches for c in adaptive]), accuracy(adaptive)
    d = quality.d_prime(0.97, 0.97)
    uniform = {n: float(np.mean(quality.best_of_n(np.array(chances), n, d))) for n in range(1, 65)}
    needed = next((n for n, a in uniform.items() if a >= reached), 64)
    return float(needed / spent)


def test_adaptive_saves_samples_on_a_u_shape() -> None:
    """Adaptive against uniform best-of-N at equal accuracy on a U-shaped difficulty needs fewer samples.

    Damani et al. (arXiv 2410.04707) report up to half of the computation; validation/strategies.md has ours.
    """
    assert adaptive_saving() > 1.2


def test_sure_and_hopeless_problems_gain_nothing() -> None:
    """p = 0 stays wrong and p = 1 stays right under every strategy that only chooses among samples."""
    for name in ("best_of_n", "self_consistency", "adaptive_best_of_n", "first_finish"):
        assert accuracy(many(name, 0.0, 20)) == 0
        assert accuracy(many(name, 1.0, 20)) == 1


def test_under_pressure_the_vote_is_weighted() -> None:
    """STEP: two weak votes lose against one strong one; pruned traces have none."""
    ledger = run("pruned_under_pressure", traces([10, 20, 30], [1, 1, 0], [0.2, 0.3, 0.9]), n=3)
    assert ledger.answer.answer == RIGHT
    session = Session(
        PROMPT, make("pruned_under_pressure", n=3)(), traces([10, 20, 30], [1, 1, 0], [0.2, 0.3, 0.4])
    )
    session.begin()
    session.prune(0, 5)
    session.finish(1)
    orders = session.finish(2)
    assert orders.answer is not None
    assert orders.answer.answer == RIGHT


def test_a_grpo_group_is_sixteen_of_one_prompt() -> None:
    """16 rollouts, capped at 32,768 tokens, each on its own: accuracy is the mean reward p."""
    groups = many("grpo_group", 0.3, 300)
    assert {g.num_branches for g in groups} == {16}
    assert accuracy(groups) == near(0.3, 300)
    long = Scripted(lambda b, p: BranchOutcome(b.max_tokens, b.max_tokens, "length", None, 0.0))
    assert run("grpo_group", long).generated_tokens == 16 * 32_768


# --- trees -------------------------------------------------------------------------------------------------


def endless(b: Branch, parent: BranchOutcome | None) -> BranchOutcome:
    return BranchOutcome(b.max_tokens, b.max_tokens, "length", None, 0.5)


def test_beam_search_generates_308_steps() -> None:
    """4 beams x 4 branches x 20 iterations: 4 first steps, then 19 times 16."""
    ledger = run("beam_search", Scripted(endless), num_iterations=20, step_tokens=64)
    assert ledger.num_branches == ledger.scored == 308
    assert ledger.generated_tokens == 308 * 64
    assert ledger.answer.answer is None


@pytest.mark.parametrize(("aggregation", "kept"), [("last", 3), ("min", 2), ("sum", 3)])
def test_beam_aggregation_decides_who_stays(aggregation: str, kept: int) -> None:
    """Paths (0.9, 0.4 | 0.5) and (0.1, 0.6): last keeps 0.6, min keeps 0.5, sum keeps 1.4."""
    marks = {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.4, 4: 0.6, 5: 0.3}
    if aggregation == "sum":
        marks |= {2: 0.3, 3: 0.5}
    if aggregation == "last":
        kept = 4
    sampler = Scripted(
        lambda b, p: (
            BranchOutcome(10, 10, "length", None, marks[b.id])
            if b.id < 2
            else BranchOutcome(10, 10, "stop", RIGHT, marks[b.id])
        )
    )
    ledger = run(
        "beam_search", sampler, beam_width=2, branch_factor=2, aggregation=aggregation, step_tokens=10
    )
    assert ledger.answer.branch == kept


def test_a_better_reward_model_makes_a_better_beam() -> None:
    """Accuracy rises with the PRM's rates; errors shared along a family make the beam collapse and cost accuracy."""

    def beam(verifier: ScoreModel) -> float:
        return accuracy(many("beam_search", 0.3, 150, verifier, step_tokens=500, num_iterations=16))

    guess, good, collapsed = (
        beam(v)
        for v in (ScoreModel(0.5, 0.5), ScoreModel(0.85, 0.85), ScoreModel(0.85, 0.85, correlation=0.95))
    )
    assert guess < collapsed < good


def step_logits(p: float, verifier: ScoreModel, ends: list[int], seed: int) -> list[float]:
    """Log-odds of the scores of one step of 400 of 1,000 tokens, and of children of it that go on to these ends."""
    facts = QualitySet(sigma_between=0, sigma_within=0, thinking_tokens=900, answer_tokens=100)
    sampler = TraceSampler(Skill(p, 900), facts, verifier, np.random.default_rng(seed))
    first = sampler.draw(Branch(0, kind="step", max_tokens=400, score=True), None)
    children = [
        sampler.draw(Branch(1 + i, 0, kind="step", max_tokens=end - 400, score=True), first)
        for i, end in enumerate(ends)
    ]
    return [math.log(f.score / (1 - f.score)) for f in (first, *children)]


def test_a_mistake_shows_in_step_with_what_is_built_on_it() -> None:
    """Wrong from the first token: a score loses the share of thinking there is of d'; right work loses none."""
    rates = ScoreModel(0.85, 0.8)
    cut, d = NormalDist().inv_cdf(0.8), quality.d_prime(0.85, 0.8)
    for p, left in ((1e-13, [5 / 9, 3 / 9]), (1.0, [1.0, 1.0])):
        seen = np.mean([step_logits(p, rates, [600], seed) for seed in range(1000)], axis=0)
        assert seen == pytest.approx([d * share - cut for share in left], abs=4 / math.sqrt(1000))


def test_errors_are_alike_by_the_text_in_common() -> None:
    """Two steps from one of 400 tokens to 800 and to 500: correlation x 400 / 800 of their error, and x 400 / 500."""
    told = ScoreModel(0.85, 0.8, correlation=0.6)
    for end in (800, 500):
        pairs = np.array([step_logits(1.0, told, [end, end], seed)[1:] for seed in range(1000)])
        alike = float(np.corrcoef(pairs.T)[0, 1])
        assert alike == pytest.approx(0.6 * 400 / end, abs=4 / math.sqrt(1000))
        assert pairs.std(axis=0) == pytest.approx([1, 1], abs=0.1)


def test_a_beam_may_start_wider() -> None:
    """N beams of the paper: 16 first steps of which 4 go on four ways, 16 x 20 in all."""
    ledger = run("beam_search", Scripted(endless), first_steps=16, num_iterations=20, step_tokens=64)
    assert ledger.num_branches == 16 * 20


def test_a_random_prm_does_not_beat_best_of_n() -> None:
    """Tree and beam search under a guessing reward model stay at p; best-of-N with any real verifier beats them."""
    guess, count = ScoreModel(0.5, 0.5), 300
    for name, params in (
        ("beam_search", {"step_tokens": 500, "num_iterations": 16}),
        ("tree_search", {"step_tokens": 500, "num_simulations": 4}),
    ):
        assert accuracy(many(name, 0.3, count, guess, **params)) <= 0.3 + 4 * math.sqrt(0.21 / count)
    assert accuracy(many("best_of_n", 0.3, count, ScoreModel(0.8, 0.8), n=16)) > 0.5


def test_pruning_by_steps_saves_18_of_32() -> None:
    """Four chains of 8 steps, pruned at none, 2, 3, 1: 14 steps run instead of 32."""
    last_good = [8, 2, 3, 1]
    chain: dict[int, tuple[int, int]] = {}

    def script(b: Branch, parent: BranchOutcome | None) -> BranchOutcome:
        which, step = (b.id, 1) if b.parent is None else (chain[b.parent][0], chain[b.parent][1] + 1)
        chain[b.id] = which, step
        score = 0.9 if step < last_good[which] or which == 0 else 0.1
        return BranchOutcome(32, 32, "stop" if step == 8 else "length", RIGHT if step == 8 else None, score)

    ledger = run("prune_by_steps", Scripted(script), n=4, step_tokens=32)
    assert ledger.num_branches == 14
    assert ledger.answer.correct


def test_false_alarms_prune_right_chains() -> None:
    """A chain of k checked steps survives with rate^k: `quality.pruned_correct` counts the rest."""
    facts = QualitySet(sigma_between=0, sigma_within=0, thinking_tokens=2000, answer_tokens=10)
    rates, count = ScoreModel(0.9, 0.9), 500
    start = make("prune_by_steps", n=1, step_tokens=500)
    ledgers = [
        run_alone(PROMPT, start(), TraceSampler(Skill(1.0, 2000), facts, rates, np.random.default_rng(i)))
        for i in range(count)
    ]
    lost = float(quality.pruned_correct(1.0, 4, 0.9))  # the fifth step ends the answer and is not gated
    assert 1 - accuracy(ledgers) == near(lost, count)


def test_tree_search_explores_and_exploits() -> None:
    """16 simulations need at most 16 expansions; without exploration fewer leaves of the root are visited."""
    ledger = run("tree_search", Scripted(lambda b, p: endless(b, p)._replace(tokens=64)), num_simulations=16)
    assert ledger.num_branches <= 16 * (4 + 1)
    many_params = {"step_tokens": 500, "num_simulations": 8}
    good = accuracy(many("tree_search", 0.3, 150, ScoreModel(0.9, 0.9), **many_params))
    assert good > 0.5


def test_rollouts_share_the_trace_they_start_from() -> None:
    """A trace of 2,048 with steps of 512 and 8 rollouts: 24 rollouts from 512, 1,024 and 1,536 tokens."""
    sampler = Scripted(
        lambda b, p: BranchOutcome(
            2048 if b.parent is None else 100, 2048 if b.parent is None else 0, "stop", 0, 0.0
        )
    )
    ledger = run("monte_carlo_labels", sampler)
    assert ledger.num_branches == 1 + 3 * 8
    assert ledger.prompt_tokens == 500 + 8 * (3 * 500 + 512 + 1024 + 1536)
    assert sorted({b.parent_tokens for b in sampler.asked if b.parent is not None}) == [512, 1024, 1536]


def test_a_rollout_from_a_right_prefix_is_right_more_often() -> None:
    """From share s of a right trace, p^(1 - s) of the rollouts get there: what a PRM label estimates."""
    sampler = TraceSampler(
        Skill(0.25, 4000),
        FACTS.model_copy(update={"sigma_within": 0.0}),
        ScoreModel(),
        np.random.default_rng(0),
    )
    while True:
        root = sampler.draw(Branch(0), None)
        if root.answer == RIGHT:
            break
    right = [sampler.draw(Branch(i, 0, 2000), root).answer == RIGHT for i in range(1, 1001)]
    assert float(np.mean(right)) == near(0.5, 1000)


# --- conversations, the protocol, bad input -------------------------------------------------------------------


def test_a_chat_drops_its_thinking() -> None:
    """Turn 3's prompt is 500 + 2 x (200 answer + 40 message): 980 tokens; with the thinking kept, 2,580."""
    sampler = Scripted(lambda b, p: BranchOutcome(1000, 800, "stop", RIGHT, 0.0))
    ledger = run("chat", sampler, num_turns=3, user_tokens=40)
    assert ledger.prompt_tokens == 500 + 740 + 980
    kept = run("chat", Scripted(sampler.script), num_turns=3, user_tokens=40, drop_thinking=False)
    assert kept.prompt_tokens == 500 + 1540 + 2580


@pytest.mark.parametrize("name", STRATEGIES)
def test_same_seed_same_ledger(name: str) -> None:
    """Every strategy ends, leaves nothing running, and repeats itself exactly."""
    small = {"step_tokens": 500} if "step_tokens" in make_params(name) else {}
    first, second = (many(name, 0.5, 5, **small) for _ in range(2))
    assert first == second
    assert all(ledger.ticks > 0 for ledger in first)


def make_params(name: str) -> set[str]:
    from kvplan.workload.strategies.catalog import parameters

    return set(parameters(name).model_fields)


def test_the_first_samples_are_the_same_under_every_strategy() -> None:
    """Common luck: best-of-16 begins with the very traces of best-of-4, and with single pass's one."""

    def first(n: int) -> list[BranchOutcome]:
        sampler = TraceSampler(Skill(0.5, 4000), FACTS, ScoreModel(), np.random.default_rng(3))
        return [sampler.draw(Branch(i), None) for i in range(n)]

    assert repr(first(16)[:4]) == repr(first(4))


def test_continuing_a_running_branch_is_refused() -> None:
    def impatient():
        from kvplan.workload.strategies import Ask

        yield Ask(start=(Branch(0), Branch(1, parent=0)))

    with pytest.raises(KvplanError, match="has not finished"):
        Session(PROMPT, impatient(), traces([5, 5], [0, 0])).begin()


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("best_of_m", {}, "did you mean best_of_n"),
        ("best_of_n", {"n": 0}, "n: Input should be greater than or equal to 1, not 0"),
        ("best_of_n", {"m": 4}, "has no parameter 'm'"),
        ("prune_by_steps", {"threshold": 1.5}, "threshold"),
        (
            "budget_forcing",
            {"min_tokens": 9000, "max_thinking_tokens": 8000},
            "min_tokens (9000) <= max_thinking",
        ),
        (
            "extended_thinking",
            {"thinking_token_budget": 4096, "max_tokens": 4096},
            "leaves no room for an answer",
        ),
        ("best_of_n", {"max_tokens": "many"}, "is not a count"),
        ("beam_search", {"aggregation": "mean"}, "aggregation"),
        ("tree_search", {"exploration": -1}, "exploration"),
    ],
)
def test_bad_parameters_are_one_clear_line(name: str, params: dict[str, object], words: str) -> None:
    with pytest.raises(KvplanError) as caught:
        make(name, **params)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "params", [{"n": True}, {"n": 2, "max_tokens": True}, {"n": float("nan")}, {"n": 10**9}, {"n": "two"}]
)
def test_a_number_is_a_number(params: dict[str, Any]) -> None:
    """Yes is not one sample."""
    with pytest.raises(ValueError, match=r"best_of_n: \w+: "):
        StrategySpec.model_validate({"strategy": "best_of_n", **params})
