"""`python -m kvplan` and the `kvplan` script: one line also for a Ctrl-C that comes while the command loads."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn


def main() -> NoReturn:
    """Entry point of the `kvplan` script."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _leave)
    # Plug-ins of pydantic would have the entry points of every installed package read.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from kvplan.ground.collector import rare_searches

    with rare_searches():
        from kvplan.cli.main import run

        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run(sys.argv[1:])
    if heard:
        signal.signal(signal.SIGINT, _leave)
    # What a command has loaded goes as a whole: searching it for cycles at the end took a fifth of a short one's time.
    gc.freeze()
    sys.exit(code)


def _leave(signum: int, frame: object) -> NoReturn:
    """Nothing is open yet, or everything is written: end at once, whatever an import would make of an exception."""
    with suppress(OSError):
        os.write(2, b"kvplan: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
