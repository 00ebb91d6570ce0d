"""Sharing and admission rules beside vLLM's: what each saves, what each promises, and that it says what it is not."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.random_scenarios import random_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.conformance.vllm_records import ReplayResult
from kvplan.conformance.vllm_replay import Replay
from kvplan.conformance.vllm_scenario import Scenario
from kvplan.conformance.vllm_stuck import find_stuck
from kvplan.content import Segment, output_of
from kvplan.errors import DoesNotFit, KvplanError
from kvplan.schedulers.vllm import EngineConfig, Request, make_scheduler
from kvplan.schedulers.vllm.admission import ADMISSIONS, caveats
from kvplan.schedulers.vllm.sharing import SHARINGS


def best_of(sharing: str, branches: int, prompt: int, output: int, block_size: int = 16) -> tuple[int, int]:
    """Run branches over one prompt; return the most blocks in use and the tokens computed."""
    config = EngineConfig(
        block_size=block_size,
        num_gpu_blocks=branches * (prompt + output) // block_size + 9,
        max_model_len=prompt + output,
        max_num_batched_tokens=65_536,
        sharing=sharing,
    )
    scheduler = make_scheduler(config)
    for i in range(branches):
        scheduler.add_request(Request(f"b{i}", (Segment("question", prompt),), max_tokens=output))
    pool = scheduler.kv_cache_manager.block_pool
    peak = computed = 0
    while scheduler.has_unfinished_requests():
        output_ = scheduler.schedule()
        computed += output_.total_num_scheduled_tokens
        peak = max(peak, pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
        scheduler.update_from_output(output_)
    return peak, computed


@pytest.mark.parametrize(
    ("sharing", "peak"),
    [
        # 249 full blocks within prompt - 1 tokens, and ceil(4,999 / 16) - 249 of each branch's own
        ("full_block", 249 + 8 * 64),
        # all 250 blocks of the prompt, and 63 of each branch's own
        ("copy_on_write", 250 + 8 * 63),
        # one-token blocks: 3,999 shared, then the prompt's last token and 999 of the answer (the last has no KV)
        ("token", 3999 + 8 * 1000),
        ("none", 8 * 313),
    ],
)
def test_eight_branches_over_a_long_prompt(sharing: str, peak: int) -> None:
    """8 branches of 1,000 tokens over a 4,000-token prompt: 761 blocks under vLLM V1, 754 with forks."""
    assert best_of(sharing, branches=8, prompt=4000, output=1000)[0] == peak


@given(st.integers(2, 5), st.integers(1, 70), st.integers(1, 40), st.sampled_from([4, 16]))
@settings(max_examples=30, deadline=None)
def test_finer_sharing_computes_less(branches: int, prompt: int, output: int, block_size: int) -> None:
    """Tokens computed: single tokens = forks <= full blocks <= nothing shared, which computes all."""
    names = ("token", "copy_on_write", "full_block", "none")
    token, fork, full, none = (best_of(name, branches, prompt, output, block_size)[1] for name in names)
    assert token == fork <= full <= none == branches * (prompt + output - 1)
    assert token == prompt + (branches - 1) + branches * (output - 1)


@given(st.integers(1, 50), st.integers(2, 60), st.data())
@settings(max_examples=30, deadline=None)
def test_fork_in_the_middle_of_a_block(prompt: int, output: int, data: st.DataObject) -> None:
    """A branch that leaves a running answer anywhere computes its last shared token and its own, no more."""
    at = data.draw(st.integers(1, output - 1))
    config = EngineConfig(num_gpu_blocks=100, max_model_len=300, sharing="copy_on_write")
    scheduler = make_scheduler(config)
    scheduler.add_request(Request("parent", (Segment("q", prompt),), max_tokens=output))
    for _ in range(at + 1):
        scheduler.update_from_output(scheduler.schedule())
    child = Request("child", (Segment("q", prompt), Segment(output_of("parent"), at)), max_tokens=3)
    scheduler.add_request(child)
    batch = scheduler.schedule()
    if "parent" in scheduler.requests:
        assert batch.num_scheduled_tokens["child"] == 1
    assert batch.admitted["child"] >= (prompt + at - 1) // 16 * 16


def run_random(seed: int, **rules: str) -> tuple[Scenario, ReplayResult, Replay]:
    """A random scenario of full attention without speculation, under other rules."""
    data = random_scenario(seed)
    for key in ("kv_cache_groups", "kv_cache_layers", "num_speculative_tokens", "spec_method"):
        data.pop(key, None)
    for key in ("prefix_match_unit", "prefix_cache_retention_interval"):
        data.pop(key, None)
    scenario = Scenario(**data | rules)
    replay = Replay(scenario)
    return scenario, replay.run(3000), replay


@given(st.integers(0, 2**32), st.sampled_from(sorted(SHARINGS)), st.sampled_from(sorted(ADMISSIONS)))
@settings(max_examples=80, deadline=None)
def test_every_rule_ends_every_request(seed: int, sharing: str, admission: str) -> None:
    """Under each pair of rules all requests end, or the run says that it is stuck; all blocks come back."""
    _, result, replay = run_random(seed, sharing=sharing, admission=admission)
    if not result.stuck and len(result.steps) < 3000:  # else preempting for ever, as vLLM does too
        assert all(request.is_finished for request in result.requests.values())
        pool = replay.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
        assert all(block.ref_cnt == 0 for block in pool.blocks if not block.is_null)


@given(st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_reserve_max_never_preempts(seed: int) -> None:
    """Who was admitted under reserve_max runs to its end."""
    _, result, _ = run_random(seed, admission="reserve_max")
    assert not any(step.preempted for step in result.steps)


def drain(config: EngineConfig, prompts: list[int], max_tokens: int) -> list[dict[str, int]]:
    """Tokens by request of every step until all have ended."""
    scheduler = make_scheduler(config)
    for i, prompt in enumerate(prompts):
        scheduler.add_request(Request(str(i), (Segment(f"p{i}", prompt),), max_tokens=max_tokens))
    steps = []
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        if not output.num_scheduled_tokens and (stuck := find_stuck(scheduler)):
            raise stuck
        steps.append(dict(output.num_scheduled_tokens))
        scheduler.update_from_output(output)
    return steps


UNSPLIT: dict[str, Any] = {
    "enable_chunked_prefill": False, "enable_prefix_caching": False, "max_model_len": 2000, "num_gpu_blocks": 2000
}  # fmt: skip


@pytest.mark.parametrize(("slack", "running"), [(0, 8), (-1, 7), (-3, 5)])
def test_unsplit_prompts_wait_for_room_in_the_step(slack: int, running: int) -> None:
    """max_num_tokens = prompt + clients - 1 is just enough: each token less leaves a place empty."""
    config = EngineConfig(
        admission="reserve_max", max_num_seqs=8, max_num_batched_tokens=1000 + 7 + slack, **UNSPLIT
    )
    steps = drain(config, [1000] * 16, max_tokens=900)
    assert max(map(len, steps)) == running
    assert all(sum(n == 1000 for n in step.values()) <= 1 for step in steps)
    assert max(sum(step.values()) for step in steps) == 1000 + running - 1


def test_an_unsplit_prompt_beyond_the_step_is_one_line() -> None:
    """Short ones run; the one that fits no step is named, and the flag."""
    config = EngineConfig(admission="reserve_max", max_num_seqs=8, max_num_batched_tokens=1000, **UNSPLIT)
    with pytest.raises(DoesNotFit, match="raise max_num_batched_tokens") as error:
        drain(config, [1000, 1001], max_tokens=10)
    assert "\n" not in str(error.value)


def test_conservative_admits_between_the_others() -> None:
    """Under pressure the share that SGLang leaves free admits fewer than grow and more than reserve_max."""

    def running(admission: str) -> tuple[int, int]:
        config = EngineConfig(num_gpu_blocks=101, max_model_len=2000, admission=admission)
        scheduler = make_scheduler(config)
        for i in range(20):
            scheduler.add_request(Request(str(i), (Segment(f"p{i}", 100),), max_tokens=400))
        most = 0
        while scheduler.has_unfinished_requests():
            scheduler.update_from_output(scheduler.schedule())
            most = max(most, len(scheduler.running))
        return most, scheduler.num_preemptions

    grow, conservative, reserve = (running(name) for name in ("grow", "conservative", "reserve_max"))
    assert grow[0] > conservative[0] >= reserve[0]
    assert grow[1] > conservative[1] >= reserve[1] == 0


def admitted_at(timeout_iters: int, ratio: float, prompts: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Step in which each prompt starts, given its tokens and the step it comes in; one request decodes throughout."""
    rule = {"timeout_iters": timeout_iters, "max_tokens_ratio": ratio}
    config = EngineConfig(
        num_gpu_blocks=999,
        max_model_len=4000,
        max_num_batched_tokens=1000,
        enable_prefix_caching=False,
        batch_wait=rule,
    )
    scheduler = make_scheduler(config)
    scheduler.add_request(Request("first", (Segment("first", 10),), max_tokens=200))
    found: dict[str, int] = {}
    for step in range(1, 80):
        for name, (tokens, when) in prompts.items():
            if when == step:
                scheduler.add_request(Request(name, (Segment(name, tokens),), max_tokens=100))
        output = scheduler.schedule()
        found |= {name: step for name in output.num_scheduled_tokens if name not in found}
        scheduler.update_from_output(output)
    return found


