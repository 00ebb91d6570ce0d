"""Strategies on the simulator: leap equals step by step, blocks come back, verifiers take their time."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario, StepTimeSpec, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.branch_requests import BranchRequests
from kvplan.simulation.deploy import Setup, StatedStepTime
from kvplan.simulation.records import FINISH_REASONS, UNSET
from kvplan.simulation.run import Run
from kvplan.simulation.simulator import SolveResult, simulate, solution, solve
from kvplan.simulation.solve_setup import set_up_all
from kvplan.workload.problems import Problems, StrategySpec
from kvplan.workload.strategies import Answer, Ask, Branch, Strategy

SHORT = {"thinking_tokens": 400, "answer_tokens": 20, "sigma_between": 0.2}
STATED = {"fixed_us": 5000, "per_prefill_token_us": 20}
PRUNED = FINISH_REASONS.index("pruned")


def engine(num_blocks: int = 400, **more: object) -> dict[str, Setup]:
    config = EngineConfig(num_gpu_blocks=num_blocks, max_model_len=4096, **more)  # type: ignore[arg-type]
    time = StepTimeSpec(fixed_us=5000, per_sequence_us=20, per_context_token_ns=30, per_prefill_token_us=20)
    return {"": Setup(config, StatedStepTime.of(time), 131_072.0, 1)}


def scenario(strategy: str | dict[str, object], num_problems: int = 4, **more: object) -> Scenario:
    problems = {"num_problems": num_problems, "strategies": [strategy], "quality": SHORT, **more}
    return parse_scenario({"model": "Qwen/Qwen3-8B", "step_time": STATED, "problems": problems})


def key(solution: SolveResult) -> tuple[object, ...]:
    records = solution.records
    return (
        solution.solved,
        solution.effort,
        solution.duration,
        [
            (name, records[name].tolist())
            for name in ("finish", "output_tokens", "hit_tokens", "num_preemptions")
        ],
    )


PRM = {"kind": "prm", "true_positive_rate": 0.9, "true_negative_rate": 0.8}
CASES: dict[str, tuple[dict[str, object], dict[str, object], int]] = {
    "single_pass": ({}, {}, 60),
    "best_of_n": ({"n": 8}, {}, 200),
    "self_consistency": ({"n": 8}, {}, 200),
    "first_finish": ({"k": 6}, {}, 100),
    "adaptive_best_of_n": ({"n_hard": 16, "n_medium": 8}, {}, 300),
    "budget_forcing": ({"num_waits": 2}, {}, 100),
    "sequential_revision": ({"critique_tokens": 30}, {}, 100),
    "beam_search": ({"step_tokens": 64}, {"verifier": PRM | {"placement": "remote", "latency_s": 0.02}}, 200),
    "prune_by_steps": ({"step_tokens": 64}, {"verifier": PRM | {"model": "Qwen/Qwen2.5-Math-7B"}}, 200),
    "tree_search": ({"step_tokens": 64, "num_simulations": 4}, {}, 200),
    "pruned_under_pressure": ({"n": 16}, {}, 200),
    "grpo_group": ({"max_tokens": 600}, {}, 200),
    "monte_carlo_labels": ({"step_tokens": 128, "rollouts": 3}, {}, 200),
    "chat": ({"pause_s": 1.0}, {}, 100),
    "weighted_vote": ({"n": 8}, {"verifier": PRM | {"model": "Qwen/Qwen2.5-Math-7B"}}, 200),
    "confidence_stopped_vote": ({"n": 8, "batch": 2}, {}, 200),
    "early_stopped_vote": ({"n": 9, "window": 3}, {}, 200),
    "first_agreement": ({"m": 2, "n": 6}, {}, 100),
    "fork_join": ({"n": 4, "prefix_tokens": 100}, {}, 200),
    "stated_budget": ({"budget_tokens": 200}, {}, 60),
    "compaction": (
        {"segment_tokens": 128, "summary_tokens": 32},
        {"verifier": PRM | {"placement": "remote"}},
        60,
    ),
    "speculative_rejection": ({"n": 8, "step_tokens": 64}, {"verifier": PRM | {"placement": "remote"}}, 200),
    "diverse_tree_search": ({"step_tokens": 64}, {}, 200),
    "backtracking_search": ({"step_tokens": 64}, {}, 200),
    "cascade": ({"n": 4}, {}, 200),
    "draft_then_verify": ({}, {}, 100),
}


@pytest.mark.parametrize("name", CASES)
def test_leap_equals_step_by_step(name: str) -> None:
    """Answers, times, tokens, hits and preemptions of every strategy are the same without leaping."""
    params, more, blocks = CASES[name]
    told = scenario({"strategy": name, **params}, 2, **more)
    leap, step = (solve(told, setups=engine(blocks), step_by_step=flag) for flag in (False, True))
    assert leap.verdict == "completed"
    assert len(leap.solved) == 2
    assert key(leap) == key(step)


@pytest.mark.parametrize("name", CASES)
def test_leap_over_drafts_equals_step_by_step(name: str) -> None:
    """The same where every step verifies three drafts, asynchronous for every other strategy."""
    params, more, blocks = CASES[name]
    told = scenario({"strategy": name, **params}, 2, **more)
    setups = engine(
        blocks,
        num_speculative_tokens=3,
        spec_method="eagle",
        async_scheduling=list(CASES).index(name) % 2 > 0,
    )
    leap, step = (solve(told, setups=setups, step_by_step=flag) for flag in (False, True))
    assert key(leap) == key(step)


def erratic(seed: int) -> Strategy:
    """Any strategy at all: starts, forks, waits and cancels by a seed."""
    dice, ids, done, running = random.Random(seed), iter(range(10**6)), [], []
    for _ in range(dice.randint(1, 5)):
        start = []
        for _ in range(dice.randint(1, 4)):
            parent = dice.choice([None, *done])
            middle = dice.randint(1, 100) if parent is not None and dice.random() < 0.5 else None
            kind = dice.choice(["trace", "step", "revision"]) if middle is None else "trace"
            cap = dice.choice([64, 500])
            start.append(
                Branch(
                    next(ids), parent, middle, dice.randint(0, 30), dice.random() < 0.3, kind, max_tokens=cap
                )
            )
        cancel = tuple(b for b in running if dice.random() < 0.3)
        wait = dice.randint(0, 3)
        finished = yield Ask(tuple(start), cancel, wait, dice.choice([0.0, 0.0, 0.3]))
        running = [b for b in (*running, *(b.id for b in start)) if b not in cancel]
        running = [b for b in running if b not in {f.id for f in finished}]
        done += [f.id for f in finished]
    return Answer(0)


@given(st.integers(0, 10**6), st.sampled_from([40, 90, 300]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_branching_conserves_blocks(seed: int, num_blocks: int, caching: bool) -> None:
    """Random strategies over random trees end, free every block, and never hold more than logical KV."""

    class Erratic(StrategySpec):
        def start(self) -> Strategy:
            return erratic(seed)

    told = scenario("single_pass", 2)
    assert told.problems is not None
    for step_by_step in (False, True):
        setups = engine(num_blocks, enable_prefix_caching=caching)
        branches = BranchRequests(told, Erratic(strategy="single_pass"))
        run = Run(told, setups, branches, step_by_step)
        run.go()
        assert run.verdict == "completed"
        assert not run.alive
        assert not branches.owners
        for replica in run.replicas:
            assert replica.engine.num_free_blocks == replica.num_blocks
            assert not replica.resident
        for sample in run.timeline.samples:
            held = (sample.prompt_tokens, sample.shared_tokens, sample.thinking_tokens, sample.answer_tokens)
            logical = sum(held)  # each counted where it is held
            assert sample.used_blocks * 16 <= logical + 16 * (sample.running + 1)


def test_a_cancelled_branch_frees_its_blocks_for_who_waits() -> None:
    """Two problems, room for one group: the second starts when the first trace of the first has won."""
    long = {"kind": "constant", "value": 3000}  # 188 blocks, and 4 x 27 for the traces
    told = scenario(
        {"strategy": "first_finish", "m": 1, "k": 4}, 2, arrivals={"kind": "all_at_once"}, prompt=long
    )
    solution = solve(told, setups=engine(350))
    records = solution.records
    first, second = solution.solved
    started = records["scheduled"][(records["session"] == second.problem) & (records["scheduled"] != UNSET)]
    assert (records["finish_reason"] == PRUNED).sum() == 6
    assert started.max() >= first.finish
    assert started.max() <= first.finish + TICKS_PER_S // 20


def test_pruning_instead_of_preempting() -> None:
    """STEP: where self-consistency preempts, the worst-scored traces end instead and nothing is recomputed."""
    votes = solve(scenario({"strategy": "self_consistency", "n": 16, "vote_stop": False}), setups=engine(200))
    step = solve(scenario({"strategy": "pruned_under_pressure", "n": 16}), setups=engine(200))
    assert votes.records["num_preemptions"].sum() > 0
    assert step.records["num_preemptions"].sum() == 0
    assert (step.records["finish_reason"] == PRUNED).sum() > 0
    assert step.duration < votes.duration


def test_remote_verifiers_queue() -> None:
    """8 scores of 0.5 s on 2 servers: a best-of-8 ends at least 2 s after its last trace began to be scored."""
    remote = {"kind": "orm", "placement": "remote", "latency_s": 0.5, "tokens_per_s": 1e12, "concurrency": 2}
    told = scenario({"strategy": "best_of_n", "n": 8}, 1, verifier=remote)
    free = solve(scenario({"strategy": "best_of_n", "n": 8}, 1), setups=engine(4000))
    paid = solve(told, setups=engine(4000))
    wait = (paid.duration - free.duration) / TICKS_PER_S
    assert 0.5 <= wait <= 0.5 * 8 / 2
    one = solve(
        scenario({"strategy": "best_of_n", "n": 8}, 1, verifier=remote | {"concurrency": 1}),
        setups=engine(4000),
    )
    assert one.duration > paid.duration
    assert one.effort.remote_ticks / TICKS_PER_S == pytest.approx(8 * 0.5)


def test_colocated_scoring_takes_the_gpus_time() -> None:
    """A re-reading PRM reads every step's whole prefix; an incremental one only the step, so it costs less time."""
    beside = PRM | {"model": "Qwen/Qwen2.5-Math-7B"}
    beam = {"strategy": "beam_search", "step_tokens": 64}
    again, new = (
        solve(scenario(beam, 2, verifier=beside | {"kv": kv}), setups=engine())
        for kv in ("reread", "incremental")
    )
    assert new.effort.scores == again.effort.scores
    assert new.effort.verified_tokens == 2 * 500 + new.records["output_tokens"].sum()
    assert again.effort.verified_tokens > 5 * new.effort.verified_tokens
    assert again.effort.verifier_ticks > new.effort.verifier_ticks > 0
    assert again.duration - new.duration == again.effort.verifier_ticks - new.effort.verifier_ticks


