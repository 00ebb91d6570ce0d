"""Towers for images of a family's own: Qwen, GLM, MoonViT, perception encoders and others."""

from __future__ import annotations

from kvplan.models.config import Keys
from kvplan.models.spec import Weight
from kvplan.models.towers.images import clip
from kvplan.models.towers.parts import (
    Parts,
    TowerFacts,
    blocks,
    grid,
    linear,
    merge,
    patches,
    sizes,
    two,
    vector,
)


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


def step3p7(s: TowerFacts) -> Parts:
    """Step-3.7: a perception encoder, two convolutions that halve its grid, one projector."""
    hidden = sizes(s.tower)[0]
    width = round(s.tower.number("mlp_ratio", 4.0, high=1000) * hidden)
    k = Keys(s.tower.name, {**s.tower.raw, "intermediate_size": width})
    extra = int(k.flag("use_cls_token"))
    yield from patches(k, bias=False, positions=grid(k) + extra if k.flag("use_abs_posemb", True) else 0)
    outer_norms = k.flag("use_ln_pre", True) + k.flag("use_ln_post")
    yield vector("class_and_outer_norms", (extra + 2 * outer_norms) * hidden)
    yield from blocks(k, norms=4 if k.raw.get("ls_init_value", 0.1) is None else 6)
    yield linear("downsampler_1", 2 * hidden, 9 * hidden)
    yield linear("downsampler_2", 4 * hidden, 18 * hidden)
    yield linear("projector", s.text, 4 * hidden, "rows", bias=s.outer.flag("projector_bias", True))


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
    width = round(s.tower.number("mlp_ratio", 4.0, high=1000) * hidden)
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


def hyperclovax(s: TowerFacts) -> Parts:
    """HyperCLOVA X Vision 2: Qwen 2.5's tower and a projector. Its ears are not known."""
    if s.outer.raw.get("audio_config") is not None:
        raise s.outer.error("audio_config: the audio encoder's weights are not known")
    yield from qwen2_5(s.tower)
    yield linear("mm_projector", s.text, s.tower.count("out_hidden_size"))


def mimo_eyes(k: Keys) -> Parts:
    """MiMo-V2 Omni's images: grouped queries, sinks where attention is windowed."""
    hidden, _, n = sizes(k)
    heads, each = k.count("num_heads"), k.count("qk_channels", default=64)
    merged = hidden * merge(k)
    yield from patches(k, bias=False, positions=0, frames=k.count("temporal_patch_size", default=2, high=64))
    yield from blocks(k, gated=True, norms=2, inner=heads * each, kv=k.count("num_key_value_heads") * each)
    windows = k.raw.get("vit_window_attn_types")
    if k.flag("use_sink") and isinstance(windows, list):
        yield vector("attn.sinks", heads, sum(kind != -1 for kind in windows[:n]))
    yield from two("merger", (k.count("out_hidden_size"), merged, merged), bias=False, cut=True, norm=hidden)


def qwen3(k: Keys) -> Parts:
    """Qwen 3's images; deep features are merged as the last ones are."""
    hidden, merged = sizes(k)[0], sizes(k)[0] * merge(k)
    frames, out = k.count("temporal_patch_size", default=2, high=64), k.count("out_hidden_size")
    yield from patches(k, positions=k.count("num_position_embeddings"), frames=frames)
    yield from blocks(k)
    yield from two("merger", (out, merged, merged), cut=True, norm=2 * hidden)
    for _ in range(len(k.counts("deepstack_visual_indexes"))):
        yield from two("merger_list", (out, merged, merged), cut=True, norm=2 * merged)


def molmo2(s: TowerFacts) -> Parts:
    """Molmo 2: a ViT up to the last layer that is read, those layers pooled by attention, a gated projector."""
    k, p = s.tower, s.outer.section("adapter_config")
    hidden, _, n = sizes(k)
    read = p.raw.get("vit_layers", [-3, -9])
    if not isinstance(read, list) or not read or not all(type(i) is int and -n <= i < n for i in read):
        raise p.error("vit_layers must be a list of layers of the tower")
    patch = k.count("image_patch_size", default=14, high=4096)
    inner = p.count("num_attention_heads", default=16) * p.count("head_dim", default=72)
    kv = p.count("num_key_value_heads", default=16) * p.count("head_dim", default=72)
    wide, seen = p.count("intermediate_size"), p.count("hidden_size", default=hidden)
    yield linear("patch_embedding", hidden, 3 * patch**2)
    yield vector("positions", k.count("image_num_pos", default=577) * hidden)
    yield from blocks(k, layers=max(i % n for i in read) + 1)
    yield linear("image_pooling.qkv", inner + 2 * kv, hidden * len(read), "rows")
    yield linear("image_pooling.out", seen, inner, "cols")
    yield linear("image_projector.up", 2 * wide, seen, "rows", bias=False)
    yield linear("image_projector.down", s.text, wide, "cols", bias=False)


def kanana(s: TowerFacts) -> Parts:
    """Kanana: Qwen 2's tower without its merger, an abstractor of RegNet's stages, whole on every rank."""
    k, p = s.tower, s.outer.section("projector_config")
    seen, inner = p.count("encoder_hidden_size"), p.count("hidden_size")
    depth, merged = (
        p.count("depth", default=0, low=0, high=64),
        p.count("merge_size", default=2, high=64) ** 2,
    )
    out, mlps = p.count("output_hidden_size"), p.count("mlp_depth", default=1, high=64)
    yield from patches(k, bias=False, positions=0, frames=k.count("temporal_patch_size", default=2, high=64))
    yield from blocks(k)
    if p.flag("pos_emb"):
        yield vector("abstractor.pos_emb", p.count("pos_emb_size") * seen)
    for into in (seen, merged * inner) if depth else ():
        for i in range(depth):
            yield from _reg_block(into if i == 0 else inner, inner)
    yield linear("readout", out, inner if depth else seen)
    yield linear("readout.more", out, out, copies=mlps - 1)


