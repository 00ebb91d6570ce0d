"""Pictures that are cut into tiles, most of them beside the whole."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

from kvplan.ground.errors import KvplanError
from kvplan.memory.stated.ways import FLAG, MadeItem, SizeRule, StatedSizes

Grid = tuple[int, int]
"""Columns and rows of tiles."""


def tilings(least: int, most: int) -> list[Grid]:
    """Columns and rows that a picture may be cut into."""
    found = grids_of(least, most)
    if not found:
        raise KvplanError(f"{FLAG}: no picture has {least} tiles at least and {most} at most")
    return found


def grids_of(least: int, most: int) -> list[Grid]:
    """Columns and rows by their number; in vLLM's order, which is that of its set."""
    found = {
        (wide, tall)
        for n in range(least, most + 1)
        for wide in range(1, n + 1)
        for tall in range(1, n + 1)
        if least <= wide * tall <= most
    }
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def closest(width: int, height: int, grids: list[Grid], side: int) -> Grid:
    """The tiling nearest to a picture's sides; of equally near ones the larger, if the picture fills half of it."""
    best, nearest = (1, 1), math.inf
    for wide, tall in grids:
        away = abs(width / height - wide / tall)
        larger = away == nearest and width * height > 0.5 * side**2 * wide * tall
        if away < nearest or larger:
            best, nearest = (wide, tall), away
    return best


TILE_KEYS = ("min_dynamic_patch", "max_dynamic_patch", "dynamic_image_size", "use_thumbnail")


def dynamic(asked: StatedSizes) -> SizeRule:
    """InternVL's own: between the least and the most tiles, and the picture whole (vLLM 0.32 `models/internvl.py`)."""
    if asked.told and asked.facts.get(
        "tile_frames"
    ):  # vLLM 0.32 tells the processor of videos the same, which ends
        key = next(iter(asked.told))
        raise KvplanError(
            f"{FLAG}: this model's processor takes no {key!r}, for its videos it takes no such key"
        )
    side, most = asked.facts["tile_side"], asked.count("max_dynamic_patch", asked.facts["tiles"] - 1)
    least = asked.count("min_dynamic_patch", 1)
    if not asked.flag("dynamic_image_size", True):
        least = most = 1
    whole, grids = asked.flag("use_thumbnail", True), tilings(least, most)

    def made(width: int, height: int) -> MadeItem:
        wide, tall = closest(width, height, grids, side)
        tiles = wide * tall + (whole and wide * tall > 1)
        return MadeItem(tiles * asked.facts["tile_patches"], tiles * asked.facts["tile_tokens"])

    wide, tall = max(grids, key=lambda grid: grid[0] * grid[1])  # the first of those
    return SizeRule(wide * side, tall * side, made)


