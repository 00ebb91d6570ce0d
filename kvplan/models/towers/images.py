"""Towers for images that have a public encoder: SigLIP, CLIP, InternViT, RADIO, Pixtral."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from kvplan.models.config import Keys
from kvplan.models.spec import Weight
from kvplan.models.towers.parts import (
    Parts,
    TowerFacts,
    blocks,
    fraction,
    grid,
    item,
    linear,
    merge,
    pairs,
    patches,
    sizes,
    two,
    vector,
)


def siglip(k: Keys, *, layers: int = 0, positions: int = -1, post: bool = True) -> Parts:
    """SigLIP without its projector."""
    yield from patches(k, positions=positions)
    yield from blocks(k, layers=layers)
    if post:
        yield vector("post_layernorm", 2 * sizes(k)[0])


def clip(k: Keys, *, layers: int = 0, post: bool = False) -> Parts:
    """CLIP up to the layer that is read: a class token, norms before the layers."""
    hidden = sizes(k)[0]
    yield from patches(k, bias=False, positions=grid(k) + 1)
    yield vector("class_and_pre_layernorm", 3 * hidden)
    yield from blocks(k, layers=layers)
    if post:
        yield vector("post_layernorm", 2 * hidden)


def last_layer(s: TowerFacts, default: int = -2) -> int:
    """Layers up to the one that `vision_feature_layer` reads."""
    layers = sizes(s.tower)[2]
    read = s.outer.raw.get("vision_feature_layer", default)
    return layers + 1 + read if isinstance(read, int) and -layers <= read < 0 else layers


def idefics3(s: TowerFacts) -> Parts:
    """SigLIP, pixels shuffled, one matrix."""
    shuffled = sizes(s.tower)[0] * s.outer.count("scale_factor", default=2, high=64) ** 2
    yield from siglip(s.tower)
    yield linear("connector", s.text, shuffled, bias=False)


def aria(s: TowerFacts) -> Parts:
    """SigLIP without its last norm, and queries that attend to the patches."""
    hidden = sizes(s.tower)[0]
    middle = s.text
    yield from siglip(s.tower, post=False)
    yield vector("query", s.outer.count("max_value_projector_patch_to_query_dict", default=256) * hidden)
    yield linear("cross_attn", 7 * hidden, hidden, bias=False)
    yield linear("cross_attn.linear", hidden, hidden)
    yield vector("cross_attn.biases_and_norms", 10 * hidden)
    yield linear("feed_forward.linear_in", middle, hidden, "rows", bias=False)
    yield linear("feed_forward.linear_out", s.text, middle, "cols", bias=False)


def paddle_ocr(s: TowerFacts) -> Parts:
    """SigLIP, four patches merged."""
    hidden = sizes(s.tower)[0]
    merged = hidden * merge(s.tower)
    yield from siglip(s.tower)
    yield from two("mlp_AR", (s.text, merged, merged), norm=2 * hidden)


def keye(s: TowerFacts) -> Parts:
    """The same with packed positions, the projector cut; version 1.5 norms what it merged."""
    hidden = sizes(s.tower)[0]
    merged = hidden * merge(s.tower)
    newer = s.outer.text("model_type").endswith("1_5")
    yield from siglip(s.tower)
    yield vector("packing_positions", 32768 * hidden)
    yield from two("mlp_AR", (s.text, merged, merged), cut=True, norm=2 * (merged if newer else hidden))


def lfm2_vl(s: TowerFacts) -> Parts:
    """SigLIP 2, pixels unshuffled."""
    merged = sizes(s.tower)[0] * s.outer.count("downsample_factor", default=2, high=64) ** 2
    layers = last_layer(s, -1)
    yield from siglip(s.tower, positions=s.tower.count("num_patches", default=256), layers=layers)
    middle = s.outer.count("projector_hidden_size", default=2560)
    norm = 2 * merged if s.outer.flag("projector_use_layernorm", True) else 0
    yield from two(
        "projector", (s.text, middle, merged), bias=s.outer.flag("projector_bias", True), norm=norm
    )


def minicpmv4(s: TowerFacts) -> Parts:
    """SigLIP with a merger between its layers and another behind them."""
    hidden, width, _ = sizes(s.tower)
    merged = 4 * hidden
    yield from siglip(s.tower)
    yield linear("vit_merger.qkv", 3 * hidden, hidden, "rows")
    yield linear("vit_merger.out", hidden, hidden, "cols")
    yield vector("vit_merger.norm", 2 * hidden)
    yield from two("vit_merger", (hidden, 4 * width, merged), norm=2 * merged)
    yield from two("merger", (s.text, merged, merged), norm=2 * merged)


def minicpmv(s: TowerFacts) -> Parts:
    """SigLIP, and queries of the language model's width that attend to the patches."""
    layers = sizes(s.tower)[2] - int(s.outer.flag("drop_vision_last_layer", True))
    text = s.text
    yield from siglip(s.tower, layers=layers)
    yield vector("resampler.query", s.outer.count("query_num", default=64) * text)
    yield linear("resampler.proj_and_attn", 5 * text, text, bias=False)
    yield linear("resampler.kv_proj", text, sizes(s.tower)[0], bias=False)
    yield vector("resampler.biases_and_norms", 10 * text)


