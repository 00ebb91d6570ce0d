"""Sizes of pictures and videos that flags state, and what start-up profiles then: `--mm-processor-kwargs` bounds what a
processor makes, sizes in `--limit-mm-per-prompt` what the profiled item is made of.

The first changes the tokens by which items are counted too; the second only what is run, where a processor states its
most tokens by itself, as Qwen's do. Source: vLLM 0.32 `models/qwen2_vl.py`, `models/qwen3_vl.py:
get_mm_max_tokens_per_item, get_dummy_mm_data`, `models/internvl.py`, `multimodal/processing/dummy_inputs.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvplan.engines.flags import ResolvedArgs
from kvplan.engines.mm_limits import mm_limit, mm_sizes
from kvplan.ground.errors import KvplanError
from kvplan.memory.stated.rows import GLMS, QWENS, STATED
from kvplan.memory.stated.ways import FLAG, Shown, StatedSizes, TowerRow
from kvplan.models.spec import VisionSpec
from kvplan.models.towers.parts import heard_facts

SCOPES = {"image": "images_kwargs", "video": "videos_kwargs"}
STEEPEST = 200
"""Aspect ratio beyond which Qwen's processors refuse a picture."""
_PAIRED = {"image": (65536, 16777216), "video": (4096, 25165824)}
PUBLISHED = {"qwen3_vl": _PAIRED, "cosmos3_edge": _PAIRED}
"""Pixels at least and at most of Qwen 3 VL's published preprocessor configs, and of Cosmos 3 Edge's processors in
transformers; of Qwen 2's and 2.5's, see `QWEN2`."""
QWEN2 = (3136, 12845056)
PAIRS_OF_A_VIDEO = 7
"""14 frames (`_MAX_FRAMES_PER_VIDEO` of vLLM's `qwen2_vl.py`)."""


class Told(NamedTuple):
    """An item as flags make it."""

    patches: int
    """That are run."""
    tokens: int
    """By which it is counted."""


def states_sizes(args: ResolvedArgs) -> bool:
    """Whether any flag states a size."""
    sized = any(mm_sizes(args.limit_mm_per_prompt, kind) for kind in ("image", "video", "audio"))
    return args.mm_processor_kwargs is not None or sized


def is_sized(vision: VisionSpec, args: ResolvedArgs) -> bool:
    """Whether the table is asked what is profiled: where sizes are stated, and of some towers always."""
    row = STATED.get(vision.architecture)
    return states_sizes(args) or (row is not None and row.always)


def plans_sizes(vision: VisionSpec, facts: Mapping[str, int]) -> bool:
    """Whether stated sizes are planned for this tower."""
    return _like_qwen(vision, facts) or "video_pixels" in facts or vision.architecture in STATED


def _like_qwen(vision: VisionSpec, facts: Mapping[str, int]) -> bool:
    return "unit" in facts or vision.family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def tells_pixels(args: ResolvedArgs) -> bool:
    """Whether flags bound the pixels of a picture."""
    told = options(args.mm_processor_kwargs, "image")
    return bool(told.get("max_pixels") or (told.get("size") or {}).get("longest_edge"))


def told_facts(vision: VisionSpec, facts: Mapping[str, int], args: ResolvedArgs) -> dict[str, int] | None:
    """The facts of the largest item under those flags; None for towers of which that is not planned."""
    if "frames_apart" in facts:
        return _frames_apart(facts, args)
    if _like_qwen(vision, facts):
        return _squares(vision.family, facts, args)
    if "video_pixels" in facts:
        return dict(facts)  # GLM's, whose facts hold what flags state
    row = STATED.get(vision.architecture)
    return None if row is None else _by_row(row, vision, facts, args)


