"""What `kvplan conformance` does: run a scenario on a twin, or hold logs to it."""

from __future__ import annotations

import json as jsonlib
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from kvplan.conformance.runs import open_scenario, replay_of, write_log
from kvplan.conformance.suite import Verdict, check, compare, read_goldens, read_logs
from kvplan.conformance.twins import EngineName, describe_twins
from kvplan.conformance.vllm_stuck import Stuck
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import check_outputs, written_whole

ABOUT = (
    "Schedule a scenario as vLLM or SGLang does, or hold logs to their schedulers. A scenario (JSON): one JSON object "
    "per step, then the totals with sched_sha256 and state_sha256. Logs (JSONL) and folders of them: each is run again "
    "and compared. Without a path: which twins there are. Exit code 1: a log differs, or a run is stuck for want of "
    "memory; 2: bad input, or a prompt that is longer than the whole pool."
)


def conform(
    paths: Sequence[str],
    engine: EngineName = "vllm",
    engine_version: str | None = None,
    is_async: bool = False,
    leap: bool = False,
    truth: str | None = None,
    output: str | None = None,
    summary: bool = False,
    json: bool = False,
) -> int:
    """Do what the command line says; return the exit code."""
    if not paths:
        print("\n".join(describe_twins()))
        return 0
    if truth or len(paths) > 1 or _is_log(paths[0]):
        return _judge(paths, leap, truth, json)
    return _run(paths[0], engine, engine_version, is_async, leap, output, summary)


def _is_log(path: str) -> bool:
    return Path(path).is_dir() or Path(path).suffix in (".jsonl", ".xz")


def _run(
    path: str,
    engine: EngineName,
    engine_version: str | None,
    is_async: bool,
    leap: bool,
    output: str | None,
    summary: bool,
) -> int:
    if leap and engine != "vllm":
        raise KvplanError("--leap is vLLM's leaping scheduler; leave it out for sglang")
    check_outputs([path], {"--output": output})
    twin, scenario = open_scenario(path, engine, engine_version, is_async)
    replay = replay_of(scenario, leap)
    result = replay.run()
    totals = jsonlib.dumps(replay.totals(result))
    with ExitStack() as stack:
        if output or not summary:
            file = stack.enter_context(written_whole(output)) if output else sys.stdout
            write_log(twin, scenario, result, totals, file)
        if output or summary:
            print(totals)
    stuck = replay.find_stuck() if result.stuck else None
    if stuck is None:
        return 0
    sys.stdout.flush()
    print(f"error: {stuck}", file=sys.stderr)
    return 2 if isinstance(stuck, Stuck) and not stuck.outgrew_pool else 1


def _judge(paths: Sequence[str], leap: bool, truth: str | None, json: bool) -> int:
    logs = [log for path in paths for log in read_logs(Path(path))]
    known = {log.key: log for log in read_goldens(Path(truth))} if truth else {}
    verdicts = [compare(log, known) if truth else check(log, leap) for log in logs]
    differing = [verdict for verdict in verdicts if verdict.difference]
    print(jsonlib.dumps(_as_json(verdicts), indent=1) if json else "\n".join(_table(verdicts)))
    return 1 if differing else 0


def _as_json(verdicts: Sequence[Verdict]) -> dict[str, object]:
    rows = [
        {
            "place": verdict.log.place,
            "name": verdict.log.name,
            "mirrors": verdict.log.twin.mirrors,
            "async": verdict.log.is_async,
            "steps": verdict.num_steps,
            "difference": verdict.difference,
        }
        for verdict in verdicts
    ]
    return {"schema_version": 1, "logs": rows}


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    """Totals by place and engine, then what differs."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for verdict in verdicts:
        count = counts.setdefault((verdict.log.twin.mirrors, verdict.log.place), Counter())
        count.update(logs=1, steps=verdict.num_steps, differing=bool(verdict.difference))
    lines = [f"{'mirrors':<16}{'logs':>6}{'steps':>10}{'differing':>11}  from"]
    for (mirrors, place), count in counts.items():
        lines.append(
            f"{mirrors:<16}{count['logs']:>6,}{count['steps']:>10,}{count['differing']:>11,}  {place}"
        )
    for verdict in verdicts:
        if verdict.difference:
            mode = "async" if verdict.log.is_async else "sync"
            lines.append(f"{verdict.log.name} {mode}: {verdict.difference}")
    return lines
