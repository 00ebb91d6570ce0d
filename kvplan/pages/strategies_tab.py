"""What tokens buy: test-time strategies on the same card, problems and luck."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from kvplan.charts import runs, searches
from kvplan.errors import KvplanError
from kvplan.files import scenarios_dir
from kvplan.pages.jobs import Progress, Work
from kvplan.pages.widgets import bundled_scenario, chart, marked, or_complaint, run_box, scenario_to_copy
from kvplan.scenario.schema import Scenario
from kvplan.search.comparison import Comparison, compare
from kvplan.simulation.branches import BranchNotes, tree
from kvplan.simulation.observer import Observer
from kvplan.simulation.records import Records
from kvplan.simulation.simulator import solve


class ComparedStrategies(NamedTuple):
    """The comparison, and the branches of each strategy over a few problems."""

    found: Comparison
    grown: dict[str, tuple[BranchNotes, Records]]


def inputs() -> Scenario | str:
    """A scenario with problems, or what is wrong with it."""
    names = sorted(path.stem for path in scenarios_dir().glob("strategy_*.yaml"))
    return or_complaint(lambda: _with_problems(names))


def _with_problems(names: list[str]) -> Scenario:
    keys, example = ("strategies", "strategies_set"), "problems.num_problems=50"
    scenario = bundled_scenario("Strategies to compare", names, "strategy_thinking_budget", keys, example)
    if scenario.problems is None:
        raise KvplanError("nothing to compare: the scenario has no `problems` with `strategies`")
    return scenario


def work(scenario: Scenario) -> Work:
    """The comparison as a job, then each strategy once more over few problems, for its tree."""

    def run(progress: Progress, observer: Observer) -> ComparedStrategies:
        found = compare(scenario, progress=progress, observer=observer)
        return ComparedStrategies(found, _grow(scenario, observer))

    return run


def _grow(scenario: Scenario, observer: Observer) -> dict[str, tuple[BranchNotes, Records]]:
    assert scenario.problems is not None
    grown = {}
    for spec in (one for said in scenario.problems.strategies for one in said.expanded()):
        notes = BranchNotes()
        solution = solve(scenario, spec, observer=Observer(observer.cancelled, on_branch=notes.start))
        grown[spec.name] = (notes, solution.records)
    return grown


def render(scenario: Scenario | str) -> None:
    """Compare, show."""
    told = scenario_to_copy(scenario)
    if told is None:
        return
    outcome = run_box("compare", told, work(told), "Compare")
    if outcome is not None:
        _show(outcome)


def _show(outcome: ComparedStrategies) -> None:
    found = outcome.found
    if found.caution:
        st.info(found.caution[0].upper() + found.caution[1:])
    told = f"Choice: {found.reason}." if found.choice else f"No choice: {found.reason}."
    (st.success if found.choice else st.warning)(marked(told))
    left, right = st.columns(2)
    with left:
        st.subheader("Accuracy, latency, cost")
        chart(searches.pareto(found), "pareto")
        st.caption(
            "Dot size: dollars per correct answer. Blue: nobody is as accurate, as fast and as cheap. "
            "Numbers: as beside."
        )
    with right:
        st.subheader("Correct answers per GPU-hour")
        chart(searches.correct_per_gpu_hour(found), "per_hour")
    if len(found.budgets) > 1:
        _budgets(found)
    _tree(outcome)
    st.subheader("All figures")
    rows = found.to_dict()["strategies"]
    st.dataframe([{"no": number, **row} for number, row in enumerate(rows, 1)], hide_index=True)
    st.caption("  \n".join(map(marked, found.rests_on)))
    for text in found.advice:
        st.caption(marked(f"Advice: {text}."))


def _budgets(found: Comparison) -> None:
    st.subheader("Thinking budget")
    for column, field in zip(st.columns(2), searches.SWEPT, strict=True):
        with column:
            chart(searches.budget_sweep(found, field), f"budgets_{field}")
    cheapest = found.caps.get("cost_optimal")
    text = f"A budget of {found.caps['p99_of_traces']:,.0f} tokens cuts one trace in a hundred"
    st.caption(
        text
        + (f"; {cheapest:,.0f} is the cheapest per correct answer of those compared." if cheapest else ".")
    )


@st.fragment
def _tree(outcome: ComparedStrategies) -> None:
    st.subheader("One problem's branches")
    left, right = st.columns(2)
    names = list(outcome.grown)
    most = max(names, key=lambda name: sum(map(len, outcome.grown[name][0].launches.values())))
    name = left.selectbox("Strategy", names, index=names.index(most), key="tree_strategy")
    notes, records = outcome.grown[name]
    problem = right.selectbox("Problem", sorted(notes.launches), key="tree_problem")
    nodes = tree(notes, records, problem)
    chart(runs.branch_tree(nodes), "tree")
    pruned = sum(node.pruned for node in nodes)
    told = f"{len(nodes)} branches" if len(nodes) > 1 else "One branch, nothing to share"
    freed = f", {pruned} pruned: their blocks are free at once, cached until others take them"
    st.caption(told + (freed if pruned else "") + ".")
