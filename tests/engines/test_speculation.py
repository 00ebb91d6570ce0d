"""How `--speculative-config` is read, beside vLLM's own config class (`tests/models/make_speculation.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.engines.draft_kinds import FEED_HEADS
from kvplan.engines.speculative_config import SpeculationFlags, speculation
from kvplan.ground.errors import KvplanError
from kvplan.memory.answers import Plan
from kvplan.memory.forward import estimate
from kvplan.models.architectures import architectures, from_config
from kvplan.scenario.schema import Deployment
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.deploy import set_up

SAID = json.loads((FIXTURES / "speculation_vllm_0.32.json").read_text())
STARTS_NOT = {
    ("small", "eagle3"): "a head of 1,024 channels beside a target of 2,048 cannot share its embedding",
    ("eagle", "draft_model"): "",
    ("dflash", "draft_model"): "DFlash's class is no model by itself: its forward reads the target's states",
    ("qwen3_5", "mtp"): "multi-token-prediction layers of 1,024 channels beside a target of 2,048",
}
"""Drafts that vLLM's config class takes and its engine then does not start; "" for those that it starts."""


def planned(case: dict[str, Any], folder: Path) -> tuple[Plan, EngineConfig]:
    """The plan of the command that a case stands for, and what its scheduler is told."""
    target, config = folder / "t", dict(case["config"])
    target.mkdir()
    (target / "config.json").write_text(json.dumps(SAID["targets"][case["target"]]))
    if "draft" in case:
        draft = folder / "d"
        draft.mkdir()
        (draft / "config.json").write_text(json.dumps(SAID["drafts"][case["draft"]]))
        config["model"] = str(draft)
    words = ["vllm", "serve", str(target), "-tp", "2", "--speculative-config", json.dumps(config)]
    told = read_command([*words, "--max-num-batched-tokens", "8192", "--max-num-seqs", "256"])
    beside = {"draft": told.draft} if told.draft else {}
    plan = estimate(told.model, "h100", told.args, colocate=beside)
    made = set_up(Deployment(model=told.model, gpu="h100", engine=told.args, colocate=beside))
    return plan, made.config


def described(case: dict[str, Any]) -> str:
    return f"{case['target']} {case.get('draft', '')} {json.dumps(case['config'])}"


@pytest.mark.parametrize("case", SAID["cases"], ids=described)
def test_it_is_read_as_vllm_reads_it(case: dict[str, Any], tmp_path: Path) -> None:
    """Method, tokens, slots of the scheduler and asynchronous scheduling; what vLLM refuses is refused."""
    theirs = case["vllm"]
    if "error" in theirs or STARTS_NOT.get((case.get("draft", ""), theirs["method"])):
        with pytest.raises(KvplanError):
            planned(case, tmp_path)
        return
    plan, config = planned(case, tmp_path)
    mine = {
        "method": plan.args.speculative_method,
        "tokens": plan.args.num_speculative_tokens,
        "slots": config.draft_slots,
        "lookahead": config.num_lookahead_tokens,
        "async": plan.args.async_scheduling,
    }
    assert mine == {key: theirs[key] for key in mine}


def test_every_key_of_vllms_class_is_known() -> None:
    """Less those that vLLM fills in itself."""
    own = {"target_model_config", "target_parallel_config", "draft_parallel_config"}
    assert {name.replace("-", "_") for name in SAID["keys"]} - own == set(SpeculationFlags.model_fields)


def test_defaults_are_vllms() -> None:
    told = speculation(None).model_dump(mode="json")
    assert {name: told[name] for name in SAID["keys"] if name in told} == {
        name: value for name, value in SAID["keys"].items() if name in told
    }


def test_keys_say_what_they_do() -> None:
    """One that acts is in the plan, others are listed, none is dropped in silence."""
    told = {
        "method": "mtp", "num_speculative_tokens": 1, "revision": "main", "kv_cache_dtype": "fp8",
        "enable_adaptive_verification": True,
    }  # fmt: skip
    read = read_command(["vllm", "serve", "m", "--speculative-config", json.dumps(told)])
    assert read.no_effect == ("--speculative-config.revision",)
    assert read.not_planned == ()
    assert speculation(read.args.speculative_config).kv_cache_dtype == "fp8"
    own = {"method": "custom_class", "model": "my.Drafter", "num_speculative_tokens": 1}
    read = read_command(["vllm", "serve", "m", "--speculative-config", json.dumps(own)])
    assert [text.split()[0] for text in read.not_planned] == ["--speculative-config.model"]


TIERS = [[1, 4, 3], [5, 16, 2], [32, 64, 0]]


def tiered(**flags: Any) -> dict[str, Any]:
    """Flags of an engine whose drafts hang on the batch."""
    told = {"num_speculative_tokens_per_batch_size": TIERS}
    return {"num_speculative_tokens": 3, "speculative_method": "ngram", "speculative_config": told, **flags}


