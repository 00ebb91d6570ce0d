"""Two cards of one kind, measured alike: where their times and fitted coefficients differ beyond both errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import log
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from kvplan.calibrate.fit.problem import NOISE
from kvplan.calibrate.measurements import Row, read_measurements
from kvplan.calibrate.outcome import point_of
from kvplan.ground.errors import KvplanError
from kvplan.profiles.timing_profile import TimingProfile


class TimeRatio(NamedTuple):
    """Times of one family on the second card over the first's, at the points that both files hold."""

    family: str
    num_points: int
    ratio: float
    """Median over the points."""
    error: float
    """Relative: the usual spread of both files' repetitions, 2 % each at least."""

    @property
    def differs(self) -> bool:
        """Whether the ratio is farther from 1 than both errors together."""
        return abs(log(self.ratio)) > self.error


class CoefficientRatio(NamedTuple):
    """One fitted coefficient of both cards, with the intervals that 90 % of the bootstrap draws lie in."""

    name: str
    first: tuple[float, float, float]
    """Fitted, low, high."""
    second: tuple[float, float, float]

    @property
    def ratio(self) -> float:
        """Second over first; nan where the first is 0."""
        return self.second[0] / self.first[0] if self.first[0] else float("nan")

    @property
    def differs(self) -> bool:
        """Whether the two intervals have nothing in common."""
        return self.first[2] < self.second[1] or self.second[2] < self.first[1]


def time_ratios(first: Path, second: Path) -> list[TimeRatio]:
    """Per family, over the points that both files hold.

    Raises:
        KvplanError: the files have no point in common, or are of different products.
    """
    a, b = read_measurements([first]), read_measurements([second])
    names = [str(m.machine.get("gpu") or m.machine.get("machine", "")) for m in (a, b)]
    if names[0] != names[1]:
        raise KvplanError(f"{first} is of {names[0]!r}, {second} of {names[1]!r}: no two cards of one kind")
    found = []
    for family in sorted(a.families.keys() & b.families.keys()):
        left, right = _by_point(a.families[family]), _by_point(b.families[family])
        both = sorted(left.keys() & right.keys())
        if both:
            ratio = median(right[point][0] / left[point][0] for point in both)
            errors = (max(NOISE, median(one[point][1] for point in both)) for one in (left, right))
            found.append(TimeRatio(family, len(both), ratio, sum(errors)))
    if not found:
        raise KvplanError(
            f"{first} and {second} have no measured point in common; measure both on the same grid"
        )
    return found


def _by_point(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Point -> its median time over the rounds, and the median spread of its repetitions."""
    same: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        same[point_of(row, apart=("machine", "round"))].append(row)
    return {
        point: (median(r["time_s"] for r in some), median(r.get("spread", 0.0) for r in some))
        for point, some in same.items()
    }


def coefficient_ratios(first: TimingProfile, second: TimingProfile) -> list[CoefficientRatio]:
    """Every coefficient that both profiles were fitted to, none that was assumed."""
    fitted = [
        {name for name in one.coefficients if name not in one.assumed and name.rpartition(".")[0] not in one.assumed}
        for one in (first, second)
    ]  # fmt: skip
    return [
        CoefficientRatio(name, _interval(first, name), _interval(second, name))
        for name in sorted(fitted[0] & fitted[1])
    ]


def _interval(timing: TimingProfile, name: str) -> tuple[float, float, float]:
    value = timing.coefficients[name]
    draws = [draw[name] for draw in timing.draws if name in draw]
    if not draws:
        return value, value * (1 - NOISE), value * (1 + NOISE)
    low, high = (float(x) for x in np.quantile(draws, (0.05, 0.95)))
    return value, min(low, value), max(high, value)
