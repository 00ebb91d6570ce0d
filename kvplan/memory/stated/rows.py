"""Which stated sizes act on which tower, and how: one row an architecture.

Source: vLLM 0.32, the `ProcessingInfo` and `DummyInputsBuilder` of each class (`model_executor/models`, `models`); held
to `fixtures/stated_items_vllm_0.32.json` (`tests/models/make_stated.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.memory.stated import tiles, whole
from kvplan.memory.stated.ways import Asked, Row, Way, fewer_counted, fewer_run

PIXELS = ("size", "min_pixels", "max_pixels")
CROPS = ("crop_to_patches", "min_patches", "max_patches")


def _gemma4_frames(facts: Mapping[str, int], frames: int) -> Mapping[str, int]:
    """Two at least are run, eight tokens more than its 70 each are counted."""
    n = min(frames, 32)
    return {"frame_patches": facts["frame_patches"] // 32 * max(n, 2), "frame_tokens": n * 78}


STATED: dict[str, Row] = {
    "Gemma3ForConditionalGeneration": Row(
        whole.pan_and_scan,
        (
            "do_pan_and_scan",
            "pan_and_scan_max_num_crops",
            "pan_and_scan_min_crop_size",
            "pan_and_scan_min_ratio_to_activate",
        ),
    ),
    **dict.fromkeys(
        (
            "Gemma4ForConditionalGeneration",
            "Gemma4UnifiedForConditionalGeneration",
            "DiffusionGemmaForBlockDiffusion",
        ),
        Row(whole.soft_tokens, ("max_soft_tokens",), fixed=True, video=_gemma4_frames),
    ),
    "Mistral3ForConditionalGeneration": Row(whole.pixtral, ("size",)),
    "PixtralForConditionalGeneration": Row(whole.pixtral),
    "LightOnOCRForConditionalGeneration": Row(whole.pixtral_by_config, ("size",)),
    "KimiVLForConditionalGeneration": Row(whole.kimi_vl, ("in_token_limit",)),
    "KimiK3ForConditionalGeneration": Row(whole.kimi_k3),
    "KimiK25ForConditionalGeneration": Row(),
    **dict.fromkeys(
        ("InternVLChatModel", "SkyworkR1VChatModel", "QianfanOCRForConditionalGeneration"),
        Row(tiles.dynamic, tiles.TILE_KEYS, strict=True, video=fewer_counted),
    ),
    **dict.fromkeys(
        ("InternVLForConditionalGeneration", "InternS1ForConditionalGeneration"),
        Row(tiles.cropped, CROPS, video=fewer_counted),
    ),
    "Cohere2VisionForConditionalGeneration": Row(tiles.least_upscaled, ("crop_to_patches", "max_patches")),
    "Llama4ForConditionalGeneration": Row(tiles.canvas, ("max_patches", "resize_to_max_canvas")),
    **dict.fromkeys(
        ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
        Row(tiles.split, ("size", "do_image_splitting")),
    ),
    "Phi3VForCausalLM": Row(tiles.crops_of_336, ("num_crops",)),
    "Phi4MMForCausalLM": Row(tiles.crops_of_448, ("dynamic_hd",)),
    "DeepseekVLV2ForCausalLM": Row(tiles.candidates),
    "MolmoForCausalLM": Row(tiles.molmo, ("max_crops",)),
    "Molmo2ForConditionalGeneration": Row(
        tiles.molmo2, ("max_crops",), video=lambda facts, n: fewer_counted(facts, max(n, 2))
    ),
    **dict.fromkeys(
        (
            "AriaForConditionalGeneration",
            "BagelForConditionalGeneration",
            "Blip2ForConditionalGeneration",
            "DeepseekOCRForCausalLM",
            "DeepseekOCR2ForCausalLM",
            "UnlimitedOCRForCausalLM",
            "GLM4VForCausalLM",
            "LlavaForConditionalGeneration",
            "PaliGemmaForConditionalGeneration",
        ),
        Row(),
    ),
}
"""Architecture -> how stated sizes act; those of Qwen and GLM have functions of their own."""


def _anything(asked: Asked) -> Way:
    raise AssertionError  # planned by functions of its own


QWENS = Row(_anything, PIXELS, video=fewer_run, video_sides=True)
"""Qwen's and its kin's (`kvplan/memory/item_sizes.py`)."""
GLMS = QWENS
"""GLM's (`kvplan/memory/glm_items.py`)."""