def test_an_incremental_verifier_reads_again_what_it_let_go() -> None:
    """With room for everything each token is read once; with room for half a problem more, and at most as rereading."""
    beam = {"strategy": "beam_search", "step_tokens": 64}
    far = PRM | {"placement": "remote", "tokens_per_s": 1e9}

    def read(**kv: object) -> int:
        return solve(scenario(beam, 2, verifier=far | kv), setups=engine()).effort.verified_tokens

    ample, tight, again = read(kv="incremental"), read(kv="incremental", kv_tokens=900), read(kv="reread")
    assert ample < tight <= again


def test_a_verifiers_cache_comes_off_the_pool() -> None:
    """65,536 tokens of a 7B verifier's KV are blocks that the model does not get; too many are refused by name."""
    beside = PRM | {"model": "Qwen/Qwen2.5-Math-7B"}

    def blocks(**kv: object) -> int:
        problems = {"quality": SHORT, "verifier": beside | kv}
        told = parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "h100", "problems": problems})
        return set_up_all(told)[""].config.num_gpu_blocks

    per_token = 28 * 2 * 4 * 128 * 2  # layers x (K and V) x KV heads x head_dim x bytes
    expected = 65_536 * per_token / (16 * 147_456)
    assert blocks(kv="reread") - blocks(kv="incremental") == pytest.approx(expected, abs=1)
    with pytest.raises(KvplanError, match=r"lower verifier\.kv_tokens"):
        blocks(kv="incremental", kv_tokens=10**7)


