"""How it behaves: a scenario on the simulator, what happened in it, and everything to take away."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import streamlit as st

from kvplan.charts import runs as charts
from kvplan.errors import KvplanError
from kvplan.files import scenarios_dir
from kvplan.pages.jobs import Progress, Work
from kvplan.pages.sidebar import Asked
from kvplan.pages.uploads import scenario_from_text, through_files
from kvplan.pages.widgets import (
    BIND,
    bundled_scenario,
    chart,
    marked,
    or_complaint,
    run_box,
    scenario_to_copy,
)
from kvplan.scenario.schema import Scenario, dump_scenario
from kvplan.simulation.bench_report import bench_block, bench_tail, side_rows
from kvplan.simulation.block_map import BlockMap, holdings
from kvplan.simulation.deploy import set_ups
from kvplan.simulation.observer import Observer
from kvplan.simulation.records import write_records
from kvplan.simulation.result import VERDICTS, Result
from kvplan.simulation.simulator import simulate
from kvplan.simulation.tier_gain import add_tier_gain
from kvplan.simulation.trace import chrome_trace
from kvplan.simulation.uncertainty import add_ranges

SOURCES = ("Bundled", "From the sidebar", "Upload")


class SimulatedRun(NamedTuple):
    """A run, and who owned which blocks if that was asked for."""

    result: Result
    blocks: BlockMap


def inputs(asked: Asked) -> Scenario | str:
    """The scenario that the tab's widgets stand for, or what is wrong with it."""
    source = st.segmented_control(
        "Scenario", SOURCES, default=SOURCES[0], required=True, key="source", **BIND
    )
    read = {"Upload": _uploaded, "From the sidebar": lambda: _built(asked)}.get(str(source), _bundled)
    return or_complaint(read)


def _bundled() -> Scenario:
    names = sorted(path.stem for path in scenarios_dir().glob("*.yaml"))
    keys = ("scenario", "set")
    return bundled_scenario("Bundled scenario", names, "long_thinking", keys, "engine.max_num_seqs=64")


def _uploaded() -> Scenario:
    file = st.file_uploader("A scenario file", type=["yaml", "yml"], max_upload_size=2, key="scenario_file")
    if file is None:
        raise KvplanError("upload a scenario file; it may name bundled models and no files")
    return scenario_from_text(file.getvalue().decode("utf-8", errors="replace"), file.name.rpartition(".")[0])


def _built(asked: Asked) -> Scenario:
    """The sidebar's deployment under a Poisson load of the sidebar's lengths."""
    left, middle, right = st.columns(3)
    requests = left.number_input("Requests", 1, 1_000_000, 200, key="num_prompts", **BIND)
    rate = middle.number_input("Requests per second", 0.001, 1e6, 2.0, key="request_rate", **BIND)
    seed = right.number_input("Seed", 0, 1 << 31, 0, key="seed", **BIND)
    ttft = left.number_input("SLO: first token, ms (0: none)", 0.0, 1e8, 0.0, key="slo_ttft", **BIND)
    tpot = middle.number_input("SLO: per token, ms (0: none)", 0.0, 1e8, 0.0, key="slo_tpot", **BIND)
    e2el = right.number_input("SLO: end to end, ms (0: none)", 0.0, 1e9, 0.0, key="slo_e2el", **BIND)
    slo = {"ttft_ms": ttft or None, "tpot_ms": tpot or None, "e2el_ms": e2el or None}
    return asked.scenario("from the sidebar", int(requests), rate, int(seed), slo=slo)


def work(scenario: Scenario, with_blocks: bool) -> Work:
    """The simulation as a job."""

    def run(progress: Progress, observer: Observer) -> SimulatedRun:
        blocks = BlockMap()
        look = Observer(observer.cancelled, blocks.look, copies=True)
        setups = set_ups(scenario) if scenario.problems is None else None
        result = simulate(scenario, step_by_step=with_blocks, progress=progress, observer=look, setups=setups)
        if setups is not None:
            add_ranges(scenario, setups, result, Observer(observer.cancelled))
        add_tier_gain(scenario, result, Observer(observer.cancelled))
        return SimulatedRun(result, blocks)

    return run


