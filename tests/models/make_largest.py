"""Asks vLLM itself what its start-up profiles of each vision tower, and packs the answers.

    python tests/models/make_largest.py [NAME ...]

Writes `tests/fixtures/largest_items_vllm_0.32.json`: for each architecture and length of the context the tokens of an
item by modality, as `MultiModalBudget` counts them, and the numbers (pixels times colours) of the item that is run; of
towers that are no plain transformers the elements alive at most for each of their patches.

The classes are vLLM's own `ProcessingInfo` and `DummyInputsBuilder`, over the configs of
`architectures_vllm_0.32.json.xz` (`SIZES` puts real sizes where those have defaults that fit no processor). Images pass
the processor classes that vLLM would load, with their defaults, or under a checkpoint's own limits where it says so.
Environment: see `vllm_meta.py`; and the torchvision of that torch.
"""

from __future__ import annotations

import copy
import json
import lzma
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["TORCHDYNAMO_DISABLE"] = "1"
import torchvision  # noqa: F401  the real one, before `vllm_meta` puts an empty one in its place
import vllm_meta

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
WRITTEN = FIXTURES / "largest_items_vllm_0.32.json"
LENGTHS = (2048, 8192, 32768, 131072)
SIZES: dict[str, dict[str, Any]] = {
    "AriaForConditionalGeneration": {"vision_config": {"image_size": 980, "patch_size": 14}},
    "Idefics3ForConditionalGeneration": {"vision_config": {"image_size": 364, "patch_size": 14}},
    "SmolVLMForConditionalGeneration": {"vision_config": {"image_size": 364, "patch_size": 14}},
    "MiMoV2OmniForCausalLM": {"vision_config": {"tokens_per_second": 2}},
    "Granite4VisionForConditionalGeneration": {
        "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]
    },
    "Eagle2_5_VLForConditionalGeneration": {
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "vision_config": {"image_size": 448},
    },
    "Glm4vMoeForConditionalGeneration": {"text_config": {"max_position_embeddings": 131072}},
    "Gemma3ForConditionalGeneration": {"vision_config": {"image_size": 896, "patch_size": 14}},
    "Gemma4, with its towers": {"vision_config": {"default_output_length": 280}},
    "Llama4ForConditionalGeneration": {"vision_config": {"image_size": 336}},
}
"""Sizes of public checkpoints, of vLLM's own classes, or that the processor's defaults go with."""


TOLD: dict[str, Any] = {}
"""Keys of --mm-processor-kwargs, with which a processor is loaded (`make_stated.py`)."""


def _image_processor(module: str, name: str, **told: Any) -> Any:
    import importlib

    made = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    known = getattr(made, "valid_kwargs", None)
    stated = {k: v for k, v in TOLD.items() if known and k in known.__annotations__} if known else {}
    return made(**copy.deepcopy({**told, **stated}))  # which processors write to


def _with(module: str, name: str, told: Any = None, **more: Any) -> Callable[[Any], Any]:
    return lambda info: SimpleNamespace(
        image_processor=_image_processor(module, name, **(told or {})), image_token="<i>", **more
    )


def _smol(module: str, name: str) -> Callable[[Any], Any]:
    return lambda info: SimpleNamespace(
        image_processor=_image_processor(module, name),
        image_token="<i>",
        image_seq_len=169,  # transformers' `Idefics3Processor` by default: (364 / 14 / 2)^2
    )


def _transformers(package: str, name: str, image: str, **more: Any) -> Callable[[Any], Any]:
    """A processor that counts tokens itself, without its tokenizer."""

    def made(info: Any) -> Any:
        import importlib

        classes = importlib.import_module(f"transformers.models.{package}.processing_{package}")
        processor = object.__new__(getattr(classes, name))
        processor.image_processor = _image_processor(f"{package}.image_processing_{package}", image)
        for key, value in more.items():
            setattr(processor, key, value)
        return processor

    return made


