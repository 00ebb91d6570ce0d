"""The tier of vLLM 0.33: equal to its own logs, and each of its rules needed for that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_conformance import offload_golden, offload_replay

from kvplan.conformance.vllm_replay import offload_sha256
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.rules import SchedulerRules, changes

VERSION = "0.33"
OFFLOAD_WHERE = {
    "tier_ranks_by_request": ("cpu_full_of_writes", "sync"),
    "lookups_restart_stores": ("ses_tight_arc", "sync"),
    "chunks_are_stored_whole": ("random10", "sync"),
    "ends_take_back_tokens": ("random1", "async"),
}
"""Rule -> a log in which it shows."""


def is_equal(name: str, mode: str) -> bool:
    """Whether all hashes of a log are the twin's."""
    log, result = offload_golden(VERSION)[name, mode], offload_replay(name, mode, VERSION).run()
    hashes = {
        "sched_sha256": result.sched_sha256,
        "state_sha256": result.state_sha256,
        "offload_sha256": offload_sha256(result),
    }
    return all(log.get(key, found) == found for key, found in hashes.items())


@pytest.mark.parametrize("key", sorted(offload_golden(VERSION)), ids="-".join)
def test_equals_vllm(key: tuple[str, str]) -> None:
    """Every decision about blocks and tier is that version's, loads inside a step among them."""
    assert is_equal(*key)


@pytest.mark.parametrize("name", OFFLOAD_WHERE)
def test_a_rule_turned_over_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.33 with one rule of 0.32 does not pass for itself."""
    assert is_equal(*OFFLOAD_WHERE[name])
    monkeypatch.setattr(SchedulerRules, name, replace(changes()[name], since=(99, 0)))
    assert not is_equal(*OFFLOAD_WHERE[name])


def test_loads_inside_steps_are_of_033() -> None:
    """Versions before it refuse the budget by name."""
    tier = {"num_chunks": 10, "sync_load_budget_bytes": 100}
    with pytest.raises(ValueError, match=r"sync_load_budget_bytes: vLLM has it from 0\.33 on"):
        EngineConfig(num_gpu_blocks=10, max_model_len=100, kv_offloading=tier)
    EngineConfig(num_gpu_blocks=10, max_model_len=100, kv_offloading=tier, engine_version="0.33")
