"""Charts as files: SVG, PNG, or a page that needs no network. vl-convert, Altair's own exporter, draws them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvplan.charts.drawing import Layered, specification
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import written_whole

WIDTH = 640
SUFFIXES = (".svg", ".png", ".html")
THEME = {
    "font": "Helvetica, Arial, sans-serif",
    "background": "white",
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#E4E4E4",
             "labelColor": "#404040", "titleColor": "#404040", "domainColor": "#8A8A8A", "tickColor": "#8A8A8A"},
    "legend": {"labelFontSize": 12, "labelColor": "#404040", "columnPadding": 28},
    "view": {"stroke": None},
}  # fmt: skip
"""Dark words on white, as printed."""


def _convert() -> Any:
    try:
        import vl_convert
    except ImportError:
        raise KvplanError("pictures in files need vl-convert: pip install 'kvplan[plot]'") from None
    return vl_convert


def check_plot(path: Path) -> None:
    """Raise KvplanError for a suffix that no chart is written as, and where the library is missing."""
    if path.suffix.lower() not in SUFFIXES:
        raise KvplanError(f"--plot {path}: write a .svg, .png or .html file")
    _convert()


def chart_svg(figure: Layered, width: int = WIDTH) -> str:
    """A chart as SVG text."""
    return str(_convert().vegalite_to_svg(_whole(figure, width)))


def save_chart(figure: Layered, path: Path, width: int = WIDTH) -> None:
    """Write a chart as its suffix says: .svg, .png (two pixels a point) or .html (which holds all it needs)."""
    check_plot(path)
    spec, convert = _whole(figure, width), _convert()
    if path.suffix.lower() == ".png":
        with written_whole(path, mode="wb") as file:
            file.write(convert.vegalite_to_png(spec, scale=2))
        return
    text = (
        chart_svg(figure, width)
        if path.suffix.lower() == ".svg"
        else convert.vegalite_to_html(spec, bundle=True)
    )
    with written_whole(path) as file:
        file.write(text)


def chart_file(spec: Mapping[str, Any], kind: str, width: int = WIDTH) -> bytes:
    """A chart's specification as the bytes of a file; `kind`: svg or png (two pixels a point)."""
    drawn, convert = whole(spec, width), _convert()
    if kind == "png":
        return bytes(convert.vegalite_to_png(drawn, scale=2))
    return str(convert.vegalite_to_svg(drawn)).encode()


def whole(spec: Mapping[str, Any], width: int = WIDTH) -> dict[str, Any]:
    """A specification that needs no page around it."""
    config = spec.get("config", {})
    return {
        **spec,
        "width": width,
        "padding": 20,  # other machines draw wider letters
        "config": {
            **config,
            **{k: {**config.get(k, {}), **v} if isinstance(v, dict) else v for k, v in THEME.items()},
        },
    }


def _whole(figure: Layered, width: int) -> dict[str, Any]:
    """A chart that needs no page around it."""
    return whole(specification(figure), width)
