"""How long one engine step takes: `StepShape` in, time out. Pure; knows no engine, no clock, no memory.

    t = max(host, gpu)   (asynchronous)   or   host + gpu   (synchronous)
    gpu = t_layer*L + linear(m) + act(m) + [decode attention]*mixed + prefill attention + all_reduce(m)

Per attention kind the context is capped (window, sparse top-k). A step carries only sums, so capped
sums come from the mean: `min(context, batch * cap)`, exact for equal lengths and never too small
otherwise. That keeps a pure decode step piecewise linear in its summed context, with known knots.

A roofline or a fitted profile fills the same `KernelCosts` and answers the same questions.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from kvplan.units import TICKS_PER_S
from kvplan.work import AttentionWork, ExpertWork, StepWork

Number = Any
"""A Python number or a numpy array; the physics below broadcasts over both."""

NEVER = 1 << 62
"""The limit of a line that holds for every longer context."""


class StepShape(NamedTuple):
    """All that a step's duration may depend on; every field is a number or an array of one shape.

    The same tuple is the fit's design-matrix row and the simulator's question.
    """

    num_tokens: Number
    """Tokens computed in the step, prefill and decode."""
    num_decodes: Number
    """Sequences that compute one token each (or 1 + drafts)."""
    decode_context: Number
    """Sum over decoding sequences of the tokens attended to."""
    num_prefill_tokens: Number = 0
    """Tokens of prompt chunks in the step."""
    num_prefills: Number = 0
    """Prompts with a chunk in the step."""
    prefill_attention: Number = 0.0
    """Sum over chunks of q * (past + q / 2): the query-key pairs that causal attention visits."""


class StepTime(Protocol):
    """What the simulator asks. Integer ticks (picoseconds), so that leaping and stepping agree exactly."""

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step of this shape."""
        ...

    def decode_line(self, num_decodes: int, decode_context: int) -> tuple[int, int, int]:
        """Return (a, b, limit): `ticks` of a pure decode step is exactly `a + b * context` for every
        context from `decode_context` up to, not including, `limit`."""
        ...


@dataclass(frozen=True, slots=True)
class KernelCosts:
    """What one GPU and one set of kernels cost: rates and fixed times, independent of the model."""

    weight_bytes_per_s: float
    flops_per_s: float
    kv_bytes_per_s: float
    attention_flops_per_s: float
    p_norm: float = 3.0
    """GEMM time = p-norm of reading its weights and of multiplying."""
    step_s: float = 0.0
    """GPU time of every step, whatever it holds."""
    layer_s: float = 0.0
    """Per layer: launches, norms, tails of kernels."""
    sequence_s: float = 0.0
    """Per sampled row: sampler, gather, penalties."""
    activation_bytes_per_s: float = math.inf
    mixed_penalty: float = 1.0
    """Decode attention's factor in a step that also holds a prompt chunk."""
    all_reduce_s: float = 0.0
    """Fixed part of one all-reduce."""
    all_reduce_bytes_per_s: float = math.inf
    host_s: float = 0.0
    """CPU time of a step: schedule, prepare, update."""
    host_sequence_s: float = 0.0
    host_overlaps: bool = False
    """True: asynchronous scheduling hides host time under the GPU's; False: they add."""
    capture_sizes: tuple[int, ...] = ()
    """CUDA-graph batch sizes that the token count is padded to; beyond the last, eager and unpadded."""


def roofline(
    work: StepWork, memory_bytes_per_s: float, flops_per_s: float, link_bytes_per_s: float = math.inf
) -> ModelStepTime:
    """Step time from data-sheet rates alone: no overheads, no inefficiency; a floor, not a forecast."""
    costs = KernelCosts(
        memory_bytes_per_s,
        flops_per_s,
        memory_bytes_per_s,
        flops_per_s,
        all_reduce_bytes_per_s=link_bytes_per_s,
    )
    return ModelStepTime(work, costs)


