"""Formats that vLLM 0.32 refuses: each config here was given to its own classes, and they gave the reason beside it."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.models.architectures import from_config
from kvplan.models.format_limits import ragged_groups, refused_format
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import heaviest_rank

DENSE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
MOE = DENSE | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1024,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def packed(**weights: Any) -> dict[str, Any]:
    told = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
    group = {"targets": ["Linear"], "weights": {**told, **weights}}
    return {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": {"group_0": group}}


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


def model(quantization: dict[str, Any], base: dict[str, Any] = DENSE) -> ModelSpec:
    return from_config({**base, "quantization_config": quantization}, "m")


@pytest.mark.parametrize(
    ("quantization", "fault"),
    [
        (AWQ | {"bits": 3}, "AWQ of 3 bits"),
        (AWQ | {"bits": 8}, "AWQ of 8 bits"),
        (without(AWQ, "zero_point"), "zero_point is missing"),
        (GPTQ | {"bits": 3}, "GPTQ of 3 bits"),
        (GPTQ | {"sym": False}, "GPTQ of 4 bits, not symmetric"),
        (GPTQ | {"group_size": 256}, "groups of 256"),
        (GPTQ | {"desc_act": True}, "GPTQ with desc_act"),
        (without(GPTQ, "desc_act"), "desc_act is missing"),
        (without(GPTQ, "sym"), "sym is missing"),
        (GPTQ | {"dynamic": {r"+:.*layers\.0\..*": {"bits": 3}}}, "GPTQ of 3 bits"),
        (ROUND | {"bits": 1}, "AutoRound of 1 bits"),
        (ROUND | {"sym": False}, "symmetric weights"),
        (ROUND | {"group_size": 96}, "groups of -1, 32, 64, 128"),
        (ROUND | {"packing_format": "x"}, "packing_format 'x'"),
        (FP8 | {"activation_scheme": "static"}, "static activations"),
        (FP8 | {"activation_scheme": "none"}, "activation_scheme 'none'"),
        (without(FP8, "activation_scheme"), "activation_scheme is missing"),
        (packed(num_bits=9), "int of 9 bits"),
        (packed(type="float", num_bits=6), "float of 6 bits"),
        (packed(strategy="block", group_size=None), "block_structure"),
        ({"quant_method": "modelopt", "ignore": ["lm_head"]}, "quant_algo is missing"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "quant_algo 'W4A16_AWQ'"),
        ({"quant_method": "hqq"}, "hqq is no method"),
    ],
)
def test_vllm_refuses(quantization: dict[str, Any], fault: str) -> None:
    """In one line with the reason; of its own version alone."""
    assert fault in str(refused_format(model(quantization)))
    with pytest.raises(KvplanError, match=r"^vllm@0\.32 does not load m: quantization_config: "):
        estimate(model(quantization), "h100", engine="vllm@0.32")
    estimate(model(quantization), "h100", engine="vllm@0.19")


@pytest.mark.parametrize(
    "quantization",
    [
        *(AWQ, AWQ | {"zero_point": False}, GPTQ, GPTQ | {"bits": 8}, ROUND, FP8),
        GPTQ | {"desc_act": True, "group_size": -1},
        GPTQ | {"dynamic": {r"+:.*layers\.0\..*": {"bits": 8}}},
        ROUND | {"bits": 8, "data_type": "fp", "group_size": [128, 128], "packing_format": "auto_round:fp8"},
        packed(symmetric=False),
        packed(strategy="channel", group_size=None),
    ],
)
def test_vllm_takes(quantization: dict[str, Any]) -> None:
    """What its classes built."""
    assert refused_format(model(quantization)) is None


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (AWQ | {"bits": "4"}, "bits must be a whole number"),
        (ROUND | {"bits": 9}, "bits is 9"),
        (FP8 | {"weight_block_size": [128]}, "must be two sizes"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": "x"},
            "group_size must be a whole",
        ),
        (GPTQ | {"dynamic": {"-:(": {}}}, "is no pattern"),
        (GPTQ | {"modules_in_block_to_quantize": [1]}, "must be names"),
    ],
)
def test_no_engine_reads(quantization: dict[str, Any], message: str) -> None:
    """Keys that hold no number, list or pattern where one must stand."""
    with pytest.raises(KvplanError, match=message):
        heaviest_rank(model(quantization))


def test_autoround_has_no_fp8_experts() -> None:
    """As vLLM's INCFp8Scheme says."""
    floats = ROUND | {"bits": 8, "data_type": "fp", "group_size": [128, 128]}
    assert refused_format(model(floats)) is None
    assert "experts" in str(refused_format(model(floats, MOE)))


