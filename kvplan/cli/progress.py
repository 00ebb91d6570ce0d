"""Progress of a run on stderr: rich's bar on a terminal, a plain line per tenth otherwise, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REDRAW_S = 0.1
Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Stages = Callable[[str, int, int], None]
"""Called with (what is done now, done, total); every stage has another total."""


@contextmanager
def shown_progress(noun: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """What a run calls while it lasts; None when quiet. However the block ends, the bar is gone."""
    if quiet:
        yield None
        return
    with _shown(noun) as report:
        yield lambda done, total: report(0, "", done, total)


@contextmanager
def shown_stages(noun: str) -> Iterator[Stages]:
    """The same for a run of stages: a bar each."""
    with _shown(noun) as report:
        yield lambda what, done, total: report(total, what, done, total)


@contextmanager
def _shown(noun: str) -> Iterator[Callable[[int, str, int, int], None]]:
    """Called with (stage, what, done, total)."""
    if sys.stderr.isatty():
        with _bars(noun) as report:
            yield report
    else:
        yield _tenths(noun)


def _tenths(noun: str) -> Callable[[int, str, int, int], None]:
    """A line for every tenth of a stage."""
    told: dict[int, int] = {}

    def report(stage: int, what: str, done: int, total: int) -> None:
        if total and done * 10 // total > told.get(stage, 0):
            told[stage] = done * 10 // total
            print(f"{told[stage] * 10}% {done:,} of {total:,} {noun}", file=sys.stderr, flush=True)

    return report


@contextmanager
def _bars(noun: str) -> Iterator[Callable[[int, str, int, int], None]]:
    """Bars of rich, drawn ten times a second at most: runs call for every request."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(),
    )
    tasks, drawn = {}, 0.0
    with Bars(*columns, console=Console(file=sys.stderr), auto_refresh=False, transient=True) as bars:

        def report(stage: int, what: str, done: int, total: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn < REDRAW_S and done < total:
                return
            drawn = now
            if stage not in tasks:
                tasks[stage] = bars.add_task(noun, total=total)
            text = f"{noun}, {what}" if what else noun
            bars.update(tasks[stage], completed=done, total=total, description=text, refresh=True)

        yield report