@dataclass(slots=True)
class ModelStepTime:
    """One model's step time on one rank: work over costs. A `StepTime`; lines are cached per batch size."""

    work: StepWork
    costs: KernelCosts
    _lines: dict[int, tuple[int, tuple[tuple[int, int], ...], int]] = field(default_factory=dict, repr=False)
    _linear: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)

    def seconds(self, shape: StepShape) -> Number:
        """Duration in seconds; broadcasts over arrays in `shape`."""
        host = self.costs.host_s + self.costs.host_sequence_s * (shape.num_decodes + shape.num_prefills)
        gpu = self._linear_s(shape) + self._attention_s(shape)
        return np.maximum(host, gpu) if self.costs.host_overlaps else host + gpu

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step in picoseconds."""
        if not shape.num_prefill_tokens:
            return self._decode_ticks(int(shape.num_decodes), int(shape.decode_context))
        return round(float(self.seconds(shape)) * TICKS_PER_S)

    def decode_line(self, num_decodes: int, decode_context: int) -> tuple[int, int, int]:
        """Return (a, b, limit): a pure decode step takes `a + b * context` from `decode_context` to below `limit`."""
        base, slopes, floor = self._line(num_decodes)
        a, b, limit = base, 0, NEVER
        for slope, knot in slopes:
            if decode_context >= knot:
                a += slope * knot
            else:
                b += slope
                limit = min(limit, knot)
        if a + b * decode_context >= floor:
            return a, b, limit
        return floor, 0, min(limit, -((a - floor) // b)) if b else limit

    def _decode_ticks(self, num_decodes: int, context: int) -> int:
        base, slopes, floor = self._line(num_decodes)
        return max(floor, base + sum(slope * min(context, knot) for slope, knot in slopes))

    def _line(self, num_decodes: int) -> tuple[int, tuple[tuple[int, int], ...], int]:
        """(base, ((slope, knot), ...), floor) in ticks, for max(floor, base + sum slope * min(context, knot))."""
        line = self._lines.get(num_decodes)
        if line is None:
            line = self._lines[num_decodes] = self._make_line(num_decodes)
        return line

    def _make_line(self, num_decodes: int) -> tuple[int, tuple[tuple[int, int], ...], int]:
        empty = StepShape(num_decodes, num_decodes, 0)
        host = self.costs.host_s + self.costs.host_sequence_s * num_decodes
        gpu = self._linear_s(empty) + self._attention_s(empty)
        overlaps = self.costs.host_overlaps
        slopes = tuple(
            (max(1, round(self._context_token_s(a) * TICKS_PER_S)), num_decodes * a.cap if a.cap else NEVER)
            for a in self.work.attention
        )
        base = round((gpu if overlaps else gpu + host) * TICKS_PER_S)
        return base, slopes, round(host * TICKS_PER_S) if overlaps else 0

    def _linear_s(self, shape: StepShape) -> Number:
        """Everything that depends on token and row counts alone; remembered for scalar shapes."""
        rows = shape.num_decodes + shape.num_prefills
        if not isinstance(shape.num_tokens, int):
            return linear_s(self.work, self.costs, shape.num_tokens, rows)
        key = (shape.num_tokens, rows)
        found = self._linear.get(key)
        if found is None:
            found = self._linear[key] = float(linear_s(self.work, self.costs, shape.num_tokens, rows))
        return found

    def _context_token_s(self, a: AttentionWork) -> float:
        return a.num_layers / self.work.pipeline_stages * context_token_s(a, self.costs)

    def _attention_s(self, shape: StepShape) -> Number:
        decode: Number = 0.0
        prefill: Number = 0.0
        for a in self.work.attention:
            context, pairs = capped(shape, a.cap)
            decode = decode + context * self._context_token_s(a)
            prefill = prefill + pairs * (a.num_layers * a.pair_flops / self.costs.attention_flops_per_s)
        mixed = 1.0 + (self.costs.mixed_penalty - 1.0) * (shape.num_prefill_tokens > 0)
        state = shape.num_decodes * self.work.state_bytes / self.costs.kv_bytes_per_s
        return decode * mixed + prefill + state


def context_token_s(a: AttentionWork, costs: KernelCosts) -> float:
    """Seconds that one token of context adds to one decode in one layer: reading it or multiplying it."""
    read = a.kv_bytes_per_token / costs.kv_bytes_per_s
    return float(p_norm(read, a.decode_flops_per_token / costs.flops_per_s, costs.p_norm))


def capped(shape: StepShape, cap: int) -> tuple[Number, Number]:
    """Decode context and prefill pairs when no query sees more than `cap` tokens (0: any), from the means."""
    if not cap:
        return shape.decode_context, shape.prefill_attention
    context = np.minimum(shape.decode_context, shape.num_decodes * cap)
    return context, np.minimum(shape.prefill_attention, shape.num_prefill_tokens * float(cap))


def linear_s(work: StepWork, costs: KernelCosts, num_tokens: Number, rows: Number) -> Number:
    """Seconds of a step's matrix products, element-wise kernels and reductions; `rows` tokens are sampled."""
    m = padded(num_tokens, costs.capture_sizes) / work.pipeline_stages
    dense = gemm_s(costs, work.dense_bytes, work.dense_flops * m) * work.pipeline_stages
    head = gemm_s(costs, work.head_bytes, work.head_flops * rows)
    experts = sum(experts_s(e, costs, m) for e in work.experts) * work.pipeline_stages
    act = m * work.pipeline_stages * work.activation_bytes / costs.activation_bytes_per_s
    reduce = all_reduce_s(work, costs, m * work.pipeline_stages)
    fixed = costs.step_s + costs.layer_s * work.num_layers + costs.sequence_s * rows
    return fixed + dense + head + experts + act + reduce


