"""What engines print at start-up: figure, a literal that its lines hold, the pattern that finds its number.

Facts of log formats, read off the engines' sources and public logs: vLLM 0.6 to 0.32, SGLang 0.3 to 0.5,
TensorRT-LLM 0.5 to 1.0. "GB" in vLLM's and SGLang's lines is GiB.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NUMBER = r"((?<!\d)(?<!\d,)-?\d[\d,]*(?:\.\d+)?)"
"""Begins where the digits do: tried at each of them, a pasted line of 60,000 takes minutes."""


class Pattern(NamedTuple):
    """Where a figure is printed."""

    figure: str
    literal: str
    regex: re.Pattern[str]


def _patterns(rows: list[tuple[str, str, str]]) -> tuple[Pattern, ...]:
    return tuple(
        Pattern(figure, literal, re.compile(text.replace("#", NUMBER))) for figure, literal, text in rows
    )


VLLM = _patterns(
    [
        ("weights_gib", "oading took", r"[Mm]odel loading took # (?:GiB|GB)"),
        ("weights_gib", "weights took", r"Loading model weights took # (?:GB|GiB)"),
        ("weights_gib", "model weights take", r"model weights take\s+#\s?GiB"),
        ("weights_gib", "GiB for weight", r"# GiB for weight\b"),
        ("weights_gib", "weights memory:", r"weights memory: #\s?GiB"),
        ("activation_gib", "activation peak memory", r"PyTorch activation peak memory(?: takes)?\s+#\s?GiB"),
        ("activation_gib", "GiB for peak activation", r"# GiB for peak activation"),
        ("activation_gib", "torch peak memory increase", r"torch peak memory increase: #\s?GiB"),
        ("peak_torch_gib", "peak_torch_memory", r"peak_torch_memory=#\s?GiB"),
        ("non_torch_gib", "non_torch_memory", r"non_torch_memory(?: takes\s+|\s+|=)#\s?GiB"),
        ("non_torch_gib", "non-torch", r"# GiB for non-torch memory"),
        ("non_torch_gib", "non-torch forward", r"non-torch forward increase memory: #\s?GiB"),
        ("consumed_gib", "for consumed memory", r"# GiB for consumed memory"),
        ("graphs_gib", "capturing finished", r"[Gg]raph capturing finished in .{1,20} took # GiB"),
        ("graphs_gib", "for CUDAGraph", r"# GiB for CUDAGraph memory"),
        ("graphs_estimated_gib", "Estimated CUDA graph", r"Estimated CUDA graph memory: # GiB total"),
        ("graphs_estimated_gib", "CUDA graph pool memory", r"# GiB \(estimated\)"),
        ("kv_gib", "Available KV cache", r"Available KV cache memory: # GiB"),
        ("kv_gib", "reserved for KV", r"memory reserved for KV Cache is #\s?GiB"),
        ("kv_gib", "available_kv_cache_memory", r"available_kv_cache_memory\s+#\s?GiB"),
        ("kv_gib", "kv_cache_size=", r"kv_cache_size=#\s?GiB"),
        ("kv_gib", "larger than the available KV", r"available KV cache memory \(# GiB\)"),
        ("needed_gib", "KV cache is needed", r"# GiB KV cache is needed"),
        ("estimated_len", "estimated maximum model length", r"estimated maximum model length is #"),
        ("asked_gib", "as specified by kv_cache_memory_bytes", r"reserved # GiB memory for KV"),
        ("num_gpu_blocks", "GPU blocks:", r"GPU blocks: #"),
        ("num_gpu_blocks", "cuda blocks:", r"cuda blocks: #"),
        ("num_gpu_blocks", "rocm blocks:", r"rocm blocks: #"),
        ("cache_tokens", "KV cache size:", r"KV cache size: # tokens"),
        ("max_concurrency", "Maximum concurrency", r"Maximum concurrency for [\d,]+ tokens per request: #x"),
        ("concurrency_len", "Maximum concurrency", r"Maximum concurrency for # tokens per request"),
        ("total_gib", "total_gpu_memory", r"total_gpu_memory(?: \(|\s+|=)#\s?GiB"),
        ("total_gib", "Free memory on device", r"Free memory on device .{0,12}\([\d.]+/# GiB\)"),
        ("utilization", "gpu_memory_utilization (", r"gpu_memory_utilization \(#\)"),
        ("utilization", "Desired GPU memory", r"Desired GPU memory utilization is \(#,"),
        ("utilization", "Requested memory:", r"Requested memory: # \(util\)"),
        ("utilization", "total_gpu_memory", r"gpu_memory_utilization[=\s]+#"),
        ("attention_block", "attention block size to", r"Setting attention block size to # tokens"),
        ("refused_len", "larger than the maximum number of tokens", r"max seq len \(#\) is larger"),
        ("cache_tokens", "larger than the maximum number of tokens", r"stored in KV cache \(#\)"),
        ("encoder_tokens", "Encoder cache will be", r"initialized with a budget of # tokens"),
        ("state_blocks", "Mamba cache blocks", r"Mamba cache blocks \(#\)"),
    ]
)

SGLANG = _patterns(
    [
        ("before_gib", "Load weight begin", r"Load weight begin. avail mem=#\s?GB"),
        ("after_gib", "Load weight end", r"Load weight end.*?avail mem=#\s?GB"),
        ("weights_gib", "Load weight end", r"Load weight end.*?mem usage=#\s?GB"),
        ("cache_tokens", "KV Cache is", r"\x23tokens: #"),
        ("k_gib", "KV Cache is", r"K size: #\s?GB"),
        ("v_gib", "KV Cache is", r"V size: #\s?GB"),
        ("kv_gib", "KV Cache is", r"KV size: #\s?GB"),
        ("cache_tokens", "max_total_num_tokens=", r"max_total_num_tokens=#"),
        ("after_pool_gib", "Memory pool end", r"Memory pool end. avail mem=#\s?GB"),
        ("after_pool_gib", "available_gpu_mem=", r"available_gpu_mem=#\s?GB"),
        (
            "graphs_gib",
            "raph end",
            r"[Cc]apture (?:target decode )?(?:cuda|CUDA) graph end\..*?mem usage=#\s?GB",
        ),
        ("state_slots", "max_mamba_cache_size", r"max_mamba_cache_size: #"),
        ("conv_gib", "conv_state size", r"conv_state size: #\s?GB"),
        ("ssm_gib", "ssm_state size", r"ssm_state size: #\s?GB"),
        ("swa_tokens", "swa_layer_tokens=", r"swa_layer_tokens=#"),
        ("full_tokens", "full_layer_tokens=", r"full_layer_tokens=#"),
        ("max_running", "max_running_requests=", r"max_total_num_tokens=.*max_running_requests=#"),
        ("chunk", "max_total_num_tokens=", r"chunked_prefill_size=#"),
        ("context_len", "max_total_num_tokens=", r"context_len=#"),
    ]
)

TRTLLM = _patterns(
    [
        ("kv_gib", "paged KV cache", r"Allocated # GiB for max tokens in (?:paged )?KV cache"),
        ("cache_tokens", "paged KV cache", r"max tokens in paged KV cache \(#\)"),
        ("cache_tokens", "in paged KV cache", r"Using # tokens in paged KV cache"),
        ("kv_bytes", "for k/v cache", r"Allocate # bytes for k/v cache"),
        ("num_gpu_blocks", "primary blocks", r"primary blocks=#"),
        ("num_gpu_blocks", "KV cache primary pool", r"Number of blocks in KV cache primary pool: #"),
        ("block_tokens", "okens per block", r"[Tt]okens per block(?:=|: )#"),
        ("total_gib", "max tokens in paged kv cache", r"total: # GiB"),
        ("before_pool_gib", "max tokens in paged kv cache", r"available: # GiB"),
        ("weights_mib", "Loaded engine size", r"Loaded engine size: # MiB"),
        (
            "weights_gib",
            "model weights",
            r"[Mm]emory used (?:for|after loading) model weights.{0,60}?: # GiB",
        ),
        ("max_num_tokens", "maxNumTokens:", r"TRTGptModel maxNumTokens: #"),
        ("max_batch_size", "maxBatchSize:", r"TRTGptModel maxBatchSize: #"),
        ("max_seq_len", "maxSequenceLen:", r"TRTGptModel maxSequenceLen: #"),
        ("max_seq_len", "max_num_requests=", r"\bmax_seq_len=#"),
        ("max_batch_size", "max_num_requests=", r"max_num_requests=#"),
        ("max_num_tokens", "max_num_requests=", r"max_num_tokens=#"),
        ("utilization", "max_tokens are set", r"are set \(to #"),
        ("pinned_tokens", "max_tokens are set", r"are set \(to [\d.]+ and #"),
    ]
)

ENGINES = {"vllm": VLLM, "sglang": SGLANG, "tensorrt-llm": TRTLLM}
"""Every engine's patterns; a figure printed twice with other decimals is found by the first pattern."""
