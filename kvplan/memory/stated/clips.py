"""Videos of towers whose classes show and count them by rules of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kvplan.memory.stated.grids import (
    LEAST_AREA,
    area_or_side,
    grid_nearest,
    lengthened,
    longest_side,
)
from kvplan.memory.stated.ways import Shown, Sides
from kvplan.memory.stated.whole import resized

Facts = Mapping[str, int]
QWEN2 = 3136, 12_845_056
"""Pixels at least and at most of Qwen 2's published processors."""


def _pairs(frames: int) -> int:
    return -(-frames // 2)


def _unit(shown: Shown) -> int:
    return shown.facts["patch"] * math.isqrt(shown.facts["joined"])


def _clipped(shown: Shown, sides: Sides) -> Sides:
    """Width and height that are shown once sides are stated."""
    width, height = sides
    return min(width, shown.told.get("width", width)), min(height, shown.told.get("height", height))


def glimmer(shown: Shown) -> Facts:
    """Muse Glimmer's: pairs of frames of 144 tokens at most (vLLM 0.32 `models/muse_glimmer.py`)."""
    most, unit = shown.facts["frame_tokens"], _unit(shown)
    side = math.isqrt(most) * unit
    tokens = grid_nearest(*_clipped(shown, (side, side)), unit, most)
    fewer = {"most_run": _pairs(shown.frames)} if shown.frames else {}
    return {"frame_patches": tokens * shown.facts["joined"], **fewer}


def minimax(shown: Shown) -> Facts:
    """MiniMax M3's: pairs of frames of as many tokens as an area has, of sides as equal as they can be.

    Source: vLLM 0.32 `models/minimax_m3/common/mm_preprocess.py: get_video_size_with_most_features`.
    """
    unit, area, flat = _unit(shown), 768 * 28 * 28, shown.asked.loaded
    counted, longest = flat.count("max_pixels", area), longest_side(flat)
    units = max((min(counted, longest**2) if longest else counted) // unit**2, 1)
    rows = next(n for n in range(math.isqrt(units), 0, -1) if units % n == 0)
    sides = units // rows * unit, rows * unit
    tokens = area_or_side(sides, unit, (LEAST_AREA, counted), longest)
    own = shown.asked.count("min_pixels", LEAST_AREA), shown.asked.count("max_pixels", area)
    made = area_or_side(_clipped(shown, sides), unit, own, longest_side(shown.asked))
    fewer = {"most_run": _pairs(shown.frames)} if shown.frames else {}
    return {"frame_tokens": tokens, "frame_patches": made * shown.facts["joined"], **fewer}


def mimo(shown: Shown) -> Facts:
    """MiMo-V2 Omni's: counted by flags, a pair's tokens for each frame; run in pairs that share a video's pixels.

    Source: vLLM 0.32 `models/mimo_v2_omni.py: get_num_frames_with_most_features, _get_vision_info`,
    `processors/mimo_v2_omni.py: process_video`.
    """
    assert shown.way is not None
    unit, joined, counted = _unit(shown), shown.facts["joined"], shown.way.clipped({}).tokens
    fitting = max(min(shown.context // counted, 14), 1)
    run = min(fitting, shown.frames or fitting)
    whole = shown.facts["most_patches"] // joined * unit**2
    most = max(4 * unit**2, min(whole * 2 // run, shown.facts["frame_most"]))
    sides = _clipped(shown, (shown.way.width, shown.way.height))
    patches = math.prod(lengthened(*sides, unit, (4 * unit**2, most))) * joined
    sizes = {"frames": 14, "frame_tokens": counted, "frames_run": 1}
    return {**sizes, "frame_patches": _pairs(run) * patches, "most_patches": 1 << 40}


def hyperclovax(shown: Shown) -> Facts:
    """HyperCLOVA X Vision 2's: 16 frames of its image's size, in pairs, counted as they are made.

    Under the limits that Qwen 2's processors publish, as its own are not known.
    Source: vLLM 0.32 `models/hyperclovax_vision_v2.py: get_dummy_mm_data`.
    """
    side, joined = shown.facts["side"], shown.facts["joined"]
    bounds = shown.asked.bounds(QWEN2)
    tokens = resized(*_clipped(shown, (side, side)), _unit(shown), bounds)
    pairs = _pairs(min(16, shown.frames or 16))
    return {"frame_tokens": pairs * tokens, "frame_patches": pairs * tokens * joined}


def as_pictures(shown: Shown) -> Facts:
    """Frames as the picture, whatever is stated of them (vLLM 0.32 `models/llava_onevision2.py`)."""
    return {"frame_tokens": shown.facts["tokens"], "frame_patches": shown.facts["patches"]}
