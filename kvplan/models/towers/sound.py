"""Towers for sound: Whisper and its kin, conformers."""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.models.config import Keys
from kvplan.models.spec import Weight
from kvplan.models.towers.images import qformer
from kvplan.models.towers.parts import Parts, TowerFacts, blocks, item, linear, sizes, two, vector


def whisper(
    k: Keys,
    *,
    cut: bool = True,
    cut_mlp: bool = True,
    positions: bool = True,
    itemsize: int = 0,
    post: bool = True,
    kv: int = 0,
) -> Parts:
    """Whisper's encoder; keys have no bias where projections are apart."""
    hidden = sizes(k)[0]
    yield linear("conv1", hidden, 3 * k.count("num_mel_bins", default=80))
    yield linear("conv2", hidden, 3 * hidden)
    if positions:
        found = k.count("max_source_positions", default=1500)
        yield Weight("embed_positions", found * hidden, itemsize=itemsize)
    yield from blocks(k, cut=cut, cut_mlp=cut_mlp, key_bias=cut, kv=kv)
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


LARGE_V3 = {"d_model": 1280, "encoder_ffn_dim": 5120, "encoder_layers": 32, "num_mel_bins": 128}
"""Whisper large v3, whose own config Kimi-Audio keeps in the folder `whisper-large-v3` beside its own."""


def kimi_audio(s: TowerFacts) -> Parts:
    """Whisper large v3's encoder, four positions joined, a norm behind."""
    yield from whisper(Keys(s.outer.name, LARGE_V3))
    joined = s.outer.count("kimia_adaptor_input_dim", default=5120)
    yield from two("vq_adaptor", (s.text, s.text, joined), norm=2 * s.text)


def large_v3_window(s: TowerFacts) -> Mapping[str, int]:
    """Thirty seconds through it, which vLLM counts 13 tokens a second; its 20 heads must divide by the ranks."""
    return item(1280, 5120, 1500, 390, pixels=2 * 128, heads=20)


def fun_audio_chat(s: TowerFacts) -> Parts:
    """Whisper's encoder, its MLPs whole on every rank, and embeddings of speech tokens; two matrices match the two."""
    k, hidden = s.tower, sizes(s.tower)[0]
    out = k.count("output_dim", default=3584)
    yield from whisper(k, cut_mlp=False, positions=False)
    yield linear("proj", out, hidden)
    yield vector("audio_bos_eos", 2 * out)
    yield vector("audio_tower.embed_tokens", k.count("codebook_size") * out)
    yield linear("audio_tower.matching", out, out, bias=False, copies=2)


def grouped_speech(s: TowerFacts) -> Mapping[str, int]:
    """Fun-Audio-Chat's: `max_source_positions` tokens, each of `group_size` frames of two positions.

    Source: vLLM 0.32 `models/funaudiochat.py: get_dummy_mm_data`; five minutes with the published config.
    """
    (hidden, width, _), tokens = sizes(s.tower), s.tower.count("max_source_positions", default=1500)
    positions = 2 * tokens * s.tower.count("group_size", default=5, high=1 << 10)
    return item(hidden, width, positions, tokens, pixels=2 * s.tower.count("num_mel_bins", default=128))


def glm_asr(s: TowerFacts) -> Parts:
    """Whisper's encoder with rotary positions, four frames merged."""
    hidden, width, _ = sizes(s.tower)
    heads = s.tower.count("num_attention_heads", default=1)
    kv = hidden // heads * s.tower.count("num_key_value_heads", default=heads)
    yield from whisper(s.tower, positions=False, kv=kv)
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


def voxtral_realtime(s: TowerFacts) -> Parts:
    """Whisper's encoder as a decoder: causal convolutions, rotary positions, a gated MLP."""
    k, (hidden, width, n) = s.tower, sizes(s.tower)
    inner = k.count("encoder_attention_heads") * k.count("encoder_head_dim")
    yield linear("conv1", hidden, 3 * k.count("num_mel_bins", default=128))
    yield linear("conv2", hidden, 3 * hidden)
    yield linear("attn.qkv", 3 * inner, hidden, "rows", copies=n)
    yield linear("attn.out", hidden, inner, "cols", copies=n)
    yield linear("mlp.gate_up", 2 * width, hidden, "rows", bias=False, copies=n)
    yield linear("mlp.down", hidden, width, "cols", copies=n)
    yield vector("norms", (2 * n + 1) * hidden)
    yield from two("adapter", (s.text, s.text, hidden * k.count("downsample_factor", default=4)), bias=False)


def frames_rotated(s: TowerFacts) -> int:
    """Its rotary table: one row for each frame that a context holds."""
    return s.tower.count("max_position_embeddings") * s.tower.count("encoder_head_dim")


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
    yield from gemma_conformer((hidden, n, heads), k.count("conv_kernel_size"))
    yield linear("output_proj", out, hidden)
    yield linear("embedding_projection", text, out, bias=False)


