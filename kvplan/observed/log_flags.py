"""Flags, model and card that a log's configuration lines tell. Only known keys with plain values are taken:

a log may hold API keys and tokens, and nothing of a line is kept but what is asked for here.
"""

from __future__ import annotations

import re

FLAG_LINES = (
    "with config:",
    "non-default args",
    "Namespace(",
    "server_args=",
    "vllm serve",
    "api_server",
    "launch_server",
    "trtllm-serve",
    "max_num_batched_tokens",
    "speculative_config",
)
"""Literals of lines that tell flags."""

_SAME = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "enable_expert_parallel",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "num_gpu_blocks_override",
    "block_size",
    "kv_cache_dtype",
    "attention_backend",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "async_scheduling",
    "disable_hybrid_kv_cache_manager",
    "mamba_cache_dtype",
    "mamba_ssm_cache_dtype",
    "mamba_block_size",
    "mamba_cache_mode",
    "num_speculative_tokens",
    "quantization",
    "dtype",
    "enforce_eager",
)
_VLLM = {key: key for key in _SAME} | {
    "max_seq_len": "max_model_len",
    "chunked_prefill_enabled": "enable_chunked_prefill",
    "num_spec_tokens": "num_speculative_tokens",
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "kv_cache_memory": "kv_cache_memory_bytes",
}
_SGLANG = {
    "tp_size": "tensor_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "dp_size": "data_parallel_size",
    "tp": "tensor_parallel_size",
    "tensor_parallel_size": "tensor_parallel_size",
    "context_length": "max_model_len",
    "max_running_requests": "max_num_seqs",
    "chunked_prefill_size": "max_num_batched_tokens",
    "mem_fraction_static": "gpu_memory_utilization",
    "page_size": "block_size",
    "kv_cache_dtype": "kv_cache_dtype",
    "quantization": "quantization",
    "dtype": "dtype",
    "disable_cuda_graph": "enforce_eager",
    "max_total_tokens": "max_total_tokens",
}
_TRTLLM = {
    "tp_size": "tensor_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "max_seq_len": "max_model_len",
    "max_batch_size": "max_num_seqs",
    "max_num_tokens": "max_num_batched_tokens",
    "kv_cache_free_gpu_memory_fraction": "gpu_memory_utilization",
    "free_gpu_memory_fraction": "gpu_memory_utilization",
    "kv_cache_free_gpu_mem_fraction": "gpu_memory_utilization",
    "tokens_per_block": "block_size",
}
SPELLINGS = {"vllm": _VLLM, "sglang": _SGLANG, "tensorrt-llm": _TRTLLM}
"""Engine -> its spelling of a flag -> `EngineArgs` field (or a figure of the pool)."""

_VALUE = r"""(?P<q>['"]?)(?P<value>[\w.+/-]{1,64})(?P=q)"""


def _pairs(names: dict[str, str]) -> re.Pattern[str]:
    keys = "|".join(sorted(names, key=len, reverse=True))
    return re.compile(rf"""(?<![\w-])['"]?(?P<key>{keys})['"]?\s?[=:]\s?{_VALUE}(?=[\s,)}}\]]|$)""")


def _words(names: dict[str, str]) -> re.Pattern[str]:
    keys = "|".join(sorted(names, key=len, reverse=True)).replace("_", "[-_]")
    return re.compile(rf"""(?<!\w)--?(?P<key>(?:no-)?(?:{keys}))(?:(?:\s+|=){_VALUE})?(?=[\s'",\]]|$)""")


_PATTERNS = {engine: (_pairs(names), _words(names)) for engine, names in SPELLINGS.items()}
_METHOD = re.compile(
    r"""(?:SpeculativeConfig\(|speculative_config['"]?\s?[:=]\s?['"]?\{).{0,200}?method['"]?\s?[=:]\s?['"](\w+)"""
)
_MODEL = re.compile(
    r"""(?:\b(?:model|model_tag|model_path)['"]?\s?[=:]\s?['"]|--model(?:-path)?[ =]['"]?"""
    r"""|(?:vllm|trtllm-)\s?serve\s+['"]?)(?P<model>[A-Za-z0-9_./~-][\w./~-]{1,199})(?=['"\s,)]|$)"""
)
_SECRET = re.compile(r"^(?:hf_|sk-|ghp_|github_pat_)", re.IGNORECASE)
_TRUTH = {"True": True, "true": True, "False": False, "false": False}

_GPU = (
    re.compile(r"GPU \d+: ((?:NVIDIA|AMD|Tesla|GeForce)[\w .+/-]{2,60}?)(?= \(UUID|\s*[(,|]|\s*$)"),
    re.compile(r"\|\s+\d+\s+((?:NVIDIA|Tesla|GeForce|AMD)[\w .+/-]{2,40}?)\s+(?:On|Off)\s*\|"),
    re.compile(r"device_name=((?:NVIDIA|AMD)[\w-]{2,60}?)(?:,|\.json|['\s)]|$)"),
)
GPU_LINES = ("GPU ", "NVIDIA", "device_name=", "AMD")


def read_flags(line: str, engine: str) -> dict[str, object]:
    """Known flags of one configuration line, by `EngineArgs` field; `None` and unknown values left out."""
    names, (pairs, words) = SPELLINGS[engine], _PATTERNS[engine]
    found: dict[str, object] = {}
    for match in pairs.finditer(line):
        _take(found, names[match["key"]], match["value"])
    if "--" in line or " -tp" in line:
        for match in words.finditer(line):
            key = match["key"].replace("-", "_")
            name = names.get(key.removeprefix("no_"))
            if name:
                _take(found, name, match["value"] or str(not key.startswith("no_")))
    method = _METHOD.search(line)
    if method:
        found["speculative_method"] = _method(method[1])
    return found


def _take(found: dict[str, object], name: str, text: str) -> None:
    value = _value(text)
    if value is not None:
        found.setdefault(name, value)


def _value(text: str) -> object:
    """A flag's plain value: truth, number or a short word; None for None."""
    if text in _TRUTH:
        return _TRUTH[text]
    if text in ("None", "null", "") or _SECRET.match(text):
        return None
    plain = text.removeprefix("torch.")
    try:
        return int(plain)
    except ValueError:
        pass
    try:
        return float(plain)
    except ValueError:
        return plain


def _method(name: str) -> str:
    if name.endswith("mtp"):
        return "mtp"
    return "eagle" if name.startswith("eagle") else name


def read_model(line: str) -> str:
    """The model's name or path in a configuration line; empty if there is none."""
    match = _MODEL.search(line)
    if match is None or _SECRET.match(match["model"]) or "//" in match["model"]:
        return ""
    return match["model"].rstrip("/.,")


def read_gpu(line: str) -> str:
    """The card's product name in a line of collect_env, nvidia-smi or a kernel's config file; else empty."""
    match = next((m for pattern in _GPU if (m := pattern.search(line))), None)
    return match[1].replace("_", " ").strip() if match else ""
