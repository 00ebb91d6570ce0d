"""How SGLang and TensorRT-LLM size their KV pools. Formulas read off their code; no logs of whole runs back them.

SGLang 0.5: tokens = (free after weights - free before x (1 - mem_fraction_static)) / bytes per token; activations
and CUDA graphs live in that reserve. TensorRT-LLM: a fraction of what is free after loading, in blocks of 32.
"""

from __future__ import annotations

from kvplan.engine_args import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.errors import KvplanError
from kvplan.gpu import GpuSpec
from kvplan.layout import KvCacheTooSmall, KvGroup, Layout
from kvplan.layout_backends import Capability
from kvplan.layout_checks import model_dtype, resolve_kv_dtype
from kvplan.layout_formats import token_bytes
from kvplan.model import AttentionKind, ModelSpec
from kvplan.units import MiB, gib

_CHUNKS = ((20480, 2048, 8, 8), (35840, 4096, 48, 160), (61440, 4096, 32, 160), (163840, 8192, 256, 512))
"""SGLang's steps: below MiB of GPU memory: chunked_prefill_size, largest decode graph with tp < 4, with tp >= 4."""

_TWO_POOLS = ("Llama4", "GptOss", "Gemma4", "MiMoV2")
"""Architectures whose windows get a pool of their own in SGLang."""


def default_utilization(engine: EngineVersion, model: ModelSpec, args: EngineArgs, gpu: GpuSpec) -> float:
    """mem_fraction_static or free_gpu_memory_fraction when the user names none."""
    if engine.engine == "tensorrt-llm":
        return 0.9
    mla = any(layer.attention.kind is AttentionKind.MLA for layer in model.layers)
    return mem_fraction_static(
        gpu.total_bytes / MiB, args.tensor_parallel_size, args.pipeline_parallel_size, mla=mla
    )


def mem_fraction_static(gpu_mib: float, tp: int = 1, pp: int = 1, *, mla: bool = False) -> float:
    """SGLang's default share for weights and KV (0.5.23, `arg_groups/memory_hook.py`); `gpu_mib` as nvidia-smi says.

    >>> mem_fraction_static(81559), mem_fraction_static(143771)
    (0.83, 0.903)
    """
    chunk, small, large = next((step[1:] for step in _CHUNKS if gpu_mib < step[0]), (16384, 512, 512))
    graphs = 2 * (small if tp < 4 else large) + (1536 if mla else 8 * _num_prefill_graphs(chunk))
    reserved = 512 + 1.5 * max(chunk, 2048) + tp * pp / 8 * 1024 + graphs
    if gpu_mib > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return round((gpu_mib - reserved) / gpu_mib, 3)


def _num_prefill_graphs(chunk: int) -> int:
    """Prefill sizes that graphs are captured for, up to the chunk."""
    return {2048: 42, 4096: 50, 8192: 58, 16384: 74}.get(chunk, 42)


def pool_layout(
    engine: EngineVersion, model: ModelSpec, args: ResolvedArgs, available_bytes: int, capability: Capability
) -> Layout:
    """The KV pool as one group of pages in which every layer counts as full attention."""
    _check_kinds(engine, model)
    kv_dtype, dtype = resolve_kv_dtype(model, args, capability), model_dtype(model, args)
    layers = [layer.attention for layer in model.layers if layer.attention.kind is not AttentionKind.NONE]
    stage = -(-len(layers) // args.pipeline_parallel_size)
    cell = sum(token_bytes(spec, kv_dtype, dtype, args.tensor_parallel_size) for spec in layers[:stage])
    page = args.block_size or (32 if engine.engine == "tensorrt-llm" else 1)
    length = args.max_model_len if args.max_model_len > 0 else model.default_max_model_len
    blocks = available_bytes // (cell * page)
    if args.max_model_len == -1:
        length = min(length, max(1, blocks * page))
    if blocks * page < length:
        raise KvCacheTooSmall(
            f"one request of {length:,} tokens needs {gib(length * cell):.2f} GiB of KV cache, "
            f"there are {gib(available_bytes):.2f} GiB; {blocks * page:,} tokens would fit",
            length * cell,
            available_bytes,
            blocks * page,
        )
    group = KvGroup(layers[0].kind, stage, page, page * cell // stage, page * cell, -(-length // page))
    tokens = args.max_num_batched_tokens
    return Layout((group,), blocks, page * cell, page, length, tokens, kv_dtype, (engine.engine,))


def _check_kinds(engine: EngineVersion, model: ModelSpec) -> None:
    windows = {AttentionKind.SLIDING, AttentionKind.CHUNKED}
    kinds = {m.kind for layer in model.layers for m in layer.mixers}
    two_pools = kinds & windows and (engine.engine != "sglang" or model.architecture.startswith(_TWO_POOLS))
    if AttentionKind.STATE in kinds or two_pools:
        raise KvplanError(
            f"{model.name}: {engine.engine} keeps windows or states in pools of their own, which kvplan does not plan; "
            "--engine vllm does"
        )
