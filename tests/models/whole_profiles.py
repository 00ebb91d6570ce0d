"""What vLLM's whole processor makes of the items that start-up profiles, for `make_stated.py`.

The tokenizer has the special words of the model alone. Processors are loaded from files beside the config, as vLLM
loads them of a checkpoint: keys of --mm-processor-kwargs reach them when they are loaded or when they are called.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import make_largest
import vllm_meta


class Checkpoint(NamedTuple):
    """What lies beside a config."""

    processor: dict[str, Any] = {}
    """Of preprocessor_config.json."""
    video: dict[str, Any] = {}
    """Of video_preprocessor_config.json."""
    own: dict[str, Any] = {}
    """Of processor_config.json."""
    named: dict[str, str] = {}
    """Attributes of the tokenizer, and their words."""
    words: Iterable[str] = ()
    """More of its words."""
    numbered: dict[str, int] = {}
    """Words whose numbers the config or the class tells."""
    stand_in: Callable[[Mapping[str, Any]], Any] | None = None
    """Of flat keys, in place of a processor of the checkpoint's own code."""


class _KananaPictures:
    """Kanana's own image processor, as a public copy of its image_processing.py has it: Qwen 2's way of resizing within
    limits that are attributes, which transformers sets of any key that one bears the name of."""

    __module__ = (
        "transformers.models.qwen2_vl.image_processing_qwen2_vl"  # where vLLM looks for `smart_resize`
    )

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.min_pixels, self.max_pixels = 56 * 56, 14 * 14 * 4 * 1280
        for key, value in told.items():
            if hasattr(self, key):
                setattr(self, key, value)

    def __call__(self, image: Any) -> dict[str, Any]:
        import torch
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        sides = smart_resize(image.height, image.width, 28, self.min_pixels, self.max_pixels)
        rows, columns = (side // 14 for side in sides)
        meta = {"vision_grid_thw": (1, rows, columns), "image_token_thw": (1, rows // 2, columns // 2)}
        return {"pixel_values": torch.zeros(rows * columns, 2 * 3 * 14**2), "image_meta": meta}


VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
GLIMMER = ("image", "image_start", "image_end", "vid_start", "vid_end", "vid_frame_separator")
MINIMAX = ("image", "video", "start of image", "end of image")
MIMO = (
    "vision_start",
    "vision_end",
    "image",
    "video",
    "audio",
    *(f"{kind}_{end}" for kind in ("audio", "video") for end in ("start", "end")),
)
make_largest.SIZES["DiffusionGemmaForBlockDiffusion"] = make_largest.SIZES["Gemma4, with its towers"]
make_largest.SIZES["MiMoV2OmniForCausalLM"]["processor_config"] = {
    f"{name}_token_id": 151_640 + n for n, name in enumerate(MIMO)
}


def _intern(image_token: int) -> Checkpoint:
    """As transformers' convert_internvl_weights_to_hf.py writes it: nothing is said of crops, whose default is none."""
    return Checkpoint(
        {
            "processor_class": "InternVLProcessor",
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 448, "width": 448},
        },
        {"video_processor_type": "InternVLVideoProcessor"},
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        numbered={"<IMG_CONTEXT>": image_token},
    )


CHECKPOINTS: dict[str, Checkpoint] = {
    "H2OVLChatModel": Checkpoint(words=("<image>", "<img>", "</img>", "<IMG_CONTEXT>")),
    "Lfm2VlForConditionalGeneration": Checkpoint(
        {"processor_class": "Lfm2VlProcessor", "image_processor_type": "Lfm2VlImageProcessor"},
        named={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
    ),
    "IsaacForConditionalGeneration": Checkpoint(words=("<image>", "<|image_pad|>")),
    "MuseGlimmerForConditionalGeneration": Checkpoint(
        words=[f"<|{name}|>" for name in GLIMMER], numbered={"<|patch|>": 200_092, "<|video|>": 200_091}
    ),
    "MiniMaxM3SparseForConditionalGeneration": Checkpoint(
        {"processor_class": "MiniMaxVLProcessor", "image_processor_type": "MiniMaxM3VLImageProcessor"},
        words=[f"]<]{name}[>[" for name in MINIMAX],
    ),
    "HunYuanVLForConditionalGeneration": Checkpoint(
        {"processor_class": "HunYuanVLProcessor", "image_processor_type": "HunYuanVLImageProcessor"},
        named={"image_token": "<img>", "image_start_token": "<img_start>", "image_end_token": "<img_end>"},
    ),
    "Emu3ForConditionalGeneration": Checkpoint(
        {"processor_class": "Emu3Processor", "image_processor_type": "Emu3ImageProcessor"},
        named={
            "image_token": "<image>",
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
        },
    ),
    "HCXVisionV2ForCausalLM": Checkpoint(
        {
            "processor_class": "HyperCLOVAXVisionV2Processor",
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 3136, "longest_edge": 12845056},
        },
        named={"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>"},
        numbered={"<|IMAGE_PAD|>": 128_060, "<|VIDEO_PAD|>": 128_061},
    ),
    "Cosmos3EdgeForConditionalGeneration": Checkpoint(
        {
            "processor_class": "Cosmos3EdgeProcessor",
            "size": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096},
            "merge_size": 2,
        },
        {"size": {"shortest_edge": 64 * 64, "longest_edge": 24 * 1024 * 1024}, "temporal_patch_size": 1},
        numbered=dict(
            zip(
                ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"),
                range(18, 22),
                strict=True,
            )
        ),
    ),
    "MiMoV2OmniForCausalLM": Checkpoint(
        words=("<|audio_pad|>", "<|mimo_audio_start|>", "<|mimo_audio_end|>"),
        numbered={word: 151_640 + n for n, word in enumerate(VISION)},
    ),
    "DeepseekV4ForConditionalGeneration": Checkpoint(
        words=["<｜deepseek_image｜>"],
        numbered={f"<|place_holder_mm_span_{431 + n:04}|>": 129_257 + n for n in range(5)},
    ),
    "DeepseekV41ForCausalLM": Checkpoint(numbered={"<｜deepseek_image｜>": 129_264}),
    "InklingForConditionalGeneration": Checkpoint(
        numbered={"<|content_image|>": 200_005, "<|content_audio_input|>": 200_020}
    ),
    "InternVLChatModel": Checkpoint(
        words=("<image>", "<video>", "<img>", "</img>", "<IMG_CONTEXT>", "<|video_pad|>")
    ),
    "InternS1ForConditionalGeneration": _intern(5),
    "InternVL, with its tower": _intern(151_667),
    "Cohere2Vision, with its tower": Checkpoint(
        {
            "processor_class": "Cohere2VisionProcessor",
            "image_processor_type": "Cohere2VisionImageProcessor",
        },
        named={
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "image_token": "<|IMG_PATCH|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
    ),
    "LlavaNextVideoForConditionalGeneration": Checkpoint(
        {
            "processor_class": "LlavaNextVideoProcessor",
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
        },
        {
            "video_processor_type": "LlavaNextVideoVideoProcessor",
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
        },
        {"patch_size": 14, "vision_feature_select_strategy": "default"},
        numbered={"<video>": 32_000, "<image>": 32_001},
    ),
    "DiffusionGemmaForBlockDiffusion": Checkpoint(
        {
            "processor_class": "Gemma4Processor",
            "image_processor_type": "Gemma4ImageProcessor",
            "feature_extractor_type": "Gemma4AudioFeatureExtractor",
        },
        {"video_processor_type": "Gemma4VideoProcessor"},
        named={
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
        },
        words=["<|video|>"],
    ),
    **dict.fromkeys(
        ("HfMoondream", "Moondream3ForCausalLM"),
        Checkpoint(
            {"processor_class": "Moondream3Processor"},
            words=("<|endoftext|>", "<image>", *(f"<|md_reserved_{n}|>" for n in range(3))),
        ),
    ),
    "KananaVForConditionalGeneration": Checkpoint(
        words=["<image>"], stand_in=lambda told: SimpleNamespace(image_processor=_KananaPictures(told))
    ),
}
"""Architecture -> its checkpoint's files, as far as start-up reads them."""


def _kwargs(**told: Any) -> dict[str, Any]:
    return {"mm_processor_kwargs": told}


def _video(**sizes: int) -> dict[str, Any]:
    return {"limit_mm_per_prompt": {"video": {"count": 1, **sizes}}}


def _image(width: int, height: int, **more: Any) -> dict[str, Any]:
    return {"limit_mm_per_prompt": {"image": {"count": 1, "width": width, "height": height}, **more}}


SIZES = {"shortest_edge": 50_176, "longest_edge": 401_408}
CASES: dict[str, list[dict[str, Any]]] = {
    "H2OVLChatModel": [
        {},
        *(_kwargs(max_dynamic_patch=n) for n in (1, 2, 6, 9)),
        _kwargs(use_msac=False),
        _kwargs(use_msac=False, use_thumbnail=False),
        _kwargs(use_msac=False, min_dynamic_patch=4, max_dynamic_patch=6),
        _kwargs(dynamic_image_size=False),
        _kwargs(max_pixels=9),
        {**_kwargs(use_msac=False), **_image(900, 500)},
        {**_kwargs(max_dynamic_patch=6), **_image(900, 500)},
    ],
    "Lfm2VlForConditionalGeneration": [
        {},
        *(_kwargs(max_image_tokens=n) for n in (100, 1024)),
        {**_kwargs(min_image_tokens=200), **_image(100, 160)},
        _kwargs(max_pixels_tolerance=0.5),
        _kwargs(max_pixels_tolerance=0.5, max_tiles=4),
        _kwargs(max_pixels_tolerance=0.5, do_image_splitting=False),
        _kwargs(max_pixels_tolerance=0.5, min_tiles=1, max_tiles=1),
        {**_kwargs(max_pixels_tolerance=0.3, tile_size=256), **_image(500, 200)},
        _kwargs(images_kwargs={"max_image_tokens": 100}),
        _kwargs(size={"height": 256, "width": 256}),
    ],
    "IsaacForConditionalGeneration": [
        {},
        _kwargs(max_num_patches=1024),
        _kwargs(images_kwargs={"max_num_patches": 1000}),
        {**_kwargs(min_num_patches=2000), **_image(100, 160)},
        {**_kwargs(min_num_patches=400, max_num_patches=500), **_image(900, 1000)},
        _kwargs(vision_max_num_patches=1024),
    ],
    "MuseGlimmerForConditionalGeneration": [
        {},
        {"limit_mm_per_prompt": {"video": 0}},
        _image(512, 512, video=0),
        _image(2000, 90, video=0),
        _video(num_frames=5),
        _video(num_frames=31, width=200, height=300),
        _kwargs(max_image_tokens=1024),
    ],
    "MiniMaxM3SparseForConditionalGeneration": [
        {},
        {"limit_mm_per_prompt": {"video": 0}},
        _image(512, 512, video=0),
        _image(2000, 90, video=0),
        _image(60, 40, video=0),
        _kwargs(max_pixels=200_704),
        {**_kwargs(max_pixels=1_003_520), "limit_mm_per_prompt": {"video": 0}},
        _kwargs(images_kwargs={"max_pixels": 200_704}),
        _kwargs(videos_kwargs={"max_pixels": 200_704}),
        {**_kwargs(max_long_side_pixel=1036), "limit_mm_per_prompt": {"video": 0}},
        {**_kwargs(max_long_side_pixel=500), **_image(300, 60, video=0)},
        _kwargs(max_long_side_pixel=700),
        _video(num_frames=7),
        _video(num_frames=6, width=300, height=400),
        _kwargs(min_pixels=301_056),
    ],
    "MiMoV2OmniForCausalLM": [
        {},
        {"limit_mm_per_prompt": {"video": 0}},
        _image(512, 512, video=0),
        _image(20, 700, video=0),
        _kwargs(max_pixels=1_048_576),
        _kwargs(size=SIZES),
        {**_kwargs(max_pixels=1_048_576), "limit_mm_per_prompt": {"video": 0}},
        {**_kwargs(min_pixels=1_048_576), **_image(512, 512, video=0)},
        _kwargs(images_kwargs={"max_pixels": 1_048_576}),
        _video(num_frames=3),
        _video(num_frames=2, width=300, height=400),
        {"limit_mm_per_prompt": {"image": 0, "video": {"count": 2, "num_frames": 1}}},
    ],
    "HCXVisionV2ForCausalLM": [
        {},
        _kwargs(max_pixels=100_352),
        _kwargs(min_pixels=401_408),
        _kwargs(size=SIZES),
        {**_kwargs(images_kwargs={"max_pixels": 100_352}), "limit_mm_per_prompt": {"video": 0}},
        _image(512, 300, video=0),
        {**_kwargs(min_pixels=401_408), **_image(300, 200, video=0)},
        {**_kwargs(size=SIZES), "limit_mm_per_prompt": {"video": 0}},
        _video(num_frames=6),
        _video(num_frames=5, width=300, height=200),
        {"limit_mm_per_prompt": {"image": 0}},
    ],
    "Cosmos3EdgeForConditionalGeneration": [
        {},
        {"limit_mm_per_prompt": {"video": 0}},
        _image(512, 512, video=0),
        _kwargs(max_pixels=1_003_520),
        _kwargs(size=SIZES),
        _kwargs(images_kwargs={"max_pixels": 1_003_520}),
        {**_kwargs(max_pixels=1_003_520), "limit_mm_per_prompt": {"video": 0}},
        _kwargs(videos_kwargs={"size": SIZES}),
        _video(num_frames=1, width=500, height=300),
    ],
    "DeepseekV4ForConditionalGeneration": [{}, _image(100, 100), _image(700, 40), _kwargs(max_pixels=9)],
    "DeepseekV41ForCausalLM": [{}, _image(100, 100), _image(700, 40), _kwargs(max_pixels=9)],
    "InklingForConditionalGeneration": [
        {},
        *({"limit_mm_per_prompt": {"audio": {"count": 1, "length": n}}} for n in (16_000, 100_000)),
        {"limit_mm_per_prompt": {"audio": 0}},
        _image(100, 100, audio=0),
        _image(79, 160, audio=0),
        _kwargs(patch_size=20),
    ],
    "KananaVForConditionalGeneration": [
        {},
        _kwargs(max_pixels=401_408),
        _kwargs(min_pixels=2_000_000, max_pixels=4_000_000),
        {**_kwargs(max_pixels=401_408), **_image(500, 300)},
        _kwargs(images_kwargs={"max_pixels": 401_408}),
        _kwargs(size={"max_pixels": 401_408}),
    ],
    "LlavaOnevision2ForConditionalGeneration": [
        {},
        {"limit_mm_per_prompt": {"video": 0}},
        _image(300, 500, video=0),
        _kwargs(max_pixels=401_408),
        {**_kwargs(size=SIZES), "limit_mm_per_prompt": {"video": 0}},
        {**_kwargs(min_pixels=4_000_000, max_pixels=6_000_000), "limit_mm_per_prompt": {"video": 0}},
        _kwargs(images_kwargs={"max_pixels": 401_408}),
        _video(num_frames=2, width=100),
    ],
    "Emu3ForConditionalGeneration": [
        {},
        _kwargs(max_pixels=401_408),
        _kwargs(min_pixels=2_000_000, max_pixels=4_000_000),
        {**_kwargs(max_pixels=401_408), **_image(500, 300)},
        _kwargs(images_kwargs={"max_pixels": 401_408}),
        _kwargs(image_area=9),
    ],
    "HunYuanVLForConditionalGeneration": [
        {},
        _kwargs(max_pixels=401_408),
        _kwargs(size=SIZES),
        _kwargs(images_kwargs={"max_pixels": 401_408}),
        {**_kwargs(min_pixels=501_760), **_image(500, 300)},
        {**_kwargs(max_pixels=401_408), **_image(900, 800)},
    ],
}
CASES |= {
    "InternVLChatModel": [
        {},
        {"limit_mm_per_prompt": {"video": 0}},
        _kwargs(max_dynamic_patch=4),
        {"limit_mm_per_prompt": {"image": 0, "video": {"num_frames": 5}}},
        _image(900, 500, video=0),
    ],
    "InternS1ForConditionalGeneration": [
        {},
        _kwargs(crop_to_patches=True),
        _kwargs(crop_to_patches=True, max_patches=4),
        _kwargs(max_patches=4),
        _kwargs(images_kwargs={"crop_to_patches": False}),
        {**_kwargs(crop_to_patches=True, max_patches=6), **_image(900, 500, video=0)},
        {**_kwargs(max_patches=2), **_image(400, 100, video=0)},
        _video(num_frames=5),
    ],
    "LlavaNextVideoForConditionalGeneration": [
        {},
        _video(num_frames=5),
        _video(num_frames=5, width=100, height=100),
        _kwargs(max_pixels=9),
    ],
    "DiffusionGemmaForBlockDiffusion": [
        {},
        _kwargs(max_soft_tokens=560),
        _kwargs(max_soft_tokens=70),
        {"limit_mm_per_prompt": {"video": {"num_frames": 4}}},
    ],
    "HfMoondream": [{}, _kwargs(max_crops=4), _kwargs(fps=1)],
    "Moondream3ForCausalLM": [{}, _kwargs(max_crops=4)],
}
"""Architecture -> flags beside `make_stated.SHAPES`."""
LENGTHS = {"MiniMaxM3SparseForConditionalGeneration": (8192, 32768)}
"""Contexts of a video of fewer frames."""
PIXELS = (
    *("pixel_values", "pixel_values_flat", "pixel_values_videos", "pixel_values_flat_video", "patches"),
    *("image_pixel_values", "video_pixel_values"),
)
SOUND = "input_audio_features"
"""A frame a token."""


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """Of those words alone."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    usual = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    special = dict.fromkeys([*checkpoint.named.values(), *checkpoint.words, *checkpoint.numbered])
    known = {word: n for n, word in enumerate([*usual.values(), *(set(special) - set(checkpoint.numbered))])}
    made = Tokenizer(models.WordLevel({**known, **checkpoint.numbered}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=checkpoint.named, **usual)


def _files(checkpoint: Checkpoint, words: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        words.save_pretrained(folder)
        found = {file.name: json.loads(file.read_text()) for file in Path(folder).glob("*.json")}
    told = {"preprocessor_config.json": checkpoint.processor} if checkpoint.processor else {}
    if checkpoint.own:
        told["processor_config.json"] = checkpoint.own
    if checkpoint.video:
        told["video_preprocessor_config.json"] = checkpoint.video
    return {**found, **told}


def _numbers(item: Mapping[str, Any]) -> int:
    """Numbers that pass the tower."""
    held = {key: element.data for key, element in item.items()}
    if "spatial_shapes" in held:  # filled up, which does not pass
        return sum(math.prod(sides) for sides in held["spatial_shapes"].tolist()) * 3 * 16**2
    return int(next(held[key] for key in PIXELS if key in held).numel())


def ask(name: str, case: dict[str, Any], flags: dict[str, Any], length: int) -> dict[str, Any]:
    """Tokens of an item by kind, and the numbers of each that is run."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing.context import InputProcessingContext

    checkpoint = CHECKPOINTS[name]
    words = _tokenizer(checkpoint)
    beside = {**case.get("beside", {}), **_files(checkpoint, words)}
    config = make_largest.sized(name, case["config"])
    made = vllm_meta.engine_config(config, 1, beside=beside, **flags).model_config
    made.max_model_len = length
    InputProcessingContext.get_tokenizer = lambda self: self.tokenizer or words
    loaded = InputProcessingContext.get_hf_processor
    if checkpoint.stand_in:
        flat = {k: v for k, v in flags.get("mm_processor_kwargs", {}).items() if not k.endswith("_kwargs")}
        own = checkpoint.stand_in(flat)
        InputProcessingContext.get_hf_processor = lambda self, *kinds, **told: own
    try:
        return _asked(MULTIMODAL_REGISTRY.create_processor(made, tokenizer=words))
    finally:
        InputProcessingContext.get_hf_processor = loaded


def _asked(processor: Any) -> dict[str, Any]:
    """Of each kind that a prompt may have."""
    from vllm.multimodal.encoder_budget import get_mm_max_toks_per_item

    asked = dict.fromkeys([kind for kind, most in processor.info.allowed_mm_limits.items() if most], 1)
    counted = get_mm_max_toks_per_item(processor, asked, None)
    tokens = {kind: int(counted[kind]) for kind in sorted(asked) if kind in counted}
    made = {kind: processor.get_dummy_mm_inputs({kind: 1})["mm_kwargs"][kind][0] for kind in tokens}
    heard = made.pop("audio", {})
    frames = {"audio": len(heard[SOUND].data)} if SOUND in heard else {}
    numbers = {kind: _numbers(item) for kind, item in made.items()}
    return {"tokens": tokens, "numbers": numbers, **({"frames": frames} if frames else {})}
