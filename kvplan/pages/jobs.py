"""Visitors' work in processes of its own: so many at once, each bounded, watched, and stopped when nobody waits.

    job = Job(simulate_work(scenario, with_blocks=False), is_there=...)
    job.wait(1.0); job.share; job.left_s; job.go_on(); job.stop(); job.result

    read_apart(load_model, "config.json", files={"config.json": text})     # short: what a stranger pasted

The server's own process only passes messages, so that it answers everybody whatever one visitor asks.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from kvplan.ground.errors import KvplanError
from kvplan.pages.apart import State, Work, WorkBounds, just, serve
from kvplan.pages.turns import resting

_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_PROCESSES: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
if _FORKS:  # each process begins with all of the simulator loaded, and with none of the server's threads
    _PROCESSES.set_forkserver_preload(["kvplan.pages.work"])

RUNS_AT_ONCE = max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))
"""Of all visitors together; others wait their turn."""
MOST_WAITING = 20
"""More are turned away."""
MOST_WAITING_EACH = 4
"""Of one visitor, however many pages are open."""
MOST_ASKING = 4
"""Runs that hold memory without a turn, while their visitors think about whether they may take so long."""
ANSWER_WITHIN_S = 60.0
"""Who does not say yes by then does not want it."""
READS_AT_ONCE = 2
READ = WorkBounds(seconds=10.0, memory_bytes=1 << 30, ask_above_s=float("inf"))
"""Of a paste or an upload that is only read."""
DRAW = WorkBounds(seconds=30.0, memory_bytes=0, ask_above_s=float("inf"), result_bytes=256 << 20)
"""Of a picture or a report: V8 asks for far more addresses than memory."""
GRACE_S = 3.0
"""Work that is told to stop may still hand over what it has; then it is ended."""
ABANDONED_AFTER_S = 120.0
"""Nobody has looked for so long (a browser lets a hidden page sleep for a minute)."""
GONE_AFTER_S = 3.0
"""The visitor's page is closed for so long; a page that loads again is back sooner."""

_turns, _reads = threading.Semaphore(RUNS_AT_ONCE), threading.Semaphore(READS_AT_ONCE)
_asking = threading.Semaphore(MOST_ASKING)
_line: list[Job] = []
"""Jobs that wait for their turn, the first in front."""
_line_lock = threading.Lock()
_returning: list[Job] = []
"""Jobs whose visitors said yes: theirs is the next turn."""


def _always() -> bool:
    return True


def time_left(marks: Sequence[tuple[float, float]], now: float) -> float | None:
    """Seconds that are left of work of which so much was done (0 to 1) by such times; None while that says nothing.

    At the pace since the first mark, for what was prepared before it tells nothing of the rest; or at that of the later
    half, if it is slower: what slowed down is not hoped to speed up.
    """
    if len(marks) < 3 or marks[-1][0] - marks[0][0] < 1.0:
        return None
    (first, s0), (last, s1) = marks[0], marks[-1]
    middle, half = next(m for m in reversed(marks) if m[0] <= (first + last) / 2)
    pace = min((s1 - s0) / (last - first), (s1 - half) / (last - middle))
    return max(0.0, (1 - s1) / pace - (now - last)) if pace > 0 else None


