"""`kvplan fit`: measurements or published kernel tables in, a profile out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvplan.calibrate.build import Source, build
from kvplan.cli.options import print_json
from kvplan.cli.profile_report import report_lines
from kvplan.errors import KvplanError, did_you_mean
from kvplan.profiles.profile import load_profile, write_profile
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
        write_profile(profile, output)
    if json:
        print_json(profile.model_dump(mode="json"))
    else:
        measured = files[0] if from_ == "jsonl" and len(files) == 1 else None
        print("\n".join(report_lines(profile, measured)))
        if output is not None:
            print(f"\nwritten: {output}")
    return 0


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
