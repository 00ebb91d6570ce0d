"""Towers that see and hear."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

from kvplan.models.config import Keys
from kvplan.models.towers.images import minicpmv, radio, siglip
from kvplan.models.towers.own_images import mimo_eyes, qwen2_5, qwen3
from kvplan.models.towers.parts import Parts, TowerFacts, linear, sizes, two, vector
from kvplan.models.towers.sound import mimo_ears, parakeet, qwen3_audio, whisper


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


def nano_nemotron(s: TowerFacts) -> Parts:
    """RADIO, and Parakeet beside it where the config has sound."""
    yield from radio(s)
    if s.outer.raw.get("sound_config") is not None:
        yield from parakeet(s.outer.section("sound_config"), s.text)


def qwen3_omni(s: TowerFacts) -> Parts:
    """Qwen 3's sound and images."""
    yield from qwen3_audio(s.tower.section("audio_config"))
    yield from qwen3(s.tower.section("vision_config"))


def qwen2_5_omni(s: TowerFacts) -> Parts:
    """Whisper's layers and Qwen 2.5's images."""
    sound = s.tower.section("audio_config")
    hidden, out = sizes(sound)[0], sound.count("output_dim")
    yield from whisper(sound, cut=False, positions=False)
    yield vector("audio_bos_eos", 2 * out)
    yield linear("proj", out, hidden)
    yield from qwen2_5(s.tower.section("vision_config"))


def mimo_v2_omni(s: TowerFacts) -> Parts:
    """MiMo-V2 Omni's images, and its sound where the config has any."""
    yield from mimo_eyes(s.tower)
    if s.outer.raw.get("audio_config") is not None:
        yield from mimo_ears(s.outer.section("audio_config"))


def minicpmo(s: TowerFacts) -> Parts:
    """MiniCPM-V's eyes, and Whisper's encoder, whole on every rank, with a projector."""
    yield from minicpmv(s)
    sound = s.outer.section("audio_config")
    hidden, width, _ = sizes(sound)
    yield from whisper(sound, cut=False)
    yield from two("audio_projection_layer", (s.text, s.text, width // 4 if width else hidden))


def inkling(s: TowerFacts) -> Parts:
    """Inkling: matrices that fold a patch step by step, with norms between; a table of each sound band's levels.

    A part without `decoder_dmodel` is not there. Source: vLLM 0.32 `models/inkling/common/towers.py`.
    """
    eyes, ears = s.outer.section("vision_config"), s.outer.section("audio_config")
    if "decoder_dmodel" in eyes:
        out = eyes.count("decoder_dmodel")
        steps = folds(eyes)
        for i, ((frames, side, channels), (t, h, wider)) in enumerate(pairwise(steps)):
            into = channels * (t // frames) * (h // side) ** 2
            last = i == len(steps) - 2
            yield linear(f"linear_{i}", out if last else wider, into, bias=False)
            yield vector(f"norm_{i}", wider if not last else out * eyes.flag("use_vision_norm"))
    if "decoder_dmodel" in ears:
        out = ears.count("decoder_dmodel")
        yield linear(
            "audio.encoder", ears.count("n_mel_bins") * ears.count("mel_vocab_size"), out, bias=False
        )
        yield vector("audio.final_norm", out * ears.flag("use_audio_norm"))


def folds(k: Keys) -> list[tuple[int, int, int]]:
    """Frames, side and channels behind each matrix: of all steps by prime factors, those nearest to even steps."""
    patch, frames = k.count("patch_size", low=2, high=4096), k.count("temporal_patch_size", high=64)
    channels, layers = k.count("n_channels", high=64), k.count("n_layers", high=64)
    side = t = 1
    steps = [(1, 1, channels)]
    for factor in reversed(_prime_factors(patch)):
        side *= factor
        steps.append((1, side, _to_64(side**2 * channels)))
    for factor in reversed(_prime_factors(frames)):
        t *= factor
        steps.append((t, side, _to_64(side**2 * channels * t)))
    even = math.log(patch**2 * frames * channels) / layers
    far = [[abs(even * i - math.log(t * side**2)) for t, side, _ in steps] for i in range(layers + 1)]
    if layers >= len(steps):
        chosen = [min(range(len(steps)), key=row.__getitem__) for row in far]
    else:
        ways = combinations(range(len(steps)), layers + 1)
        chosen = list(min(ways, key=lambda way: sum(row[j] for row, j in zip(far, way, strict=True))))
    chosen[0], chosen[-1] = 0, len(steps) - 1
    return [steps[j] for j in chosen]


def _to_64(channels: int) -> int:
    return -(-channels // 64) * 64


def _prime_factors(n: int) -> list[int]:
    """Ascending.

    >>> _prime_factors(40)
    [2, 2, 2, 5]
    """
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found
