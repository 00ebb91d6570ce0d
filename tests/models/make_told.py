"""Asks vLLM itself what its start-up profiles where flags state sizes of items.

    python tests/models/make_told.py

Writes `tests/fixtures/told_items_vllm_0.32.json`: for each architecture, flags and length of the context the tokens by
which an item is counted, and of the item that is made, by modality; or what vLLM refuses. `tests/memory/
test_told_items.py` holds kvplan to it. Processors are only asked for their limits, which are those that the
checkpoints publish. Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import copy
import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import make_largest
import vllm_meta

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
LENGTHS = (8192, 131072)
SUPPORTED = {scope: {"size", "min_pixels", "max_pixels"} for scope in ("images_kwargs", "videos_kwargs")}
"""What vLLM's `get_supported_mm_processor_kwargs` says of Qwen's processors, as far as sizes go."""
EDGES = {"shortest_edge": 3136, "longest_edge": 200704}
FLAGS: list[dict[str, Any]] = [
    {"mm_processor_kwargs": {"max_pixels": 1003520}},
    {"mm_processor_kwargs": {"max_pixels": 602112, "min_pixels": 784}},
    {"mm_processor_kwargs": {"max_pixels": 977777}},
    {"mm_processor_kwargs": {"size": EDGES}},
    {"mm_processor_kwargs": {"size": EDGES, "max_pixels": 401408}},
    {"mm_processor_kwargs": {"images_kwargs": {"max_pixels": 1003520}}},
    {"mm_processor_kwargs": {"videos_kwargs": {"max_pixels": 1003520}}},
    {"mm_processor_kwargs": {"max_pixels": 1003520, "videos_kwargs": {"size": EDGES}}},
    {"limit_mm_per_prompt": {"image": {"count": 1, "width": 512, "height": 512}}},
    {"limit_mm_per_prompt": {"image": {"count": 1, "width": 700}, "video": 0}},
    {"limit_mm_per_prompt": {"video": {"count": 1, "num_frames": 4, "width": 640, "height": 360}}},
    {"limit_mm_per_prompt": {"image": 0, "video": {"count": 1, "num_frames": 3}}},
    {
        "mm_processor_kwargs": {"max_pixels": 1003520},
        "limit_mm_per_prompt": {
            "image": {"width": 500, "height": 300},
            "video": {"width": 4000, "height": 100},
        },
    },
    {"mm_processor_kwargs": {"fps": 2}},
]
TILED: list[dict[str, Any]] = [
    {"mm_processor_kwargs": {"max_dynamic_patch": 4}},
    {"mm_processor_kwargs": {"max_dynamic_patch": 1}},
    {"mm_processor_kwargs": {"max_dynamic_patch": 24, "min_dynamic_patch": 20}},
    {"mm_processor_kwargs": {"use_thumbnail": False}},
    {"mm_processor_kwargs": {"dynamic_image_size": False}},
    {"mm_processor_kwargs": {"max_pixels": 1003520}},
    {"limit_mm_per_prompt": {"image": {"width": 896, "height": 896}}},
    {"limit_mm_per_prompt": {"image": {"width": 448, "height": 1344}}},
    {"limit_mm_per_prompt": {"image": {"width": 100}}},
]


GLM: list[dict[str, Any]] = [
    {"mm_processor_kwargs": {"max_pixels": 3211264}},
    {"mm_processor_kwargs": {"size": {"shortest_edge": 12544, "longest_edge": 3211264}}},
    {"mm_processor_kwargs": {"size": {"shortest_edge": 12544, "longest_edge": 47040000}, "fps": 1}},
    {"mm_processor_kwargs": {"videos_kwargs": {"size": {"shortest_edge": 12544, "longest_edge": 9633792}}}},
    {"limit_mm_per_prompt": {"image": {"width": 512, "height": 700}, "video": 0}},
    {"limit_mm_per_prompt": {"video": {"num_frames": 5, "width": 640, "height": 360}}},
    {"limit_mm_per_prompt": {"image": 0}},
]


def _glm(name: str, info: Any, item: Any, modality: str) -> int:
    """Tokens of an item that GLM's own processor makes, told what vLLM routes to it."""
    scope = {"image": "images_kwargs", "video": "videos_kwargs"}
    known = {kind: {"size"} for kind in scope.values()}
    merged = info.ctx.get_merged_mm_kwargs({}, supported_mm_processor_kwargs=known)
    told = {k: v for k, v in (merged.get(scope[modality]) or {}).items() if k == "size"}
    processor = info.get_hf_processor()
    if modality == "image":
        width, height = item.size
        return int(processor.image_processor.get_number_of_image_patches(height, width, told)) // 4
    frames = item[0] if isinstance(item, tuple) else item
    return int(processor.video_processor.get_num_of_video_patches(*frames.shape[:3], told)) // 4


def _qwen2(info: Any) -> Any:
    """The limits that Qwen 2's checkpoints publish."""
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    return SimpleNamespace(image_processor=SimpleNamespace(size=size), image_token="<i>")


def _qwen3(info: Any) -> Any:
    """The limits that Qwen 3 VL's checkpoints publish."""
    from vllm.model_executor.models.qwen3_vl import Qwen3VLVideoProcessor

    video = object.__new__(Qwen3VLVideoProcessor)
    video.size, video.temporal_patch_size = {"shortest_edge": 4096, "longest_edge": 25165824}, 2
    image = SimpleNamespace(size={"shortest_edge": 65536, "longest_edge": 16777216})
    return SimpleNamespace(image_processor=image, video_processor=video, image_token="<i>")


