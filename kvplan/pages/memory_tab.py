"""Does it fit: memory, concurrency, ways out, the command that serves it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from kvplan.charts import plans as charts
from kvplan.ground.errors import KvplanError
from kvplan.ground.limits import in_words
from kvplan.ground.units import KiB, gib
from kvplan.memory.answers import Option, Plan
from kvplan.observed.reconciliation import Reconciliation
from kvplan.pages.asked import OWN, Asked
from kvplan.pages.jobs import read_apart
from kvplan.pages.uploads import check_size
from kvplan.pages.verdict import plan_of
from kvplan.pages.widgets import (
    ShownFigure,
    chart,
    command,
    figures,
    guarded,
    marked,
    pictures,
    switch,
)
from kvplan.pages.work import PlannedMemory, read_a_log

FAR = "No change of a flag holds it on these cards; choose others above, and **Recommend** ranks them for the load."
LOG_COLUMNS = ("Figure", "Printed", "Planned", "Difference", "Why")
OPEN = "**Recommend** finds how many cards it takes for the load, and ranks them."


def inputs() -> tuple[Any, Any]:
    """Places for the answer, and for a pasted log with the tab's own bound input."""
    body = st.container()
    log = st.expander("Paste an engine's start-up log")
    switch(log, "It is of this model and card", "log_is_mine")
    return body, log


def render(asked: Asked) -> None:
    """The plan."""
    guarded(lambda: _answer(asked))


def render_log(asked: Asked) -> None:
    """A log beside the plan."""
    guarded(lambda: _log(asked, bool(st.session_state["log_is_mine"])))


def _answer(asked: Asked) -> None:
    found = plan_of(asked)
    plan = found.plan
    _figures(asked, found)
    figure = charts.memory_bar(plan)
    chart(figure, "memory", f"GiB of one {plan.question.gpu.name}: {_said(plan)}")
    if not plan.serves or not plan.fits:
        if plan.serves:
            st.warning(marked(f"{plan.reason}."), icon=":material/block:")
        _ways_out(found.options)
        if plan.is_far(found.options):
            st.caption(OPEN if asked.is_open else FAR)
    drawn = {"memory": figure}
    if any(span.high >= 1 for span in found.curve):
        st.subheader("Traces at once, by length")
        drawn["traces"] = charts.concurrency(plan, found.lengths, found.curve)
        chart(drawn["traces"], "concurrency", "Traces that memory holds at once, falling with their length")
        if any(span.high > 1.1 * span.low for span in found.curve if span.low >= 10):
            st.caption("Band: the range that measured overheads leave open.")
    if tier := plan.offload:
        st.subheader("KV beyond the GPU")
        for line in tier.lines(plan.trace_tokens, plan.cache_tokens.value):
            st.markdown(marked(line))
    if plan.serves:
        st.subheader("What to run")
        command(plan.serve_command)
    if plan.fits:
        _ways_out(found.options)
    with st.expander("Every figure with its source"):
        with st.container(key="sources"):
            st.table(_rows(plan), hide_index=True)
        st.table(_engine_rows(plan), hide_index=True)
        pictures(drawn, "estimate")
    _taken(asked, plan)


def _figures(asked: Asked, found: PlannedMemory) -> None:
    plan = found.plan
    (low, high), now = plan.num_traces_range, plan.num_traces
    spread = f"{low:,} to {high:,}" if low != high else "at the worst and at the best"
    varying = found.varying
    price, pool = plan.price_per_hour, plan.budget.kv.size.value
    row = [
        ShownFigure("Longest traces at once", f"{now:,}", spread if plan.serves else "it does not start",
               f"{plan.trace_tokens:,} tokens each: prompt, longest thinking, answer. Limited by "
               f"{in_words(plan.limited_by)}. Range: what measured overheads of memory leave open."),
        ShownFigure("Typical ones", f"{found.plan.at_once(found.typical.value):,}",
               f"{asked.typical.trace_tokens(0):,} tokens each",
               None if varying is None else f"{varying:,} if lengths vary as asked, with one overflow in a hundred."),
        ShownFigure("KV cache", f"{gib(max(0, pool)):,.1f} GiB",
               f"{gib(-pool):,.1f} GiB are missing" if pool < 0 else f"{int(_kv(plan)['cache_tokens']):,} tokens"),
        ShownFigure("Cards", f"${price:,.2f}/h", f"{plan.args.num_gpus} x {plan.question.gpu.name}",
               plan.question.gpu.price_source),
    ]  # fmt: skip
    figures(row)


