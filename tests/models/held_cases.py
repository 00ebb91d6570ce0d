"""Small models and formats that vLLM was asked about by `make_held.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

CARDS = {
    "mi210": "gfx90a",
    "mi300x": "gfx942",
    "mi355x": "gfx950",
    "rx-7900-xtx": "gfx1100",
    "r9700": "gfx1201",
}
"""kvplan's card -> what ROCm calls it."""

DENSE: dict[str, Any] = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024},
    **{"intermediate_size": 1536, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2},
    **{"head_dim": 128, "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    **{"torch_dtype": "bfloat16", "tie_word_embeddings": False, "hidden_act": "silu", "rope_theta": 1e4},
}
EXPERTS: dict[str, Any] = {
    **DENSE,
    **{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 512, "decoder_sparse_step": 1},
    **{"norm_topk_prob": True, "mlp_only_layers": [], "attention_bias": False},
}
REWARDS = {**DENSE, "model_type": "qwen2", "architectures": ["Qwen2ForProcessRewardModel"], "num_labels": 2}
MODELS = {
    "dense": DENSE,
    "ragged": {**DENSE, "intermediate_size": 1600},
    "experts": EXPERTS,
    "labels": {**DENSE, "architectures": ["LlamaForSequenceClassification"], "num_labels": 16},
    "rewards": REWARDS,
}
"""Columns in wholes of 512; not in wholes of 128; experts; one layer that scores, and two."""


class Case(NamedTuple):
    """A format."""

    config: dict[str, Any] | None = None
    """The checkpoint's `quantization_config`."""
    quantization: str | None = None
    """--quantization."""
    env: dict[str, str] = {}


def _compressed(fmt: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": fmt,
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "config_groups": {"group_0": group},
    }


def _float(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "float",
        "strategy": strategy,
        "symmetric": True,
        "dynamic": False,
        **more,
    }


_TENSOR = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
_TOKENS = {**_TENSOR, "strategy": "token", "dynamic": True}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
_NOT = {"ignore": ["lm_head", "*mlp.gate"]}
_QUARK = {
    **{"quant_method": "quark", "exclude": ["lm_head", "re:.*mlp.gate$"], "layer_quant_config": {}},
    **{"export": {"pack_method": "order", "kv_cache_group": []}, "layer_type_quant_config": {}},
}


def _quark(weight: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    told = {"weight": weight, "input_tensors": inputs, "bias": None, "output_tensors": None}
    return {**_QUARK, "global_quant_config": told}


def _modelopt(algorithm: str) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, **_NOT}


_MX: dict[str, Any] = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "ch_axis": -1}
_MX |= {"scale_format": "e8m0", "symmetric": None}
_WHOLE = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": None}
_INT4 = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": 128,
    "symmetric": True,
    "dynamic": False,
}
_IN_BLOCKS = _compressed(
    "float-quantized",
    _float(8, "block", block_structure=[128, 128]),
    {**_TOKENS, "strategy": "group", "group_size": 128},
)
_MXFP8 = _compressed(
    "mxfp8-quantized",
    _float(8, "group", group_size=32, scale_dtype="torch.uint8"),
    {**_TOKENS, "strategy": "group", "group_size": 32},
)
_MXFP4_BY_QUARK = _quark({**_MX, "is_dynamic": False}, {**_MX, "is_dynamic": True})
_MXFP4 = _compressed("mxfp4-pack-quantized", _float(4, "group", group_size=32), None)
_AT_LOAD = {"VLLM_MXFP4_EMULATION_DEQUANT_AT_LOAD": "1"}
_LATER = {"VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD": "0"}
CASES = {
    "bf16": Case(),
    "bf16, MOE_PADDING=0": Case(env={"VLLM_ROCM_MOE_PADDING": "0"}),
    "fp8": Case(_FP8),
    "fp8, FP8_PADDING=0": Case(_FP8, env={"VLLM_ROCM_FP8_PADDING": "0"}),
    "fp8 in blocks": Case({**_FP8, "weight_block_size": [128, 128]}),
    "compressed fp8": Case(_compressed("float-quantized", _float(8, "tensor"), _TENSOR)),
    "compressed fp8, channels": Case(_compressed("float-quantized", _float(8, "channel"), _TOKENS)),
    "compressed fp8, blocks": Case(_IN_BLOCKS),
    "modelopt fp8": Case(_modelopt("FP8")),
    "modelopt fp8, blocks": Case(_modelopt("FP8_PB_WO")),
    "quark fp8": Case(_quark(_WHOLE, _WHOLE)),
    "online fp8": Case(quantization="fp8"),
    "online fp8, blocks": Case(quantization="fp8_per_block"),
    "online fp8, channels": Case(quantization="fp8_per_channel"),
    "modelopt mxfp8": Case(_modelopt("MXFP8")),
    "modelopt mxfp8, DEQUANT_AT_LOAD=0": Case(_modelopt("MXFP8"), env=_LATER),
    "compressed mxfp8": Case(_MXFP8),
    "online mxfp8": Case(quantization="mxfp8"),
    "quark mxfp4": Case(_MXFP4_BY_QUARK),
    "quark mxfp4, DEQUANT_AT_LOAD=1": Case(_MXFP4_BY_QUARK, env=_AT_LOAD),
    "compressed mxfp4": Case(_MXFP4),
    "compressed mxfp4, DEQUANT_AT_LOAD=1": Case(_MXFP4, env=_AT_LOAD),
    "compressed int4": Case(_compressed("pack-quantized", _INT4, None)),
    "compressed int4, zero points": Case(_compressed("pack-quantized", {**_INT4, "symmetric": False}, None)),
}
