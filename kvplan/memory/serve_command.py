"""The command that starts what a plan describes: only the flags that differ from the engine's defaults."""

from __future__ import annotations

import json
import shlex
from typing import Any

from kvplan.engines.flags import Engine, EngineArgs
from kvplan.engines.spelling import spell
from kvplan.memory.demand import Demand
from kvplan.models.spec import ModelSpec

Flags = dict[str, Any]
"""Flag (without dashes in front) -> value; True and False are switches."""

TRTLLM_FILE = "trtllm-options.yaml"
"""Options that trtllm-serve takes only from a file, --extra_llm_api_options."""


def serve_flags(
    args: EngineArgs, engine: Engine = "vllm", draft: ModelSpec | None = None, *, experts: bool = False
) -> Flags:
    """Flags that differ from the defaults, in the engine's words; `spelling.unspoken` names those it has none for.

    `experts`: the model's are spread over data-parallel ranks too, which SGLang's tensor-parallel size counts.

    >>> serve_flags(EngineArgs(tensor_parallel_size=2, enable_prefix_caching=False))
    {'tensor-parallel-size': 2, 'enable-prefix-caching': False}
    >>> serve_flags(EngineArgs(tensor_parallel_size=2, enable_prefix_caching=False), "sglang")
    {'tp-size': 2, 'disable-radix-cache': True}
    >>> serve_flags(EngineArgs(tensor_parallel_size=2, data_parallel_size=4), "sglang", experts=True)
    {'tp-size': 8, 'dp-size': 4, 'enable-dp-attention': True}
    """
    spoken = spell(args, engine)
    if engine == "sglang" and experts and args.data_parallel_size > 1:
        ranks = args.tensor_parallel_size * args.data_parallel_size
        sizes = dict.fromkeys(("tp_size", *(["ep_size"] if "ep_size" in spoken else ())), ranks)
        spoken = {"tp_size": ranks, **(spoken | sizes), "enable_dp_attention": True}
    if engine == "tensorrt-llm":
        return spoken | ({"extra_llm_api_options": TRTLLM_FILE} if trtllm_options(args) else {})
    drafts, method = spoken.pop("num_speculative_tokens", 0), spoken.pop("speculative_method", "mtp")
    rest = spoken.pop("speculative_config", None)
    flags = {word.replace("_", "-"): value for word, value in spoken.items()}
    if args.return_sampling_mask:
        flags = {"logprobs-mode": "processed_logprobs"} | flags  # which vLLM asks for beside it
    if drafts:
        beside = {} if draft is None else {"model": draft.path}
        told = {"method": method} | beside | {"num_speculative_tokens": drafts}
        flags["speculative-config"] = told | (json.loads(rest) if rest else {})
    return flags


def flag_text(engine: Engine = "vllm", **changes: object) -> str:
    """How an engine's command line says some changes.

    >>> flag_text("sglang", max_num_seqs=64), flag_text(enable_expert_parallel=True)
    ('--max-running-requests 64', '--enable-expert-parallel')
    """
    flags = serve_flags(EngineArgs.model_construct(**changes), engine)  # type: ignore[arg-type]
    return " ".join(to_words(flags))


def trtllm_options(args: EngineArgs) -> dict[str, Any]:
    """What of the flags goes into TensorRT-LLM's --extra_llm_api_options file.

    >>> trtllm_options(EngineArgs(kv_cache_dtype="fp8", enable_prefix_caching=False))
    {'kv_cache_config': {'dtype': 'fp8', 'enable_block_reuse': False}}
    """
    options: dict[str, Any] = {}
    for path, value in spell(args, "tensorrt-llm", in_file=True).items():
        section, _, name = path.rpartition(".")
        (options.setdefault(section, {}) if section else options)[name] = value
    return options


def with_length(args: EngineArgs, demand: Demand) -> EngineArgs:
    """Serve no longer a context than the stated lengths need, unless the user said how long."""
    if args.max_model_len is not None or not demand.is_stated:
        return args
    return args.model_copy(update={"max_model_len": demand.trace_tokens(0)})


def model_flags(model: ModelSpec, engine: Engine) -> Flags:
    """Where the model's config was read and what was laid over it, in the engine's words; TensorRT-LLM has none."""
    word = {"vllm": "hf-overrides", "sglang": "json-model-override-args"}.get(engine)
    laid = {word: json.loads(model.hf_overrides)} if word and model.hf_overrides else {}
    read = {"hf-config-path": model.hf_config_path} if engine == "vllm" and model.hf_config_path else {}
    return read | laid


def shell_command(
    model: str | ModelSpec,
    args: EngineArgs,
    engine: Engine = "vllm",
    draft: ModelSpec | None = None,
    *,
    experts: bool = False,
) -> str:
    """One line for a shell.

    >>> print(shell_command("Qwen/Qwen3-8B", EngineArgs(tensor_parallel_size=2, max_model_len=16896)))
    vllm serve Qwen/Qwen3-8B --tensor-parallel-size 2 --max-model-len 16896
    """
    name = model if isinstance(model, str) else model.path
    start = {
        "vllm": ["vllm", "serve", name],
        "sglang": ["python", "-m", "sglang.launch_server", "--model-path", name],
        "tensorrt-llm": ["trtllm-serve", name],
    }[engine]
    laid = {} if isinstance(model, str) else model_flags(model, engine)
    flags = serve_flags(args, engine, draft, experts=experts) | laid
    line = shlex.join([*start, *to_words(flags)])
    return f"{args.env} {line}" if args.env and engine == "vllm" else line


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


def yaml_config(
    model: str | ModelSpec,
    args: EngineArgs,
    engine: Engine = "vllm",
    draft: ModelSpec | None = None,
    *,
    experts: bool = False,
) -> str:
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
    name, laid = (model, {}) if isinstance(model, str) else (model.path, model_flags(model, engine))
    lines = [f"# {args.env} vllm serve --config FILE"] if args.env and engine == "vllm" else []
    lines += [f"{'model' if engine == 'vllm' else 'model-path'}: {name}"]
    flags = serve_flags(args, engine, draft, experts=experts) | laid
    lines += [f"{flag}: {_yaml(value)}" for flag, value in flags.items()]
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
