"""`kvplan serve-command`: the command or config file that serves a plan."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from kvplan.commands.common import DEMAND, FLAGS
from kvplan.commands.estimate import make_plan
from kvplan.errors import KvplanError
from kvplan.report import reason
from kvplan.serve_command import shell_command, with_length, yaml_config


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

    Parameters
    ----------
    model
        A bundled name, a config.json, or a folder that holds one.
    gpu
        A name of `kvplan gpus`, or `local`.
    engine
        vllm, sglang or tensorrt-llm, with an optional @version.
    format
        shell, or yaml for `vllm serve --config`.
    hub
        Fetch the config from the Hugging Face hub if it is not bundled.
    """
    plan = make_plan(model, gpu, engine, "serve", args, demand, (), None, hub)
    question = plan.question
    flags = with_length(question.args, question.demand)
    if format == "yaml":
        if question.engine.engine != "vllm":
            raise KvplanError("--format yaml is a file for `vllm serve --config`; use --format shell")
        print(yaml_config(question.model.name, flags))
    else:
        print(shell_command(question.model.name, flags, question.engine.engine))
    if plan.fits:
        return 0
    print(f"kvplan: {reason(plan)}", file=sys.stderr)
    return 1
