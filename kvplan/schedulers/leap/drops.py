"""Named blocks that decoding sequences leave behind over many steps: counted at once, put in order if somebody asks."""

from __future__ import annotations

from typing import NamedTuple

from kvplan.schedulers.leap.group_tables import CHUNKED, STATE, WINDOW, Spec, StateTable
from kvplan.schedulers.leap.groups import Groups
from kvplan.schedulers.leap.named_queue import NamedBlocks, run_of


class Dropping(NamedTuple):
    """A decoding sequence that leaves named blocks behind, as it was when steps were taken."""

    parked: list[NamedBlocks]
    """Where the numbers go."""
    admission: int
    base: int
    entered: int
    gone: int
    """Processed tokens behind which all was given back as it began to decode."""
    first_processed: int
    ends: tuple[int, ...]
    inherited: list[NamedBlocks]
    cacheable: int
    before: list[tuple[int, StateTable | None]]
    """Its states' tables as its first steps began."""


class Drops:
    """The named blocks that all decoding sequences left behind in some steps; in which order is found out if asked."""

    __slots__ = ("_dropping", "_first", "_groups", "_start", "_stop", "end")

    def __init__(
        self, groups: Groups, first: int, end: int, start: int, stop: int, dropping: list[Dropping]
    ) -> None:
        self._groups, self._first, self.end = groups, first, end
        self._start, self._stop, self._dropping = start, stop, dropping

    def resolve(self) -> None:
        """Tell the sequences which numbers their blocks have."""
        events = []
        for one in self._dropping:
            for group, which in enumerate(self._groups.order):
                spec = self._groups.specs[which]
                if spec.kind == STATE:
                    events += self._states(one, group, spec.size)
                if spec.kind not in (WINDOW, CHUNKED):
                    continue
                for lo, hi in self._named(one, spec):
                    for i in range(max(lo, spec.gone(one.gone)), hi):
                        step = self._step_of(one, spec.gone(one.first_processed), spec.gone(one.base + one.entered),
                                             i, spec.returns_at(i))  # fmt: skip
                        if self._start <= step < self._stop:
                            events.append((step, one.admission, group, -i, one))
        events.sort(key=lambda event: event[:4])
        assert len(events) == self.end - self._first, (len(events), self.end - self._first)
        for number, (_, admission, group, minus, one) in enumerate(events, self._first):
            run = run_of(one.inherited, group, -minus, admission)
            one.parked.append(NamedBlocks(group, -minus, 1 - minus, number, run))
        self._dropping = []
        self._first = self.end

    def _named(self, one: Dropping, spec: Spec) -> list[tuple[int, int]]:
        if spec.kind == WINDOW:
            return self._groups.ranges(one.ends, spec)
        processed = max(one.base + self._stop - 1 - self._groups.lag, one.base + one.entered)
        return [(0, min(spec.gone(processed), one.cacheable // spec.size))]

    def _states(self, one: Dropping, group: int, size: int) -> list[tuple[int, int, int, int, Dropping]]:
        """Return the events of named states: they come back in a sequence's first steps."""
        events = []
        for i, (processed, (_, table)) in enumerate(
            zip((one.first_processed, one.base + one.entered), one.before, strict=False)
        ):
            if table is not None and self._start <= one.entered + i < self._stop:
                for block, _ in table.named_behind(processed, size):
                    events.append((one.entered + i, one.admission, group, -block, one))
        return events

    def _step_of(self, one: Dropping, first: int, second: int, i: int, processed: int) -> int:
        if i < first:
            return one.entered
        if self._groups.lag and i < second:
            return one.entered + 1
        return processed - one.base + self._groups.lag
