"""Everything that is measured on one card, in one call. Needs torch and the standard library alone.

    python -m kvplan.calibrate.measure.stages FILE [cuda|cpu] [default|quick|cpu] [--force]

is that call, for a machine without network: copy the package there, run it, bring FILE back and `kvplan fit` it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from kvplan.calibrate.measure.grids import GRIDS
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
    from kvplan.calibrate.measure import (
        allocation,
        attention,
        mixed_attention,
        probes,
        steps,
        transformers_batches,
    )

    if grid_name and grid_name not in GRIDS:
        raise KvplanError(f"no grid {grid_name!r}; there is {', '.join(GRIDS)}")
    others = probes.strangers(
        device_name
    )  # before this process touches the card: containers count processes anew
    device = probes.pick_device(device_name)
    grid = GRIDS[grid_name or ("cpu" if device.type == "cpu" else "default")]
    if others and not force:
        raise KvplanError(
            f"process {others[0]} computes on this card too; stop it, or measure beside it with --force"
        )
    session = open_session(out, probes.machine_facts(device))
    allocation.measure_memory(grid, session, device, report)
    attention.check_kernels(device, grid.kv_dtypes)
    points = [
        *steps.copy_probes(grid, device),
        *steps.step_probes(grid, device),
        *steps.prefill_step_probes(grid, device),
        *attention.decode_probes(grid, device),
        *attention.prefill_probes(grid, device),
        *mixed_attention.mixed_probes(grid, device),
        *steps.gemm_probes(grid, device),
        *steps.moe_probes(grid, device),
        *attention.mla_probes(grid, device),
    ]
    probes.run(points, session, device, rounds or grid.rounds, report)
    steps.host_times(grid, session, device)
    transformers_batches.measure_batching(grid, session, device, report)
    return session


def _print_progress(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", file=sys.stderr, flush=True)


USAGE = "usage: python -m kvplan.calibrate.measure.stages FILE [cuda|cpu] [default|quick|cpu] [--force]"


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
