"""What vLLM's own functions and extractors make of a sound, for `make_stated.py`."""

from __future__ import annotations

from types import SimpleNamespace
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


def _zeros(samples: int) -> Any:
    import numpy as np

    return np.zeros(samples, np.float32)


def _whisper(**told: Any) -> Any:
    """Its extractor, of 128 pitches."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=128, **told)


def _gemma(package: str, name: str) -> dict[str, Any]:
    """Its extractor, and how many tokens its processor counts."""
    import importlib

    module = importlib.import_module(f"transformers.models.{package}.feature_extraction_{package}")
    return {"feature_extractor": getattr(module, name)(), "audio_seq_length": 750, "audio_ms_per_token": 40}


def _vibevoice_ears() -> dict[str, Any]:
    from transformers.models.vibevoice_acoustic_tokenizer import (
        feature_extraction_vibevoice_acoustic_tokenizer as module,
    )

    return {"feature_extractor": module.VibeVoiceAcousticTokenizerFeatureExtractor()}


OMNIS = (
    "Qwen2_5OmniModel",
    "Qwen3OmniMoeForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration",
)
NEMOTRONS = (
    "NemotronH_Nano_Omni_Reasoning_V3",
    "NemotronH_Omni_Reasoning_V3",
    "NemotronH_Super_Omni_Reasoning_V3",
)
EARS: dict[str, Any] = {
    "UltravoxModel": lambda: {"feature_extractor": _whisper()},
    "FunAudioChatForConditionalGeneration": lambda: {"feature_extractor": _whisper(chunk_length=300)},
    "VibeVoiceAsrForConditionalGeneration": _vibevoice_ears,
    "Phi4MMForCausalLM": lambda: {"feature_extractor": SimpleNamespace(sampling_rate=16000)},
    "Gemma3nForConditionalGeneration": lambda: _gemma("gemma3n", "Gemma3nAudioFeatureExtractor"),
    "Gemma4, with its towers": lambda: _gemma("gemma4", "Gemma4AudioFeatureExtractor"),
    "Gemma4UnifiedForConditionalGeneration": lambda: _gemma(
        "gemma4_unified", "Gemma4UnifiedAudioFeatureExtractor"
    ),
    **dict.fromkeys(OMNIS, lambda: {"feature_extractor": _whisper()}),
    **dict.fromkeys(
        (*NEMOTRONS, "InklingForConditionalGeneration", "Dots3NoteForCausalLM"),
        lambda: None,
    ),
    **dict.fromkeys(("MiniCPMO", "MiMoV2OmniForCausalLM"), lambda: None),
}
"""Architecture -> what its processor hears with, of Fun-Audio-Chat five minutes at a time; None: its class' own."""
UNCOUNTED = {"MiniCPMO", "MiMoV2OmniForCausalLM"}
"""Architectures whose classes count no sound; asked of nothing but whether they do."""


def _heard_frames(extractor: Any, samples: int, **told: Any) -> int:
    """Frames that an extractor of Whisper's kind marks as heard."""
    made = extractor(_zeros(samples), sampling_rate=16000, return_attention_mask=True, **told)
    return int(made["attention_mask"].sum())


