"""How long one engine step takes: `StepShape` in, time out. Pure; knows no engine, no clock, no memory.

    t = max(host, gpu)   (asynchronous)   or   host + gpu   (synchronous)
    gpu = fixed(layers, rows, sequences) + linear(m) + all_reduce(m) + attention(contexts)

Per attention kind the context is capped (window, sparse top-k). A step carries only sums, so capped
sums come from the mean: `min(context, batch * cap)`, exact for equal lengths and never too small
otherwise. That keeps a pure decode step piecewise linear in its summed context, with known knots.

A roofline or a fitted profile fills the same `StepCosts` and answers the same questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from kvplan.timing.costs import (
    AttentionCosts,
    GemmCosts,
    Number,
    ReduceCosts,
    StepCosts,
    context_token_s,
    expected_experts,
    gemm_s,
    larger,
    mixed_token_s,
    p_norm,
    padded,
    reduce_s,
    smaller,
)
from kvplan.timing.work import AttentionWork, ExpertWork, StepWork
from kvplan.units import TICKS_PER_S

NO_KNOT = 1 << 62
"""The context at which a line without a further knot ends: none that a simulation reaches."""


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


def roofline(
    work: StepWork, memory_bytes_per_s: float, flops_per_s: float, link_bytes_per_s: float = math.inf
) -> ModelStepTime:
    """Step time from data-sheet rates alone: no overheads, no inefficiency; a floor, not a forecast.

    A ring all-reduce moves 2 (n - 1) / n of a message over each rank's link.
    """
    gemm = GemmCosts(memory_bytes_per_s, flops_per_s)
    ring = 2.0 * (work.num_ranks - 1) / work.num_ranks
    reduce = ReduceCosts(bytes_per_s=link_bytes_per_s / ring if ring else math.inf)
    attention = AttentionCosts(memory_bytes_per_s, flops_per_s)
    return ModelStepTime(work, StepCosts(gemm, gemm, gemm, attention, reduce))


class _Line(NamedTuple):
    """A batch size's pure decode step in ticks: max(floor, base + sum of slope * min(context, knot))."""

    base: int
    slopes: tuple[tuple[int, int], ...]
    floor: int


