"""The largest item that a processor makes, which start-up profiles: patches and tokens, widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    """LLaVA-NeXT's: a picture in four tiles, and whole."""
    return _item(s.tower, 5 * (grid(s.tower) + 1), 5 * grid(s.tower))


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


def half_minute(s: TowerFacts, frames: int) -> Mapping[str, int]:
    """Whisper's window of 30 s: 1,500 positions, `frames` of them a token."""
    positions = s.tower.count("max_source_positions", default=1500)
    return _item(
        s.tower, positions, positions // frames, pixels=2 * s.tower.count("num_mel_bins", default=80)
    )
