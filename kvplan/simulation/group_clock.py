"""The time of ranks that step together: what each step lasts is the slowest rank's, in closed form between changes.

Between two changes rank r's step i takes a_r + b_r * i ticks, so the group's takes the upper hull of these lines: a
few stretches, each with one rank the slowest. They are logged, since a rank that has nothing to tell is looked at only
when it has: any sum over its life is then read off the log. Knows ticks only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from kvplan.simulation.in_flight import LeapInFlight, Stretch, series, steps_to_cover, weighted_series

Line = tuple[int, int]
"""(ticks of the first step, by which each later one is longer)."""

KEPT_PIECES = 1024
"""Pieces that the log may have beyond twice those that it needs: forgetting them one by one would cost more."""


class HullPiece(NamedTuple):
    """Steps of an arithmetic series of durations."""

    reads: int
    """Reads before it."""
    time: int
    """When it begins."""
    weight: int
    """Sum over the reads before it of their place (from 1) times their ticks."""
    ticks: int
    slope: int

    def weight_after(self, steps: int) -> int:
        """The weight of all reads up to its step `steps`."""
        duration = series(self.ticks, self.slope, steps)
        return self.weight + self.reads * duration + weighted_series(self.ticks, self.slope, steps)


def upper_hull(lines: Iterable[Line], num_steps: int) -> list[tuple[int, int, int]]:
    """Return (first step, a, b) of each stretch of steps 0 .. num_steps - 1 in which one line a + b * step is highest.

    >>> upper_hull([(10, 0), (4, 2), (9, 0)], 9)
    [(0, 10, 0), (3, 4, 2)]
    """
    highest: dict[int, int] = {}
    for a, b in lines:
        if a > highest.get(b, -1):
            highest[b] = a
    hull: list[tuple[int, int, int]] = []
    for b in sorted(highest):
        a, start = highest[b], 0
        while hull:
            since, lower, slope = hull[-1]
            start = max(0, -((a - lower) // (b - slope)))  # the first step in which the new line is as high
            if start > since:
                break
            hull.pop()
            start = 0
        if start < num_steps:
            hull.append((start, a, b))
    return hull


_READS, _TIME = itemgetter(0), itemgetter(1)


@dataclass(slots=True)
class GroupClock:
    """When which read of a group ended, or will: those that were done, and those of the leap in flight."""

    reads: int = 0
    """Done so far."""
    planned: int = 0
    """Done once the leap in flight has ended."""
    pieces: list[HullPiece] = field(default_factory=list)

    def plan(self, now: int, lines: Iterable[Line], num_reads: int) -> int:
        """Let so many reads begin now, whose durations are the highest of the lines; return when the last one ends."""
        weight = self.weight_at(self.reads)
        hull, time = upper_hull(lines, num_reads), now
        for place, (start, a, b) in enumerate(hull):
            piece = HullPiece(self.reads + start, time, weight, a + b * start, b)
            self.pieces.append(piece)
            stop = hull[place + 1][0] if place + 1 < len(hull) else num_reads
            time += series(piece.ticks, b, stop - start)
            weight = piece.weight_after(stop - start)
        self.planned = self.reads + num_reads
        return time

    def cut(self, now: int) -> int:
        """End the leap in flight with the first read that ends at `now` or later; return when it does."""
        self.planned = self.read_at(now)
        while self.pieces[-1].reads >= self.planned:
            self.pieces.pop()
        return self.ends_at(self.planned)

    def land(self) -> None:
        """The leap in flight has ended."""
        self.reads = self.planned

    def forget(self, reads: int) -> None:
        """Nobody will ask for what was before so many reads."""
        first = max(0, bisect_left(self.pieces, reads, key=_READS) - 1)
        if first > KEPT_PIECES and 2 * first > len(self.pieces):
            del self.pieces[:first]

    def ends_at(self, read: int) -> int:
        """When a read ended, or will; they are counted from 1."""
        piece = self._piece_of(read)
        return piece.time + series(piece.ticks, piece.slope, read - piece.reads)

    def weight_at(self, read: int) -> int:
        """Sum of place times ticks of all reads up to this one."""
        if not read:
            return 0
        piece = self._piece_of(read)
        return piece.weight_after(read - piece.reads)

    def read_at(self, now: int) -> int:
        """The first read that ends at `now` or later, of those in flight."""
        piece = self.pieces[max(0, bisect_left(self.pieces, now, key=_TIME) - 1)]
        gap = now - piece.time
        read = piece.reads + steps_to_cover(piece.ticks, piece.slope, gap) if gap > 0 else 0
        return min(max(read, self.reads + 1), self.planned)

    def stretches(self, after: int, until: int) -> list[Stretch]:
        """The reads behind `after` and up to `until`, piece by piece."""
        found = []
        for place in range(bisect_left(self.pieces, after + 1, key=_READS) - 1, len(self.pieces)):
            piece = self.pieces[place]
            first = max(after, piece.reads)
            last = min(until, self.pieces[place + 1].reads if place + 1 < len(self.pieces) else until)
            if first >= until:
                break
            a, b, skip = piece.ticks, piece.slope, first - piece.reads
            start = piece.time + series(a, b, skip)
            steps = last - first
            end = start + series(a + b * skip, b, steps)
            found.append(Stretch(a + b * skip, a + b * (skip + steps - 1), steps, start, end))
        return found

    def _piece_of(self, read: int) -> HullPiece:
        return self.pieces[bisect_left(self.pieces, read, key=_READS) - 1]


@dataclass(slots=True)
class RankLeap(LeapInFlight):
    """One rank's leap. How long its steps would take alone is its line; how long they take, the group's clock knows."""

    clock: GroupClock
    begun: int
    """Reads of the group before it."""

    @classmethod
    def of(cls, leap: LeapInFlight, clock: GroupClock) -> RankLeap:
        """A leap that was planned as if the rank were alone, begun with the group's next read."""
        return cls(
            leap.start, leap.ahead, leap.first, leap.num_steps, leap.num_decodes, leap.ticks, leap.slope,
            leap.open, clock, clock.reads,
        )  # fmt: skip

    @property
    def is_over(self) -> bool:
        """Whether all its reads are done."""
        return self.clock.reads == self.begun + self.num_steps

    @property
    def reads_ahead(self) -> bool:
        """Whether the next read is of the step that was in flight before the leap."""
        return bool(self.ahead) and self.clock.reads == self.begun

    @property
    def next_line(self) -> tuple[Line, int]:
        """The durations of the reads to come, were it alone, and how many follow that line."""
        done = self.clock.reads - self.begun
        if self.reads_ahead and self.first != self.ticks - self.slope:
            return (self.first, 0), 1
        return (self.ticks + (done - self.ahead) * self.slope, self.slope), self.num_steps - done

    def ends_at(self, reads: int) -> int:
        """When the first so many outputs have been read."""
        return self.clock.ends_at(self.begun + reads) if reads else self.start

    def reads_until(self, now: int) -> int:
        """The fewest reads that end at `now` or later; never more than were planned."""
        return min(self.clock.read_at(now) - self.begun, self.num_steps)

    def weight(self, reads: int) -> int:
        """Sum over the series' first so many reads of their place (from 1) times their ticks."""
        clock, before = self.clock, self.begun + self.ahead
        until = before + reads
        duration = clock.ends_at(until) - self.ends_at(self.ahead)
        return clock.weight_at(until) - clock.weight_at(before) - before * duration

    def stretches(self, reads: int) -> list[Stretch]:
        """The series' first so many reads, by arithmetic series of durations."""
        before = self.begun + self.ahead
        return self.clock.stretches(before, before + reads)