@dataclass(slots=True)
class ModelStepTime:
    """One model's step time on one rank: work over costs. A `StepTime`; lines are cached per batch size."""

    work: StepWork
    costs: StepCosts
    _lines: dict[int, _Line] = field(default_factory=dict, repr=False)
    _linear: dict[tuple[int, int, int], float] = field(default_factory=dict, repr=False)

    def seconds(self, shape: StepShape) -> Number:
        """Duration in seconds; broadcasts over arrays in `shape`."""
        host, gpu = self._host_s(shape), self._linear_s(shape) + self._attention_s(shape)
        return larger(host, gpu) if self.costs.host.overlaps else host + gpu

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step in picoseconds."""
        if shape.num_tokens == shape.num_decodes and not shape.num_prefill_tokens:
            base, slopes, floor = self._line(shape.num_decodes)
            context = int(shape.decode_context)
            return max(floor, base + sum(slope * min(context, knot) for slope, knot in slopes))
        return round(float(self.seconds(shape)) * TICKS_PER_S)

    def decode_line(self, num_decodes: int, decode_context: int) -> tuple[int, int, int]:
        """Return (a, b, limit): a pure decode step takes `a + b * context` from `decode_context` up to `limit`."""
        a, slopes, floor = self._lines.get(num_decodes) or self._line(num_decodes)
        b, limit = 0, NO_KNOT
        for slope, knot in slopes:
            if decode_context >= knot:
                a += slope * knot
            else:
                b += slope
                if knot < limit:
                    limit = knot
        if a + b * decode_context >= floor:
            return a, b, limit
        return floor, 0, min(limit, -((a - floor) // b)) if b else limit

    def _line(self, num_decodes: int) -> _Line:
        line = self._lines.get(num_decodes)
        if line is None:
            line = self._lines[num_decodes] = self._make_line(num_decodes)
        return line

    def _make_line(self, num_decodes: int) -> _Line:
        empty = StepShape(num_decodes, num_decodes, 0)
        host, gpu = self._host_s(empty), self._linear_s(empty) + self._attention_s(empty)
        slopes = tuple(
            (max(1, round(self._context_token_s(a) * TICKS_PER_S)), num_decodes * a.cap if a.cap else NO_KNOT)
            for a in self.work.attention
        )
        if self.costs.host.overlaps:
            return _Line(round(gpu * TICKS_PER_S), slopes, round(host * TICKS_PER_S))
        return _Line(round((gpu + host) * TICKS_PER_S), slopes, 0)

    def _host_s(self, shape: StepShape) -> Number:
        return self.costs.host.step_s + self.costs.host.row_s * (shape.num_decodes + shape.num_prefills)

    def _linear_s(self, shape: StepShape) -> Number:
        """All that does not depend on contexts; remembered for scalar shapes."""
        rows = shape.num_tokens - shape.num_prefill_tokens + shape.num_prefills
        if not isinstance(shape.num_tokens, int):
            return linear_s(self.work, self.costs, shape.num_tokens, rows, shape.num_decodes)
        key = (shape.num_tokens, rows, shape.num_decodes)
        found = self._linear.get(key)
        if found is None:
            found = self._linear[key] = float(linear_s(self.work, self.costs, *key))
        return found

    def _context_token_s(self, a: AttentionWork) -> float:
        per_layer = context_token_s(self.costs.attention, a.kv_bytes_per_token, a.decode_flops_per_token)
        return float(a.num_layers / self.work.pipeline_stages * per_layer)

    def _attention_s(self, shape: StepShape) -> Number:
        total = shape.num_decodes * self.work.state_bytes / self.costs.attention.bytes_per_s
        for a in self.work.attention:
            total = (
                total + a.num_layers * attention_s(self.costs.attention, a, shape) / self.work.pipeline_stages
            )
        return total


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


def capped(shape: StepShape, cap: int) -> tuple[Number, Number]:
    """Decode context and prefill pairs when no query sees more than `cap` tokens (0: any), from the means."""
    if not cap:
        return shape.decode_context, shape.prefill_attention
    context = smaller(shape.decode_context, shape.num_decodes * cap)
    return context, smaller(shape.prefill_attention, shape.num_prefill_tokens * float(cap))


def linear_s(
    work: StepWork, costs: StepCosts, num_tokens: Number, rows: Number, num_decodes: Number
) -> Number:
    """Seconds of a step without reading contexts: products, element-wise kernels, reductions, fixed parts.

    `rows` are sampled. Outside CUDA graphs launches and the GPU's work overlap softly (p-norm 3).
    """
    stages = work.pipeline_stages
    tokens = padded(num_tokens, costs.capture_sizes)
    m = tokens / stages
    dense = gemm_s(costs.gemm, work.dense_bytes, work.dense_flops * m) * stages
    head = gemm_s(costs.head, work.head_bytes, work.head_flops * rows) + costs.head.kernel_s
    experts = sum(experts_s(e, costs.experts, m) for e in work.experts) * stages
    element = tokens * work.activation_bytes / costs.activation_bytes_per_s + costs.row_s * rows
    message_s = reduce_s(costs.reduce, tokens * work.all_reduce_bytes)
    sequences = work.num_layer_heads * costs.attention.sequence_s * num_decodes
    fixed = fixed_s(work, costs) + work.num_all_reduces * message_s
    total = fixed + dense + head + experts + element + sequences
    if not costs.host.launch_s:
        return total
    eager = p_norm(total, work.num_layers * costs.host.launch_s, 3.0)
    largest = costs.capture_sizes[-1] if costs.capture_sizes else 0
    if isinstance(num_tokens, np.ndarray):
        return np.where(num_tokens > largest, eager, total)
    return eager if num_tokens > largest else total


def fixed_s(work: StepWork, costs: StepCosts) -> float:
    """Seconds of launches and tails that every step pays, whatever it holds."""
    kernels = work.num_gemms * costs.gemm.kernel_s + work.num_attention_layers * costs.attention.kernel_s
    return costs.step_s + costs.host.gap_s + costs.layer_s * work.num_layers + kernels


def experts_s(e: ExpertWork, costs: GemmCosts, num_tokens: Number) -> Number:
    """Seconds of the expert layers: the expected distinct experts are read, every visit is multiplied."""
    tokens = num_tokens * e.tokens_factor
    read = expected_experts(e.num_experts, e.share, tokens) * e.expert_bytes
    visits = tokens * e.share * e.num_experts
    moved_s = visits * e.visit_bytes / costs.visit_bytes_per_s
    return e.num_layers * (gemm_s(costs, read, visits * e.expert_flops) + moved_s + costs.kernel_s)
