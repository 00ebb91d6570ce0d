"""Engines that embed or score, beside vLLM 0.32's own config, classes and planner (`tests/models/make_pooling.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.engines.pooling import find_pooling
from kvplan.engines.resolve import as_read_by, resolve
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate
from kvplan.memory.graphs import engine_graphs
from kvplan.memory.layout import kv_layout
from kvplan.memory.overheads import pooler_bytes
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import heaviest_rank
from kvplan.scenario.schema import Deployment
from kvplan.simulation.deploy import set_up

CASES: dict[str, Any] = json.loads((FIXTURES / "pooling_vllm_0.32.json").read_text())
SERVED = [(name, tp) for name, case in CASES.items() for tp in (1, 2) if "error" not in case["vllm"][str(tp)]]
REFUSED = [name for name, case in CASES.items() if "error" in case["vllm"]["1"]]
PRM = "Qwen/Qwen2.5-Math-PRM-7B"


def served(name: str, tp: int) -> tuple[ModelSpec, ResolvedArgs]:
    case = CASES[name]
    args = EngineArgs(tensor_parallel_size=tp, **case["flags"])
    model = as_read_by(EngineVersion(), from_config(case["config"], name), args)
    return model, resolve(args, model, get_gpu("h100"))


@pytest.mark.parametrize(("name", "tp"), SERVED)
def test_weights_equal_vllms(name: str, tp: int) -> None:
    """What vLLM loads: no LM head where it embeds, labels in float32 where it classifies, the reward models' layers."""
    model, _ = served(name, tp)
    theirs, mine = CASES[name]["vllm"][str(tp)]["weights"], heaviest_rank(model, tensor_parallel_size=tp)
    latent = [m for layer in model.layers for m in layer.mixers if m.is_latent]
    twice = sum(
        2 * (a.num_heads // tp) * (a.qk_nope_head_dim + a.v_head_dim) * a.kv_lora_rank for a in latent
    )
    assert mine.total - mine.rotary - twice == pytest.approx(theirs, rel=0, abs=1024)


@pytest.mark.parametrize(("name", "tp"), SERVED)
def test_choices_equal_vllms(name: str, tp: int) -> None:
    """Runner, conversion, how it pools, and what follows: chunks, prefix caching, async scheduling, batches, graphs."""
    model, args = served(name, tp)
    theirs, pooling = CASES[name]["vllm"][str(tp)], find_pooling(model, args)
    assert ("pooling" if pooling else "generate") == theirs["runner"]
    assert (pooling.convert if pooling else "none") == theirs["convert"]
    assert ([pooling.sequences, pooling.tokens] if pooling else None) == theirs["pooling"]
    assert (args.enable_chunked_prefill, args.enable_prefix_caching) == (theirs["chunked"], theirs["caching"])
    assert args.async_scheduling == theirs["async"]
    assert args.max_num_batched_tokens == theirs["tokens_of_a_step"]
    graphs = engine_graphs(model, args, get_gpu("h100"), EngineVersion())
    assert (graphs.mode, len(graphs.sizes)) == (theirs["graphs"], theirs["capture_sizes"])


@pytest.mark.parametrize(("name", "tp"), SERVED)
def test_plan_equals_vllms(name: str, tp: int) -> None:
    """Of 20 GiB of KV: blocks, bytes of a block, tokens that the engine prints."""
    model, args = served(name, tp)
    layout, theirs = kv_layout(model, args, 20 * GiB), CASES[name]["vllm"][str(tp)]
    assert (layout.bytes_per_block, layout.num_blocks) == (theirs["bytes_per_block"], theirs["num_blocks"])
    assert layout.kv_cache_size_tokens == theirs["tokens"]


@pytest.mark.parametrize("name", REFUSED)
def test_vllm_refuses_so_do_we(name: str) -> None:
    """A runner or a conversion that a class does not have."""
    with pytest.raises(KvplanError, match=r"--(runner|convert)"):
        served(name, 1)


def test_a_prm_is_planned_whole() -> None:
    """A scorer's plan says that prompts run whole; its command is the one that was pasted."""
    plan = estimate(PRM, "h100", input_len=2048)
    assert "pools (STEP" in str(plan)
    assert "prompts run whole, none are cached" in str(plan)
    told = read_command(f'vllm serve {PRM} --runner pooling --pooler-config \'{{"pooling_type": "ALL"}}\'')
    assert (told.not_planned, told.args.runner) == ((), "pooling")
    chunked = estimate(PRM, "h100", told.args)
    assert "--pooler-config" in chunked.serve_command
    assert chunked.args.enable_prefix_caching
    assert not plan.args.enable_prefix_caching


def test_a_pooler_in_place_of_the_sampler() -> None:
    """Logits of the vocabulary are gone from the peak; embeddings stay as wide as the states, in float32."""
    many = {"max_num_seqs": 1024, "max_num_batched_tokens": 1024}
    generates, embeds = (
        estimate("Qwen/Qwen3-0.6B", "h100", runner=runner, **many) for runner in ("generate", "pooling")
    )
    assert "logits" in generates.budget.activation.why
    assert embeds.budget.activation.size.value < generates.budget.activation.size.value / 4
    assert pooler_bytes(embeds.question.model, embeds.args) == 1024 * 1024 * (2 + 4)
    prm = estimate(PRM, "2xh100")
    assert pooler_bytes(prm.question.model, prm.args) == 8192 * (2 * 3584 + 4 * (3584 + 2 * 1792))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architectures": ["BertModel"]}, "BertModel is an encoder"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "Qwen3ForCausalLM is an encoder"),
        ({"architectures": ["LlamaBidirectionalModel"]}, "no KV cache for it, so there is none to plan"),
        ({"architectures": ["Gemma3TextModel"]}, "Gemma3TextModel is an encoder"),
    ],
)
def test_encoders_are_refused_by_name(config: dict[str, Any], why: str) -> None:
    with pytest.raises(KvplanError, match=why):
        from_config(CASES["Qwen3"]["config"] | config)


def test_modules_beside_a_checkpoint_make_it_pool(tmp_path: Path) -> None:
    """sentence-transformers modules say that vLLM pools, and how (`get_pooling_config`)."""
    (tmp_path / "config.json").write_text(json.dumps(CASES["Qwen3"]["config"]))
    assert load_model(tmp_path).pools == ""
    pooling = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "", "type": "x.Transformer"}, pooling]))
    (tmp_path / "1_Pooling").mkdir()
    for key, mode in (("pooling_mode_lasttoken", "LAST"), ("pooling_mode_mean_tokens", "MEAN")):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({key: True, "include_prompt": True}))
        model = load_model(tmp_path)
        assert (model.pools, model.pooled_by) == ("embed", mode)
        assert estimate(model, "h100").args.enable_prefix_caching == (mode == "LAST")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"output_len": 100}, "makes no tokens; --input-len alone"),
        ({"num_speculative_tokens": 2, "speculative_method": "ngram"}, "none are drafted"),
        ({"runner": "draft"}, "serves nothing"),
        ({"pooler_config": '{"pooling_type": "STEP", "tok_pooling_type": "ALL"}'}, "state one"),
    ],
)
def test_what_has_no_meaning_is_refused(flags: dict[str, Any], why: str) -> None:
    with pytest.raises(KvplanError, match=why):
        estimate(PRM, "h100", **flags)


def test_a_pooling_engine_is_not_simulated() -> None:
    """One line, which says where a scorer stands in a search."""
    deployment = Deployment(model=PRM, gpu="h100")
    with pytest.raises(KvplanError, match=r"planned, not simulated; a scorer .* is the `verifier`"):
        set_up(deployment)
