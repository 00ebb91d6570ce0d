"""Sizes that flags state, tower by tower, beside vLLM's own answers (`tests/models/make_stated.py`)."""

from __future__ import annotations

import copy
import json
import lzma
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs, ResolvedArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.memory.stated.rows import STATED
from kvplan.memory.tower_profile import idle_words, largest_item, profiled_items, runs_none
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.spec import ModelSpec, VisionSpec
from kvplan.models.towers.kinds import MOST, most_items

SAID: dict[str, Any] = json.loads((FIXTURES / "stated_items_vllm_0.32.json").read_text())
CONFIGS: dict[str, Any] = json.loads(
    lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
)
MARKED = {
    "Blip2ForConditionalGeneration": 256,
    "GLM4VForCausalLM": 6400,
    "H2OVLChatModel": 1024,
    "InternS1ForConditionalGeneration": 1024,
    "InternVL, with its tower": 1024,
    "InternVLChatModel": 1024,
    "Llama4ForConditionalGeneration": 576,
    "MolmoForCausalLM": 576,
    "NVLM_D": 1024,
    "Phi3VForCausalLM": 576,
    "QianfanOCRForConditionalGeneration": 1024,
    "SkyworkR1VChatModel": 1024,
}
"""Patches to which a class token is added, which has no pixels."""
REPEATED = {("Emu3ForConditionalGeneration", "image"): 4, ("MuseGlimmerForConditionalGeneration", "image"): 2}
"""Frames as which the tower reads an image."""

UNASKED = {
    "MoonshotKimiaForCausalLM": "its class passes no lengths on",
    "CohereAsrForConditionalGeneration": "the same",
    "VoxtralRealtimeGeneration": "its layers run with the language model's",
    "Llama_Nemotron_Nano_VL": "InternVL's way, under the names of its checkpoint's processor, which is not there",
    "KimiK25ForConditionalGeneration": "its class passes no sizes on, and its processor no keys",
}
"""Rows of which vLLM was not asked, and why."""


@cache
def model_of(name: str) -> ModelSpec:
    config = copy.deepcopy(CONFIGS[name]["config"])
    for key, value in SAID.get(name, {"sizes": {}})["sizes"].items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    return from_config(config, name)


def vision_of(name: str) -> VisionSpec:
    vision = model_of(name).vision
    assert vision is not None
    return vision


@cache
def resolved(length: int) -> ResolvedArgs:
    return estimate(load_model("Qwen/Qwen3.6-27B"), "h200", EngineArgs(max_model_len=length)).args


def args(length: int = 8192, **flags: Any) -> ResolvedArgs:
    stated = EngineArgs(**flags).model_dump(include=set(flags))
    return resolved(length).model_copy(update=stated)


def cases() -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name} {case['length']} {json.dumps(case['flags'])}")
        for name, known in SAID.items()
        for case in known["said"]
    ]


@pytest.mark.parametrize(("name", "case"), cases())
def test_items_are_counted_and_run_as_vllm_does(name: str, case: dict[str, Any]) -> None:
    """Tokens of the largest item and the numbers (pixels times colours), or frames, of the one that is run."""
    theirs, flags = case["vllm"], args(case["length"], **case["flags"])
    if "error" in theirs:
        with pytest.raises(KvplanError):
            largest_item(vision_of(name), flags)
        return
    if not theirs["tokens"]:  # no budget, and so no run
        assert runs_none(vision_of(name), flags)
        return
    assert not runs_none(vision_of(name), flags)
    kind = max(theirs["tokens"], key=lambda m: (theirs["tokens"][m], m))
    mine = largest_item(vision_of(name), flags)
    assert mine is not None
    assert (mine.kind, mine.tokens) == (kind, theirs["tokens"][kind])
    if kind in theirs.get("frames", {}):  # of sounds
        assert mine.patches == theirs["frames"][kind]
        return
    marked = MARKED.get(name)
    patches = mine.patches * marked // (marked + 1) if marked else mine.patches
    assert patches * mine.pixels == theirs["numbers"][kind] * REPEATED.get((name, kind), 1)


@pytest.mark.parametrize(
    ("name", "flags", "idle"),
    [
        ("Gemma3ForConditionalGeneration", {"mm_processor_kwargs": {"do_pan_and_scan": True}}, ""),
        ("Gemma3ForConditionalGeneration", {"mm_processor_kwargs": {"fps": 2, "size": 5}}, "fps, size"),
        ("Llava, with its tower", {"limit_mm_per_prompt": {"image": {"width": 9}}}, "image.width"),
        (
            "Gemma4, with its towers",
            {"limit_mm_per_prompt": {"video": {"height": 9, "num_frames": 2}}},
            "video.height",
        ),
        ("Qwen2_5_VLForConditionalGeneration", {"mm_processor_kwargs": {"max_pixels": 9, "fps": 2}}, "fps"),
        (
            "MiMoV2OmniForCausalLM",
            {"mm_processor_kwargs": {"max_pixels": 9999, "images_kwargs": {"min_pixels": 9}}},
            "min_pixels",
        ),
        (
            "Cosmos3EdgeForConditionalGeneration",
            {"limit_mm_per_prompt": {"video": {"num_frames": 2, "height": 9}}},
            "video.num_frames",
        ),
        ("GlmOcrForConditionalGeneration", {"limit_mm_per_prompt": {"video": {"num_frames": 2}}}, ""),
        ("DeepseekV4ForConditionalGeneration", {"mm_processor_kwargs": {"max_pixels": 9}}, "max_pixels"),
        ("InklingForConditionalGeneration", {"mm_processor_kwargs": {"patch_size": 9}}, "patch_size"),
        ("Qwen2_5OmniModel", {"limit_mm_per_prompt": {"audio": {"length": 9}}}, ""),
        ("MiniCPMO", {"limit_mm_per_prompt": {"audio": {"length": 9}}}, "audio.length"),
        ("Dots3NoteForCausalLM", {"limit_mm_per_prompt": {"audio": {"length": 9}}}, "audio.length"),
        ("NemotronH_Nano_VL_V2", {"limit_mm_per_prompt": {"audio": {"length": 9}}}, "audio.length"),
        (
            "Cosmos3EdgeForConditionalGeneration",
            {"limit_mm_per_prompt": {"video": {"num_frames": 1, "width": 9}}},
            "video.num_frames",
        ),
    ],
)
def test_what_does_not_act_is_said(name: str, flags: dict[str, Any], idle: str) -> None:
    assert idle_words(vision_of(name), args(**flags)) == (f"{idle} not heeded" if idle else "")