class Job:
    """Work that was asked for."""

    def __init__(
        self, work: Work, files: Mapping[str, bytes] | None = None, bounds: WorkBounds | None = None,
        is_there: Callable[[], bool] = _always, in_line: bool = True, visitor: str = "",
    ) -> None:  # fmt: skip
        """Get in line, or begin at once. Raises KvplanError when too many wait already.

        `files` lie in the folder where the work runs; `is_there` says whether the visitor still has the page open;
        `visitor` who that is, empty for nobody in particular.
        """
        self.state: State = "waiting"
        self.result: Any = None
        self.error = ""
        """One line for the visitor, if it failed."""
        self.share = 0.0
        """Done so far, 0 to 1."""
        self.forecast_s = 0.0
        """Seconds it will take in all, once it asks; infinite when nothing was done by then."""
        self._work, self._files, self._bounds = work, dict(files or {}), bounds or WorkBounds()
        self._is_there, self._in_line, self.visitor = is_there, in_line, visitor
        self._has_turn, self._left_turn, self._asked_at = False, False, 0.0
        self._stop, self._yes = threading.Event(), threading.Event()
        self._started = self._seen = self._there = time.monotonic()
        self._marks: list[tuple[float, float]] = []
        if in_line:
            _get_in_line(self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop and still puts together what it has."""
        return self._stop.is_set() and not self.is_over

    @property
    def most_s(self) -> float:
        """Seconds after which it is ended."""
        return self._bounds.seconds

    @property
    def num_before(self) -> int:
        """Runs that come before this one's turn."""
        with _line_lock:
            return _line.index(self) if self in _line else 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since its turn came."""
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float | None:
        """Seconds that are left; None while nobody knows."""
        return time_left(self._marks, time.monotonic())

    def wait(self, seconds: float) -> bool:
        """Wait for the end at most so long; return whether it is over. Tells the job that somebody looks."""
        self._seen = time.monotonic()
        if seconds:
            with resting():
                self._thread.join(seconds)
        return self.is_over

    def stop(self) -> None:
        """Cancel; what was done so far may still become the result."""
        self._stop.set()

    def go_on(self) -> None:
        """Answer yes to the question whether it may take that long."""
        self._yes.set()

    # --- its thread: nothing here computes -------------------------------------------------------------

    def _run(self) -> None:
        try:
            if not self._in_line or self._my_turn():
                self._with_process()
            else:
                self.state = "cancelled"
        except Exception as error:  # no process could be started: memory, handles
            self.error = (
                f"no process could be started for this run ({type(error).__name__}); try again in a minute"
            )
            self.state = "failed"
        finally:
            self._give_turn_back()

    def _my_turn(self) -> bool:
        """Wait for it; False for who leaves the line."""
        try:
            while not self._is_unwanted():
                if self.num_before == 0 and not _returning and _turns.acquire(timeout=0.05):
                    self._has_turn = True
                    return True
                time.sleep(0.05)
            return False
        finally:
            with _line_lock:
                _line.remove(self)

    def _give_turn_back(self) -> None:
        if self._has_turn:
            self._has_turn = False
            _turns.release()
        if self._left_turn:
            self._left_turn = False
            _asking.release()
        if self in _returning:
            _returning.remove(self)

    def _let_others_run(self) -> None:
        """While its visitor thinks; as many as memory is kept for."""
        self._asked_at = time.monotonic()
        if self._has_turn and _asking.acquire(blocking=False):
            self._has_turn, self._left_turn = False, True
            _turns.release()

    def _is_answered(self) -> bool:
        """Whether a yes was said and its turn has come again, before those who wait for their first."""
        if not self._yes.is_set():
            return False
        if self._left_turn:
            if self not in _returning:
                self.state = "waiting"
                _returning.append(self)
            if _returning[0] is not self or not _turns.acquire(blocking=False):
                return False
            _returning.remove(self)
            self._has_turn, self._left_turn = True, False
            _asking.release()
        self._started += time.monotonic() - self._asked_at
        self._marks.clear()
        return True

    def _with_process(self) -> None:
        folder = tempfile.mkdtemp(prefix="kvplan-")
        mine, theirs = _PROCESSES.Pipe()
        process = _PROCESSES.Process(
            target=serve, args=(theirs, self._work, folder, self._files, self._bounds), daemon=True
        )
        try:
            process.start()
            theirs.close()
            self._started, self.state = time.monotonic(), "running"
            self._follow(mine)
        finally:
            mine.close()
            if process.is_alive():
                process.join(0.5)
                process.kill()
            process.join(5)
            shutil.rmtree(folder, ignore_errors=True)

    def _follow(self, pipe: Connection) -> None:
        """Pass messages on until the work is over, or has to be."""
        told_at: float | None = None
        while True:
            try:
                if pipe.poll(0.05) and self._read(pipe.recv()):
                    return
                if self._asked_at and self._is_answered():
                    self._asked_at, self.state = 0.0, "running"
                    pipe.send("go on")
                if told_at is None and (self._is_unwanted() or self._is_late()):
                    told_at = time.monotonic()
                    pipe.send("stop")
            except (EOFError, OSError):
                self._end(
                    "it ended by itself, as work does that needs more memory or time than the app gives a run"
                )
                return
            if told_at is not None and time.monotonic() - told_at > GRACE_S:
                self._end("")
                return

    def _read(self, message: tuple[Any, ...]) -> bool:
        """Note a message; return whether it was the last."""
        match message:
            case ("share", done, total):
                self.share = done / max(1, total)
                self._marks.append((time.monotonic(), self.share))
                if len(self._marks) > 400:
                    self._marks = self._marks[::2]
            case ("asking", forecast):
                self.forecast_s, self.state = forecast, "asking"
                self._let_others_run()
            case ("over", state, content, error):
                self.result, self.error = pickle.loads(content), error
                if state == "cancelled" and not self._stop.is_set():
                    self.error = self._why_late()
                self.state = state
                return True
        return False

    def _end(self, why: str) -> None:
        """The work is ended without a result."""
        if self._stop.is_set():
            self.state = "cancelled"
            return
        self.error = why or self._why_late()
        self.state = "failed"

    def _is_late(self) -> bool:
        """Whether it has had its time, or nobody answers its question."""
        if self._asked_at:
            return not self._yes.is_set() and time.monotonic() - self._asked_at > ANSWER_WITHIN_S
        return self.elapsed_s > self._bounds.seconds

    def _why_late(self) -> str:
        if self._asked_at:
            return f"nobody said within {ANSWER_WITHIN_S:.0f} s that it may take so long"
        return (
            f"this takes longer than {self._bounds.seconds:,.0f} s, which is what the app gives it; the "
            f"command line goes on"
        )

    def _is_unwanted(self) -> bool:
        now = time.monotonic()
        if self._is_there():
            self._there = now
        gone = now - self._there > GONE_AFTER_S
        if gone or now - self._seen > ABANDONED_AFTER_S:
            self._stop.set()
        return self._stop.is_set()


def warm_up() -> None:
    """Have the process from which the others fork loaded before anybody waits for it."""

    def begin() -> None:
        with suppress(KvplanError):  # a busy machine: whoever comes first waits
            read_apart(len, "")

    threading.Thread(target=begin, daemon=True).start()


def _get_in_line(job: Job) -> None:
    with _line_lock:
        if len(_line) >= MOST_WAITING:
            raise KvplanError(
                f"{MOST_WAITING} runs are waiting already: come back in a few minutes, or install kvplan on "
                f"a machine of "
                "your own"
            )
        if job.visitor and sum(other.visitor == job.visitor for other in _line) >= MOST_WAITING_EACH:
            raise KvplanError(
                f"{MOST_WAITING_EACH} runs of yours are waiting already, in other tabs of this browser: "
                "cancel one, or wait for it"
            )
        _line.append(job)


def read_apart(
    read: Callable[..., Any], *args: Any, files: Mapping[str, bytes] | None = None, bounds: WorkBounds = READ
) -> Any:
    """Call `read` in a process of its own, briefly: what strangers hand over may take long to refuse.

    Raises KvplanError as `read` does, and for what takes too long or too much memory.
    """
    with resting(), _reads:
        job = Job(just(read, *args), files, bounds, in_line=False)
        job.wait(bounds.seconds + GRACE_S + 5)
    if job.state == "done":
        return job.result
    raise KvplanError(job.error or f"this takes longer than {bounds.seconds:.0f} s")
