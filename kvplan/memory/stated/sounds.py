"""Sounds of a stated length, in samples: what passes the tower, and the tokens where they are counted by it.

Classes that name their most tokens by themselves count a shorter sound as the longest.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.ground.errors import KvplanError

Facts = Mapping[str, int]
RATE, HOP = 16_000, 160
"""Samples a second, and of a frame of the spectrogram."""
WINDOW = 30 * RATE


def _windows(samples: int, most: int) -> list[int]:
    """Samples of each window of 30 s."""
    whole, rest = divmod(samples, WINDOW)
    return ([WINDOW] * whole + [rest] * (rest > 0))[:most]


def _frames(samples: int) -> int:
    return -(-samples // HOP)


def _halved(frames: int) -> int:
    return (frames - 1) // 2 + 1


def flamingo(facts: Facts, samples: int) -> Facts:
    """Windows, filled up; frames of all of them are halved and pooled by twos (vLLM 0.32 `models/audioflamingo3.py:
    _get_audio_post_pool_output_lengths`)."""
    found = _windows(samples, 20)
    tokens = (_halved(sum(map(_frames, found))) - 2) // 2 + 1
    return {"patches": facts["patches"] // 20 * len(found), "tokens": max(tokens, 1)}


def glm(facts: Facts, samples: int) -> Facts:
    """Windows, filled up; the frames of each are halved and joined by fours (vLLM 0.32 `models/glmasr_utils.py`)."""
    found = _windows(samples, 21)
    tokens = sum((_halved(_frames(n)) - 4) // 4 + 1 for n in found)
    return {"patches": facts["patches"] // 21 * len(found), "tokens": max(tokens, 1)}


def moss_windows(facts: Facts, samples: int) -> Facts:
    """Windows, filled up (vLLM 0.32 `models/moss_transcribe_diarize.py`)."""
    return {"patches": facts["patches"] // 180 * len(_windows(samples, 180))}


def voxtral(facts: Facts, samples: int) -> Facts:
    """Windows, filled up, within those of the context (vLLM 0.32 `models/voxtral.py`)."""
    return {"most_windows": -(-samples // WINDOW)}


def granite(facts: Facts, samples: int) -> Facts:
    """Pairs of frames, and tokens for each window of 15 of them (vLLM 0.32 `models/granite_speech.py`; transformers'
    `GraniteSpeechFeatureExtractor._get_num_audio_features`)."""
    pairs = (min(samples, 8_000_000) // HOP + 1) // 2
    tokens = -(-pairs // facts["window"]) * facts["window_tokens"]
    return {"patches": pairs, "tokens": tokens}


def fire_red(facts: Facts, samples: int) -> Facts:
    """Filled up to 30 s; tokens of the frames that are heard (vLLM 0.32 `processors/fireredasr2.py`)."""
    frames = (min(samples, WINDOW) - 400) // HOP + 1
    twice = -(-(-(-(frames + 6 - 2) // 2) - 2) // 2)
    heard = min(max(twice, 0), -(-frames // 4))
    return {"tokens": max(heard * facts["tokens"] // facts["patches"], 1)}


def fun_asr(facts: Facts, samples: int) -> Facts:
    """Filled up; frames are joined by sixes and halved three times (vLLM 0.32 `processors/funasr.py`)."""
    tokens = -(-((min(samples, WINDOW) - 400) // HOP + 1) // 6)
    for _ in range(3):
        tokens = (tokens + 1) // 2
    return {"tokens": max(tokens, 1)}


def midasheng(facts: Facts, samples: int) -> Facts:
    """Four frames a patch (vLLM 0.32 `models/midashenglm.py: calculate_mel_frames_dasheng`)."""
    patches = (1 + min(samples, 160_000) // HOP) // 4
    joined = facts["patches"] // facts["tokens"]
    return {"patches": patches, "tokens": max(patches // joined, 1)}


def qwen3(facts: Facts, samples: int) -> Facts:
    """13 tokens a second (vLLM 0.32 `models/qwen3_asr.py: _get_feat_extract_output_lengths`)."""
    tokens = _thinned(_frames(min(samples, WINDOW)))
    return {"patches": tokens, "tokens": max(tokens, 1)}


def moss_audio(facts: Facts, samples: int) -> Facts:
    """A second at most is run (vLLM 0.32 `models/moss_audio.py: get_dummy_mm_data`)."""
    return {"patches": min(facts["patches"], _thinned(_frames(min(samples, RATE))))}


def ultravox(facts: Facts, samples: int) -> Facts:
    """Windows, the only one as long as the sound; frames are halved, and those of each window joined.

    Source: vLLM 0.32 `models/ultravox.py: UltravoxWhisperEncoder`; tokens as the public tests of its checkpoints'
    `UltravoxProcessor` state them (35 s: 188 and 32).
    """
    frames = [_frames(n) for n in _windows(samples, 16)]
    joined = 2 * facts["stack"]
    run = _halved(frames[0]) if len(frames) == 1 else facts["patches"] // 16 * len(frames)
    return {"patches": run, "tokens": sum(-(-n // joined) for n in frames)}


def fun_audio_chat(facts: Facts, samples: int) -> Facts:
    """Frames are halved, a Fourier transform's samples at least (vLLM 0.32 `models/funaudiochat.py`)."""
    return {"patches": _halved(_frames(max(samples, 400)))}


