"""Pictures that are cut into tiles by their size, or twice."""

from __future__ import annotations

import math

from kvplan.memory.stated.tiles import TILE_KEYS, closest, grids_of, tilings
from kvplan.memory.stated.ways import MadeItem, SizeRule, StatedSizes
from kvplan.memory.stated.whole import fitted

TWICE_KEYS = (*TILE_KEYS, "use_msac")


def twice(asked: StatedSizes) -> SizeRule:
    """H2OVL's: InternVL's tiles, and where its config says so as many again of other columns and rows, one whole.

    Source: vLLM 0.32 `models/h2ovl.py`, `processors/h2ovl.py: get_num_image_tokens, image_to_pixel_values_h2ovl`.
    """
    side, most = asked.facts["tile_side"], asked.count("max_dynamic_patch", asked.facts["tiles"] - 1)
    least = asked.count("min_dynamic_patch", 1)
    if not asked.flag("dynamic_image_size", True):
        least = most = 1
    again = asked.flag("use_msac", bool(asked.facts["twice"]))
    whole = asked.flag("use_thumbnail", True)
    known, more = tilings(1 if again else least, most), grids_of(3, most)

    def made(width: int, height: int) -> MadeItem:
        wide, tall = closest(width, height, known, side)
        tiles = wide * tall + ((whole or again) and wide * tall > 1)
        if again:
            others = [(w, t) for w, t in more if wide % w and tall % t]
            wide, tall = closest(width, height, others, side)
            tiles += wide * tall - (wide * tall == 1)
        return MadeItem(tiles * asked.facts["tile_patches"], tiles * asked.facts["tile_tokens"])

    offered = tilings(least, most + (whole and most > 1))
    wide, tall = max(offered, key=lambda grid: made(grid[0] * side, grid[1] * side).tokens)
    return SizeRule(wide * side, tall * side, made)


LARGE_KEYS = (
    *("max_image_tokens", "min_image_tokens", "max_pixels_tolerance", "min_tiles", "max_tiles"),
    *("tile_size", "do_image_splitting", "use_thumbnail"),
)


def large_alone(asked: StatedSizes) -> SizeRule:
    """LFM2-VL's: whole within so many tokens; cut only where it is larger than some multiple of them.

    vLLM counts tiles that `do_image_splitting` does not let it cut. Source: vLLM 0.32 `models/lfm2_vl.py:
    get_image_size_with_most_features, _get_image_feature_grid_size, get_image_repl`; transformers'
    `Lfm2VlImageProcessor`.
    """
    patch, joined = math.isqrt(asked.facts["pixels"] // 3), asked.facts["patches"] // asked.facts["tokens"]
    unit, tile = patch * math.isqrt(joined), asked.count("tile_size", 512)
    most, least = asked.count("max_image_tokens", asked.facts["tokens"]), asked.count("min_image_tokens", 64)
    large = most * asked.number("max_pixels_tolerance", 2.0)
    known = tilings(asked.count("min_tiles", 2), asked.count("max_tiles", 10))
    cut, beside = asked.flag("do_image_splitting", True), asked.flag("use_thumbnail", True)
    each = math.ceil(tile // patch / math.isqrt(joined)) ** 2

    def made(width: int, height: int) -> MadeItem:
        across, down = fitted(width, height, unit, (least * unit**2, most * unit**2))
        whole = across * down
        area = math.prod(max(round(side / unit), 1 / math.isqrt(joined)) for side in (width, height))
        wide, tall = closest(width, height, known, tile) if area > large else (1, 1)
        tiles = wide * tall
        if tiles == 1:
            return MadeItem(whole * joined, whole)
        if not cut:
            return MadeItem(whole * joined, tiles * each + whole)
        run = tiles * (tile // patch) ** 2 + beside * whole * joined
        return MadeItem(run, tiles * each + (whole if beside else each))

    side = int(math.sqrt(most) * unit)
    return SizeRule(side, side, made)
