"""How sure a simulation is of its figures: the same requests at both ends of what steps may take.

A setup says how far its step times, and what prompts add to them, may be off (`profiles.doubt`, from models that were
left out). The run is repeated
at both ends, so that a queue amplifies what it amplifies; a figure's range holds all three. What watts add of their own
(`profiles.power`) is independent of that and joins it in quadrature. The workload's own luck is in neither: all runs
see the same requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, hypot, inf, log
from typing import Any, NamedTuple

from kvplan.scenario.schema import Scenario
from kvplan.simulation.deploy import Setup
from kvplan.simulation.observer import NO_OBSERVER, Observer
from kvplan.simulation.result import ENERGY, Result
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import ScaledStepTime


class End(NamedTuple):
    """One end of what a setup's steps may take."""

    place: int
    """0: the quick one, 1: the slow one."""
    is_wide: bool = False
    """Beyond what was measured: `WIDER` as far, in logarithms."""

    def factors(self, setup: Setup) -> tuple[float, float]:
        """Steps, and what prompts add to them, take so many times as long as predicted."""
        power = WIDER if self.is_wide else 1
        return setup.doubt[self.place] ** power, setup.prompt_doubt[self.place] ** power


WIDER = 2
"""How much wider a range is outside of what its profile measured (assumed)."""
END_NAMES = ("quick", "slow")


def find_ends(is_wide: bool) -> tuple[End, End]:
    """The quick and the slow end."""
    return End(0, is_wide), End(1, is_wide)


class Ranges(NamedTuple):
    """What a run is like at the ends of what its steps may take."""

    figures: dict[str, list[float]]
    """Every figure of the document's top level, cost and energy -> [low, high] over the run and its two ends."""
    flips: tuple[str, ...]
    """Verdicts that the ends do not share, a sentence each."""
    what: str
    """How far the steps may be off."""


def add_ranges(
    scenario: Scenario, setups: dict[str, Setup], result: Result, observer: Observer = NO_OBSERVER
) -> None:
    """Simulate the ends and note in a result what they say; nothing where `ranges` has none."""
    found = ranges(scenario, setups, result, observer)
    if found is not None:
        result.intervals, result.interval_of, result.doubts = found.figures, found.what, found.flips


def ranges(
    scenario: Scenario, setups: dict[str, Setup], result: Result, observer: Observer = NO_OBSERVER
) -> Ranges | None:
    """Simulate the ends of the step times' range; None where all of them are stated, or a run broke off."""
    if not is_doubted(setups) or result.verdict == "interrupted":
        return None
    ends = [
        simulate(
            scenario, setups=at_end(setups, end), keep_records=False, keep_samples=False, observer=observer
        )
        for end in find_ends(result.is_extrapolated)
    ]
    if any(run.verdict == "interrupted" for run in ends):
        return None
    found = [_numbers(run) for run in (result, *ends)]
    own = watts_doubt(setups)
    spans = {name: span([f.get(name) for f in found], own if name in ENERGY else None) for name in found[0]}
    known = {name: list(both) for name, both in spans.items() if both is not None}
    if "mean_watts" in known:
        known["mean_watts"][1] = min(known["mean_watts"][1], board_watts(setups, result.num_gpus))
    return Ranges(known, tuple(flips(result, ends)), doubt_text(setups, result.is_extrapolated))


def is_doubted(setups: Mapping[str, Setup]) -> bool:
    """Whether any step time may be off; stated ones may not."""
    return any(setup.doubt != (1.0, 1.0) for setup in setups.values())


def at_end(setups: Mapping[str, Setup], end: End) -> dict[str, Setup]:
    """The setups with all steps at one end of what they may take."""
    return {
        name: replace(
            setup, step_time=ScaledStepTime(setup.step_time, *end.factors(setup)), api=setup.api_ends[end.place]
        )
        if end.factors(setup) != (1.0, 1.0) else setup
        for name, setup in setups.items()
    }  # fmt: skip


def doubt_text(setups: Mapping[str, Setup], is_wide: bool = False) -> str:
    """How far steps may be off, the widest of several."""
    widest = max(setups.values(), key=lambda setup: setup.doubt[1] / setup.doubt[0])
    (low, first), (high, last) = (end.factors(widest) for end in find_ends(is_wide))
    prompts = f", prompts {first - 1:+.0%} to {last - 1:+.0%}" if (first, last) != (low, high) else ""
    why = f", {WIDER} times as wide (assumed): steps lie outside of what was measured" if is_wide else ""
    return f"90 %: step times {low - 1:+.0%} to {high - 1:+.0%}{prompts}{why}"


def watts_doubt(setups: Mapping[str, Setup]) -> tuple[float, float]:
    """Watts may be from so many to so many times what is predicted, steps aside; the widest of several cards."""
    powers = [setup.power for setup in setups.values() if setup.power is not None]
    return min((p.low for p in powers), default=1.0), max((p.high for p in powers), default=1.0)


def board_watts(setups: Mapping[str, Setup], num_gpus: int) -> float:
    """What so many cards draw at most, the board power of the hungriest; inf where none is known."""
    return num_gpus * max(
        (float(s.power.costs.tdp) for s in setups.values() if s.power is not None), default=inf
    )


def span(
    values: Sequence[float | None], own: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """(low, high) of a figure at its step times (first) and at their ends; None where one of them has none.

    `own`: further factors that the figure may be off by, independent of its step times.

    >>> span([10.0, 9.0, 13.0]), span([None, 1.0, 2.0])
    ((9.0, 13.0), None)
    >>> span([10.0, 10.0, 10.0], (0.8, 1.25))
    (8.0, 12.5)
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    value, low, high = known[0], min(known), max(known)
    if own is None or value <= 0 or low <= 0:
        return low, high
    return (
        value * exp(-hypot(log(low / value), log(own[0]))),
        value * exp(hypot(log(high / value), log(own[1]))),
    )


def flips(result: Result, ends: Sequence[Result]) -> Iterator[str]:
    """What the quick and the slow end decide otherwise, a sentence each."""
    for end, run in zip(END_NAMES, ends, strict=True):
        where = f"at the {end} end of the step's range"
        if run.slo_met != result.slo_met:
            yield f"targets are {_met(result)}, and {_met(run)} {where}"
        if run.limited_by != result.limited_by:
            yield f"limited by {result.limited_by}, {where} by {run.limited_by}"
        if run.verdict != result.verdict:
            yield f"{result.verdict}, {where} {run.verdict}"
        if run.is_overloaded != result.is_overloaded:
            yield f"{_loaded(result)}, {where} {_loaded(run)}"


def _met(result: Result) -> str:
    return "met" if result.slo_met else "missed"


def _loaded(result: Result) -> str:
    return "overloaded" if result.is_overloaded else "not overloaded"


def _numbers(result: Result) -> dict[str, float]:
    """The figures of a document that can be off: its top level's, cost's and energy's."""
    document: dict[str, Any] = result.to_dict()
    found = document | document["cost"] | document["energy"]
    return {
        k: v for k, v in found.items()
        if isinstance(v, float | int) and not isinstance(v, bool) and k != "schema_version"
    }  # fmt: skip
