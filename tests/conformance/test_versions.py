"""Other versions of vLLM than 0.32: each equal to its own scheduler's logs, and each rule needed for that."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from conformance.random_scenarios import RANDOM_MAX_STEPS, random_scenario, run_hash
from conformance.test_offload_versions import OFFLOAD_WHERE
from engine_conformance import FOLDER, first_difference, golden, logs_of, scenarios, scenarios_of
from validation import section

from kvplan.conformance.twins import TWINS
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.errors import KvplanError
from kvplan.schedulers.leap.allowed import why_not
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.rules import (
    CHECKED,
    NOT_MODELLED,
    Rule,
    SchedulerRules,
    changes,
    parse_version,
    write_version,
)

VERSIONS = tuple(sorted(folder.name for folder in (FOLDER / "vllm").iterdir()))
Json = dict[str, Any]


def scenario_of(version: str, data: Json, is_async: bool) -> VLLMScenario:
    return VLLMScenario(**data | {"engine_version": version, "async_scheduling": is_async})


def keys() -> list[tuple[str, str, str]]:
    return [(version, *key) for version in VERSIONS for key in sorted(logs_of(version))]


def run_of_leaps(scenario: VLLMScenario) -> str | None:
    """The leap's decisions, hashed; None where requests share content in groups that forget: such runs are walked."""
    try:
        return LeapReplay(scenario).run().sched_sha256
    except KvplanError as error:
        if "share content in groups that forget" in str(error):
            return None
        raise


@pytest.mark.parametrize("key", keys(), ids="-".join)
def test_equals_vllm(key: tuple[str, str, str]) -> None:
    """Every decision and block count of every step is that version's; the leap, where it may, decides alike."""
    version, name, mode = key
    log, scenario = (
        logs_of(version)[name, mode],
        scenario_of(version, scenarios_of(version)[name], mode == "async"),
    )
    result = VLLMReplay(scenario).run()
    if "rows" in log:
        assert first_difference(result, log) == ""
    assert (result.sched_sha256, result.state_sha256) == (log["sched_sha256"], log["state_sha256"])
    assert result.stuck == log["summary"]["stuck"]
    if not why_not(scenario.engine_config):
        leapt = run_of_leaps(scenario)
        assert leapt is None or leapt == log["sched_sha256"]


