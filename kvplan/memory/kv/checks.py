"""What the engine refuses before it looks at memory: sizes that do not divide, KV dtypes, tiers."""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.kv_transfer import offloading_gib
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.memory.kv.backends import KV_DTYPES, Capability
from kvplan.models.quantization import checkpoint_kv_dtype
from kvplan.models.spec import AttentionKind, AttentionSpec, ModelSpec


def check_sharding(model: ModelSpec, args: EngineArgs) -> None:
    """Refuse the parallel sizes that the engine refuses.

    Raises:
        KvplanError: heads that do not divide, more stages than layers, a dcp that has no copies to split.
    """
    tp, dcp, pp = args.tensor_parallel_size, args.decode_context_parallel_size, args.pipeline_parallel_size
    if pp > len(model.layers):
        raise KvplanError(f"pipeline_parallel_size {pp} exceeds {len(model.layers)} layers")
    if dcp > tp or tp % dcp:
        raise KvplanError(f"decode_context_parallel_size {dcp} must divide tensor_parallel_size {tp}")
    copies = not model.architecture.startswith("GptOss")  # whose code divides KV heads without copying them
    for spec in {m for layer in model.layers for m in layer.mixers}:
        if spec.kind is AttentionKind.SLIDING and dcp > 1:
            raise KvplanError("decode_context_parallel_size does not work with sliding windows")
        if spec.kind.keeps_tokens:
            _check_heads(spec, tp, copies)
        if spec.kind in (AttentionKind.FULL, AttentionKind.CHUNKED) and dcp > 1:
            _check_copies(spec, tp, dcp)


def _check_heads(spec: AttentionSpec, tp: int, copies: bool) -> None:
    if spec.num_heads % tp:
        sizes = ", ".join(str(n) for n in range(1, min(spec.num_heads, 64) + 1) if spec.num_heads % n == 0)
        raise KvplanError(
            f"tensor_parallel_size {tp} does not divide the model's {spec.num_heads} attention heads; try {sizes}"
        )
    kv_heads = spec.num_kv_heads
    if spec.is_latent:
        return
    if max(kv_heads, tp) % min(kv_heads, tp):
        raise KvplanError(
            f"tensor_parallel_size {tp} and the model's {kv_heads} KV heads do not divide each other"
        )
    if tp > kv_heads and not copies:
        raise KvplanError(
            f"tensor_parallel_size {tp} exceeds the model's {kv_heads} KV heads, which it cannot copy"
        )


def _check_copies(spec: AttentionSpec, tp: int, dcp: int) -> None:
    """Without MLA, decode context parallelism splits tokens between ranks that hold copies of one head."""
    kv_heads = spec.num_kv_heads
    if tp <= kv_heads:
        raise KvplanError(
            f"decode_context_parallel_size {dcp} needs more tensor-parallel ranks than {kv_heads} KV heads"
        )
    if dcp > tp // kv_heads or spec.num_heads // kv_heads % dcp:
        raise KvplanError(
            f"decode_context_parallel_size {dcp} must be at most {tp // kv_heads} (ranks per KV head) and "
            f"divide {spec.num_heads // kv_heads} (query heads per KV head)"
        )


def check_rings(model: ModelSpec, args: EngineArgs) -> None:
    """Refuse rings of keys that would be dealt between ranks: latent attention's alone says that each holds it whole.

    vLLM 0.32 `v1/core/kv_cache_coordinator.py: HybridKVCacheCoordinator`, `glm5next/common/attention.py:
    Glm5NextTailCache` (`dcp_sharded=False`), `qwen4_exp/common/qsa_cache.py` (left True).

    Raises:
        KvplanError: in the engine's words.
    """
    dcp, mixers = args.decode_context_parallel_size, (m for layer in model.layers for m in layer.mixers)
    if dcp == 1 or not args.enable_prefix_caching:  # without it there is another coordinator
        return
    if any(m.ring_bytes and m.kind is not AttentionKind.MLA for m in mixers):
        raise KvplanError(
            f"decode_context_parallel_size {dcp} with prefix caching: DCP with hybrid KV cache layouts only supports"
            " full-attention, Mamba, and replicated draft groups, got: CircularBufferSpec (vLLM's assertion; it is not"
            " made with --no-enable-prefix-caching)"
        )


def resolve_kv_dtype(model: ModelSpec, args: EngineArgs, capability: Capability) -> str:
    """Return the KV dtype that `auto` stands for, or the user's own.

    Raises:
        KvplanError: not a KV dtype, or one that latents (MLA) do not come in.
    """
    dtype = args.kv_cache_dtype
    if dtype not in KV_DTYPES:
        raise KvplanError(f"unknown kv_cache_dtype {dtype!r}{did_you_mean(dtype, KV_DTYPES)}")
    if dtype == "auto":
        dtype = checkpoint_kv_dtype(model.quantization or {})
    if model.architecture == "GlmMoeDsaForCausalLM" and dtype == "auto" and capability[0] == 10:
        return "fp8_e4m3"
    if model.architecture == "DeepseekV32ForCausalLM" and dtype == "bfloat16":
        return "auto"
    return dtype


def model_dtype(model: ModelSpec, args: EngineArgs) -> str:
    """Return the dtype of activations: the flag, else the config's; float32 checkpoints run in 16 bits."""
    dtype = {"half": "float16", "float": "float32"}.get(args.dtype, args.dtype)
    if dtype == "auto":
        return "bfloat16" if model.dtype == "float32" else model.dtype
    return dtype


def offloads(args: EngineArgs, engine: EngineVersion) -> bool:
    """Whether an engine has a tier beyond its GPUs; raises KvplanError for one that is not planned."""
    if offloading_gib(args.kv_offloading_size, args.kv_transfer_config) is None:
        return False
    if engine.engine != "vllm":
        raise KvplanError(
            f"--kv-offloading-size is vLLM's; {engine.engine} has a host tier of its own, not planned"
        )
    if args.kv_offloading_backend == "lmcache":
        raise KvplanError(
            "--kv-offloading-backend lmcache: an outside server holds that tier and vLLM ignores the size; not planned"
        )
    return True
