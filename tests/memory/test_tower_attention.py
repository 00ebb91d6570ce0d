"""The tower's attention: what its kernels keep at start-up, and which of them vLLM refuses by card and tower."""

from __future__ import annotations

import json
import lzma
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import MiB
from kvplan.memory.forward import estimate
from kvplan.memory.tower_attention import heads_width
from kvplan.memory.tower_profile import largest_item, tower_bytes
from kvplan.models.load import from_config, load_model
from kvplan.models.towers.attention import HAND_ON_LENGTHS, OF_THEIR_OWN, heeds_flags

TOLD = json.loads((FIXTURES / "tower_attention_vllm_0.32.json").read_text())
CONFIGS = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
BUILT = sorted(name for name, layers in TOLD.items() if isinstance(layers, list) and name in CONFIGS)
QWEN3, QWEN2_5, GEMMA = "Qwen/Qwen3.6-27B", "Qwen/Qwen2.5-VL-7B-Instruct", "google/gemma-3-27b-it"
FP8 = {"mm_encoder_attn_backend": "flashinfer", "mm_encoder_attn_dtype": "fp8"}
SMALL: dict[str, Any] = {"max_model_len": 8192, "max_num_seqs": 8}


def architecture(name: str) -> str:
    return str(CONFIGS[name]["config"]["architectures"][0])


def test_vllm_built_nearly_all() -> None:
    """What it did not build here wants timm, and Kanana's processor."""
    assert len(BUILT) > 150
    assert {architecture(name) for name in TOLD if name in CONFIGS and name not in BUILT} == {
        *("DeepseekVLV2ForCausalLM", "Gemma3nForConditionalGeneration", "OpenVLAForActionPrediction"),
        "KananaVForConditionalGeneration",
    }


@pytest.mark.parametrize("name", BUILT)
def test_towers_have_the_attention_that_vllm_builds(name: str) -> None:
    """Flags reach a tower exactly where its layers are vLLM's; FlashInfer's kernels, where they are handed lengths."""
    if "language model only" in name:
        return
    told = architecture(name)
    assert heeds_flags(told) == bool(TOLD[name])
    assert told.startswith(HAND_ON_LENGTHS) == any(lengths for _, _, _, lengths, _ in TOLD[name])


def test_no_prefix_is_idle() -> None:
    told = {architecture(name) for name in TOLD if name in CONFIGS} | {"KimiK25ForConditionalGeneration"}
    for prefix in (*OF_THEIR_OWN, *HAND_ON_LENGTHS):
        assert any(one.startswith(prefix) for one in told), prefix


