"""The answer is to the asked question: the asked checkpoint, flags that the engine takes, advice that runs."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import GiB, gib
from kvplan.memory.forward import estimate
from kvplan.memory.inverse import what_would_fit
from kvplan.models.load import from_config, load_model
from kvplan.scenario.schema import parse_scenario
from kvplan.search.recommending import recommend

QWEN = "Qwen/Qwen3-8B"
INSTRUCT, THINKING = "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B-Thinking-2507"
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("written", ["shell", "yaml"])
def test_the_command_serves_the_asked_checkpoint(engine: str, written: str, capsys: Capture) -> None:
    """An alias shares another checkpoint's config, not its weights."""
    command = ["serve-command", INSTRUCT.lower(), "-tp", "2", "--max-model-len", "8192", "--engine", engine]
    assert run([*command, "--format", written]) == 0
    out, err = capsys.readouterr()
    assert THINKING not in out
    assert f"{INSTRUCT} is planned as {THINKING}" in err
    assert INSTRUCT in out or (engine, written) == ("tensorrt-llm", "yaml")


def test_the_document_names_the_asked_checkpoint(capsys: Capture) -> None:
    assert run(["estimate", INSTRUCT, "-tp", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["inputs"]["model"], document["inputs"]["planned_as"]) == (INSTRUCT, THINKING)
    assert f"vllm serve {INSTRUCT} " in document["serve_command"] + " "
    assert run(["estimate", INSTRUCT, "-tp", "2"]) == 0
    assert f"{INSTRUCT} is planned as {THINKING}." in capsys.readouterr().out


BLOCKS = [
    ("Qwen/Qwen3.6-35B-A3B-FP8 -tp 8", "64 wide", "--tensor-parallel-size 4"),
    ("deepseek-ai/DeepSeek-R1 -tp 32", "576 wide", "--tensor-parallel-size 8"),
    ("Qwen/Qwen3-235B-A22B-FP8 -tp 8 --engine vllm@0.20", "192 wide", "--enable-expert-parallel"),
    ("Qwen/Qwen3-235B-A22B-FP8 -tp 8 --engine vllm@0.28", "192 wide", "--enable-expert-parallel"),
    ("MiniMaxAI/MiniMax-M2.5 --gpu h200 -tp 8 --engine vllm@0.20", "192 wide", "--enable-expert-parallel"),
    ("Qwen/Qwen3-235B-A22B-FP8 -tp 8 --engine sglang", "192 wide", "--ep-size 8"),
    ("Qwen/Qwen3.5-397B-A17B-FP8 --gpu h20 -tp 8 --engine sglang@0.5.8", "gates of linear attention", ""),
]
"""Refused at load: vllm PR 52915, sglang 3345, vllm 17569, vllm recipes, sglang 19045 (0.5.8.post1)."""


@pytest.mark.parametrize(("asked", "why", "would"), BLOCKS)
def test_shards_are_whole_fp8_blocks(asked: str, why: str, would: str, capsys: Capture) -> None:
    """vLLM 0.32 `validate_fp8_block_shape`, 0.28 also for experts; SGLang 0.5.23 `validate_block_quant_shapes`."""
    assert run(["estimate", *asked.split()]) == 2
    err = capsys.readouterr().err
    assert why in err
    assert would in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "asked",
    [
        "Qwen/Qwen3.6-35B-A3B-FP8 -tp 4",
        "deepseek-ai/DeepSeek-R1 --gpu h200 -tp 8",
        "Qwen/Qwen3-235B-A22B-FP8 -tp 8",
        "Qwen/Qwen3-235B-A22B-FP8 -tp 8 --engine vllm@0.29",
        "Qwen/Qwen3-235B-A22B-FP8 -tp 8 --enable-expert-parallel --engine vllm@0.20",
        "Qwen/Qwen3.5-397B-A17B-FP8 --gpu h20 -tp 8 --engine sglang",
        "Qwen/Qwen3-235B-A22B -tp 8 --engine vllm@0.20",
    ],
)
def test_whole_blocks_are_loaded(asked: str) -> None:
    """From 0.29 on vLLM splits experts' scale blocks; whole experts and 16-bit weights have none to check."""
    assert run(["estimate", *asked.split()]) == 0


LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 2048,
    "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512,
    "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "first_k_dense_replace": 1, "vocab_size": 102400, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
"""DeepSeek-V2-Lite's widths."""
BY_QUANT = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}}},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "engine", "tp", "why"),
    [
        ("fp8", "vllm@0.13", 1, "gate_proj would be 10944 wide"),
        ("fp8", "vllm@0.14", 1, ""),
        ("fp8", "vllm@0.14", 2, "down_proj would be 5472 wide"),
        ("fp8", "sglang", 1, "gate_proj would be 10944 wide"),
        ("compressed-tensors", "vllm", 1, "gate_proj would be 10944 wide"),
    ],
)
def test_merged_matrices_are_checked_by_version(method: str, engine: str, tp: int, why: str) -> None:
    """vLLM's pull request 30836 (0.14) lets merged ones be ragged, where its config knows the block size (33327)."""
    model = from_config({**LITE, "quantization_config": BY_QUANT[method]}, "lite")

    def ask() -> bool:
        return estimate(model, "h100", engine=engine, tensor_parallel_size=tp).refusal is None

    if why:
        with pytest.raises(KvplanError, match=why):
            ask()
    else:
        assert ask()


def test_a_query_that_nothing_is_merged_with_is_whole_blocks() -> None:
    """Latent attention without q_lora: one column-parallel matrix, 16 heads of 192 over 16 ranks."""
    told = {**LITE, "intermediate_size": 16384, "quantization_config": BY_QUANT["fp8"]}
    with pytest.raises(KvplanError, match="latent q_proj would be 192 wide"):
        estimate(from_config(told, "lite"), "h100", tensor_parallel_size=16)


def test_keys_of_one_head_a_rank_are_no_whole_block_before_0_14() -> None:
    """MiMo-V2-Flash's keys are 192 wide; the change that served it is the one of 0.14, SGLang skips its check."""
    for engine, loads in (("vllm@0.13", False), ("vllm@0.14", True), ("sglang", True)):
        words = ["estimate", "XiaomiMiMo/MiMo-V2-Flash", "--gpu", "h200", "-tp", "8", "--engine", engine]
        assert run(words) == (0 if loads else 2), engine


def test_a_refused_shape_is_not_ranked() -> None:
    """P02: the engine does not load the larger of the two sizes."""
    scenario = parse_scenario(
        {
            "engine_version": "0.20", "model": "Qwen/Qwen3-235B-A22B-FP8", "gpu": "h100",
            "workload": {
                "num_requests": 20, "arrivals": {"kind": "poisson", "rate": 1}, "prompt": 500, "thinking": 300,
                "answer": 100,
            },
            "slo": {"ttft_ms": 2000, "tpot_ms": 40},
            "search": {"over": {"engine.tensor_parallel_size": [4, 8]}},
        }
    )  # fmt: skip
    found = recommend(scenario, overrides=["search.rate=1", "search.refine=0"]).candidates
    assert [c.settings["engine.tensor_parallel_size"] for c in found if c.feasible] == [4]
    assert [c.cause for c in found if not c.feasible] == ["refused"]


