"""What a card and its kernels cost: rates, fixed times and the few formulas that turn work into seconds.

Everything broadcasts over numpy arrays. Knows no model; `step` adds up.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

CROWDING_TOKENS = 4096
"""Context at which crowding is half felt."""
MAX_CAPTURE_SIZE = 512
"""Largest batch that vLLM captures a CUDA graph for by default (`max_cudagraph_capture_size`)."""

Number = Any
"""A Python number or a numpy array; the formulas here take both."""


@dataclass(frozen=True, slots=True)
class GemmCosts:
    """Matrix products of one weight format on one card."""

    bytes_per_s: float
    """Weights read."""
    flops_per_s: float
    p_norm: float = 3.0
    """How softly reading and multiplying overlap: 1 they add, infinity the longer counts."""
    kernel_s: float = 0.0
    """Of each product, however small."""
    visit_bytes_per_s: float = math.inf
    """Experts only: activations gathered, quantised, passed between the products and scattered back, per visit."""


@dataclass(frozen=True, slots=True)
class AttentionCosts:
    """One attention implementation at one KV format."""

    bytes_per_s: float
    """KV read by decoding sequences."""
    flops_per_s: float
    """Prefill, and decode where it is bound by arithmetic (MLA)."""
    kernel_s: float = 0.0
    """Of each layer's call."""
    sequence_s: float = 0.0
    """Per layer, KV head on the rank and decoding sequence: thread blocks scheduled, partial results merged."""
    extra_keys: float = 0.0
    """Keys' worth of work that each prompt token costs beyond its own keys: tile padding, prologue, output."""
    mixed_bytes_per_s: float = math.inf
    """KV read by decodes in a step that also holds a prompt chunk, once per *query* head, through the cache."""
    mixed_crowding: float = 0.0
    """Relative growth of that reading per decoding sequence, at contexts long enough to leave the cache."""
    mixed_block_s: float = 0.0
    """Per query head, decoding sequence and token of the prompt chunk beside it: a kernel for ragged batches starts
    as many thread blocks for a sequence of one query token as for the longest chunk; most have nothing to do."""
    serial_bytes_per_s: float = math.inf
    """One KV head read by one thread block: the critical path of a kernel that does not split the context."""


@dataclass(frozen=True, slots=True)
class ReduceCosts:
    """Tensor-parallel all-reduce among one number of ranks, by the quicker of two algorithms.

    One shot: every rank reads every other's message; soonest done while it is short. Two shots: reduce-scatter, then
    all-gather; started later, each byte crosses the link about twice, however many ranks.
    """

    kernel_s: float = 0.0
    bytes_per_s: float = math.inf
    """Message bytes per second (the algorithm's bandwidth, not the link's)."""
    two_shot_s: float = math.inf
    """Fixed part of the two-shot algorithm; infinity: only one was measured."""
    two_shot_bytes_per_s: float = math.inf
    """Message bytes per second of the two-shot algorithm."""


@dataclass(frozen=True, slots=True)
class HostCosts:
    """CPU time of a step: schedule, prepare inputs, update."""

    step_s: float = 0.0
    row_s: float = 0.0
    """Per sequence in the step."""
    overlaps: bool = False
    """True: asynchronous scheduling hides it under the GPU's time; False: they add."""
    gap_s: float = 0.0
    """Between two steps, hidden by nothing: results to the host, the next step's launch."""
    launch_s: float = 0.0
    """Per layer outside CUDA graphs: kernels launched one by one while the GPU follows, so the longer counts."""


@dataclass(frozen=True, slots=True)
class StepCosts:
    """All costs of one model's step on one rank: its formats picked from what a card offers."""

    gemm: GemmCosts
    """Projections, dense MLPs, shared experts."""
    experts: GemmCosts
    head: GemmCosts
    attention: AttentionCosts
    reduce: ReduceCosts = ReduceCosts()
    host: HostCosts = HostCosts()
    step_s: float = 0.0
    """GPU time of every step, whatever it holds."""
    layer_s: float = 0.0
    """Per layer, beyond its products and attention: norms, rotary embedding, launches."""
    row_s: float = 0.0
    """Per sampled row: logits processing, sampler."""
    activation_bytes_per_s: float = math.inf
    """Residual-stream bytes per second through a layer's element-wise kernels."""
    capture_sizes: tuple[int, ...] = ()
    """CUDA-graph sizes that the token count is padded to; beyond the last, eager and unpadded."""


