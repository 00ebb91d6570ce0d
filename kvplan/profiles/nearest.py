"""A card that nobody profiled, told from the most alike one that somebody did.

Kernels keep their share of the data sheet, launches and the host keep their times. What joins the cards is not scaled:
links are the card's own. Marked as assumed; `doubt` says how far it may be off.
"""

from __future__ import annotations

import math
from dataclasses import replace

from kvplan.ground.gpu import GpuSpec, get_gpu
from kvplan.profiles.profile import Profile, bundled_profiles
from kvplan.profiles.surface_file import Surface, Surfaces
from kvplan.profiles.timing_profile import TimingProfile
from kvplan.timing.surfaces import Curve

OTHER_ARCHITECTURE = 1.0
"""How much further a card of another architecture is; a factor of e in a rate counts as much."""
SHEET_NAMES = {"fp8_block": "fp8", "fp8_static": "fp8", "nvfp4": "fp4", "mxfp4": "bf16", "int4": "bf16"}
"""Format of a kernel -> the data sheet's dtype that it multiplies in."""


def nearest_profile(gpu: GpuSpec, engine: str) -> tuple[Profile, str]:
    """The profile of the most alike card, scaled to this one, and what to know about it."""
    found = [p for p in bundled_profiles() if p.timing is not None and p.gpu]
    same = [p for p in found if p.engine == engine] or found
    best = min(same, key=lambda p: (_distance(get_gpu(p.gpu), gpu), tuple(-x for x in p.version)))
    assert best.timing is not None
    timing = _scaled(best.timing, get_gpu(best.gpu), gpu)
    note = f"no profile of {gpu.name}; `kvplan fit` makes one from measurements. Kernels of {best.name} scaled by the "
    note += "data sheets, its launches and host times as they are: assumed, half to twice"
    return best.model_copy(update={"gpu": gpu.name, "timing": timing}), note


def _distance(known: GpuSpec, asked: GpuSpec) -> float:
    rates = math.log(known.bandwidth / asked.bandwidth), math.log(known.flops("bf16") / asked.flops("bf16"))
    return abs(rates[0]) + abs(rates[1]) + OTHER_ARCHITECTURE * (known.architecture != asked.architecture)


def _scaled(timing: TimingProfile, known: GpuSpec, asked: GpuSpec) -> TimingProfile:
    """Rates by the data sheets' ratio; fixed times as they are; exchanges left out."""
    memory = asked.bandwidth / known.bandwidth

    def multiply(name: str) -> float:
        fmt = name.split(".")[1] if name.count(".") > 1 and name.startswith(("gemm", "moe")) else "bf16"
        dtype = SHEET_NAMES.get(fmt, fmt)
        return asked.flops(dtype) / known.flops(dtype)

    def coefficient(name: str, value: float) -> float:
        if name.endswith("flops_per_s"):
            return value * multiply(name)
        return value * memory if name.endswith("bytes_per_s") else value

    def scaled(values: dict[str, float]) -> dict[str, float]:
        return {k: coefficient(k, v) for k, v in values.items() if not k.startswith("reduce.")}

    surfaces: Surfaces = {
        name: _rescaled(surface, memory, multiply(f"{name}."))
        for name, surface in timing.surfaces.items()
        if not isinstance(surface, Curve)
    }
    update = {"coefficients": scaled(timing.coefficients), "draws": ()}
    return timing.model_copy(update=update).with_surfaces(surfaces)


def _rescaled(surface: Surface, memory: float, multiply: float) -> Surface:
    assert not isinstance(surface, Curve)
    rates = surface.sheet
    sheet = rates._replace(bytes_per_s=rates.bytes_per_s * memory, flops_per_s=rates.flops_per_s * multiply)
    return replace(surface, sheet=sheet)
