"""`kvplan compare`, `sweep`, `recommend`: strategies on the same problems, points of a grid, ranked deployments."""

from __future__ import annotations

import csv as csv_module
import sys
from math import inf
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvplan.cli.options import SWITCH, price_file, print_json
from kvplan.cli.plots import check_plot, check_report, write_plot, write_report
from kvplan.cli.progress import shown_progress
from kvplan.cli.terminal import show
from kvplan.ground.errors import DoesNotFit, KvplanError
from kvplan.ground.files import check_outputs, safe_cell, write_whole
from kvplan.ground.tables import counted
from kvplan.scenario.schema import load_scenario
from kvplan.search.allocation import Price, around, equalise, with_strategies
from kvplan.search.allocation import frontier as compare_frontier
from kvplan.search.comparison import compare
from kvplan.search.execution import Execution, default_workers
from kvplan.search.grid import named_files
from kvplan.search.recommending import recommend
from kvplan.search.strategy_table import csv_text, needs_api, pick_columns
from kvplan.search.sweep_file import HASH
from kvplan.search.sweeping import Sweep, sweep_rows
from kvplan.simulation.pricing import find_apis
from kvplan.workload.expectation import MAX_DRAWS, PRECISION
from kvplan.workload.population import Over


def compare_command(
    scenario: str,
    /,
    *,
    set: tuple[str, ...] = (),
    prices: Path | None = None,
    robust: Annotated[bool, SWITCH] = False,
    no_range: Annotated[bool, SWITCH] = False,
    precision: float = PRECISION,
    max_draws: int = MAX_DRAWS,
    over: Over = "problems",
    equal: Price | None = None,
    at: float | None = None,
    frontier: Annotated[bool, SWITCH] = False,
    deadline: float | None = None,
    max_dollars_per_hour: float | None = None,
    api: str | None = None,
    requests_per_day: float = 100_000,
    columns: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    csv: Path | None = None,
    report: Path | None = None,
    plot: Path | None = None,
    json: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
) -> int:
    """Compare test-time strategies: accuracy with its interval, latency, KV and cost per correct answer.

    For example:

        kvplan compare strategy_best_of_n --precision 1 --columns main tokens

        kvplan compare strategy_beam --equal tokens --frontier

    Parameters
    ----------
    scenario
        A YAML file with `problems:` and its `strategies:`, or a bundled scenario's name.
    set
        Change a key, e.g. --set problems.num_problems=50; may be repeated.
    prices
        A YAML file of GPU prices and grid factors (pricing.file), before the bundled ones.
    robust
        Choose by the slow end of what steps may take.
    no_range
        Do not simulate the ends of what step times may be: a third of the time, no ranges.
    precision
        Points on each side that accuracies are to be known to, 95 %.
    max_draws
        Branches to draw at most for that, all strategies together.
    over
        What accuracies' intervals are over: problems like these, or draws on just these problems.
    equal
        Solve each strategy's knob (N, beam width, a budget) so that a problem takes as much with all.
    at
        How much: tokens, GPU-seconds, dollars or seconds; without it what the dearest takes as stated.
    frontier
        Say who leads at which price, over curves of each strategy at a quarter to four times its knob.
    deadline
        Seconds by which 99 in 100 answers must be there; then knobs are chosen too, a quarter to four times as stated.
    max_dollars_per_hour
        Dollars that the GPUs may cost; then knobs are chosen too.
    api
        A hosted model to stand beside (problems.api_model): the same tokens at its price, the hidden ones among them.
    requests_per_day
        That a price file's routes are billed for.
    columns
        Shown instead: keys of --json's rows, or main, speed, tokens, kv, quality, energy, api, sampling, ranges, all.
    csv
        Write every figure of every strategy to this file.
    report
        Write one HTML page: choice, picture, table, how sure, and every hosted model's bill beside one's own.
    plot
        Draw accuracy against latency: .svg, .png or .html.
    json
        One JSON document on stdout.
    quiet
        No progress on stderr.
    """
    check_plot(plot)
    check_report(report)
    pick_columns(columns)
    limits = {
        "deadline": deadline,
        "max-dollars-per-hour": max_dollars_per_hour,
        "requests-per-day": requests_per_day,
    }
    for name, value in limits.items():
        if value is not None and not 0 < value < inf:
            raise KvplanError(f"--{name} {value:g}: must be a number above 0")
    beside = [f"problems.api_model={api}"] if api else []
    loaded = load_scenario(scenario, [*set, *beside, *price_file(prices)])
    check_outputs([scenario, *named_files(loaded)], {"--csv": csv, "--report": report, "--plot": plot})
    if needs_api(columns) and (loaded.problems is None or not loaded.problems.api_model):
        raise KvplanError(f"--columns api: say which, --api NAME; there are {', '.join(find_apis(loaded))}")
    if at is not None and equal is None:
        raise KvplanError("--at is a price: say --equal tokens, gpu-seconds, dollars or latency")
    told = loaded
    if deadline is not None:
        told = told.model_copy(update={"slo": told.slo.model_copy(update={"e2el_ms": 1000 * deadline})})
    brought = equalise(told, equal, at) if equal else None
    if brought is not None:
        if not brought.reached:
            raise DoesNotFit(f"no strategy can be had at that price; {brought}")
        told = with_strategies(told, brought.reached)
    elif deadline is not None or max_dollars_per_hour is not None:
        told = around(told)
    with shown_progress("strategies", quiet=quiet) as progress:
        found = compare(
            told, ranges=not no_range, robust=robust, precision=precision, max_draws=max_draws, over=over,
            max_dollars_per_hour=inf if max_dollars_per_hour is None else max_dollars_per_hour,
            requests_per_day=requests_per_day,
            progress=progress,
        )  # fmt: skip
    found.equal = brought
    if frontier:
        found.frontier = compare_frontier(loaded, equal or "tokens", precision=precision, max_draws=max_draws)
    write_plot(plot, "compare", found)
    write_report(report, found, "comparison_report:comparison_html")
    if csv is not None:
        write_whole(csv, csv_text(found.rows))
    if json:
        print_json(found.to_dict())
    else:
        show(found.text(columns).splitlines())
    if found.interrupted:
        print("kvplan: interrupted; the strategies that were done are shown", file=sys.stderr)
    return found.exit_code