def larger(a: Number, b: Number) -> Number:
    """max(a, b) element by element; Python's own for two numbers, which is ten times faster there."""
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def smaller(a: Number, b: Number) -> Number:
    """min(a, b) element by element; see `larger`."""
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)


def p_norm(a: Number, b: Number, p: float) -> Number:
    """(a^p + b^p)^(1/p): near the larger of the two, softly above it where they meet.

    >>> p_norm(3.0, 4.0, 2.0)
    5.0
    """
    return (a**p + b**p) ** (1.0 / p)


def gemm_s(costs: GemmCosts, num_bytes: Number, flops: Number) -> Number:
    """Seconds of a matrix product: the p-norm of reading its weights and of multiplying, without `kernel_s`."""
    return p_norm(num_bytes / costs.bytes_per_s, flops / costs.flops_per_s, costs.p_norm)


def reduce_s(costs: ReduceCosts, num_bytes: Number) -> Number:
    """Seconds of one all-reduce of a message.

    >>> costs = ReduceCosts(3e-6, 4e10, two_shot_s=2e-5, two_shot_bytes_per_s=2e11)
    >>> round(reduce_s(costs, 4e5) * 1e6), round(reduce_s(costs, 4e6) * 1e6)
    (13, 40)
    """
    one_shot = costs.kernel_s + num_bytes / costs.bytes_per_s
    return smaller(one_shot, costs.two_shot_s + num_bytes / costs.two_shot_bytes_per_s)


def expected_experts(num_experts: Number, share: Number, num_tokens: Number) -> Number:
    """Distinct experts that `num_tokens` tokens wake when each visits one with probability `share`.

    E * (1 - (1 - share)^m), the mean of independent uniform choices.

    >>> expected_experts(128, 8 / 128, 1), round(expected_experts(128, 8 / 128, 64), 1)
    (8.0, 125.9)
    """
    return num_experts * (1.0 - (1.0 - share) ** num_tokens)


def context_token_s(costs: AttentionCosts, kv_bytes: Number, flops: Number) -> Number:
    """Seconds that one token of context adds to one decode in one layer: reading it or multiplying it."""
    return p_norm(kv_bytes / costs.bytes_per_s, flops / costs.flops_per_s, 3.0)


def mixed_token_s(
    costs: AttentionCosts, kv_bytes: Number, group: Number, batch: Number, context: Number
) -> Number:
    """Seconds per context token of a decode beside a prompt chunk, were it bound by unpacked reads alone.

    A kernel for prompts gives every query head its own pass over K and V: `group` = query heads per KV head passes
    that the cache serves while few sequences run, and memory when many long ones crowd it out. Seen on
    FlashAttention 2: the same time per token for equal query heads, whatever the KV heads.
    """
    mean = context / larger(batch, 1)
    crowd = 1.0 + costs.mixed_crowding * batch * mean / (mean + CROWDING_TOKENS)
    return kv_bytes * group / costs.mixed_bytes_per_s * crowd


def padded(num_tokens: Number, sizes: tuple[int, ...]) -> Number:
    """Tokens after CUDA-graph padding: the next captured size, or as they are beyond the largest.

    >>> padded(5, (1, 2, 4, 8)), padded(9, (1, 2, 4, 8))
    (8, 9)
    """
    if not sizes:
        return num_tokens
    if isinstance(num_tokens, int):
        return sizes[bisect_left(sizes, num_tokens)] if num_tokens <= sizes[-1] else num_tokens
    table = np.asarray(sizes)
    index = np.minimum(np.searchsorted(table, num_tokens), len(sizes) - 1)
    return np.where(np.asarray(num_tokens) <= sizes[-1], table[index], num_tokens)


def capture_sizes(max_size: int = MAX_CAPTURE_SIZE) -> tuple[int, ...]:
    """The batch sizes that vLLM captures: 1, 2, 4, then every 8 up to 256, every 16 beyond.

    >>> capture_sizes(32)
    (1, 2, 4, 8, 16, 24, 32)
    """
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_size + 1, 16)]
    return tuple(s for s in sizes if s <= max_size)
