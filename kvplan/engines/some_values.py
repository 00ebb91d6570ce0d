"""Flags of vLLM's parser that change the plan with some values only, and those that it refuses beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvplan.ground.errors import KvplanError

IDLE_VALUES: dict[str, tuple[tuple[str, ...], str]] = {
    "scheduler-cls": (
        ("vllm.v1.core.sched.async_scheduler.asyncscheduler",),
        "a scheduler of one's own: which requests run, and so times and preemptions, may be others",
    ),
    "distributed-executor-backend": (
        ("mp", "ray", "uni", "external_launcher"),
        "an executor of one's own: on which cards ranks run, and what passes between them, may be others",
    ),
    "worker-cls": (
        ("auto", "vllm.v1.worker.gpu_worker.worker"),
        "a worker of one's own: what it takes of the card is not counted",
    ),
}
"""Flag -> the values that change nothing, and what all others are about."""


def about_value(flag: str, value: Any) -> str:
    """What a flag's value changes that is not planned; empty for one that changes nothing.

    >>> about_value("worker-cls", "auto"), about_value("worker-cls", "my.Worker"), about_value("port", "80")
    ('', "a worker of one's own: what it takes of the card is not counted", '')
    """
    idle, about = IDLE_VALUES.get(flag, ((), ""))
    return "" if str(value).casefold() in idle else about


OF_LORA = (
    *(
        "max-loras",
        "max-lora-rank",
        "max-cpu-loras",
        "lora-dtype",
        "lora-target-modules",
        "fully-sharded-loras",
    ),
    *("specialize-active-lora", "enable-moe-shared-loras", "enable-tower-connector-lora"),
)


def in_vain(told: Mapping[str, Any]) -> list[str]:
    """Flags that do nothing for what stands beside them, or does not, each with the reason.

    >>> in_vain({"max-loras": "8"})
    ['--max-loras does nothing without --enable-lora']
    """
    found = []
    if told.get("enable-lora") is not True:
        found += [f"--{flag} does nothing without --enable-lora" for flag in OF_LORA if told.get(flag)]
    in_groups = str(told.get("offload-group-size", "0")) != "0"
    if in_groups and told.get("offload-backend") == "uva":
        found.append("--offload-group-size does nothing with --offload-backend uva")
    elif in_groups and "cpu-offload-gb" in told:
        found.append("--cpu-offload-gb does nothing beside --offload-group-size, which prefetches")
    if "cpu-offload-params" in told and "cpu-offload-gb" not in told:
        found.append("--cpu-offload-params does nothing without --cpu-offload-gb")
    return found


def check_together(told: Mapping[str, Any]) -> None:
    """Refuse flags that vLLM 0.32 refuses beside others, though neither is in the plan (`config/vllm.py`)."""
    scales = [f"mm-encoder-fp8-scale-{end}path" for end in ("", "save-")]
    stated = [flag for flag in scales if told.get(flag) is not None]
    if stated and told.get("mm-encoder-attn-dtype") != "fp8":
        raise KvplanError(f"--{stated[0]}: only with --mm-encoder-attn-dtype fp8")
    if len(stated) > 1:
        raise KvplanError(f"--{stated[1]}: not beside --{stated[0]}, scales to save are found as it runs")
    if told.get("return-sampling-mask") is True:
        if told.get("logits-processors") is not None:
            raise KvplanError("--return-sampling-mask does not go with --logits-processors")
        if told.get("logprobs-mode") != "processed_logprobs":
            raise KvplanError("--return-sampling-mask requires --logprobs-mode processed_logprobs")
    if (nodes := str(told.get("nnodes", 1))) != "1" and told.get("distributed-executor-backend") == "ray":
        raise KvplanError(
            f"--nnodes {nodes} does not go with --distributed-executor-backend ray; leave one out"
        )
    if (
        told.get("all2all-backend") == "moonep"
        and told.get("expert-placement-strategy", "linear") != "linear"
    ):
        raise KvplanError("--all2all-backend moonep requires --expert-placement-strategy linear")
    if told.get("enable-fault-tolerance") is True:
        if told.get("data-parallel-external-lb") is not True and told.get("data-parallel-rank") is None:
            raise KvplanError(
                "--enable-fault-tolerance requires --data-parallel-external-lb or --data-parallel-rank"
            )
        if str(told.get("api-server-count", 1)) != "1":
            raise KvplanError("--enable-fault-tolerance requires --api-server-count 1")
    few, most = str(told.get("max-cpu-loras")), str(told.get("max-loras", 1))
    counted = few.isdecimal() and most.isdecimal()
    if told.get("enable-lora") is True and counted and int(few) < int(most):
        raise KvplanError(f"--max-cpu-loras {few} must be at least --max-loras {most}")
    rounds = told.get("enable-mamba-cache-stochastic-rounding") is True
    if rounds and told.get("mamba-ssm-cache-dtype") != "float16":
        raise KvplanError(
            "--enable-mamba-cache-stochastic-rounding: only with --mamba-ssm-cache-dtype float16"
        )
