"""Vision and audio towers by declaration: an architecture's row says which parts its config's sizes make.

A part is a `Weight`: rows, columns, and how tensor parallelism cuts it. Each row is held to vLLM 0.32's own class.
Knows no bytes (`vision` places the parts on ranks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from kvplan.models.config import Keys
from kvplan.models.spec import Weight

Parts = Iterator[Weight]


class TowerFacts(NamedTuple):
    """What a row reads: the whole config, the section with the tower's sizes, the language model's width."""

    outer: Keys
    tower: Keys
    text: int


class Tower(NamedTuple):
    """One row: where the sizes stand, and what they make."""

    section: str
    parts: Callable[[TowerFacts], Parts]
    heads: bool = True
    """Attention is cut by heads: they must divide by the ranks."""
    rotary: bool = False
    """It keeps a table of cosines and sines for 8,192 positions."""
    long_table: bool = False
    """The table has as many positions as the language model's context."""
    largest: Callable[[TowerFacts], Mapping[str, int]] | None = None
    """What start-up profiles: patches and tokens of the largest item, widths; None: not known."""
    kind: str = ""
    """`model_type` of the only tower that the row describes, where the architecture takes others too."""


def linear(name: str, rows: int, cols: int, cut: str = "", *, bias: bool = True, copies: int = 1) -> Weight:
    """A matrix; `cut` is rows or cols."""
    return Weight(
        name, rows, cols, "rows" if cut == "rows" else "cols" if cut else "", bias=bias, copies=copies
    )


def vector(name: str, size: int, copies: int = 1) -> Weight:
    """Norms, positions, scales."""
    return Weight(name, size, copies=copies)


def sizes(k: Keys) -> tuple[int, int, int]:
    """Hidden size, width of the MLP, layers, under the names that towers give them."""
    hidden = k.count("embed_dim", "d_model", "hidden_size", "width")
    return (
        hidden,
        k.count("intermediate_size", "encoder_ffn_dim", default=4 * hidden),
        k.count("num_hidden_layers", "encoder_layers", "depth", "layers", high=4096),
    )


def blocks(
    k: Keys,
    *,
    layers: int = 0,
    cut: bool = True,
    gated: bool = False,
    bias: bool = True,
    norms: int = 4,
    inner: int = 0,
    kv: int = 0,
    cut_mlp: bool = True,
    key_bias: bool = True,
) -> Parts:
    """The transformer's layers: fused Q, K and V, the output, the MLP, and `norms` vectors of the hidden size each.

    `inner`: width of the heads together where it is not the hidden size; `kv`: of the keys' heads.
    """
    hidden, width, n = sizes(k)
    n, inner = layers or n, inner or hidden
    rows, cols = ("rows", "cols") if cut else ("", "")
    mlp_rows, mlp_cols = (rows, cols) if cut_mlp else ("", "")
    if key_bias:
        yield linear("attn.qkv", inner + 2 * (kv or inner), hidden, rows, bias=bias, copies=n)
    else:
        yield linear("attn.qv", 2 * inner, hidden, rows, bias=bias, copies=n)
        yield linear("attn.k", inner, hidden, rows, bias=False, copies=n)
    yield linear("attn.out", hidden, inner, cols, bias=bias, copies=n)
    yield linear("fc1", (2 if gated else 1) * width, hidden, mlp_rows, bias=bias, copies=n)
    yield linear("fc2", hidden, width, mlp_cols, bias=bias, copies=n)
    yield vector("norms", norms * hidden, n)


def patches(k: Keys, *, bias: bool = True, positions: int = -1, frames: int = 1) -> Parts:
    """The convolution that cuts an image into patches, and learned positions: a grid's unless told."""
    hidden, patch = sizes(k)[0], k.count("patch_size", high=4096)
    channels = k.count("num_channels", "in_channels", "in_chans", default=3, high=64)
    yield linear("patch_embedding", hidden, channels * frames * patch**2, bias=bias)
    if positions:
        yield vector("positions", (positions if positions > 0 else grid(k)) * hidden)


