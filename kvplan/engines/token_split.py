"""Mixtures of experts that split tokens over tensor-parallel ranks, and hold whole what these tokens visit.

Source: vLLM 0.32 `config/parallel.py: use_sequence_parallel_moe` and the classes that read it; since 0.11 (pull request
24134). What they hold was asked of them (`tests/models/make_shared_whole.py`).
"""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs
from kvplan.engines.kernel_flags import kernel_config
from kvplan.models.spec import ModelSpec

EXCHANGES = (
    *(
        "allgather_reducescatter",
        "naive",
        "pplx",
        "deepep_high_throughput",
        "deepep_low_latency",
        "deepep_v2",
    ),
    *("flashinfer_nvlink_one_sided", "mori_high_throughput", "mori_low_latency", "nixl_ep"),
)
"""`--all2all-backend` that tokens are split for; naive and pplx are read as the first."""
SHARED_WHOLE = (
    *(
        "AXK1",
        "Deepseek",
        "Dots3Note",
        "Glm5Next",
        "GlmMoeDsa",
        "InternS2Mobius",
        "InternS2Preview",
        "KimiK25",
    ),
    *(
        "KimiVL",
        "Llama4",
        "MistralLarge3",
        "NemotronH",
        "PanguProMoEV2",
        "PanguUltraMoE",
        "Qwen3Next",
        "Qwen3_5",
    ),
    *("Qwen4Exp", "UnlimitedOCR"),
)
"""Architecture prefixes whose shared experts each rank holds whole then."""
DENSE_WHOLE = ("Glm5Next",)
"""And those whose dense MLPs it does."""
DENSE_OF_ONE_STAGE = ("DeepseekV32", "GlmMoeDsa")
"""And those that do so where there is one pipeline stage."""
KIMI = ("KimiK3", "KimiLinear")
"""Architecture prefixes that split by themselves, whatever the exchange, both kinds of MLPs, on one stage."""
SHARDS_SHARED = ("deep_gemm_mega_moe", "deepep_v2")
"""Kernels of experts, and exchanges, with which VLLM_KIMI_K3_SHARD_SP_SHARED_EXPERT cuts the shared experts too."""


def whole_mlps(model: ModelSpec, args: EngineArgs) -> tuple[str, ...]:
    """MLPs that each rank holds whole, as `Cut` names them."""
    if not (model.is_moe and args.enable_expert_parallel and args.tensor_parallel_size > 1):
        return ()
    name, stages = model.architecture, args.pipeline_parallel_size
    if name.startswith(KIMI):
        return _of_kimi(args)
    if args.data_parallel_size == 1 or args.all2all_backend not in EXCHANGES:
        return ()
    dense = (*DENSE_WHOLE, *(DENSE_OF_ONE_STAGE if stages == 1 else ()))
    parts = {"shared": SHARED_WHOLE, "dense": dense}
    return tuple(part for part, prefixes in parts.items() if name.startswith(prefixes))


def _of_kimi(args: EngineArgs) -> tuple[str, ...]:
    """`models/kimi_k3/nvidia/model.py: KimiDecoderLayer`."""
    told = {asked_of_experts(args), args.all2all_backend}
    if args.pipeline_parallel_size > 1 or (args.data_parallel_size == 1 and "deep_gemm_mega_moe" not in told):
        return ()
    if not args.environment.kimi_k3_shard_sp_shared_expert:
        return ("shared", "dense")
    return () if told & set(SHARDS_SHARED) else ("shared",)


def asked_of_experts(args: EngineArgs) -> str:
    """The kernel of experts that either flag asks for."""
    return args.moe_backend if args.moe_backend != "auto" else kernel_config(args.kernel_config).moe_backend
