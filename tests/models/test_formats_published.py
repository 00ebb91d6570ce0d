"""Numbers of each format in quantised checkpoints' files, against what the lists of modules make of the same model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvplan.models.load import load_model
from kvplan.models.modules import (
    Cut,
    Module,
    checkpoint_name,
    embedding_module,
    extra_modules,
    head_modules,
    layer_modules,
    mtp_modules,
)
from kvplan.models.quantization import quantization_rule
from kvplan.models.spec import ModelSpec
from kvplan.models.vision import vision_modules

FILES = {
    "MiniMaxAI/MiniMax-M2.7": (227_410_968_576, 0, 1_292_676_352),
    "Qwen/Qwen3.5-122B-A10B-FP8": (123_035_713_536, 0, 2_058_292_976),
    "Qwen/Qwen3.5-27B-FP8": (24_699_207_680, 0, 3_083_727_792),
    "Qwen/Qwen3.5-35B-A3B-FP8": (34_453_061_632, 0, 1_500_863_920),
    "Qwen/Qwen3.5-397B-A17B-FP8": (400_719_609_856, 0, 2_702_777_072),
    "Qwen/Qwen3.6-27B-FP8": (24_699_207_680, 0, 3_083_727_792),
    "Qwen/Qwen3.6-35B-A3B-FP8": (34_453_061_632, 0, 1_500_863_920),
    "Qwen/Qwen3.8-27B-FP8": (24_699_207_680, 0, 3_083_727_792),
    "Qwen/Qwen3.8-2.4T-A95B-FP8": (2_396_591_751_168, 0, 49_737_250_688),
    "Qwen/Qwen3-8B-FP8": (6_945_767_424, 0, 8_191_159_296 - 6_945_767_424),
    "MiniMaxAI/MiniMax-M2.5": (227_410_968_576, 0, 1_292_676_352),
    "deepseek-ai/DeepSeek-R1": (680_571_043_840, 0, 3_960_342_160),
    "deepseek-ai/DeepSeek-V3.2": (681_408_069_632, 0, 3_988_851_744),
    "deepseek-ai/DeepSeek-V4-Flash": (6_023_020_544, 2 * 141_733_920_768, 1_453_754_322),
    "deepseek-ai/DeepSeek-V4-Flash-0731": (6_304_038_912, 2 * 148_176_371_712, 1_523_636_158),
    "deepseek-ai/DeepSeek-V4-Flash-Vision-Exp": (6_304_038_912, 2 * 148_176_371_712, 1_990_041_790),
    "deepseek-ai/DeepSeek-V4-Pro": (23_169_335_296, 2 * 786_381_668_352, 2_907_002_782),
    "deepseek-ai/DeepSeek-V4-Pro-0813": (23_952_621_568, 2 * 811_748_818_944, 3_047_677_450),
    "deepseek-ai/DeepSeek-V4.1-Flash": (204_015_223_296, 2 * 278_585_671_680, 2_018_749_138),
    "mistralai/Mistral-Medium-3.5-128B": (121_802_588_160, 0, 5_901_622_016),
    "moonshotai/Kimi-K2.5": (0, 1_014_686_023_680, 12_193_352_688),
    "zai-org/GLM-5.2-FP8": (751_226_191_872, 0, 2_149_601_712),
    "zai-org/GLM-5.3": (751_226_191_872, 0, 2_149_601_712),
    "zai-org/GLM-5.3-Flash": (314_396_639_232, 0, 6_945_581_406),
}
"""Of 8 bits, of 4 bits, of 16 and more: counts by dtype in the headers of the safetensors files.

Scales of one byte stand apart in the files, wider ones are among the last. Packed numbers are counted one by one, and
Kimi-K2.5's without the 16-bit scales of its groups of 32 and the shapes beside them.
"""


@pytest.mark.parametrize("name", FILES)
def test_the_files_hold_as_many_numbers_of_each_format(name: str) -> None:
    """The list of modules, the prediction layers or DSpark's, and a tower make the published counts, exactly."""
    model = load_model(name)
    found = Counter[str]()
    rule = quantization_rule(model)
    for module in checkpoint(model):
        scheme = rule(module) if module.linear or module.role == "embedding" else None
        tables = module.name.endswith("engram.embed_tokens")  # of bytes, whatever the list says
        numbers = module.copies * module.rows * module.cols
        found["fp8" if tables else width(scheme.bits if scheme else 16)] += numbers
        found["others"] += module.parameters - numbers
        if scheme is not None and scheme.name == "fp8 per 128x128 block" and "V4" not in name:
            found["others"] += module.copies * -(-module.rows // 128) * -(-module.cols // 128)
    whole = keys_of_indexers(model)  # FP8 in the files, in vLLM a part of a 16-bit matrix
    found["fp8"] += whole
    found["others"] -= whole - whole // 128**2
    assert (found["fp8"], found["fp4"], found["others"]) == FILES[name]


STORED = {
    "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8": 30_533_947_392,
    "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8": 30_533_947_392,
    "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8": 235_107_904_512,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8": 480_184_064_000,
    "Qwen/Qwen3-Coder-Next-FP8": 79_679_212_800,
    "deepseek-ai/DeepSeek-V3": 684_531_386_000,
    "deepseek-ai/DeepSeek-V3.2-Exp": 685_396_921_376,
    "deepseek-ai/DeepSeek-V3.1": 684_531_386_000,
    "deepseek-ai/DeepSeek-R1-0528": 684_531_386_000,
    "zai-org/GLM-5-FP8": 753_910_024_032,
    "zai-org/GLM-5.1-FP8": 753_910_024_032,
    "zai-org/GLM-4.7-FP8": 358_458_391_872,
    "mistralai/Devstral-Small-2-24B-Instruct-2512": 24_011_361_840,
    "mistralai/Ministral-3-8B-Instruct-2512": 8_918_026_716,
    "mistralai/Ministral-3-14B-Instruct-2512": 13_945_032_240,
}
"""Numbers in the files of FP8 checkpoints, scales counted: one for each block of 128 by 128, or for each row, or one of
the matrix and one of its inputs."""
NO_DRAFTS = ("Qwen/Qwen3-Coder-Next-FP8", "nvidia/GLM-5.2-NVFP4")
"""Files without the prediction layer of their kin."""
PACKED = {
    "nvidia/DeepSeek-V4-Flash-NVFP4": (166_726_476_754, True),  # the prediction layer's experts in MXFP4
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": (18_237_772_608, True),
    "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": (
        17_820_210_764 - 6 * 2,
        False,
    ),  # scales of K and V
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": (
        67_228_556_288
        + 20_992
        + 4096 * 5376 // 2,  # routers' biases; one shared expert's matrix in NVFP4 more
        False,
    ),
    "nvidia/GLM-5.2-NVFP4": (380_989_135_104 + 75 * 256, False),  # routers' biases
}
"""Numbers in the files of NVFP4 checkpoints, two of 4 bits as one, and whether scales of one byte are counted."""


