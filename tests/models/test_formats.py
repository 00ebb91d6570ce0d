"""Formats that checkpoints come in: GGUF's header and names, torchao's and HQQ's configs, Quark's lists.

Quark, MXFP8, NVFP4, AWQ and fp8 are held to vLLM's own classes in `test_architectures.py` (the cases named `dense@`
and `moe@`). vLLM 0.32 sizes neither GGUF nor HQQ, and torchao only with its library: those are held to the libraries'
own classes and to published files.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from kvplan.engines.flags import EngineArgs
from kvplan.engines.quantization_config import load_format
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.modules import Cut, Module, layer_modules, mtp_modules
from kvplan.models.quantization import quantization_rule
from kvplan.models.weights import heaviest_rank

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
LINEAR = 2 * (4 * 1024**2 + 3 * 1024 * 4096)
"""Weights of the layers' matrices."""
ENDS, NORMS = 2 * 32000 * 1024, 5 * 1024


def weights(quantization: dict[str, Any]) -> int:
    mine = heaviest_rank(from_config({**LLAMA, "quantization_config": quantization}))
    return mine.total - mine.rotary


def torchao(kind: str, **data: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": data}}}


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (torchao("Int4WeightOnlyConfig", group_size=128), 4 + 32 / 128),
        (torchao("Int8DynamicActivationInt4WeightConfig", group_size=32), 8.75),
        (torchao("ModuleFqnToConfig", module_fqn_to_config={"_default": None}), 16),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
            4.5,
        ),
        ({"quant_method": "mxfp8"}, 8.25),
    ],
)
def test_bits_of_a_weight(quantization: dict[str, Any], bits: float) -> None:
    """Of the layers' matrices; ends and norms keep 16."""
    assert weights(quantization) == LINEAR * bits / 8 + 2 * (ENDS + NORMS)


def hqq(bits: int, group: int) -> dict[str, Any]:
    return {
        "quant_method": "hqq",
        "quant_config": {"weight_quant_params": {"nbits": bits, "group_size": group}},
    }


OWN_CLASSES = [
    (torchao("Int8WeightOnlyConfig"), 8.009765625),
    (torchao("Int8DynamicActivationInt8WeightConfig"), 8.009765625),
    (torchao("Float8WeightOnlyConfig"), 8.0078125),
    (torchao("Int8DynamicActivationIntxWeightConfig", group_size=32), 8.75),
    (hqq(8, 128), 8.25),
    (hqq(4, 64), 4.5),
    (hqq(3, 64), 3.7001953125),
    (hqq(2, 16), 4.0),
]
"""Bits that torchao 0.18's and hqq 0.2.8's own classes hold for a weight of a 1,024 x 4,096 matrix in bfloat16."""


@pytest.mark.parametrize(("quantization", "bits"), OWN_CLASSES)
def test_bits_are_those_of_the_libraries(quantization: dict[str, Any], bits: float) -> None:
    """A scale a row weighs more here, where some rows are a quarter as long."""
    mine = (weights(quantization) - 2 * (ENDS + NORMS)) * 8 / LINEAR
    assert mine == pytest.approx(bits, rel=2.5e-3)


def test_torchao_against_a_published_peak() -> None:
    """pytorch/Qwen3-8B-INT4 and -QAT-INT4: peaks of 6.27 and 6.24 GB, activations included (their model cards)."""
    int4 = {"quantization_config": torchao("Int4WeightOnlyConfig", group_size=128)}
    mine = heaviest_rank(load_model("Qwen/Qwen3-8B", hf_overrides=int4))
    assert 0.98 * 6.24e9 < mine.total - mine.rotary < 6.24e9


