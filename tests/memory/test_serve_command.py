"""The command that a plan prints starts the same plan: read back, it has the same flags, config and draft."""

from __future__ import annotations

import json
import shlex
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.answers import Plan
from kvplan.memory.forward import estimate
from kvplan.memory.serve_command import yaml_config
from kvplan.models.load import load_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2048,
    "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 4, "vocab_size": 32000,
    "max_position_embeddings": 8192,
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "eagle": {**LLAMA, "num_hidden_layers": 1},
    "eagle3": {**LLAMA, "num_hidden_layers": 1, "draft_vocab_size": 16000},
    "dflash": {**LLAMA, "architectures": ["DFlashDraftModel"], "model_type": "qwen3"},
    "dspark": {
        **LLAMA,
        "architectures": ["Qwen3DSparkModel"],
        "model_type": "qwen3",
        "block_size": 5,
        "markov_rank": 8,
    },
    "draft_model": {**LLAMA, "num_hidden_layers": 2},
    "medusa": {"model_type": "medusa", "hidden_size": 1024, "vocab_size": 32000, "num_heads": 4},
}
ALONE = ("ngram", "ngram_gpu", "suffix")
MORE: list[dict[str, Any]] = [
    {},
    {"draft_sample_method": "probabilistic", "kv_cache_dtype": "fp8"},
    {"disable_padded_drafter_batch": True, "prompt_lookup_max": 4, "prompt_lookup_min": 2},
    {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": 1.5, "revision": "a b"},
]
FLAGS: list[dict[str, Any]] = [
    {},
    {"tensor_parallel_size": 2, "max_model_len": 4096, "enable_prefix_caching": False},
    {
        "max_num_seqs": 64,
        "kv_cache_dtype": "fp8",
        "enforce_eager": True,
        "kv_cache_dtype_skip_layers": ("0", "2"),
    },
]
OVERRIDES = ({}, {"num_hidden_layers": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})


def folder(path: Path, config: dict[str, Any]) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def again(text: str) -> Plan:
    """The plan of a printed command."""
    told = read_command(text)
    model = load_model(told.model, hf_overrides=told.hf_overrides, hf_config_path=told.hf_config_path)
    return estimate(model, "h100", told.args, colocate={"draft": told.draft} if told.draft else {})


@pytest.mark.parametrize("method", ["", *ALONE, *HEADS])
def test_a_printed_command_starts_the_same_plan(method: str, tmp_path: Path) -> None:
    """By a folder whose name has a blank, with what was laid over its config, every method, key and other flag."""
    target = folder(tmp_path / "a target", LLAMA)
    draft = folder(tmp_path / "its draft", HEADS[method]) if method in HEADS else ""
    for more, flags, laid in product(MORE if method else [{}], FLAGS, OVERRIDES):
        asked = {"speculative_method": method, "num_speculative_tokens": 4, "speculative_config": more}
        args = EngineArgs(**flags, **(asked if method else {}))
        model = load_model(target, hf_overrides=laid)
        plan = estimate(model, "h100", args, colocate={"draft": draft} if draft else {})
        read = again(plan.serve_command)
        assert read.question == plan.question, plan.serve_command
        assert read.budget == plan.budget
        assert read.layout == plan.layout


def test_a_config_from_elsewhere_is_read_and_named(tmp_path: Path) -> None:
    """vLLM reads it in the place of the model's own (`config/model.py`): a name, a folder, what is laid over it."""
    elsewhere = folder(tmp_path / "a config", LLAMA)
    for path, laid in product((elsewhere, "Qwen/Qwen3-8B"), OVERRIDES):
        model = load_model("someone/finetune", hf_config_path=path, hf_overrides=laid)
        plan = estimate(model, "h100", EngineArgs(max_model_len=2048))
        assert plan.budget == estimate(load_model(path, hf_overrides=laid), "h100", max_model_len=2048).budget
        assert plan.serve_command.startswith("vllm serve someone/finetune ")
        assert again(plan.serve_command).question == plan.question


def test_a_gguf_file_under_a_config_keeps_its_type() -> None:
    """Its weights are what the file holds, whatever the checkpoint's config says of theirs."""
    four = load_model("Qwen3-8B-GGUF:Q4_K_M")
    told = load_model("me/mine-GGUF:Q4_K_M", hf_config_path="Qwen/Qwen3-8B")
    assert told.quantization == four.quantization
    assert estimate(told, "h100").budget.weights.size == estimate(four, "h100").budget.weights.size


def test_a_config_that_is_nowhere_is_one_line() -> None:
    with pytest.raises(KvplanError, match="--hf-config-path 'some/where': not a bundled model"):
        load_model("Qwen/Qwen3-8B", hf_config_path="some/where")


def test_a_class_of_ones_own_is_kept() -> None:
    """vLLM loads it by its dotted path; what it needs, nothing outside of it tells."""
    words = ["vllm", "serve", "Qwen/Qwen3-8B", "--speculative-config"]
    told = read_command([*words, '{"model": "pkg.MyProposer", "num_speculative_tokens": 2}'])
    plan = estimate(told.model, "h100", told.args)
    assert again(plan.serve_command).question == plan.question
    assert plan.args.speculative_method == "custom_class"
    assert "pkg.MyProposer" in plan.serve_command


def test_a_bundled_name_and_its_file_say_the_same(tmp_path: Path) -> None:
    """As a file for `vllm serve --config` too."""
    model = load_model(folder(tmp_path / "t", LLAMA), hf_overrides=OVERRIDES[1])
    args = EngineArgs(num_speculative_tokens=3, speculative_method="ngram_gpu")
    told = yaml.safe_load(yaml_config(model, args))
    assert told["model"] == str(tmp_path / "t")
    assert told["hf-overrides"] == OVERRIDES[1]
    assert told["speculative-config"] == {"method": "ngram_gpu", "num_speculative_tokens": 3}
    printed = shlex.split(estimate("Qwen/Qwen3-8B", "h100", args).serve_command)
    assert printed[:3] == ["vllm", "serve", "Qwen/Qwen3-8B"]
