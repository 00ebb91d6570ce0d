"""How SGLang and TensorRT-LLM size their KV pools: formulas read off their code, held to public start-up logs.

SGLang: tokens = (free after weights - free before x (1 - mem_fraction_static)) / bytes per token; activations and
CUDA graphs live in that reserve. TensorRT-LLM: a fraction of what is free after loading, in blocks of 32.
"""

from __future__ import annotations

from typing import NamedTuple

from kvplan.engines.flags import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.engines.sglang_defaults import (
    SWA_TO_FULL,
    StatePool,
    max_running_requests,
    mem_fraction_static,
    old_mem_fraction,
    state_pool,
)
from kvplan.formulas.capacity import pool_blocks
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import cdiv, gib
from kvplan.memory.kv.backends import Capability
from kvplan.memory.kv.checks import model_dtype, resolve_kv_dtype
from kvplan.memory.kv.formats import token_bytes
from kvplan.memory.kv.states import state_bytes
from kvplan.memory.layout import KvCacheTooSmall, KvGroup, Layout
from kvplan.models.spec import AttentionKind, AttentionSpec, ModelSpec

_TWO_POOLS = ("Llama4", "GptOss", "Gemma4", "MiMoV2")
"""Architectures whose windows get a pool of their own in SGLang; in others every layer counts as full."""


def default_utilization(engine: EngineVersion, model: ModelSpec, args: EngineArgs, gpu: GpuSpec) -> float:
    """mem_fraction_static or free_gpu_memory_fraction when the user names none."""
    if engine.engine == "tensorrt-llm":
        return 0.9
    tp, pp = args.tensor_parallel_size, args.pipeline_parallel_size
    if engine.version < (0, 5):
        return old_mem_fraction(tp)
    return mem_fraction_static(
        gpu.reported_mib,
        tp,
        pp,
        mla=any(layer.attention.kind is AttentionKind.MLA for layer in model.layers),
        chunk=args.max_num_batched_tokens,
        max_running_requests=args.max_num_seqs,
        decode_graph=not args.enforce_eager,
        prefill_graph=not args.enforce_eager and pp == 1,
    )


class _Cells(NamedTuple):
    """Bytes per token of one rank's stage."""

    full: int
    windows: int
    """Layers of a window pool; 0 where all count as full."""
    num_layers: int
    kind: AttentionKind


