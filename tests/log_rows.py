# ruff: noqa: E501
"""Rebuilds start-up logs from rows of printed figures, in the words of the engine and its time."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def log_text(row: Row) -> str:
    """The log lines that print a row's figures."""
    engine = row["engine"].split(" ")[0]
    lines = {"vllm-v0": _v0, "vllm-v1": _v1, "sglang": _sglang, "tensorrt-llm": _trtllm}[engine](row)
    return "\n".join(
        ["INFO 01-01 00:00:00 some other line", *lines, "INFO:     Application startup complete."]
    )


def _of(row: Row, name: str) -> Any:
    return row["printed"].get(name)


def _args(row: Row, names: dict[str, str]) -> str:
    """Flags as they stand in a dict's or a namespace's text."""
    told = {names[key]: row[key] for key in names if row.get(key) is not None}
    return ", ".join(f"'{key}': {value!r}" for key, value in told.items())


_VLLM = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "kv_cache_dtype": "kv_cache_dtype",
}


def _block(row: Row) -> dict[str, str]:
    return _VLLM | ({"block_size": "block_size"} if row["block_size"] in (16, 32, 64, 128) else {})


def _v0(row: Row) -> list[str]:
    """vLLM 0.6 printed one line of sizes in its own spelling, 0.7 to 0.9 four lines."""
    head = [f"INFO 01-01 api_server.py:712] args: Namespace({_namespace(row)})"]
    weights = _of(row, "model_weights_gib")
    lines = (
        [f"INFO 01-01 model_runner.py:1099] Loading model weights took {weights:.4f} GB"] if weights else []
    )
    total, share = row["gpu_memory_gib"], row["gpu_memory_utilization"]
    if _of(row, "peak_torch_memory_gib"):
        lines.append(
            f"INFO 01-01 worker.py:232] Memory profiling results: total_gpu_memory={total}GiB "
            f"initial_memory_usage=15.34GiB peak_torch_memory={_of(row, 'peak_torch_memory_gib')}GiB "
            f"memory_usage_post_profile=15.35Gib non_torch_memory={_of(row, 'non_torch_gib')}GiB "
            f"kv_cache_size={_of(row, 'available_kv_gib')}GiB gpu_memory_utilization={share:.2f}"
        )
    elif total:
        lines.append(
            f"INFO 01-01 worker.py:267] the current vLLM instance can use total_gpu_memory ({total}GiB) x "
            f"gpu_memory_utilization ({share:.2f}) = {total * share:.2f}GiB"
        )
        lines.append(
            f"INFO 01-01 worker.py:267] model weights take {weights:.2f}GiB; non_torch_memory takes "
            f"{_of(row, 'non_torch_gib')}GiB; PyTorch activation peak memory takes {_of(row, 'activation_peak_gib')}GiB; "
            f"the rest of the memory reserved for KV Cache is {_of(row, 'available_kv_gib')}GiB."
        )
    if _of(row, "num_gpu_blocks"):
        lines.append(
            f"INFO 01-01 executor_base.py:111] # cuda blocks: {_of(row, 'num_gpu_blocks')}, # CPU blocks: 2048"
        )
    if _of(row, "max_concurrency"):
        lines.append(
            f"INFO 01-01 executor_base.py:116] Maximum concurrency for {row['max_model_len']} tokens per request: "
            f"{_of(row, 'max_concurrency')}x"
        )
    if _of(row, "cuda_graph_gib"):
        lines.append(
            f"INFO 01-01 model_runner.py:1562] Graph capturing finished in 20 secs, took {_of(row, 'cuda_graph_gib')} GiB"
        )
    return head + lines


def _namespace(row: Row) -> str:
    told = {name: row[key] for key, name in _block(row).items() if row.get(key) is not None}
    return ", ".join(["api_key='sk-not-to-be-seen'", *(f"{key}={value!r}" for key, value in told.items())])


def pool_gib(row: Row) -> float | None:
    """The printed KV GiB; one row's figure is decimal (its notes), one is about."""
    size = _of(row, "available_kv_gib") or _of(row, "available_kv_gib_approx")
    return round(size * 1e9 / 2**30, 2) if size and _of(row, "kv_groups") else size