@pytest.mark.parametrize("method", ["eagle", "draft_model"])
def test_a_drafter_is_named(method: str, capsys: Capture) -> None:
    """vLLM's --speculative-config needs `model` for both."""
    asked = [QWEN, "--speculative-method", method, "--num-speculative-tokens", "3"]
    for command in ("estimate", "serve-command"):
        assert run([command, *asked]) == 2
        err = capsys.readouterr().err
        assert "--colocate draft=MODEL" in err
        assert err.count("\n") == 1
    beside = ["--colocate", "draft=Qwen/Qwen3-0.6B"]
    if method == "eagle":
        assert run(["serve-command", *asked, *beside]) == 2
        assert "vLLM 0.32 makes EagleQwen3ForCausalLM of its architecture" in capsys.readouterr().err
        return
    assert run(["serve-command", *asked, *beside]) == 0
    words = shlex.split(capsys.readouterr().out)
    told = json.loads(words[words.index("--speculative-config") + 1])
    assert told == {"method": "draft_model", "model": "Qwen/Qwen3-0.6B", "num_speculative_tokens": 3}


def test_an_sglang_hybrid_with_stated_requests() -> None:
    """L10: a log of SGLang on an H100 prints 330,323 tokens, 17.58 GB of states, with its radix cache on."""
    plan = estimate(
        "Qwen/Qwen3.6-27B-FP8", "h100", engine="sglang", gpu_memory_utilization=0.85, max_num_seqs=32
    )
    assert plan.cache_tokens.value == pytest.approx(330_323, rel=0.01)
    assert plan.args.max_num_seqs == 32


YARN: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
}  # fmt: skip
"""Qwen3-8B as its model card says to lengthen it (C04)."""


@pytest.mark.parametrize(
    ("engine", "longest"),
    [("vllm@0.8", 131072), ("vllm@0.29", 131072), ("vllm@0.30", 40960), ("vllm", 40960), ("sglang", 40960)],
)
def test_yarn_by_version(engine: str, longest: int) -> None:
    """`_get_and_verify_max_len` of vLLM 0.29 and 0.30: the factor applies to the original length, then not at all."""
    model = from_config(YARN, "yarn")
    assert estimate(model, "h100", engine=engine).max_model_len == longest
    with pytest.raises(KvplanError, match="is made for") as refused:
        estimate(model, "h100", engine=engine, max_model_len=131073)
    assert "needs rope scaling" in str(refused.value)
    if longest < 131072:
        with pytest.raises(KvplanError, match="max_position_embeddings 131072"):
            estimate(model, "h100", engine=engine, max_model_len=131072)


@pytest.mark.parametrize(
    ("engine", "times"), [("vllm@0.18", 4), ("vllm@0.31", 4), ("vllm", 1), ("sglang", 1)]
)
def test_multimodal_rotary_tables_by_version(engine: str, times: int) -> None:
    """`MRotaryEmbedding` of vLLM up to 0.31 had four rows a position; Qwen 3.5's classes ask for one since 0.32."""
    model = load_model("Qwen/Qwen3.5-27B")
    new = estimate(model, "h200", engine="vllm").budget.weights.size.value
    table = sum(t.positions * t.dims * t.itemsize for t in model.rotary)
    asked = estimate(model, "h200", engine=engine).budget.weights.size.value
    assert table > 8 * 2**20
    assert asked - new == pytest.approx((times - 1) * table, abs=1024)


EAGLE3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 12288, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 151936, "draft_vocab_size": 32000, "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}  # fmt: skip
"""An EAGLE-3 head of Qwen3-8B (C01)."""


def test_an_eagle3_head_drafts() -> None:
    """One layer more of KV; its weights are the matrices of vLLM's `llama_eagle3.py`, the embedding the target's."""
    hidden, q, kv = 4096, 4096, 1024
    matrices = (
        3 * hidden * hidden + 2 * hidden * (q + 2 * kv) + q * hidden + 3 * hidden * 12288 + 32000 * hidden
    )
    rotary, plain = 2 * 40960 * 128, estimate(QWEN, "h100")
    plan = estimate(QWEN, "h100", num_speculative_tokens=3, colocate={"draft": from_config(EAGLE3, "head")})
    assert plan.budget.colocated[0].size.value == pytest.approx(2 * matrices + rotary, rel=0.001)
    assert plan.bytes_per_token - plain.bytes_per_token == 2 * kv * 2
    words = shlex.split(plan.serve_command)
    told = json.loads(words[words.index("--speculative-config") + 1])
    assert told == {"method": "eagle3", "model": "head", "num_speculative_tokens": 3}


