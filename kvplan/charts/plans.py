"""Plans as Altair charts, for the app and for notebooks.

No arithmetic: a chart shows rows that a result already has, in the units people read; a limit is a dashed rule with
its name on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt

from kvplan.charts.drawing import (
    BLUE,
    EDGE,
    GREEN,
    HEIGHT,
    ORANGE,
    PALE,
    PINK,
    SKY,
    VERMILION,
    Layered,
    between,
    binary_axis,
    binary_ticks,
    inline,
    legend,
    limit_rule,
    log_ticks,
    tips,
)
from kvplan.ground.units import gib
from kvplan.memory.answers import Plan, Span
from kvplan.memory.budget import Row

MEMORY_COLOURS = {
    "weights": BLUE,
    "activation": ORANGE,
    "cuda_graph": PINK,
    "non_torch": SKY,
    "kv_pool": GREEN,
    "outside_budget": PALE,
}


def memory_bar(plan: Plan) -> Layered:
    """One bar of the fullest GPU's memory, a segment per row; budget and card drawn as rules with their names."""
    rows = sorted(plan.budget.rows, key=lambda row: row.name == "outside_budget")
    segments = [_segment(i, row) for i, row in enumerate(r for r in rows if r.size.value > 0)]
    names = [str(s["use"]) for s in segments]
    colours = [MEMORY_COLOURS.get(str(s["row"]), VERMILION) for s in segments]
    bar = (
        alt.Chart(inline(segments))
        .mark_bar(height=44, stroke=EDGE, strokeWidth=0.75)
        .encode(
            x=alt.X("gib:Q", stack="zero", title="GiB of one GPU"),
            color=alt.Color("use:N", scale=alt.Scale(domain=names, range=colours), legend=legend(2)),
            order=alt.Order("order:Q"),
            tooltip=[
                *tips("use:N"),
                alt.Tooltip("gib:Q", format=".2f", title="GiB"),
                *tips("source:N"),
            ],
        )
    )
    total, budget = gib(plan.budget.total.size.value), gib(plan.budget.budget_bytes)
    drawn = sum(row.size.value for row in rows if row.size.value > 0)

    def side(value: float) -> Literal["left", "right"]:  # of the rule where there is room for its name
        return "right" if value > gib(drawn) / 2 else "left"

    card_rule = limit_rule("x", total, f"card {total:.1f} GiB", side(total), at="bottom")
    card_rule = between(card_rule, "height / 2 - 22", "height")
    budget_rule = limit_rule("x", budget, f"budget {budget:.1f} GiB", side(budget))
    budget_rule = between(budget_rule, "0", "height / 2 + 22")  # neither crosses the other's name
    return alt.layer(bar, *budget_rule, *card_rule).properties(height=150)


def _segment(order: int, row: Row) -> dict[str, object]:
    return {
        "order": order,
        "row": row.name,
        "use": f"{row.label}: {gib(row.size.value):.1f} GiB",
        "gib": gib(row.size.value),
        "source": row.source,
    }


def concurrency(plan: Plan, trace_tokens: Sequence[int], curve: Sequence[Span]) -> Layered:
    """Traces at once against trace length: the likely count, its range, the asked point, the scheduler's limit."""
    rows = [
        {"tokens": n, "traces": s.value, "low": s.low, "high": s.high}
        for n, s in zip(trace_tokens, curve, strict=True)
        if s.high >= 1
    ]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X(
            "tokens:Q",
            scale=alt.Scale(type="log", nice=False),
            title="tokens of a full-grown trace",
            axis=binary_axis(binary_ticks(trace_tokens[0], trace_tokens[-1])),
        )
    )
    counts = [row[key] for row in rows for key in ("low", "traces", "high") if row[key] > 0]
    band = base.mark_area(fillOpacity=0.3, color=BLUE, stroke=BLUE, strokeWidth=0.5).encode(
        y=alt.Y(
            "low:Q",
            scale=alt.Scale(type="log", nice=False, padding=8),
            title="traces at once",
            axis=alt.Axis(values=log_ticks(min(counts), max(counts)), format=",~g", labelOverlap=True),
        ),
        y2=alt.Y2("high:Q"),
    )
    shown = [alt.Tooltip(f"{name}:Q", format=",.0f") for name in ("tokens", "traces", "low", "high")]
    line = base.mark_line(color=BLUE).encode(y=alt.Y("traces:Q"), tooltip=shown)
    parts: list[Any] = [band, line]
    seqs, flag = plan.max_num_seqs, "max_num_active_seqs" if plan.args.max_num_active_seqs else "max_num_seqs"
    if any(row["high"] > seqs for row in rows):
        parts += limit_rule("y", seqs, f"{flag} {seqs:,}")
    if plan.traces.value >= 1:
        parts += _point(plan)
    return alt.layer(*parts).properties(height=HEIGHT)


def _point(plan: Plan) -> tuple[alt.Chart, alt.Chart]:
    """Where the user's question lies."""
    row = {"tokens": plan.trace_tokens, "traces": plan.traces.value, "name": f"yours: {plan.num_traces:,}"}
    base = alt.Chart(inline([row])).encode(x=alt.X("tokens:Q"), y=alt.Y("traces:Q"))
    dot = base.mark_point(filled=True, size=130, color=ORANGE, opacity=1, stroke=EDGE, strokeWidth=1)
    return dot, base.mark_text(align="right", dx=-10, dy=14, fontWeight="bold").encode(
        text=alt.Text("name:N")
    )
