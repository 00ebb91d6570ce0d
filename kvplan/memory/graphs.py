"""The CUDA graphs that an engine captures for a model on a card: flags, and what the attention's kernels allow."""

from __future__ import annotations

from functools import lru_cache

from kvplan.engines.cuda_graphs import find_graphs
from kvplan.engines.flags import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.engines.speculative_config import speculation
from kvplan.formulas.graphs import Graphs, Support
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.memory.kv.backends import Capability
from kvplan.memory.kv.graph_support import check_trimming, graph_support
from kvplan.memory.kv.mixers import LayoutSetup, find_mixers
from kvplan.memory.kv.versions import Rules
from kvplan.models.spec import ModelSpec


def engine_graphs(
    model: ModelSpec, args: ResolvedArgs, gpu: GpuSpec, engine: EngineVersion, *, second_runner: bool = True
) -> Graphs:
    """Graphs under resolved flags; other engines' by the same staircase.

    Raises KvplanError for sizes and modes that vLLM refuses.
    """
    if engine.engine != "vllm" or gpu.vendor != "nvidia":
        return find_graphs(args, model, gpu.compute_capability, version=engine)
    major, minor = divmod(round(gpu.compute_capability * 10), 10)
    return find_graphs(
        args,
        model,
        gpu.compute_capability,
        support=_support(model, _of_attention(args), (major, minor)),
        rounds_all=not second_runner,
        version=engine,
    )


READ_BY_ATTENTION = (
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size"),
    *("enable_expert_parallel", "block_size", "kv_cache_dtype", "kv_cache_dtype_skip_layers", "dtype"),
    *("attention_backend", "attention_config", "env", "speculative_config"),
)
"""Flags that say which backends serve a model's layers."""


def _of_attention(args: EngineArgs) -> EngineArgs:
    return EngineArgs.model_construct(**{name: getattr(args, name) for name in READ_BY_ATTENTION})


@lru_cache(256)
def _support(model: ModelSpec, args: EngineArgs, capability: Capability) -> Support:
    """Of the target's layers; ALWAYS where no backend takes one, which the layout refuses."""
    try:
        setup = LayoutSetup.of(model, args, capability, Rules())
        mixers = find_mixers(setup)
    except KvplanError:
        return Support.ALWAYS
    if speculation(args.speculative_config).enable_adaptive_verification:
        check_trimming(setup, mixers)
    return graph_support(setup, mixers)


def attention_backends(model: ModelSpec, args: EngineArgs, gpu: GpuSpec) -> frozenset[str]:
    """Names of the backends that serve the target's layers; none where one is refused."""
    major, minor = divmod(round(gpu.compute_capability * 10), 10)
    return _backends(model, _of_attention(args), (major, minor)) if gpu.vendor == "nvidia" else frozenset()


@lru_cache(256)
def _backends(model: ModelSpec, args: EngineArgs, capability: Capability) -> frozenset[str]:
    try:
        mixers = find_mixers(LayoutSetup.of(model, args, capability, Rules()))
    except KvplanError:
        return frozenset()
    return frozenset(m.backend.name for m in mixers if m.backend)