def grid(k: Keys) -> int:
    """Patches of the largest image."""
    return (k.count("image_size", high=1 << 20) // k.count("patch_size", high=4096)) ** 2


def merge(k: Keys, *keys: str) -> int:
    """Patches that become one token."""
    return k.count(*keys or ("spatial_merge_size",), default=2, high=64) ** 2


def two(
    name: str, sizes: tuple[int, int, int], *, bias: bool = True, cut: bool = False, norm: int = 0
) -> Parts:
    """A norm of `norm` elements and two matrices: (out, middle, in)."""
    out, middle, into = sizes
    if norm:
        yield vector(f"{name}.norm", norm)
    yield linear(f"{name}.linear_1", middle, into, "rows" if cut else "", bias=bias)
    yield linear(f"{name}.linear_2", out, middle, "cols" if cut else "", bias=bias)


# ---- images: SigLIP, CLIP, InternViT, Pixtral, Qwen, MoonViT


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


def phi4mm(s: TowerFacts) -> Parts:
    """SigLIP of fixed sizes and the speech encoder: conformer layers between convolutions."""
    v = Keys(
        s.outer.name,
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "patch_size": 14},
    )
    yield from siglip(v, positions=1024, post=False)
    yield vector("separators", 2 * 1152)
    yield from two("img_projection", (s.text, s.text, 1152))
    a = s.outer.section("audio_processor").section("config")
    dim, width, n = a.count("attention_dim"), a.count("linear_units"), a.count("num_blocks", high=4096)
    conv = a.section("nemo_conv_settings").count("conv_channels", default=1024)
    yield linear("embed.out", dim, conv * a.count("input_size") // a.count("time_reduction", default=8))
    yield linear("embed.conv", 3 * conv, 9)
    yield linear("embed.pointwise", 2 * conv, conv)
    yield vector("attention_bias_and_means", 1000 * a.count("attention_heads") + 2 * a.count("input_size"))
    yield linear("feed_forward.up", 4 * width, dim, copies=n)
    yield linear("feed_forward.down", dim, width, copies=2 * n)
    yield linear("self_attn", 4 * dim, dim, copies=n)
    yield linear("conv.pointwise", 4 * dim, dim, copies=n)
    yield linear("conv.depthwise", dim, a.count("kernel_size", high=64), copies=n)
    yield vector("norms_and_gates", 12 * dim, n)
    for name in ("audio_projection", "audio_projection_for_vision"):
        yield from two(name, (s.text, s.text, dim))


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
    yield from two("projector", (s.text, s.text, sizes(s.tower)[0]))


def llava_next(s: TowerFacts, *, cut: bool = True) -> Parts:
    """CLIP up to its last layer but one."""
    yield from clip(s.tower, layers=last_layer(s))
    yield from two("projector", (s.text, s.text, sizes(s.tower)[0]), cut=cut)


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
    """RADIO: learned positions of its largest image, registers, a second embedding for pairs of frames."""
    args = s.tower.section("args")
    if args.text("model") not in RADIO:
        raise s.tower.error(f"RADIO model {args.text('model')[:40]!r} is not known")
    hidden, layers, width = RADIO[args.text("model")]
    v = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers}
    k = Keys(s.tower.name, {**v, "patch_size": s.tower.count("patch_size", default=16, high=4096)})
    side = args.count("cpe_max_size", default=2048) // k.count("patch_size")
    frames = s.tower.count("video_temporal_patch_size", default=1, high=64)
    merged, middle = 4 * hidden, s.outer.count("projector_hidden_size")
    yield from patches(k, bias=False, positions=side**2)
    if frames > 1 and s.tower.flag("separate_video_embedder", True):
        yield from patches(k, bias=False, positions=0, frames=frames)
    yield vector("registers", _registers(args) * hidden)
    yield from blocks(k, norms=6)
    yield from two("mlp1", (s.text, middle, merged), bias=False, norm=merged)


def nano_nemotron(s: TowerFacts) -> Parts:
    """RADIO, and Parakeet beside it where the config has sound."""
    yield from radio(s)
    if s.outer.raw.get("sound_config") is not None:
        yield from parakeet(s.outer.section("sound_config"), s.text)