def test_a_generative_verdict_is_decoded() -> None:
    """50 tokens of verdict at 5 ms a step are at least 0.25 s a batch of scores, and may be what limits."""
    critic = {"kind": "generative", "decode_tokens": 500, "model": "Qwen/Qwen2.5-Math-7B"}
    solution = solve(scenario({"strategy": "best_of_n", "n": 4}, 2, verifier=critic), setups=engine(4000))
    assert solution.effort.verifier_decode_tokens == 2 * 4 * 500
    assert solution.effort.verifier_ticks >= 500 * TICKS_PER_S // 200
    assert solution.result.limited_by == "verifier"


def test_compression_bounds_what_a_trace_holds() -> None:
    """R-KV: with a budget of 64 + 64 tokens eight long traces run where uncompressed ones preempt."""
    best = {"strategy": "best_of_n", "n": 8}
    small = {
        "compression": {"budget_tokens": 64, "buffer_tokens": 64},
        "prompt": {"kind": "constant", "value": 40},
    }
    from kvplan.simulation.solve_setup import compressed

    told = scenario(best, 2, **small)
    assert told.problems is not None
    tight = engine(100)
    plain = solve(scenario(best, 2, prompt=small["prompt"]), setups=tight)
    packed = solve(told, setups={"": compressed(tight[""], told.problems)})
    assert plain.records["num_preemptions"].sum() > 0
    assert packed.records["num_preemptions"].sum() == 0
    assert packed.duration < plain.duration


