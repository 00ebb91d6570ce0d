"""Sharing and admission rules that a scenario chooses: what they do, what they say of themselves, whom MTP drops."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvplan.cli.main import run
from kvplan.errors import KvplanError
from kvplan.scenario.schema import Deployment, parse_scenario
from kvplan.simulation.deploy import Setup, set_up
from kvplan.simulation.run import simulate

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


def test_finer_sharing_hits_more() -> None:
    """Of a prefix of 1,000 tokens vLLM hits 62 full blocks; tokens and copied blocks hit all of it; none hits none."""
    hits = {rule: outcome(sharing=rule) for rule in ("none", "full_block", "copy_on_write", "token")}
    per_request = {rule: d["prefix_cache_hit_tokens"] / 23 for rule, d in hits.items()}
    assert per_request["none"] == 0 < per_request["full_block"] <= 992
    assert per_request["full_block"] < per_request["copy_on_write"] <= 1000
    assert per_request["token"] >= per_request["copy_on_write"]


def test_a_pool_keeps_its_tokens_when_its_blocks_are_cut() -> None:
    """One-token blocks: the same tokens in the pool, and a peak that is a share of them."""
    whole, cut = deployment(), deployment(sharing="token")
    tokens = (whole.config.num_gpu_blocks - 1) * whole.config.block_size
    assert (cut.config.block_size, cut.config.num_gpu_blocks) == (1, tokens + 1)
    assert 0 < outcome(sharing="token")["kv_peak_fraction"] <= 1


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
        ({"sharing": "none"}, []),
        ({"sharing": "token"}, ["sharing token: not checked against SGLang"]),
        ({"admission": "conservative"}, ["admission conservative: not checked against SGLang"]),
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
            "sharing=copy_on_write",
            "--json",
        ]
    )
    assert json.loads(capsys.readouterr().out)["caveats"] == [
        "sharing copy_on_write: not checked against vLLM V0"
    ]


def test_nothing_shared_still_leaps() -> None:
    """Without prefix caching nothing is left to find, whoever says so."""
    none, off = outcome(sharing="none"), outcome(engine={"num_gpu_blocks_override": 400, "max_model_len": 2048,
                                                         "enable_prefix_caching": False})  # fmt: skip
    assert none["modes"] == off["modes"] == {"": "leap"}
    assert none["mean_e2el_ms"] == off["mean_e2el_ms"]


def test_hybrids_refuse_rules_of_blocks() -> None:
    with pytest.raises(KvplanError, match="sharing token is for one full-attention group"):
        deployment(model="openai/gpt-oss-20b", sharing="token")


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
