"""What profiling a tower takes at start-up: the engine runs as many of the largest items as its budget holds.

    items = max(max_num_batched_tokens, tokens of the largest item) // tokens of the largest item
    peak  = items x patches x (pixels + 2 x hidden + the widest of attention and MLP, cut by the ranks) x 2 bytes

Of images and videos, it runs those that become more tokens; videos and some sounds are as long as the context lets
them be. Attention that writes its scores out and hidden states kept until the end add numbers of their own;
convolutions before the layers, resamplers and heads behind may be wider than they are. `item` of
`kvplan.models.towers.parts` names these facts. The pixels of all items are there throughout; towers that take their
items in turn hold the hidden states of some.

Source: vLLM 0.32 `multimodal/encoder_budget.py` (items), the processors' own limits (patches and tokens of the largest
item), the towers' layers (hidden states, fused Q, K, V and their rotated copies, the MLP's two sides).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kvplan.engines.flags import ResolvedArgs
from kvplan.engines.mm_limits import mm_limit
from kvplan.memory.glm_items import glm_facts
from kvplan.memory.item_sizes import (
    idle_sizes,
    is_sized,
    media_frames,
    plans_sizes,
    states_sizes,
    tells_pixels,
    told_facts,
    told_sound,
)
from kvplan.memory.tower_attention import WIDTH
from kvplan.models.spec import VisionSpec
from kvplan.models.towers.kinds import UNCOUNTED, most_items
from kvplan.models.towers.parts import heard_facts

TILES = 13
"""Tiles of a picture, the thumbnail counted, that Cohere's processor cuts at most."""


class Largest(NamedTuple):
    """The largest image that a family's processor makes."""

    patches: int
    tokens: int
    pixels: int = 588
    """Numbers of one patch: three colours of 14 x 14 unless told."""
    kind: str = "image"
    """Of what a prompt may have, which it is."""


