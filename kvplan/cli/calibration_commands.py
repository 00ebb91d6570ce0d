"""`kvplan calibrate` and `fit`: measure a card or a live server, fit a profile of a file, report its error."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kvplan.calibrate.build import Source, batches_beside, build
from kvplan.calibrate.card import measure_card
from kvplan.calibrate.fit.predictions import predictions, thinned
from kvplan.calibrate.measurements import read_measurements
from kvplan.calibrate.outcome import pool_checks, skipped_points
from kvplan.calibrate.server.client import CacheFacts, Server
from kvplan.calibrate.server.loads import measure_server
from kvplan.calibrate.session import Report, batches_path, check_writable, no_report
from kvplan.calibrate.two_cards import coefficient_ratios, time_ratios
from kvplan.cli.options import SWITCH, print_json
from kvplan.cli.plots import check_plot, write_plot
from kvplan.cli.profile_report import comparison_lines, report_lines
from kvplan.cli.progress import shown_stages
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import check_outputs, refuse_same_file
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.profile import Profile, load_profile, write_profile
from kvplan.profiles.timing_profile import FIELDS, check_name

MOST_POINTS = 4800
"""Dots of a picture."""


def calibrate_command(
    *,
    device: Literal["cuda", "cpu"] = "cuda",
    quick: Annotated[bool, SWITCH] = False,
    measurements: Path = Path("measurements.jsonl"),
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("profile.json"),
    server: str = "",
    model: str = "",
    gpu: str = "",
    rounds: int = 0,
    budget_s: float = 0.0,
    plot: Path | None = None,
    force: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Measure real KV allocation and step times, then fit a profile with a held-out error.

    Raw measurements are appended as they come: run it again after an interruption and it goes on where it was.

    For example:

        kvplan calibrate --budget-s 600 --measurements card.jsonl -o card.json

        kvplan calibrate --server http://localhost:8000 --model Qwen/Qwen3-8B --gpu h100

    Parameters
    ----------
    device
        cuda, or cpu with tiny shapes (to try the procedure, or for a CPU engine).
    quick
        About 2 minutes instead of about 10: one KV dtype, fewer shapes, one round.
    measurements
        Raw rows go here (JSONL, see calibration/README.md).
    output
        The fitted profile.
    server
        Measure a live vLLM at this address instead: http://host:port.
    model
        What that server serves: a bundled name or a config.json; default: the name it reports.
    gpu
        The card that the server runs on: a name of `kvplan gpus`, or cpu.
    rounds
        How often each point is measured, on different minutes; default: once, a server's loads three times.
    budget_s
        Seconds that measuring a card may take: each stage gets its share, points all over its range first; 0: no limit.
    plot
        Write predicted over measured times of every fitted row here (.svg).
    force
        Measure although another process computes on the card.
    quiet
        No progress on stderr.
    json
        One JSON document on stdout.
    """
    facts = None
    if rounds < 0:
        raise KvplanError(f"--rounds {rounds}: a number from 1 up, or 0 for the default")
    if not budget_s >= 0:
        raise KvplanError(f"--budget-s {budget_s}: seconds, from 0 up (0: no limit)")
    outputs = {"--measurements": measurements, "--output": output, "--plot": plot}
    refuse_same_file([model or None, batches_path(measurements)], outputs)
    check_writable(output)
    check_plot(plot)
    check_outputs([], {"--plot": plot})
    with nullcontext(no_report) if quiet else shown_stages("points") as report:
        if server:
            facts = _measure_server(server, model, gpu, measurements, rounds or 3, report)
        else:
            grid = "quick" if quick and device == "cuda" else ""
            measure_card(
                measurements, device, grid, rounds=rounds, force=force, budget_s=budget_s, report=report
            )
    profile = build([measurements], name=output.stem)
    write_profile(profile, output)
    _draw(profile, [measurements], plot)
    if json:
        print_json(document(profile, measurements, facts))
    else:
        print("\n".join([*report_lines(profile, measurements), *server_lines(facts)]))
        print(f"\nmeasurements: {measurements}\nprofile: {output}")
    return 0


def _measure_server(
    url: str, model: str, gpu: str, measurements: Path, rounds: int, report: Report
) -> CacheFacts:
    if not gpu:
        raise KvplanError("--server needs --gpu: the card it runs on (a name of `kvplan gpus`, or cpu)")
    if gpu != "cpu":
        gpu = get_gpu(gpu).name
    name = model or Server(url).facts().model
    return measure_server(measurements, url, load_model(name), gpu, rounds, report)


def document(profile: Profile, measured: Path, facts: CacheFacts | None) -> dict[str, Any]:
    """The report as one JSON document."""
    timing, batches = profile.timing, batches_beside(measured, profile)
    assert timing is not None
    return {
        "schema_version": 1,
        "profile": profile.name,
        "gpu": profile.gpu,
        "engine": profile.engine,
        "source": profile.source,
        "server": facts._asdict() if facts else None,
        "kv_pools": [pool._asdict() | {"error": pool.error} for pool in pool_checks(measured)],
        "coefficients": timing.coefficients,
        "assumed": timing.assumed,
        "errors": [error.model_dump() for error in timing.errors],
        "ranges": timing.ranges,
        "batches": batches._asdict() | {"errors": [error.model_dump() for error in batches.errors]}
        if batches
        else None,
        "memory": profile.memory.model_dump(mode="json") if profile.memory else None,
        "skipped": skipped_points(measured),
    }


