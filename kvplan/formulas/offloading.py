"""Arithmetic of a tier of KV beyond the GPU: its slots, and the length from which on loading beats computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from kvplan.formulas.capacity import IntLike
    from kvplan.formulas.varying import Ints
else:
    from kvplan.formulas import arrays as np

SLOT_ALIGNMENT = 4096
"""Bytes to which a slot is rounded up (vLLM `CPUOffloadingSpec.BLOCK_SIZE_ALIGNMENT`)."""


def tier_chunks(
    size_bytes: IntLike, block_bytes: IntLike, blocks_per_chunk: IntLike, num_copies: IntLike
) -> Ints:
    """Count the slots of a tier: size // (a pool block's bytes x blocks a chunk x ranks, rounded up to 4,096).

    Args:
        size_bytes: of the tier, all ranks together.
        block_bytes: of one block of the GPU's pool on one rank; a chunk of any group takes a slot of that size.
        blocks_per_chunk: GPU blocks stored together.
        num_copies: ranks that each keep their own part.

    Broadcasts. Source: vLLM 0.32 `v1/kv_offload/cpu/spec.py`.

    >>> int(tier_chunks(64 * 2**30, 16 * 131072, 1, 1))
    32768
    >>> tier_chunks(64 * 2**30, 16 * 131072, [1, 4], 1).tolist()
    [32768, 8192]
    """
    one, per_chunk, copies = (
        np.asarray(x, dtype=np.int64) for x in (block_bytes, blocks_per_chunk, num_copies)
    )
    aligned = -(-(one * per_chunk * copies) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
    slots: Ints = np.asarray(size_bytes, dtype=np.int64) // aligned
    return slots


def break_even_tokens(
    reload_s: Callable[[int], float], recompute_s: Callable[[int], float], unit: int, longest: int
) -> int | None:
    """Return the shortest prefix, in whole units, from which on loading takes no longer than computing; None = never.

    Args:
        reload_s: tokens -> seconds to load them; a fixed wait and bytes over a rate.
        recompute_s: tokens -> seconds to compute them. The two cross once at most: computing grows at least linearly,
            loading at most so.
        unit: tokens that are loaded together.
        longest: tokens up to which is looked.

    >>> break_even_tokens(lambda n: 0.01 + n / 1e5, lambda n: n / 1e4, 16, 4096)
    112
    >>> break_even_tokens(lambda n: n / 1e4, lambda n: n / 1e5, 16, 4096) is None
    True
    """
    low, high = 0, max(1, longest // unit)
    if reload_s(high * unit) > recompute_s(high * unit):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if reload_s(middle * unit) <= recompute_s(middle * unit):
            high = middle
        else:
            low = middle
    return high * unit
