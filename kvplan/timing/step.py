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
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kvplan.formulas.graphs import Graphs
from kvplan.ground.units import TICKS_PER_S
from kvplan.timing.costs import (
    AttentionCosts,
    ContextLine,
    GemmCosts,
    HostCosts,
    ReduceCosts,
    Seconds,
    expected_experts,
    larger,
    p_norm,
    padded,
    smaller,
)
from kvplan.timing.work import NO_HEAD, AttentionWork, ExpertWork, Number, Product, StepWork
from kvplan.timing.work import StepShape as StepShape

Ticks = NDArray[np.int64]
NO_KNOT = 1 << 62
"""The context at which a line without a further knot ends: none that a simulation reaches."""


class StepTime(Protocol):
    """What the simulator asks. Integer ticks (picoseconds), so that leaping and stepping agree exactly."""

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step of this shape."""
        ...

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """Return (a, b, limit): `ticks` of a step of decodes alone is exactly `a + b * context` for every context
        from `decode_context` up to, not including, `limit`. `num_tokens` counts drafts too; 0 = one token each."""
        ...


@runtime_checkable
class PooledStepTime(StepTime, Protocol):
    """A step time that knows what a mixture's experts take when data-parallel ranks bring unequal numbers of tokens."""

    def pool_ticks(self, num_tokens: int, tokens_of_ranks: Sequence[int]) -> int:
        """By how much longer a step of `num_tokens` on this rank takes than `ticks` says, which lets each rank bring as
        many as this one."""
        ...


def decode_ticks(time: StepTime, num_decodes: int, num_tokens: int, contexts: Ticks) -> Ticks:
    """Durations of steps of the same decodes, whose summed contexts rise from step to step; each is its `ticks`."""
    found, at = np.empty_like(contexts), 0
    while at < len(contexts):
        a, b, limit = time.decode_line(num_decodes, int(contexts[at]), num_tokens)
        end = int(contexts.searchsorted(limit)) if contexts[-1] >= limit else len(contexts)
        found[at:end] = contexts[at:end] * b + a
        at = end
    return found


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


@dataclass(frozen=True, slots=True)
class DraftedStepTime:
    """Steps that verify drafts, and the passes that drafted them: one after the other, as vLLM runs them."""

    verify: StepTime
    draft: StepTime
    """One pass of the drafter over the decoding sequences."""
    num_drafts: int
    """Passes a step."""
    tokens_each: int = 1
    """Tokens of a sequence that one pass drafts."""
    passes_by_batch: tuple[int, ...] = ()
    """Passes of a step that holds so many requests, by their number; empty: always `num_drafts`."""

    def _passes(self, num_requests: int) -> int:
        by_batch = self.passes_by_batch
        return by_batch[min(num_requests, len(by_batch) - 1)] if by_batch else self.num_drafts

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step; a step of prompts alone drafts nothing."""
        found, num = self.verify.ticks(shape), shape.num_decodes
        if not num:
            return found
        drafting = StepShape(num * self.tokens_each, num, shape.decode_context)
        return found + self._passes(num + shape.num_prefills) * self.draft.ticks(drafting)

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """Of a decode step with its drafting."""
        a, b, limit = self.verify.decode_line(num_decodes, decode_context, num_tokens)
        tokens = num_decodes * self.tokens_each
        more, slope, knot = self.draft.decode_line(num_decodes, decode_context, tokens)
        passes = self._passes(num_decodes)
        return a + passes * more, b + passes * slope, min(limit, knot)

    def pool_ticks(self, num_tokens: int, tokens_of_ranks: Sequence[int]) -> int:
        """Of the step that verifies; drafting passes are counted as if all ranks brought as many."""
        verify = self.verify
        return verify.pool_ticks(num_tokens, tokens_of_ranks) if isinstance(verify, PooledStepTime) else 0


def is_decode(shape: StepShape) -> bool:
    """Whether a step holds decodes alone, with or without drafts: then its duration is on a line."""
    return bool(shape.num_decodes) and not shape.num_prefills and not shape.num_prefill_tokens


@dataclass(frozen=True, slots=True)
class ScaledStepTime:
    """Steps that all take `factor` times as long, and `prompts` times what prompts add to one: an end of what they may
    take."""

    time: StepTime
    factor: float
    prompts: float | None = None
    """None: as `factor`."""

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step."""
        if is_decode(shape):
            a, b, _ = self.decode_line(shape.num_decodes, int(shape.decode_context), shape.num_tokens)
            return a + b * int(shape.decode_context)
        ticks = self.time.ticks(shape)
        if self.prompts is None:
            return round(ticks * self.factor)
        alone = min(ticks, self._decode_ticks(shape))
        return round(alone * self.factor + (ticks - alone) * self.prompts)

    def _decode_ticks(self, shape: StepShape) -> int:
        """Of the step without its prompts; 0 where it has nothing else."""
        if not shape.num_decodes:
            return 0
        tokens = int(shape.num_tokens - shape.num_prefill_tokens)
        a, b, _ = self.time.decode_line(int(shape.num_decodes), int(shape.decode_context), tokens)
        return a + b * int(shape.decode_context)

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """The line, scaled; its pieces meet within a tick's rounding."""
        a, b, limit = self.time.decode_line(num_decodes, decode_context, num_tokens)
        return round(a * self.factor), round(b * self.factor), limit

    def pool_ticks(self, num_tokens: int, tokens_of_ranks: Sequence[int]) -> int:
        """Scaled as a step."""
        time = self.time
        ticks = time.pool_ticks(num_tokens, tokens_of_ranks) if isinstance(time, PooledStepTime) else 0
        return round(ticks * self.factor)


