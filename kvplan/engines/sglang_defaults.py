"""SGLang's defaults and pool sizes, from plain numbers. Read off SGLang 0.5.23; its own hook's figures are a test.

Knows no model and no flags: `other_engines` does. Sources: `arg_groups/memory_hook.py`, `cuda_graph_hook.py`,
`mem_cache/kv_cache_configurator.py`.
"""

from __future__ import annotations

from typing import NamedTuple


class Defaults(NamedTuple):
    """What a GPU's size decides."""

    chunked_prefill_size: int
    small_max_bs: int
    """Largest decode graph with fewer than 4 tensor-parallel ranks."""
    large_max_bs: int


_STEPS = (
    (20480, Defaults(2048, 8, 8)),
    (35840, Defaults(4096, 48, 160)),
    (61440, Defaults(4096, 32, 160)),
    (163840, Defaults(8192, 256, 512)),
)
"""Below so many MiB."""
_LARGEST = Defaults(16384, 512, 512)

OLD_FRACTIONS = ((16, 0.79), (8, 0.81), (4, 0.85), (2, 0.87), (1, 0.88))
"""mem_fraction_static before 0.5, by tensor-parallel ranks."""
SWA_TO_FULL = 0.8
"""Tokens of the window pool per token of the full pool (--swa-full-tokens-ratio)."""
STATES_TO_KV = 0.9
"""Bytes of states per byte of KV (--mamba-full-memory-ratio)."""
SLOTS_PER_REQUEST = 3
"""State slots that one running request may hold with the radix cache on."""
FEWEST_REQUESTS, MOST_REQUESTS = 2048, 4096


def defaults(gpu_mib: float) -> Defaults:
    """chunked_prefill_size and largest decode graphs; `gpu_mib` as nvidia-smi prints it.

    >>> defaults(81559).chunked_prefill_size
    8192
    """
    return next((found for below, found in _STEPS if gpu_mib < below), _LARGEST)


def prefill_graph_sizes(chunk: int, *, mla: bool = False) -> list[int]:
    """Token counts that prefill graphs are captured for.

    >>> len(prefill_graph_sizes(8192)), len(prefill_graph_sizes(2048))
    (58, 42)
    """
    most = min(8192, chunk) if mla else chunk
    steps = (
        (4, 33, 4),
        (48, 257, 16),
        (288, 513, 32),
        (576, 1025, 64),
        (1280, 4097, 256),
        (4608, most + 1, 512),
    )
    return [size for step in steps for size in range(*step) if size <= most]


def mem_fraction_static(
    gpu_mib: float,
    tp: int = 1,
    pp: int = 1,
    *,
    mla: bool = False,
    chunk: int | None = None,
    max_running_requests: int | None = None,
    decode_graph: bool = True,
    prefill_graph: bool = True,
) -> float:
    """Default share for weights and KV: the card less a reserve for activations and CUDA graphs.

    reserve MiB = 512 + 1.5 max(chunk, 2048) + tp pp / 8 x 1024 + 2 max_bs + 8 per prefill graph (MLA: 1536),
    at least 10 GiB on cards above 60 GiB.

    >>> mem_fraction_static(81559), mem_fraction_static(143771)
    (0.83, 0.903)
    """
    usual = defaults(gpu_mib)
    size = chunk or usual.chunked_prefill_size
    max_bs = usual.small_max_bs if tp < 4 else usual.large_max_bs
    if max_running_requests is not None:
        max_bs = min(max_bs, max_running_requests)
    graphs = 2 * max_bs if decode_graph else 0
    if prefill_graph:
        graphs += 1536 if mla else 8 * len(prefill_graph_sizes(size))
    reserved = 512 + 1.5 * max(size, 2048) + tp * pp / 8 * 1024 + graphs
    if gpu_mib > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return round((gpu_mib - reserved) / gpu_mib, 3)


def old_mem_fraction(tp: int) -> float:
    """Default share before 0.5, which looked at the number of ranks alone.

    >>> old_mem_fraction(1), old_mem_fraction(8)
    (0.88, 0.81)
    """
    return next(share for ranks, share in OLD_FRACTIONS if tp >= ranks)


def max_running_requests(tokens: int, context_len: int, asked: int | None = None) -> int:
    """Requests that run at once: the asked number, or 512 a context between 2,048 and 4,096; two tokens each.

    >>> max_running_requests(400_000, 4096), max_running_requests(1000, 1024)
    (4096, 500)
    """
    estimate = max(min(int(tokens / context_len * 512), MOST_REQUESTS), FEWEST_REQUESTS)
    return max(1, min(asked or estimate, tokens // 2))


class StatePool(NamedTuple):
    """States of a hybrid model, taken off the pool before KV."""

    num_slots: int
    num_bytes: int
    """One slot more than `num_slots` is allocated."""
    max_running_requests: int


def state_pool(
    pool_bytes: int, slot_bytes: int, *, radix_cache: bool, asked_requests: int | None
) -> StatePool:
    """Slots for states: one a request without the radix cache, else 0.9 / 1.9 of the pool, three a request."""
    if not radix_cache and asked_requests is not None:
        return StatePool(asked_requests, (asked_requests + 1) * slot_bytes, asked_requests)
    budget = pool_bytes * STATES_TO_KV / (1 + STATES_TO_KV)
    slots = max(0, int((budget - slot_bytes) // slot_bytes))
    return StatePool(slots, (slots + 1) * slot_bytes, slots // (SLOTS_PER_REQUEST if radix_cache else 1))