def render(scenario: Scenario | str) -> None:
    """Run it, show what happened."""
    told = scenario_to_copy(scenario)
    if told is None:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.download_button("Download the scenario", dump_scenario(told), f"{told.name}.yaml", key="yaml")
        with_blocks = st.toggle("Note who owns which block (slower: step by step)", key="owners", **BIND)
    found = run_box("simulate", (told, with_blocks), work(told, with_blocks), "Simulate")
    if found is not None:
        _show(found)


def _show(found: SimulatedRun) -> None:
    result = found.result
    _headline(result)
    left, right = st.columns(2)
    with left:
        st.subheader("KV cache by kind")
        chart(charts.kv_over_time(result), "kv_time")
        st.caption(
            "A token that several requests share counts once for each; the line counts each block once."
        )
    with right:
        st.subheader("Running, waiting, preempted")
        chart(charts.queue_over_time(result), "queue_time")
    if result.offload is not None:
        _tier(result)
    st.subheader("Latencies")
    for column, name in zip(st.columns(3), charts.LATENCIES, strict=True):
        with column:
            chart(charts.latency_shares(result, name), f"latency_{name}")
    _requests(result)
    if found.blocks.moments:
        _blocks(found.blocks)
    st.subheader("Report")
    st.code(bench_block(result), language=None)
    st.caption("  \n".join(map(marked, bench_tail(result))))
    _downloads(found)


def _tier(result: Result) -> None:
    """The tier beyond the GPUs: its fill, what moved, and the same requests without it."""
    st.subheader("KV beyond the GPU")
    left, right = st.columns(2)
    with left:
        chart(charts.tier_over_time(result), "tier_time")
    with right:
        chart(charts.copies_over_time(result), "copies_time")
    if result.offload_comparison is None:
        return
    rows = [dict(zip(("", "with the tier", "without"), row, strict=True)) for row in side_rows(result)]
    with st.container(key="tier_sides"):
        st.table(rows)


def _headline(result: Result) -> None:
    document = result.to_dict()
    kept = {None: "", True: ", SLO met", False: ", SLO missed"}[result.slo_met]
    ended = f"{VERDICTS[result.verdict]}{kept}; limited by {result.limited_by}"
    (st.success if result.exit_code == 0 else st.warning)(f"{ended[0].upper()}{ended[1:]}.")
    with st.container(horizontal=True):
        st.metric("Completed", f"{document['completed']:,} of {document['num_requests']:,}", width="content")
        st.metric("Output tokens/s", f"{document['output_throughput'] or 0:,.1f}", width="content")
        for key, label in (
            ("mean_ttft_ms", "Mean TTFT"),
            ("mean_tpot_ms", "Mean TPOT"),
            ("mean_e2el_ms", "Mean E2EL"),
        ):
            value = document[key]
            st.metric(label, shown_ms(value), width="content")
        st.metric("Preemptions", f"{document['num_preemptions']:,}", width="content")
        st.metric("KV peak", f"{document['kv_peak_fraction']:.1%}", width="content")
        energy = document["energy"]
        if energy["mean_watts"] is not None:
            st.metric("GPU power", f"{energy['mean_watts']:,.0f} W", width="content")
            joules = energy["joules_per_output_token"]
            st.metric("Energy per output token", f"{joules:.3g} J", width="content")
    _ranges(result, document)
    for text in (*result.advice, *result.caveats):
        st.caption(marked(text))


RANGED = (
    ("output_throughput", "output tokens/s"),
    ("mean_ttft_ms", "mean TTFT"),
    ("mean_tpot_ms", "mean TPOT"),
    ("mean_e2el_ms", "mean E2EL"),
    ("mean_watts", "watts"),
    ("joules_per_output_token", "J per output token"),
    ("usd_per_million_output_tokens", "$ per million output tokens"),
)


