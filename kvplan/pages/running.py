"""Runs on the page: a button, its progress, a way to cancel it, what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from kvplan.ground.errors import KvplanError
from kvplan.ground.tables import counted
from kvplan.pages import links
from kvplan.pages.apart import Work
from kvplan.pages.jobs import Job
from kvplan.pages.widgets import about, marked, refuse

PATIENCE_S = 1.5
"""A run that is over by then shows no progress bar."""
STOPPED = ":material/stop_circle:"
"""What stands before the word that a run was cancelled."""


def run_box(
    name: str, asked: Any, work: Callable[[], Work], label: str, files: Mapping[str, bytes] | None = None
) -> Any:
    """A button that starts `work`, its progress, a way to cancel it; return the last result, or None.

    `asked` says what the work depends on: a result of other inputs is still shown, and says so. A link that says
    `run=NAME` starts it.
    """
    state = st.session_state
    pressed = st.button(label, key=f"{name}_run", type="primary")
    linked = name in links.told("run") and f"{name}_job" not in state and not state.get(f"{name}_refused")
    if pressed or linked:
        try:
            start(name, asked, work(), files)
        except KvplanError as error:
            state[f"{name}_refused"] = True
            refuse(str(error))
            return None
    job: Job | None = state.get(f"{name}_job")
    if job is None:
        return None
    if not job.wait(0):
        under_way(name)
        return None
    return over(name, asked)


def start(name: str, asked: Any, work: Work, files: Mapping[str, bytes] | None = None) -> None:
    """Begin, and end what else this visitor has running. Raises KvplanError when too many wait."""
    state = st.session_state
    for key in [str(key) for key in state if str(key).endswith("_job")]:
        if not state[key].is_over:
            state[key].stop()
    state[f"{name}_job"] = Job(work, files, is_there=presence(), visitor=browser())
    state[f"{name}_asked"] = asked
    st.query_params["run"] = name
    state[f"{name}_job"].wait(PATIENCE_S)


def over(name: str, asked: Any) -> Any:
    """What a run that has ended left; what it has of a run that was ended early is for `early` to say."""
    job: Job = st.session_state[f"{name}_job"]
    if job.state == "failed":
        refuse(job.error)
    elif job.state == "cancelled" and job.result is None:
        why = f" {marked(job.error)}." if job.error else ""
        st.warning(f"Cancelled.{why} Nothing was done yet.", icon=STOPPED)
    if job.result is not None and st.session_state[f"{name}_asked"] != asked:
        st.info(
            "The inputs have changed since this run; run again for the new ones.", icon=":material/update:"
        )
    return job.result


def early(name: str) -> str:
    """Markdown that a result is of a run that was ended before its end, and why; empty for a whole one."""
    job: Job | None = st.session_state.get(f"{name}_job")
    if job is None or job.state != "cancelled" or job.result is None:
        return ""
    why = f"{marked(job.error)}. The" if job.error else "the"
    return f"**Cancelled:** {why} figures cover what was done so far"


def presence() -> Callable[[], bool]:
    """Whether this visitor's page is still open, to be asked from anywhere."""
    context = get_script_run_ctx()
    if context is None or not runtime.exists():
        return lambda: True
    session = context.session_id
    return lambda: runtime.exists() and runtime.get_instance().is_active_session(session)


def browser() -> str:
    """Whose page this is, as far as it can be told: many tabs of one browser are one visitor."""
    context = get_script_run_ctx()
    cookie = st.context.cookies.get("_streamlit_xsrf", "") if runtime.exists() else ""
    return cookie or st.context.ip_address or (context.session_id if context else "")


SEARCHES = ("plan", "recommend")
"""Runs whose later steps are not known when they begin: no time left is promised."""


def _how_far(name: str, job: Job) -> str:
    so_far = f"{job.elapsed_s:.0f} s so far"
    if name in SEARCHES:
        looked = (
            f"{job.share:.0%} of the deployments looked at"
            if job.share < 1
            else "All deployments looked at; now how far their figures may be off, and what would change the answer"
        )
        return f"{looked}; {so_far}"
    if job.share >= 1:
        return f"Summing up; {so_far}"
    left = job.left_s
    return f"{job.share:.0%} done, {so_far if left is None else f'{about(left)} left'}"


def _progress(name: str, job: Job) -> None:
    if job.state == "waiting":
        before = job.num_before
        ahead = f"{counted(before, 'run')} before this one" if before else "this run is next"
        st.progress(0.0, text=f"Waiting for a turn: {ahead}")
    elif name in SEARCHES and job.share >= 1:
        st.html('<div class="going" role="progressbar"><i></i></div>')
        st.caption(_how_far(name, job))
    else:
        st.progress(min(1.0, job.share), text=_how_far(name, job))


@st.fragment(run_every=1.0)
def under_way(name: str) -> None:
    """Progress, or the question whether it may take so long."""
    job: Job = st.session_state[f"{name}_job"]
    if job.wait(0):
        st.rerun()
    if job.is_stopping:
        st.warning("Cancelled. What was done so far is put together.", icon=STOPPED)
        return
    if job.state == "asking":
        most = f" The app ends it after {about(job.most_s)}, with what is done by then." * (
            job.forecast_s > job.most_s
        )
        long = "Nobody can say yet how long this takes"
        if job.forecast_s != float("inf"):
            long = f"This would take {about(job.forecast_s)}"
        st.warning(
            f"{long}. A smaller load or a shorter run answers sooner.{most}",
            icon=":material/hourglass:",
        )
    else:
        with st.container(key=f"{name}_progress"):
            _progress(name, job)
    with st.container(horizontal=True):
        if job.state == "asking":
            st.button("Run it anyway", key=f"{name}_go_on", on_click=job.go_on)
        st.button("Cancel", key=f"{name}_cancel", on_click=job.stop)
