"""What the leap keeps of a request whose groups give blocks back. Facts, no policy."""

from __future__ import annotations

from typing import Protocol

from kvplan.schedulers.leap.group_tables import StateTable
from kvplan.schedulers.leap.named_queue import NamedBlocks
from kvplan.schedulers.leap.state import Sequence
from kvplan.schedulers.request import Request


class Unnumbered(Protocol):
    """Named blocks that were left behind and whose numbers are not known."""

    end: int
    """Above all their numbers."""

    def resolve(self) -> None:
        """Tell the sequences the numbers."""


Counted = tuple[int, int, int, int]
"""(which histogram, start, block size, blocks): entered in the steps s with `start + s` a multiple of the size."""


class GroupSequence(Sequence):
    """A live request of an engine with such groups."""

    __slots__ = (
        "before", "counted", "drops", "drops_until", "ends", "entered", "first_processed", "flight", "gone",
        "inherited", "junction", "parked", "start", "states", "took", "visited",
    )  # fmt: skip

    def __init__(self, request: Request, key: tuple[int, int]) -> None:
        super().__init__(request, key)
        self.counted: list[Counted] = []
        """Its entries in histograms."""
        self.entered = 0
        """The step from which on it decodes."""
        self.before: list[tuple[int, StateTable | None]] = []
        """`gone` and `table` as its first steps begin, before it is regular."""
        self.first_processed = 0
        """Processed tokens as the first of them schedules it."""
        self.visited, self.took = -1, False
        """The last step that looked at it by itself while it decoded, and whether it got its tokens there."""
        self.ends: tuple[int, ...] = ()
        """Tokens at which hits may end, whose blocks keep names in windows."""
        self.junction = 0
        """Where its own full attention groups had more than others, when it was last looked at; 0 = nowhere."""
        self.inherited: list[NamedBlocks] = []
        """The hits that it holds."""
        self.parked: list[NamedBlocks] = []
        """Its own named blocks in the free queue, as far as their numbers are known."""
        self.drops: list[Unnumbered] = []
        """Steps in which it left some behind whose numbers are not known."""
        self.drops_until = -1
        """The last step in which it may leave a named block behind."""
        self.start = 0
        """Stands for what it begins with."""
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self.gone = 0
        """Blocks behind so many processed tokens are given back; of a decoding sequence, as it began."""
        self.states: StateTable | None = None
        """Of the states; of a decoding sequence, as it began."""
        self.flight = (-1, 0)
        """The last step that had a chunk of its prompt, and the chunk's tokens."""

    def tokens_in_flight(self, step: int, lag: int) -> int:
        """Return the tokens of its prompt that are computed while a step is scheduled."""
        return self.flight[1] if lag and self.flight[0] == step - 1 else 0