def _ultravox(info: Any, samples: int) -> tuple[int, int]:
    """Windows as public ports of `UltravoxProcessor` cut them, by vLLM's own count of frames behind convolutions."""
    from vllm.model_executor.models.ultravox import UltravoxWhisperEncoder

    told = {"padding": "longest", "pad_to_multiple_of": 160, "truncation": False}
    heard = _heard_frames(info.get_feature_extractor(), samples, **told)
    windows = [min(3000, heard - start) for start in range(0, heard, 3000)]
    joined = 2 * info.ctx.get_hf_config().stack_factor
    filled = windows if len(windows) == 1 else [3000] * len(windows)
    counted = UltravoxWhisperEncoder._get_feat_extract_output_lengths
    frames = sum(_lengths(lambda x: counted(None, x), n) for n in filled)
    return sum(-(-n // joined) for n in windows), frames


def _fun_audio_chat(info: Any, samples: int) -> tuple[int, int]:
    from vllm.model_executor.models.funaudiochat import FunAudioChatAudioEncoder

    heard = _heard_frames(info.get_feature_extractor(), max(samples, 400), padding="max_length")
    counted = FunAudioChatAudioEncoder._get_feat_extract_output_lengths
    return 0, _lengths(lambda x: counted(None, x)[0], heard)


def _vibevoice(info: Any, samples: int) -> tuple[int, int]:
    made = info.get_feature_extractor()(_zeros(samples), sampling_rate=24000)
    return 0, int(made["input_values"].shape[-1])


def _phi4mm(info: Any, samples: int) -> tuple[int, int]:
    """The frames of its first convolutions, on the meta device."""
    import torch
    from vllm.model_executor.models.phi4mm_utils import NemoConvSubsampling

    frames = info.get_audio_num_frames(samples, 16000)
    settings = {"subsampling": "dw_striding", "subsampling_factor": 8, "feat_in": 80, "feat_out": 1024}
    with torch.device("meta"):
        made = NemoConvSubsampling(**settings, conv_channels=1024)
        run = made(torch.empty(1, frames, 80), mask=None)[0].shape[1]
    return info._compute_audio_embed_size(frames), run


def _gemma3n(info: Any, samples: int) -> tuple[int, int]:
    import torch
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioSubSampleConvProjection
    from vllm.model_executor.models.gemma3n_mm import Gemma3nMultiModalProcessor

    frames = Gemma3nMultiModalProcessor._get_num_audio_frames_alone(SimpleNamespace(info=info), samples)
    config = info.get_hf_config()
    with torch.device("meta"):
        made = Gemma3nAudioSubSampleConvProjection(config.audio_config)
        run = made(torch.empty(1, frames, 128)).shape[1] if frames else 0
    return config.audio_soft_tokens_per_image, run


def _gemma4(info: Any, samples: int) -> tuple[int, int]:
    import torch
    from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioSubSampleConvProjection

    made = info.get_hf_processor().feature_extractor([_zeros(samples)], return_tensors="pt")
    frames = int(made["input_features_mask"].sum())
    with torch.device("meta"):
        stem = Gemma4AudioSubSampleConvProjection(info.get_hf_config().audio_config)
        run = stem(torch.empty(1, frames, 128), torch.ones(1, frames, dtype=torch.bool))[0].shape[1]
    return 0, run


def _gemma4_unified(info: Any, samples: int) -> tuple[int, int]:
    made = info.get_hf_processor().feature_extractor([_zeros(samples)], return_tensors="pt")
    return 0, int(made["input_features_mask"].sum())


def _qwen2_5_omni(info: Any, samples: int) -> tuple[int, int]:
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

    heard = _heard_frames(info.get_feature_extractor(), samples, padding="max_length")
    counted = Qwen2_5OmniAudioEncoder._get_feat_extract_output_lengths
    return 0, _lengths(lambda x: counted(None, x)[0], heard)


def _qwen3_omni(info: Any, samples: int) -> tuple[int, int]:
    from vllm.model_executor.models.qwen3_omni_moe_thinker import _get_feat_extract_output_lengths

    heard = _heard_frames(info.get_feature_extractor(), samples, padding="max_length")
    return 0, _lengths(_get_feat_extract_output_lengths, heard)


def _parakeet(info: Any, samples: int) -> tuple[int, int]:
    """Clips of its own extractor, by transformers' count of frames behind convolutions."""
    from transformers import ParakeetEncoder

    ears = info.get_hf_processor().audio_extractor
    made = ears([_zeros(samples)])["input_audio_features"]
    counted = ParakeetEncoder._get_subsampling_output_length
    return 0, len(made) * _lengths(lambda x: counted(ears, x), made.shape[1])


def _inkling(info: Any, samples: int) -> tuple[int, int]:
    (tokens,) = info.get_hf_processor().process_audios([_zeros(samples)])["num_audio_tokens"]
    return tokens, tokens


def _dots(info: Any, samples: int) -> tuple[int, int]:
    """Its encoder fills a sound up to its chunk."""
    from vllm.models.dots3_note.nvidia.audio import Dots3NoteAudioConfig

    config = Dots3NoteAudioConfig(**info.audio_config)
    return 0, config.chunk_mel_frames // config.conv_temporal_stride


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
        "UltravoxModel": _ultravox,
        "FunAudioChatForConditionalGeneration": _fun_audio_chat,
        "VibeVoiceAsrForConditionalGeneration": _vibevoice,
        "Phi4MMForCausalLM": _phi4mm,
        "Gemma3nForConditionalGeneration": _gemma3n,
        "Gemma4, with its towers": _gemma4,
        "Gemma4UnifiedForConditionalGeneration": _gemma4_unified,
        OMNIS[0]: _qwen2_5_omni,
        OMNIS[1]: _qwen3_omni,
        OMNIS[2]: _qwen2_5_omni,
        **dict.fromkeys(NEMOTRONS, _parakeet),
        "InklingForConditionalGeneration": _inkling,
        "Dots3NoteForCausalLM": _dots,
        "WhisperForConditionalGeneration": lambda info, n: (info.get_num_audio_tokens(), 1500),
        "Qwen2AudioForConditionalGeneration": lambda info, n: (0, 1500),
    }
