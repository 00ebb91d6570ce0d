"""What all charts share: colours, limits with their names, axes. Only this room imports Altair.

Colours are Okabe and Ito's, told apart with any colour vision. Some of them are too pale for white paper: what is
filled has an edge that stands out from white and from black (3:1 or more), lines take the darker ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor, log10
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
    "axisY": {"labelFlush": False},
    "axisX": {"tickCount": {"expr": "ceil(width / 90)"}},
    "legend": {"labelFontSize": 12, "symbolStrokeColor": EDGE},
    "text": {"fontSize": 12},
}  # fmt: skip
"""The same in every chart."""

PADDING = {"top": 9, "right": 6, "bottom": 5, "left": 2}
"""Pixels around a chart, where the first and last label of an axis reach out of it."""

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


def far_limit(name: str) -> alt.Chart:
    """The name of a limit that is far above what is drawn: a rule there would leave nothing of it to see."""
    base = alt.Chart(inline([{"name": f"{name}, far above"}]))
    text = base.mark_text(align="right", baseline="top", dx=-5, dy=3, color=VERMILION, fontWeight="bold")
    end = alt.XValue("width")  # type: ignore[no-untyped-call]
    named: alt.Chart = text.encode(x=end, y=fixed_y(0), text=alt.Text("name:N"))
    return named


def fixed_y(place: float | str) -> alt.YValue:
    """A height in pixels, or the name of one."""
    return alt.YValue(place)  # type: ignore[no-untyped-call]


def between(rule: tuple[alt.Chart, alt.Chart], top: str, bottom: str) -> tuple[alt.Chart, alt.Chart]:
    """An upright limit that is drawn between two heights alone, each an expression of the chart's `height`."""
    line, name = rule
    ends = [alt.value(alt.expr(end)) for end in (top, bottom)]
    return line.encode(y=ends[0], y2=ends[1]), name


def token_axis(values: Sequence[float] = ()) -> alt.Axis:
    """An axis of large numbers: 500, 10k, 2M, each with its own prefix; parts of one as they are.

    `values`: its ticks.
    """
    shown = "datum.value < 1 ? format(datum.value, '~g') : format(datum.value, '~s')"
    if values:
        return alt.Axis(labelExpr=shown, labelOverlap=True, values=list(values))
    return alt.Axis(labelExpr=shown, labelOverlap=True)


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers for a logarithmic axis from low to high: 1, 2, 5, 10 ..., or tens alone where there are too many.

    >>> log_ticks(17, 800), log_ticks(0.02, 5)
    ([20.0, 50.0, 100.0, 200.0, 500.0], [0.1, 1.0])
    """
    if not 0 < low <= high:
        return []
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    found = [
        [v for p in powers for s in steps if low <= (v := s * 10.0**p) <= high] for steps in ((1, 2, 5), (1,))
    ]
    return found[0] if len(found[0]) <= most else found[1]


def binary_ticks(low: float, high: float) -> list[int]:
    """Powers of two from low to high, as lengths of traces are stated.

    >>> binary_ticks(600, 20000)
    [1024, 2048, 4096, 8192, 16384]
    """
    return [1 << p for p in range(64) if low <= 1 << p <= high]


def binary_axis(values: Sequence[float]) -> alt.Axis:
    """An axis of lengths in powers of two: 512, 1K, 16K, 2M."""
    of_1024 = "datum.value < 1024 ? '' + datum.value : datum.value < 1048576 ? datum.value / 1024 + 'K'"
    return alt.Axis(
        values=list(values), labelExpr=f"{of_1024} : datum.value / 1048576 + 'M'", labelOverlap=True
    )


def peaks(rows: Iterable[Mapping[str, Any]], name: str, figure: str) -> Rows:
    """The highest row of each series, the last of them, where its name stands; none of a series that stays at zero."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row[figure] > 0 and row[figure] >= found.get(row[name], row)[figure]:
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


def gathered(rows: Iterable[Mapping[str, Any]], x: str, y: str) -> Rows:
    """The `number` of each row where its dot is; dots that cover each other share one text, `numbers`."""
    rows = [row for row in rows if row[x] is not None and row[y] is not None]
    wide, high = (max((r[a] for r in rows), default=0) - min((r[a] for r in rows), default=0) for a in (x, y))
    places: list[tuple[Mapping[str, Any], list[str]]] = []
    for row in rows:
        near = (one for one in places if abs(one[0][x] - row[x]) <= NEAR * wide
                and abs(one[0][y] - row[y]) <= NEAR * high)  # fmt: skip
        place = next(near, None)
        if place is None:
            places.append((row, [str(row["number"])]))
        else:
            place[1].append(str(row["number"]))
    return [{x: row[x], y: row[y], "numbers": ", ".join(numbers)} for row, numbers in places]


NEAR = 0.03
"""Of a chart's width or height: dots that are closer cover each other."""


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
    spec["padding"] = PADDING
    return spec