def test_branches_of_a_problem_share_one_replicas_prompt() -> None:
    """Spread over two replicas a prompt is computed twice; on one replica the siblings hit it."""
    best, prompt = {"strategy": "best_of_n", "n": 8}, {"kind": "constant", "value": 512}

    def hits(placement: str) -> int:
        problems = {
            "num_problems": 4,
            "strategies": [best],
            "quality": SHORT,
            "prompt": prompt,
            "placement": placement,
        }
        told = parse_scenario({"model": "Qwen/Qwen3-8B", "replicas": 2, "problems": problems})
        return int(solve(told, setups=engine(1000)).records["hit_tokens"].sum())

    assert hits("one_replica") == 4 * 7 * 496
    assert hits("spread") == 4 * 6 * 496


def test_the_first_visible_token() -> None:
    """A streamed trace shows its answer after the thinking; best-of-N shows nothing before it has chosen."""
    stream = solve(scenario("single_pass", 3), setups=engine())
    hidden = solve(scenario({"strategy": "best_of_n", "n": 2}, 3), setups=engine())
    assert all(s.arrival < s.first_visible < s.finish for s in stream.solved)
    assert all(s.first_visible == s.finish for s in hidden.solved)


def test_a_chat_recomputes_its_answers() -> None:
    """Dropping the thinking makes the answer be computed again: hits end with the prompt's last whole block."""
    dropped = solve(scenario({"strategy": "chat", "num_turns": 2}, 1), setups=engine())
    kept = solve(scenario({"strategy": "chat", "num_turns": 2, "drop_thinking": False}, 1), setups=engine())
    assert dropped.records["hit_tokens"][1] == 496
    assert kept.records["hit_tokens"][1] > 800
    assert dropped.effort.dead_tokens == dropped.records["output_tokens"][0]
    assert kept.effort.dead_tokens == 0


@pytest.mark.parametrize("policy", ["keep", "drop_after_turn", "never_cache"])
def test_what_becomes_of_thinking_kv(policy: str) -> None:
    """Six chats of three turns with thinking kept in the prompt: `keep` hits the turn before, the others only what
    was prompt; leaping and stepping agree on every hit, and nothing dead stays behind without `keep`."""
    chat = {"strategy": "chat", "num_turns": 3, "drop_thinking": False, "pause_s": 2.0}
    told = scenario(chat, 6, thinking_kv=policy, arrivals={"kind": "all_at_once"})
    leap, step = (solve(told, setups=engine(1000), step_by_step=flag) for flag in (False, True))
    assert key(leap) == key(step)
    records = leap.records
    second = records["turn"] == 1
    if policy == "keep":
        assert records["hit_tokens"][second].max() > 700
    else:
        assert records["hit_tokens"][second].max() <= 496
    bare = scenario({**chat, "drop_thinking": True}, 6, thinking_kv=policy, arrivals={"kind": "all_at_once"})
    assert (solve(bare, setups=engine(1000)).effort.dead_tokens > 0) == (policy == "keep")


@given(st.integers(0, 10**6), st.sampled_from([40, 90]), st.sampled_from(["drop_after_turn", "never_cache"]))
@settings(max_examples=12, deadline=None)
def test_dropping_kv_conserves_blocks(seed: int, num_blocks: int, policy: str) -> None:
    """Random strategies under both policies free every block, and leaping equals stepping."""

    class Erratic(StrategySpec):
        def start(self) -> Strategy:
            return erratic(seed)

    told = scenario("single_pass", 2, thinking_kv=policy)
    assert told.problems is not None
    found = []
    for step_by_step in (False, True):
        branches = BranchRequests(told, Erratic(strategy="single_pass"))
        run = Run(told, engine(num_blocks), branches, step_by_step)
        run.go()
        assert all(r.engine.num_free_blocks == r.num_blocks for r in run.replicas)
        found.append(key(solution(run, branches)))
    assert found[0] == found[1]


