"""The command that starts what a plan describes: only the flags that differ from the engine's defaults."""

from __future__ import annotations

import json
import shlex
from typing import Any

from kvplan.demand import Demand
from kvplan.engine_args import Engine, EngineArgs

Flags = dict[str, Any]
"""Flag (without dashes in front) -> value; True and False are switches."""

_SGLANG = {
    "tensor_parallel_size": "tp-size",
    "pipeline_parallel_size": "pp-size",
    "data_parallel_size": "dp-size",
    "max_model_len": "context-length",
    "max_num_seqs": "max-running-requests",
    "max_num_batched_tokens": "chunked-prefill-size",
    "gpu_memory_utilization": "mem-fraction-static",
    "block_size": "page-size",
    "kv_cache_dtype": "kv-cache-dtype",
    "quantization": "quantization",
    "dtype": "dtype",
}
_TRTLLM = {
    "tensor_parallel_size": "tp_size",
    "pipeline_parallel_size": "pp_size",
    "max_model_len": "max_seq_len",
    "max_num_seqs": "max_batch_size",
    "max_num_batched_tokens": "max_num_tokens",
    "gpu_memory_utilization": "kv_cache_free_gpu_memory_fraction",
}


def serve_flags(args: EngineArgs, engine: Engine = "vllm") -> Flags:
    """Flags that differ from the defaults, in the engine's own spelling.

    >>> serve_flags(EngineArgs(tensor_parallel_size=2, enable_prefix_caching=False))
    {'tensor-parallel-size': 2, 'enable-prefix-caching': False}
    """
    changed = args.model_dump(exclude_defaults=True)
    if engine != "vllm":
        names = _SGLANG if engine == "sglang" else _TRTLLM
        return {names[key]: value for key, value in changed.items() if key in names}
    drafts, method = changed.pop("num_speculative_tokens", 0), changed.pop("speculative_method", "mtp")
    flags = {key.replace("_", "-"): value for key, value in changed.items()}
    if drafts:
        flags["speculative-config"] = {"method": method, "num_speculative_tokens": drafts}
    return flags


def with_length(args: EngineArgs, demand: Demand) -> EngineArgs:
    """Serve no longer a context than the stated lengths need, unless the user said how long."""
    if args.max_model_len is not None or not demand.is_stated:
        return args
    return args.model_copy(update={"max_model_len": demand.trace_tokens(0)})


def shell_command(model: str, args: EngineArgs, engine: Engine = "vllm") -> str:
    """One line for a shell.

    >>> print(shell_command("Qwen/Qwen3-8B", EngineArgs(tensor_parallel_size=2, max_model_len=16896)))
    vllm serve Qwen/Qwen3-8B --tensor-parallel-size 2 --max-model-len 16896
    """
    start = {
        "vllm": ["vllm", "serve", model],
        "sglang": ["python", "-m", "sglang.launch_server", "--model-path", model],
        "tensorrt-llm": ["trtllm-serve", model],
    }[engine]
    return shlex.join([*start, *to_words(serve_flags(args, engine))])


def to_words(flags: Flags) -> list[str]:
    """Flags as words of a command line."""
    return [word for flag, value in flags.items() for word in _words(flag, value)]


def _words(flag: str, value: Any) -> list[str]:
    if value is True:
        return [f"--{flag}"]
    if value is False:
        return [f"--no-{flag}"]
    if isinstance(value, (tuple, list)):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]


def yaml_config(model: str, args: EngineArgs) -> str:
    """A file for `vllm serve --config`.

    >>> print(yaml_config("Qwen/Qwen3-8B", EngineArgs(tensor_parallel_size=2)))
    model: Qwen/Qwen3-8B
    tensor-parallel-size: 2
    """
    lines = [f"model: {model}"]
    lines += [f"{flag}: {_yaml(value)}" for flag, value in serve_flags(args).items()]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    """Scalars as YAML reads them; JSON is YAML."""
    if isinstance(value, str):
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value)
