"""`kvplan simulate`: a scenario, what happened, as text, JSON, records and a timeline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvplan.cli.options import SWITCH, price_file, print_json
from kvplan.cli.plots import check_plot, write_plot
from kvplan.cli.progress import shown_progress
from kvplan.cli.sparkline import kv_lines
from kvplan.cli.terminal import show
from kvplan.engines.kv_transfer import offloading_gib
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import check_outputs
from kvplan.scenario import schema as scenarios
from kvplan.search.grid import named_files
from kvplan.simulation.bench_report import bench_text
from kvplan.simulation.block_map import BlockMap
from kvplan.simulation.in_full import simulate
from kvplan.simulation.observer import NO_OBSERVER, Observer
from kvplan.simulation.pricing import check_prices
from kvplan.simulation.records import check_target, write_records
from kvplan.simulation.result import Result
from kvplan.simulation.trace import write_trace


def simulate_command(
    scenario: str,
    /,
    *,
    set: Annotated[tuple[str, ...], SWITCH] = (),
    records: Path | None = None,
    trace: Path | None = None,
    plot: Path | None = None,
    spark: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
    step_by_step: Annotated[bool, SWITCH] = False,
    no_records: Annotated[bool, SWITCH] = False,
    no_range: Annotated[bool, SWITCH] = False,
    skip_bad_rows: Annotated[bool, SWITCH] = False,
    dump_scenario: Annotated[bool, SWITCH] = False,
    num_prompts: int | None = None,
    request_rate: float | None = None,
    burstiness: float | None = None,
    max_concurrency: int | None = None,
    seed: int | None = None,
    goodput: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    interconnect: str | None = None,
    prices: Path | None = None,
) -> int:
    """Simulate a scenario: throughput, latencies, preemptions, KV occupancy.

    With `engine.kv_offloading_size` the same requests are simulated without the tier too, and both are shown.

    For example:

        kvplan simulate long_thinking --set engine.kv_cache_dtype=fp8

        kvplan simulate chat --request-rate 20 --num-prompts 1000 --goodput ttft:500 tpot:30

        kvplan simulate my.yaml --json --records out.csv --trace timeline.json

    Parameters
    ----------
    scenario
        A YAML file, or a bundled scenario's name.
    set
        Change a key, e.g. --set engine.max_num_seqs=64; may be repeated.
    records
        Write one row per request: .csv, .jsonl or .parquet.
    trace
        Write a Chrome trace for Perfetto, copies to and from a tier included; with --step-by-step it also says who owns
        which blocks.
    plot
        Draw KV over time: .svg, .png or .html.
    spark
        KV over time as a line of blocks below the figures, also where no terminal reads.
    json
        One JSON document on stdout.
    quiet
        No progress on stderr.
    step_by_step
        Simulate every step instead of leaping; slower, the same results.
    no_records
        Keep only what the report needs of each request.
    no_range
        Do not simulate the ends of what step times may be; figures then have no range.
    skip_bad_rows
        Leave damaged rows of a trace out and count them.
    dump_scenario
        Print the scenario that these flags stand for, and stop.
    num_prompts
        Number of requests (as in vllm bench serve).
    request_rate
        Requests per second; inf = all at once.
    burstiness
        1 = Poisson, below 1 burstier.
    max_concurrency
        A closed loop of so many clients.
    seed
        Seed of the workload.
    goodput
        Targets such as ttft:2000 tpot:50 e2el:60000, milliseconds.
    interconnect
        What joins the GPUs: pcie4, pcie5, nvlink or ib, also with numbers, e.g. pcie5,gb_s=16,latency_us=20.
    prices
        A YAML file of GPU prices and grid factors (pricing.file), before the bundled ones.
    """
    flags = _bench_flags(num_prompts, request_rate, burstiness, max_concurrency, seed, goodput)
    if skip_bad_rows:
        flags.append("workload.trace.skip_bad_rows=true")
    flags += price_file(prices)
    if interconnect:
        flags.append(f"interconnect={interconnect}")
    loaded = scenarios.load_scenario(scenario, [*set, *flags])
    if dump_scenario:
        print(scenarios.dump_scenario(loaded), end="")
        return 0
    if no_records and (records or trace):
        raise KvplanError("--no-records keeps no rows to write; drop it, or drop --records and --trace")
    check_outputs([scenario, *named_files(loaded)], {"--records": records, "--trace": trace, "--plot": plot})
    check_plot(plot)
    check_prices([loaded])
    if records:
        check_target(records)
    blocks = BlockMap()
    observer = _onlooker(loaded, blocks if step_by_step else None) if trace else NO_OBSERVER
    with shown_progress("requests", quiet=quiet) as progress:
        result = simulate(
            loaded, ranges=not no_range, step_by_step=step_by_step, progress=progress,
            keep_records=not no_records, observer=observer,
        )  # fmt: skip
    if records:
        write_records(result.records, records)
    if trace:
        write_trace(result.records, result.samples, trace, blocks, result.copies, result.file_jobs)
    write_plot(plot, "simulate", result)
    if json:
        print_json(result.to_dict())
    else:
        show([bench_text(result), *_kv_lines(result, spark)])
    if result.verdict == "interrupted":
        print("kvplan: interrupted; the figures cover what was simulated so far", file=sys.stderr)
    return result.exit_code


def _kv_lines(result: Result, is_asked: bool) -> list[str]:
    """Blocks in use over time, of all pools together."""
    blocks = max(1, result.pool.num_blocks * result.pool.replicas)
    times = [sample.time_s for sample in result.samples]
    shares = [sample.used_blocks / blocks for sample in result.samples]
    return kv_lines(times, shares, is_asked=is_asked, pool=f"{result.pool_tokens:,} tokens")


def _onlooker(scenario: scenarios.Scenario, blocks: BlockMap | None) -> Observer:
    """Who notes what a trace shows beyond records and samples: owners of blocks, copies to and from a tier."""
    if blocks is not None:
        return Observer(on_sample=blocks.look, copies=True)
    has_tier = any(
        offloading_gib(d.engine.kv_offloading_size, d.engine.kv_transfer_config)
        for d in scenario.deployments.values()
    )
    return Observer(copies=True) if has_tier else NO_OBSERVER


def _bench_flags(
    num_prompts: int | None,
    request_rate: float | None,
    burstiness: float | None,
    max_concurrency: int | None,
    seed: int | None,
    goodput: tuple[str, ...],
) -> list[str]:
    """The load flags of `vllm bench serve` as scenario keys."""
    if request_rate is not None and max_concurrency is not None:
        raise KvplanError("--request-rate and --max-concurrency: an open or a closed loop, not both")
    if burstiness is not None and request_rate in (None, float("inf")):
        raise KvplanError("--burstiness needs a finite --request-rate")
    keys: dict[str, Any] = {"workload.num_requests": num_prompts, "workload.seed": seed}
    if request_rate == float("inf"):
        keys["workload.arrivals"] = "{kind: all_at_once}"
    elif request_rate is not None:
        keys["workload.arrivals"] = (
            f"{{kind: poisson, rate: {request_rate}, burstiness: {burstiness or 1.0}}}"
        )
    elif max_concurrency is not None:
        keys["workload.arrivals"] = f"{{kind: closed_loop, concurrency: {max_concurrency}}}"
    for target in goodput:
        name, colon, value = target.partition(":")
        if not colon or name not in ("ttft", "ttfvt", "tpot", "e2el"):
            raise KvplanError(
                f"--goodput {target}: write ttft:2000, ttfvt:, tpot: or e2el: with milliseconds"
            )
        keys[f"slo.{name}_ms"] = value
    return [f"{key}={value}" for key, value in keys.items() if value is not None]
