"""One scenario on the twin of an engine: set up, run, written down as a log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from kvplan.config import Config
from kvplan.conformance.replay import ReplayResult, ScenarioReplay
from kvplan.conformance.scenario import make_scenario, read_scenario
from kvplan.conformance.sglang_replay import SGLangReplay
from kvplan.conformance.sglang_scenario import SGLangScenario
from kvplan.conformance.twins import ENGINES, Twin, find_twin
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.errors import KvplanError
from kvplan.schedulers.vllm.rules import parse_version, write_version

KINDS: dict[str, type[Config]] = {"vllm": VLLMScenario, "sglang": SGLangScenario}


def twin_for(engine: Any, version: str | None, leap: bool = False) -> Twin:
    """Find the twin that is asked for; raises KvplanError if there is none."""
    if leap and engine != "vllm":
        raise KvplanError("--leap is vLLM's leaping scheduler; leave it out for sglang")
    return find_twin(engine, version)


def changes_for(twin: Twin, is_async: bool) -> dict[str, Any]:
    """Return the keys of a scenario that a run sets."""
    changes: dict[str, Any] = {"async_scheduling": True} if is_async else {}
    return changes | ({"engine_version": twin.version} if twin.engine == "vllm" else {})


def read_for(twin: Twin, path: str | Path, is_async: bool) -> Config:
    """Read a scenario file for a twin."""
    return read_scenario(KINDS[twin.engine], path, **changes_for(twin, is_async))


def make_for(twin: Twin, data: Mapping[str, Any], name: str, is_async: bool) -> Config:
    """Make a scenario of JSON for a twin; `name` is said where it is wrong."""
    return make_scenario(KINDS[twin.engine], {**data, **changes_for(twin, is_async)}, name)


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
