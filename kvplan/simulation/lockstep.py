"""Data-parallel ranks that step together: each step lasts as long as the fullest rank's, idle ranks run dummy batches.

Between two changes anywhere in the group each rank leaps. A change of one rank ends the step of all, not their leaps: a
rank is looked at again when it has something to tell, and reads off the group's clock what time has passed. Knows no
SimPy, no routing and no workload.
"""

from __future__ import annotations

from kvplan.simulation.group_clock import GroupClock, Line, RankLeap
from kvplan.simulation.in_flight import NEVER_COMES, LeapInFlight
from kvplan.simulation.replica import Replica
from kvplan.timing.step import PooledStepTime, StepShape

DUMMY_BATCH = StepShape(1, 1, 1)
"""What an idle rank computes, so that its experts are there for the others: one token."""


class LockstepGroup:
    """Ranks in lockstep, driven as a `Replica` is."""

    def __init__(self, ranks: list[Replica]) -> None:
        self.id, self.ranks = ranks[0].id, ranks
        self.clock = GroupClock()
        time = ranks[0].step_time
        self._dummy: Line = time.ticks(DUMMY_BATCH), 0
        self._pooled = time if isinstance(time, PooledStepTime) else None
        self._now = 0

    def begin(self, now: int, next_arrival: int = NEVER_COMES, next_sample: int = 0) -> int | None:
        """Decide what each rank runs next; return the ticks until one has something to tell, None if all are idle.

        What a new request would end is planned up to `next_arrival` only. No rank waits for copies over several
        steps, which `next_sample` would end: another rank's steps may be longer than its loops.
        """
        self._now, lines, tokens, reads, is_open = now, [], [], NEVER_COMES, False
        for rank in self.ranks:
            line, num_tokens, until = self._begin_rank(rank, now)
            lines.append(line)
            tokens.append(num_tokens)
            reads = min(reads, until)
            is_open |= rank.leap is None or rank.leap.open
        if reads == NEVER_COMES:
            return None
        more = self._pool_ticks(tokens)
        lines = [(ticks + later, slope) for (ticks, slope), later in zip(lines, more, strict=True)]
        end = self.clock.plan(now, lines, reads)
        if is_open and end > next_arrival:
            return self.cut(next_arrival) + next_arrival - now
        return end - now

    def _pool_ticks(self, tokens: list[int]) -> list[int]:
        """By how much longer each rank's step takes than alone, since the experts see all ranks' tokens."""
        if self._pooled is None:
            return [0] * len(tokens)
        return [self._pooled.pool_ticks(num_tokens, tokens) for num_tokens in tokens]

    def _begin_rank(self, rank: Replica, now: int) -> tuple[Line, int, int]:
        """The durations of a rank's next reads, were it alone, its tokens in each, and how many are so."""
        leap = rank.leap
        if leap is None:
            ticks = rank.begin(now)
            if ticks is None:
                return self._dummy, DUMMY_BATCH.num_tokens, NEVER_COMES
            if rank.leap is None:
                return (ticks, 0), rank.in_flight[0].num_tokens, 1
            assert isinstance(rank.leap, LeapInFlight), "ranks that draft go step by step"
            leap = rank.leap = RankLeap.of(rank.leap, self.clock)
        assert isinstance(leap, RankLeap)
        line, until = leap.next_line
        first = rank.in_flight[0].num_tokens if leap.reads_ahead else leap.num_tokens
        return line, first, until if first == leap.num_tokens else 1

    @property
    def can_be_cut(self) -> bool:
        """Whether more than one step is in flight."""
        return self.clock.planned > self.clock.reads + 1

    def cut(self, now: int) -> int:
        """Let what is in flight end with the first step that ends at `now` or later; return the ticks until then."""
        return self.clock.cut(now) - now

    def complete(self, now: int) -> None:
        """Read what has run, of those ranks that have something to tell or are to be told something."""
        self.clock.land()
        for rank in self.ranks:
            leap = rank.leap
            if leap is None:
                if rank.in_flight:
                    rank.stretch(now - self._now)
                    rank.complete(now)
                continue
            assert isinstance(leap, RankLeap)
            if leap.is_over or rank.leavers or (leap.open and rank.inbox):
                leap.num_steps = self.clock.reads - leap.begun
                rank.complete(now)
        self._forget()

    def _forget(self) -> None:
        begun = (rank.leap.begun for rank in self.ranks if isinstance(rank.leap, RankLeap))
        self.clock.forget(min(begun, default=self.clock.reads))
