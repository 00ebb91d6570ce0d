"""What to run: the question's answer in full, deployments ranked by what they cost; or a scenario's own search."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
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
    plain_money,
    read_source,
    scenario_to_copy,
    sentence,
    shown_ms,
    source_of,
)
from kvplan.pages.work import PlannedMemory, recommend_work, report_of
from kvplan.scenario.schema import Scenario, dump_scenario
from kvplan.search.planning import SURER, ServingAnswer, doubt_lines, question_rows
from kvplan.search.point_row import asked_latencies
from kvplan.search.recommendation import Candidate, Recommendation


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
        _verdict(found, early("recommend"))
        _headline(found)
        _show(found)
        _files(found, "search")
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
    _headline(answer.found)
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


def _verdict(found: Recommendation, cut: str) -> None:
    """A scenario's answer in words. `cut`: that the search was ended early, in Markdown."""
    told = marked(sentence(found.reason))
    if cut:
        st.warning(f"{cut}.  \n{told}", icon=STOPPED)
    elif found.best is None:
        st.error(told, icon=":material/block:")
    else:
        st.success(f"**Best:** {marked(found.reason)}.", icon=":material/check_circle:")


def _headline(found: Recommendation) -> None:
    """The best one in figures."""
    best = found.best
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
            [
                {"No": f"{number}", **_words(c, found.search.kind)}
                for number, c in enumerate(feasible[:12], 1)
            ],
            hide_index=True,
        )
        if len({c.usd_per_hour for c in feasible}) > 1:
            chart(charts.ranking(found), "ranking", "Dollars an hour by deployment")
    ruled_out = [c for c in found.candidates if not c.feasible]
    if ruled_out:
        with st.expander(f"Ruled out: {len(ruled_out)}", expanded=not feasible):
            st.table(
                [{"Deployment": marked(c.label), "Why": marked(c.why)} for c in ruled_out], hide_index=True
            )
    if feasible:
        with st.expander("What the columns mean, ranges and sources"):
            lines([*COLUMNS, *found.rests_on])


COLUMNS = (
    "Runs: copies x GPUs of each, spares included; so many as the least takes that one carries over draws of the load",
    "Latencies: p99 at a copy's highest load that keeps the targets",
    "In brackets: nine cases in ten, by errors on models left out, simulated",
)
CARRIED = {"rate": "Requests/s of a copy", "users": "Users of a copy", "batch": "Of a copy by the deadline"}
"""What one copy carries, by the kind of load."""


def _words(row: Candidate, kind: str) -> dict[str, str]:
    """A candidate as people would say it."""
    each = row.figures["num_gpus_per_copy"]
    shown = (
        digits if kind == "rate" else lambda number: f"{int(number):,}"
    )  # users are whole, as requests are
    carried = "-" if row.highest is None else f"{'at least ' if row.at_least else ''}{shown(row.highest)}"
    low, high = row.highest_low, row.highest_high
    if low is not None and high is not None and low != high:  # at least so many: nobody looked for the most
        carried += f" ({shown(low)}{' at the worst' if row.at_least else f' to {shown(high)}'})"
    usd = "-" if row.usd_per_hour is None else f"${row.usd_per_hour:,.2f}"
    spread = _money(row.usd_per_hour_low, row.usd_per_hour_high)
    return {
        "Deployment": marked(row.label),
        "Runs": f"{(row.num_gpus or 0) // each} x {counted(each, 'GPU')}",
        "An hour": plain_money(usd + (f" ({spread})" if spread else "")),
        CARRIED[kind]: carried,
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
    is_plain = not asked.settled and not asked.config
    line = asked.words("plan") if is_plain else "kvplan recommend plan.yaml"
    _files(answer.found, "plan", line, answer)
    if not is_plain:
        st.caption(
            "`kvplan plan` takes no engine flags: the scenario above has them; it ranks the same deployments."
        )


def _files(found: Recommendation, name: str, line: str = "", answer: ServingAnswer | None = None) -> None:
    """Everything to take away; of a question its answer with a report."""
    st.subheader("Take it away")
    if line:
        command(line)
    whole = found if answer is None else answer
    made: list[tuple[str, Callable[[], Any], str, str]] = [
        (
            "JSON",
            lambda: json.dumps(whole.to_dict(), indent=2, allow_nan=False),
            f"{name}.json",
            f"{name}_json",
        ),
        (
            "Rows (CSV)",
            lambda: _csv([c.to_dict() for c in found.candidates]),
            "deployments.csv",
            f"{name}_csv",
        ),
    ]
    if answer is not None:
        made.insert(
            0, ("Report (HTML)", lambda: read_apart(report_of, answer, bounds=DRAW), "plan.html", "report")
        )
        made.append(("Scenario (YAML)", lambda: dump_scenario(found.scenario), "plan.yaml", "plan_yaml"))
    with st.container(horizontal=True, gap="small"):
        for label, content, file, key in made:
            st.download_button(label, content, file, key=key, on_click="ignore")
    if any(c.feasible for c in found.candidates):
        drawn = {"frontier": charts.speed_and_throughput(found), "cost": charts.ranking(found)}
        with st.expander("Pictures"):
            pictures(drawn, name)


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