def fewest_passes(time: StepTime) -> StepTime:
    """The same where every step drafts as little as any: no step takes less, however many requests it holds."""
    if isinstance(time, ScaledStepTime):
        return replace(time, time=fewest_passes(time.time))
    if isinstance(time, DraftedStepTime) and time.passes_by_batch:
        return replace(time, num_drafts=min(time.passes_by_batch), passes_by_batch=())
    return time


def without_sampling(time: StepTime) -> StepTime:
    """A model's forward pass alone: neither the output head nor the host's part of a step."""
    if not isinstance(time, ModelStepTime):
        return time
    host = replace(time.costs.host, step_s=0.0, row_s=0.0, many_s=0.0)
    work = replace(time.work, head=NO_HEAD, head_bytes=0.0, head_flops=0.0)
    return ModelStepTime(work, replace(time.costs, host=host, row_s=0.0))


class ProductCosts(Protocol):
    """Matrix products of one format: fitted rates or measured surfaces."""

    def curve(self, products: Sequence[Product], num_bytes: float) -> Seconds:
        """Seconds of a step's products over its tokens."""
        ...


class ExpertCosts(Protocol):
    """Fused experts of one format: fitted rates or measured surfaces."""

    def experts(self, e: ExpertWork) -> Seconds:
        """Seconds of the expert layers over the tokens that reach them."""
        ...


class AttentionTimes(Protocol):
    """Attention at one KV format: fitted rates or measured surfaces."""

    @property
    def bytes_per_s(self) -> float:
        """At which recurrent states are read and written."""
        ...

    @property
    def kernel_s(self) -> float:
        """Of each layer's call, where `line` leaves it out."""
        ...

    @property
    def sequence_s(self) -> float:
        """Per layer, KV head and decoding sequence, where `line` leaves it out."""
        ...

    def line(self, a: AttentionWork, batch: float) -> ContextLine:
        """Seconds of one layer's decodes over their summed context."""
        ...

    def seconds(self, a: AttentionWork, shape: StepShape) -> Number:
        """Seconds of one layer's attention in a step."""
        ...


FREE, NO_HOST = ReduceCosts(), HostCosts()


class MicroBatches(NamedTuple):
    """Long steps in parts: one part computes while another's tokens are exchanged between experts' ranks."""

    num: int = 1
    decodes_from: int = 0
    """Tokens from which on steps of decodes alone are split."""
    others_from: int = 0
    """Tokens from which on other steps are."""
    overlap: float = 1.0
    """Share of what could be hidden that is: of exchanges, all but one part's, as far as there is work to hide them."""

    def split(self, num_tokens: Number, alone: Number) -> Number:
        """How many parts a step is run in."""
        if self.num < 2:
            return 1
        least = np.where(alone, self.decodes_from, self.others_from)
        parts = np.where(np.asarray(num_tokens) >= least, self.num, 1)
        return parts if parts.ndim else int(parts)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """All costs of one model's step on one rank: its formats picked from what a card offers."""

    gemm: ProductCosts
    """Projections, dense MLPs, shared experts."""
    experts: ExpertCosts
    head: ProductCosts
    attention: AttentionTimes
    reduce: Seconds = FREE
    """Of one all-reduce of so many bytes."""
    gather: Seconds = FREE
    """Of passing so many bytes of all data-parallel ranks to each: tokens to experts, and half the way back."""
    host: HostCosts = NO_HOST
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
    decode_sizes: tuple[int, ...] | None = None
    """The same of steps of decodes alone; None: as `capture_sizes`."""
    tiers: Graphs | None = None
    """The graphs themselves where steps verify now more drafts, now fewer: decodes of each width have their own."""
    whole_decodes: int | None = None
    """Tokens up to which steps of decodes alone replay one graph, beyond it pieces; None: all that replay any."""
    largest_graph: int = 0
    """Tokens of the engine's largest CUDA graph; `capture_sizes` are none where steps were timed without padding."""
    micro: MicroBatches = MicroBatches()  # noqa: RUF009 (a tuple)
    """Parts of long steps."""
    shared_reads: float = 0.0
    """Share of KV blocks held by several sequences that is read once, not once for each."""
    host_bytes_per_s: float = math.inf
    """At which kernels read weights that lie in host memory."""
    skew: float = 0.0
    """By which share decode attention takes longer where lengths differ within a batch, as a load's do."""