def gemma_conformer(of: tuple[int, int, int], kernel: int) -> Parts:
    """Layers of Gemma's Conformers: hidden size, layers, heads."""
    hidden, n, heads = of
    yield linear("ffw_1", 4 * hidden, hidden, bias=False, copies=2 * n)
    yield linear("ffw_2", hidden, 4 * hidden, bias=False, copies=2 * n)
    yield linear("attn.qkv_out_and_relative_k", 5 * hidden, hidden, bias=False, copies=n)
    yield linear("conv.start_and_end", 3 * hidden, hidden, bias=False, copies=n)
    yield vector("conv.depthwise", hidden * kernel, n)
    yield vector("norms_and_scales", 9 * hidden + hidden // heads, n)


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


def cohere_asr(s: TowerFacts) -> Parts:
    """Cohere's Conformer, whole on every rank, and a matrix to the decoder's width."""
    k = s.tower
    hidden, n, channels = (
        k.count("d_model"),
        k.count("n_layers", high=4096),
        k.count("subsampling_conv_channels"),
    )
    width = hidden * k.count("ff_expansion_factor", high=64)
    halvings = k.count("subsampling_factor", high=4096).bit_length() - 1
    yield linear("pre_encode.conv", channels, 9)
    yield linear("pre_encode.depthwise", channels, 9, copies=halvings - 1)
    yield linear("pre_encode.pointwise", channels, channels, copies=halvings - 1)
    yield linear("pre_encode.out", hidden, channels * max(k.count("feat_in") >> halvings, 1))
    yield linear("feed_forward.linear1", width, hidden, copies=2 * n)
    yield linear("feed_forward.linear2", hidden, width, copies=2 * n)
    yield linear("self_attn.qkv_and_out", 4 * hidden, hidden, copies=n)
    yield linear("self_attn.linear_pos", hidden, hidden, bias=False, copies=n)
    yield vector("self_attn.pos_bias_u_and_v", 2 * hidden, n)
    yield linear("conv.pointwise", 3 * hidden, hidden, copies=n)
    yield linear("conv.depthwise", hidden, k.count("conv_kernel_size", high=4096), copies=n)
    yield vector("norms", 12 * hidden, n)  # five of layers and one of a batch
    yield linear("encoder_decoder_proj", s.text, hidden)


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
    yield from qformer(
        p, s.outer.count("window_size", default=15) // s.outer.count("downsample_rate", default=5)
    )
    yield linear("projector", s.text, p.count("hidden_size"))


def midasheng(s: TowerFacts) -> Parts:
    """Dasheng's ViT over the spectrogram: positions in time and in pitch, five frames joined behind it."""
    k = s.tower
    hidden, pitches = k.count("embed_dim", default=768), k.count("n_mels", default=64)
    (high, wide), (up, along) = _pair(k, "patch_size"), _pair(k, "patch_stride")
    frames = k.count("target_length", default=1012, high=1 << 20)
    wide_as = {"intermediate_size": round(k.number("mlp_ratio", 4.0, high=1000) * hidden)}
    layers = {"hidden_size": hidden, "num_hidden_layers": k.count("depth", default=12, high=4096)}
    yield linear("patch_embed", hidden, k.count("input_channels", default=1, high=64) * high * wide)
    yield vector("positions", (frames // along + pitches // up) * hidden)
    yield from blocks(Keys(k.name, {**layers, **wide_as}), norms=4 if k.raw.get("init_values") is None else 6)
    yield vector("norms", 2 * hidden + 2 * pitches)
    joined = hidden * s.outer.count("subsample_factor", default=5, high=64)
    yield from two("audio_projector", (s.text, s.text, joined), cut=True)


def _pair(k: Keys, key: str) -> tuple[int, int]:
    """One number for both sides, or two."""
    if not isinstance(k.raw.get(key), list):
        return (k.count(key, default=16, high=4096),) * 2
    found = k.counts(key)
    if len(found) != 2 or 0 in found:
        raise k.error(f"{key} must be one number or two")
    return found[0], found[1]


def moss_audio(s: TowerFacts) -> Parts:
    """Three convolutions over time and pitch, Whisper's layers, a gated adapter and one for each layer read early."""
    k, hidden = s.tower, sizes(s.tower)[0]
    conv, out = k.count("downsample_hidden_size", default=480), k.count("output_dim", default=hidden)
    deep = len(k.counts("deepstack_encoder_layer_indexes"))
    if s.outer.raw.get("deepstack_num_inject_layers") is not None:
        deep = min(deep, s.outer.count("deepstack_num_inject_layers", low=0))
    middle = s.outer.count("adapter_hidden_size", default=8192)
    yield linear("conv1", conv, 9)
    yield linear("conv2", 2 * conv, 9 * conv)
    yield linear("stem_proj", hidden, conv * -(-k.count("num_mel_bins", default=128) // 8))
    yield from blocks(k, key_bias=False)
    yield vector("layer_norm", 2 * hidden)
    if out != hidden:
        yield linear("out_proj", out, hidden)
    yield linear("adapters.up", 2 * middle, out, "rows", bias=False, copies=1 + deep)
    yield linear("adapters.down", s.text, middle, "cols", bias=False, copies=1 + deep)


def fun_asr(s: TowerFacts) -> Parts:
    """SenseVoice's encoder, whose attention is whole on every rank, and an adaptor of fixed sizes."""
    k = s.tower
    hidden, width = k.count("output_size", default=256), k.count("linear_units", default=2048)
    n = k.count("num_blocks", default=6) + k.count("tp_blocks", default=0, low=0)
    yield linear("linear_q_k_v", 3 * hidden, hidden, copies=n - 1)
    yield linear("linear_q_k_v.first", 3 * hidden, 560)
    yield linear("out_proj", hidden, hidden, copies=n)
    yield linear("fsmn_block", hidden, k.count("kernel_size", default=11, high=4096), bias=False, copies=n)
    yield linear("feed_forward.w_1", width, hidden, "rows", copies=n)
    yield linear("feed_forward.w_2", hidden, width, "cols", copies=n)
    yield vector("norms", 4 * hidden * (n - 1) + 2 * (560 + hidden) + 4 * hidden)
    adaptor = {"hidden_size": 1024, "intermediate_size": 256, "num_hidden_layers": 2}
    yield from two("audio_adaptor", (1024, 2048, 512), cut=True)
    yield from blocks(Keys(k.name, adaptor))


def fire_red_asr(s: TowerFacts) -> Parts:
    """A conformer as FireRed makes it, whole on every rank; frames joined."""
    k = s.tower
    hidden, n = k.count("d_model"), k.count("n_layers_enc", high=4096)
    width, joined = 4 * hidden, hidden * s.outer.count("encoder_downsample_rate", default=2, high=64)
    pitches = ((k.count("idim") - 1) // 2 - 1) // 2
    yield linear("subsampling.conv", 32, 9)
    yield linear("subsampling.conv2", 32, 9 * 32)
    yield linear("subsampling.out", hidden, 32 * max(pitches, 1))
    yield linear("ffn.up", width, hidden, copies=2 * n)
    yield linear("ffn.down", hidden, width, copies=2 * n)
    yield linear("attn.qkv_out_and_positions", 5 * hidden, hidden, bias=False, copies=n)
    yield linear("conv.up", 4 * hidden, hidden, bias=False, copies=n)
    yield linear("conv.depthwise", 2 * hidden, k.count("kernel_size", high=4096), bias=False, copies=n)
    yield linear("conv.down", hidden, 2 * hidden, bias=False, copies=n)
    yield vector("norms_and_biases", 20 * hidden, n)
    yield from two("encoder_projector", (s.text, s.text, joined))


def mimo_ears(k: Keys) -> Parts:
    """MiMo-V2's: tables of codes, a Qwen 2 of a few layers, whole on every rank, with a vocabulary that it never reads.

    What makes codes of sound, `audio_tokenizer`, vLLM 0.32 loads from a folder alone, not by a name of the hub
    (`mimo_audio.py: MimoAudioEncoder`), so that it is left out.
    """
    hidden, n = k.count("input_local_dim", default=1024), k.count("input_local_layers", default=6, high=4096)
    width, channels = (
        k.count("input_local_intermediate_size", default=4096),
        k.count("audio_channels", default=8),
    )
    yield linear("self_attn.qkv", 3 * hidden, hidden, copies=n)
    yield linear("self_attn.o_proj", hidden, hidden, bias=False, copies=n)
    yield linear("mlp", 3 * width, hidden, bias=False, copies=n)
    yield vector("norms", 2 * hidden, n)
    yield vector("norm", hidden * k.flag("add_post_norm"))
    yield Weight("embed_tokens", QWEN2_VOCABULARY, hidden, copied=True)
    yield linear("speech_embeddings", sum(_codes(k, channels)), hidden, bias=False)
    read, out = hidden * k.count("group_size", default=4), k.count("out_hidden_size", default=4096)
    if k.count("projection_layers", default=1, high=2) == 1:
        yield linear("projection", out, read, bias=False)
    else:
        yield from two("projection", (out, 4 * read, read), bias=False)


QWEN2_VOCABULARY = 151_936
"""Of transformers 5.19's `Qwen2Config` where none is told."""


def _codes(k: Keys, channels: int) -> list[int]:
    """Codes of each channel: one number for all, or one each between dashes."""
    found = str(k.raw.get("speech_vocab_size", "1025-1025-129-129-129-129-129-129"))
    listed = found.split("-") if "-" in found else [found] * channels
    if len(listed) < channels or not all(n.isdecimal() and len(n) < 9 for n in listed):
        raise k.error("speech_vocab_size must be a whole number, or one for each channel between dashes")
    return [int(n) for n in listed[:channels]]
