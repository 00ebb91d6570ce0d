"""A figure over time as one line of blocks: KV use after `simulate` and `watch`, on a terminal or with `--spark`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from math import ceil

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 48
"""Slots of time, so that the line fits a narrow terminal."""


def sparkline(times: Sequence[float], shares: Sequence[float], width: int = WIDTH) -> str:
    """Shares (0 to 1) that hold from their time (seconds, in order) to the next: `width` slots, the highest of each.

    Nothing in use is a blank, anything at least the lowest block, only all of it the highest.

    >>> sparkline([0, 1, 2, 3, 4], [0.0, 0.25, 0.5, 1.0, 0.0], width=4)
    ' ▂▄█'
    """
    if len(times) < 2 or not times[-1] > times[0]:
        return ""
    slot_s = (times[-1] - times[0]) / width
    highest = [0.0] * width
    for (begin, end), share in zip(pairwise(times), shares[:-1], strict=True):
        first = min(width - 1, int((begin - times[0]) / slot_s))
        last = max(first, min(width, ceil((end - times[0]) / slot_s - 1e-9)) - 1)
        for i in range(first, last + 1):
            highest[i] = max(highest[i], share)
    return "".join(BLOCKS[_level(share)] for share in highest)


def _level(share: float) -> int:
    top = len(BLOCKS) - 1
    return top if share >= 1 else min(top - 1, ceil(share * top - 1e-9))


def kv_lines(times: Sequence[float], shares: Sequence[float], *, is_asked: bool, pool: str) -> list[str]:
    """KV use over time in a line, where a terminal reads or somebody asked; nothing of a single moment."""
    line = sparkline(times, shares) if is_asked or sys.stdout.isatty() else ""
    if not line:
        return []
    seconds = times[-1] - times[0]
    return [f"KV over time [{line}] {seconds:,.0f} s, highest {max(shares):.1%} of {pool}"]
