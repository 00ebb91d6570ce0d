"""Measuring one card (or this CPU) into one file, in one call: the entry. Loads torch only when it measures.

    python -m kvplan.calibrate.card FILE [cuda|cpu] [default|quick|cpu] [--force]

is that call, for a machine without network: copy the package there, run it, bring FILE back and `kvplan fit` it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from math import inf
from pathlib import Path

from kvplan.calibrate.session import Report, Session, no_report
from kvplan.errors import KvplanError

USAGE = "usage: python -m kvplan.calibrate.card FILE [cuda|cpu] [default|quick|cpu] [--force]"


def measure_card(
    out: Path,
    device_name: str = "cuda",
    grid_name: str = "",
    *,
    rounds: int = 0,
    force: bool = False,
    budget_s: float = 0.0,
    report: Report = no_report,
) -> Session:
    """Measure this machine's card (or its CPU, with tiny shapes) into `out`, skipping what is there.

    `rounds` repeats every point on different minutes; 0 = as the grid says. `budget_s` ends it after so many seconds,
    each stage with its share; 0 = all of the grid. Another call goes on where this one ended.

    Raises:
        KvplanError: no torch, no usable card, another process computing on it (unless `force`), a file of another
            machine.
    """
    if find_spec("torch") is None:
        raise KvplanError("calibrating a card needs torch: pip install 'kvplan[gpu]'")
    from kvplan.calibrate.measure.stages import measure_stages  # torch is large, and not needed to say usage

    return measure_stages(
        out, device_name, grid_name, rounds=rounds, force=force, budget_s=budget_s or inf, report=report
    )


def main(words: list[str]) -> int:
    """Measure as the command line says; an error is one line and exit code 2, as of `kvplan`."""
    force = words[-1:] == ["--force"]
    out, *rest = words[: -1 if force else None] or [""]
    try:
        if not out or len(rest) > 2:
            raise KvplanError(USAGE)
        measure_card(Path(out), *rest, force=force, report=_print_progress)
    except (KvplanError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what was measured is in {out}, run it again to go on", file=sys.stderr)
        return 130
    return 0


def _print_progress(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
