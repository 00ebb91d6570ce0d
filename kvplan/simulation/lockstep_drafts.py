"""Ranks in lockstep that draft: no two steps are alike, so the group's time is a table, read by read.

As in `lockstep` each rank leaps for itself; a step lasts as long as the slowest rank's, so the ends of the coming reads
are a running sum of highest durations. Knows no SimPy, no routing and no workload.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvplan.schedulers.protocol import Counts
from kvplan.simulation.in_flight import NEVER_COMES, DraftedLeapInFlight
from kvplan.simulation.lockstep import DUMMY_BATCH, LockstepGroup
from kvplan.simulation.replica import Replica


@dataclass(slots=True)
class DraftedRankLeap(DraftedLeapInFlight):
    """One rank's leap: of each read how long it would take alone, and of those that were begun when they end."""

    alone: Counts = field(kw_only=True)
    """Ticks of each read, then of the steps that are not read, were the rank alone."""
    times: Counts = field(kw_only=True)
    """When each read ended, or will."""
    num_done: int = 0
    num_begun: int = 0

    @classmethod
    def of(cls, leap: DraftedLeapInFlight) -> DraftedRankLeap:
        """A leap that was planned as if the rank were alone."""
        alone = np.concatenate([[leap.first] * leap.ahead, leap.durations]).astype(np.int64)
        return cls(
            leap.start, leap.ahead, leap.first, leap.num_steps, leap.num_decodes, leap.steps,
            leap.durations.copy(), leap.ends.copy(), leap.open, alone=alone, times=np.zeros_like(alone),
        )  # fmt: skip

    @property
    def coming(self) -> Counts:
        """Ticks of the reads that were not begun, were the rank alone."""
        return self.alone[self.num_done : self.num_steps]

    def begin(self, times: Counts) -> None:
        """The next reads end at these times."""
        since, self.num_begun = self.num_done, self.num_done + len(times)
        self.times[since : self.num_begun] = times
        if self.ahead:
            self.first = int(self.times[0]) - self.start
            since = max(1, since)
        until, begun = self.num_begun - self.ahead, self.start + self.first
        since -= self.ahead
        self.ends[since:until] = self.times[since + self.ahead : self.num_begun] - begun
        before = self.ends[since - 1] if since else 0
        self.durations[since:until] = np.diff(self.ends[since:until], prepend=before)

    def ends_at(self, reads: int) -> int:
        """When the first so many outputs have been read."""
        return int(self.times[reads - 1]) if reads else self.start

    def reads_until(self, now: int) -> int:
        """The fewest reads that end at `now` or later; never more than were begun."""
        return min(int(self.times[: self.num_begun].searchsorted(now)) + 1, self.num_begun)

    def ticks_of(self, step: int) -> int:
        """Duration of a step, counted from 0, were the rank alone."""
        return int(self.alone[self.ahead + step])


class DraftedLockstepGroup(LockstepGroup):
    """Ranks in lockstep whose decodes verify drafts."""

    def __init__(self, ranks: list[Replica]) -> None:
        super().__init__(ranks)
        self._times: Counts = np.zeros(0, np.int64)
        """When the reads in flight end."""

    def begin(self, now: int, next_arrival: int = NEVER_COMES, next_sample: int = 0) -> int | None:
        """Decide what each rank runs next; return the ticks until one has something to tell, None if all are idle.

        What a new request would end is planned up to `next_arrival` only. No rank waits for copies over several
        steps, which `next_sample` would end: another rank's steps may be longer than its loops.
        """
        self._now, is_open = now, False
        alone: list[Counts | int] = []
        tokens, reads = [], NEVER_COMES
        for rank in self.ranks:
            ticks, num_tokens, until = self._coming_of(rank, now)
            alone.append(ticks)
            tokens.append(num_tokens)
            reads = min(reads, until)
            is_open |= rank.leap is None or rank.leap.open
        if reads == NEVER_COMES:
            return None
        highest = np.zeros(reads, np.int64)
        for ticks, later in zip(alone, self._pool_ticks(tokens), strict=True):
            np.maximum(highest, (ticks if isinstance(ticks, int) else ticks[:reads]) + later, out=highest)
        self._times = now + highest.cumsum()
        for rank in self.ranks:
            if isinstance(rank.leap, DraftedRankLeap):
                rank.leap.begin(self._times)
        end = int(self._times[-1])
        if is_open and end > next_arrival:
            return self.cut(next_arrival) + next_arrival - now
        return end - now

    def _coming_of(self, rank: Replica, now: int) -> tuple[Counts | int, int, int]:
        """The durations of a rank's next reads, were it alone, its tokens in each, and how many are so."""
        leap = rank.leap
        if leap is None:
            ticks = rank.begin(now)
            if ticks is None:
                return self._dummy[0], DUMMY_BATCH.num_tokens, NEVER_COMES
            if rank.leap is None:
                return ticks, rank.in_flight[0].num_tokens, 1
            assert isinstance(rank.leap, DraftedLeapInFlight)
            leap = rank.leap = DraftedRankLeap.of(rank.leap)
        assert isinstance(leap, DraftedRankLeap)
        coming = leap.coming
        if leap.ahead and not leap.num_done and rank.in_flight[0].num_tokens != leap.num_tokens:
            return coming, rank.in_flight[0].num_tokens, 1
        return coming, leap.num_tokens, len(coming)

    @property
    def can_be_cut(self) -> bool:
        """Whether more than one step is in flight."""
        return len(self._times) > 1

    def cut(self, now: int) -> int:
        """Let what is in flight end with the first step that ends at `now` or later; return the ticks until then."""
        reads = min(int(self._times.searchsorted(now)) + 1, len(self._times))
        for rank in self.ranks:
            if isinstance(rank.leap, DraftedRankLeap):
                rank.leap.num_begun -= len(self._times) - reads
        self._times = self._times[:reads]
        return int(self._times[-1]) - now

    def complete(self, now: int) -> None:
        """Read what has run, of those ranks that have something to tell or are to be told something."""
        for rank in self.ranks:
            leap = rank.leap
            if leap is None:
                if rank.in_flight:
                    rank.stretch(now - self._now)
                    rank.complete(now)
                continue
            assert isinstance(leap, DraftedRankLeap)
            leap.num_done = leap.num_begun
            if leap.num_done == leap.num_steps or rank.leavers or (leap.open and rank.inbox):
                leap.num_steps = leap.num_done
                rank.complete(now)
        self._times = self._times[:0]


def lockstep_group(ranks: list[Replica]) -> LockstepGroup:
    """Return ranks that step together; all of them draft, or none."""
    return (DraftedLockstepGroup if ranks[0].drafts else LockstepGroup)(ranks)
