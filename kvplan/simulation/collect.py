"""From a run's replicas, records and samples to its `Result`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvplan.simulation.diagnosis import advise, limited_by
from kvplan.simulation.metrics import Sample
from kvplan.simulation.replica import Replica
from kvplan.simulation.replica_stats import Totals
from kvplan.simulation.result import Pool, Result, total
from kvplan.timing.step import StepShape
from kvplan.units import TICKS_PER_S

if TYPE_CHECKING:
    from kvplan.simulation.run import Run


def sum_up(run: Run, verdict: str, now: int) -> Result:
    """Return the result of a run that ended at `now`, summed up over its replicas."""
    totals = total([replica.totals for replica in run.replicas])
    for replica in run.replicas:
        for note in replica.notes:
            run.note(note)
    _note_extrapolation(run)
    gpus = [(f.setup, len(f.seats + f.prefill) * f.setup.num_gpus) for f in run.fleets.values()]
    price = run.scenario.pricing.usd_per_gpu_hour
    result = Result(
        run.scenario, verdict, now / TICKS_PER_S, run.records, run.timeline.samples, totals,
        _pool(run, totals), run.meter.intervals(), run.meter.peak_tokens_per_s(), sum(n for _, n in gpus),
        sum(n * (setup.usd_per_gpu_hour if price is None else price) for setup, n in gpus),
        run.load.class_names, [cls.slo or run.scenario.slo for cls in run.load.classes], len(run.load),
        run.modes, _sources(run), run.notes, num_bad_rows=run.load.num_bad_rows,
        caveats=tuple(dict.fromkeys(text for f in run.fleets.values() for text in f.setup.caveats)),
        engines={name: f.setup.config.model_dump(mode="json") for name, f in run.fleets.items()},
    )  # fmt: skip
    result.limited_by = limited_by(result)
    result.advice = advise(result)
    return result


def _pool(run: Run, totals: Totals) -> Pool:
    setup = run.fleets[""].setup
    capacity = sum(r.num_blocks * (r.totals.busy_ticks + r.totals.stalled_ticks) for r in run.replicas)
    return Pool(
        setup.config.num_gpu_blocks - 1, setup.config.block_size, setup.kv_bytes_per_token,
        max(r.totals.peak_used_blocks / r.num_blocks for r in run.replicas),
        totals.used_block_ticks / (capacity or 1), totals.used_block_ticks / TICKS_PER_S,
        sum(len(f.seats) for name, f in run.fleets.items() if not name),
    )  # fmt: skip


def _sources(run: Run) -> dict[str, str]:
    """Where figures come from; those of further models carry their names."""
    return {
        f"{name}: {key}" if name else key: text
        for name, fleet in run.fleets.items()
        for key, text in fleet.setup.sources.items()
    }


def _note_extrapolation(run: Run) -> None:
    """Say where the run left what its profile measured, as the samples saw it."""
    if len(run.fleets) > 1:
        return
    outside = run.fleets[""].setup.outside
    for s in run.timeline.samples:
        held = s.prompt_tokens + s.shared_tokens + s.thinking_tokens + s.answer_tokens
        each = StepShape(s.running, s.running, held)
        for phrase in outside(each) if s.running and run.num_replicas == 1 else ():
            what, _, limits = phrase.partition(" outside ")
            run.note(f"step times extrapolate: {what.split()[0]} outside {limits}")


def take_sample(replicas: list[Replica], now: int) -> Sample:
    """What this moment looks like, over all replicas."""
    held: tuple[int, int, int, int] = tuple(np.array([r.held_tokens() for r in replicas]).sum(0).tolist())
    engines = [r.engine for r in replicas]
    return Sample(
        now / TICKS_PER_S,
        sum(e.num_running for e in engines),
        sum(r.num_waiting for r in replicas),
        sum(r.num_blocks - r.engine.num_free_blocks for r in replicas),
        sum(e.num_cached_free_blocks for e in engines),
        *held,
        sum(r.totals.preemptions for r in replicas),
    )
