"""How it behaves: the question, or a scenario, on a clock; what happened in it, and everything to take away."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

import streamlit as st

from kvplan.charts import runs as charts
from kvplan.ground.files import scenarios_dir
from kvplan.ground.limits import in_words
from kvplan.ground.tables import counted
from kvplan.pages.asked import ENGINES, OWN, Asked, read_number
from kvplan.pages.jobs import DRAW, read_apart
from kvplan.pages.links import BIND
from kvplan.pages.running import STOPPED, early, run_box
from kvplan.pages.uploads import MAX_REQUESTS, simulated
from kvplan.pages.widgets import (
    BUNDLED,
    QUESTION,
    ScenarioSource,
    ShownFigure,
    chart,
    choice,
    digits,
    figures,
    lines,
    marked,
    or_complaint,
    pictures,
    read_source,
    scenario_to_copy,
    sentence,
    shown_ms,
    source_of,
    span,
    switch,
    text,
)
from kvplan.pages.work import SimulatedRun, simulate_work, trace_of
from kvplan.profiles.host_links import DriveName
from kvplan.scenario.schema import Scenario
from kvplan.simulation.bench_report import bench_block, bench_tail, side_rows
from kvplan.simulation.block_map import BlockMap, holdings
from kvplan.simulation.records import write_records
from kvplan.simulation.result import VERDICTS, Result

DRIVES = ("as estimated", *get_args(DriveName))


class SimulationInputs(NamedTuple):
    """What to simulate; a complaint in place of a scenario, None while its file is still to come."""

    source: ScenarioSource
    scenario: Scenario | str | None
    with_blocks: bool
    files: dict[str, bytes]


@cache
def scenario_names(pattern: str = "*") -> list[str]:
    """Bundled scenarios."""
    return sorted(path.stem for path in scenarios_dir().glob(f"{pattern}.yaml"))


def inputs(asked: Asked | str) -> SimulationInputs:
    """The tab's inputs, and the scenario that they stand for."""
    source = source_of("scenario", scenario_names(), "long_thinking", "engine.max_num_seqs=64")
    number = seed = drive = ""
    has_files = isinstance(asked, Asked) and asked.flags.kv_transfer_config is not None
    if source.kind == QUESTION:
        with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
            number = text(st, "Requests", "num_prompts", placeholder="ten of each user", width=180)
            seed = text(st, "Seed", "seed", placeholder="0", width=110)
            if has_files:
                drive = str(choice(st, "Drive of the files", DRIVES, "file_drive", width=180))
    with_blocks = switch(st, "Note who owns which block (slower: step by step)", "owners")
    whole = asked if isinstance(asked, Asked) else None
    if source.kind == QUESTION and whole is None:
        return SimulationInputs(source, str(asked), with_blocks, {})

    def read() -> Scenario | None:
        if source.kind != QUESTION:
            return read_source(simulated, source, None)
        assert whole is not None
        count = read_number("requests", number, 0, 1, MAX_REQUESTS)
        told = whole._replace(
            num_simulated=count,
            seed=read_number("seed", seed, 0, 0, (1 << 63) - 1),
            drive="" if drive == DRIVES[0] else drive,
        )
        return read_source(simulated, source, told)

    files = dict(source.files) | (whole.files if whole and source.kind == QUESTION else {})
    return SimulationInputs(source, or_complaint(read), with_blocks, files)


