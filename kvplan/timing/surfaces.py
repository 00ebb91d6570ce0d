"""Kernel times as measured: surfaces over the shapes and sizes of products, experts, attention and reductions.

A surface keeps ln(measured / sheet) at the points of a kernel table, where `sheet` is what the card's data sheet would
allow plus a few microseconds. The ratio is smooth where the time is not, so it is interpolated; outside the table it is
held, and the time grows with the work. A model's products become one curve over the tokens of a step, its attention one
piecewise-linear line over the summed context. Knows no model and no file.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np

from kvplan.timing.costs import Array, ContextLine, capped, expected_experts
from kvplan.timing.work import AttentionWork, ExpertWork, Number, Product, StepShape

Shape = tuple[int, ...]

START_S = 2e-6
"""Fixed part of the sheet time: starting a kernel."""
STREAMED = 0.8
"""Of the data sheet's rate, by kernels that read and write once (assumed, 0.7 to 0.9)."""
FAR = 64.0
"""How much further than the last measured context a line is drawn."""


class Sheet(NamedTuple):
    """What a card can do at most in one format."""

    bytes_per_s: float
    flops_per_s: float
    element_bytes: float
    """Of a weight or KV element."""

    def seconds(self, num_bytes: Number, flops: Number) -> Array:
        """Reading and multiplying, one beside the other, after `START_S`."""
        return np.asarray(START_S + np.hypot(num_bytes / self.bytes_per_s, flops / self.flops_per_s))


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds over one number: linear between points, held below the first, proportional beyond the last.

    >>> curve = Curve((1.0, 3.0), (2.0, 4.0))
    >>> curve(0), curve(2), curve(6)
    (2.0, 3.0, 8.0)
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, at: Number) -> Number:
        """Seconds at a number, or at each of an array."""
        x, y = self.x, self.y
        if isinstance(at, np.ndarray):
            return np.interp(at, x, y) * np.maximum(1.0, at / x[-1])
        if at <= x[0]:
            return y[0]
        if at >= x[-1]:
            return y[-1] * at / x[-1]
        i = bisect_right(x, at)
        return y[i - 1] + (y[i] - y[i - 1]) * (at - x[i - 1]) / (x[i] - x[i - 1])


@dataclass(frozen=True, slots=True)
class GemmSurface:
    """Matrix products (tokens x in) x (in x out) of one weight format."""

    sheet: Sheet
    tokens: Array
    outs: Array
    ins: Array
    ratio: Array
    """ln(measured / sheet) by tokens, out and in features."""
    scale: float = 1.0

    def curve(self, products: Sequence[Product], num_bytes: float = 0.0) -> Curve:
        """Seconds of all the products of a step over its tokens; their bytes follow from the format."""
        total = sum((p.num * self.column(p.out_features, p.in_features) for p in products), np.zeros(1))
        seconds = self.scale * np.broadcast_to(total, self.tokens.shape)
        return Curve(tuple(self.tokens.tolist()), tuple(seconds.tolist()))

    def column(self, out_features: float, in_features: float) -> Array:
        """Seconds of one product at every measured number of tokens."""
        (n, a), (k, b) = _between(self.outs, out_features), _between(self.ins, in_features)
        corner = self.ratio[:, n : n + 2, k : k + 2]
        ratio = np.tensordot(corner, np.outer([1 - a, a], [1 - b, b]), 2)
        seconds: Array = np.exp(ratio) * product_sheet_s(self.sheet, self.tokens, out_features, in_features)
        return seconds

    def points(self, num_tokens: float, out_features: float, in_features: float) -> list[tuple[float, ...]]:
        """The table's points that the answer for one product is made of, (tokens, out, in) each."""
        axes = ((self.tokens, num_tokens), (self.outs, out_features), (self.ins, in_features))
        near = [axis[i : i + 2][: 1 + (w > 0)] if w < 1 else axis[i + 1 : i + 2]
                for axis, (i, w) in ((axis, _between(axis, at)) for axis, at in axes)]  # fmt: skip
        return [(float(m), float(n), float(k)) for m in near[0] for n in near[1] for k in near[2]]

    def as_format(self, sheet: Sheet) -> Self:
        """The same shares of another format's data sheet."""
        return replace(self, sheet=sheet)


def product_sheet_s(sheet: Sheet, tokens: Number, outs: Number, ins: Number) -> Array:
    """Sheet seconds of a product: weights, activations in and out; broadcasts."""
    moved = outs * ins * sheet.element_bytes + tokens * (ins * min(sheet.element_bytes, 2.0) + 2.0 * outs)
    return sheet.seconds(moved, 2.0 * tokens * outs * ins)


