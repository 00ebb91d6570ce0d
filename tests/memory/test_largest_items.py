"""The largest item of each vision tower beside vLLM's own answer.

`fixtures/largest_items_vllm_0.32.json` is what vLLM 0.32's processing classes said (`tests/models/make_largest.py`):
tokens of an item by modality, and the numbers (pixels times colours) that the tower reads of the item it runs.
"""

from __future__ import annotations

import copy
import json
import lzma
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs, ResolvedArgs
from kvplan.memory.forward import estimate
from kvplan.memory.tower_profile import largest_image, largest_item, tower_bytes
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.spec import VisionSpec
from kvplan.models.towers.rows import DECLARED

ITEMS: dict[str, Any] = json.loads((FIXTURES / "largest_items_vllm_0.32.json").read_text())
CONFIGS: dict[str, Any] = json.loads(
    lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
)
MARKED = {
    "Blip2ForConditionalGeneration": 256,
    "GLM4VForCausalLM": 6400,
    "InternS1ForConditionalGeneration": 1024,
    "InternVLChatModel": 1024,
    "InternVL, with its tower": 1024,
    "Llama4ForConditionalGeneration": 576,
}
"""Patches to which a class token is added, which has no pixels."""
REPEATED = {"Emu3ForConditionalGeneration": 4}
"""Frames that a tower makes of one image by itself (`temporal_downsample_factor`)."""
ROUNDED = {"MiMoV2OmniForCausalLM"}
"""Frames that share pixels, each side rounded down to whole tokens: up to one token less a side."""
UNKNOWN: dict[str, str] = {
    "OpenPanguVLForConditionalGeneration": "its limit of pixels stands in a file of the checkpoint that nothing shows",
}
"""Rows without a largest item, and why."""


def vision_of(name: str) -> VisionSpec:
    config = copy.deepcopy(CONFIGS[name]["config"])
    for key, value in ITEMS[name]["sizes"].items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    vision = from_config(config, name).vision
    assert vision is not None
    return vision


def args(**flags: Any) -> ResolvedArgs:
    return estimate(load_model("Qwen/Qwen3.6-27B"), "h200", EngineArgs(**flags)).args


def asked() -> list[tuple[str, int]]:
    return [(name, int(length)) for name, case in ITEMS.items() for length in case if length.isdecimal()]


@pytest.mark.parametrize(("name", "length"), asked())
def test_tokens_and_pixels_of_the_largest_item_equal_vllms(name: str, length: int) -> None:
    """vLLM runs the modality with the most tokens; at a tie the one whose name comes last."""
    theirs = ITEMS[name][str(length)]
    modality = max(theirs["tokens"], key=lambda m: (theirs["tokens"][m], m))
    mine = largest_item(vision_of(name), args(max_model_len=length))
    assert mine is not None
    assert mine.tokens == theirs["tokens"][modality]
    marked = MARKED.get(name)
    patches = mine.patches * marked // (marked + 1) if marked else mine.patches
    numbers = theirs["numbers"][modality] * REPEATED.get(name, 1)
    if name in ROUNDED:
        assert numbers <= patches * mine.pixels <= 1.02 * numbers
    else:
        assert patches * mine.pixels == numbers


@pytest.mark.parametrize("name", [n for n, case in ITEMS.items() if "video" in case["8192"]["tokens"]])
def test_without_videos_the_largest_image_is_run(name: str) -> None:
    """Of towers that would run a video."""
    theirs = ITEMS[name]["8192"]
    mine = largest_item(
        vision_of(name), args(max_model_len=8192, limit_mm_per_prompt='{"video": 0, "audio": 0}')
    )
    assert mine is not None
    assert mine.tokens == theirs["tokens"]["image"]
    marked = MARKED.get(name)
    patches = mine.patches * marked // (marked + 1) if marked else mine.patches
    assert patches * mine.pixels == theirs["numbers"]["image"]


@pytest.mark.parametrize("name", [name for name, case in ITEMS.items() if case["live"]])
def test_what_is_alive_in_other_towers_is_what_vllms_classes_held(name: str) -> None:
    """SAM with its biases, convolutions: elements of one patch beside its pixels, as counted on the meta device."""
    vision, asked = vision_of(name), args(max_model_len=8192, max_num_batched_tokens=512)
    item, peak = largest_item(vision, asked), tower_bytes(vision, asked)
    assert item is not None
    assert peak is not None
    at_once = dict(vision.facts).get("at_once", item.patches)
    assert (peak / 2 - item.patches * item.pixels) / at_once == pytest.approx(ITEMS[name]["live"], rel=0.06)


def test_every_row_has_a_largest_item_or_a_reason() -> None:
    """No new tower is forgotten; no reason outlives its row's lack."""
    known = {name: from_config(CONFIGS[name]["config"], name).vision for name in DECLARED if name in CONFIGS}
    unknown = {name for name, vision in known.items() if vision is None or largest_image(vision) is None}
    assert unknown == UNKNOWN.keys()
    assert all(row.largest for row in DECLARED.values())


def peak(name: str, **flags: Any) -> int:
    """Bytes of what start-up profiles."""
    model = load_model(name)
    asked = estimate(model, "h200", EngineArgs(max_num_seqs=8, **flags)).args
    assert model.vision is not None
    found = tower_bytes(model.vision, asked)
    assert found is not None
    return found


def test_a_longer_context_profiles_a_longer_video() -> None:
    """Qwen 2.5 VL's has 14 frames at most: 7 pairs of 65,536 patches, 114,688 tokens, as its logs print."""
    short, long = (peak("Qwen/Qwen2.5-VL-7B-Instruct", max_model_len=n) for n in (16384, 128000))
    assert long == 7 * short


def test_frames_that_pass_the_tower_in_turn_add_their_pixels_alone() -> None:
    """Nemotron Nano VL's tower takes 128 frames at a time, 1,024 patches and 256 tokens each."""
    name, more = "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16", 128 * 256
    first, second, third = (peak(name, max_model_len=n * more) for n in (1, 2, 3))
    assert third - second == second - first == 2 * 128 * 1024 * 768


def test_a_kind_that_no_prompt_has_is_not_profiled() -> None:
    """Without videos Qwen 2.5 VL's image is all; without images the video counts no image beside it."""
    name, longest = "Qwen/Qwen2.5-VL-7B-Instruct", 128000
    image = peak(name, max_model_len=longest, limit_mm_per_prompt='{"video": 0}')
    assert peak(name, max_model_len=longest) == peak(
        name, max_model_len=longest, limit_mm_per_prompt='{"image": 0}'
    )
    assert peak(name, max_model_len=longest) == 7 * image


def test_a_prompt_s_images_bound_those_of_the_profile() -> None:
    """Gemma 3's are 256 tokens: 32 in a batch of 8,192, but eight prompts of two have 16."""
    flags = {"max_model_len": 8192, "max_num_batched_tokens": 8192}
    all_of_them = peak("google/gemma-3-27b-it", **flags)
    assert all_of_them == 2 * peak("google/gemma-3-27b-it", limit_mm_per_prompt='{"image": 2}', **flags)