def pool_layout(
    engine: EngineVersion, model: ModelSpec, args: ResolvedArgs, available_bytes: int, capability: Capability
) -> Layout:
    """The KV pool as one group of pages; `args.num_gpu_blocks_override` bounds it (--max-total-tokens).

    A window pool of SGLang is bought with the full one, 0.8 of its tokens: the layout's block holds both shares, and
    counts traces by the full pool. States are taken off first.
    """
    _check_kinds(engine, model)
    kv_dtype = resolve_kv_dtype(model, args, capability)
    cells = _cells(engine, model, args, kv_dtype)
    page = args.block_size or (32 if engine.engine == "tensorrt-llm" else 1)
    length = args.max_model_len if args.max_model_len > 0 else model.default_max_model_len
    states = hybrid_states(engine, model, args, available_bytes)
    left = available_bytes - (states.num_bytes if states else 0)
    block = page * (cells.full + int(SWA_TO_FULL * cells.windows))
    blocks = int(pool_blocks(max(0, left), block))
    if args.num_gpu_blocks_override is not None:
        blocks = min(blocks, args.num_gpu_blocks_override)
    if args.max_model_len == -1:
        length = min(length, max(1, blocks * page))
    if blocks * page < length:
        raise _too_small(engine, length, block // page, left, blocks * page)
    group = KvGroup(
        cells.kind,
        cells.num_layers,
        page,
        page_bytes=block // cells.num_layers,
        bytes_per_block=block,
        copied_bytes=block,
        blocks_per_request=cdiv(length, page),
        other_stages_bytes=block * (args.pipeline_parallel_size - 1),
    )
    return Layout(
        groups=(group,),
        num_blocks=blocks,
        bytes_per_block=block,
        block_size=page,
        max_model_len=length,
        max_in_flight_tokens=args.max_num_batched_tokens,
        kv_cache_dtype=kv_dtype,
        attention_backends=(engine.engine,),
        counts_pages=True,
    )


def _too_small(engine: EngineVersion, length: int, cell: int, available: int, tokens: int) -> KvCacheTooSmall:
    then = (
        "; SGLang starts with these, and refuses longer requests"
        if engine.engine == "sglang" and tokens
        else ""
    )
    return KvCacheTooSmall(
        f"one request of {length:,} tokens needs {gib(length * cell):.2f} GiB of KV cache, "
        f"there are {gib(available):.2f} GiB; {tokens:,} tokens would fit{then}",
        length * cell,
        available,
        tokens,
    )


def _cells(engine: EngineVersion, model: ModelSpec, args: ResolvedArgs, kv_dtype: str) -> _Cells:
    dtype = model_dtype(model, args)
    mixers = [m for layer in model.layers for m in layer.mixers if m.kind.keeps_tokens]
    stage = mixers[: cdiv(len(mixers), args.pipeline_parallel_size)]
    apart = _has_window_pool(engine, model)

    def total(layers: list[AttentionSpec]) -> int:
        owners = [spec for spec in layers if spec.kv_shared_with is None]
        return sum(token_bytes(spec, kv_dtype, dtype, args.tensor_parallel_size) for spec in owners)

    windows = [spec for spec in stage if apart and spec.kind.is_windowed]
    full = [spec for spec in stage if not (apart and spec.kind.is_windowed)]
    kind = stage[0].kind if stage[0].kind is AttentionKind.MLA else AttentionKind.FULL
    return _Cells(total(full), total(windows), len(stage), kind)


def _has_window_pool(engine: EngineVersion, model: ModelSpec) -> bool:
    kinds = {layer.attention.kind for layer in model.layers}
    two = engine.engine == "sglang" and engine.version >= (0, 5) and AttentionKind.FULL in kinds
    return two and model.architecture.startswith(_TWO_POOLS)


def hybrid_states(
    engine: EngineVersion, model: ModelSpec, args: ResolvedArgs, available_bytes: int
) -> StatePool | None:
    """SGLang's slots for states; None for models without any."""
    states = [m.state for layer in model.layers for m in layer.mixers if m.state is not None]
    if engine.engine != "sglang" or not states:
        return None
    ssm = "float32" if args.mamba_ssm_cache_dtype == "auto" else args.mamba_ssm_cache_dtype
    told = args.model_copy(update={"mamba_ssm_cache_dtype": ssm, "num_speculative_tokens": 0})
    stage = states[: cdiv(len(states), args.pipeline_parallel_size)]
    slot = sum(state_bytes(state, told, model_dtype(model, args)) for state in stage)
    asked = args.max_num_seqs if args.max_num_seqs < MOST_ASKED else None
    return state_pool(available_bytes, slot, radix_cache=args.enable_prefix_caching, asked_requests=asked)


MOST_ASKED = 2048
"""max_num_seqs as resolved when nobody asked: SGLang's own floor."""


def running_requests(
    engine: EngineVersion, model: ModelSpec, args: ResolvedArgs, layout: Layout, pool: int, asked: int | None
) -> int:
    """max_running_requests of SGLang once its pool of so many bytes is known."""
    most = max_running_requests(layout.num_blocks * layout.block_size, layout.max_model_len, asked)
    states = hybrid_states(engine, model, args, pool)
    return min(most, max(1, states.max_running_requests)) if states else most


def _check_kinds(engine: EngineVersion, model: ModelSpec) -> None:
    kinds = {m.kind for layer in model.layers for m in layer.mixers}
    if engine.engine == "tensorrt-llm" and any(
        kind is AttentionKind.STATE or kind.is_windowed for kind in kinds
    ):
        raise KvplanError(
            f"{model.name}: tensorrt-llm keeps windows or states in pools of their own, which kvplan does not plan; "
            "--engine vllm or sglang does"
        )
    if unusual := next(
        (m.unusual_cache for layer in model.layers for m in layer.mixers if m.unusual_cache), ""
    ):
        raise KvplanError(f"{model.name}: {unusual}, planned as vLLM lays that out; --engine vllm does it")
    if model.canvas_length:
        raise KvplanError(f"{model.name}: diffusion, planned as vLLM runs it; --engine vllm does it")
    if not any(kind.keeps_tokens for kind in kinds):
        raise KvplanError(
            f"{model.name} has no attention layer; kvplan plans such models for --engine vllm only"
        )
