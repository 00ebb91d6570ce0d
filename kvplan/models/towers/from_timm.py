"""Towers that are classes of the package timm: SigLIP, DINOv2, and Gemma 3n's MobileNetV5 (beside its Conformer)."""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.models.config import Keys
from kvplan.models.spec import Weight
from kvplan.models.towers.images import siglip
from kvplan.models.towers.parts import (
    NoSuchTower,
    Parts,
    TowerFacts,
    blocks,
    item,
    linear,
    pairs,
    patches,
    sizes,
    two,
    vector,
)
from kvplan.models.towers.sound import gemma_conformer

SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
"""`vit_so400m_patch14_siglip`, which vLLM makes whatever the config's own sizes say."""
DINO_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}
"""`vit_large_patch14_reg4_dinov2`."""


def so400m(name: str, image: int, cut: str) -> Parts:
    """SigLIP with its pooling by attention, which is never run; ranks that cut it cut its MLPs alone.

    Source: timm 1.0 `vision_transformer.py`.
    """
    k = Keys(name, {**SO400M, "image_size": image})
    hidden, width, _ = sizes(k)
    for part in siglip(k):
        yield part if cut and part.name.startswith("fc") else part._replace(cut="")
    yield linear("attn_pool", 4 * hidden, hidden)
    yield vector("attn_pool.latent_and_norm", 3 * hidden)
    yield linear("attn_pool.fc1", width, hidden, cut and "rows")
    yield linear("attn_pool.fc2", hidden, width, cut and "cols")


def deepseek_vl2(s: TowerFacts) -> Parts:
    """SigLIP, a projector that joins squares of patches. Source: vLLM 0.32 `models/deepseek_vl2.py`."""
    yield from so400m(s.outer.name, 384, "rows")
    yield vector("image_newline_and_view_separator", 2 * _embedded(s))
    yield from _projector(s)


def _embedded(s: TowerFacts) -> int:
    return s.outer.section("projector_config").count("n_embed", default=2048)


def _projector(s: TowerFacts) -> Parts:
    k, out = s.outer.section("projector_config"), _embedded(s)
    into = k.count("input_dim", default=1152)
    if k.text("projector_type", default="downsample_mlp_gelu") == "linear":
        yield linear("projector", out, into)
        return
    middle = out * k.count("mlp_ratio", default=1, high=64)
    joined = k.count("downsample_ratio", default=2, high=64) ** 2
    yield linear("projector.first", middle, joined * into)
    yield linear("projector.middle", middle, middle, copies=max(k.count("depth", default=2, high=64) - 2, 0))
    yield linear("projector.last", out, middle)


