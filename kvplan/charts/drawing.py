"""What all charts share: colours, limits with their names, axes. Only this room imports Altair.

Colours are Okabe and Ito's (legible with any colour vision, on light and on dark).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import altair as alt

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, GREY, PALE = "#56B4E9", "#D55E00", "#8A8A8A", "#BDBDBD"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, GREY)

HEIGHT = 260

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
    """A legend below the chart."""
    return alt.Legend(orient="bottom", columns=columns, labelLimit=240, title=None, **options)


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
    """An axis of large numbers: 500, 10k, 2M, each with its own prefix."""
    return alt.Axis(labelExpr="format(datum.value, '~s')", labelOverlap=True)


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
    del spec["config"]  # sizes and colours of Altair's own theme
    return spec
