"""`kvplan serve-command`: the command or config file that serves a plan."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from kvplan.cli.memory_commands import make_plan
from kvplan.cli.options import DEMAND, FLAGS
from kvplan.memory.report import reason
from kvplan.memory.serve_command import shell_command, unspoken, with_length, yaml_config


def serve_command(
    model: str,
    /,
    *,
    gpu: str = "h100",
    engine: str = "vllm",
    args: FLAGS = None,
    demand: DEMAND = None,
    format: Literal["shell", "yaml"] = "shell",
    hub: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Print the command that serves the plan: only the flags that differ from the engine's defaults.

    Exit code 1, with the reason on stderr, when the plan does not fit.

    For example:

        kvplan serve-command Qwen/Qwen3-8B --gpu h100 --input-len 512 --output-len 16K

        kvplan serve-command Qwen/Qwen3-8B --gpu h100 -tp 2 --format yaml > serve.yaml

        kvplan serve-command Qwen/Qwen3-8B --gpu h100 --engine sglang --max-num-seqs 64

    Parameters
    ----------
    model
        A bundled name, a config.json, or a folder that holds one.
    gpu
        A name of `kvplan gpus`, or `local`.
    engine
        vllm, sglang or tensorrt-llm, with an optional @version.
    format
        shell, or yaml: a file for `vllm serve --config`, SGLang's `--config`, or what TensorRT-LLM takes only from
        `--extra_llm_api_options`.
    hub
        Fetch the config from the Hugging Face hub if it is not bundled.
    """
    plan = make_plan(model, gpu, engine, "serve", args, demand, (), None, hub)
    question = plan.question
    flags = with_length(question.args, question.demand)
    serving = question.engine.engine
    if format == "yaml":
        print(yaml_config(question.model.name, flags, serving))
    else:
        print(shell_command(question.model.name, flags, serving))
    missing = unspoken(flags, serving)
    if missing:
        print(f"kvplan: left out, {serving} has no such flag: {', '.join(missing)}", file=sys.stderr)
    if plan.fits:
        return 0
    print(f"kvplan: {reason(plan)}", file=sys.stderr)
    return 1
