"""Cards as people write them beside flags: `2xh100` says how many there are, and so how many ranks are usual."""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec, get_gpu, split_count


def cards(text: str, args: EngineArgs | None = None) -> tuple[GpuSpec, EngineArgs]:
    """The card, and the flags: `2xh100` is tensor-parallel over 2 where the flags name no parallel size.

    Raises KvplanError for a card that nobody knows, and for fewer cards, on each of `nnodes` machines,
    than the parallel sizes take.
    """
    count, name = split_count(text)
    args = args or EngineArgs()
    asked = args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size
    asked *= args.prefill_context_parallel_size
    if count > 1 and asked == 1:
        return get_gpu(name), args.model_copy(update={"tensor_parallel_size": count})
    if name != text and count * args.nnodes < asked:
        raise KvplanError(
            f"--gpu {text}: {count} card{'s' * (count > 1)}, the parallel sizes ask for {asked}"
        )
    return get_gpu(name), args
