"""From a finished run's replicas, records and samples to its `Result`."""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.ground.units import TICKS_PER_S
from kvplan.simulation.deploy import Setup
from kvplan.simulation.diagnosis import advise, limited_by
from kvplan.simulation.energy import energy
from kvplan.simulation.metrics import Sample
from kvplan.simulation.offload_figures import offload_figures
from kvplan.simulation.pricing import Price, find_grid, find_price
from kvplan.simulation.replica_stats import Totals
from kvplan.simulation.result import EXTRAPOLATES, Pool, Result, total
from kvplan.simulation.run import Run
from kvplan.simulation.saturation import load_share, near_saturation
from kvplan.timing.step import StepShape
from kvplan.workload.classes import Slo


def collect(run: Run, slos: dict[str, Slo], num_requests: int, is_open_loop: bool) -> Result:
    """Return the result of a run, summed up over its replicas.

    `slos` are its classes' targets; requests of an open loop come whoever is served.
    """
    totals = total([replica.totals for replica in run.replicas])
    for replica in run.replicas:
        for note in replica.notes:
            run.note(note)
    _note_extrapolation(run, totals)
    fleets = run.fleets.values()
    gpus = [(fleet.setup, len(fleet.processes) * fleet.setup.num_gpus) for fleet in fleets]
    prices = {name: find_price(run.scenario, fleet.setup) for name, fleet in run.fleets.items()}
    result = Result(
        scenario=run.scenario,
        verdict=run.verdict,
        duration_s=run.now / TICKS_PER_S,
        records=run.records,
        samples=run.samples,
        totals=totals,
        pool=_pool(run, totals),
        itl=run.meter.seen_intervals(),
        engine_itl=run.meter.intervals(),
        api_server_load=_api_server_load(run),
        peak_output_throughput=run.meter.peak_tokens_per_s(),
        num_gpus=sum(n for _, n in gpus),
        usd_per_hour=sum(n * price.usd_per_hour for (_, n), price in zip(gpus, prices.values(), strict=True)),
        classes=list(slos),
        slos=list(slos.values()),
        num_requests=num_requests,
        modes=run.modes,
        sources=_sources(run, prices),
        notes=run.notes,
        caveats=tuple(dict.fromkeys(text for fleet in fleets for text in fleet.setup.caveats)),
        engines={name: f.setup.config.model_dump(mode="json") for name, f in run.fleets.items()},
    )
    result.offload = offload_figures(run, totals)
    result.copies = {r.id: r.copies.log for r in run.replicas if r.copies is not None and r.copies.log}
    result.file_jobs = {
        r.id: jobs
        for r in run.replicas
        if r.copies is not None and (jobs := [job for files in r.copies.files for job in files.log or ()])
    }
    result.energy = energy(list(fleets), run.records, result.duration_s)
    if is_open_loop and len(fleets) == 1:
        _tell_load(run, result)
    result.grid = find_grid(run.scenario)
    result.limited_by = limited_by(result, is_open_loop)
    result.advice = advise(result)
    return result


def _pool(run: Run, totals: Totals) -> Pool:
    main = run.fleets[""]
    capacity = sum(r.num_blocks * (r.totals.busy_ticks + r.totals.stalled_ticks) for r in run.replicas)
    return Pool(
        num_blocks=main.setup.config.num_gpu_blocks - 1,
        block_size=main.setup.config.block_size,
        bytes_per_token=main.setup.kv_bytes_per_token,
        peak_fraction=max(r.totals.peak_used_blocks / r.num_blocks for r in run.replicas),
        mean_fraction=totals.used_block_ticks / (capacity or 1),
        block_s=totals.used_block_ticks / TICKS_PER_S,
        replicas=len(main.decode),
    )


def _tell_load(run: Run, result: Result) -> None:
    """How near the load is to saturation, and what that means where it is near."""
    fleet = run.fleets[""]
    result.load_share = load_share(fleet, run.records, run.source.span_s)
    text = near_saturation(result.load_share, fleet.setup.doubt) if result.load_share is not None else ""
    if text:
        run.note(text)


def _api_server_load(run: Run) -> float | None:
    """Work that came to the API servers, as a share of their time while the run lasted; None where they take none."""
    queues = [replica.api for replica in run.replicas if replica.api is not None]
    return sum(queue.asked for queue in queues) / (len(queues) * run.now) if queues and run.now else None


def _sources(run: Run, prices: Mapping[str, Price]) -> dict[str, str]:
    """Where figures come from; those of further models carry their names."""
    return {
        f"{name}: {key}" if name else key: text
        for name, fleet in run.fleets.items()
        for key, text in (fleet.setup.sources | {"price": prices[name].source}).items()
    }


def _note_extrapolation(run: Run, totals: Totals) -> None:
    """Say where the run left what its profile measured, as the samples saw it; of a single replica only.

    Without samples the mean step stands for all.
    """
    if len(run.replicas) > 1:
        return
    setup = run.fleets[""].setup
    for shape in [_shape(s) for s in run.samples if s.running] or [_mean_shape(setup, totals)]:
        for phrase in setup.outside(shape) if shape.num_decodes else ():
            what, _, limits = phrase.partition(" outside ")
            run.note(f"{EXTRAPOLATES}: {what.split()[0]} outside {limits}")


def _shape(sample: Sample) -> StepShape:
    held = sample.prompt_tokens + sample.shared_tokens + sample.thinking_tokens + sample.answer_tokens
    return StepShape(sample.running, sample.running, held)


def _mean_shape(setup: Setup, totals: Totals) -> StepShape:
    busy = totals.busy_ticks or 1
    running = round(totals.batch_ticks / busy)
    return StepShape(running, running, round(totals.used_block_ticks / busy * setup.config.block_size))
