"""Pictures that stay whole, of towers whose classes show and count them by rules of their own: by patches, tokens and
rows of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

from kvplan.ground.errors import KvplanError
from kvplan.memory.stated.ways import FLAG, MadeItem, Sides, SizeRule, StatedSizes
from kvplan.memory.stated.whole import fitted, resized

HUGE = 9_999_999


def _unit(asked: StatedSizes) -> int:
    """Pixels of a token's side."""
    return asked.facts["patch"] * math.isqrt(asked.facts["joined"])


def shown_at(key: str, limits: Sides) -> Callable[[StatedSizes], SizeRule]:
    """A square of the fact `key`, made to fit between limits in pixels and counted as it is made."""

    def way(asked: StatedSizes) -> SizeRule:
        side, bounds = asked.facts[key], asked.bounds(limits)

        def made(width: int, height: int) -> MadeItem:
            tokens = resized(width, height, _unit(asked), bounds)
            return MadeItem(tokens * asked.facts["joined"], tokens)

        return SizeRule(side, side, made)

    return way


def fitted_square(side: int, limits: Sides) -> Callable[[StatedSizes], SizeRule]:
    """What a square becomes between those limits, whatever size is stated: LLaVA-OneVision 2's and Kanana's.

    Source: vLLM 0.32 `models/llava_onevision2.py`, `kanana_v.py: get_image_size_with_most_features, get_dummy_mm_data`.
    """

    def way(asked: StatedSizes) -> SizeRule:
        unit = _unit(asked)
        across, down = fitted(side, side, unit, asked.bounds(limits))
        item = MadeItem(across * down * asked.facts["joined"], across * down)
        return SizeRule(across * unit, down * unit, lambda width, height: item)

    return way


# ---- patches up to a number, looked for by halving a scale: Isaac


def by_patches(asked: StatedSizes) -> SizeRule:
    """Isaac's: shown as its config lets a picture be, run as the processor's own limits do.

    Source: vLLM 0.32 `models/isaac.py: IsaacProcessingInfo`, `processors/isaac.py:
    get_image_size_for_max_num_patches, IsaacImageProcessor`.
    """
    patch, scale = asked.facts["patch"], math.isqrt(asked.facts["joined"])
    least, most = asked.count("min_num_patches", 256), asked.count("max_num_patches", 6144)
    shown = _within_patches((HUGE, HUGE), patch, scale, (0, asked.facts["most"]))

    def made(width: int, height: int) -> MadeItem:
        across, down = _within_patches((width, height), patch, scale, (least, most))
        return MadeItem(across * down, asked.facts["tokens"])

    return SizeRule(shown[0] * patch, shown[1] * patch, made)


def _within_patches(sides: Sides, patch: int, scale: int, bounds: Sides) -> Sides:
    """Columns and rows of patches, in whole tokens, between the bounds; `scale` patches a token's side."""

    def grid(by: float) -> Sides:
        across, down = (max(math.ceil(by * side / (patch * scale)), 1) * scale for side in sides)
        return across, down

    def halved(low: float, high: float, *, upwards: bool) -> Sides:
        while high - low >= 1e-5:
            middle = (low + high) / 2
            number = math.prod(grid(middle))
            if number >= bounds[0] if upwards else number > bounds[1]:
                high = middle
            else:
                low = middle
        return grid(high if upwards else low)

    number = math.prod(grid(1))
    if number < bounds[0]:
        return halved(1.0, 100.0, upwards=True)
    return grid(1) if number <= bounds[1] else halved(1e-6, 1.0, upwards=False)


# ---- the grid nearest to the picture's proportions: Muse Glimmer


def nearest_grid(asked: StatedSizes) -> SizeRule:
    """Muse Glimmer's: its class names the most tokens itself (vLLM 0.32 `models/muse_glimmer.py`)."""
    unit, most = _unit(asked), asked.facts["tokens"]
    side = math.isqrt(most) * unit

    def made(width: int, height: int) -> MadeItem:
        return MadeItem(grid_nearest(width, height, unit, most) * asked.facts["joined"], most)

    return SizeRule(side, side, made)


def grid_nearest(width: int, height: int, unit: int, most: int) -> int:
    """Tokens of the grid, up to so many, that keeps a picture's proportions (vLLM 0.32 `processors/muse_glimmer.py:
    _grid_size`)."""
    down, across = height / unit, width / unit
    ratio = across / down
    if down * across > most:
        down = (most / ratio) ** 0.5
        across = down * ratio
    rounded = {
        (d, a) for d in (math.floor(down), math.ceil(down)) for a in (math.floor(across), math.ceil(across))
    }
    held = [(d, a) for d, a in rounded if d >= 1 and a >= 1 and d * a <= most]
    held = held or [(max(1, round(down)), max(1, round(across)))]
    rows, columns = min(held, key=lambda grid: abs(grid[0] / grid[1] - height / width))
    return rows * columns


# ---- by area, or by the longer side: MiniMax M3


IMAGE_MOST, SHORTEST = 12_845_056, 112
"""`IMAGE_MAX_TOTAL_PIXELS`, `MIN_SHORT_SIDE_PIXEL` of MiniMax M3's processor."""
LEAST_AREA = 4 * 28 * 28