def render(asked: Asked, told: SimulationInputs) -> None:
    """Run it, show what happened."""
    if told.scenario is None:
        st.info(
            "Upload a scenario file: it may name bundled models, cards and profiles.",
            icon=":material/upload_file:",
        )
        return
    if isinstance(told.scenario, Scenario):
        lines(taken(asked, told.source, told.scenario))
    where = {QUESTION: "question.yaml", BUNDLED: told.source.name}.get(told.source.kind, told.source.name)
    changed = " ".join(f"--set '{change}'" for change in told.source.changes)
    scenario = scenario_to_copy(
        told.scenario, "The scenario as a file", f"kvplan simulate {where} {changed}".strip(), "scenario"
    )
    if scenario is None:
        return
    found = run_box(
        "simulate",
        (scenario, told.with_blocks),
        lambda: simulate_work(scenario, told.with_blocks),
        "Simulate",
        told.files,
    )
    if found is not None:
        _show(found)
    elif "simulate_job" not in st.session_state:
        st.caption(
            "A run shows KV cache, queue and latencies over time, single requests, and what limits them."
        )


def taken(asked: Asked, source: ScenarioSource, scenario: Scenario) -> list[str]:
    """What the run takes from the question, and what it changes."""
    if source.kind != QUESTION:
        return [
            f"Taken from the question: nothing. The scenario has its own model ({scenario.model}), card "
            f"({scenario.gpu}), flags "
            "and load; choose “The question” to run that."
        ]
    load, flags = scenario.workload, asked.flags
    each = flags.tensor_parallel_size * flags.pipeline_parallel_size * flags.data_parallel_size
    model = "your config.json" if asked.model == OWN else asked.model
    who = (
        counted(asked.question.users, "user")
        if asked.question.users
        else f"{asked.question.rate:g} requests a second"
    )
    copies = f"{counted(scenario.replicas, 'copy', 'copies')} on {each} x {scenario.gpu}"
    copies += " each" * (scenario.replicas > 1)
    said = [
        f"Taken from the question: {model}, {who}, all lengths, targets, engine and its flags. Changed: "
        f"{copies}; context "
        f"{scenario.engine.max_model_len or 0:,} tokens, as the longest request needs; the first "
        f"{counted(load.num_requests, 'request')}."
    ]
    if asked.num_samples * asked.num_requests > 1:
        said.append(
            "Not taken: samples and requests at one moment; each request is one trace, when its user asks."
        )
    if asked.engine == ENGINES[2]:
        said.append(
            "TensorRT-LLM: a request enters when all of its tokens fit (GUARANTEED_NO_EVICT)"
            + (f", steps as {scenario.step_time.profile} times them" if scenario.step_time.profile else "")
            + "; memory and the rest of the scheduler are vLLM's."
        )
    return said


def _show(found: SimulatedRun) -> None:
    result = found.result
    _headline(result)
    kv, queue = charts.kv_over_time(result), charts.queue_over_time(result)
    st.subheader("KV cache by kind")
    chart(kv, "kv_time", "Tokens held over time by kind, and the pool's size")
    st.caption("A token that several requests share counts once for each; the line counts each block once.")
    st.subheader("Running, waiting, preempted")
    chart(queue, "queue_time", "Requests running and waiting over time, and preemptions so far")
    if result.offload is not None:
        _tier(result)
    st.subheader("Latencies")
    shares = {name: charts.latency_shares(result, name) for name in charts.LATENCIES}
    with st.container(key="latencies"):
        for column, (name, figure) in zip(st.columns(3), shares.items(), strict=True):
            with column:
                chart(figure, f"latency_{name}", f"Share of requests by {charts.LATENCIES[name]}")
    _requests(result)
    if found.blocks.moments:
        _blocks(found.blocks)
    with st.expander("Report, as `vllm bench serve` prints it"):
        st.code(bench_block(result), language=None)
        lines(bench_tail(result))
    _downloads(found, {"kv": kv, "queue": queue, **shares})


def _tier(result: Result) -> None:
    """The tier beyond the GPUs: its fill, what moved, and the same requests without it."""
    st.subheader("KV beyond the GPU")
    left, right = st.columns(2)
    with left:
        chart(charts.tier_over_time(result), "tier_time", "Chunks in the tier over time")
    with right:
        chart(charts.copies_over_time(result), "copies_time", "GiB loaded and stored so far")
    assert result.offload is not None
    if result.offload["file_tiers"]:
        chart(
            charts.file_jobs_over_time(result), "file_jobs_time", "Jobs that read and write files over time"
        )
    if result.offload_comparison is None:
        return
    names, *figures_of = side_rows(result)
    rows = [dict(zip(names, map(_thousands, row), strict=True)) for row in figures_of]
    with st.container(key="tier_sides"):
        st.table(rows)


