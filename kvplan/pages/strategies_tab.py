"""What tokens buy: test-time strategies on the same card, problems and luck."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import streamlit as st

from kvplan.charts import runs, searches
from kvplan.charts.drawing import Layered
from kvplan.ground.limits import in_words
from kvplan.ground.tables import counted
from kvplan.pages.asked import OWN, TABLE, Asked, mean_thinking
from kvplan.pages.links import BIND
from kvplan.pages.running import STOPPED, early, run_box
from kvplan.pages.simulation_tab import scenario_names
from kvplan.pages.uploads import check_size, compared
from kvplan.pages.widgets import (
    BUNDLED,
    FILE,
    ScenarioSource,
    ShownFigure,
    breakable,
    chart,
    digits,
    figures,
    lines,
    marked,
    or_complaint,
    pictures,
    plain_money,
    read_source,
    rows_of,
    scenario_to_copy,
    shown_ms,
    source_of,
    span,
    switch,
)
from kvplan.pages.work import ComparedStrategies, compare_work
from kvplan.scenario.schema import Scenario
from kvplan.search.comparison import Comparison


class StrategyInputs(NamedTuple):
    """What to compare; a complaint in place of a scenario, None while its file is still to come."""

    source: ScenarioSource
    scenario: Scenario | str | None
    of_question: bool
    files: dict[str, bytes]


def inputs(asked: Asked | str) -> StrategyInputs:
    """The tab's inputs, and the scenario with problems that they stand for."""
    names = scenario_names("strategy_*")
    source = source_of(
        "strategies", names, "strategy_thinking_budget", "problems.num_problems=50", (BUNDLED, FILE)
    )
    of_question = switch(st, "On the question's model, cards, load and lengths", "of_question", True)
    with st.expander("Your own samples"):
        table = st.file_uploader(
            "Graded samples: CSV or JSON of problem, sample, tokens, correct; or as a harness wrote them",
            type=["csv", "json", "jsonl"], max_upload_size=2, key="pass_table",
            help="Instead of the scenario's chances and lengths: lm-evaluation-harness, LiveCodeBench, OpenCompass.",
        )  # fmt: skip
    if of_question and isinstance(asked, str):
        return StrategyInputs(source, asked, of_question, {})
    whole = asked if of_question and isinstance(asked, Asked) else None
    own = () if table is None else ((TABLE, table.getvalue()),)
    files = dict(source.files) | dict(own) | (whole.files if whole else {})

    def read() -> Scenario | None:
        for name, content in own:
            check_size(name, content)
        return read_source(compared, source, whole, own)

    return StrategyInputs(source, or_complaint(read), of_question, files)


def render(asked: Asked, told: StrategyInputs) -> None:
    """Compare, show."""
    if told.scenario is None:
        st.info(
            "Upload a scenario file with `problems` and their `strategies`.", icon=":material/upload_file:"
        )
        return
    if isinstance(told.scenario, Scenario):
        lines(taken(asked, told, told.scenario))
    scenario = scenario_to_copy(
        told.scenario, "The scenario as a file", "kvplan compare scenario.yaml", "strategies"
    )
    if scenario is None:
        return
    outcome = run_box("compare", scenario, lambda: compare_work(scenario), "Compare", told.files)
    if outcome is not None:
        _show(outcome)
    elif "compare_job" not in st.session_state:
        st.caption(
            "A comparison shows who is most accurate, fastest and cheapest per right answer, and how each one branches."
        )


def taken(asked: Asked, told: StrategyInputs, scenario: Scenario) -> list[str]:
    """What the comparison takes from the question, and what it changes."""
    assert scenario.problems is not None
    if not told.of_question:
        return [
            f"Taken from the question: nothing. The scenario has its own model ({scenario.model}), card "
            f"({scenario.gpu}), "
            "arrivals and lengths."
        ]
    model = "your config.json" if asked.model == OWN else asked.model
    load = (
        f"{asked.question.users:,} at a time" if asked.question.users else f"{asked.question.rate:g} a second"
    )
    lengths = (
        "lengths and chances are your table's"
        if scenario.problems.pass_table
        else f"thinking {mean_thinking(asked.question):,} tokens on average, prompts and answers as asked"
    )
    problems, from_it = scenario.problems, "the strategies"
    if not problems.pass_table:
        number = counted(problems.num_problems, "problem")
        from_it = f"{number}, how hard they are ({problems.quality.name}), the strategies"
    return [
        f"Taken from the question: {model}, {scenario.replicas} x {scenario.gpu}, {asked.engine} and its "
        f"flags, problems {load}; {lengths}. Not taken: targets. From the scenario: {from_it}."
    ]


