"""Does it fit: memory, concurrency, ways out, the command that serves it."""

from __future__ import annotations

import numpy as np
import streamlit as st

from kvplan.charts import plans as charts
from kvplan.errors import KvplanError
from kvplan.memory.answers import FAR, Option, Plan, Span
from kvplan.memory.forward import concurrency_curve
from kvplan.memory.mixed_lengths import varying_traces
from kvplan.observed.reconciliation import reconcile
from kvplan.observed.startup import read_log
from kvplan.pages.sidebar import Asked, plan_of, read_model
from kvplan.pages.uploads import check_size
from kvplan.pages.widgets import BIND, chart, guarded, marked
from kvplan.units import KiB, gib


def render(asked: Asked) -> None:
    """The whole tab."""
    guarded(lambda: _answer(asked))
    with st.expander("Paste an engine's start-up log"):
        guarded(lambda: _log(asked))


def _answer(asked: Asked) -> None:
    plan, options = plan_of(asked)
    _verdict(plan)
    _figures(plan, asked)
    st.subheader("Where the memory goes")
    chart(charts.memory_bar(plan), "memory")
    with st.expander("Every row with its source"):
        st.table(_rows(plan), hide_index=True)
    st.subheader("Traces at once, by length")
    lengths = trace_lengths(plan)
    chart(charts.concurrency(plan, lengths, curve_of(asked, lengths)), "concurrency")
    st.caption("Band: the range that measured overheads leave open. Samples of one request share its prompt.")
    if tier := plan.offload:
        st.subheader("KV beyond the GPU")
        for line in tier.lines(plan.trace_tokens, plan.cache_tokens.value):
            st.markdown(marked(line))
    _ways_out(options)
    if plan.is_far(options):
        st.caption(FAR)
    if plan.serves:
        st.subheader("What to run")
        st.code(plan.serve_command, language="bash", wrap_lines=True)


def _log(asked: Asked) -> None:
    """A real engine's figures beside the plan's, and the overheads that they imply."""
    text = st.text_area("Start-up log of vLLM, SGLang or TensorRT-LLM", key="log", height=160)
    st.caption("Only figures and known flags are taken from it; not part of the link.")
    same = st.toggle("It is of the sidebar's model and card", key="log_is_mine", **BIND)
    if not text.strip():
        return
    check_size("the pasted log", text.encode())
    model = read_model(asked.model, asked.config) if same else None
    try:
        found = reconcile(read_log(text.splitlines()), model=model, gpu=asked.gpu if same else None)
    except KvplanError as error:
        raise (
            error if same else KvplanError(f"{error}; or say that it is of the sidebar's model and card")
        ) from None
    for line in found.contradictions:
        st.error(f"The log contradicts itself: {line}")
    st.dataframe([line.to_dict() for line in found.lines], hide_index=True)
    st.markdown(marked(found.conclusion))
    if found.overheads:
        learned = found.profile("from-log").model_dump_json(indent=1, exclude_defaults=True)
        st.download_button(
            "Download the overheads it implies", learned + "\n", "from-log.json", key="overheads"
        )


def _verdict(plan: Plan) -> None:
    if not plan.fits:
        st.error(marked(f"Does not fit: {plan.reason}."))
    elif plan.fits_for_sure:
        st.success("Fits.")
    else:
        st.warning("Fits, but not at the worst end of the overheads' range.")


def _figures(plan: Plan, asked: Asked) -> None:
    """What the engine would print, and what it means."""
    kv = plan.to_dict()["kv"]
    assert isinstance(kv, dict)
    with st.container(horizontal=True):
        st.metric("GPU KV cache size", f"{int(kv['cache_tokens']):,} tokens", width="content")
        st.metric(
            f"Maximum concurrency, {plan.max_model_len:,} tokens",
            f"{kv['max_concurrency']:.2f}x",
            width="content",
        )
        st.metric("KV per token", f"{plan.bytes_per_token / KiB:,.1f} KiB", width="content")
        st.metric("KV per trace", f"{gib(kv['bytes_per_sequence']):,.2f} GiB", width="content")
        st.metric(
            "Traces at once", f"{plan.num_traces:,}", help=f"limited by {plan.limited_by}", width="content"
        )
        varying = varying_of(asked)
        if varying is not None:
            st.metric(
                "If lengths vary", f"{varying:,}", width="content",
                help="Running traces of one replica, lengths drawn with the spread at the left, each somewhere "
                "between its birth and its end, nothing shared; the pool overflows one time in a hundred.",
            )  # fmt: skip


def _rows(plan: Plan) -> list[dict[str, str]]:
    rows = (plan.budget.total, *plan.budget.rows)
    return [
        {"use": row.label, "GiB": f"{gib(row.size.value):.2f}", "source": marked(row.source)} for row in rows
    ]


def _ways_out(options: tuple[Option, ...]) -> None:
    if options:
        st.subheader("What would fit")
        st.table([{"change": f"`{o.change}`", "then": o.effect} for o in options], hide_index=True)


def trace_lengths(plan: Plan) -> tuple[int, ...]:
    """Lengths to draw the curve at: from the prompt (or 256) to what the model is made for."""
    first = max(256, plan.question.demand.prompt_tokens() + 1)
    last = max(2 * first, plan.max_model_len)
    return tuple(int(n) for n in np.unique(np.geomspace(first, last, 48).round()))


@st.cache_data(max_entries=256)
def curve_of(asked: Asked, lengths: tuple[int, ...]) -> list[Span]:
    """Concurrency at these lengths."""
    return concurrency_curve(plan_of(asked)[0], lengths)


@st.cache_data(max_entries=256)
def varying_of(asked: Asked) -> int | None:
    """Traces that may run when lengths vary."""
    return varying_traces(plan_of(asked)[0], *asked.lengths.values())
