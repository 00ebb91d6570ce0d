"""The leap's allow-list: it speaks of every field of `EngineConfig`, and what it does not list goes step by step."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.scenario.schema import parse_scenario
from kvplan.schedulers.leap.allowed import (
    ALLOWED,
    VISITED,
    WHY_NOT,
    has_one_full_group,
    why_no_visits,
    why_not,
)
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.simulation.simulator import simulate

PLAIN = EngineConfig(num_gpu_blocks=100, max_model_len=200)

REFUSED: dict[str, Any] = {
    "kv_cache_groups": ({"kind": "chunked_local", "chunk": 64},),
    "num_speculative_tokens": 3,  # beside a cap of two tokens
    "admission": "reserve_max",
    "batch_wait": {"timeout_iters": 3, "max_tokens_ratio": 0.5},
    "kv_offloading": {"num_chunks": 100},
    "prefill_schedule_interval": 2,
    "engine_version": "0.11",
    "max_num_scheduled_tokens": 255,  # one less than there are places
    "long_prefill_token_threshold_adaptive": True,
    "num_speculative_tokens_per_batch_size": ((1, 4, 1), (5, 8, 0)),
    "enable_adaptive_verification": True,
}
"""Field -> a value that the engine takes and the leap does not: asynchronous, with a draft, where versions count."""


@pytest.mark.parametrize("field", EngineConfig.model_fields)
def test_every_field_is_listed(field: str) -> None:
    """A field that nobody thought of would let engines leap that the closed forms do not know."""
    assert field in ALLOWED, f"say in leap/allowed.py which values of {field} leap"


def test_nothing_else_is_listed() -> None:
    """No entry outlives its field; every reason belongs to an entry."""
    assert set(ALLOWED) == set(EngineConfig.model_fields)
    assert set(WHY_NOT) == set(REFUSED) <= set(ALLOWED)


@pytest.mark.parametrize("field", REFUSED)
def test_a_value_that_is_not_listed_is_refused(field: str) -> None:
    """One line says why, and the scheduler does not start."""
    plain = PLAIN.model_copy(
        update={
            "engine_version": "0.33",
            "async_scheduling": True,
            "long_prefill_token_threshold": 2,
            "num_speculative_tokens": 1,
        }
    )
    config = EngineConfig.model_validate(plain.model_dump() | {field: REFUSED[field]})
    assert not why_not(plain)
    assert why_not(config) == WHY_NOT[field](config)
    with pytest.raises(AssertionError):
        LeapScheduler(config)


UNVISITED: dict[str, Any] = {
    "kv_cache_groups": ({"kind": "mamba", "mode": "none", "block_size": 32}, {}),  # states of several blocks
    "num_speculative_tokens": 3,  # beside a cap of two tokens
    "admission": "reserve_max",
    "batch_wait": {"timeout_iters": 3, "max_tokens_ratio": 0.5},
    "kv_offloading": {"num_chunks": 100},
    "prefill_schedule_interval": 2,
    "engine_version": "0.11",  # heads that cannot be cut were passed over
    "max_num_scheduled_tokens": 255,  # one less than there are places
    "long_prefill_token_threshold_adaptive": True,
}
"""Field -> a value that the engine takes and leaps by visits do not."""


@pytest.mark.parametrize("field", UNVISITED)
def test_what_is_not_visited(field: str) -> None:
    """Leaps by visits have an allow-list too: what it does not list goes step by step."""
    update = {"engine_version": "0.33", "enable_chunked_prefill": False, "max_num_batched_tokens": 300}
    windows = (KVCacheGroup(kind="sliding_window", window=32), KVCacheGroup())
    update |= {"kv_cache_groups": windows, "prefix_cache_retention_interval": None}
    update |= {"enable_prefix_caching": False, "long_prefill_token_threshold": 2}
    update["num_speculative_tokens"] = 1
    plain = PLAIN.model_copy(update=update)
    config = EngineConfig.model_validate(plain.model_dump() | {field: UNVISITED[field]})
    assert not why_no_visits(plain)
    assert why_no_visits(config)
    if field != "kv_offloading":
        assert StepByStep(config, leaps=True).plan_leap() is None


def test_nothing_else_is_visited() -> None:
    """What is listed for visits alone is listed for the closed forms too, and refuses something."""
    assert set(VISITED) <= set(ALLOWED)
    assert {field for field, allowed in VISITED.items() if allowed is not None} <= set(UNVISITED)


@pytest.mark.parametrize("num_drafts", [15, 16])
def test_states_in_blocks_of_a_step(num_drafts: int) -> None:
    """Where a step may fill more than a block of states, the blocks of drafts move on in other ways."""
    update = {"kv_cache_groups": ({"kind": "mamba"}, {}), "num_speculative_tokens": num_drafts}
    config = EngineConfig.model_validate(PLAIN.model_dump() | update)
    assert bool(why_no_visits(config)) == (num_drafts > 15)


@pytest.mark.parametrize("group", [{"block_size": 32}, {"eagle": True}, {"repeat": 2}])
def test_a_full_group_of_its_own_kind_is_another_leap(group: dict[str, Any]) -> None:
    """Blocks of another size and two tables are counted, not written down; hits cut short for a drafter are neither."""
    config = EngineConfig(num_gpu_blocks=100, max_model_len=200, kv_cache_groups=(group,))
    assert bool(why_not(config)) == ("eagle" in group)
    assert not has_one_full_group(config)
    plain = EngineConfig(num_gpu_blocks=100, max_model_len=200, kv_cache_groups=({"block_size": 16},))
    assert has_one_full_group(plain)
    assert not why_not(plain)


def test_new_values_and_new_fields_go_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose engine has one ends as before, and its result says why it did not leap."""
    workload = {"num_requests": 3, "prompt": 20, "answer": 5, "max_tokens": 5}
    data = {"model": "meta-llama/Llama-3.1-8B-Instruct", "workload": workload}
    leapt = simulate(parse_scenario(data)).to_dict()
    assert leapt["modes"] == {"": "leap"}
    for listed in (
        {**ALLOWED, "policy": ("priority",)},
        {k: v for k, v in ALLOWED.items() if k != "watermark"},
    ):
        monkeypatch.setattr("kvplan.schedulers.leap.allowed.ALLOWED", listed)
        stepped = simulate(parse_scenario(data)).to_dict()
        what = "policy fcfs" if "watermark" in listed else "watermark"
        assert stepped["modes"] == {"": f"step by step: {what}: not in closed form"}
        assert stepped["mean_e2el_ms"] == leapt["mean_e2el_ms"]
