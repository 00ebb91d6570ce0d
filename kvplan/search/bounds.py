"""What no schedule can beat: lower bounds on latency and work, in closed form; hopeless points are not simulated.

    a request alone        its tokens, one per step, each step as short as at the best batch size
    all requests together  steps at the best batch size that KV memory and max_num_seqs allow; weights read once a
                           step, KV once a token

Both use the drawn requests of the very simulation that they spare, and leave out the ones that may miss their
target. They assume that a step never gets shorter when work is added to it. Where they do not hold (conversations,
clients that leave, strategies) nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.formulas.sums import exact_mean, exact_sum
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario
from kvplan.simulation.deploy import Setup
from kvplan.timing.step import StepShape, StepTime, fewest_passes
from kvplan.workload.classes import Slo
from kvplan.workload.load import Load, draw_load, settle_lengths

Floats = NDArray[np.floating[Any]]
GROWTH = 1.03
"""Batch sizes between two looked at differ by this factor at most; the bound is that much lower."""


class Need(NamedTuple):
    """The tokens that a class's requests must have decoded in time."""

    rows: NDArray[np.int64]
    tokens: Floats
    """Decode steps of each request before its target is met."""
    may_miss: int
    """Requests that may miss their targets."""
    within_s: float
    """The target on those tokens; inf when there is none."""
    slo: Slo


def cannot_meet(scenario: Scenario, setups: Mapping[str, Setup]) -> str:
    """Say why a scenario's targets must be missed, or "" if nothing forbids them. Never wrong.

    Raises KvplanError for an unreadable trace.
    """
    if scenario.problems is not None:
        return ""
    load = draw_load(scenario.workload, scenario.folder)
    if load.previous_turn is not None or np.isfinite(load.leaves_after_s).any():
        return ""
    names = [cls.model for cls in load.classes]
    longest = np.array([setups[name].config.max_model_len for name in names])
    settle_lengths(load, longest)
    needs = [_need(load, i, cls.slo or scenario.slo) for i, cls in enumerate(load.classes)]
    for name, need in zip(names, needs, strict=True):
        reason = _too_slow_alone(load, need, setups[name])
        if reason:
            return reason
    if load.closed_loop is not None:
        return ""
    for name, deployment in scenario.deployments.items():
        mine = [need for served, need in zip(names, needs, strict=True) if served == name]
        reason = _too_much_work(load, mine, setups[name], deployment.replicas)
        if reason:
            return reason
    return ""


def _need(load: Load, index: int, slo: Slo) -> Need:
    rows = np.flatnonzero(load.class_id == index)
    may_miss = int(np.floor((1 - slo.share) * len(rows) + 1e-9))
    if slo.e2el_ms is not None:
        return Need(rows, load.output_tokens[rows] - 1.0, may_miss, slo.e2el_ms / 1e3, slo)
    if slo.ttfvt_ms is not None:
        return Need(rows, load.thinking_tokens[rows] * 1.0, may_miss, slo.ttfvt_ms / 1e3, slo)
    return Need(rows, np.zeros(len(rows)), may_miss, float("inf"), slo)


def _too_slow_alone(load: Load, need: Need, setup: Setup) -> str:
    """Too many requests miss a target even if each had the engine to itself."""
    if need.slo.is_empty or not len(need.rows):
        return ""
    step_s = alone_step_s(load, need.rows, setup)
    more = load.output_tokens[need.rows] - 1
    seen_s = np.maximum(0.0, step_s - _first_token_late_s(load, setup) / np.maximum(more, 1))
    good = np.ones(len(need.rows), bool)
    for limit, seconds in (
        (need.slo.e2el_ms, step_s * more),
        (need.slo.ttfvt_ms, step_s * load.thinking_tokens[need.rows]),
        (need.slo.tpot_ms, seen_s * (more > 0)),
    ):
        good &= seconds * 1e3 <= (np.inf if limit is None else limit)
    misses = int((~good).sum())
    if misses <= need.may_miss:
        return ""
    return (
        f"too slow even alone: at most {1 - misses / len(need.rows):.1%} of requests can meet their targets, "
        f"{need.slo.share:.1%} must"
    )


def _first_token_late_s(load: Load, setup: Setup) -> float:
    """Most seconds by which API servers delay a first token: then its client's time per token is shorter by that.

    All requests' work and a round over the fullest batch come before it, in what is left of a process while it makes
    text; infinite where nothing is.
    """
    api, most = setup.api, setup.config.max_num_active_reqs
    requests = api.share * (api.request * len(load) + api.prompt_token * exact_sum(load.prompt_tokens))
    text = most * api.output
    left = 1 - text / max(1, _least_ticks(_Timed(setup.step_time), most, 0))
    if text and left <= 0:
        return float("inf")
    return (requests + text + most * api.send) / left / TICKS_PER_S if requests + text + api.send else 0.0


class _Timed:
    """A step time by its identity: setups are shared between points, their facts need finding once."""

    def __init__(self, time: StepTime) -> None:
        self.told, self.time = time, fewest_passes(time)

    def __hash__(self) -> int:
        return id(self.told)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Timed) and other.told is self.told


