"""Pages take turns: one is put together at a time, so that the server's own thread is never behind twenty of them.

    with page_turn():          # of a page
        ...
        with resting():        # while it waits for a process
            ...

Python runs one thread at a time; a server thread that competes with many others for that answers late.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PAGES_AT_ONCE = 1
"""Two would not be done sooner: they share one interpreter."""
SWITCH_S = 0.0005
"""Between two threads; Python's own 5 ms let a server thread wait that long for each of its steps."""
SETTLED_AFTER = (1, 20)
"""Pages after which what is loaded is taken out of the garbage collector's sight."""
SETTLED_FOR_S = 60.0
"""After so long all is looked through once more: sessions that were open then are over."""
_turns = threading.BoundedSemaphore(PAGES_AT_ONCE)
_pages = itertools.count(1)
_settled_at = 0.0
_mine = threading.local()


@contextmanager
def page_turn() -> Iterator[None]:
    """Wait for a turn, and keep it until the block ends."""
    sys.setswitchinterval(SWITCH_S)
    with _turns:
        _mine.has_turn = True
        try:
            yield
        finally:
            _mine.has_turn = False


def settle() -> None:
    """Note that a page is done; after the first ones, let the garbage collector pass over all that is loaded by now.

    Streamlit looks through all objects after every page, and nobody else runs meanwhile: with the classes and tables of
    a simulator that is a tenth of a second, of every page and for everybody. Once a minute that is paid, for what has
    ended since.
    """
    global _settled_at
    now = time.monotonic()
    if next(_pages) in SETTLED_AFTER or now - _settled_at > SETTLED_FOR_S:
        _settled_at = now
        gc.unfreeze()
        gc.collect()
        gc.freeze()


@contextmanager
def resting() -> Iterator[None]:
    """Let others have this thread's turn, if it has one, until the block ends."""
    if not getattr(_mine, "has_turn", False):
        yield
        return
    _mine.has_turn = False
    _turns.release()
    try:
        yield
    finally:
        _turns.acquire()
        _mine.has_turn = True
