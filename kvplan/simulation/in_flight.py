"""The arithmetic of a leap in flight: when which of its steps ends. Knows ticks only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import isqrt
from typing import NamedTuple

from kvplan.schedulers.protocol import Counts, DraftedSteps

NEVER_COMES = 1 << 63
"""Later than any tick of a run."""


class StepInFlight(NamedTuple):
    """A scheduled step whose output is not read yet."""

    ticks: int
    num_decodes: int
    num_chunks: int = 0
    """Prompt chunks that are computed (a transferred prompt's are not)."""
    is_empty: bool = False
    """Nothing was scheduled."""
    makes_room: bool = False
    """Somebody was preempted or a copy ended in it: the next step may admit whom it did not."""
    num_tokens: int = 0
    """Tokens computed, of prompts and decodes, drafts included."""
    decode_tokens: int = 0
    """Those of the decodes."""
    num_steps: int = 1
    """Steps that it stands for, one like the other: of an engine that waits for copies."""


class Stretch(NamedTuple):
    """Steps in a row whose durations are an arithmetic series."""

    first: int
    """Ticks of the first."""
    last: int
    """Ticks of the last."""
    num_steps: int
    start: int
    end: int


new_stretch: Callable[[tuple[int, int, int, int, int]], Stretch] = partial(tuple.__new__, Stretch)
"""Takes the fields as one tuple: a third of a call of the class, and each leap has one."""


@dataclass(slots=True)
class LeapInFlight:
    """A leap in flight: the read of what was in flight (asynchronous only), then an arithmetic series of steps."""

    start: int
    ahead: int
    """Steps in flight, to be read first: 1 under asynchronous scheduling, else 0."""
    first: int
    """Ticks until that read; an empty step in flight takes none."""
    num_steps: int
    """Steps to schedule, and reads to do."""
    num_decodes: int
    ticks: int
    """Duration of the series' first step."""
    slope: int
    """Ticks by which each later step is longer."""
    open: bool
    """Whether a new request ends it."""
    num_sent: int = field(default=0, kw_only=True)
    """Reads whose outputs the API servers have got; a request that comes to them looks so far."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a step."""
        return self.num_decodes

    def ends_at(self, reads: int) -> int:
        """When the first so many outputs have been read."""
        return self.start + self.first + series(self.ticks, self.slope, reads - self.ahead)

    def reads_until(self, now: int) -> int:
        """The fewest reads that end at `now` or later; never more than were planned."""
        gap = now - self.start - self.first
        if gap <= 0:
            return 1
        return min(steps_to_cover(self.ticks, self.slope, gap) + self.ahead, self.num_steps)

    def weight(self, reads: int) -> int:
        """Sum over the series' first so many reads of their place (from 1) times their ticks."""
        return weighted_series(self.ticks, self.slope, reads)

    def stretches(self, reads: int) -> list[Stretch]:
        """The series' first so many reads, by arithmetic series of durations."""
        start, last = self.start + self.first, self.ticks + self.slope * (reads - 1)
        return [new_stretch((self.ticks, last, reads, start, start + series(self.ticks, self.slope, reads)))]

    def ticks_of(self, step: int) -> int:
        """Duration of a step, counted from 0."""
        return self.ticks + step * self.slope


@dataclass(slots=True)
class DraftedLeapInFlight:
    """The same with drafts: no two steps are alike, so their ends are a table."""

    start: int
    ahead: int
    first: int
    num_steps: int
    num_decodes: int
    steps: DraftedSteps
    durations: Counts
    """Ticks of each step."""
    ends: Counts
    """When each ends, from the end of the first read or the start on."""
    open: bool
    num_sent: int = 0
    """As of a leap without drafts."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a step, drafts included."""
        return self.steps.num_tokens

    def ends_at(self, reads: int) -> int:
        """When the first so many outputs have been read."""
        steps = reads - self.ahead
        return self.start + self.first + (int(self.ends[steps - 1]) if steps else 0)

    def reads_until(self, now: int) -> int:
        """The fewest reads that end at `now` or later; never more than were planned."""
        gap = now - self.start - self.first
        if gap <= 0:
            return 1
        return min(int(self.ends.searchsorted(gap)) + 1 + self.ahead, self.num_steps)

    def stretches(self, reads: int) -> list[Stretch]:
        """The first so many reads behind the first, each by itself."""
        begun = self.start + self.first
        each = zip(self.durations[:reads].tolist(), self.ends[:reads].tolist(), strict=True)
        return [new_stretch((ticks, ticks, 1, begun + end - ticks, begun + end)) for ticks, end in each]

    def ticks_of(self, step: int) -> int:
        """Duration of a step, counted from 0."""
        return int(self.durations[step])


def series(ticks: int, slope: int, n: int) -> int:
    """Sum of n steps, the first of `ticks`, each `slope` longer than the one before.

    >>> series(10, 2, 3)
    36
    """
    return n * ticks + slope * (n * (n - 1) // 2)


def weighted_series(ticks: int, slope: int, n: int) -> int:
    """Sum over n steps of their place, from 1, times their ticks.

    >>> weighted_series(10, 2, 3)  # 1 * 10 + 2 * 12 + 3 * 14
    76
    """
    return ticks * (n * (n + 1) // 2) + slope * ((n - 1) * n * (n + 1) // 3)


def steps_to_cover(ticks: int, slope: int, gap: int) -> int:
    """The smallest n with series(ticks, slope, n) >= gap > 0, exactly.

    >>> steps_to_cover(10, 2, 36), steps_to_cover(10, 2, 37)
    (3, 4)
    """
    if not slope:
        return -(-gap // ticks)
    b = (
        2 * ticks - slope
    )  # twice the series is slope * n * n + b * n: n is the least above its root at gap - 1
    return (isqrt(b * b + 8 * slope * (gap - 1)) - b) // (2 * slope) + 1
