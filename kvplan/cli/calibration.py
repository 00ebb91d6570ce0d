"""`kvplan calibrate`: measure a card or a live server, fit a profile, report its error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kvplan.calibrate.card import batches_of, fit_session, measure_server, pool_checks, skipped_points
from kvplan.calibrate.fit.batches import Batches
from kvplan.calibrate.measure.stages import measure_card
from kvplan.calibrate.server.client import CacheFacts
from kvplan.calibrate.session import Report, check_writable, no_report
from kvplan.cli.batches import batch_lines, error_line
from kvplan.cli.options import print_json
from kvplan.cli.progress import Progress
from kvplan.errors import KvplanError
from kvplan.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.profile import Profile

SWITCH = Parameter(negative="")


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
    force: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Measure real KV allocation and step times, then fit a profile with a held-out error.

    Raw measurements are appended as they come: run it again after an interruption and it goes on where it was.

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
    force
        Measure although another process computes on the card.
    quiet
        No progress on stderr.
    json
        One JSON document on stdout.
    """
    report = no_report if quiet else _reporter()
    facts = None
    if rounds < 0:
        raise KvplanError(f"--rounds {rounds}: a number from 1 up, or 0 for the default")
    if measurements.resolve() == output.resolve():
        raise KvplanError(
            f"--measurements and --output both name {output}; write the profile to another file"
        )
    check_writable(output)
    if server:
        facts, session = _server(server, model, gpu, measurements, rounds or 3, report)
    else:
        grid = "quick" if quick and device == "cuda" else ""
        session = measure_card(measurements, device, grid, rounds=rounds, force=force, report=report)
    profile = fit_session(session, output)
    batches = batches_of(session, profile)
    if json:
        print_json(
            document(profile, pool_checks(session), facts, batches) | {"skipped": skipped_points(session)}
        )
    else:
        report_of = report_lines(profile, pool_checks(session), facts)
        print("\n".join([*report_of, *batch_lines(batches), *skipped_lines(skipped_points(session))]))
        print(f"\nmeasurements: {measurements}\nprofile: {output}")
    return 0


def _server(
    url: str, model: str, gpu: str, measurements: Path, rounds: int, report: Report
) -> tuple[CacheFacts, Any]:
    if not gpu:
        raise KvplanError("--server needs --gpu: the card it runs on (a name of `kvplan gpus`, or cpu)")
    from kvplan.calibrate.server.client import Server

    if gpu != "cpu":
        gpu = get_gpu(gpu).name
    name = model or Server(url).facts().model
    session, facts = measure_server(measurements, url, load_model(name), gpu, rounds, report)
    return facts, session


def _reporter() -> Report:
    """A bar that starts anew for each stage; it shows the time left."""
    stages: dict[int, Progress] = {}

    def report(what: str, done: int, total: int) -> None:
        progress = stages.setdefault(total, Progress(noun="points"))
        progress(done, total)
        if what and sys.stderr.isatty():
            print(f" {what:<24}", end="", file=sys.stderr, flush=True)

    return report


def document(
    profile: Profile, pools: list[Any], facts: CacheFacts | None, batches: Batches | None = None
) -> dict[str, Any]:
    """The report as one JSON document."""
    timing = profile.timing
    return {
        "schema_version": 1,
        "profile": profile.name,
        "gpu": profile.gpu,
        "engine": profile.engine,
        "source": profile.source,
        "server": facts._asdict() if facts else None,
        "kv_pools": [pool._asdict() | {"error": pool.error} for pool in pools],
        "coefficients": timing.coefficients if timing else {},
        "assumed": timing.assumed if timing else {},
        "errors": [error.model_dump() for error in timing.errors] if timing else [],
        "ranges": timing.ranges if timing else {},
        "batches": batches._asdict() | {"errors": [error.model_dump() for error in batches.errors]}
        if batches
        else None,
    }


def report_lines(profile: Profile, pools: list[Any], facts: CacheFacts | None) -> list[str]:
    """The report as text: memory against the formula, then errors on points that the fit had not seen."""
    lines = [f"{profile.source}"]
    if facts:
        lines += [
            f"\nKV blocks: {facts.num_gpu_blocks:,} of {facts.block_size} tokens "
            f"({facts.num_gpu_blocks * facts.block_size:,} tokens), as the server says"
        ]
    if pools:
        lines += [
            f"\n{'KV pool (layers x heads x dim)':<34}{'formula':>10}{'measured':>12}{'error':>9}   bytes per token"
        ]
        lines += [
            f"{f'{p.num_layers} x {p.num_kv_heads} x {p.head_dim} {p.kv_dtype}':<42}{p.formula_bytes:>10,}"
            f"{p.measured_bytes:>12,.1f}{p.error:>9.3%}"
            for p in pools
        ]
    if profile.timing is None:
        return lines
    lines += [f"\n{'held-out error':<14}{'points':>8}{'median':>9}{'p95':>8}{'bias':>8}   which"]
    lines += [error_line(error) for error in profile.timing.errors]
    if profile.timing.assumed:
        lines += ["\nnot measured, assumed:"]
        lines += [f"  {name}: {why}" for name, why in profile.timing.assumed.items()]
    return lines


def skipped_lines(skipped: dict[str, int]) -> list[str]:
    """What was not measured and why."""
    lines = [f"  {count:>4} x {why}" for why, count in sorted(skipped.items())]
    return ["\nskipped:", *lines] if lines else []
