"""`python -m kvplan.conformance.sglang_main SCENARIO.json`: a scenario's log pass by pass, and its hashes."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from contextlib import ExitStack
from typing import IO

from kvplan.conformance.sglang_records import ReplayResult
from kvplan.conformance.sglang_replay import Replay
from kvplan.conformance.sglang_scenario import SGLangScenario, load_scenario
from kvplan.errors import KvplanError


def make_parser() -> ArgumentParser:
    """Return the command line."""
    parser = ArgumentParser(
        prog="python -m kvplan.conformance.sglang_main",
        description="Schedule a scenario as SGLang 0.5.23 does. Prints one JSON object per pass, then the totals with "
        "sched_sha256 and state_sha256. Exit code 1: stuck; 2: bad input.",
    )
    parser.add_argument("scenario", help="JSON file; tests/conformance/README.md describes it")
    parser.add_argument("--overlap", action="store_true", help="the overlap loop, SGLang's default on a GPU")
    parser.add_argument("-o", "--output", help="write the log there and print the totals only")
    parser.add_argument("--summary", action="store_true", help="print the totals only")
    return parser


def write_log(scenario: SGLangScenario, result: ReplayResult, file: IO[str]) -> None:
    """Write header and passes, one JSON object a line."""
    header = {"type": "header", "engine": "kvplan", "mirrors": "SGLang 0.5.23"}
    config = scenario.model_dump(exclude={"requests"}, exclude_unset=True)
    print(json.dumps(header | {"config": config}), file=file)
    for step in result.steps:
        print(json.dumps(step.to_json()), file=file)


def summary(replay: Replay, result: ReplayResult) -> dict[str, object]:
    """Return a run's totals and hashes."""
    steps, size = result.steps, replay.scheduler.cache.size
    return {
        "type": "summary",
        "steps": len(steps),
        "stuck": result.stuck,
        "prefill_passes": sum(step.mode in ("prefill", "mixed") for step in steps),
        "decode_passes": sum(step.mode == "decode" for step in steps),
        "retractions": sum(len(step.retracted) for step in steps),
        "preemptions": sum(len(step.preempted) for step in steps),
        "scheduled_tokens": sum(step.n_tokens for step in steps),
        "output_tokens": sum(req.num_outputs for req in replay.reqs.values()),
        "hit_tokens": sum(sum(step.hits.values()) for step in steps),
        "evicted": sum(step.evicted + step.evicted_end for step in steps),
        "peak_used": max((size - step.pools[0] - step.pools[1] for step in steps), default=0),
        "sched_sha256": result.sched_sha256,
        "state_sha256": result.state_sha256,
    }


def run(arguments: list[str]) -> bool:
    """Do what the command line says; return whether the run got stuck."""
    options = make_parser().parse_args(arguments)
    changes = {"async_scheduling": True} if options.overlap else {}
    scenario = load_scenario(options.scenario, **changes)
    replay = Replay(scenario)
    result = replay.run()
    with ExitStack() as stack:
        if options.output or not options.summary:
            file = stack.enter_context(open(options.output, "w")) if options.output else sys.stdout
            write_log(scenario, result, file)
            print(json.dumps(summary(replay, result)), file=file)
        if options.output or options.summary:
            print(json.dumps(summary(replay, result)))
    return result.stuck


def main() -> int:
    """Run the command; errors are one line."""
    try:
        stuck = run(sys.argv[1:])
    except KvplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    if stuck:
        print("error: stuck: the head of the queue can never be admitted", file=sys.stderr)
    return int(stuck)


if __name__ == "__main__":
    sys.exit(main())
