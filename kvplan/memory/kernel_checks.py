"""What vLLM refuses of kernels, exchanges and micro-batches: by flag, card and format, before anything is loaded.

Sources: vLLM 0.32 `config/parallel.py`, `config/vllm.py`, `config/kernel.py`, `config/mamba.py`, and of experts
`_supports_current_device` of `fused_moe/experts` and the maps of `fused_moe/oracle`.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvplan.engines.flags import EngineArgs
from kvplan.engines.kernel_flags import SPLIT_EXCHANGES, attention_config
from kvplan.engines.token_split import asked_of_experts
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.memory.kv.backends import INDEXER
from kvplan.memory.tower_attention import check_tower_attention
from kvplan.models.spec import AttentionKind, ModelSpec

ON_AMD = frozenset({"aiter", "aiter_mega_moe", "aiter_triton_mxfp4_bf16", "flydsl", "rdna3"})
"""Kernels of experts for AMD's cards alone."""
MAJORS = {
    "flashinfer_trtllm": (10,),
    "flashinfer_cutedsl": (10,),
    "flashinfer_moe_ep_cutedsl": (10,),
    "flashinfer_moe_ep_mega_deep_gemm": (10,),
    "deep_gemm_mega_moe": (10,),
    "flashinfer_b12x": (12,),
    "b12x": (12,),
    "hpc": (9,),
    "deep_gemm": (9, 10, 12),
    "flashinfer_cutlass": (9, 10, 11, 12),
}
"""Majors of compute capability that kernels of experts serve; others serve all."""
OF_FORMAT = {
    "bf16": {"triton", "batched_triton", "flashinfer_trtllm", "flashinfer_cutlass", "aiter", "humming"},
    "int8": {"triton", "humming"},
}
"""Kernels of experts in a format; of others vLLM's classes of quantisation decide."""
MEGA = ("flashinfer_moe_ep_cutedsl", "flashinfer_moe_ep_mega_deep_gemm")
"""Kernels of experts that exchange tokens themselves."""


RUNS_WITH_DRAFTS = ("FLASHMLA_SPARSE", "TOKENSPEED_MLA")
"""Backends whose `supports_mtp_with_cp_non_trivial_interleave_size` says so."""


def check_kernels(model: ModelSpec, args: EngineArgs, gpu: GpuSpec) -> None:
    """Refuse what vLLM refuses. Raises KvplanError with the flag to turn."""
    _check_experts(model, args, gpu)
    _check_exchange(model, args)
    _check_micro_batches(model, args)
    _check_states(model, args, gpu)
    _check_attention(args, gpu)
    check_tower_attention(model, args, gpu)


def check_interleaving(backends: Iterable[str], args: EngineArgs) -> None:
    """Refuse runs of tokens on context-parallel ranks that the chosen kernels of attention do not take.

    Sources: vLLM 0.32 `v1/worker/cp_utils.py: check_attention_cp_compatibility`, `backends/mla/flashinfer_mla.py`.
    """
    ranks, size = args.decode_context_parallel_size, args.interleaved_tokens
    if ranks * args.prefill_context_parallel_size == 1 or size == 1:
        return
    older = size != args.cp_kv_cache_interleave_size
    asked = f"--{'d' * older}cp-kv-cache-interleave-size {size}"
    for name in backends:
        if name == "FLASHINFER_MLA" and ranks > 1:
            raise KvplanError(f"{asked}: {name} takes 1 alone; try another --attention-backend")
        if args.num_speculative_tokens and name not in (*RUNS_WITH_DRAFTS, INDEXER.name):
            raise KvplanError(f"{asked} with drafts: not with {name}; leave one out")


