"""Watts of a card from what it moves and multiplies. Pure; knows no card.

    W = idle + weights x wb + kv x kb + compute x sqrt(f), at most the board's power

`wb`, `kb` are bytes per second over the data sheet's bandwidth, `f` FLOP per second over its bf16 peak. Of the forms
held to whole servers' measurements this one fits best; the square root explains more than a line.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from kvplan.timing.costs import expected_experts
from kvplan.timing.work import StepWork


class PowerCosts(NamedTuple):
    """Watts of one card; see the module's formula."""

    tdp: float
    idle: float
    weights: float
    kv: float
    compute: float

    def watts(self, weights: float, kv: float, compute: float) -> float:
        """At these shares of what the data sheet allows.

        >>> PowerCosts(700, 400, 100, 200, 400).watts(0.5, 0.25, 0.01), PowerCosts(700, 400, 0, 0, 400).watts(0, 0, 1)
        (540.0, 700)
        """
        return min(
            self.tdp, self.idle + self.weights * weights + self.kv * kv + self.compute * math.sqrt(compute)
        )


class Done(NamedTuple):
    """What one rank did in a stretch of time; sums over its steps."""

    steps: int
    tokens: int
    """Computed, prompts' and decodes'."""
    rows: int
    """Sampled."""
    decodes: int
    """Decoding sequences, summed over steps."""
    context: float
    """Tokens of KV that decodes read."""


def moved(work: StepWork, done: Done) -> tuple[float, float, float]:
    """(weight bytes, KV bytes, FLOPs) of one rank; windows and experts at the mean step."""
    if not done.steps:
        return 0.0, 0.0, 0.0
    stages, each = work.pipeline_stages, done.tokens / done.steps
    mean = done.context / max(1, done.decodes)
    experts = sum(
        e.num_layers * expected_experts(e.num_experts, e.share, each * e.tokens_factor) * e.expert_bytes
        for e in work.experts
    )
    weights = done.steps * (work.dense_bytes + work.head_bytes + experts) / stages
    contexts = [(a, done.decodes * (min(mean, a.cap) if a.cap else mean)) for a in work.attention]
    kv = (
        sum(a.num_layers * a.kv_bytes_per_token * context for a, context in contexts)
        + work.state_bytes * done.decodes
    )
    visits = sum(
        e.num_layers * e.tokens_factor * e.share * e.num_experts * e.expert_flops for e in work.experts
    )
    flops = done.tokens * (work.dense_flops + visits) + done.rows * work.head_flops
    flops += sum(a.num_layers * a.decode_flops_per_token * context for a, context in contexts)
    return weights, kv / stages, flops / stages
