"""Cards as people write them beside flags: `2xh100` says how many there are, and so how many ranks are usual."""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs
from kvplan.engines.load_balancing import has_own_command
from kvplan.engines.nodes import fewest_machines, gpus_each, num_machines, replica_size, spans_machines
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec, get_gpu, split_machines
from kvplan.ground.tables import counted


def cards(text: str, args: EngineArgs | None = None) -> tuple[GpuSpec, EngineArgs]:
    """The card, and the flags: `2xh100` is tensor-parallel over 2 where the flags name no parallel size.

    Of several machines (`2xp5en.48xlarge`) each is one pipeline stage then, as vLLM's guide to distributed serving has
    it; stated sizes lie on as few of them as hold them, unless flags say on how many. One machine's cards, named or
    counted, are those of each where flags ask for several.

    Raises KvplanError for a card that nobody knows, and for fewer cards or machines than the flags ask for.
    """
    machines, count, name = split_machines(text)
    args = args or EngineArgs()
    if count * machines > 1 and replica_size(args) * args.data_parallel_size == 1:
        sizes = {"tensor_parallel_size": count, "pipeline_parallel_size": machines, "nnodes": machines}
        return get_gpu(name), args.model_copy(
            update=sizes if machines > 1 else {"tensor_parallel_size": count}
        )
    if machines > 1:
        args = _on_machines(args, machines, count)
    alone = has_own_command(args) and args.nnodes == 1  # each replica lies where its command is run
    whole = alone or spans_machines(args)
    need = replica_size(args) if whole else gpus_each(args)
    if name != text and need > count:
        there = (
            counted(count, "card") if machines == 1 else f"{machines} machines of {counted(count, 'card')}"
        )
        on = " on each machine" if num_machines(args) > 1 and not whole else ""
        raise KvplanError(f"--gpu {text}: {there}, the parallel sizes ask for {need}{on}")
    if 1 < machines < num_machines(args):
        raise KvplanError(f"--gpu {text}: {machines} machines, the flags ask for {num_machines(args)}")
    return get_gpu(name), args


def _on_machines(args: EngineArgs, machines: int, count: int) -> EngineArgs:
    """The flags with the fewest machines of so many cards that hold all ranks evenly, where they do not say."""
    world = replica_size(args) * args.data_parallel_size
    told = num_machines(args) > 1 and not spans_machines(args)
    if told or args.data_parallel_size_local is not None:
        return args
    fewest = fewest_machines(world, count)
    return args.model_copy(update={"nnodes": fewest}) if fewest <= machines else args
