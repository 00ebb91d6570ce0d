"""From a source of measurements to a profile with its provenance: the one path of every command, app and benchmark.

Knows where rows come from and how a card is named; the fitting itself is `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from kvplan.calibrate.card_links import learn_links
from kvplan.calibrate.card_memory import learn_overheads
from kvplan.calibrate.fit.batches import Batches, check_batches
from kvplan.calibrate.fit.families import NUM_DRAWS, fit
from kvplan.calibrate.fit.terms import element_wise
from kvplan.calibrate.measurements import Measurements, Row, collect, read_measurements
from kvplan.calibrate.sources import aiconfigurator
from kvplan.calibrate.sources.llmservingsim import llmservingsim_rows
from kvplan.calibrate.sources.splitwise import splitwise_rows
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec, get_gpu, gpu_names, match_product
from kvplan.profiles.profile import Profile
from kvplan.profiles.timing_profile import TimingProfile

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
SKEW = {"rtx-pro-6000": (0.03, 0.01, 0.09), "rtx-4090": (0.06, 0.02, 0.13)}
"""Of its tables of skewed batches: decode attention of unequal lengths over that of equal ones, less one; median and
quartiles of 174 batches of 32 sequences and more, lengths' standard deviation 0.35 to 0.8 of their mean."""


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
    if source == "aiconfigurator":
        profile = _kernel_profile(files, gpu, engine.partition("@")[0], name, dict(assume or {}))
        return _filled(profile, fill) if fill else profile
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
        links=learn_links(measurements),
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
    if not files:
        raise KvplanError(f"name the files to fit (--from {source} reads files)")
    if source == "llmservingsim":
        found = collect(llmservingsim_rows(files))
        card = get_gpu(CARDS.get(str(found.machine["machine"]), str(found.machine["machine"])))
        return found, card, KERNELS_ONLY | _skew(card)
    if source == "splitwise":
        hardware = next((h for h, name in SPLITWISE_GPUS.items() if gpu and get_gpu(gpu).name == name), gpu)
        found = collect(splitwise_rows(files, hardware or "a100-80gb"))
        return found, get_gpu(SPLITWISE_GPUS[str(found.machine["machine"])]), dict(SPLITWISE_ASSUMED)
    found = read_measurements(files)
    product, size = str(found.machine.get("gpu", "")), int(found.machine.get("total_bytes", 0))
    known = get_gpu(gpu) if gpu else _known_card(product, size)
    return found, known, element_wise(known) if known else {}


def _skew(card: GpuSpec) -> dict[str, tuple[float, str]]:
    """What LLMServingSim's batches of unequal lengths say of the card."""
    if card.name not in SKEW:
        return {}
    value, low, high = SKEW[card.name]
    return {
        "step.skew": (value, f"batches of unequal lengths: {value:g}, {low:g} to {high:g}, its own tables")
    }


def _kernel_profile(
    files: Sequence[Path], gpu: str, engine: str, name: str, assume: dict[str, tuple[float, str]]
) -> Profile:
    """The installed kernel tables of a card as surfaces; what they do not hold is assumed.

    Draws scale each family by what left-out points were off in the median.
    """
    if files:
        raise KvplanError("--from aiconfigurator reads the installed package; leave out the files")
    systems = {table: system for system, table in aiconfigurator.SYSTEMS.items()}
    system = gpu if gpu in aiconfigurator.SYSTEMS else systems.get(get_gpu(gpu).name if gpu else "", gpu)
    card = get_gpu(aiconfigurator.SYSTEMS.get(system, system))
    tables = aiconfigurator.kernel_tables(system, engine, card)
    given = aiconfigurator.assumed(card) | assume
    rng = np.random.default_rng(0)
    sizes = {error.family: error.median for error in reversed(tables.errors)}
    draws = tuple(
        {f"{k}.scale": float(f"{math.exp(size * rng.standard_normal()):.4g}") for k, size in sizes.items()}
        for _ in range(NUM_DRAWS)
    )
    timing = TimingProfile(
        coefficients={k: v for k, (v, _) in sorted(given.items())},
        assumed={k: why for k, (_, why) in sorted(given.items())},
        errors=tables.errors,
        ranges=tables.ranges,
        draws=draws,
        num_points=sum(source.num_points for source in tables.kernels.values()),
        kernels=tables.kernels,
    ).with_surfaces(tables.surfaces)
    return Profile(
        name=name or f"{card.name}-{engine}-{tables.version}", gpu=card.name, engine=engine,
        engine_version=tables.version, source="; ".join((aiconfigurator.SOURCE, *tables.notes)), licence="Apache-2.0",
        timing=timing,
    )  # fmt: skip


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
    have = {k.rsplit(".", 1)[0] for k in mine.coefficients} | mine.kernels.keys() | {"host"}
    if any(k.startswith("reduce.") for k in have):
        have |= {"links"}
    lent = {k: v for k, v in theirs.coefficients.items() if k.rsplit(".", 1)[0] not in have}
    kernels = {k: v for k, v in theirs.kernels.items() if k not in have}
    surfaces = {
        k: v for k, v in theirs.surfaces.items() if k in kernels or ("links" in kernels and _is_link(k))
    }
    families = sorted({k.rsplit(".", 1)[0] for k in lent} | kernels.keys())
    taken = lent.keys() | {f"{k}.scale" for k in kernels}
    merged = mine.model_copy(
        update={
            "coefficients": dict(sorted((mine.coefficients | lent).items())),
            "kernels": mine.kernels | kernels,
            "assumed": mine.assumed | dict.fromkeys(families, f"from {other.name}"),
            "draws": tuple(
                mine_draw | {k: v for k, v in their_draw.items() if k in taken}
                for mine_draw, their_draw in zip(mine.draws, theirs.draws, strict=False)
            ),
        }
    ).with_surfaces({**mine.surfaces, **surfaces})
    source = f"{profile.source}; {', '.join(families)} from {other.source} ({other.engine_version}, {other.licence})"
    return profile.model_copy(update={"timing": merged, "source": source})


def _is_link(name: str) -> bool:
    return name.startswith(("all_reduce.", "all_gather."))
