"""Progress of a run on stderr: a bar on a terminal, a plain line per tenth otherwise, nothing when quiet."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

REDRAW_S = 0.1
WIDTH = 30


@dataclass(slots=True)
class Progress:
    """Call it with (done, total)."""

    noun: str = "requests"
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _started: float = field(default_factory=time.monotonic)
    _drawn: float = 0.0
    _tenth: int = 0

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if self.stream.isatty():
            self._bar(done, total)
        elif total and done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            print(f"{self._tenth * 10}% {done:,} of {total:,} {self.noun}", file=self.stream, flush=True)

    def _bar(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._drawn < REDRAW_S and done < total:
            return
        self._drawn = now
        filled = WIDTH * done // max(1, total)
        left = (now - self._started) / max(1, done) * (total - done)
        bar = "#" * filled + "-" * (WIDTH - filled)
        end = "\n" if done == total else ""
        print(
            f"\r[{bar}] {done:,}/{total:,} {self.noun}, {left:.0f} s left ",
            end=end,
            file=self.stream,
            flush=True,
        )
