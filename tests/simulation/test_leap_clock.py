"""Leap equals step by step on a clock: every request's times, to the picosecond, beside every decision."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from clocked import Clocked, Told
from drawn import examples
from engine_conformance import scenarios
from group_scenarios import KINDS, random_groups, random_unshared
from hypothesis import given, settings
from hypothesis import strategies as st
from leap_scenarios import random_scenario
from visit_scenarios import KINDS as VISITED
from visit_scenarios import random_visits

from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.leap.allowed import has_one_full_group, why_no_visits, why_not
from kvplan.schedulers.protocol import ContentsMatter
from kvplan.simulation.in_flight import LeapInFlight

WAITS = ("blocked_seqs_ticks", "blocked_tokens_ticks", "blocked_blocks_ticks", "held_back_ticks")
"""What a leap without drafts tells for its whole length."""
REASONS = {name: why_not(VLLMScenario(**row).engine_config) for name, row in scenarios().items()}
LEAPABLE = [
    name
    for name, row in scenarios().items()
    if has_one_full_group(VLLMScenario(**row).engine_config) and not REASONS[name]
]
GROUPED = [row for row in scenarios().values() if not has_one_full_group(VLLMScenario(**row).engine_config)]
MODES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def both(scenario: VLLMScenario, block_ticks: bool = False) -> tuple[Told, Told]:
    return Clocked(scenario, True, block_ticks).run(), Clocked(scenario, False, block_ticks).run()


@MODES
@pytest.mark.parametrize("name", LEAPABLE)
def test_conformance_scenarios(name: str, is_async: bool) -> None:
    """Arrival, admission, first and first visible token, end, preemptions, recomputed and discarded tokens, KV held
    over time of every request; blocks, hits, evictions and step durations of the run."""
    leap, step = both(VLLMScenario(**scenarios()[name] | {"async_scheduling": is_async}))
    assert leap == step
    assert len(leap.records) == len(scenarios()[name]["requests"])


@MODES
@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(50), deadline=None)
def test_random_scenarios(is_async: bool, seed: int) -> None:
    """The same on any workload, arrivals and aborts in the middle of steps included."""
    leap, step = both(VLLMScenario(**random_scenario(Random(seed)) | {"async_scheduling": is_async}))
    assert leap == step


def test_what_cannot_leap_is_named() -> None:
    """11 of the 141 scenarios say beforehand why they are not in closed form; by visits all leap."""
    assert not any(why_no_visits(VLLMScenario(**row).engine_config) for row in GROUPED)
    kinds = Counter(reason.split(":")[0].split(" [")[0] for reason in REASONS.values() if reason)
    assert kinds == {"KV cache groups": 11}
    assert len(LEAPABLE) == 94


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), is_async=st.booleans(), caches=st.booleans())
@settings(max_examples=examples(20), deadline=None)
def test_groups_that_give_blocks_back(kind: str, seed: int, is_async: bool, caches: bool) -> None:
    """The same over windows, chunks and states, and blocks used over time to the last tick."""
    make = random_unshared if caches and kind != "none" else random_groups
    row = make(Random(seed), kind)
    num_groups = sum(group.get("repeat", 1) for group in row["kv_cache_groups"])
    longest = (
        -(-row["max_model_len"] // row["block_size"]) * num_groups
    )  # below it one may preempt itself without end
    row |= {"num_gpu_blocks": max(row["num_gpu_blocks"], longest + 1), "async_scheduling": is_async}
    scenario = VLLMScenario(**row)
    if why_not(scenario.engine_config):
        return
    try:
        leap, step = both(scenario, block_ticks=True)
    except ContentsMatter:
        return
    assert leap == step


@pytest.mark.parametrize("kind", VISITED)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(20), deadline=None)
def test_by_visits(kind: str, seed: int) -> None:
    """The same where contents are shared in groups that forget, to the last tick."""
    row = random_visits(Random(seed), kind)
    num_groups = sum(group.get("repeat", 1) for group in row.get("kv_cache_groups", [{}]))
    drafts = row.get("num_speculative_tokens", 0)
    longest = (-(-row["max_model_len"] // row["block_size"]) + drafts) * num_groups
    scenario = VLLMScenario(**row | {"num_gpu_blocks": max(row["num_gpu_blocks"], longest + 1)})
    visits = Clocked(scenario, False, block_ticks=True, visits=True)
    steps = Clocked(scenario, False, block_ticks=True)
    assert visits.run() == steps.run()
    for name in WAITS if drafts else ():
        assert getattr(visits.replica.totals, name) == getattr(steps.replica.totals, name), name


def test_an_empty_step_in_flight_is_read_first() -> None:
    """A step whose only request preempts itself is empty, takes no time, and is still one to read before a leap's.

    (`s02d_long_reasoning_priority`, asynchronous, has such steps.)
    """
    leap = LeapInFlight(start=100, ahead=1, first=0, num_steps=9, num_decodes=2, ticks=10, slope=2, open=True)
    assert [leap.ends_at(reads) for reads in (1, 2, 3)] == [100, 110, 122]
    assert [leap.reads_until(now) for now in (100, 101, 110, 111)] == [1, 2, 2, 3]