def test_drafts_hang_on_the_batch() -> None:
    """The scheduler drafts by the tiers, graphs are captured for each number; slots stay those of most."""
    args = tiered(max_num_seqs=64, max_model_len=8192)
    made = set_up(Deployment(model="Qwen/Qwen3-8B", gpu="h100", engine=args))
    by_batch = made.config.drafts_by_batch
    assert [by_batch[n] for n in (1, 4, 5, 16, 17, 31, 32, 64)] == [3, 3, 2, 2, 2, 2, 0, 0]
    assert made.sources["drafts"] == "0 to 3 by the requests of a step"
    plan = estimate("Qwen/Qwen3-8B", "h100", **args)
    assert any("(of 0, 2, 3 drafts)" in row.source for row in plan.budget.rows)
    assert json.dumps(TIERS) in plan.serve_command


def test_drafts_are_as_many_over_data_parallel_ranks() -> None:
    """vLLM 0.32 `_maybe_disable_dynamic_sd_for_data_parallel`."""
    made = set_up(Deployment(model="Qwen/Qwen3-8B", gpu="h100", engine=tiered(data_parallel_size=2)))
    assert made.config.num_speculative_tokens_per_batch_size is None
    told = {"method": "ngram", "num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": TIERS}
    read = read_command(["vllm", "serve", "m", "-dp", "2", "--speculative-config", json.dumps(told)])
    assert read.notes == (
        "num_speculative_tokens_per_batch_size does nothing over several data-parallel ranks",
    )


@pytest.mark.parametrize(("method", "runner", "stops"), [
    ("medusa", "", True), ("suffix", "", True), ("ngram_gpu", "0", True), ("ngram_gpu", "", False),
    ("ngram", "0", False),
])  # fmt: skip
def test_methods_that_draft_as_many_in_every_step(method: str, runner: str, stops: bool) -> None:
    """Their code in the first model runner asserts it (`v1/spec_decode/medusa.py: propose`)."""
    flags = tiered(speculative_method=method, env=f"VLLM_USE_V2_MODEL_RUNNER={runner}" if runner else None)
    beside = {}
    if method == "medusa":
        beside["colocate"] = {"draft": from_config(SAID["drafts"]["medusa"] | {"hidden_size": 4096}, "heads")}
    if not stops:
        assert estimate("Qwen/Qwen3-8B", "h100", **flags, **beside).serves
        return
    with pytest.raises(KvplanError, match=r"stops at the first step of 5 requests"):
        estimate("Qwen/Qwen3-8B", "h100", **flags, **beside)


ADAPTIVE = {"num_speculative_tokens": 3, "speculative_method": "draft_model", "max_model_len": 8192}
ADAPTIVE |= {"speculative_config": {"enable_adaptive_verification": True}}
SMALL = {"draft": "Qwen/Qwen3-0.6B"}


def test_verification_is_priced_by_step_times() -> None:
    """Behind 8,192 tokens of context unless the variable says otherwise; graphs take any number of drafts."""
    deployed = Deployment(model="Qwen/Qwen3-8B", gpu="h100", engine=ADAPTIVE, colocate=SMALL)
    made = set_up(deployed)
    assert made.config.enable_adaptive_verification
    assert made.verification is not None
    assert made.sources["verification"].startswith("assumed: every draft looks as likely")
    verify, draft = made.verification.verify, made.verification.draft
    assert verify[1] < verify[8] <= verify[256] < verify[8192]
    assert 0 < draft[1] < draft[64]
    assert verify[65] == verify[72] > verify[64]  # padded to a graph
    flags = ADAPTIVE | {"env": "VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN=512"}
    short = set_up(Deployment(model="Qwen/Qwen3-8B", gpu="h100", engine=flags, colocate=SMALL))
    assert short.verification is not None
    assert short.verification.verify[64] < verify[64]
    plan = estimate("Qwen/Qwen3-8B", "h100", **ADAPTIVE, colocate=SMALL)
    assert any("(any number of drafts)" in row.source for row in plan.budget.rows)
    assert "VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN" not in "".join(made.sources)


def test_who_looks_nothing_up_verifies_all() -> None:
    """vLLM 0.32: a lookup has no speculator that estimates acceptance, so the key does nothing."""
    flags = ADAPTIVE | {"speculative_method": "ngram"}
    made = set_up(Deployment(model="Qwen/Qwen3-8B", gpu="h100", engine=flags))
    assert made.verification is None


@pytest.mark.parametrize(("flags", "why"), [
    ({"enable_lora": True}, "does not go with --enable-lora"),
    ({"pipeline_parallel_size": 2}, "does not go with --pipeline-parallel-size"),
    ({"return_sampling_mask": True}, "does not go with --return-sampling-mask"),
    ({"enable_batch_sharded_sampling": True}, "does not go with --enable-batch-sharded-sampling"),
    ({"env": "VLLM_USE_V2_MODEL_RUNNER=0"}, "does not go with vLLM's first model runner"),
    ({"compilation_config": {"cudagraph_mode": "PIECEWISE"}}, "requires full CUDA graphs, not PIECEWISE"),
    ({"enforce_eager": True}, "requires full CUDA graphs, not NONE"),
])  # fmt: skip
def test_what_adaptive_verification_does_not_go_with(flags: dict[str, Any], why: str) -> None:
    """vLLM 0.32 `config/vllm.py: _validate_adaptive_verification` and others."""
    with pytest.raises(KvplanError, match=why):
        estimate("Qwen/Qwen3-8B", "2xh100", **ADAPTIVE | flags, colocate=SMALL)