def _kv(plan: Plan) -> dict[str, float]:
    kv = plan.to_dict()["kv"]
    assert isinstance(kv, dict)
    return kv


def _said(plan: Plan) -> str:
    return ", ".join(
        f"{row.label} {gib(row.size.value):.1f}" for row in plan.budget.rows if row.size.value > 0
    )


def _taken(asked: Asked, plan: Plan) -> None:
    """What the tab took from the question, and what it left out."""
    model = "your config.json" if asked.model == OWN else asked.model
    st.caption(
        marked(
            f"Taken from the question: {model}, {asked.gpu}, {asked.engine}, the typical prompt "
            f"({asked.question.prompt:,} tokens) "
            f"and the longest thinking and answer ({asked.demand.output_len or 0:,}). Not taken: users, "
            f"pause and targets, which "
            "need a clock; the verdict above and the other tabs have them. Context: as the longest request "
            "needs, unless stated. The "
            "same in a terminal:"
        )
    )
    command(asked.words("estimate", plan.question.args))


def _log(asked: Asked, same: bool) -> None:
    """A real engine's figures beside the plan's, and the overheads that they imply."""
    text = st.text_area("Start-up log of vLLM, SGLang or TensorRT-LLM", key="log", height=160)
    st.caption("Only figures and known flags are taken from it; not part of the link.")
    if not text.strip():
        return
    check_size("the pasted log", text.encode())
    try:
        found = log_of(text, asked if same else None)
    except KvplanError as error:
        if same or not any(flag in str(error) for flag in ("--model", "--gpu")):
            raise
        raise KvplanError(f"{error}; or say that it is of this model and card") from None
    for line in found.contradictions:
        st.error(marked(f"The log contradicts itself: {line}"))
    with st.container(key="log_lines"):
        st.table(
            [dict(zip(LOG_COLUMNS, map(marked, line.cells), strict=True)) for line in found.lines],
            hide_index=True,
        )
    st.markdown(marked(found.conclusion))
    if found.overheads:
        learned = found.profile("from-log").model_dump_json(indent=1, exclude_defaults=True)
        st.download_button(
            "The overheads it implies (JSON)",
            learned + "\n",
            "from-log.json",
            key="overheads",
            on_click="ignore",
        )


@st.cache_data(max_entries=16, show_spinner=False)
def log_of(text: str, asked: Asked | None) -> Reconciliation:
    """A log beside its plan; read in a process of its own."""
    told = (asked.model, asked.cards.name) if asked else (None, None)
    found: Reconciliation = read_apart(read_a_log, text, *told, files=asked.files if asked else {})
    return found


def _rows(plan: Plan) -> list[dict[str, str]]:
    rows = (plan.budget.total, *plan.budget.rows)
    return [
        {"Use": row.label, "GiB": f"{gib(row.size.value):.2f}", "Range": _range(row.size.low, row.size.high),
         "Source": marked(row.source)}
        for row in rows
    ]  # fmt: skip


def _range(low: float, high: float) -> str:
    return f"{gib(low):.2f} to {gib(high):.2f}" if low != high else ""


def _engine_rows(plan: Plan) -> list[dict[str, str]]:
    """What the engine would print, and KV by token and trace."""
    kv = _kv(plan)
    told = {
        "GPU KV cache size": f"{int(kv['cache_tokens']):,} tokens",
        f"Maximum concurrency for {plan.max_model_len:,} tokens": f"{kv['max_concurrency']:.2f}x",
        "KV per token": f"{plan.bytes_per_token / KiB:,.1f} KiB",
        "KV per trace": f"{gib(kv['bytes_per_sequence']):,.2f} GiB",
        "Block": f"{int(kv['block_size'])} tokens",
    }
    return [{"Figure": name, "Value": value} for name, value in told.items()]


def _ways_out(options: tuple[Option, ...]) -> None:
    if options:
        st.subheader("What would fit")
        st.table([{"Change": f"`{o.change}`", "Then": marked(o.effect)} for o in options], hide_index=True)
