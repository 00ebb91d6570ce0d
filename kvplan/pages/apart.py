"""The inside of a process that does one piece of a visitor's work: its own folder, bounded time and memory, a pipe.

Up the pipe: ("share", done, all), ("asking", seconds), ("over", state, pickled result, complaint). Down: "stop",
"go on"; its end means that the server is gone. Knows no page.
"""

from __future__ import annotations

import _thread
import errno
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.ground.files import PACKAGE, measurements_dir, profiles_dir, scenarios_dir
from kvplan.simulation.observer import Observer

Progress = Callable[[int, int], None]
Work = Callable[[Progress, Observer], Any]
State = Literal["waiting", "running", "asking", "done", "failed", "cancelled"]

TELL_EVERY_S = 0.1
HOME = "your-model"
"""Where a visitor's files lie: a model of its own is called after its folder, in commands and complaints."""
INTERRUPT_AFTER_S = 0.5
"""Work that has not noticed by then that it is to stop is interrupted as by Ctrl-C, and may still give what it has."""


class WorkBounds(NamedTuple):
    """What one piece of work may take."""

    seconds: float = 600.0
    """Of a core, and of the clock from its start."""
    memory_bytes: int = 4 << 30
    """0 = not bounded."""
    ask_above_s: float = 60.0
    """Work that would take longer waits for a yes."""
    look_after_s: float = 2.0
    """The forecast is made when the work has run for so long."""
    result_bytes: int = 32 << 20
    """More is not handed to the server, which holds it as long as the page is open."""
    patience: int = 10
    """Work that has shown no progress is given so many times longer before it asks."""


class _Desk:
    """What the work sees: somebody to tell, and to ask whether to go on."""

    def __init__(self, pipe: Connection, bounds: WorkBounds) -> None:
        self._pipe, self._bounds = pipe, bounds
        self.stopped, self._yes, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._started = self._told = time.monotonic()
        self._share = 0.0
        self._first: tuple[float, float] | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                if self._pipe.recv() == "stop":
                    self.stopped.set()
                    threading.Timer(INTERRUPT_AFTER_S, _thread.interrupt_main).start()
                self._yes.set()
        os._exit(0)  # the server is gone, and with it everybody who waits for this

    def tell(self, *message: Any) -> None:
        with self._lock:
            self._pipe.send(message)

    def progress(self, done: int, total: int) -> None:
        now, self._share = time.monotonic(), done / max(1, total)
        if self._first is None and self._share:
            self._first = now, self._share
        if now - self._told > TELL_EVERY_S or done == total:
            self._told = now
            self.tell("share", done, total)

    def cancelled(self) -> bool:
        now, bounds = time.monotonic(), self._bounds
        since, wait = (self._first[0], 1) if self._first else (self._started, bounds.patience)
        if now - since > wait * bounds.look_after_s and not self._yes.is_set():
            self._ask(now)
        return self.stopped.is_set()

    def _forecast(self, now: float) -> float:
        """Seconds of all of it, at the pace since it first got on: what is prepared once tells nothing of the rest."""
        if self._first is None:
            return float("inf")
        begun, share = self._first
        if self._share <= share:  # few and large pieces
            return (now - self._started) / self._share
        return begun - self._started + (now - begun) * (1 - share) / (self._share - share)

    def _ask(self, now: float) -> None:
        """Hold the work until somebody answers, if all of it would take long."""
        forecast = self._forecast(now)
        if forecast > self._bounds.ask_above_s:
            self.tell("asking", forecast)
            self._yes.wait()
            self.tell("go on")
        self._yes.set()


