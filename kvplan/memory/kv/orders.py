"""In which order a pool's bytes lie, `VLLM_KV_CACHE_LAYOUT`: what kernels and planner take, and what that changes.

Letters from the outermost: layers (L), blocks (B), heads (H), tokens (N), contents of one (C). Source: vLLM 0.32
`v1/kv_cache_layout.py`, `v1/attention/backends/utils.py: resolve_kv_cache_layout`.
"""

from __future__ import annotations

from kvplan.engines.environment import LAYOUTS
from kvplan.ground.errors import KvplanError
from kvplan.memory.kv.pages import Pages

NAME = "VLLM_KV_CACHE_LAYOUT"
COMPACT = ("LBNHC", "LBHNC", "BLNHC", "BLHNC")
"""A page's bytes lie together: pages of several shapes can share a pool."""
OF_BACKENDS = {
    "FLEX_ATTENTION": ("LBNHC",),
    "HPC_ATTN": ("LBNHC",),
    "TURBOQUANT": ("LBNHC",),
    "ROCM_ATTN": ("LHBNC", "LBHNC"),
    "ROCM_AITER_UNIFIED_ATTN": ("LBHNC", "LHBNC"),
    "ROCM_AITER_FA": ("LHBNC", "LBNHC", "LBHNC"),
}
"""Kernels that take some orders alone; others take all."""
BLACKWELL = ("LBHNC", "BLHNC")
"""What FlashInfer's kernels take on compute capability 10.x."""


def check_order(order: str, pages: Pages, major: int) -> None:
    """Refuse an order that vLLM's kernels or its planner do not take.

    Raises:
        KvplanError: with those that there are.
    """
    taken = orders(pages, major)
    if order and order not in taken:
        raise KvplanError(f"{NAME}={order}: for this model there are {', '.join(taken)}")


def orders(pages: Pages, major: int) -> list[str]:
    """What these pages and their kernels take."""
    shapes = {(p.block_size, p.num_bytes, p.shape) for p in (layer.page for layer in pages.layers)}
    known = [OF_BACKENDS[name] for name in pages.backends if name in OF_BACKENDS]
    known += [BLACKWELL] if major == 10 and "FLASHINFER" in pages.backends else []
    known += [COMPACT] if len(shapes) > 1 else []
    known += [pages.orders] if pages.orders else []
    found = [name for name in LAYOUTS if name not in ("NHD", "HND")]
    return [name for name in found if all(name in of for of in known)]