def test_batch_wait_holds_prompts_for_company_or_its_time() -> None:
    """TensorRT-LLM's rule: nothing decodes, no wait; few tokens, as many steps as stated; enough tokens, none."""
    alone = admitted_at(20, 0.9, {"a": (100, 5)})
    assert alone == {"first": 1, "a": 5 + 20}
    assert admitted_at(20, 0.9, {"a": (100, 5), "b": (899, 9)}) == {"first": 1, "a": 9, "b": 9}
    assert admitted_at(20, 0.9, {"a": (100, 5), "b": (100, 9)}) == {"first": 1, "a": 25, "b": 25}
    assert admitted_at(20, 0.9, {"a": (100, 5), "b": (100, 30)}) == {"first": 1, "a": 25, "b": 50}
    assert admitted_at(20, 0.1, {"a": (100, 5)}) == {"first": 1, "a": 5}


@given(st.integers(0, 2**32), st.integers(1, 30), st.floats(0.01, 1.0))
@settings(max_examples=40, deadline=None)
def test_batch_wait_ends_every_request(seed: int, timeout_iters: int, ratio: float) -> None:
    """Holding back starves nobody and leaks nothing."""
    rule = {"timeout_iters": timeout_iters, "max_tokens_ratio": ratio}
    _, result, replay = run_random(seed, batch_wait=rule)
    if not result.stuck and len(result.steps) < 3000:
        assert all(request.is_finished for request in result.requests.values())
        pool = replay.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def test_unchecked_rules_say_so() -> None:
    """vLLM's rules have no caveat; stand-ins for other engines name the engine they were not checked against."""
    config = EngineConfig(num_gpu_blocks=9, max_model_len=99)
    assert caveats(config) == ()
    wait = {"timeout_iters": 20, "max_tokens_ratio": 0.9}
    rules = {"sharing": "token", "admission": "reserve_max", "batch_wait": wait}
    other = EngineConfig(num_gpu_blocks=9, max_model_len=99, **rules)
    assert caveats(other) == (
        "sharing token: not checked against SGLang",
        "admission reserve_max: not checked against TensorRT-LLM",
        "batch_wait: not checked against TensorRT-LLM's own logs",
    )


@pytest.mark.parametrize("sharing", ["token", "copy_on_write"])
def test_fine_sharing_is_for_full_attention(sharing: str) -> None:
    """Windows and states cannot be shared by the token."""
    with pytest.raises((KvplanError, ValueError), match="full-attention group"):
        EngineConfig(
            num_gpu_blocks=9,
            max_model_len=99,
            sharing=sharing,
            kv_cache_groups=({"kind": "sliding_window", "window": 8},),
        )
