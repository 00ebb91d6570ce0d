"""Batch sizes that vLLM captures as CUDA graphs."""

from __future__ import annotations

MAX_CAPTURE_SIZE = 512
"""Largest batch that vLLM captures a CUDA graph for by default (`max_cudagraph_capture_size`)."""


def max_capture_size(compute_capability: float) -> int:
    """That size on a card: twice as large on the 10.x family (vLLM 0.32 `config/vllm.py`).

    >>> max_capture_size(9.0), max_capture_size(10.3)
    (512, 1024)
    """
    return 2 * MAX_CAPTURE_SIZE if 10 <= compute_capability < 11 else MAX_CAPTURE_SIZE


def capture_sizes(max_size: int = MAX_CAPTURE_SIZE) -> tuple[int, ...]:
    """1, 2, 4, then every 8 up to 256, every 16 beyond.

    >>> capture_sizes(32)
    (1, 2, 4, 8, 16, 24, 32)
    """
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_size + 1, 16)]
    return tuple(s for s in sizes if s <= max_size)
