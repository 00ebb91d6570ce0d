"""How many traces may run when their lengths vary: a plan's pool, and distributions of prompt, thinking and answer.

Ties `formulas.varying` to a plan; see there for what is assumed.
"""

from __future__ import annotations

import numpy as np

from kvplan.formulas.varying import coarser, max_traces, resident_distribution
from kvplan.ground.units import cdiv
from kvplan.memory.answers import Plan
from kvplan.workload.lengths import Correlation, Length, correlated_uniforms, quantile

NUM_DRAWS = 4096
MAX_UNITS = 1 << 14
"""Pools of more blocks are counted in groups of blocks: a trace is still hundreds of them."""


def varying_traces(
    plan: Plan, prompt: Length, thinking: Length, answer: Length, *, overflow: float = 0.01, seed: int = 0
) -> int | None:
    """Traces of one replica that may run at once so that the pool overflows with at most this probability.

    Traces longer than the served context are cut there. None where the engine refuses, or where layers forget
    (windows, states): that is a case for the simulator.
    """
    layout = plan.layout
    if layout is None or len(layout.groups) != 1 or not layout.groups[0].kind.is_growing:
        return None
    draws = correlated_uniforms(Correlation(), NUM_DRAWS, np.random.default_rng(seed))
    prompts, hidden, shown = (
        quantile(spec, draws[:, i]) for i, spec in enumerate((prompt, thinking, answer))
    )
    prompts = np.minimum(prompts, layout.max_model_len - 1)
    outputs = np.clip(hidden + shown, 1, layout.max_model_len - prompts)
    group = layout.groups[0]
    distribution = resident_distribution(prompts, outputs, group.block_tokens)
    factor = cdiv(layout.num_blocks, MAX_UNITS)
    units = layout.num_usable_blocks // factor + 1
    return max_traces(coarser(distribution, factor), units, overflow=overflow)
