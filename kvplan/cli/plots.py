"""`--plot` and `--report`: a picture, or the whole answer, as a file. What draws loads only where one is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from kvplan.ground.errors import KvplanError
from kvplan.ground.files import write_whole

PICTURES = {
    "estimate": "plans:memory_bar",
    "simulate": "runs:kv_over_time",
    "compare": "searches:pareto",
    "recommend": "searches:speed_and_throughput",
    "fit": "fits:predicted_measured",
    "compare-run": "fits:run_comparison",
}
"""Command -> file of `kvplan.charts`:function that draws its result. Add a picture here."""


def check_plot(path: Path | None) -> None:
    """Raise KvplanError before the work where the picture could not be drawn: its suffix, a library."""
    if path is not None:
        _charts("saving").check_plot(path)


def write_plot(path: Path | None, command: str, *result: Any) -> None:
    """Draw what a command found; nothing without a path."""
    if path is not None:
        module, _, draw = PICTURES[command].partition(":")
        _charts("saving").save_chart(getattr(_charts(module), draw)(*result), path)


def check_report(path: Path | None) -> None:
    """Raise KvplanError before the work where a page with pictures could not be made."""
    if path is not None:
        if path.suffix.lower() not in (".html", ".htm"):
            raise KvplanError(f"--report {path}: write a .html file")
        _charts("saving").check_plot(path.with_suffix(".html"))


def write_report(path: Path | None, answer: Any, page: str = "report:report_html") -> None:
    """Write an answer as one page; nothing without a path. `page`: file of `kvplan.charts`:function that makes it."""
    if path is not None:
        module, _, make = page.partition(":")
        write_whole(path, getattr(_charts(module), make)(answer))


def _charts(module: str) -> Any:
    try:
        return import_module(f"kvplan.charts.{module}")
    except ModuleNotFoundError as error:
        raise KvplanError(f"pictures need {error.name}: pip install 'kvplan[plot]'") from None
