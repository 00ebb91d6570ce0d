"""Pages take turns: one is put together at a time, so that the server's own thread is never behind twenty of them.

    with page_turn():          # of a page
        ...
        with resting():        # while it waits for a process
            ...

Python runs one thread at a time; a server thread that competes with many others for that answers late.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kvplan.ground.errors import KvplanError

PAGES_AT_ONCE = 1
"""Two would not be done sooner: they share one interpreter."""
SWITCH_S = 0.0005
"""Between two threads; Python's own 5 ms let a server thread wait that long for each of its steps."""
MOST_PAGES = 100
"""Put together or about to be: more are told to come back."""
_turns = threading.BoundedSemaphore(PAGES_AT_ONCE)
_pages, _pages_lock = 0, threading.Lock()
_mine = threading.local()


@contextmanager
def page_turn() -> Iterator[None]:
    """Wait for a turn, and keep it until the block ends. Raises KvplanError when too many wait already."""
    global _pages
    sys.setswitchinterval(SWITCH_S)
    with _pages_lock:
        if _pages >= MOST_PAGES:
            raise KvplanError(
                f"{MOST_PAGES} visitors are waiting for their pages: reload this one in a minute"
            )
        _pages += 1
    try:
        with _turns:
            _mine.has_turn = True
            try:
                yield
            finally:
                _mine.has_turn = False
    finally:
        with _pages_lock:
            _pages -= 1


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
