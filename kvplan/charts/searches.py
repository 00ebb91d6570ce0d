"""Comparisons and recommendations as Altair charts: who is on the front, what budgets and configurations cost."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import Any, Literal

import altair as alt

from kvplan.charts.drawing import (
    BLUE,
    EDGE,
    GREEN,
    GREY,
    HEIGHT,
    PALE,
    SKY,
    VERMILION,
    Layered,
    Rows,
    binary_axis,
    colour_scale,
    gathered,
    inline,
    legend,
    limit_rule,
    seconds,
    tips,
    token_axis,
)
from kvplan.charts.published import published_name, published_rows
from kvplan.ground.gpu import get_gpu
from kvplan.ground.limits import in_words
from kvplan.ground.tables import counted, range_text
from kvplan.search.comparison import Comparison
from kvplan.search.recommendation import Candidate, Recommendation
from kvplan.search.strategy_row import StrategyRow
from kvplan.search.strategy_table import short_names


def pareto(found: Comparison, names: bool = True) -> Layered:
    """Accuracy and its interval against latency, cost as size; those nobody beats in all three are joined, coloured.

    Numbers are places in `found.rows`, whose `names` stand below, unless a page has them beside it; a strategy that
    solves nothing has no cost and a small dot. Bars: 95 % over problems; a percentile that nothing bounds above has a
    bar to the left only.
    """
    rows = _strategies(found)
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("latency_p99_s:Q", title="latency p99, seconds", scale=_ROOM, axis=_NOT_BELOW),
        y=alt.Y("accuracy:Q", title="problems solved", axis=_SHARE, scale=_ROOM),
    )
    size = alt.Size("usd_per_correct:Q", legend=None, scale=alt.Scale(range=[60, 600]))
    dots = base.mark_circle(opacity=1, stroke=EDGE, strokeWidth=1, invalid="show").encode(
        size=alt.condition("isValid(datum.usd_per_correct)", size, alt.SizeValue(40)),
        color=alt.Color("front:N", scale=colour_scale({"on the front": BLUE, "beaten": PALE}), legend=legend(2)),
        tooltip=[*tips("strategy:N"), *shares("accuracy", "accuracy_low", "accuracy_high"), *seconds("latency_p99_s"),
                 alt.Tooltip("usd_per_correct:Q", format=".4f"), *tips("limited_by:N")],
    )  # fmt: skip
    sure = base.mark_rule(color=GREY, strokeWidth=1).encode(
        y=alt.Y("accuracy_low:Q", title="problems solved"), y2=alt.Y2("accuracy_high:Q")
    )
    tail = base.mark_rule(color=GREY, strokeWidth=1).encode(
        x=alt.X("latency_p99_s_low:Q", title="latency p99, seconds"), x2=alt.X2("latency_p99_s_high:Q")
    )
    front = alt.Chart(inline([r for r in rows if r["front"] == "on the front"]))
    line = front.mark_line(color=BLUE, strokeWidth=1).encode(
        x=alt.X("latency_p99_s:Q"), y=alt.Y("accuracy:Q")
    )
    numbers = alt.Chart(inline(numbers_of(rows))).mark_text(align="left", baseline="top", dx=9, dy=9)
    numbers = numbers.encode(x=alt.X("latency_p99_s:Q"), y=alt.Y("accuracy:Q"), text=alt.Text("numbers:N"))
    parts: list[Any] = [line, sure, tail, dots, numbers]
    limit = found.scenario.slo.e2el_ms
    if limit:
        parts += limit_rule("x", limit / 1000, f"limit {limit / 1000:g} s")
    figure = alt.layer(*parts).properties(height=320)
    return figure.properties(title=_key(found)) if names else figure


def _key(found: Comparison) -> alt.Title:
    """Which number is which strategy, below the picture."""
    names, shared = short_names(found.specs)
    lines = [f"{number}  {name}" for number, name in enumerate(names, 1)] + (
        [f"all: {shared}"] if shared else []
    )
    shown = [line if len(line) <= KEY_WIDTH else f"{line[: KEY_WIDTH - 3]}..." for line in lines]
    return alt.Title(
        text=shown,
        anchor="start",
        orient="bottom",
        fontSize=12,
        fontWeight="normal",
        lineHeight=16,
        offset=12,
    )


def shares(*names: str) -> list[Any]:
    """Tooltips of shares."""
    return [alt.Tooltip(f"{name}:Q", format=".1%") for name in names]


_SHARE = alt.Axis(labelExpr="datum.value <= 1 ? format(datum.value, '~%') : ''")
_NOT_BELOW = alt.Axis(labelExpr="datum.value < 0 ? '' : format(datum.value, ',.3~r')")
"""Room beside the first dot is no time."""
KEY_WIDTH = 100
"""Letters of a name in the key at most."""
APART = (0.03, 0.06)
"""Parts of the picture's width and height within which two numbers would overlap."""
_ROOM = alt.Scale(zero=False, nice=True, padding=30)
"""Dots at the edges are whole."""


