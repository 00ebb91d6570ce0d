"""Cached free blocks by number: the order in which they will be taken, and where a request's own ones are in it.

Blocks that keep their names join the tail of the free queue and are taken from its front, so each has a number, given
as it joins; what lies before the front has been taken. A request that is preempted finds its own blocks again where
they are behind the front. What others have there nobody asks for.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple


class NamedBlocks(NamedTuple):
    """Blocks `lo .. hi - 1` of one table that joined the queue together, the last one first."""

    group: int
    lo: int
    hi: int
    number: int
    """Of block `hi - 1`."""
    run: int
    """The admission in which they got their names."""

    def left(self, front: int) -> NamedBlocks:
        """Return what is still behind the front."""
        taken = front - self.number
        return self if taken <= 0 else NamedBlocks(self.group, self.lo, self.hi - taken, front, self.run)

    def part(self, lo: int, hi: int) -> NamedBlocks:
        """Return some of the blocks."""
        return NamedBlocks(self.group, lo, hi, self.number + self.hi - hi, self.run)

    def holds(self, part: NamedBlocks) -> bool:
        """Whether a part is one of these blocks' own."""
        here = self.group == part.group and self.run == part.run and self.lo <= part.lo and part.hi <= self.hi
        return here and part.number == self.number + self.hi - part.hi


def run_of(inherited: list[NamedBlocks], group: int, block: int, admission: int) -> int:
    """Return the admission in which a held block got its name: in this one, or a hit in an earlier one."""
    for extent in inherited:
        if extent.group == group and extent.lo <= block < extent.hi:
            return extent.run
    return admission


class NamedQueue:
    """Numbers of the named blocks in the free queue."""

    __slots__ = ("_holes", "front", "tail")

    def __init__(self) -> None:
        self.front = self.tail = 0
        self._holes: list[tuple[int, int]] = []
        """Ranges of numbers behind the front that somebody holds again."""

    def join(self, num_blocks: int) -> int:
        """Let blocks join; return the first one's number."""
        self.tail += num_blocks
        return self.tail - num_blocks

    def take(self, num_blocks: int) -> None:
        """Take blocks from the front."""
        while num_blocks or (self._holes and self._holes[0][0] == self.front):
            if self._holes and self._holes[0][0] <= self.front + num_blocks:
                lo, hi = self._holes.pop(0)
                num_blocks -= lo - self.front
                self.front = hi
            else:
                self.front += num_blocks
                return

    def remove(self, first: int, num_blocks: int) -> None:
        """Take blocks out of the middle."""
        if num_blocks:
            hole = (first, first + num_blocks)
            self._holes.insert(bisect_left(self._holes, hole), hole)
            self.take(0)

    def num_before(self, number: int) -> int:
        """Count the blocks in front of one."""
        held = sum(hi - lo for lo, hi in self._holes if hi <= number)
        return number - self.front - held