def tiled_square(s: TowerFacts) -> Mapping[str, int]:
    """The candidate with most tokens: its tiles and the whole picture, an end to each row of tokens."""
    hidden, width, _ = sizes(Keys(s.outer.name, SO400M))
    found = pairs(s.outer, "candidate_resolutions") if "candidate_resolutions" in s.outer else [[384, 384]]
    sides = [p for p in found if isinstance(p, list) and len(p) == 2]
    if not sides or not all(type(n) is int and 384 <= n <= 1 << 16 for p in sides for n in p):
        raise s.outer.error("candidate_resolutions must be pairs of numbers from 384 on")
    joins = s.outer.section("projector_config").count("downsample_ratio", default=2, high=64)
    row = -(-(384 // 14) // joins)

    def tokens(high: int, wide: int) -> int:
        return row * (row + 1) + high * row * (wide * row + 1) + 1

    most, tiles = max((tokens(h // 384, w // 384), h // 384 * (w // 384)) for h, w in sides)
    patches = (tiles + 1) * (384 // 14) ** 2
    more = {"side": 384, "grid": row, "tile_patches": (384 // 14) ** 2}
    return item(hidden, width, patches, most, pixels=3 * 14**2, **more)


OPENVLA = {
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "image_sizes": [224, 224],
    "use_fused_vision_backbone": True,
}
"""What vLLM 0.32's OpenVLA must find under these keys, each the default too (`models/openvla.py:
PrismaticVisionBackbone`)."""


def openvla(s: TowerFacts) -> Parts:
    """DINOv2 and SigLIP side by side, whole on every rank; a projector of three matrices, two of them cut."""
    for key, only in OPENVLA.items():
        if key in s.outer and s.outer.raw[key] != only:
            raise NoSuchTower(f"{s.outer.name}: config.json: {key}: vLLM's OpenVLA supports only {only}")
    k = Keys(s.outer.name, {**DINO_L, "image_size": 224})
    dino, seen = sizes(k)[0], sizes(k)[0] + SO400M["hidden_size"]
    yield from patches(k)
    yield vector("class_and_registers_and_norm", (1 + 4 + 2) * dino)
    yield from blocks(k, cut=False, norms=6)
    yield from so400m(s.outer.name, 224, "")
    yield from two("projector", (s.text, 4 * seen, seen), cut=True)
    yield linear("projector.linear_3", s.text, s.text)


def both_at_224(s: TowerFacts) -> Mapping[str, int]:
    """An image of 224 x 224: 256 patches through each of the two, the second of which is wider; six colours."""
    return item(SO400M["hidden_size"], SO400M["intermediate_size"], 256, 256, pixels=6 * 14**2)


def gemma3n(s: TowerFacts) -> Parts:
    """MobileNetV5 and a Conformer, whole on every rank; embedders from each to the language model, which are cut."""
    if s.tower.text("architecture", default="mobilenetv5_300m_enc") != "mobilenetv5_300m_enc":
        raise s.tower.error("architecture other than mobilenetv5_300m_enc is not known")
    yield from mobilenet_v5()
    yield from _embedder("embed_vision", s.tower, s.text)
    sound = s.outer.section("audio_config")
    yield from gemma3n_audio(sound)
    yield from _embedder("embed_audio", sound, s.text)


def _embedder(name: str, k: Keys, text: int) -> Parts:
    """Words of its own, norms of words and of features, one matrix."""
    hidden = k.count("hidden_size")
    yield Weight(f"{name}.embedding", k.count("vocab_size"), hidden, "vocab")
    yield vector(f"{name}.norms", 2 * hidden)
    yield linear(f"{name}.projection", text, hidden, "cols", bias=False)


def gemma3n_audio(k: Keys) -> Parts:
    """Two convolutions over time and pitch, then Conformer layers. Source: transformers 5 `modeling_gemma3n.py`."""
    hidden, pitches, into = k.count("hidden_size"), k.count("input_feat_size", high=1 << 16), 1
    channels = k.counts("sscp_conv_channel_size")
    shapes = zip(pairs(k, "sscp_conv_kernel_size"), pairs(k, "sscp_conv_stride_size"), strict=False)
    if len(channels) != 2:
        raise k.error("sscp_conv_channel_size must be two numbers")
    for i, (out, (kernel, stride)) in enumerate(zip(channels, shapes, strict=False)):
        (high, wide), (_, step) = _two(k, kernel), _two(k, stride)
        yield linear(f"subsample.conv_{i}", out, into * high * wide, bias=False)
        yield vector(f"subsample.norm_{i}", out)
        into, pitches = out, (pitches + 2 - wide) // step + 1
    yield linear("subsample.out", hidden, into * max(pitches, 1), bias=False)
    layers, heads = k.count("conf_num_hidden_layers", high=4096), k.count("conf_num_attention_heads")
    yield from gemma_conformer((hidden, layers, heads), k.count("conf_conv_kernel_size", high=4096))


def _two(k: Keys, found: object) -> tuple[int, int]:
    if isinstance(found, list) and len(found) == 2 and all(type(n) is int and 0 < n < 64 for n in found):
        return found[0], found[1]
    raise k.error("sscp_conv kernels and strides must be pairs of small numbers")


def mobilenet_v5() -> Parts:
    """`mobilenetv5_300m_enc`: four stages of 128, 256, 640 and 1,280 channels; the last two are joined to 2,048.

    Source: timm 1.0 `mobilenetv5.py`, `_efficientnet_blocks.py`.
    """
    yield linear("stem", 64, 3 * 9)
    yield vector("stem.norm", 64)
    for i, into in enumerate((64, 128, 128)):
        yield linear(f"0.{i}.conv_exp", 4 * into, 9 * into, bias=False)
        yield linear(f"0.{i}.conv_pwl", 128, 4 * into, bias=False)
        yield vector(f"0.{i}.norms", 4 * into + 128)
    yield from _inverted("1.first", 128, 256, 6, start=3, mid=5)
    for kernel in (5, 3, 5, 3):
        yield from _inverted(f"1.{kernel}", 256, 256, 4, start=kernel)
    yield from _inverted("2.first", 256, 640, 6, start=5, mid=5)
    yield from _inverted("2.start", 640, 640, 4, start=5, copies=7)
    yield from _inverted("2.plain", 640, 640, 1)
    yield from _queries("2", 640, 12 * 64, 64, 14, strided=True)
    yield from _inverted("2.rest", 640, 640, 2, copies=14)
    yield from _inverted("3.first", 640, 1280, 6, start=5, mid=5)
    yield from _queries("3", 1280, 16 * 96, 96, 19)
    yield from _inverted("3.rest", 1280, 1280, 2, copies=19)
    yield from _inverted("msfa", 640 + 1280, 2048, 2)  # a norm where the others have a scale


def _inverted(
    name: str, into: int, out: int, times: int, *, start: int = 0, mid: int = 0, copies: int = 1
) -> Parts:
    """An inverted bottleneck: wider by `times` inside, depthwise kernels before and amid; norms, a scale behind."""
    inside = times * into
    yield linear(f"{name}.pw_exp", inside, into, bias=False, copies=copies)
    yield linear(f"{name}.pw_proj", out, inside, bias=False, copies=copies)
    yield vector(f"{name}.norms_and_scale", inside + 2 * out, copies)
    for kernel, width in ((start, into), (mid, inside)):
        if kernel:
            yield vector(f"{name}.depthwise_{width}", (kernel**2 + 1) * width, copies)


def _queries(name: str, width: int, heads: int, head: int, copies: int, *, strided: bool = False) -> Parts:
    """Attention of many queries to one key and value, thinned out by a stride of two where told."""
    yield linear(f"{name}.query_and_output", 2 * heads, width, bias=False, copies=copies)
    yield linear(f"{name}.key_and_value", 2 * head, width, bias=False, copies=copies)
    yield vector(f"{name}.norm_and_scale", 2 * width, copies)
    if strided:
        yield vector(f"{name}.down", 2 * (9 + 1) * width, copies)


def mobilenet_image(s: TowerFacts) -> Mapping[str, int]:
    """An image of 768 x 768 where MobileNetV5 holds most: its first stage, a quarter of the side, 128 channels.

    A stage's layers are four times as wide inside. What the profile run takes is bounded by tokens, 256 an image.
    """
    tokens = s.outer.count("vision_soft_tokens_per_image", default=256)
    return item(128, 4 * 128, (768 // 4) ** 2, tokens, pixels=3 * 4**2)