def _cosmos(info: Any) -> Any:
    """vLLM's own processors, with the sizes of transformers' and those of flags, as vLLM folds them."""
    from vllm.transformers_utils.processors import cosmos3_edge as own

    told = dict(TOLD.get("size", {}))
    for edge, key in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        told |= {edge: TOLD[key]} if key in TOLD else {}
    limits = {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096} | told
    pair = {"shortest_edge": 64 * 64, "longest_edge": 24 * 1024 * 1024} | told
    images = own.Cosmos3EdgeImageProcessor(size=limits, patch_size=16)
    images.merge_size = 2
    videos = own.Cosmos3EdgeVideoProcessor(size=pair, patch_size=16, temporal_patch_size=1)
    scopes = {
        "images_kwargs": set(images.valid_kwargs.__annotations__),
        "videos_kwargs": {*videos.valid_kwargs.__annotations__, "min_pixels", "max_pixels"},
    }

    def numbers(frames: Any) -> int:
        count, height, width, _ = frames.shape
        told = {"image_processor": videos, "mm_kwargs": {}, "num_frames": count}
        size, _ = info._get_vision_info(image_width=width, image_height=height, **told)
        return int(count * size.height * size.width * 3)

    return SimpleNamespace(
        image_processor=images, video_processor=videos, scopes=scopes, video_numbers=numbers
    )


def _keye(info: Any) -> Any:
    """Qwen's processor under the limits of Kwai-Keye's own image processor: `max_pixels` 28 * 28 * 1280."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    limits = {"shortest_edge": 28 * 28 * 130, "longest_edge": 28 * 28 * 1280}
    made = Qwen2VLImageProcessor(size=limits, temporal_patch_size=1)
    run = type("KeyeImageProcessor", (), {"__call__": lambda self, **told: made(**told)})()
    run.size = {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
    return SimpleNamespace(image_processor=run)


def _qwen(info: Any) -> Any:
    """Qwen 2's processor with the limit that its checkpoints publish: 12,845,056 pixels."""
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    return _with("qwen2_vl.image_processing_qwen2_vl", "Qwen2VLImageProcessor", {"size": size})(info)


def _square(module: str, name: str, side: int, **more: Any) -> Callable[[Any], Any]:
    """A processor that makes squares of one size."""
    return _with(module, name, {"size": {"height": side, "width": side}}, **more)


def _qwen3(info: Any) -> Any:
    """Qwen 2's image processor under the limits that Qwen 3 VL's checkpoints publish; its own for videos."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    size = {"shortest_edge": 65536, "longest_edge": 16777216}
    told = {"size": size, "patch_size": 16}
    made = _with("qwen2_vl.image_processing_qwen2_vl", "Qwen2VLImageProcessor", told)(info)
    video = {"shortest_edge": 4096, "longest_edge": 25165824}
    made.video_processor = Qwen3VLVideoProcessor(size=video, patch_size=16, temporal_patch_size=2)
    return made


def _gemma3(info: Any) -> Any:
    """Gemma 3's, with the options that its processor has where nobody told any."""
    from transformers.models.gemma3.processing_gemma3 import Gemma3ProcessorKwargs

    pan = {k: v for k, v in Gemma3ProcessorKwargs._defaults["images_kwargs"].items() if k.startswith("pan")}
    told = {"size": {"height": 896, "width": 896}, **pan}
    made = _with("gemma3.image_processing_gemma3", "Gemma3ImageProcessor", told)(info)
    made.image_seq_length, made.tokenizer = 256, SimpleNamespace(init_kwargs={})
    own = Gemma3ProcessorKwargs._defaults["images_kwargs"]
    made._merge_kwargs = lambda *args, images_kwargs={}, **told: {
        "images_kwargs": {**own, **told, **images_kwargs}
    }
    return made


GLM_PIXELS = {
    "Glm4vForConditionalGeneration": ("Glm4vProcessor", 47_040_000),
    "Glm4vMoeForConditionalGeneration": ("Glm46VProcessor", 100_352_000),
    "GlmOcrForConditionalGeneration": ("Glm46VProcessor", 9_633_792),
    "Glm5NextForConditionalGeneration": ("Glm5NextProcessor", 0),
}
"""GLM's processors and the pixels of their videos: what GLM-4.1V's processor prints of itself (vLLM's issue 22077),
what vLLM's pull requests 43422 and 48729 say of GLM-4.6V and GLM-OCR; GLM-5-Next's count tokens."""


