"""The engine twin against vLLM 0.32.0's own scheduler: 141 scenarios, sync and async, decision for decision."""

from __future__ import annotations

import pytest
from engine_conformance import first_difference, golden, replay, scenarios


def test_every_scenario_has_both_logs() -> None:
    """No scenario is left out: 141 scenarios, 282 logs."""
    assert len(scenarios()) == 141
    assert set(golden()) == {(name, mode) for name in scenarios() for mode in ("sync", "async")}


@pytest.mark.parametrize("key", sorted(golden()), ids="-".join)
def test_equals_vllm(key: tuple[str, str]) -> None:
    """Every batch, victim, hit, eviction and block count of every step is vLLM's."""
    log, result = golden()[key], replay(*key)
    assert first_difference(result, log) == ""
    assert result.sched_sha256 == log["sched_sha256"]
    if "state_sha256" in log:
        assert result.state_sha256 == log["state_sha256"]
    victims = [[step.step, step.preempted] for step in result.steps if step.preempted]
    assert victims == log["preemptions"]
    assert result.stuck == log["summary"]["stuck"]
