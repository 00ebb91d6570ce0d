"""What to run: the question's answer in full, deployments ranked by what they cost; or a scenario's own search."""

from __future__ import annotations

import csv
import io
import json
from typing import Any, NamedTuple

import streamlit as st

from kvplan.charts import searches as charts
from kvplan.ground.limits import in_words
from kvplan.ground.tables import counted
from kvplan.pages import verdict
from kvplan.pages.asked import ENGINES, OWN, Asked
from kvplan.pages.jobs import DRAW, read_apart
from kvplan.pages.running import STOPPED, early, run_box
from kvplan.pages.simulation_tab import scenario_names
from kvplan.pages.uploads import simulated
from kvplan.pages.widgets import (
    QUESTION,
    ScenarioSource,
    ShownFigure,
    chart,
    command,
    digits,
    figures,
    lines,
    marked,
    or_complaint,
    pictures,
    read_source,
    scenario_to_copy,
    shown_ms,
    source_of,
)
from kvplan.pages.work import PlannedMemory, recommend_work, report_of
from kvplan.scenario.schema import Scenario, dump_scenario
from kvplan.search.planning import SURER, ServingAnswer, doubt_lines, question_rows
from kvplan.search.point_row import asked_latencies
from kvplan.search.recommendation import EXPLAINED, Candidate, Recommendation


class DeploymentInputs(NamedTuple):
    """Whose search: the question's, or a scenario's (a complaint in its place, None while its file is to come)."""

    source: ScenarioSource
    scenario: Scenario | str | None


def inputs(asked: Asked | str) -> DeploymentInputs:
    """The tab's inputs."""
    names = scenario_names("recommend_*")
    source = source_of("search", names, "recommend_qwq_500_users", "search.max_gpus=32")
    if source.kind == QUESTION:
        return DeploymentInputs(source, None)
    return DeploymentInputs(source, or_complaint(lambda: read_source(simulated, source, None)))


def render(asked: Asked, told: DeploymentInputs, planned: PlannedMemory | None) -> None:
    """The answer, or how to get it. `planned`: the question's plan, if it has one."""
    if told.source.kind == QUESTION:
        if planned is not None:
            _of_question(asked, planned)
        return
    if told.scenario is None:
        st.info("Upload a scenario file with targets (`slo`) and a `search`.", icon=":material/upload_file:")
        return
    lines(
        [
            "Taken from the question: nothing. The scenario says model, cards, load, targets, and what may be changed."
        ]
    )
    scenario = scenario_to_copy(
        told.scenario, "The search as a file", "kvplan recommend scenario.yaml", "search"
    )
    if scenario is None:
        return
    found = run_box(
        "recommend", scenario, lambda: recommend_work(scenario), "Recommend", dict(told.source.files)
    )
    if found is not None:
        _headline(found, early("recommend"))
        _show(found)
    elif "recommend_job" not in st.session_state:
        st.caption(
            "A search shows which deployments keep the targets, ranked by cost, and what rules out the others."
        )


def _of_question(asked: Asked, planned: PlannedMemory) -> None:
    answer = verdict.answer_of(asked)
    lines(taken(asked))
    if answer is None and not planned.plan.serves and not asked.is_open:
        st.info(
            "These cards hold no copy of the model. **Estimate** shows what would; choose such cards above - a name "
            "without a number: as many as it takes - and they are ranked here.",
            icon=":material/arrow_upward:",
        )
        return
    if answer is None:
        job = st.session_state.get("plan_job")
        mine = job if job is not None and st.session_state["plan_asked"] == asked else None
        if mine is None or not mine.is_over or mine.result is None:
            _to_come(asked, mine is not None and not mine.is_over)
            return
        answer = mine.result  # cancelled: with what was done so far
        if answer.best is None:
            lines([f"{answer.found.reason[0].upper()}{answer.found.reason[1:]}."])
    if answer.best is not None:  # else the verdict says why
        _headline(answer.found, "")
    _show(answer.found)
    _sure(answer)
    _take_away(asked, answer)


