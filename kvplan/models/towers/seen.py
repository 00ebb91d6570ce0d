"""The largest picture or video that start-up profiles, of towers whose processors cut and count in their own way."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import floor, isqrt, sqrt

from kvplan.models.config import Keys
from kvplan.models.towers.both import folds
from kvplan.models.towers.parts import ANY_LENGTH, TowerFacts, item, merge, sizes

SIGLIP, CLIP = (1152, 4304), (1024, 4096)
"""Hidden size and width of SigLIP so400m and of CLIP-L, where a config does not tell them."""


def _patch(k: Keys) -> int:
    return k.count("patch_size", default=14, low=2, high=4096)


def _colours(k: Keys, frames: int = 1) -> int:
    """Numbers of one patch."""
    return 3 * frames * _patch(k) ** 2


def _square(pixels: int, unit: int) -> int:
    """Side of the largest square of whole units within so many pixels."""
    return max(isqrt(pixels) // unit * unit, unit)


def _overview(side: int, slices: int, unit: int) -> tuple[int, int]:
    """Sides of a picture `slices` times as tall as wide, shrunk to the area of one slice, in whole units.

    Source: `find_best_resize` of MiniCPM-V's image processors.
    """
    tall = floor(side * sqrt(slices))
    return max(round(tall / unit) * unit, unit), max(round(tall // slices / unit) * unit, unit)


def _sliced(s: TowerFacts, joined: int) -> tuple[int, int, int]:
    """MiniCPM-V's tallest picture: slices in all, patches of a slice and of the picture as a whole.

    Nine slices of 448 pixels and the whole, each padded to the larger; sides are whole groups of `joined` patches.
    Source: vLLM 0.32 `models/minicpmv.py: get_image_size_with_most_features`; defaults of the image processors of
    MiniCPM-V 2 (its preprocessor_config.json) and of transformers' `MiniCPMV4_6ImageProcessor`.
    """
    patch, side = _patch(s.tower), s.outer.count("image_size", default=448, high=1 << 16)
    most = s.outer.count("max_slice_num", default=9, high=1024)
    tall, wide = _overview(side, most, joined * patch)
    return most + 1, (side // patch) ** 2, (tall // patch) * (wide // patch)


def _slicing(s: TowerFacts) -> dict[str, int]:
    """Sides of a slice and a patch, slices at most."""
    side = s.outer.count("image_size", default=448, high=1 << 16)
    return {
        "side": side,
        "patch": _patch(s.tower),
        "slices": s.outer.count("max_slice_num", default=9, high=1024),
    }


def minicpm_image(s: TowerFacts, *, heard: bool = False) -> Mapping[str, int]:
    """Queries read each slice; from version 2.6 on, a video of 16 frames (`_MAX_FRAMES_PER_VIDEO`), a slice each.

    What they read is of the language model's width, six times: normed, with positions, projected, laid out anew.
    `heard`: beside an image, room is left for a sound of 30 chunks of a second (vLLM 0.32 `models/minicpmo.py`).
    """
    (hidden, width, _), queries = sizes(s.tower), s.outer.count("query_num", default=64, high=1 << 16)
    slices, each, whole = _sliced(s, 1)
    pool = s.outer.count("audio_pool_step", default=2, high=50)
    beside = slices * queries + 30 * ((50 - pool) // pool + 1) * heard
    video = {"frames": 16, "frame_tokens": queries, "frame_patches": each, "beside": beside}
    more = {} if s.outer.raw.get("version") in (2.5, "2.5") else video
    more |= {"outside": _colours(s.tower) + hidden + 6 * s.text, "queries": queries, **_slicing(s)}
    return item(hidden, width, slices * max(each, whole), slices * queries, pixels=_colours(s.tower), **more)


def minicpmo_image(s: TowerFacts) -> Mapping[str, int]:
    """MiniCPM-o: its sounds are never profiled, though room is left for one."""
    return minicpm_image(s, heard=True)


def minicpm4_image(s: TowerFacts) -> Mapping[str, int]:
    """MiniCPM-V 4.6 and 4.7: 16 patches a token; every frame of a video is sliced too."""
    hidden, width, _ = sizes(s.tower)
    slices, each, whole = _sliced(s, 4)
    tokens, patches = whole // 16 + (slices - 1) * (each // 16), slices * max(each, whole)
    video = {"frames": 16, "frame_tokens": tokens, "frame_patches": patches, "beside": tokens}
    return item(hidden, width, patches, tokens, pixels=_colours(s.tower), **video, **_slicing(s))


def glimmer_image(s: TowerFacts) -> Mapping[str, int]:
    """4,096 tokens of four patches; or 48 pairs of frames of 144 tokens. MLPs, the widest, are whole on every rank.

    Source: vLLM 0.32 `transformers_utils/processors/muse_glimmer.py`.
    """
    (hidden, width, _), joined = sizes(s.tower), merge(s.tower, "merge_size", "merge_kernel_size")
    frames = s.tower.count("patch_temporal", default=2, high=64)
    video = {"frames": 96 // frames, "frame_tokens": 144, "frame_patches": 144 * joined}
    more = {"whole": 1, "patch": _patch(s.tower), "joined": joined}
    return item(hidden, width, 4096 * joined, 4096, pixels=_colours(s.tower, frames), **more, **video)


def ovis_image(s: TowerFacts) -> Mapping[str, int]:
    """Nine tiles and the whole, and eleven marks around them; a head over visual words, whose chances are padded.

    Source: vLLM 0.32 `transformers_utils/processors/ovis.py: max_partition, construct_image_indicators`.
    """
    k = s.tower.section("backbone_config")
    hidden, width, _ = sizes(k)
    side = -(-k.count("image_size", high=1 << 16) // _patch(k))
    stride = s.tower.count("hidden_stride", default=1, high=64)
    words, gated = 3 * s.tower.count("vocab_size", default=16384), k.text("model_type") == "aimv2"
    outside = _colours(k) + hidden + words // stride**2
    tokens = 10 * (side // stride) ** 2 + 11
    more = {"side": k.count("image_size", high=1 << 16), "stride": stride, "outside": outside}
    return item(hidden, width, 10 * side**2, tokens, pixels=_colours(k), gated=gated, **more)


def ovis2_5_image(s: TowerFacts) -> Mapping[str, int]:
    """1,792 x 1,792 pixels; a video of as many such frames as the context holds, a token reckoned for each patch.

    A head over visual words, whose chances are float32, as are the logits copied for them.
    Source: vLLM 0.32 `models/ovis2_5.py: get_image_size_with_most_features, get_num_image_tokens`.
    """
    (hidden, width, _), patches = sizes(s.tower), (1792 // _patch(s.tower)) ** 2
    joined, words = merge(s.tower, "hidden_stride"), s.outer.count("visual_vocab_size", default=65536)
    tokens, outside = patches // joined, _colours(s.tower) + hidden + 5 * words // joined
    video = {"frames": ANY_LENGTH, "frame_tokens": tokens, "frame_patches": patches, "frame_room": patches}
    more = video | {"beside": patches, "outside": outside, "patch": _patch(s.tower), "joined": joined}
    return item(hidden, width, patches, tokens + 2, pixels=_colours(s.tower), **more)


def phi3v_image(s: TowerFacts) -> Mapping[str, int]:
    """Four tiles of 336 pixels in a column and the whole, 144 tokens each and one more a row, a mark between.

    Source: vLLM 0.32 `models/phi3v.py: get_image_size_with_most_features`; `num_crops` as vLLM's tests state it for
    Phi-3.5-vision (tests/models/multimodal/processing/test_phi3v.py).
    """
    tiles = 4 + 1
    return item(*CLIP, tiles * (24**2 + 1), tiles * (144 + 12) + 1, pixels=588)


def phi4mm_image(s: TowerFacts) -> Mapping[str, int]:
    """36 tiles of 448 pixels in a column (`dynamic_hd`) and the whole; a sound becomes less (188 tokens).

    Source: vLLM 0.32 `models/phi4mm.py: _compute_num_image_tokens`; `dynamic_hd` of the published
    preprocessor_config.json.
    """
    tiles = 36 + 1
    return item(*SIGLIP, tiles * 32**2, tiles * (256 + 16) + 1, pixels=588)


def step_image(s: TowerFacts) -> Mapping[str, int]:
    """3,024 x 3,024 in 36 windows of 504 pixels, 81 tokens and two marks each; the whole in 728, 169 tokens; row ends.

    The windows pass the tower together, after the whole. Source: vLLM 0.32 `transformers_utils/processors/step3_vl.py`.
    """
    k, patch = s.tower, _patch(s.tower)
    hidden = sizes(k)[0]
    width = sizes(k)[1] if "mlp_ratio" not in k else round(k.number("mlp_ratio", 4.0, high=1000) * hidden)
    extra = int(k.flag("use_cls_token", "mlp_ratio" not in k))
    if not k.flag("enable_patch", True):
        alone = (728 // patch) ** 2 + extra
        return item(hidden, width, alone, 171, pixels=_colours(k), window_patches=0, whole_patches=alone)
    window, whole = ((n // patch) ** 2 + extra for n in (504, 728))
    tokens = 36 * (81 + 2) + (169 + 2) + 5
    more = {"window_patches": window, "whole_patches": whole}
    return item(hidden, width, 36 * window, tokens, pixels=_colours(k), **more)


def moondream_image(s: TowerFacts) -> Mapping[str, int]:
    """A picture of one crop, seen twice, one picture at a time.

    Source: vLLM 0.32 `models/moondream3.py: Moondream3ProcessingInfo, _encode_image_input`.
    """
    k = s.outer.section("config").section("vision")
    side = k.count("crop_size", default=378, high=1 << 16) // k.count("enc_patch_size", default=14, high=4096)
    sizes_of = k.count("enc_dim", default=SIGLIP[0]), k.count("enc_ff_dim", default=SIGLIP[1])
    patches = 2 * side**2
    return item(*sizes_of, patches, 730, pixels=588, at_once=patches)


def isaac_image(s: TowerFacts) -> Mapping[str, int]:
    """As many patches as the config allows, in a square of whole tokens.

    Source: vLLM 0.32 `models/isaac.py: get_image_size_with_most_features, get_mm_max_tokens_per_item`.
    """
    (hidden, width, _), most = (
        sizes(s.tower),
        s.outer.count("vision_max_num_patches", default=256, high=1 << 24),
    )
    scale = s.outer.count("pixel_shuffle_scale", default=1, high=64)
    more = {
        "patch": s.outer.count("video_patch_size", default=16, high=4096),
        "joined": scale**2,
        "most": most,
    }
    return item(hidden, width, _square(most, scale) ** 2, most // scale**2, pixels=_colours(s.tower), **more)


def kanana_image(s: TowerFacts) -> Mapping[str, int]:
    """1,003,520 pixels in whole tokens; the states of all layers are kept.

    Source: vLLM 0.32 `models/kanana_v.py`; `max_pixels` of Kanana's own `KananaVImageProcessor`.
    """
    k, patch = s.tower, _patch(s.tower)
    hidden, _, layers = sizes(k)
    width = round(k.number("mlp_ratio", 4.0, high=1000) * hidden)
    patches = (_square(14 * 14 * 4 * 1280, patch * isqrt(merge(k))) // patch) ** 2
    frames = k.count("temporal_patch_size", default=2, high=64)
    tokens = patches // merge(k)
    more = {"kept": layers * hidden, "patch": patch, "joined": merge(k)}
    return item(hidden, width, patches, tokens, pixels=_colours(k, frames), **more)


def onevision2_image(s: TowerFacts) -> Mapping[str, int]:
    """A picture of 1,605,632 pixels; a video is counted as 14 of them and run as four.

    Source: vLLM 0.32 `models/llava_onevision2.py`: `max_pixels` where the processor names none,
    `_MAX_FRAMES_PER_VIDEO`, `get_dummy_mm_data`.
    """
    (hidden, width, _), patch = sizes(s.tower), _patch(s.tower)
    patches = (_square(1_605_632, patch * isqrt(merge(s.tower))) // patch) ** 2
    tokens = patches // merge(s.tower)
    video = {"frames": 14, "frame_tokens": tokens, "frame_patches": patches, "frames_run": 4}
    more = video | {"patch": patch, "joined": merge(s.tower)}
    return item(hidden, width, patches, tokens, pixels=_colours(s.tower), **more)


def _overlapping(crops: int, side: int) -> tuple[int, int]:
    """Rows and columns of tokens, two patches each way, of crops in a column that overlap by eight patches."""
    return -(-(crops * (side - 8) + 8) // 2), -(-side // 2)


def molmo_image(s: TowerFacts) -> Mapping[str, int]:
    """Twelve crops of 24 x 24 patches and the whole; the states of all 23 layers are kept.

    Source: vLLM 0.32 `models/molmo.py: get_num_image_tokens, encode_image`; the published preprocessor_config.json.
    """
    hidden, width = CLIP
    rows, columns = _overlapping(12, 24)
    return item(hidden, width, 13 * (24**2 + 1), rows * columns + 12**2, pixels=588, kept=23 * hidden)


def molmo2_image(s: TowerFacts) -> Mapping[str, int]:
    """Eight crops of 27 x 27 patches and the whole, with marks and row ends; or 384 frames of 81 tokens and two marks.

    The states of all layers are kept. Source: vLLM 0.32 `models/molmo2.py: get_num_image_tokens,
    get_num_video_tokens, encode_image`; defaults of Molmo 2's own processors, `num_frames` as a public serving config
    has it.
    """
    k, (hidden, width, layers) = s.tower, sizes(s.tower)
    read = s.outer.section("adapter_config").raw.get("vit_layers")
    last = (
        max((i % layers for i in read if type(i) is int), default=-1)
        if isinstance(read, list)
        else -3 % layers
    )
    side = 378 // k.count("image_patch_size", default=14, high=4096)
    rows, columns = _overlapping(8, side)
    whole = -(-side // 2)
    tokens = rows * (columns + 1) + whole * (whole + 1) + 4
    a_frame = (-(-side // 3)) ** 2 + 2
    video = {"frames": 384, "frame_tokens": a_frame, "frame_patches": side**2}
    more = video | {"kept": (last + 1) * hidden}
    return item(hidden, width, 9 * side**2, tokens, pixels=588, **more)


def inkling_image(s: TowerFacts) -> Mapping[str, int]:
    """Four patches a side, twice as large: 72 with the one more that each row has; or nothing.

    Source: vLLM 0.32 `models/inkling/common/mm_preprocess.py: get_dummy_mm_data`, `processors/inkling.py`.
    """
    eyes = s.outer.section("vision_config")
    if "decoder_dmodel" not in eyes:
        return item(0, 0, 0, 1, pixels=0)
    held = [_grown(eyes, a) * 2 + _grown(eyes, b) for a, b in pairwise(folds(eyes))]
    pixels, side = _grown(eyes, folds(eyes)[0]), eyes.count("patch_size", low=2, high=4096)
    return item(0, 0, 8 * 9, 8 * 9, pixels=pixels, whole=1, outside=max(held), patch=side)


def inkling_sound(s: TowerFacts) -> Mapping[str, int]:
    """Ten minutes, 20 tokens a second: a sum of embeddings in one kernel.

    Source: vLLM 0.32 `models/inkling/common/mm_preprocess.py: MAX_AUDIO_TOKENS`.
    """
    ears = s.outer.section("audio_config")
    if "decoder_dmodel" not in ears:
        return {}
    bands = 2 * ears.count("n_mel_bins")
    return item(0, 0, 12_000, 12_000, pixels=bands, whole=1, outside=2 * bands)


def _grown(k: Keys, step: tuple[int, int, int]) -> int:
    """Numbers of a patch whose frames, sides and channels were folded so."""
    frames, side, channels = step
    whole = k.count("temporal_patch_size", high=64) // frames
    return whole * (k.count("patch_size", low=2, high=4096) // side) ** 2 * channels