def by_area_or_side(asked: StatedSizes) -> SizeRule:
    """MiniMax M3's pictures: counted by flat keys, run by those of the scope too.

    Source: vLLM 0.32 `models/minimax_m3/common/mm_preprocess.py`, `processors/minimax_m3.py`.
    """
    unit, area, longest = _unit(asked), asked.facts["most_pixels"], _longest(asked.loaded)
    side = (
        min(longest, math.isqrt(IMAGE_MOST))
        if longest
        else math.isqrt(asked.loaded.count("max_pixels", area))
    )
    side = max(side // unit * unit, unit)

    def tokens(width: int, height: int, asked: StatedSizes) -> int:
        bounds = LEAST_AREA, asked.count("max_pixels", area)
        return area_or_side((width, height), unit, bounds, _longest(asked), most=IMAGE_MOST)

    counted = tokens(side, side, asked.loaded)
    return SizeRule(side, side, lambda w, h: MadeItem(tokens(w, h, asked) * asked.facts["joined"], counted))


def _longest(asked: StatedSizes) -> int:
    """Pixels of the longer side, where flags bound it; 0: they do not."""
    return asked.count("max_long_side_pixel", 1) if "max_long_side_pixel" in asked.told else 0


def longest_side(asked: StatedSizes) -> int:
    """The same, for videos."""
    return _longest(asked)


def area_or_side(sides: Sides, unit: int, bounds: Sides, longest: int, *, most: int = 0) -> int:
    """Tokens of a picture within an area, or with its longer side within so many pixels and its area within `most`."""
    width, height = sides
    if not longest:
        return resized(width, height, unit, bounds)
    long, short = max(sides), min(sides)
    scale = longest / long if long > longest else SHORTEST / short if short < SHORTEST else 1.0
    across, down = (max(round(side * scale / unit), 1) for side in sides)
    if most and across * down * unit**2 > most:
        raise KvplanError(f"{FLAG}: max_long_side_pixel {longest}: the processor refuses such large pictures")
    return across * down


# ---- told otherwise than run: MiMo-V2 Omni


def own_limits(asked: StatedSizes) -> SizeRule:
    """MiMo-V2 Omni's: counted and shown by flags, run within its config's limits.

    Source: vLLM 0.32 `models/mimo_v2_omni.py: _get_vision_info`, `processors/mimo_v2_omni.py: process_image`.
    """
    unit, joined = _unit(asked), asked.facts["joined"]
    own = 4 * unit**2, asked.facts["most_pixels"]
    told = asked.bounds(own)
    rows, columns = most_square(told[1] // unit**2)
    counted = resized(columns * unit, rows * unit, unit, told)

    def made(width: int, height: int) -> MadeItem:
        return MadeItem(math.prod(lengthened(width, height, unit, own)) * joined, counted)

    return SizeRule(columns * unit, rows * unit, made)


def lengthened(width: int, height: int, unit: int, bounds: Sides) -> Sides:
    """Columns and rows of a picture whose shorter side grows to a token (vLLM 0.32 `processors/mimo_v2_omni.py:
    _smart_resize`)."""
    if min(width, height) < unit:
        if height < width:
            width, height = int(width * unit / height), unit
        else:
            width, height = unit, int(height * unit / width)
    return fitted(width, height, unit, bounds, least=0)


def most_square(tokens: int) -> Sides:
    """Rows and columns of the most tokens up to so many whose sides stay within 1:200."""
    for n in range(max(tokens, 1), 0, -1):
        rows = next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)
        if n // rows**2 <= 200:
            return rows, n // rows
    return 1, 1


# ---- through the Transformers backend: Emu 3, HunYuan's OCR


LARGEST, SMALLEST = 10_000, 224
"""Sides of pictures that the backend shows at most and at least (vLLM 0.32 `transformers/multimodal.py`)."""


def emu3(asked: StatedSizes) -> SizeRule:
    """Emu 3's: a token for each eight pixels a side, an end to each row (transformers 5.19 `Emu3Processor`)."""
    bounds = asked.bounds((512 * 512, asked.facts["most_pixels"]))

    def made(width: int, height: int) -> MadeItem:
        across, down = fitted(width, height, 8, bounds)
        return MadeItem(asked.facts["repeated"] * across * down * 64, down * (across + 1))

    side = _backend_side([math.isqrt(asked.facts["most_pixels"])], lambda side: made(side, side).tokens)
    return SizeRule(side, side, made)


def hunyuan(asked: StatedSizes) -> SizeRule:
    """HunYuan's OCR: an end to each row and two marks; counted by flat limits, run by `size` and scopes too.

    Source: transformers 5.19 `HunYuanVLProcessor._get_num_multimodal_tokens`, `HunYuanVLImageProcessor`.
    """
    limits = 512 * 512, asked.facts["most_pixels"]
    flat = asked.loaded
    told = flat.count("min_pixels", limits[0]), flat.count("max_pixels", limits[1])
    run = asked.bounds(limits)

    def counted(side: int) -> int:
        across, down = fitted(side, side, _unit(asked), told)
        return down * (across + 1) + 2

    side = _backend_side([math.isqrt(told[1])], counted)
    most = counted(side)

    def made(width: int, height: int) -> MadeItem:
        return MadeItem(resized(width, height, _unit(asked), run) * asked.facts["joined"], most)

    return SizeRule(side, side, made)


def _backend_side(candidates: list[int], count: Callable[[int], int]) -> int:
    """The side of the square that becomes the most tokens, halved while it does."""
    side = max([*candidates, LARGEST], key=count)
    most = count(side)
    while side // 2 >= SMALLEST and count(side // 2) == most:
        side //= 2
    return side