def server_lines(facts: CacheFacts | None) -> list[str]:
    """The KV blocks that a live server says it has; nothing without one."""
    if facts is None:
        return []
    tokens = facts.num_gpu_blocks * facts.block_size
    return [
        f"\nKV blocks: {facts.num_gpu_blocks:,} of {facts.block_size} tokens ({tokens:,} tokens), as the server says"
    ]


def fit_command(
    *files: Path,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    from_: Annotated[Source, Parameter(name="--from")] = "jsonl",
    gpu: str = "",
    engine: str = "vllm",
    name: str = "",
    assume: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    fill: str = "",
    plot: Path | None = None,
    compare: Path | None = None,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Fit step-time coefficients to measurements, with held-out errors and bootstrap draws.

    For example:

        kvplan fit measurements.jsonl -o my-card.json --plot my-card.svg

    Parameters
    ----------
    files
        Measurement files (JSONL, see calibration/README.md), or the tables that --from names.
    output
        Write the profile here.
    from_
        jsonl: kvplan's own format; aiconfigurator: the installed package's kernel tables; llmservingsim: its parquet
        tables of one card; splitwise: its perf_model.csv.
    gpu
        The card: a name of the GPU table, or of aiconfigurator (h200_sxm). Its data sheet bounds the rates.
    engine
        vllm, tensorrt-llm or sglang, with an optional @version: which kernel tables to read, whose overheads
        memory rows teach.
    name
        The profile's name; default: card, engine and version.
    assume
        NAME=VALUE: state a coefficient instead of fitting it (repeat for several); inf for a rate: no cost.
    fill
        A profile of the same card that lends formats these measurements lack.
    plot
        Write predicted over measured times of every fitted row here (.svg); of kvplan's own format.
    compare
        Measurements of another card of the same kind: print the ratios of times and coefficients, and where they differ
        beyond both errors.
    json
        The profile as one JSON document on stdout.
    """
    inputs = [*files, fill or None, compare]
    refuse_same_file(inputs, {"--output": output, "--plot": plot})
    check_outputs(inputs, {"--output": output}, makes_folders=True)
    check_outputs(inputs, {"--plot": plot})
    if plot is not None or compare is not None:
        _need_rows(files, from_)
    check_plot(plot)
    profile = build(
        files,
        source=from_,
        gpu=gpu,
        engine=engine,
        name=name,
        assume=read_assumptions(assume),
        fill=load_profile(fill) if fill else None,
    )
    if output is not None:
        write_profile(profile, output)
    _draw(profile, files, plot)
    if compare is not None:
        other = build([compare], gpu=gpu, engine=engine, assume=read_assumptions(assume))
        assert profile.timing is not None
        assert other.timing is not None
        times, fitted = time_ratios(files[0], compare), coefficient_ratios(profile.timing, other.timing)
        if json:
            print_json({"times": [t._asdict() for t in times], "coefficients": [c._asdict() for c in fitted]})
        else:
            print("\n".join(comparison_lines(times, fitted)))
    elif json:
        print_json(profile.model_dump(mode="json"))
    else:
        measured = files[0] if from_ == "jsonl" and len(files) == 1 else None
        print("\n".join(report_lines(profile, measured)))
        if output is not None:
            print(f"\nwritten: {output}")
    return 0


def _draw(profile: Profile, files: Sequence[Path], plot: Path | None) -> None:
    """Every fitted row, predicted beside measured; as many as one can tell apart."""
    if plot is not None and profile.timing is not None:
        rows = thinned(predictions(read_measurements(files), profile.timing), MOST_POINTS)
        write_plot(plot, "fit", [row._asdict() for row in rows])


def _need_rows(files: tuple[Path, ...], source: Source) -> None:
    """--plot and --compare go through measured rows."""
    if source != "jsonl" or len(files) != 1:
        raise KvplanError("--plot and --compare take one measurement file (JSONL, see calibration/README.md)")


def read_assumptions(pairs: tuple[str, ...]) -> dict[str, tuple[float, str]]:
    """Read NAME=VALUE pairs."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not equals or not name or not number >= 0:
            raise KvplanError(
                f"--assume {pair!r}: write NAME=VALUE with a value from 0 up, e.g. step.step_s=0"
            )
        if "." in name:
            try:
                check_name(name)
            except ValueError as error:
                raise KvplanError(f"--assume: {error}") from None
        elif not any(name in fields for fields in FIELDS.values()):
            every = {field for fields in FIELDS.values() for field in fields}
            raise KvplanError(f"--assume: no coefficient has a field {name!r}{did_you_mean(name, every)}")
        found[name] = (number, "stated by the user")
    return found
