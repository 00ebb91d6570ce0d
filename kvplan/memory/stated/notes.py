"""dots3-note's pictures and videos.

A video is counted as three quarters of the context; its frames are thinned out and shrunk until they fit in that.
Source: vLLM 0.32 `models/dots3_note/common/processor.py: resized_size, get_dummy_mm_data`, `video.py: _solve_degrade,
_compute_target_size`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from kvplan.ground.errors import KvplanError
from kvplan.memory.stated.ways import FLAG, MadeItem, Shown, SizeRule, StatedSizes

KEYS = (
    "min_pixels",
    "max_pixels",
    "target_height",
    "target_width",
    "seq",
    "output_reserve",
    "max_new_tokens",
)
STEEPEST = 200
LEAST, MOST, OVERHEAD, FRAMES = 128, 1024, 15, 4
"""Tokens of a frame of a video, at least and at most; what stands about it; frames that are kept at least."""
PROMPT = 80
"""Tokens about the frames: 64, two ends, the system's line and the video's name."""
MOST_PIXELS, LEAST_PIXELS = 12845056, 3136

Sides = tuple[int, int]
"""Height and width."""


def picture(asked: StatedSizes) -> SizeRule:
    """Between the processor's bounds, or those told; counted as the largest whatever is told."""
    if "image_detail" in asked.told:
        raise KvplanError(
            f"{FLAG}: image_detail names sizes of a file of the checkpoint; say min_pixels, max_pixels"
        )
    joined = asked.facts["patches"] // asked.facts["tokens"]
    unit = asked.facts["patch"] * math.isqrt(joined)
    bounds = asked.count("min_pixels", LEAST_PIXELS), asked.count("max_pixels", MOST_PIXELS)

    def made(width: int, height: int) -> MadeItem:
        height, width = asked.count("target_height", height), asked.count("target_width", width)
        if min(height, width) < unit // 4 or max(height, width) > STEEPEST * min(height, width):
            raise KvplanError(f"an item of {width} x {height} pixels: its processor refuses its sides")
        rows, columns = _resized((height, width), bounds, unit)
        return MadeItem(rows * columns * joined, asked.facts["tokens"])

    tokens = MOST_PIXELS // unit**2
    rows = next(n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0)
    return SizeRule(tokens // rows * unit, rows * unit, made)


def frames(shown: Shown) -> Mapping[str, int]:
    """Frames that are kept of those that are stated, each as a picture once it is shrunk."""
    assert shown.way is not None
    most = shown.facts["tokens"]
    counted = max(shown.context - shown.context // 4, 1)
    dummy = max(FRAMES, -(-counted // most))
    dummy = min(dummy, shown.frames or dummy)
    width = min(shown.way.width, shown.told.get("width", shown.way.width))
    height = min(shown.way.height, shown.told.get("height", shown.way.height))
    unit = shown.way.width // math.isqrt(shown.facts["tokens"])
    kept, cap = _degraded((height, width), dummy, _room(shown), unit)
    rows, columns = _resized((height, width), (LEAST * unit**2, cap * unit**2), unit)
    each = shown.way.made(columns * unit, rows * unit).patches
    return {"frames": 1, "frame_tokens": counted, "frames_run": 1, "frame_patches": min(kept, dummy) * each}


def _room(shown: Shown) -> int:
    """Tokens that frames may become in all."""
    keys = StatedSizes(shown.facts, shown.keys)
    context = keys.count("seq", shown.context)
    kept = max(keys.count("output_reserve", context // 4, low=0), keys.count("max_new_tokens", 0, low=0))
    if kept >= context:
        raise KvplanError(f"{FLAG}: output_reserve and max_new_tokens must leave room for a video")
    return max(LEAST + OVERHEAD, context - kept - PROMPT)


def _resized(sides: Sides, bounds: Sides, unit: int) -> Sides:
    """Rows and columns of whole tokens, once their pixels are between the bounds."""
    height, width = sides
    rows, columns = (max(1, round(side / unit)) for side in sides)
    if rows * columns * unit**2 > bounds[1]:
        shrink = math.sqrt(height * width / bounds[1])
        return max(1, math.floor(height / shrink / unit)), max(1, math.floor(width / shrink / unit))
    if rows * columns * unit**2 < bounds[0]:
        grow = math.sqrt(bounds[0] / (height * width))
        rows, columns = math.ceil(height * grow / unit), math.ceil(width * grow / unit)
        if rows * columns * unit**2 > bounds[1]:
            shrink = math.sqrt(rows * columns * unit**2 / bounds[1])
            rows, columns = (max(1, math.floor(n / shrink)) for n in (rows, columns))
    return rows, columns


def _degraded(sides: Sides, seconds: int, room: int, unit: int) -> tuple[int, int]:
    """Frames, one a second at most, and tokens of each at most, by one scale for both that the room allows."""
    own = max(1, round(sides[0] / unit)) * max(1, round(sides[1] / unit))
    most = min(MOST, max(own, LEAST))
    need = max(1, (room + PROMPT - 2240) // (LEAST + 15))
    hard = 1 << max(need - 1, 1023).bit_length()

    def tried(scale: float) -> tuple[int, int, int]:
        number = max(FRAMES, min(round(seconds * (0.2 + scale * 0.8)), hard))
        cap = round(LEAST + scale * (most - LEAST))
        rows, columns = _resized(sides, (LEAST * unit**2, max(LEAST, cap) * unit**2), unit)
        return number * (rows * columns + OVERHEAD), number, cap

    if tried(1.0)[0] <= room:
        return tried(1.0)[1:]
    if tried(0.0)[0] > room:
        floor = tried(0.0)[0] // tried(0.0)[1]
        return max(FRAMES, min(room // floor, hard)), LEAST
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tried(middle)[0] <= room else (low, middle)
    return tried(low)[1:]
