"""The second engine twin against SGLang 0.5.23's own scheduler: 63 scenarios, both loops, decision for decision."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from conformance.sglang.random_scenarios import MAX_STEPS, random_scenario
from sglang_conformance import FOLDER, Log, first_difference, golden, replay, scenarios

from kvplan.conformance.sglang_replay import SGLangReplay
from kvplan.conformance.sglang_scenario import SGLangScenario
from kvplan.schedulers.sglang.config import SGLangConfig


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


RANDOM: dict[str, str] = json.loads((FOLDER / "random_golden.json").read_text())


@pytest.mark.parametrize("seed", RANDOM)
def test_random_scenario_equals_sglang(seed: str) -> None:
    """Random engines over all flags and policies at once did in SGLang what they do here."""
    data = random_scenario(int(seed))
    runs = [
        SGLangReplay(SGLangScenario(**data | {"async_scheduling": a})).run(MAX_STEPS) for a in (False, True)
    ]
    hashes = [digest[:16] for run in runs for digest in (run.sched_sha256, run.state_sha256)]
    assert " ".join(hashes) == RANDOM[seed]


def flags_used(scenario: Log) -> set[str]:
    """The engine's flags that a scenario sets to something else than SGLang's default."""
    config = SGLangScenario(**scenario).engine_config
    return {
        field for field, info in SGLangConfig.model_fields.items() if getattr(config, field) != info.default
    }


def test_no_flag_or_policy_is_unchecked() -> None:
    """Every flag and every policy of the twin is in some log of SGLang's."""
    logs = [*scenarios().values(), *(random_scenario(int(seed)) for seed in RANDOM)]
    used = {flag for scenario in logs for flag in flags_used(scenario)} | {"enable_overlap"}
    assert used == set(SGLangConfig.model_fields)
    named = get_args(SGLangScenario.model_fields["policy"].annotation)
    assert {SGLangScenario(**scenario).policy for scenario in logs} == set(named)
