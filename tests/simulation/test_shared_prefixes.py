"""Branches of one prompt: how much of it is read again for each, what a step that reads it once takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvplan.ground.content import Content, Segment
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.result import Result
from kvplan.simulation.shared_prefixes import SharedPrefixes
from kvplan.simulation.sim_request import SimRequest
from kvplan.simulation.simulator import simulate

BLOCK = 16
PROMPTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(
    lambda names: tuple(Segment(f"{name}{depth}", 25) for depth, name in enumerate(names))
)


def request(row: int, prompt: Content) -> SimRequest:
    return SimRequest(row, prompt, 10, 10)


@given(st.lists(PROMPTS, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_what_is_read_again_is_what_is_held_beyond_its_first_copy(prompts: list[Content], luck: Any) -> None:
    """All blocks of all sequences less the different ones, whoever came first and whoever has gone."""
    shared, running = SharedPrefixes(BLOCK), []
    for row, prompt in enumerate(prompts):
        running.append(request(row, prompt))
        running[-1].hit_tokens = (running[-1].num_prompt_tokens - 1) // BLOCK * BLOCK
        shared.add(running[-1])
        if len(running) > 3:
            shared.remove(running.pop(luck.randrange(len(running))))
    held = [one.prompt[:i] for one in running for i in range(1, len(one.prompt) + 1)]

    def tokens(path: Content) -> int:
        end = 25 * len(path)
        return (end // BLOCK - (end - 25) // BLOCK) * BLOCK

    assert shared.num_redundant == sum(map(tokens, held)) - sum(map(tokens, set(held)))


def test_one_that_was_computed_privately_shares_nothing() -> None:
    """Two equal prompts that came at once have two copies."""
    shared = SharedPrefixes(BLOCK)
    prompt = (Segment("p", 160),)
    for row in range(2):
        shared.add(request(row, prompt))
    assert not shared.num_redundant


def test_the_last_block_of_a_prompt_is_everybodys_own() -> None:
    """vLLM finds all blocks but the one with the last token: of ten blocks nine are read again, by two of three."""
    shared = SharedPrefixes(BLOCK)
    requests = [request(row, (Segment("p", 160),)) for row in range(3)]
    for one in requests:
        one.hit_tokens = 144 * bool(one.row)
        shared.add(one)
    assert shared.num_redundant == 2 * 144
    shared.remove(requests[0])
    assert shared.num_redundant == 144


STEP = {"fixed_us": 1000, "per_sequence_us": 0, "per_context_token_ns": 100, "per_prefill_token_us": 1}


def best_of(num: int, shared_reads: float, step_by_step: bool = False, is_async: bool = False) -> Result:
    problems = {
        "num_problems": 6, "arrivals": {"kind": "closed_loop", "concurrency": 2}, "prompt": 1600,
        "strategies": [{"strategy": "best_of_n", "n": num}],
    }  # fmt: skip
    data = {
        "model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STEP | {"shared_reads": shared_reads},
        "problems": problems, "engine": {"async_scheduling": is_async},
    }  # fmt: skip
    return simulate(parse_scenario(data), step_by_step=step_by_step)


@pytest.mark.parametrize("is_async", [False, True])
def test_leaping_equals_stepping(is_async: bool) -> None:
    leapt, stepped = (best_of(4, 0.7, step, is_async) for step in (False, True))
    assert (leapt.records.table == stepped.records.table).all()
    assert leapt.modes[""].startswith("step" if is_async else "leap")


def test_a_prompt_read_once_costs_once() -> None:
    """One sequence gains nothing; eight of a prompt of 1,600 tokens save up to seven times its read in every step."""
    assert best_of(1, 1.0).duration_s == best_of(1, 0.0).duration_s
    times = [best_of(8, share).totals.busy_ticks for share in (0.0, 0.5, 1.0)]
    assert times[0] > times[1] > times[2]
    assert times[0] - times[1] == pytest.approx(times[1] - times[2], rel=0.01)
