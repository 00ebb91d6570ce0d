"""Pictures that are shrunk until their tokens, or their patches, fit."""

from __future__ import annotations

import math
from collections.abc import Callable

from kvplan.memory.stated.ways import MadeItem, SizeRule, StatedSizes

Sides = tuple[int, int]
"""Height and width."""


def deepseek_v4(asked: StatedSizes) -> SizeRule:
    """DeepSeek V4's: an even number of rows, an end to each, three tokens fewer than are counted at most.

    Source: vLLM 0.32 `models/deepseek_v4/common/mm_preprocess.py: grid_tokens, safe_resize,
    get_image_size_with_most_features`.
    """
    most, patch, cell = asked.facts["tokens"] - 3, asked.facts["patch"], _cell(asked)
    room = most - 3
    steepest = asked.facts["widest"] / 1000

    def tokens(height: float, width: float) -> int:
        rows, columns = (-(-math.floor(side / patch) * patch // cell) for side in (height, width))
        pairs = (rows + 1) // 2
        return 2 * pairs * (columns + 1) + 2 + pairs * (columns + 1) % 2 * 2

    def within(height: float, width: float, budget: int) -> Sides:
        ratio = height / width
        across = math.sqrt((budget - 2) / ratio + 0.25) - 0.5
        if across < 1:
            return (budget - 2) // 2 // 2 * 2 * cell, cell
        if across * ratio < 2:
            return 2 * cell, ((budget - 2) // 2 - 1) * cell
        rows, columns = math.floor(across * ratio) // 2 * 2, math.floor(across)
        return _shrunk(height, width, (rows * cell, columns * cell), patch)

    def fit(height: float, width: float) -> Sides:
        sides, budget = _whole(height, width, patch), room
        while tokens(*sides) > room:
            sides, budget = within(height, width, budget), budget - 1
        return sides

    grids = (
        (rows * columns, tokens(rows * cell, columns * cell), rows, columns)
        for rows in range(1, room)
        for columns in range(1, (room - 2) // rows)
        if not steepest or columns <= rows * steepest
    )
    best = max(grid for grid in grids if grid[1] <= room)
    return SizeRule(best[3] * cell, best[2] * cell, _made(asked, fit))


def deepseek_v41(asked: StatedSizes) -> SizeRule:
    """DeepSeek V4.1's: an end to each row of tokens and two marks (vLLM 0.32 `models/deepseek_v41/common/
    mm_preprocess.py: solve_resize_ratio, get_image_size_with_most_features`)."""
    most, patch, cell = asked.facts["tokens"], asked.facts["patch"], _cell(asked)
    joined, steepest = cell // patch, asked.facts["widest"] / 1000

    def fit(height: float, width: float) -> Sides:
        sides = _whole(height, width, patch)
        rows, columns = (-(-side // cell) for side in sides)
        if rows * (columns + 1) + 2 <= most:
            return sides
        ratio = height / width
        across = math.sqrt((most - 2) / ratio + 0.25) - 0.5
        if across < 1:
            return (most - 2) // 2 * cell, cell
        if across * ratio < 1:
            return cell, (most - 3) * cell
        down = math.floor(across * ratio)
        return _shrunk(height, width, (down * cell, math.floor(across) * cell), patch)

    best = 0, 0
    for rows in range(1, (most - 2) // 2 + 1):
        down, across = rows * joined, ((most - 2) // rows - 1) * joined
        across = min(across, math.ceil(down * steepest)) if steepest else across
        best = max(best, (down, across), key=lambda sides: sides[0] * sides[1])
    height, width = (side * patch for side in best)
    grown = 1
    while height * width * grown**2 < asked.facts["least_pixels"]:
        grown *= 2
    return SizeRule(width * grown, height * grown, _made(asked, fit))


def _cell(asked: StatedSizes) -> int:
    """Pixels of a token's side."""
    return asked.facts["patch"] * math.isqrt(asked.facts["joined"])


def _whole(height: float, width: float, patch: int) -> Sides:
    return math.ceil(height / patch) * patch, math.ceil(width / patch) * patch


def _shrunk(height: float, width: float, into: Sides, patch: int) -> Sides:
    """Whole patches of a picture that is scaled into those sides."""
    scale = min(into[1] / width, into[0] / height)
    return math.floor(height * scale / patch) * patch, math.floor(width * scale / patch) * patch


def _made(asked: StatedSizes, fit: Callable[[float, float], Sides]) -> Callable[[int, int], MadeItem]:
    """Of a picture that is no wider than allowed, and grown to the least number of pixels."""
    widest, least, patch = asked.facts["widest"] / 1000, asked.facts["least_pixels"], asked.facts["patch"]

    def made(wide: int, height: int) -> MadeItem:
        width = min(wide, height * widest) if widest else float(wide)
        if width * height < least:
            grow = (least / (width * height)) ** 0.5
            width, height = int(width * grow), int(height * grow)
        sides = fit(height, width)
        return MadeItem(sides[0] // patch * (sides[1] // patch), asked.facts["tokens"])

    return made


def native(asked: StatedSizes) -> SizeRule:
    """Phi-4's SigLIP 2: as many whole patches as a picture has, within the processor's bounds.

    Source: vLLM 0.32 `models/phi4siglip.py: get_image_size_with_most_features`; the rule of the checkpoint's own
    `Siglip2ImageProcessorNoUpscale`, as public copies of it have it, and transformers'
    `get_image_size_for_max_num_patches`.
    """
    patch, counted = asked.facts["patch"], asked.facts["tokens"]
    least, most = (
        asked.count("min_num_patches", asked.facts["least"]),
        asked.count("max_num_patches", counted),
    )

    def made(width: int, height: int) -> MadeItem:
        patches = min(max((width // patch) * (height // patch), 1, least), most)
        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            scale = (low + high) / 2
            if _patches(width, height, patch, scale) <= patches:
                low = scale
            else:
                high = scale
        return MadeItem(_patches(width, height, patch, low), counted)

    side = math.isqrt(counted) * patch
    return SizeRule(side, side, made)


def _patches(width: int, height: int, patch: int, scale: float) -> int:
    across, down = (max(math.ceil(side * scale / patch), 1) for side in (width, height))
    return across * down


def filling(asked: StatedSizes) -> SizeRule:
    """Nemotron's, where its config bounds patches: a square as large as the context, within the bounds once it is run.

    Source: vLLM 0.32 `processors/nano_nemotron_vl.py: DynamicResolutionImageTiler.process_media, compute_params,
    width_and_height_for_max_num_tokens_available`.
    """
    patch, least, most = (asked.facts[key] for key in ("patch", "image_least", "image_most"))
    tokens = math.isqrt(max(asked.facts["context"] - 5, 1))
    room = max(4 * (asked.facts["context"] - 4), least)
    each = max(min(room, most) if most else room, least)

    def even(patches: int, beside: int, available: int) -> int:
        """Rounded up where the room allows, down otherwise."""
        up = patches + patches % 2
        return up if up * beside <= available else max(2, patches - patches % 2)

    def fit(available: int, width: int, height: int) -> int:
        down, across = (round(side / patch + 0.5) for side in (height, width))
        factor = min(math.sqrt(available / (down * across)), 1.0)
        down, across = math.floor(factor * down), math.floor(factor * across)
        if available > least > down * across:
            grow = math.sqrt(least / (down * across))
            down, across = math.ceil(grow * down), math.ceil(grow * across)
        down = even(down, across, available)
        return down * even(across, down, available)

    def made(width: int, height: int) -> MadeItem:
        patches = fit(each, width, height)
        if patches > room:
            patches = fit(max(least, patches * room // patches), width, height)
        return MadeItem(patches, tokens**2)

    side = tokens * 2 * patch
    return SizeRule(side, side, made)
