"""What vLLM refuses once it knows the whole of its config: flags that other flags or the model do not go with.

Source: vLLM 0.32 `config/vllm.py`.
"""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.ground.errors import KvplanError
from kvplan.models.spec import ModelSpec

LOCAL_LOGITS = (*("LlamaForCausalLM", "MistralForCausalLM", "Qwen3_5", "DeepseekV4", "MiniMaxM3"),)
"""Architecture prefixes whose classes leave each rank its part of the logits (`compute_logits_local`)."""


def samples_shares(model: ModelSpec, args: EngineArgs) -> bool:
    """Whether each tensor-parallel rank samples its share of the requests; others are sampled by all alike."""
    return bool(args.enable_batch_sharded_sampling) and model.architecture.startswith(LOCAL_LOGITS)


def check_whole(model: ModelSpec, args: ResolvedArgs, engine: EngineVersion) -> None:
    """Refuse sampling in shares that there are none of, and traces of experts that nobody could tell.

    Raises:
        KvplanError: with the flag to change.
    """
    if engine.engine != "vllm":
        return
    tp = args.tensor_parallel_size
    if args.enable_batch_sharded_sampling and tp == 1:
        raise KvplanError(
            "--enable-batch-sharded-sampling: tensor_parallel_size is 1, so there is nothing to share"
        )
    if args.enable_batch_sharded_sampling and args.max_num_seqs < tp:
        raise KvplanError(
            f"--enable-batch-sharded-sampling: --max-num-seqs {args.max_num_seqs} is below tensor_parallel_size {tp}"
        )
    if args.enable_return_routed_experts and not model.is_moe:
        raise KvplanError(f"--enable-return-routed-experts: {model.name} has no experts")
    if args.enable_return_routed_experts and not args.enable_prefix_caching:
        raise KvplanError(
            "--enable-return-routed-experts needs prefix caching; leave out --no-enable-prefix-caching"
        )
