"""`--plot`: every fitted row, predicted over measured, as an SVG file that needs no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from pathlib import Path

from kvplan.calibrate.fit.predictions import Predicted, predictions, thinned
from kvplan.calibrate.measurements import read_measurements
from kvplan.errors import KvplanError
from kvplan.files import write_whole
from kvplan.profiles.profile import Profile

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#555555")
SIZE, LEFT, TOP = 360, 70, 20
MOST_POINTS = 1200
"""Dots of each kind."""


def write_plot(profile: Profile, files: Sequence[Path], path: Path) -> None:
    """Draw the rows of measurement files beside what the profile says of them."""
    if path.suffix != ".svg":
        raise KvplanError(f"--plot {path}: write a name that ends in .svg")
    assert profile.timing is not None
    svg = predicted_svg(predictions(read_measurements(files), profile.timing))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, svg)
    except OSError as error:
        raise KvplanError(f"{path}: cannot be written ({error.strerror})") from None


def predicted_svg(rows: Sequence[Predicted]) -> str:
    """A scatter on logarithmic axes, a colour per regime and family; dots on the diagonal are told exactly."""
    seconds = [s for row in rows for s in (row.measured, row.predicted) if s > 0]
    low, high = floor(log10(min(seconds, default=1.0))), ceil(log10(max(seconds, default=10.0)))
    scale = SIZE / max(1, high - low)
    kinds = sorted({row.kind for row in rows})
    dots = [
        f'<circle cx="{LEFT + (log10(row.measured) - low) * scale:.1f}" r="2.5" fill-opacity="0.6"'
        f' cy="{TOP + SIZE - (log10(row.predicted) - low) * scale:.1f}" fill="{COLOURS[i % len(COLOURS)]}"/>'
        for i, kind in enumerate(kinds)
        for row in thinned([row for row in rows if row.kind == kind], MOST_POINTS)
        if row.measured > 0 and row.predicted > 0
    ]
    ticks = [
        f'<text x="{LEFT + (n - low) * scale:.0f}" y="{TOP + SIZE + 16}" text-anchor="middle">1e{n}</text>'
        f'<text x="{LEFT - 6}" y="{TOP + SIZE - (n - low) * scale + 4:.0f}" text-anchor="end">1e{n}</text>'
        for n in range(low, high + 1)
    ]
    names = [
        f'<text x="{LEFT + SIZE + 14}" y="{TOP + 12 + 16 * i}" fill="{COLOURS[i % len(COLOURS)]}">{escape(kind)}</text>'
        for i, kind in enumerate(kinds)
    ]
    frame = (
        f'<rect x="{LEFT}" y="{TOP}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#999"/>\n'
        f'<line x1="{LEFT}" y1="{TOP + SIZE}" x2="{LEFT + SIZE}" y2="{TOP}" stroke="#d55e00" stroke-dasharray="5 4"/>\n'
        f'<text x="{LEFT + SIZE / 2}" y="{TOP + SIZE + 34}" text-anchor="middle">measured, s</text>\n'
        f'<text x="16" y="{TOP + SIZE / 2}" transform="rotate(-90 16 {TOP + SIZE / 2})" text-anchor="middle">'
        "predicted, s</text>"
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="430" font-family="sans-serif" font-size="12">'
    return "\n".join(
        [head, '<rect width="100%" height="100%" fill="#fff"/>', frame, *ticks, *names, *dots, "</svg>\n"]
    )
