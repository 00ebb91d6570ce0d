"""Closed-form KV arithmetic: bytes, blocks and concurrency. Pure, broadcasting; start reading here.

Every function takes numbers or arrays of any shapes that broadcast, and answers in kind. Bytes and tokens
are integers, seconds floats. Nothing here knows a model, a GPU or an engine's flags: `layout` reads those
off and asks these formulas.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
"""Integers of any shape; a scalar in gives a scalar out."""
IntLike = npt.ArrayLike


def cdiv(a: IntLike, b: IntLike) -> Ints:
    """Return ceil(a / b) in integers.

    >>> print(cdiv(33, 16), cdiv([15, 16, 17], 16))
    3 [1 1 2]
    """
    return -(-np.asarray(a, dtype=np.int64) // np.asarray(b, dtype=np.int64))


def full_blocks(num_tokens: IntLike, block_size: IntLike) -> Ints:
    """Blocks that a sequence holds in a group that keeps every token: ceil(n / block)."""
    return cdiv(num_tokens, block_size)


def window_blocks(
    num_tokens: IntLike, window: IntLike, in_flight_tokens: IntLike, block_size: IntLike
) -> Ints:
    """Blocks that start-up reserves in a sliding-window group: ceil(min(W - 1 + in flight, n) / block) + 1."""
    held = np.minimum(np.asarray(window) - 1 + np.asarray(in_flight_tokens), num_tokens)
    return cdiv(held, block_size) + 1


def chunked_blocks(
    num_tokens: IntLike, chunk: IntLike, in_flight_tokens: IntLike, block_size: IntLike
) -> Ints:
    """Blocks that start-up reserves in a chunked-local group: ceil(min(C + in flight, n) / block)."""
    return cdiv(np.minimum(np.asarray(chunk) + np.asarray(in_flight_tokens), num_tokens), block_size)


def state_blocks(drafts: IntLike, checkpoints: IntLike, prefix_caching: npt.ArrayLike) -> Ints:
    """Blocks of state a sequence holds: 1 + drafts, or 2 + drafts + checkpoints with prefix caching."""
    cached = np.asarray(prefix_caching, dtype=np.int64)
    return 1 + np.asarray(drafts, dtype=np.int64) + cached * (1 + np.asarray(checkpoints, dtype=np.int64))
