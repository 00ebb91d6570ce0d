"""The leap decides as vLLM does and as the step-by-step scheduler does: every step, block, hit, eviction and end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from drawn import examples
from engine_conformance import golden, scenarios
from hypothesis import given, settings
from hypothesis import strategies as st
from leap_scenarios import compare, random_scenario

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.leap import scheduler as leap
from kvplan.schedulers.leap import waiting as leap_waiting
from kvplan.schedulers.leap.allowed import has_one_full_group, why_not
from kvplan.schedulers.leap.batch import DecodeBatch
from kvplan.schedulers.leap.extents import ExtentPool
from kvplan.schedulers.leap.state import BlockRun, Piece
from kvplan.schedulers.leap.waiting import NO_PLACE
from kvplan.schedulers.request import NEVER

CONFIGS = {name: VLLMScenario(**row).engine_config for name, row in scenarios().items()}
LEAPABLE = [name for name, config in CONFIGS.items() if has_one_full_group(config) and not why_not(config)]
MODES = pytest.mark.parametrize("mode", ["sync", "async"])


def scenario_of(row: dict[str, Any], mode: str) -> VLLMScenario:
    return VLLMScenario(**row | {"async_scheduling": mode == "async"})


def difference(row: dict[str, Any], mode: str, rng: Random | None = None) -> str:
    """Run a scenario on both schedulers; return the first difference."""
    scenario = scenario_of(row, mode)
    leap = LeapReplay(scenario, rng=rng)
    found = compare(scenario, leap)
    if not found and not leap.engine.sequences and leap.engine.num_free_blocks != scenario.num_gpu_blocks - 1:
        return f"{leap.engine.num_free_blocks} blocks free at the end"
    return found


@MODES
@pytest.mark.parametrize("leaps", [False, True], ids=["steps", "leaps"])
@pytest.mark.parametrize("name", LEAPABLE)
def test_golden(name: str, leaps: bool, mode: str) -> None:
    """Every decision of vLLM 0.32's logs, and free and evicted blocks and hits wherever the leap stops."""
    log = golden()[name, mode]
    leap = LeapReplay(scenario_of(scenarios()[name], mode), leaps)
    result = leap.run()
    assert result.sched_sha256 == log["sched_sha256"]
    assert result.stuck == log["summary"]["stuck"]
    rows = [dict(zip(log["columns"], values, strict=True)) for values in log["rows"]]
    assert [len(step.finished) for step in result.steps] == [row["n_finished"] for row in rows]
    state: dict[int, tuple[int, int, int]] = {}
    evicted = hits = 0
    for row in rows:
        evicted, hits = evicted + row["evicted"], hits + row["hit_tokens"]
        state[row["step"]] = row["free_end"], evicted, hits
    assert [(look.free_blocks, look.evicted_blocks, look.hit_tokens) for look in leap.looks] == [
        state[look.step] for look in leap.looks
    ]
    assert leap.num_leaps > 0 or not leaps or len(rows) < 100


def test_the_goldens_are_mostly_leapt() -> None:
    """94 scenarios have full attention alone, 14 of them with drafts (`test_group_leap` has other groups)."""
    assert len(LEAPABLE) == 94
    drafted = [scenarios()[name] for name in LEAPABLE if scenarios()[name].get("num_speculative_tokens")]
    assert len(drafted) == 14
    leap = LeapReplay(scenario_of(scenarios()["s02_long_reasoning_preempt"], "sync"))
    leap.run()
    assert leap.num_leapt_steps > 20 * leap.num_leaps


@MODES
@given(seed=st.integers(0, 2**32), cut=st.booleans())
@settings(max_examples=examples(250), deadline=None)
def test_random_workloads(mode: str, seed: int, cut: bool) -> None:
    """Leap equals step by step on any workload, also when leaps are cut short anywhere."""
    assert not difference(random_scenario(Random(seed)), mode, Random(seed) if cut else None)


@MODES
@given(seed=st.integers(0, 2**32), version=st.sampled_from(["0.11", "0.19", "0.26", "0.30", "0.33"]))
@settings(max_examples=examples(80), deadline=None)
def test_random_workloads_of_other_versions(mode: str, seed: int, version: str) -> None:
    """It follows the rules of each version as the stepping scheduler does, or says that it cannot leap."""
    row = random_scenario(Random(seed)) | {"engine_version": version}
    if not why_not(scenario_of(row, mode).engine_config):
        assert not difference(row, mode, Random(seed))


GROWING_HITS = {
    "block_size": 4,
    "num_gpu_blocks": 15,
    "max_model_len": 128,
    "requests": [
        {"id": "a", "prompt": [{"len": 8}], "output_len": 40},
        {
            "id": "b",
            "prompt": [{"prompt_of": "a"}, {"output_of": "a", "len": 36}, {"len": 12}],
            "output_len": 1,
        }
        | {"arrival_step": 10},
    ],
}
"""b waits for one block. Each block that a begins and b will hit costs as much as it saves, until a has filled it."""


def test_growing_hits_end_a_leap() -> None:
    """A blocked request enters in the step in which another one completes the block that it can hit next."""
    assert not difference(GROWING_HITS, "sync")
    leap = LeapReplay(scenario_of(GROWING_HITS, "sync"))
    leap.run()
    assert leap.finish["b"] < leap.finish["a"] - 20


def is_caught(num_seeds: int) -> bool:
    """Whether any workload shows a difference between the schedulers, or breaks one."""
    rows = itertools.chain([GROWING_HITS], (random_scenario(Random(seed)) for seed in range(num_seeds)))
    for row, mode in ((row, mode) for row in rows for mode in ("sync", "async")):
        try:
            found = difference(row, mode)
        except (AssertionError, IndexError, KeyError, ValueError, StopIteration):
            return True
        if found:
            return True
    return False


def _free_to_the_front(self: ExtentPool, piece: Piece) -> None:
    piece.refs -= 1
    if not piece.refs:
        self.num_free += piece.hi - piece.lo
        self._link(piece, self._queue)


def _last_copy(self: ExtentPool, run: BlockRun, depth: int) -> tuple[int, int]:
    return -depth, -run.admission


def _closed_but_still_blocked(right: Any) -> Any:
    def close(self: Any, seq: Any, status: Any) -> None:
        blocked = self._blocked
        right(self, seq, status)
        self._blocked = blocked

    return close


MUTANTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "hashed blocks freed to the front": (ExtentPool, "_let_go", lambda right: _free_to_the_front),
    "hits take the last copy": (ExtentPool, "_when_hashed", lambda right: _last_copy),
    "no hash lag": (ExtentPool, "num_hashed", lambda right: lambda self, seq, c: c // self.block_size),
    "a blocked head stays out for ever": (leap.LeapScheduler, "_close", _closed_but_still_blocked),
    "growing hits are not seen": (leap_waiting, "_next_hit", lambda right: lambda *_: NEVER),
    "a head without tokens stays out": (
        leap,
        "schedule_waiting",
        lambda right: lambda *a: right(*a) or NO_PLACE,
    ),
    "leaps one step too far": (DecodeBatch, "next_end", lambda right: lambda self: right(self) + 1),
    "blocks one step too few": (DecodeBatch, "takes_block", lambda right: lambda self, seq: False),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rule shows on random workloads."""
    place, attribute, wrong = MUTANTS[name]
    monkeypatch.setattr(place, attribute, wrong(getattr(place, attribute)))
    assert is_caught(num_seeds=300)
