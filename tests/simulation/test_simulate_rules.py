"""Admission rules that a scenario chooses: what they do, what they say of themselves, whom MTP drops."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import Deployment, parse_scenario
from kvplan.simulation.deploy import Setup, set_up
from kvplan.simulation.simulator import simulate

WORKLOAD = {
    "num_requests": 24,
    "arrivals": {"kind": "all_at_once"},
    "prompt": 1005,
    "answer": 40,
    "max_tokens": 40,
    "shared_prefix_tokens": 1000,
}


def deployment(**keys: Any) -> Setup:
    return set_up(
        Deployment.model_validate({"model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "h100", **keys})
    )


def outcome(**keys: Any) -> dict[str, Any]:
    base = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "engine": {"num_gpu_blocks_override": 400, "max_model_len": 2048},
    }
    return simulate(parse_scenario({**base, "workload": WORKLOAD, **keys})).to_dict()


def test_reserving_never_preempts() -> None:
    """TensorRT-LLM's guarantee; vLLM's rule admits more and preempts on the same pool."""
    tight = {
        "workload": {**WORKLOAD, "shared_prefix_tokens": 0, "prompt": 160, "answer": 640, "max_tokens": 640}
    }
    grown, reserved = outcome(**tight), outcome(admission="reserve_max", **tight)
    assert grown["num_preemptions"] > 0 == reserved["num_preemptions"]
    assert reserved["mean_batch_size"] < grown["mean_batch_size"]


@pytest.mark.parametrize(
    ("rules", "caveats"),
    [
        ({}, []),
        ({"admission": "max_utilization"}, ["admission max_utilization: not checked against TensorRT-LLM"]),
    ],
)
def test_a_result_says_what_was_not_checked(rules: dict[str, str], caveats: list[str]) -> None:
    assert outcome(**rules)["caveats"] == caveats


def test_the_text_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "--quiet", "--num-prompts", "3", "--set", "admission=reserve_max"]
    assert run(["simulate", *words]) == 0
    assert "Caveat: admission reserve_max: not checked against TensorRT-LLM" in capsys.readouterr().out
    run(
        [
            "compare",
            "strategy_self_consistency",
            "--set",
            "problems.num_problems=1",
            "--set",
            "problems.strategies=[{strategy: self_consistency, n: 2, max_tokens: 500}]",
            "--set",
            "admission=reserve_max",
            "--json",
        ]
    )
    assert json.loads(capsys.readouterr().out)["caveats"] == [
        "admission reserve_max: not checked against TensorRT-LLM"
    ]


def test_nothing_shared_still_leaps() -> None:
    """Without prefix caching nothing is left to find."""
    off = outcome(
        engine={"num_gpu_blocks_override": 400, "max_model_len": 2048, "enable_prefix_caching": False}
    )
    assert off["modes"] == {"": "leap"}


@pytest.mark.parametrize(
    ("gone", "instead"),
    [
        ({"sharing": "none"}, "engine.enable_prefix_caching: false"),
        ({"sharing": "token"}, "`sglang: {}`"),
        ({"admission": "conservative"}, "`sglang: {}`"),
        (
            {"models": {"judge": {"model": "Qwen/Qwen3-8B", "sharing": "none"}}},
            "engine.enable_prefix_caching",
        ),
    ],
)
def test_a_rule_that_is_gone_names_what_to_use(gone: dict[str, Any], instead: str) -> None:
    """One line, and it says which key does it now."""
    with pytest.raises(KvplanError, match="is gone") as error:
        outcome(**gone)
    assert instead in str(error.value)
    assert "\n" not in str(error.value)


def test_only_the_drafters_group_drops_a_block() -> None:
    """vLLM `_annotate_eagle_groups`: with MTP the group of the layer registered last; other methods mark none."""
    engine = {"num_speculative_tokens": 1, "tensor_parallel_size": 4}
    hybrid = {"model": "Qwen/Qwen3-Next-80B-A3B-Instruct", "gpu": "h100"}
    groups = deployment(**hybrid, engine=engine).config.groups
    marked = [group.kind for group in groups if group.eagle]
    assert len(groups) > 1
    assert marked == ["full"]
    plain = deployment(**hybrid, engine={"tensor_parallel_size": 4}).config.groups
    assert not any(group.eagle for group in plain)
