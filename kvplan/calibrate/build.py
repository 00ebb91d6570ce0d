"""From a source of measurements to a profile with its provenance: what `kvplan fit` does.

Knows where rows come from and how a card is named; the fitting itself is `fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kvplan.calibrate.fit.families import fit
from kvplan.calibrate.fit.mixing import timed_apart
from kvplan.calibrate.fit.problem import regime
from kvplan.calibrate.measurements import Measurements, collect, read_measurements
from kvplan.calibrate.sources import aiconfigurator
from kvplan.calibrate.sources.convert import llmservingsim_rows, splitwise_rows
from kvplan.errors import KvplanError
from kvplan.gpu import GpuSpec, get_gpu, match_product
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

    `fill` lends families (formats, ranks) that these measurements lack, from another profile of the same card.
    """
    measurements, card, known = _read(files, source, gpu, engine)
    timing = fit(measurements, gpu=card, assume=dict(known) | dict(assume or {}))
    machine = measurements.machine
    profile = Profile(
        name=name or _name(card, machine),
        gpu=card.name if card else str(machine.get("gpu", "")),
        engine=_engine(str(machine.get("engine", engine))),
        engine_version=str(machine.get("engine_version", "")),
        source=str(machine.get("source", f"measured on {machine.get('machine', 'an unnamed machine')}")),
        licence=str(machine.get("licence", "")),
        timing=timing,
    )
    return _filled(profile, fill) if fill else profile


def _read(
    files: Sequence[Path], source: Source, gpu: str, engine: str
) -> tuple[Measurements, GpuSpec | None, dict[str, tuple[float, str]]]:
    """Rows, the card they speak of (None: not in the GPU table), and what this source leaves to assumptions."""
    if source == "aiconfigurator" and files:
        found = _timed_both_ways(collect(aiconfigurator.file_rows(files)))
        card = get_gpu(aiconfigurator.SYSTEMS[str(found.machine["machine"])])
        return found, card, aiconfigurator.assumed(card)
    if source == "aiconfigurator":
        found = _tables(gpu, engine)
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
    return found, _card(found, gpu), timed_apart(found)


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


def _card(measurements: Measurements, gpu: str) -> GpuSpec | None:
    """The card named by the caller, or by the machine row; a CPU or an unknown card is fitted without a data sheet."""
    if gpu:
        return get_gpu(gpu)
    product = str(measurements.machine.get("gpu", ""))
    if product in ("", "cpu"):
        return None
    try:
        return match_product(product, int(measurements.machine.get("total_bytes", 0)))
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