def _info(
    config: dict[str, Any], flags: dict[str, Any], length: int, beside: dict[str, Any] | None = None
) -> tuple[Any, Any, Any]:
    """vLLM's config, `ProcessingInfo` and `DummyInputsBuilder` of one case."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing.context import InputProcessingContext

    made = vllm_meta.engine_config(config, 1, beside=beside, **flags).model_config
    made.max_model_len = length
    factory = MULTIMODAL_REGISTRY._get_model_cls(made)._processor_factory
    words = make_largest._GlmWords() if config["model_type"].startswith("glm") else vllm_meta._Tokenizer()
    words.vocab["<|video_pad|>"] = 1
    InputProcessingContext.get_tokenizer = lambda self: words
    info = factory.info(InputProcessingContext(made, words))
    return made, info, factory.dummy_inputs(info)


CASES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "Qwen2VLForConditionalGeneration": (_qwen2, FLAGS),
    "Qwen2_5_VLForConditionalGeneration": (_qwen2, FLAGS),
    "Exaone4_5_ForConditionalGeneration": (_qwen2, FLAGS),
    "Qwen3VLForConditionalGeneration": (_qwen3, FLAGS),
    "Qwen3_5ForConditionalGeneration": (_qwen3, FLAGS),
    "InternVLChatModel": (None, TILED),
    "SkyworkR1VChatModel": (None, TILED),
    "QianfanOCRForConditionalGeneration": (None, TILED),
    **{name: (make_largest.PROCESSORS[name], GLM) for name in make_largest.GLM_PIXELS if "5" not in name},
}


def _made(info: Any, item: Any, modality: str) -> int:
    """Tokens of a made item."""
    frames = item[0] if isinstance(item, tuple) else item
    if hasattr(info, "_get_vision_info"):
        processor = info.get_hf_processor()
        own = getattr(processor, "video_processor", processor.image_processor)
        told = {"image_processor": own if modality == "video" else processor.image_processor, "mm_kwargs": {}}
        if modality == "image":
            width, height = frames.size
            sized = {"image_width": width, "image_height": height, "num_frames": 1}
        else:
            count, height, width, _ = frames.shape
            sized = {"image_width": width, "image_height": height, "num_frames": count}
        return int(info._get_vision_info(**sized, **told, modality=modality)[1])
    width, height = frames.size
    sized = {"image_width": width, "image_height": height}
    return int(info.get_num_image_tokens(**sized, processor=info.get_hf_processor()))


def ask(name: str, config: dict[str, Any], flags: dict[str, Any], length: int) -> dict[str, Any]:
    """Tokens counted and made, by modality; or the error."""
    stub, _ = CASES[name]
    try:
        beside = make_largest._glm_files(name) if name in make_largest.GLM_PIXELS else None
        config = make_largest.sized(name, config)
        made, info, dummy = _info(config, copy.deepcopy(flags), length, beside)
        if stub is not None:
            processor = stub(info)
            type(info).get_hf_processor = lambda self, **told: processor
            type(info).get_supported_mm_processor_kwargs = lambda self: SUPPORTED
        options = made.get_multimodal_config().limit_per_prompt
        limits = {m: info.allowed_mm_limits.get(m, 0) for m in info.get_supported_mm_limits()}
        seen = [m for m in ("image", "video") if limits.get(m)]
        counted = info.get_mm_max_tokens_per_item(length, dict.fromkeys(seen, 1))
        found: dict[str, Any] = {"counted": {}, "made": {}}
        beside_it: dict[str, int] = {}
        for modality in seen if hasattr(info, "_get_vision_info") else ["image"]:
            item = dummy.get_dummy_mm_data(length, {modality: 1}, options)[modality][0]
            if not counted and "video" in seen:  # counted beside the others
                both = dummy.get_dummy_mm_data(length, dict.fromkeys(seen, 1), options)[modality][0]
                beside_it[modality] = (
                    _glm(name, info, both, modality) if name in make_largest.GLM_PIXELS else 0
                )
            glm = name in make_largest.GLM_PIXELS
            found["made"][modality] = _glm(name, info, item, modality) if glm else _made(info, item, modality)
            found["counted"][modality] = int((counted or {**found["made"], **beside_it})[modality])
        return found
    except Exception as error:  # whatever vLLM stumbles over is the answer
        return {"error": f"{type(error).__name__}: {str(error)[:120]}"}


def main() -> None:
    vllm_meta.platform()
    packed = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
    said = [
        {
            "name": name,
            "flags": flags,
            "length": length,
            "vllm": ask(name, packed[name]["config"], flags, length),
            **({"sizes": make_largest.SIZES[name]} if name in make_largest.SIZES else {}),
        }
        for name, (_, told) in CASES.items()
        for flags in told
        for length in LENGTHS
    ]
    (FIXTURES / "told_items_vllm_0.32.json").write_text(json.dumps(said, indent=1) + "\n")
    for case in said:
        print(case["name"], case["flags"], case["length"], case["vllm"])


if __name__ == "__main__":
    main()
