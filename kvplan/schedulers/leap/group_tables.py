"""Closed forms of KV cache groups: what tables take, hold, name and give back. No sequence's life, no queue.

A table of `tokens` slots has `ceil(tokens / size)` blocks; those that no later token attends to are given back once
`processed` tokens are computed and read. With c tokens before a decode step, p of them processed:

| kind | takes when | gives back when | gone |
|---|---|---|---|
| full | c = 0 mod size | never | 0 |
| sliding window | c = 0 mod size | p = window - 1 mod size | (p - window + 1) // size |
| chunked local | c = 0 mod size | p = 0 mod chunk, many at once | p // chunk * chunk // size |
| state, align | c = 0 mod size | p = 1 mod size | (p - 1) // size |
| state, none; circular buffer | never | never | 0 |

The state's tables have gaps while a prompt is computed (`StateTable`). Block names follow vLLM's retention interval 0:
full and chunked groups name every full block, windows what a hit at the prompt's end needs, states the last one before
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kvplan.ground.units import cdiv

FULL, WINDOW, CHUNKED, STATE, WHOLE = range(5)
"""Kinds of table; WHOLE is one block for life."""


@dataclass(frozen=True, slots=True, order=True)
class Spec:
    """Groups that have the same blocks at any time."""

    kind: int
    size: int
    """Tokens per block."""
    reach: int
    """Window or chunk."""
    count: int
    """Groups."""
    num_named: int
    """Blocks that a hit at the prompt's end needs of a window."""
    most_at_admission: int
    """Blocks that admission counts for a whole prompt at most."""
    index: int
    """Tells apart kinds that differ in their pages only."""
    is_named: bool = True
    """Whether the groups take part in prefix caching."""

    def gone(self, processed: int) -> int:
        """Return how many blocks from the start are given back by then."""
        if self.kind == WINDOW:
            return max(0, processed - self.reach + 1) // self.size
        if self.kind == CHUNKED:
            return processed // self.reach * self.reach // self.size
        if self.kind == STATE:
            return max(0, processed - 1) // self.size
        return 0

    @property
    def offset(self) -> int:
        """A block is given back where `processed` is this, modulo the block size (windows and states)."""
        return self.reach - 1 if self.kind == WINDOW else 1

    def next_return(self, processed: int) -> int:
        """Return from which count of processed tokens on, at least the one given, the next block comes back."""
        if self.kind == CHUNKED:
            found = cdiv(max(processed, 1), self.reach) * self.reach
            while self.gone(found) == self.gone(found - 1):
                found += self.reach
            return found
        first = max(processed, self.offset + self.size)
        return first + (self.offset - first) % self.size

    def returns_at(self, index: int) -> int:
        """Return the processed tokens at which a window's or a chunk's block comes back."""
        if self.kind == CHUNKED:
            return cdiv((index + 1) * self.size, self.reach) * self.reach
        return (index + 1) * self.size + self.reach - 1


class Returned(NamedTuple):
    """Blocks given back: those without a name, and those with one."""

    unnamed: int
    named: int


@dataclass(slots=True)
class StateTable:
    """One request's table of a group that keeps the newest state, gaps and all (vLLM `MambaManager`, mode align)."""

    length: int = 0
    live: dict[int, bool] = field(default_factory=dict)
    """Index of a real block -> whether it has a name."""

    def copy(self) -> StateTable:
        """Return a table to try things on."""
        return StateTable(self.length, dict(self.live))

    def remove(self, processed: int, size: int) -> Returned:
        """Give back states that were copied on."""
        if processed < 1:
            return Returned(0, 0)
        end = (processed - 1) // size
        gone = [i for i in self.live if i < end]
        named = sum(self.live.pop(i) for i in gone)
        return Returned(len(gone) - named, named)

    def named_behind(self, processed: int, size: int) -> list[tuple[int, int]]:
        """Return the named states that `remove` would give back, each as a range of one block."""
        end = (processed - 1) // size
        return [(i, i + 1) for i in sorted(self.live) if i < end and self.live[i]]

    def need(self, end: int, size: int, checkpoint: int) -> int:
        """Return how many blocks a step that ends at `end` tokens takes."""
        missing = cdiv(end, size) - self.length
        return min(missing, 1 + (checkpoint > 0)) if missing > 0 else 0

    def take(self, end: int, size: int, checkpoint: int) -> int:
        """Take them; return how many."""
        required = cdiv(end, size)
        if required <= self.length and not checkpoint:
            return 0
        self.length = max(self.length, required - 1 - (checkpoint > 0))
        new = max(required - self.length, 0)
        self.live.update((i, False) for i in range(self.length, required))
        self.length += new
        return new
