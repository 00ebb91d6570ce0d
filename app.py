"""The planner in a browser: `streamlit run app.py`. Widgets and layout only; every figure comes from kvplan."""

from __future__ import annotations

import streamlit as st

from kvplan.charts import memory_bar
from kvplan.demand import Demand
from kvplan.engine_args import EngineArgs
from kvplan.errors import KvplanError
from kvplan.gpu import gpu_names
from kvplan.inverse import Option, what_would_fit
from kvplan.model import bundled_models
from kvplan.plan import Plan, estimate
from kvplan.report import reason, serve_line

KV_DTYPES = ("auto", "fp8", "nvfp4")


@st.cache_data(max_entries=256)
def plan_of(
    model: str, gpu: str, engine: str, args: EngineArgs, demand: Demand
) -> tuple[Plan, tuple[Option, ...]]:
    """The plan and what would fit; frozen arguments, so equal questions are answered once."""
    plan = estimate(model, gpu, args, engine=engine, demand=demand)
    return plan, what_would_fit(plan)


def question() -> tuple[str, str, str, EngineArgs, Demand]:
    """The sidebar: model, card, flags, load; every input is part of the page's address."""
    bar = st.sidebar
    models, cards = bundled_models(), gpu_names()
    bind = {"bind": "query-params"}
    model = bar.selectbox("Model", models, index=_at(models, "Qwen/Qwen3-8B"), key="model", **bind)
    gpu = bar.selectbox("GPU", cards, index=_at(cards, "h100-sxm"), key="gpu", **bind)
    engine = bar.selectbox("Engine", ("vllm", "sglang", "tensorrt-llm"), key="engine", **bind)
    args = EngineArgs(
        tensor_parallel_size=bar.select_slider("Tensor parallel", (1, 2, 4, 8, 16), key="tp", **bind),
        kv_cache_dtype=bar.selectbox("KV cache dtype", KV_DTYPES, key="kv_cache_dtype", **bind),
        max_model_len=bar.number_input(
            "max_model_len (0: the model's own)", 0, None, 0, key="max_model_len", **bind
        )
        or None,
    )
    demand = Demand(
        input_len=bar.number_input("Prompt tokens", 1, None, 512, key="input_len", **bind),
        output_len=bar.number_input("Output tokens", 1, None, 16384, key="output_len", **bind),
        num_samples=bar.number_input("Samples per request", 1, None, 32, key="num_samples", **bind),
        num_requests=bar.number_input("Requests at once", 1, None, 1, key="num_requests", **bind),
    )
    return model, gpu, engine, args, demand


def _at(names: tuple[str, ...] | list[str], wanted: str) -> int:
    return list(names).index(wanted) if wanted in names else 0


def show(plan: Plan, options: tuple[Option, ...]) -> None:
    """Verdict, figures, memory bar, ways out, command."""
    (st.success if plan.fits else st.error)("Fits." if plan.fits else f"Does not fit: {reason(plan)}.")
    figures = st.columns(3)
    figures[0].metric("GPU KV cache size", f"{int(plan.cache_tokens.value):,} tokens")
    figures[1].metric(
        f"Maximum concurrency, {plan.max_model_len:,} tokens", f"{plan.max_concurrency.value:.2f}x"
    )
    figures[2].metric("Traces at once", f"{plan.num_traces:,}", help=f"limited by {plan.limited_by}")
    st.altair_chart(memory_bar(plan))
    rows = [
        {"use": row.label, "GiB": row.size.value / (1 << 30), "source": row.source}
        for row in (plan.budget.total, *plan.budget.rows)
    ]
    st.dataframe(rows, hide_index=True, column_config={"GiB": st.column_config.NumberColumn(format="%.2f")})
    if options:
        st.subheader("What would fit")
        st.dataframe([{"change": o.change, "then": o.effect} for o in options], hide_index=True)
    st.code(serve_line(plan), language="bash")


def main() -> None:
    """One page; further tabs come beside the first."""
    st.set_page_config(page_title="kvplan", layout="wide")
    st.title("kvplan")
    (memory,) = st.tabs(["Does it fit?"])
    with memory:
        try:
            show(*plan_of(*question()))
        except KvplanError as error:
            st.error(str(error))


main()