def eagle(s: TowerFacts) -> Parts:
    """SigLIP, pixels shuffled, three layers."""
    merged = 4 * sizes(s.tower)[0]
    yield from siglip(s.tower)
    yield from two("mlp1", (s.text, s.text, merged), norm=2 * merged)


def bee(s: TowerFacts) -> Parts:
    """SigLIP without its last norm, a projector with a norm, four times as wide as the language model."""
    hidden = sizes(s.tower)[0]
    yield from siglip(s.tower, post=False)
    yield from two("projector", (s.text, 4 * s.text, hidden), norm=2 * hidden)


def llava_onevision(s: TowerFacts) -> Parts:
    """SigLIP, a whole projector on every rank."""
    yield from siglip(s.tower, layers=last_layer(s, -1), post=False)
    bias = s.outer.flag("multimodal_projector_bias", True)
    yield from two("projector", (s.text, s.text, sizes(s.tower)[0]), bias=bias)


def rvl(s: TowerFacts) -> Parts:
    """R: LLaVA-OneVision's, with a norm before its projector."""
    yield from llava_onevision(s)
    yield vector("pre_norm", 2 * sizes(s.tower)[0])


def isaac(s: TowerFacts) -> Parts:
    """Isaac: SigLIP 2, pixels shuffled, a projector four times as wide as what it reads."""
    k = s.tower
    merged = sizes(k)[0] * k.count("pixel_shuffle_scale_factor", default=1, high=64) ** 2
    yield from siglip(k, positions=k.count("num_patches", default=256))
    yield from two("projector", (s.text, 4 * merged, merged), bias=False, cut=True)


def bagel(s: TowerFacts) -> Parts:
    """BAGEL: SigLIP (26 layers of 27), a connector."""
    hidden, _, layers = sizes(s.tower)
    yield from siglip(s.tower, layers=layers - (layers == 27))
    yield from two("connector", (s.text, s.text, hidden), cut=True)


def phi4_siglip(s: TowerFacts) -> Parts:
    """Phi-4 reasoning vision: SigLIP 2 up to its last layer but one, without its last norm."""
    k = _siglip2(s)
    yield from siglip(k, layers=sizes(k)[2] - 1, positions=k.count("num_patches", default=256), post=False)
    yield from two("projector", (s.text, s.text, s.outer.count("mm_hidden_size")), cut=True)


def _siglip2(s: TowerFacts) -> Keys:
    """The config leaves out what its class has by default."""
    usual = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16}
    return Keys(s.tower.name, {**usual, **s.tower.raw})


def most_patches(s: TowerFacts) -> Mapping[str, int]:
    """As many patches as the config lets an image have, a token each. Source: vLLM 0.32 `models/phi4siglip.py`."""
    k, most = _siglip2(s), s.outer.count("max_num_patches", default=3600, high=1 << 20)
    (hidden, width, _), patch = sizes(k), k.count("patch_size", high=4096)
    more = {"patch": patch, "least": s.outer.count("min_num_patches", default=256, high=1 << 20)}
    return item(hidden, width, isqrt(most) ** 2, most, pixels=3 * patch**2, **more)


