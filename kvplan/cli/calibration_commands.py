"""`kvplan calibrate`: measure a card or a live server, fit a profile, report its error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kvplan.calibrate.build import batches_beside, build
from kvplan.calibrate.card import measure_card
from kvplan.calibrate.outcome import pool_checks, skipped_points
from kvplan.calibrate.server.client import CacheFacts, Server
from kvplan.calibrate.server.loads import measure_server
from kvplan.calibrate.session import Report, check_writable, no_report
from kvplan.cli.options import print_json
from kvplan.cli.profile_report import report_lines
from kvplan.cli.progress import Progress
from kvplan.errors import KvplanError
from kvplan.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.profile import Profile, write_profile

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
    budget_s: float = 0.0,
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
    budget_s
        Seconds that measuring a card may take: each stage gets its share, points all over its range first; 0: no limit.
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
    if not budget_s >= 0:
        raise KvplanError(f"--budget-s {budget_s}: seconds, from 0 up (0: no limit)")
    if measurements.resolve() == output.resolve():
        raise KvplanError(
            f"--measurements and --output both name {output}; write the profile to another file"
        )
    check_writable(output)
    if server:
        facts = _measure_server(server, model, gpu, measurements, rounds or 3, report)
    else:
        grid = "quick" if quick and device == "cuda" else ""
        measure_card(measurements, device, grid, rounds=rounds, force=force, budget_s=budget_s, report=report)
    profile = build([measurements], name=output.stem)
    write_profile(profile, output)
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


def _reporter() -> Report:
    """A bar that starts anew for each stage; it shows the time left."""
    stages: dict[int, Progress] = {}

    def report(what: str, done: int, total: int) -> None:
        progress = stages.setdefault(total, Progress(noun="points"))
        progress(done, total)
        if what and sys.stderr.isatty():
            print(f" {what:<24}", end="", file=sys.stderr, flush=True)

    return report


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
