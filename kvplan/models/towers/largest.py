"""The largest item that a processor makes, which start-up profiles: patches and tokens, widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt

from kvplan.models.config import Keys
from kvplan.models.towers.parts import TowerFacts, grid, merge, sizes


def _item(k: Keys, patches: int, tokens: int, *, pixels: int = 0, gated: bool = False) -> Mapping[str, int]:
    """Facts of one item: patches (or frames) through the tower, tokens they become."""
    hidden, width, _ = sizes(k)
    patch = k.count("patch_size", default=0, low=0)
    found = {"hidden": hidden, "width": width, "patches": patches, "tokens": max(tokens, 1)}
    return found | {"pixels": pixels or 3 * patch**2, "gated": int(gated)}


def tiles(s: TowerFacts) -> Mapping[str, int]:
    """InternVL's: the tiles of a picture and its thumbnail, four patches a token."""
    most = s.outer.count("max_dynamic_patch", default=12) + 1
    return _item(s.tower, most * (grid(s.tower) + 1), most * grid(s.tower) // 4)


def pinpoints(s: TowerFacts) -> Mapping[str, int]:
    """LLaVA-NeXT's: a picture in as many tiles as its largest pinpoint has, and whole.

    All tiles pass the tower; `anyres_max_9` keeps the features of nine. Source: vLLM 0.32 `models/llava_next.py`,
    `llava_onevision.py: get_image_size_with_most_features`.
    """
    side = s.tower.count("image_size", high=1 << 20)
    listed = s.outer.raw.get("image_grid_pinpoints")
    sizes_of = listed if isinstance(listed, list) else []
    pairs = [p for p in sizes_of if isinstance(p, list) and len(p) == 2 and all(type(n) is int for n in p)]
    tiles = max((h // side * (w // side) for h, w in pairs), default=4)
    kept = s.outer.text("vision_aspect_ratio").rpartition("anyres_max_")[2]
    features = min(tiles, int(kept)) if kept.isdecimal() and len(kept) < 4 else tiles
    return _item(s.tower, (tiles + 1) * grid(s.tower), (features + 1) * grid(s.tower))


def one_image(s: TowerFacts, *, gated: bool = False) -> Mapping[str, int]:
    """One image of `image_size`, its patches merged."""
    merged = merge(s.tower) if s.tower.text("mm_projector_id") in ("", "patch_merge") else 1
    return _item(s.tower, grid(s.tower), grid(s.tower) // merged, gated=gated)


def qwen_image(k: Keys, *, gated: bool) -> Mapping[str, int]:
    """65,536 patches, four of them a token."""
    frames = k.count("temporal_patch_size", default=2, high=64)
    return _item(k, 65536, 16384, pixels=3 * frames * k.count("patch_size", high=4096) ** 2, gated=gated)


def omni_image(gated: bool) -> Callable[[TowerFacts], Mapping[str, int]]:
    """The images beside the sound, which takes less."""
    return lambda s: qwen_image(s.tower.section("vision_config"), gated=gated)


def square(pixels: int, *, gated: bool = False) -> Callable[[TowerFacts], Mapping[str, int]]:
    """An image of so many pixels at most in patches of 14, four of them a token: a processor's own default."""

    def found(s: TowerFacts) -> Mapping[str, int]:
        frames = s.tower.count("temporal_patch_size", default=1, high=64)
        return _item(s.tower, pixels // 196, pixels // 784, pixels=frames * 588, gated=gated)

    return found


dots_image = square(11_289_600, gated=True)
"""`MAX_PIXELS` of dots.ocr's own code."""
glm_image = square(9_633_792, gated=True)
"""`longest_edge` of GLM-4.1V's and GLM-OCR's processors."""
paddle_image = square(28 * 28 * 1280)
"""Default of PaddleOCR-VL's processor (vLLM 0.32 `paddleocr_vl.py: smart_resize`)."""


def qwen_tower(gated: bool) -> Callable[[TowerFacts], Mapping[str, int]]:
    """A tower of its own whose images are Qwen's."""
    return lambda s: qwen_image(s.tower, gated=gated)


def gated_image(s: TowerFacts) -> Mapping[str, int]:
    """One image of `image_size` through gated layers."""
    return one_image(s, gated=True)


def kimi_image(s: TowerFacts) -> Mapping[str, int]:
    """1,024 x 1,024, rounded up to whole tokens of four patches (vLLM 0.32 `kimi_vl.py: MaxImageTokenMeta`)."""
    side = -(-1024 // (2 * s.tower.count("patch_size", default=14, high=4096)))
    return _item(s.tower, 4 * side**2, side**2)


def deepseek_image(tokens: int, hidden: int, width: int, patch: int, joined: int) -> Mapping[str, int]:
    """A square of as many tokens as the config allows, with an end to each row; a token joins a square of patches.

    Source: vLLM 0.32 `models/deepseek_v4/common/mm_preprocess.py: solve_resize_ratio`.
    """
    side = max(isqrt(max(tokens - 2, 1)), 2) - 1
    facts = {"hidden": hidden, "width": width, "patches": side * (side + 1) * joined**2, "tokens": tokens}
    return facts | {"pixels": 3 * patch**2, "gated": 1}


def deepseek_v4_image(s: TowerFacts) -> Mapping[str, int]:
    """DeepSeek V4's: 384 tokens at most unless told."""
    k = s.tower
    return deepseek_image(
        k.count("vision_max_n_token", default=384, high=1 << 20),
        k.count("vision_dim", default=1024),
        k.count("vision_inter_dim", default=2816),
        k.count("vision_patch_size", default=14, high=4096),
        k.count("vision_downsample_ratio", default=3, high=64),
    )


def deepseek_v41_image(s: TowerFacts) -> Mapping[str, int]:
    """DeepSeek V4.1's: 1,024 tokens at most unless told."""
    hidden, width, _ = sizes(s.tower)
    return deepseek_image(
        s.tower.count("max_image_tokens", default=1024, high=1 << 20),
        hidden,
        width,
        s.tower.count("patch_size", default=14, high=4096),
        s.tower.count("downsample_ratio", default=3, high=64),
    )