def _strategies(found: Comparison) -> Rows:
    return [
        {"number": number, "label": f"{number}  {row.strategy}", **_strategy(row)}
        for number, row in enumerate(found.rows, 1)
    ]


def numbers_of(rows: Rows) -> Rows:
    """The numbers at each place where there are dots; those whose numbers would overlap share one, by the lower.

    Below and to the right of a dot, where neither a bar nor the front, which rises, passes.
    """
    wide = max(r["latency_p99_s_high"] for r in rows) - min(r["latency_p99_s_low"] for r in rows)
    high = max(r["accuracy_high"] for r in rows) - min(r["accuracy_low"] for r in rows)
    places: list[Rows] = []
    for row in sorted(rows, key=lambda r: (r["latency_p99_s"], r["accuracy"])):
        beside = [
            place
            for place in places
            for other in place
            if row["latency_p99_s"] - other["latency_p99_s"] <= APART[0] * wide
            and abs(row["accuracy"] - other["accuracy"]) <= APART[1] * high
        ]
        if beside:
            beside[-1].append(row)
        else:
            places.append([row])
    return [
        {
            "latency_p99_s": max(row["latency_p99_s"] for row in place),
            "accuracy": min(row["accuracy"] for row in place),
            "numbers": ", ".join(map(str, sorted(row["number"] for row in place))),
        }
        for place in places
    ]


def _strategy(row: StrategyRow) -> dict[str, Any]:
    tail = row.sampling.get("latency_p99_s", (row.latency_p99_s, row.latency_p99_s))
    return {
        "strategy": row.strategy,
        "accuracy": row.accuracy,
        "accuracy_low": row.accuracy if row.accuracy_low is None else row.accuracy_low,
        "accuracy_high": row.accuracy if row.accuracy_high is None else row.accuracy_high,
        "latency_p99_s": row.latency_p99_s,
        "latency_p99_s_low": tail[0],
        "latency_p99_s_high": tail[1] if isfinite(tail[1]) else row.latency_p99_s,
        "usd_per_correct": row.usd_per_correct,
        "correct_per_gpu_hour": row.correct_per_gpu_hour,
        "front": "on the front" if row.pareto else "beaten",
        "limited_by": row.limited_by,
    }


UP = -6
"""Pixels that a label of two lines stands higher, so that their middle is beside its bar."""


def correct_per_gpu_hour(found: Comparison) -> Layered:
    """Correct answers per GPU-hour, strategy by strategy, numbered as in `pareto`."""
    split = "split(replace(datum.label, '(', '|('), '|')"
    two_lines = alt.Axis(labelLimit=260, labelOverlap=False, labelExpr=split, labelOffset=UP)
    return alt.layer(
        alt.Chart(inline(_strategies(found)))
        .mark_bar(color=GREEN, stroke=EDGE, strokeWidth=0.75)
        .encode(
            x=alt.X("correct_per_gpu_hour:Q", title="per GPU-hour"),
            y=alt.Y("label:N", sort="-x", title=None, axis=two_lines),
            tooltip=[*tips("strategy:N"), alt.Tooltip("correct_per_gpu_hour:Q", format=",.1f")],
        )
    ).properties(height=60 + 40 * len(found.rows))


SWEPT = {"accuracy": ("problems solved", "%", BLUE), "usd_per_correct": ("$ per correct", ".2~g", GREEN)}
"""What a sweep over budgets shows: title, format, colour."""
CAPS = {"p99_of_traces": "p99 of traces", "cost_optimal": "cheapest"}


def budget_sweep(found: Comparison, field: str) -> Layered:
    """One of `SWEPT` against the thinking budget; the recommended caps as rules."""
    title, form, colour = SWEPT[field]
    budgets = sorted({float(budget) for budget, _ in found.budgets})
    axis = binary_axis(budgets) if all(b % 1024 == 0 for b in budgets) else token_axis(budgets)
    line = (
        alt.Chart(inline([{"budget": budget, **_strategy(row)} for budget, row in found.budgets]))
        .mark_line(point=alt.OverlayMarkDef(color=colour), color=colour)
        .encode(
            x=alt.X(
                "budget:Q",
                title="thinking budget, tokens",
                scale=alt.Scale(type="log", nice=False),
                axis=axis,
            ),
            y=alt.Y(f"{field}:Q", title=title, axis=alt.Axis(format=form), scale=alt.Scale(zero=False)),
            tooltip=[*tips("strategy:N"), alt.Tooltip(f"{field}:Q", format=".4~g")],
        )
    )
    middle = sqrt(budgets[0] * budgets[-1])
    at: Literal["top", "bottom"] = "bottom" if field == "accuracy" else "top"  # where the curve is not
    caps = [
        limit_rule("x", found.caps[key], name, "left" if found.caps[key] < middle else "right", at)
        for key, name in CAPS.items()
        if key in found.caps
    ]
    return alt.layer(line, *(part for rule in caps for part in rule)).properties(height=HEIGHT)


