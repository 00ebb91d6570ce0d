"""`--nnodes`: machines that one deployment's ranks lie on, in order, and which of their groups reach over several.

Ranks are numbered replica by replica, within one stage by stage, within one tensor-parallel rank by rank, and each
machine has an equal run of them. Source: vLLM 0.32 `engine/arg_utils.py: create_engine_config`,
`config/parallel.py: nnodes_within_dp`, `distributed/parallel_state.py: initialize_model_parallel`.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.tables import counted


class Spread(NamedTuple):
    """How ranks lie on machines."""

    num_machines: int
    gpus_each: int
    sums_cross: bool
    """Some tensor-parallel group lies on several machines: no custom all-reduce there, NCCL over the network."""
    sum_ranks_each: int
    """Ranks of such a group on one machine."""
    exchanges_cross: bool
    """Data-parallel replicas that exchange tokens for their experts lie on several."""
    stages_cross: int
    """Hand-overs between the pipeline stages of a replica that go over the network, at most."""

    def __str__(self) -> str:
        """One sentence for the plan."""
        crossing = [
            what
            for what, does in (
                ("tensor-parallel sums", self.sums_cross),
                ("exchanges of experts' ranks", self.exchanges_cross),
                ("hand-overs of pipeline stages", bool(self.stages_cross)),
            )
            if does
        ]
        said = f"{' and '.join(crossing)} cross" if crossing else "nothing of a step crosses"
        gpus = counted(self.gpus_each, "GPU")
        return f"Over {self.num_machines} machines of {gpus}: {said} the network."


def find_spread(args: EngineArgs, *, moe: bool = False) -> Spread:
    """How ranks lie on machines; `moe`: experts are spread over data-parallel replicas.

    >>> find_spread(EngineArgs(tensor_parallel_size=8, pipeline_parallel_size=2, nnodes=2)).stages_cross
    1
    >>> find_spread(EngineArgs(tensor_parallel_size=16, nnodes=2)).sums_cross
    True
    """
    tp = args.tensor_parallel_size
    stage = tp * args.prefill_context_parallel_size
    replica = stage * args.pipeline_parallel_size
    world = replica * args.data_parallel_size
    each = max(1, world // args.nnodes)
    many = args.nnodes > 1
    cuts = [first // each != (first + replica - 1) // each for first in range(0, world, replica)]
    sums = [first // each != (first + tp - 1) // each for first in range(0, world, tp)]
    hops = [
        sum(
            any((stage_at + i) // each != (stage_at + stage + i) // each for i in range(stage))
            for stage_at in range(first, first + replica - stage, stage)
        )
        for first in range(0, world, replica)
    ]
    exchanges = many and moe and args.data_parallel_size > 1 and (world > each or any(cuts))
    return Spread(
        args.nnodes, each, many and any(sums), gcd(tp, each), exchanges, max(hops, default=0) if many else 0
    )


def check_nodes(args: EngineArgs) -> None:
    """Refuse machines that ranks do not divide over, as vLLM does; raises KvplanError with what would do."""
    if args.nnodes == 1:
        return
    replica = args.tensor_parallel_size * args.pipeline_parallel_size * args.prefill_context_parallel_size
    dp = args.data_parallel_size
    if replica * dp % args.nnodes:
        raise KvplanError(f"--nnodes {args.nnodes} does not divide the {replica * dp:,} ranks evenly")
    here = max(replica * dp // args.nnodes // replica, 1)
    if args.nnodes % (dp // here):
        raise KvplanError(
            f"--nnodes {args.nnodes} is not divisible by {dp // here}, the machines that data-parallel replicas need"
            f" (data_parallel_size {dp}, {here} on a machine)"
        )
