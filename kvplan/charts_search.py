"""Recommendations as Altair charts: what the asked load costs on each configuration, and how slow it is there."""

from __future__ import annotations

import altair as alt

from kvplan.charts_common import BLUE, GREY, PALE, Layered, Rows, colour_scale, inline, legend, limit_rule
from kvplan.recommend import Recommendation

LATENCIES = {"ttfvt": "first visible token", "ttft": "first token", "e2el": "end to end"}


def measured_by(found: Recommendation) -> str:
    """The latency that the targets speak of; end to end where they say nothing."""
    return next((name for name in LATENCIES if getattr(found.scenario.slo, f"{name}_ms")), "e2el")


def ranking(found: Recommendation) -> Layered:
    """Dollars an hour for the asked load against the 99th percentile of the latency that has a target."""
    name = measured_by(found)
    rows: Rows = []
    for place, candidate in enumerate(c for c in found.candidates if c.feasible):
        latency = candidate.figures.get(f"p99_{name}_ms")
        if latency is not None:
            state = "best" if not place else "on the front" if candidate.pareto else "beaten"
            what = ", ".join(str(value) for value in candidate.settings.values())
            rows.append({"what": what, "usd": candidate.usd_per_hour, "seconds": latency / 1000, "state": state,
                         "gpus": candidate.num_gpus, "limited_by": candidate.limited_by})  # fmt: skip
    colours = {"best": BLUE, "on the front": GREY, "beaten": PALE}
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("usd:Q", title="$ an hour for the asked load", scale=alt.Scale(zero=False)),
        y=alt.Y("seconds:Q", title=f"{LATENCIES[name]}, p99, seconds"),
    )
    dots = base.mark_circle(size=130, opacity=1).encode(
        color=alt.Color("state:N", scale=colour_scale(colours), legend=legend(3)),
        tooltip=["what:N", alt.Tooltip("usd:Q", format=",.2f"), alt.Tooltip("seconds:Q", format=",.2f"),
                 "gpus:Q", "limited_by:N"],
    )  # fmt: skip
    names = base.mark_text(align="left", dx=9, color=GREY).encode(text="what:N")
    limit = getattr(found.scenario.slo, f"{name}_ms")
    rules = limit_rule("y", limit / 1000, f"SLO {limit / 1000:g} s") if limit else ()
    return alt.layer(dots, names, *rules).properties(height=300)
