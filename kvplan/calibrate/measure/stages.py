"""Everything that is measured on one card, in order: what pays most comes first, so that an early end leaves a fit.

Each stage has a share of the time; what one leaves goes to those after it. Within a stage the points are taken from all
over its grid in turn, so that wherever it ends, its whole range was measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch

from kvplan.calibrate.measure import attention, products, steps
from kvplan.calibrate.measure.allocation import measure_memory
from kvplan.calibrate.measure.device import free_bytes, machine_facts, pick_device, strangers
from kvplan.calibrate.measure.grids import GRIDS, Grid, fitting_grid
from kvplan.calibrate.measure.kernels import Kernels, Named, choose_kernels, sdpa_kernel
from kvplan.calibrate.measure.links import COPY_BYTES, TOTAL_FILE_BYTES, measure_links
from kvplan.calibrate.measure.probes import MIN_REPEATS, TARGET_S, Ceilings, Probe, ceilings_of, run
from kvplan.calibrate.measure.transformers_batches import measure_batching
from kvplan.calibrate.session import MeasurementSession, Report, open_session
from kvplan.ground.errors import KvplanError

SETUP_S = 0.04
"""Of a probe, whatever it allocates: kernels looked up, tables filled, the cache given back (assumed)."""
LAUNCH_S = 2e-5
"""Least time of a call (assumed)."""
LEAST_BATCHES_S = 10.0
"""Time that transformers' batches must have left: loading it, the model and warming up are no probe that can be cut."""
FILL = 0.15
"""Share of the copy rate at which random inputs are drawn (assumed)."""


class MeasureStage(NamedTuple):
    """One kind of probe and its share of the time."""

    name: str
    share: float
    list_probes: Callable[[Grid, torch.device, Kernels], list[Probe]]


STAGES = (
    MeasureStage(
        "ceilings", 0.01, lambda g, d, k: [*products.copy_probes(g, d), *products.large_product(g, d)]
    ),
    MeasureStage("decode attention", 0.22, attention.decode_probes),
    MeasureStage("whole steps", 0.27, steps.step_probes),
    MeasureStage("products", 0.09, products.gemm_probes),
    MeasureStage("experts", 0.02, lambda g, d, k: products.moe_probes(g, d)),
    MeasureStage("prompt chunks", 0.04, lambda g, d, k: steps.prefill_step_probes(g, d)),
    MeasureStage("prompt attention", 0.05, lambda g, d, k: attention.prefill_probes(g, d)),
    MeasureStage("mixed attention", 0.06, attention.mixed_probes),
    MeasureStage("mixed steps", 0.04, steps.mixed_step_probes),
    MeasureStage("sampling", 0.01, lambda g, d, k: products.sampling_probes(g, d)),
    MeasureStage("draft and verify", 0.03, steps.speculative_probes),
    MeasureStage("shared prompts", 0.02, attention.shared_probes),
    MeasureStage("latent attention", 0.03, attention.mla_probes),
)
"""In this order, after memory (`MEMORY_SHARE`) and before host times, links and a real scheduler's batches."""
MEMORY_SHARE, HOST_SHARE, LINKS_SHARE, BATCHES_SHARE = 0.04, 0.01, 0.01, 0.05


def spread(probes: list[Probe]) -> list[Probe]:
    """The same probes from all over the grid in turn: in the order of their index's bits read backwards."""
    width = max(1, (len(probes) - 1).bit_length())
    return [p for _, p in sorted(enumerate(probes), key=lambda x: int(f"{x[0]:0{width}b}"[::-1], 2))]


def planned_s(probe: Probe, ceilings: Ceilings, device_type: str) -> float:
    """Seconds that a probe will take, set-up included, were it as quick as its bytes and FLOPs allow."""
    call = LAUNCH_S + ceilings.floor_s(probe)
    repeats = min(100, max(MIN_REPEATS, TARGET_S[device_type] / call))
    drawn = max(probe.touched_bytes, probe.floor_bytes) / (FILL * ceilings.bytes_per_s)
    return SETUP_S + drawn + (5 + repeats) * call


class Planned(NamedTuple):
    """What a stage gets done in its share of the time."""

    name: str
    probes: list[Probe]
    num_points: int
    """Of the whole grid."""
    planned_s: float


def plan(
    grid: Grid, device: torch.device, kernels: Kernels, ceilings: Ceilings, budget_s: float
) -> list[Planned]:
    """The points that fit the time on a card of such rates, stage by stage; what one leaves goes to the next."""
    clock = shares = MEMORY_SHARE
    clock *= budget_s if budget_s < inf else 0.0
    planned = []
    for stage in STAGES:
        shares += stage.share
        points = spread(stage.list_probes(grid, device, kernels))
        ends = list(accumulate((planned_s(p, ceilings, device.type) for p in points), initial=clock))
        count = sum(end <= shares * budget_s for end in ends[1:])
        planned.append(Planned(stage.name, points[:count], len(points), ends[count] - clock))
        clock = ends[count]
    return planned


