"""What the tabs share: charts, complaints, scenarios to choose and to copy, running something long."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from kvplan.charts.drawing import Layered, specification
from kvplan.errors import KvplanError
from kvplan.pages.jobs import Job, Work
from kvplan.pages.uploads import scenario_by_name
from kvplan.scenario.schema import Scenario, dump_scenario

BIND: dict[str, Any] = {"bind": "query-params"}
"""Every input is part of the page's address, so that a link reopens the same question."""
PATIENCE_S = 1.5
"""A run that is over by then shows no progress bar."""


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


def or_complaint(read: Callable[[], Scenario]) -> Scenario | str:
    """The scenario that a tab's widgets stand for, or what is wrong with it."""
    try:
        return read()
    except KvplanError as error:
        return str(error)


def bundled_scenario(
    label: str, names: Sequence[str], first: str, keys: tuple[str, str], example: str
) -> Scenario:
    """A bundled scenario with changes; `keys` are those of the name and of the changes."""
    left, right = st.columns(2)
    name = left.selectbox(label, names, index=names.index(first), key=keys[0], **BIND)
    changes = right.text_area(
        "Changes, a key=value a line", key=keys[1], max_chars=4000, height=68, placeholder=example, **BIND
    )
    st.caption("Model, card and flags are the scenario's own, not the sidebar's.")
    return _named(name, tuple(line.strip() for line in changes.splitlines() if line.strip()))


@st.cache_data(max_entries=64)
def _named(name: str, changes: tuple[str, ...]) -> Scenario:
    return scenario_by_name(name, changes)


def scenario_to_copy(scenario: Scenario | str, title: str = "The scenario as a file") -> Scenario | None:
    """Show a scenario as a file, or what is wrong with it; return it if it is one."""
    if isinstance(scenario, str):
        st.error(marked(scenario))
        return None
    with st.expander(title):
        st.code(dump_scenario(scenario), language="yaml")
    return scenario


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