@pytest.mark.parametrize("name", PACKED)
def test_the_files_hold_a_byte_for_two_numbers_of_4_bits(name: str) -> None:
    model, (published, scales) = as_filed(name), PACKED[name]
    rule, total = quantization_rule(model), 0
    for module in checkpoint(model):
        total += module.parameters
        if not module.linear or (scheme := rule(module)) is None:
            continue
        numbers = module.copies * module.rows * module.cols
        if scheme.bits == 4:
            block = 32 if module.name.startswith("mtp.") else scheme.block_cols
            total += scales * numbers // block - numbers // 2
        elif scheme.name.endswith("block"):
            total += scales * module.copies * -(-module.rows // 128) * -(-module.cols // 128)
    assert total == published


def as_filed(name: str) -> ModelSpec:
    model = load_model(name)
    return replace(model, mtp_layers=()) if name in NO_DRAFTS else model


@pytest.mark.parametrize("name", STORED)
def test_the_files_hold_a_scale_for_each_quantised_block(name: str) -> None:
    """The scales in the published total tell how much of the model is quantised."""
    assert stored(as_filed(name)) == STORED[name]


def test_mimo_v2_5_holds_the_numbers_of_its_files() -> None:
    """310,775,040,000 in 73,081 tensors: eyes, ears and three layers that draft.

    Q, K and V of full attention lie there for four ranks, each with blocks of its own: two rows of scales more a layer.
    """
    model = load_model("XiaomiMiMo/MiMo-V2.5")
    more = sum(layer.attention.window == 0 for layer in model.layers) * 2 * model.hidden_size // 128
    assert stored(replace(model, mtp_layers=3 * model.mtp_layers)) + more == 310_775_040_000


def stored(model: ModelSpec) -> int:
    """Numbers in the files, scales counted."""
    rule, total = quantization_rule(model), keys_of_indexers(model) // 128**2
    for module in checkpoint(model):
        total += module.parameters
        if module.linear and (scheme := rule(module)):
            rows, cols = -(-module.rows // 128), -(-module.cols // 128)
            scales = rows * cols if scheme.name.endswith("block") else 2 if scheme.is_static else module.rows
            total += module.copies * scales
    return total


def width(bits: int) -> str:
    return {8: "fp8", 4: "fp4"}.get(bits, "others")


def keys_of_indexers(model: ModelSpec) -> int:
    """Numbers of `indexer.wk`, which vLLM fuses with `weights_proj` (`models/deepseek_v2.py: wk_weights_proj`)."""
    if model.architecture not in ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM"):
        return 0
    layers = (*model.layers, *model.mtp_layers)
    return sum(layer.attention.index_head_dim * model.hidden_size for layer in layers)


def checkpoint(model: ModelSpec) -> Iterator[Module]:
    """Everything that the files hold, by names that a list of modules can mean."""
    cut = Cut(checkpoint=True)
    yield from (embedding_module(model, cut), *extra_modules(model.extras, cut), *head_modules(model, cut))
    for i, layer in enumerate(model.layers):
        for module in layer_modules(layer, model.hidden_size, cut):
            yield module._replace(name=f"layers.{i}.{checkpoint_name(model.architecture, module.name)}")
    if model.vision:
        yield from vision_modules(model.vision, 1, checkpoint=True)
    if model.mtp_layers and model.mtp.repeats_ends:
        yield from (embedding_module(model, cut), *(m for m in head_modules(model, cut) if m.linear))
    if model.dspark:  # in the place of a prediction layer
        model = replace(model, mtp_layers=model.dspark.layers, mtp=model.dspark.around)
    for module in mtp_modules(model, cut):
        if module.name != "mtp.context_wkv_proj":  # copies that vLLM makes
            yield module