FILES = {
    "Qwen3-1.7B-GGUF:Q8_0": 1_834_426_016,
    "Qwen3-4B-GGUF:Q4_K_M": 2_497_280_256,
    "Qwen3-8B-GGUF:Q4_K_M": 5_027_783_488,
    "Qwen3-14B-GGUF:Q4_K_M": 9_001_752_960,
    "Qwen3-14B-GGUF:Q5_K_M": 10_514_569_568,
    "Qwen3-14B-GGUF:Q6_K": 12_121_937_248,
    "Qwen3-14B-GGUF:Q8_0": 15_698_533_728,
    "Qwen3-32B-GGUF:Q4_K_M": 19_762_149_024,
    "Qwen3-32B-GGUF:Q5_0": 22_635_493_024,
    "Qwen3-32B-GGUF:Q5_K_M": 23_214_831_232,
    "Qwen3-32B-GGUF:Q6_K": 26_883_306_112,
    "Llama-3.1-8B-Instruct-GGUF:Q4_K_M": 4_920_739_232,
}
"""Bytes of the files of Qwen/Qwen3-...-GGUF and bartowski/Meta-Llama-3.1-8B-Instruct-GGUF; 6 MB are the header."""


def test_gguf_by_name_against_published_files() -> None:
    """Half within 0.4 %, all within 1.5 %: mixes differ by model, and the file itself says its own."""

    def off(name: str) -> float:
        mine = heaviest_rank(load_model(name))
        return abs((mine.total - mine.rotary) / FILES[name] - 1)

    errors = sorted(map(off, FILES))
    assert errors[len(errors) // 2] < 0.004
    assert errors[-1] < 0.015


def test_torchao_keeps_what_its_map_leaves_out() -> None:
    """A module named with null stays in 16 bits, others take the default."""
    int4 = {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}}
    each = torchao(
        "ModuleFqnToConfig", module_fqn_to_config={"_default": int4, "model.layers.0.mlp.down_proj": None}
    )
    spared = 1024 * 4096
    assert (
        weights(each) - weights(torchao("Int4WeightOnlyConfig", group_size=128)) == spared * (16 - 4.25) / 8
    )


def test_quark_reads_its_list_as_vllm_does() -> None:
    """Names and `re:` patterns hold; a wildcard does not (vLLM 0.32)."""
    weight = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}
    quark = {"quant_method": "quark", "global_quant_config": {"weight": weight}}
    assert weights({**quark, "exclude": ["*mlp*"]}) == weights({**quark, "exclude": ["lm_head"]})
    kept = weights({**quark, "exclude": ["re:.*mlp.*"]}) - weights({**quark, "exclude": []})
    assert kept == 2 * 3 * 1024 * 4096 * (16 - 4.25) / 8


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("Llama-3.1-8B-GGUF:Q4_K_M", 4.58),
        ("some/Llama-3.1-8B-Q6_K.gguf", 6.14),
        ("x/Llama-3.1-8B-GGUF:UD-IQ2_M", 2.74),
    ],
)
def test_a_gguf_type_in_a_name(name: str, gib: float) -> None:
    """Sizes that llama.cpp publishes for Llama-3.1-8B (tools/quantize/README.md)."""
    mine = heaviest_rank(load_model(name))
    assert (mine.total - mine.rotary) / GiB == pytest.approx(gib, abs=0.01)
    assert load_model(name).planned_as == "meta-llama/Llama-3.1-8B"


def gguf(kinds: dict[str, int], architecture: str = "llama") -> bytes:
    """A file's header: Llama's facts, its tensors in the types asked for, others in Q4_K (12)."""

    def text(of: str) -> bytes:
        return struct.pack("<Q", len(of)) + of.encode()

    facts = {"embedding_length": 1024, "feed_forward_length": 4096, "block_count": 2, "context_length": 4096}
    facts |= {"attention.head_count": 8}
    said = text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    said += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    said += b"".join(text(f"{architecture}.{key}") + struct.pack("<II", 4, of) for key, of in facts.items())
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (1024, 32000),
        "output": (1024, 32000),
        "output_norm": (1024,),
    }
    for i in range(2):
        shapes |= {f"blk.{i}.{x}": (1024, 1024) for x in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.{x}": (1024, 4096) for x in ("ffn_gate", "ffn_up", "ffn_down")}
        shapes |= {f"blk.{i}.{x}": (1024,) for x in ("attn_norm", "ffn_norm")}
    for name, sizes in shapes.items():
        kind = kinds.get(name, 0 if len(sizes) == 1 else 12)
        said += text(f"{name}.weight") + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, 0)
    return struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), len(facts) + 2) + said


