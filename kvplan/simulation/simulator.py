"""Simulate a scenario: its workload, or its problems under one strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kvplan.ground.limits import Limit
from kvplan.scenario.schema import Scenario, as_scenario
from kvplan.schedulers.protocol import ContentsMatter
from kvplan.simulation.branch_requests import BranchRequests, Solved
from kvplan.simulation.collect import collect
from kvplan.simulation.deploy import Setup, set_ups
from kvplan.simulation.in_flight import NEVER_COMES
from kvplan.simulation.load_requests import LoadRequests
from kvplan.simulation.misses import Misses
from kvplan.simulation.observer import NO_OBSERVER, Observer, Progress
from kvplan.simulation.pricing import check_prices, find_grid
from kvplan.simulation.records import SUMMARY_FIELDS, Records
from kvplan.simulation.result import Result
from kvplan.simulation.run import Run
from kvplan.simulation.scoring import Effort
from kvplan.simulation.solve_setup import check_setups, only_models_of, set_up_all, verifier_step_time
from kvplan.workload.load import draw_load
from kvplan.workload.measured import beyond_measured, quality_said
from kvplan.workload.problems import StrategySpec

R = TypeVar("R")

IDLE_SHARE = 0.2
"""An engine that is idle for longer than this waits for arrivals."""


def simulate(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    *,
    step_by_step: bool = False,
    progress: Progress | None = None,
    keep_records: bool = True,
    keep_samples: bool = True,
    setups: dict[str, Setup] | None = None,
    observer: Observer = NO_OBSERVER,
    stop_when_missed: bool = False,
) -> Result:
    """Run a scenario to its end, its horizon, a verdict, or Ctrl-C; always returns what was simulated.

    `scenario` may be a bundled name, a file, or a dictionary of what a file would say.
    Without `keep_records` only what the report needs of each request stays in memory; without `keep_samples` no
    timeline is taken.
    `setups` replaces the planned engines, by name in `scenario.deployments`; `observer` looks on and may end the run.
    `stop_when_missed` ends it, with the verdict missed, as soon as its targets cannot be met any more, whatever comes.
    Raises KvplanError for what cannot be simulated, DoesNotFit when an engine would not start.
    """
    started = time.monotonic()
    scenario = as_scenario(scenario)
    if scenario.problems is not None:
        return solve(
            scenario, step_by_step=step_by_step, progress=progress, setups=setups, observer=observer,
            stop_when_missed=stop_when_missed,
        ).result  # fmt: skip
    _check_prices(scenario, setups)
    engines = setups or set_ups(scenario)
    load = draw_load(scenario.workload, scenario.folder)
    slos = {name: cls.slo or scenario.slo for name, cls in scenario.workload.by_name.items()}
    counts = np.bincount(load.class_id, minlength=len(slos)).tolist()

    def go(contents: str) -> Run:
        source = LoadRequests(load, scenario.workload.seed, progress)
        if stop_when_missed:
            source.misses = Misses(list(slos.values()), counts)
        run = Run(scenario, engines, source, step_by_step, observer, started, contents)
        if not keep_records:
            run.records.keep(SUMMARY_FIELDS)
        if not keep_samples:
            run.timeline.next_at = run.beginning.next_at = NEVER_COMES
        run.go()
        return run

    run = _once_more_if_contents_matter(go)
    for note in load.notes:
        run.note(note)
    is_open_loop = load.arrivals.kind not in ("closed_loop", "all_at_once")
    result = collect(run, slos, len(load), is_open_loop)
    result.num_bad_rows = load.num_bad_rows
    return result


def _once_more_if_contents_matter(go: Callable[[str], R]) -> R:
    """Run; where that finds out that cached contents matter, run again with engines that write them down."""
    try:
        return go("")
    except ContentsMatter as why:
        return go(str(why))


class SolveResult(NamedTuple):
    """One strategy over all problems."""

    strategy: str
    solved: list[Solved]
    records: Records
    effort: Effort
    verdict: str
    duration: int
    """Ticks from the start to the last answer."""
    models: dict[int, str]
    """Replica -> the model it serves, by its name in the scenario."""
    result: Result
    """The run as `kvplan simulate` reports it, branch by branch."""


def _check_prices(scenario: Scenario, setups: dict[str, Setup] | None) -> None:
    """Say before the run what is wrong with a price file; a search, which has its engines, has looked at the cards."""
    if setups is None:
        check_prices([scenario])
    else:
        find_grid(scenario)


def solve(
    scenario: Scenario,
    spec: StrategySpec | None = None,
    *,
    step_by_step: bool = False,
    progress: Progress | None = None,
    setups: dict[str, Setup] | None = None,
    observer: Observer = NO_OBSERVER,
    stop_when_missed: bool = False,
) -> SolveResult:
    """Run one strategy (the scenario's first by default) over the scenario's problems.

    `stop_when_missed` ends the run as soon as too many problems are late for its targets.
    Raises KvplanError for what cannot be simulated, DoesNotFit when model and verifier do not fit together.
    """
    assert scenario.problems is not None
    started = time.monotonic()
    chosen = spec or scenario.problems.strategies[0].expanded()[0]
    scenario = only_models_of(scenario, chosen)
    _check_prices(scenario, setups)
    setups = setups or set_up_all(scenario)
    check_setups(setups, scenario)
    engines, step_time = setups, verifier_step_time(scenario)

    def go(contents: str) -> SolveResult:
        source = BranchRequests(scenario, chosen, step_time, progress, observer)
        source.stops_when_missed = stop_when_missed
        run = Run(scenario, engines, source, step_by_step, observer, started, contents)
        run.go()
        return solution(run, source)

    if observer is not NO_OBSERVER:  # it is told of every branch once
        return go("branches share prompts in groups that forget")
    return _once_more_if_contents_matter(go)


def solution(run: Run, source: BranchRequests) -> SolveResult:
    """What came of a run whose requests were branches."""
    result = collect(run, {"default": run.scenario.slo}, len(run.records), is_open_loop=False)
    result.limited_by = _limit(run, source, result)
    result.sources = result.sources | {"quality": quality_said(source.problems, run.scenario.folder)}
    result.caveats += tuple(beyond_measured(source.problems, source.spec, source.tasks))
    models = {
        process.replica.id: fleet.deployment.model
        for fleet in run.fleets.values()
        for process in fleet.processes
    }
    return SolveResult(
        strategy=source.spec.name,
        solved=source.solved,
        records=run.records,
        effort=source.effort,
        verdict=run.verdict,
        duration=max((s.finish for s in source.solved), default=run.now),
        models=models,
        result=result,
    )


def _limit(run: Run, source: BranchRequests, result: Result) -> str:
    """The verifier where scoring takes most of the time; arrivals where nobody waits; else the engine's."""
    effort, problems, busy = source.effort, source.problems, result.totals.busy_ticks
    if max(effort.verifier_ticks, effort.remote_ticks // problems.verifier.concurrency) > busy:
        return Limit.VERIFIER
    idle = 1 - busy / max(1, len(run.replicas) * run.now)
    if problems.arrivals.kind not in ("closed_loop", "all_at_once") and idle > IDLE_SHARE:
        return Limit.ARRIVAL_RATE
    return result.limited_by
