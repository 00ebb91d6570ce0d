"""Where hits of the prefix cache may end: what vLLM asks of the two flags that say so.

Knows tokens per block of the KV cache groups, nothing else of them: the plan and the scheduler's config both ask here.
Source: vLLM 0.32 `v1/core/kv_cache_utils.py: resolve_kv_cache_block_sizes`, `v1/core/kv_cache_coordinator.py:
_validate_prefix_cache_retention_interval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, lcm


def unit_fault(unit: int | None, named_sizes: Sequence[int], num_groups: int) -> str:
    """What is wrong with `prefix_match_unit` while blocks have names; "" if nothing.

    `named_sizes`: tokens per block of the groups that take part in prefix caching, of all where none does.

    >>> unit_fault(16, (16,), 1), unit_fault(8, (16, 24), 2)
    ('', '')
    >>> unit_fault(7, (16,), 1)
    'hits of one KV cache group land on its block size, 16: unset it or set it to 16'
    """
    if unit is None:
        return ""
    if num_groups == 1 and unit != named_sizes[0]:
        size = named_sizes[0]
        return f"hits of one KV cache group land on its block size, {size}: unset it or set it to {size}"
    if any(size % unit for size in named_sizes):
        sizes = ", ".join(str(size) for size in sorted(set(named_sizes)))
        return f"must divide the block sizes of the KV cache groups, {sizes}; {gcd(*named_sizes)} does"
    return ""


def interval_fault(interval: int | None, block_sizes: Sequence[int], forgets: bool) -> str:
    """What is wrong with `prefix_cache_retention_interval`, with or without prefix caching; "" if nothing.

    None (everywhere) and 0 (a prompt's end) are always taken.

    Args:
        interval: tokens between two places where hits are kept.
        block_sizes: tokens per block of all groups.
        forgets: whether a group has sliding windows or states.

    >>> interval_fault(None, (16,), False), interval_fault(96, (16, 32), True)
    ('', '')
    >>> interval_fault(100, (16, 32), True)
    'must be a multiple of 32, tokens of a block that all KV cache groups have in common'
    """
    if not interval:
        return ""
    if not forgets:
        return "has no effect without a KV cache group of sliding windows or states; set it to 0"
    if interval % (common := lcm(*block_sizes)):
        return f"must be a multiple of {common}, tokens of a block that all KV cache groups have in common"
    return ""
