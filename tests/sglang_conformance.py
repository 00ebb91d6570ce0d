"""Reads the reference logs of SGLang's scheduler and replays their scenarios."""

from __future__ import annotations

import json
import lzma
from functools import cache
from typing import Any

from places import TESTS

from kvplan.conformance.replay import ReplayResult
from kvplan.conformance.sglang_records import PassRecord
from kvplan.conformance.sglang_replay import SGLangReplay
from kvplan.conformance.sglang_scenario import SGLangScenario

FOLDER = TESTS / "conformance" / "sglang"
Log = dict[str, Any]


def _load(name: str) -> list[Log]:
    return [json.loads(line) for line in lzma.decompress((FOLDER / name).read_bytes()).splitlines()]


@cache
def scenarios() -> dict[str, Log]:
    """Name -> scenario as JSON."""
    return {row["name"]: row for row in _load("scenarios.jsonl.xz")}


@cache
def golden() -> dict[tuple[str, str], Log]:
    """(name, normal | overlap) -> what SGLang did."""
    return {(row["name"], row["mode"]): row for row in _load("golden.jsonl.xz")}


def replay(name: str, mode: str) -> ReplayResult[PassRecord]:
    """Run one scenario on the twin."""
    return SGLangReplay(SGLangScenario(**scenarios()[name] | {"async_scheduling": mode == "overlap"})).run()


def first_difference(result: ReplayResult[PassRecord], log: Log) -> str:
    """Name the first row that differs, or say that there is none; logs leave out rows of plain decodes."""
    ours = {step.step: step.row() for step in result.steps}
    for theirs in log["rows"]:
        mine = ours.get(theirs[0], [])
        if mine != theirs:
            named = zip(log["columns"], mine, theirs, strict=False)
            return f"pass {theirs[0]}: " + ", ".join(f"{c} {a}, SGLang {b}" for c, a, b in named if a != b)
    return f"{len(ours)} passes, SGLang {log['all_rows']}" if len(ours) != log["all_rows"] else ""