def _by_row(
    row: TowerRow, vision: VisionSpec, facts: Mapping[str, int], args: ResolvedArgs
) -> dict[str, int]:
    """The facts as a row of the table says."""
    text = args.mm_processor_kwargs
    flat, scopes = _split(text)
    if scopes and row.scoped == "refused":
        raise KvplanError(f"{FLAG}: this model's processor takes no {next(iter(scopes))}")
    told, of_video = ({**flat} if row.scoped == "idle" else options(text, kind) for kind in SCOPES)
    if row.strict and (unknown := sorted(set(told) - set(row.keys))):
        known = f"; it takes {', '.join(row.keys)}" if row.keys else ""
        raise KvplanError(f"{FLAG}: this model's processor takes no {unknown[0][:40]!r}{known}")
    found, keys = dict(facts), _of(row, told)
    way = None
    if row.way is not None:
        held = {**facts, "context": args.max_model_len}
        way = row.way(StatedSizes(held, keys, vision.shapes, _of(row, flat)))
        largest = way.made(way.width, way.height)
        made = way.clipped({} if row.fixed else mm_sizes(args.limit_mm_per_prompt, "image"))
        found |= {"patches": made.patches, "tokens": largest.tokens if row.most else made.tokens}
        if "beside" in facts:
            kept = largest.tokens if way.kept is None else way.kept
            found["beside"] = max(facts["beside"] + kept - facts["tokens"], 0)
    if not heard_facts(facts):  # else it stands beside what is seen
        found |= told_sound(vision, facts, args)
    if row.video is not None:
        limits = {kind: mm_limit(args.limit_mm_per_prompt, kind) for kind in ("image", "video")}
        told_video = mm_sizes(args.limit_mm_per_prompt, "video")
        asked = StatedSizes(found, _of(row, of_video), vision.shapes, _of(row, flat))
        found |= row.video(Shown(found, told_video, way, limits, args.max_model_len, keys, asked))
    return found


def told_sound(vision: VisionSpec, facts: Mapping[str, int], args: ResolvedArgs) -> dict[str, int]:
    """What the longest sound is under those flags, by its facts: as long as stated, and as the context lets it be."""
    row, samples = STATED.get(vision.architecture), mm_sizes(args.limit_mm_per_prompt, "audio").get("length")
    if row is None or row.sound is None:
        return {}
    if "token_samples" in facts:
        samples = min(
            samples or facts["samples"], args.max_model_len * facts["token_samples"], facts["samples"]
        )
        return dict(row.sound({**facts, "context": args.max_model_len}, samples))
    heard = row.sound(facts, samples) if samples else {}
    return {key: min(n, facts.get(key, n)) for key, n in heard.items()}


