"""dots3-note's towers, whole on every rank: a ViT whose later layers have experts, and a Whisper of its own.

Source: vLLM 0.32 `models/dots3_note/nvidia` (`vision.py`, `vision_moe.py`, `audio.py`, `audio_encoder.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.ground.units import cdiv
from kvplan.models.config import Keys
from kvplan.models.spec import Weight
from kvplan.models.towers.parts import ANY_LENGTH, Parts, TowerFacts, item, linear, two, vector

FP8_BLOCK = 128
"""Experts' matrices are made FP8 after loading, padded to whole blocks, a float32 scale for each."""
CACHED_POSITIONS = 100_000
MELS = 128


def dots_note(s: TowerFacts) -> Parts:
    """Both towers, where the config has them."""
    eyes, ears = s.outer.section("vision_config"), s.outer.section("audio_config")
    if eyes.raw:
        yield from seen(eyes)
    if ears.raw:
        yield from heard(ears)


def seen(k: Keys) -> Parts:
    """Patches, layers with a dense MLP or experts, a merger; angles of 100,000 positions are kept."""
    dim, n = k.count("embed_dim", default=1536), k.count("num_hidden_layers", default=42, high=4096)
    heads, bias = k.count("num_attention_heads", default=24), k.flag("use_bias")
    channels, patch = (
        k.count("num_channels", default=3, high=64),
        k.count("patch_size", default=14, high=4096),
    )
    yield linear("patch_embed", dim, channels * patch**2)
    yield linear("attn.qkv", 3 * dim, dim, bias=bias, copies=n)
    yield linear("attn.proj", dim, dim, bias=bias, copies=n)
    yield vector("norms", 2 * dim, n)
    yield vector("other_norms", dim * (1 + k.flag("post_norm", True)))
    if k.flag("use_qk_norm", True):
        yield vector("qk_norms", 2 * (dim // heads), n)
    routed = experts(k, n)
    dense, width = n - len(routed), k.count("intermediate_size", default=4224)
    yield linear("mlp.up", 2 * width, dim, bias=bias, copies=dense)
    yield linear("mlp.down", dim, width, bias=bias, copies=dense)
    yield linear("mlp.gate", sum(routed), dim)  # with a correction each
    yield from _experts(k, dim, sum(routed))
    yield from _merger(k)
    yield vector("angles", CACHED_POSITIONS * (dim // heads // 4))


def experts(k: Keys, n: int) -> list[int]:
    """Experts of each layer that has some: numbers above 0 of `pyramid_num_routed`."""
    listed = k.raw.get("pyramid_num_routed") or []
    if not isinstance(listed, list) or not all(type(count) is int and count < 1 << 16 for count in listed):
        raise k.error("pyramid_num_routed must be whole numbers")
    return [count for count in listed[:n] if count > 0]


def _experts(k: Keys, dim: int, number: int) -> Parts:
    """Three matrices each, in FP8 unless told otherwise; biases are lost on the way to FP8."""
    width = k.count("moe_intermediate_size", default=2112)
    if not k.flag("enable_fp8_moe", True):
        yield linear("experts.up", 2 * width, dim, bias=k.flag("use_bias"), copies=number)
        yield linear("experts.down", dim, width, bias=k.flag("use_bias"), copies=number)
        return
    rows, cols = (cdiv(size, FP8_BLOCK) for size in (width, dim))
    yield Weight("experts", 3 * width, dim, copies=number, itemsize=1)
    padding = rows * cols * FP8_BLOCK**2 - width * dim
    yield Weight("experts.padding", 3 * padding, copies=number, itemsize=1, copied=True)
    yield Weight("experts.scales", 3 * rows, cols, copies=number, itemsize=4, copied=True)


def _merger(k: Keys) -> Parts:
    dim, out = k.count("adapter_in_dim", default=1536), k.count("adapter_out_dim", default=2048)
    merged = dim * k.count("adapter_merge_size", default=2, high=64) ** 2
    if k.text("adapter_type", default="pixel_shuffle_mlp") == "patch_merger":
        yield vector("adapter.norm", 2 * dim)
        yield from two("adapter", (out, merged, merged))
    else:
        yield vector("adapter.norm", 2 * merged)
        yield from two("adapter", (out, out, merged))


def heard(k: Keys) -> Parts:
    """Convolutions over time and pitch, Whisper's layers, two matrices."""
    w = k.section("whisper_config")
    dim, width, n = w.count("d_model"), w.count("encoder_ffn_dim"), w.count("encoder_layers", high=4096)
    each = dim * (1 if k.flag("use_rms_norm", True) else 2)
    if k.flag("use_conv2d_stem", True):
        wide = k.count("downsample_hidden_size", default=480)
        yield linear("conv2d1", wide, 9)
        yield linear("conv2d", wide, 9 * wide, copies=2)
        yield linear("conv_out", dim, wide * MELS // 8, bias=False)
    else:
        yield linear("conv1", dim, 3 * MELS)
        yield linear("conv2", dim, 3 * dim)
    if not k.flag("use_rope", True):
        yield vector("positions", w.count("max_source_positions", default=1500) * dim)
    yield linear("attn.qv_and_out", 3 * dim, dim, copies=n)
    yield linear("attn.k", dim, dim, bias=False, copies=n)
    sides = 2 if w.text("activation_function", default="gelu") == "swiglu" else 1
    yield linear("fc1", sides * width, dim, copies=n)
    yield linear("fc2", dim, width, copies=n)
    yield vector("norms", 2 * each, n)
    yield vector("layer_norm", each)
    into, out = (
        k.count(f"whisper_{name}", name, default=size)
        for name, size in (("adapter_in_dim", 1280), ("adapter_out_dim", 2048))
    )
    yield vector("adapter.norm", 2 * into)
    yield from two("adapter", (out, out, into))


MOST_PIXELS = 12_845_056
"""Of an image: `max_pixels` of the checkpoint's processor, as a public port of it has it (vllm.cpp,
`include/vllm/multimodal/dots3_note_processor.h`)."""


def dots_note_sound(s: TowerFacts) -> Mapping[str, int]:
    """A minute, filled up to it, as many tokens of it as the context holds; 16 minutes at a time.

    The first convolution and its activation are the widest: `downsample_hidden_size` channels of half the times and
    pitches. Source: vLLM 0.32 `models/dots3_note/common/processor.py: get_mm_max_tokens_per_item`, `nvidia/audio.py`.
    """
    k = s.outer.section("audio_config")
    if not k.raw:
        return {}
    w, stem = k.section("whisper_config"), k.flag("use_conv2d_stem", True)
    joined, seconds = 8 if stem else 2, k.count("chunk_seconds", default=60, high=1 << 16)
    positions, pixels = -(-100 * seconds // joined), joined * MELS
    merged = k.count("merge_factor", default=1, high=64)
    channels = k.count("downsample_hidden_size", default=480) if stem else 0
    more = {"outside": channels * joined * MELS // 2 + pixels, "at_once": 16 * positions, "within": 1}
    sides = w.count("d_model"), w.count("encoder_ffn_dim")
    return item(*sides, positions, -(-positions // merged), pixels=pixels, gated=1, whole=1, **more)


def dots_note_video(s: TowerFacts) -> Mapping[str, int]:
    """A video of three quarters of the context, a frame for every image's tokens in it; or an image; or a minute.

    Frames are made as small as 1,024 tokens and the video's share of the context lets them be.
    Two experts a patch write gate, up and their product in 16 bits, and the product again in 8, beside the input in 8.
    Source: vLLM 0.32 `models/dots3_note/common/processor.py: get_mm_max_tokens_per_item`, `video.py: _solve_degrade`,
    `nvidia/vision_moe.py`.
    """
    k = s.outer.section("vision_config")
    if not k.raw:
        return dots_note_sound(s)
    dim, patch = k.count("embed_dim", default=1536), k.count("patch_size", default=14, high=4096)
    joined = k.count("adapter_merge_size", default=2, high=64) ** 2
    tokens, width = MOST_PIXELS // (joined * patch**2), k.count("intermediate_size", default=4224)
    padded = cdiv(k.count("moe_intermediate_size", default=2112), FP8_BLOCK) * FP8_BLOCK
    routed = int(2 * 3.5 * padded + dim / 2) if k.raw.get("pyramid_num_routed") else 0
    video = {"frames": ANY_LENGTH, "frame_tokens": 3, "frame_patches": 3 * joined, "frame_room": 4}
    video |= {"run_tokens": tokens, "run_least": 4, "run_patches": 1024 * joined}
    sides = max(3 * width, routed)
    pixels = k.count("num_channels", default=3, high=64) * patch**2
    video["patch"] = patch
    return item(dim, cdiv(sides, 3), tokens * joined, tokens, pixels=pixels, gated=1, whole=1, **video)