def _ranges(result: Result, document: dict[str, Any]) -> None:
    """The 90 % range of what the headline shows, what it could turn, and what energy and dollars are counted with."""
    found = result.intervals or {}
    said = [f"{label} {_span(name, found[name])}" for name, label in RANGED if name in found]
    if said:
        st.caption(marked(f"Range ({result.interval_of}): {'; '.join(said)}."))
    for text in result.doubts:
        st.warning(marked(f"Unsure: {text}."))
    energy, cost = document["energy"], document["cost"]
    if energy["mean_watts"] is not None:
        grams = energy["gco2_per_million_output_tokens"]
        st.caption(
            f"{energy['kwh_per_million_output_tokens']:.3g} kWh and {grams:,.3g} g of CO2 per million output tokens at "
            f"PUE {energy['pue']:g} and {energy['grid_gco2_per_kwh']:g} g a kWh ({energy['grid_source']}). Power: "
            f"{energy['source']}. Price: {cost['price_source']}."
        )


def _span(name: str, ends: list[float]) -> str:
    if name.endswith("_ms"):
        return f"{shown_ms(ends[0])} to {shown_ms(ends[1])}"
    return f"{ends[0]:,.3g} to {ends[1]:,.3g}" if ends[1] < 1000 else f"{ends[0]:,.0f} to {ends[1]:,.0f}"


def shown_ms(value: float | None) -> str:
    """A latency as people read it: milliseconds, seconds from ten on."""
    if value is None:
        return "-"
    return f"{value:,.2f} ms" if value < 10_000 else f"{value / 1000:,.2f} s"


@st.fragment
def _requests(result: Result) -> None:
    """Single requests, a page of them at a time; turning pages draws nothing else anew."""
    st.subheader("Single requests")
    page, total = 40, len(result.records)
    first = 0
    if total > page:
        first = st.slider("First request", 0, total - page, 0, page, key="first_request")
    chart(charts.request_timeline(result.records, first, page), "requests")


@st.fragment
def _blocks(blocks: BlockMap) -> None:
    """Who owns which block, at a moment of the user's choice; scrubbing draws nothing else anew."""
    st.subheader("Who owns which block")
    times = [moment.time_s for moment in blocks.moments]
    at = times[0]
    if len(times) > 1:
        at = st.select_slider(
            "Time", times, times[len(times) // 2], format_func=lambda t: f"{t:.2f} s", key="block_time"
        )
    moment, replica = blocks.at(at), 0
    if len(moment.replicas) > 1:
        replica = st.selectbox("Replica", range(len(moment.replicas)), key="block_replica")
    chart(charts.block_map(blocks, moment, replica), "block_map")
    if moment.tiers[replica] is not None:
        chart(charts.tier_slots(moment, replica), "tier_slots")
    rows = holdings(moment.replicas[replica])
    st.caption(
        f"At {moment.time_s:.6f} s: {len(rows)} requests hold blocks of {blocks.block_size} tokens. The longest:"
    )
    shown = [(row.request, row.num_blocks, row.num_shared, _clip(row.ids)) for row in rows[:8]]
    with st.container(key="block_owners"):
        st.table([dict(zip(("request", "blocks", "shared", "block ids"), row, strict=True)) for row in shown])


def _clip(ids: str) -> str:
    return ids if len(ids) < 60 else ids[:57] + "..."


def _downloads(found: SimulatedRun) -> None:
    result = found.result
    with st.container(horizontal=True):
        st.download_button(
            "JSON", lambda: json.dumps(result.to_dict(), indent=2, allow_nan=False), "result.json", key="json"
        )
        st.download_button("CSV of requests", lambda: _csv(result), "records.csv", key="csv")
        st.download_button(
            "Perfetto trace",
            lambda: json.dumps(
                chrome_trace(result.records, result.samples, found.blocks, result.copies),
                separators=(",", ":"),
            ),
            "trace.json",
            key="perfetto",
        )


def _csv(result: Result) -> bytes:
    """The same bytes as `--records out.csv`."""

    def written(path: Any) -> bytes:
        write_records(result.records, path)
        content: bytes = path.read_bytes()
        return content

    return through_files(written, ("records.csv", b""))
