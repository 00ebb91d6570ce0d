"""EAGLE's heads beside vLLM's own draft classes, at tensor-parallel sizes 1, 2 and 8."""

from __future__ import annotations

import json

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs
from kvplan.memory.forward import estimate
from kvplan.models.architectures import from_config
from kvplan.models.weights import heaviest_rank

HEADS = json.loads((FIXTURES / "heads_vllm_0.32.json").read_text())["heads"]


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("name", HEADS)
def test_weights_equal_vllms(name: str, tp: int) -> None:
    """Less the embedding, which vLLM makes and then shares with the target."""
    config = HEADS[name]["config"]
    embedding = 2 * config["vocab_size"] * config["hidden_size"] // tp
    mine = heaviest_rank(from_config(config, name), tensor_parallel_size=tp)
    assert mine.total - mine.rotary == HEADS[name]["bytes"][str(tp)] - embedding


def test_a_llama_is_eagles_head_where_the_method_says_so() -> None:
    """Its checkpoints call themselves LlamaForCausalLM: a draft model of its own ends unless asked for as EAGLE."""
    llama = {**HEADS["EagleLlamaForCausalLM"]["config"], "architectures": ["LlamaForCausalLM"]}
    draft = from_config(llama, "head")
    asked = {"num_speculative_tokens": 3, "max_model_len": 8192}
    plans = [
        estimate("meta-llama/Llama-3.1-8B", "h100", EngineArgs(**asked, **more), colocate={"draft": draft})
        for more in ({}, {"speculative_method": "eagle"})
    ]
    whole, head = (sum(row.size.value for row in plan.budget.colocated) for plan in plans)
    assert whole - head >= 2 * 2 * 128256 * 4096 - 2 * 2 * 4096 * 4096
    assert plans[1].question.args.speculative_method == "eagle"
