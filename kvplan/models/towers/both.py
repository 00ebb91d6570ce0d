"""Towers that see and hear."""

from __future__ import annotations

from kvplan.models.config import Keys
from kvplan.models.towers.images import minicpmv, radio, siglip
from kvplan.models.towers.own_images import qwen2_5, qwen3
from kvplan.models.towers.parts import Parts, TowerFacts, linear, sizes, two, vector
from kvplan.models.towers.sound import parakeet, qwen3_audio, whisper


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


def minicpmo(s: TowerFacts) -> Parts:
    """MiniCPM-V's eyes, and Whisper's encoder, whole on every rank, with a projector."""
    yield from minicpmv(s)
    sound = s.outer.section("audio_config")
    hidden, width, _ = sizes(sound)
    yield from whisper(sound, cut=False)
    yield from two("audio_projection_layer", (s.text, s.text, width // 4 if width else hidden))