def test_a_gguf_file_weighs_what_its_header_says(tmp_path: Path) -> None:
    """Q4_K is 144 bytes for 256 weights, Q6_K 210; norms are 16 bits once loaded."""
    file = tmp_path / "tiny-Q4_K_M.gguf"
    file.write_bytes(gguf({"output": 14}))
    mine = heaviest_rank(load_model(file))
    quantised = (LINEAR + ENDS // 2) // 256 * 144 + ENDS // 2 // 256 * 210
    assert mine.total - mine.rotary == pytest.approx(quantised + 2 * NORMS, rel=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF", "damaged GGUF header"),
        (b"nothing at all, but long enough to be read", "not a GGUF file"),
        (gguf({})[:900], "damaged GGUF header"),
        (gguf({"output": 77}), "tensors of type 77"),
        (gguf({}, "mamba"), "architecture 'mamba' is not planned"),
    ],
)
def test_bad_gguf_files_are_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(KvplanError, match=message):
        load_model(tmp_path / "bad.gguf")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16", 66_032_308_536),
        ("nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-NVFP4", 22_409_034_192),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4", 19_342_796_720),
    ],
)
def test_nemotrons_weigh_what_their_files_do(name: str, published: int) -> None:
    """Bytes of the repositories' files as public notes and lists state them, to 0.1 %."""
    rank = heaviest_rank(load_model(name))
    assert abs(rank.total - rank.rotary - published) <= published / 1000


# ---- --quantization-config


STATED = {
    '{"linear": "fp8_per_block"}': {"q_proj": "fp8 per 128x128 block", "expert": None},
    '{"moe": "int4_per_group_32"}': {"q_proj": None, "expert": "int4 group 32"},
    '{"linear": {"weight": "mxfp8"}, "moe": {"activation": "fp8_per_token"}}': {
        "q_proj": "mxfp8",
        "expert": None,
    },
    '{"linear": "mxfp8", "moe": "mxfp4", "ignore": ["re:.*q_proj"]}': {"q_proj": None, "expert": "mxfp4"},
    '{"targets": {"re:.*experts.*": "fp8_per_channel"}}': {"q_proj": None, "expert": "fp8 per channel"},
}


@pytest.mark.parametrize("text", STATED)
def test_linear_layers_and_experts_apart(text: str) -> None:
    """vLLM 0.32's `QuantizationConfigArgs` on a 16-bit checkpoint: a format for each kind, less the ignored."""
    rule = quantization_rule(
        load_model("Qwen/Qwen3-30B-A3B"), load_format(EngineArgs(quantization_config=text))
    )
    modules = {
        "q_proj": Module("layers.3.self_attn.q_proj", "attention", 4096, 2048),
        "expert": Module("layers.3.mlp.experts.up_proj", "expert", 768, 2048, copies=128),
    }
    for name, expected in STATED[text].items():
        scheme = rule(modules[name])
        assert (scheme and scheme.name) == expected


def test_the_config_refines_the_name() -> None:
    """Both flags: what the config says comes first, the name fills in; names for experts alone leave the rest."""
    args = EngineArgs(quantization="fp8_per_tensor", quantization_config='{"moe": "mxfp4"}')
    rule = quantization_rule(load_model("Qwen/Qwen3-30B-A3B"), load_format(args))
    linear, expert = (
        Module("layers.0.mlp.x", "mlp", 64, 64),
        Module("layers.0.mlp.experts.x", "expert", 64, 64),
    )
    assert [scheme.name for m in (linear, expert) if (scheme := rule(m))] == ["fp8 per tensor", "mxfp4"]
    for name in ("int8_per_channel_weight_only", "nvfp4_per_token"):
        rule = quantization_rule(load_model("Qwen/Qwen3-30B-A3B"), name)
        assert rule(linear) is None
        assert rule(expert) is not None


