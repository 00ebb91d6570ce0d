"""How commands print: plain text into pipes and files; on a terminal laid out for its width, and coloured, by rich.

rich loads only where a terminal reads. What stands in the text and the tables is the rooms' own, one text for both.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from kvplan.ground.tables import Part, Table, text_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.highlighter import RegexHighlighter
    from rich.table import Table as Grid

STYLES = {
    "word.good": "bold green",
    "word.bad": "bold red",
    "word.heading": "bold",
    "word.measured": "green",
    "word.assumed": "yellow",
    "word.command": "cyan",
}
WORDS = [
    r"(?m)^(?P<good>fits)(?= on\b|:)",
    r"(?m)^(?P<bad>fits unless|does not fit|no|Does not start|Never served|Falls short|refused)(?=:| )",
    r"(?m)^(?P<heading>(Asked|How sure|To be surer|Run (once|\d+ times)|What would fit:|Memory per GPU).*)$",
    r"\b(?P<measured>measured)(?=:|,| )",
    r"\b(?P<assumed>assumed)(?=:|,|;| )",
    r"(?P<command>\b(vllm serve|kvplan) [a-zA-Z][^\n;]*)",
    r"(?<![\w-])(?P<command>--?[a-z][a-z0-9-]+)",
]
"""What is coloured, as what."""
FOLDED = 16
"""Characters that a column which runs on keeps at least."""
GAP = 2
"""Characters between columns."""


def show(parts: Sequence[Part]) -> None:
    """Print what a command has to say on standard output."""
    if not sys.stdout.isatty():
        print(text_of(parts))
        return
    from rich.console import Console

    draw(parts, Console())


def draw(parts: Sequence[Part], console: Console) -> None:
    """Print for a terminal: lines as long as they are, so that commands can be copied; tables within its width."""
    from rich.highlighter import RegexHighlighter
    from rich.theme import Theme

    class Words(RegexHighlighter):
        base_style: ClassVar[str] = "word."
        highlights: ClassVar[Sequence[str]] = WORDS

    words = Words()
    with console.use_theme(Theme(STYLES)):
        for part in parts:
            if isinstance(part, Table) and (table := _laid_out(part, console, words)):
                console.print(table)
            else:
                console.print(words(str(part)), soft_wrap=True)


def _laid_out(table: Table, console: Console, words: RegexHighlighter) -> Grid | None:
    """A table within the terminal's width: as it is, else turned; None where neither has room.

    As it is, the last column may fold if it begins at the left (a source, a remark); turned, all but the first may.
    """
    last = len(table.titles) - 1
    ways = (
        (table, {last} if table.begins_left(last) else set()),
        (turned(table), set(range(1, len(table.rows) + 1))),
    )
    for one, folding in ways:
        columns = zip(one.titles, *one.rows, strict=True)
        longest = [max(len(cell.rstrip()) for cell in column) for column in columns]
        least = [min(width, FOLDED) if i in folding else width for i, width in enumerate(longest)]
        if sum(least) + GAP * (len(least) - 1) <= console.width:
            return _grid(one, least, folding, words)
    return None


def turned(table: Table) -> Table:
    """Each column as a row: a few rows of many figures fit so."""
    lines = (table.titles, *table.rows)
    rows = tuple(zip(*lines, strict=True))
    return Table(("",) * len(lines), rows, frozenset({0}))


def _grid(table: Table, least: Sequence[int], folding: Collection[int], words: RegexHighlighter) -> Grid:
    from rich.table import Table as Grid

    grid = Grid(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=any(table.titles))
    for i, (title, width) in enumerate(zip(table.titles, least, strict=True)):
        justify: Literal["left", "right"] = "left" if table.begins_left(i) else "right"
        grid.add_column(title, justify=justify, no_wrap=i not in folding, overflow="fold", min_width=width)
    for row in table.rows:
        grid.add_row(*(words(cell.strip() if i else cell.rstrip()) for i, cell in enumerate(row)))
    return grid
