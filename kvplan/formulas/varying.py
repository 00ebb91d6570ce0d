"""Concurrency when lengths vary: what a running trace holds on average, and how often N of them overflow.

A trace is born with its prompt and grows by a token a step until it ends. Looked at while it runs, its age is
anything from birth to end with equal chance, and long traces are met more often than short ones, in proportion
to their length. Both are built in here: the *running* traces of a server in steady state, each decoding a
token per step, independent of each other. That is the assumption; a server that holds traces back, or starts
them all at once, is a case for the simulator. Every layer is taken to remember everything.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
else:
    from kvplan.formulas import arrays as np


def cdiv(a: npt.ArrayLike, b: npt.ArrayLike) -> Ints:
    """Divide and round up: ceil(a / b) in integers.

    >>> print(cdiv(33, 16), cdiv([15, 16, 17], 16))
    3 [1 1 2]
    """
    return -(-_ints(a) // _ints(b))


def _ints(x: npt.ArrayLike) -> Ints:
    """Integers as an array; a plain int stays one, which is how the planner asks one figure at a time."""
    return x if isinstance(x, int) else np.asarray(x, dtype=np.int64)


def _larger(a: Any, b: Any) -> Any:
    """The larger of each two."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else np.maximum(a, b)


def _smaller(a: Any, b: Any) -> Any:
    """The smaller of each two."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else np.minimum(a, b)


class Moments(NamedTuple):
    """Mean and standard deviation of the blocks that a running trace holds."""

    mean: float
    std: float


def _block_sum(num_tokens: Ints, block_size: Ints) -> Ints:
    """Sum of ceil(i / block) for i = 1 .. n: whole steps of the staircase, then the broken one."""
    whole, rest = num_tokens // block_size, num_tokens % block_size
    total: Ints = block_size * whole * (whole + 1) // 2 + rest * (whole + 1)
    return total


def mean_resident_blocks(
    prompt_len: npt.ArrayLike, output_len: npt.ArrayLike, block_size: npt.ArrayLike = 16
) -> Floats:
    """Blocks that one trace holds, averaged over its decode steps.

        1/o * sum_(t=1..o) ceil((p + t) / block)                             [blocks]

    Half of what it holds at its end, for a short prompt: planning by the final length wastes half the pool.

    >>> print(mean_resident_blocks(0, 32_000), mean_resident_blocks([0, 32_000], 32_000))
    1000.5 [1000.5 3000.5]
    """
    p, o, b = (np.asarray(x, dtype=np.int64) for x in (prompt_len, output_len, block_size))
    mean: Floats = (_block_sum(p + o, b) - _block_sum(p, b)) / o
    return mean


def resident_distribution(
    prompt_len: npt.ArrayLike, output_len: npt.ArrayLike, block_size: int = 16
) -> Floats:
    """Distribution of the blocks that a running trace holds: element k is the probability of k blocks.

    Args:
        prompt_len: prompt tokens of sampled traces.
        output_len: output tokens of the same traces (broadcast against the prompts), at least 1 each.
        block_size: tokens per block.

    >>> print(resident_distribution(0, 32, 16), resident_distribution([0, 0], [16, 48], 16))
    [0.  0.5 0.5] [0.   0.5  0.25 0.25]
    """
    p, o = np.broadcast_arrays(np.asarray(prompt_len, dtype=np.int64), np.asarray(output_len, dtype=np.int64))
    first, last = p.ravel() + 1, (p + o).ravel()
    # steps spent with exactly k blocks = steps with a context over (k - 1) * block - those over k * block;
    # counted for all k at once: a step each at every block of [first, last], and the two ends corrected
    size = int(cdiv(last.max(), block_size)) + 1
    low, high = cdiv(first, block_size), cdiv(last, block_size)
    edges = np.bincount(low, minlength=size + 1) - np.bincount(high + 1, minlength=size + 1)
    steps = np.cumsum(edges)[:size] * block_size
    steps = steps - np.bincount(low, (first - 1) - (low - 1) * block_size, size)
    steps = steps - np.bincount(high, high * block_size - last, size)
    return np.asarray(steps / steps.sum(), dtype=np.float64)


def resident_moments(distribution: Floats) -> Moments:
    """Mean and standard deviation of a distribution over 0, 1, 2 ... blocks.

    >>> resident_moments(np.array([0.0, 0.5, 0.5]))
    Moments(mean=1.5, std=0.5)
    """
    k = np.arange(len(distribution))
    mean = float(distribution @ k)
    return Moments(mean, math.sqrt(max(0.0, float(distribution @ (k - mean) ** 2))))


def coarser(distribution: Floats, factor: int) -> Floats:
    """The same distribution in units of so many blocks, its mean kept: what lies between two units is shared out.

    For pools of very many blocks, whose sums take long.

    >>> print(coarser(np.array([0.0, 0.5, 0.5]), 2))
    [0.25 0.75]
    """
    k = np.arange(len(distribution))
    part = (k % factor) / factor
    size = (len(distribution) - 1) // factor + 2
    low = np.bincount(k // factor, distribution * (1 - part), size)
    found = low + np.bincount(k // factor + 1, distribution * part, size)
    return np.asarray(found[: size - int(found[-1] == 0)], dtype=np.float64)


def overflow_probability(
    num_traces: npt.ArrayLike, num_blocks: npt.ArrayLike, mean: npt.ArrayLike, std: npt.ArrayLike
) -> Floats:
    """Probability that N running traces want more blocks than the pool has, by the central limit theorem.

        1 - Phi((blocks - 1 + 1/2 - N * mean) / (sqrt(N) * std))

    Good from about 20 traces on when no trace is a large part of the pool; `sum_overflow_probability` is exact.
    The half is the usual correction for counts, the 1 the null block.

    >>> print(overflow_probability(100, 155_001, 1_500, 500).round(3))
    0.159
    >>> print(overflow_probability([90, 100, 110], 155_001, 1_500, 500).astype(float).round(3))
    [0.    0.159 0.972]
    """
    n, mean, std = (np.asarray(x, dtype=np.float64) for x in (num_traces, mean, std))
    room = np.asarray(num_blocks, dtype=np.float64) - 0.5 - n * mean
    with np.errstate(divide="ignore"):
        z = room / np.maximum(np.sqrt(n) * std, np.finfo(np.float64).tiny)
    return np.asarray(0.5 * np.asarray(np.frompyfunc(math.erfc, 1, 1)(z / math.sqrt(2.0)), dtype=np.float64))[
        ()
    ]


def sum_overflow_probability(distribution: Floats, num_traces: int, num_blocks: int) -> float:
    """Probability that N running traces want more blocks than the pool has, exactly.

    The N-fold convolution of `resident_distribution`, by repeated squaring and Fourier transform; sums beyond
    the pool are dropped on the way. Exact to about 1e-12.

    >>> sum_overflow_probability(np.array([0.0, 0.5, 0.5]), 2, 4)  # 4 wanted (p = 1/4), 3 usable
    0.25
    """
    usable = max(0, num_blocks - 1)
    if usable >= num_traces * (len(distribution) - 1):
        return 0.0
    total, power, n = np.ones(1), distribution[: usable + 1], num_traces
    while n:
        if n & 1:
            total = _convolve(total, power)[: usable + 1]
        n >>= 1
        power = _convolve(power, power)[: usable + 1] if n else power
    return round(min(1.0, max(0.0, 1.0 - float(total.sum()))), 12)


def _convolve(a: Floats, b: Floats) -> Floats:
    size = len(a) + len(b) - 1
    length = 1 << (size - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(a, length) * np.fft.rfft(b, length), length)[:size]
    return np.asarray(product, dtype=np.float64)


def max_traces(distribution: Floats, num_blocks: int, *, overflow: float = 0.01) -> int:
    """Most traces that may run at once so that the pool overflows with at most this probability.

    An overflow is no failure: the engine preempts. Planning by the longest trace instead serves a fraction of
    this many.

    >>> d = resident_distribution(0, 32_000)
    >>> max_traces(d, 20_480), 20_479 // 2_000  # by residency, by final length
    (15, 10)
    """

    def holds(n: int) -> bool:
        return sum_overflow_probability(distribution, n, num_blocks) <= overflow

    at, step = _likely_traces(resident_moments(distribution), num_blocks, overflow), 1
    if holds(at):
        while holds(at + step):
            at, step = at + step, 2 * step
        low, high = at, at + step
    else:
        while at > step and not holds(at - step):
            at, step = at - step, 2 * step
        low, high = max(0, at - step), at
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _likely_traces(one: Moments, num_blocks: int, overflow: float) -> int:
    """`max_traces` by the central limit theorem, at least 1: N * mean + z * sqrt(N) * std = blocks, solved for N."""
    spread = NormalDist().inv_cdf(1 - min(max(overflow, 1e-9), 0.5)) * one.std
    mean = max(one.mean, 1e-9)
    root = (math.sqrt(spread * spread + 4 * mean * max(0, num_blocks - 1)) - spread) / (2 * mean)
    return max(1, int(min(root * root, num_blocks)))
