"""What one visitor may send to the server: so many files and bytes of them, so many inputs in a message.

Streamlit holds all that comes and reads every input that a message names, known to the page or not.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

UPLOADS_EACH = 16
"""Files of one page; the app has fewer places for one."""
UPLOADED_BYTES = 256 << 20
"""Of all pages together."""
INPUTS_EACH = 1000
"""In a message; the page has fewer than a hundred. Reading 100,000 keeps a thread busy for seconds."""


def bound_messages(runtime: Any) -> None:
    """Let Streamlit's runtime leave messages unread that name more inputs than any page has."""
    handle = runtime.handle_backmsg

    def handle_bounded(session_id: str, message: Any, **more: Any) -> None:
        number = len(message.rerun_script.widget_states.widgets)
        if number > INPUTS_EACH:
            logging.getLogger(__name__).warning("a message of %s inputs was not read", f"{number:,}")
            return
        handle(session_id, message, **more)

    runtime.handle_backmsg = handle_bounded


def bound_uploads(manager: Any) -> None:
    """Let Streamlit's manager of uploaded files hold so many of a page and so many bytes of all; the oldest go first.

    By itself it holds all that a page sends while it is open, and anybody can send without end.
    """
    add, lock = manager.add_file, threading.Lock()

    def add_bounded(session_id: str, file: Any) -> None:
        with lock:
            add(session_id, file)
            sizes = {
                (session, name): len(each.data)
                for session, files in list(manager.file_storage.items())
                for name, each in list(files.items())
            }
            mine = [key for key in sizes if key[0] == session_id]
            for key in mine[: max(0, len(mine) - UPLOADS_EACH)]:
                manager.remove_file(*key)
                del sizes[key]
            total = sum(sizes.values())
            for key, size in sizes.items():
                if total <= UPLOADED_BYTES:
                    break
                manager.remove_file(*key)
                total -= size

    manager.add_file = add_bounded
