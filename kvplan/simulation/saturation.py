"""How near an open loop's load is to what its deployment can sustain: near it, a queue makes much of a small error.

    share = rate x (output tokens x step(B) / B + what its prompt adds to such a step),   B the fullest batch

per replica, at the run's own mean lengths; 1 is saturation, where the queue grows without end. Between 0.9 and 1.1 a
step's error of a few per cent decides how long the queue is: times to the first token tell it many times over.
"""

from __future__ import annotations

from kvplan.formulas.sums import exact_sum
from kvplan.ground.units import TICKS_PER_S
from kvplan.simulation.fleets import Fleet
from kvplan.simulation.records import Records
from kvplan.timing.step import StepShape

NEAR = 0.1
"""So far from saturation, either side, a load is near it."""


def load_share(fleet: Fleet, records: Records, span_s: float) -> float | None:
    """Load over the highest that is sustained; None where that is not told: drafts, prompts apart, nothing served.

    `span_s`: until the last arrival.
    """
    setup, done = fleet.setup, records.completed
    config = setup.config
    output = records["output_tokens"][done].astype(float)
    if not len(output) or span_s <= 0 or fleet.prefill or config.num_speculative_tokens:
        return None
    prompt = records["prompt_tokens"][done].astype(float)
    tokens = exact_sum(output)
    context = exact_sum(output * (prompt + output / 2)) / tokens
    computed = max(1.0, float((prompt - records["hit_tokens"][done]).mean()))
    batch = config.max_num_active_reqs
    if not config.kv_cache_groups:
        batch = min(batch, int((config.num_gpu_blocks - 1) * config.block_size // context))
    if batch < 1:
        return None
    step = setup.step_time.ticks(StepShape(batch, batch, round(batch * context)))
    chunk = round(min(max(1, config.token_budget - batch), computed))
    mixed = StepShape(batch + chunk, batch, round(batch * context), chunk, 1, chunk * computed / 2)
    prompts = max(0, setup.step_time.ticks(mixed) - step) * computed / chunk
    each_s = (tokens / len(output) * step / batch + prompts) / TICKS_PER_S
    return len(records) / span_s / len(fleet.decode) * each_s


def near_saturation(share: float, doubt: tuple[float, float]) -> str:
    """What a load so near to saturation means; empty where it is not."""
    if abs(share - 1) > NEAR:
        return ""
    error = "" if doubt == (1.0, 1.0) else f" ({doubt[0] - 1:+.0%} to {doubt[1] - 1:+.0%})"
    return (
        f"the load is within {NEAR:.0%} of saturation ({share:.0%} of it): a step's error{error} becomes many times "
        "that of waiting times"
    )
