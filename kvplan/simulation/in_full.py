"""A simulation with all that `kvplan simulate` says of it: the run, how sure its figures are, what a tier buys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvplan.scenario.schema import Scenario, as_scenario
from kvplan.simulation import simulator
from kvplan.simulation.deploy import Setup, set_ups
from kvplan.simulation.observer import NO_OBSERVER, Observer, Progress
from kvplan.simulation.result import Result
from kvplan.simulation.tier_gain import add_tier_gain
from kvplan.simulation.uncertainty import add_ranges


def simulate(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    *,
    ranges: bool = True,
    step_by_step: bool = False,
    progress: Progress | None = None,
    keep_records: bool = True,
    keep_samples: bool = True,
    setups: dict[str, Setup] | None = None,
    observer: Observer = NO_OBSERVER,
    stop_when_missed: bool = False,
) -> Result:
    """Run a scenario; always returns what was simulated. The figures are those of `kvplan simulate`.

    `scenario` may be a bundled name, a file, or a dictionary of what a file would say.
    `ranges` simulates both ends of what step times may be as well, three runs in all; a tier of KV beyond the GPUs
    takes one more without it. The rest is as in `simulator.simulate`, and so are errors.
    """
    scenario = as_scenario(scenario)
    if setups is None and scenario.problems is None:
        setups = set_ups(scenario)
    result = simulator.simulate(
        scenario, step_by_step=step_by_step, progress=progress, keep_records=keep_records,
        keep_samples=keep_samples, setups=setups, observer=observer, stop_when_missed=stop_when_missed,
    )  # fmt: skip
    others = Observer(observer.cancelled)
    if ranges and setups is not None and scenario.problems is None:
        add_ranges(scenario, setups, result, others)
    add_tier_gain(scenario, result, others)
    return result
