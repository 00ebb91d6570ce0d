"""GLM's largest images and videos: a budget of pixels that the frames of an item share, two of them at least.

The most frames are looked for as vLLM does, by the tokens that each number of them becomes: these neither rise nor fall
throughout, as frames are counted in pairs, to the nearest, and sides in whole tokens. Processors since GLM-4.6V count a
video by its budget, and add the marks around 320 pairs of frames and their times; those before count what they make.

Source: vLLM 0.32 `models/glm4_1v.py: get_mm_max_tokens_per_item, _get_vision_info, _get_max_video_frames`,
`models/glm5next/common/multimodal.py`; `smart_resize` of transformers' `glm4v` and `glm5_next`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvplan.engines.flags import ResolvedArgs
from kvplan.engines.mm_limits import mm_limit, mm_sizes
from kvplan.memory.item_sizes import flat_keys, options, stated_pixels

SIDE = 28
"""Pixels of a token's side: two patches of 14."""
MOST_FRAMES = 600
LEAST = 112 * 112
HUGE = 9999999
MARKS = 320 * (2 + 4) + 2
"""Of a video's pairs: its two ends, four tokens of its time ("299", ".", "0", " seconds" as GLM's tokenizer splits),
and the video's own two ends."""

Sides = tuple[int, int]


def glm_facts(facts: Mapping[str, int], args: ResolvedArgs) -> dict[str, int]:
    """The facts of the largest image and video of this context, under the sizes that flags state."""
    own = facts["image_pixels"], facts["video_pixels"]
    bounds = [
        _bounds(args.mm_processor_kwargs, kind, n) for kind, n in zip(("image", "video"), own, strict=True)
    ]
    (image, made_image), (video, made_video) = bounds
    exact = "exact" in facts
    shape = _factored(image) if exact else _fitted((HUGE, HUGE), 1, (LEAST, image))
    sizes = [mm_sizes(args.limit_mm_per_prompt, kind) for kind in ("image", "video")]
    counted = _tokens(_resized(shape, 1, (LEAST, image), exact), 1)
    beside = counted if mm_limit(args.limit_mm_per_prompt, "image") else 0
    frames = [
        _most_frames(shape, room, video, exact) for room in (args.max_model_len - beside, args.max_model_len)
    ]
    frames = [max(min(n, sizes[1].get("num_frames", n)), 2) for n in frames]
    run_image = _tokens(_resized(_cut(shape, sizes[0]), 1, made_image, exact), 1)
    each, run = (_tokens(_resized(_cut(shape, sizes[1]), n, made_video, exact), n) for n in frames)
    if "by_budget" in facts:
        each = video // (2 * SIDE**2) + MARKS
    else:
        counted = run_image
    made = {"patches": 4 * run_image, "tokens": counted, "frames": 1, "frame_tokens": each}
    return {**facts, **made, "frames_run": 1, "frame_patches": 4 * run}


def _bounds(text: str | None, kind: str, pixels: int) -> tuple[int, Sides]:
    """Pixels that vLLM reckons with, and those between which the processor makes the item.

    vLLM reads flat keys; the processor reads `size`, flat or of its own scope, and knows no `max_pixels`.
    """
    told = options(text, kind)
    size: Mapping[str, Any] = told.get("size") or {}
    flat = flat_keys(text)
    ours = flat.get("max_pixels") or (flat.get("size") or {}).get("longest_edge") or pixels
    made = size.get("shortest_edge") or LEAST, size.get("longest_edge") or pixels
    return stated_pixels(kind, ours), (stated_pixels(kind, made[0]), stated_pixels(kind, made[1]))


def _cut(shape: Sides, told: Mapping[str, int]) -> Sides:
    height, width = shape
    return min(height, told.get("height", height)), min(width, told.get("width", width))


def _most_frames(shape: Sides, room: int, pixels: int, exact: bool) -> int:
    """Frames of the video with the most tokens that the room holds; one where none does."""
    most, found = 0, 1
    for n in range(1, MOST_FRAMES + 1):
        tokens = _tokens(_resized(shape, n, (LEAST, pixels), exact), n)
        if most < tokens <= room:
            most, found = tokens, n
    return found


def _tokens(shape: Sides, frames: int) -> int:
    """Tokens of so many frames of that size, two of them a time."""
    return -(-frames // 2) * (shape[0] // SIDE) * (shape[1] // SIDE)


def _resized(shape: Sides, frames: int, bounds: Sides, exact: bool) -> Sides:
    return _packed(shape, frames, bounds[1]) if exact else _fitted(shape, frames, bounds)


def _fitted(shape: Sides, frames: int, bounds: Sides) -> Sides:
    """Height and width in whole tokens, once all frames fit between the bounds.

    >>> _fitted((9999999, 9999999), 1, (LEAST, 9633792))
    (2184, 2184)
    """
    height, width = shape
    frames = max(frames, 2)
    if min(shape) < SIDE:
        grow = max(SIDE / height, SIDE / width)
        height, width = int(height * grow), int(width * grow)
    tall, wide = (round(side / SIDE) * SIDE for side in (height, width))
    area = round(frames / 2) * 2 * tall * wide
    if area > bounds[1]:
        shrink = math.sqrt(frames * height * width / bounds[1])
        tall, wide = (max(SIDE, math.floor(side / shrink / SIDE) * SIDE) for side in (height, width))
    elif area < bounds[0]:
        grow = math.sqrt(bounds[0] / (frames * height * width))
        tall, wide = (math.ceil(side * grow / SIDE) * SIDE for side in (height, width))
    return tall, wide


def _packed(shape: Sides, frames: int, pixels: int) -> Sides:
    """The largest canvas of whole tokens that holds a picture of these proportions and keeps all frames within."""
    height, width = shape
    frames = max(2, round(frames / 2) * 2)
    tall, wide = _up(height), _up(width)
    if frames * tall * wide <= pixels:
        return tall, wide
    tall = wide = SIDE
    low, high = 1, height
    while low <= high:
        middle = (low + high) // 2
        tried = _up(middle), _up(max(1, width * middle // height))
        if frames * tried[0] * tried[1] <= pixels:
            (tall, wide), low = tried, middle + 1
        else:
            high = middle - 1
    return tall, wide


def _up(side: int) -> int:
    return -(-side // SIDE) * SIDE


def _factored(pixels: int) -> Sides:
    """Sides of exactly as many tokens as the budget has, as equal as they can be.

    >>> _factored(8000 * 2 * 28 * 28)
    (2240, 2800)
    """
    tokens = max(1, pixels // (2 * SIDE**2))
    rows = next(n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0)
    return rows * SIDE, tokens // rows * SIDE
