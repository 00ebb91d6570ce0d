"""What the tiers beyond the GPUs did in a run: hits, bytes each way, what left, what waited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from kvplan.ground.units import TICKS_PER_S
from kvplan.schedulers.step_by_step import OffloadTotals, StepByStep
from kvplan.simulation.replica_stats import Totals
from kvplan.simulation.run import Run
from kvplan.simulation.transfers import TimedCopies

ORDER_NOTE = (
    "several requests ended before one step: vLLM takes them in the order of a set of strings, which differs"
    " from run to run; here in the order of their ends"
)


def offload_figures(run: Run, totals: Totals) -> dict[str, Any] | None:
    """Return the sums over all replicas that have a tier; None where there is none."""
    engines = [
        (replica.engine, replica.copies)
        for replica in run.replicas
        if isinstance(replica.engine, StepByStep) and replica.copies is not None
    ]
    if not engines:
        return None
    summed = OffloadTotals()
    for engine, _ in engines:
        for name in (field.name for field in fields(OffloadTotals)):
            setattr(summed, name, getattr(summed, name) + getattr(engine.offloaded, name))
    tiers = [engine.scheduler.loads.connector for engine, _ in engines if engine.scheduler.loads is not None]
    for _ in range(sum(tier.num_unordered_ends for tier in tiers)):
        run.note(ORDER_NOTE)
    answered = summed.loaded_tokens + totals.prefill_tokens
    seconds = (run.now or 1) * len(engines)
    stored, loaded = (sum(copies.busy_ticks[way] for _, copies in engines) for way in (True, False))
    moved = {way: sum(copies.moved_bytes[way] for _, copies in engines) for way in (True, False)}
    return {
        **{field.name: getattr(summed, field.name) for field in fields(OffloadTotals)},
        "loaded_share": summed.loaded_tokens / answered if answered else None,
        "bytes_per_block_and_rank": list(engines[0][1].block_bytes),
        "loaded_bytes_per_rank": moved[False],
        "stored_bytes_per_rank": moved[True],
        "load_link_busy": loaded / seconds,
        "store_link_busy": stored / seconds,
        "flush_s": totals.flush_ticks / TICKS_PER_S,
        "chunks": sum(tier.manager.num_chunks for tier in tiers),
        "chunks_used": sum(tier.manager.num_used for tier in tiers),
        "file_tiers": _file_tiers(engines, seconds),
    }


def _file_tiers(engines: Sequence[tuple[StepByStep, TimedCopies]], ticks: int) -> list[dict[str, Any]]:
    """Of each tier below host memory, over all replicas: files held, bytes each way, shares of time it was busy."""
    found: list[dict[str, Any]] = []
    for i, first in enumerate(engines[0][1].files):
        timed = [copies.files[i] for _, copies in engines]
        read, written = (sum(files.files[way] for files in timed) for way in (True, False))
        busy = {way: sum(files.busy_s[way] for files in timed) * TICKS_PER_S / ticks for way in (True, False)}
        found.append(
            {
                "drive": first.drive.name,
                "files": sum(len(engine.secondary_tiers[i].chunks) for engine, _ in engines),
                "file_bytes": first.file_bytes,
                "read_bytes": read * first.file_bytes,
                "written_bytes": written * first.file_bytes,
                "read_busy": busy[True],
                "write_busy": busy[False],
            }
        )
    return found