def _to_come(asked: Asked, is_under_way: bool) -> None:
    """What stands here once the question is answered in full."""
    how = "It is under way above, and will stand here."
    if not is_under_way:
        how = f"Press **{marked(verdict.check_label(asked))}** above, and it stands here."
    st.info(
        "Which cards, how many copies, at what price: the answer simulates this load on each candidate. "
        + how,
        icon=":material/arrow_upward:",
    )


def taken(asked: Asked) -> list[str]:
    """What the recommendation takes from the question, and what it changes."""
    model = "your config.json" if asked.model == OWN else asked.model
    looked = [] if asked.args.tensor_parallel_size > 1 else ["tensor-parallel sizes"]
    looked += [] if asked.args.kv_cache_dtype != "auto" else ["KV dtypes (auto, fp8)"]
    said = (
        f"Taken from the question: {model}, {', '.join((asked.gpu, *asked.also))}, load, lengths, targets, budget, "
        f"{asked.engine} and its flags."
    )
    said += f" Looked for: {' and '.join(looked)}, copies." if looked else " Looked for: copies."
    if asked.num_samples * asked.num_requests > 1:
        said += " Not taken: samples and requests at one moment."
    if asked.engine == ENGINES[2]:
        said += " TensorRT-LLM: its admission rule and step times; memory is vLLM's."
    return [said]


def _headline(found: Recommendation, cut: str) -> None:
    """The best one in figures. `cut`: that the search was ended early, in Markdown."""
    best = found.best
    why = "" if best else marked(f"{found.reason[0].upper()}{found.reason[1:]}.")
    if cut or why:
        st.warning(
            "  \n".join(filter(None, (cut and f"{cut}.", why))), icon=STOPPED if cut else ":material/block:"
        )
    if best is None:
        return
    usd, low, high = best.usd_per_hour, best.usd_per_hour_low, best.usd_per_hour_high
    copies = (best.num_gpus or 0) // best.figures["num_gpus_per_copy"]
    target = asked_latencies(found.scenario)[0]
    figures(
        [
            ShownFigure(
                "Cost", "-" if usd is None else f"${usd:,.2f}/h", _money(low, high), best.price_source
            ),
            ShownFigure(
                "Copies",
                f"{copies:,}",
                f"of {best.figures['num_gpus_per_copy']} x {best.settings.get('gpu', found.scenario.gpu)}",
            ),
            ShownFigure(
                "Load may grow",
                "-" if best.headroom is None else f"{best.headroom:.0%}{' or more' * best.at_least}",
                f"then {in_words(best.limited_by)} gives out",
            ),
            ShownFigure(
                f"{LATENCY_NAMES[target]} p99",
                shown_ms(best.figures.get(f"p99_{target}")),
                "at a copy's highest load",
            ),
        ]
    )
    for line in best.commands:
        command(line)


def _money(low: float | None, high: float | None) -> str:
    if low is None or low == high:
        return ""
    return f"${low:,.2f} to {'any price' if high is None else f'${high:,.2f}'}"


def _show(found: Recommendation) -> None:
    feasible = [c for c in found.candidates if c.feasible]
    if feasible:
        st.subheader("Speed against throughput")
        drawn = charts.speed_and_throughput(found)
        chart(drawn, "frontier", "Tokens a second per user against tokens a second per GPU, each deployment")
        st.caption(
            "Numbers: as in the table. Each at the highest load that keeps the targets; bars: nine cases in ten of "
            "what its steps may take; hollow, where there are any: measured by others, at the loads that they ran."
        )
        st.subheader("Ranked, the cheapest first")
        st.table(
            [{"No": f"{number}", **_words(c)} for number, c in enumerate(feasible[:12], 1)], hide_index=True
        )
        if len({c.usd_per_hour for c in feasible}) > 1:
            chart(charts.ranking(found), "ranking", "Dollars an hour by deployment")
    ruled_out = [c for c in found.candidates if not c.feasible]
    if ruled_out:
        with st.expander(f"Ruled out: {len(ruled_out)}"):
            st.table(
                [{"Deployment": marked(c.label), "Why": marked(c.why)} for c in ruled_out], hide_index=True
            )
    if feasible:
        with st.expander("What the columns mean, ranges and sources"):
            lines([*EXPLAINED, *found.rests_on])