def test_folded_context_leaves_blocks_to_others() -> None:
    """Where whole traces preempt, folded ones do not; each summary is generated, and read again as prompt."""
    told = {
        "num_problems": 6,
        "arrivals": {"kind": "all_at_once"},
        "prompt": {"kind": "constant", "value": 40},
    }
    folded = {"strategy": "compaction", "segment_tokens": 128, "summary_tokens": 32}
    whole, short = (solve(scenario(s, **told), setups=engine(80)) for s in ("single_pass", folded))
    assert whole.records["num_preemptions"].sum() > 0
    assert short.records["num_preemptions"].sum() == 0
    assert all(s.answered for s in short.solved)
    pieces = short.records["turn"] % 2 == 0  # the others are summaries
    assert (short.records["prompt_tokens"][pieces] <= 40 + 32).all()


def test_threads_hit_the_prefix_they_fork_from() -> None:
    """Four threads from 160 common tokens of a 500-token prompt: each finds 656 = 41 blocks of 16 in the cache."""
    join = {"strategy": "fork_join", "n": 4, "prefix_tokens": 160, "summary_tokens": 10}
    records = solve(scenario(join, 1), setups=engine()).records
    hits = records["hit_tokens"][(records["turn"] > 0) & (records["turn"] < 5)]
    assert hits.tolist() == [656] * 4


def test_a_cascade_runs_on_two_engines() -> None:
    """Threshold 1: every problem goes on to the large model's own engine; a model that is not there is named."""
    large = {"": engine()[""], "big": engine()[""]}
    told = parse_scenario(
        {"model": "Qwen/Qwen3-8B", "step_time": STATED, "models": {"big": {"model": "Qwen/Qwen3-32B"}},
         "problems": {"num_problems": 3, "quality": SHORT, "qualities": {"big": SHORT},
                      "strategies": [{"strategy": "cascade", "large_model": "big", "n": 2, "threshold": 1.0}]}}
    )  # fmt: skip
    found = solve(told, setups=large)
    assert len(found.records) == 3 * 3
    spec = told.problems.strategies[0]
    assert spec.models == {"big"}
    from kvplan.simulation.solve_setup import only_models_of

    assert set(only_models_of(told, spec).models) == {"big"}
    lost = told.model_copy(update={"models": {}})
    with pytest.raises(KvplanError, match="model 'big' is not in `models`"):
        only_models_of(lost, spec)


def test_simulate_runs_the_first_strategy() -> None:
    """`kvplan simulate` of a scenario with problems reports its first strategy, one record per branch."""
    result = simulate(scenario({"strategy": "best_of_n", "n": 4}, 3), setups=engine())
    assert result.num_requests == len(result.records) == 12
    assert result.to_dict()["completed"] == 12


def test_a_trace_too_long_for_the_model_is_cut_and_wrong() -> None:
    told = scenario({"strategy": "single_pass"}, 5, quality=SHORT | {"thinking_tokens": 9000})
    solution = solve(told, setups=engine())
    assert not any(s.answered for s in solution.solved)
    assert (solution.records["output_tokens"] + 500 == 4096).all()
    assert "traces were cut at max_model_len" in solution.result.notes


def bad() -> Iterator[tuple[dict[str, object], str]]:
    yield {"thinking_kv": "drop_at_answer"}, "the answer attends to the thinking"
    yield {"verifier": {"kind": "generative", "model": "x"}}, "decode_tokens"
    yield {"verifier": {"kind": "prm"}}, "needs `model`"
    yield (
        {"verifier": {"kind": "orm", "placement": "remote", "true_positive_rate": 1.4}},
        "true_positive_rate",
    )
    yield {"strategies": [{"strategy": "best_of_n", "n": 0}]}, "greater than or equal to 1"
    yield {"strategies": [{"strategy": "beam_search", "step_tokens": 9000}]}, "longer than a whole trace"
    yield {"strategies": []}, "at least 1 item"
    yield {"quality": {"difficulty": {"levels": [[1.2, 1.0]]}}}, "less than or equal to 1"
    yield {"quality": "assumed-u-shap"}, "did you mean assumed-u-shape"


