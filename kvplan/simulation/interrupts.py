"""Ctrl-C during a run: noted, and answered with what was simulated so far."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Interruptible(Protocol):
    """A run that looks at a flag between two steps."""

    interrupted: bool


@contextmanager
def interrupts(run: Interruptible) -> Iterator[None]:
    """The first Ctrl-C ends the run after the step under way, with what was simulated; a second one is not caught."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(signum: int, frame: object) -> None:
        run.interrupted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
