"""Which models' experts vLLM balances over ranks, how many are there twice, and what it refuses.

Source: vLLM 0.32 `config/parallel.py`, `model_executor/layers/fused_moe/layer.py`, `routed_experts.py`.
"""

from __future__ import annotations

from kvplan.engines.eplb import eplb_config
from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.prefill_context import expert_replicas
from kvplan.ground.errors import KvplanError
from kvplan.models.spec import ModelSpec

UNBALANCED = ("awq", "gptq", "gguf", "bitsandbytes", "hqq", "auto-round")
"""Quantisations whose fused experts vLLM does not balance (`supports_eplb`)."""
NOT_MIXTURES = (
    *("Aria", "Bailing", "Cohere2Moe", "DiffusionGemma", "Ernie4_5_VLMoe", "GptOss", "GraniteMoe", "Inkling"),
    *("Jamba", "KimiK3", "KimiLinear", "LongcatFlash", "MiniMax", "NemotronHForCausalLM", "Olmoe", "PhiMoE"),
    *("Qwen2Moe", "SarvamMoE", "Step3Text", "Step3VL"),
)
"""Architecture prefixes whose classes do not hand their experts to the balancer: nothing is taken, none is twice."""
WITHOUT_COPIES = ("Param2MoE", "SarvamMLA")
"""And those that hand them over, none twice."""
UNREACHED = ("Glm5Next", "Laguna", "MiMoV2", "Qwen3OmniMoe")
"""And those whose routers wait for maps that nobody gives them (EPLB requires expert_load_view != None)."""
UNFINISHED = ("PanguProMoE", "PanguUltraMoE")
"""And those that do not say how many experts they have (no attribute 'num_routed_experts')."""
NO_REDUNDANT = ("ExaoneMo", "Glm4MoeLite", "HYV3", "HYV4")
"""And those that make redundant experts without balancing (Redundant experts are only supported with EPLB)."""


def max_ranks(args: EngineArgs) -> int:
    """Data-parallel replicas that there may be (`elastic_ep_max_dp_size`)."""
    return (args.enable_elastic_ep and args.elastic_ep_max_dp_size) or args.data_parallel_size


def balances(model: ModelSpec, args: EngineArgs) -> bool:
    """Whether this model's experts are balanced."""
    aside = (*NOT_MIXTURES, *NO_REDUNDANT)
    return args.enable_eplb and model.is_moe and not model.architecture.startswith(aside)


def redundant_experts(model: ModelSpec, args: EngineArgs) -> int:
    """Of a layer, over all ranks."""
    if not balances(model, args) or model.architecture.startswith(WITHOUT_COPIES):
        return 0
    return eplb_config(args.eplb_config).num_redundant_experts


def check_eplb(model: ModelSpec, args: EngineArgs, engine: EngineVersion) -> None:
    """Refuse what vLLM refuses.

    Raises:
        KvplanError: with the flag to change.
    """
    if engine.engine != "vllm":
        return
    redundant = eplb_config(args.eplb_config).num_redundant_experts
    _check_elastic(args)
    if not args.enable_eplb:
        if redundant:
            raise KvplanError(f"--eplb-config: num_redundant_experts {redundant} needs --enable-eplb")
        return
    if not args.enable_expert_parallel:
        raise KvplanError("--enable-eplb needs --enable-expert-parallel")
    ranks = args.tensor_parallel_size * expert_replicas(args)
    if ranks < 2:
        raise KvplanError("--enable-eplb needs tensor or data parallelism: experts are balanced over ranks")
    _check_class(model, redundant)
    if not balances(model, args):
        return
    method = str((model.quantization or {}).get("quant_method", ""))
    if method in UNBALANCED:
        raise KvplanError(f"--enable-eplb: vLLM 0.32 does not balance experts quantised by {method}")
    for num_experts in {layer.mlp.num_experts for layer in model.layers if layer.mlp.num_experts}:
        if (num_experts + redundant) % ranks:
            fewer = redundant - (num_experts + redundant) % ranks
            raise KvplanError(
                f"--eplb-config: {num_experts} experts and {redundant} redundant ones do not divide by {ranks} ranks; "
                f"num_redundant_experts {f'{fewer} would, or ' if fewer >= 0 else ''}{fewer + ranks} would"
            )


def _check_elastic(args: EngineArgs) -> None:
    """`config/parallel.py: ParallelConfig.__post_init__`."""
    if args.enable_elastic_ep and not args.enable_eplb:
        raise KvplanError("--enable-elastic-ep needs --enable-eplb")
    if args.enable_elastic_ep and args.pipeline_parallel_size > 1:
        raise KvplanError("--enable-elastic-ep does not go with --pipeline-parallel-size")
    if max_ranks(args) < args.data_parallel_size:
        raise KvplanError(
            f"--elastic-ep-max-dp-size {args.elastic_ep_max_dp_size} must be at least"
            f" --data-parallel-size, {args.data_parallel_size}"
        )


def _check_class(model: ModelSpec, redundant: int) -> None:
    """Classes of vLLM's that stumble over it."""
    faults = {
        UNREACHED: "routers get no maps: EPLB requires expert_load_view != None",
        UNFINISHED: "no attribute 'num_routed_experts'",
        NO_REDUNDANT if redundant else (): "Redundant experts are only supported with EPLB",
    }
    for prefixes, fault in faults.items():
        if prefixes and model.architecture.startswith(prefixes):
            raise KvplanError(
                f"--enable-eplb: vLLM 0.32's class of {model.name} does not start with it ({fault})"
            )