def _counted(asked: StatedSizes, tiles: int, most: int) -> MadeItem:
    """Of so many tiles; facts are of `most`."""
    return MadeItem(asked.facts["patches"] // most * tiles, asked.facts["tokens"] // most * tiles)


def _with_whole(grid: Grid) -> int:
    """Tiles, and the picture whole where they are more than one."""
    tiles = grid[0] * grid[1]
    return tiles + (tiles > 1)


def cropped(asked: StatedSizes) -> SizeRule:
    """InternVL's in transformers: the tiling nearest to the picture's proportions.

    Counted and shown whole unless flags say `crop_to_patches`, as published processors do not crop when they are
    loaded; when they are called, they do. Source: vLLM 0.32 `models/interns1.py: get_image_size_with_most_features`,
    transformers' `GotOcr2ImageProcessor`, `InternVLProcessorKwargs`, `convert_internvl_weights_to_hf.py`.
    """
    side = asked.facts.get("side") or math.isqrt(asked.facts["positions"] - 1) * asked.facts["patch"]
    loaded = asked.loaded
    least, most = loaded.count("min_patches", 1), loaded.count("max_patches", 12)
    crops = loaded.flag("crop_to_patches", False)
    whole, made = _cropping(loaded, side, crops), _cropping(asked, side, asked.flag("crop_to_patches", True))
    offered = tilings(least, most + (crops and most > 1))
    wide, tall = max(offered, key=lambda grid: whole(grid[0] * side, grid[1] * side).tokens)
    return SizeRule(wide * side, tall * side, made, whole(wide * side, tall * side).tokens)


def _cropping(asked: StatedSizes, side: int, crops: bool) -> Callable[[int, int], MadeItem]:
    least, most = asked.count("min_patches", 1), asked.count("max_patches", 12)
    known = sorted(tilings(least, most), key=lambda grid: (grid[0] * grid[1], grid[0]))

    def made(width: int, height: int) -> MadeItem:
        return _counted(
            asked, _with_whole(closest(width, height, known, side)) if crops and most > 1 else 1, 1
        )

    return made


def least_upscaled(asked: StatedSizes) -> SizeRule:
    """Cohere's: the tiling that needs the least growth, or of those that shrink it the least shrinkage.

    Source: vLLM 0.32 `models/cohere2_vision.py`, transformers' `Cohere2VisionImageProcessor`.
    """
    side, most = asked.facts["image"], asked.count("max_patches", 12)
    crops = asked.flag("crop_to_patches", True) and most > 1

    def made(width: int, height: int) -> MadeItem:
        return _counted(asked, _with_whole(_grown(width, height, side, most)) if crops else 1, 13)

    return SizeRule(side, side * most, made)


def _grown(width: int, height: int, side: int, most: int) -> Grid:
    grids = [(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if w * h <= most]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    scales = [min(w * side / width, h * side / height) for w, h in grids]
    growing = [s if s >= 1 else math.inf for s in scales]
    best = scales.index(max(scales)) if max(scales) < 1 else growing.index(min(growing))
    return grids[best]


def canvas(asked: StatedSizes) -> SizeRule:
    """Llama 4's: the canvas of tiles that distorts nothing, with the least growth and then the least area.

    Source: vLLM 0.32 `models/mllama4.py`, transformers' `Llama4ImageProcessor: get_best_fit` (scales in float32).
    """
    side, most = asked.facts["image"], asked.count("max_patches", 16)
    largest = asked.flag("resize_to_max_canvas", False)

    def made(width: int, height: int) -> MadeItem:
        return _counted(asked, _with_whole(_best_fit(width, height, side, most, largest)), 17)

    return SizeRule(side, most * side, made)


def _best_fit(width: int, height: int, side: int, most: int, largest: bool) -> Grid:
    grids = [(n // h, h) for n in range(most, 0, -1) for h in range(1, n + 1) if n % h == 0]
    scales = [min(_single(w * side / width), _single(h * side / height)) for w, h in grids]
    growing = [scale for scale in scales if scale >= 1]
    chosen = max(scales) if largest or not growing else min(growing)  # where all shrink: the least shrinkage
    kept = [grid for grid, scale in zip(grids, scales, strict=True) if scale == chosen]
    return min(kept, key=lambda grid: grid[0] * grid[1])


def _single(number: float) -> float:
    """Rounded to float32, in which processors compare; of whole numbers below 2^24 the same as dividing in it."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


def split(asked: StatedSizes) -> SizeRule:
    """Idefics 3's and SmolVLM's: the longer side grows to `size`, then both are cut.

    Source: vLLM 0.32 `models/idefics3.py`, transformers' `Idefics3ImageProcessor.get_number_of_image_patches`.
    """
    side, most = asked.facts["side"], asked.edge("longest_edge", 4 * asked.facts["side"])
    cut = asked.flag("do_image_splitting", True)

    def made(width: int, height: int) -> MadeItem:
        long, short = max(width, height), min(width, height)
        short = max(int(most / (long / short)) if width >= height else int(most * (short / long)), 1)
        short += short % 2
        tiles = -(-most // side) * -(-short // side)
        return _counted(asked, tiles + 1 if cut and most > side else 1, 17)

    return SizeRule(side, side, made)


def crops_of_336(asked: StatedSizes) -> SizeRule:
    """Phi-3 Vision's: run as `num_crops` and the whole, filled up; counted by the crops that the picture has.

    Source: vLLM 0.32 `models/phi3v.py: get_image_size_with_most_features`; `calc_hd_transform_size` of Phi-3 Vision's
    own image processor.
    """
    most = asked.count("num_crops", 4)
    each = asked.facts["patches"] // 5

    def made(width: int, height: int) -> MadeItem:
        long, short = max(width, height), min(width, height)
        ratio = long / short
        across = 1
        while across * math.ceil(across / ratio) <= most:
            across += 1
        across -= 1
        down = math.ceil(int(across * 336 / ratio) / 336)
        rows = across if width < height else down
        return MadeItem((most + 1) * each, (across * down + 1) * 144 + 1 + (rows + 1) * 12)

    return SizeRule(50, 8000, made)


def crops_of_448(asked: StatedSizes) -> SizeRule:
    """Phi-4 Multimodal's: squares of 448 and the whole, tokens of padding left out, an end to each row.

    Source: vLLM 0.32 `models/phi4mm.py: _find_target_aspect_ratio, _compute_num_image_tokens`.
    """
    most = asked.count("dynamic_hd", 36)

    def made(width: int, height: int) -> MadeItem:
        across, down = -(-width // 448), -(-height // 448)
        if across * down > most:
            across, down = closest(width, height, tilings(1, most), 448)
        scale = min(across * 448 / width, down * 448 / height)
        padding = across * 448 - int(width * scale), down * 448 - int(height * scale)
        columns, rows = (32 * n - pad // 14 for n, pad in zip((across, down), padding, strict=True))
        columns, rows = -(-columns // 2), -(-rows // 2)
        return MadeItem((across * down + 1) * 1024, 256 + 1 + rows * columns + rows + 16)

    return SizeRule(448, 448 * most, made)


def windows(asked: StatedSizes) -> SizeRule:
    """Step's: windows of 504 over a picture of 3,024 at most, and the whole.

    Source: vLLM 0.32 `transformers_utils/processors/step3_vl.py: ImagePatcher`.
    """
    window, whole = asked.facts["window_patches"], asked.facts["whole_patches"]

    def made(width: int, height: int) -> MadeItem:
        tiles, ends = _step_windows(width, height) if window else (0, 0)
        return MadeItem(max(whole, tiles * window), 169 + 2 + tiles * (81 + 2) + ends)  # one behind the other

    return SizeRule(3024, 3024, made)


def _step_windows(width: int, height: int) -> tuple[int, int]:
    """Windows of a picture, and rows of them but the last."""
    long, short = max(width, height), min(width, height)
    if short < 32 and long > 4 * short:
        width = height = short = long
    if long > 3024:
        width, height = (int(side * (3024 / long)) for side in (width, height))
        long, short = max(width, height), min(width, height)
    size = (
        (short if long / short > 1.5 else 0) if long < 728 else min(short, 504) if long / short > 4 else 504
    )
    if not size:
        return 0, 0
    across, down = (_whole_windows(side, size) for side in (width, height))
    return across * down, down - 1


def _whole_windows(side: int, size: int) -> int:
    if side < size:
        return 1
    return side // size + (side / size - side // size > 0.2)


def covering(asked: StatedSizes) -> SizeRule:
    """Ovis': the fewest parts that cover nine tenths of the picture; with the whole, and marks about them.

    Source: vLLM 0.32 `transformers_utils/processors/ovis.py: preprocess_image, construct_image_indicators`.
    """
    side, most = asked.facts["side"], asked.count("max_partition", 9)
    threshold = asked.number("covering_threshold", 0.9)
    each, tokens = asked.facts["patches"] // 10, (asked.facts["tokens"] - 11) // 10

    def made(width: int, height: int) -> MadeItem:
        rows, columns = _covered(width, height, side, most, threshold)
        parts = rows * columns
        marks = 4 + (parts - 1 if parts > 1 else 0) - 1
        whole = parts + (parts > 1)
        return MadeItem(whole * each, whole * tokens + marks)

    edge = 9 * side * asked.facts["stride"]
    return SizeRule(edge, edge, made)


def _covered(width: int, height: int, side: int, most: int, threshold: float) -> Grid:
    found = []
    for rows in range(1, most + 1):
        for columns in range(1, most // rows + 1):
            area = sum(_shrunk(r, c, side) for r in _parts(height, rows) for c in _parts(width, columns))
            found.append(((rows, columns), area / (width * height)))
    good = [one for one in found if one[1] > threshold]
    if good:
        return min(good, key=lambda one: (one[0][0] * one[0][1], -one[1]))[0]
    return min(found, key=lambda one: (-one[1], one[0][0] * one[0][1]))[0]


def _parts(side: int, n: int) -> list[int]:
    each = side // n
    return [each] * (n - 1) + [side - each * (n - 1)]


def _shrunk(height: int, width: int, side: int) -> float:
    long, short = max(width, height), min(width, height)
    return side * (short / long * side) if long > side else float(long * short)


def overlapping(
    crops: int, window: int, joint: Callable[[int, int], int], *, whole: int
) -> Callable[[StatedSizes], SizeRule]:
    """Molmo's: crops whose windows of `window` pixels lie side by side, eight patches about them, and the whole.

    `joint`: tokens of columns and rows of crops; `whole`: of the picture beside them. Source: vLLM 0.32
    `models/molmo.py`, `molmo2.py: select_tiling (in float32), get_patches_grid_size, get_num_image_tokens`.
    """
    margins = 8 * 14

    def way(asked: StatedSizes) -> SizeRule:
        most, each = asked.count("max_crops", crops), asked.facts["patches"] // (crops + 1)

        def made(width: int, height: int) -> MadeItem:
            rows, columns = _nearest(width - margins, height - margins, window, most)
            return MadeItem((rows * columns + 1) * each, joint(columns, rows) + whole)

        step, more = (336, 0) if window == 224 else (window, margins)  # Molmo's class leaves margins out
        sides = [(w * step + more, h * step + more) for w, h in _ascending(most)]
        return SizeRule(*max(sides, key=lambda s: made(*s).tokens), made)

    return way


def _ascending(most: int) -> list[Grid]:
    """Rows and columns of up to so many crops, by their number."""
    grids = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1)]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def _nearest(width: int, height: int, window: int, most: int) -> Grid:
    """Rows and columns that need the least growth; where all shrink the picture, the least shrinkage."""
    grids = _ascending(most)
    scales = [min(_single(r * window / height), _single(c * window / width)) for r, c in grids]
    growing = [scale if scale >= 1 else math.inf for scale in scales]
    return grids[scales.index(max(scales)) if max(scales) < 1 else growing.index(min(growing))]


molmo = overlapping(12, 224, lambda columns, rows: (8 * columns + 4) * (8 * rows + 4), whole=144)
"""CLIP's 24 x 24 patches; two by two become a token."""


def _with_row_ends(columns: int, rows: int) -> int:
    across, down = (-(-(19 * n + 8) // 2) for n in (columns, rows))
    return down * (across + 1)


molmo2 = overlapping(8, 266, _with_row_ends, whole=14 * 15 + 4)
"""27 x 27 patches; an end to each row, four marks."""


def candidates(asked: StatedSizes) -> SizeRule:
    """DeepSeek-VL2's: the candidate resolution that keeps the most of the picture, and the whole.

    Source: vLLM 0.32 `models/deepseek_vl2.py: get_num_image_tokens, get_image_size_with_most_features`.
    """
    side, grid = asked.facts["side"], asked.facts["grid"]
    each = asked.facts["tile_patches"]

    def made(width: int, height: int) -> MadeItem:
        wide, tall = _best(width, height, asked.shapes)
        across, down = wide // side, tall // side
        tokens = grid * (grid + 1) + down * grid * (across * grid + 1) + 1
        return MadeItem((across * down + 1) * each, tokens)

    sides = [(b, a) for a, b in asked.shapes]  # it takes their heights for widths
    return SizeRule(*max(sides, key=lambda s: made(*s).tokens), made)


def _best(width: int, height: int, shapes: tuple[Grid, ...]) -> Grid:
    """Width and height of the shape that keeps the most pixels of a picture, then wastes the fewest.

    Source: transformers' `select_best_resolution`.
    """

    def kept(shape: Grid) -> tuple[int, int]:
        scale = min(shape[0] / width, shape[1] / height)
        area = min(int(width * scale) * int(height * scale), width * height)
        return area, area - shape[0] * shape[1]

    return max(shapes, key=kept)


def pinpoints(shown: Grid | None = None, *, cut: bool = False) -> Callable[[StatedSizes], SizeRule]:
    """LLaVA-NeXT's: the pinpoint that keeps the most of the picture, its padding left out, an end to each row.

    `shown`: width and height that are profiled, where it is not the pinpoint of most tokens; `cut`: features of so many
    tiles at most are kept (`anyres_max_9`). Source: vLLM 0.32
    `models/llava_next.py`, `llava_onevision.py`, `bee.py`, `granite4_vision.py: get_num_image_tokens,
    _get_num_unpadded_features, get_image_size_with_most_features`.
    """

    def way(asked: StatedSizes) -> SizeRule:
        sides = tuple((wide, tall) for tall, wide in asked.shapes or _usual(asked.facts["side"]))
        each = asked.facts["tile_patches"]

        def made(width: int, height: int) -> MadeItem:
            across, down = (n // asked.facts["side"] for n in _best(width, height, sides))
            kept = asked.facts["kept_tiles"] if cut else 0
            tokens = _unpadded((width, height), (across, down), asked.facts["grid"], kept)
            return MadeItem((across * down + 1) * each, tokens + asked.facts["whole_tokens"])

        return SizeRule(*(shown or max(sides, key=lambda s: made(*s).tokens)), made)

    return way


def _usual(side: int) -> tuple[Grid, ...]:
    """Pinpoints of transformers' `LlavaNextConfig` and `LlavaOnevisionConfig`, where a config names none."""
    if side == 336:
        return ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    return tuple((384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7))


def _unpadded(sides: Grid, tiles: Grid, each: int, kept: int) -> int:
    """Tokens of tiles of `each` tokens a side without padding, and ends of their rows."""
    (width, height), (wide, tall) = sides, (each * n for n in tiles)
    if width / height > wide / tall:
        tall -= (tall - int(round(height * (wide / width), 7))) // 2 * 2
    else:
        wide -= (wide - int(round(width * (tall / height), 7))) // 2 * 2
    shrink = math.sqrt(tall * wide / (kept * each**2)) if kept else 0
    if shrink > 1.1:
        wide, tall = int(wide // shrink), int(tall // shrink)
    return (wide + 1) * tall


def radio(asked: StatedSizes) -> SizeRule:
    """Nemotron's: InternVL's way under `max_num_tiles`.

    Source: vLLM 0.32 `models/nano_nemotron_vl.py: get_dummy_image_size_and_max_tokens`, `nemotron_vl.py`.
    """
    side, most = asked.facts["tile_side"], asked.facts["tiles"] - 1
    grids, thumbnail = tilings(1, asked.count("max_num_tiles", most)), asked.flag("use_thumbnail", True)

    def made(width: int, height: int) -> MadeItem:
        wide, tall = closest(width, height, grids, side)
        found = wide * tall + (thumbnail and wide * tall > 1)
        return MadeItem(found * asked.facts["tile_patches"], found * asked.facts["tile_tokens"])

    wide, tall = max(grids, key=lambda grid: grid[0] * grid[1])
    return SizeRule(wide * side, tall * side, made)


def slices(joined: int) -> Callable[[StatedSizes], SizeRule]:
    """MiniCPM-V's: slices of about 448 x 448 whose number and proportions fit the picture, and the whole.

    Sides are whole groups of `joined` patches; all are filled up to the larger. Source: vLLM 0.32 `models/minicpmv.py`,
    transformers' `MiniCPMV4_6ImageProcessor: get_sliced_grid, find_best_resize, get_refine_size`, as MiniCPM-V's own.
    """

    def way(asked: StatedSizes) -> SizeRule:
        side, patch, most = asked.facts["side"], asked.facts["patch"], asked.count("max_slice_nums", 9)
        unit, queries = patch * joined, asked.facts.get("queries", 0)

        def resized(width: float, height: float, *, grow: bool) -> int:
            """Patches of a picture shrunk, or grown, to the area of one slice."""
            if width * height > side**2 or grow:
                tall = int(side / math.sqrt(width / height))
                width, height = int(tall * (width / height)), tall
            across, down = (max(round(n / unit) * unit, unit) // patch for n in (width, height))
            return across * down

        def made(width: int, height: int) -> MadeItem:
            wide, tall = _sliced(width, height, side, most)
            if wide * tall == 1:
                whole = resized(width, height, grow=True)
                return MadeItem(whole, queries or whole // 16)
            whole = resized(width, height, grow=False)
            across, down = (max(round(n / parts), 1) for n, parts in ((width, wide), (height, tall)))
            each = resized(across, down, grow=True)
            tokens = queries * (wide * tall + 1) or whole // 16 + wide * tall * (each // 16)
            return MadeItem((wide * tall + 1) * max(whole, each), tokens)

        return SizeRule(side, side * asked.facts["slices"], made)

    return way


def _sliced(width: int, height: int, side: int, most: int) -> Grid:
    """Columns and rows of slices."""
    multiple = min(math.ceil(width * height / side**2), most)
    if multiple <= 1:
        return 1, 1
    best, nearest = (1, 1), math.inf
    for n in (multiple - 1, multiple, multiple + 1):
        for rows in range(1, n + 1):
            if n == 1 or n > most or n % rows:
                continue
            away = abs(math.log(width / height) - math.log(n // rows / rows))
            if away < nearest or (away == nearest and rows > best[1]):
                best, nearest = (n // rows, rows), away
    return best
