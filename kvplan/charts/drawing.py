"""What all charts share: colours, limits with their names, axes. Only this room imports Altair.

Colours are Okabe and Ito's, told apart with any colour vision. Some of them are too pale for white paper: what is
filled has an edge that stands out from white and from black (3:1 or more), lines take the darker ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import altair as alt

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, GREY, PALE = "#56B4E9", "#D55E00", "#8A8A8A", "#BDBDBD"
EDGE = "#767676"
"""4.5:1 on white, 4.1:1 on a dark page."""
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, GREY)

HEIGHT = 260
READABLE = {
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelFlush": True},
    "axisX": {"tickCount": {"expr": "ceil(width / 90)"}},
    "legend": {"labelFontSize": 12, "symbolStrokeColor": EDGE},
    "text": {"fontSize": 12},
}  # fmt: skip
"""The same in every chart."""

Layered = alt.LayerChart | alt.FacetChart
"""What layering gives."""
Rows = list[dict[str, Any]]


class _Rows(alt.Data):
    """Rows that Altair does not hold to its schema one by one; charts are validated whole where they are shown."""

    _class_is_valid_at_instantiation = False


def inline(rows: Iterable[Mapping[str, Any]]) -> alt.Data:
    """Rows as the data of a chart."""
    return _Rows(values=[dict(row) for row in rows])  # type: ignore[no-untyped-call]


def legend(columns: int = 3, **options: Any) -> alt.Legend:
    """A legend above the chart, where it is read first."""
    return alt.Legend(orient="top", columns=columns, labelLimit=240, title=None, **options)


def limit_rule(
    axis: str,
    value: float,
    name: str,
    align: Literal["left", "right"] = "right",
    at: Literal["top", "bottom"] = "top",
) -> tuple[alt.Chart, alt.Chart]:
    """A limit: a dashed line across the chart and its name; `at`: where the name of an upright one stands."""
    base = alt.Chart(inline([{"limit": value, "name": name}]))
    line = base.mark_rule(strokeDash=[5, 4], color=VERMILION, strokeWidth=1.5)
    side = -5 if align == "right" else 5
    if axis == "x":
        x, place, away = alt.X("limit:Q"), fixed_y(0 if at == "top" else "height"), 3 if at == "top" else -3
        text = base.mark_text(align=align, baseline=at, dx=side, dy=away, color=VERMILION, fontWeight="bold")
        return line.encode(x=x), text.encode(x=x, y=place, text=alt.Text("name:N"))
    text = base.mark_text(align=align, baseline="bottom", dx=side, dy=-3, color=VERMILION, fontWeight="bold")
    y, end = alt.Y("limit:Q"), alt.XValue("width" if align == "right" else 0)  # type: ignore[no-untyped-call]
    return line.encode(y=y), text.encode(y=y, x=end, text=alt.Text("name:N"))


def fixed_y(place: float | str) -> alt.YValue:
    """A height in pixels, or the name of one."""
    return alt.YValue(place)  # type: ignore[no-untyped-call]


def token_axis() -> alt.Axis:
    """An axis of large numbers: 500, 10k, 2M, each with its own prefix; parts of one as they are."""
    return alt.Axis(
        labelExpr="datum.value < 1 ? format(datum.value, '~g') : format(datum.value, '~s')", labelOverlap=True
    )


def peaks(rows: Iterable[Mapping[str, Any]], name: str, figure: str) -> Rows:
    """The highest row of each series, where its name stands beside its line; none of a series that stays at zero."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row[figure] > found.get(row[name], {figure: 0})[figure]:
            found[row[name]] = row
    return [dict(row) for row in found.values()]


def seconds_unit(longest_s: float) -> tuple[str, float]:
    """The unit for times up to so long, and how many of it a second has.

    >>> seconds_unit(3.2e-5), seconds_unit(0.0499), seconds_unit(3.359), seconds_unit(1600)
    (('µs', 1000000.0), ('ms', 1000.0), ('s', 1.0), ('min', 0.016666666666666666))
    """
    for unit, each in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)):
        if longest_s * each < (1000 if unit != "s" else 600):
            return unit, each
    return "min", 1 / 60


def colour_scale(colours: Mapping[str, str]) -> alt.Scale:
    """Name -> colour, in this order."""
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def tips(*names: str) -> list[alt.Tooltip]:
    """Tooltips shown as they are.

    Channels are spelled out here and in every chart: of a bare `"name:N"` Altair finds the class by trying all.
    """
    return [alt.Tooltip(name) for name in names]


def seconds(*names: str) -> list[alt.Tooltip]:
    """Tooltips of times."""
    return [alt.Tooltip(f"{name}:Q", format=".2f") for name in names]


def specification(figure: Layered) -> dict[str, Any]:
    """A chart as Vega-Lite, to be drawn in a page's own theme; not validated once more, which the tests do."""
    spec: dict[str, Any] = figure.to_dict(validate=False)
    spec["config"] = READABLE  # instead of sizes and colours of Altair's own theme
    return spec
