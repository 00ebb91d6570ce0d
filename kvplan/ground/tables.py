"""Tables of text: what stands in them, and their plain form; terminals lay them out themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, TypeVar

T = TypeVar("T")
Column = tuple[str, Callable[[T], str]]
"""A title, and what a row shows under it."""
WIDTH = 100
"""Of plain text: sentences that are longer go on in another line (`folded`), tables in a second line a row where they
may be folded. Commands, to be copied, and verdicts, to be found, are as long as they are."""


@dataclass(frozen=True, slots=True)
class Table:
    """Titles and rows; `str` is the form for pipes, files, notebooks and pages."""

    titles: tuple[str, ...]
    """All empty: no line of titles."""
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int] | None = None
    """Columns that begin at the left, the others end at the right; None = all begin at the left."""
    fold: int = 0
    """The column with which a second line a row begins where one is too wide; 0 = never."""

    def lines(self) -> list[str]:
        """A line of titles and a line a row, or two."""
        whole = self._aligned(0, len(self.titles))
        if not self.fold or len(max(whole, key=len)) <= WIDTH:
            return whole
        above, below = self._aligned(0, self.fold), self._aligned(self.fold, len(self.titles))
        return [line for pair in zip(above, below, strict=True) for line in (pair[0], f"  {pair[1]}")]

    def _aligned(self, first: int, end: int) -> list[str]:
        cells = [line[first:end] for line in ([self.titles] if any(self.titles) else []) + [*self.rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

        def cell(i: int, text: str) -> str:
            return text.ljust(widths[i]) if self.begins_left(first + i) else text.rjust(widths[i])

        return ["  ".join(cell(i, text) for i, text in enumerate(line)).rstrip() for line in cells]

    def begins_left(self, column: int) -> bool:
        """Whether a column begins at the left."""
        return self.left is None or column in self.left

    def __str__(self) -> str:
        return "\n".join(self.lines())


Part = str | Table
"""Of what a command prints: lines of text, or a table."""


def make_table(
    columns: Sequence[Column[T]], rows: Sequence[T], left: frozenset[int] | None = None, fold: int = 0
) -> Table:
    """The table of some rows."""
    cells = tuple(tuple(show(row) for _, show in columns) for row in rows)
    return Table(tuple(title for title, _ in columns), cells, left, fold)


def folded(lines: Iterable[str]) -> list[str]:
    """Sentences within `WIDTH`; what does not fit goes on below, two further in.

    >>> folded(["  " + "word " * 20])[1]
    '    word'
    """
    found: list[str] = []
    for line in lines:
        inner = " " * (len(line) - len(line.lstrip()) + 2)
        found += wrap(
            line.rstrip(), WIDTH, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return found


def text_of(parts: Sequence[Part]) -> str:
    """The plain form of what a command prints."""
    return "\n".join(map(str, parts))


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
        return short(value / unit)
    return f"{short(value / unit)} ({short(low / unit)}..{short(high / unit)})"


def counted(number: float, one: str, many: str = "") -> str:
    """A whole number of things, in words; `many`: where it is not just `one` and an s.

    >>> counted(1, "problem"), counted(2000, "copy", "copies")
    ('1 problem', '2,000 copies')
    """
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"


def short(value: float) -> str:
    """Three digits, all of them from 1,000 on."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
