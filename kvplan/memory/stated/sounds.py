"""Sounds of a stated length, in samples: what passes the tower, and the tokens where they are counted by it.

Classes that name their most tokens by themselves count a shorter sound as the longest.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def _thinned(frames: int) -> int:
    """Halved three times, hundreds of frames apart."""
    whole, rest = divmod(frames, 100)
    return 13 * whole + (_halved(_halved(_halved(rest))) if rest else 0)
