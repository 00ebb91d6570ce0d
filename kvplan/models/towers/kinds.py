"""Kinds of items that vLLM builds each tower for: a tower whose kinds no prompt may have is not loaded.

Source: vLLM 0.32, the modalities of `_mark_tower_model` in each architecture's class (`model_executor/models`,
`models`); held to `fixtures/tower_kinds_vllm_0.32.json`.
"""

from __future__ import annotations

from kvplan.models.config import Keys

Kinds = tuple[str, ...]

PICTURES: Kinds = ("image",)
CLIPS: Kinds = ("image", "video")
SOUND: Kinds = ("audio",)
HEARD = ("audio_config", "audio_processor", "sound_config")
"""Sections of a config that describe a tower of sound."""

OF: dict[str, tuple[Kinds, ...]] = {
    **dict.fromkeys(
        (
            "AriaForConditionalGeneration",
            "BagelForConditionalGeneration",
            "BailingMoeV3VLForConditionalGeneration",
            "Blip2ForConditionalGeneration",
            "Cohere2VisionForConditionalGeneration",
            "CohereCompassForConditionalGeneration",
            "DeepseekOCR2ForCausalLM",
            "DeepseekOCRForCausalLM",
            "DeepseekV41ForCausalLM",
            "DeepseekV4ForConditionalGeneration",
            "DeepseekVLV2ForCausalLM",
            "DotsOCRForCausalLM",
            "Eagle2_5_VLForConditionalGeneration",
            "Emu3ForConditionalGeneration",
            "GLM4VForCausalLM",
            "Gemma3ForConditionalGeneration",
            "Granite4VisionForConditionalGeneration",
            "HfMoondream",
            "HunYuanVLForConditionalGeneration",
            "Idefics3ForConditionalGeneration",
            "IsaacForConditionalGeneration",
            "KananaVForConditionalGeneration",
            "KimiK3ForConditionalGeneration",
            "KimiVLForConditionalGeneration",
            "Lfm2VlForConditionalGeneration",
            "LightOnOCRForConditionalGeneration",
            "Llama4ForConditionalGeneration",
            "LlavaForConditionalGeneration",
            "Llama_Nemotron_Nano_VL",
            "LlavaNextForConditionalGeneration",
            "MiniCPMV4_6ForConditionalGeneration",
            "MiniCPMV4_7ForConditionalGeneration",
            "Mistral3ForConditionalGeneration",
            "MolmoForCausalLM",
            "Moondream3ForCausalLM",
            "NemotronParseForConditionalGeneration",
            "OpenCUAForConditionalGeneration",
            "OpenVLAForActionPrediction",
            "Ovis",
            "PaddleOCRVLForConditionalGeneration",
            "PaliGemmaForConditionalGeneration",
            "Phi3VForCausalLM",
            "Phi4ForCausalLMV",
            "PixtralForConditionalGeneration",
            "SkyworkR1VChatModel",
            "SmolVLMForConditionalGeneration",
            "Step3VLForConditionalGeneration",
            "Step3p7ForConditionalGeneration",
            "StepVLForConditionalGeneration",
            "UnlimitedOCRForCausalLM",
        ),
        (PICTURES,),
    ),
    **dict.fromkeys(
        (
            "AudioFlamingo3ForConditionalGeneration",
            "CohereAsrForConditionalGeneration",
            "FireRedASR2ForConditionalGeneration",
            "FunASRForConditionalGeneration",
            "FunAudioChatForConditionalGeneration",
            "GlmAsrForConditionalGeneration",
            "GraniteSpeechForConditionalGeneration",
            "GraniteSpeechPlusForConditionalGeneration",
            "MiDashengLMModel",
            "MoonshotKimiaForCausalLM",
            "MossAudioModel",
            "MossTranscribeDiarizeForConditionalGeneration",
            "Qwen2AudioForConditionalGeneration",
            "Qwen3ASRForConditionalGeneration",
            "Qwen3ASRRealtimeGeneration",
            "UltravoxModel",
            "VibeVoiceAsrForConditionalGeneration",
            "VoxtralForConditionalGeneration",
            "VoxtralRealtimeGeneration",
            "WhisperForConditionalGeneration",
        ),
        (SOUND,),
    ),
    **dict.fromkeys(
        (
            "Gemma4ForConditionalGeneration",
            "Gemma4UnifiedForConditionalGeneration",
            "MiMoV2OmniForCausalLM",
            "MiniCPMO",
            "Phi4MMForCausalLM",
            "Qwen2_5OmniForConditionalGeneration",
            "Qwen2_5OmniModel",
            "Qwen3OmniMoeForConditionalGeneration",
        ),
        (CLIPS, SOUND),
    ),
    **dict.fromkeys(
        ("Gemma3nForConditionalGeneration", "InklingForConditionalGeneration"), (PICTURES, SOUND)
    ),
    **dict.fromkeys(
        (
            "Dots3NoteForCausalLM",
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
            "NemotronH_Super_Omni_Reasoning_V3",
        ),
        ((*CLIPS, *SOUND),),
    ),
    "KimiK25ForConditionalGeneration": (("vision_chunk",),),
    "LlavaNextVideoForConditionalGeneration": (("video",),),
}
"""Architecture -> the kinds of each of its towers; images and videos where it is not listed."""


