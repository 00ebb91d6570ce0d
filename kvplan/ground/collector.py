"""Python's search for reference cycles, made rare while runs last: they keep millions of tuples and make few cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

RARELY = 50_000
"""New objects between two searches, instead of Python's 700: a sixth of a run with a tier went there."""
_LOCK = Lock()
_RUNS: list[tuple[int, int, int]] = []
"""What was set before the first of the runs under way, once for each."""


@contextmanager
def rare_searches() -> Iterator[None]:
    """Search rarely inside, afterwards as before; runs of several threads may overlap. What is off stays off."""
    with _LOCK:
        before = _RUNS[0] if _RUNS else gc.get_threshold()
        _RUNS.append(before)
        gc.set_threshold(max(before[0], RARELY) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        with _LOCK:
            _RUNS.pop()
            if not _RUNS:
                gc.set_threshold(*before)
