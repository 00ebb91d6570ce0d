"""The `vllm serve` flags that change memory or scheduling: vLLM's names, vLLM's defaults.

`None` means "the engine decides", and `resolve` (in this file) decides as it would, by version, GPU and model.
Knows nothing of GPUs' memory or of models' shapes beyond what resolving needs.
"""

from __future__ import annotations

from typing import Literal

from kvplan.config import Config


class EngineArgs(Config):
    """Flags of `vllm serve`, spelled with underscores; the CLI and scenario files are generated from this class."""

    tensor_parallel_size: int = 1
    """Number of tensor-parallel ranks (-tp)."""
    pipeline_parallel_size: int = 1
    """Number of pipeline stages (-pp)."""
    data_parallel_size: int = 1
    """Number of data-parallel replicas (-dp); with MoE models they run in lockstep."""
    decode_context_parallel_size: int = 1
    """Ranks that split the tokens of MLA or replicated KV between them (-dcp)."""
    enable_expert_parallel: bool = False
    """Shard experts instead of splitting each one."""
    max_model_len: int | None = None
    """Longest sequence (prompt + output); None = the model's own, -1 = the longest that fits."""
    max_num_seqs: int | None = None
    """Most sequences in one step."""
    max_num_batched_tokens: int | None = None
    """Most tokens in one step."""
    gpu_memory_utilization: float = 0.92
    """Share of the card's total memory the engine may fill."""
    kv_cache_memory_bytes: int | None = None
    """Size of the KV pool per GPU; overrides gpu_memory_utilization."""
    num_gpu_blocks_override: int | None = None
    """Number of KV blocks, null block included; overrides everything."""
    block_size: int | None = None
    """Tokens per KV block."""
    kv_cache_dtype: str = "auto"
    """auto, bfloat16, fp8, fp8_e4m3, fp8_e5m2, fp8_per_token_head, int8_per_token_head, nvfp4, fp8_ds_mla ..."""
    enable_prefix_caching: bool | None = None
    """Reuse full blocks of earlier prompts."""
    enable_chunked_prefill: bool | None = None
    """Split long prompts over several steps."""
    async_scheduling: bool | None = None
    """Schedule step k+1 while step k runs."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of the waiting queue."""
    long_prefill_token_threshold: int = 0
    """Cap on one prompt's tokens in a step while others wait or run; 0 = none."""
    scheduler_reserve_full_isl: bool = True
    """Admit a prompt only if all of it fits now."""
    watermark: float = 0.0
    """Share of blocks kept free when admitting."""
    disable_hybrid_kv_cache_manager: bool = False
    """Treat sliding and chunked layers as full attention."""
    mamba_cache_dtype: str = "auto"
    """Dtype of the convolution state."""
    mamba_ssm_cache_dtype: str = "auto"
    """Dtype of the recurrent state."""
    mamba_block_size: int | None = None
    """Tokens per Mamba block."""
    mamba_cache_mode: str | None = None
    """none or align."""
    num_speculative_tokens: int = 0
    """Draft tokens per decode step."""
    speculative_method: Literal["mtp", "eagle", "draft_model", "ngram"] = "mtp"
    """Who drafts."""
    quantization: str | None = None
    """Quantise on load (e.g. fp8); None = as the checkpoint says."""
    dtype: str = "auto"
    """Weights and activations: auto, bfloat16, float16, float32."""
    enforce_eager: bool = False
    """No CUDA graphs."""
