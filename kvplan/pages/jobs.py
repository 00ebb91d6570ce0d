"""A long piece of work in a thread of its own: progress, a forecast, a question before it gets long, a way to stop.

    job = Job(lambda progress, observer: simulate(scenario, progress=progress, observer=observer))
    job.wait(1.0); job.share; job.forecast_s; job.go_on(); job.stop(); job.result

The work is measured by its own first seconds, so the forecast costs nothing. Knows no page and no terminal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from kvplan.errors import KvplanError
from kvplan.simulation.observer import Observer

Progress = Callable[[int, int], None]
Work = Callable[[Progress, Observer], Any]
State = Literal["running", "asking", "done", "failed", "cancelled"]

LOOK_AFTER_S = 2.0
"""The forecast is made when the work has run for so long."""
ASK_ABOVE_S = 60.0
"""Work that would take longer waits for a yes."""
PATIENCE = 10
"""Work that has shown no progress is given so many times longer before it asks."""
ABANDONED_AFTER_S = 120.0
"""Nobody has looked for so long: the page was closed."""


class Job:
    """Work that has begun."""

    def __init__(
        self, work: Work, ask_above_s: float = ASK_ABOVE_S, look_after_s: float = LOOK_AFTER_S
    ) -> None:
        self.state: State = "running"
        self.result: Any = None
        self.error = ""
        """One line for the user, if it failed."""
        self.share = 0.0
        """Done so far, 0 to 1."""
        self.forecast_s = 0.0
        """Seconds it will take in all, once it asks; infinite when nothing was done by then."""
        self._work, self._ask_above_s, self._look_after_s = work, ask_above_s, look_after_s
        self._stop, self._yes = threading.Event(), threading.Event()
        self._started = self._seen = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def left_s(self) -> float:
        """Seconds that are left at the pace so far; infinite when nothing is done yet."""
        elapsed = time.monotonic() - self._started
        return elapsed * (1 - self.share) / self.share if self.share else float("inf")

    def wait(self, seconds: float) -> bool:
        """Wait for the end at most so long; return whether it is over. Tells the work that somebody looks."""
        self._seen = time.monotonic()
        self._thread.join(seconds)
        return self.is_over

    def stop(self) -> None:
        """Cancel; what was done so far may still become the result."""
        self._stop.set()
        self._yes.set()

    def go_on(self) -> None:
        """Answer yes to the question whether it may take that long."""
        self._yes.set()

    def _run(self) -> None:
        try:
            self.result = self._work(self._progress, Observer(cancelled=self._cancelled))
            self.state = "cancelled" if self._stop.is_set() else "done"
        except KeyboardInterrupt:  # work that was stopped before it had anything
            self.state = "cancelled"
        except KvplanError as error:
            self.error = str(error)
            self.state = "cancelled" if self._stop.is_set() else "failed"
        except Exception:  # a thread has nobody to raise to: the log gets the whole story, the user one line
            logging.getLogger(__name__).exception("a job failed")
            self.error = "this run failed inside kvplan; the server's log has the details"
            self.state = "failed"

    def _progress(self, done: int, total: int) -> None:
        self.share = done / max(1, total)

    def _cancelled(self) -> bool:
        now = time.monotonic()
        if now - self._seen > ABANDONED_AFTER_S:
            self._stop.set()
        elapsed = now - self._started
        known = self.share or elapsed > PATIENCE * self._look_after_s
        if known and elapsed > self._look_after_s and not self._yes.is_set():
            self._ask()
        return self._stop.is_set()

    def _ask(self) -> None:
        """Hold the work until somebody answers, if the rest would take long."""
        elapsed = time.monotonic() - self._started
        self.forecast_s = elapsed / self.share if self.share else float("inf")
        if self.forecast_s > self._ask_above_s:
            self.state = "asking"
            if not self._yes.wait(ABANDONED_AFTER_S):
                self._stop.set()
            self.state = "running"
        self._yes.set()
