"""Asks vLLM itself what its start-up profiles where flags state sizes of items, tower by tower.

    python tests/models/make_stated.py [NAME ...]
    python tests/models/make_stated.py limits

Writes `tests/fixtures/stated_items_vllm_0.32.json`: for each architecture, flags and length of the context what
`make_largest.py` writes without flags: tokens of an item by modality and the numbers of the item that is run; or what
vLLM refuses. Processors are made as they are loaded, with the keys of --mm-processor-kwargs that they know.
`limits` writes `item_limits_vllm_0.32.json`: how many items of a kind each class takes.

`tests/memory/test_stated_items.py` holds kvplan to them. Environment: see `make_largest.py`.
"""

from __future__ import annotations

import json
import lzma
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import make_largest
import vllm_meta
from make_largest import TOLD, _with

WRITTEN = make_largest.FIXTURES / "stated_items_vllm_0.32.json"
LIMITS = make_largest.FIXTURES / "item_limits_vllm_0.32.json"
LENGTHS = (8192, 131072)


def kwargs(**told: Any) -> dict[str, Any]:
    return {"mm_processor_kwargs": told}


def image(width: int, height: int, **more: Any) -> dict[str, Any]:
    return {"limit_mm_per_prompt": {"image": {"count": 1, "width": width, "height": height}, **more}}


def _pixtral(info: Any) -> Any:
    """mistral-common's encoder of the config's sizes."""
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
    from vllm.transformers_utils.processors.pixtral import MistralCommonImageProcessor

    k = info.get_hf_config().vision_config
    sizes = ImageConfig(k.patch_size, k.image_size, spatial_merge_size=getattr(k, "spatial_merge_size", 1))
    encoder = ImageEncoder(sizes, SpecialImageIDs(img=1, img_break=2, img_end=3))
    made = MistralCommonImageProcessor(encoder)
    unit = sizes.image_patch_size * sizes.spatial_merge_size
    type(info).get_image_processor = lambda self: made
    return SimpleNamespace(
        tokens=lambda image: made.get_number_of_image_patches(image.size[1], image.size[0])[0],
        numbers=lambda image: made.get_number_of_image_patches(image.size[1], image.size[0])[0] * 3 * unit**2,
    )


def _kimi_vl(info: Any) -> Any:
    """The limits of Kimi-VL's own image processor; four patches of 14 x 14 a token."""
    told = {"patch_size": 14, "merge_kernel_size": [2, 2], "in_token_limit": 16384, **TOLD}
    made = SimpleNamespace(image_processor=SimpleNamespace(**told))
    made.numbers = lambda image: (
        4 * 588 * info.get_num_image_tokens(image_width=image.size[0], image_height=image.size[1])
    )
    return made


def _crops_of_336(info: Any) -> Any:
    """Phi-3 Vision's own processor counts so (its image_processing_phi3_v.py, as public copies have it)."""
    most = TOLD.get("num_crops", 4)

    def tokens(*, width: int, height: int) -> int:
        turned, (long, short) = width < height, (max(width, height), min(width, height))
        scale = 1
        while scale * math.ceil(scale / (long / short)) <= most:
            scale += 1
        across, down = scale - 1, math.ceil(int((scale - 1) * 336 / (long / short)) / 336)
        rows, columns = (across, down) if turned else (down, across)
        return (rows * columns + 1) * 144 + 1 + (rows + 1) * 12

    return SimpleNamespace(
        calc_num_image_tokens_from_image_size=tokens, numbers=lambda image: (most + 1) * 3 * 336**2
    )


def _crops_of_448(info: Any) -> Any:
    """Phi-4 Multimodal's own processor looks for proportions as InternVL's does."""
    from vllm.transformers_utils.processors.internvl import find_closest_aspect_ratio

    def closest(ratio: float, ratios: Any, width: int, height: int, side: int) -> Any:
        return find_closest_aspect_ratio(ratio, ratios, width=width, height=height, image_size=side)

    most = TOLD.get("dynamic_hd", 36)

    def numbers(image: Any) -> int:
        (across, down), *_ = info._find_target_aspect_ratio(*image.size, 448, most, 1)
        return (across * down + 1) * 3 * 448**2

    own = SimpleNamespace(dynamic_hd=most, find_closest_aspect_ratio=closest)
    return SimpleNamespace(image_processor=own, numbers=numbers)