def _words(row: Candidate) -> dict[str, str]:
    """A candidate as people would say it."""
    each = row.figures["num_gpus_per_copy"]
    carried = "-" if row.highest is None else f"{'at least ' if row.at_least else ''}{digits(row.highest)}"
    ends = (row.highest_low, row.highest_high)
    carried += f" ({digits(ends[0])} to {digits(ends[1])})" if None not in ends and ends[0] != ends[1] else ""  # type: ignore[arg-type]
    usd = "-" if row.usd_per_hour is None else f"${row.usd_per_hour:,.2f}"
    spread = _money(row.usd_per_hour_low, row.usd_per_hour_high)
    return {
        "Deployment": marked(row.label),
        "Runs": f"{(row.num_gpus or 0) // each} x {counted(each, 'GPU')}",
        "An hour": plain_money(usd + (f" ({spread})" if spread else "")),
        "A copy carries": carried,
        "First token p99": shown_ms(row.figures.get("p99_ttft_ms")),
        "Token p99": shown_ms(row.figures.get("p99_tpot_ms")),
        "Gives out first": in_words(row.limited_by),
    }


LATENCY_NAMES = {
    "ttft_ms": "First token",
    "ttfvt_ms": "Visible token",
    "tpot_ms": "Per token",
    "e2el_ms": "Whole answer",
}


def plain_money(told: str) -> str:
    """Dollars in a table of Markdown, where two of them would be a formula."""
    return told.replace("$", "\\$")


def _sure(answer: ServingAnswer) -> None:
    """How sure, and what would shrink the doubt."""
    if answer.best is None:
        return
    st.subheader("How sure")
    said = [" ".join(line.split()) for line in doubt_lines(answer)[1:]]
    at = said.index(SURER)
    for title, some in (("", said[:at]), (SURER, said[at + 1 :])):
        told = "\n".join(f"- {marked(line[0].upper() + line[1:])}" for line in some)
        st.markdown((f"**{title}**\n\n" if title else "") + told)
    assumed = [f"{name}: {told} ({note})" for name, told, note in question_rows(answer.question) if note]
    if assumed:
        with st.expander("Assumed, because nobody said it"):
            lines(assumed)


def _take_away(asked: Asked, answer: ServingAnswer) -> None:
    found = answer.found
    rows = [candidate.to_dict() for candidate in found.candidates]
    st.subheader("Take it away")
    is_plain = not asked.settled and not asked.config
    command(asked.words("plan") if is_plain else "kvplan recommend plan.yaml")
    if not is_plain:
        st.caption(
            "`kvplan plan` takes no engine flags: the scenario below has them; it ranks the same deployments."
        )
    with st.container(horizontal=True, gap="small"):
        st.download_button(
            "Report (HTML)",
            lambda: read_apart(report_of, answer, bounds=DRAW),
            "plan.html",
            key="report",
            on_click="ignore",
        )
        st.download_button(
            "JSON",
            lambda: json.dumps(answer.to_dict(), indent=2, allow_nan=False),
            "plan.json",
            key="plan_json",
            on_click="ignore",
        )
        st.download_button(
            "Rows (CSV)", lambda: _csv(rows), "deployments.csv", key="plan_csv", on_click="ignore"
        )
        st.download_button(
            "Scenario (YAML)", dump_scenario(found.scenario), "plan.yaml", key="plan_yaml", on_click="ignore"
        )
    if any(c.feasible for c in found.candidates):
        with st.expander("Pictures"):
            pictures({"frontier": charts.speed_and_throughput(found), "cost": charts.ranking(found)}, "plan")


def _csv(rows: list[dict[str, Any]]) -> bytes:
    flat = [
        {**row["settings"], **{k: v for k, v in row.items() if not isinstance(v, dict | list)}}
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)))
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().encode()
