"""What all charts share: colours, limits with their names, axes. Only `charts*.py` import Altair.

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


def inline(rows: Iterable[Mapping[str, Any]]) -> alt.Data:
    """Rows as the data of a chart."""
    return alt.Data(values=[dict(row) for row in rows])  # type: ignore[no-untyped-call]


def legend(columns: int = 3, **options: Any) -> alt.Legend:
    """A legend below the chart."""
    return alt.Legend(orient="bottom", columns=columns, labelLimit=240, title=None, **options)


def limit_rule(
    axis: str, value: float, name: str, align: Literal["left", "right"] = "right"
) -> tuple[alt.Chart, alt.Chart]:
    """A limit: a dashed line across the chart and its name."""
    base = alt.Chart(inline([{"limit": value, "name": name}]))
    line = base.mark_rule(strokeDash=[5, 4], color=VERMILION, strokeWidth=1.5)
    side = -5 if align == "right" else 5
    if axis == "x":
        text = base.mark_text(align=align, baseline="top", dx=side, dy=3, color=VERMILION, fontWeight="bold")
        return line.encode(x="limit:Q"), text.encode(x="limit:Q", y=alt.value(0), text="name:N")
    text = base.mark_text(align=align, baseline="bottom", dx=side, dy=-3, color=VERMILION, fontWeight="bold")
    end = alt.value("width" if align == "right" else 0)
    return line.encode(y="limit:Q"), text.encode(y="limit:Q", x=end, text="name:N")


def token_axis() -> alt.Axis:
    """An axis of large numbers: 10k, 2M."""
    return alt.Axis(format="~s", labelOverlap=True)


def colour_scale(colours: Mapping[str, str]) -> alt.Scale:
    """Name -> colour, in this order."""
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def seconds(*names: str) -> list[alt.Tooltip]:
    """Tooltips of times."""
    return [alt.Tooltip(f"{name}:Q", format=".2f") for name in names]
