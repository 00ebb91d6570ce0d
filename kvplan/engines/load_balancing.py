"""Who spreads requests over data-parallel replicas: vLLM itself, over all or over those of a machine, or one outside.

Source: vLLM 0.32 `entrypoints/cli/serve.py`, `entrypoints/launchers/dp_supervisor.py`, `engine/arg_utils.py:
create_engine_config`, `config/parallel.py`.
"""

from __future__ import annotations

from typing import Literal

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import cdiv

Balancing = Literal["internal", "hybrid", "external"]


def balancing(args: EngineArgs) -> Balancing:
    """internal: API servers before all replicas; hybrid: each machine's before its own; external: each replica's.

    >>> balancing(EngineArgs(data_parallel_size=16, data_parallel_size_local=8))
    'internal'
    >>> balancing(EngineArgs(data_parallel_size=16, data_parallel_size_local=8, data_parallel_start_rank=8))
    'hybrid'
    >>> balancing(EngineArgs(data_parallel_size=16, data_parallel_rank=3))
    'external'
    """
    if has_own_command(args) or args.data_parallel_multi_port_external_lb:
        return "external"
    local = local_size(args)
    started = args.data_parallel_start_rank is not None and not args.headless
    hybrid = args.data_parallel_hybrid_lb or (started and local is not None)
    if not hybrid or local == args.data_parallel_size:
        return "internal"
    return "external" if local == 1 else "hybrid"


