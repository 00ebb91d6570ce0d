"""Towers of convolutions that transformers' own classes run: Emu 3's image tokenizer, VibeVoice's sound tokenizers."""

from __future__ import annotations

from kvplan.models.config import Keys
from kvplan.models.towers.parts import Parts, TowerFacts, linear, vector


def emu3(s: TowerFacts) -> Parts:
    """Emu 3: a VQ-VAE, encoder and decoder, and its codebook. Its single head is what ranks would have to share."""
    k = s.tower
    latent, code = k.count("latent_channels"), k.count("embed_dim")
    base, blocks = k.count("base_channels"), k.count("num_res_blocks", high=256)
    widths = [base * times for times in k.counts("channel_multiplier")]
    if not widths or 0 in widths or len(widths) > 16:
        raise k.error("channel_multiplier must be a list of up to 16 numbers")
    attends = set(k.counts("attn_resolutions"))
    last, factor = widths[-1], k.count("temporal_downsample_factor", high=1 << 16)
    out = latent * (2 if k.flag("double_latent") else 1)
    yield linear("encoder.conv_in", base, 9 * k.count("in_channels", high=64))
    for i, (into, width) in enumerate(zip([base, *widths], widths, strict=False)):
        yield from _stage(
            f"encoder.down.{i}", into, width, blocks, i in attends, resample=i < len(widths) - 1
        )
    yield from _middle("encoder", last)
    yield linear("encoder.conv_out", out, 9 * last)
    yield from _in_time("encoder", out, factor, blocks, kernel=4)
    yield from _in_time("decoder", latent, factor, blocks, kernel=3)
    yield linear("decoder.conv_in", last, 9 * latent)
    yield from _middle("decoder", last, code)
    for i, (into, width) in enumerate(zip([*widths[1:], last], widths, strict=True)):
        yield from _stage(f"decoder.up.{i}", into, width, blocks + 1, i in attends, code=code, resample=i > 0)
    yield from _norm("decoder.norm_out", widths[0], code)
    yield linear("decoder.conv_out", k.count("out_channels", high=64), 9 * widths[0])
    yield vector("codebook", k.count("codebook_size") * code)
    yield linear("quant_conv", code, 3 * out)
    yield linear("post_quant_conv", latent, 3 * code)


def _norm(name: str, width: int, code: int = 0, copies: int = 1) -> Parts:
    """Scale and shift; in the decoder two matrices more make them from the code."""
    yield vector(name, 2 * width, copies)
    if code:
        yield linear(f"{name}.of_code", 2 * width, code, copies=copies)


def _residual(name: str, into: int, out: int, code: int) -> Parts:
    yield from _norm(f"{name}.norm1", into, code)
    yield from _norm(f"{name}.norm2", out, code)
    yield linear(f"{name}.conv1", out, 9 * into)
    yield linear(f"{name}.conv2", out, 9 * out)
    if into != out:
        yield linear(f"{name}.nin_shortcut", out, into)


def _attention(name: str, width: int, code: int) -> Parts:
    yield linear(f"{name}.qkv", 3 * width, width)
    yield linear(f"{name}.out", width, width)
    yield from _norm(f"{name}.norm", width, code)


def _stage(
    name: str, into: int, width: int, blocks: int, attends: bool, *, code: int = 0, resample: bool
) -> Parts:
    for i in range(blocks):
        yield from _residual(f"{name}.block.{i}", width if i else into, width, code)
        if attends:
            yield from _attention(f"{name}.attn.{i}", width, code)
    if resample:
        yield linear(f"{name}.resample", width, 9 * width)


def _middle(side: str, width: int, code: int = 0) -> Parts:
    yield from _residual(f"{side}.middle.block_1", width, width, code)
    yield from _attention(f"{side}.middle.attn_1", width, code)
    yield from _residual(f"{side}.middle.block_2", width, width, code)
    if not code:
        yield from _norm(f"{side}.norm_out", width)


def _in_time(side: str, width: int, factor: int, blocks: int, *, kernel: int) -> Parts:
    """Halvings (or doublings) of frames, and residual blocks over them."""
    yield linear(f"{side}.time_conv", width, 9 * kernel * width, copies=factor.bit_length() - 1)
    yield linear(f"{side}.time_res_stack.conv", width, 27 * width, copies=2 * blocks)
    yield vector(f"{side}.time_res_stack.norms", 4 * width, blocks)


def vibevoice(s: TowerFacts) -> Parts:
    """VibeVoice ASR: two tokenizers of ConvNeXt blocks, one for sound and one for sense, each with a projector."""
    for name, hidden in (("acoustic", 64), ("semantic", 128)):
        k = s.outer.section(f"{name}_tokenizer_encoder_config")
        hidden = k.count("hidden_size", default=hidden)
        yield from _convnext(name, k, hidden)
        yield linear(f"{name}_linear_1", s.text, hidden)
        yield vector(f"{name}_norm", s.text)
        yield linear(f"{name}_linear_2", s.text, s.text)


def _convnext(name: str, k: Keys, hidden: int) -> Parts:
    """Stages whose channels double as sound is thinned out."""
    kernel, width = (
        k.count("kernel_size", default=7, high=4096),
        k.count("num_filters", default=32, high=1 << 16),
    )
    ratios = k.counts("downsampling_ratios") or (2, 2, 4, 5, 5, 8)
    depths = k.counts("depths") or (3, 3, 3, 3, 3, 3, 8)
    if len(depths) != len(ratios) + 1 or len(depths) > 16:
        raise k.error("depths must have one entry more than downsampling_ratios, 16 at most")
    inner, into = k.count("ffn_expansion", default=4, high=1 << 10), k.count("channels", default=1, high=64)
    for i, (depth, taps) in enumerate(zip(depths, (kernel, *(2 * r for r in ratios)), strict=True)):
        yield linear(f"{name}.conv.{i}", width, into * taps)
        yield linear(f"{name}.{i}.linear1", inner * width, width, copies=depth)
        yield linear(f"{name}.{i}.linear2", width, inner * width, copies=depth)
        yield linear(f"{name}.{i}.mixer", width, kernel, copies=depth)
        yield vector(f"{name}.{i}.norms_and_gammas", 4 * width, depth)
        into, width = width, 2 * width
    yield linear(f"{name}.head", hidden, kernel * into)
