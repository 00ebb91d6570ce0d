"""Profiling a vision tower: as many of the largest images as vLLM's budget holds, cut as the tower is cut."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate
from kvplan.memory.glm_items import HUGE, LEAST, _fitted, _most_frames
from kvplan.memory.inverse import what_would_fit
from kvplan.memory.tower_profile import LARGEST, largest_item, num_items, tower_bytes
from kvplan.models.config import Keys
from kvplan.models.load import load_model
from kvplan.models.spec import VisionSpec
from kvplan.models.towers.largest import llava_video, pinpoints
from kvplan.models.towers.parts import TowerFacts
from kvplan.models.vision import FAMILIES
from kvplan.profiles.memory_profile import memory_profile

QWEN, GEMMA = load_model("Qwen/Qwen3.6-27B"), load_model("google/gemma-3-27b-it")


def peak(model: Any = QWEN, **flags: Any) -> int:
    args = estimate(model, "h100", EngineArgs(max_model_len=8192, max_num_seqs=8, **flags)).args
    found = tower_bytes(model.vision, args)
    assert found is not None
    return found


def test_one_image_of_65536_patches_whatever_the_batch_below_it() -> None:
    """Qwen's largest image is 16,384 tokens; a batch of 32,768 profiles two."""
    assert peak(max_num_batched_tokens=2048) == peak(max_num_batched_tokens=16384)
    assert peak(max_num_batched_tokens=32768) == 2 * peak(max_num_batched_tokens=2048)


def test_small_images_fill_the_batch() -> None:
    """Gemma 3's are 256 tokens of 4,096 patches: 32 of them in a batch of 8,192."""
    assert peak(GEMMA, max_num_batched_tokens=8192) == 32 * peak(GEMMA, max_num_batched_tokens=256)


def test_ranks_cut_all_but_the_hidden_states() -> None:
    """And nothing where each rank holds the tower whole."""
    one, four = peak(), peak(tensor_parallel_size=4)
    assert one / 4 < four < one
    assert peak(tensor_parallel_size=4, mm_encoder_tp_mode="data") == one


def test_no_tower_is_profiled_where_none_is_run() -> None:
    for flags in ({"skip_mm_profiling": True}, {"language_model_only": True}):
        plan = estimate(QWEN, "rtx-pro-6000", EngineArgs(max_num_seqs=8, max_model_len=8192, **flags))
        assert not plan.budget.activation.why.startswith("vision")


@pytest.mark.parametrize(
    ("name", "flags", "peak_gib"),
    [
        # RTX 5090, vLLM 0.20: 0.8 x 31.36 less weights 21.86, runtime 0.68, KV 0.32; no graphs
        ("Qwen/Qwen3.6-35B-A3B", {"max_num_seqs": 32, "max_num_batched_tokens": 8192}, 2.27),
        # A100-80: 0.22 x 79.25 less weights 15.67, graphs 0.53, runtime 0.5, 14.28 short; a video of 114,688 tokens
        ("Qwen/Qwen2.5-VL-7B-Instruct", {"max_model_len": 128000, "max_num_batched_tokens": 2048}, 15.0),
        # RTX 5060 Ti TP4: what was learned from its log
        ("Qwen/Qwen3.6-27B", {"tensor_parallel_size": 4, "max_num_batched_tokens": 4096}, 0.65),
    ],
)
def test_peaks_of_logs_lie_inside_the_range(name: str, flags: dict[str, Any], peak_gib: float) -> None:
    scale = memory_profile("vllm", (0, 20)).vision_scale
    assert scale is not None
    model = load_model(name)
    args = estimate(model, "h100", EngineArgs(**{"max_model_len": 8192, **flags})).args
    known = tower_bytes(model.vision, args) if model.vision else None
    assert known is not None
    assert scale.low * known <= peak_gib * GiB <= scale.high * known


def test_every_listed_tower_has_a_largest_image() -> None:
    """Declared towers whose config does not tell keep the range of an unknown one."""
    assert set(FAMILIES.values()) <= set(LARGEST)


def test_a_declared_tower_profiles_what_its_config_says() -> None:
    """InternVL's video is counted beside an image of 13 tiles and run without: 32 frames fill 8,192 tokens."""
    intern = load_model("OpenGVLab/InternVL3_5-8B")
    patches = 8192 // 256 * 1025
    assert peak(intern, max_num_batched_tokens=8192) == 2 * patches * (588 + 2 * 1024 + 2 * 4096)


def test_gemma_4_profiles_a_video() -> None:
    """As its logs print: "a budget of 2496 tokens, and profiled with 1 video items"; 32 frames of 70 soft tokens, nine
    patches each."""
    gemma = load_model("google/gemma-4-26B-A4B")
    args = estimate(gemma, "h100", EngineArgs(max_model_len=8192, max_num_batched_tokens=2048)).args
    assert gemma.vision is not None
    item = largest_item(gemma.vision, args)
    assert item is not None
    assert (item.tokens, item.patches, num_items(item, args)) == (2496, 32 * 70 * 9, 1)


@pytest.mark.parametrize(
    ("name", "frames"), [("zai-org/GLM-OCR", 3), ("zai-org/GLM-GA", 21), ("zai-org/GLM-4.1V-9B-Thinking", 11)]
)
def test_glms_videos_have_the_frames_that_its_start_up_printed(name: str, frames: int) -> None:
    """vLLM's pull request 48729 lists them, of GLM-4.6V-Flash for GLM-GA, which has its context and classes."""
    vision = load_model(name).vision
    assert vision is not None
    facts = dict(vision.facts)
    shape = _fitted((HUGE, HUGE), 1, (LEAST, facts["image_pixels"]))
    assert _most_frames(shape, 131072 - 6084, facts["video_pixels"], exact=False) == frames


