"""Everything that is measured on one card, in one call. Needs torch and the standard library alone.

    python -m kvplan.calibrate.measure_card FILE [cuda|cpu] [default|quick|cpu]

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

    device = measure.pick_device(device_name)
    grid = GRIDS[grid_name or ("cpu" if device.type == "cpu" else "default")]
    others = measure.strangers(device)
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
        *measure_attention.mla_probes(grid, device),
    ]
    measure.run(probes, session, device, rounds or grid.rounds, report)
    measure_model.host_times(grid, session, device)
    measure_batching.measure_batching(grid, session, device, report)
    return session


def _print_progress(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        out, *rest = sys.argv[1:]
        measure_card(Path(out), *rest[:2], report=_print_progress)
    except (KvplanError, ValueError, TypeError) as error:
        sys.exit(
            f"{error}; usage: python -m kvplan.calibrate.measure_card FILE [cuda|cpu] [default|quick|cpu]"
        )
