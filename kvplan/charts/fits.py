"""Fits and measured runs as Altair charts: held-out errors, predicted against measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from kvplan.charts.drawing import (
    BLUE,
    EDGE,
    PALETTE,
    VERMILION,
    Layered,
    inline,
    legend,
    log_ticks,
    seconds_unit,
    tips,
    token_axis,
)
from kvplan.observed.recorded_run import RunComparison
from kvplan.profiles.profile import Profile
from kvplan.profiles.timing_profile import RegimeError


def profile_errors(profiles: Sequence[Profile]) -> Layered:
    """Median held-out error of every profile, regime by regime; the bar ends at the 95th percentile."""
    errors = [(profile, error) for profile in profiles if profile.timing for error in profile.timing.errors]
    names = [_regime(error) for _, error in errors]
    rows = []
    for (profile, error), name in zip(errors, names, strict=True):
        left_out = f", {error.held_out.partition(' left out')[0]}" if names.count(name) > 1 else ""
        rows.append(
            {
                "profile": profile.name,
                "regime": name + left_out,
                "median": error.median,
                "p95": error.p95,
                "held_out": error.held_out,
                "points": error.num_points,
            }
        )
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("regime:N", title=None, axis=alt.Axis(labelLimit=240)),
        tooltip=[
            *tips("regime:N"),
            *(alt.Tooltip(f"{q}:Q", format=".1%") for q in ("median", "p95")),
            *tips("held_out:N", "points:Q"),
        ],
    )
    bars = base.mark_rule(color=BLUE, strokeWidth=2).encode(
        x=alt.X("median:Q", title="error: median (dot) to p95", axis=alt.Axis(format="%")),
        x2=alt.X2("p95:Q"),
    )
    dots = base.mark_point(filled=True, color=BLUE, size=50, opacity=1).encode(x=alt.X("median:Q"))
    return alt.layer(bars, dots).properties(height=60 + 22 * len({row["regime"] for row in rows}))


def _regime(error: RegimeError) -> str:
    """A family is often named after its regime."""
    return error.family if error.family.startswith(error.regime) else f"{error.regime} {error.family}".strip()


def predicted_measured(rows: Sequence[Mapping[str, Any]], unit: str = "s") -> Layered:
    """Predicted against measured, on logarithmic axes, in the unit that suits; rows have measured, predicted and kind.

    `unit`: of the rows, s or ms.
    """
    per_s = {"s": 1.0, "ms": 1e3}[unit]
    middle = sorted(float(row["measured"]) for row in rows)[len(rows) // 2] if rows else 1.0
    unit, each = seconds_unit(middle / per_s)
    rows = [{**row, **{k: float(row[k]) / per_s * each for k in ("measured", "predicted")}} for row in rows]
    values = [float(row[key]) for row in rows for key in ("measured", "predicted")]
    ends = [{"a": v} for v in ((min(values), max(values)) if values else (1.0, 1.0))]
    log = alt.Scale(type="log", nice=False, padding=6)
    axis = token_axis(log_ticks(min(values), max(values)) if values else ())
    dots = (
        alt.Chart(inline(rows))
        .mark_circle(size=36, opacity=1, stroke=EDGE, strokeWidth=0.5)
        .encode(
            x=alt.X("measured:Q", scale=log, title=f"measured, {unit}", axis=axis),
            y=alt.Y("predicted:Q", scale=log, title=f"predicted, {unit}", axis=axis),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=sorted({str(r["kind"]) for r in rows}), range=list(PALETTE)),
                legend=legend(3),
            ),
            tooltip=[
                *tips("kind:N"),
                alt.Tooltip("measured:Q", format=".4~g"),
                alt.Tooltip("predicted:Q", format=".4~g"),
            ],
        )
    )
    line = (
        alt.Chart(inline(ends))
        .mark_line(strokeDash=[5, 4], color=VERMILION)
        .encode(x=alt.X("a:Q"), y=alt.Y("a:Q"))
    )
    return alt.layer(dots, line).properties(height=320)


MEASURED = {"ttft_ms": "first token", "tpot_ms": "per token", "e2e_ms": "whole answer"}


def run_comparison(found: RunComparison) -> Layered:
    """Simulated against real latencies, a dot per request and metric."""
    rows = [
        {"kind": name, "measured": float(a), "predicted": float(b)}
        for metric, name in MEASURED.items()
        for a, b in zip(getattr(found.real, metric), getattr(found.simulated, metric), strict=True)
        if a > 0 and b > 0
    ]
    return predicted_measured(rows, "ms")
