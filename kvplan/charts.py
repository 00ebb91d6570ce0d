"""Charts of plans, as Altair specifications. No arithmetic: a chart shows rows that a result already has."""

from __future__ import annotations

import altair as alt
import pandas as pd

from kvplan.answers import Plan
from kvplan.budget import Row
from kvplan.units import gib


def memory_bar(plan: Plan) -> alt.LayerChart | alt.FacetChart:
    """One bar of the fullest GPU's memory, a segment per row; the budget drawn as a rule with its name."""
    rows = [row for row in plan.budget.rows if row.size.value > 0 and row.name != "outside_budget"]
    outside = [row for row in plan.budget.rows if row.name == "outside_budget" and row.size.value > 0]
    frame = pd.DataFrame([_segment(i, row) for i, row in enumerate(rows + outside)])
    order = list(frame["use"])
    bar = (
        alt.Chart(frame)
        .mark_bar(height=48)
        .encode(
            x=alt.X("gib:Q", stack="zero", title="GiB of one GPU"),
            color=alt.Color("use:N", sort=order, title=None, legend=alt.Legend(orient="bottom", columns=4)),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("use:N"),
                alt.Tooltip("gib:Q", format=".2f", title="GiB"),
                alt.Tooltip("source:N"),
            ],
        )
    )
    return alt.layer(
        bar, *_rule("total", plan.budget.total.size.value), *_rule("budget", plan.budget.budget_bytes)
    )


def _segment(order: int, row: Row) -> dict[str, object]:
    return {"order": order, "use": row.label, "gib": gib(row.size.value), "source": row.source}


def _rule(name: str, num_bytes: int) -> tuple[alt.Chart, alt.Chart]:
    """A limit: a vertical line and its name."""
    frame = pd.DataFrame([{"gib": gib(num_bytes), "name": f"{name} {gib(num_bytes):.1f}"}])
    line = alt.Chart(frame).mark_rule(strokeDash=[4, 3]).encode(x="gib:Q")
    text = alt.Chart(frame).mark_text(align="right", dx=-4, dy=-34).encode(x="gib:Q", text="name:N")
    return line, text