class _Line(NamedTuple):
    """Decode steps of one batch size and as many drafts, in ticks: at least `floor`, and `a + b * context` from each
    start on."""

    starts: list[int]
    a: list[int]
    b: list[int]
    floor: int


class _Parts(NamedTuple):
    """The sizes that a step's linear part depends on, as functions."""

    dense: Seconds
    head: Seconds
    experts: tuple[tuple[float, Seconds], ...]
    """How many tokens reach the experts per token of this rank, and what they take."""
    host: Seconds | None
    """By how much longer products take whose weights lie in host memory."""


@dataclass(slots=True)
class ModelStepTime:
    """One model's step time on one rank: work over costs. A `StepTime`; lines are cached per batch size and tokens."""

    work: StepWork
    costs: StepCosts
    _lines: dict[tuple[int, int], _Line] = field(default_factory=dict, repr=False)
    _linear: dict[tuple[int, int, int], float] = field(default_factory=dict, repr=False)
    _parts: _Parts | None = field(default=None, repr=False)

    def seconds(self, shape: StepShape) -> Number:
        """Duration in seconds; broadcasts over arrays in `shape`."""
        host, gpu = self._host_s(shape), self._linear_s(shape) + self._attention_s(shape)
        return larger(host, gpu) if self.costs.host.overlaps else host + gpu

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step in picoseconds."""
        if is_decode(shape):
            a, b, _ = self.decode_line(shape.num_decodes, int(shape.decode_context), shape.num_tokens)
            return a + b * int(shape.decode_context)
        return round(float(self.seconds(shape)) * TICKS_PER_S)

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """Return (a, b, limit): a pure decode step takes `a + b * context` from `decode_context` up to `limit`."""
        key = num_decodes, num_tokens or num_decodes
        starts, a, b, floor = self._lines.get(key) or self._line(*key)
        i = bisect_right(starts, decode_context)
        limit = starts[i] if i < len(starts) else NO_KNOT
        base, slope = a[i - 1], b[i - 1]
        if base + slope * decode_context >= floor:
            return base, slope, limit
        return floor, 0, min(limit, -((base - floor) // slope)) if slope else limit

    def pool_ticks(self, num_tokens: int, tokens_of_ranks: Sequence[int]) -> int:
        """Where every rank's step replays a CUDA graph all are padded to the fullest, so nothing is to be added; where
        one is too long for the graphs all run eagerly and the experts see just the tokens that there are.

        Source: `_synchronize_dp_ranks` of vllm/v1/worker/dp_utils.py (0.32).
        """
        if not self.work.gathers or max(tokens_of_ranks) <= self.costs.largest_graph:
            return 0
        parts, stages = self._parts or self._make_parts(), self.work.pipeline_stages
        mine, pooled = padded(num_tokens, self.costs.capture_sizes), sum(tokens_of_ranks)
        more = sum(
            experts(pooled / stages) - experts(mine * factor / stages) for factor, experts in parts.experts
        )
        return round(float(more) * stages * TICKS_PER_S)

    def _line(self, num_decodes: int, num_tokens: int) -> _Line:
        empty = StepShape(num_tokens, num_decodes, 0)
        host, gpu = self._host_s(empty), self._linear_s(empty) + self._state_s(num_decodes)
        kinds = [(a, self.costs.attention.line(a, num_decodes)) for a in self.work.attention]
        lines = [(a.num_layers, line.capped(num_decodes * a.cap) if a.cap else line) for a, line in kinds]
        knots = np.unique(np.concatenate([[0.0, 1.0], *(line.x for _, line in lines)]).round())
        knots = np.append(knots, 2.0 * knots[-1])
        each = [n * line.at(knots) for n, line in lines]
        ticks = sum(each, np.zeros(len(knots))) * (TICKS_PER_S / self.work.pipeline_stages)
        slopes = [max(0, round(s)) for s in (np.diff(ticks) / np.diff(knots)).tolist()]
        starts = [int(x) for x in knots[:-1]]
        overlaps = self.costs.host.overlaps
        a = [round((gpu if overlaps else gpu + host) * TICKS_PER_S + ticks[0])]
        for before, after, start in zip(slopes, slopes[1:], starts[1:], strict=False):
            a.append(a[-1] + (before - after) * start)
        line = self._lines[num_decodes, num_tokens] = _Line(
            starts, a, slopes, round(host * TICKS_PER_S) if overlaps else 0
        )
        return line

    def _host_s(self, shape: StepShape) -> Number:
        host, rows = self.costs.host, shape.num_decodes + shape.num_prefills
        few = host.step_s + host.row_s * rows
        if not host.many_s:
            return few
        is_many = shape.num_decodes > max(self._sizes(decodes_alone=True), default=0)
        return larger(few, host.many_s * rows * is_many)

    def _linear_s(self, shape: StepShape) -> Number:
        """All that does not depend on contexts; remembered for scalar shapes."""
        rows = shape.num_tokens - shape.num_prefill_tokens + shape.num_prefills
        if not isinstance(shape.num_tokens, int):
            return self._linear_at(shape.num_tokens, rows, shape.num_decodes)
        key = (shape.num_tokens, rows, shape.num_decodes)
        found = self._linear.get(key)
        if found is None:
            found = self._linear[key] = float(self._linear_at(*key))
        return found

    def _linear_at(self, num_tokens: Number, rows: Number, num_decodes: Number) -> Number:
        """Seconds of a step without reading contexts: products, element-wise kernels, reductions, fixed parts.

        `rows` are sampled: all tokens where the step holds decodes alone. Outside CUDA graphs, and where they are in
        pieces, launches and the GPU's work overlap softly (p-norm 3).
        """
        work, costs = self.work, self.costs
        parts = self._parts or self._make_parts()
        stages = work.pipeline_stages
        alone = rows == num_tokens
        tokens, launches = self._replayed(num_tokens, alone, num_decodes)
        split = costs.micro.split(num_tokens, alone)
        m = tokens / stages
        part = m / split
        products = parts.dense(part) + sum(experts(part * factor) for factor, experts in parts.experts)
        if parts.host is not None:
            products = products + parts.host(part)
        products *= split
        element = tokens * work.activation_bytes / costs.activation_bytes_per_s + costs.row_s * rows
        sequences = work.num_layer_heads * costs.attention.sequence_s * num_decodes
        between = (
            work.num_all_reduces * costs.reduce(tokens * work.all_reduce_bytes)
            if work.num_all_reduces
            else 0.0
        )
        if work.gathers:
            moved = part * work.gathers.num_ranks * work.gathers.token_bytes
            exchange = 2.0 * stages * work.gathers.num_layers * split * costs.gather(moved)
            hidden = smaller(exchange * (split - 1) / split, products * stages)
            between += exchange - costs.micro.overlap * hidden
        if work.exchange:
            between += work.exchange.num_layers * costs.reduce(rows * work.exchange.token_bytes)
        total = self._fixed_s() + products * stages + parts.head(rows) + element + sequences + between
        return (
            total if not isinstance(launches, np.ndarray) and not launches else p_norm(total, launches, 3.0)
        )

    def _sizes(self, *, decodes_alone: bool) -> tuple[int, ...]:
        own = self.costs.decode_sizes
        return own if decodes_alone and own is not None else self.costs.capture_sizes

    def _replayed(self, num_tokens: Number, alone: Number, num_decodes: Number) -> tuple[Number, Number]:
        """Tokens after padding to a graph, and CPU seconds of launching it or the step's kernels."""
        tiers = self.costs.tiers
        if tiers is None or not alone or not (isinstance(num_tokens, int) and isinstance(num_decodes, int)):
            return self._padded(num_tokens, alone), self._launch_s(num_tokens, alone)
        width, rest = divmod(num_tokens, num_decodes or 1)
        if width == 1 and width not in tiers.widths:  # no step of the engine's, but less than any
            return num_tokens, 0.0
        size, kind = tiers.decode_graph(num_tokens, 0 if rest else width)
        host = self.costs.host
        each = {"": host.launch_s, "piecewise": host.piecewise_s, "full": 0.0}[kind]
        return size or num_tokens, self.work.num_layers * each

    def _padded(self, num_tokens: Number, alone: Number) -> Number:
        """Tokens after padding to a graph; `alone`: whether the step holds decodes alone."""
        if not isinstance(alone, np.ndarray):
            return padded(num_tokens, self._sizes(decodes_alone=bool(alone)))
        either = (padded(num_tokens, self._sizes(decodes_alone=one)) for one in (True, False))
        return np.where(alone, *either)

    def _launch_s(self, num_tokens: Number, alone: Number) -> Number:
        """CPU seconds of launching a step's kernels or pieces, which the GPU follows; 0 in one graph."""
        if isinstance(alone, np.ndarray) or isinstance(num_tokens, np.ndarray):
            pairs = np.broadcast_arrays(num_tokens, alone)
            each = [self._launch_s(int(n), bool(a)) for n, a in zip(*(x.ravel() for x in pairs), strict=True)]
            return np.reshape(np.asarray(each, dtype=float), pairs[0].shape)
        costs, sizes = self.costs, self._sizes(decodes_alone=bool(alone))
        if num_tokens > (sizes[-1] if sizes else 0):
            return self.work.num_layers * costs.host.launch_s
        pieces = alone and costs.whole_decodes is not None and num_tokens > costs.whole_decodes
        return self.work.num_layers * costs.host.piecewise_s if pieces else 0.0

    def _fixed_s(self) -> float:
        """Seconds of launches and tails that every step pays, whatever it holds."""
        work, costs = self.work, self.costs
        kernels_s = work.num_attention_layers * costs.attention.kernel_s
        return costs.step_s + costs.host.gap_s + costs.layer_s * work.num_layers + kernels_s

    def _make_parts(self) -> _Parts:
        work, costs = self.work, self.costs
        experts = tuple((e.tokens_factor, costs.experts.experts(e)) for e in work.experts)
        head = costs.head.curve((work.head,), work.head_bytes)
        dense = costs.gemm.curve(work.products, work.dense_bytes)
        self._parts = _Parts(dense, head, experts, self._host_reads())
        return self._parts

    def _host_reads(self) -> Seconds | None:
        """Each weight is read once a step, over the link instead of from the card; of the experts those visited."""
        work, host = self.work, self.work.host
        if host is None:
            return None
        slower = max(0.0, 1 / self.costs.host_bytes_per_s - 1 / self.costs.attention.bytes_per_s)
        dense_s, experts_s = host.dense_bytes * slower, host.expert_bytes * slower
        if not work.experts or not experts_s:
            return lambda tokens: dense_s + experts_s
        e = work.experts[0]
        return lambda tokens: (
            dense_s
            + experts_s / e.num_experts * expected_experts(e.num_experts, e.share, tokens * e.tokens_factor)
        )

    def _state_s(self, num_decodes: Number) -> Number:
        if not self.work.state_bytes:
            return 0.0
        return num_decodes * (self.work.state_bytes / self.costs.attention.bytes_per_s)

    def _attention_s(self, shape: StepShape) -> Number:
        layers = sum(a.num_layers * self.costs.attention.seconds(a, shape) for a in self.work.attention)
        return self._state_s(shape.num_decodes) + layers / self.work.pipeline_stages