@cache
def random_golden(version: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((FOLDER / "vllm" / version / "random_golden.json").read_text())
    return found


def random_hash(version: str, seed: str, is_async: bool) -> str:
    data = random_scenario(int(seed), parse_version(version))
    return run_hash(VLLMReplay(scenario_of(version, data, is_async)).run(RANDOM_MAX_STEPS).steps)


@pytest.mark.parametrize("version", VERSIONS)
def test_random_scenarios_equal_vllm(version: str) -> None:
    """Random engines over all that a version is held to did in it what they do here."""
    hashes = random_golden(version)
    assert len(hashes) >= 200
    for seed, theirs in hashes.items():
        assert [random_hash(version, seed, is_async) for is_async in (False, True)] == theirs, seed


def test_033_has_every_log() -> None:
    """The scenarios of 0.32 and its own, sync and async."""
    assert set(golden()) < set(logs_of("0.33"))
    assert len(logs_of("0.33")) == 2 * len(scenarios_of("0.33")) > 2 * len(scenarios())


WHERE = {
    "sure_ends_are_foreseen": ("0.19", "e_s01_plain_cot", "async"),
    "unchunked_heads_block": ("0.11", "unchunked_heads", "sync"),
    "whole_prompts_must_fit": ("0.19", "s05e_reserve_isl_on", "sync"),
    "unhashed_blocks_go_first": ("0.19", "e_m06_preempt_cascade", "sync"),
    "idle_victims_move_nobody": ("0.19", "idle_victim_0", "async"),
    "lone_prompts_have_no_cap": ("0.19", "lpt_lone", "sync"),
    "lookahead_block_hashes": ("0.33", "spec_k1_multiturn", "sync"),
    "junctions_are_pinned_below": ("0.33", "r33_junctions_are_pinned_below_235", "sync"),
    "verified_blocks_are_cached_at_once": ("0.33", "r33_verified_blocks_are_cached_at_once_0", "sync"),
    "victims_let_others_go_on": ("0.33", "s02d_long_reasoning_priority", "sync"),
    "states_are_marked_once": ("0.33", "mam_align_bestof8", "sync"),
    "prefill_cadence_is_local": ("0.33", "r33_prefill_cadence_is_local_32", "sync"),
}
"""Rule -> a log in which it shows."""


def test_every_rule_has_its_log() -> None:
    """No rule is taken on trust."""
    assert set(WHERE) | set(OFFLOAD_WHERE) == set(changes())


@pytest.mark.parametrize("name", WHERE)
def test_a_rule_turned_over_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version with one rule of another version does not pass for itself."""
    version, scenario, mode = WHERE[name]
    log, rule = logs_of(version)[scenario, mode], changes()[name]
    run = scenario_of(version, scenarios_of(version)[scenario], mode == "async")

    def equal() -> bool:
        result = VLLMReplay(run).run()
        return (result.sched_sha256, result.state_sha256) == (log["sched_sha256"], log["state_sha256"])

    assert equal(), "the logs must agree before the rule is turned over"
    followed = parse_version(version) >= rule.since
    monkeypatch.setattr(SchedulerRules, name, replace(rule, since=(99, 0) if followed else (0, 0)))
    assert not equal()


def flipped(name: str, rule: Rule, version: tuple[int, int]) -> tuple[bool, bool]:
    return getattr(SchedulerRules(version), name), getattr(SchedulerRules((version[0], version[1] - 1)), name)


@pytest.mark.parametrize("name", changes())
def test_a_rule_begins_with_its_version(name: str) -> None:
    """The version named follows it, the one before does not."""
    rule = changes()[name]
    assert flipped(name, rule, rule.since) == (True, False)


@pytest.mark.parametrize(
    ("version", "flags", "said"),
    [
        ("0.33", {}, ()),
        ("0.32", {"num_speculative_tokens": 2}, ()),
        ("0.34", {}, ("vLLM 0.34: scheduling rules of 0.33, the newest known",)),
        ("1.0.2", {}, ("vLLM 1.0: scheduling rules of 0.33, the newest known",)),
        ("0.10", {}, ("vLLM 0.10: scheduling rules of 0.11, the oldest known",)),
        ("0.19", {}, ()),
        (
            "0.19",
            {"num_speculative_tokens": 2},
            ("vLLM 0.19: windows, states and drafts as in 0.32; not checked against its own logs",),
        ),
        (
            "0.11",
            {"policy": "priority"},
            ("vLLM 0.11: preemption by priority as in 0.12; 0.11 keeps scheduling a victim of the step",),
        ),
    ],
)
def test_a_result_says_whose_rules_it_followed(version: str, flags: Json, said: tuple[str, ...]) -> None:
    """A version that is not known, or only in part, is said to be that."""
    config = EngineConfig(num_gpu_blocks=50, max_model_len=100, engine_version=version, **flags)
    run = VLLMScenario(**config.model_dump(), requests=[{"id": "a", "prompt": [{"len": 9}], "output_len": 3}])
    replay = VLLMReplay(run)
    assert replay.totals(replay.run())["caveats"] == said


def _row(name: str, rule: Rule) -> str:
    return f"| {write_version(rule.since)} | {rule.now} | {rule.before} | {rule.where} | {rule.checked} |"


def test_the_table_of_the_docs_is_this_one() -> None:
    """docs/validation/versions.md is the rules."""
    rules = "\n".join(_row(name, rule) for name, rule in reversed(changes().items()))
    others = "\n".join(f"| {write_version(d.since)} | {d.what} | {d.where} |" for d in NOT_MODELLED)
    twins = []
    for twin in TWINS:
        if twin.engine == "vllm" and twin.version in VERSIONS:
            logs = logs_of(twin.version).values()
            steps = sum(log["summary"]["steps"] for log in logs)
            size = f"{len(logs)} | {steps:,} | {2 * len(random_golden(twin.version))}"
            twins.append(f"| {twin.mirrors} | {twin.held_to} | {size} |")
    section(
        "versions",
        f"""## What vLLM's versions schedule differently

A deployment's `engine_version` chooses the rules. The twin follows each of these from the version on in which vLLM
began, and the older rule before; a rule turned over changes a log of that version.

| since | rule | before | where in vLLM | seen between |
|---|---|---|---|---|
{rules}

{len(CHECKED)} versions from {write_version(min(CHECKED))} to {write_version(max(CHECKED))} were run. The logs of five
are in `tests/conformance`, the other runs in the table of [scheduler](scheduler.md). What a version is held to:

| twin | held to | logs | steps | random logs |
|---|---|---|---|---|
{chr(10).join(twins)}

Read in the code and not followed. A result names the version whose rules it followed, and says where a version older
than 0.32 meets one of these:

| since | what | where in vLLM |
|---|---|---|
{others}""",
    )
