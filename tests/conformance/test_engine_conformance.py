"""The engine twin against vLLM 0.32.0's own scheduler: 141 scenarios, sync and async, decision for decision."""

from __future__ import annotations

import json

import pytest
from conformance.random_scenarios import RANDOM_MAX_STEPS, dspark_scenario, random_scenario, run_hash
from engine_conformance import FOLDER, first_difference, golden, replay, scenarios

from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.errors import KvplanError
from kvplan.schedulers.leap.allowed import why_not


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


RANDOM: dict[str, list[str]] = json.loads((FOLDER / "random_golden.json").read_text())


@pytest.mark.parametrize("seed", RANDOM)
def test_random_scenario_equals_vllm(seed: str) -> None:
    """Random engines over all features at once did in vLLM what they do here (hashes written by vllm_oracle.py)."""
    data = random_scenario(int(seed))
    runs = [
        VLLMReplay(VLLMScenario(**data | {"async_scheduling": a})).run(RANDOM_MAX_STEPS)
        for a in (False, True)
    ]
    assert [run_hash(run.steps) for run in runs] == RANDOM[seed]


DSPARK: dict[str, list[str]] = json.loads((FOLDER / "dspark_golden.json").read_text())


@pytest.mark.parametrize("seed", DSPARK)
def test_random_scenario_that_drafts_by_dspark_equals_vllm(seed: str) -> None:
    """The same, with blocks of drafts that take input slots of their own (`vllm_oracle.py --kind dspark`)."""
    data = dspark_scenario(int(seed))
    assert data["spec_method"] == "dspark"
    runs = [
        VLLMReplay(VLLMScenario(**data | {"async_scheduling": a})).run(RANDOM_MAX_STEPS)
        for a in (False, True)
    ]
    assert [run_hash(run.steps) for run in runs] == DSPARK[seed]


CAN_LEAP = {name for name, data in scenarios().items() if not why_not(VLLMScenario(**data).engine_config)}


def test_what_cannot_leap_says_why() -> None:
    """A few ways to cache prefixes, and drafts beside windows and states, are refused by name, before anything runs."""
    refused = sorted(set(scenarios()) - CAN_LEAP)
    print("step by step only:", *refused)
    assert {name.split("_")[0] for name in refused} == {"abort", "chk", "mam", "mix", "spec", "swa"}
    for name in refused:
        with pytest.raises(KvplanError, match=r"cannot leap: (KV cache groups|speculation)"):
            LeapReplay(VLLMScenario(**scenarios()[name]))