@dataclass(frozen=True, slots=True)
class ExpertSurface:
    """Fused experts of one weight format: a curve over tokens for each measured shape."""

    sheet: Sheet
    shapes: Array
    """(hidden, intermediate on a rank, experts per token, experts, ranks they are spread over), a row each."""
    tokens: Array
    """Of the whole server, from 1; then from `FULL` on."""
    ratio: Array
    """ln(measured / sheet) by shape and tokens."""
    scale: float = 1.0

    def experts(self, e: ExpertWork) -> Curve:
        """Seconds of all the expert layers over the tokens that reach them.

        From one token to `FULL` the time grows with the share of experts hit, E (1 - (1 - k/E)^m): the tables' own
        times there are of one draw of the router.
        """
        seconds = np.exp(self._near(e)) * experts_sheet_s(self.sheet, e, self.tokens)
        few = np.unique(np.geomspace(1, self.tokens[1], 15).round())
        hit = expected_experts(1.0, e.share, few)
        begun = seconds[0] + (seconds[1] - seconds[0]) * (hit - hit[0]) / (hit[-1] - hit[0])
        tokens = np.concatenate([few, self.tokens[2:]])
        seconds = self.scale * e.num_layers * np.concatenate([begun, seconds[2:]])
        return Curve(tuple(tokens.tolist()), tuple(seconds.tolist()))

    def _near(self, e: ExpertWork) -> Array:
        """The ratio of the measured shape, or of the three most alike, weighed by likeness."""
        asked = _features(np.array([[e.hidden_size, e.intermediate_size, e.experts_per_token,
                                     e.num_experts * e.num_ranks, e.num_ranks]], float))  # fmt: skip
        apart = np.abs(_features(self.shapes) - asked) @ FEATURE_WEIGHTS
        best = np.argsort(apart, kind="stable")[: 1 if apart.min() < SAME else 3]
        weights = (apart[best] + LIKENESS) ** -2.0
        near: Array = weights @ self.ratio[best] / weights.sum()
        return near

    def as_format(self, sheet: Sheet) -> Self:
        """The same shares of another format's data sheet."""
        return replace(self, sheet=sheet)


FULL = 128
"""Tokens from which the tables' own times of experts are taken: nearly all experts are hit."""
SAME, LIKENESS = 1e-3, 0.05
FEATURE_WEIGHTS = np.array([1.0, 1.0, 1.0, 1.0, 0.25])


def _features(shapes: Array) -> Array:
    """What makes expert shapes alike: width, cut width, experts held, share visited, ranks; as logarithms."""
    hidden, cut, topk, experts, ranks = shapes.T
    found: Array = np.log(np.stack([hidden, cut, experts / ranks, topk / experts, ranks], axis=1))
    return found


def experts_sheet_s(sheet: Sheet, e: ExpertWork, tokens: Number) -> Array:
    """Sheet seconds of one expert layer: the experts hit are read, every visit is multiplied and moved."""
    params = e.expert_flops / 2.0
    visits = tokens * e.share * e.num_experts
    read = expected_experts(e.num_experts, e.share, tokens) * params * sheet.element_bytes
    return sheet.seconds(read + visits * e.visit_bytes, visits * e.expert_flops)


