"""The planner in a browser: `streamlit run app.py`. A sidebar that states the question, and a tab for each answer."""

from __future__ import annotations

import streamlit as st

from kvplan.pages import calibration_tab, deployments_tab, memory_tab, simulation_tab, strategies_tab
from kvplan.pages.sidebar import sidebar
from kvplan.pages.widgets import BIND

TABS = ("Estimate", "Simulate", "Strategies", "Recommend", "Calibration")

# Less air above the title; flags in captions stay whole, lists of blocks break;
# on a phone a report's figures stand beside their labels.
STYLE = """<style>
.stMainBlockContainer {padding-top: 3.5rem}
[data-testid="stCaptionContainer"] code {white-space: nowrap}
.st-key-block_owners td * {overflow-wrap: anywhere !important}
@media (max-width: 640px) {.stCode code {font-size: 0.68rem}}
</style>"""


def main() -> None:
    """Inputs of all tabs, so that all are in the address; contents of the open one."""
    st.set_page_config(page_title="kvplan", layout="wide")
    st.html(STYLE)
    st.title("kvplan", anchor=False)
    asked = sidebar()
    first, second, third, fourth, fifth = st.tabs(TABS, key="tab", **BIND)
    with first:
        if first.open:
            memory_tab.render(asked)
    with second:
        scenario = simulation_tab.inputs(asked)
        if second.open:
            simulation_tab.render(scenario)
    with third:
        problems = strategies_tab.inputs()
        if third.open:
            strategies_tab.render(problems)
    with fourth:
        search = deployments_tab.inputs(asked)
        if fourth.open:
            deployments_tab.render(search)
    with fifth:
        calibration_tab.render(is_open=bool(fifth.open))


main()
