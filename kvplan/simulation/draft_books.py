"""What a leap over drafts knows of each sequence without looking at it: when outputs were read, and what each gave.

Without drafts every read gives a sequence one token, and two numbers say all of any stretch of its life. With drafts
its path is a table that the engine has; beside the times of the reads it tells what was held when. Knows no queue.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kvplan.schedulers.protocol import Counts, DecodePath

_SPLIT = 20
"""Bits of a duration that are summed apart, so that no sum of 64 bits overflows."""


class ReadTimes:
    """When outputs were read, by number from 1 on; the oldest are forgotten once nobody needs them."""

    def __init__(self) -> None:
        self.count = 0
        self._first = 1
        """Number of the first read that is still kept."""
        self._times: Counts = np.zeros(4096, np.int64)

    def add(self, now: int, needed: Iterable[int] = ()) -> None:
        """Note a read; `needed` are numbers of reads that must be kept if room must be made."""
        self._make_room(1, needed)
        self.count += 1
        self._times[self.count - self._first] = now

    def extend(self, times: Counts, needed: Iterable[int]) -> None:
        """Note several reads."""
        self._make_room(len(times), needed)
        at = self.count + 1 - self._first
        self._times[at : at + len(times)] = times
        self.count += len(times)

    def _make_room(self, count: int, needed: Iterable[int]) -> None:
        used = self.count + 1 - self._first
        if used + count <= len(self._times):
            return
        first = min(needed, default=self.count)
        kept = self._times[first - self._first : used]
        self._times = np.concatenate([kept, np.zeros(max(2 * len(kept), 4096) + count, np.int64)])
        self._first = first

    def of(self, first: int) -> Counts:
        """Return the times of the reads from one on."""
        return self._times[first - self._first : self.count + 1 - self._first]


def kv_area(path: DecodePath, times: Counts, now: int) -> int:
    """Token-ticks held since the first of these reads, which began the path."""
    return dot(np.append(np.diff(times), now - times[-1]), path.held()[: len(times)])


def visible_at(path: DecodePath, times: Counts, num_hidden: int) -> int | None:
    """When a sequence first had more tokens than so many; None if that is still to come."""
    read = int(path.tokens()[: len(times)].searchsorted(num_hidden + 1))
    return int(times[read]) if read < len(times) else None


def dots(counts: Counts, ticks: Counts) -> list[int]:
    """Sums of products of each row, exact where they do not fit 64 bits.

    >>> dots(np.array([[1 << 30, 5]]), np.array([1 << 50, 3])) == [(1 << 80) + 15]
    True
    """
    high, low = counts @ (ticks >> _SPLIT), counts @ (ticks & ((1 << _SPLIT) - 1))
    return [(a << _SPLIT) + b for a, b in zip(high.tolist(), low.tolist(), strict=True)]


def dot(ticks: Counts, counts: Counts) -> int:
    """Sum of products, exact where it does not fit 64 bits.

    >>> dot(np.array([1 << 50, 3]), np.array([1 << 30, 5])) == (1 << 80) + 15
    True
    """
    high, low = ticks >> _SPLIT, ticks & ((1 << _SPLIT) - 1)
    return (int(high @ counts) << _SPLIT) + int(low @ counts)