def vibevoice(facts: Facts, samples: int) -> Facts:
    """Samples, filled up to whole hops of its tokenizer (transformers' `VibeVoiceAsrProcessor`)."""
    return {"patches": -(-samples // facts["hop"]) * facts["hop"]}


def phi4mm(facts: Facts, samples: int) -> Facts:
    """Frames are joined by eights (vLLM 0.32 `models/phi4mm.py: get_audio_num_frames, _compute_audio_embed_size`)."""
    frames = (min(samples, 241_000) - 400) // HOP + 1
    if frames < 1:
        raise KvplanError(f"a sound of {samples} samples: its processor needs 400 at least")
    tokens = -(-frames // facts["joined"])
    return {"patches": tokens, "tokens": tokens}


def gemma3n(facts: Facts, samples: int) -> Facts:
    """Filled up to whole 128 samples, 1,024 at most; frames of 513 are halved twice, and none is counted less.

    Source: vLLM 0.32 `models/gemma3n_mm.py: _get_num_audio_frames_alone`.
    """
    return {"patches": _twice_halved((-(-min(samples, 1024) // 128) * 128 - 513) // HOP + 1)}


def gemma4(facts: Facts, samples: int) -> Facts:
    """512 samples at most, behind 160 of silence; frames of 321 are halved twice, and none is counted less.

    Source: vLLM 0.32 `models/gemma4_mm.py: _dummy_audio_num_samples, _compute_audio_num_tokens`.
    """
    return {"patches": _twice_halved((min(samples, 512) + 160 - 321) // HOP + 1)}


def gemma4_unified(facts: Facts, samples: int) -> Facts:
    """A frame of its samples each, and none counted less (vLLM 0.32 `models/gemma4_unified.py`)."""
    return {"patches": -(-samples // facts["pixels"])}


def qwen2_5_omni(facts: Facts, samples: int) -> Facts:
    """Frames are halved, and none counted less (vLLM 0.32 `models/qwen2_5_omni_thinker.py`)."""
    return {"patches": _halved(_frames(samples))}


def qwen3_omni(facts: Facts, samples: int) -> Facts:
    """As `qwen3`, and none counted less (vLLM 0.32 `models/qwen3_omni_moe_thinker.py`)."""
    return {"patches": _thinned(_frames(min(samples, WINDOW)))}


def inkling(facts: Facts, samples: int) -> Facts:
    """20 tokens a second (vLLM 0.32 `processors/inkling.py: _dmel_bins`)."""
    tokens = -(-samples // 800)
    return {"patches": tokens, "tokens": tokens}


def parakeet(facts: Facts, samples: int) -> Facts:
    """Clips of 30 s, each filled up to the longest, halved as often as are joined; counted as the context.

    Source: vLLM 0.32 `models/parakeet.py: ParakeetExtractor._clip_sizes`, `models/nano_nemotron_vl.py`.
    """
    clips, rest = divmod(samples, facts["clip"])
    clips, longest = clips + (rest > 0), facts["clip"] if clips else max(rest, facts["clip"] // 300)
    frames = longest // facts["hop"] + 1
    for _ in range(facts["joined"].bit_length() - 1):
        frames = _halved(frames)
    return {"patches": clips * frames, "tokens": facts["context"]}


def _twice_halved(frames: int) -> int:
    return _halved(_halved(frames)) if frames > 0 else 0


def _thinned(frames: int) -> int:
    """Halved three times, hundreds of frames apart."""
    whole, rest = divmod(frames, 100)
    return 13 * whole + (_halved(_halved(_halved(rest))) if rest else 0)