H100 = Ceilings(2.7e12, 6.5e14, 50e6)
"""Copy and 16-bit product rates of an H100 SXM: 80 % of 3.35 TB/s, 65 % of 989 TFLOP/s (assumed)."""
OTHER = (("memory", MEMORY_SHARE), ("host", HOST_SHARE), ("links", LINKS_SHARE), ("batches", BATCHES_SHARE))


def planned_on_an_h100(budget_s: float) -> list[tuple[str, int, int, float]]:
    """(stage, points, points of the whole grid, seconds) of the default grid with our Triton kernels; then the total.

    Memory, host times and batches are no probes: they are planned with their share.
    """
    grid = GRIDS["default"]
    named = {kv_dtype: Named("triton", sdpa_kernel) for kv_dtype in grid.kv_dtypes}
    kernels = Kernels(named, named, mla=True, fp8_products=True)
    found = plan(grid, torch.device("cuda"), kernels, H100, budget_s)
    lines = [(s.name, len(s.probes), s.num_points, s.planned_s) for s in found]
    lines += [(name, 0, 0, share * budget_s) for name, share in OTHER]
    points, seconds = sum(len(s.probes) for s in found), sum(s.planned_s for s in found)
    again, left = grid.rounds - 1, budget_s - sum(line[3] for line in lines)
    lines += [(f"{again} more rounds", again * points, again * points, min(again * seconds, left))]
    points, of, seconds = (sum(line[i] for line in lines) for i in (1, 2, 3))  # type: ignore[misc]
    return [*lines, ("all", points, of, seconds)]


def measure_stages(
    out: Path, device_name: str, grid_name: str, *, rounds: int, force: bool, budget_s: float, report: Report
) -> MeasurementSession:
    """Measure as `kvplan.calibrate.card.measure_card` says."""
    begun = time.monotonic()
    if grid_name and grid_name not in GRIDS:
        raise KvplanError(f"no grid {grid_name!r}; there is {', '.join(GRIDS)}")
    others = strangers(device_name)  # before this process touches the card: containers count processes anew
    device = pick_device(device_name)
    grid = fitting_grid(
        GRIDS[grid_name or ("cpu" if device.type == "cpu" else "default")], free_bytes(device)
    )
    if others and not force:
        raise KvplanError(
            f"process {others[0]} computes on this card too; stop it, or measure beside it with --force"
        )
    session = open_session(out, machine_facts(device))
    measure_memory(grid, session, device, report, begun + MEMORY_SHARE * budget_s)
    kernels = choose_kernels(device, grid.kv_dtypes, grid.page)
    for kv_dtype in set(grid.kv_dtypes) - set(kernels.decode):
        wrong = {"op": "stage", "machine": session.machine["machine"], "of": f"attention over {kv_dtype}"}
        session.append(wrong | {"skipped": f"no kernel over {kv_dtype} KV is right on this machine"})
    rounds, shares = rounds or grid.rounds, MEMORY_SHARE
    for stage in STAGES:
        shares += stage.share
        _run_stage(stage, session, grid, device, kernels, report, (0, 1), begun + shares * budget_s)
    steps.host_times(grid, session, device, kernels, begun + (shares + HOST_SHARE) * budget_s)
    measure_links(
        session, device, report, begun + (shares + HOST_SHARE + LINKS_SHARE) * budget_s,
        largest_bytes=min(COPY_BYTES[-1], *grid.copy_bytes), file_bytes=min(TOTAL_FILE_BYTES, *grid.copy_bytes),
    )  # fmt: skip
    left = begun + budget_s - time.monotonic()
    if left > max(LEAST_BATCHES_S, BATCHES_SHARE / 2 * budget_s if budget_s < inf else 0.0):
        measure_batching(grid, session, device, report, begun + budget_s)
    for again in range(1, rounds):  # minutes later, with the time that is left
        for stage in STAGES:
            _run_stage(stage, session, grid, device, kernels, report, (again, again + 1), begun + budget_s)
    return session


def _run_stage(
    stage: MeasureStage, session: MeasurementSession, grid: Grid, device: torch.device, kernels: Kernels,
    report: Report, rounds: tuple[int, int], deadline: float,
) -> None:  # fmt: skip
    """Measure a stage's points in these rounds, until the deadline; the ceilings are those of the file so far."""
    ceilings = ceilings_of(session, session.machine.get("l2_bytes", grid.l2_bytes))
    points = spread(stage.list_probes(grid, device, kernels))
    run(points, session, device, rounds[1], report, ceilings, deadline, rounds[0])
