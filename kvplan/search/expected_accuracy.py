"""What a point's strategy may expect: its accuracy with a 95 % interval, by the same function as `compare`'s.

Accuracy depends on problems, quality and strategy, not on the cards: one expectation serves all points of a process
that share those. What an engine changes, by pruning or another order of ends, is measured on each run and added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from kvplan.scenario.schema import Scenario
from kvplan.simulation.branch_requests import Solved
from kvplan.simulation.deploy import Setup
from kvplan.workload.arrivals import AllAtOnce
from kvplan.workload.expectation import DrawnStrategy, Expectation, Expected, expect
from kvplan.workload.problems import Problems, StrategySpec, Task, draw_tasks


def lengths_of(setups: Mapping[str, Setup]) -> dict[str, int]:
    """max_model_len of each model: where an engine cuts branches."""
    return {name: setup.config.max_model_len for name, setup in setups.items()}


def expected_alone(scenario: Scenario, spec: StrategySpec, setups: Mapping[str, Setup]) -> Expected:
    """What a strategy may expect, to `PRECISION`, but for what an engine changes."""
    return _expectation(scenario, spec, setups).expected(0)


def expected_accuracy(
    scenario: Scenario, spec: StrategySpec, setups: Mapping[str, Setup], solved: Sequence[Solved]
) -> Expected:
    """The same with what the engine made of the problems that it solved."""
    found, problems = _expectation(scenario, spec, setups), scenario.problems
    assert problems is not None
    [drawn] = found.drawn
    own = replace(drawn)
    add_engine(problems, own, draw_tasks(problems, scenario.folder), solved)
    return replace(found, drawn=[own]).expected(0)


def add_engine(
    problems: Problems, drawn: DrawnStrategy, tasks: Sequence[Task], solved: Sequence[Solved]
) -> None:
    """What the engine made of the problems it was given, beside the same problems and luck without it.

    They differ where it prunes, or lets another branch finish first; mostly nowhere.
    """
    by_id = {task.problem.id: task for task in tasks}
    alone = [drawn.alone(problems, by_id[s.problem]).answer.correct for s in solved]
    apart = np.array([float(s.correct) - float(right) for s, right in zip(solved, alone, strict=True)])
    if not apart.any() and not any(branch.prunable for branch in next(drawn.spec.start()).start):
        return
    n = len(apart)
    drawn.shift = float(apart.mean())
    seen = float((apart**2).sum()) + 1  # one more that differed: few problems do not prove that none does
    drawn.shift_variance, drawn.shift_degrees = seen / (n + 1) / n, max(n - 1.0, 1.0)


def _expectation(scenario: Scenario, spec: StrategySpec, setups: Mapping[str, Setup]) -> Expectation:
    assert scenario.problems is not None
    alike = {
        "num_problems": 1,
        "arrivals": AllAtOnce(kind="all_at_once"),
        "min_accuracy": 0.0,
        "api_model": None,
    }
    problems = scenario.problems.model_copy(update={**alike, "strategies": (spec,)})
    return _expected(problems.model_dump_json(), tuple(sorted(lengths_of(setups).items())), scenario.folder)


@lru_cache(64)
def _expected(problems: str, limits: tuple[tuple[str, int], ...], folder: Path) -> Expectation:
    told = Problems.model_validate_json(problems)
    return expect(told, list(told.strategies), folder, max_model_len=[dict(limits)])
