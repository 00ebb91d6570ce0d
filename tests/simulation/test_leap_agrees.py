"""Leaping and stepping are one result: what requests waited for, and ids where replicas end at one moment."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.held_tokens import held_tokens
from kvplan.simulation.observer import Observer
from kvplan.simulation.records import UNSET
from kvplan.simulation.replica import Replica
from kvplan.simulation.sim_request import SimRequest
from kvplan.simulation.simulator import simulate

WAITS = ("blocked_seqs_ticks", "blocked_tokens_ticks", "blocked_blocks_ticks", "held_back_ticks")


def crowded(rng: Random) -> dict[str, Any]:
    """A load that has to wait, with clients that leave, on one of the engines that leap."""
    arrivals = rng.choice(
        [
            {"kind": "poisson", "rate": rng.choice([5, 20, 100])},
            {"kind": "constant", "rate": rng.choice([10, 50])},
            {"kind": "closed_loop", "concurrency": rng.choice([2, 8, 30]), "pause_s": rng.choice([0, 0.5])},
        ]
    )
    lengths = {"kind": "lognormal", "sigma": 0.7, "high": 4000}
    workload = {
        "num_requests": 40, "seed": rng.randrange(1000), "arrivals": arrivals, "stop": rng.choice(["eos", "length"]),
        "prompt": lengths | {"median": rng.choice([50, 500, 3000])},
        "answer": lengths | {"median": rng.choice([5, 50, 300])},
        **rng.choice([{}, {"timeout_s": 2}, {"abort_share": 0.3, "abort_after_s": 1.0}]),
    }  # fmt: skip
    engine = {
        "max_num_seqs": rng.choice([1, 2, 4, 16]), "max_model_len": 16384,
        "async_scheduling": rng.choice([True, False]), "max_num_batched_tokens": rng.choice([512, 8192]),
    }  # fmt: skip
    return {
        "model": "Qwen/Qwen3-8B",
        "replicas": rng.choice([1, 1, 2]),
        "workload": workload,
        "engine": engine,
    }


@pytest.mark.parametrize("seed", range(10))
def test_waiting_is_counted_alike(seed: int) -> None:
    """Every tick of waiting goes to the same resource, and so the run is limited by the same."""
    scenario = parse_scenario(crowded(Random(seed)))
    leaps, steps = simulate(scenario), simulate(scenario, step_by_step=True)
    assert [getattr(leaps.totals, name) for name in WAITS] == [getattr(steps.totals, name) for name in WAITS]
    assert leaps.limited_by == steps.limited_by


STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "beam_search", "beam_width": 2, "branch_factor": 2, "step_tokens": 16},
    {"strategy": "first_finish", "m": 1, "k": 3},
    {"strategy": "sequential_revision"},
    {"strategy": "chat", "num_turns": 3, "pause_s": 0.01},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy["strategy"])
@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_that_end_at_one_moment(strategy: dict[str, Any], replicas: int) -> None:
    """Steps of equal length end together all the time; ids and times do not depend on how they were reached."""
    problems = {
        "num_problems": 6, "arrivals": {"kind": "closed_loop", "concurrency": 4}, "prompt": 64, "placement": "spread",
        "quality": {"thinking_tokens": 60, "answer_tokens": 8, "sigma_within": 0.0, "sigma_between": 0.3},
        "strategies": [strategy],
    }  # fmt: skip
    data = {"model": "Qwen/Qwen3-8B", "replicas": replicas, "step_time": {"fixed_us": 1000}}
    scenario = parse_scenario(data | {"problems": problems})
    leaps, steps = simulate(scenario), simulate(scenario, step_by_step=True)
    assert np.array_equal(leaps.records.table, steps.records.table)


def test_the_wall_clock_counts_requests_that_never_step() -> None:
    """A million prompts that are all refused take no engine step; the limit holds all the same."""
    workload = {"num_requests": 1_000_000, "prompt": 100_000_000, "arrivals": {"kind": "all_at_once"}}
    limits = {"wall_clock_s": 0.5}
    result = simulate(parse_scenario({"model": "Qwen/Qwen3-8B", "workload": workload, "limits": limits}))
    assert result.verdict == "wall_clock"
    assert 0 < len(result.records) < 1_000_000


def sums_are_those_of_each(replica: Replica) -> int:
    """Look at each request; return how many grow in closed form."""

    def held(request: SimRequest) -> int:
        grown = 0 if request.decode_from == UNSET else replica.num_reads - request.decode_from
        return request.held + grown

    each = [held_tokens(request, held(request)) for request in replica.resident]
    assert replica.held_tokens() == tuple(map(sum, zip((0, 0, 0, 0), *each, strict=True)))
    return len(replica.resident) - len(replica.still)


@pytest.mark.parametrize("step_by_step", [False, True], ids=["leap", "step"])
@pytest.mark.parametrize("blocks", [260, 4000])
def test_held_tokens_are_those_of_each(blocks: int, step_by_step: bool) -> None:
    """Running sums of prompt, shared prompt, thinking and answer in the cache; blocks may run out."""
    lengths = {"kind": "lognormal", "sigma": 0.7, "high": 900}
    workload = {
        "num_requests": 40, "arrivals": {"kind": "poisson", "rate": 100}, "shared_prefix_tokens": 64,
        "prompt": lengths | {"median": 200}, "thinking": lengths | {"median": 100}, "answer": lengths | {"median": 50},
    }  # fmt: skip
    engine = {"num_gpu_blocks_override": blocks, "max_model_len": 4096, "max_num_batched_tokens": 512}
    scenario = parse_scenario({"model": "Qwen/Qwen3-8B", "workload": workload, "engine": engine})
    growing: list[int] = []
    look = Observer(on_sample=lambda _, replicas: growing.extend(map(sums_are_those_of_each, replicas)))
    found = simulate(scenario, step_by_step=step_by_step, observer=look)
    assert sum(growing) > 100
    assert (found.totals.preemptions > 0) == (blocks < 1000)