def _thousands(cell: str) -> str:
    return f"{int(cell):,}" if cell.isdigit() else cell


RANGED = (
    ("output_throughput", "output tokens a second"),
    ("mean_ttft_ms", "mean TTFT"),
    ("mean_tpot_ms", "mean TPOT"),
    ("mean_e2el_ms", "mean E2EL"),
    ("mean_watts", "watts"),
    ("joules_per_output_token", "J per output token"),
    ("usd_per_million_output_tokens", "$ per million output tokens"),
)


def _headline(result: Result) -> None:
    document = result.to_dict()
    kept = {None: "", True: ", targets met", False: ", targets missed"}[result.slo_met]
    limited = f"limited by {in_words(result.limited_by)}"
    if result.verdict == "interrupted":
        st.warning(f"{early('simulate')}{kept}; {limited}.", icon=STOPPED)
    else:
        how, good = VERDICTS[result.verdict], result.exit_code == 0
        (st.success if good else st.warning)(
            f"**{marked(f'{how[0].upper()}{how[1:]}{kept}; {limited}')}.**",
            icon=":material/check_circle:" if good else ":material/warning:",
        )
    ends = result.intervals or {}

    def ranged(key: str, otherwise: str = "") -> str:
        return _span(key, ends[key]) if key in ends else otherwise

    figures(
        [
            ShownFigure(
                "Mean TTFT",
                shown_ms(document["mean_ttft_ms"]),
                ranged("mean_ttft_ms"),
                "First token of any kind.",
            ),
            ShownFigure(
                "Mean TPOT",
                shown_ms(document["mean_tpot_ms"]),
                ranged("mean_tpot_ms"),
                "A token after the first.",
            ),
            ShownFigure(
                "Mean E2EL", shown_ms(document["mean_e2el_ms"]), ranged("mean_e2el_ms"), "The whole answer."
            ),
            ShownFigure(
                "KV peak",
                f"{document['kv_peak_fraction']:.0%}",
                counted(document["num_preemptions"], "preemption"),
            ),
        ]
    )
    _more(result, document)
    for said in result.doubts:
        st.warning(marked(sentence(f"Unsure: {said}")), icon=":material/help:")
    lines([*result.advice, *result.caveats])


def _more(result: Result, document: dict[str, Any]) -> None:
    """The other figures, ranges, and what energy and dollars are counted with."""
    energy, cost, found = document["energy"], document["cost"], result.intervals or {}
    rows = [
        ("Completed", f"{document['completed']:,} of {document['num_requests']:,}", ""),
        ("Output tokens/s", digits(document["output_throughput"] or 0), "output_throughput"),
        ("Preemptions", f"{document['num_preemptions']:,}", ""),
    ]
    if energy["mean_watts"] is not None:
        rows += [
            ("GPU power", f"{digits(energy['mean_watts'])} W", "mean_watts"),
            (
                "Energy per output token",
                f"{digits(energy['joules_per_output_token'])} J",
                "joules_per_output_token",
            ),
        ]
    with st.expander("More figures, ranges, sources"):
        st.table(
            [{"Figure": name, "Value": value, "Range": _span(key, found[key]) if key in found else ""}
             for name, value, key in rows], hide_index=True,
        )  # fmt: skip
        said = [f"{label} {_span(name, found[name])}" for name, label in RANGED
                if name in found and _span(name, found[name])]  # fmt: skip
        told = [f"Range ({result.interval_of}): {'; '.join(said)}."] if said else []
        if energy["mean_watts"] is not None:
            grams = energy["gco2_per_million_output_tokens"]
            told.append(
                f"{digits(energy['kwh_per_million_output_tokens'])} kWh and {digits(grams)} g of CO2 per million "
                f"output tokens at "
                f"PUE {energy['pue']:g} and {energy['grid_gco2_per_kwh']:g} g a kWh ({energy['grid_source']}). Power: "
                f"{energy['source']}. Price: {cost['price_source']}."
            )
        lines(told)