def test_attention_that_cannot_trim_drafts_is_refused() -> None:
    """FlashAttention 2's graphs want equal lengths, states the CPU's; FlashInfer trims on Blackwell alone."""
    with pytest.raises(KvplanError, match="FLASH_ATTN replay no decodes of unlike lengths"):
        estimate("Qwen/Qwen3-8B", "a100-80gb", **ADAPTIVE, colocate=SMALL)
    states = ADAPTIVE | {"speculative_method": "mtp"}
    with pytest.raises(KvplanError, match="plans states by the CPU's lengths"):
        estimate("Qwen/Qwen3.5-9B", "h100", **states)
    assert estimate("Qwen/Qwen3-8B", "b200", **ADAPTIVE, colocate=SMALL).serves
    told = ADAPTIVE | {"attention_backend": "FLASHINFER"}
    assert estimate("Qwen/Qwen3-8B", "b200", **told, colocate=SMALL).serves
    with pytest.raises(KvplanError, match="FLASHINFER: adaptive verification not supported"):
        estimate("Qwen/Qwen3-8B", "h100", **told, colocate=SMALL)


def row(plan: Plan, name: str) -> int:
    return next(row.size.value for row in plan.budget.rows if row.name == name)


def test_sampled_drafts_keep_their_logits() -> None:
    """vLLM 0.32 `DraftModelSpeculator`: requests x drafts x vocabulary, in the model's dtype."""
    args = {"max_num_seqs": 64, "num_speculative_tokens": 3, "speculative_method": "mtp"}
    more = {"speculative_config": {"draft_sample_method": "probabilistic"}}
    plan = estimate("deepseek-ai/DeepSeek-R1", "8xh200", **args, **more)
    assert row(plan, "draft_logits") == 64 * 3 * 129280 * 2


def test_drafting_layers_are_quantised_on_their_own() -> None:
    """`quantization` of --speculative-config: the layer's matrices in a byte each, about half of it less."""
    args = {"tensor_parallel_size": 4, "num_speculative_tokens": 1, "max_model_len": 8192}
    name = "Qwen/Qwen3-Next-80B-A3B-Instruct"
    plain = estimate(name, "h200", **args)
    fp8 = estimate(name, "h200", **args, speculative_config={"quantization": "fp8"})
    alone = estimate(name, "h200", **args | {"num_speculative_tokens": 0})
    layer = row(plain, "weights") - row(alone, "weights")
    assert 0.45 * layer < row(plain, "weights") - row(fp8, "weights") < 0.5 * layer


def test_states_that_are_extracted_lie_in_the_pool_and_in_a_buffer() -> None:
    """Three of a 4,096 wide model: 24 KiB a token, in the pool as in a step; without layers there is nothing to do."""
    layers = {"hf_config": {"eagle_aux_hidden_state_layer_ids": [1, 5, 9]}}
    told = {"method": "extract_hidden_states", "num_speculative_tokens": 1, "draft_model_config": layers}
    plan = estimate("Qwen/Qwen3-8B", "h100", speculative_config=told, max_num_batched_tokens=4096)
    alone = estimate("Qwen/Qwen3-8B", "h100", max_num_batched_tokens=4096)
    assert row(plan, "extracted_states") == 4096 * 3 * 4096 * 2
    assert plan.shape.bytes_per_block - alone.shape.bytes_per_block == 16 * 3 * 4096 * 2
    with pytest.raises(KvplanError, match="eagle_aux_hidden_state_layer_ids must be set"):
        estimate(
            "Qwen/Qwen3-8B", "h100", num_speculative_tokens=1, speculative_method="extract_hidden_states"
        )
    with pytest.raises(KvplanError, match="num_speculative_tokens must be 1"):
        estimate("Qwen/Qwen3-8B", "h100", speculative_config=told | {"num_speculative_tokens": 2})


def test_targets_that_hand_out_no_states_are_refused() -> None:
    """vLLM 0.32: "Model does not support EAGLE3 interface"; the list is its classes' own."""
    head = from_config(SAID["drafts"]["eagle3"] | {"hidden_size": 2560}, "head")
    asked = {"num_speculative_tokens": 2, "speculative_method": "eagle3", "colocate": {"draft": head}}
    with pytest.raises(KvplanError, match="does not support EAGLE3 interface"):
        estimate("google/gemma-3-4b-it", "h100", **asked)
    assert estimate("Qwen/Qwen3-4B", "h100", **asked).serves
    with pytest.raises(KvplanError, match=r"drafts for models 2,560 wide; Qwen/Qwen3-8B is 4,096 wide"):
        estimate("Qwen/Qwen3-8B", "h100", **asked)


def test_the_list_of_targets_that_hand_out_states_is_vllms() -> None:
    """Of the architectures that are planned."""
    known = set(architectures())
    assert set(SAID["feed_heads"]) & known == FEED_HEADS
