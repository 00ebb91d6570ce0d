"""What vLLM refuses once it knows the whole of its config: flags that other flags or the model do not go with.

Source: vLLM 0.32 `config/vllm.py`.
"""

from __future__ import annotations

from kvplan.engines.engram import engram_config
from kvplan.engines.flags import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.engines.sampling_config import watermark_config
from kvplan.engines.speculative_config import speculation
from kvplan.ground.errors import KvplanError
from kvplan.models.spec import ModelSpec

REPLAYS = ("NemotronHForCausalLM", "NemotronHPuzzleForCausalLM")
"""Architectures whose states can be replayed (`SupportsReplaySSM`)."""
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
    if args.environment.mla_disable and any(m.kv_lora_rank for la in model.layers for m in la.mixers):
        raise KvplanError(
            f"VLLM_MLA_DISABLE: keys and values of every head of {model.name} are not planned; leave it out"
        )
    _check_environment(model, args)
    _check_sampling(args)
    _check_renderers(model, args)
    _check_interleaving(model, args)
    tp = args.tensor_parallel_size
    if args.enable_batch_sharded_sampling and tp == 1:
        raise KvplanError(
            "--enable-batch-sharded-sampling: tensor_parallel_size is 1, so there is nothing to share"
        )
    if args.enable_batch_sharded_sampling and args.max_num_seqs < tp:
        raise KvplanError(
            f"--enable-batch-sharded-sampling: --max-num-seqs {args.max_num_seqs} is below tensor_parallel_size {tp}"
        )
    if args.engram_config is not None and not any(w.cut == "host" for la in model.layers for w in la.extras):
        raise KvplanError(f"--engram-config: {model.name} has no tables of n-grams (Engram embeddings)")
    if engram_config(args.engram_config).dp_shared_memory and args.data_parallel_size == 1:
        raise KvplanError("--engram-config: dp_shared_memory requires data_parallel_size > 1")
    if args.use_replayssm:
        _check_replay(model, args)
    if args.enable_prompt_embeds and model.encoded_tokens:
        raise KvplanError(
            f"--enable-prompt-embeds is not supported with encoder-decoder models: {model.name}"
        )
    if args.enable_return_routed_experts and not model.is_moe:
        raise KvplanError(f"--enable-return-routed-experts: {model.name} has no experts")
    if args.enable_return_routed_experts and not args.enable_prefix_caching:
        raise KvplanError(
            "--enable-return-routed-experts needs prefix caching; leave out --no-enable-prefix-caching"
        )


def _check_environment(model: ModelSpec, args: ResolvedArgs) -> None:
    """States' kernels all depend on the batch (vLLM 0.32 `v1/attention/selector.py`); one KV connector is planned."""
    told, states = args.environment, any(m.state is not None for la in model.layers for m in la.mixers)
    if told.batch_invariant and states:
        raise KvplanError(f"VLLM_BATCH_INVARIANT: no kernel of the states of {model.name} supports it")
    if told.use_simple_kv_offload and args.kv_offloading_size is not None:
        raise KvplanError(
            "VLLM_USE_SIMPLE_KV_OFFLOAD: connector SimpleCPUOffloadConnector is not planned, OffloadingConnector is;"
            " leave it out"
        )


def _check_sampling(args: ResolvedArgs) -> None:
    """Masks and marks (`_verify_sampling_replay_config`, `_check_supports_watermarking`)."""
    if args.return_sampling_mask and args.environment.use_v2_model_runner is False:
        raise KvplanError("--return-sampling-mask requires VLLM_USE_V2_MODEL_RUNNER=1")
    if args.watermark_config is None or not args.num_speculative_tokens:
        return
    told, drafting = watermark_config(args.watermark_config), speculation(args.speculative_config)
    if drafting.draft_sample_method != "probabilistic":
        raise KvplanError('--watermark-config: drafts need "draft_sample_method": "probabilistic"')
    if args.speculative_method not in ("dspark", "eagle", "eagle3", "mtp"):
        raise KvplanError(f"--watermark-config does not go with drafts by {args.speculative_method}")
    if told.algorithm != "dual_key_gumbel" and not told.allow_target_only_watermarking:
        raise KvplanError(
            f'--watermark-config: {told.algorithm} marks no drafts; "allow_target_only_watermarking": true leaves them'
        )


def _check_renderers(model: ModelSpec, args: ResolvedArgs) -> None:
    """`config/model.py`: what pools makes items ready on those threads, whose cache is one for all."""
    pools = args.runner == "pooling" and model.vision is not None
    if pools and args.renderer_num_workers > 1 and args.mm_processor_cache_gb > 0:
        raise KvplanError(
            "--renderer-num-workers: what pools and takes items has one alone, or --mm-processor-cache-gb 0"
        )


def _check_interleaving(model: ModelSpec, args: ResolvedArgs) -> None:
    """`config/vllm.py: validate_block_size`; latent attention's kernels take blocks of 64, others of 16."""
    latent = any(mixer.is_latent for layer in model.layers for mixer in layer.mixers)
    size, block = args.cp_kv_cache_interleave_size, args.block_size or (64 if latent else 16)
    if args.decode_context_parallel_size > 1 and block % size:
        raise KvplanError(f"--cp-kv-cache-interleave-size {size} must divide the block size, {block}")


def _check_replay(model: ModelSpec, args: ResolvedArgs) -> None:
    """`validate_mamba_cached_kernel`: with vLLM's second model runner, which serves these, FlashInfer alone."""
    if model.architecture not in REPLAYS:
        raise KvplanError(f"--use-replayssm is not supported for architecture {model.architecture!r}")
    drafts, rows = args.num_speculative_tokens, args.replayssm_buffer_len
    if args.mamba_backend == "cpu":
        raise KvplanError("--use-replayssm requires --mamba-backend triton or flashinfer")
    if args.mamba_backend == "triton" and (drafts or args.environment.use_v2_model_runner is not False):
        raise KvplanError(
            "--use-replayssm: vLLM's second model runner and drafts need --mamba-backend flashinfer"
            + ("" if drafts else "; VLLM_USE_V2_MODEL_RUNNER=0 runs Triton's")
        )
    if args.mamba_backend == "flashinfer" and args.enable_prefix_caching:
        raise KvplanError("--use-replayssm: FlashInfer's needs --no-enable-prefix-caching")
    if args.mamba_backend == "flashinfer" and rows > 16:
        raise KvplanError(f"--replayssm-buffer-len {rows}: FlashInfer takes at most 16")
    if drafts and rows < 1 + drafts:
        raise KvplanError(
            f"--replayssm-buffer-len {rows} must be at least {1 + drafts}, a token and its drafts"
        )
    if args.kv_offloading_size is not None or args.kv_transfer_config is not None:
        raise KvplanError("--use-replayssm does not go with KV connectors; leave out the tier of KV")
