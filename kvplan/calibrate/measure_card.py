"""Everything that is measured on one card, in one call. Needs torch and the standard library alone.

    python -m kvplan.calibrate.measure_card FILE [cuda|cpu] [default|quick|cpu] [--force]

is that call, for a machine without network: copy the package there, run it, bring FILE back and `kvplan fit` it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from kvplan.calibrate.grids import GRIDS
from kvplan.calibrate.session import Report, Session, no_report, open_session
from kvplan.errors import KvplanError


def measure_card(
    out: Path,
    device_name: str = "cuda",
    grid_name: str = "",
    *,
    rounds: int = 0,
    force: bool = False,
    report: Report = no_report,
) -> Session:
    """Measure this machine's card (or its CPU, with tiny shapes) into `out`, skipping what is there.

    The points that pay most come first, so that an early end still leaves a fit. `rounds` repeats every point on
    different minutes; 0 = as the grid says.

    Errors: no usable card, another process computing on it (unless `force`), a file of another machine.
    """
    if find_spec("torch") is None:
        raise KvplanError("calibrating a card needs torch: pip install 'kvplan[gpu]'")
    from kvplan.calibrate import (
        measure,
        measure_attention,
        measure_batching,
        measure_memory,
        measure_mixed,
        measure_model,
    )

    if grid_name and grid_name not in GRIDS:
        raise KvplanError(f"no grid {grid_name!r}; there is {', '.join(GRIDS)}")
    others = measure.strangers(
        device_name
    )  # before this process touches the card: containers count processes anew
    device = measure.pick_device(device_name)
    grid = GRIDS[grid_name or ("cpu" if device.type == "cpu" else "default")]
    if others and not force:
        raise KvplanError(
            f"process {others[0]} computes on this card too; stop it, or measure beside it with --force"
        )
    session = open_session(out, measure.machine_facts(device))
    measure_memory.measure_memory(grid, session, device, report)
    measure_attention.check_kernels(device, grid.kv_dtypes)
    probes = [
        *measure_model.copy_probes(grid, device),
        *measure_model.step_probes(grid, device),
        *measure_model.prefill_step_probes(grid, device),
        *measure_attention.decode_probes(grid, device),
        *measure_attention.prefill_probes(grid, device),
        *measure_mixed.mixed_probes(grid, device),
        *measure_model.gemm_probes(grid, device),
        *measure_model.moe_probes(grid, device),
        *measure_attention.mla_probes(grid, device),
    ]
    measure.run(probes, session, device, rounds or grid.rounds, report)
    measure_model.host_times(grid, session, device)
    measure_batching.measure_batching(grid, session, device, report)
    return session


def _print_progress(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", file=sys.stderr, flush=True)


USAGE = "usage: python -m kvplan.calibrate.measure_card FILE [cuda|cpu] [default|quick|cpu] [--force]"


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