def serve(pipe: Connection, work: Work, folder: str, files: Mapping[str, bytes], bounds: WorkBounds) -> None:
    """Do the work in `folder`, where the visitor's files lie, and tell how it ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _bound(bounds)
    home = os.path.join(folder, HOME)
    os.mkdir(home)
    os.chdir(home)
    for name, content in files.items():
        with open(os.path.basename(name), "wb") as file:
            file.write(content)
    _stay_in(folder)
    desk = _Desk(pipe, bounds)
    state, result, said = _outcome(work, desk)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        content = pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        state, content, said = "failed", pickle.dumps(None), _too_large(bounds)
    if len(content) > bounds.result_bytes:
        said = (
            f"the result is {len(content) >> 20} MiB, the app shows up to {bounds.result_bytes >> 20}; ask for less, "
            f"or the command line, which has no such bound"
        )
        state, content = "failed", pickle.dumps(None)
    with suppress(BrokenPipeError):  # it was given up meanwhile
        desk.tell("over", state, content, said)


def _roots(folder: str) -> tuple[str, ...]:
    """Where work may read: its own folder, kvplan's files, Python's."""
    libraries = [each for each in sys.path if os.path.basename(each) in ("site-packages", "dist-packages")]
    ours = [PACKAGE, scenarios_dir(), profiles_dir(), measurements_dir()]
    system = ["/proc/self", "/dev", "/sys/fs/cgroup", "/usr/share/zoneinfo"]
    found = [folder, *map(str, ours), sys.prefix, sys.base_prefix, *libraries, *system]
    return tuple(os.path.join(os.path.realpath(each), "") for each in found)


def _stay_in(folder: str) -> None:
    """Let this process open no other file, whatever a stranger's text made of a name: a second wall behind `uploads`.

    Holds for what Python opens, not for libraries in C, and cannot be taken back.
    """
    tempfile.tempdir = folder
    roots = _roots(folder)

    def hook(event: str, told: tuple[Any, ...]) -> None:
        if (
            event not in ("open", "os.listdir", "os.scandir")
            or not told
            or not isinstance(told[0], str | bytes)
        ):
            return
        name = os.path.realpath(os.fsdecode(told[0]))
        if not os.path.join(name, "").startswith(roots):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.path.basename(name))

    sys.addaudithook(hook)


def _outcome(work: Work, desk: _Desk) -> tuple[State, Any, str]:
    try:
        result = work(desk.progress, Observer(cancelled=desk.cancelled))
        return "cancelled" if desk.stopped.is_set() else "done", result, ""
    except KeyboardInterrupt:  # work that was stopped before it had anything
        return "cancelled", None, ""
    except KvplanError as error:
        return "cancelled" if desk.stopped.is_set() else "failed", None, str(error)
    except MemoryError:
        return "failed", None, _too_large(desk._bounds)
    except Exception:  # a process has nobody to raise to: the log gets the whole story, the visitor one line
        logging.getLogger(__name__).exception("a visitor's work failed")
        return "failed", None, "this run failed inside kvplan; the server's log has the details"


def _too_large(bounds: WorkBounds) -> str:
    return (
        f"this run needs more than the {bounds.memory_bytes >> 30} GiB of memory that the app gives a "
        f"run; ask for less"
    )


def _bound(bounds: WorkBounds) -> None:
    """Let the system itself hold the process to its bounds, where it can, and put the server first."""
    with suppress(AttributeError, OSError):
        os.nice(5)
    try:
        import resource
    except ImportError:  # Windows
        return
    seconds = int(bounds.seconds) + 5
    for what, most in ((resource.RLIMIT_AS, bounds.memory_bytes), (resource.RLIMIT_CPU, seconds)):
        with suppress(ValueError, OSError):
            if most:
                resource.setrlimit(what, (most, most))


def interrupting(progress: Progress, observer: Observer) -> Progress:
    """Progress for work that knows no observer: told to stop, it ends as by Ctrl-C, with what it has."""

    def told(done: int, total: int) -> None:
        progress(done, total)
        if observer.cancelled():
            raise KeyboardInterrupt

    return told


def just(read: Callable[..., Any], *args: Any) -> Work:
    """Work without progress."""
    return partial(_just, read, args)


def _just(read: Callable[..., Any], args: tuple[Any, ...], progress: Progress, observer: Observer) -> Any:
    return read(*args)
