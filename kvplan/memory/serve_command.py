"""The command that starts what a plan describes: only the flags that differ from the engine's defaults."""

from __future__ import annotations

import json
import shlex
from typing import Any

from kvplan.engines.flags import Engine, EngineArgs
from kvplan.memory.demand import Demand

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
    "num_gpu_blocks_override": "max-total-tokens",
    "block_size": "page-size",
    "kv_cache_dtype": "kv-cache-dtype",
    "mamba_ssm_cache_dtype": "mamba-ssm-dtype",
    "quantization": "quantization",
    "dtype": "dtype",
    "enforce_eager": "disable-cuda-graph",
    "enable_prefix_caching": "disable-radix-cache",
    "enable_chunked_prefill": "chunked-prefill-size",
    "async_scheduling": "disable-overlap-schedule",
    "enable_expert_parallel": "ep-size",
}
_TRTLLM = {
    "tensor_parallel_size": "tp_size",
    "pipeline_parallel_size": "pp_size",
    "enable_expert_parallel": "ep_size",
    "max_model_len": "max_seq_len",
    "max_num_seqs": "max_batch_size",
    "max_num_batched_tokens": "max_num_tokens",
    "gpu_memory_utilization": "kv_cache_free_gpu_memory_fraction",
}
_TRTLLM_FILE = {
    "block_size": ("kv_cache_config", "tokens_per_block"),
    "kv_cache_dtype": ("kv_cache_config", "dtype"),
    "num_gpu_blocks_override": ("kv_cache_config", "max_tokens"),
    "kv_cache_memory_bytes": ("kv_cache_config", "max_gpu_total_bytes"),
    "enable_prefix_caching": ("kv_cache_config", "enable_block_reuse"),
    "enable_chunked_prefill": ("enable_chunked_prefill",),
    "enforce_eager": ("cuda_graph_config",),
    "async_scheduling": ("disable_overlap_scheduler",),
}
"""Options that trtllm-serve takes only from a file, --extra_llm_api_options."""
TRTLLM_FILE = "trtllm-options.yaml"


def serve_flags(args: EngineArgs, engine: Engine = "vllm") -> Flags:
    """Flags that differ from the defaults, in the engine's own spelling; `unspoken` names those it has none for.

    >>> serve_flags(EngineArgs(tensor_parallel_size=2, enable_prefix_caching=False))
    {'tensor-parallel-size': 2, 'enable-prefix-caching': False}
    >>> serve_flags(EngineArgs(tensor_parallel_size=2, enable_prefix_caching=False), "sglang")
    {'tp-size': 2, 'disable-radix-cache': True}
    """
    changed = args.model_dump(exclude_defaults=True)
    if engine == "sglang":
        return _sglang_flags(changed, args)
    if engine == "tensorrt-llm":
        return _trtllm_flags(changed, args)
    drafts, method = changed.pop("num_speculative_tokens", 0), changed.pop("speculative_method", "mtp")
    flags = {key.replace("_", "-"): value for key, value in changed.items()}
    if drafts:
        flags["speculative-config"] = {"method": method, "num_speculative_tokens": drafts}
    return flags


def flag_text(engine: Engine = "vllm", **changes: object) -> str:
    """How an engine's command line says some changes.

    >>> flag_text("sglang", max_num_seqs=64), flag_text(kv_cache_dtype="fp8")
    ('--max-running-requests 64', '--kv-cache-dtype fp8')
    """
    flags = serve_flags(EngineArgs.model_construct(**changes), engine)  # type: ignore[arg-type]
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def _sglang_flags(changed: Flags, args: EngineArgs) -> Flags:
    """SGLang's switches turn off what vLLM's turn on; its pool is counted in tokens."""
    flags: Flags = {}
    for key, value in changed.items():
        name = _SGLANG.get(key)
        if name is None or (name.startswith("disable") and key != "enforce_eager" and value):
            continue
        if key == "num_gpu_blocks_override":
            value *= args.block_size or 1
        elif key == "enable_chunked_prefill":
            if value:
                continue
            value = -1
        elif key == "enable_expert_parallel":
            value = args.tensor_parallel_size
        elif key == "kv_cache_dtype":
            value = {"fp8": "fp8_e4m3"}.get(value, value)
        flags[name] = True if name.startswith("disable") else value
    return flags


def _trtllm_flags(changed: Flags, args: EngineArgs) -> Flags:
    flags = {_TRTLLM[key]: value for key, value in changed.items() if key in _TRTLLM}
    if "ep_size" in flags:
        flags["ep_size"] = args.tensor_parallel_size
    return flags | ({"extra_llm_api_options": TRTLLM_FILE} if trtllm_options(args) else {})


def trtllm_options(args: EngineArgs) -> dict[str, Any]:
    """What of the flags goes into TensorRT-LLM's --extra_llm_api_options file.

    >>> trtllm_options(EngineArgs(kv_cache_dtype="fp8", enable_prefix_caching=False))
    {'kv_cache_config': {'dtype': 'fp8', 'enable_block_reuse': False}}
    """
    options: dict[str, Any] = {}
    for key, value in args.model_dump(exclude_defaults=True).items():
        path = _TRTLLM_FILE.get(key)
        if path is None:
            continue
        if key == "num_gpu_blocks_override":
            value *= args.block_size or 32
        elif key == "enforce_eager":
            value = None
        elif key == "async_scheduling":
            value = not value
        section = options.setdefault(path[0], {}) if len(path) > 1 else options
        section[path[-1]] = value
    return options


def unspoken(args: EngineArgs, engine: Engine) -> list[str]:
    """Flags that the engine has no word for, as vLLM spells them."""
    if engine == "vllm":
        return []
    known = set(_SGLANG) if engine == "sglang" else {*_TRTLLM, *_TRTLLM_FILE}
    changed = args.model_dump(exclude_defaults=True)
    return ["--" + key.replace("_", "-") for key in changed if key not in known]


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


def yaml_config(model: str, args: EngineArgs, engine: Engine = "vllm") -> str:
    """A file for `vllm serve --config`, `sglang.launch_server --config`, `trtllm-serve --extra_llm_api_options`.

    >>> print(yaml_config("Qwen/Qwen3-8B", EngineArgs(tensor_parallel_size=2)))
    model: Qwen/Qwen3-8B
    tensor-parallel-size: 2
    >>> print(yaml_config("Qwen/Qwen3-8B", EngineArgs(kv_cache_dtype="fp8"), "tensorrt-llm"))
    kv_cache_config:
      dtype: fp8
    """
    if engine == "tensorrt-llm":
        return "\n".join(_sections(trtllm_options(args)))
    lines = [f"{'model' if engine == 'vllm' else 'model-path'}: {model}"]
    lines += [f"{flag}: {_yaml(value)}" for flag, value in serve_flags(args, engine).items()]
    return "\n".join(lines)


def _sections(options: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in options.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name}: {_yaml(one)}" for name, one in value.items())]
        else:
            lines.append(f"{key}: {_yaml(value)}")
    return lines


def _yaml(value: Any) -> str:
    """Scalars as YAML reads them; JSON is YAML."""
    if isinstance(value, str):
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value)