def test_ministral_3_is_read() -> None:
    """C02: 80 KiB a token and rank at two ranks, as its log's 52.36 GiB and 686,320 tokens say."""
    text = {
        "model_type": "ministral3", "hidden_size": 5120, "intermediate_size": 16384, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
        "max_position_embeddings": 262144, "sliding_window": None, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384},
    }  # fmt: skip
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "text_config": text,
    }
    plan = estimate(
        from_config(config, "ministral"), "a100-80gb", tensor_parallel_size=2, max_model_len=100_000
    )
    assert plan.bytes_per_token == 80 * 1024 == pytest.approx(52.36 * GiB / 686_320, rel=1e-4)


def test_padding_by_the_kernel_is_a_range() -> None:
    """gpt-oss-120b: 65.97 GiB in one log (Marlin pads hidden sizes to 256), 64.38 in another."""
    weights = estimate("openai/gpt-oss-120b", "h100").budget.weights
    assert gib(weights.size.low) < 64.38 < gib(weights.size.high) == pytest.approx(65.93, abs=0.01)
    assert "padding by the kernel (63.35-65.93)" in weights.source


@pytest.mark.parametrize("gpu", ["mi300x", "b300", "strix-halo"])
def test_overheads_of_unseen_cards_are_assumed(gpu: str) -> None:
    """No start-up log of these is behind any figure: nothing of theirs is called measured, and the range is wider."""
    unseen, seen = estimate(QWEN, gpu).budget, estimate(QWEN, "h200").budget
    for row, measured in ((unseen.activation, seen.activation), (unseen.runtime, seen.runtime)):
        assert row.kind == "assumed"
        assert "no start-up log of this kind of card" in row.source
        assert measured.kind == "measured"
        assert row.size.high / row.size.low > 2 * measured.size.high / measured.size.low
    assert unseen.graphs.kind != "measured"


def test_no_command_follows_a_refusal(capsys: Capture) -> None:
    """What does not start is not there to be copied; what would start is."""
    assert run(["estimate", "meta-llama/Llama-3.1-70B"]) == 1
    out = capsys.readouterr().out
    assert "Does not start" in out
    assert "vllm serve" not in out


def test_far_from_fitting_no_other_question_is_answered() -> None:
    """A tenth of the length, or of the traces, is no way to hold what was asked."""
    plan = estimate(QWEN, "rtx-4090", input_len=512, output_len="16k", num_requests=512)
    options = what_would_fit(plan)
    assert not plan.fits
    assert not any(option.change.startswith(("--output-len", "--num-requests")) for option in options)


def test_cards_without_a_profile_come_last() -> None:
    """H800 shares the H100's rates; scaled from another it must not beat the card that a profile times."""
    told = {
        "model": QWEN, "gpu": "h100",
        "workload": {
            "num_requests": 20, "arrivals": {"kind": "poisson", "rate": 1}, "prompt": 500, "thinking": 300,
            "answer": 100,
        },
        "slo": {"ttft_ms": 2000, "tpot_ms": 40},
        "search": {"over": {"gpu": ["h800", "h100"]}, "rate": 1, "usd_per_gpu_hour": {"h800": 0.1}},
    }  # fmt: skip
    found = recommend(parse_scenario(told))
    feasible = [c for c in found.candidates if c.feasible]
    assert [(c.settings["gpu"], c.is_assumed) for c in feasible] == [("h100", False), ("h800", True)]
    assert [c.price_source for c in feasible] == [get_gpu("h100").price_source, "stated"]
    assert "~ = no profile of this card" in str(found)
    assert "held-out" in str(found)
