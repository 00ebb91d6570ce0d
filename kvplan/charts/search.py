"""Recommendations as Altair charts: what the asked load costs on each configuration."""

from __future__ import annotations

import altair as alt

from kvplan.charts.drawing import BLUE, SKY, Layered, Rows, colour_scale, inline, legend, tips
from kvplan.search.recommendation import Candidate, Recommendation


def ranking(found: Recommendation, most: int = 12) -> Layered:
    """Dollars an hour for the asked load, configuration by configuration, the best first; what gives out first."""
    feasible = [c for c in found.candidates if c.feasible and c.usd_per_hour is not None][:most]
    rows: Rows = [_row(place, candidate) for place, candidate in enumerate(feasible)]
    two_lines = alt.Axis(labelLimit=240, labelOverlap=False, labelExpr="split(datum.label, '|')")
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("usd:Q", title="$ an hour for the asked load"),
        y=alt.Y("label:N", sort=[row["label"] for row in rows], title=None, axis=two_lines),
    )
    bars = base.mark_bar().encode(
        color=alt.Color("state:N", scale=colour_scale({"best": BLUE, "others": SKY}), legend=legend(2)),
        tooltip=[
            *tips("what:N"),
            alt.Tooltip("usd:Q", format=",.2f"),
            *tips("gpus:Q", "limited_by:N"),
        ],
    )
    return alt.layer(bars).properties(height=110 + 40 * len(rows))


def _row(place: int, candidate: Candidate) -> dict[str, object]:
    what = ", ".join(str(value) for value in candidate.settings.values())
    return {
        "what": what,
        "usd": candidate.usd_per_hour,
        "gpus": candidate.num_gpus,
        "limited_by": candidate.limited_by,
        "label": f"{what}|{candidate.num_gpus} GPUs, {candidate.limited_by}",
        "state": "others" if place else "best",
    }