@pytest.mark.parametrize("name", [n for n in BUILT if any(lengths for _, _, _, lengths, _ in TOLD[n])])
def test_heads_are_padded_by_their_size(name: str) -> None:
    """Heads that are no multiple of 16, of 72 mostly, take more in FP8; the size is the one that vLLM builds."""
    model, args = from_config(CONFIGS[name]["config"]), EngineArgs(**FP8)
    sizes = {size for _, _, size, lengths, _ in TOLD[name] if lengths}
    padded = {-(-size // 16) * 16 / size for size in sizes}
    expected = {6 + 2.5 * p if p > 1 else 7.5 for p in padded}
    assert {heads_width(model, args, get_gpu("b200"))} == expected


def test_eight_bits_take_more_than_sixteen() -> None:
    """FP8 copies live beside Q, K and V: Qwen 3's heads of 72 are padded to 80 and count, Qwen 2.5's MLP is wider."""
    for name, gated, wider in ((QWEN3, 2, True), (QWEN2_5, 3, False)):
        model = load_model(name)
        plan = estimate(model, "b200", EngineArgs(**SMALL, **FP8))
        assert model.vision is not None
        item, hidden = largest_item(model.vision, plan.args), model.vision["hidden"]
        assert item is not None
        width = heads_width(model, plan.args, get_gpu("b200"))
        live = 2 * hidden + max(width * hidden, gated * model.vision["width"])
        peak = tower_bytes(model.vision, plan.args, width)
        assert peak == int(2 * item.patches * (item.pixels + live))
        assert (peak > (tower_bytes(model.vision, plan.args) or 0)) == wider


def test_the_activation_peak_is_the_towers() -> None:
    """Where start-up peaks in the tower, FP8 takes from the pool."""
    small = SMALL | {"max_num_batched_tokens": 2048}
    usual, asked = (estimate(QWEN3, "b200", EngineArgs(**small, **told)).budget for told in ({}, FP8))
    assert asked.activation.size.value > usual.activation.size.value
    assert "vision tower on 1 image of 16,384 tokens" in asked.activation.why


def test_flashinfers_workspace_is_taken_from_the_pool() -> None:
    usual, asked = (
        estimate(QWEN3, "b200", EngineArgs(**SMALL, mm_encoder_attn_backend=backend)).budget
        for backend in (None, "FLASHINFER")
    )
    assert usual.kv.size.value - asked.kv.size.value == 128 * MiB
    assert [row.name for row in asked.colocated] == ["tower_workspace"]


def test_pytorchs_kernels_copy_values_on_amds_cards() -> None:
    model = load_model(QWEN3)
    for gpu, width in (("h100", 7.0), ("mi300x", 8.0)):
        args = estimate(model, gpu, EngineArgs(**SMALL, mm_encoder_attn_backend="torch_sdpa")).args
        assert heads_width(model, args, get_gpu(gpu)) == width


@pytest.mark.parametrize(
    ("model", "gpu", "flags", "words"),
    [
        (QWEN3, "h100", {"mm_encoder_attn_backend": "XFORMERS"}, "run FLASH_ATTN, TRITON_ATTN, TORCH_SDPA or FLASH"),
        (QWEN3, "h100", {"mm_encoder_attn_backend": "ROCM_AITER_FA"}, "towers on nvidia's cards run FLASH_ATTN"),
        (QWEN3, "mi300x", {"mm_encoder_attn_backend": "FLASHINFER"}, "towers on amd's cards run FLASH_ATTN"),
        (GEMMA, "h100", {"mm_encoder_attn_backend": "FLASHINFER"}, "does not hand on the lengths and offsets"),
        (QWEN2_5, "t4", {"mm_encoder_attn_backend": "FLASH_ATTN", "dtype": "half"}, "8.0 and more, t4 has 7.5; TORCH"),
        (QWEN3, "b200", {"mm_encoder_attn_dtype": "fp8"}, "needs --mm-encoder-attn-backend FLASHINFER"),
        (QWEN3, "h100", FP8, "for compute capability 10.0 and more, h100-sxm has 9"),
        (QWEN3, "mi300x", FP8 | {"mm_encoder_attn_backend": "FLASH_ATTN"}, "needs .* ROCM_AITER_FA, not FLASH_ATTN"),
        (QWEN3, "mi210", {"mm_encoder_attn_dtype": "fp8"}, "for MI300's and MI350's cards, mi210 is none"),
        (QWEN3, "b200", {"mm_encoder_attn_dtype": "int8"}, "mm_encoder_attn_dtype 'int8': must be 'fp8'"),
    ],
)  # fmt: skip
def test_what_vllm_refuses(model: str, gpu: str, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(KvplanError, match=words):
        estimate(model, gpu, **SMALL, tensor_parallel_size=2, **flags)


def test_nothing_is_refused_where_no_layer_of_vllms_is_built() -> None:
    """Of text models, towers left out, and towers with attention of their own the flags say nothing."""
    told = {"mm_encoder_attn_backend": "CUTLASS_MLA"}
    assert estimate("Qwen/Qwen3-8B", "h100", **told).budget == estimate("Qwen/Qwen3-8B", "h100").budget
    estimate(QWEN3, "h100", **SMALL, tensor_parallel_size=2, language_model_only=True, **told)
    estimate("google/gemma-4-31B-it", "h100", **SMALL, tensor_parallel_size=2, **told)