def _show(outcome: ComparedStrategies) -> None:
    found = outcome.found
    rows = found.to_dict()["strategies"]
    tie, is_tie, rest = found.reason.partition("tie: ")
    word = ("Tie" if is_tie and not tie else "Choice") if found.choice else "No choice"
    said, cut = f"**{word}:** {marked(rest if word == 'Tie' else found.reason)}.", early("compare")
    if cut:
        st.warning(f"{cut}.  \n{said}", icon=STOPPED)
    else:
        (st.success if found.choice else st.warning)(
            said, icon=":material/check_circle:" if found.choice else ":material/warning:"
        )
    _figures(found, rows)
    if found.caution:
        st.info(marked(found.caution[0].upper() + found.caution[1:] + "."), icon=":material/info:")
    st.subheader("Accuracy, latency, cost")
    front, per_hour = searches.pareto(found, names=False), searches.correct_per_gpu_hour(found)
    chart(front, "pareto", "Accuracy against latency of each strategy; cost as size")
    st.caption(
        "Dot size: dollars per correct answer. Blue: no other is at least as accurate, as fast and as cheap. "
        "Numbers: as in the table."
    )
    both = zip(rows, found.rows, strict=True)
    told = [
        {"No": f"{number}", **_words(row, one.correct_per_gpu_hour)}
        for number, (row, one) in enumerate(both, 1)
    ]
    st.table(told, hide_index=True)
    st.subheader("Correct answers per GPU-hour")
    chart(per_hour, "per_hour", "Correct answers per GPU-hour by strategy")
    drawn = {"pareto": front, "per-hour": per_hour}
    if len(found.budgets) > 1:
        drawn |= _budgets(found)
    if any(len(nodes) > 1 for trees in outcome.trees.values() for nodes in trees.values()):
        _tree(outcome)
    with st.expander("All figures"):
        rows_of([{"no": number, **row} for number, row in enumerate(rows, 1)])
    with st.expander("Ranges and sources"):
        lines([*found.rests_on, *(f"Advice: {said}" for said in found.advice)])
    st.subheader("Take it away")
    with st.container(horizontal=True, gap="small"):
        st.download_button(
            "Rows (CSV)", lambda: _csv(rows), "strategies.csv", key="compare_csv", on_click="ignore"
        )
        st.download_button(
            "JSON", lambda: json.dumps(found.to_dict(), indent=2, allow_nan=False), "compare.json",
            key="compare_json", on_click="ignore",
        )  # fmt: skip
    with st.expander("Pictures"):
        pictures(drawn, "compare")


def _words(row: Mapping[str, Any], per_hour: float) -> dict[str, str]:
    """A strategy as people would say it."""

    def of(name: str, shown: Callable[[float], str]) -> str:
        value, ends = row[name], _ends(row, name, shown)
        return "-" if value is None else shown(float(value)) + (f" ({ends})" if ends else "")

    return {
        "Strategy": breakable(marked(str(row["strategy"]))),
        "Solved": of("accuracy", lambda share: f"{share:.0%}"),
        "Latency p99": of("latency_p99_s", lambda seconds: shown_ms(1e3 * seconds)),
        "Per correct answer": plain_money(of("usd_per_correct", lambda usd: f"${digits(usd, '#')}")),
        "Correct per GPU-hour": digits(per_hour),
        "Gives out first": in_words(str(row["limited_by"])),
    }


def _figures(found: Comparison, rows: list[dict[str, object]]) -> None:
    """The chosen strategy, or the most accurate, in figures."""
    best = next(
        (row for row in found.rows if row.strategy == found.choice),
        max(found.rows, key=lambda row: row.accuracy),
    )
    row, name = rows[found.rows.index(best)], best.strategy
    cost = row["usd_per_correct"]
    figures(
        [
            ShownFigure("Problems solved", f"{row['accuracy']:.0%}", _ends(row, "accuracy", lambda v: f"{v:.0%}"),
                        name),
            ShownFigure("Latency p99", shown_ms(1e3 * float(str(row["latency_p99_s"]))),
                   _ends(row, "latency_p99_s", lambda v: shown_ms(1e3 * v))),
            ShownFigure("Per correct answer", "-" if cost is None else f"${digits(float(str(cost)), '#')}",
                   _ends(row, "usd_per_correct", lambda v: f"${digits(v, '#')}")),
            ShownFigure("Correct per GPU-hour", digits(best.correct_per_gpu_hour),
                   f"limited by {in_words(best.limited_by)}"),
        ]
    )  # fmt: skip


def _ends(row: Mapping[str, Any], name: str, shown: Callable[[float], str]) -> str:
    """Its range, where the row has one."""
    low, high = (row.get(f"{name}{end}") for end in ("_low", "_high"))
    return "" if low is None or high is None else span(low, high, shown)


def _csv(rows: list[dict[str, object]]) -> bytes:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _budgets(found: Comparison) -> dict[str, Layered]:
    st.subheader("Thinking budget")
    drawn = {field: searches.budget_sweep(found, field) for field in searches.SWEPT}
    for column, (field, figure) in zip(st.columns(2), drawn.items(), strict=True):
        with column:
            chart(figure, f"budgets_{field}", f"{searches.SWEPT[field][0]} by thinking budget")
    cheapest = found.caps.get("cost_optimal")
    said = f"A budget of {found.caps['p99_of_traces']:,.0f} tokens cuts one trace in a hundred"
    st.caption(
        said
        + (f"; {cheapest:,.0f} is the cheapest per correct answer of those compared." if cheapest else ".")
    )
    return {f"budget-{field}": figure for field, figure in drawn.items()}


@st.fragment
def _tree(outcome: ComparedStrategies) -> None:
    st.subheader("One problem's branches")
    left, right = st.columns([3, 1])
    names = list(outcome.trees)
    most = max(names, key=lambda name: sum(map(len, outcome.trees[name].values())))
    name = left.selectbox("Strategy", names, index=names.index(most), key="tree_strategy", **BIND)
    trees = outcome.trees[name]
    problem = right.selectbox("Problem", sorted(trees), key="tree_problem", **BIND)
    nodes = trees.get(problem, [])
    if not nodes:
        st.caption("This problem has no branches.")
        return
    folded = runs.fold(nodes)
    chart(runs.branch_tree(nodes), "tree", "Branches of one problem by token position")
    pruned = sum(node.pruned for node in nodes)
    told = f"{len(nodes):,} branches" if len(nodes) > 1 else "One branch, nothing to share"
    told += (
        f" in {len(folded)} rows: a row with a number stands for so many alike"
        if len(folded) < len(nodes)
        else ""
    )
    freed = f", {pruned:,} pruned: their blocks are free at once, cached until others take them"
    st.caption(
        told
        + (freed if pruned else "")
        + ". Shift and the wheel zoom, dragging moves, a double click shows all."
    )
