"""Reads the reference logs of vLLM's scheduler and replays their scenarios."""

from __future__ import annotations

import json
import lzma
from functools import cache
from typing import Any

from places import TESTS

from kvplan.conformance.replay import ReplayResult
from kvplan.conformance.vllm_records import StepRecord
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.vllm.async_scheduler import make_scheduler

FOLDER = TESTS / "conformance"


def _load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lzma.decompress((FOLDER / name).read_bytes()).splitlines()]


@cache
def scenarios() -> dict[str, dict[str, Any]]:
    """Name -> scenario as JSON."""
    return {row["name"]: row for row in _load("scenarios.jsonl.xz")}


@cache
def golden() -> dict[tuple[str, str], dict[str, Any]]:
    """(name, sync | async) -> what vLLM did."""
    return {(row["name"], row["mode"]): row for row in _load("golden.jsonl.xz")}


@cache
def scenarios_of(version: str) -> dict[str, dict[str, Any]]:
    """Name -> scenario as JSON, of all scenarios that a version was run on."""
    return scenarios() | {row["name"]: row for row in _load(f"vllm/{version}/scenarios.jsonl.xz")}


@cache
def logs_of(version: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(name, sync | async) -> what that version of vLLM did; steps only where 0.32 did otherwise."""
    return {(row["name"], row["mode"]): row for row in _load(f"vllm/{version}/golden.jsonl.xz")}


@cache
def offload_scenarios() -> dict[str, dict[str, Any]]:
    """Name -> scenario as JSON, of those with a tier beyond the GPU and their twins without."""
    return {row["name"]: row for row in _load("offload/scenarios.jsonl.xz")}


@cache
def offload_golden(version: str = "") -> dict[tuple[str, str], dict[str, Any]]:
    """(name, sync | async) -> what vLLM and its CPU tier did; of 0.32, or of another version."""
    return {(row["name"], row["mode"]): row for row in _load(f"offload/{version}/golden.jsonl.xz")}


@cache
def offload_scenarios_of(version: str) -> dict[str, dict[str, Any]]:
    """Name -> scenario as JSON, of all with a tier that a version was run on."""
    return offload_scenarios() | {row["name"]: row for row in _load(f"offload/{version}/scenarios.jsonl.xz")}


def offload_replay(name: str, mode: str, version: str = "") -> VLLMReplay:
    """Set up one scenario with its tier on the twin; of 0.32, or of another version."""
    told = offload_scenarios_of(version)[name] if version else offload_scenarios()[name]
    rules = {"engine_version": version} if version else {}
    return VLLMReplay(VLLMScenario(**told | {"async_scheduling": mode == "async"} | rules))


def tiering_replay(name: str, mode: str) -> VLLMReplay:
    """Set up one scenario with tiers below host memory on the twin."""
    return VLLMReplay(
        VLLMScenario(**offload_scenarios_of("tiers")[name] | {"async_scheduling": mode == "async"})
    )


def replay(name: str, mode: str, **changes: Any) -> ReplayResult[StepRecord]:
    """Run one scenario on the twin."""
    scenario = VLLMScenario(**scenarios()[name] | {"async_scheduling": mode == "async"} | changes)
    return VLLMReplay(scenario, make_scheduler(scenario.engine_config)).run()


def first_difference(result: ReplayResult[StepRecord], log: dict[str, Any]) -> str:
    """Name the first row that differs, or say that there is none."""
    for step, theirs in zip(result.steps, log["rows"], strict=False):
        ours = step.row("state_sha256" in log)
        if ours != theirs:
            named = zip(log["columns"], ours, theirs, strict=True)
            return f"step {step.step}: " + ", ".join(f"{c} {a}, vLLM {b}" for c, a, b in named if a != b)
    return (
        f"{len(result.steps)} steps, vLLM {len(log['rows'])}" if len(result.steps) != len(log["rows"]) else ""
    )
