"""The sidebar's question, and the plan that answers it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import streamlit as st

from kvplan.engines.flags import EngineArgs
from kvplan.errors import KvplanError
from kvplan.gpu import gpu_names
from kvplan.memory.answers import Option
from kvplan.memory.demand import Demand
from kvplan.memory.forward import Plan, estimate
from kvplan.memory.inverse import what_would_fit
from kvplan.models.load import aliases, bundled_models, load_model
from kvplan.models.spec import ModelSpec
from kvplan.pages.uploads import checked, model_from_text
from kvplan.pages.widgets import BIND
from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.workload.lengths import Length, Lognormal

PASTED = "paste a config.json ..."
KV_DTYPES = ("auto", "fp8", "fp8_per_token_head", "nvfp4")
QUANTIZATIONS = ("no", "fp8", "bitsandbytes")
ENGINES = ("vllm", "sglang", "tensorrt-llm")
MAX_TOKENS = 1 << 24


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
    def lengths(self) -> dict[str, Length]:
        """Distributions of prompt, hidden and visible tokens, by a scenario's keys."""
        medians = {
            "prompt": self.demand.prompt_tokens(),
            "thinking": self.thinking_len,
            "answer": self.answer_len,
        }
        return {
            key: Lognormal(kind="lognormal", median=max(1, n), sigma=self.spread)
            for key, n in medians.items()
        }

    def scenario(self, name: str, num_requests: int, rate: float, seed: int = 0, **more: object) -> Scenario:
        """The deployment under a Poisson load of these lengths. Raises KvplanError for what is not simulated."""
        if self.model == PASTED or self.engine != "vllm":
            raise KvplanError("the simulator runs bundled models under vllm; choose them in the sidebar")
        engine = self.args.model_dump(exclude_defaults=True)
        load: dict[str, object] = {**self.lengths, "num_requests": num_requests, "seed": seed}
        load |= {"arrivals": {"kind": "poisson", "rate": rate}} | (
            {} if self.thinking_len else {"thinking": 0}
        )
        told = {"name": name, "model": self.model, "gpu": self.gpu, "engine": engine, "workload": load}
        return checked(parse_scenario(told | more))


def sidebar() -> Asked:
    """Model, card, flags, lengths."""
    bar = st.sidebar
    models, cards = [*sorted((*bundled_models(), *aliases())), PASTED], gpu_names()
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
        "kv_offloading_size": st.number_input(
            "kv_offloading_size, GiB of host memory (0: none)", 0, 1 << 16, 0, key="kv_offloading_size", **BIND
        ),
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
def plan_of(asked: Asked) -> tuple[Plan, tuple[Option, ...]]:
    """The plan and what would fit; equal questions are answered once."""
    model = read_model(asked.model, asked.config)
    plan = estimate(model, asked.gpu, asked.args, engine=asked.engine, demand=asked.demand)
    return plan, what_would_fit(plan)