def llava_next(s: TowerFacts, *, cut: bool = True) -> Parts:
    """CLIP up to its last layer but one."""
    yield from clip(s.tower, layers=last_layer(s))
    bias = s.outer.flag("multimodal_projector_bias", True)
    yield from two("projector", (s.text, s.text, sizes(s.tower)[0]), bias=bias, cut=cut)


def phi3v(s: TowerFacts) -> Parts:
    """CLIP-L of fixed sizes, up to its last layer but one."""
    v = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "patch_size": 14,
        "image_size": 336,
    }
    yield from clip(Keys(s.outer.name, v))
    yield vector("separators", 2 * 4096)
    yield Weight(
        "embed_tokens", s.outer.count("vocab_size"), s.text, "vocab"
    )  # beside the language model's own
    yield from two("img_projection", (s.text, s.text, 4096))


def intern_vit(s: TowerFacts, *, bias: bool = True) -> Parts:
    """InternViT, its pixels shuffled. Layers scale what they add."""
    k = s.tower
    hidden, _, layers = sizes(k)
    heads = k.count("num_attention_heads") + k.count("num_dummy_heads", default=0, low=0)
    inner = hidden // k.count("num_attention_heads") * heads
    select = s.outer.raw.get("select_layer", -1)
    layers += 1 + select if isinstance(select, int) and -layers <= select < 0 else 0
    qk_norm = 2 * inner if k.flag("qk_normalization") else 0
    norms = 4 if k.text("norm_type") == "rms_norm" else 6
    yield from patches(k, positions=grid(k) + 1)
    yield vector("class_embedding", hidden)
    yield from blocks(k, layers=layers, norms=norms, inner=inner)
    yield vector("qk_norm", qk_norm, layers)
    middle = s.text if bias else s.outer.section("llm_config").count("intermediate_size")
    yield from two("mlp1", (s.text, middle, 4 * hidden), bias=bias, norm=8 * hidden)


RADIO = {"vit_base_patch16_224": (768, 12, 3072), "vit_large_patch16_224": (1024, 24, 4096)}
RADIO |= {"vit_huge_patch16_224": (1280, 32, 5120), "vit_giant_patch14_224": (1408, 40, 6144)}
"""RADIO's models: hidden size, layers, width."""


def radio(s: TowerFacts) -> Parts:
    """RADIO, its pixels shuffled, a projector behind a norm."""
    merged, middle = 4 * _radio_sizes(s.tower)[0], s.outer.count("projector_hidden_size")
    yield from _radio(s.tower, s.tower.count("patch_size", default=16, high=4096))
    yield from two("mlp1", (s.text, middle, merged), bias=False, norm=merged)


def _radio_sizes(tower: Keys) -> tuple[int, int, int]:
    name = tower.section("args").text("model")
    if name not in RADIO:
        raise tower.error(f"RADIO model {name[:40]!r} is not known")
    return RADIO[name]


def _radio(tower: Keys, patch: int) -> Parts:
    """Learned positions of its largest image, registers, a second embedding for pairs of frames."""
    args, (hidden, layers, width) = tower.section("args"), _radio_sizes(tower)
    v = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers, "patch_size": patch}
    k = Keys(tower.name, v)
    side = round(args.count("cpe_max_size", default=2048) / patch)
    frames = tower.count("video_temporal_patch_size", default=1, high=64)
    yield from patches(k, bias=False, positions=side**2)
    if frames > 1 and tower.flag("separate_video_embedder", True):
        yield from patches(k, bias=False, positions=0, frames=frames)
    yield vector("registers", _registers(args) * hidden)
    yield from blocks(k, norms=6)


def nemotron_parse(s: TowerFacts) -> Parts:
    """Nemotron Parse: RADIO-H, whose patches four side by side become one, and a token of its summary."""
    args = s.tower.section("args")
    kept = {"video_temporal_patch_size", "separate_video_embedder"}
    inner = Keys(s.tower.name, {"args": args.raw, **{n: v for n, v in args.raw.items() if n in kept}})
    yield from _radio(inner, args.count("patch_size", default=16, high=4096))
    yield linear("neck.conv1", 1024, 1280)
    yield linear("neck.conv2", 1024, 4 * 1024, bias=False)
    yield linear("neck.sum_proj", 1024, 3840, "rows")
    yield vector("neck.norms", 3 * 2 * 1024)


