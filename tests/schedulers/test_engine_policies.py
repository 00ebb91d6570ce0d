"""Admission rules beside vLLM's: what each promises, and that it says what it is not."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.random_scenarios import random_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.conformance.replay import ReplayResult
from kvplan.conformance.vllm_records import StepRecord
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.conformance.vllm_stuck import find_stuck
from kvplan.ground.content import Segment
from kvplan.ground.errors import DoesNotFit
from kvplan.schedulers.vllm import EngineConfig, Request, make_scheduler
from kvplan.schedulers.vllm.admission import ADMISSIONS
from kvplan.schedulers.vllm.caveats import caveats


def run_random(seed: int, **rules: str) -> tuple[VLLMScenario, ReplayResult[StepRecord], VLLMReplay]:
    """A random scenario of full attention without speculation, under other rules."""
    data = random_scenario(seed)
    for key in ("kv_cache_groups", "kv_cache_layers", "num_speculative_tokens", "spec_method"):
        data.pop(key, None)
    for key in ("prefix_match_unit", "prefix_cache_retention_interval"):
        data.pop(key, None)
    scenario = VLLMScenario(**data | rules)
    replay = VLLMReplay(scenario)
    return scenario, replay.run(3000), replay


@given(st.integers(0, 2**32), st.sampled_from(sorted(ADMISSIONS)))
@settings(max_examples=80, deadline=None)
def test_every_rule_ends_every_request(seed: int, admission: str) -> None:
    """Under each rule all requests end, or the run says that it is stuck; all blocks come back."""
    _, result, replay = run_random(seed, admission=admission)
    if not result.stuck and len(result.steps) < 3000:  # else preempting for ever, as vLLM does too
        assert all(request.is_finished for request in replay.requests.values())
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
        assert all(request.is_finished for request in replay.requests.values())
        pool = replay.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def test_unchecked_rules_say_so() -> None:
    """vLLM's rules have no caveat; stand-ins for other engines name the engine they were not checked against."""
    config = EngineConfig(num_gpu_blocks=9, max_model_len=99)
    assert caveats(config) == ()
    wait = {"timeout_iters": 20, "max_tokens_ratio": 0.9}
    rules = {"admission": "reserve_max", "batch_wait": wait}
    other = EngineConfig(num_gpu_blocks=9, max_model_len=99, **rules)
    assert caveats(other) == (
        "admission reserve_max: not checked against TensorRT-LLM",
        "batch_wait: not checked against TensorRT-LLM's own logs",
    )