@dataclass(frozen=True, slots=True)
class TrimmedStepTime:
    """Steps whose last layers run on the end of each prompt's chunk alone, since nobody reads what they keep before it.

    Of long steps, as vLLM 0.32 has it (`models/deepseek_v41/decoder_replay_layers.py`):

        t = t(all layers, all tokens) - t(last layers, all tokens) + t(last layers, at most `window` of each chunk)
    """

    time: ModelStepTime
    last: ModelStepTime
    """Of the last layers by themselves, without what a step costs whatever it holds."""
    window: int
    whole_up_to: int
    """Tokens of a step up to which all layers run on all of them."""

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step; launching its kernels takes what it took."""
        ticks, costs = self.time.ticks(shape), self.time.costs
        kept = min(shape.num_prefill_tokens, shape.num_prefills * self.window)
        if kept == shape.num_prefill_tokens or shape.num_tokens <= self.whole_up_to:
            return ticks
        trimmed = shape._replace(
            num_tokens=shape.num_tokens - shape.num_prefill_tokens + kept,
            num_prefill_tokens=kept,
            prefill_attention=shape.prefill_attention * kept / shape.num_prefill_tokens,
        )
        launches = round(self.time.work.num_layers * costs.host.launch_s * TICKS_PER_S)
        return max(ticks - self.last.ticks(shape) + self.last.ticks(trimmed), min(ticks, launches))

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """Of a decode step, which all layers run whole."""
        return self.time.decode_line(num_decodes, decode_context, num_tokens)

    def pool_ticks(self, num_tokens: int, tokens_of_ranks: Sequence[int]) -> int:
        """As if the last layers ran on all tokens of all ranks."""
        return self.time.pool_ticks(num_tokens, tokens_of_ranks)