def parsed_image(s: TowerFacts) -> Mapping[str, int]:
    """The one image of `image_size`: its patches, of which four side by side are a token, and one more."""
    hidden, _, width = _radio_sizes(s.tower)
    patch, (high, wide) = s.tower.count("patch_size", default=16, high=4096), two_sides(s.outer)
    seen = (high // patch) * (wide // patch)
    tokens = high // patch * (wide // patch // 4) + 1
    return item(hidden, width, seen, tokens, pixels=3 * patch**2)


def two_sides(k: Keys) -> tuple[int, int]:
    """`image_size` as height and width."""
    sides = k.counts("image_size")
    if len(sides) != 2:
        raise k.error("image_size must be two numbers")
    return sides[0], sides[1]


def radio_of_transformers(s: TowerFacts) -> Parts:
    """Llama Nemotron Nano VL: RADIO by transformers' class, whole on every rank, its projector with biases.

    The checkpoints' own class, which `--trust-remote-code` runs, has RADIO-H of the same parts.
    """
    k = s.tower
    hidden, layers = k.count("hidden_size", default=1280), k.count("num_hidden_layers", default=32)
    width = int(hidden * k.number("mlp_ratio", 4.0, above=0, high=64))
    patch, frames = k.count("patch_size", default=16, high=4096), k.raw.get("video_temporal_patch_size")
    sized = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers}
    v = Keys(k.name, {**k.raw, **sized, "patch_size": patch})
    yield from patches(v, bias=False, positions=(k.count("max_img_size", default=2048) // patch) ** 2)
    if frames is not None:
        yield from patches(v, bias=False, positions=0, frames=k.count("video_temporal_patch_size", high=64))
    tokens = k.count("num_cls_tokens", default=3, low=0) + k.count("num_registers", default=7, low=0)
    yield vector("tokens", tokens * hidden)
    gated = k.flag("use_swiglu_ffn")
    inner = (int(width * 2 / 3) + 7) // 8 * 8 if gated else width
    yield linear("attn.qkv", 3 * hidden, hidden, bias=False, copies=layers)
    yield vector("attn.qkv.bias", 3 * hidden if k.flag("qkv_bias", True) else 0, layers)
    yield linear("attn.out", hidden, hidden, copies=layers)
    yield linear("fc1", inner * (1 + gated), hidden, copies=layers)
    yield linear("fc2", hidden, inner, copies=layers)
    yield vector("norms_and_scales", 6 * hidden, layers)
    shrunk = int(1 / s.outer.number("downsample_ratio", 0.5, above=1e-3, high=1000))
    merged = s.outer.count("vit_hidden_size") * shrunk**2
    yield from two("mlp1", (s.text, s.outer.count("projector_hidden_size"), merged), norm=2 * merged)


def radio_tiles(s: TowerFacts) -> Mapping[str, int]:
    """Tiles of `force_image_size` and their thumbnail, a quarter of the patches as tokens."""
    k = s.tower
    hidden, patch = k.count("hidden_size", default=1280), k.count("patch_size", default=16, high=4096)
    width = int(hidden * k.number("mlp_ratio", 4.0, above=0, high=64))
    side = s.outer.count("force_image_size", default=512, high=1 << 20) // patch
    shrunk = s.outer.number("downsample_ratio", 0.5, above=1e-3, high=1000) ** 2
    most = s.outer.count("max_dynamic_patch", default=1) + 1
    pixels = s.outer.count("force_image_size", default=512, high=1 << 20)
    each = {"tile_patches": side**2, "tile_tokens": int(side**2 * shrunk), "tile_side": pixels}
    tokens = most * int(side**2 * shrunk)
    return item(hidden, width, most * side**2, tokens, pixels=3 * patch**2, tiles=most, **each)


def _registers(args: Keys) -> int:
    """One token, or one a teacher, filled up to a multiple."""
    found = args.raw.get("teachers")
    names = {str(t.get("name")) for t in found if isinstance(t, dict)} if isinstance(found, list) else set()
    tokens = len(names) if args.flag("cls_token_per_teacher") else 1
    multiple = args.count("register_multiple", default=0, low=0)
    return tokens + (multiple - tokens % multiple if multiple else 0)


def bailing_v3_vl(s: TowerFacts) -> Parts:
    """Qwen 3's images without deep features; four patches merged by a norm alone, then a projector."""
    k, hidden = s.tower, sizes(s.tower)[0]
    frames = k.count("temporal_patch_size", default=2, high=64)
    yield from patches(k, positions=k.count("num_position_embeddings"), frames=frames)
    yield from blocks(k)
    yield vector("merger.norm", 2 * hidden)
    yield from two("linear_proj", (s.text, s.text, hidden * merge(k)), cut=True)


def pixtral(s: TowerFacts) -> Parts:
    """Pixtral; an adapter, with four patches merged before it where the config says so."""
    k, hidden = s.tower, sizes(s.tower)[0]
    yield from patches(k, bias=False, positions=0)
    yield vector("ln_pre", hidden)
    yield from blocks(k, gated=True, bias=False, norms=2)
    if k.text("mm_projector_id") == "patch_merge":
        yield linear("patch_merger", hidden, hidden * merge(k), bias=False)
    if k.flag("add_pre_mm_projector_layer_norm"):
        yield vector("pre_norm", hidden)
    yield from two("adapter", (s.text, s.text, hidden), bias=k.flag("adapter_bias", True))


def lighton_ocr(s: TowerFacts) -> Parts:
    """Pixtral as Mistral 3 has it."""
    k, hidden = s.tower, sizes(s.tower)[0]
    yield from patches(k, bias=False, positions=0)
    yield vector("ln_pre_and_norm", 2 * hidden)
    yield from blocks(k, gated=True, bias=False, norms=2)
    yield linear("patch_merger", hidden, hidden * merge(s.outer), bias=False)
    bias = s.outer.flag("multimodal_projector_bias")
    yield from two("projector", (s.text, s.text, hidden), bias=bias, cut=True)


def intern_s1(s: TowerFacts) -> Parts:
    """Intern-S1: attention whole on every rank, the MLP cut, the projector whole."""
    k = s.tower
    hidden, width, n = sizes(k)
    norm = 1 if k.text("norm_type") == "rms_norm" else 2
    images, each = k.counts("image_size"), k.counts("patch_size")
    if not len(images) == len(each) == 2 or 0 in each:
        raise k.error("image_size and patch_size must be two numbers each")
    grid_of = images[0] // each[0] * (images[1] // each[1])
    pixels = k.count("num_channels", default=3, high=64) * each[0] * each[1]
    yield linear("patch_embedding", hidden, pixels)
    yield vector("class_and_positions", (grid_of + 2) * hidden)
    yield linear("attn.qkv", 3 * hidden, hidden, bias=k.flag("attention_bias"), copies=n)
    yield linear("attn.out", hidden, hidden, copies=n)
    yield linear("fc1", width, hidden, "rows", copies=n)
    yield linear("fc2", hidden, width, "cols", copies=n)
    yield vector("norms_and_scales", (2 * norm + 2 + 2 * k.flag("use_qk_norm")) * hidden, n)
    if not k.flag("use_mean_pooling", True):
        yield vector("final_norm", 2 * hidden)
    merged = round(hidden / s.outer.number("downsample_ratio", 0.5, above=1e-3, high=1000) ** 2)
    yield from two("projector", (s.text, s.text, merged), norm=2 * merged)


def ovis2_5(s: TowerFacts) -> Parts:
    """Ovis 2.5: SigLIP, a head over visual words, their embeddings."""
    words = s.outer.count("visual_vocab_size", default=65536, low=5)
    merged = sizes(s.tower)[0] * s.tower.count("hidden_stride", default=2, high=64) ** 2
    yield from siglip(s.tower)
    yield linear("head", words - 4, merged, bias=False)
    yield vector("head.norm", 2 * (words - 4))
    yield vector("visual_words", words * s.text)


def ovis(s: TowerFacts) -> Parts:
    """Ovis 1.6 and 2: AIMv2 or SigLIP, a head over visual words, their embeddings."""
    backbone = s.tower.section("backbone_config")
    hidden, words = sizes(backbone)[0], s.tower.count("vocab_size", default=16384, low=6)
    merged = hidden * s.tower.count("hidden_stride", default=1, high=64) ** 2
    yield from (aimv2 if backbone.text("model_type") == "aimv2" else siglip)(backbone)
    yield linear("head", words - 5, merged, bias=False)
    yield vector("head.norm", 2 * (words - 5))
    yield vector("visual_words", words * s.text)


def aimv2(k: Keys) -> Parts:
    """AIMv2: a norm behind the patches, gated layers of two norms."""
    yield from patches(k)
    yield vector("patch_norm", sizes(k)[0])
    yield from blocks(k, gated=True, bias=k.flag("qkv_bias"), norms=2)


def blip2(s: TowerFacts) -> Parts:
    """BLIP-2: EVA's ViT, queries that read it, one matrix."""
    hidden, p = sizes(s.tower)[0], s.outer.section("qformer_config")
    yield from patches(s.tower, positions=grid(s.tower) + 1)
    yield from blocks(s.tower)
    yield vector("class_embedding_and_post_layernorm", 3 * hidden)
    yield from qformer(p, s.outer.count("num_query_tokens", default=32))
    yield linear("language_projection", s.text, p.count("hidden_size"))


def molmo(s: TowerFacts) -> Parts:
    """Molmo: CLIP-L of fixed sizes up to its last layer but one; two layers pooled by attention; a gated projector."""
    hidden, layers, width = 1024, 23, 4096
    v = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers}
    text = s.outer.count("intermediate_size")
    yield linear("patch_embedding", hidden, 3 * 14**2, bias=False)
    yield vector("positions_class_and_pre_norm", (577 + 3) * hidden)
    yield from blocks(Keys(s.outer.name, v))
    yield vector("pad_embed", 2 * 2 * hidden)
    yield linear("image_pooling.qkv", 3 * hidden, 2 * hidden, "rows")
    yield linear("image_pooling.out", hidden, hidden, "cols")
    yield linear("image_projector.up", text, hidden, "rows", bias=False)
    yield linear("image_projector.down", s.text, text // 2, "cols", bias=False)


def moondream(s: TowerFacts) -> Parts:
    """Moondream 3: SigLIP's sizes, what is seen whole and in tiles side by side, a projector."""
    found = s.outer.section("config").section("vision")
    known = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
    names = ("enc_dim", "enc_ff_dim", "enc_n_layers", "enc_patch_size")
    told = {usual: found.count(name, default=known[usual]) for usual, name in zip(known, names, strict=True)}
    k = Keys(found.name, {**told, "image_size": found.count("crop_size", default=378)})
    yield from siglip(k)
    yield from two(
        "vision_proj", (s.text, found.count("proj_inner_dim", default=8192), 2 * sizes(k)[0]), cut=True
    )


def granite4_vision(s: TowerFacts) -> Parts:
    """Granite 4 Vision: SigLIP read at several layers, a windowed Q-Former for each and for four offsets."""
    queries, window = fraction(s.outer, "downsample_rate", "4/8")
    p = s.outer.section("qformer_config")
    yield from siglip(s.tower, post=False)
    yield vector("image_newline", s.text)
    for _ in range(len(pairs(s.outer, "deepstack_layer_map")) + 4):
        yield from qformer(p, queries**2)
        yield vector("image_positions_and_norm", (window**2 + 2) * sizes(s.tower)[0])
        yield linear("projector", s.text, sizes(p)[0])


def qformer(p: Keys, queries: int) -> Parts:
    """BLIP-2's Q-Former: self-attention in each layer, cross-attention in every second."""
    hidden, width, n = sizes(p)
    cross = -(-n // p.count("cross_attention_frequency", default=2))
    seen = p.count("encoder_hidden_size", default=hidden)
    yield vector("query_and_norm", (queries + 2) * hidden)
    yield linear("attention", 4 * hidden, hidden, copies=n)
    yield linear("cross.query_out", 2 * hidden, hidden, copies=cross)
    yield linear("cross.key_value", 2 * hidden, seen, copies=cross)
    yield linear("intermediate", width, hidden, copies=n)
    yield linear("output", hidden, width, copies=n)
    yield vector("norms", 4 * hidden, n)
    yield vector("cross.norms", 2 * hidden, cross)