def _of(row: TowerRow, told: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that act."""
    return {key: told[key] for key in row.keys if key in told}


def _split(text: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flat keys of --mm-processor-kwargs, and scopes."""
    told: Mapping[str, Any] = json.loads(text) if text else {}
    scopes = {key: value for key, value in told.items() if key.endswith("_kwargs")}
    return {key: value for key, value in told.items() if key not in scopes}, scopes


def idle_sizes(vision: VisionSpec, facts: Mapping[str, int], args: ResolvedArgs) -> list[str]:
    """What flags state that changes nothing of what start-up profiles of this tower."""
    row = STATED.get(vision.architecture) or (
        QWENS if _like_qwen(vision, facts) else GLMS if "video_pixels" in facts else None
    )
    if row is None:
        return []
    flat, scopes = _split(args.mm_processor_kwargs)
    scoped = {key for keys in scopes.values() if keys for key in keys}
    unheard = scoped - flat.keys() if row.scoped == "idle" else set()
    acts = {"image": row.picture_acts, "video": row.video_acts, "audio": row.audio_acts}
    if not heard_facts(facts) and any(kind != "audio" for tower in vision.towers for kind in tower):
        acts["audio"] = ()  # a class that hears, of a config without ears
    stated = {kind: mm_sizes(args.limit_mm_per_prompt, kind) for kind in acts}
    idle = [f"{kind}.{key}" for kind, sizes in stated.items() for key in sizes if key not in acts[kind]]
    return [*sorted((flat.keys() | scoped) - set(row.keys) | unheard), *idle]


def media_frames(facts: Mapping[str, int], args: ResolvedArgs) -> dict[str, int]:
    """Frames that --media-io-kwargs makes a profiled video of, where the tower heeds it (vLLM 0.32
    `models/nano_nemotron_vl.py: get_dummy_mm_data`)."""
    told = json.loads(args.media_io_kwargs).get("video") if args.media_io_kwargs else None
    frames = (told or {}).get("num_frames")
    if not frames or "media_frames" not in facts:
        return {}
    frames = min(frames, mm_sizes(args.limit_mm_per_prompt, "video").get("num_frames", frames))
    return {"frames_run": -(-frames // facts["media_frames"])}


def options(text: str | None, kind: str) -> dict[str, Any]:
    """What --mm-processor-kwargs tells of a kind of item: flat keys, under those of its own scope.

    >>> options('{"max_pixels": 1000, "videos_kwargs": {"max_pixels": 50}}', "video")
    {'max_pixels': 50}
    """
    told: Mapping[str, Any] = json.loads(text) if text else {}
    flat = {key: value for key, value in told.items() if not key.endswith("_kwargs")}
    scoped = told.get(SCOPES[kind]) or {}
    both = [told.get("size") or {} for told in (flat, scoped)]
    if not all(isinstance(size, Mapping) for size in both):
        raise KvplanError(f'{FLAG}: size must be an object, as in {{"longest_edge": 1024}}')
    size = {**both[0], **both[1]}
    return {**flat, **scoped, **({"size": size} if size else {})}


def flat_keys(text: str | None) -> dict[str, Any]:
    """Keys of --mm-processor-kwargs outside of scopes, less those that a scope has too: vLLM takes them for routed
    (`multimodal/processing/context.py: get_merged_mm_kwargs`)."""
    told: Mapping[str, Any] = json.loads(text) if text else {}
    scoped = {key for name in SCOPES.values() for key in told.get(name) or {}}
    return {key: value for key, value in told.items() if not key.endswith("_kwargs") and key not in scoped}


def stated_pixels(kind: str, number: Any) -> int:
    """A number of pixels as flags state it."""
    if type(number) is not int or number < 1:
        raise KvplanError(f"--mm-processor-kwargs: a size of {kind} must be a whole number of pixels")
    return int(number)


# ---- pictures of any size, in whole tokens: Qwen's


def _squares(family: str, facts: Mapping[str, int], args: ResolvedArgs) -> dict[str, int]:
    joined = facts.get("merge", 4)
    unit = facts.get("unit") or facts["patch"] * math.isqrt(joined)
    limits = PUBLISHED.get(family, {"image": QWEN2, "video": QWEN2})
    image, video = (_bounds(args.mm_processor_kwargs, kind, *limits[kind]) for kind in ("image", "video"))
    shape, run = _most(image[1], unit), facts.get("run_unit", unit)
    sides = mm_sizes(args.limit_mm_per_prompt, "image")
    found = {**facts, **_item(shape, image, unit, joined, sides, 1, run=run)}
    if "frames" not in facts:
        return found
    told = mm_sizes(args.limit_mm_per_prompt, "video")
    if family == "qwen3_vl":
        pair = _item(_most(video[1] // 2, unit), video, unit, joined, told, 2)
        return found | {"frames": 1, "frame_patches": pair["patches"], "frame_tokens": pair["tokens"]}
    pair = _item(shape, video, unit, joined, told, 1, run=run)
    pairs = min(max(args.max_model_len // pair["tokens"], 1), PAIRS_OF_A_VIDEO)
    shown = min(pairs, -(-told.get("num_frames", 1 << 20) // 2))
    more = {"frames_run": shown, "frame_patches": pair["patches"], "frame_tokens": pair["tokens"]}
    return found | {"frames": PAIRS_OF_A_VIDEO} | more


def _frames_apart(facts: Mapping[str, int], args: ResolvedArgs) -> dict[str, int]:
    """Cosmos 3 Edge's: two frames that share the pixels of a video, each on its own.

    Source: vLLM 0.32 `models/qwen3_vl.py: get_max_video_tokens, get_dummy_mm_data`, `processors/cosmos3_edge.py`.
    """
    unit, joined, limits = facts["unit"], facts["merge"], PUBLISHED["cosmos3_edge"]
    image, video = (_bounds(args.mm_processor_kwargs, kind, *limits[kind]) for kind in ("image", "video"))
    sides = [mm_sizes(args.limit_mm_per_prompt, kind) for kind in ("image", "video")]
    whole = _most(video[1], unit)
    frame = _item(_grid(whole[0] * unit, whole[1] * unit, unit, video, 2), video, unit, joined, sides[1], 2)
    more = {"frames": 1, "frame_patches": 2 * frame["patches"], "frame_tokens": 2 * frame["tokens"]}
    return {**facts, **_item(_most(image[1], unit), image, unit, joined, sides[0], 1), **more}


def _item(
    shape: tuple[int, int],
    bounds: tuple[int, int],
    unit: int,
    joined: int,
    told: Mapping[str, int],
    frames: int,
    *,
    run: int = 0,
) -> dict[str, int]:
    """Tokens of the largest picture, and patches of the one that is made at the sizes told.

    `run`: pixels of the squares whose whole number a side becomes when it is run, where they are not a token's.
    """
    height, width = shape[0] * unit, shape[1] * unit
    made = min(height, told.get("height", height)), min(width, told.get("width", width))
    whole, squares = (
        _resized(height, width, unit, bounds, frames),
        _resized(*made, run or unit, bounds, frames),
    )
    return {"patches": squares * joined * ((run or unit) // unit) ** 2, "tokens": whole}


def _bounds(text: str | None, kind: str, least: int, most: int) -> tuple[int, int]:
    """Pixels at least and at most: `size`, over it `min_pixels` and `max_pixels`."""
    told = options(text, kind)
    size = told.get("size") or {}
    least = told.get("min_pixels") or size.get("shortest_edge") or least
    most = told.get("max_pixels") or size.get("longest_edge") or most
    return stated_pixels(kind, least), stated_pixels(kind, most)


def _most(pixels: int, unit: int) -> tuple[int, int]:
    """Rows and columns of the picture of most tokens within so many pixels, of sides as equal as they can be.

    >>> _most(12845056, 28), _most(1003520, 28)
    ((128, 128), (32, 40))
    """
    for tokens in range(max(pixels // unit**2, 1), 0, -1):
        rows = next(n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0)
        if tokens // rows**2 <= STEEPEST:
            return rows, tokens // rows
    return 1, 1


def _resized(height: int, width: int, unit: int, bounds: tuple[int, int], frames: int) -> int:
    """Tokens of a picture once its processor has made its sides whole and its area fit."""
    rows, columns = _grid(height, width, unit, bounds, frames)
    return rows * columns


def _grid(height: int, width: int, unit: int, bounds: tuple[int, int], frames: int) -> tuple[int, int]:
    """Rows and columns of those tokens."""
    if max(height, width) > STEEPEST * min(height, width):
        raise KvplanError(
            f"an item of {width} x {height} pixels: Qwen's processors refuse sides beyond 1:200"
        )
    rows, columns = round(height / unit), round(width / unit)
    least, most = bounds
    if frames * rows * columns * unit**2 > most:
        shrink = math.sqrt(frames * height * width / most)
        rows = max(1, math.floor(height / shrink / unit))
        columns = max(1, math.floor(width / shrink / unit))
    elif frames * rows * columns * unit**2 < least:
        grow = math.sqrt(least / (frames * height * width))
        rows, columns = math.ceil(height * grow / unit), math.ceil(width * grow / unit)
    return rows, columns