def alone_step_s(load: Load, rows: NDArray[np.int64], setup: Setup) -> Floats:
    """Seconds per token that each request needs at least: a step of its shortest context.

    Alone, or with others that have none: kernels read one long context slower than as many tokens of several.
    """
    timed, tokens = _Timed(setup.step_time), 1 + setup.config.num_speculative_tokens
    prompts, which = np.unique(load.prompt_tokens[rows], return_inverse=True)
    step = np.array(
        [_least_ticks(timed, setup.config.max_num_active_reqs, prompt) for prompt in prompts.tolist()]
    )
    return step[which] / TICKS_PER_S / tokens


@lru_cache(1 << 16)
def _least_ticks(timed: _Timed, most: int, context: int) -> int:
    """Of a step with so much context in all, at the best batch size."""
    return min(timed.time.ticks(StepShape(1 << i, 1 << i, context)) for i in range(most.bit_length()))


def _too_much_work(load: Load, needs: list[Need], setup: Setup, replicas: int) -> str:
    """All replicas together cannot decode what must be decoded before the last target."""
    asked = [need for need in needs if np.isfinite(need.within_s) and len(need.rows)]
    if not asked:
        return ""
    ends = max(float(load.arrival_s[need.rows].max()) + need.within_s for need in asked)
    servers = replicas * setup.replicas_per_copy * setup.lockstep_ranks
    tokens = sum(_without_largest(need.tokens, need.may_miss) for need in asked)
    contexts = sum(
        _without_largest(
            need.tokens * load.prompt_tokens[need.rows] + need.tokens * (need.tokens - 1) / 2, need.may_miss
        )
        for need in asked
    )
    shares = bool((load.prefix_group >= 0).any()) or load.block_ids is not None
    needed = least_seconds(setup, tokens, contexts, shares)
    if needed <= servers * ends:
        return ""
    return (
        f"cannot keep up: reading weights and KV for {tokens:,.0f} tokens takes at least {needed / servers:,.0f} s "
        f"of engine time, there are {ends:,.0f} s"
    )


def _without_largest(values: Floats, count: int) -> float:
    return exact_sum(np.sort(values)[: len(values) - count])


def least_seconds(setup: Setup, tokens: float, contexts: float, shares: bool = False) -> float:
    """Seconds that one engine needs at least to decode `tokens` tokens whose contexts add up to `contexts`.

    With t(B, C) >= a(B) + b C for B sequences of summed context C: every step costs a(B) at least, there are
    max(tokens / B, contexts / pool) steps, and each context token is read once. `shares`: sequences may have blocks
    in common, so the pool does not bound the summed context.
    """
    config, time = setup.config, setup.step_time
    per_token, alone, slope = _facts(_Timed(time), config.max_num_active_reqs, config.max_model_len)
    fixed = tokens * per_token
    if not config.kv_cache_groups and not shares:
        pool = (config.num_gpu_blocks - 1) * config.block_size
        fixed = max(fixed, alone * contexts / pool)
    return (fixed + slope * contexts) / TICKS_PER_S / (1 + config.num_speculative_tokens)


@lru_cache(512)
def _facts(timed: _Timed, most: int, longest: int) -> tuple[float, float, float]:
    """Ticks per token at the best batch size, of a step alone, and of a context token at least, besides those."""
    time = timed.time
    sizes = _sizes(most)
    ticks = [time.ticks(StepShape(size, size, 0)) for size in sizes]
    largest = [*(following - 1 for following in sizes[1:]), most]
    per_token = min(t / size for t, size in zip(ticks, largest, strict=True))
    slope = min(_least_slope(time, size, last * longest) for size, last in zip(sizes, largest, strict=True))
    return per_token, float(ticks[0]), slope


def _least_slope(time: StepTime, size: int, furthest: int) -> float:
    """The largest b with t(C) >= t(0) + b C for every context up to `furthest`: the least at any knot of the line."""
    first, least, context = time.ticks(StepShape(size, size, 0)), float("inf"), 0
    while context < furthest:
        base, slope, limit = time.decode_line(size, context)
        context = min(limit, furthest)
        least = min(least, (base + slope * context - first) / context)
    return least


def _sizes(most: int) -> list[int]:
    """Batch sizes from 1 up to `most`, each at most 3 % (or 1) above the one before."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, int(sizes[-1] * GROWTH))))
    return sizes


def mean_stay_s(scenario: Scenario, setups: Mapping[str, Setup], per_token_ms: float | None = None) -> float:
    """Mean seconds a request stays: at `per_token_ms` a token, by default at the least; a scale for loads."""
    load = draw_load(scenario.workload, scenario.folder)
    if per_token_ms is not None:
        return float(load.output_tokens.mean()) * per_token_ms / 1e3
    setup = setups[""]
    rows = np.flatnonzero(load.class_id >= 0)
    return exact_mean(alone_step_s(load, rows, setup) * load.output_tokens)
