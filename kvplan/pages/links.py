"""A link keeps its word: what it says is what is answered, or what is wrong with it, never another question.

Streamlit drops a value that an input does not have and takes its default. So the address is read once, before any input
reads it; each input holds its value to what it offers, and at the end every name to the inputs that there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAPIException

from kvplan.ground.errors import did_you_mean

BIND: dict[str, Any] = {"bind": "query-params"}
"""Every input is part of the page's address, so that a link reopens the same question."""
TEXTS = frozenset((
    "model", "gpu", "users", "thinking", "prompt", "answer", "slo", "rate", "typical_thinking", "pause",
    "max_dollars_per_hour", "spare", "gpus", "num_samples", "num_requests", "max_model_len", "max_num_seqs",
    "max_num_batched_tokens", "gpu_memory_utilization", "block_size", "kv_offloading_size",
    "num_speculative_tokens", "scenario_set", "strategies_set", "search_set", "num_prompts", "seed",
))  # fmt: skip
"""Inputs of free text: their own readers say what is wrong."""
CHOICES = frozenset((
    "tab", "engine", "tp", "pp", "dp", "dcp", "kv_cache_dtype", "quantization", "speculative_method",
    "file_tier", "file_drive",
    "enable_prefix_caching", "enable_expert_parallel", "enforce_eager", "day", "log_is_mine",
    "scenario_source", "scenario", "owners", "strategies_source", "strategies", "of_question",
    "search_source", "search", "profile", "measurements",
))  # fmt: skip
NEEDS = {
    **dict.fromkeys(("scenario", "scenario_set", "num_prompts", "seed"), "scenario_source"),
    **dict.fromkeys(("search", "search_set"), "search_source"),
    "strategies": "strategies_source",
    "num_speculative_tokens": "speculative_method",
    "file_drive": "file_tier",
}
"""Inputs that are there only for some choices of another."""
VIEWS = frozenset(["run", "first_request", "block_time", "block_replica", "tree_strategy", "tree_problem"])
"""What is looked at of a result; drawn once there is one."""
LISTS = frozenset(["gpus", "run"])
"""What may be said several times."""
KEYS = TEXTS | CHOICES | VIEWS
STREAMLITS = ("embed", "embed_options")
IGNORED = ("utm_", "fbclid", "gclid")
"""What other sites hang on to links."""


def begin() -> None:
    """Read the address, the first time that a visitor's page runs."""
    state = st.session_state
    if "link" not in state:
        state["link"] = {key: st.query_params.get_all(key) for key in st.query_params}
        state["link_faults"] = {}
        _check_names(state["link"])


def told(key: str) -> list[str]:
    """What the link says of an input: nothing, or its values."""
    return list(st.session_state.get("link", {}).get(key, ()))


def check(key: str, options: Iterable[Any]) -> None:
    """Note a fault if the link says what an input does not offer."""
    known = [str(option) for option in options]
    for value in told(key):
        if value not in known:
            close = did_you_mean(value[:80], known) or f"; there are {', '.join(known[:12])}"
            st.session_state["link_faults"].setdefault(key, f"{key}: there is no {value[:80]!r}{close}")


def opened_tab() -> str | None:
    """The tab that is looked at, before it is drawn; None: the first."""
    opened = st.session_state.get("tab") or next(iter(told("tab")), None)
    return None if opened is None else str(opened)


def check_switch(key: str) -> None:
    """The same for what is on or off."""
    check(key, ("true", "false"))


def faults() -> list[str]:
    """What is wrong with the link, a sentence each."""
    return list(st.session_state.get("link_faults", {}).values())


def is_kept() -> bool:
    """Whether nothing in the link can turn out wrong any more: it says nothing, or every input has read it."""
    state = st.session_state
    return not state["link_faults"] and (not state["link"] or bool(state.get("link_read")))


def was_read(all_drawn: bool = True) -> None:
    """Note that every input has read the link, and as a fault what none has: it is of another choice than the link's.

    `all_drawn`: whether every input is there that the link's choices have.
    """
    state = st.session_state
    if all_drawn and not state.get("link_read"):
        for key, needed in NEEDS.items():
            if key in state["link"] and key not in state:
                told = f"{key}: this link says it, but its {needed} does not ask for it"
                state["link_faults"].setdefault(key, told)
    state["link_read"] = True


def forget_faults() -> None:
    """Go on without what is wrong."""
    state = st.session_state
    for key in state["link_faults"]:
        state["link"].pop(key, None)
        if key in st.query_params:
            with suppress(StreamlitAPIException):  # an input holds it already: one of two values
                del st.query_params[key]
    state["link_faults"] = {}


def start_afresh() -> None:
    """Go on as if no link had been there."""
    st.query_params.clear()
    st.session_state.clear()


def _check_names(link: dict[str, list[str]]) -> None:
    for key in link:
        if key in KEYS or key in STREAMLITS or key.startswith(IGNORED):
            said = link[key]
            if key in KEYS and key not in LISTS and len(said) > 1:
                st.session_state["link_faults"][key] = f"{key}: said {len(said)} times, and it is one thing"
            continue
        st.session_state["link_faults"][key] = (
            f"No input is called {key[:80]!r}{did_you_mean(key[:80], KEYS)}"
        )
