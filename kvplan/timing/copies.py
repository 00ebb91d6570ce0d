"""Steps whose last layers of every group are copied to the card before they run: vLLM's prefetching of weights.

Copies go one after another on a stream of their own. That of the layer `ahead` places on begins once a layer has run; a
layer waits for its own; a step ends when its copies have, those for the next step's first layers too.
Source: vLLM 0.32 `model_executor/offloader/prefetch.py` (start_prefetch, wait_prefetch, join_after_forward).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvplan.timing.step import PooledStepTime, StepTime, is_decode
from kvplan.timing.work import StepShape


class TickLine(NamedTuple):
    """`at + slope * x`."""

    at: float
    slope: float = 0.0

    def of(self, x: float) -> float:
        """Its value."""
        return self.at + self.slope * x

    def __add__(self, other: TickLine) -> TickLine:  # type: ignore[override]
        return TickLine(self.at + other.at, self.slope + other.slope)


@dataclass(frozen=True, slots=True)
class Prefetches:
    """One pass through the layers of a pipeline stage."""

    is_copied: tuple[bool, ...]
    """Of each layer in turn."""
    copy_ticks: float
    """Of one layer's copy."""
    ahead: int
    """Layers with copies between the one that ran and the one whose copy then begins."""

    def pass_line(self, layer_ticks: float) -> tuple[TickLine, float]:
        """(ticks of a pass as a line over one layer's ticks, up to which of these it holds)."""
        limit, copies = float("inf"), sum(self.is_copied)

        def later(a: TickLine, b: TickLine) -> TickLine:
            nonlocal limit
            flat, steep = sorted((a, b), key=lambda line: (line.slope, line.at))
            if steep.slope == flat.slope:
                return steep
            meet = (flat.at - steep.at) / (steep.slope - flat.slope)
            if meet <= layer_ticks * (1 + 1e-9):
                return steep
            limit = min(limit, meet)
            return flat

        run, copied, one = TickLine(0.0), TickLine(0.0), TickLine(0.0, 1.0)
        ready = [TickLine(0.0)] * copies
        place = 0
        for is_copied in self.is_copied:
            if is_copied:
                run = later(run, ready[place])
            run = run + one
            if is_copied:
                copied = later(copied, run) + TickLine(self.copy_ticks)
                ready[self.next_copied(place)] = copied
                place += 1
        return later(run, copied), limit

    def next_copied(self, place: int) -> int:
        """Whose copy begins after that of so many; buffers keep their layers (`_get_next_prefetch_index`).

        >>> Prefetches((True,) * 5, 1.0, 2).next_copied(3)
        1
        """
        num = sum(self.is_copied)
        then = (place + self.ahead) % num
        return place % self.ahead if self.ahead < num and then % self.ahead != place % self.ahead else then


@dataclass(frozen=True, slots=True)
class CopiedStepTime:
    """A step that takes `time` with all weights on the card, spread evenly over its layers but for what follows them.

    As a function of that time its own is convex: `at[i] + slope[i] * ticks` from `starts[i]` on.
    """

    time: StepTime
    starts: tuple[int, ...]
    at: tuple[float, ...]
    slope: tuple[float, ...]

    @classmethod
    def of(cls, time: StepTime, copies: Prefetches, after_ticks: float, stages: int = 1) -> CopiedStepTime:
        """With `after_ticks` of every step after its layers; the ranks of other stages copy meanwhile."""
        layers = stages * len(copies.is_copied)
        starts, at, slope, layer_ticks = [0], list[float](), list[float](), 0.0
        while True:
            line, limit = copies.pass_line(layer_ticks)
            at.append(stages * line.at + after_ticks - stages * line.slope * after_ticks / layers)
            slope.append(stages * line.slope / layers)
            if limit == float("inf"):
                return cls(time, tuple(starts), tuple(at), tuple(slope))
            layer_ticks = limit
            starts.append(round(limit * layers + after_ticks))

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step."""
        if is_decode(shape):
            a, b, _ = self.decode_line(shape.num_decodes, int(shape.decode_context), shape.num_tokens)
            return a + b * int(shape.decode_context)
        whole = self.time.ticks(shape)
        i = bisect_right(self.starts, whole) - 1
        return round(self.at[i] + self.slope[i] * whole)

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """The line of the step without copies, through the piece that it lies on."""
        a, b, limit = self.time.decode_line(num_decodes, decode_context, num_tokens)
        i = bisect_right(self.starts, a + b * decode_context) - 1
        if b and i + 1 < len(self.starts):
            limit = min(limit, -((a - self.starts[i + 1]) // b))
        return round(self.at[i] + self.slope[i] * a), round(self.slope[i] * b), limit

    def pool_ticks(self, num_tokens: int, tokens_of_ranks: Sequence[int]) -> int:
        """As with all weights on the card."""
        time = self.time
        return time.pool_ticks(num_tokens, tokens_of_ranks) if isinstance(time, PooledStepTime) else 0
