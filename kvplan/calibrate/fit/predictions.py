"""What a fitted profile says of the rows it was fitted to, beside what was measured: for plots, not for errors.

The errors that count are the held-out ones in the profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvplan.calibrate.fit.families import LEFT_OUT
from kvplan.calibrate.fit.problem import regime
from kvplan.calibrate.fit.terms import column, predict_family, predict_steps
from kvplan.calibrate.measurements import Measurements
from kvplan.profiles.timing_profile import TimingProfile


class Predicted(NamedTuple):
    """One row, both ways; seconds."""

    kind: str
    """Regime and family, e.g. `decode step`."""
    measured: float
    predicted: float


def predictions(measurements: Measurements, timing: TimingProfile) -> list[Predicted]:
    """Every fitted row of the measurements; families that could not be fitted are passed over."""
    found = []
    values = timing.coefficients
    for family, rows in measurements.families.items():
        if timing.assumed.get(family, "").startswith(LEFT_OUT):
            continue
        predict = (
            predict_steps(rows, values, timing.surfaces)
            if family == "step"
            else predict_family(family, rows, values)
        )
        both = zip(rows, column(rows, "time_s"), predict(values), strict=True)
        found += [Predicted(f"{regime(row)} {family}", float(a), float(b)) for row, a, b in both]
    return found


def thinned(rows: Sequence[Predicted], most: int) -> list[Predicted]:
    """At most about so many of the rows: every k-th by measured time, so that the whole range stays."""
    return sorted(rows, key=lambda row: row.measured)[:: max(1, -(-len(rows) // most))]
