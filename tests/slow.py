"""Which tests are slow: what `tests/slow.txt` lists, files and functions (`file::name`).

A function is slow if it took more than `SLOW_S` seconds of CPU in all its cases. `KVPLAN_MEASURE=1 pytest FILE ...`, in
one process, measures the tests it runs and rewrites their lines.
"""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parent
LIST = TESTS / "slow.txt"
SLOW = set(LIST.read_text().split())
SLOW_S = 0.5


def is_slow(name: str) -> bool:
    """Whether a test or its file is listed."""
    return name in SLOW or name.partition("::")[0] in SLOW


def cpu_s() -> float:
    """Seconds of CPU that this process and its ended children took."""
    took = os.times()
    return took.user + took.system + took.children_user + took.children_system


def slow_names(known: set[str], took: dict[str, float]) -> set[str]:
    """The list after a run: lines of tests that ran are written anew, all others stay."""
    return (known - took.keys()) | {
        name for name, s in took.items() if s > SLOW_S and name.partition("::")[0] not in known
    }