def _grid(v: VisionSpec, merge: int = 1) -> Largest:
    side = v["image"] // v["patch"]
    return Largest(side**2, side**2 // merge, 3 * v["patch"] ** 2)


def _declared(v: VisionSpec) -> Largest:
    return Largest(v["patches"], v["tokens"], v["pixels"])


def _qwen(v: VisionSpec) -> Largest:
    return Largest(65536, 16384, v["pixels"] * v["patch"] ** 2)


LARGEST: dict[str, Callable[[VisionSpec], Largest]] = {
    # 16,777,216 pixels in patches of 16, 12,845,056 in patches of 14; four become a token
    "qwen3_vl": _qwen,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "glm4v": lambda v: Largest(
        24336, 6084, v["pixels"] * v["patch"] ** 2
    ),  # 9,633,792 pixels over two frames
    # Kimi K2.5's 3,000 x 3,000 within 16,384 patches and K3's within 65,536, padded to whole tokens (vLLM 0.32
    # `kimi_k25.py: MaxImageTokenMeta`, `models/kimi_k3/common/mm_preprocess.py: get_max_image_size`)
    "moonvit": lambda v: Largest(4 * 4225, 4225),
    "moonvit3d": lambda v: Largest(4 * 16817, 16817),
    "siglip": lambda v: _grid(v)._replace(tokens=256),
    "paligemma": _grid,
    "clip": _grid,
    "cohere2_vision": lambda v: Largest(
        TILES * _grid(v).patches, TILES * _grid(v, 4).tokens, _grid(v).pixels
    ),
    # one tile: published processors crop when they are called, not when vLLM counts by them
    "internvl": lambda v: Largest(v["positions"], v["positions"] // 4),
    "pixtral": lambda v: Largest(
        (1540 // v["patch"]) ** 2, (1540 // v["patch"] // 2) ** 2, 3 * v["patch"] ** 2
    ),
    "gemma4": lambda v: Largest(2520, 280, 768),
    "llama4": lambda v: Largest(17 * (_grid(v).patches + 1), 17 * _grid(v, 4).tokens, _grid(v).pixels),
}
"""Tower -> the largest image its processor makes."""


def _pairs(v: VisionSpec) -> dict[str, int]:
    """14 frames, each pair of an image's size (vLLM 0.32 `qwen2_vl.py: get_num_frames_with_most_features`)."""
    return {"frames": 7, "frame_patches": 65536, "frame_tokens": 16384}


def _intern(v: VisionSpec) -> dict[str, int]:
    """A tile each, beside an image of one (vLLM 0.32 `interns1.py: get_num_frames_with_most_features`)."""
    tokens = v["positions"] // 4
    return {
        "frames": 1 << 30,
        "frame_patches": v["positions"],
        "frame_tokens": tokens,
        "beside": tokens,
    }


def _gemma4(v: VisionSpec) -> dict[str, int]:
    """32 frames of 630 patches, 70 tokens and eight more (vLLM 0.32 `gemma4_mm.py: get_mm_max_tokens_per_item`)."""
    return {"frames": 1, "frame_patches": 32 * 630, "frame_tokens": 32 * 78}


def _one_pair(v: VisionSpec) -> dict[str, int]:
    """Two frames that share 25,165,824 pixels (vLLM 0.32 `qwen3_vl.py: get_max_video_tokens`; the limit stands in the
    published video_preprocessor_config.json)."""
    return {"frames": 1, "frame_patches": 49152, "frame_tokens": 12288}


VIDEOS = {
    "qwen3_vl": _one_pair,
    "qwen2_vl": _pairs,
    "qwen2_5_vl": _pairs,
    "internvl": _intern,
    "gemma4": _gemma4,
}
"""Tower -> the frames of its video, where they may be more tokens than an image."""
GATED = frozenset({"pixtral", "qwen2_5_vl", "glm4v", "gemma4"})
WHOLE = frozenset({"gemma4"})
"""Towers that every rank holds and runs whole."""


def largest_image(vision: VisionSpec) -> Largest | None:
    """The largest image of a tower; None where it is not known."""
    if vision.family not in LARGEST and "patches" not in dict(vision.facts):
        return None
    return LARGEST.get(vision.family, _declared)(vision)


def _facts(vision: VisionSpec) -> dict[str, int]:
    """A row's, and those of its video."""
    video = VIDEOS[vision.family](vision) if vision.family in VIDEOS else {}
    return {**video, **dict(vision.facts)}


def largest_item(vision: VisionSpec, args: ResolvedArgs) -> Largest | None:
    """The largest item that may be asked of this engine: of images, videos and sounds, what becomes the most tokens.

    At a tie vLLM takes the one whose name comes last. None where it is not known.
    """
    found = [item for item in (_seen_item(vision, args), _heard_item(vision, args)) if item is not None]
    return max(found, key=lambda item: (item.tokens, item.kind), default=None)


def _heard_item(vision: VisionSpec, args: ResolvedArgs) -> Largest | None:
    """The longest sound of a tower that sees too."""
    facts = heard_facts(dict(vision.facts))
    if not facts or not mm_limit(args.limit_mm_per_prompt, "audio"):
        return None
    facts |= told_sound(vision, facts, args)
    tokens = min(facts["tokens"], args.max_model_len) if "within" in facts else facts["tokens"]
    return Largest(facts["patches"], tokens, facts["pixels"], "audio")


def _seen_item(vision: VisionSpec, args: ResolvedArgs) -> Largest | None:
    """The largest image or video; of towers that only hear, the longest sound."""
    facts = _facts(vision)
    image = largest_image(vision) or _told_image(facts, args)
    facts |= media_frames(facts, args)
    if "video_pixels" in facts and image is not None:
        facts = glm_facts(facts, args)
        image = image._replace(patches=facts["patches"], tokens=facts["tokens"])
    kinds = _asked(vision, facts, args.limit_mm_per_prompt)
    if image is None or not kinds:
        return None
    image = image._replace(kind=kinds[0])
    facts |= {"patches": image.patches, "tokens": image.tokens}
    if is_sized(vision, args) and (told := told_facts(vision, facts, args)):
        image, facts = image._replace(patches=told["patches"], tokens=told["tokens"]), told
    if "fills" in facts:
        chunks = -(-args.max_model_len // image.tokens)
        chunks = min(chunks, facts.get("most_windows", chunks))
        return image._replace(patches=chunks * image.patches, tokens=args.max_model_len)
    if "within" in facts:
        return image._replace(tokens=min(image.tokens, args.max_model_len))
    if "frames" not in facts or "video" not in kinds:
        return image
    if kinds == ["video"]:
        return _video({**facts, "beside": 0}, image, args.max_model_len)
    video = _video(facts, image, args.max_model_len)
    if states_sizes(
        args
    ):  # of items that are made smaller than they are counted the video may be the lesser one
        return video if video.tokens >= image.tokens else image
    return max(video, image, key=lambda item: (item.tokens, item.patches))


def _asked(vision: VisionSpec, facts: dict[str, int], limits: str | None) -> list[str]:
    """Kinds that the facts of the largest item speak of and that prompts may have: of sound where nothing is seen."""
    kinds = dict.fromkeys(kind for tower in vision.towers for kind in tower)
    seen = [kind for kind in kinds if kind != "audio"]
    if "frames" in facts and "video" not in seen:  # its class asks the tower for them all the same
        seen.append("video")
    return [kind for kind in seen or kinds if mm_limit(limits, kind)]


def _video(facts: dict[str, int], image: Largest, context: int) -> Largest:
    """As many frames as the context holds; an image beside them counts when they become tokens, not when they run."""
    room = max(facts.get("frame_room", facts["frame_tokens"]), 1)
    counted = min(max((context - facts.get("beside", 0)) // room, 1), facts["frames"])
    run = facts.get("frames_run", min(max(context // room, 1), facts["frames"]))
    run = min(run, facts.get("most_run", run))
    patches = min(run * facts["frame_patches"], facts.get("most_patches", run * facts["frame_patches"]))
    pixels = facts.get("frame_pixels", image.pixels)
    tokens = (
        context if "video_fills" in facts else counted * facts["frame_tokens"] + facts.get("video_ends", 0)
    )
    if "run_tokens" in facts:
        run = max(-(-tokens // facts["run_tokens"]), facts["run_least"])
        patches = min(run * facts["run_patches"], patches)
    return image._replace(patches=patches, tokens=tokens, pixels=pixels, kind="video")


def runs_none(vision: VisionSpec, args: ResolvedArgs) -> bool:
    """Whether start-up runs no item though a prompt may have some: its class counts none of those kinds."""
    uncounted = UNCOUNTED.get(vision.architecture, ())
    kinds = {kind for tower in vision.towers for kind in tower} - set(uncounted)
    return bool(uncounted) and not any(mm_limit(args.limit_mm_per_prompt, kind) for kind in kinds)


def sizes_left_out(vision: VisionSpec, args: ResolvedArgs) -> bool:
    """Whether flags state sizes of items that are not planned for this tower."""
    facts = _facts(vision)
    untold = "unit" in facts and largest_image(vision) is None and _told_image(facts, args) is None
    return states_sizes(args) and (untold or not plans_sizes(vision, facts))


def _told_image(facts: dict[str, int], args: ResolvedArgs) -> Largest | None:
    """The image of a tower whose limit of pixels flags alone tell: its patches and tokens follow from them."""
    return Largest(0, 1, facts["pixels"]) if "unit" in facts and tells_pixels(args) else None


def idle_words(vision: VisionSpec, args: ResolvedArgs) -> str:
    """What flags state that this tower does not heed, in words; nothing where all of it acts."""
    found = idle_sizes(vision, _facts(vision), args) if states_sizes(args) else []
    return f"{', '.join(found)} not heeded" if found else ""


def num_items(largest: Largest, args: ResolvedArgs, limit: int = 999) -> int:
    """Largest items that start-up profiles at a time, `limit` of them a prompt at most."""
    tokens = max(largest.tokens, 1)
    a_prompt = max(1, min(limit, args.max_model_len // tokens))
    return max(1, min(max(args.max_num_batched_tokens, tokens) // tokens, args.max_num_seqs * a_prompt))


def profiled_items(vision: VisionSpec, args: ResolvedArgs) -> tuple[str, str] | None:
    """(vision or audio, the items that start-up profiles) in words; None where the largest is not known."""
    largest = largest_item(vision, args)
    if largest is None:
        return None
    number = num_items(largest, args, _most_items(vision, largest.kind, args))
    plural = "s" if number > 1 and largest.kind != "audio" else ""
    return (
        "audio" if largest.kind == "audio" else "vision",
        f"{number:,} {largest.kind}{plural} of {largest.tokens:,} tokens",
    )


def _num_patches(vision: VisionSpec, args: ResolvedArgs, largest: Largest) -> int:
    """Patches of all items that start-up profiles."""
    return num_items(largest, args, _most_items(vision, largest.kind, args)) * largest.patches


def _most_items(vision: VisionSpec, kind: str, args: ResolvedArgs) -> int:
    """Items of a kind that a prompt may have: by the class, and as flags say."""
    return min(most_items(vision.architecture, kind), mm_limit(args.limit_mm_per_prompt, kind))


def embedded_bytes(vision: VisionSpec, args: ResolvedArgs, hidden: int) -> int:
    """What the profiled items leave allocated until the run ends: their pixels and the embeddings they became."""
    largest = largest_item(vision, args)
    if largest is None:
        return 2 * args.max_num_batched_tokens * hidden
    pixels = _num_patches(vision, args, largest) * largest.pixels
    return 2 * (pixels + max(args.max_num_batched_tokens, largest.tokens) * hidden)


def tower_bytes(vision: VisionSpec, args: ResolvedArgs, attention: float = WIDTH) -> int | None:
    """Peak of profiling the tower on one rank; None for towers whose largest item is not known.

    `attention`: widths of the heads that its kernels keep alive.
    """
    largest, facts = largest_item(vision, args), dict(vision.facts)
    if largest is None:
        return None
    if largest.kind == "audio":
        facts = heard_facts(facts) or facts
    whole = vision.family in WHOLE or args.mm_encoder_tp_mode == "data" or facts.get("whole")
    tp = 1 if whole else args.tensor_parallel_size
    gated = vision.family in GATED or facts.get("gated")
    hidden, sides = facts["hidden"], 3 if gated else 2
    widest = max(attention * hidden + facts.get("scores", 0), sides * facts["width"]) / tp
    layers = 2 * hidden + widest + facts.get("kept", 0)
    patches = _num_patches(vision, args, largest)
    at_once = min(patches, facts.get("at_once", patches))
    alive = at_once * max(layers, facts.get("outside", 0) - largest.pixels)
    return int(2 * (patches * largest.pixels + alive))