@pytest.mark.parametrize(
    ("quantization", "width", "tp", "fits"),
    [
        *((AWQ, 4224, 1, True), (AWQ, 4224, 2, False), (AWQ, 4160, 1, False), (AWQ, 4352, 2, True)),
        *((packed(), 4224, 1, True), (packed(), 4224, 2, False), (packed(), 4160, 1, False)),
        *((GPTQ, 4224, 2, True), (GPTQ, 4160, 1, True), (ROUND, 4224, 2, True)),
    ],
)
def test_groups_of_scales_are_whole_on_a_rank(
    quantization: dict[str, Any], width: int, tp: int, fits: bool
) -> None:
    """AWQ: "the input size is not aligned"; compressed-tensors: "not divisible by group_size=128"; GPTQ pads."""
    fault = ragged_groups(model(quantization, DENSE | {"intermediate_size": width}), tp)
    assert (fault is None) == fits


def test_experts_in_awq_may_have_ragged_groups() -> None:
    """vLLM 0.32 builds AWQ's at any width; compressed-tensors' it refuses."""
    ragged = MOE | {"moe_intermediate_size": 832}
    assert ragged_groups(model(AWQ, ragged), 1) is None
    assert "down_proj has 832 columns" in str(ragged_groups(model(packed(), ragged), 1))


@pytest.mark.parametrize(
    ("dynamic", "theirs"),
    [
        ({r"+:.*layers\.0\..*": {"bits": 8}}, 359_239_680),
        ({r"-:.*layers\.0\..*": {}}, 420_679_680),
        ({}, 327_536_640),
    ],
)
def test_rules_by_patterns(dynamic: dict[str, Any], theirs: int) -> None:
    """GPTQModel's `dynamic`: vLLM's class is 0.2 % heavier, by orders and zero points that go after loading."""
    mine = heaviest_rank(model(GPTQ | {"dynamic": dynamic}))
    assert 0 <= theirs - (mine.total - mine.rotary) < 800_000


@pytest.mark.parametrize(
    ("told", "theirs"),
    [
        ({"quant_algo": "NVFP4", "ignore": []}, 238_735_496),
        ({"quant_algo": "NVFP4", "ignore": ["lm_head"]}, 332_943_488),
        ({"quant_algo": "NVFP4", "ignore": ["lm_head"], "group_size": 32}, 329_011_328),
        ({"quant_algo": "FP8", "ignore": []}, 322_457_736),
    ],
)
def test_modelopts_head_and_groups(told: dict[str, Any], theirs: int) -> None:
    """The LM head is quantised unless listed; NVFP4's groups are as wide as told."""
    mine = heaviest_rank(model({"quant_method": "modelopt", **told}))
    assert abs(mine.total - mine.rotary - theirs) < 1024


def test_only_listed_modules_are_gptq() -> None:
    """`modules_in_block_to_quantize`, nested as AutoGPTQ writes it."""
    listed = model(
        GPTQ | {"modules_in_block_to_quantize": [["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]}
    )
    attention = 2 * (2 * 2048 * 2048 + 2 * 2048 * 1024)
    whole = heaviest_rank(model(GPTQ)).total
    assert heaviest_rank(listed).total - whole == attention * 2 - attention * (4 + 16 / 128) // 8
