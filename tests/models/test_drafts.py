"""EAGLE's heads beside vLLM's own draft classes, at tensor-parallel sizes 1, 2 and 8; Gemma 4's assistants.

`test_architectures.py` holds an assistant and its target's KV to vLLM's.
"""

from __future__ import annotations

import json
import lzma

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.engines.drafting import as_draft
from kvplan.engines.flags import EngineArgs
from kvplan.engines.speculative_config import read_speculation
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate
from kvplan.memory.layout import kv_layout
from kvplan.memory.serve_command import serve_flags
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import heaviest_rank, parameters
from kvplan.simulation.deploy import scheduler_group

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


ASSISTANT = "google/gemma-4-E4B-it-assistant"


def test_gemma_4s_assistant_weighs_what_a_run_of_it_printed() -> None:
    """78.518 million parameters, and the order of its words beside them."""
    model = load_model(ASSISTANT)
    orders = sum(w.rows for w in model.extras if w.itemsize == 8)
    assert parameters(model) - orders == 78_517_760
    assert orders == model.vocab_size


@pytest.mark.parametrize(
    "said", ["", '"method": "mtp", ', '"method": "draft_model", ', '"method": "gemma4_mtp", ']
)
def test_gemma_4s_assistant_drafts_by_its_targets_kv(said: str) -> None:
    """However the command names the method: its weights come off the budget, the blocks are the target's."""
    config = f'{{{said}"model": "{ASSISTANT}", "num_speculative_tokens": 4}}'
    told = read_command(["vllm", "serve", "google/gemma-4-E4B-it", "--speculative-config", config])
    assert told.draft == ASSISTANT
    plan = estimate(told.model, "h100", told.args, colocate={"draft": told.draft})
    alone = estimate(told.model, "h100")
    assert plan.question.args.speculative_method == "mtp"
    assert plan.shape.bytes_per_block == alone.shape.bytes_per_block
    assert sum(row.size.value for row in plan.budget.colocated) == 2 * 78_517_760 + 8 * 262144


def test_what_only_drafts_is_planned_beside_its_target() -> None:
    """vLLM has no class that runs it alone; of another width than its target it cannot read it."""
    with pytest.raises(KvplanError, match="only drafts: vLLM starts it beside another model"):
        estimate(ASSISTANT, "h100")
    with pytest.raises(
        KvplanError, match=r"drafts for models 2,560 wide; google/gemma-4-31B-it is 5,376 wide"
    ):
        estimate("google/gemma-4-31B-it", "h100", num_speculative_tokens=4, colocate={"draft": ASSISTANT})


PLANS = json.loads((FIXTURES / "draft_plans_vllm_0.32.json").read_text())
"""Targets with drafts beside them, as vLLM builds and lays them out (`make_draft_plans.py`)."""


def with_draft(name: str, tp: int) -> tuple[ModelSpec, ModelSpec | None, EngineArgs]:
    """Target, what drafts, flags."""
    case = PLANS[name]
    flags = dict(case["flags"])
    config = flags.pop("speculative_config")
    told, draft = read_speculation(config | {"model": "x/y"} if "draft" in case else config)
    args = EngineArgs(tensor_parallel_size=tp, max_num_batched_tokens=8192, max_num_seqs=256, **flags, **told)
    target = from_config(case["config"], "target")
    if not draft:
        return target, None, args
    method, head = as_draft(target, from_config(case["draft"], "draft"), args)
    assert method == told["speculative_method"]
    return target, head, args


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("name", PLANS)
def test_drafts_beside_targets_equal_vllms(name: str, tp: int) -> None:
    """Weights of both, bytes of a block, blocks, printed tokens."""
    theirs = PLANS[name]["vllm"][str(tp)]
    target, head, args = with_draft(name, tp)
    own = head is None
    mine = heaviest_rank(target, tensor_parallel_size=tp, use_mtp=own)
    weights = mine.total - mine.rotary
    if head is not None:
        beside = heaviest_rank(head, tensor_parallel_size=tp)
        weights += beside.total - beside.rotary
    assert abs(weights - theirs["weights"]) <= 1024
    layout = kv_layout(target, args, 20 * GiB, draft=head)
    said = theirs["bytes_per_block"], theirs["num_blocks"], theirs["tokens"]
    assert (layout.bytes_per_block, layout.num_blocks, layout.kv_cache_size_tokens) == said


@pytest.mark.parametrize("name", PLANS)
def test_the_scheduler_knows_vllms_groups_of_drafts(name: str) -> None:
    """Layers, tokens per block, window, and whether drafts make it drop blocks; in vLLM's order."""
    target, head, args = with_draft(name, 1)
    groups = kv_layout(target, args, 20 * GiB, draft=head).groups
    seen = [(group, scheduler_group(group, args)) for group in groups]
    mine = [[g.num_layers, s.block_size, s.window, len(groups) > 1 and s.eagle] for g, s in seen]
    assert mine == [[*told[1:4], told[-1]] for told in PLANS[name]["vllm"]["1"]["groups"]]