@dataclass(frozen=True, slots=True)
class AttentionSurface:
    """One attention implementation at one KV format: decodes over batch and context, prompts over length."""

    sheet: Sheet
    shapes: tuple[Shape, ...]
    """(query heads, KV heads, head size) on a rank, as measured."""
    batches: Array
    contexts: Array
    decode: Array
    """ln(measured / sheet) by shape, batch and context."""
    lengths: Array
    prompt_shapes: tuple[Shape, ...]
    prompt: Array
    """ln(measured / sheet) by shape and length of one prompt."""
    along_heads: bool = True
    """A shape that was not measured lies between others of as many KV heads; else it is one of fewer KV heads with
    more sequences. Whichever tells left-out shapes better."""
    scale: float = 1.0
    _curves: dict[tuple[int, float], tuple[Curve, Curve]] = field(
        default_factory=dict, init=False, repr=False
    )
    _decodes: dict[Shape, tuple[Array, float]] = field(default_factory=dict, init=False, repr=False)
    """Shape -> its ratios and how many sequences of theirs one is: the same at every batch."""
    _works: list[AttentionWork] = field(default_factory=list, init=False, repr=False)
    """Kept, so that no other work gets an id in `_curves`."""

    @property
    def kernel_s(self) -> float:
        """Inside `line` and `seconds`."""
        return 0.0

    @property
    def sequence_s(self) -> float:
        """Inside `line` and `seconds`."""
        return 0.0

    @property
    def bytes_per_s(self) -> float:
        """Of recurrent states, which no table holds: read and written as other streaming kernels do."""
        return STREAMED * self.sheet.bytes_per_s / self.scale

    def seconds(self, a: AttentionWork, shape: StepShape) -> Number:
        """Seconds of one layer's attention in a step: decodes in one kernel, prompts in another."""
        if isinstance(shape.num_decodes, np.ndarray):
            rows = zip(*np.broadcast_arrays(*shape), strict=True)
            return np.array([self.seconds(a, StepShape(*(x.item() for x in row))) for row in rows])
        context, pairs = capped(shape, a.cap)
        batch, prompts = shape.num_decodes, shape.num_prefills
        decode, prompt = self._curves.get((id(a), batch)) or self._curves_of(a, batch)
        total = decode(context) if batch else 0.0
        if prompts and shape.num_prefill_tokens:
            start_s = prompt.y[0]
            total += start_s + prompts * (prompt(math.sqrt(2.0 * pairs / prompts)) - start_s)
        return total

    def _curves_of(self, a: AttentionWork, batch: int) -> tuple[Curve, Curve]:
        """Decodes over the summed context, one prompt over its length; remembered while the work lives."""
        line = self.line(a, batch or 1)
        decode = Curve(tuple(line.x.tolist()), tuple(line.y.tolist()))
        found = self._curves[id(a), batch] = (decode, self.prompt_curve(a))
        self._works.append(a)
        return found

    def line(self, a: AttentionWork, batch: float) -> ContextLine:
        """Seconds of one layer's decode of `batch` sequences over their summed context."""
        ratio, times = self._decode_of(a)
        i, w = _between(self.batches, batch * times)
        near = (1 - w) * ratio[i] + w * ratio[min(i + 1, len(ratio) - 1)]
        x = batch * np.append(self.contexts, FAR * self.contexts[-1])
        seconds = np.exp(np.append(near, near[-1])) * self.sheet.seconds(a.kv_bytes_per_token * x, 0.0)
        return ContextLine(x, self.scale * np.maximum.accumulate(seconds))

    def prompt_curve(self, a: AttentionWork) -> Curve:
        """Seconds of one layer's attention of one prompt over its length, nothing cached before it."""
        chosen, _ = self._shape_of(a, self.prompt_shapes)
        ratio = sum(w * self.prompt[i] for i, w in chosen)
        seconds = self.scale * np.exp(ratio) * self.sheet.seconds(0.0, 0.5 * self.lengths**2 * a.pair_flops)
        return Curve(tuple(self.lengths.tolist()), tuple(np.maximum.accumulate(seconds).tolist()))

    def _decode_of(self, a: AttentionWork) -> tuple[Array, float]:
        shape = a.num_heads, a.num_kv_heads, a.head_dim
        found = self._decodes.get(shape)
        if found is None:
            chosen, times = self._shape_of(a, self.shapes)
            ratio: Array = sum((w * self.decode[i] for i, w in chosen), np.zeros(1))
            found = self._decodes[shape] = ratio, times
        return found

    def _shape_of(self, a: AttentionWork, shapes: tuple[Shape, ...]) -> tuple[list[tuple[int, float]], float]:
        """Measured shapes with weights, and how many sequences of theirs one of ours is."""
        index = {shape: i for i, shape in enumerate(shapes)}
        if (a.num_heads, a.num_kv_heads, a.head_dim) in index:
            return [(index[a.num_heads, a.num_kv_heads, a.head_dim], 1.0)], 1.0
        size = min({s[2] for s in shapes}, key=lambda d: (abs(np.log(d / a.head_dim)), -d))
        group = a.num_heads / a.num_kv_heads
        counts = sorted({s[1] for s in shapes if s[2] == size})
        if not self.along_heads:  # fewest KV heads whose group was measured
            counts = [n for n in counts if (round(group * n), n, size) in index] or counts
        kv = max([n for n in counts if n <= a.num_kv_heads], default=counts[0])
        heads = sorted(s[0] for s in shapes if s[1:] == (kv, size))
        i, w = _between(np.array(heads, float), group * kv)
        chosen = [(index[heads[i], kv, size], 1 - w)]
        if w > 0:
            chosen.append((index[heads[i + 1], kv, size], w))
        return chosen, a.num_kv_heads / kv


def _between(axis: Array, at: float) -> tuple[int, float]:
    """The interval of an axis that holds a value and the place in it, logarithmic, 0 to 1; ends are held."""
    if len(axis) < 2:
        return 0, 0.0
    i = min(max(bisect_right(axis, at) - 1, 0), len(axis) - 2)
    place = np.log(at / axis[i]) / np.log(axis[i + 1] / axis[i]) if at > 0 else 0.0
    return i, float(min(max(place, 0.0), 1.0))
