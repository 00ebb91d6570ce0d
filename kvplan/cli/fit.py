"""`kvplan fit`: measurements or published kernel tables in, a profile out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvplan.calibrate.build import Source, build
from kvplan.calibrate.fit.batches import check_batches
from kvplan.cli.batches import batch_lines
from kvplan.cli.options import print_json
from kvplan.errors import KvplanError, did_you_mean
from kvplan.gpu import get_gpu
from kvplan.profiles.profile import Profile, load_profile
from kvplan.profiles.timing_profile import FIELDS, check_name

SWITCH = Parameter(negative="")


def fit_command(
    *files: Path,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    from_: Annotated[Source, Parameter(name="--from")] = "jsonl",
    gpu: str = "",
    engine: str = "vllm",
    name: str = "",
    assume: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    fill: str = "",
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Fit step-time coefficients to measurements, with held-out errors and bootstrap draws.

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
        vllm, tensorrt-llm or sglang; which kernel tables to read.
    name
        The profile's name; default: card, engine and version.
    assume
        NAME=VALUE: state a coefficient instead of fitting it (repeat for several); inf for a rate: no cost.
    fill
        A profile of the same card that lends formats these measurements lack.
    json
        The profile as one JSON document on stdout.
    """
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
        write(profile, output)
    if json:
        print_json(profile.model_dump(mode="json"))
    else:
        print("\n".join([describe(profile), *batches_beside(files, profile)]))
        if output is not None:
            print(f"\nwritten: {output}")
    return 0


def batches_beside(files: tuple[Path, ...], profile: Profile) -> list[str]:
    """How well the profile tells the batches that lie beside a measurement file; nothing where there are none."""
    if profile.timing is None or len(files) != 1:
        return []
    try:
        card = get_gpu(profile.gpu)
    except KvplanError:  # a CPU, or a card that the table does not have
        card = None
    batches = check_batches(files[0], profile.timing, card)
    return batch_lines(batches)


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


def write(profile: Profile, path: Path) -> None:
    """Write a profile as JSON."""
    try:
        path.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise KvplanError(f"{path}: cannot be written ({error.strerror})") from None


def describe(profile: Profile) -> str:
    """The profile as a table: provenance, coefficients, held-out errors, what was assumed."""
    timing = profile.timing
    assert timing is not None
    lines = [
        f"{profile.name}: {profile.gpu or 'card not in the GPU table'}, {profile.engine} {profile.engine_version}",
        f"  source: {profile.source}{f' ({profile.licence})' if profile.licence else ''}",
        "",
        f"{'coefficient':<34}{'value':>12}",
    ]
    for name, value in timing.coefficients.items():
        mark = "  assumed" if name in timing.assumed else ""
        lines.append(f"{name:<34}{value:>12.4g}{mark}")
    lines += ["", f"{'held-out error':<24}{'':<26}{'points':>8}{'median':>9}{'p95':>9}{'bias':>9}"]
    for e in timing.errors:
        what = f"{e.regime} ({e.family})"
        figures = f"{e.num_points:>8,}{e.median:>9.1%}{e.p95:>9.1%}{e.bias:>+9.1%}"
        lines.append(f"{what:<24}{e.held_out:<26}{figures}")
    lines += ["", *(f"assumed {name}: {why}" for name, why in timing.assumed.items())]
    return "\n".join(lines).rstrip()
