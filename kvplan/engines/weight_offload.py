"""Weights in host memory, as flags ask for them: which of vLLM's two offloaders, and what it refuses.

Source: vLLM 0.32 `config/offload.py`, `model_executor/offloader/base.py: create_offloader`.
"""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.models.host_weights import TWO_STACKS, Offload
from kvplan.models.spec import ModelSpec


def weight_offload(args: EngineArgs) -> Offload | None:
    """What is to lie in host memory; None: nothing.

    >>> weight_offload(EngineArgs(cpu_offload_gb=2)).max_bytes == 2 * GiB
    True
    """
    asks = "prefetch" if args.offload_group_size else "uva" if args.cpu_offload_gb else None
    backend = args.offload_backend if args.offload_backend != "auto" else asks
    if backend == "prefetch":
        return Offload(
            "prefetch",
            params=args.offload_params,
            group_size=args.offload_group_size,
            num_in_group=args.offload_num_in_group,
            prefetch_step=args.offload_prefetch_step,
        )
    if backend == "uva" and args.cpu_offload_gb:
        return Offload("uva", int(args.cpu_offload_gb * GiB), args.cpu_offload_params)
    return None


def check_weight_offload(model: ModelSpec, args: EngineArgs, engine: EngineVersion) -> None:
    """Refuse groups and steps that vLLM refuses, and models whose layers its prefetching does not take.

    Raises:
        KvplanError: with the flag to change.
    """
    if engine.engine != "vllm":
        return
    if args.offload_backend == "prefetch" or args.offload_group_size:
        size, num, step = args.offload_group_size, args.offload_num_in_group, args.offload_prefetch_step
        if num > size:
            raise KvplanError(f"--offload-num-in-group {num} must be at most --offload-group-size {size}")
        if step < 1:
            raise KvplanError(f"--offload-prefetch-step {step} must be at least 1")
    offload = weight_offload(args)
    if offload is None or offload.backend != "prefetch":
        return
    drafts = args.num_speculative_tokens and args.speculative_method == "draft_model"
    if drafts or model.architecture in TWO_STACKS:
        what = "a model and one that drafts" if drafts else model.name
        raise KvplanError(
            f"--offload-group-size: vLLM 0.32 copies one stack of layers, and {what} have two"
            " (wrap_modules should only be called once); --cpu-offload-gb takes all"
        )
