"""A calibration after the card was measured: a live server instead, the fit, the profile, the report's figures.

The rooms are joined by files only: this module hands a measurement file to the fit and a profile to disk.
`measure_card` measures; here are a live server's measuring, the fit and what the report says.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from kvplan.calibrate.fit.batches import Batches, check_batches
from kvplan.calibrate.fit.families import fit
from kvplan.calibrate.fit.mixing import timed_apart
from kvplan.calibrate.measurements import Measurements, read_measurements
from kvplan.calibrate.server.client import CacheFacts, Server
from kvplan.calibrate.server.loads import observe
from kvplan.calibrate.session import SCHEMA_VERSION, Report, Session, batches_path, no_report, open_session
from kvplan.errors import KvplanError
from kvplan.gpu import GpuSpec, get_gpu, local
from kvplan.models.spec import ModelSpec
from kvplan.profiles.profile import Profile
from kvplan.profiles.timing_profile import TimingProfile

NEEDED = ("step", "gemm.bf16", "gqa.bf16")
"""Families without which there is no profile."""


class PoolCheck(NamedTuple):
    """Measured KV bytes per token of one real pool beside 2 * L * H * d * bytes."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    kv_dtype: str
    formula_bytes: int
    measured_bytes: float

    @property
    def error(self) -> float:
        """Relative excess of what was taken over the formula."""
        return self.measured_bytes / self.formula_bytes - 1


def measure_server(
    out: Path, url: str, model: ModelSpec, gpu: str, rounds: int = 3, report: Report = no_report
) -> tuple[Session, CacheFacts]:
    """Measure a live vLLM from outside into `out`; `model` is what it serves, `gpu` the card it runs on.

    A server that stops answering ends it; the rows that came before stay in `out`, and another call goes on there.
    """
    server = Server(url)
    facts = server.facts()
    machine = {
        "op": "machine",
        "schema_version": SCHEMA_VERSION,
        "machine": f"{facts.model} on {gpu}",
        "gpu": gpu,
        "engine": "vllm",
        "engine_version": facts.engine_version,
        "date": time.strftime("%Y-%m-%d"),
        **{k: v for k, v in facts._asdict().items() if k not in ("model", "engine_version")},
    }
    session = open_session(out, machine)
    before = len(session.done)
    try:
        observe(server, facts, session, subject_of(model), rounds, report=report)
    except KvplanError as error:
        kept = f"{len(session.done)} loads are in {out}, run it again to go on"
        raise KvplanError(f"{error}; {kept}" if len(session.done) > before else str(error)) from None
    return session, facts


def subject_of(model: ModelSpec) -> dict[str, Any]:
    """Row fields that tell a fit which model was served: its name, or its shape where it is not bundled."""
    if model.source.startswith("bundled"):
        return {"model": model.name}
    kinds = set(model.layers)
    if len(kinds) != 1:
        raise KvplanError(
            f"{model.name}: calibrating a server needs a bundled model, or one whose layers are all alike"
        )
    [layer] = kinds
    attention, mlp = layer.attention, layer.mlp
    return {
        "model": model.name,
        "num_layers": len(model.layers),
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "intermediate_size": mlp.intermediate_size,
        "num_matrices": mlp.num_matrices,
        "num_experts": mlp.num_experts,
        "experts_per_token": mlp.experts_per_token,
        "num_heads": attention.num_heads,
        "num_kv_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
    }


def fit_session(session: Session, profile_path: Path) -> Profile:
    """Fit a session's file and write the profile; the card's data sheet serves as belief where it is known."""
    measurements = read_measurements([session.path])
    machine = session.machine
    profile = Profile(
        name=profile_path.stem,
        gpu=_card_name(machine),
        engine=machine["engine"],
        timing=_fit_what_can_be(measurements, _card(machine)),
        source=f"measured on {machine['machine']}, {machine['engine']} {machine['engine_version']}, {machine['date']}",
    )
    profile_path.parent.mkdir(parents=True, exist_ok=True)
    profile_path.write_text(profile.model_dump_json(indent=1, exclude_none=True) + "\n")
    return profile


def _fit_what_can_be(measurements: Measurements, gpu: GpuSpec | None) -> TimingProfile:
    """Fit; a kernel family whose points were too few (a small card, a library that fails) is left out and said so.

    Raises:
        KvplanError: what cannot be left out cannot be fitted: whole steps, products and attention in 16 bits.
    """
    families, left_out = dict(measurements.families), dict[str, str]()
    while True:
        some = measurements._replace(families=families)
        try:
            timing = fit(some, gpu=gpu, assume=timed_apart(some))
        except KvplanError as error:
            name, _, why = str(error).partition(": ")
            if name not in families or name in NEEDED:
                raise
            del families[name]
            left_out[name] = f"left out, too few points: {why}"
        else:
            return timing.model_copy(update={"assumed": timing.assumed | left_out})


def _card(machine: dict[str, Any]) -> GpuSpec | None:
    """The data-sheet row of the measured card; None for a CPU or a card that the table does not have."""
    if machine["gpu"] == "cpu":
        return None
    try:
        return local() if machine["engine"] == "torch" else get_gpu(machine["gpu"])
    except KvplanError:
        return None


def _card_name(machine: dict[str, Any]) -> str:
    card = _card(machine)
    return card.name if card else str(machine["gpu"])


def batches_of(session: Session, profile: Profile) -> Batches | None:
    """The batches that transformers ran on this card, beside what the profile says; None if there are none."""
    if profile.timing is None:
        return None
    return check_batches(session.path, profile.timing, _card(session.machine))


def skipped_points(session: Session) -> dict[str, int]:
    """Why points of the file were not measured -> how many; those that a later run did measure are not counted."""
    rows = [json.loads(line) for line in session.path.read_text(encoding="utf-8").splitlines()]
    measured = {_point(row) for row in rows if "time_s" in row}
    missing = {_point(row): row for row in rows if "skipped" in row and _point(row) not in measured}
    has_batches = batches_path(session.path).exists()
    return dict(
        Counter(row["skipped"] for row in missing.values() if not (has_batches and row["op"] == "batching"))
    )


def _point(row: dict[str, Any]) -> str:
    """What was to be measured: the row without its outcome."""
    outcome = {"skipped", "time_s", "spread", "num_repeats", "noisy", "sm_clock_mhz", "power_w", "key"}
    floors = {"floor_bytes", "floor_flops"}
    return json.dumps({k: v for k, v in row.items() if k not in outcome | floors}, sort_keys=True)


def pool_checks(session: Session) -> list[PoolCheck]:
    """Bytes per token of every real KV pool of the file, beside the formula."""
    rows = (json.loads(line) for line in session.path.read_text(encoding="utf-8").splitlines())
    return [
        PoolCheck(
            row["num_layers"], row["num_kv_heads"], row["head_dim"], row["kv_dtype"],
            row["formula_bytes_per_token"], row["bytes_per_token"],
        )
        for row in rows
        if row["op"] == "memory_pool" and "skipped" not in row
    ]  # fmt: skip
