"""The overheads that a log implies: a memory profile under which the plan of the same flags has the log's pool.

Printed figures become coefficients (weights, activation peak, CUDA graphs); what no line prints goes where the
plan is least sure, into runtime growth, or, if nothing is left for that, into the activation peak.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from kvplan.engines.rank_weights import rank_weights
from kvplan.ground.units import GiB, gib
from kvplan.memory.answers import Plan
from kvplan.memory.forward import answer
from kvplan.memory.overheads import (
    estimate_overheads,
    forward_bytes,
    kept_bytes,
    sampler_inputs,
    second_runner,
)
from kvplan.memory.tower_attention import heads_width
from kvplan.memory.tower_profile import tower_bytes
from kvplan.observed.explain import formats, loaded_as
from kvplan.observed.pool import PrintedPool
from kvplan.observed.startup import StartupLog
from kvplan.profiles.memory_profile import Figure, MemoryProfile

SOURCE = "learned from a start-up log"
MARGIN = 4096
"""Bytes above the log's pool, against rounding; less than any block."""
MOST_PEAK = 0.25
"""Share of the card that an activation peak which no line prints may be taken to hold."""
PLAUSIBLE = (-0.75, 8.0)
"""GiB of runtime growth that a log may imply; beyond it something else was another."""


FEWEST_BITS = 3.5
"""Bits a weight that a checkpoint may be quantised to."""


class Unlearned(Exception):
    """A log teaches nothing; the message says why."""

    def __init__(self, why: str, beyond: bool = False) -> None:
        super().__init__(why)
        self.beyond = beyond
        """Whether the log and its plan are further apart than any overhead accounts for."""


