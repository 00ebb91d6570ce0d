"""Watts and joules of a run: what its replicas moved and multiplied, and how long they stood by.

The context that decodes read comes from the records: a prompt of p tokens with an answer of n reads n p + n (n - 1) /
2 tokens of KV; with drafts a decode reads once for all tokens that it gives; what a preemption throws away is not
counted. A replica that waits draws its card's idle power. Unknown for stated step times, which say nothing of work,
and for cards whose board power is not known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kvplan.ground.units import TICKS_PER_S
from kvplan.simulation.fleets import Fleet
from kvplan.simulation.records import Records
from kvplan.simulation.replica_stats import Totals
from kvplan.timing.energy import Done, moved
from kvplan.timing.step import DraftedStepTime, ModelStepTime, ScaledStepTime, StepTime, TrimmedStepTime
from kvplan.timing.work import StepWork


class Energy(NamedTuple):
    """Of all GPUs of a run."""

    mean_watts: float
    low: float
    """A 90 % range: from `low` times the watts."""
    high: float
    source: str


def work_of(time: StepTime) -> StepWork | None:
    """What a step moves, where a model's work stands behind its time."""
    while isinstance(time, DraftedStepTime | ScaledStepTime | TrimmedStepTime):
        time = time.verify if isinstance(time, DraftedStepTime) else time.time
    return time.work if isinstance(time, ModelStepTime) else None


def energy(fleets: list[Fleet], records: Records, duration_s: float) -> Energy | None:
    """Mean watts over a run; None where a deployment's cannot be told."""
    decoded = sum(p.replica.totals.num_decodes for fleet in fleets for p in fleet.processes)
    if not duration_s or not decoded:
        return None
    if any(fleet.setup.config.num_speculative_tokens for fleet in fleets):
        decoded = max(1, int(np.maximum(records["output_tokens"].astype(np.int64) - 1, 0).sum()))
    context = read_context(records) / decoded
    watts, powers = 0.0, []
    for fleet in fleets:
        power, work = fleet.setup.power, work_of(fleet.setup.step_time)
        if power is None or work is None:
            return None
        powers.append(power)
        for process in fleet.processes:
            totals = process.replica.totals
            busy_s = totals.busy_ticks / TICKS_PER_S
            shares = [0.0, 0.0, 0.0]
            if busy_s:
                done = moved(work, _done(totals, context))
                peaks = (power.bytes_per_s, power.bytes_per_s, power.flops_per_s)
                shares = [n / busy_s / peak for n, peak in zip(done, peaks, strict=True)]
            busy = min(1.0, busy_s / duration_s)
            each = busy * power.costs.watts(*shares) + (1 - busy) * power.costs.idle
            watts += each * fleet.setup.num_gpus
    return Energy(watts, min(p.low for p in powers), max(p.high for p in powers), powers[0].source)


def read_context(records: Records) -> float:
    """Tokens of KV that the records' decodes read."""
    prompt, output = (records[name].astype(float) for name in ("prompt_tokens", "output_tokens"))
    later = np.maximum(output - 1, 0)
    return float((later * prompt + later * (later + 1) / 2).sum())


def _done(totals: Totals, context: float) -> Done:
    tokens = totals.decode_tokens + totals.prefill_tokens
    return Done(totals.steps, tokens, totals.decode_tokens, totals.num_decodes, context * totals.num_decodes)
