"""`python -m kvplan` and the `kvplan` script: one line also for a Ctrl-C that comes while the command loads."""

from __future__ import annotations

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
    from kvplan.cli.main import run

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(sys.argv[1:])
    if heard:
        signal.signal(signal.SIGINT, _leave)
    sys.exit(code)


def _leave(signum: int, frame: object) -> NoReturn:
    """Nothing is open yet, or everything is written: end at once, whatever an import would make of an exception."""
    with suppress(OSError):
        os.write(2, b"kvplan: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
