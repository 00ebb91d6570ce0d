"""Tables of text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

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
