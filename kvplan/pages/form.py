"""The question's inputs: the sentence on top of the page, and in the sidebar what fewer people ask about."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import streamlit as st

from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import gpu_names
from kvplan.models.load import aliases, bundled_models
from kvplan.pages.asked import (
    ENGINES,
    OWN,
    Asked,
    check_card,
    check_model,
    file_tier,
    read_flags,
    read_number,
    read_question,
)
from kvplan.pages.links import BIND
from kvplan.pages.uploads import check_size
from kvplan.pages.widgets import choice, switch, text
from kvplan.search.question import read_cards

MODEL, CARDS = "Qwen/Qwen3-8B", "1xh100-sxm"
TYPED = {"users": "20", "thinking": "16K", "prompt": "512", "answer": "256", "slo": "ttft<5s,tpot<50ms"}
"""The first question of somebody new: one that fits."""
KV_DTYPES = ("auto", "fp8", "fp8_e5m2", "fp8_per_token_head", "nvfp4")
QUANTIZATIONS = ("no", "fp8", "bitsandbytes")
RANKS = ("auto", "1", "2", "4", "8", "16", "32")
DRAFTERS = ("none", "mtp", "ngram")
SIZES = {
    "max_model_len": "Longest context (max_model_len)",
    "max_num_seqs": "Most sequences (max_num_seqs)",
    "max_num_batched_tokens": "Tokens a step (max_num_batched_tokens)",
    "gpu_memory_utilization": "Share of the card (gpu_memory_utilization)",
    "block_size": "Tokens a block (block_size)",
    "kv_offloading_size": "GiB of host memory for KV (kv_offloading_size)",
}
FILE_TIERS = ("none", "local", "remote")
DAYS = ("all day alike", "reasoning-api", "office-hours")
COUNTS = (*(f"{n}x" for n in (1, 2, 4, 8)),)


class Typed(NamedTuple):
    """Everything as it stands in the inputs, not read yet."""

    model: str
    gpu: str
    engine: str
    said: dict[str, str]
    flags: dict[str, Any]
    num_samples: str
    num_requests: str
    config: str
    also: tuple[str, ...]

    def read(self) -> Asked:
        """The question. Raises KvplanError in one line for the first input that is wrong."""
        if self.config:
            check_size("config.json", self.config.encode())
        model = OWN if self.config else check_model(self.model)
        if self.flags.get("kv_transfer_config") and not self.flags.get("kv_offloading_size"):
            raise KvplanError("files below host memory: say how many GiB of host memory are above them")
        said = {
            name: value
            for name, value in self.said.items()
            if not (name == "users" and self.said.get("rate"))
        }
        asked = Asked(
            model, self.config, check_card(self.gpu), self.engine, read_flags(self.flags), read_question(said),
            read_number("samples", self.num_samples, 1, 1, 1 << 20),
            read_number("requests at once", self.num_requests, 1, 1, 1 << 20),
            tuple(map(check_card, self.also)),
        )  # fmt: skip
        _ = asked.flags  # more ranks than cards
        read_cards([asked.gpu, *asked.also])
        if asked.num_samples * asked.num_requests > 1 << 30:
            raise KvplanError("samples times requests: more than a thousand million at once")
        return asked


@cache
def first() -> Asked:
    """What somebody new is shown, untouched."""
    return Typed(MODEL, CARDS, ENGINES[0], TYPED, {}, "1", "1", "", ()).read()


@st.cache_data
def _models() -> list[str]:
    return sorted((*bundled_models(), *aliases()))


@st.cache_data
def _cards() -> list[str]:
    names = gpu_names()
    return [
        CARDS,
        *(name for name in names),
        *(f"{n}{name}" for name in names for n in COUNTS if f"{n}{name}" != CARDS),
    ]


def sentence() -> dict[str, str]:
    """Serve what on what, for whom, how long, how fast."""
    with st.container(horizontal=True, gap="small", key="sentence", vertical_alignment="bottom"):
        models, cards = _models(), _cards()
        found = {
            "model": st.selectbox(
                "Serve", models, index=models.index(MODEL), key="model", accept_new_options=True, width=300,
                disabled=_has_own(), **BIND,
            ),
            "gpu": st.selectbox(
                "on", cards, index=0, key="gpu", accept_new_options=True, width=184, **BIND,
                help="A name: as many as it takes. 2xh100: two that there are. Not listed: gib=20,gbps=672,tflops=44.",
            ),
            "users": text(st, "for users", "users", TYPED["users"], width=112,
                          help="People who ask again when answered, after a pause (in the sidebar)."),
            "thinking": text(st, "who need thinking", "thinking", TYPED["thinking"], width=150,
                             help="Longest thinking, tokens: one trace in a hundred is cut there, the "
                                  "typical one is a tenth "
                             "as long. 16K = 16,384, 16k = 16,000."),
            "prompt": text(st, "after prompts", "prompt", TYPED["prompt"], width=136,
                           help="Typical prompt, tokens; one in a hundred is ten times as long."),
            "answer": text(st, "for answers", "answer", TYPED["answer"], width=136,
                           help="Typical visible answer, tokens; one in a hundred is ten times as long."),
            "slo": text(st, "within", "slo", TYPED["slo"], width=200,
                        help="Targets of 99 requests in 100. ttft: time to the first token; tpot: time per token "
                        "after it; visible: until the first token of the answer; e2e: the whole answer. "
                        "E.g. visible<60s,tpot<50ms."),
        }  # fmt: skip
    return {key: str(value or "") for key, value in found.items()}


def typed() -> Typed:
    """All inputs of the question."""
    told = sentence()
    bar = st.sidebar
    config = _own_config(bar)
    engine = str(choice(bar, "Engine", ENGINES, "engine"))
    left, right = bar.columns(2)
    flags: dict[str, Any] = {
        "tensor_parallel_size": _rank(choice(left, "Tensor parallel", RANKS, "tp")),
        "kv_cache_dtype": _unless("auto", choice(right, "KV cache dtype", KV_DTYPES, "kv_cache_dtype")),
    }
    with bar.expander("More of the question"):
        said = _more_said()
        also = st.multiselect(
            "Other cards to consider",
            _cards()[1:],
            key="gpus",
            accept_new_options=True,
            max_selections=8,
            **BIND,
        )
        samples = text(
            st,
            "Samples of each request",
            "num_samples",
            "1",
            help="They share the prompt's blocks (Estimate).",
        )
        requests = text(
            st, "Requests at one moment", "num_requests", "1", help="To live at once in memory (Estimate)."
        )
    with bar.expander("More engine flags"):
        flags |= _more_flags()
    said |= {key: told[key] for key in ("users", "thinking", "prompt", "answer", "slo")}
    return Typed(told["model"], told["gpu"], engine, said, flags, samples, requests, config, tuple(also))


def _has_own() -> bool:
    """Whether a model from outside is taken instead of the one in the sentence."""
    return any(st.session_state.get(key) for key in ("config_file", "config_text"))


def _own_config(bar: Any) -> str:
    """A model from outside: pasted, or uploaded. It is too long for the page's address and not part of the link."""
    with bar.expander("Your own model"):
        file = st.file_uploader("config.json", type="json", max_upload_size=2, key="config_file")
        pasted = st.text_area(
            "or its text",
            height=120,
            key="config_text",
            help="Taken instead of the model above; not in the link.",
        )
    if file is not None:
        return str(file.getvalue().decode("utf-8", errors="replace")) or " "
    return str(pasted or "")