def _candidates(info: Any) -> Any:
    """vLLM's own processor, without its tokenizer."""
    from vllm.transformers_utils.processors.deepseek_vl2 import DeepseekVLV2Processor

    made = object.__new__(DeepseekVLV2Processor)
    config = info.get_hf_config()
    made.candidate_resolutions = tuple(map(tuple, config.candidate_resolutions))
    made.image_size, made.patch_size, made.downsample_ratio = 384, 14, 2

    def numbers(image: Any) -> int:
        width, height = made.select_best_resolution(image.size)
        return (width // 384 * (height // 384) + 1) * 3 * 378**2  # whole patches

    made.numbers = numbers
    return made


def _molmo(info: Any) -> Any:
    """Sizes of Molmo's own image processor."""
    own = SimpleNamespace(
        max_crops=TOLD.get("max_crops", 12),
        overlap_margins=(4, 4),
        base_image_input_size=(336, 336),
        image_patch_size=14,
        image_token_length_w=12,
        image_token_length_h=12,
    )

    def sizes(image: Any) -> dict[str, Any]:
        return {"image_width": image.size[0], "image_height": image.size[1], "image_processor": own}

    def tokens(image: Any) -> int:  # ends of rows and marks are not embedded
        columns, rows = info.get_patches_grid_size(**sizes(image))
        return (columns + 1) // 2 * ((rows + 1) // 2) + 144

    def numbers(image: Any) -> int:
        across, down = info.select_tiling(**sizes(image))
        return int(across * down + 1) * 3 * 336**2

    return SimpleNamespace(image_processor=own, tokens=tokens, numbers=numbers)


def _molmo2(info: Any) -> Any:
    """Sizes of Molmo 2's own processors."""
    own = SimpleNamespace(
        max_crops=TOLD.get("max_crops", 8),
        overlap_margins=(4, 4),
        size={"height": 378, "width": 378},
        patch_size=14,
        pooling_size=(2, 2),
    )
    video = SimpleNamespace(size=own.size, patch_size=14, pooling_size=(3, 3), num_frames=384)
    made = SimpleNamespace(image_processor=own, video_processor=video)
    made.use_single_crop_col_tokens, made.image_use_col_tokens, made.video_use_col_tokens = None, True, False

    def numbers(image: Any) -> int:
        sides = {"image_width": image.size[0], "image_height": image.size[1]}
        across, down = info.select_tiling(**sides, image_processor=own)
        return int(across * down + 1) * 3 * 378**2

    made.numbers = numbers
    made.video_tokens = lambda frames: info.get_num_video_tokens(num_frames=len(frames), processor=made)
    made.video_numbers = lambda frames: len(frames) * 3 * 378**2
    return made


def _kimi_k3(info: Any) -> Any:
    """vLLM's own processor under the limits of Kimi K3's checkpoint."""
    from vllm.transformers_utils.processors.kimi_k25_vision_fused import KimiK25FusedVisionProcessor

    limits = {"in_patch_limit": 65536, "patch_limit_on_one_side": 512, "fixed_output_tokens": None}
    sizes = {"patch_size": 14, "merge_kernel_size": 2, "temporal_merge_kernel_size": 4}
    made = KimiK25FusedVisionProcessor({**limits, **sizes, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    info.image_processor = made

    def tokens(image: Any) -> int:
        return made.media_tokens_calculator({"type": "image", "image": image})

    return SimpleNamespace(tokens=tokens, numbers=lambda image: tokens(image) * 4 * 588)


def _anyres(info: Any) -> Any:
    """Tiles as transformers' classes cut them, by vLLM's function; sizes are the config's."""
    config = info.get_hf_config()
    side = config.vision_config.image_size
    whole = side // config.vision_config.patch_size * config.vision_config.patch_size

    def numbers(image: Any) -> int:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        sides = (image.size[1], image.size[0])
        return int(image_size_to_num_patches(sides, config.image_grid_pinpoints, side)) * 3 * whole**2

    made = SimpleNamespace(numbers=numbers)
    if hasattr(info, "get_num_video_tokens"):
        made.video_numbers = lambda frames: len(frames) * 3 * whole**2
        made.video_tokens = lambda frames: info.get_num_video_tokens(
            image_width=side, image_height=side, num_frames=len(frames)
        )
    return made


def _ovis(info: Any) -> Any:
    """vLLM's own processor, without its tokenizer."""
    from vllm.transformers_utils.processors.ovis import OvisProcessor

    k = info.get_hf_config().visual_tokenizer_config.backbone_config
    made = object.__new__(OvisProcessor)
    size = {"height": k.image_size, "width": k.image_size}
    made.image_processor = make_largest._image_processor(
        "siglip.image_processing_siglip", "SiglipImageProcessor", size=size
    )
    made.image_segment_len = info.get_image_segment_len()
    made.get_token_value = lambda name: name
    told = {
        "max_partition": 9,
        "covering_threshold": 0.9,
        **TOLD,
        "do_convert_rgb": True,
        "return_tensors": "pt",
    }
    made.tokens = lambda image: len(made.preprocess_image(image, **told)[1])
    made.numbers = lambda image: made.preprocess_image(image, **told)[0].numel()
    return made


def _step(info: Any) -> Any:
    """vLLM's own; the windows pass the tower behind the whole."""
    from vllm.transformers_utils.processors.step3_vl import Step3VLImageProcessor

    made = Step3VLImageProcessor(
        enable_patch=getattr(info.get_hf_config().vision_config, "enable_patch", True)
    )
    k = info.get_hf_config().vision_config
    patch = getattr(k, "patch_size", 14)
    more = int(getattr(k, "use_cls_token", not hasattr(k, "mlp_ratio")))  # a class token, counted as a patch

    def numbers(image: Any) -> int:
        windows = made.patcher.get_num_patches(*image.size)[0]
        return max((728 // patch) ** 2 + more, windows * ((504 // patch) ** 2 + more)) * 3 * patch**2

    type(info).get_image_processor = lambda self: made
    return SimpleNamespace(image_processor=made, numbers=numbers)


def _dots(info: Any) -> Any:
    """Qwen 2's, under the limits of dots.ocr's code."""
    type(info).get_hf_config = lambda self: self.ctx.get_hf_config()
    told = {"size": {"shortest_edge": 3136, "longest_edge": 11289600}, "temporal_patch_size": 1}
    return _with("qwen2_vl.image_processing_qwen2_vl", "Qwen2VLImageProcessor", told)(info)


def _resized(known: Any) -> Any:
    """A processor of `make_largest.py`, whose videos are resized as vLLM reckons."""

    def made(info: Any) -> Any:
        stub = known(info)

        def numbers(frames: Any) -> int:
            count, height, width, _ = frames.shape
            told = {"image_processor": stub.image_processor, "mm_kwargs": {}, "num_frames": count}
            size, _ = info._get_vision_info(image_width=width, image_height=height, **told)
            return int(count * size.height * size.width * 3)

        stub.video_numbers = numbers
        return stub

    return made


def _ovis2_5(info: Any) -> Any:
    """vLLM's own processor, without its tokenizer."""
    from vllm.transformers_utils.processors.ovis2_5 import Ovis2_5Processor

    k, made = info.get_hf_config().vit_config, object.__new__(Ovis2_5Processor)
    made.patch_size, made.hidden_stride, made.temporal_patch_size = (
        k.patch_size,
        k.hidden_stride,
        k.temporal_patch_size,
    )
    made.get_token_value = lambda name: name
    told = {"min_pixels": 448**2, "max_pixels": 1792**2, **TOLD}

    def sides(width: int, height: int) -> tuple[int, int]:
        return made.smart_resize(height, width, k.patch_size * k.hidden_stride, **told)

    def tokens(image: Any) -> int:
        tall, wide = (n // k.patch_size for n in sides(*image.size))
        return len(made.construct_visual_placeholders((1, tall, wide)))

    def numbers(image: Any) -> int:
        tall, wide = sides(*image.size)
        return tall * wide * 3

    return SimpleNamespace(tokens=tokens, numbers=numbers, extra_special_tokens=None)


def _minicpm4(info: Any) -> Any:
    """transformers' own; slices are filled up to the largest."""
    package = f"minicpmv4_{'7' if 'MiniCPMV4_7' in type(info).__name__ else '6'}"
    kind = f"MiniCPMV4_{package[-1]}ImageProcessorPil"
    module = f"{package}.image_processing_pil_{package}"
    own = make_largest._image_processor(module, kind)
    patch = own.patch_size

    def patches(image: Any, most: int) -> int:
        side, size = own.scale_resolution, (image.size[1], image.size[0])
        grid = own.get_sliced_grid(size, most, side)
        best = own.find_best_resize(size, side, patch, allow_upscale=grid is None)
        whole = best[0] * best[1] // patch**2
        if grid is None:
            return whole
        refined = own.get_refine_size(size, grid, side, patch, allow_upscale=True)
        each = refined[0] // grid[0] * (refined[1] // grid[1]) // patch**2
        return (grid[0] * grid[1] + 1) * max(whole, each)

    video = SimpleNamespace(max_slice_nums=own.max_slice_nums)
    made = SimpleNamespace(image_processor=own, video_processor=video)
    made.numbers = lambda image: patches(image, own.max_slice_nums) * 3 * patch**2
    made.video_numbers = lambda frames: sum(map(made.numbers, frames))
    return made


STUBS = {
    "MiniCPMV4_6ForConditionalGeneration": _minicpm4,
    **dict.fromkeys(("Ovis2_5", "Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"), _ovis2_5),
    **{
        name: _resized(make_largest.PROCESSORS[name])
        for name in (
            "KeyeForConditionalGeneration",
            "KeyeVL1_5ForConditionalGeneration",
            "Ernie4_5_VLMoeForConditionalGeneration",
        )
    },
    **dict.fromkeys(
        (
            "LlavaNextForConditionalGeneration",
            "LlavaOnevisionForConditionalGeneration",
            "BeeForConditionalGeneration",
        ),
        _anyres,
    ),
    "RForConditionalGeneration": _anyres,
    "Ovis": _ovis,
    "Step3VLForConditionalGeneration": _step,
    "Step3p7ForConditionalGeneration": _step,
    "StepVLForConditionalGeneration": _step,
    "KimiK3, with its tower": _kimi_k3,
    "PixtralForConditionalGeneration": _pixtral,
    "LightOnOCRForConditionalGeneration": _with(
        "pixtral.image_processing_pixtral",
        "PixtralImageProcessor",
        {"size": {"longest_edge": 1036}, "patch_size": {"height": 28, "width": 28}},
    ),
    "KimiVLForConditionalGeneration": _kimi_vl,
    "Phi3VForCausalLM": _crops_of_336,
    "Phi4MMForCausalLM": _crops_of_448,
    "DeepseekVLV2ForCausalLM": _candidates,
    "MolmoForCausalLM": _molmo,
    "Molmo2ForConditionalGeneration": _molmo2,
    "DotsOCRForCausalLM": _dots,
    "PaddleOCRVLForConditionalGeneration": _with(
        "paddleocr_vl.image_processing_paddleocr_vl",
        "PaddleOCRVLImageProcessor",
        {"size": {"shortest_edge": 147384, "longest_edge": 28 * 28 * 1280}},
    ),
}
"""Processors of architectures that `make_largest.py` does not ask."""
make_largest.SIZES["MiniCPMV4_6ForConditionalGeneration"] = {"vision_config": {"patch_size": 14}}
SHAPES = [image(512, 512), image(300, 1200), image(2000, 90)]
"""Pictures that are stated of every tower."""
SHAPELESS = {"Ovis2_5"}
"""Whose videos are more tokens than any picture."""
CASES: dict[str, list[dict[str, Any]]] = {
    "Gemma3ForConditionalGeneration": [
        kwargs(do_pan_and_scan=True),
        kwargs(do_pan_and_scan=True, pan_and_scan_max_num_crops=2),
        kwargs(images_kwargs={"do_pan_and_scan": True}),
        kwargs(do_pan_and_scan=True, pan_and_scan_min_crop_size=1000),
        {**kwargs(do_pan_and_scan=True), **image(700, 1500)},
        {**kwargs(do_pan_and_scan=True), **image(700, 800)},
    ],
    "Gemma4, with its towers": [
        *(kwargs(max_soft_tokens=n) for n in (70, 560, 1120)),
        kwargs(images_kwargs={"max_soft_tokens": 140}),
        {"limit_mm_per_prompt": {"video": {"num_frames": 4}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 100}}},
    ],
    "Gemma4UnifiedForConditionalGeneration": [
        *(kwargs(max_soft_tokens=n) for n in (70, 560, 1120)),
        {"limit_mm_per_prompt": {"video": {"num_frames": 4}}},
    ],
    "Mistral3ForConditionalGeneration": [kwargs(size={"longest_edge": n}) for n in (448, 1000)],
    "LightOnOCRForConditionalGeneration": [kwargs(size={"longest_edge": 700})],
    "PixtralForConditionalGeneration": [kwargs(size={"longest_edge": 700})],
    "KimiVLForConditionalGeneration": [
        kwargs(in_token_limit=1024),
        {**kwargs(in_token_limit=900), **image(900, 700)},
    ],
    "KimiK3, with its tower": [image(9000, 9000)],
    "InternVL, with its tower": [
        kwargs(max_patches=4),
        kwargs(min_patches=3, max_patches=5),
        kwargs(crop_to_patches=False),
        {"limit_mm_per_prompt": {"image": 0, "video": {"num_frames": 5}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 5}}},
        {**kwargs(max_patches=6), **image(900, 500, video=0)},
    ],
    "Cohere2Vision, with its tower": [
        kwargs(max_patches=4),
        kwargs(crop_to_patches=False),
        {**kwargs(max_patches=6), **image(900, 500)},
        image(500, 900),
        image(1100, 1100),
    ],
    "Llama4ForConditionalGeneration": [
        kwargs(max_patches=4),
        {**kwargs(max_patches=5), **image(300, 1000)},
        {**kwargs(resize_to_max_canvas=True), **image(200, 300)},
        image(336, 700),
    ],
    "Idefics3ForConditionalGeneration": [
        kwargs(size={"longest_edge": 364}),
        kwargs(size={"longest_edge": 1000}),
        kwargs(do_image_splitting=False),
        image(364, 200),
    ],
    "SmolVLMForConditionalGeneration": [
        kwargs(size={"longest_edge": 728}),
        kwargs(do_image_splitting=False),
        image(200, 300),
    ],
    "Phi3VForCausalLM": [
        kwargs(num_crops=16),
        kwargs(num_crops=1),
        {**kwargs(num_crops=16), **image(50, 60)},
    ],
    "Phi4MMForCausalLM": [
        kwargs(dynamic_hd=4),
        kwargs(dynamic_hd=16),
        {**kwargs(dynamic_hd=4), **image(448, 1000)},
        image(400, 3000),
    ],
    "DeepseekVLV2ForCausalLM": [image(384, 384), image(300, 700)],
    "MolmoForCausalLM": [kwargs(max_crops=4), image(336, 700), image(100, 100)],
    "Molmo2ForConditionalGeneration": [
        {"limit_mm_per_prompt": {"video": 0}},
        {**kwargs(max_crops=4), "limit_mm_per_prompt": {"video": 0}},
        image(336, 700, video=0),
        image(900, 300, video=0),
        {"limit_mm_per_prompt": {"video": {"num_frames": 20}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 1}, "image": 0}},
    ],
    "DotsOCRForCausalLM": [
        kwargs(max_pixels=1003520),
        kwargs(size={"shortest_edge": 3136, "longest_edge": 401408}),
    ],
    "PaddleOCRVLForConditionalGeneration": [kwargs(max_pixels=501760), image(20, 300)],
    "KeyeForConditionalGeneration": [
        kwargs(max_pixels=501760),
        kwargs(size={"max_pixels": 250880}),
        {**kwargs(max_pixels=501760), **image(20, 300)},
        {"limit_mm_per_prompt": {"image": 1, "video": 1}},
        {"limit_mm_per_prompt": {"image": 2, "video": {"count": 2, "num_frames": 3}}},
        {
            "limit_mm_per_prompt": {
                "image": 0,
                "video": {"count": 1, "num_frames": 3, "width": 300, "height": 200},
            }
        },
    ],
    "KeyeVL1_5ForConditionalGeneration": [{"limit_mm_per_prompt": {"image": 1}}, kwargs(max_pixels=501760)],
    "Ernie4_5_VLMoeForConditionalGeneration": [
        kwargs(max_pixels=501760),
        kwargs(size={"shortest_edge": 3136, "longest_edge": 1003520}),
        {"limit_mm_per_prompt": {"video": {"num_frames": 5}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 4, "width": 300, "height": 200}}},
        image(500, 300, video=0),
    ],
    "NVLM_D": [kwargs(max_dynamic_patch=3), kwargs(use_thumbnail=False), kwargs(max_pixels=9)],
    "Eagle2_5_VLForConditionalGeneration": [kwargs(max_dynamic_patch=3), kwargs(max_pixels=9)],
    "LlavaNextForConditionalGeneration": [image(672, 300), image(337, 337)],
    "LlavaOnevisionForConditionalGeneration": [image(1000, 300, video=0), image(385, 385, video=0)],
    "BeeForConditionalGeneration": [image(900, 700)],
    "RForConditionalGeneration": [image(900, 700)],
    "Granite4VisionForConditionalGeneration": [image(384, 700)],
    "Step3VLForConditionalGeneration": [image(1000, 1100), image(700, 400)],
    "Step3p7ForConditionalGeneration": [image(1000, 1100)],
    "StepVLForConditionalGeneration": [],
    "Ovis": [kwargs(max_partition=4), image(448, 900), image(100, 60)],
    "NemotronH_Nano_VL_V2": [
        kwargs(max_num_tiles=4),
        {**kwargs(max_num_tiles=4), "limit_mm_per_prompt": {"video": 0}},
        kwargs(max_pixels=4),
        image(900, 400, video=0),
        {"limit_mm_per_prompt": {"video": {"num_frames": 8}}},
    ],
    "NemotronH_Nano_Omni_Reasoning_V3": [{"limit_mm_per_prompt": {"video": {"num_frames": 8}, "audio": 0}}],
    "MiniCPMV4_6ForConditionalGeneration": [
        kwargs(max_slice_nums=4),
        {**kwargs(max_slice_nums=4), "limit_mm_per_prompt": {"video": 0}},
        image(448, 448, video=0),
        image(448, 2000, video=0),
        image(300, 1700, video=0),
        {"limit_mm_per_prompt": {"video": {"num_frames": 3}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 3, "width": 300, "height": 700}}},
    ],
    "Ovis2_5": [
        {**kwargs(max_pixels=501760), "limit_mm_per_prompt": {"video": 0}},
        image(512, 512, video=0),
        image(900, 700, video=0),
        image(20, 700, video=0),
        image(1792, 8, video=0),
    ],
    "Llava, with its tower": [],
    "PaliGemma, with its tower": [],
    "AriaForConditionalGeneration": [],
    "Blip2ForConditionalGeneration": [],
    "BagelForConditionalGeneration": [],
    "GLM4VForCausalLM": [],
    "DeepseekOCRForCausalLM": [],
    "DeepseekOCR2ForCausalLM": [],
    "UnlimitedOCRForCausalLM": [],
}
"""Architecture -> flags beside those of `SHAPES`."""


def heard(samples: int) -> dict[str, Any]:
    return {"limit_mm_per_prompt": {"audio": {"count": 1, "length": samples}}}


def _lengths(function: Any, frames: int) -> int:
    import torch

    return int(function(torch.tensor([frames])).item())


def _granite(info: Any, samples: int) -> tuple[int, int]:
    from transformers.models.granite_speech.feature_extraction_granite_speech import (
        GraniteSpeechFeatureExtractor,
    )

    made, config = object.__new__(GraniteSpeechFeatureExtractor), info.get_hf_config()
    made.melspec_kwargs = {"hop_length": 160}
    made.projector_window_size, made.projector_downsample_rate = config.window_size, config.downsample_rate
    return int(made._get_num_audio_features([samples])[0]), (samples // 160 + 1) // 2


def _fire_red(info: Any, samples: int) -> tuple[int, int]:
    """Its extractor, over a spectrogram of nothing."""
    import numpy as np
    from vllm.transformers_utils.processors import fireredasr2 as module

    frames = (samples - 400) // 160 + 1
    module.KaldifeatFbank = lambda **told: lambda rate, speech: np.zeros((frames, 80), np.float32)
    module.CMVN = lambda *args, **told: lambda x: x
    rate = info.ctx.get_hf_config().encoder_downsample_rate
    made = module.FireRedASR2FeatureExtractor(downsample_rate=rate)
    heard = made([np.zeros(samples, np.float32)], sampling_rate=16000)
    return int(heard["fake_token_lengths"].item()), 750


def _fun_asr(info: Any, samples: int) -> tuple[int, int]:
    """Its extractor, over a spectrogram of nothing; filled up to its `max_length`."""
    import numpy as np
    import torch
    from vllm.transformers_utils.processors import funasr as module

    frames = (samples - 400) // 160 + 1
    module.WavFrontend = lambda **told: None
    made = module.FunASRFeatureExtractor(frontend_conf={})
    joined = module.apply_lfr(torch.zeros(frames, 80), 7, 6)[None]
    made.extract_fbank = lambda *args, **told: (joined, torch.tensor([joined.shape[1]]))
    heard = made([np.zeros(samples, np.float32)], sampling_rate=16000)
    return int(heard["fake_token_lengths"].item()), made.max_length


def _sounds() -> dict[str, Any]:
    """Architecture -> tokens that a sound becomes and frames that pass the tower, by vLLM's own functions."""
    from vllm.model_executor.models import audioflamingo3, glmasr_utils, midashenglm, moss_audio, qwen3_asr

    def windows(samples: int) -> list[int]:
        return [min(480000, samples - start) for start in range(0, samples, 480000)]

    def flamingo(info: Any, samples: int) -> tuple[int, int]:
        frames = sum(-(-n // 160) for n in windows(samples))
        tokens = _lengths(audioflamingo3._get_audio_post_pool_output_lengths, frames)
        return tokens, 1500 * len(windows(samples))

    def glm(info: Any, samples: int) -> tuple[int, int]:
        told = glmasr_utils.DEFAULT_MERGE_FACTOR, glmasr_utils.DEFAULT_CONV_PARAMS
        found = windows(samples)[:21]
        counted = glmasr_utils._get_audio_output_lengths_from_lengths
        return sum(_lengths(lambda x: counted(x, *told), -(-n // 160)) for n in found), 1500 * len(found)

    def qwen3(info: Any, samples: int) -> tuple[int, int]:
        return (_lengths(qwen3_asr._get_feat_extract_output_lengths, -(-samples // 160)),) * 2

    return {
        "AudioFlamingo3ForConditionalGeneration": flamingo,
        "GlmAsrForConditionalGeneration": glm,
        "Qwen3ASRForConditionalGeneration": qwen3,
        "Qwen3ASRRealtimeGeneration": qwen3,
        "GraniteSpeechForConditionalGeneration": _granite,
        "GraniteSpeechPlusForConditionalGeneration": _granite,
        "FunASRForConditionalGeneration": _fun_asr,
        "FireRedASR2ForConditionalGeneration": _fire_red,
        "MiDashengLMModel": lambda info, n: (
            midashenglm.calculate_mel_frames_dasheng(n),
            midashenglm.calculate_mel_frames_dasheng(n, model_subsampling=1),
        ),
        "MossAudioModel": lambda info, n: (
            0,
            moss_audio.MossAudioEncoder.compute_num_audio_tokens(-(-n // 160)),
        ),
        "MossTranscribeDiarizeForConditionalGeneration": lambda info, n: (0, 1500 * len(windows(n))),
        "VoxtralForConditionalGeneration": lambda info, n: (0, 1500 * len(windows(n))),
        "WhisperForConditionalGeneration": lambda info, n: (info.get_num_audio_tokens(), 1500),
        "Qwen2AudioForConditionalGeneration": lambda info, n: (0, 1500),
    }


SOUNDS = [heard(n) for n in (16_000, 100_000, 400_000, 700_000, 10**8)]


def sound(name: str, case: dict[str, Any], flags: dict[str, Any], length: int) -> dict[str, Any]:
    """vLLM's answer of a sound: tokens and the frames that pass the tower."""
    flags = {**case.get("flags", {}), **json.loads(json.dumps(flags))}
    flags.pop("language_model_only", None)
    vllm_meta._Tokenizer.add_tokens = lambda self, *names, **told: 0
    made, info, dummy = make_largest._info(
        make_largest.sized(name, case["config"]), flags, length, case.get("beside")
    )
    ears = SimpleNamespace(
        sampling_rate=16000, chunk_length=30, n_samples=480000, hop_length=160, frame_rate=12.5
    )
    longest = {"AudioFlamingo3ForConditionalGeneration": 600}.get(name, 655)
    stub = SimpleNamespace(feature_extractor=ears, audio_merge_size=4, max_audio_len=longest)
    stub.mel_config = {"mel_sr": 16000, "mel_hop_length": 160}
    type(info).get_hf_processor = lambda self, **told: stub
    type(info).get_feature_extractor = lambda self, **told: ears
    limits = dict.fromkeys(info.get_supported_mm_limits(), 1)
    told = info.get_mm_max_tokens_per_item(length, limits)
    options = made.get_multimodal_config().limit_per_prompt
    samples = len(dummy.get_dummy_mm_data(length, {"audio": 1}, options)["audio"][0])
    tokens, frames = _sounds()[name](info, samples)
    return {"tokens": {"audio": int((told or {"audio": tokens})["audio"])}, "frames": {"audio": int(frames)}}


def limits(packed: dict[str, Any]) -> dict[str, Any]:
    """Architecture -> the most items of a kind that its class takes a prompt; none is None."""
    vllm_meta._Tokenizer.add_tokens = lambda self, *names, **told: 0
    found: dict[str, Any] = {}
    for name, case in packed.items():
        flags = {k: v for k, v in case.get("flags", {}).items() if k != "language_model_only"}
        beside = make_largest._glm_files(name) if name in make_largest.GLM_PIXELS else case.get("beside")
        try:
            info = make_largest._info(make_largest.sized(name, case["config"]), flags, 8192, beside)[1]
            found[case["config"]["architectures"][0]] = info.get_supported_mm_limits()
        except Exception as error:  # classes of text alone, packages that are not there
            print(name, type(error).__name__, str(error)[:80])
    return dict(sorted(found.items()))


def main() -> None:
    vllm_meta.platform()
    make_largest.PROCESSORS.update(STUBS)
    packed = json.loads(
        lzma.decompress((make_largest.FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
    )
    if sys.argv[1:] == ["limits"]:
        LIMITS.write_text(json.dumps(limits(packed), indent=1) + "\n")
        return
    written = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else {}
    for name in sys.argv[1:] or (*CASES, *_sounds()):
        said = [
            {"flags": flags, "length": length, "vllm": answer(name, packed[name], flags, length)}
            for flags in ([*([] if name in SHAPELESS else SHAPES), *CASES[name]] if name in CASES else SOUNDS)
            for length in LENGTHS
        ]
        written[name] = {"sizes": make_largest.SIZES.get(name, {}), "said": said}
        for case in said:
            print(name, case["flags"], case["length"], case["vllm"], flush=True)
    WRITTEN.write_text(json.dumps(dict(sorted(written.items())), indent=1) + "\n")


def answer(name: str, case: dict[str, Any], flags: dict[str, Any], length: int) -> dict[str, Any]:
    """vLLM's answer of one architecture under these flags."""
    make_largest.TOLD.clear()
    told = flags.get("mm_processor_kwargs", {})
    make_largest.TOLD.update({k: v for k, v in told.items() if not k.endswith("_kwargs")})
    make_largest.TOLD.update(told.get("images_kwargs", {}))
    own = {k: v for k, v in case.get("flags", {}).items() if k != "language_model_only"}
    if name not in CASES:
        return sound(name, case, flags, length)
    try:
        return make_largest.ask(name, {**case, "flags": {**own, **json.loads(json.dumps(flags))}}, length)
    except Exception as error:  # whatever vLLM stumbles over is the answer
        return {"error": f"{type(error).__name__}: {str(error)[:160]}"}


if __name__ == "__main__":
    main()
