"""How many drafts a step verifies where that hangs on their chances and on what verifying costs: vLLM's adaptive
verification.

A draft counts as its survival, the chance that it and all before it are right. The best drafts are verified, as many as
give the most tokens per time: argmax over b of (samples + sum of the b highest survivals) / (draft + verify(b)).
Source: vLLM 0.32 `v1/worker/gpu/spec_decode/adaptive_verification.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CHUNK_BYTES = 1 << 30
"""Of fp32 logits that are verified together; no more drafts are (`rejection_sampler.py: MAX_CHUNK_BYTES`)."""


def most_logits(vocab_size: int) -> int:
    """Rows of logits that a step verifies at most.

    >>> most_logits(151936)
    1766
    """
    return max(1, CHUNK_BYTES // (vocab_size * 4))


def profiled_sizes(captured: Sequence[int], max_num_batched_tokens: int) -> list[int]:
    """Tokens of the dummy steps that vLLM times at start-up: each graph's, then half as many more, then doubled.

    >>> profiled_sizes([1, 2, 4], 20)
    [1, 2, 4, 6, 8, 16, 20]
    """
    if not captured:
        return []
    size, most = captured[-1], max_num_batched_tokens
    tail = {min(size + size // 2, most)}
    while size < most:
        size = min(2 * size, most)
        tail.add(size)
    return [*captured, *sorted(tail - set(captured))]


def cost_table(points: Sequence[tuple[int, float]], most: int, graph_limit: int) -> Floats:
    """What 0, 1 ... `most` tokens or requests cost, of (size, cost) points: never less than fewer do.

    Up to `graph_limit` as the next size that was timed, since steps are padded to it; between sizes beyond it on a
    line, and on behind the last.
    """
    sizes, costs = np.asarray(points, np.float64).T
    costs = np.maximum.accumulate(costs)
    counts = np.arange(most + 1)
    table: Floats = costs[np.minimum(sizes.searchsorted(counts), len(sizes) - 1)]
    beyond, above = counts > graph_limit, sizes > graph_limit
    if graph_limit and beyond.any() and above.any():
        table[beyond] = np.interp(counts[beyond], sizes[above], costs[above])
    if len(sizes) > 1:
        after = counts > sizes[-1]
        slope = (costs[-1] - costs[-2]) / (sizes[-1] - sizes[-2])
        table[after] = costs[-1] + slope * (counts[after] - sizes[-1])
    return table


def draft_budget(
    survival: Floats, num_samples: int, num_others: int, draft_cost: float, verify: Floats
) -> int:
    """Drafts that a step verifies.

    Args:
        survival: of all drafts that may be.
        num_samples: requests that sample a token whatever becomes of their drafts.
        num_others: tokens of the step beside drafts.
        draft_cost: of drafting for the step's requests.
        verify: cost of a step by its tokens.
    """
    given = np.concatenate([[num_samples], num_samples + np.cumsum(np.sort(survival)[::-1])])
    costs = draft_cost + verify[num_others : num_others + len(given)]
    return int(np.argmax(given / costs))


def admitted(survival: Floats, drafts: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """How many drafts of each request are among the `budget` best; of equal ones the first in their request, then in
    the batch.

    `survival` of shape (requests, places); `drafts` are those that each has.
    """
    places = np.arange(survival.shape[1])
    rows, cols = np.nonzero(places[None, :] < drafts[:, None])
    best = np.lexsort((rows, cols, -survival[rows, cols]))[:budget]
    return np.bincount(rows[best], minlength=len(drafts))