@pytest.mark.parametrize(("more", "words"), list(bad()))
def test_bad_input_is_one_clear_line(more: dict[str, object], words: str) -> None:
    with pytest.raises(KvplanError) as caught:
        parse_scenario({"model": "Qwen/Qwen3-8B", "problems": {"quality": SHORT, **more}})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_verifier_that_does_not_fit_beside_the_model_is_named() -> None:
    verifier = {"kind": "prm", "model": "Qwen/Qwen2.5-72B-Instruct"}
    told = parse_scenario(
        {"model": "Qwen/Qwen3-8B", "gpu": "h100", "problems": {"quality": SHORT, "verifier": verifier}}
    )
    with pytest.raises(KvplanError, match="does not fit beside"):
        solve(told)


def test_pass_tables_bring_their_own_problems(tmp_path) -> None:
    """Each problem's samples are drawn from its rows; a table without a column is refused by name."""
    from kvplan.workload.problems import draw_tasks

    table = tmp_path / "runs.csv"
    table.write_text("problem,sample,tokens,correct\na,0,100,1\na,1,300,1\nb,0,50,0\n")
    problems = Problems(pass_table="runs.csv")
    tasks = draw_tasks(problems, tmp_path)
    assert [t.skill.p for t in tasks] == [1.0, 0.0]
    table.write_text("problem,tokens,correct\na,100,1\n")
    with pytest.raises(KvplanError, match="no column sample"):
        draw_tasks(problems, tmp_path)
    table.write_text("problem,sample,tokens,correct\na,0,100,maybe\n")
    with pytest.raises(KvplanError, match=r"line 2.*maybe"):
        draw_tasks(problems, tmp_path)
    with pytest.raises(KvplanError, match="cannot be read"):
        draw_tasks(Problems(pass_table="none.csv"), tmp_path)
    assert np.isfinite(tasks[0].arrival_s)


def test_branches_go_through_disaggregated_prefill() -> None:
    """With prompts computed elsewhere every strategy still ends, and a transfer takes its time."""
    problems = {"num_problems": 2, "strategies": [{"strategy": "first_finish", "k": 4}], "quality": SHORT}
    apart = {"transfer_bytes_per_s": 1e9}
    told = parse_scenario({"model": "Qwen/Qwen3-8B", "disaggregation": apart, "problems": problems})
    together = parse_scenario({"model": "Qwen/Qwen3-8B", "problems": problems})
    found, plain = solve(told, setups=engine()), solve(together, setups=engine())
    assert found.verdict == "completed"
    assert len(found.records) == 8
    assert found.duration > plain.duration


def test_lockstep_ranks_and_a_colocated_verifier_are_refused() -> None:
    from dataclasses import replace

    told = scenario("best_of_n", 1, verifier=PRM | {"model": "Qwen/Qwen2.5-Math-7B"})
    with pytest.raises(KvplanError, match="lockstep is not modelled"):
        solve(told, setups={"": replace(engine()[""], lockstep_ranks=2)})


def test_ranks_in_lockstep_serve_strategies() -> None:
    """Two lockstep ranks: branches of a problem stay on one of them, and all of it ends."""
    from dataclasses import replace

    told = scenario({"strategy": "best_of_n", "n": 4}, 3, arrivals={"kind": "all_at_once"})
    found = solve(told, setups={"": replace(engine()[""], lockstep_ranks=2)})
    assert found.verdict == "completed"
    for problem in range(3):
        assert len(set(found.records["replica"][found.records["session"] == problem].tolist())) == 1


def test_clients_pause_between_problems() -> None:
    """A client begins, and asks again after each answer, after pauses of the stated mean; also when leaping."""
    loop = {"kind": "closed_loop", "concurrency": 1, "pause_s": 40}
    told = scenario("single_pass", 300, arrivals=loop)
    found, stepped = (solve(told, setups=engine(), step_by_step=flag) for flag in (False, True))
    assert key(found) == key(stepped)
    arrived = np.array([s.arrival for s in found.solved])
    gaps = np.diff(arrived, prepend=0) - np.array([0, *(s.finish - s.arrival for s in found.solved[:-1])])
    assert (gaps > 0).all()
    assert gaps.mean() / TICKS_PER_S == pytest.approx(40, rel=0.2)
