"""From a source of measurements to a profile with its provenance: the one path of every command, app and benchmark.

Knows where rows come from and how a card is named; the fitting itself is `fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kvplan.calibrate.card_memory import learn_overheads
from kvplan.calibrate.fit.batches import Batches, check_batches
from kvplan.calibrate.fit.families import fit
from kvplan.calibrate.fit.problem import regime
from kvplan.calibrate.measurements import Measurements, Row, collect, read_measurements
from kvplan.calibrate.sources import aiconfigurator
from kvplan.calibrate.sources.llmservingsim import llmservingsim_rows
from kvplan.calibrate.sources.splitwise import splitwise_rows
from kvplan.errors import KvplanError
from kvplan.gpu import GpuSpec, get_gpu, gpu_names, match_product
from kvplan.profiles.profile import Profile

Source = Literal["jsonl", "aiconfigurator", "llmservingsim", "splitwise"]

SPLITWISE_GPUS = {"a100-80gb": "a100-80gb", "h100-80gb": "h100-sxm"}
CARDS = {"RTXPRO6000": "rtx-pro-6000", "RTX4090": "rtx-4090"}
"""LLMServingSim's names -> the GPU table's."""
NO_MIXED = "no mixed step was measured: decodes beside a prompt cost what they do alone (assumed)"
SPLITWISE_ASSUMED = {
    "mixed_bytes_per_s": (float("inf"), NO_MIXED),
    "mixed_crowding": (0.0, NO_MIXED),
    "mixed_block_s": (0.0, NO_MIXED),
}
"""Splitwise timed prompt phases and decode steps apart."""
KERNELS_ONLY = {
    "host.gap_s": (
        1e-3,
        "the tables hold kernels; vLLM 0.19 adds about 1 ms between steps: assumed, 0.5 to 2",
    ),
}
"""What LLMServingSim's tables leave out."""


def build(
    files: Sequence[Path],
    *,
    source: Source = "jsonl",
    gpu: str = "",
    engine: str = "vllm",
    name: str = "",
    assume: Mapping[str, tuple[float, str]] | None = None,
    fill: Profile | None = None,
) -> Profile:
    """Read a source, fit it, and say where it came from.

    Memory rows of a card become the overheads of `engine`, where they tell them. `fill` lends families (formats,
    ranks) that these measurements lack, from another profile of the same card.
    """
    measurements, card, known = _read(files, source, gpu, engine.partition("@")[0])
    timing = fit(measurements, gpu=card, assume=known | dict(assume or {}))
    machine = measurements.machine
    profile = Profile(
        name=name or _name(card, machine),
        gpu=card.name if card else str(machine.get("gpu", "")),
        engine=_engine(str(machine.get("engine", engine))),
        engine_version=str(machine.get("engine_version", "")),
        source=str(machine.get("source") or _measured_on(machine)),
        licence=str(machine.get("licence", "")),
        memory=learn_overheads(measurements, card, engine),
        timing=timing,
    )
    return _filled(profile, fill) if fill else profile


def _measured_on(machine: Row) -> str:
    """Provenance of a file that names no source of its own."""
    software = " ".join(str(machine[key]) for key in ("engine", "engine_version") if machine.get(key))
    known = [str(machine.get("machine", "an unnamed machine")), software, str(machine.get("date", ""))]
    return f"measured on {', '.join(part for part in known if part)}"


def batches_beside(path: Path, profile: Profile) -> Batches | None:
    """The batches that transformers ran on the card of a measurement file, beside what the profile says."""
    if profile.timing is None:
        return None
    return check_batches(path, profile.timing, _known_card(profile.gpu, 0))


