"""What profiling a vision tower takes at start-up: the engine runs as many of the largest images as its budget holds.

    items = max(max_num_batched_tokens, tokens of the largest image) // tokens of the largest image
    peak  = items x patches x (pixels + 2 x hidden + the widest of attention and MLP, cut by the ranks) x 2 bytes

Source: vLLM 0.32 `multimodal/encoder_budget.py` (items), the processors' own limits (patches and tokens of the largest
image), the towers' layers (hidden states, fused Q, K, V and their rotated copies, the MLP's two sides).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kvplan.engines.flags import ResolvedArgs
from kvplan.models.spec import VisionSpec

TILES = 13
"""Tiles of a picture, the thumbnail counted, that InternVL's and Cohere's processors cut at most."""


class Largest(NamedTuple):
    """The largest image that a family's processor makes."""

    patches: int
    tokens: int
    pixels: int = 588
    """Numbers of one patch: three colours of 14 x 14 unless told."""


def _grid(v: VisionSpec, merge: int = 1) -> Largest:
    side = v["image"] // v["patch"]
    return Largest(side**2, side**2 // merge, 3 * v["patch"] ** 2)


def _declared(v: VisionSpec) -> Largest:
    return Largest(v["patches"], v["tokens"], v["pixels"])


LARGEST: dict[str, Callable[[VisionSpec], Largest]] = {
    # 16,777,216 pixels in patches of 16, 12,845,056 in patches of 14; four become a token
    "qwen3_vl": lambda v: Largest(65536, 16384, v["pixels"] * v["patch"] ** 2),
    "qwen2_vl": lambda v: Largest(65536, 16384, v["pixels"] * v["patch"] ** 2),
    "qwen2_5_vl": lambda v: Largest(65536, 16384, v["pixels"] * v["patch"] ** 2),
    "glm4v": lambda v: Largest(49152, 12288, v["pixels"] * v["patch"] ** 2),  # 9,633,792 pixels
    "moonvit": lambda v: Largest(16384, 4096),
    "moonvit3d": lambda v: Largest(16384, 4096),
    "siglip": lambda v: _grid(v)._replace(tokens=256),
    "paligemma": _grid,
    "clip": _grid,
    "cohere2_vision": lambda v: Largest(TILES * _grid(v).patches, TILES * _grid(v, 4).tokens),
    "internvl": lambda v: Largest(TILES * v["positions"], TILES * (v["positions"] // 4)),
    "pixtral": lambda v: Largest(
        (1540 // v["patch"]) ** 2, (1540 // v["patch"] // 2) ** 2 + 1540 // v["patch"] // 2
    ),
    "gemma4": lambda v: Largest(2520, 280, 768),
    "llama4": lambda v: Largest(17 * (_grid(v).patches + 1), 17 * _grid(v, 4).tokens),
}
"""Tower -> the largest image its processor makes."""
GATED = frozenset({"pixtral", "qwen2_5_vl", "glm4v", "gemma4"})
WHOLE = frozenset({"gemma4"})
"""Towers that every rank holds and runs whole."""


def largest_image(vision: VisionSpec) -> Largest | None:
    """The largest image of a tower; None where it is not known."""
    if vision.family not in LARGEST and "patches" not in dict(vision.facts):
        return None
    return LARGEST.get(vision.family, _declared)(vision)


def num_items(largest: Largest, args: ResolvedArgs) -> int:
    """Largest images that start-up profiles at a time."""
    tokens = max(largest.tokens, 1)
    return max(1, min(max(args.max_num_batched_tokens, tokens) // tokens, args.max_num_seqs * 999))


def embedded_bytes(vision: VisionSpec, args: ResolvedArgs, hidden: int) -> int:
    """What the profiled images leave allocated until the run ends: their pixels and the embeddings they became."""
    largest = largest_image(vision)
    if largest is None:
        return 2 * args.max_num_batched_tokens * hidden
    pixels = num_items(largest, args) * largest.patches * largest.pixels
    return 2 * (pixels + max(args.max_num_batched_tokens, largest.tokens) * hidden)


def tower_bytes(vision: VisionSpec, args: ResolvedArgs) -> int | None:
    """Peak of profiling the tower on one rank; None for towers whose largest image is not known."""
    largest = largest_image(vision)
    if largest is None:
        return None
    whole = vision.family in WHOLE or args.mm_encoder_tp_mode == "data"
    tp = 1 if whole else args.tensor_parallel_size
    gated = vision.family in GATED or dict(vision.facts).get("gated")
    hidden, sides = vision["hidden"], 3 if gated else 2
    widest = max(7 * hidden, sides * vision["width"]) / tp
    return int(2 * num_items(largest, args) * largest.patches * (largest.pixels + 2 * hidden + widest))
