"""What the server keeps in memory: what is loaded, what open pages hold, and soon nothing of who has left.

Streamlit looks through all objects after every page, and nobody else runs meanwhile: with the classes and tables of a
simulator that is a tenth of a second, of every page and for everybody. Here it is done every few seconds, for what came
since; what is loaded is out of its sight. So that this holds no visitor's page for ever, all is looked through when
nobody is there, and rarely when always somebody is.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

EVERY_S = 10.0
LOADED_AFTER = (1, 20)
"""Pages after which what is loaded is taken out of the garbage collector's sight."""
QUIET_S = 65.0
"""After so long without anybody all sessions are over: those who lost the connection may come back for a minute."""
AT_LEAST_EVERY_S = 600.0


class Housekeeper:
    """Looks after the memory of a process, in a thread of its own once it is started."""

    def __init__(self, is_there: Callable[[str], bool], collect: Callable[[bool], None]) -> None:
        """`is_there` says whether a session has its page open, `collect` is told whether to look through all."""
        self._is_there, self._collect = is_there, collect
        self._lock = threading.Lock()
        self._sessions = set[str]()
        self._num_pages = 0
        self._has_new = self._has_loaded = self._has_old = False
        self._there_at = self._looked_at = time.monotonic()

    def start(self) -> None:
        """Until the process ends."""
        threading.Thread(target=self._run, daemon=True, name="housekeeper").start()

    def _run(self) -> None:
        while True:
            time.sleep(EVERY_S)
            self.look(time.monotonic())

    def note(self, session: str) -> None:
        """A page of this session is done."""
        with self._lock:
            self._num_pages += 1
            self._sessions.add(session)
            self._has_new = self._has_old = True
            self._has_loaded |= self._num_pages in LOADED_AFTER

    def look(self, now: float) -> None:
        """Collect what is over, if there may be any."""
        with self._lock:
            there = {session for session in self._sessions if self._is_there(session)}
            self._has_new |= there != self._sessions
            self._sessions = there
            if there:
                self._there_at = now
            is_quiet = self._has_old and now - self._there_at > QUIET_S
            everything = self._has_loaded or is_quiet or (there and now - self._looked_at > AT_LEAST_EVERY_S)
            if not (everything or self._has_new):
                return
            self._has_new = False
            if everything:
                self._has_loaded, self._looked_at = False, now
                self._has_old &= not is_quiet
        self._collect(bool(everything))


def collect(everything: bool) -> None:
    """Free what nobody holds, and give what is free back to the system; `everything`: also what was loaded before."""
    if everything:
        gc.unfreeze()
    gc.collect()
    if everything:
        gc.freeze()
    trim()


def gives_back() -> bool:
    """Whether Python takes memory from glibc, piece by piece, as `kvplan app` starts it: read when Python starts."""
    return sys.platform != "linux" or os.environ.get("PYTHONMALLOC") == "malloc"


def trim() -> None:
    """Give free pages back, where glibc has them: it does so by itself only at the end of its heap."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