def experts_s(e: ExpertWork, costs: KernelCosts, num_tokens: Number) -> Number:
    """Seconds of the expert layers: reads the expected number of distinct experts, E * (1 - (1 - k/E)^m)."""
    tokens = num_tokens * e.tokens_factor
    visits = tokens * e.share * e.num_experts
    distinct = e.num_experts * (1.0 - (1.0 - e.share) ** tokens)
    return e.num_layers * gemm_s(costs, distinct * e.expert_bytes, visits * e.expert_flops)


def all_reduce_s(work: StepWork, costs: KernelCosts, num_tokens: Number) -> Number:
    """Seconds of a step's tensor-parallel reductions; a ring moves 2 (n - 1) / n of the bytes on the link."""
    if not work.num_all_reduces:
        return 0.0
    moved = 2.0 * (work.num_ranks - 1) / work.num_ranks * work.all_reduce_bytes * num_tokens
    return work.num_all_reduces * (costs.all_reduce_s + moved / costs.all_reduce_bytes_per_s)


def gemm_s(costs: KernelCosts, num_bytes: Number, flops: Number) -> Number:
    """Seconds of a matrix product: the p-norm of reading its weights and of multiplying."""
    return p_norm(num_bytes / costs.weight_bytes_per_s, flops / costs.flops_per_s, costs.p_norm)


def p_norm(a: Number, b: Number, p: float) -> Number:
    """(a^p + b^p)^(1/p): near the larger of the two, softly above it where they meet.

    >>> p_norm(3.0, 4.0, 2.0)
    5.0
    """
    return (a**p + b**p) ** (1.0 / p)


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


def capture_sizes(max_size: int = 512) -> tuple[int, ...]:
    """The batch sizes that vLLM captures: 1, 2, 4, then every 8 up to 256, every 16 beyond.

    >>> capture_sizes(32)
    (1, 2, 4, 8, 16, 24, 32)
    """
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_size + 1, 16)]
    return tuple(s for s in sizes if s <= max_size)