def test_the_activation_row_says_it() -> None:
    plan = estimate(
        "google/gemma-3-4b-it",
        "l40s",
        max_model_len=32768,
        max_num_seqs=8,
        max_num_batched_tokens=16384,
        mm_processor_kwargs={"do_pan_and_scan": True, "do_resize": True},
    )
    assert "12 images of 1,280 tokens, do_resize not heeded;" in plan.budget.activation.why
    assert "12 images of 1,280 tokens, do_resize not heeded" in plan.text()


def test_towers_without_a_row_say_that_sizes_are_not_planned() -> None:
    known = model_of("IsaacForConditionalGeneration")
    model = replace(known, vision=replace(vision_of(known.architecture), architecture="NewForCausalLM"))
    plan = estimate(
        model, "h100", max_model_len=4096, max_num_seqs=2, limit_mm_per_prompt={"image": {"width": 9}}
    )
    assert ", stated sizes not planned;" in plan.budget.activation.why


@pytest.mark.parametrize(
    ("name", "kind"), [("Phi4MMForCausalLM", "image"), ("Gemma4UnifiedForConditionalGeneration", "video")]
)
def test_a_short_sound_changes_nothing_of_the_picture_beside_it(name: str, kind: str) -> None:
    vision = vision_of(name)
    usual, short = (args(limit_mm_per_prompt=text) for text in (None, {"audio": {"length": 700}}))
    assert largest_item(vision, short) == largest_item(vision, usual)
    item = largest_item(vision, usual)
    assert item is not None
    assert item.kind == kind


def test_openpangus_largest_picture_is_known_once_flags_bound_it() -> None:
    """Its limit of pixels stands in a file of the checkpoint."""
    model = model_of("OpenPanguVLForConditionalGeneration")
    flags = {"max_model_len": 4096, "max_num_seqs": 2}
    wide = estimate(model, "h100", **flags, limit_mm_per_prompt={"image": {"width": 9}})
    assert "vision tower, stated sizes not planned;" in wide.budget.activation.why
    told = estimate(model, "h100", **flags, mm_processor_kwargs={"max_pixels": 501760})
    assert "vision tower on 2 videos of 3,840 tokens;" in told.budget.activation.why


@pytest.mark.parametrize(
    ("name", "told", "message"),
    [
        ("Dots3NoteForCausalLM", {"image_detail": "low"}, "say min_pixels, max_pixels"),
        ("Gemma4, with its towers", {"max_soft_tokens": 99}, "70, 140, 280, 560, 1120"),
        ("Gemma3ForConditionalGeneration", {"do_pan_and_scan": "yes"}, "must be true or false"),
        ("Phi3VForCausalLM", {"num_crops": 0}, "whole number of 1 at least"),
        ("Emu3ForConditionalGeneration", {"images_kwargs": {"max_pixels": 9}}, "takes no images_kwargs"),
        ("MuseGlimmerForConditionalGeneration", {"max_image_tokens": 9}, "takes no 'max_image_tokens'"),
        ("Mistral3ForConditionalGeneration", {"size": 700}, "size must be an object"),
    ],
)
def test_values_that_no_processor_takes_are_refused(name: str, told: dict[str, Any], message: str) -> None:
    with pytest.raises(KvplanError, match=message):
        largest_item(vision_of(name), args(mm_processor_kwargs=told))


def test_every_row_is_held_or_has_a_reason() -> None:
    asked = {str(CONFIGS[name]["config"]["architectures"][0]) for name in SAID}
    assert STATED.keys() - asked == UNASKED.keys()


LIMITS: dict[str, Any] = json.loads((FIXTURES / "item_limits_vllm_0.32.json").read_text())


WHOLE_BATCH = "VoxtralRealtimeGeneration"
"""Its items are the tokens of a batch, not the one sound of a prompt."""


@pytest.mark.parametrize("name", sorted(LIMITS.keys() - {WHOLE_BATCH}))
def test_a_prompt_has_as_many_items_as_vllms_class_takes(name: str) -> None:
    for kind, limit in LIMITS[name].items():
        assert most_items(name, kind) == (limit or 999)


def test_every_limit_is_held() -> None:
    assert MOST.keys() <= LIMITS.keys()


def test_paligemma_profiles_one_image_a_prompt() -> None:
    """Eight prompts of one image each, though 32 fit the batch."""
    vision = vision_of("PaliGemma, with its tower")
    few, many = (args(max_num_seqs=n, max_num_batched_tokens=8192) for n in (8, 256))
    assert profiled_items(vision, few) == ("vision", "8 images of 256 tokens")
    assert profiled_items(vision, many) == ("vision", "32 images of 256 tokens")
