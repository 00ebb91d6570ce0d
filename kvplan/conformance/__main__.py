"""`python -m kvplan.conformance SCENARIO.json`: a scenario's log step by step from an engine's twin, and its hashes."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from typing import IO, Any

from kvplan.config import Config
from kvplan.conformance.replay import ReplayResult, ScenarioReplay
from kvplan.conformance.scenario import read_scenario
from kvplan.conformance.sglang_replay import SGLangReplay
from kvplan.conformance.sglang_scenario import SGLangScenario
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.conformance.vllm_stuck import Stuck
from kvplan.errors import DoesNotFit, KvplanError
from kvplan.files import patient_streams, refuse_same_file, written_whole

TWINS = {"vllm": {"0.32": "vLLM 0.32.0"}, "sglang": {"0.5.23": "SGLang 0.5.23"}}
"""Engine -> version -> what the twin mirrors; the last version is the default."""


def make_parser() -> ArgumentParser:
    """Return the command line."""
    parser = ArgumentParser(
        prog="python -m kvplan.conformance",
        description="Schedule a scenario as vLLM or SGLang does. Prints one JSON object per step, then the totals with "
        "sched_sha256 and state_sha256. Exit code 1: stuck for want of memory; 2: bad input, "
        "or a prompt that is longer than the whole pool.",
    )
    parser.add_argument("scenario", help="JSON file; tests/conformance/README.md describes it")
    parser.add_argument("--engine", choices=TWINS, default="vllm", help="whose scheduler (vllm)")
    parser.add_argument("--engine-version", help="of the engine (vllm: 0.32; sglang: 0.5.23)")
    parser.add_argument(
        "--async", "--overlap", dest="is_async", action="store_true",
        help="asynchronous scheduling; SGLang's overlap loop",
    )  # fmt: skip
    parser.add_argument("--leap", action="store_true", help="vLLM's leaping scheduler; no block counts then")
    parser.add_argument("-o", "--output", help="write the log there and print the totals only")
    parser.add_argument("--summary", action="store_true", help="print the totals only")
    return parser


def mirrored(options: Namespace) -> str:
    """Name the engine that the twin was held to; raises KvplanError for a version without one."""
    versions = TWINS[options.engine]
    version = options.engine_version or list(versions)[-1]
    if version not in versions:
        raise KvplanError(f"--engine-version {version}: {options.engine} has a twin of {', '.join(versions)}")
    if options.leap and options.engine != "vllm":
        raise KvplanError("--leap is vLLM's leaping scheduler; leave it out for sglang")
    return versions[version]


def open_scenario(options: Namespace) -> tuple[Config, ScenarioReplay[Any, Any]]:
    """Read the scenario and set up its run."""
    changes = {"async_scheduling": True} if options.is_async else {}
    if options.engine == "sglang":
        for_sglang = read_scenario(SGLangScenario, options.scenario, **changes)
        return for_sglang, SGLangReplay(for_sglang)
    scenario = read_scenario(VLLMScenario, options.scenario, **changes)
    return scenario, LeapReplay(scenario) if options.leap else VLLMReplay(scenario)


def write_log(mirrors: str, scenario: Config, result: ReplayResult[Any], file: IO[str]) -> None:
    """Write header and steps, one JSON object a line."""
    config = scenario.model_dump(exclude={"requests"}, exclude_unset=True)
    print(json.dumps({"type": "header", "engine": "kvplan", "mirrors": mirrors, "config": config}), file=file)
    for step in result.steps:
        print(json.dumps(step.to_json()), file=file)


def run(arguments: list[str]) -> DoesNotFit | None:
    """Do what the command line says; return why the run ended early, if it did."""
    options = make_parser().parse_args(arguments)
    mirrors = mirrored(options)
    refuse_same_file([options.scenario], {"--output": options.output})
    scenario, replay = open_scenario(options)
    result = replay.run()
    totals = json.dumps(replay.totals(result))
    with ExitStack() as stack:
        if options.output or not options.summary:
            file = stack.enter_context(written_whole(options.output)) if options.output else sys.stdout
            write_log(mirrors, scenario, result, file)
            print(totals, file=file)
        if options.output or options.summary:
            print(totals)
    return replay.find_stuck() if result.stuck else None


def main() -> int:
    """Run the command; errors are one line, and the exit code stands when nobody reads the log to its end."""
    with patient_streams():
        return _main()


def _main() -> int:
    try:
        stuck = run(sys.argv[1:])
        sys.stdout.flush()
    except KvplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    if stuck is None:
        return 0
    print(f"error: {stuck}", file=sys.stderr)
    return 2 if isinstance(stuck, Stuck) and not stuck.outgrew_pool else 1


if __name__ == "__main__":
    sys.exit(main())