def _glm_files(name: str) -> dict[str, Any]:
    """Files of processors beside the config, as GLM's checkpoints have them."""
    kind, pixels = GLM_PIXELS[name]
    image, video = (
        {"processor_class": kind, "size": {"shortest_edge": 12544, "longest_edge": n}}
        for n in (9_633_792, pixels)
    )
    return {"preprocessor_config.json": image, "video_preprocessor_config.json": video}


def _glm(package: str, image: str, video: str) -> Callable[[Any], Any]:
    """Transformers' own processors, with the sizes that stand beside the config."""

    def made(info: Any) -> Any:
        sizes = []
        for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
            told = json.loads((Path(info.ctx.model_config.model) / file).read_text())
            sizes.append({"size": told["size"]} if told["size"]["longest_edge"] else {})
        if package == "glm5_next":
            from vllm.models.glm5next.common.multimodal import _MAX_VIDEO_TOKENS

            sizes = [{}, {"max_image_tokens": _MAX_VIDEO_TOKENS}]  # the cap that vLLM puts on it
        return SimpleNamespace(
            image_processor=_image_processor(f"{package}.image_processing_{package}", image, **sizes[0]),
            video_processor=_image_processor(f"{package}.video_processing_{package}", video, **sizes[1]),
        )

    return made


class _GlmWords(vllm_meta._Tokenizer):
    """Splits times as GLM's pre-tokenizer does: numbers of three digits, words with the blank before them."""

    def encode(self, text: str, **told: Any) -> list[str]:
        return re.findall(r"\d{1,3}| ?[a-z]+|[^\w\s]+", text)