def recommend_command(
    scenario: str,
    /,
    *,
    over: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    set: tuple[str, ...] = (),
    rate: float | None = None,
    users: int | None = None,
    deadline: float | None = None,
    spare: int | None = None,
    max_gpus: int | None = None,
    max_dollars_per_hour: float | None = None,
    day: str | None = None,
    interconnect: str | None = None,
    prices: Path | None = None,
    robust: Annotated[bool, SWITCH] = False,
    no_range: Annotated[bool, SWITCH] = False,
    workers: int | None = None,
    backend: str = "local",
    address: str | None = None,
    force: Annotated[bool, SWITCH] = False,
    plot: Path | None = None,
    json: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
) -> int:
    """Recommend deployments: which GPUs, flags and copies keep the targets at the lowest cost.

    For example:

        kvplan recommend recommend_qwq_500_users --users 300

        kvplan recommend chat --rate 20 --over gpu=h100,h200 engine.tensor_parallel_size=1,2 --plot chat.svg

    Parameters
    ----------
    scenario
        A YAML file with `slo:` and `search:`, or a bundled scenario's name.
    over
        A key and its values, e.g. --over gpu=h100,h200 engine.tensor_parallel_size=1,2,4; added to search.over.
    set
        Change a key, as in kvplan simulate; may be repeated.
    rate
        Requests per second to carry. Without rate, users and deadline: as much as fits.
    users
        People to carry, each asking again once answered.
    deadline
        Seconds by which all requests must be done.
    spare
        Copies beyond those needed; 1 is the n+1 rule.
    max_gpus
        GPUs allowed in all.
    max_dollars_per_hour
        Dollars allowed in all, spares included.
    day
        Load over a day, a bundled profile: reasoning-api, office-hours.
    interconnect
        What joins the GPUs: pcie4, pcie5, nvlink or ib, also with numbers, e.g. pcie5,gb_s=16,latency_us=20.
    prices
        A YAML file of GPU prices and grid factors (pricing.file), before the bundled ones.
    robust
        Rank by what the slow end of what steps may take costs.
    no_range
        Do not simulate the ends of what step times may be; ranges then follow the steps' in proportion.
    workers
        Processes; one per core by default.
    backend
        local, or ray.
    address
        Of a Ray cluster; without it one is started on this machine.
    force
        Allow more candidates than are sensible.
    plot
        Draw tokens a second per user against those per GPU: .svg, .png or .html.
    json
        One JSON document on stdout.
    quiet
        No progress on stderr.
    """
    check_plot(plot)
    check_outputs([scenario, prices], {"--plot": plot})
    said = {
        "rate": rate,
        "users": users,
        "deadline_s": deadline,
        "spare": spare,
        "max_gpus": max_gpus,
        "max_dollars_per_hour": max_dollars_per_hour,
        "day": day,
    }
    flags = [f"search.{key}={value}" for key, value in said.items() if value is not None]
    flags += [f"interconnect={interconnect}"] if interconnect else []
    flags += price_file(prices)
    flags += ["search.robust=true"] if robust else []
    flags += ["search.ranges=false"] if no_range else []
    with shown_progress("candidates", quiet=quiet) as progress:
        found = recommend(
            scenario, over, overrides=[*set, *flags], backend=backend, address=address, force=force,
            workers=workers, progress=progress,
        )  # fmt: skip
    write_plot(plot, "recommend", found)
    if json:
        print_json(found.to_dict())
    else:
        show(found.parts())
    return found.exit_code


