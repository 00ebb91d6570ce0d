"""What runs for a visitor, each a function that a process of its own can be given: the same calls as the commands'.

Files that a visitor brought lie in the folder where the work runs, under their bare names. Loads no Streamlit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvplan.calibrate.build import build
from kvplan.calibrate.fit.predictions import Predicted, predictions
from kvplan.calibrate.measurements import read_measurements
from kvplan.charts.report import report_html
from kvplan.charts.saving import chart_file
from kvplan.memory.answers import Option, Plan, Span
from kvplan.memory.forward import concurrency_curve, estimate
from kvplan.memory.inverse import what_would_fit
from kvplan.memory.mixed_lengths import varying_traces
from kvplan.models.load import load_model
from kvplan.observed.reconciliation import Reconciliation, reconcile
from kvplan.observed.recorded_run import RunComparison, compare_runs, read_run
from kvplan.observed.startup import read_log
from kvplan.pages.apart import Progress, Work, interrupting
from kvplan.pages.asked import Asked
from kvplan.profiles.profile import Profile
from kvplan.scenario.schema import Scenario
from kvplan.search.comparison import Comparison, compare
from kvplan.search.planning import ServingAnswer, plan
from kvplan.search.question import ServingQuestion
from kvplan.search.recommendation import Recommendation
from kvplan.search.recommending import recommend
from kvplan.simulation.block_map import BlockMap
from kvplan.simulation.branches import BranchNotes, Node, tree
from kvplan.simulation.in_full import simulate
from kvplan.simulation.observer import Observer
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import solve
from kvplan.simulation.trace import chrome_trace

TREES_OF = 8
"""Problems whose branches are kept."""


class SimulatedRun(NamedTuple):
    """A run, and who owned which blocks if that was asked for."""

    result: Result
    blocks: BlockMap


class ComparedStrategies(NamedTuple):
    """The comparison, and by strategy and problem the branches of its first problems."""

    found: Comparison
    trees: dict[str, dict[int, list[Node]]]


class Fit(NamedTuple):
    """A fitted profile, and its rows both ways."""

    profile: Profile
    rows: list[Predicted]


class PlannedMemory(NamedTuple):
    """A plan in closed form, and what is drawn of it."""

    plan: Plan
    typical: Span
    """Typical requests at once; `plan.traces` are the longest ones."""
    varying: int | None
    """Requests that may run when their lengths vary as in the question; None where that takes a simulation."""
    options: tuple[Option, ...]
    lengths: tuple[int, ...]
    curve: list[Span]


def simulate_work(scenario: Scenario, with_blocks: bool) -> Work:
    """`kvplan simulate`."""
    return partial(_simulate, scenario, with_blocks)


def _simulate(scenario: Scenario, with_blocks: bool, progress: Progress, observer: Observer) -> SimulatedRun:
    blocks = BlockMap()
    look = Observer(observer.cancelled, blocks.look, copies=True)
    result = simulate(scenario, step_by_step=with_blocks, progress=progress, observer=look)
    return SimulatedRun(result, blocks)


def compare_work(scenario: Scenario) -> Work:
    """`kvplan compare`, then each strategy once more for its branches."""
    return partial(_compare, scenario)


def _compare(scenario: Scenario, progress: Progress, observer: Observer) -> ComparedStrategies:
    found = compare(scenario, progress=progress, observer=observer)
    return ComparedStrategies(found, {} if found.interrupted else _grown(scenario, observer))


def _grown(scenario: Scenario, observer: Observer) -> dict[str, dict[int, list[Node]]]:
    assert scenario.problems is not None
    trees = {}
    for spec in (one for said in scenario.problems.strategies for one in said.expanded()):
        notes = BranchNotes()
        solution = solve(scenario, spec, observer=Observer(observer.cancelled, on_branch=notes.start))
        problems = sorted(notes.launches)[:TREES_OF]
        trees[spec.name] = {problem: tree(notes, solution.records, problem) for problem in problems}
        if observer.cancelled():
            break
    return trees


def plan_work(
    model: str, gpus: Sequence[str], question: ServingQuestion, deployment: Mapping[str, Any]
) -> Work:
    """`kvplan plan`."""
    return partial(_plan, model, tuple(gpus), question, dict(deployment))


def _plan(
    model: str, gpus: tuple[str, ...], question: ServingQuestion, deployment: dict[str, Any],
    progress: Progress, observer: Observer,
) -> ServingAnswer:  # fmt: skip
    return plan(model, gpus, question, deployment=deployment, progress=interrupting(progress, observer))


def recommend_work(scenario: Scenario) -> Work:
    """`kvplan recommend`."""
    return partial(_recommend, scenario)


def _recommend(scenario: Scenario, progress: Progress, observer: Observer) -> Recommendation:
    told = scenario.model_dump(mode="json", exclude_defaults=True)
    return recommend(told, progress=interrupting(progress, observer))


def fit_work(name: str) -> Work:
    """`kvplan fit`, and its rows both ways."""
    return partial(_fit, name)


def _fit(name: str, progress: Progress, observer: Observer) -> Fit:
    profile = build([Path(name)])
    assert profile.timing is not None
    return Fit(profile, predictions(read_measurements([Path(name)]), profile.timing))


def planned(asked: Asked) -> PlannedMemory:
    """`kvplan estimate` of the question, and the curve of traces by length."""
    model, card = load_model(asked.model), asked.card
    flags = asked.served(model)
    found = estimate(model, card, flags, engine=asked.engine, demand=asked.demand)
    typical = estimate(model, card, flags, engine=asked.engine, demand=asked.typical)
    lengths = trace_lengths(found)
    curve = concurrency_curve(found, lengths)
    varying = varying_traces(found, *asked.lengths)
    return PlannedMemory(found, typical.traces, varying, what_would_fit(found), lengths, curve)


def trace_lengths(plan: Plan) -> tuple[int, ...]:
    """Lengths to draw the curve at: from the prompt (or 256) to what the model is made for."""
    first = max(256, plan.question.demand.prompt_tokens() + 1)
    last = max(2 * first, plan.max_model_len)
    return tuple(int(n) for n in np.unique(np.geomspace(first, last, 48).round()))


def read_a_log(text: str, model: str | None, gpu: str | None) -> Reconciliation:
    """`kvplan reconcile`."""
    return reconcile(read_log(text.splitlines()), model=model, gpu=gpu)


def compare_two(real: str, simulated: str) -> RunComparison:
    """`kvplan compare-run`."""
    return compare_runs(read_run(Path(real)), read_run(Path(simulated)))


def report_of(answer: ServingAnswer) -> str:
    """`kvplan plan --report`."""
    return report_html(answer)


def trace_of(found: SimulatedRun) -> str:
    """`kvplan simulate --trace`, for Perfetto: of a long run tens of MB; no other thread runs while it is written."""
    run = found.result
    told = chrome_trace(run.records, run.samples, found.blocks, run.copies, run.file_jobs)
    return json.dumps(told, separators=(",", ":"))


def picture_of(spec: dict[str, Any], kind: str) -> bytes:
    """A chart's specification as the bytes of an SVG or PNG file."""
    return chart_file(spec, kind)
