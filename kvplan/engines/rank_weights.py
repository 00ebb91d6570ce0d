"""Weights of the ranks that flags ask for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from kvplan.engines.engram import engram_config
from kvplan.engines.expert_balance import redundant_experts
from kvplan.engines.flags import EngineArgs
from kvplan.engines.prefill_context import expert_replicas
from kvplan.engines.quantization_config import load_format
from kvplan.engines.speculative_config import speculation
from kvplan.engines.token_split import whole_mlps
from kvplan.engines.weight_offload import weight_offload
from kvplan.models.held import AS_LOADED, HeldWeights
from kvplan.models.spec import AttentionKind, ModelSpec
from kvplan.models.weights import RankWeights, heaviest, stage_weights


def weights_of_stages(
    model: ModelSpec,
    args: EngineArgs,
    legacy: bool = False,
    *,
    least_padding: bool = False,
    held: HeldWeights = AS_LOADED,
) -> tuple[RankWeights, ...]:
    """One rank of each pipeline stage, drafting layers included if they draft; remembered for other cards."""
    drafts = args.num_speculative_tokens if args.speculative_method in ("mtp", "dspark") else 0
    return _stages(
        model.drafting_by(args.speculative_method, drafts),
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        pp_layer_partition=args.environment.pp_layer_partition,
        data_parallel_size=expert_replicas(args),
        enable_expert_parallel=args.enable_expert_parallel,
        quantization=load_format(args),
        dtype=args.dtype,
        use_mtp=drafts > 0,
        mtp_quantization=speculation(args.speculative_config).quantization if drafts else None,
        language_model_only=args.language_model_only,
        whole_tower=args.mm_encoder_tp_mode == "data" or args.model_impl == "transformers",
        replicate_embed=args.environment.replicate_embed,
        legacy=legacy,
        least_padding=least_padding,
        offload=weight_offload(args),
        num_redundant_experts=redundant_experts(model, args),
        q_ranks=query_ranks(model, args),
        table_ranks=table_ranks(args),
        whole=() if legacy else whole_mlps(model, args),
        held=held,
    )


REPLICATES = (
    *(
        "Deepseek",
        "KimiVL",
        "KimiK25",
        "Glm4MoeLite",
        "GlmMoeDsa",
        "MistralLarge3",
        "LongcatFlash",
        "Dots3Note",
    ),
    "UnlimitedOCR",
)
"""Architecture prefixes whose latent attention can hold its group's query heads (vLLM 0.32 `models/deepseek_v2.py`)."""
BY_ITSELF = ("GlmMoeDsa",)
"""And those that do where nobody says (`models/config.py: set_dcp_defaults`)."""


def query_ranks(model: ModelSpec, args: EngineArgs) -> int:
    """Ranks that split contexts and each project the queries of all, so that none are gathered; 1: each its own."""
    said = args.environment.dcp_q_replicate
    asked = args.dcp_q_replicate if said is None else said
    if asked is None:
        asked = model.architecture.startswith(BY_ITSELF)
    latent = any(mixer.kind is AttentionKind.MLA for layer in model.layers for mixer in layer.mixers)
    can = latent and model.architecture.startswith(REPLICATES)
    return args.decode_context_parallel_size if asked and can else 1


def table_ranks(args: EngineArgs) -> int:
    """Ranks whose cards share out tables of n-grams; 0: host memory has them."""
    told = engram_config(args.engram_config)
    across = args.data_parallel_size if told.embedding_across_dp else 1
    return 0 if told.cpu_offload else args.tensor_parallel_size * across


@lru_cache(256)
def _stages(model: ModelSpec, **options: Any) -> tuple[RankWeights, ...]:
    return stage_weights(model, **options)


def rank_weights(
    model: ModelSpec, args: EngineArgs, stage: int | None = None, held: HeldWeights = AS_LOADED
) -> int:
    """Bytes of weights on a card of that pipeline stage; None: of the one that holds most."""
    stages = weights_of_stages(model, args, held=held)
    return (heaviest(stages) if stage is None else stages[stage]).loaded


def weights_in_host(model: ModelSpec, args: EngineArgs) -> int:
    """Bytes of host memory that the weights of all ranks take."""
    stages = weights_of_stages(model, args)
    ranks = args.tensor_parallel_size * expert_replicas(args)
    return ranks * sum(rank.host.host_bytes for rank in stages)
