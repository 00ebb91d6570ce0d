"""Strategies as Altair charts: who is on the front, what budgets cost, how one problem's branches grew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from kvplan.charts_common import (
    BLUE,
    GREEN,
    GREY,
    HEIGHT,
    PALE,
    SKY,
    VERMILION,
    Layered,
    Rows,
    colour_scale,
    inline,
    legend,
    limit_rule,
    seconds,
    tips,
    token_axis,
)
from kvplan.compare import Comparison
from kvplan.compare import Row as StrategyRow
from kvplan.simulation.branches import Node

# --- strategies -----------------------------------------------------------------------------------


def pareto(found: Comparison) -> Layered:
    """Accuracy against latency, cost as size; those nobody beats in all three are joined and coloured."""
    rows = [_strategy(row) for row in found.rows]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("latency_p99_s:Q", title="latency p99, seconds", scale=alt.Scale(zero=False, nice=True)),
        y=alt.Y(
            "accuracy:Q", title="problems solved", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)
        ),
    )
    dots = base.mark_circle(opacity=0.9, stroke="white", strokeWidth=1).encode(
        size=alt.Size("usd_per_correct:Q", legend=None, scale=alt.Scale(range=[60, 600])),
        color=alt.Color("front:N", scale=colour_scale({"on the front": BLUE, "beaten": PALE}), legend=legend(2)),
        tooltip=[*tips("strategy:N"), alt.Tooltip("accuracy:Q", format=".1%"), *seconds("latency_p99_s"),
                 alt.Tooltip("usd_per_correct:Q", format=".4f"), *tips("limited_by:N")],
    )  # fmt: skip
    front = alt.Chart(inline([r for r in rows if r["front"] == "on the front"]))
    line = front.mark_line(color=BLUE, strokeWidth=1, opacity=0.5).encode(
        x=alt.X("latency_p99_s:Q"), y=alt.Y("accuracy:Q")
    )
    parts: list[Any] = [line, dots]
    limit = found.scenario.slo.e2el_ms
    if limit:
        parts += limit_rule("x", limit / 1000, f"limit {limit / 1000:g} s")
    return alt.layer(*parts).properties(height=320)


def _strategy(row: StrategyRow) -> dict[str, Any]:
    return {
        "strategy": row.strategy,
        "accuracy": row.accuracy,
        "latency_p99_s": row.latency_p99_s,
        "usd_per_correct": row.usd_per_correct,
        "correct_per_gpu_hour": row.correct_per_gpu_hour,
        "front": "on the front" if row.pareto else "beaten",
        "limited_by": row.limited_by,
    }


def correct_per_gpu_hour(found: Comparison) -> Layered:
    """Correct answers per GPU-hour, strategy by strategy."""
    two_lines = alt.Axis(labelLimit=260, labelOverlap=False, labelExpr="split(datum.label, '(')")
    return alt.layer(
        alt.Chart(inline(map(_strategy, found.rows)))
        .mark_bar(color=GREEN)
        .encode(
            x=alt.X("correct_per_gpu_hour:Q", title="per GPU-hour"),
            y=alt.Y("strategy:N", sort="-x", title=None, axis=two_lines),
            tooltip=[*tips("strategy:N"), alt.Tooltip("correct_per_gpu_hour:Q", format=",.1f")],
        )
    ).properties(height=60 + 40 * len(found.rows))


SWEPT = {"accuracy": ("problems solved", "%", BLUE), "usd_per_correct": ("$ per correct", ".2~g", GREEN)}
"""What a sweep over budgets shows: title, format, colour."""
CAPS = {"p99_of_traces": "p99 of traces", "cost_optimal": "cheapest"}


def budget_sweep(found: Comparison, field: str) -> Layered:
    """One of `SWEPT` against the thinking budget; the recommended caps as rules."""
    title, form, colour = SWEPT[field]
    line = (
        alt.Chart(inline([{"budget": budget, **_strategy(row)} for budget, row in found.budgets]))
        .mark_line(point=alt.OverlayMarkDef(color=colour), color=colour)
        .encode(
            x=alt.X("budget:Q", title="thinking budget, tokens", axis=token_axis()),
            y=alt.Y(f"{field}:Q", title=title, axis=alt.Axis(format=form), scale=alt.Scale(zero=False)),
            tooltip=[*tips("strategy:N"), alt.Tooltip(f"{field}:Q", format=".4~g")],
        )
    )
    caps = [limit_rule("x", found.caps[key], name) for key, name in CAPS.items() if key in found.caps]
    return alt.layer(line, *(part for rule in caps for part in rule)).properties(height=HEIGHT)


BRANCH_COLOURS = {"shared with others": SKY, "own": BLUE, "own, pruned": VERMILION}


def branch_tree(nodes: Sequence[Node]) -> Layered:
    """A problem's branches by token position: what each shares, what it computed itself, which were pruned."""
    order = [str(node.branch) for node in nodes]
    rows = [part for node in nodes for part in _spans(node)]
    y = alt.Y("branch:N", sort=order, title="branch", axis=alt.Axis(labelOverlap=True))
    bars = (
        alt.Chart(inline(rows))
        .mark_bar()
        .encode(
            x=alt.X("start:Q", title="tokens from the problem's beginning", axis=token_axis()),
            x2=alt.X2("end:Q"),
            y=y,
            color=alt.Color("part:N", scale=colour_scale(BRANCH_COLOURS), legend=legend(3)),
            tooltip=[
                *tips("branch:N", "parent:N", "kind:N", "part:N", "start:Q", "end:Q", "ended:N"),
            ],
        )
    )
    links = [
        {"x": n.prompt_tokens, "branch": str(b), "link": n.branch}
        for n in nodes
        if n.parent is not None
        for b in (n.parent, n.branch)
    ]
    lines = (
        alt.Chart(inline(links))
        .mark_line(color=GREY, strokeWidth=1)
        .encode(x=alt.X("x:Q"), y=y, detail=alt.Detail("link:N"))
    )
    return alt.layer(bars, lines).properties(height=110 + 12 * len(nodes))


def _spans(node: Node) -> Rows:
    own = "own, pruned" if node.pruned else "own"
    end = node.prompt_tokens + node.output_tokens
    common = {
        "branch": str(node.branch),
        "parent": "the problem" if node.parent is None else str(node.parent),
        "kind": node.kind,
        "ended": node.end,
    }
    spans = ((0, node.hit_tokens, "shared with others"), (node.hit_tokens, end, own))
    return [{**common, "part": part, "start": a, "end": b} for a, b, part in spans if b > a]
