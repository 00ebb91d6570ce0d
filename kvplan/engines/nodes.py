"""Machines that one deployment's ranks lie on, in order, and which of their groups reach over several.

Ranks are numbered replica by replica, within one stage by stage, within one tensor-parallel rank by rank. `--nnodes`
gives each machine an equal run of them; `--data-parallel-size-local` so many whole replicas, the last machine what is
left. Source: vLLM 0.32 `engine/arg_utils.py: create_engine_config`, `config/parallel.py: nnodes_within_dp`,
`v1/engine/utils.py: launch_core_engines`, `distributed/parallel_state.py: initialize_model_parallel`.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from kvplan.engines.flags import EngineArgs
from kvplan.engines.load_balancing import (
    balancing,
    check_balancing,
    has_own_command,
    local_size,
    replicas_started,
)
from kvplan.ground.errors import KvplanError
from kvplan.ground.tables import counted
from kvplan.ground.units import cdiv

USUAL_GPUS = 8
"""GPUs of a machine where nobody says which ranks share one (assumed)."""


class Spread(NamedTuple):
    """How ranks lie on machines."""

    num_machines: int
    gpus_each: int
    gpus_of_last: int
    sums_cross: bool
    """Some tensor-parallel group lies on several machines: no custom all-reduce there, NCCL over the network."""
    sum_ranks_each: int
    """Ranks of such a group on one machine."""
    exchanges_cross: bool
    """Data-parallel replicas that exchange tokens for their experts lie on several."""
    replicas_each: int
    """Of those, on one machine; 1 where a replica itself lies on several."""
    stages_cross: int
    """Hand-overs between the pipeline stages of a replica that go over the network, at most."""
    assumed: bool = False
    """No flag says which ranks share a machine."""

    @property
    def num_gpus(self) -> int:
        """Of all machines."""
        return self.gpus_each * (self.num_machines - 1) + self.gpus_of_last

    @property
    def crossing(self) -> str:
        """What of a step goes between machines; empty for nothing."""
        parts = (
            ("tensor-parallel sums", self.sums_cross),
            ("exchanges of experts' ranks", self.exchanges_cross),
            ("hand-overs of pipeline stages", bool(self.stages_cross)),
        )
        return " and ".join(what for what, does in parts if does)

    def __str__(self) -> str:
        """One sentence for the plan."""
        said = f"{self.crossing} cross" if self.crossing else "nothing of a step crosses"
        gpus = counted(self.gpus_each, "GPU")
        last = f", {self.gpus_of_last} on the last" if self.gpus_of_last < self.gpus_each else ""
        assumed = " (assumed)" if self.assumed else ""
        return f"Over {self.num_machines} machines of {gpus}{last}{assumed}: {said} the network."


def replica_size(args: EngineArgs) -> int:
    """GPUs of one data-parallel replica."""
    return args.tensor_parallel_size * args.pipeline_parallel_size * args.prefill_context_parallel_size


def gpus_each(args: EngineArgs) -> int:
    """GPUs that a machine needs; the last one may need fewer.

    >>> gpus_each(EngineArgs(data_parallel_size=16, data_parallel_size_local=8))
    8
    """
    replica, dp = replica_size(args), args.data_parallel_size
    if args.nnodes > 1:
        return max(1, replica * dp // args.nnodes)
    if spans_machines(args):
        return replica * dp // fewest_machines(replica * dp, USUAL_GPUS)
    return replica * min(dp, _replicas_each(args))


def fewest_machines(num_gpus: int, most: int) -> int:
    """Machines of at most so many GPUs that hold all of them evenly, as `--nnodes` asks for.

    >>> fewest_machines(16, 8), fewest_machines(20, 8)
    (2, 4)
    """
    return next(n for n in range(1, num_gpus + 1) if num_gpus % n == 0 and num_gpus // n <= most)


def spans_machines(args: EngineArgs) -> bool:
    """Whether one replica takes more than a usual machine, and no flag says how many: Ray puts it on several.

    >>> spans_machines(EngineArgs(tensor_parallel_size=16)), spans_machines(EngineArgs(tensor_parallel_size=8))
    (True, False)
    """
    return args.nnodes == 1 and args.data_parallel_size_local is None and replica_size(args) > USUAL_GPUS


def _replicas_each(args: EngineArgs) -> int:
    """On a machine, where `--nnodes` does not say; all where an empty first machine hides how the others hold them."""
    if _is_assumed(args):
        return max(1, USUAL_GPUS // replica_size(args))
    return args.data_parallel_size_local or args.data_parallel_size


def _is_assumed(args: EngineArgs) -> bool:
    """Replicas with commands of their own lie wherever those are run, large ones where Ray puts them."""
    return args.nnodes == 1 and (has_own_command(args) or spans_machines(args))


def num_machines(args: EngineArgs) -> int:
    """Machines of the deployment.

    >>> num_machines(EngineArgs(data_parallel_size=3, data_parallel_size_local=2, tensor_parallel_size=4))
    2
    """
    return cdiv(replica_size(args) * args.data_parallel_size, gpus_each(args))


def find_spread(args: EngineArgs, *, moe: bool = False) -> Spread:
    """How ranks lie on machines; `moe`: experts are spread over data-parallel replicas.

    >>> find_spread(EngineArgs(tensor_parallel_size=8, pipeline_parallel_size=2, nnodes=2)).stages_cross
    1
    >>> find_spread(EngineArgs(tensor_parallel_size=16, nnodes=2)).sums_cross
    True
    >>> print(find_spread(EngineArgs(data_parallel_size=16, data_parallel_size_local=8), moe=True))
    Over 2 machines of 8 GPUs: exchanges of experts' ranks cross the network.
    """
    tp = args.tensor_parallel_size
    stage = tp * args.prefill_context_parallel_size
    replica = replica_size(args)
    world = replica * args.data_parallel_size
    each, machines = gpus_each(args), num_machines(args)
    many = machines > 1
    sums = (first // each != (first + tp - 1) // each for first in range(0, world, tp))
    hops = [
        sum(
            any((stage_at + i) // each != (stage_at + stage + i) // each for i in range(stage))
            for stage_at in range(first, first + replica - stage, stage)
        )
        for first in range(0, world if many else 0, replica)
    ]
    return Spread(
        num_machines=machines,
        gpus_each=each,
        gpus_of_last=world - each * (machines - 1),
        sums_cross=many and any(sums),
        sum_ranks_each=gcd(tp, each),
        exchanges_cross=many and moe and args.data_parallel_size > 1,
        replicas_each=max(1, each // replica),
        stages_cross=max(hops, default=0),
        assumed=many and _is_assumed(args),
    )


def commands_line(args: EngineArgs) -> str:
    """How the deployment's other machines, or replicas, are started; empty where one command starts all.

    >>> print(commands_line(EngineArgs(data_parallel_size=16, data_parallel_size_local=4)).replace(". ", ".\\n"))
    Each of the others is started by the same command with --headless --data-parallel-start-rank 4, 8, 12.
    All name the first's address, --data-parallel-address.
    """
    if args.data_parallel_size_local == 0:
        return "It holds no replica: they are started --headless, with a --data-parallel-size-local of their own."
    machines, started = num_machines(args), replicas_started(args)
    if machines == 1 and not has_own_command(args):
        return ""
    if args.data_parallel_backend == "ray":
        return "Its one command starts all of them; Ray finds the machines."
    if spans_machines(args) and not has_own_command(args):
        return f"Started with --nnodes {machines}, by a command on each, or by one over Ray, which finds the machines."
    if started.start or args.node_rank:
        here = (
            f"replica {started.start}"
            if len(started) == 1
            else f"replicas {started.start} to {started.stop - 1}"
        )
        return f"Its command is the one that starts {here}{_part(args)}; each of the others has its own."
    address = "--master-addr" if args.nnodes > 1 else "--data-parallel-address"
    return (
        f"Each of the others is started by the same command with {_added(args, machines)}."
        f" All name the first's address, {address}."
    )


def _part(args: EngineArgs) -> str:
    parts = args.nnodes // args.data_parallel_size
    return f", part {args.node_rank % parts + 1} of {parts}" if parts > 1 else ""


def _added(args: EngineArgs, machines: int) -> str:
    if _is_assumed(args):
        return f"--data-parallel-rank {_listed(range(1, args.data_parallel_size))}"
    headless = "--headless " if balancing(args) == "internal" else ""
    if args.nnodes > 1:
        return f"{headless}--node-rank {_listed(range(1, machines))}"
    each = args.data_parallel_size_local or args.data_parallel_size
    left = args.data_parallel_size % each
    last = f" (the last with --data-parallel-size-local {left})" if left else ""
    return f"{headless}--data-parallel-start-rank {_listed(range(each, args.data_parallel_size, each))}{last}"


def _listed(numbers: range) -> str:
    if len(numbers) < 5:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]}, {numbers[1]} ... {numbers[-1]}"


def check_devices(listed: str, args: EngineArgs) -> None:
    """Refuse --device-ids that are named twice, or fewer than the command's ranks on its machine; raises KvplanError.

    Source: vLLM 0.32 `engine/arg_utils.py: _resolve_device_ids`, `v1/engine/utils.py`, `v1/worker/gpu_worker.py`.
    """
    ids = [one.strip() for one in listed.split(",")]
    if len(set(ids)) < len(ids):
        raise KvplanError(f"--device-ids {listed[:60]}: must not contain duplicates")
    alone = has_own_command(args) and args.nnodes == 1
    here = len(replicas_started(args)) * replica_size(args) if args.nnodes == 1 else gpus_each(args)
    need = replica_size(args) if alone else here
    if len(ids) < need:
        raise KvplanError(
            f"--device-ids {listed[:60]}: {counted(len(ids), 'device')}, the command's ranks take {need}"
        )


def check_nodes(args: EngineArgs, *, may_stand_alone: bool = True) -> None:
    """Refuse machines that ranks do not divide over, as vLLM does; raises KvplanError with what would do.

    `may_stand_alone`: replicas may have commands of their own, as those of mixtures (and all before vLLM 0.21) may.
    """
    check_balancing(args, may_stand_alone=may_stand_alone)
    if args.nnodes > 1:
        _check_equal_runs(args)


def _check_equal_runs(args: EngineArgs) -> None:
    replica, dp, nodes = replica_size(args), args.data_parallel_size, args.nnodes
    if args.data_parallel_backend == "ray":
        raise KvplanError(f"--nnodes {nodes} does not go with --data-parallel-backend ray; leave one out")
    if replica * dp % nodes:
        raise KvplanError(f"--nnodes {nodes} does not divide the {replica * dp:,} ranks evenly")
    if args.node_rank >= nodes:
        raise KvplanError(
            f"--node-rank {args.node_rank} must be between 0 and {nodes - 1}, of --nnodes {nodes}"
        )
    if balancing(args) == "external":
        return  # whose replicas each name their own rank
    here = local_size(args)
    if not here:
        raise KvplanError(f"--data-parallel-size-local 0 does not go with --nnodes {nodes}")
    groups = max(1, dp // here)  # more than all are refused with the reason
    if nodes % groups:
        raise KvplanError(
            f"--nnodes {nodes} is not divisible by {groups}, the machines that data-parallel replicas need"
            f" (data_parallel_size {dp}, {here} on a machine)"
        )
    if here > 1 and nodes > groups:
        raise KvplanError(
            f"--data-parallel-size-local {here} with --nnodes {nodes}: each replica would lie on {nodes // groups}"
            " machines, of which all but the first run a part of one replica alone, and the others would wait for ever"
        )
    if here * groups < dp:
        raise KvplanError(
            f"--data-parallel-size-local {here} with --nnodes {nodes}: {here * groups} of {dp} data-parallel replicas"
            " are started"
        )
