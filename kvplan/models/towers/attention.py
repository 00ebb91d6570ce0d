"""Whose attention a tower's layers run: vLLM's own layer for encoders, which flags reach, or code of the tower's class.

Source: vLLM 0.32's classes, built and asked which of their layers are `MMEncoderAttention` and whether these get the
lengths and offsets of items that FlashInfer's kernels read; held to `fixtures/tower_attention_vllm_0.32.json`. Towers
of timm, which were not built there, have attention of their own.
"""

from __future__ import annotations

OF_THEIR_OWN = (
    *("AudioFlamingo3", "CohereAsr", "DeepseekOCR2", "DeepseekVLV2", "DiffusionGemma", "Dots3Note", "Emu3"),
    *("FireRedASR2", "Gemma3n", "Gemma4", "GraniteSpeech", "HunYuanVL", "Inkling", "Llama_Nemotron_Nano_VL"),
    *("MiDashengLM", "MossAudio", "OpenVLA", "Qwen2Audio", "VibeVoiceAsr", "VoxtralRealtime"),
)
"""Architecture prefixes whose towers have no such layer."""
HAND_ON_LENGTHS = (
    *(
        "BailingMoeV3VL",
        "CohereCompass",
        "Cosmos3For",
        "Exaone4_5_",
        "HCXVisionV2",
        "InternS1Pro",
        "InternS2",
    ),
    *(
        "KimiK25",
        "KimiK3",
        "LightOnOCR",
        "LlavaOnevision2",
        "MiniMaxM3",
        "Mistral3",
        "MuseGlimmer",
        "OpenCUA",
    ),
    *("Pixtral", "Qwen2_5Omni", "Qwen2_5_VL", "Qwen3VL", "Qwen3_5", "Qwen4Exp", "Ultravox"),
)
"""Those whose towers run FlashInfer's kernels; most others end at an assertion there."""
FLASH_ATTN_ALONE = ("OpenPangu",)
"""Those whose classes refuse all but FlashAttention's."""
NO_FLASHINFER = ("UnlimitedOCR",)
"""Those that vLLM gives FlashAttention's where FlashInfer's are asked for (`models/config.py`)."""


def heeds_flags(architecture: str) -> bool:
    """Whether the tower's attention is vLLM's own layer."""
    return not architecture.startswith(OF_THEIR_OWN)
