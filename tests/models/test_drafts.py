"""EAGLE's heads beside vLLM's own draft classes, at tensor-parallel sizes 1, 2 and 8."""

from __future__ import annotations

import json
import lzma

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.memory.serve_command import serve_flags
from kvplan.models.architectures import from_config
from kvplan.models.weights import heaviest_rank, parameters

CASES = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
DSPARK = CASES["Qwen3ForCausalLM, dspark of 7 beside"]["draft"]
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


def test_dspark_beside_a_target_is_known_by_its_architecture() -> None:
    """Whatever method was asked; the command names it. Its KV lies in the target's pool, five layers more."""
    draft = from_config(DSPARK, "dspark_qwen3_8b_block7")
    args = EngineArgs(num_speculative_tokens=7, max_model_len=8192)
    plan = estimate("Qwen/Qwen3-8B", "h100", args, colocate={"draft": draft})
    assert plan.question.args.speculative_method == "dspark"
    told = serve_flags(plan.question.args, draft=draft)["speculative-config"]
    assert told == {"method": "dspark", "model": draft.name, "num_speculative_tokens": 7}
    assert sum(group.num_layers for group in plan.shape.groups) == 36 + 5
    with pytest.raises(KvplanError, match="vLLM alone"):
        estimate("Qwen/Qwen3-8B", "h100", args, colocate={"draft": draft}, engine="sglang")


def test_dspark_of_qwen3_8b_is_as_large_as_published() -> None:
    """4.74 GB in 16 bits, with the embedding and the LM head that the target has too."""
    ends = 2 * 151936 * 4096
    assert 2 * (parameters(from_config(DSPARK, "draft")) + ends) == pytest.approx(4.74e9, rel=2e-3)


@pytest.mark.parametrize("keys", [{"sample_from_anchor": False}, {"dflash_config": {"use_swa": True}}])
def test_other_layouts_of_dspark_are_refused(keys: dict[str, object]) -> None:
    """By the key that says so."""
    with pytest.raises(KvplanError, match="not planned"):
        from_config({**DSPARK, **keys}, "draft")