def test_beside_a_quantised_checkpoint_it_takes_what_is_left() -> None:
    """Qwen3-30B-A3B-FP8 keeps its blocks, whatever is stated for linear layers (composition)."""
    model = load_model("Qwen/Qwen3-30B-A3B-FP8")
    stated = load_format(EngineArgs(quantization_config='{"linear": "mxfp4"}'))
    expert = Module("layers.0.mlp.experts.up_proj", "expert", 768, 2048)
    for rule in (quantization_rule(model), quantization_rule(model, stated)):
        scheme = rule(expert)
        assert scheme is not None
        assert scheme.name == "fp8 per 128x128 block"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"lineal": "fp8_per_block"}, "has no key 'lineal'"),
        ({"moe": "fp7"}, "unknown quantization name 'fp7'"),
        ({"moe": "mxfp8", "targets": {"a": "mxfp8"}}, "without linear and moe"),
    ],
)
def test_configs_that_vllm_refuses(value: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EngineArgs(quantization_config=value)


@pytest.mark.parametrize(("size", "gigabytes"), [("Flash", 168), ("Pro", 913)])
def test_deepseek_v4_with_nvfp4_experts_weighs_what_its_files_do(size: str, gigabytes: int) -> None:
    """The files keep the prediction layer's experts in MXFP4, half as many scales; vLLM 0.32 makes NVFP4 of all."""
    model = load_model(f"nvidia/DeepSeek-V4-{size}-NVFP4")
    drafting = sum(m.copies * m.rows * m.cols for m in mtp_modules(model, Cut()) if m.role == "expert")
    held = heaviest_rank(model, use_mtp=True)
    assert round((held.total - held.rotary - drafting / 32) / 1e9) == gigabytes


@pytest.mark.parametrize(
    ("config", "is_static"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, True),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, False),
        ({"quant_method": "compressed-tensors", "dynamic": False}, True),
        ({"quant_method": "compressed-tensors", "dynamic": True}, False),
        ({"quant_method": "compressed-tensors"}, False),  # nothing said of inputs: they stay as they are
    ],
)
def test_scales_of_inputs_stand_in_the_checkpoint_where_they_are_static(
    config: dict[str, object], is_static: bool
) -> None:
    """vLLM 0.32 `fp8.py: act_q_static`, `compressed_tensors_w8a8_fp8.py: is_static_input_scheme`."""
    if config["quant_method"] == "compressed-tensors":
        weights = {"num_bits": 8, "type": "float", "strategy": "tensor"}
        read = {"input_activations": weights | config} if "dynamic" in config else {}
        config = {**config, "config_groups": {"all": {"targets": ["Linear"], "weights": weights, **read}}}
    model = load_model("Qwen/Qwen3-8B", hf_overrides={"quantization_config": config})
    layer = layer_modules(model.layers[0], model.hidden_size, Cut())
    schemes = set(map(quantization_rule(model), layer)) - {None}
    assert [(s.bits, s.is_static) for s in schemes if s] == [(8, is_static)]


def test_deepseek_v4s_experts_are_of_4_bits_unless_told() -> None:
    """A base model's are FP8, with scales of 4 bytes everywhere; vLLM takes no third kind."""
    told = json.loads((ROOT / "kvplan/catalog/models/deepseek-ai--DeepSeek-V4-Flash.json").read_text())
    plain = {key: value for key, value in told.items() if key != "expert_dtype"}
    small, same, large = (
        heaviest_rank(from_config(c)) for c in (told, plain, {**told, "expert_dtype": "fp8"})
    )
    assert small == same
    assert large.total > 1.7 * small.total
    with pytest.raises(KvplanError, match="expert_dtype must be fp4 or fp8"):
        from_config({**told, "expert_dtype": "int4"})
