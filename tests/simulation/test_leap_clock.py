"""Leap equals step by step on a clock: every request's times, to the picosecond, beside every decision."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from clocked import Clocked, Told
from engine_conformance import scenarios
from hypothesis import given, settings
from hypothesis import strategies as st
from leap_scenarios import random_scenario

from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.leap.allowed import why_not
from kvplan.simulation.in_flight import LeapInFlight

REASONS = {name: why_not(VLLMScenario(**row).engine_config) for name, row in scenarios().items()}
LEAPABLE = [name for name, reason in REASONS.items() if not reason]
MODES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def both(scenario: VLLMScenario) -> tuple[Told, Told]:
    return Clocked(scenario, leaps=True).run(), Clocked(scenario, leaps=False).run()


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
@settings(max_examples=50, deadline=None)
def test_random_scenarios(is_async: bool, seed: int) -> None:
    """The same on any workload, arrivals and aborts in the middle of steps included."""
    leap, step = both(VLLMScenario(**random_scenario(Random(seed)) | {"async_scheduling": is_async}))
    assert leap == step


def test_what_cannot_leap_is_named() -> None:
    """47 of the 141 scenarios say why they go step by step; there leap and step are one scheduler."""
    kinds = Counter(reason.split(":")[0].split(" [")[0] for reason in REASONS.values() if reason)
    assert kinds == {"KV cache groups": 47}
    assert len(LEAPABLE) == 94


def test_an_empty_step_in_flight_is_read_first() -> None:
    """A step whose only request preempts itself is empty, takes no time, and is still one to read before a leap's.

    (`s02d_long_reasoning_priority`, asynchronous, has such steps.)
    """
    leap = LeapInFlight(start=100, ahead=1, first=0, num_steps=9, num_decodes=2, ticks=10, slope=2, open=True)
    assert [leap.ends_at(reads) for reads in (1, 2, 3)] == [100, 110, 122]
    assert [leap.reads_until(now) for now in (100, 101, 110, 111)] == [1, 2, 2, 3]
