"""The largest item that a processor makes, which start-up profiles: patches and tokens, widths.

`item` (parts) names the facts. `tests/models/make_largest.py` asks vLLM 0.32's processing classes for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt, sqrt

from kvplan.models.config import Keys
from kvplan.models.towers.images import RADIO
from kvplan.models.towers.parts import ANY_LENGTH, TowerFacts, fraction, grid, item, merge, sizes


def _item(
    k: Keys, patches: int, tokens: int, *, pixels: int = 0, gated: bool = False, **more: int
) -> Mapping[str, int]:
    """Facts of one item by a tower's sizes: patches through it, tokens they become."""
    hidden, width, _ = sizes(k)
    patch = k.count("patch_size", default=0, low=0)
    return item(hidden, width, patches, tokens, pixels=pixels or 3 * patch**2, gated=int(gated), **more)


def _video(patches: int, tokens: int, *, most: int = ANY_LENGTH, beside: int = 0) -> dict[str, int]:
    """Facts of a video of such frames, or pairs of them."""
    return {"frames": most, "frame_patches": patches, "frame_tokens": tokens, "beside": beside}


def tiles(s: TowerFacts) -> Mapping[str, int]:
    """InternVL's: the tiles of a picture and its thumbnail, four patches a token."""
    most = s.outer.count("max_dynamic_patch", default=12) + 1
    return _item(s.tower, most * (grid(s.tower) + 1), most * grid(s.tower) // 4)


def stated_tiles(s: TowerFacts) -> Mapping[str, int]:
    """The same of processors that vLLM tells other numbers of tiles."""
    return {**tiles(s), **_tile(s)}


def tiles_or_frames(s: TowerFacts) -> Mapping[str, int]:
    """InternVL's, and where the language model has a word for videos, frames of one tile each, as many as the context
    holds beside an image. Source: vLLM 0.32 `internvl.py: ctx_video_token, get_num_frames_with_most_features`."""
    image = stated_tiles(s)
    if s.outer.section("llm_config").text("model_type") not in ("qwen2", "qwen3", "qwen3_moe", "gpt_oss"):
        return image
    video = _video(grid(s.tower) + 1, grid(s.tower) // 4, beside=image["tokens"])
    return {**image, **video, "tile_frames": 1}


def tiles_twice(s: TowerFacts) -> Mapping[str, int]:
    """H2OVL's: InternVL's; where `use_msac` says so, cut a second time."""
    return {**stated_tiles(s), "twice": int(s.outer.flag("use_msac"))}


def _tile(s: TowerFacts) -> dict[str, int]:
    """Facts of one tile, for pictures that are cut otherwise."""
    most, side = s.outer.count("max_dynamic_patch", default=12) + 1, s.tower.count("image_size", high=1 << 20)
    each = {"tile_patches": grid(s.tower) + 1, "tile_tokens": grid(s.tower) // 4, "tile_side": side}
    return {"tiles": most, **each}


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
    features = min(tiles, _kept(s) or tiles)
    more = {
        "side": side,
        "tile_patches": grid(s.tower),
        "grid": isqrt(grid(s.tower)),
        "whole_tokens": _selected(s),
        "kept_tiles": _kept(s),
    }
    return {**_item(s.tower, (tiles + 1) * grid(s.tower), (features + 1) * grid(s.tower)), **more}


def onevision(s: TowerFacts) -> Mapping[str, int]:
    """LLaVA-OneVision's: beside those a video of 16 frames at most, pooled by twos, one token more.

    Source: vLLM 0.32 `models/llava_onevision.py: get_num_video_tokens`.
    """
    patches = grid(s.tower)
    pooled = -(-isqrt(patches) // s.outer.count("spatial_pool_stride", default=2, high=64))
    video = _video(patches, pooled**2, most=16, beside=1)
    return {**pinpoints(s), "kept_tiles": 9, **video, "video_ends": 1}


def _kept(s: TowerFacts) -> int:
    """Tiles whose features `anyres_max_9` keeps; 0: of all."""
    kept = s.outer.text("vision_aspect_ratio").rpartition("anyres_max_")[2]
    return int(kept) if kept.isdecimal() and len(kept) < 4 else 0


def _selected(s: TowerFacts) -> int:
    """Tokens of the whole picture: a class token is there with CLIP, and `default` leaves the first out."""
    classed = s.tower.text("model_type") == "clip_vision_model"
    usual = "default" if classed else "full"
    strategy = s.outer.text("vision_feature_select_strategy", default=usual)
    return grid(s.tower) + classed - (strategy == "default")


def one_image(s: TowerFacts, *, gated: bool = False) -> Mapping[str, int]:
    """One image of `image_size`, its patches merged."""
    merged = merge(s.tower) if s.tower.text("mm_projector_id") in ("", "patch_merge") else 1
    sides = {"side": s.tower.count("image_size", high=1 << 20), "joined": merged}
    patch = {"patch": s.tower.count("patch_size", high=4096)}
    return _item(s.tower, grid(s.tower), grid(s.tower) // merged, gated=gated, **sides, **patch)


def minimax_items(s: TowerFacts) -> Mapping[str, int]:
    """MiniMax M3's: pictures of 672 x 672; pairs of frames of 768 tokens, 250 at most.

    Source: vLLM 0.32 `processors/minimax_m3.py`, `models/minimax_m3/common/mm_preprocess.py`.
    """
    compression = s.tower.section("img_token_compression_config")
    frames, joined = compression.count("temporal_patch_size", default=2, high=64), merge(compression)
    patch = s.tower.count("patch_size", high=4096)
    patches, tokens = _resized(s, 672 * 672, isqrt(joined))
    units = 768 * 28 * 28 // (patch**2 * joined)
    more = {"patch": patch, "joined": joined, "most_pixels": 672 * 672}
    image = {**_item(s.tower, patches, tokens, pixels=3 * frames * patch**2), **more}
    return {**image, **_video(units * joined, units, most=500 // frames)}


def qwen_image(k: Keys, *, gated: bool, videos: bool = True) -> Mapping[str, int]:
    """65,536 patches, four of them a token; of videos 14 frames at most, in pairs of an image's size.

    Source: vLLM 0.32 `qwen2_vl.py: get_num_frames_with_most_features`.
    """
    frames = k.count("temporal_patch_size", default=2, high=64)
    pairs = _video(65536, 16384, most=7) if videos else {}
    patch, merged = k.count("patch_size", high=4096), merge(k)
    facts = _item(k, 65536, 16384, pixels=3 * frames * patch**2, gated=gated)
    return {**facts, **pairs, "unit": patch * isqrt(merged), "merge": merged}


def omni_image(gated: bool) -> Callable[[TowerFacts], Mapping[str, int]]:
    """The images and videos beside the sound: 12,845,056 pixels (`max_pixels` of the published
    preprocessor_config.json of Qwen 2.5 and 3 Omni)."""

    def found(s: TowerFacts) -> Mapping[str, int]:
        facts = qwen_image(s.tower.section("vision_config"), gated=gated)
        tokens = 12_845_056 // facts["unit"] ** 2
        patches = tokens * facts["merge"]
        return {**facts, "patches": patches, "tokens": tokens, **_video(patches, tokens, most=7)}

    return found


def hyperclovax_video(s: TowerFacts) -> Mapping[str, int]:
    """HyperCLOVA X Vision 2's: 16 frames of 448 x 448 in pairs (vLLM 0.32 `hyperclovax_vision_v2.py:
    get_dummy_mm_data`)."""
    frames, patch = s.tower.count("temporal_patch_size", default=2, high=64), s.tower.count("patch_size")
    side, joined = s.tower.count("image_size", default=448, high=1 << 20), merge(s.tower)
    tokens, pairs = (side // (patch * isqrt(joined))) ** 2, 16 // frames
    patches, more = tokens * joined, {"side": side, "patch": patch, "joined": joined}
    image = _item(s.tower, patches, tokens, pixels=3 * frames * patch**2, gated=True, **more)
    return {**image, **_video(pairs * patches, pairs * tokens, most=1)}


def llava_video(s: TowerFacts) -> Mapping[str, int]:
    """LLaVA-NeXT-Video's: frames of `image_size`, pooled, as many as the context holds; one video a prompt.

    Source: vLLM 0.32 `llava_next_video.py: get_num_frames_with_most_features`.
    """
    patches = grid(s.tower)
    side = -(-isqrt(patches) // s.outer.count("spatial_pool_stride", default=2, high=64))
    return {**_item(s.tower, patches, side**2), **_video(patches, side**2)}


def square(pixels: int, *, gated: bool = False) -> Callable[[TowerFacts], Mapping[str, int]]:
    """An image of so many pixels at most in patches of 14, four of them a token: a processor's own default."""

    def found(s: TowerFacts) -> Mapping[str, int]:
        frames = s.tower.count("temporal_patch_size", default=1, high=64)
        more = {"patch": 14, "joined": 4, "most_pixels": pixels}
        return _item(s.tower, pixels // 196, pixels // 784, pixels=frames * 588, gated=gated, **more)

    return found


dots_image = square(11_289_600, gated=True)
"""`MAX_PIXELS` of dots.ocr's own code."""


def glm_items(s: TowerFacts) -> Mapping[str, int]:
    """GLM-OCR's, which publishes no limit of videos apart from that of images."""
    facts = _item(s.tower, 24336, 6084, pixels=1176, gated=True)
    return {**facts, "image_pixels": 9_633_792, "video_pixels": 9_633_792, "by_budget": 1}


def glm5_items(s: TowerFacts) -> Mapping[str, int]:
    """GLM-5-Next's: 8,000 tokens of an image, 30,000 of a video, to which vLLM 0.32 cuts the processor's 240,000
    (`models/glm5next/common/multimodal.py: _MAX_VIDEO_TOKENS`)."""
    facts = _item(s.tower, 32000, 8000, pixels=1176, gated=True)
    pixels = {"image_pixels": 8000 * 1568, "video_pixels": 30000 * 1568}
    return {**facts, **pixels, "by_budget": 1, "exact": 1}


paddle_image = square(28 * 28 * 1280)
"""Default of PaddleOCR-VL's processor (vLLM 0.32 `paddleocr_vl.py: smart_resize`)."""


def qwen_tower(gated: bool, *, videos: bool = True) -> Callable[[TowerFacts], Mapping[str, int]]:
    """A tower of its own whose images are Qwen's, and its videos."""
    return lambda s: qwen_image(s.tower, gated=gated, videos=videos)


def gated_image(s: TowerFacts) -> Mapping[str, int]:
    """One image of `image_size` through gated layers."""
    return one_image(s, gated=True)


KIMI_PATCHES = 4096
"""Patches of a picture, `in_token_limit`: of Kimi-VL's image processor, and as Kimi-VL-A3B-Instruct's config has it."""


def kimi_side(width: int, height: int, patch: int, limit: int) -> tuple[int, int]:
    """Tokens along both sides of a picture: shrunk to so many patches, padded to whole tokens of four patches.

    Source: vLLM 0.32 `models/kimi_vl.py: get_num_image_tokens`.
    """
    patches = (width // patch) * (height // patch)
    if patches > limit:
        scale = sqrt(limit / patches)
        width, height = int(width * scale), int(height * scale)
    return -(-width // (2 * patch)), -(-height // (2 * patch))


def kimi_image(s: TowerFacts) -> Mapping[str, int]:
    """1,024 x 1,024 (vLLM 0.32 `kimi_vl.py: MaxImageTokenMeta`), as `kimi_side` leaves it."""
    patch = s.tower.count("patch_size", default=14, high=4096)
    side = kimi_side(1024, 1024, patch, KIMI_PATCHES)[0]
    return _item(s.tower, 4 * side**2, side**2, patch=patch)


def deepseek_image(
    sizes_of: tuple[int, int], tokens: int, patch: int, joined: int, **bounds: int
) -> Mapping[str, int]:
    """As many tokens as the config allows, of a square of patches each; the picture: `memory/stated/fitted.py`."""
    side = max(isqrt(max(tokens - 2, 1)), 2) - 1
    more = {"patch": patch, "joined": joined**2, **bounds}
    return item(*sizes_of, side * (side + 1) * joined**2, tokens, pixels=3 * patch**2, gated=1, **more)


def _widest(k: Keys, key: str, default: float) -> int:
    """Thousandths of how many times wider than tall a picture may be; 0: as wide as it is."""
    return round(1000 * k.number(key, default, high=1e6)) if k.raw.get(key, default) else 0


def deepseek_v4_image(s: TowerFacts) -> Mapping[str, int]:
    """DeepSeek V4's: 384 tokens at most unless told; three more are counted (vLLM 0.32 `models/deepseek_v4/common/
    mm_preprocess.py: get_mm_max_tokens_per_item`)."""
    k = s.tower
    return deepseek_image(
        (k.count("vision_dim", default=1024), k.count("vision_inter_dim", default=2816)),
        k.count("vision_max_n_token", default=384, low=16, high=1 << 12) + 3,
        k.count("vision_patch_size", default=14, high=4096),
        k.count("vision_downsample_ratio", default=3, high=64),
        least_pixels=k.count("vision_min_pixels", default=147456, low=0, high=1 << 30),
        widest=_widest(k, "vision_max_wh_ratio", 8),
    )


def deepseek_v41_image(s: TowerFacts) -> Mapping[str, int]:
    """DeepSeek V4.1's: 1,024 tokens at most unless told."""
    k = s.tower
    return deepseek_image(
        sizes(k)[:2],
        k.count("max_image_tokens", default=1024, low=16, high=1 << 16),
        k.count("patch_size", default=14, high=4096),
        k.count("downsample_ratio", default=3, high=64),
        least_pixels=k.count("min_pixels", default=295936, low=0, high=1 << 30),
        widest=_widest(k, "max_wh_ratio", 0),
    )


def fixed(
    tokens: Callable[[TowerFacts, int], int], *, extra: int = 0
) -> Callable[[TowerFacts], Mapping[str, int]]:
    """One image of `image_size`; `tokens` of its patches, `extra` marks beside them."""

    def found(s: TowerFacts) -> Mapping[str, int]:
        patches = grid(s.tower)
        return _item(s.tower, patches + extra, tokens(s, patches))

    return found


def _most_queries(s: TowerFacts, patches: int) -> int:
    told = s.outer.raw.get("projector_patch_to_query_dict")
    counts = [n for n in told.values() if type(n) is int] if isinstance(told, dict) else []
    return max(counts, default=256)


aria_image = fixed(_most_queries)
"""Aria's: as many queries as its projector has (vLLM 0.32 `aria.py: get_num_image_tokens`)."""
bagel_image = fixed(lambda s, patches: s.outer.count("vit_max_num_patch_per_side", default=70) ** 2)
"""BAGEL's: every patch a token (`bagel.py: get_mm_max_tokens_per_item`)."""
blip2_image = fixed(lambda s, patches: s.outer.count("num_query_tokens", default=32), extra=1)
"""BLIP-2's: queries (`blip2.py: get_num_image_tokens`); one image a prompt."""
glm4v_9b_image = fixed(lambda s, patches: patches // 4, extra=1)
"""GLM-4V-9B's: four patches a token (`glm4v.py: get_num_image_tokens`); one image a prompt."""


def eagle_tiles(s: TowerFacts) -> Mapping[str, int]:
    """InternVL's tiles of Eagle's size, without a class token (vLLM 0.32 `eagle2_5_vl.py: get_image_processor`)."""
    side = s.outer.count("force_image_size", default=0, low=0, high=1 << 20)
    told = {"image_size": side or s.tower.count("image_size", high=1 << 20)}
    k = Keys(s.tower.name, {**s.tower.raw, **told})
    most = s.outer.count("max_dynamic_patch", default=12) + 1
    each = {"tile_patches": grid(k), "tile_tokens": grid(k) // 4, "tile_side": told["image_size"]}
    return {**_item(k, most * grid(k), most * grid(k) // 4), "tiles": most, **each}


def split_image(s: TowerFacts) -> Mapping[str, int]:
    """Idefics 3's and SmolVLM's: four by four tiles of `image_size`, and the picture whole.

    `Idefics3ImageProcessor` and `SmolVLMImageProcessor` (transformers 5.19): `size` is four times `max_image_size`.
    """
    merged = s.outer.count("scale_factor", default=2, high=64) ** 2
    side = s.tower.count("image_size", high=1 << 20)
    return _item(s.tower, 17 * grid(s.tower), 17 * (grid(s.tower) // merged), side=side)


def granite4_pinpoints(s: TowerFacts) -> Mapping[str, int]:
    """Granite 4 Vision's: LLaVA-NeXT's tiles, thinned out, a newline behind each row.

    Source: vLLM 0.32 `granite4_vision.py: get_num_image_tokens`.
    """
    queries, window = fraction(s.outer, "downsample_rate", "4/8")
    image = s.tower.count("image_size", high=1 << 20)
    side = image // s.tower.count("patch_size", high=4096) * queries // window

    def tokens(across: int, down: int) -> int:
        return side**2 + down * side * (across * side + 1)

    listed = s.outer.raw.get("image_grid_pinpoints")
    pairs = [p for p in listed if isinstance(p, list) and len(p) == 2] if isinstance(listed, list) else []
    tiled = [(w // image, h // image) for h, w in pairs if type(h) is int and type(w) is int]
    across, down = max(tiled, default=(2, 2), key=lambda t: tokens(*t))
    more = {"side": image, "tile_patches": grid(s.tower), "grid": side, "whole_tokens": side**2}
    return {**_item(s.tower, (across * down + 1) * grid(s.tower), tokens(across, down)), **more}


def views(
    tile: int, across: int, down: int, *, ends: bool = True
) -> Callable[[TowerFacts], Mapping[str, int]]:
    """DeepSeek-OCR's: a picture of 1,024 x 1,024 and its tiles through SAM's ViT-B, one image behind the other.

    In its windows the biases of attention are tensors: sixteen hidden states' worth is alive. Sixteen patches of
    16 x 16 become a token; `ends`: each row of tokens has one. The tiles are those of the image that vLLM profiles.
    Source: vLLM 0.32 `deepseek_ocr.py`, `deepseek_ocr2.py`, `unlimited_ocr.py: get_image_size_with_most_features,
    get_num_image_tokens`, `deepencoder.py`.
    """
    rows, columns = down * tile // 64, across * tile // 64
    tokens = 16 * (16 + ends) + rows * (columns + ends) + 1
    tiled = across * down * (tile // 16) ** 2
    facts = item(
        768, 3072, 64**2 + tiled, tokens, pixels=768, at_once=max(64**2, tiled), scores=7 * 768, whole=1
    )
    return lambda s: facts


def lfm2_image(s: TowerFacts) -> Mapping[str, int]:
    """LFM2-VL's: one tile of 256 tokens (vLLM 0.32 `lfm2_vl.py: get_image_size_with_most_features`)."""
    tokens = s.outer.count("max_image_tokens", default=256, high=1 << 20)
    return _item(s.tower, tokens * s.outer.count("downsample_factor", default=2, high=64) ** 2, tokens)


def _resized(s: TowerFacts, pixels: int, merged: int, *, patch: int = 14) -> tuple[int, int]:
    """Patches and tokens of a square of so many pixels at most, whole tokens to a side."""
    side = isqrt(pixels) // (s.tower.count("patch_size", default=patch, high=4096) * merged)
    return (side * merged) ** 2, side**2


def keye_image(s: TowerFacts) -> Mapping[str, int]:
    """Keye's: `max_pixels` of 28 x 28 x 1,280 in Kwai-Keye's own image processor.

    Its video is one such frame, as vLLM keeps room for 999 images beside it (vLLM 0.32 `keye.py:
    get_num_frames_with_most_features`).
    """
    joined = s.tower.count("spatial_merge_size", default=2, high=64)
    more = {"patch": s.tower.count("patch_size", default=14, high=4096), "joined": joined**2}
    newer = s.outer.text("model_type").endswith("1_5")
    more["most_frames"] = 2048 if newer else 16
    return {**_item(s.tower, *_resized(s, 28 * 28 * 1280, joined)), **more}


def ernie_video(s: TowerFacts) -> Mapping[str, int]:
    """ERNIE 4.5 VL's: pairs of frames, as many as the context holds beside an image, two of them a token's.

    `Ernie4_5_VLMoeImageProcessor` (transformers 5.19): 28 x 28 x 6,177 pixels. Source: vLLM 0.32 `ernie45_vl.py:
    get_num_frames_with_most_features`.
    """
    patches, tokens = _resized(s, 28 * 28 * 6177, s.outer.count("spatial_conv_size", default=2, high=64))
    pair = s.outer.count("temporal_conv_size", default=2, high=64)
    joined = s.outer.count("spatial_conv_size", default=2, high=64) ** 2
    more = {"patch": s.tower.count("patch_size", default=14, high=4096), "joined": joined, "pair": pair}
    return {**_item(s.tower, patches, tokens), **more, **_video(pair * patches, tokens, beside=tokens)}


def hunyuan_image(s: TowerFacts) -> Mapping[str, int]:
    """HunYuan's OCR: 2,048 x 2,048, an end to each row of tokens and two marks (transformers 5.19
    `HunYuanVLImageProcessor`, `HunYuanVLProcessor`)."""
    patches, tokens = _resized(s, 2048**2, s.tower.count("spatial_merge_size", default=2, high=64), patch=16)
    more = {"patch": s.tower.count("patch_size", default=16, high=4096), "most_pixels": 2048**2}
    return {**_item(s.tower, patches, tokens + isqrt(tokens) + 2, whole=1, joined=patches // tokens), **more}


def cosmos3_edge_video(s: TowerFacts) -> Mapping[str, int]:
    """Cosmos 3 Edge's: two frames that share 24 x 1,024 x 1,024 pixels, which is more than the largest image.

    vLLM factors that limit into frames of 128 x 192 tokens; the processor cuts both sides by the root of two. Source:
    vLLM 0.32 `qwen3_vl.py: get_max_video_tokens`, transformers 5.19 `Cosmos3EdgeVideoProcessor`.
    """
    joined = merge(s.outer.section("projector_config"))
    patch = s.tower.count("patch_size", default=16, high=4096)
    unit = patch * isqrt(joined)
    height = next(n for n in range(isqrt(24 * 2**20 // unit**2), 0, -1) if 24 * 2**20 // unit**2 % n == 0)
    width = 24 * 2**20 // unit**2 // height
    tokens = 2 * isqrt(height**2 // 2) * isqrt(width**2 // 2)
    still = (4096 // unit) ** 2
    more = {"frames_apart": 1, "unit": unit, "merge": joined}
    video = _video(joined * tokens, tokens, most=1)
    return {**_item(s.tower, joined * still, still), **video, **more}


def intern_video(s: TowerFacts) -> Mapping[str, int]:
    """Intern-S1's: frames of one tile each, as many as the context holds beside the image of one.

    Source: vLLM 0.32 `interns1.py: get_num_frames_with_most_features`.
    """
    images, each = s.tower.counts("image_size"), s.tower.counts("patch_size")
    patches = images[0] // each[0] * (images[1] // each[1])
    hidden, width, _ = sizes(s.tower)
    more = {"side": images[0], "patch": each[0]}
    image = item(hidden, width, patches + 1, patches // 4, pixels=3 * each[0] * each[1], **more)
    return {**image, **_video(patches + 1, patches // 4, beside=patches // 4)}


def nemotron_video(s: TowerFacts) -> Mapping[str, int]:
    """Nemotron Nano VL's: frames joined in tubelets fill the context; 128 frames at a time pass the tower.

    Images are tiles, or as large as the context (`memory/stated/fitted.py: filling`). Source: vLLM 0.32
    `nano_nemotron_vl.py: get_mm_max_tokens_per_item, get_num_frames_with_most_features, extract_feature`.
    """
    args = s.tower.section("args")
    if args.text("model") not in RADIO:
        raise s.tower.error(f"RADIO model {args.text('model')[:40]!r} is not known")
    hidden, _, width = RADIO[args.text("model")]
    patch = s.tower.count("patch_size", default=16, high=4096)
    frames = s.tower.count("video_temporal_patch_size", default=1, high=64)
    frame = (s.outer.count("force_image_size", default=512, high=1 << 20) // patch) ** 2
    images = 1 if "min_num_patches" in args else 13
    side = s.outer.count("force_image_size", default=512, high=1 << 20)
    each = {"tiles": images, "tile_patches": frame, "tile_tokens": frame // 4, "tile_side": side}
    facts = item(hidden, width, images * frame, images * frame // 4, pixels=3 * patch**2, **each)
    more = {"media_frames": frames, "at_once": 128 // frames * frame, "frame_pixels": 3 * frames * patch**2}
    more |= {"video_fills": 1, "patch": patch}
    if "min_num_patches" in args:
        more |= {
            "image_least": args.count("min_num_patches", low=1, high=1 << 24),
            "image_most": args.count("max_num_patches", default=0, low=0, high=1 << 24),
        }
    return {**facts, **_video(frame, frame // 4), **more}


def pangu_pair(s: TowerFacts) -> Mapping[str, int]:
    """openPangu's, as flags tell: its limit of pixels stands in a file of the checkpoint.

    Sides are run in whole squares of 56 pixels (`factor_size` of its `OpenPanguVLImageProcessorFast`, as a public port
    to transformers has it) and counted in those of a token, as Qwen 2's (vLLM 0.32 `models/openpangu_vl.py`).
    """
    facts = dict(qwen_image(s.tower, gated=s.tower.text("hidden_act") == "silu"))
    for key in ("patches", "tokens", "frame_patches", "frame_tokens"):
        del facts[key]
    return facts | {"run_unit": 56}


def mimo_video(s: TowerFacts) -> Mapping[str, int]:
    """MiMo-V2 Omni's: up to 14 frames, each counted as a pair, run in pairs that share a video's pixels.

    4,096 tokens an image, four times as many a video, unless `processor_config` tells. Source: vLLM 0.32
    `mimo_v2_omni.py: _get_vision_info`, `processors/mimo_v2_omni.py: from_hf_config, process_video`.
    """
    frames, merged = s.tower.count("temporal_patch_size", default=2, high=64), merge(s.tower)
    unit = s.tower.count("patch_size", default=14, high=4096) ** 2 * merged
    told = s.outer.section("processor_config")
    tokens = told.count("image_max_pixels", default=4096 * unit) // unit
    sizes_of = {"patch": isqrt(unit // merged), "joined": merged, "most_pixels": tokens * unit}
    sizes_of["frame_most"] = told.count("video_max_pixels", default=4096 * unit)
    image = _item(
        s.tower, tokens * merged, tokens, pixels=3 * frames * unit // merged, gated=True, **sizes_of
    )
    video = _video(tokens * merged // frames, tokens, most=14)
    whole = told.count("video_total_max_pixels", default=16384 * unit) // unit
    return {**image, **video, "most_patches": whole * merged}


def gemma4_unified_video(s: TowerFacts) -> Mapping[str, int]:
    """Gemma 4's without a tower: 32 frames of 70 large patches, embedded in turn; eight tokens more each.

    Source: vLLM 0.32 `gemma4_unified.py: get_mm_max_tokens_per_item`.
    """
    side = s.tower.count("patch_size", high=4096) * s.tower.count("pooling_kernel_size", high=4096)
    image = s.tower.count("num_soft_tokens", default=280)
    facts = item(s.tower.count("mm_embed_dim"), 0, image, image, pixels=3 * side**2, at_once=image)
    return {**facts, **_video(32 * 70, 32 * (70 + 8), most=1)}


def emu3_image(s: TowerFacts) -> Mapping[str, int]:
    """Emu 3's: 1,024 x 1,024, repeated to as many frames as are joined; four tensors of the first convolutions' width.

    A token for each square of the last convolutions, an end to each row. Source: transformers 5.19
    `Emu3ImageProcessor`, `Emu3Processor`, `Emu3VQVAE.encode`.
    """
    k, side = s.tower, 1024 // 2 ** (len(s.tower.counts("channel_multiplier")) - 1)
    base, frames = k.count("base_channels"), k.count("temporal_downsample_factor", high=1 << 16)
    more = {"repeated": frames, "most_pixels": 1024**2, "outside": 4 * base + 3}
    return item(0, 0, frames * 1024**2, side * (side + 1), pixels=3, whole=1, **more)
