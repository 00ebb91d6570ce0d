"""What a profile says of the batches that a real scheduler ran, beside their times. Knows files, not transformers.

transformers is an engine of its own: its batches are predicted twice, with the profile as it was calibrated, and with
this engine's constants refitted on the first of its two runs (the matrix products stay those of the card). Both
errors are of the second run, which no fit saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvplan.calibrate.fit.families import fit
from kvplan.calibrate.fit.held_out import summaries
from kvplan.calibrate.fit.mixing import APART
from kvplan.calibrate.fit.terms import column, predict_steps
from kvplan.calibrate.measurements import Measurements, Row, read_measurements
from kvplan.calibrate.session import batches_path
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.profiles.surface_file import Surfaces
from kvplan.profiles.timing_profile import RegimeError, TimingProfile

AS_CALIBRATED = "as calibrated"
REFITTED = "constants refitted on another run"
ONE_MASK = "every query is multiplied with every key of the batch under one mask: no term for mixed steps"


class Batches(NamedTuple):
    """The batches of one engine, and how far predictions of the unseen run were off."""

    engine: str
    attention: str
    num_batches: int
    """All of both runs."""
    most_tokens: int
    """Largest KV of a batch; beside `pool_tokens` it says how full the pool was."""
    pool_tokens: int
    most_waiting: int
    errors: list[RegimeError]
    totals: dict[str, float]
    """Predicted over measured seconds of the whole unseen run, less 1."""
    note: str = ""
    """Why something could not be predicted."""


def check_batches(path: Path, timing: TimingProfile, gpu: GpuSpec | None = None) -> Batches | None:
    """Predict the batches that lie beside the measurement file `path`; None if none were measured."""
    if not batches_path(path).exists():
        return None
    try:
        found = read_measurements([batches_path(path)])
    except KvplanError:
        return None  # a run that broke off before its first batch
    rows, machine = found.families.get("step", []), found.machine
    held = [row for row in rows if row.get("held_out")]
    if not held:
        return None
    masked = not str(machine.get("attention", "")).startswith("flash")
    errors, totals = _judged(AS_CALIBRATED, held, held, timing.coefficients, timing.surfaces)
    note = ""
    try:
        values = _refitted(read_measurements([path]), found, gpu, masked)
        more, whole = _judged(REFITTED, held, [_as_computed(row, masked) for row in held], values)
        errors, totals = errors + more, totals | whole
    except KvplanError as error:
        note = f"not refitted: {error}"
    return Batches(
        f"transformers {machine.get('engine_version', '')}", str(machine.get("attention", "")), len(rows),
        int(column(rows, "kv_tokens").max()), int(machine.get("pool_tokens", 0)),
        int(column(rows, "num_waiting").max()), errors, totals, note,
    )  # fmt: skip


def _judged(
    what: str,
    held: Sequence[Row],
    asked: Sequence[Row],
    values: Mapping[str, float],
    surfaces: Surfaces | None = None,
) -> tuple[list[RegimeError], dict[str, float]]:
    predicted, measured = predict_steps(asked, {}, surfaces)(values), column(held, "time_s")
    errors = summaries("transformers", held, np.log(predicted / measured), what)
    return errors, {what: round(float(predicted.sum() / measured.sum() - 1), 4)}


def _refitted(
    kernels: Measurements, batches: Measurements, gpu: GpuSpec | None, masked: bool
) -> dict[str, float]:
    """Coefficients of this engine: the card's products, and from run 0 its attention and fixed times.

    Batches too alike to tell an attention leave the one that was measured on the card.
    """
    rows = [_as_computed(row, masked) for row in batches.families["step"] if not row.get("held_out")]
    products = {name: some for name, some in kernels.families.items() if name.startswith("gemm.")}
    attention = {name: some for name, some in kernels.families.items() if name.startswith("gqa.")}
    try:
        return _constants(batches.machine, products | {"step": rows}, gpu, masked)
    except KvplanError:
        return _constants(batches.machine, products | attention | {"step": rows}, gpu, True)


def _constants(
    machine: Row, families: dict[str, list[Row]], gpu: GpuSpec | None, apart: bool
) -> dict[str, float]:
    assume = {name: (value, ONE_MASK) for name, (value, _) in APART.items()} if apart else None
    return fit(Measurements(machine, families, 0), gpu=gpu, assume=assume, num_draws=0).coefficients


def _as_computed(row: Row, masked: bool) -> Row:
    """A batch as the kernel sees it: under one mask all its KV is gathered and every query meets every key."""
    if not masked:
        return row
    sequences = row["num_decodes"] + row["num_prefills"]
    return row | {
        "op": "mixed_step", "num_decodes": sequences, "num_prefills": sequences,
        "decode_context": row["kv_tokens"], "num_prefill_tokens": row["num_tokens"],
        "prefill_attention": row["num_tokens"] * row["kv_tokens"],
    }  # fmt: skip