def _span(name: str, ends: list[float]) -> str:
    return span(ends[0], ends[1], shown_ms if name.endswith("_ms") else digits)


@st.fragment
def _requests(result: Result) -> None:
    """Single requests, a page of them at a time; turning pages draws nothing else anew."""
    st.subheader("Single requests")
    page, total = 40, len(result.records)
    first = 0
    if total > page:
        first = st.slider(
            "First request, as they arrive", 0, total - page, 0, page, key="first_request", **BIND
        )
    chart(
        charts.request_timeline(result.records, first, page),
        "requests",
        "Phases of single requests over time",
    )


@st.fragment
def _blocks(blocks: BlockMap) -> None:
    """Who owns which block, at a moment of the user's choice; scrubbing draws nothing else anew."""
    st.subheader("Who owns which block")
    times = [moment.time_s for moment in blocks.moments]
    at = times[0]
    if len(times) > 1:
        at = st.select_slider(
            "Time",
            times,
            times[len(times) // 2],
            format_func=lambda t: f"{t:.2f} s",
            key="block_time",
            **BIND,
        )
    moment, replica = blocks.at(at), 0
    if len(moment.replicas) > 1:
        replica = st.selectbox("Replica", range(len(moment.replicas)), key="block_replica", **BIND)
    chart(charts.block_map(blocks, moment, replica), "block_map", "The pool's blocks by owner")
    if moment.tiers[replica] is not None:
        chart(charts.tier_slots(moment, replica), "tier_slots", "The tier's slots by use")
    if moment.places[replica] is not None:
        chart(charts.chunk_places(moment, replica), "chunk_places", "Chunks by where they lie")
    rows = holdings(moment.replicas[replica])
    held = f"{counted(len(rows), 'request') if rows else 'no request'} {'hold' if len(rows) > 1 else 'holds'} blocks"
    st.caption(
        f"At {moment.time_s:.6f} s: {held} of {blocks.block_size} tokens, {len(charts.OWNERS)} colours in turn."
        + (" The longest:" if rows else "")
    )
    if not rows:
        return
    shown = [(row.request, row.num_blocks, row.num_shared, _clip(row.ids)) for row in rows[:8]]
    with st.container(key="block_owners"):
        st.table([dict(zip(("request", "blocks", "shared", "block ids"), row, strict=True)) for row in shown])


def _clip(ids: str, most: int = 44) -> str:
    return ids if len(ids) <= most else ids[: ids.rindex(",", 0, most) + 1] + "..."


def _downloads(found: SimulatedRun, drawn: dict[str, Any]) -> None:
    result = found.result
    st.subheader("Take it away")
    with st.container(horizontal=True, gap="small"):
        st.download_button(
            "JSON",
            lambda: json.dumps(result.to_dict(), indent=2, allow_nan=False),
            "result.json",
            key="json",
            on_click="ignore",
        )
        st.download_button(
            "Requests (CSV)", lambda: _csv(result), "records.csv", key="csv", on_click="ignore"
        )
        st.download_button(
            "Perfetto trace",
            lambda: read_apart(trace_of, found, bounds=DRAW),
            "trace.json",
            key="perfetto",
            on_click="ignore",
        )
    with st.expander("Pictures"):
        pictures(drawn, "simulate")


def _csv(result: Result) -> bytes:
    """The same bytes as `--records out.csv`."""
    with TemporaryDirectory(prefix="kvplan-") as folder:
        path = Path(folder) / "records.csv"
        write_records(result.records, path)
        return path.read_bytes()