def test_llava_s_video_fills_the_context() -> None:
    """Frames of 24 x 24 patches, pooled to 12 x 12 tokens: 56 in 8,192; one video a prompt."""
    tile = {"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128}
    tile |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 336, "patch_size": 14}
    facts = llava_video(TowerFacts(Keys("m", {}), Keys("m", tile), 64))
    args = estimate(QWEN, "h100", EngineArgs(max_model_len=8192)).args
    item = largest_item(VisionSpec("declared", tuple(facts.items())), args)
    assert item is not None
    assert (item.tokens, item.patches) == (56 * 144, 56 * 576)


@pytest.mark.parametrize(
    ("name", "patches", "tokens"),
    [
        # 1,024 x 1,024 within 4,096 patches, in whole tokens of 28
        ("moonshotai/Kimi-VL-A3B-Instruct", 4 * 33 * 33, 33 * 33),
        # the grids with the most patches that 384 - 3 and 1,024 tokens hold, as vLLM's dummy pictures make them
        ("deepseek-ai/DeepSeek-V4-Flash-Vision-Exp", 3312, 384 + 3),
        ("deepseek-ai/DeepSeek-V4.1-Flash", 9189, 1024),
        ("moonshotai/Kimi-K2.5", 130 * 130, 65 * 65),  # 3,000 x 3,000 within 16,384 patches
        ("moonshotai/Kimi-K3", 4 * 16817, 16817),  # as vLLM's own test has it, within 65,536
        ("zai-org/GLM-OCR", 78 * 78 * 4, 78 * 78),
        ("PaddlePaddle/PaddleOCR-VL", 5120, 1280),
    ],
)
def test_the_largest_image_of_towers_of_their_own(name: str, patches: int, tokens: int) -> None:
    """What vLLM 0.32's classes and the processors' own defaults say."""
    vision = load_model(name).vision
    assert vision is not None
    args = estimate(QWEN, "h100", EngineArgs(max_model_len=8192)).args
    found = largest_item(vision, args.model_copy(update={"limit_mm_per_prompt": '{"video": 0}'}))
    assert found is not None
    assert found[:2] == (patches, tokens)


def test_tiles_are_those_of_the_largest_pinpoint() -> None:
    """LLaVA-OneVision cuts up to 36 tiles, of which it keeps the features of nine; LLaVA-NeXT four."""
    tile = {"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 128}
    tile |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 384, "patch_size": 14}
    outer = {"image_grid_pinpoints": [[384, 768], [2304, 2304]], "vision_aspect_ratio": "anyres_max_9"}
    found = pinpoints(TowerFacts(Keys("m", outer), Keys("m", tile), 64))
    assert (found["patches"], found["tokens"]) == (37 * 729, 10 * 729)
    found = pinpoints(TowerFacts(Keys("m", {}), Keys("m", tile), 64))
    assert (found["patches"], found["tokens"]) == (5 * 729, 5 * 729)


def test_ways_out_of_a_profile_too_large() -> None:
    """Qwen2.5-VL's videos fill a 24 GB card at its whole context: a shorter one bounds them. ERNIE's may go."""
    small = estimate("Qwen/Qwen2.5-VL-7B-Instruct", "rtx-4090")
    changes = [option.change for option in what_would_fit(small)]
    assert not small.fits
    assert any(change.startswith("--max-model-len") for change in changes)
    ways = what_would_fit(estimate("baidu/ERNIE-4.5-VL-28B-A3B-PT", "h100"))
    [without] = [option for option in ways if option.change == "--limit-mm-per-prompt '{\"video\": 0}'"]
    assert without.plan.fits


def test_ernie_s_video_fills_a_card() -> None:
    """vLLM 0.32's own tower keeps 25,840 elements of 16 bits alive for each patch of a video, run block by block on
    the meta device: its rotary embedding works in 32 bits on queries and keys together. The video has 486,720."""
    row = estimate("baidu/ERNIE-4.5-VL-28B-A3B-PT", "h100").budget.activation
    measured = 486_720 * 2 * (25_840 + 588)
    assert row.size.value == pytest.approx(measured, rel=0.08)
    assert row.size.low < measured < row.size.high


def test_the_answer_says_what_the_tower_is_profiled_on() -> None:
    """A peak that no log of the tower is behind is computed, and its item named."""
    row = estimate("Qwen/Qwen2.5-VL-7B-Instruct", "h100").budget.activation
    assert (row.kind, row.why.partition(";")[0]) == ("computed", "vision tower on 1 video of 114,688 tokens")
    wide = {"max_num_batched_tokens": 32768, "max_num_seqs": 16}
    row = estimate("Qwen/Qwen3-VL-2B-Instruct", "h100", **wide).budget.activation
    assert row.why.partition(";")[0] == "vision tower on 2 images of 16,384 tokens"
    assert estimate("Qwen/Qwen3-8B", "h100").budget.activation.kind == "measured"


def test_glm_4_6v_reads_twice_the_context_of_4_5v() -> None:
    """And its processor larger videos (vLLM's recipe: 131,072 tokens)."""
    newer, older = estimate("zai-org/GLM-4.6V", "4xh200"), estimate("zai-org/GLM-4.5V", "4xh200")
    assert (newer.max_model_len, older.max_model_len) == (131072, 65536)
    assert newer.budget.activation.size.value > older.budget.activation.size.value
