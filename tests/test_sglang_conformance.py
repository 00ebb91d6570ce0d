"""The second engine twin against SGLang 0.5.23's own scheduler: 63 scenarios, both loops, decision for decision."""

from __future__ import annotations

import pytest
from sglang_conformance import first_difference, golden, replay, scenarios

from kvplan.engine_sglang.config import SGLangConfig
from kvplan.engine_sglang.scenario import SGLangScenario


def test_every_scenario_has_both_logs() -> None:
    """No scenario is left out: 63 scenarios, 126 logs."""
    assert len(scenarios()) == 63
    assert set(golden()) == {(name, mode) for name in scenarios() for mode in ("normal", "overlap")}


@pytest.mark.parametrize("key", sorted(golden()), ids="-".join)
def test_equals_sglang(key: tuple[str, str]) -> None:
    """Every batch, hit, eviction, lock, retraction and ratio of every pass is SGLang's; no kind stays out."""
    log, result = golden()[key], replay(*key)
    assert first_difference(result, log) == ""
    assert result.sched_sha256 == log["sched_sha256"]
    assert result.state_sha256 == log["state_sha256"]
    assert result.stuck == log["summary"]["stuck"]
    retracted = [[step.step, step.retracted] for step in result.steps if step.retracted]
    assert retracted == [row[:2] for row in log["retractions"]]


def flags_used(name: str) -> set[str]:
    """The engine's flags that a scenario sets to something else than SGLang's default."""
    config = SGLangScenario(**scenarios()[name]).engine_config
    return {
        field for field, info in SGLangConfig.model_fields.items() if getattr(config, field) != info.default
    }


def test_what_the_logs_say_nothing_about() -> None:
    """Flags and policies that no reference log uses are known by name."""
    used = {flag for name in scenarios() for flag in flags_used(name)} | {"enable_overlap"}
    unused = set(SGLangConfig.model_fields) - used
    policies = {SGLangScenario(**scenario).policy for scenario in scenarios().values()}
    print("not in any log: policy hrrn;", *sorted(unused))
    assert unused == {
        "schedule_low_priority_values_first",
        "priority_scheduling_preemption_threshold",
        "disable_priority_preemption",
    }
    assert {"fcfs", "lof", "lpm", "dfs-weight", "shortest-prefill-first", "priority"} == policies
