"""How sure a simulation is of its figures: the same requests under step times that may be.

A setup says how far its step times may be off (`profiles.doubt`, from models that were left out). The run is repeated
at both ends, so that a queue amplifies what it amplifies; a figure's range holds all three. A profile also keeps
bootstrap draws of its coefficients, which tell how sure the fit is of itself, not how wrong it has been elsewhere. The
workload's own luck is in neither: all runs see the same requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kvplan.errors import KvplanError
from kvplan.scenario.schema import Scenario
from kvplan.simulation.deploy import Setup
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import ScaledStepTime

LOW, HIGH = 5, 95


class Ranges(NamedTuple):
    """What a run is like at the ends of what its steps may take."""

    figures: dict[str, list[float]]
    """Every top-level figure -> [low, high] over the run and its two ends."""
    flips: tuple[str, ...]
    """Verdicts that the ends do not share, a sentence each."""
    what: str
    """How far the steps may be off."""


def ranges(scenario: Scenario, setups: dict[str, Setup], result: Result) -> Ranges | None:
    """Simulate the ends of the step times' range; None where all of them are stated, or the run broke off."""
    if all(setup.doubt == (1.0, 1.0) for setup in setups.values()) or result.verdict == "interrupted":
        return None
    ends = [
        simulate(scenario, setups=_scaled(setups, end), keep_records=False, keep_samples=False)
        for end in (0, 1)
    ]
    found = [_numbers(run) for run in (result, *ends)]
    names = [name for name in found[0] if all(name in figures for figures in found)]
    spans = {name: [min(f[name] for f in found), max(f[name] for f in found)] for name in names}
    widest = max(setups.values(), key=lambda setup: setup.doubt[1] / setup.doubt[0])
    what = f"90 %: step times {widest.doubt[0] - 1:+.0%} to {widest.doubt[1] - 1:+.0%}"
    return Ranges(spans, tuple(_flips(result, *ends)), what)


def _scaled(setups: dict[str, Setup], end: int) -> dict[str, Setup]:
    return {
        name: replace(setup, step_time=ScaledStepTime(setup.step_time, setup.doubt[end]))
        if setup.doubt[end] != 1.0 else setup
        for name, setup in setups.items()
    }  # fmt: skip


def _flips(result: Result, quick: Result, slow: Result) -> Iterator[str]:
    """What the ends decide otherwise."""
    for end, run in (("quick", quick), ("slow", slow)):
        if run.slo_met != result.slo_met:
            yield (
                f"targets are {'met' if result.slo_met else 'missed'}, and {'met' if run.slo_met else 'missed'} "
                f"at the {end} end of the step's range"
            )
        if run.limited_by != result.limited_by:
            yield f"limited by {result.limited_by}, at the {end} end of the step's range by {run.limited_by}"
        if run.verdict != result.verdict:
            yield f"{result.verdict}, at the {end} end of the step's range {run.verdict}"


def intervals(scenario: Scenario, setups: dict[str, Setup], num_draws: int) -> dict[str, list[float]]:
    """Return [low, high] of every top-level figure, from at most `num_draws` draws of the profiles.

    Raises KvplanError when no deployment's profile has draws: a roofline and stated times have none.
    """
    available = max(len(setup.draws) for setup in setups.values())
    if not available:
        raise KvplanError("--uncertainty needs a profile with bootstrap draws; these step times have none")
    found = [_figures(scenario, setups, i) for i in range(min(num_draws, available))]
    names = [name for name in found[0] if all(name in figures for figures in found)]
    return {name: [float(v) for v in np.percentile([f[name] for f in found], (LOW, HIGH))] for name in names}


def _figures(scenario: Scenario, setups: dict[str, Setup], draw: int) -> dict[str, float]:
    drawn = {
        name: replace(setup, step_time=setup.draws[draw % len(setup.draws)]) if setup.draws else setup
        for name, setup in setups.items()
    }
    return _numbers(simulate(scenario, setups=drawn, keep_records=False))


def _numbers(result: Result) -> dict[str, float]:
    """The top-level figures of a document."""
    document = result.to_dict()
    return {
        k: v for k, v in document.items()
        if isinstance(v, float | int) and not isinstance(v, bool) and k != "schema_version"
    }  # fmt: skip
