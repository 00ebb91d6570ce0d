"""What a card and its kernels cost: rates, fixed times and the few formulas that turn work into seconds.

Everything broadcasts over numpy arrays. Knows no model; `step` adds up.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.timing.work import AttentionWork, ExpertWork, Number, Product, StepShape

FAR_TOKENS = float(1 << 40)
"""More context than any step has: where lines end."""
CROWDING_TOKENS = 4096
"""Context at which crowding is half felt."""

Array = NDArray[np.float64]
Seconds = Callable[[Number], Number]
"""Of a size: tokens, bytes."""


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

    def curve(self, products: Sequence[Product], num_bytes: float) -> Seconds:
        """Seconds of a step's products over its tokens; `num_bytes` of weights in all."""
        flops, kernels_s = (
            2.0 * sum(p.parameters for p in products),
            self.kernel_s * sum(p.num for p in products),
        )
        return lambda tokens: kernels_s + gemm_s(self, num_bytes, flops * tokens)

    def experts(self, e: ExpertWork) -> Seconds:
        """Seconds of the expert layers over the tokens that reach them."""
        return lambda tokens: experts_s(e, self, tokens)


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

    def line(self, a: AttentionWork, batch: float) -> ContextLine:
        """Seconds of one layer's decodes over their summed context; `kernel_s` and `sequence_s` apart."""
        slope = context_token_s(self, a.kv_bytes_per_token, a.decode_flops_per_token)
        return ContextLine(np.array([0.0, FAR_TOKENS]), np.array([0.0, FAR_TOKENS * slope]))

    def seconds(self, a: AttentionWork, shape: StepShape) -> Number:
        """Seconds of one layer's attention in a step; `kernel_s` and `sequence_s` apart."""
        return attention_s(self, a, shape)


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

    def __call__(self, num_bytes: Number) -> Number:
        """Seconds of one all-reduce of a message.

        >>> costs = ReduceCosts(3e-6, 4e10, two_shot_s=2e-5, two_shot_bytes_per_s=2e11)
        >>> round(costs(4e5) * 1e6), round(costs(4e6) * 1e6)
        (13, 40)
        """
        one_shot = self.kernel_s + num_bytes / self.bytes_per_s
        return smaller(one_shot, self.two_shot_s + num_bytes / self.two_shot_bytes_per_s)


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
    piecewise_s: float = 0.0
    """Per layer of decodes that replay graphs in pieces: one for each piece, and attention launched between them."""
    many_s: float = 0.0
    """Per sequence of a step beyond the largest CUDA graph, instead of `row_s` where that is longer."""


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


def attention_s(costs: AttentionCosts, a: AttentionWork, shape: StepShape) -> Number:
    """Seconds of one layer's attention to its contexts: decodes, prompt chunks, or both in one kernel.

    A kernel that serves both neither packs query heads nor splits contexts as the decode kernel does: decodes
    cost more, and the whole lasts at least as long as one thread block needs for the longest context.
    """
    context, pairs = capped(shape, a.cap)
    chunk, batch = shape.num_prefill_tokens, shape.num_decodes
    decode_s = context_token_s(costs, a.kv_bytes_per_token, a.decode_flops_per_token)
    if not isinstance(chunk, np.ndarray) and not chunk:
        return context * decode_s
    mixed_s = mixed_token_s(costs, a.kv_bytes_per_token, a.num_heads / a.num_kv_heads, batch, context)
    worked = (pairs + costs.extra_keys * chunk) * (a.pair_flops / costs.flops_per_s)
    blocks = costs.mixed_block_s * a.num_heads * batch * chunk / larger(shape.num_prefills, 1)
    longest = larger(context / larger(batch, 1), pairs / larger(chunk, 1))
    serial = longest * (a.kv_bytes_per_token / a.num_kv_heads / costs.serial_bytes_per_s)
    mixed = larger(context * larger(decode_s, mixed_s) + worked + blocks, serial)
    return np.where(chunk > 0, mixed, context * decode_s) if isinstance(chunk, np.ndarray) else mixed


def experts_s(e: ExpertWork, costs: GemmCosts, tokens: Number) -> Number:
    """Seconds of the expert layers over the tokens that reach them, those of all ranks that pool theirs: the expected
    distinct experts are read, every visit is multiplied."""
    read = expected_experts(e.num_experts, e.share, tokens) * e.expert_bytes
    visits = tokens * e.share * e.num_experts
    moved_s = visits * e.visit_bytes / costs.visit_bytes_per_s
    return e.num_layers * (gemm_s(costs, read, visits * e.expert_flops) + moved_s + costs.kernel_s)


def capped(shape: StepShape, cap: int) -> tuple[Number, Number]:
    """Decode context and prefill pairs when no query sees more than `cap` tokens (0: any), from the means."""
    if not cap:
        return shape.decode_context, shape.prefill_attention
    context = smaller(shape.decode_context, shape.num_decodes * cap)
    return context, smaller(shape.prefill_attention, shape.num_prefill_tokens * float(cap))


class ContextLine(NamedTuple):
    """Seconds over the summed context: linear between points, level before the first and after the last."""

    x: Array
    y: Array

    def capped(self, context: float) -> ContextLine:
        """Level from a context on."""
        inside = self.x < context
        return ContextLine(np.append(self.x[inside], context), np.append(self.y[inside], self.at(context)))

    def at(self, context: Number) -> Number:
        """Seconds at a context."""
        return np.interp(context, self.x, self.y)
