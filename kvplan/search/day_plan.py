"""A fleet over a day: what always having enough copies costs, and what following the load hour by hour saves."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import yaml

from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir

HOURS = 24


class DayPlan(NamedTuple):
    """Copies of one deployment over a day."""

    copies: tuple[int, ...]
    """Per hour when scheduled, spares included."""
    static_copies: int
    """All day when static."""
    static_gpu_hours: float
    scheduled_gpu_hours: float
    static_usd: float
    scheduled_usd: float

    @property
    def saved(self) -> float:
        """Share of the static day's cost that scheduling saves."""
        return 1 - self.scheduled_usd / self.static_usd if self.static_usd else 0.0


def day_shares(day: str | Sequence[float]) -> tuple[float, ...]:
    """Shares of the peak load in 24 equal parts or any other number; a bundled profile by its name.

    Raises KvplanError for an unknown name, for numbers that are not shares, and for a day without load.

    >>> len(day_shares("reasoning-api")), max(day_shares("reasoning-api"))
    (24, 1.0)
    """
    if isinstance(day, str):
        known = yaml.safe_load((catalog_dir() / "days.yaml").read_text())
        if day not in known:
            raise KvplanError(
                f"day: unknown profile {day!r}{did_you_mean(day, known) or '; there are ' + ', '.join(known)}"
            )
        day = known[day]["shares"]
    shares = tuple(float(share) for share in day)
    if not shares or min(shares) < 0 or max(shares) <= 0:
        raise KvplanError("day: give shares of the peak load, none below 0, one above")
    return tuple(share / max(shares) for share in shares)


def plan_day(
    shares: Sequence[float], load: float, highest: float, spare: int, gpus: int, usd_per_hour: float
) -> DayPlan:
    """Copies for each part of a day whose peak is `load`, when one copy sustains `highest` and takes `gpus` GPUs.

    >>> plan_day([1.0, 0.5], 10, 2.5, 1, 2, 4.0).copies
    (5, 3)
    """
    hours = HOURS / len(shares)
    copies = tuple(ceil(share * load / highest - 1e-9) + spare for share in shares)
    static = max(copies)
    scheduled = sum(copies) * hours
    return DayPlan(
        copies, static, static * HOURS * gpus, scheduled * gpus, static * HOURS * usd_per_hour, scheduled * usd_per_hour
    )  # fmt: skip
