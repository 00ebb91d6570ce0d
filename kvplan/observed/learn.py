"""The overheads that a log implies: a memory profile under which the plan of the same flags has the log's pool.

Printed figures become coefficients (weights, activation peak, CUDA graphs); what no line prints goes where the
plan is least sure, into runtime growth, or, if nothing is left for that, into the activation peak.
"""

from __future__ import annotations

from dataclasses import replace

from kvplan.memory.answers import Plan
from kvplan.memory.overheads import estimate_overheads, forward_bytes
from kvplan.memory.plan import answer
from kvplan.observed.pool import PrintedPool
from kvplan.observed.startup import StartupLog
from kvplan.profiles.memory_profile import Figure, MemoryProfile
from kvplan.units import GiB, gib

SOURCE = "learned from a start-up log"
MARGIN = 4096
"""Bytes above the log's pool, against rounding; less than any block."""
MOST_PEAK = 0.25
"""Share of the card that an activation peak which no line prints may be taken to hold."""
PLAUSIBLE = (-0.75, 8.0)
"""GiB of runtime growth that a log may imply; beyond it something else was another."""


class Unlearned(Exception):
    """A log teaches nothing; the message says why."""


def learn(log: StartupLog, plan: Plan, pool: PrintedPool) -> MemoryProfile:
    """The profile. Raises Unlearned where a flag states the pool, or the log does not tell it."""
    args = plan.question.args
    if pool.num_bytes is None:
        raise Unlearned("the log prints no pool that this model and these flags would give")
    if args.kv_cache_memory_bytes or args.num_gpu_blocks_override:
        raise Unlearned("a flag states the pool, so it says nothing of overheads")
    profile = plan.question.profile
    assert profile is not None
    profile = _with_graphs(log, plan, _with_weights(log, plan, profile))
    peak = activation_bytes(log)
    if peak is not None:
        profile = with_peak(plan, profile, peak)
    target = pool.num_bytes + min(MARGIN, plan.shape.bytes_per_block // 2)
    solved = _with_rest(plan, profile, target, peak is not None)
    if PLAUSIBLE[0] <= solved.runtime_gib.value <= PLAUSIBLE[1]:
        return solved
    if log.figures.get("weights_gib") is None:
        return _with_other_weights(plan, profile, target)
    raise Unlearned(
        f"the pool would need a runtime growth of {solved.runtime_gib.value:.1f} GiB; "
        "card, utilisation or ranks are not the log's"
    )


def _with_other_weights(plan: Plan, profile: MemoryProfile, pool: int) -> MemoryProfile:
    """The remainder as weights, where the log prints none: a checkpoint format that the config does not tell."""
    name = plan.question.model.name
    one = profile.model_copy(update={"weights_gib": {name: _figure(1.0)}})
    slope = _pool(plan, profile) - _pool(plan, one)
    more = _surplus(plan, profile, pool) / slope
    loaded = gib(plan.budget.weights.size.value) + more
    if not 0 < loaded < gib(plan.budget.total.size.value):
        raise Unlearned(
            f"the pool would need {loaded:.1f} GiB of weights; card or utilisation are not the log's"
        )
    return profile.model_copy(update={"weights_gib": {name: _figure(more)}})


def activation_bytes(log: StartupLog) -> float | None:
    """The activation peak as printed, without the graphs that vLLM counts with it once it estimates them.

    Torch's peak less the weights where only that is printed (vLLM 0.6).
    """
    printed, peak, weights = (log.figures.get(n) for n in ("activation_gib", "peak_torch_gib", "weights_gib"))
    if printed is None and peak is not None and weights:
        printed = peak - weights
    elif printed is not None and "consumed_gib" in log.figures:
        printed -= log.figures.get("graphs_estimated_gib", 0.0)
    return None if printed is None else printed * GiB


def non_torch_gib(log: StartupLog) -> float | None:
    """Runtime growth: printed, or what is consumed beside the weights."""
    consumed, weights = log.figures.get("consumed_gib"), log.figures.get("weights_gib")
    printed = log.figures.get("non_torch_gib")
    return consumed - weights if printed is None and consumed is not None and weights is not None else printed


def before_loading(log: StartupLog) -> float | None:
    """Free memory before SGLang loads the weights, GiB: printed, or that after loading and what loading took."""
    after, weights = log.figures.get("after_gib"), log.figures.get("weights_gib")
    printed = log.figures.get("before_gib")
    return after + weights if printed is None and after is not None and weights is not None else printed


def _figure(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, source=SOURCE)


def _with_weights(log: StartupLog, plan: Plan, profile: MemoryProfile) -> MemoryProfile:
    """Loaded less computed weights, for this model alone."""
    printed = log.figures.get("weights_gib")
    if printed is None:
        return profile
    more = printed - gib(plan.budget.weights.size.value)
    return profile.model_copy(update={"weights_gib": {plan.question.model.name: _figure(more)}})


def _with_graphs(log: StartupLog, plan: Plan, profile: MemoryProfile) -> MemoryProfile:
    """MiB per graph and layer from the estimate that the engine deducted, or from what capturing took."""
    names = ("graphs_estimated_gib", "graphs_gib") if profile.graphs_in_budget else ("graphs_gib",)
    printed = next((log.figures[n] for n in names if log.figures.get(n, 0) > 0), None)
    planned = planned_graphs(plan, profile)
    if printed is None or not planned:
        return profile
    card = plan.question.gpu.architecture
    known = profile.graph_mib_per_layer.get(card, profile.graph_mib_per_layer["default"])
    learned = {card: _figure(known.value * printed * GiB / planned)}
    return profile.model_copy(update={"graph_mib_per_layer": profile.graph_mib_per_layer | learned})


def planned_graphs(plan: Plan, profile: MemoryProfile) -> int:
    """Bytes of CUDA graphs, whether or not the budget holds them."""
    return estimate_overheads(plan.question.model, plan.args, plan.question.gpu, profile).graphs.value


def with_peak(plan: Plan, profile: MemoryProfile, peak: float) -> MemoryProfile:
    """The profile whose largest activation is `peak`: the largest kind scaled to it, the others capped by it."""
    model, args = plan.question.model, plan.args
    logits = args.max_num_seqs * model.vocab_size
    hidden = args.max_num_batched_tokens * model.hidden_size * 2
    fits = {
        "sampler_bytes_per_logit": max(0.0, peak - hidden) / max(1, logits),
        "forward_scale": peak / max(1, forward_bytes(model, args)),
        "vision_gib": peak / GiB,
    }
    largest = _largest(plan)
    update = {
        name: _figure(value)
        for name, value in fits.items()
        if name == largest or value < getattr(profile, name).value
    }
    return profile.model_copy(update=update)


def _largest(plan: Plan) -> str:
    """The coefficient that the plan's activation peak comes from."""
    why = plan.budget.activation.why
    if why.startswith("vision"):
        return "vision_gib"
    return "sampler_bytes_per_logit" if why.startswith("sampler") else "forward_scale"


def _with_rest(plan: Plan, profile: MemoryProfile, pool: int, peak_known: bool) -> MemoryProfile:
    """Solve for runtime growth, which every engine's pool falls linearly with; then, if need be, for the peak."""
    runtime = profile.runtime_gib.value + _surplus(plan, profile, pool) / _slope(plan, profile)
    usual = profile.runtime_gib.low <= runtime <= PLAUSIBLE[1]
    if peak_known or usual or plan.question.engine.engine == "sglang":
        return profile.model_copy(update={"runtime_gib": _figure(runtime)})
    peak = plan.budget.activation.size.value + (runtime - profile.runtime_gib.value) * GiB
    if peak > MOST_PEAK * plan.budget.total.size.value:
        return profile.model_copy(update={"runtime_gib": _figure(runtime)})
    other = with_peak(plan, profile, max(0.0, peak))
    rest = profile.runtime_gib.value + _surplus(plan, other, pool) / _slope(plan, other)
    return other.model_copy(update={"runtime_gib": _figure(rest)})


def _surplus(plan: Plan, profile: MemoryProfile, pool: int) -> float:
    """Bytes by which the plan's pool exceeds the log's."""
    return _pool(plan, profile) - pool


def _slope(plan: Plan, profile: MemoryProfile) -> float:
    """Bytes of pool that one GiB of runtime growth takes."""
    more = profile.model_copy(update={"runtime_gib": _figure(profile.runtime_gib.value + 1)})
    return _pool(plan, profile) - _pool(plan, more)


def _pool(plan: Plan, profile: MemoryProfile) -> int:
    return answer(replace(plan.question, profile=profile)).budget.kv.size.value