def local_size(args: EngineArgs) -> int | None:
    """Replicas on a machine as vLLM counts them: stated, or each machine's equal run; None where neither says."""
    if args.data_parallel_size_local is not None or args.nnodes == 1:
        return args.data_parallel_size_local
    return max(args.data_parallel_size // args.nnodes, 1)


def has_own_command(args: EngineArgs) -> bool:
    """Whether each replica is started by a command of its own."""
    return args.data_parallel_external_lb or args.data_parallel_rank is not None


def replicas_started(args: EngineArgs) -> range:
    """Replicas that the command itself starts; none where its machine has API servers alone.

    >>> replicas_started(EngineArgs(data_parallel_size=16, data_parallel_size_local=8, data_parallel_start_rank=8))
    range(8, 16)
    """
    dp, local, told = args.data_parallel_size, local_size(args), args.data_parallel_start_rank
    if has_own_command(args):
        rank = (
            args.node_rank * dp // args.nnodes if args.data_parallel_rank is None else args.data_parallel_rank
        )
        return range(rank, rank + 1)
    first = args.node_rank * dp // args.nnodes if args.nnodes > 1 else 0
    if args.data_parallel_multi_port_external_lb:
        first = args.node_rank * (local or 0)
    if local is None:
        return range(dp)
    first = first if told is None else told
    return range(first, first + local)


def servers_of_command(args: EngineArgs) -> int:
    """API servers that the command itself starts.

    Unless stated, one for each replica that they serve; one alone for experts' ranks that come and go, and where a
    machine's replicas are not stated but found.
    """
    if args.headless:
        return 0
    if args.data_parallel_multi_port_external_lb:
        return args.data_parallel_size_local or 1
    hybrid = args.data_parallel_hybrid_lb or args.data_parallel_start_rank is not None
    each = 1 if has_own_command(args) else args.data_parallel_size
    each = (args.data_parallel_size_local or 1) if hybrid else each
    asked = each if args.api_server_count is None else args.api_server_count
    return min(asked, 1) if args.enable_elastic_ep else asked


def num_api_servers(args: EngineArgs) -> int:
    """API servers of the whole deployment, whose commands for other machines or replicas say the same.

    >>> num_api_servers(EngineArgs(data_parallel_size=16, data_parallel_size_local=8, api_server_count=2))
    2
    >>> flags = {"data_parallel_size": 16, "data_parallel_size_local": 8, "data_parallel_hybrid_lb": True}
    >>> num_api_servers(EngineArgs(**flags, api_server_count=2)), num_api_servers(EngineArgs(**flags))
    (4, 16)
    """
    first = args.model_copy(update={"headless": False})
    each = len(replicas_started(args)) if balancing(args) != "internal" else args.data_parallel_size
    return servers_of_command(first) * cdiv(args.data_parallel_size, each or args.data_parallel_size)


def groups_of_servers(args: EngineArgs) -> tuple[int, ...]:
    """Replicas behind the API servers of each command: all, a machine's, or one.

    >>> groups_of_servers(EngineArgs(data_parallel_size=16, data_parallel_size_local=8))
    (16,)
    >>> flags = {"data_parallel_size": 5, "data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}
    >>> groups_of_servers(EngineArgs(**flags))
    (2, 2, 1)
    """
    dp = args.data_parallel_size
    each = {"internal": dp, "hybrid": local_size(args) or dp, "external": 1}[balancing(args)]
    return (each,) * (dp // each) + ((dp % each,) if dp % each else ())


def check_balancing(args: EngineArgs, *, may_stand_alone: bool) -> None:
    """Refuse what vLLM refuses of replicas on machines and of who spreads requests over them; raises KvplanError."""
    dp, local = args.data_parallel_size, args.data_parallel_size_local
    external, multi = has_own_command(args), args.data_parallel_multi_port_external_lb
    asked = args.data_parallel_hybrid_lb or multi
    hybrid = args.data_parallel_hybrid_lb if asked else args.data_parallel_start_rank is not None
    if external + multi + hybrid > 1:
        raise KvplanError(
            "more than one way to spread requests over replicas: --data-parallel-external-lb (or --data-parallel-rank),"
            " --data-parallel-hybrid-lb (or --data-parallel-start-rank) or --data-parallel-multi-port-external-lb"
        )
    if args.enable_elastic_ep and balancing(args) != "internal":
        raise KvplanError(
            "--enable-elastic-ep does not go with --data-parallel-external-lb nor --data-parallel-hybrid-lb"
        )
    if args.headless:
        _check_headless(args)
    if multi:
        _check_multi_port(args)
    if local is not None and local > dp:
        raise KvplanError(f"--data-parallel-size-local {local} must be at most --data-parallel-size {dp}")
    if external:
        _check_external(args)
    if (external or multi) and dp > 1 and not may_stand_alone:
        raise KvplanError(
            "--data-parallel-external-lb is for mixtures of experts: start engines of their own, without"
            " --data-parallel-size"
        )
    if not args.headless and balancing(args) == "internal" and replicas_started(args).start:
        raise KvplanError(
            f"--node-rank {args.node_rank}: a command that starts other replicas than the first is --headless"
        )
    if args.data_parallel_hybrid_lb and local_size(args) is None:
        raise KvplanError(
            "--data-parallel-hybrid-lb requires --data-parallel-size-local, a machine's replicas"
        )
    start = args.data_parallel_start_rank if local_size(args) is not None else None  # else it is not read
    for name, rank in (("rank", args.data_parallel_rank), ("start-rank", start)):
        if rank is not None and rank >= dp and (dp > 1 or local == 0):
            raise KvplanError(f"--data-parallel-{name} {rank} must be below --data-parallel-size {dp}")
    started = replicas_started(args)
    if args.data_parallel_start_rank is not None and not external and started.stop > dp:
        raise KvplanError(
            f"--data-parallel-start-rank {started.start}: this command starts replicas {started.start} to"
            f" {started.stop - 1}, there are 0 to {dp - 1}; --data-parallel-size-local {dp - started.start} would do"
        )


def _check_headless(args: EngineArgs) -> None:
    if args.data_parallel_hybrid_lb:
        raise KvplanError("--headless does not go with --data-parallel-hybrid-lb")
    if args.api_server_count:
        raise KvplanError(f"--api-server-count {args.api_server_count} does not go with --headless")
    if args.data_parallel_size_local == 0:
        raise KvplanError("--headless: --data-parallel-size-local must be above 0")


def _check_external(args: EngineArgs) -> None:
    dp, local, rank = args.data_parallel_size, args.data_parallel_size_local, args.data_parallel_rank
    if dp == 1:
        raise KvplanError("--data-parallel-external-lb requires --data-parallel-size above 1")
    if rank is None and args.nnodes == 1:
        raise KvplanError(
            "--data-parallel-external-lb requires --data-parallel-rank, or --nnodes to tell it by"
        )
    if rank is None and args.nnodes % dp:
        raise KvplanError(
            f"--data-parallel-external-lb: --nnodes {args.nnodes} is not divisible by --data-parallel-size {dp}, so"
            " --node-rank does not tell the replica; set --data-parallel-rank"
        )
    if not args.data_parallel_external_lb:
        local = local_size(args)
    if local not in (None, 1):
        raise KvplanError(
            f"--data-parallel-size-local {local}: a replica with a command of its own (--data-parallel-rank) is one;"
            " set it to 1 or leave it out"
        )


def _check_multi_port(args: EngineArgs) -> None:
    flag, dp, local = (
        "--data-parallel-multi-port-external-lb",
        args.data_parallel_size,
        args.data_parallel_size_local,
    )
    if dp < 2 or local is None or local < 2:
        raise KvplanError(f"{flag} requires --data-parallel-size-local of at least 2")
    if dp % local:
        raise KvplanError(
            f"{flag}: --data-parallel-size {dp} is not divisible by --data-parallel-size-local {local}"
        )
    start = args.data_parallel_start_rank
    start = args.node_rank * local if start is None else start
    if start + local > dp:
        raise KvplanError(f"{flag}: ranks {start} to {start + local - 1} exceed --data-parallel-size {dp}")
    if args.headless or args.api_server_count not in (None, 1):
        raise KvplanError(f"{flag} requires --api-server-count 1, and no --headless")
