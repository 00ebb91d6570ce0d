"""What to run: targets and load in, configurations that carry it out, ranked by what they cost."""

from __future__ import annotations

from typing import Any

import streamlit as st

from kvplan.charts import searches as charts
from kvplan.engines.flags import EngineArgs
from kvplan.errors import KvplanError
from kvplan.gpu import gpu_names
from kvplan.pages.jobs import Progress, Work
from kvplan.pages.sidebar import KV_DTYPES, Asked
from kvplan.pages.widgets import BIND, chart, marked, or_complaint, run_box, scenario_to_copy
from kvplan.scenario.schema import Scenario
from kvplan.search.recommendation import Recommendation
from kvplan.search.recommending import recommend
from kvplan.simulation.observer import Observer

NUM_REQUESTS = 80
"""Simulated at each load that is tried."""
COLUMNS = ("highest", "highest_low", "highest_high", "copies", "num_gpus", "usd_per_hour", "usd_per_hour_low",
           "usd_per_hour_high", "headroom", "p99_ttfvt_ms", "p99_e2el_ms", "p99_e2el_ms_low", "p99_e2el_ms_high",
           "mean_watts", "joules_per_output_token", "joules_per_output_token_low", "joules_per_output_token_high",
           "kwh_per_million_output_tokens", "gco2_per_million_output_tokens", "kv_peak_fraction", "limited_by", "lift",
           "price_source")  # fmt: skip


def inputs(asked: Asked) -> Scenario | str:
    """The search that the widgets stand for, or what is wrong with it."""
    with st.container(horizontal=True):
        rate = st.number_input("Requests per second to carry", 0.001, 1e6, 2.0, key="carry", **BIND)
        ttfvt = st.number_input("SLO: first visible, ms (0: none)", 0.0, 1e9, 0.0, key="slo_visible", **BIND)
        e2el = st.number_input("SLO: end to end, ms (0: none)", 0.0, 1e9, 600_000.0, key="slo_end", **BIND)
        share = st.number_input("Share of requests in time", 0.01, 1.0, 0.9, 0.01, key="slo_share", **BIND)
    for_cards, for_ranks, for_dtypes, for_most = st.columns((2, 1, 1, 1), vertical_alignment="bottom")
    cards = for_cards.multiselect("Cards", gpu_names(), ("l40s", "h100-sxm", "h200"), key="cards", **BIND)
    ranks = for_ranks.multiselect("Tensor parallel", (1, 2, 4, 8), (1, 2), key="ranks", **BIND)
    dtypes = for_dtypes.multiselect("KV cache dtype", KV_DTYPES, ("auto",), key="dtypes", **BIND)
    most = for_most.number_input("Most GPUs (0: any)", 0, 100_000, 0, key="max_gpus", **BIND)
    targets = {"ttfvt_ms": ttfvt or None, "e2el_ms": e2el or None, "share": share}
    over = {"gpu": cards, "engine.tensor_parallel_size": ranks, "engine.kv_cache_dtype": dtypes}
    return or_complaint(lambda: _search(asked, float(rate), targets, over, int(most)))


def _search(asked: Asked, rate: float, slo: dict[str, Any], over: dict[str, Any], most: int) -> Scenario:
    if not all(over.values()):
        raise KvplanError("name at least one card, one number of ranks and one KV dtype to try")
    flags = asked.args.model_dump(exclude_defaults=True)
    fixed = EngineArgs(**{k: v for k, v in flags.items() if f"engine.{k}" not in over})
    search = {"over": over, "rate": rate, "max_gpus": most or None, "refine": 1, "seeds": 2}
    first = asked._replace(gpu=over["gpu"][0], args=fixed)
    return first.scenario("recommend", NUM_REQUESTS, rate, slo=slo, search=search)


def work(scenario: Scenario) -> Work:
    """The search as a job."""

    def run(progress: Progress, observer: Observer) -> Recommendation:
        def told(done: int, total: int) -> None:
            progress(done, total)
            if observer.cancelled():
                raise KeyboardInterrupt  # what the search takes for the end, with what it has

        return recommend(scenario.model_dump(mode="json", exclude_defaults=True), progress=told)

    return run


def render(scenario: Scenario | str) -> None:
    """Search, show the ranking."""
    told = scenario_to_copy(scenario, "The search as a file (kvplan recommend)")
    if told is None:
        return
    found = run_box("recommend", told, work(told), "Recommend")
    if found is not None:
        _show(found)


def _show(found: Recommendation) -> None:
    (st.success if found.best else st.warning)(marked(found.reason))
    if found.best:
        chart(charts.ranking(found), "ranking")
        for command in found.best.commands:
            st.code(command, language="bash", wrap_lines=True)
    rows = [candidate.to_dict() for candidate in found.candidates]
    st.subheader("Ranked")
    st.dataframe(
        [{**row["settings"], **{k: row[k] for k in COLUMNS}} for row in rows if row["feasible"]],
        hide_index=True,
    )
    st.caption("  \n".join(map(marked, found.rests_on)))
    ruled_out = [{**row["settings"], "why": row["why"]} for row in rows if not row["feasible"]]
    if ruled_out:
        st.subheader("Ruled out")
        st.table(ruled_out, hide_index=True)
