"""Recorded logs beside the twins: whole folders of them, and single logs of whoever wrote them.

A folder has `scenarios.jsonl` and `golden.jsonl`, packed (`.xz`) or not, and folders like it; a golden's scenario
stands in its folder or one above. A log is the file that `kvplan conformance SCENARIO -o LOG` writes: it has its
scenario in its header.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvplan.conformance.replay import ReplayResult, sha256_of
from kvplan.conformance.runs import make_for, mirrored_by, replay_of
from kvplan.conformance.twins import Twin
from kvplan.conformance.vllm_replay import offload_sha256
from kvplan.ground.errors import KvplanError

Json = dict[str, Any]


@dataclass(slots=True)
class Log:
    """What an engine, or something that mirrors it, did in a scenario."""

    place: str
    """File or folder it comes from."""
    name: str
    twin: Twin
    is_async: bool
    scenario: Json
    told: Json
    """`sched_sha256` and `state_sha256` where known; `columns` and `rows` of a golden."""
    steps: list[Json] = field(default_factory=list)
    """Step records of a log."""

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What a golden of the same run has too."""
        return self.twin.engine, self.twin.version, self.name, self.is_async


@dataclass(slots=True)
class Verdict:
    """A log beside the twin, or beside the engine's own."""

    log: Log
    num_steps: int
    difference: str = ""
    """The first one; empty where all is equal."""


def read_logs(path: Path) -> list[Log]:
    """Read a log, or all goldens and logs of a folder; raises KvplanError for what is neither."""
    if not path.is_dir():
        return [_read_log(path)]
    logs = read_goldens(path)
    logs += [_read_log(p) for p in sorted(path.glob("*.jsonl")) if p.stem not in ("golden", "scenarios")]
    if not logs:
        raise KvplanError(f"{path}: no golden.jsonl or golden.jsonl.xz there, nor in its folders, and no log")
    return logs


def read_goldens(folder: Path) -> list[Log]:
    """Read the engines' own logs of a folder and those in it."""
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    return [log for place in folders for log in _goldens(place)]


def _lines(path: Path) -> list[Json]:
    """Return the objects of a file of JSON lines, packed or not."""
    try:
        text = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise KvplanError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError, lzma.LZMAError) as error:
        raise KvplanError(f"{path} is not JSON lines: {str(error)[:200]}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise KvplanError(f"{path}: every line is a JSON object")
    return rows


def _packed(folder: Path, stem: str) -> list[Json]:
    found = [path for path in (folder / f"{stem}.jsonl.xz", folder / f"{stem}.jsonl") if path.is_file()]
    return _lines(found[0]) if found else []


def _goldens(folder: Path) -> Iterator[Log]:
    rows = _packed(folder, "golden")
    if not rows:
        return
    scenarios = {
        str(row.get("name")): row
        for place in (folder.parent.parent, folder.parent, folder)
        for row in _packed(place, "scenarios")
    }
    for row in rows:
        name, mode = row.get("name"), row.get("mode")
        if name not in scenarios:
            raise KvplanError(f"{folder}: golden {name} has no scenario of that name")
        engine = next((key.removesuffix("_version") for key in row if key.endswith("_version")), "")
        twin = mirrored_by(f"{engine} {row.get(f'{engine}_version')}")
        yield Log(str(folder), str(name), twin, mode in ("async", "overlap"), scenarios[str(name)], row)


def _read_log(path: Path) -> Log:
    rows = _lines(path)
    header = rows[0] if rows else {}
    config, requests = header.get("config"), header.get("requests")
    if header.get("type") != "header" or not isinstance(config, dict) or not isinstance(requests, list):
        raise KvplanError(f"{path}: a log begins with a header that has config and requests")
    steps = [row for row in rows if row.get("type") == "step"]
    told = next((row for row in rows if row.get("type") == "summary"), {})
    twin = mirrored_by(str(header.get("mirrors")))
    if twin.engine == "vllm":
        told = told | {"sched_sha256": _sched_sha256(path, steps)}
    if "sched_sha256" not in told:
        raise KvplanError(f"{path}: the summary has no sched_sha256")
    is_async = bool(config.get("async_scheduling", False) or config.get("enable_overlap", False))
    name = str(config.get("name") or path.stem)
    return Log(str(path), name, twin, is_async, {**config, "requests": requests}, told, steps)


def _sched_sha256(path: Path, steps: Sequence[Json]) -> str:
    """Hash the decisions as they are written down, whatever the summary says."""
    try:
        return sha256_of(
            ";".join(f"{i},{n},{before}" for i, n, before, *_ in step["sched"])
            + f"|{','.join(step['preempted'])}\n"
            for step in steps
        )
    except (KeyError, TypeError, ValueError):
        raise KvplanError(
            f"{path}: a step has `sched`, [id, tokens, computed before] each, and `preempted`"
        ) from None


def check(log: Log, leap: bool = False) -> Verdict:
    """Run a log's scenario on the twin of its engine and compare."""
    scenario = make_for(log.twin, log.scenario, f"{log.place}: {log.name}", log.is_async)
    result = replay_of(scenario, leap).run()
    verdict = Verdict(log, len(result.steps))
    told = {"sched_sha256": result.sched_sha256, "state_sha256": result.state_sha256}
    if getattr(scenario, "offload", None) is not None:
        told["offload_sha256"] = offload_sha256(result)
    differing = [
        key
        for key in told
        if not (leap and key == "state_sha256") and log.told.get(key) not in (None, told[key])
    ]
    if differing:
        verdict.difference = _first_difference(result, log) or f"{' and '.join(differing)} differ"
    return verdict


def _first_difference(result: ReplayResult[Any], log: Log) -> str:
    """Name the first step that differs, as far as the log tells steps."""
    columns = log.told.get("columns")
    if columns and log.twin.engine == "vllm":
        for step, theirs in zip(result.steps, log.told["rows"], strict=False):
            ours = step.row("state_sha256" in log.told)
            if ours != theirs:
                said = zip(columns, ours, theirs, strict=False)
                return f"step {step.step}: " + ", ".join(f"{c} {a}, log {b}" for c, a, b in said if a != b)
        return _lengths(len(result.steps), len(log.told["rows"]))
    for step, told in zip(result.steps, log.steps, strict=False):
        ours = json.loads(json.dumps(step.to_json()))
        named = [
            f"{key} {ours[key]}, log {told[key]}" for key in ours if key in told and ours[key] != told[key]
        ]
        if named:
            return f"step {told.get('step')}: {', '.join(named)}"[:600]
    return _lengths(len(result.steps), len(log.steps)) if log.steps else ""


def _lengths(ours: int, theirs: int) -> str:
    return "" if ours == theirs else f"{ours} steps, log {theirs}"


def compare(log: Log, truth: dict[tuple[str, str, str, bool], Log]) -> Verdict:
    """Compare a log with the engine's own of the same scenario; raises KvplanError if there is none."""
    golden = truth.get(log.key)
    if golden is None:
        mode = "asynchronous" if log.is_async else "synchronous"
        raise KvplanError(f"{log.place}: no golden of {log.twin.mirrors} for {log.name}, {mode}")
    verdict = Verdict(log, len(log.steps))
    wrong = [
        key
        for key in ("sched_sha256", "state_sha256")
        if None not in (log.told.get(key), golden.told.get(key)) and log.told[key] != golden.told[key]
    ]
    if wrong:
        verdict.difference = f"{' and '.join(wrong)} differ from {golden.twin.mirrors}'s own"
    return verdict
