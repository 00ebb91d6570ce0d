"""Tables of text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Column = tuple[str, Callable[[T], str]]
"""A title, and what a row shows under it."""


def text_table(
    columns: Sequence[Column[T]], rows: Sequence[T], left: Collection[int] | None = None
) -> list[str]:
    """The titles' line and a line a row; columns in `left` (None = all) begin at the left, others end at the right."""
    table = [[title for title, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]

    def cell(i: int, text: str) -> str:
        return text.ljust(widths[i]) if left is None or i in left else text.rjust(widths[i])

    return ["  ".join(cell(i, text) for i, text in enumerate(line)).rstrip() for line in table]


def range_text(row: Mapping[str, Any], name: str, unit: float = 1.0) -> str:
    """A figure of a row with its range, in `unit`s; "-" where there is none.

    >>> range_text({"ttft": 1500.0, "ttft_low": 1200.0, "ttft_high": None}, "ttft", 1e3)
    '1.5'
    >>> range_text({"ttft": 1500.0, "ttft_low": 1200.0, "ttft_high": 2000.0}, "ttft", 1e3)
    '1.5 (1.2..2)'
    """
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    if low is None or high is None or low == high:
        return _short(value / unit)
    return f"{_short(value / unit)} ({_short(low / unit)}..{_short(high / unit)})"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