def parakeet(k: Keys, text: int) -> Parts:
    """Parakeet's Conformer, whole on every rank; its attention has no biases here, as vLLM makes it."""
    hidden, width, n = sizes(k)
    channels, kernel = (
        k.count("subsampling_conv_channels"),
        k.count("subsampling_conv_kernel_size", default=3),
    )
    halvings = k.count("subsampling_factor", default=8, high=4096).bit_length() - 1
    pitches = max(k.count("num_mel_bins") // k.count("subsampling_conv_stride", default=2) ** halvings, 1)
    yield linear("subsampling.conv", channels, kernel**2)
    yield linear("subsampling.depthwise", channels, kernel**2, copies=halvings - 1)
    yield linear("subsampling.pointwise", channels, channels, copies=halvings - 1)
    yield linear("subsampling.linear", hidden, channels * pitches)
    yield linear("feed_forward.linear1", width, hidden, bias=False, copies=2 * n)
    yield linear("feed_forward.linear2", hidden, width, bias=False, copies=2 * n)
    yield linear("self_attn.qkv_out_and_relative_k", 5 * hidden, hidden, bias=False, copies=n)
    yield vector("self_attn.bias_u_and_v", 2 * hidden, n)
    bias = k.flag("convolution_bias", True)
    yield linear("conv.pointwise1", 2 * hidden, hidden, bias=bias, copies=n)
    yield linear("conv.depthwise", hidden, k.count("conv_kernel_size", high=4096), bias=bias, copies=n)
    yield linear("conv.pointwise2", hidden, hidden, bias=bias, copies=n)
    yield vector("norms", 12 * hidden, n)  # five of layers and one of a batch
    middle, projected = k.count("projection_hidden_size"), k.flag("projection_bias")
    yield from two("projection", (text, middle, hidden), bias=projected, norm=hidden)


def bailing_v3_vl(s: TowerFacts) -> Parts:
    """Qwen 3's images without deep features; four patches merged by a norm alone, then a projector."""
    k, hidden = s.tower, sizes(s.tower)[0]
    frames = k.count("temporal_patch_size", default=2, high=64)
    yield from patches(k, positions=k.count("num_position_embeddings"), frames=frames)
    yield from blocks(k)
    yield vector("merger.norm", 2 * hidden)
    yield from two("linear_proj", (s.text, s.text, hidden * merge(k)), cut=True)


def _registers(args: Keys) -> int:
    """One token, or one a teacher, filled up to a multiple."""
    found = args.raw.get("teachers")
    names = {str(t.get("name")) for t in found if isinstance(t, dict)} if isinstance(found, list) else set()
    tokens = len(names) if args.flag("cls_token_per_teacher") else 1
    multiple = args.count("register_multiple", default=0, low=0)
    return tokens + (multiple - tokens % multiple if multiple else 0)


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


def qwen2_5(k: Keys, *, out: int = 0) -> Parts:
    """Qwen 2.5's tower; `num_key_value_heads` fewer than heads in EXAONE 4.5's."""
    hidden, merged = sizes(k)[0], sizes(k)[0] * merge(k)
    kv = hidden // k.count("num_heads") * k.count("num_key_value_heads", default=k.count("num_heads"))
    frames = k.count("temporal_patch_size", default=2, high=64)
    yield from patches(k, bias=False, positions=0, frames=frames)
    yield from blocks(k, gated=True, norms=2, kv=kv)
    yield from two("merger", (out or k.count("out_hidden_size"), merged, merged), cut=True, norm=hidden)


def glm_ocr(s: TowerFacts) -> Parts:
    """GLM-4.xV's tower with norms of Q and K, without learned positions; its merger is as wide as the text's MLP."""
    k, hidden = s.tower, sizes(s.tower)[0]
    wide = s.outer.section("text_config").count("intermediate_size")
    out, width = k.count("out_hidden_size"), k.count("projection_intermediate_size", default=wide)
    frames = k.count("temporal_patch_size", default=2, high=64)
    yield from patches(k, positions=0, frames=frames)
    yield from blocks(k, gated=True, bias=k.flag("attention_bias"), norms=2)
    yield vector("qk_norms", 2 * hidden // k.count("num_heads"), sizes(k)[2])
    yield linear("downsample", out, hidden * merge(k))
    yield linear("merger.proj", out, out, "rows", bias=False)
    yield vector("norms", 2 * out + hidden)
    yield from _gated(out, width, out)


def _gated(out: int, width: int, into: int) -> Parts:
    """A gated MLP, cut."""
    yield linear("merger.gate_up", 2 * width, into, "rows", bias=False)
    yield linear("merger.down", out, width, "cols", bias=False)


def glm4v_9b(s: TowerFacts) -> Parts:
    """EVA-CLIP of GLM-4V-9B: patches convolved again, a gated projector as wide as the language model's MLP."""
    k, hidden = s.tower, sizes(s.tower)[0]
    yield from patches(k, positions=k.count("num_positions", default=grid(k) + 1))
    yield vector("class_embedding", hidden)
    yield from blocks(k)
    yield linear("conv", s.text, 4 * hidden)
    yield linear("linear_proj", s.text, s.text, bias=False)
    yield vector("norms_and_marks", 4 * s.text)
    yield from _gated(s.text, s.outer.count("ffn_hidden_size"), s.text)


def dots_ocr(s: TowerFacts) -> Parts:
    """A gated tower without biases, its merger as Qwen's."""
    k, hidden = s.tower, sizes(s.tower)[0]
    bias, merged = k.flag("use_bias"), sizes(k)[0] * merge(k)
    yield from patches(k, positions=0)
    yield vector("norms", (1 + int(k.flag("post_norm", True))) * hidden)
    yield from blocks(k, gated=True, bias=bias, norms=2)
    yield from two("merger", (k.count("hidden_size"), merged, merged), cut=True, norm=2 * hidden)


def moonvit(s: TowerFacts) -> Parts:
    """MoonViT, its projector whole."""
    k, hidden = s.tower, sizes(s.tower)[0]
    grid_size = k.count("init_pos_emb_height", default=64) * k.count("init_pos_emb_width", default=64)
    yield from patches(k, positions=grid_size)
    yield from blocks(k)
    yield vector("final_layernorm", 2 * hidden)
    yield from two("projector", (s.text, 4 * hidden, 4 * hidden), norm=2 * hidden)


def muse_glimmer(s: TowerFacts) -> Parts:
    """A tower whose MLPs and adapter are whole on every rank."""
    k, hidden = s.tower, sizes(s.tower)[0]
    frames = k.count("patch_temporal", default=2, high=64)
    middle = k.count("adapter_dim", default=s.outer.count("projector_hidden_size", default=4096))
    yield from patches(
        k, bias=False, positions=k.count("pos_emb_height") * k.count("pos_emb_width"), frames=frames
    )
    yield vector("norms_around", 4 * hidden)
    yield from blocks(k, cut_mlp=False)
    yield linear("adapter", middle, hidden * merge(k, "merge_size", "merge_kernel_size"), bias=False)
    yield from two("adapter", (s.text, middle, middle), bias=False)


def minimax_m3(s: TowerFacts) -> Parts:
    """CLIP without positions over pairs of frames, a projector before the merging and one after."""
    k, hidden = s.tower, sizes(s.tower)[0]
    compression = k.section("img_token_compression_config")
    frames = compression.count("temporal_patch_size", default=2, high=64)
    middle = s.outer.count("projector_hidden_size", default=s.text)
    yield from patches(k, bias=False, positions=0, frames=frames)
    yield vector("pre_layernorm", 2 * hidden)
    yield from blocks(k)
    yield from two("projector", (s.text, middle, hidden), cut=True)
    yield from two("patch_merge", (s.text, middle, merge(compression) * s.text), cut=True)


def step3(s: TowerFacts) -> Parts:
    """CLIP-like, with two convolutions that thin the patches out."""
    k, hidden = s.tower, sizes(s.tower)[0]
    out = k.count("output_hidden_size")
    yield from patches(k, positions=grid(k) + 1)
    yield vector("class_embedding", hidden)
    yield from blocks(k)
    yield linear("downsampler", out, 4 * hidden)
    yield linear("downsampler2", 2 * out, 9 * out)
    yield linear("projector", s.text, 2 * out, bias=s.outer.flag("projector_bias", True))


def _sam(s: TowerFacts, out: int) -> Parts:
    """SAM's ViT-B, whole on every rank, its grid thinned out to `out` channels."""
    sam = Keys(s.outer.name, {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16})
    yield from patches(sam, positions=64 * 64)
    yield from blocks(sam, cut=False)
    yield vector("sam.relative_positions", 64 * (8 * 2 * 27 + 4 * 2 * 127))
    yield linear("sam.neck", 256, 768 + 9 * 256, bias=False)
    yield vector("sam.neck_norms", 4 * 256)
    yield linear("sam.net_2", 512, 9 * 256, bias=False)
    yield linear("sam.net_3", out, 9 * 512, bias=False)


def deepseek_ocr(s: TowerFacts) -> Parts:
    """SAM's ViT-B and CLIP-L; one matrix behind both."""
    v = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "image_size": 224}
    yield from _sam(s, 1024)
    yield from clip(Keys(s.outer.name, v))
    yield linear("projector", s.text, 2048)
    yield vector("newline_and_separator", 2 * s.text)


def deepseek_ocr2(s: TowerFacts) -> Parts:
    """SAM's ViT-B and Qwen2-0.5B's layers, both whole on every rank, which read the grid by learned queries."""
    hidden, width, kv, n = 896, 4864, 128, 24
    yield from _sam(s, hidden)
    yield linear("qwen2.qkv", hidden + 2 * kv, hidden, copies=n)
    yield linear("qwen2.out", hidden, hidden, bias=False, copies=n)
    yield linear("qwen2.mlp", 3 * width, hidden, bias=False, copies=n)
    yield vector("qwen2.norms", 2 * hidden, n)
    yield vector("qwen2.final_norm_and_queries", (1 + 144 + 256) * hidden)
    yield linear("projector", s.text, hidden)
    yield vector("separator", s.text)


def ernie_vl(s: TowerFacts) -> Parts:
    """ERNIE 4.5 VL: Qwen 2's kind of tower, and a resampler over patches and pairs of frames, cut by rows alone."""
    hidden = sizes(s.tower)[0]
    width = round(_ratio(s.tower, "mlp_ratio", 4.0) * hidden)
    k = Keys(s.tower.name, {**s.tower.raw, "intermediate_size": width})
    merged = s.outer.count("pixel_hidden_size") * s.outer.count("spatial_conv_size", default=2, high=64) ** 2
    yield from patches(k, bias=False, positions=0)
    yield from blocks(k)
    yield vector("ln", 2 * hidden)
    yield linear("spatial_linear", merged, merged, "rows", copies=2)
    yield vector("spatial_norm", 2 * merged)
    if s.outer.flag("use_temporal_conv", True):
        joined = merged * s.outer.count("temporal_conv_size", default=2, high=64)
        yield linear("temporal_linear1", merged, joined, "rows")
        yield linear("temporal_linear2", merged, merged, "rows")
        yield vector("temporal_norm", 2 * merged)
    yield linear("mlp", s.text, merged, "rows")
    yield vector("after_norm", s.text)


def gemma4_unified(s: TowerFacts) -> Parts:
    """Gemma 4 without encoders: patches of pixels and frames of sound, projected."""
    k, out = s.tower, s.tower.count("mm_embed_dim")
    pixels = 3 * (k.count("patch_size", high=4096) * k.count("pooling_kernel_size", high=4096)) ** 2
    yield linear("patch_dense", out, pixels, "rows")
    yield vector("norms", 2 * pixels + 4 * out)
    yield vector("positions", 2 * k.count("mm_posemb_size") * out)
    yield linear("embed_vision", s.text, out, bias=False)
    if "audio_config" in s.outer:
        sound = s.outer.section("audio_config").count("audio_embed_dim", default=640)
        yield linear("embed_audio", s.text, sound, bias=False)


# ---- sound: Whisper and its kin


def whisper(
    k: Keys, *, cut: bool = True, positions: bool = True, itemsize: int = 0, post: bool = True
) -> Parts:
    """Whisper's encoder; keys have no bias where projections are apart."""
    hidden = sizes(k)[0]
    yield linear("conv1", hidden, 3 * k.count("num_mel_bins", default=80))
    yield linear("conv2", hidden, 3 * hidden)
    if positions:
        found = k.count("max_source_positions", default=1500)
        yield Weight("embed_positions", found * hidden, itemsize=itemsize)
    yield from blocks(k, cut=cut, key_bias=cut)
    if post:
        yield vector("layer_norm", 2 * hidden)


def audio_flamingo(s: TowerFacts) -> Parts:
    """Whisper's encoder, two matrices."""
    bias = s.outer.flag("projector_bias", True)
    yield from whisper(s.tower, cut=False)
    yield from two("projector", (s.text, s.text, sizes(s.tower)[0]), bias=bias)


def qwen2_audio(s: TowerFacts) -> Parts:
    """Whisper's encoder, one matrix."""
    yield from whisper(s.tower, cut=False)
    yield linear("projector", s.text, sizes(s.tower)[0])


def glm_asr(s: TowerFacts) -> Parts:
    """Whisper's encoder with rotary positions, four frames merged."""
    hidden, width, _ = sizes(s.tower)
    yield from whisper(s.tower, positions=False)
    yield from two("projector", (s.text, 2 * s.text, width if width == 4 * hidden else 4 * hidden), cut=True)


def ultravox(s: TowerFacts) -> Parts:
    """Whisper's encoder, frames stacked, a gated projector with norms."""
    stacked = sizes(s.tower)[0] * s.outer.count("stack_factor", default=8)
    middle = s.outer.count("hidden_size", default=4096)
    inner = middle // 2 if s.outer.text("projector_act", default="swiglu") == "swiglu" else middle
    yield from whisper(s.tower)
    yield vector("norms", stacked + (inner if s.outer.flag("projector_ln_mid") else s.text))
    yield linear("linear_1", middle, stacked, bias=False)
    yield linear("linear_2", s.text, inner, bias=False)


def voxtral(s: TowerFacts) -> Parts:
    """Whisper's encoder, its positions in float32, frames joined."""
    joined = sizes(s.tower)[0] * s.tower.count("downsample_factor", default=4)
    yield from whisper(s.tower, itemsize=4)
    yield from two("adapter", (s.text, s.text, joined), bias=False)


def moss_transcribe(s: TowerFacts) -> Parts:
    """Whisper's encoder, four frames joined, a norm behind."""
    joined = 4 * sizes(s.tower)[0]
    yield from whisper(s.tower)
    yield from two("adaptor", (s.text, s.text, joined), norm=2 * s.text)


def gemma4_audio(k: Keys, text: int) -> Parts:
    """Gemma 4's Conformer, beside its vision tower: whole on every rank."""
    hidden, n, heads = k.count("hidden_size"), k.count("num_hidden_layers"), k.count("num_attention_heads")
    channels = k.counts("subsampling_conv_channels")
    if len(channels) != 2:
        raise k.error("subsampling_conv_channels must be two numbers")
    first, second = channels
    out = k.count("output_proj_dims", default=hidden)
    yield linear("subsample.conv_1", first, 9, bias=False)
    yield linear("subsample.conv_2", second, 9 * first, bias=False)
    yield vector("subsample.norms", first + second)
    yield linear("subsample.out", hidden, first // 4 * second, bias=False)
    yield linear("ffw_1", 4 * hidden, hidden, bias=False, copies=2 * n)
    yield linear("ffw_2", hidden, 4 * hidden, bias=False, copies=2 * n)
    yield linear("attn.qkv_out_and_relative_k", 5 * hidden, hidden, bias=False, copies=n)
    yield linear("conv.start_and_end", 3 * hidden, hidden, bias=False, copies=n)
    yield vector("conv.depthwise", hidden * k.count("conv_kernel_size"), n)
    yield vector("norms_and_scales", 9 * hidden + hidden // heads, n)
    yield linear("output_proj", out, hidden)
    yield linear("embedding_projection", text, out, bias=False)


def step3p7(s: TowerFacts) -> Parts:
    """Step-3.7: a perception encoder, two convolutions that halve its grid, one projector."""
    hidden = sizes(s.tower)[0]
    width = round(_ratio(s.tower, "mlp_ratio", 4.0) * hidden)
    k = Keys(s.tower.name, {**s.tower.raw, "intermediate_size": width})
    extra = int(k.flag("use_cls_token"))
    yield from patches(k, bias=False, positions=grid(k) + extra if k.flag("use_abs_posemb", True) else 0)
    outer_norms = k.flag("use_ln_pre", True) + k.flag("use_ln_post")
    yield vector("class_and_outer_norms", (extra + 2 * outer_norms) * hidden)
    yield from blocks(k, norms=4 if k.raw.get("ls_init_value", 0.1) is None else 6)
    yield linear("downsampler_1", 2 * hidden, 9 * hidden)
    yield linear("downsampler_2", 4 * hidden, 18 * hidden)
    yield linear("projector", s.text, 4 * hidden, "rows", bias=s.outer.flag("projector_bias", True))


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
    merged = round(hidden / _ratio(s.outer, "downsample_ratio", 0.5) ** 2)
    yield from two("projector", (s.text, s.text, merged), norm=2 * merged)


def ovis2_5(s: TowerFacts) -> Parts:
    """Ovis 2.5: SigLIP, a head over visual words, their embeddings."""
    words = s.outer.count("visual_vocab_size", default=65536, low=5)
    merged = sizes(s.tower)[0] * s.tower.count("hidden_stride", default=2, high=64) ** 2
    yield from siglip(s.tower)
    yield linear("head", words - 4, merged, bias=False)
    yield vector("head.norm", 2 * (words - 4))
    yield vector("visual_words", words * s.text)


def granite4_vision(s: TowerFacts) -> Parts:
    """Granite 4 Vision: SigLIP read at several layers, a windowed Q-Former for each and for four offsets."""
    queries, window = _fraction(s.outer, "downsample_rate", "4/8")
    p = s.outer.section("qformer_config")
    yield from siglip(s.tower, post=False)
    yield vector("image_newline", s.text)
    for _ in range(len(_pairs(s.outer, "deepstack_layer_map")) + 4):
        yield from _qformer(p, queries**2)
        yield vector("image_positions_and_norm", (window**2 + 2) * sizes(s.tower)[0])
        yield linear("projector", s.text, sizes(p)[0])


def _pairs(k: Keys, key: str) -> list[object]:
    """A list of lists."""
    found = k.raw.get(key)
    if not isinstance(found, list):
        raise k.error(f"{key} is missing")
    return found


def _ratio(k: Keys, key: str, default: float) -> float:
    """A number between 0.001 and 1,000."""
    found = k.raw.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0.001 <= found <= 1000:
        raise k.error(f"{key} must be a number between 0.001 and 1,000")
    return found


def _fraction(k: Keys, key: str, default: str) -> tuple[int, int]:
    """Two whole numbers with a slash between them."""
    over, _, under = k.text(key, default=default).partition("/")
    if not (over.isdecimal() and under.isdecimal() and len(over + under) < 8):
        raise k.error(f"{key} must be two whole numbers, as in {default}")
    return int(over), int(under)


def hyperclovax(s: TowerFacts) -> Parts:
    """HyperCLOVA X Vision 2: Qwen 2.5's tower and a projector. Its ears are not known."""
    if s.outer.raw.get("audio_config") is not None:
        raise s.outer.error("audio_config: the audio encoder's weights are not known")
    yield from qwen2_5(s.tower)
    yield linear("mm_projector", s.text, s.tower.count("out_hidden_size"))


def mimo_v2_omni(s: TowerFacts) -> Parts:
    """MiMo-V2 Omni's eyes: grouped queries, sinks where attention is windowed. Its ears are not known."""
    if s.outer.raw.get("audio_config") is not None:
        raise s.outer.error("audio_config: the audio encoder's weights are not known")
    k, (hidden, _, n) = s.tower, sizes(s.tower)
    heads, each = k.count("num_heads"), k.count("qk_channels", default=64)
    merged = hidden * merge(k)
    yield from patches(k, bias=False, positions=0, frames=k.count("temporal_patch_size", default=2, high=64))
    yield from blocks(k, gated=True, norms=2, inner=heads * each, kv=k.count("num_key_value_heads") * each)
    windows = k.raw.get("vit_window_attn_types")
    if k.flag("use_sink") and isinstance(windows, list):
        yield vector("attn.sinks", heads, sum(kind != -1 for kind in windows[:n]))
    yield from two("merger", (k.count("out_hidden_size"), merged, merged), bias=False, cut=True, norm=hidden)


def qwen3_audio(k: Keys) -> Parts:
    """Qwen 3's sound: three convolutions over time and pitch, then Whisper's layers."""
    hidden, conv = sizes(k)[0], k.count("downsample_hidden_size")
    pitches = -(-k.count("num_mel_bins", default=128) // 8)
    yield linear("conv2d1", conv, 9)
    yield linear("conv2d2", 2 * conv, 9 * conv)
    yield linear("conv_out", hidden, conv * pitches, bias=False)
    heads = k.count("encoder_attention_heads")
    yield from (part._replace(unit=heads) if part.cut else part for part in blocks(k))
    yield vector("ln_post", 2 * hidden)
    yield from two("proj", (k.count("output_dim"), hidden, hidden))


def qwen3_asr(s: TowerFacts) -> Parts:
    """Its sound alone."""
    yield from qwen3_audio(s.tower)


def qwen3_omni(s: TowerFacts) -> Parts:
    """Qwen 3's sound and images; deep features are merged as the last ones are."""
    k = s.tower.section("vision_config")
    hidden, merged = sizes(k)[0], sizes(k)[0] * merge(k)
    deep = len(k.counts("deepstack_visual_indexes"))
    frames, out = k.count("temporal_patch_size", default=2, high=64), k.count("out_hidden_size")
    yield from qwen3_audio(s.tower.section("audio_config"))
    yield from patches(k, positions=k.count("num_position_embeddings"), frames=frames)
    yield from blocks(k)
    yield from two("merger", (out, merged, merged), cut=True, norm=2 * hidden)
    for _ in range(deep):
        yield from two("merger_list", (out, merged, merged), cut=True, norm=2 * merged)


def qwen2_5_omni(s: TowerFacts) -> Parts:
    """Whisper's layers and Qwen 2.5's images."""
    sound = s.tower.section("audio_config")
    hidden, out = sizes(sound)[0], sound.count("output_dim")
    yield from whisper(sound, cut=False, positions=False)
    yield vector("audio_bos_eos", 2 * out)
    yield linear("proj", out, hidden)
    yield from qwen2_5(s.tower.section("vision_config"))


def granite_speech(s: TowerFacts) -> Parts:
    """A conformer and a Q-Former that reads windows of its frames."""
    k, p = s.tower, s.outer.section("projector_config")
    hidden, n, out = k.count("hidden_dim"), k.count("num_layers", high=4096), k.count("output_dim")
    inner = k.count("num_heads") * k.count("dim_head")
    width, conv = (
        hidden * k.count("feedforward_mult", default=4),
        hidden * k.count("conv_expansion_factor", default=2),
    )
    yield linear("input_linear", hidden, k.count("input_dim"))
    for name in ("ff1", "ff2"):
        yield linear(f"{name}.up", width, hidden, "rows", copies=n)
        yield linear(f"{name}.down", hidden, width, "cols", copies=n)
    yield linear("attn.q_kv", 3 * inner, hidden, bias=False, copies=n)
    yield linear("attn.out", hidden, inner, copies=n)
    yield vector("attn.positions", (2 * k.count("max_pos_emb") + 1) * k.count("dim_head"), n)
    yield linear("conv.up", 2 * conv, hidden, copies=n)
    yield linear("conv.depth", conv, k.count("conv_kernel_size", high=64), bias=False, copies=n)
    yield linear("conv.down", hidden, conv, copies=n)
    yield vector("norms", 10 * hidden + 2 * conv, n)
    yield linear("out", out, hidden, "rows")
    yield linear("out_mid", hidden, out, "cols")
    yield from _qformer(
        p, s.outer.count("window_size", default=15) // s.outer.count("downsample_rate", default=5)
    )
    yield linear("projector", s.text, p.count("hidden_size"))


def _qformer(p: Keys, queries: int) -> Parts:
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


# ---- the largest item that a processor makes


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


DECLARED: dict[str, Tower] = {
    "AriaForConditionalGeneration": Tower("vision_config", aria),
    "AudioFlamingo3ForConditionalGeneration": Tower(
        "audio_config", audio_flamingo, heads=False, largest=lambda s: half_minute(s, 2)
    ),
    "BeeForConditionalGeneration": Tower("vision_config", bee),
    "DeepseekOCRForCausalLM": Tower("vision_config", deepseek_ocr, heads=False),
    "DeepseekOCR2ForCausalLM": Tower("vision_config", deepseek_ocr2, heads=False),
    "DotsOCRForCausalLM": Tower("vision_config", dots_ocr),
    "Eagle2_5_VLForConditionalGeneration": Tower("vision_config", eagle),
    "Ernie4_5_VLMoeForConditionalGeneration": Tower("vision_config", ernie_vl),
    "Exaone4_5_ForConditionalGeneration": Tower("vision_config", lambda s: qwen2_5(s.tower), rotary=True),
    "Gemma4UnifiedForConditionalGeneration": Tower("vision_config", gemma4_unified, heads=False),
    "GLM4VForCausalLM": Tower("vision_config", glm4v_9b),
    "GlmAsrForConditionalGeneration": Tower("audio_config", glm_asr, largest=lambda s: half_minute(s, 4)),
    "Glm5NextForConditionalGeneration": Tower("vision_config", glm_ocr, rotary=True, long_table=True),
    "GlmOcrForConditionalGeneration": Tower("vision_config", glm_ocr, rotary=True),
    "Granite4VisionForConditionalGeneration": Tower("vision_config", granite4_vision),
    "GraniteSpeechForConditionalGeneration": Tower("encoder_config", granite_speech, heads=False),
    "GraniteSpeechPlusForConditionalGeneration": Tower("encoder_config", granite_speech, heads=False),
    "H2OVLChatModel": Tower("vision_config", intern_vit, largest=tiles),
    "HCXVisionV2ForCausalLM": Tower(
        "vision_config",
        hyperclovax,
        rotary=True,
        largest=lambda s: qwen_image(s.tower, gated=True),
    ),
    "Idefics3ForConditionalGeneration": Tower("vision_config", idefics3),
    "InternS1ForConditionalGeneration": Tower("vision_config", intern_s1, heads=False),
    "InternVLChatModel": Tower("vision_config", intern_vit, largest=tiles),
    "KeyeForConditionalGeneration": Tower("vision_config", keye),
    "KeyeVL1_5ForConditionalGeneration": Tower("vision_config", keye),
    "KimiVLForConditionalGeneration": Tower("vision_config", moonvit),
    "Lfm2VlForConditionalGeneration": Tower("vision_config", lfm2_vl),
    "LightOnOCRForConditionalGeneration": Tower("vision_config", lighton_ocr),
    **dict.fromkeys(
        (
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
            "NemotronH_Super_Omni_Reasoning_V3",
        ),
        Tower("vision_config", nano_nemotron, heads=False),
    ),
    "BailingMoeV3VLForConditionalGeneration": Tower("vision_config", bailing_v3_vl, rotary=True),
    "LlavaNextForConditionalGeneration": Tower(
        "vision_config", llava_next, largest=pinpoints, kind="clip_vision_model"
    ),
    "LlavaNextVideoForConditionalGeneration": Tower(
        "vision_config", lambda s: llava_next(s, cut=False), largest=pinpoints, kind="clip_vision_model"
    ),
    "LlavaOnevisionForConditionalGeneration": Tower(
        "vision_config", llava_onevision, kind="siglip_vision_model"
    ),
    "MiMoV2OmniForCausalLM": Tower("vision_config", mimo_v2_omni, rotary=True),
    "MiniCPMV4_6ForConditionalGeneration": Tower("vision_config", minicpmv4),
    "MiniCPMV4_7ForConditionalGeneration": Tower("vision_config", minicpmv4),
    "MiniCPMV": Tower("vision_config", minicpmv),
    "MiniMaxM3SparseForConditionalGeneration": Tower("vision_config", minimax_m3, largest=one_image),
    "MossTranscribeDiarizeForConditionalGeneration": Tower(
        "audio_config", moss_transcribe, largest=lambda s: half_minute(s, 4)
    ),
    "MuseGlimmerForConditionalGeneration": Tower("vision_config", muse_glimmer),
    "NVLM_D": Tower("vision_config", lambda s: intern_vit(s, bias=False), largest=tiles),
    "OpenCUAForConditionalGeneration": Tower(
        "vision_config",
        lambda s: qwen2_5(s.tower),
        rotary=True,
        largest=lambda s: qwen_image(s.tower, gated=True),
    ),
    "Ovis2_5": Tower("vit_config", ovis2_5),
    "PaddleOCRVLForConditionalGeneration": Tower("vision_config", paddle_ocr),
    "Phi3VForCausalLM": Tower("img_processor", phi3v, heads=False),
    "Phi4MMForCausalLM": Tower("audio_processor", phi4mm, heads=False),
    "PixtralForConditionalGeneration": Tower(
        "vision_config", pixtral, largest=lambda s: one_image(s, gated=True)
    ),
    "QianfanOCRForConditionalGeneration": Tower("vision_config", intern_vit, largest=tiles),
    "Qwen2AudioForConditionalGeneration": Tower(
        "audio_config", qwen2_audio, heads=False, largest=lambda s: half_minute(s, 2)
    ),
    "Qwen2_5OmniForConditionalGeneration": Tower(
        "thinker_config", qwen2_5_omni, heads=False, rotary=True, largest=omni_image(True)
    ),
    "Qwen2_5OmniModel": Tower(
        "thinker_config", qwen2_5_omni, heads=False, rotary=True, largest=omni_image(True)
    ),
    "Qwen3ASRForConditionalGeneration": Tower("audio_config", qwen3_asr, heads=False),
    "Qwen3ASRRealtimeGeneration": Tower("audio_config", qwen3_asr, heads=False),
    "Qwen3OmniMoeForConditionalGeneration": Tower(
        "thinker_config", qwen3_omni, heads=False, rotary=True, largest=omni_image(False)
    ),
    "SkyworkR1VChatModel": Tower("vision_config", intern_vit, largest=tiles),
    "SmolVLMForConditionalGeneration": Tower("vision_config", idefics3),
    "Step3VLForConditionalGeneration": Tower("vision_config", step3),
    "Step3p7ForConditionalGeneration": Tower("vision_config", step3p7),
    "UltravoxModel": Tower("audio_config", ultravox, largest=lambda s: half_minute(s, 8)),
    "UnlimitedOCRForCausalLM": Tower("vision_config", deepseek_ocr, heads=False),
    "VoxtralForConditionalGeneration": Tower("audio_config", voxtral, largest=lambda s: half_minute(s, 4)),
}
"""Architecture -> its tower."""
