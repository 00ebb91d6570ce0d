"""Everything that is measured on one card, in order: what pays most comes first, so that an early end leaves a fit."""

from __future__ import annotations

from pathlib import Path

from kvplan.calibrate.measure import attention, mixed_attention, probes, steps
from kvplan.calibrate.measure.allocation import measure_memory
from kvplan.calibrate.measure.grids import GRIDS
from kvplan.calibrate.measure.transformers_batches import measure_batching
from kvplan.calibrate.session import Report, Session, open_session
from kvplan.errors import KvplanError


def measure_stages(
    out: Path, device_name: str, grid_name: str, *, rounds: int, force: bool, report: Report
) -> Session:
    """Measure as `kvplan.calibrate.card.measure_card` says."""
    if grid_name and grid_name not in GRIDS:
        raise KvplanError(f"no grid {grid_name!r}; there is {', '.join(GRIDS)}")
    others = probes.strangers(device_name)  # before this process touches the card: containers count anew
    device = probes.pick_device(device_name)
    grid = GRIDS[grid_name or ("cpu" if device.type == "cpu" else "default")]
    if others and not force:
        raise KvplanError(
            f"process {others[0]} computes on this card too; stop it, or measure beside it with --force"
        )
    session = open_session(out, probes.machine_facts(device))
    measure_memory(grid, session, device, report)
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
    measure_batching(grid, session, device, report)
    return session
