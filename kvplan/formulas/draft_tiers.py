"""Fewer drafts while more requests share a step: `num_speculative_tokens_per_batch_size` of vLLM.

Source: vLLM 0.32 `v1/spec_decode/dynamic/utils.py`.
"""

from __future__ import annotations

from bisect import bisect_right

DraftTiers = tuple[tuple[int, int, int], ...]
"""[from, to, drafts] by the requests that a step holds, both ends included."""


def tiers_fault(tiers: DraftTiers) -> str:
    """What vLLM refuses of them; "" if nothing.

    >>> tiers_fault(((17, 64, 1), (1, 16, 3))), tiers_fault(((2, 8, 1),))
    ('', 'must begin with 1')
    >>> tiers_fault(((1, 8, 3), (8, 9, 1)))
    '[8, 9, 1] must be [from, to, drafts], apart from others'
    """
    end = 0
    for low, high, drafts in sorted(tiers):
        if low <= end or low > high or drafts < 0:
            return f"[{low}, {high}, {drafts}] must be [from, to, drafts], apart from others"
        end = high
    return "" if tiers and min(tiers)[0] == 1 else "must begin with 1"


def drafts_by_batch(tiers: DraftTiers | None, max_num_seqs: int, most: int) -> tuple[int, ...]:
    """Drafts made in a step that holds so many requests, by their number from 0 up to `max_num_seqs`.

    Between two tiers and behind the last the tier before holds on; no more than `most`, which are made without tiers.

    >>> drafts_by_batch(((1, 2, 5), (4, 4, 0)), 5, 3)
    (3, 3, 3, 3, 0, 0)
    """
    if tiers is None:
        return (most,) * (max_num_seqs + 1)
    ordered = sorted(tiers)
    starts = [low for low, _, _ in ordered]
    found = (ordered[bisect_right(starts, n) - 1][2] for n in range(1, max_num_seqs + 1))
    return (most, *(min(most, drafts) for drafts in found))