ONE = {
    "image": (
        "Blip2ForConditionalGeneration",
        "GLM4VForCausalLM",
        "HfMoondream",
        "Moondream3ForCausalLM",
        "NemotronParseForConditionalGeneration",
        "OpenVLAForActionPrediction",
        "PaliGemmaForConditionalGeneration",
    ),
    "video": (
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Glm5NextForConditionalGeneration",
        "GlmOcrForConditionalGeneration",
        "KeyeVL1_5ForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration",
        "Molmo2ForConditionalGeneration",
        "Ovis2_5",
        "Ovis2_6ForCausalLM",
        "Ovis2_6_MoeForCausalLM",
    ),
    "audio": (
        "AudioFlamingo3ForConditionalGeneration",
        "CohereAsrForConditionalGeneration",
        "FireRedASR2ForConditionalGeneration",
        "FunASRForConditionalGeneration",
        "GraniteSpeechForConditionalGeneration",
        "GraniteSpeechPlusForConditionalGeneration",
        "MoonshotKimiaForCausalLM",
        "MossTranscribeDiarizeForConditionalGeneration",
        "WhisperForConditionalGeneration",
    ),
}
"""Kind -> architectures whose classes take one a prompt."""
MOST: dict[str, dict[str, int]] = {
    **{name: {kind: 1} for kind, names in ONE.items() for name in names},
    "Dots3NoteForCausalLM": {"image": 512, "video": 1, "audio": 128},
    "VoxtralForConditionalGeneration": {"audio": 5},
}
"""Architecture -> the most items of a kind that its class takes a prompt, where there is a limit.

Source: `get_supported_mm_limits` of vLLM 0.32; held to `fixtures/item_limits_vllm_0.32.json`.
"""
UNCOUNTED = {"MiniCPMO": SOUND, "MiMoV2OmniForCausalLM": SOUND}
"""Architecture -> kinds of which its class names no tokens: they are never profiled, and no room is kept for them.

Source: `get_mm_max_tokens_per_item` of vLLM 0.32's classes, `multimodal/encoder_budget.py`.
"""
UNLIMITED = 999


def most_items(architecture: str, kind: str) -> int:
    """Items of a kind that a prompt may have, whatever flags say.

    >>> most_items("PaliGemmaForConditionalGeneration", "image")
    1
    """
    return MOST.get(architecture, {}).get(kind, UNLIMITED)


def tower_kinds(architecture: str, outer: Keys) -> tuple[Kinds, ...]:
    """The kinds of each tower; where a config describes no sound beside images, there is no tower for it."""
    hears = any(outer.raw.get(key) or key in outer.section("thinker_config") for key in HEARD)
    if architecture not in OF:
        return (SOUND,) if hears and "vision_config" not in outer else (CLIPS,)
    kinds = OF[architecture]
    return kinds if hears or len(kinds) == 1 else tuple(k for k in kinds if k != SOUND)