def _more_said() -> dict[str, str]:
    return {
        "typical_thinking": text(st, "Typical thinking", "typical_thinking", placeholder="a tenth of the longest"),
        "pause": text(st, "Pause between questions, seconds", "pause", placeholder="60"),
        "rate": text(st, "Requests a second, instead of users", "rate", placeholder="as users ask"),
        "max_dollars_per_hour": text(st, "Most dollars an hour", "max_dollars_per_hour", placeholder="any"),
        "spare": text(st, "Spare copies", "spare", placeholder="0"),
        "day": _unless(DAYS[0], choice(st, "Load over a day", DAYS, "day")) or "",
    }  # fmt: skip


def _more_flags() -> dict[str, Any]:
    """Limits, parallel sizes, what is on or off; empty leaves it to the engine."""
    flags: dict[str, Any] = {
        name: text(st, label, name, placeholder="the engine's") for name, label in SIZES.items()
    }
    below = choice(
        st, "Files below it (fs tier)", FILE_TIERS, "file_tier",
        help="local: the drive that was measured with the step times, else nvme4; remote: cephfs. Needs GiB of host "
        "memory. Simulate offers other drives.",
    )  # fmt: skip
    flags |= {
        "kv_transfer_config": None if below == FILE_TIERS[0] else file_tier(str(below)),
        "pipeline_parallel_size": _rank(choice(st, "Pipeline parallel", RANKS[:-2], "pp")),
        "data_parallel_size": _rank(choice(st, "Data parallel", RANKS, "dp")),
        "decode_context_parallel_size": _rank(choice(st, "Decode context parallel", RANKS[:-2], "dcp")),
        "quantization": _unless(
            "no", choice(st, "Quantise weights on loading", QUANTIZATIONS, "quantization")
        ),
    }
    drafter = choice(st, "Drafts (speculative_method)", DRAFTERS, "speculative_method")
    if drafter != "none":
        number = text(st, "Draft tokens a step", "num_speculative_tokens", "3")
        flags |= {"speculative_method": drafter, "num_speculative_tokens": number}
    caching = switch(st, "Prefix caching", "enable_prefix_caching", True)
    return flags | {
        "enable_expert_parallel": switch(st, "Expert parallel", "enable_expert_parallel"),
        "enforce_eager": switch(st, "No CUDA graphs", "enforce_eager"),
        **({} if caching else {"enable_prefix_caching": "false"}),
    }


def _rank(value: Any) -> str | None:
    return None if value == "auto" else str(value)


def _unless(usual: str, value: Any) -> str | None:
    return None if value == usual else str(value)
