"""What to run: the changes after which the asked traces fit, ranked."""

from __future__ import annotations

import streamlit as st

from kvplan.pages.common import Asked, guarded, plan_of
from kvplan.planning.inverse import what_would_fit


def render(asked: Asked, is_open: bool) -> None:
    """The whole tab."""
    if is_open:
        guarded(lambda: _ranked(asked))


def _ranked(asked: Asked) -> None:
    plan, _ = plan_of(*asked[:6])
    if plan.fits:
        st.success("The asked traces fit as they are.")
        return
    rows = [option.to_dict() for option in what_would_fit(plan, limit=40)]
    st.dataframe(rows, hide_index=True)