PROCESSORS: dict[str, Callable[[Any], Any]] = {
    "Qwen2VLForConditionalGeneration": _qwen,
    "Qwen2_5_VLForConditionalGeneration": _qwen,
    "Exaone4_5_ForConditionalGeneration": _qwen,
    "HCXVisionV2ForCausalLM": _qwen,
    "AriaForConditionalGeneration": _with("aria.image_processing_aria", "AriaImageProcessor"),
    "Ernie4_5_VLMoeForConditionalGeneration": _with(
        "ernie4_5_vl_moe.image_processing_ernie4_5_vl_moe", "Ernie4_5_VLMoeImageProcessor"
    ),
    "Granite4VisionForConditionalGeneration": _with(
        "llava_next.image_processing_llava_next", "LlavaNextImageProcessor"
    ),
    "Idefics3ForConditionalGeneration": _smol("idefics3.image_processing_idefics3", "Idefics3ImageProcessor"),
    "SmolVLMForConditionalGeneration": _smol("smolvlm.image_processing_smolvlm", "SmolVLMImageProcessor"),
    "Gemma4UnifiedForConditionalGeneration": _with(
        "gemma4_unified.image_processing_gemma4_unified", "Gemma4UnifiedImageProcessor", audio_seq_length=750
    ),
    "Lfm2VlForConditionalGeneration": _with("lfm2_vl.image_processing_lfm2_vl", "Lfm2VlImageProcessor"),
    "BagelForConditionalGeneration": _with("siglip.image_processing_siglip", "SiglipImageProcessor"),
    "Blip2ForConditionalGeneration": _with("blip.image_processing_blip", "BlipImageProcessor"),
    "Emu3ForConditionalGeneration": _transformers(
        "emu3", "Emu3Processor", "Emu3ImageProcessor", downsample_ratio=8
    ),
    "HunYuanVLForConditionalGeneration": _transformers(
        "hunyuan_vl", "HunYuanVLProcessor", "HunYuanVLImageProcessor", cat_extra_token=True
    ),
    "Cosmos3EdgeForConditionalGeneration": _cosmos,
    "Glm4vForConditionalGeneration": _glm("glm4v", "Glm4vImageProcessor", "Glm4vVideoProcessor"),
    "Glm4vMoeForConditionalGeneration": _glm("glm46v", "Glm46VImageProcessor", "Glm46VVideoProcessor"),
    "GlmOcrForConditionalGeneration": _glm("glm46v", "Glm46VImageProcessor", "Glm46VVideoProcessor"),
    "Glm5NextForConditionalGeneration": _glm("glm5_next", "Glm5NextImageProcessor", "Glm5NextVideoProcessor"),
    "Llava, with its tower": _with(
        "clip.image_processing_clip",
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
    "PaliGemma, with its tower": _square("siglip.image_processing_siglip", "SiglipImageProcessor", 224),
    "Gemma3ForConditionalGeneration": _gemma3,
    "Gemma4, with its towers": _with(
        "gemma4.image_processing_gemma4", "Gemma4ImageProcessor", audio_seq_length=750
    ),
    "Mistral3ForConditionalGeneration": _with(
        "pixtral.image_processing_pixtral",
        "PixtralImageProcessor",
        {"size": {"longest_edge": 1540}, "patch_size": {"height": 28, "width": 28}},
    ),
    "Cohere2Vision, with its tower": _with(
        "cohere2_vision.image_processing_cohere2_vision", "Cohere2VisionImageProcessor", patch_size=16
    ),
    "Llama4ForConditionalGeneration": _square("llama4.image_processing_llama4", "Llama4ImageProcessor", 336),
    "Qwen3VLForConditionalGeneration": _qwen3,
    "KeyeForConditionalGeneration": _keye,
    "KeyeVL1_5ForConditionalGeneration": _keye,
}
"""What vLLM would load beside the weights; classes of vLLM's own need nothing."""
OWN = (
    *("DeepseekOCRForCausalLM", "DeepseekOCR2ForCausalLM", "UnlimitedOCRForCausalLM", "GLM4VForCausalLM"),
    *("Eagle2_5_VLForConditionalGeneration", "NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3"),
    *("MiMoV2OmniForCausalLM", "InternVLChatModel", "Dots3NoteForCausalLM"),
    *("InternS1ForConditionalGeneration", "InternVL, with its tower"),
)
"""Architectures whose processors vLLM has itself, or loads whole (`whole_profiles.py`)."""


def _info(
    config: dict[str, Any], flags: dict[str, Any], length: int, beside: dict[str, Any] | None
) -> tuple[Any, Any, Any]:
    """vLLM's config, `ProcessingInfo` and `DummyInputsBuilder` of one case."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing.context import InputProcessingContext

    made = vllm_meta.engine_config(copy.deepcopy(config), 1, beside=beside, **flags).model_config
    made.max_model_len = length
    factory = MULTIMODAL_REGISTRY._get_model_cls(made)._processor_factory
    words = _GlmWords() if config["model_type"].startswith("glm") else vllm_meta._Tokenizer()
    words.vocab["<|video_pad|>"] = 1  # in the vocabulary of every Qwen 2.5 and 3
    InputProcessingContext.get_tokenizer = lambda self: words
    info = factory.info(InputProcessingContext(made, words))
    return made, info, factory.dummy_inputs(info)


def _tiled(name: str, image: Any) -> int:
    """Numbers of DeepSeek-OCR's views: the whole image and its tiles."""
    from vllm.model_executor.models import deepseek_ocr, deepseek_ocr2, unlimited_ocr
    from vllm.transformers_utils.processors.deepseek_ocr import MAX_CROPS, count_tiles

    module = {"DeepseekOCR2ForCausalLM": deepseek_ocr2}.get(name, deepseek_ocr)
    most = unlimited_ocr._UNLIMITED_OCR_MAX_CROPS if name.startswith("Unlimited") else MAX_CROPS
    across, down = count_tiles(*image.size, max_num=most, image_size=module.IMAGE_SIZE)
    return 3 * (deepseek_ocr.BASE_SIZE**2 + across * down * module.IMAGE_SIZE**2)


def _dots_told() -> dict[str, Any]:
    """Of the keys told, those that its pictures heed."""
    known = "min_pixels", "max_pixels", "target_height", "target_width"
    return {key: TOLD[key] for key in known if key in TOLD}


def _image_numbers(name: str, info: Any, image: Any, config: dict[str, Any]) -> int:
    """Numbers that the tower reads of one image."""
    if name.startswith(("DeepseekOCR", "UnlimitedOCR")):
        return _tiled(name, image)
    if name.startswith("Dots3"):
        return int(info.image_processor.preprocess(image, **_dots_told())[0].numel())
    if name.startswith("DeepseekV4"):
        return int(info.get_hf_processor()(images=[image], **TOLD)["patches"].numel())
    if name.startswith("Inkling"):
        return int(info.get_hf_processor().process_images([image])["vision_patches_bthwc"].numel())
    if name.startswith("NemotronH"):
        processor = info.get_hf_processor()
        if processor.dynamic_tiler:
            return sum(p.numel() for p in processor.dynamic_tiler._images_to_pixel_values_lst(1, [image])[0])
        return sum(p.numel() for p in processor._images_to_pixel_values_lst([image], processor.max_num_tiles))
    processor = info.get_hf_processor()
    if hasattr(processor, "numbers"):
        return int(processor.numbers(image))
    if name.startswith("MiMo"):
        h, w = image.size[1], image.size[0]
        return 3 * h * w * config["vision_config"]["temporal_patch_size"]
    told = {}
    if name.startswith("Granite4"):
        side = config["vision_config"]["image_size"]
        told = {"image_grid_pinpoints": config["image_grid_pinpoints"], "size": {"shortest_edge": side}}
        told["crop_size"] = {"height": side, "width": side}
    if name.startswith(("Bagel", "Blip2")):
        side = config["vit_config" if name.startswith("Bagel") else "vision_config"]["image_size"]
        told = {"size": {"height": side, "width": side}}
    made = processor.image_processor(images=[image], return_tensors="pt", **told)
    return int(next(made[key] for key in ("pixel_values", "pixel_values_flat") if key in made).numel())


def _image_tokens(name: str, info: Any, image: Any) -> int:
    """Tokens of one image where vLLM finds them by processing it."""
    import inspect

    sized = {"image_width": image.size[0], "image_height": image.size[1]}
    offered = {**sized, "mm_kwargs": {}}
    if name.startswith("Inkling"):
        return int(info.get_hf_processor().process_images([image])["num_tokens"][0])
    if name.startswith("Lfm2"):
        made = info.get_hf_processor()
        shapes = made.image_processor(images=[image], return_tensors="pt")["spatial_shapes"]
        whole, tile = info.get_num_image_tokens(spatial_shapes=shapes, processor=made, mm_kwargs={})
        tiles = info.get_num_patches(**sized, processor=made, mm_kwargs={})
        return whole + (tiles - 1) * tile
    if name.startswith("Cohere2"):  # as its prompts are written, `_get_prompt_updates`
        made = info.get_hf_processor()
        return int(info.get_num_patches(**sized, processor=made, mm_kwargs={})) * made.patch_size**2
    if name.startswith("Llama4"):  # a tile is as many tokens as it says, and the whole is one more
        vision = info.get_hf_config().vision_config
        tiles = info.get_hf_processor().image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return len(tiles) * int(info.get_patch_per_chunk(vision))
    if name in PROCESSORS and hasattr(info.get_hf_processor(), "tokens"):
        return int(info.get_hf_processor().tokens(image))
    wanted = inspect.signature(info.get_num_image_tokens).parameters
    if "processor" in wanted:
        offered["processor"] = info.get_hf_processor()
    if "image_processor" in wanted:
        offered["image_processor"] = info.get_hf_processor().image_processor
    return int(info.get_num_image_tokens(**{k: v for k, v in offered.items() if k in wanted}))


def _video_numbers(name: str, info: Any, videos: list[Any], config: dict[str, Any]) -> int:
    """Numbers that the tower reads of one video; of most, the frames have their size already."""
    import torch

    frames = videos[0][0] if isinstance(videos[0], tuple) else videos[0]
    if name in PROCESSORS and hasattr(info.get_hf_processor(), "video_numbers"):
        return int(info.get_hf_processor().video_numbers(frames))
    if name in GLM_PIXELS:
        own = info.get_hf_processor().video_processor
        sides = config["vision_config"]["patch_size"] ** 2 * config["vision_config"]["temporal_patch_size"]
        return 3 * sides * int(own.get_num_of_video_patches(*frames.shape[:3]))
    if name.startswith("Gemma4"):
        kind = "Gemma4Unified" if name.startswith("Gemma4Unified") else "Gemma4"
        own = "gemma4_unified" if kind == "Gemma4Unified" else "gemma4"
        made = _image_processor(f"{own}.video_processing_{own}", f"{kind}VideoProcessor")
        told = {"do_sample_frames": False, "return_tensors": "pt", "max_soft_tokens": 70}  # as vLLM tells it
        return int(
            made(videos=[torch.from_numpy(frames).movedim(-1, 1)], **told)["pixel_values_videos"].numel()
        )
    if name.startswith("Dots3"):
        from vllm.models.dots3_note.common.video import preprocess_dots3_note_video

        made = info.get_hf_processor()
        told = {"seq": made.max_model_len, **TOLD}
        told = {key: told[key] for key in ("seq", "output_reserve", "max_new_tokens") if key in told}
        parts = preprocess_dots3_note_video(frames, tokenizer=made.tokenizer, question="", **told)
        seen = [part.value for part in parts if part.kind == "image"]
        return sum(int(made.image_processor.preprocess(image, **_dots_told())[0].numel()) for image in seen)
    if name.startswith("MiMo"):
        from vllm.transformers_utils.processors.mimo_v2_omni import VideoInput

        inner = next(v for v in vars(info.get_hf_processor()).values() if "process_video" in dir(type(v)))
        tensor = torch.from_numpy(frames).movedim(-1, 1)
        pair = (tensor, torch.arange(len(frames), dtype=torch.float32))
        return int(inner.process_video(VideoInput(video=pair))[0].numel())
    count, height, width, colours = frames.shape
    eyes = config.get("thinker_config", config).get("vision_config", {})
    grouped = 1 if name.startswith("Keye") else eyes.get("temporal_patch_size", 1)
    return int((count + -count % grouped) * height * width * colours)


def _video_tokens(info: Any, frames: Any) -> int:
    """Tokens of a video where vLLM finds them by processing it."""
    if hasattr(own := getattr(info.get_hf_processor(), "video_processor", None), "get_num_of_video_patches"):
        return int(own.get_num_of_video_patches(*frames.shape[:3])) // own.merge_size**2
    if hasattr(info.get_hf_processor(), "video_tokens"):
        return int(info.get_hf_processor().video_tokens(frames))
    if hasattr(info, "get_num_video_tokens"):
        count, height, width, _ = frames.shape
        return int(info.get_num_video_tokens(video_width=width, video_height=height, num_frames=count))
    return len(frames) * int(info.get_hf_processor().image_seq_length)


def sized(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config with the sizes of `SIZES`."""
    config = copy.deepcopy(config)
    for key, value in SIZES.get(name, {}).items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    return config


def ask(name: str, case: dict[str, Any], length: int) -> dict[str, Any]:
    """Tokens of an item by modality and the numbers of the items that would be run."""
    config = sized(name, case["config"])
    flags = {k: v for k, v in case.get("flags", {}).items() if k != "language_model_only"}
    beside = _glm_files(name) if name in GLM_PIXELS else case.get("beside")
    made, info, dummy = _info(config, flags, length, beside)
    if name in PROCESSORS:
        stub = PROCESSORS[name](info)
        type(info).get_hf_processor = lambda self, **told: stub
        known = getattr(getattr(stub, "image_processor", None), "valid_kwargs", None) if TOLD else None
        scopes = getattr(stub, "scopes", None) or (
            {"images_kwargs": set(known.__annotations__)} if known else {}
        )  # else: options that nobody gave
        type(info).get_supported_mm_processor_kwargs = lambda self: scopes
    limits = [m for m in info.get_supported_mm_limits() if info.allowed_mm_limits.get(m)]
    seen = [m for m in ("image", "video") if m in limits]
    options = made.get_multimodal_config().limit_per_prompt
    told = info.get_mm_max_tokens_per_item(length, dict.fromkeys(limits, 1))
    tokens, numbers = dict(told or {}), {}
    if "image" in seen:
        images = dummy.get_dummy_mm_data(length, {"image": 1}, options)["image"]
        numbers["image"] = _image_numbers(name, info, images[0], config)
        if not told:
            tokens["image"] = _image_tokens(name, info, images[0])
    if "video" in seen:
        both = dummy.get_dummy_mm_data(length, dict.fromkeys(seen, 1), options)["video"]
        alone = dummy.get_dummy_mm_data(length, {"video": 1}, options)["video"]
        numbers["video"] = _video_numbers(name, info, alone, config)
        if not told:
            frames = both[0][0] if isinstance(both[0], tuple) else both[0]
            tokens["video"] = _video_tokens(info, frames)
    return {"tokens": {m: int(tokens[m]) for m in seen}, "numbers": numbers}


def alive(module: Any, image: Any) -> int:
    """Elements of 16 bits that are alive at most while a module runs on the meta device, its weights apart."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    known = {t.untyped_storage()._cdata: 0 for t in (*module.parameters(), *module.buffers())}
    now = most = 0

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal now, most
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in known:
                    storage = tensor.untyped_storage()
                    known[storage._cdata] = storage.nbytes()
                    now += storage.nbytes()
                    weakref.finalize(storage, gone, storage._cdata)
                    most = max(most, now)
            return out

    def gone(key: int) -> None:
        nonlocal now
        now -= known.pop(key, 0)

    torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, **told: torch.empty_like(q)
    with torch.no_grad(), Watch():
        module(image)
    return most // 2


def live(name: str, config: dict[str, Any]) -> float | None:
    """Elements alive of one patch in towers that are no plain transformers; attention's kernels hold nothing."""
    import torch

    if "OCR" in name:
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.model_executor.models import deepencoder

        deepencoder.deepencoder_rel_pos_attention = lambda q, *rest: torch.empty_like(q)
        with set_current_vllm_config(VllmConfig()), torch.device("meta"):
            module, frames = deepencoder.build_sam_vit_b().to(torch.bfloat16), (4, 3, 640, 640)
            return alive(module, torch.empty(frames, dtype=torch.bfloat16)) / (4 * 40**2)
    if name.startswith("Emu3"):
        from transformers.models.emu3 import configuration_emu3, modeling_emu3

        sizes = configuration_emu3.Emu3VQVAEConfig(**config["vq_config"])
        sizes._attn_implementation = "sdpa"
        with torch.device("meta"):
            module = modeling_emu3.Emu3VQVAE(sizes).to(torch.bfloat16).encoder
            return alive(module, torch.empty((1, 4, 3, 1024, 1024), dtype=torch.bfloat16)) / (4 * 1024**2)
    return None


def main() -> None:
    vllm_meta.platform()
    packed = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
    written = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else {}
    from whole_profiles import CHECKPOINTS
    from whole_profiles import ask as ask_whole  # which reads this module

    def asked(name: str, length: int) -> dict[str, Any]:
        if name not in CHECKPOINTS:
            return ask(name, packed[name], length)
        flags = {k: v for k, v in packed[name].get("flags", {}).items() if k != "language_model_only"}
        return ask_whole(name, packed[name], flags, length)

    for name in sys.argv[1:] or (*PROCESSORS, *OWN):
        written[name] = {str(length): asked(name, length) for length in LENGTHS}
        written[name]["sizes"] = SIZES.get(name, {})
        written[name]["live"] = live(name, packed[name]["config"])
        print(name, written[name], flush=True)
    WRITTEN.write_text(json.dumps(dict(sorted(written.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