def sweep_command(
    scenario: str,
    /,
    *,
    over: Annotated[tuple[str, ...], Parameter(consume_multiple=True)],
    set: tuple[str, ...] = (),
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    sample: int | None = None,
    seed: int = 0,
    prices: Path | None = None,
    no_range: Annotated[bool, SWITCH] = False,
    workers: int | None = None,
    backend: str = "local",
    address: str | None = None,
    force: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
) -> int:
    """Simulate every combination of some keys' values; one row each, CSV on stdout or into a file.

    For example:

        kvplan sweep chat --over gpu=h100,h200 engine.max_num_seqs=64,128 -o rows.csv

    Parameters
    ----------
    scenario
        A YAML file, or a bundled scenario's name.
    over
        A key and its values, e.g. --over gpu=h100,h200 engine.max_num_seqs=64,128; several may follow.
    set
        Change a key for all points, as in kvplan simulate; may be repeated.
    output
        Add each row to this .csv, .jsonl or .parquet file as it finishes; points found there are not run again.
    sample
        Run this many combinations, drawn at random, instead of all.
    seed
        Draws the sample; the scenario's own seeds draw the load, the same for every point.
    prices
        A YAML file of GPU prices and grid factors (pricing.file), before the bundled ones.
    no_range
        Do not simulate the ends of what step times may be: a third of the time; _low and _high stay empty.
    workers
        Processes; one per core by default.
    backend
        local, or ray.
    address
        Of a Ray cluster, host:port or ray://host:port; without it one is started on this machine.
    force
        Run more points than are sensible.
    json
        One JSON document on stdout.
    quiet
        No progress on stderr.
    """
    check_outputs([scenario, prices], {"-o": output})
    with shown_progress("points", quiet=quiet) as progress:
        found = sweep_rows(
            scenario, over, overrides=[*set, *price_file(prices)], sample=sample, seed=seed, output=output, force=force,
            ranges=not no_range, progress=progress,
            execution=Execution(backend, default_workers() if workers is None else workers, address),
        )  # fmt: skip
    plain = [{key: value for key, value in row.items() if key != HASH} for row in found.rows]
    if json:
        print_json({"schema_version": 1, "over": list(over), "points": plain})
    elif output is None and plain:
        _print_csv(plain)
    for text in _remarks(found, output):
        print(f"kvplan: {text}", file=sys.stderr)
    if found.interrupted:
        return 130
    return int(all(row["error"] for row in found.rows))


def _remarks(found: Sweep, output: Path | None) -> list[str]:
    """What the rows do not say themselves."""
    said = []
    if found.num_found:
        said.append(f"{found.num_found:,} of {counted(found.num_points, 'point')} were in {output} already")
    failed = [row["error"] for row in found.rows if row["error"]]
    if failed:
        said.append(
            f"{len(failed):,} of {counted(len(found.rows), 'point')} have no figures; the first: {failed[0]}"
        )
    if found.interrupted:
        again = f", in {output}; the same command goes on from there" if output else ""
        said.append(
            f"interrupted; {len(found.rows):,} of {counted(found.num_points, 'point')} are finished{again}"
        )
    return said


def _print_csv(rows: list[dict[str, Any]]) -> None:
    out = csv_module.writer(sys.stdout, lineterminator="\n")
    out.writerow(rows[0])
    out.writerows(["" if v is None else safe_cell(v) for v in row.values()] for row in rows)