def _check_experts(model: ModelSpec, args: EngineArgs, gpu: GpuSpec) -> None:
    asked = asked_of_experts(args)
    if not model.is_moe or asked == "auto" or args.enable_lora:
        return
    if (asked in ON_AMD) != (gpu.vendor == "amd") and asked in (ON_AMD | MAJORS.keys()):
        raise KvplanError(f"--moe-backend {asked}: not for {gpu.vendor}'s cards; leave it out")
    majors = MAJORS.get(asked)
    if majors and int(gpu.compute_capability) not in majors:
        served = " or ".join(f"{major}.x" for major in majors)
        raise KvplanError(
            f"--moe-backend {asked}: for compute capability {served}, {gpu.name} has {gpu.compute_capability:g}"
        )
    if asked == "flashinfer_moe_ep_mega_deep_gemm" and not model.architecture.startswith("DeepseekV4"):
        raise KvplanError(f"--moe-backend {asked}: for DeepSeek V4 alone, not {model.architecture}")
    fmt = _expert_format(model, args)
    known = OF_FORMAT.get(fmt)
    if known is not None and asked not in known:
        raise KvplanError(
            f"--moe-backend {asked}: not for experts in {fmt}; there are {', '.join(sorted(known))}"
        )
    if asked in MEGA and args.all2all_backend != "allgather_reducescatter":
        raise KvplanError(f"--moe-backend {asked} exchanges tokens itself; leave --all2all-backend out")


def _expert_format(model: ModelSpec, args: EngineArgs) -> str:
    from kvplan.profiles.step_times import find_formats  # where kernels are named: a cold start stays short

    return str(find_formats(model, args)["expert_format"])


def _check_exchange(model: ModelSpec, args: EngineArgs) -> None:
    if args.all2all_backend != "moonep" or not model.is_moe:
        return
    if args.enable_eplb:
        raise KvplanError("--all2all-backend moonep does not go with --enable-eplb")
    if model.quantization or args.quantization or _expert_format(model, args) != "bf16":
        raise KvplanError("--all2all-backend moonep: for unquantised bf16 models only")


def _check_micro_batches(model: ModelSpec, args: EngineArgs) -> None:
    """DBO and `ubatch_size`: thresholds, the exchange, embeddings of n-grams."""
    num = args.num_micro_batches
    if num < 2:
        return
    if min(args.dbo_decode_token_threshold, args.dbo_prefill_token_threshold) < num:
        raise KvplanError(
            f"--dbo-decode-token-threshold and --dbo-prefill-token-threshold must be at least {num}, the number of "
            "micro-batches"
        )
    if args.all2all_backend not in SPLIT_EXCHANGES:
        raise KvplanError(
            f"--all2all-backend {args.all2all_backend}: micro-batches (--enable-dbo) need one of "
            f"{', '.join(SPLIT_EXCHANGES)}"
        )
    if model.architecture == "DeepseekV41ForCausalLM" and _looks_up(model):
        raise KvplanError(f"--enable-dbo: {model.name} looks up n-grams, which vLLM does not split")


def _looks_up(model: ModelSpec) -> bool:
    return any(weight.cut == "host" for layer in model.layers for weight in layer.extras)


def _check_states(model: ModelSpec, args: EngineArgs, gpu: GpuSpec) -> None:
    if args.mamba_ssu_algorithm is not None and args.mamba_backend != "flashinfer":
        raise KvplanError(
            "--mamba-ssu-algorithm: only with --mamba-backend flashinfer; add it or leave it out"
        )
    if args.mamba_backend == "cpu" and any(
        m.kind is AttentionKind.STATE for x in model.layers for m in x.mixers
    ):
        raise KvplanError(f"--mamba-backend cpu: {gpu.name} is no CPU")
    if args.kda_prefill_backend == "fused" and gpu.vendor != "amd":
        raise KvplanError("--kda-prefill-backend fused: only on ROCm")
    if args.kda_prefill_backend == "flashkda" and gpu.vendor == "amd":
        raise KvplanError("--kda-prefill-backend flashkda: only on CUDA")


def _check_attention(args: EngineArgs, gpu: GpuSpec) -> None:
    told = attention_config(args.attention_config)
    if told.indexer_kv_dtype != "auto":
        raise KvplanError("indexer_kv_dtype of --attention-config is planned as auto alone; leave it out")
    version, major = told.flash_attn_version, int(gpu.compute_capability)
    if (version == 3 and major < 9) or (version == 4 and major not in (9, 10, 11)):
        raise KvplanError(
            f"flash_attn_version {version}: not for compute capability {gpu.compute_capability:g}, {gpu.name}'s; try 2"
        )
