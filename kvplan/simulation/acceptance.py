"""Which drafts are right: drawn by request and token, so that a request's luck does not hang on who else runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import ceil, fsum
from operator import mul

import numpy as np
from numpy.typing import NDArray

from kvplan.schedulers.protocol import Counts
from kvplan.schedulers.request import Request
from kvplan.simulation.sim_request import SimRequest

_MASK, _GOLDEN = (1 << 64) - 1, 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
Words = NDArray[np.uint64]


def accept_drafts(
    rate: float | tuple[float, ...], stream: tuple[int, ...], lengths: tuple[float, ...] | None = None
) -> DrawnDrafts:
    """How many drafts are right, each with its position's chance, up to the first wrong one; the last rate holds on.

    `lengths` comes before `rate`: shares of the steps that kept 0, 1, 2 ... drafts; none keeps more.
    """
    if lengths is not None:
        return DrawnDrafts((*rates_of(lengths), 0.0), stream)
    return DrawnDrafts((rate,) if isinstance(rate, float) else rate, stream)


class DrawnDrafts:
    """Drafts by chance: `rates` are those of a draft's place, given that all before it were right."""

    def __init__(self, rates: tuple[float, ...], stream: tuple[int, ...]) -> None:
        self.rates = rates
        self.stream = stream

    def __call__(self, request: Request, num_drafts: int) -> int:
        """Of the drafts after a request's tokens so far: how many are right in a row."""
        assert isinstance(request, SimRequest)
        draws = uniforms(self.stream, request.row, request.num_output_tokens, num_drafts)
        chances = (self._rate(i) for i in range(num_drafts))
        wrong = (i for i, (draw, chance) in enumerate(zip(draws, chances, strict=True)) if draw >= chance)
        return next(wrong, num_drafts)

    def runs(self, request: Request, first: int, count: int, num_drafts: int) -> Counts:
        """The same at `count` output positions from `first` on: the same draws, all at once."""
        assert isinstance(request, SimRequest)
        state = np.arange(first, first + count, dtype=np.uint64)
        state ^= np.uint64(_state(self.stream, request.row))
        _mix(state, 0)
        runs = np.zeros(count, np.int64)
        right = np.ones(count, bool)
        for i in range(num_drafts):
            draw = state.copy()
            _mix(draw, i)
            draw >>= np.uint64(11)
            right &= draw < np.uint64(ceil(self._rate(i) * 2.0**53))
            runs += right
        return runs

    def survival(self, num_drafts: int) -> tuple[float, ...]:
        """The chance that the first so many drafts are all right, from one on."""
        return tuple(accumulate((self._rate(i) for i in range(num_drafts)), mul))

    def _rate(self, place: int) -> float:
        return self.rates[min(place, len(self.rates) - 1)]


def rates_of(shares: Sequence[float]) -> tuple[float, ...]:
    """Turn a measured distribution of accepted lengths into each draft's chance, given that those before were right.

    `shares[n]` of the steps kept n drafts. Draft i (from 1) is right with P(n >= i) / P(n >= i - 1); behind a length
    that no step reached, never.

    >>> rates_of([0.25, 0.25, 0.5])
    (0.75, 0.6666666666666666)
    """
    tails = [fsum(shares[i:]) for i in range(len(shares))]
    return tuple(b / a if a > 0 else 0.0 for a, b in pairwise(tails))


def uniforms(stream: tuple[int, ...], row: int, token: int, count: int) -> list[float]:
    """Uniform numbers of a request at a token: SplitMix64 (Steele, Lea and Flood, 2014) of all that names them.

    >>> uniforms((0,), 1, 7, 2) == uniforms((0,), 1, 7, 3)[:2]
    True
    """
    state = _mixed(_state(stream, row) ^ token)
    return [(_mixed((state + i * _GOLDEN) & _MASK) >> 11) * 2.0**-53 for i in range(count)]


def _state(stream: tuple[int, ...], row: int) -> int:
    state = 0
    for part in (*stream, row):
        state = _mixed((state ^ part) & _MASK)
    return state


def _mixed(state: int) -> int:
    state = (state + _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def _mix(state: Words, places: int) -> None:
    """`_mixed` of every word, so many places further, in the array itself."""
    state += np.uint64((_GOLDEN * (places + 1)) & _MASK)
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)
