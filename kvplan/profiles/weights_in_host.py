"""What steps take when weights lie in host memory: kernels read them over the link, or layers are copied ahead.

Assumed of kernels that read over the link: each weight crosses it once a step, however many tokens there are.
"""

from __future__ import annotations

from dataclasses import replace
from math import hypot
from typing import NamedTuple

from kvplan.engines.flags import EngineArgs
from kvplan.engines.rank_weights import weights_of_stages
from kvplan.ground.units import TICKS_PER_S
from kvplan.models.host_weights import Offload
from kvplan.models.spec import ModelSpec
from kvplan.profiles.doubt import Doubt
from kvplan.profiles.host_links import HostLink
from kvplan.timing.copies import CopiedStepTime, Prefetches
from kvplan.timing.step import ModelStepTime, StepShape, StepTime
from kvplan.timing.work import HostReads


class WeightCopies(NamedTuple):
    """Layers whose weights are copied from host memory in every step."""

    copies: Prefetches
    after_ticks: float
    """Of a step, behind its layers: the LM head's weights are read."""
    stages: int

    def around(self, step: StepTime) -> CopiedStepTime:
        """Steps with these copies."""
        return CopiedStepTime.of(step, *self)


def from_host(
    time: ModelStepTime, model: ModelSpec, args: EngineArgs, offload: Offload, link: HostLink
) -> tuple[ModelStepTime, WeightCopies | None]:
    """(step time with reads over the link, copies beside it)."""
    stages = [rank.host for rank in weights_of_stages(model, args)]
    if not any(host.num_layers for host in stages):
        return time, None
    if offload.backend == "uva":
        reads = HostReads(sum(host.dense for host in stages), sum(host.experts for host in stages))
        costs = replace(time.costs, host_bytes_per_s=link.bytes_per_s)
        return ModelStepTime(replace(time.work, host=reads), costs), None
    most = max(stages, key=lambda host: host.host_bytes)
    layers = -(-len(model.layers) // len(stages))
    first = offload.group_size - offload.num_in_group
    places = [i for i in range(layers) if i % offload.group_size >= first][-most.num_layers :]
    copy_ticks = TICKS_PER_S * most.host_bytes / most.num_layers / link.bytes_per_s
    copies = Prefetches(tuple(i in places for i in range(layers)), copy_ticks, offload.prefetch_step)
    after = TICKS_PER_S * time.work.head_bytes / time.costs.attention.bytes_per_s
    return time, WeightCopies(copies, after, len(stages))


def with_link(
    doubt: Doubt, time: ModelStepTime, model: ModelSpec, args: EngineArgs, offload: Offload, link: HostLink
) -> Doubt:
    """The range with what the link's own leaves open, as far as one sequence's decode steps hang on it."""

    def ticks(rate: float) -> int:
        found, copies = from_host(time, model, args, offload, replace(link, bytes_per_s=rate))
        step: StepTime = copies.around(found) if copies else found
        return step.ticks(StepShape(1, 1, 1))

    likely = ticks(link.bytes_per_s)
    fast, slow = ticks(link.high) / likely - 1, ticks(link.low) / likely - 1
    return doubt._replace(
        low=1 - hypot(1 - doubt.low, fast),
        high=1 + hypot(doubt.high - 1, slow),
        why=f"{doubt.why}; and the link to host memory's, {link.low / 1e9:g} to {link.high / 1e9:g} GB/s",
    )
