"""`python -m kvplan.conformance.vllm_main SCENARIO.json`: a scenario's log step by step, and its hashes."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from contextlib import ExitStack
from typing import IO

from kvplan.conformance.vllm_records import ReplayResult
from kvplan.conformance.vllm_replay import Replay
from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import Scenario, load_scenario
from kvplan.conformance.vllm_stuck import Stuck
from kvplan.errors import KvplanError
from kvplan.schedulers.vllm.admission import caveats


def make_parser() -> ArgumentParser:
    """Return the command line."""
    parser = ArgumentParser(
        prog="python -m kvplan.conformance.vllm_main",
        description="Schedule a scenario as vLLM 0.32 does. Prints one JSON object per step, then the totals with "
        "sched_sha256 and state_sha256. Exit code 1: stuck for want of blocks; 2: bad input, "
        "or a prompt that is longer than the whole pool.",
    )
    parser.add_argument("scenario", help="JSON file; tests/conformance/README.md describes it")
    parser.add_argument("--async", dest="is_async", action="store_true", help="asynchronous scheduling")
    parser.add_argument("--leap", action="store_true", help="run the leaping scheduler; no block counts then")
    parser.add_argument("-o", "--output", help="write the log there and print the totals only")
    parser.add_argument("--summary", action="store_true", help="print the totals only")
    return parser


def write_log(scenario: Scenario, result: ReplayResult, file: IO[str]) -> None:
    """Write header and steps, one JSON object a line."""
    header = {"type": "header", "engine": "kvplan", "mirrors": "vLLM 0.32.0"}
    config = scenario.model_dump(exclude={"requests"}, exclude_unset=True)
    print(json.dumps(header | {"config": config}), file=file)
    for step in result.steps:
        print(json.dumps(step.to_json()), file=file)


def summary(replay: Replay, result: ReplayResult) -> dict[str, object]:
    """Return a run's totals and hashes."""
    steps = result.steps
    totals = {
        "type": "summary",
        "steps": len(steps),
        "stuck": result.stuck,
        "preemptions": sum(len(step.preempted) for step in steps),
        "scheduled_tokens": sum(step.n_tokens for step in steps),
        "hit_tokens": sum(sum(step.hits.values()) for step in steps),
        "sched_sha256": result.sched_sha256,
    }
    if isinstance(replay, LeapReplay):
        return totals | {"leaps": replay.num_leaps}
    return totals | {
        "output_tokens": sum(request.num_output_tokens for request in result.requests.values()),
        "evicted": sum(step.evicted for step in steps),
        "peak_used": max((step.used or 0 for step in steps), default=0),
        "state_sha256": result.state_sha256,
        "caveats": caveats(replay.scheduler.config),
    }


def run(arguments: list[str]) -> Stuck | None:
    """Do what the command line says; return why the run ended early, if it did."""
    options = make_parser().parse_args(arguments)
    changes = {"async_scheduling": True} if options.is_async else {}
    scenario = load_scenario(options.scenario, **changes)
    replay = LeapReplay(scenario) if options.leap else Replay(scenario)
    result = replay.run()
    with ExitStack() as stack:
        if options.output or not options.summary:
            file = stack.enter_context(open(options.output, "w")) if options.output else sys.stdout
            write_log(scenario, result, file)
            print(json.dumps(summary(replay, result)), file=file)
        if options.output or options.summary:
            print(json.dumps(summary(replay, result)))
    return replay.find_stuck() if result.stuck else None


def main() -> int:
    """Run the command; errors are one line."""
    try:
        stuck = run(sys.argv[1:])
    except KvplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the log has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    if stuck:
        print(f"error: {stuck}", file=sys.stderr)
        return 1 if stuck.outgrew_pool else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