def _read(
    files: Sequence[Path], source: Source, gpu: str, engine: str
) -> tuple[Measurements, GpuSpec | None, dict[str, tuple[float, str]]]:
    """Rows, the card they speak of (None: not in the GPU table), and what this source leaves to assumptions."""
    if source == "aiconfigurator":
        found = _timed_both_ways(collect(aiconfigurator.file_rows(files))) if files else _tables(gpu, engine)
        card = get_gpu(aiconfigurator.SYSTEMS[str(found.machine["machine"])])
        return found, card, aiconfigurator.assumed(card)
    if not files:
        raise KvplanError(f"name the files to fit (--from {source} reads files)")
    if source == "llmservingsim":
        found = collect(llmservingsim_rows(files))
        card = get_gpu(CARDS.get(str(found.machine["machine"]), str(found.machine["machine"])))
        return found, card, dict(KERNELS_ONLY)
    if source == "splitwise":
        hardware = next((h for h, name in SPLITWISE_GPUS.items() if gpu and get_gpu(gpu).name == name), gpu)
        found = collect(splitwise_rows(files, hardware or "a100-80gb"))
        return found, get_gpu(SPLITWISE_GPUS[str(found.machine["machine"])]), dict(SPLITWISE_ASSUMED)
    found = read_measurements(files)
    product, size = str(found.machine.get("gpu", "")), int(found.machine.get("total_bytes", 0))
    return found, get_gpu(gpu) if gpu else _known_card(product, size), {}


def _tables(gpu: str, engine: str) -> Measurements:
    """The installed kernel tables of a card."""
    systems = {table: system for system, table in aiconfigurator.SYSTEMS.items()}
    system = gpu if gpu in aiconfigurator.SYSTEMS else systems.get(get_gpu(gpu).name if gpu else "", gpu)
    return _timed_both_ways(collect(aiconfigurator.kernel_rows(system, engine)))


def behind(profile: Profile) -> Measurements | None:
    """What a profile was fitted to, read from the package that holds it; None if no package does.

    Raises:
        KvplanError: the package is not installed.
    """
    if profile.timing is None or not profile.source.startswith(aiconfigurator.SOURCE):
        return None
    found = _tables(profile.gpu, profile.engine)
    fitted = {name.rpartition(".")[0] for name in profile.timing.coefficients}
    return found._replace(families={name: rows for name, rows in found.families.items() if name in fitted})


def _timed_both_ways(found: Measurements) -> Measurements:
    """Without the attention families that a table timed for decodes only, or for prompts only."""
    families = {
        name: rows
        for name, rows in found.families.items()
        if name.split(".")[0] not in ("gqa", "mla") or len({regime(row) for row in rows}) > 1
    }
    return found._replace(families=families)


def _known_card(name: str, total_bytes: int) -> GpuSpec | None:
    """The card that the GPU table or CUDA calls so; a CPU or an unknown card is fitted without a data sheet."""
    if name in gpu_names():
        return get_gpu(name)
    try:
        return match_product(name, total_bytes) if name else None
    except KvplanError:
        return None


def _engine(name: str) -> str:
    return {"trtllm": "tensorrt-llm"}.get(name, name)


def _name(card: GpuSpec | None, machine: Mapping[str, object]) -> str:
    parts = [
        card.name if card else str(machine.get("machine", "machine")),
        _engine(str(machine.get("engine", "engine"))),
    ]
    return (
        "-".join([*parts, *str(machine.get("engine_version", "")).split()[:1]])
        .replace(" ", "-")
        .replace(",", "")
    )


def _filled(profile: Profile, other: Profile) -> Profile:
    """Add the families that a profile lacks from another one of its card, and say which."""
    if other.gpu != profile.gpu:
        raise KvplanError(
            f"--fill {other.name} is of {other.gpu}, these measurements of {profile.gpu or 'no known card'}"
        )
    mine, theirs = profile.timing, other.timing
    assert mine is not None
    if theirs is None:
        raise KvplanError(f"--fill {other.name} holds no step times")
    have = {k.rsplit(".", 1)[0] for k in mine.coefficients}
    lent = {k: v for k, v in theirs.coefficients.items() if k.rsplit(".", 1)[0] not in have | {"host"}}
    families = sorted({k.rsplit(".", 1)[0] for k in lent})
    why = f"from {other.name}"
    merged = mine.model_copy(
        update={
            "coefficients": dict(sorted((mine.coefficients | lent).items())),
            "assumed": mine.assumed | dict.fromkeys(families, why),
            "draws": tuple(
                mine_draw | {k: v for k, v in their_draw.items() if k in lent}
                for mine_draw, their_draw in zip(mine.draws, theirs.draws, strict=False)
            ),
        }
    )
    source = f"{profile.source}; {', '.join(families)} from {other.source} ({other.engine_version}, {other.licence})"
    return profile.model_copy(update={"timing": merged, "source": source})
