"""What the tabs share: the sidebar's question, cached answers, running something long, uploads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import streamlit as st

from kvplan.charts.drawing import Layered, specification
from kvplan.engines.flags import EngineArgs
from kvplan.errors import KvplanError
from kvplan.gpu import gpu_names
from kvplan.memory.demand import Demand
from kvplan.memory.inverse import Option, what_would_fit
from kvplan.memory.plan import Plan, estimate
from kvplan.models.load import bundled_models, load_model
from kvplan.models.spec import ModelSpec
from kvplan.pages.jobs import Job, Work
from kvplan.pages.uploads import model_from_text
from kvplan.workload.lengths import Length, Lognormal

BIND: dict[str, Any] = {"bind": "query-params"}
"""Every input is part of the page's address, so that a link reopens the same question."""
PASTED = "paste a config.json ..."
KV_DTYPES = ("auto", "fp8", "fp8_per_token_head", "nvfp4")
QUANTIZATIONS = ("no", "fp8", "bitsandbytes")
ENGINES = ("vllm", "sglang", "tensorrt-llm")
MAX_TOKENS = 1 << 24
PATIENCE_S = 1.5
"""A run that is over by then shows no progress bar."""


class Asked(NamedTuple):
    """The sidebar: a deployment and the load that is expected of it."""

    model: str
    config: str
    """Text of a pasted config.json; empty for a bundled model."""
    gpu: str
    engine: str
    args: EngineArgs
    demand: Demand
    thinking_len: int
    answer_len: int
    spread: float

    @property
    def prompt(self) -> Length:
        """Distribution of prompt lengths."""
        return self._around(self.demand.prompt_tokens())

    @property
    def thinking(self) -> Length:
        """Distribution of hidden tokens."""
        return self._around(self.thinking_len)

    @property
    def answer(self) -> Length:
        """Distribution of visible tokens."""
        return self._around(self.answer_len)

    def _around(self, median: int) -> Length:
        return Lognormal(kind="lognormal", median=max(1, median), sigma=self.spread)


def sidebar() -> Asked:
    """Model, card, flags, lengths."""
    bar = st.sidebar
    models, cards = [*bundled_models(), PASTED], gpu_names()
    model = bar.selectbox("Model", models, index=_at(models, "Qwen/Qwen3-8B"), key="model", **BIND)
    config = _pasted() if model == PASTED else ""
    gpu = bar.selectbox("GPU", cards, index=_at(cards, "h100-sxm"), key="gpu", **BIND)
    args, engine = _flags()
    bar.subheader("Expected load", divider="gray")
    input_len = bar.number_input("Prompt tokens", 1, MAX_TOKENS, 512, key="input_len", **BIND)
    thinking = bar.number_input("Thinking tokens", 0, MAX_TOKENS, 15872, key="thinking_len", **BIND)
    answer = bar.number_input("Answer tokens", 1, MAX_TOKENS, 512, key="answer_len", **BIND)
    spread = bar.slider(
        "Spread of lengths (sigma of the logarithm)", 0.0, 1.5, 0.6, 0.1, key="spread",
        help="0: all alike. Reasoning traces: 0.5 to 1. The plan is for the lengths above; the count for varying "
        "lengths and the simulation draw around them.", **BIND,
    )  # fmt: skip
    demand = Demand(
        input_len=int(input_len),
        output_len=int(thinking + answer),
        num_samples=int(bar.number_input("Samples per request", 1, 100_000, 32, key="num_samples", **BIND)),
        num_requests=int(bar.number_input("Requests at once", 1, 100_000, 1, key="num_requests", **BIND)),
    )
    return Asked(model, config, gpu, engine, args, demand, int(thinking), int(answer), float(spread))


def _pasted() -> str:
    """A config from outside: pasted, or uploaded. It is too long for the page's address and not part of the link."""
    file = st.sidebar.file_uploader("config.json", type="json", max_upload_size=2, key="config_file")
    text = st.sidebar.text_area("or its text", height=120, key="config_text", help="Not part of the link.")
    return file.getvalue().decode("utf-8", errors="replace") if file is not None else str(text)


def _flags() -> tuple[EngineArgs, str]:
    bar = st.sidebar
    engine = bar.selectbox("Engine", ENGINES, key="engine", **BIND)
    tp = bar.select_slider("Tensor parallel", (1, 2, 4, 8, 16), key="tp", **BIND)
    dtype = bar.selectbox("KV cache dtype", KV_DTYPES, key="kv_cache_dtype", **BIND)
    with bar.expander("More engine flags"):
        more = {**_sizes(), **_switches()}
    return EngineArgs(tensor_parallel_size=tp, kv_cache_dtype=dtype, **more), engine


