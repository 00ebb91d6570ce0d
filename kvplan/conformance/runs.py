"""One scenario on the twin of an engine: set up, run, written down as a log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from kvplan.conformance.replay import ReplayResult, ScenarioReplay
from kvplan.conformance.scenario import make_scenario, read_scenario
from kvplan.conformance.sglang_replay import SGLangReplay
from kvplan.conformance.sglang_scenario import SGLangScenario
from kvplan.conformance.twins import ENGINES, EngineName, Twin, find_twin
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError
from kvplan.schedulers.vllm.rules import parse_version, write_version

KINDS: dict[str, type[Config]] = {"vllm": VLLMScenario, "sglang": SGLangScenario}


def open_scenario(
    path: str | Path, engine: EngineName, version: str | None, is_async: bool
) -> tuple[Twin, Config]:
    """Read a scenario file and find its twin: of the version asked for, or of the scenario's own, or the default.

    Raises KvplanError for a version without a twin.
    """
    twin = find_twin(engine, version)
    changes: dict[str, Any] = {"async_scheduling": True} if is_async else {}
    if engine == "vllm" and version:
        changes["engine_version"] = twin.version
    scenario = read_scenario(KINDS[engine], path, **changes)
    return find_twin(engine, getattr(scenario, "engine_version", None)), scenario


def make_for(twin: Twin, data: Mapping[str, Any], name: str, is_async: bool) -> Config:
    """Make a scenario of JSON for a twin; `name` is said where it is wrong."""
    changes: dict[str, Any] = {"async_scheduling": is_async}
    if twin.engine == "vllm":
        changes["engine_version"] = twin.version
    return make_scenario(KINDS[twin.engine], {**data, **changes}, name)


def replay_of(scenario: Config, leap: bool = False) -> ScenarioReplay[Any, Any]:
    """Set up the run of a scenario."""
    if isinstance(scenario, SGLangScenario):
        return SGLangReplay(scenario)
    assert isinstance(scenario, VLLMScenario)
    return LeapReplay(scenario) if leap else VLLMReplay(scenario)


def write_log(twin: Twin, scenario: Config, result: ReplayResult[Any], totals: str, file: IO[str]) -> None:
    """Write header, steps and totals, one JSON object a line: enough to run it again."""
    told = json.loads(scenario.model_dump_json(exclude_unset=True))
    requests = told.pop("requests")
    header = {
        "type": "header",
        "engine": "kvplan",
        "mirrors": twin.mirrors,
        "config": told,
        "requests": requests,
    }
    print(json.dumps(header), file=file)
    for step in result.steps:
        print(json.dumps(step.to_json()), file=file)
    print(totals, file=file)


def mirrored_by(mirrors: str) -> Twin:
    """Find the twin of what a log says it is of, e.g. `vLLM 0.33.0`."""
    engine, _, version = mirrors.partition(" ")
    name = next((known for known in ENGINES if known == engine.lower()), None)
    if name is None or not version:
        raise KvplanError(f"mirrors {mirrors!r}: a log is of vLLM or SGLang and a version, e.g. vLLM 0.33.0")
    if name == "vllm":
        try:
            version = write_version(parse_version(version))
        except ValueError:
            raise KvplanError(f"mirrors {mirrors!r}: {version} is no version") from None
    return find_twin(name, version)