def learn(log: StartupLog, plan: Plan, pool: PrintedPool) -> MemoryProfile:
    """The profile. Raises Unlearned where a flag states the pool, the log does not tell it, or it is out of bounds."""
    if why := _stated(log, plan, pool):
        raise Unlearned(why)
    if pool.num_bytes is None:
        raise Unlearned("the log prints no pool that this model and these flags would give")
    profile = plan.question.profile
    assert profile is not None
    profile = _with_graphs(log, plan, _with_weights(log, plan, profile))
    peak = activation_bytes(log)
    if peak is not None:
        profile = with_peak(plan, profile, peak)
    target = pool.num_bytes + min(MARGIN, plan.shape.bytes_per_block // 2)
    solved = _with_rest(log, plan, profile, target)
    if _plausible(plan, solved):
        return solved
    return _with_other_format(log, plan, profile, target, _growth(plan, solved).value)


def _stated(log: StartupLog, plan: Plan, pool: PrintedPool) -> str:
    """Which flag states the pool, so that it says nothing of overheads; empty if none does."""
    args, tokens = plan.question.args, log.figures.get("pinned_tokens")
    if args.kv_cache_memory_bytes or args.num_gpu_blocks_override:
        return "a flag states the pool, so it says nothing of overheads"
    if tokens and 0 <= log.figures.get("cache_tokens", 0) - tokens < plan.shape.block_size:
        return f"max_tokens {tokens:,.0f} states the pool, so it says nothing of overheads"
    return "a flag states the slots of its states, and so the pool" if pool.states_pinned else ""


def _plausible(plan: Plan, profile: MemoryProfile) -> bool:
    return PLAUSIBLE[0] <= _growth(plan, profile).value <= PLAUSIBLE[1]


def _with_other_format(
    log: StartupLog, plan: Plan, profile: MemoryProfile, pool: int, growth: float
) -> MemoryProfile:
    """Weights in another format that the checkpoint may have, where no line prints them and tokens confirm the model.

    Raises Unlearned where none leaves a plausible growth.
    """
    model, planned = plan.question.model, gib(plan.budget.weights.size.value)
    printed = "weights_gib" in log.figures
    counted = log.figures.get("num_gpu_blocks") or log.figures.get("cache_tokens")
    found = []
    for what, update in formats(plan) if counted and not printed else ():
        if "quantization" in update:
            more = gib(loaded_as(plan, update)) - planned
            weights = _figure(more).model_copy(update={"source": f"no line prints weights; taken {what}"})
            other = profile.model_copy(update={"weights_gib": {model.name: weights}})
            found.append(_with_rest(log, plan, other, pool))
    usual = _growth(plan, profile).value
    likely = [one for one in found if _plausible(plan, one)]
    best = min(likely, key=lambda one: abs(_growth(plan, one).value - usual), default=None)
    if best is not None:
        return best
    missing = "" if printed else "the log lacks its loading line ('Model loading took ... GiB'), and "
    raise Unlearned(
        f"{missing}the pool would need a runtime growth of {growth:.1f} GiB, outside {PLAUSIBLE[0]:g} to "
        f"{PLAUSIBLE[1]:g}; card, utilisation, ranks or checkpoint are not the log's",
        beyond=True,
    )


class Learned(NamedTuple):
    """One figure of a profile that a log taught."""

    name: str
    """Field of `MemoryProfile`, and which model's, card's or architecture's it is."""
    value: float
    usual: float | None
    """The bundled figure; None where there is none."""
    source: str

    def __str__(self) -> str:
        usual = "" if self.usual is None else f", bundled {self.usual:.3g}"
        source = "" if self.source == SOURCE else f", {self.source}"
        return f"{self.name} {self.value:.4g} ({_UNITS[self.name.split()[0]]}{usual}{source})"


_UNITS = {
    "sampler_bytes_per_logit": "bytes",
    "second_sampler_bytes_per_logit": "bytes",
    "forward_scale": "x the widest layer's tensors",
    "vision_gib": "GiB of activation peak",
    "vision_scale": "x what profiling the tower holds",
    "runtime_gib": "GiB a GPU",
    "runtime_gib_of": "GiB a GPU",
    "graph_mib_per_layer": "MiB a graph and layer",
    "total_gib": "GiB",
    "weights_gib": "GiB beyond the computed",
}


def learned_values(profile: MemoryProfile, bundled: MemoryProfile) -> tuple[Learned, ...]:
    """Every figure in which a profile differs from the bundled one."""
    found = []
    for name in _UNITS:
        new, old = getattr(profile, name), getattr(bundled, name)
        if new is None:
            continue
        if isinstance(new, Figure):
            new, old = {"": new}, {"": old}
        for key, figure in new.items():
            usual = old.get(key)
            if figure != usual:
                spelled = f"{name} of {key}" if key else name
                found.append(Learned(spelled, figure.value, usual.value if usual else None, figure.source))
    return tuple(found)


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
    low, high = _loadable(plan)
    if not low <= printed <= high:
        raise Unlearned(
            f"{printed:.2f} GiB of weights are not {plan.question.model.name}'s, whose formats hold {low:.1f} to "
            f"{high:.1f} GiB a rank",
            beyond=True,
        )
    more = printed - gib(plan.budget.weights.size.value)
    return profile.model_copy(update={"weights_gib": {plan.question.model.name: _figure(more)}})


def _loadable(plan: Plan) -> tuple[float, float]:
    """Fewest and most GiB of weights a rank may load: from 3.5 to 16 bits a weight, a tenth and a draft head more."""
    plain = replace(plan.question.model, quantization=None)
    most = gib(rank_weights(plain, plan.args.model_copy(update={"quantization": None}), plan.stage.rank))
    planned = gib(plan.budget.weights.size.value)
    return min(most * FEWEST_BITS / 16, 0.9 * planned), 1.1 * max(most, planned) + 1


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
    question = plan.question
    overheads = estimate_overheads(
        question.model, plan.args, question.gpu, question.engine, profile, plan.stage
    )
    return overheads.graphs.value


def with_peak(plan: Plan, profile: MemoryProfile, peak: float, largest: str = "") -> MemoryProfile:
    """The profile whose largest activation is `peak`: the largest kind scaled to it, the others capped by it."""
    model, args = plan.question.model, plan.args
    logits = args.max_num_seqs * model.vocab_size
    kept = kept_bytes(model, args, plan.question.gpu, profile, plan.stage, plan.question.engine)
    inputs = kept + sampler_inputs(model, args, profile)
    fits = {
        _of_sampler(plan, profile): max(0.0, peak - inputs) / max(1, logits),
        "forward_scale": max(0.0, peak - kept) / max(1, forward_bytes(model, args, profile, plan.stage)),
        _of_tower(plan, profile): peak / (_tower(plan) or GiB),
    }
    largest = largest or _largest(plan, profile)
    update = {
        name: _figure(value)
        for name, value in fits.items()
        if name == largest or value < getattr(profile, name).value
    }
    return profile.model_copy(update=update)


def _tower(plan: Plan) -> int | None:
    """Bytes that profiling the tower takes by its sizes; None where they are not known."""
    model = plan.question.model
    width = heads_width(model, plan.args, plan.question.gpu)
    return tower_bytes(model.vision, plan.args, width) if model.vision else None


def _of_tower(plan: Plan, profile: MemoryProfile) -> str:
    """The coefficient that the tower's peak is told by."""
    return "vision_scale" if profile.vision_scale and _tower(plan) else "vision_gib"


def _of_sampler(plan: Plan, profile: MemoryProfile) -> str:
    """The coefficient that the sampler's peak is told by."""
    second = profile.second_sampler_bytes_per_logit is not None and second_runner(
        plan.question.model, plan.args, profile
    )
    return "second_sampler_bytes_per_logit" if second else "sampler_bytes_per_logit"


def _largest(plan: Plan, profile: MemoryProfile) -> str:
    """The coefficient that the plan's activation peak comes from."""
    why = plan.budget.activation.why
    if why.startswith(("vision", "audio")):
        return "vision_scale" if _tower(plan) else "vision_gib"
    return _of_sampler(plan, profile) if why.startswith("sampler") else "forward_scale"


def _with_rest(log: StartupLog, plan: Plan, profile: MemoryProfile, pool: int) -> MemoryProfile:
    """Solve for runtime growth, which every engine's pool falls linearly with; then, if need be, for the peak.

    Where the log says that images were profiled, what exceeds the usual growth is theirs.
    """
    growth = _growth(plan, profile)
    runtime = growth.value + _surplus(plan, profile, pool) / _slope(plan, profile)
    images = "encoder_tokens" in log.figures and plan.question.model.vision is not None
    most = growth.value if images else PLAUSIBLE[1]
    usual = growth.low <= runtime <= most
    if activation_bytes(log) is not None or usual or plan.question.engine.engine == "sglang":
        return _with_growth(plan, profile, runtime)
    peak = plan.budget.activation.size.value + (runtime - growth.value) * GiB
    if peak > MOST_PEAK * plan.budget.total.size.value:
        return _with_growth(plan, profile, runtime)
    other = with_peak(plan, profile, max(0.0, peak), _of_tower(plan, profile) if images else "")
    return _with_growth(plan, other, growth.value + _surplus(plan, other, pool) / _slope(plan, other))


def _growth(plan: Plan, profile: MemoryProfile) -> Figure:
    """Runtime growth of the plan's card."""
    return profile.runtime_gib_of.get(plan.question.gpu.architecture, profile.runtime_gib)


def _with_growth(plan: Plan, profile: MemoryProfile, gib: float) -> MemoryProfile:
    """The profile with another runtime growth of the plan's card."""
    card = plan.question.gpu.architecture
    if card not in profile.runtime_gib_of:
        return profile.model_copy(update={"runtime_gib": _figure(gib)})
    return profile.model_copy(update={"runtime_gib_of": profile.runtime_gib_of | {card: _figure(gib)}})


def _surplus(plan: Plan, profile: MemoryProfile, pool: int) -> float:
    """Bytes by which the plan's pool exceeds the log's."""
    return _pool(plan, profile) - pool


def _slope(plan: Plan, profile: MemoryProfile) -> float:
    """Bytes of pool that one GiB of runtime growth takes."""
    more = _with_growth(plan, profile, _growth(plan, profile).value + 1)
    return _pool(plan, profile) - _pool(plan, more)


def _pool(plan: Plan, profile: MemoryProfile) -> int:
    return answer(replace(plan.question, profile=profile)).budget.kv.size.value
