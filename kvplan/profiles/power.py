"""What a card draws: fitted where whole servers were measured, else shares of its board power. `catalog/power.yaml`."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import yaml

from kvplan.ground.files import catalog_dir
from kvplan.ground.gpu import GpuSpec
from kvplan.timing.energy import PowerCosts

FITTED = (0.76, 1.3)
"""Measured watts over predicted ones. As wide as joules per token need, with the step's own range in quadrature, to
hold 85 % of the points of families left out (`benchmarks/validate_energy.py`); watts alone are inside in 97 %."""
ASSUMED = (0.6, 1.4)


class Power(NamedTuple):
    """A card's watts, what its rates are shares of, and how sure they are."""

    costs: PowerCosts
    bytes_per_s: float
    flops_per_s: float
    low: float
    """A 90 % range: from `low` times the watts."""
    high: float
    source: str


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((catalog_dir() / "power.yaml").read_text())
    return found


def find_power(gpu: GpuSpec) -> Power | None:
    """What `gpu` draws; None where its board power is not known."""
    table, rates = _table(), (gpu.bandwidth, gpu.flops("bf16"))
    fitted = table["fitted"].get(gpu.name)
    if fitted:
        return Power(PowerCosts(**fitted), *rates, *FITTED, "fitted to ML.ENERGY's servers of vLLM 0.11")
    tdp = table["tdp"].get(gpu.name)
    if not tdp:
        return None
    shares = {name: share * tdp for name, share in table["assumed_shares"].items()}
    return Power(
        PowerCosts(tdp=tdp, **shares),
        *rates,
        *ASSUMED,
        f"assumed: shares of {tdp} W as other cards draw them",
    )