def ranking(found: Recommendation, most: int = 12) -> Layered:
    """Dollars an hour for the asked load, configuration by configuration, the best first; what gives out first.

    Lines: the 90 % range, where steps may be quicker or slower than predicted.
    """
    feasible = [c for c in found.candidates if c.feasible and c.usd_per_hour is not None][:most]
    rows: Rows = [_candidate(place, candidate) for place, candidate in enumerate(feasible)]
    two_lines = alt.Axis(
        labelLimit=240, labelOverlap=False, labelExpr="split(datum.label, '|')", labelOffset=UP
    )
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("usd:Q", title="$ an hour for the asked load"),
        y=alt.Y("label:N", sort=[row["label"] for row in rows], title=None, axis=two_lines),
    )
    bars = base.mark_bar(stroke=EDGE, strokeWidth=0.75).encode(
        color=alt.Color("state:N", scale=colour_scale({"best": BLUE, "others": SKY}), legend=legend(2)),
        tooltip=[
            *tips("what:N"),
            alt.Tooltip("usd:Q", format=",.2f"),
            *tips("range:N", "joules_per_token:Q", "gpus:Q", "limited_by:N"),
        ],
    )
    ranges = base.mark_rule(color=GREY, strokeWidth=2).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q"))
    return alt.layer(bars, ranges).properties(height=60 + 42 * len(rows))


def speed_and_throughput(found: Recommendation, most: int = 12) -> Layered:
    """Tokens a second that a user sees against tokens a second that a GPU gives, each deployment at its highest load,
    numbered as it is ranked.

    Bars: the 90 % range of step times, which moves both alike. Hollow: what others measured of a model and card that
    stand here, at whatever load they ran.
    """
    feasible = [c for c in found.candidates if c.feasible and c.figures.get("mean_tpot_ms")][:most]
    rows: Rows = [_speed(place, candidate) for place, candidate in enumerate(feasible)]
    scenarios = [c.scenario for c in feasible if c.scenario]
    measured = published_rows((s.model, get_gpu(s.gpu).name) for s in scenarios)
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("per_user:Q", title="output tokens a second, per user", scale=_ROOM, axis=_NOT_BELOW),
        y=alt.Y("per_gpu:Q", title="output tokens a second, per GPU", scale=_ROOM, axis=_NOT_BELOW),
    )
    states = {"best": BLUE, "others": SKY} | ({published_name(): VERMILION} if measured else {})
    colour = alt.Color("state:N", scale=colour_scale(states), legend=legend(3))
    dots = base.mark_circle(opacity=1, size=130, stroke=EDGE, strokeWidth=1).encode(
        color=colour,
        tooltip=[*tips("what:N"), *_rates(), alt.Tooltip("usd:Q", format=",.2f")],
    )
    across = base.mark_rule(color=GREY).encode(x=alt.X("user_low:Q"), x2=alt.X2("user_high:Q"))
    up = base.mark_rule(color=GREY).encode(y=alt.Y("gpu_low:Q"), y2=alt.Y2("gpu_high:Q"))
    places = gathered(rows, "per_user", "per_gpu")
    numbers = alt.Chart(inline(places)).mark_text(
        align="center", dy=-10, baseline="bottom", fontWeight="bold"
    )
    numbers = numbers.encode(x=alt.X("per_user:Q"), y=alt.Y("per_gpu:Q"), text=alt.Text("numbers:N"))
    hollow = (
        alt.Chart(inline(measured))
        .mark_point(filled=False, size=60)
        .encode(
            x=alt.X("per_user:Q"),
            y=alt.Y("per_gpu:Q"),
            color=colour,
            tooltip=[*tips("what:N", "source:N"), *_rates()],
        )
    )
    return alt.layer(*([hollow] if measured else []), across, up, dots, numbers).properties(height=320)


def _rates() -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format=",.0f") for name in ("per_user", "per_gpu")]


def _speed(place: int, candidate: Candidate) -> dict[str, object]:
    per_user = 1e3 / candidate.figures["mean_tpot_ms"]
    per_gpu = candidate.figures["output_throughput"] / candidate.figures["num_gpus_per_copy"]
    slow, fast = candidate.step_high, candidate.step_low
    return {
        **_candidate(place, candidate),
        "per_user": per_user,
        "per_gpu": per_gpu,
        "user_low": per_user / slow,
        "user_high": per_user / fast,
        "gpu_low": per_gpu / slow,
        "gpu_high": per_gpu / fast,
    }


def _candidate(place: int, candidate: Candidate) -> dict[str, object]:
    return {
        "what": candidate.label,
        "usd": candidate.usd_per_hour,
        "low": candidate.usd_per_hour_low,
        "high": candidate.usd_per_hour_high,
        "range": range_text(candidate.to_dict(), "usd_per_hour"),
        "joules_per_token": candidate.figures.get("joules_per_output_token"),
        "gpus": candidate.num_gpus,
        "limited_by": candidate.limited_by,
        "number": place + 1,
        "label": f"{place + 1}  {candidate.label}|{counted(candidate.num_gpus or 0, 'GPU')}, "
        + in_words(candidate.limited_by),
        "state": "others" if place else "best",
    }
