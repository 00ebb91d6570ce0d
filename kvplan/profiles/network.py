"""Exchanges that cross machines: over the stated link, or over InfiniBand as assumed, with the doubt of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from kvplan.engines.nodes import Spread
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import cdiv
from kvplan.profiles.doubt import Unmeasured
from kvplan.timing.costs import ReduceCosts, Seconds
from kvplan.timing.links import LINKS, Link
from kvplan.timing.step import ModelStepTime, StepShape
from kvplan.timing.work import Number, StepWork

BETWEEN_MACHINES = LINKS["ib"]
"""What joins machines where nobody says: one network card of 400 Gb/s for each GPU."""
RACKS, RACK_GPUS = ("gb200", "gb300"), 72
"""Cards whose machines NVLink joins too, and how many GPUs of a rack it does."""
NETWORKS = (45e9, 10e-6), (12e9, 30e-6)
"""Bytes a second and GPU, and seconds a hop, between which networks lie (assumed): 400 Gb/s at its best, 100 Gb/s."""
BATCHES = 1, 64, 512
"""Decoding sequences for which the ends are worked out."""


@dataclass(frozen=True, slots=True)
class ExchangeOverMachines:
    """Seconds of an exchange: among each machine's ranks, and each GPU's share of it over the network.

    An all-reduce is summed on each machine, then over the network, then gathered again, as NCCL's trees do; a gather
    brings each GPU its share from those in its place on other machines, and a machine's GPUs pass theirs on to each
    other. Each GPU has a network card of its own.
    """

    inside: Seconds | None
    """The same among a machine's ranks; None: one rank each."""
    network: ReduceCosts
    """The same among as many ranks as there are machines."""
    ranks_each: int

    def __call__(self, num_bytes: Number) -> Number:
        """Seconds for so many bytes of each rank."""
        share = self.network(num_bytes / self.ranks_each)
        return share if self.inside is None else self.inside(num_bytes) + share


class Inside(NamedTuple):
    """Exchanges among the ranks of one machine; None: one rank each."""

    sums: Seconds | None
    gathers: Seconds | None
    """Of experts' ranks: their tokens to all, or summed back."""


def inside_machine(work: StepWork, spread: Spread) -> StepWork:
    """The work with its exchanges among as many ranks as one machine has of each group."""
    gathers = work.gathers and work.gathers._replace(num_ranks=spread.replicas_each)
    return replace(work, num_ranks=spread.sum_ranks_each, gathers=gathers)


def between_machines(gpu: GpuSpec, spread: Spread, nvlink: Link) -> Link:
    """What joins machines where nobody says: NVLink within a rack that has it, else a network card for each GPU."""
    if gpu.name in RACKS and spread.num_gpus <= RACK_GPUS:
        return replace(nvlink, source="machines of one rack, assumed")
    return BETWEEN_MACHINES


def over_network(
    time: ModelStepTime, spread: Spread, link: Link | None, across: Link, inside: Inside
) -> ModelStepTime:
    """The step with those exchanges over the network that cross it.

    A link that the user stated serves all exchanges, as on one machine.
    """
    return time if link is not None else _over(time, spread, across, inside)


def network_doubts(
    time: ModelStepTime, spread: Spread, link: Link | None, across: Link, inside: Inside, hidden_size: int
) -> Iterator[Unmeasured]:
    """How far steps may be off where the network was not stated; hand-overs between stages on it are not timed."""
    if link is None and (spread.sums_cross or spread.exchanges_cross):
        ends = [replace(BETWEEN_MACHINES, bytes_per_s=rate, latency_s=hop) for rate, hop in NETWORKS]
        fast, slow = ends if across is BETWEEN_MACHINES else (across, BETWEEN_MACHINES)
        yield Unmeasured(
            f"between machines {across.bytes_per_s / 1e9:g} GB/s a GPU, assumed",
            min(_ratio(_over(time, spread, fast, inside), time, n) for n in BATCHES),
            max(_ratio(_over(time, spread, slow, inside), time, n) for n in BATCHES),
        )
    if spread.stages_cross:
        most = max(
            1.0 + _hand_over(n, spread, link or across, hidden_size) / _seconds(time, n) for n in BATCHES
        )
        yield Unmeasured("pipeline stages on several machines: hand-overs are not timed", 1.0, most)


def _over(time: ModelStepTime, spread: Spread, link: Link, inside: Inside) -> ModelStepTime:
    costs, gathers = time.costs, time.work.gathers
    if spread.sums_cross:
        each = spread.sum_ranks_each
        among = link.all_reduce(time.work.num_ranks // each)
        costs = replace(costs, reduce=ExchangeOverMachines(inside.sums, among, each))
    if spread.exchanges_cross and gathers:
        each = spread.replicas_each
        among = link.gather(cdiv(gathers.num_ranks, each))
        costs = replace(costs, gather=ExchangeOverMachines(inside.gathers, among, each))
    return ModelStepTime(time.work, costs)


def _hand_over(num_tokens: int, spread: Spread, link: Link, hidden_size: int) -> float:
    """Seconds for 16-bit states and the residual beside them, over as many hops."""
    return spread.stages_cross * (link.latency_s + 4.0 * num_tokens * hidden_size / link.bytes_per_s)


def _shape(num: int) -> StepShape:
    return StepShape(num, num, 1000 * num)


def _seconds(time: ModelStepTime, num: int) -> float:
    return time.ticks(_shape(num)) / 1e12


def _ratio(other: ModelStepTime, time: ModelStepTime, num: int) -> float:
    return _seconds(other, num) / _seconds(time, num)
