"""Pictures that are resized as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable

from kvplan.ground.errors import KvplanError
from kvplan.memory.stated.ways import FLAG, MadeItem, Sides, SizeRule, StatedSizes
from kvplan.models.towers.largest import KIMI_PATCHES, kimi_side

SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""What Gemma 4's processors may make of a picture."""


def pan_and_scan(asked: StatedSizes) -> SizeRule:
    """Gemma 3's: crops of a long picture beside the whole, 256 tokens each.

    Source: vLLM 0.32 `models/gemma3_mm.py: get_num_crops, get_image_size_with_most_features`; defaults of
    transformers' `Gemma3ProcessorKwargs`.
    """
    most = asked.count("pan_and_scan_max_num_crops", 4)
    least, steep = (
        asked.count("pan_and_scan_min_crop_size", 256),
        asked.number("pan_and_scan_min_ratio_to_activate", 1.2),
    )
    patches, tokens, side = (asked.facts[key] for key in ("patches", "tokens", "image"))

    def crops(width: int, height: int) -> int:
        long, short = max(width, height), min(width, height)
        if not asked.flag("do_pan_and_scan", False) or long / short < steep:
            return 0
        found = min(most, max(2, min(long // least, math.floor(long / short + 0.5))))
        return found if min(math.ceil(long / found), short) >= least else 0

    def made(width: int, height: int) -> MadeItem:
        pictures = crops(width, height) + 1
        return MadeItem(pictures * patches, pictures * tokens)

    return SizeRule(side, most * side, made)


def soft_tokens(asked: StatedSizes) -> SizeRule:
    """Gemma 4's: patches for so many tokens, filled up whatever the picture (vLLM 0.32 `models/gemma4_mm.py`)."""
    patches, tokens = asked.facts["patches"], asked.facts["tokens"]
    told = asked.count("max_soft_tokens", tokens)
    if told not in SOFT_TOKENS:
        known = ", ".join(map(str, SOFT_TOKENS))
        raise KvplanError(f"{FLAG}: max_soft_tokens {told}: Gemma 4's processors take {known}")
    return SizeRule(224, 224, lambda width, height: MadeItem(patches // tokens * told, told))


def pixtral(asked: StatedSizes) -> SizeRule:
    """Pixtral's: the longer side within a limit, both rounded up to whole tokens.

    Source: vLLM 0.32 `models/mistral3.py: get_vision_encoder_info, get_patch_grid_size`.
    """
    most = asked.edge("longest_edge", asked.facts.get("side", 1540))
    return _rounded_up(asked, most, most)


def pixtral_by_config(asked: StatedSizes) -> SizeRule:
    """LightOnOCR's: run by the processor's limit, counted by the config's (vLLM 0.32 `models/lightonocr.py`)."""
    return _rounded_up(asked, asked.facts["side"], asked.edge("longest_edge", asked.facts["side"]))


def _rounded_up(asked: StatedSizes, counted: int, run: int) -> SizeRule:
    joined = asked.facts.get("joined", 4)
    unit = asked.facts["patch"] * math.isqrt(joined)

    def tokens(width: int, height: int, most: int) -> int:
        ratio = max(width / most, height / most, 1)
        width, height = (math.floor(side / ratio) for side in (width, height))
        return -(-width // unit) * -(-height // unit)

    return SizeRule(
        counted, counted, lambda w, h: MadeItem(tokens(w, h, run) * joined, tokens(w, h, counted))
    )


def kimi_vl(asked: StatedSizes) -> SizeRule:
    """Kimi-VL's: shrunk to the limit of patches, padded to whole tokens."""
    limit = asked.count("in_token_limit", KIMI_PATCHES)

    def made(width: int, height: int) -> MadeItem:
        tokens = math.prod(kimi_side(width, height, asked.facts["patch"], limit))
        return MadeItem(4 * tokens, tokens)

    return SizeRule(1024, 1024, made)


def kimi_k3(asked: StatedSizes) -> SizeRule:
    """Kimi K3's: shrunk to 65,536 patches and 512 a side, padded to whole tokens.

    Source: vLLM 0.32 `models/kimi_k3/common/mm_preprocess.py: get_max_image_size`, `processors/
    kimi_k25_vision_fused.py: navit_resize_image`.
    """
    patch, limit, side = asked.facts["patch"], 65536, 512
    unit, edge = 2 * patch, side * patch

    def made(width: int, height: int) -> MadeItem:
        scale = min(1.0, math.sqrt(limit / (max(1.0, width // patch) * max(1.0, height // patch))))
        scale = min(scale, edge / width, edge / height)
        width, height = (min(max(1, int(n * scale)), edge) for n in (width, height))
        tokens = -(-width // unit) * -(-height // unit)
        return MadeItem(4 * tokens, tokens)

    steps = [min((n + 1) * patch - 1, edge) for n in range(side + 1)]
    largest = max(((w, h) for i, w in enumerate(steps) for h in steps[i:]), key=lambda s: made(*s).tokens)
    return SizeRule(*largest, made)


STEEPEST = 200


def within(
    limits: Sides,
    *,
    edges: tuple[str, str] = ("shortest_edge", "longest_edge"),
    exact: bool = False,
    lengthened: bool = False,
    rows_first: bool = False,
) -> Callable[[StatedSizes], SizeRule]:
    """Pictures within so many pixels, at least and at most, in whole tokens: Qwen's way and its kin.

    `exact`: the largest has as many tokens as the limit, of sides as equal as they can be; else it is a square that is
    shrunk, or `rows_first` a rectangle of its rows. `lengthened`: a side shorter than a token grows to one, the other
    with it. `edges`: what `size` calls the limits. Source: vLLM 0.32 `models/qwen2_vl.py`, `keye.py`,
    `ernie45_vl.py`, `paddleocr_vl.py: smart_resize, _get_vision_info`.
    """

    def way(asked: StatedSizes) -> SizeRule:
        joined = asked.facts.get("joined", 4)
        unit = asked.facts["patch"] * math.isqrt(joined)
        bounds = asked.bounds(limits, edges)

        def made(width: int, height: int) -> MadeItem:
            tokens = resized(width, height, unit, bounds, lengthened=lengthened)
            return MadeItem(tokens * joined, tokens)

        if rows_first:  # as many whole columns as rows of the square leave
            tokens = bounds[1] // unit**2
            rows = math.isqrt(tokens)
            return SizeRule(tokens // rows * unit, rows * unit, made)
        if not exact:
            side = math.floor(math.sqrt(bounds[1]) / unit) * unit
            return SizeRule(side, side, made)
        rows, columns = factors(bounds[1] // unit**2)
        return SizeRule(columns * unit, rows * unit, made)

    return way


def factors(tokens: int) -> Sides:
    """Rows and columns of the most tokens up to so many, of sides as equal as they can be."""
    for n in range(max(tokens, 1), 0, -1):
        rows = next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)
        if n // rows**2 <= STEEPEST:
            return rows, n // rows
    return 1, 1


def resized(
    width: int, height: int, unit: int, bounds: Sides, *, lengthened: bool = False, frames: int = 1
) -> int:
    """Tokens of a picture, or of each of frames that share the bounds, whose sides are made whole and whose area fits.

    `lengthened`: a side shorter than a token grows to one, the other with it.
    """
    if lengthened and height < unit:
        width, height = round(width * unit / height), unit
    if lengthened and width < unit:
        width, height = unit, round(height * unit / width)
    if max(width, height) > STEEPEST * min(width, height):
        raise KvplanError(f"an item of {width} x {height} pixels: its processor refuses sides beyond 1:200")
    across, down = fitted(width, height, unit, bounds, least=0 if lengthened else 1, frames=frames)
    return across * down


def fitted(
    width: float, height: float, unit: int, bounds: Sides, *, least: int = 1, frames: int = 1
) -> Sides:
    """Columns and rows of whole tokens, so many at least each way, whose area fits between the bounds."""
    across, down = (max(round(side / unit), least) for side in (width, height))
    if frames * across * down * unit**2 > bounds[1]:
        shrink = math.sqrt(frames * width * height / bounds[1])
        across, down = (max(math.floor(side / shrink / unit), least) for side in (width, height))
    elif frames * across * down * unit**2 < bounds[0]:
        grow = math.sqrt(bounds[0] / (frames * width * height))
        across, down = (math.ceil(side * grow / unit) for side in (width, height))
    return across, down


def ovis2_5(asked: StatedSizes) -> SizeRule:
    """Ovis 2.5's: 1,792 x 1,792 at most, in whole tokens, and two marks (vLLM 0.32 `processors/ovis2_5.py:
    smart_resize, construct_visual_placeholders`)."""
    joined = asked.facts["joined"]
    unit = asked.facts["patch"] * math.isqrt(joined)
    bounds = asked.count("min_pixels", 448**2), asked.count("max_pixels", 1792**2)

    def made(width: int, height: int) -> MadeItem:
        if min(width, height) < unit:
            grow = unit / min(width, height)
            width, height = (unit if side < unit else round(side * grow) for side in (width, height))
        elif max(width, height) > STEEPEST * min(width, height):
            width, height = (min(side, STEEPEST * min(width, height)) for side in (width, height))
        across, down = (round(side / unit) for side in (width, height))
        if across * down * unit**2 > bounds[1]:
            shrink = math.sqrt(width * height / bounds[1])
            across, down = (math.floor(side / shrink / unit) for side in (width, height))
        elif across * down * unit**2 < bounds[0]:
            grow = math.sqrt(bounds[0] / (width * height))
            across, down = (math.ceil(side * grow / unit) for side in (width, height))
        return MadeItem(across * down * joined, across * down + 2)

    return SizeRule(1792, 1792, made)


def inkling(asked: StatedSizes) -> SizeRule:
    """Inkling's: twice as large up to 2,048 pixels, patches of `patch` and one more to each row.

    Source: vLLM 0.32 `processors/inkling.py: _scaled_image_dimensions, _encode_image_bytes`.
    """
    if "patch" not in asked.facts:  # without eyes
        return SizeRule(1, 1, lambda width, height: MadeItem(asked.facts["patches"], asked.facts["tokens"]))
    patch = asked.facts["patch"]

    def made(width: int, height: int) -> MadeItem:
        long = max(width, height)
        ratio = min(2.0 * long, float(max(2048, long))) / long
        across, down = (max(1, math.floor(side * ratio + 0.5)) for side in (width, height))
        patches = -(-down // patch) * (across // patch + 1)
        return MadeItem(patches, patches)

    return SizeRule(4 * patch, 4 * patch, made)