def _sizes() -> dict[str, Any]:
    """Limits and parallel sizes; 0 leaves a limit to the engine or the model."""
    limits = {
        "max_model_len": st.number_input("max_model_len (0: the model's)", 0, 1 << 30, 0, key="max_model_len", **BIND),
        "max_num_seqs": st.number_input("max_num_seqs (0: the engine's)", 0, 1 << 20, 0, key="max_num_seqs", **BIND),
        "max_num_batched_tokens": st.number_input(
            "max_num_batched_tokens (0: the engine's)", 0, 1 << 24, 0, key="max_num_batched_tokens", **BIND
        ),
        "gpu_memory_utilization": st.number_input(
            "gpu_memory_utilization (0: the engine's)", 0.0, 1.0, 0.0, 0.01, key="gpu_memory_utilization", **BIND
        ),
        "block_size": st.number_input("block_size (0: the engine's)", 0, 1 << 12, 0, key="block_size", **BIND),
    }  # fmt: skip
    return {name: value or None for name, value in limits.items()} | {
        "pipeline_parallel_size": st.select_slider("Pipeline parallel", (1, 2, 4, 8), key="pp", **BIND),
        "data_parallel_size": st.select_slider("Data parallel", (1, 2, 4, 8, 16), key="dp", **BIND),
        "decode_context_parallel_size": st.select_slider(
            "Decode context parallel", (1, 2, 4, 8), key="dcp", **BIND
        ),
    }


def _switches() -> dict[str, Any]:
    """What is on or off, and weights that are quantised on loading."""
    quantization = st.selectbox("Quantise weights on loading", QUANTIZATIONS, key="quantization", **BIND)
    caching = st.toggle("Prefix caching", value=True, key="enable_prefix_caching", **BIND)
    return {
        "enable_expert_parallel": st.toggle("Expert parallel", key="enable_expert_parallel", **BIND),
        "enable_prefix_caching": None if caching else False,
        "quantization": None if quantization == QUANTIZATIONS[0] else quantization,
    }


def _at(names: Iterable[str], wanted: str) -> int:
    return list(names).index(wanted)


@st.cache_data(max_entries=64)
def read_model(name: str, config: str) -> ModelSpec:
    """A bundled model, or a pasted one."""
    return model_from_text(config) if name == PASTED else load_model(name)


@st.cache_data(max_entries=256)
def plan_of(
    name: str, config: str, gpu: str, engine: str, args: EngineArgs, demand: Demand
) -> tuple[Plan, tuple[Option, ...]]:
    """The plan and what would fit; frozen arguments, so equal questions are answered once."""
    plan = estimate(read_model(name, config), gpu, args, engine=engine, demand=demand)
    return plan, what_would_fit(plan)


def chart(figure: Layered, key: str) -> None:
    """Show a chart at the width there is."""
    st.vega_lite_chart(specification(figure), width="stretch", key=key)


def marked(text: str) -> str:
    """Markdown that shows a text as it is: flags neither break nor become dashes, two dollars are no formula."""
    text = text.replace("$", "\\$") if text.count("$") > 1 else text
    return re.sub(r"(?<!\S)(\(?)(--[a-z][\w-]*)", r"\1`\2`", text)


def guarded(show: Callable[[], None]) -> None:
    """A user's mistake is one line, wherever it is noticed."""
    try:
        show()
    except KvplanError as error:
        st.error(marked(str(error)))


def run_box(name: str, asked: Any, work: Work, label: str) -> Any:
    """A button that starts `work`, its progress, a way to cancel it; return the last result, or None.

    `asked` says what the work depends on: a result of other inputs is still shown, and says so.
    """
    state = st.session_state
    if st.button(label, key=f"{name}_run", type="primary"):
        if f"{name}_job" in state:
            state[f"{name}_job"].stop()
        state[f"{name}_job"], state[f"{name}_asked"] = Job(work), asked
        state[f"{name}_job"].wait(PATIENCE_S)
    job: Job | None = state.get(f"{name}_job")
    if job is None:
        return None
    if not job.wait(0):
        _under_way(name)
        return None
    if job.state == "failed":
        st.error(marked(job.error))
    if job.state == "cancelled":
        st.warning("Cancelled." + (" The figures cover what was done so far." if job.result else ""))
    if job.result is not None and state[f"{name}_asked"] != asked:
        st.info("The inputs have changed since this run; run again for the new ones.")
    return job.result


@st.fragment(run_every=0.5)
def _under_way(name: str) -> None:
    """Progress, or the question whether it may take so long."""
    job: Job = st.session_state[f"{name}_job"]
    if job.wait(0):
        st.rerun()
    if job.state == "asking":
        st.warning(
            f"This would take {_about(job.forecast_s)}. A smaller load or a shorter run answers sooner."
        )
    else:
        st.progress(min(1.0, job.share), text=f"{job.share:.0%} done, {_about(job.left_s)} left")
    with st.container(horizontal=True):
        if job.state == "asking":
            st.button("Run it anyway", key=f"{name}_go_on", on_click=job.go_on)
        st.button("Cancel", key=f"{name}_cancel", on_click=job.stop)


def _about(seconds: float) -> str:
    if seconds == float("inf"):
        return "an unknown time"
    if seconds < 120:
        return f"about {seconds:,.0f} s"
    return f"about {seconds / 60:,.0f} min" if seconds < 7200 else f"about {seconds / 3600:,.0f} h"
