"""The planner in a browser: one question in a sentence, its verdict, and a tab for each way to look at it."""

from __future__ import annotations

import logging

import pandas  # noqa: F401  (tables need it: loaded before the first visitor waits for one)
import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from kvplan.ground.errors import KvplanError
from kvplan.pages import (
    calibration_tab,
    deployments_tab,
    form,
    links,
    memory_tab,
    simulation_tab,
    strategies_tab,
    style,
    verdict,
)
from kvplan.pages.jobs import warm_up
from kvplan.pages.links import BIND
from kvplan.pages.memory_kept import Housekeeper, collect, gives_back
from kvplan.pages.sent import bound_messages, bound_uploads
from kvplan.pages.turns import page_turn
from kvplan.pages.widgets import marked, or_complaint, refuse

TABS = ("Estimate", "Simulate", "Strategies", "Recommend", "Calibration")


warm_up()  # once, when the server's first page is asked for
_housekeeper: Housekeeper | None = None
if runtime.exists():
    _housekeeper = Housekeeper(runtime.get_instance().is_active_session, collect)
    _housekeeper.start()
    if not gives_back():
        told = "Python keeps the memory that visitors needed; `kvplan app` starts it so that it is given back"
        logging.getLogger(__name__).warning(told)
    bound_uploads(runtime.get_instance().uploaded_file_mgr)
    bound_messages(runtime.get_instance())


def main() -> None:
    """The page; what goes wrong in it is a line for the visitor and a story for the server's log."""
    st.set_page_config(
        page_title="kvplan", page_icon=":material/memory:", layout="wide", initial_sidebar_state="auto"
    )
    st.set_option("client.showErrorDetails", "none")  # however the server was started
    st.html(style.SHEET)
    try:
        with page_turn():
            _page()
    except KvplanError as error:
        refuse(str(error))
    except Exception:
        logging.getLogger(__name__).exception("the page failed")
        refuse("this page failed inside kvplan; the server's log has the details. Reload it to go on.")
    finally:
        context = get_script_run_ctx()
        if _housekeeper is not None and context is not None:
            _housekeeper.note(context.session_id)


def _page() -> None:
    """Inputs of all tabs, so that all are in the address; contents of the open one."""
    links.begin()
    st.title("kvplan", anchor=False, help=None)
    st.caption(
        "Will it fit, how fast, at what price: KV-cache plans for models that think before they answer."
    )
    told = form.typed()
    asked = or_complaint(told.read)
    answer = st.container(key="verdict")
    found, is_told = None, False
    if not isinstance(asked, str) and not asked.config and links.is_kept():
        is_told = True  # the browser shows it while it still loads what the tabs need
        with answer:
            found = verdict.render(asked)
    links.check("tab", TABS)
    first, second, third, fourth, fifth = st.tabs(TABS, key="tab", **BIND)
    with first:
        body, memory = memory_tab.inputs()
    with second:
        simulation = simulation_tab.inputs(asked)
    with third:
        problems = strategies_tab.inputs(asked)
    with fourth:
        search = deployments_tab.inputs(asked)
    with fifth:
        profile = calibration_tab.inputs(asked)
    links.was_read(all_drawn=not isinstance(asked, str))
    if links.faults():
        _refused(answer)
        return
    if isinstance(asked, str):
        refuse(asked, answer)
        return
    if not is_told:
        with answer:
            found = verdict.render(asked)
    with body:
        if first.open and found is not None:
            memory_tab.render(asked)
    with memory:
        if first.open:
            memory_tab.render_log(asked)
    with second:
        if second.open:
            simulation_tab.render(asked, simulation)
    with third:
        if third.open:
            strategies_tab.render(asked, problems)
    with fourth:
        if fourth.open:
            deployments_tab.render(asked, search, found)
    with fifth:
        if fifth.open:
            calibration_tab.render(asked, profile)


def _refused(place: st.delta_generator.DeltaGenerator) -> None:
    """A link that says what is not there: nothing is answered in its place."""
    with place:
        st.error(
            "This link asks for what is not there.  \n" + "  \n".join(map(marked, links.faults())),
            icon=":material/link_off:",
        )
        with st.container(horizontal=True):
            st.button("Open the rest of it", key="link_rest", on_click=links.forget_faults, type="primary")
            st.button("Start with a question that fits", key="link_afresh", on_click=links.start_afresh)
