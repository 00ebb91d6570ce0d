"""Processors of `make_stated.py` whose architectures `make_largest.py` does not ask: vLLM's own without their
tokenizers, transformers' own, and the sizes of those that checkpoints bring."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import make_largest
from make_largest import TOLD, _with
from PIL import Image


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
    told = {"patch_size": 14, "merge_kernel_size": [2, 2], "in_token_limit": 4096, **TOLD}
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
    """transformers' own, which slices frames too."""
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    own = MiniCPMV4_6ImageProcessorPil(**TOLD)  # of 4.7 too
    video = SimpleNamespace(max_slice_nums=own.max_slice_nums)
    made = SimpleNamespace(image_processor=own, video_processor=video)
    made.numbers = lambda image: _sliced(own, image, own.max_slice_nums)
    made.video_numbers = lambda frames: sum(map(made.numbers, frames))
    return made


def _minicpm(info: Any) -> Any:
    """A stand-in of the checkpoints' own image processor, as public copies have it: 4.6's, whose sides are whole
    patches, not squares of 16."""
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    class Whole(MiniCPMV4_6ImageProcessorPil):  # type: ignore[misc]
        def find_best_resize(
            self, image_size: Any, scale_resolution: int, patch_size: int, **told: Any
        ) -> Any:
            sides = super().find_best_resize(image_size, scale_resolution, patch_size / 4, **told)
            return tuple(map(int, sides))

    own = Whole(**TOLD)

    def grid(size: Any, max_slice_nums: int) -> Any:
        return own.get_sliced_grid((size.height, size.width), max_slice_nums, own.scale_resolution)

    asked = SimpleNamespace(image_feature_size=64, max_slice_nums=own.max_slice_nums, get_sliced_grid=grid)
    made = SimpleNamespace(image_processor=asked)
    made.numbers = lambda image: _sliced(own, image, own.max_slice_nums)
    made.video_numbers = lambda frames: sum(_sliced(own, frame, 1) for frame in frames)
    return made


def _sliced(own: Any, image: Any, most: int) -> int:
    """Numbers of a picture's slices, filled up to the largest."""
    side, patch, size = own.scale_resolution, own.patch_size, (image.size[1], image.size[0])
    grid = own.get_sliced_grid(size, most, side)
    best = own.find_best_resize(size, side, patch, allow_upscale=grid is None)
    whole = best[0] * best[1] // patch**2
    if grid is None:
        return whole * 3 * patch**2
    refined = own.get_refine_size(size, grid, side, patch, allow_upscale=True)
    each = refined[0] // grid[0] * (refined[1] // grid[1]) // patch**2
    return (grid[0] * grid[1] + 1) * max(whole, each) * 3 * patch**2


def _omni(patch: int) -> Any:
    """Qwen 2's under the limits that Qwen's omnis publish, and Whisper's ears."""
    from transformers import WhisperFeatureExtractor

    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    told = {"size": size, "patch_size": patch}
    ears = WhisperFeatureExtractor(feature_size=128)
    return _with("qwen2_vl.image_processing_qwen2_vl", "Qwen2VLImageProcessor", told, feature_extractor=ears)


def _native(info: Any) -> Any:
    """Pictures resized by transformers' own function, to as many patches as public copies of its processor say."""
    from transformers.models.siglip2 import image_processing_siglip2 as siglip2

    told = {"min_num_patches": 256, "max_num_patches": 3600, **TOLD}

    def numbers(image: Any) -> int:
        across, down = (side // 16 for side in image.size)
        patches = min(max(across * down, 1, told["min_num_patches"]), told["max_num_patches"])
        tall, wide = siglip2.get_image_size_for_max_num_patches(*image.size[::-1], 16, patches)
        return tall * wide * 3

    return SimpleNamespace(numbers=numbers)


def _pangu(info: Any) -> Any:
    """Qwen 2's, whose pictures become whole squares of 56 pixels, as a public port of its processor has it."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    made = _with("qwen2_vl.image_processing_qwen2_vl", "Qwen2VLImageProcessor")(info)
    size = {"shortest_edge": 3136, "longest_edge": 12845056, **TOLD.get("size", {})}
    size |= {"longest_edge": TOLD["max_pixels"]} if "max_pixels" in TOLD else {}

    def area(height: int, width: int) -> int:
        bounds = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        return math.prod(smart_resize(height, width, factor=56, **bounds))

    def video(frames: Any) -> int:
        count, height, width, _ = frames.shape
        return (count + count % 2) * area(height, width) * 3

    made.numbers = lambda image: area(*image.size[::-1]) * 3 * 2  # pairs of one frame
    made.video_numbers = video
    return made


def _parsed(info: Any) -> Any:
    """Pictures padded to the config's sides."""
    return SimpleNamespace(numbers=lambda image: 3 * math.prod(info.get_hf_config().image_size))


def _openvla(info: Any) -> Any:
    """vLLM's own, whose picture both towers read."""
    own = info.hf_processor.image_processor
    return SimpleNamespace(numbers=lambda image: own(images=[image])["pixel_values"].numel())


def _gemma3n(info: Any) -> Any:
    """Squares of 768 pixels, as many tokens as the config says, and its ears."""
    from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor

    made = make_largest._square("siglip.image_processing_siglip", "SiglipImageProcessor", 768)(info)
    made.tokens = lambda image: info.get_hf_config().vision_soft_tokens_per_image
    made.feature_extractor = Gemma3nAudioFeatureExtractor()
    return made


def _onevision2(info: Any) -> Any:
    """Qwen 2's image processor, with all flat keys, as vLLM puts the processor of OneVision 2 together; its limit where
    its checkpoint's own code finds none. Frames pass it one by one (`_apply_hf_processor_main`)."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    told = info.ctx.get_mm_config().mm_processor_kwargs or {}
    flat = {key: value for key, value in told.items() if not key.endswith("_kwargs")}
    usual = {"shortest_edge": 256 * 28 * 28, "longest_edge": 1_605_632}
    own = Qwen2VLImageProcessor(**{"size": usual, "temporal_patch_size": 1, **flat})

    def numbers(image: Any) -> int:
        return int(own(images=[image], return_tensors="pt")["pixel_values"].numel())

    made = SimpleNamespace(image_processor=own, numbers=numbers)
    made.video_numbers = lambda frames: sum(map(numbers, map(Image.fromarray, frames)))
    return made


STUBS = {
    "Gemma3nForConditionalGeneration": _gemma3n,
    "NemotronParseForConditionalGeneration": _parsed,
    "OpenVLAForActionPrediction": _openvla,
    "OpenPanguVLForConditionalGeneration": _pangu,
    "Phi4ForCausalLMV": _native,
    "LlavaOnevision2ForConditionalGeneration": _onevision2,
    "MiniCPMV4_6ForConditionalGeneration": _minicpm4,
    "MiniCPMV4_7ForConditionalGeneration": _minicpm4,
    "MiniCPMV": _minicpm,
    "MiniCPMO": _minicpm,
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
    "Qwen2_5OmniModel": _omni(14),
    "Qwen2_5OmniForConditionalGeneration": _omni(14),
    "Qwen3OmniMoeForConditionalGeneration": _omni(16),
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
