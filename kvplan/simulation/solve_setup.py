"""The engines that a strategy runs on: models of a scenario, a verifier beside them or not, KV compressed or not.

Turns a scenario with problems into engine set-ups and the verifier's step times. Knows no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvplan.ground.errors import DoesNotFit, KvplanError, did_you_mean
from kvplan.ground.gpu import get_gpu, split_count
from kvplan.profiles.step_times import make_step_times
from kvplan.scenario.schema import Deployment, Scenario
from kvplan.schedulers.vllm.config import KVCacheGroup
from kvplan.simulation.deploy import Setup, StatedStepTime, model_beside, set_up, set_ups
from kvplan.timing.step import NO_KNOT, StepShape, StepTime
from kvplan.workload.problems import Problems, StrategySpec


def only_models_of(scenario: Scenario, spec: StrategySpec) -> Scenario:
    """The scenario with the models that a strategy uses and no others, so that it pays for no idle GPU.

    Raises KvplanError for a model that the scenario does not have.
    """
    for name in sorted(spec.models - scenario.models.keys()):
        known = did_you_mean(name, scenario.models) or f"; there are {', '.join(scenario.models) or 'none'}"
        raise KvplanError(f"{spec.name}: model {name!r} is not in `models`{known}")
    if spec.model:
        main = {field: getattr(scenario.models[spec.model], field) for field in Deployment.model_fields}
        others = {name: scenario.models[name] for name in sorted(spec.models - {spec.model})}
        return scenario.model_copy(update={**main, "models": others})
    return scenario.model_copy(
        update={"models": {name: scenario.models[name] for name in sorted(spec.models)}}
    )


def set_up_all(scenario: Scenario) -> dict[str, Setup]:
    """Plan every deployment, a co-located verifier's memory off the main one's budget.

    Raises DoesNotFit when a model does not fit at all, KvplanError when it is the verifier that does not.
    """
    assert scenario.problems is not None
    found = set_ups(scenario)
    verifier, role = scenario.problems.verifier, "reward"
    if verifier.placement == "colocated" and verifier.needs_model:
        beside = {**scenario.colocate, role: verifier.model}
        try:
            found[""] = set_up(scenario.model_copy(update={"colocate": beside}), scenario.folder)
        except DoesNotFit as error:
            raise KvplanError(
                f"verifier {verifier.model} does not fit beside {scenario.model} on {scenario.gpu}: {error};"
                " use placement: remote, a smaller one, or more GPUs"
            ) from None
        found[""] = _beside_verifier_kv(scenario, found[""])
    return {name: compressed(setup, scenario.problems) for name, setup in found.items()}


def check_setups(setups: dict[str, Setup], scenario: Scenario) -> None:
    """Raise KvplanError for a verifier that cannot score between these engines' steps."""
    assert scenario.problems is not None
    verifier = scenario.problems.verifier
    in_lockstep = any(setup.lockstep_ranks > 1 for setup in setups.values())
    if in_lockstep and verifier.needs_model and verifier.placement == "colocated":
        raise KvplanError(
            "a co-located verifier beside data-parallel ranks in lockstep is not modelled; use placement: remote"
        )


def _beside_verifier_kv(scenario: Scenario, setup: Setup) -> Setup:
    """Take an incremental verifier's cache off the pool; the plan has counted one trace of it already."""
    assert scenario.problems is not None
    verifier = scenario.problems.verifier
    if verifier.kv != "incremental":
        return setup
    alone = Deployment(model=verifier.model, gpu=scenario.gpu, engine=scenario.engine)
    per_token = set_up(alone, scenario.folder).kv_bytes_per_token
    block = setup.kv_bytes_per_token * setup.config.block_size
    left = setup.config.num_gpu_blocks - math.ceil(verifier.kv_tokens * per_token / block)
    if left < 2:
        raise KvplanError(
            f"verifier {verifier.model}: its {verifier.kv_tokens:,} tokens of KV leave no blocks for {scenario.model};"
            " lower verifier.kv_tokens, or use kv: reread"
        )
    return replace(setup, config=setup.config.model_copy(update={"num_gpu_blocks": left}))


def verifier_step_time(scenario: Scenario) -> StepTime | None:
    """Step times of a co-located verifier's model; None when it has none or runs elsewhere."""
    assert scenario.problems is not None
    verifier = scenario.problems.verifier
    if verifier.placement == "remote" or not verifier.needs_model:
        return None
    if scenario.step_time.fixed_us is not None:
        return StatedStepTime.of(scenario.step_time)
    model = model_beside(verifier.model, scenario.folder)
    return make_step_times(
        model, get_gpu(split_count(scenario.gpu)[1]), scenario.engine, engine=scenario.engine_of
    ).step


def compressed(setup: Setup, problems: Problems) -> Setup:
    """The engine with KV compression: no sequence keeps more than budget + buffer tokens."""
    if problems.compression is None:
        return setup
    keep = problems.compression.budget_tokens + problems.compression.buffer_tokens
    if setup.config.kv_cache_groups:
        raise KvplanError("compression is modelled for models whose layers are all full attention")
    window = KVCacheGroup(kind="sliding_window", window=keep)
    config = setup.config.model_copy(update={"kv_cache_groups": (window,), "enable_prefix_caching": False})
    return replace(setup, config=config, step_time=CappedContext(setup.step_time, keep))


@dataclass(frozen=True, slots=True)
class CappedContext:
    """Step times when a sequence attends to at most `keep` tokens."""

    time: StepTime
    keep: int

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step; the cap is taken over the batch, exact once every sequence is longer."""
        return self.time.ticks(
            shape._replace(decode_context=min(shape.decode_context, shape.num_decodes * self.keep))
        )

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """As the uncapped line up to the cap, flat beyond it."""
        cap = num_decodes * self.keep
        if decode_context >= cap:
            return self.ticks(StepShape(num_tokens or num_decodes, num_decodes, cap)), 0, NO_KNOT
        base, slope, limit = self.time.decode_line(num_decodes, decode_context, num_tokens)
        return base, slope, min(limit, cap)
