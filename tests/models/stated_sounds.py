"""What vLLM's own functions and extractors make of a sound, for `make_stated.py`."""

from __future__ import annotations

from typing import Any


def _lengths(function: Any, frames: int) -> int:
    import torch

    return int(function(torch.tensor([frames])).item())


def _granite(info: Any, samples: int) -> tuple[int, int]:
    from transformers.models.granite_speech.feature_extraction_granite_speech import (
        GraniteSpeechFeatureExtractor,
    )

    made, config = object.__new__(GraniteSpeechFeatureExtractor), info.get_hf_config()
    made.melspec_kwargs = {"hop_length": 160}
    made.projector_window_size, made.projector_downsample_rate = config.window_size, config.downsample_rate
    return int(made._get_num_audio_features([samples])[0]), (samples // 160 + 1) // 2


def _fire_red(info: Any, samples: int) -> tuple[int, int]:
    """Its extractor, over a spectrogram of nothing."""
    import numpy as np
    from vllm.transformers_utils.processors import fireredasr2 as module

    frames = (samples - 400) // 160 + 1
    module.KaldifeatFbank = lambda **told: lambda rate, speech: np.zeros((frames, 80), np.float32)
    module.CMVN = lambda *args, **told: lambda x: x
    rate = info.ctx.get_hf_config().encoder_downsample_rate
    made = module.FireRedASR2FeatureExtractor(downsample_rate=rate)
    heard = made([np.zeros(samples, np.float32)], sampling_rate=16000)
    return int(heard["fake_token_lengths"].item()), 750


def _fun_asr(info: Any, samples: int) -> tuple[int, int]:
    """Its extractor, over a spectrogram of nothing; filled up to its `max_length`."""
    import numpy as np
    import torch
    from vllm.transformers_utils.processors import funasr as module

    frames = (samples - 400) // 160 + 1
    module.WavFrontend = lambda **told: None
    made = module.FunASRFeatureExtractor(frontend_conf={})
    joined = module.apply_lfr(torch.zeros(frames, 80), 7, 6)[None]
    made.extract_fbank = lambda *args, **told: (joined, torch.tensor([joined.shape[1]]))
    heard = made([np.zeros(samples, np.float32)], sampling_rate=16000)
    return int(heard["fake_token_lengths"].item()), made.max_length


def sounds() -> dict[str, Any]:
    """Architecture -> tokens that a sound becomes and frames that pass the tower, by vLLM's own functions."""
    from vllm.model_executor.models import audioflamingo3, glmasr_utils, midashenglm, moss_audio, qwen3_asr

    def windows(samples: int) -> list[int]:
        return [min(480000, samples - start) for start in range(0, samples, 480000)]

    def flamingo(info: Any, samples: int) -> tuple[int, int]:
        frames = sum(-(-n // 160) for n in windows(samples))
        tokens = _lengths(audioflamingo3._get_audio_post_pool_output_lengths, frames)
        return tokens, 1500 * len(windows(samples))

    def glm(info: Any, samples: int) -> tuple[int, int]:
        told = glmasr_utils.DEFAULT_MERGE_FACTOR, glmasr_utils.DEFAULT_CONV_PARAMS
        found = windows(samples)[:21]
        counted = glmasr_utils._get_audio_output_lengths_from_lengths
        return sum(_lengths(lambda x: counted(x, *told), -(-n // 160)) for n in found), 1500 * len(found)

    def qwen3(info: Any, samples: int) -> tuple[int, int]:
        return (_lengths(qwen3_asr._get_feat_extract_output_lengths, -(-samples // 160)),) * 2

    return {
        "AudioFlamingo3ForConditionalGeneration": flamingo,
        "GlmAsrForConditionalGeneration": glm,
        "Qwen3ASRForConditionalGeneration": qwen3,
        "Qwen3ASRRealtimeGeneration": qwen3,
        "GraniteSpeechForConditionalGeneration": _granite,
        "GraniteSpeechPlusForConditionalGeneration": _granite,
        "FunASRForConditionalGeneration": _fun_asr,
        "FireRedASR2ForConditionalGeneration": _fire_red,
        "MiDashengLMModel": lambda info, n: (
            midashenglm.calculate_mel_frames_dasheng(n),
            midashenglm.calculate_mel_frames_dasheng(n, model_subsampling=1),
        ),
        "MossAudioModel": lambda info, n: (
            0,
            moss_audio.MossAudioEncoder.compute_num_audio_tokens(-(-n // 160)),
        ),
        "MossTranscribeDiarizeForConditionalGeneration": lambda info, n: (0, 1500 * len(windows(n))),
        "VoxtralForConditionalGeneration": lambda info, n: (0, 1500 * len(windows(n))),
        "WhisperForConditionalGeneration": lambda info, n: (info.get_num_audio_tokens(), 1500),
        "Qwen2AudioForConditionalGeneration": lambda info, n: (0, 1500),
    }