def _v1(row: Row) -> list[str]:
    core = "(EngineCore_DP0 pid=272) INFO 01-01 00:00:00 "
    lines = [f"(APIServer pid=1) INFO 01-01 [utils.py:233] non-default args: {{{_args(row, _block(row))}}}"]
    weights, total = _of(row, "model_weights_gib"), row["gpu_memory_gib"]
    if weights:
        lines.append(f"{core}[gpu_model_runner.py:2653] Model loading took {weights:.4f} GiB and 5.2 seconds")
    if pool_gib(row) is not None:
        lines.append(f"{core}[gpu_worker.py:298] Available KV cache memory: {pool_gib(row)} GiB")
    if _of(row, "num_gpu_blocks"):
        lines.append(f"{core}[core.py:90] # GPU blocks: {_of(row, 'num_gpu_blocks')}, # CPU blocks: 0")
    if _of(row, "kv_cache_tokens"):
        lines.append(
            f"{core}[kv_cache_utils.py:1087] GPU KV cache size: {_of(row, 'kv_cache_tokens'):,} tokens"
        )
    if _of(row, "max_concurrency") and row["max_model_len"]:
        lines.append(
            f"{core}[kv_cache_utils.py:1091] Maximum concurrency for {row['max_model_len']:,} tokens per request: "
            f"{_of(row, 'max_concurrency')}x"
        )
    if _of(row, "mamba_blocks"):
        lines.append(
            f"{core}[core.py:1101] ValueError: max_num_seqs ({row['max_num_seqs']}) exceeds available Mamba cache blocks "
            f"({_of(row, 'mamba_blocks')})."
        )
    if _of(row, "activation_peak_gib"):
        lines.append(
            f"{core}[gpu_worker.py:391] Free memory on device (78.57/{total} GiB) on startup. Desired GPU memory "
            f"utilization is ({row['gpu_memory_utilization']}, {total * row['gpu_memory_utilization']:.2f} GiB). Actual "
            f"usage is {weights} GiB for weight, {_of(row, 'activation_peak_gib')} GiB for peak activation, "
            f"{_of(row, 'non_torch_gib')} GiB for non-torch memory, and {_of(row, 'cuda_graph_gib')} GiB for CUDAGraph "
            "memory. Replace gpu_memory_utilization config with `--kv-cache-memory=1` to fit into requested memory."
        )
    elif _of(row, "cuda_graph_gib"):
        lines.append(
            f"{core}[gpu_model_runner.py:3480] Graph capturing finished in 20 secs, took {_of(row, 'cuda_graph_gib')} GiB"
        )
    return lines


def _sglang(row: Row) -> list[str]:
    flags = {
        "tp_size": row["tp"],
        "mem_fraction_static": row["gpu_memory_utilization"],
        "context_length": row["max_model_len"],
    }
    flags |= {"max_running_requests": row["max_num_seqs"], "api_key": "sk-not-to-be-seen", "page_size": 1}
    if "max-total-tokens" in row["notes"]:
        flags["max_total_tokens"] = 10000
    stamp = "[2025-10-01 00:00:00]" if row["tp"] == 1 else "[2025-10-01 00:00:00 TP0]"
    lines = [f"{stamp} server_args=ServerArgs({', '.join(f'{k}={v!r}' for k, v in flags.items())})"]
    after, weights, tokens = (
        _of(row, n) for n in ("avail_after_load_gb", "model_weights_gib", "kv_cache_tokens")
    )
    if after:
        used = f", mem usage={weights} GB." if weights else ""
        lines.append(
            f"{stamp} Load weight end. type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem={after} GB{used}"
        )
    if _of(row, "max_mamba_cache_size"):
        lines.append(
            f"{stamp} Mamba Cache is allocated. max_mamba_cache_size: {_of(row, 'max_mamba_cache_size')}, conv_state size: "
            f"{_of(row, 'mamba_conv_gb')}GB, ssm_state size: {_of(row, 'mamba_ssm_gb')}GB "
        )
    if _of(row, "k_gb"):
        lines.append(
            f"{stamp} KV Cache is allocated. #tokens: {tokens}, K size: {_of(row, 'k_gb')} GB, V size: {_of(row, 'v_gb')} GB"
        )
    if _of(row, "kv_gb"):
        lines.append(f"{stamp} KV Cache is allocated. #tokens: {tokens}, KV size: {_of(row, 'kv_gb')} GB")
    if _of(row, "avail_after_pool_gb"):
        lines.append(f"{stamp} Memory pool end. avail mem={_of(row, 'avail_after_pool_gb')} GB")
    if _of(row, "cuda_graph_gib"):
        graphs = _of(row, "cuda_graph_gib")
        lines.append(
            f"{stamp} Capture cuda graph end. Time elapsed: 5.1 s. mem usage={graphs} GB. avail mem=1.25 GB."
        )
    length = row["max_model_len"] or 131072
    lines.append(
        f"{stamp} max_total_num_tokens={tokens}, chunked_prefill_size=8192, max_prefill_tokens=16384, "
        f"max_running_requests=2048, context_len={length}"
    )
    return lines


def _trtllm(row: Row) -> list[str]:
    lead, lines = "[TensorRT-LLM][INFO] ", []
    if _of(row, "available_before_pool_gib"):
        lines.append(
            f"{lead}Memory usage when calculating max tokens in paged kv cache: total: {row['gpu_memory_gib']} GiB, "
            f"available: {_of(row, 'available_before_pool_gib')} GiB"
        )
    if _of(row, "num_gpu_blocks"):
        lines.append(f"{lead}Number of blocks in KV cache primary pool: {_of(row, 'num_gpu_blocks')}")
        lines.append(f"{lead}Number of tokens per block: {row['block_size']}.")
    tokens = _of(row, "kv_cache_tokens")
    if _of(row, "allocated_kv_bytes"):
        lines.append(f"{lead}Allocate {_of(row, 'allocated_kv_bytes')} bytes for k/v cache. ")
        lines.append(f"{lead}Using {tokens} tokens in paged KV cache.")
    elif _of(row, "available_kv_gib"):
        lines.append(
            f"{lead}[MemUsageChange] Allocated {_of(row, 'available_kv_gib')} GiB for max tokens in paged KV cache ({tokens})."
        )
    else:
        lines.append(f"{lead}Using {tokens} tokens in paged KV cache.")
    return lines
