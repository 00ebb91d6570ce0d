"""How sure a simulation is of its figures: the same requests under step times as likely as the fitted ones.

A profile keeps bootstrap draws of its coefficients. Each draw is simulated; a figure's interval runs from the
5th to the 95th percentile of what came out. The workload's own luck is not in it: all draws see the same requests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kvplan.errors import KvplanError
from kvplan.scenario.schema import Scenario
from kvplan.simulation.deploy import Setup
from kvplan.simulation.simulator import simulate

LOW, HIGH = 5, 95


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


def _figures(scenario: Scenario, setups: dict[str, Setup], draw: int) -> dict[str, Any]:
    drawn = {
        name: replace(setup, step_time=setup.draws[draw % len(setup.draws)]) if setup.draws else setup
        for name, setup in setups.items()
    }
    document = simulate(scenario, setups=drawn, keep_records=False).to_dict()
    return {k: v for k, v in document.items() if isinstance(v, float | int) and not isinstance(v, bool)}