def _reg_block(into: int, out: int) -> Parts:
    """RegNet's bottleneck: two pointwise convolutions about one by channel, squeezed and excited, each with a norm."""
    yield linear("conv1", out, into, bias=False)
    yield linear("conv2", out, 9, bias=False)
    yield linear("se.fc1", round(into / 4), out)
    yield linear("se.fc2", out, round(into / 4))
    yield linear("conv3", out, out, bias=False)
    yield vector("norms", 6 * out)
    if into != out:
        yield linear("downsample", out, into, bias=False)
        yield vector("downsample.norm", 2 * out)


def open_pangu(s: TowerFacts) -> Parts:
    """openPangu: Qwen 2.5's kind of tower; a merger for each layer that is read, and one projection."""
    k = s.tower
    hidden, merged, out = sizes(k)[0], sizes(k)[0] * merge(k), k.count("out_hidden_size")
    read = k.raw.get("mm_unit_vision_select_layer", [-1, -3])
    frames = k.count("temporal_patch_size", default=2, high=64)
    yield from patches(k, bias=False, positions=0, frames=frames)
    yield from blocks(k, gated=k.text("hidden_act") == "silu", norms=2)
    yield vector("final_layernorm", hidden)
    for _ in range(len(read) if isinstance(read, list) else 1):
        yield from two("merger", (out, merged, merged), cut=True, norm=hidden)
    yield linear("vision_projection", s.text, out)


def onevision2(s: TowerFacts) -> Parts:
    """LLaVA-OneVision 2: a ViT with rotary positions, its merger as Qwen 2's."""
    k, hidden = s.tower, sizes(s.tower)[0]
    merged = hidden * merge(k)
    yield from patches(k, bias=False, positions=0)
    yield vector("layernorm_pre", 2 * hidden)
    yield from blocks(k)
    yield from two("merger", (s.text, merged, merged), cut=True, norm=2 * hidden)


def deepseek_v4(s: TowerFacts) -> Parts:
    """DeepSeek V4's eyes: a gated ViT with rotary positions; patches of a square joined and projected; four marks."""
    k = s.tower
    hidden = k.count("vision_dim", default=1024)
    told = {"hidden_size": hidden, "intermediate_size": k.count("vision_inter_dim", default=2816)}
    told |= {"num_hidden_layers": k.count("vision_n_layers", high=4096)}
    v = Keys(k.name, told | {"patch_size": k.count("vision_patch_size", default=14, high=4096)})
    joined = hidden * k.count("vision_downsample_ratio", default=3, high=64) ** 2
    yield from patches(v, positions=0)
    for part in blocks(v, gated=True, norms=2):
        yield part._replace(bias=part.bias and part.name.startswith("attn"))
    yield vector("norm", hidden)
    yield from two("aligner", (s.text, s.text, joined), cut=True)
    yield Weight("image_marks", 4 * s.text, itemsize=4)


def deepseek_v41(s: TowerFacts) -> Parts:
    """DeepSeek V4.1's: V4's, with one mark less."""
    told = {
        "vision_dim": "hidden_size",
        "vision_inter_dim": "intermediate_size",
        "vision_n_layers": "num_hidden_layers",
        "vision_patch_size": "patch_size",
        "vision_downsample_ratio": "downsample_ratio",
    }
    v4 = Keys(s.tower.name, {name: s.tower.raw.get(key) for name, key in told.items()})
    for part in deepseek_v4(s._replace(tower=v4)):
        yield part._replace(rows=3 * s.text) if part.name == "image_marks" else part


def cosmos3_edge(s: TowerFacts) -> Parts:
    """Cosmos 3 Edge: SigLIP 2 and a merger, its norm before or behind the merging."""
    p, hidden = s.outer.section("projector_config"), sizes(s.tower)[0]
    merged = hidden * merge(p)
    norm = 2 * (merged if p.flag("use_postshuffle_norm") else hidden)
    middle = p.count("merger_intermediate_size", default=11520)
    yield from patches(s.tower, positions=s.tower.count("num_patches", default=256))
    yield from blocks(s.tower)
    yield vector("post_layernorm", 2 * hidden)
    yield from two(
        "projector", (p.count("out_hidden_size", default=1024), middle, merged), cut=True, norm=norm
    )


def hunyuan_vl(s: TowerFacts) -> Parts:
    """HunYuan's OCR: a ViT and its merger as transformers' class makes them, whole on every rank."""
    k, hidden = s.tower, sizes(s.tower)[0]
    side = k.count("max_image_size", default=2048, high=1 << 20) // k.count("patch_size", high=4096)
    yield from patches(k, positions=side**2 + 1)
    yield from blocks(k, cut=False)
    yield linear("proj_conv", 2 * hidden, merge(k) * hidden)
    yield linear("proj_out", 4 * hidden, 2 * hidden)
    yield linear("mlp", s.text, 4 * hidden)
    yield vector("marks_and_norms", 5 * hidden + 4 * s.text)
