"""Architectures by name: whose language model a multimodal one has, and what is refused, with its reason."""

from __future__ import annotations

BY_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
    "phi3": "Phi3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "falcon_h1": "FalconH1ForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "exaone4_5_text": "Exaone4ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "opt": "OPTForCausalLM",
    "phi": "PhiForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""For configs without `architectures`: the model type says as much."""
TEXT_OF = {
    "KimiK3ForConditionalGeneration": "KimiLinearForCausalLM",
    "MiniMaxM3SparseForConditionalGeneration": "MiniMaxM3SparseForCausalLM",
    "Step3p7ForConditionalGeneration": "Step3p5ForCausalLM",
    "Step3VLForConditionalGeneration": "Step3TextForCausalLM",
    "MuseGlimmerForConditionalGeneration": "MuseGlimmerForCausalLM",
    "Cohere2VisionForConditionalGeneration": "Cohere2ForCausalLM",
    "Exaone4_5_ForConditionalGeneration": "Exaone4ForCausalLM",
    "Gemma3nForConditionalGeneration": "Gemma3nForCausalLM",
    "Glm4vForConditionalGeneration": "Glm4ForCausalLM",
    "Glm4vMoeForConditionalGeneration": "Glm4MoeForCausalLM",
    "GlmOcrForConditionalGeneration": "Glm4ForCausalLM",
    "Qwen2VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5OmniForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5OmniModel": "Qwen2ForCausalLM",
    "Qwen3OmniMoeForConditionalGeneration": "Qwen3MoeForCausalLM",
    "Qwen3ASRForConditionalGeneration": "Qwen3ForCausalLM",
    "Qwen3ASRRealtimeGeneration": "Qwen3ForCausalLM",
    "Qwen4ExpForConditionalGeneration": "Qwen4ExpForCausalLM",
    "Glm5NextForConditionalGeneration": "Glm5NextForCausalLM",
    "InklingForConditionalGeneration": "InklingForCausalLM",
    "InternS2PreviewForConditionalGeneration": "Qwen3_5MoeForCausalLM",
    "InternS2MobiusForConditionalGeneration": "InternS2MobiusForConditionalGeneration",
    "KimiVLForConditionalGeneration": "DeepseekV3ForCausalLM",
    "MoonshotKimiaForCausalLM": "Qwen2ForCausalLM",
    "DotsOCRForCausalLM": "Qwen2ForCausalLM",
    "KeyeForConditionalGeneration": "Qwen3ForCausalLM",
    "KeyeVL1_5ForConditionalGeneration": "Qwen3ForCausalLM",
    "PaddleOCRVLForConditionalGeneration": "Ernie4_5ForCausalLM",
    "OpenCUAForConditionalGeneration": "Qwen2ForCausalLM",
    "Phi4MMForCausalLM": "Phi3ForCausalLM",
    "Phi3VForCausalLM": "Phi3ForCausalLM",
    "Phi4ForCausalLMV": "Phi3ForCausalLM",
    "MiMoV2OmniForCausalLM": "MiMoV2ForCausalLM",
    "HCXVisionV2ForCausalLM": "HyperCLOVAXForCausalLM",
    "QianfanOCRForConditionalGeneration": "Qwen3ForCausalLM",
    "BailingMoeV3VLForConditionalGeneration": "BailingMoeV3ForCausalLM",
    "MiniCPMV4_6ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "MiniCPMV4_7ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "AriaForConditionalGeneration": "AriaTextForCausalLM",
    "GLM4VForCausalLM": "ChatGLMModel",
    "MossTranscribeDiarizeForConditionalGeneration": "Qwen3ForCausalLM",
    "MiniCPMV": "",
    "MiniCPMO": "",
    "Cosmos3ForConditionalGeneration": "Qwen3VLForConditionalGeneration",
    "FireRedASR2ForConditionalGeneration": "Qwen2ForCausalLM",
    "FunASRForConditionalGeneration": "Qwen3ForCausalLM",
    "FunAudioChatForConditionalGeneration": "Qwen3ForCausalLM",
    "HunYuanVLForConditionalGeneration": "HunYuanDenseV1ForCausalLM",
    "IsaacForConditionalGeneration": "Qwen3ForCausalLM",
    "MiDashengLMModel": "Qwen2ForCausalLM",
    "Molmo2ForConditionalGeneration": "Molmo2ForConditionalGeneration",
    "MossAudioModel": "Qwen3ForCausalLM",
    "OpenPanguVLForConditionalGeneration": "PanguEmbeddedForCausalLM",
    "OpenVLAForActionPrediction": "LlamaForCausalLM",
    "DeepseekV41ForCausalLM": "DeepseekV41ForCausalLM",
    "Dots3NoteForCausalLM": "Dots3NoteForCausalLM",
    **{name: name for name in ("HfMoondream", "Moondream3ForCausalLM", "MolmoForCausalLM")},
    "CohereCompassForConditionalGeneration": "CohereCompassForConditionalGeneration",
    "Cosmos3EdgeForConditionalGeneration": "Cosmos3EdgeForConditionalGeneration",
    "DeepseekV4ForConditionalGeneration": "DeepseekV4ForCausalLM",
    "Emu3ForConditionalGeneration": "LlamaForCausalLM",
    "VibeVoiceAsrForConditionalGeneration": "Qwen2ForCausalLM",
    "VoxtralRealtimeGeneration": "VoxtralRealtimeGeneration",
    "CohereAsrForConditionalGeneration": "CohereAsrForConditionalGeneration",
    "JinaVLForRanking": "Qwen2ForCausalLM",
    "WhisperForConditionalGeneration": "WhisperForConditionalGeneration",
    **dict.fromkeys(
        (
            *("AudioFlamingo3ForConditionalGeneration", "BeeForConditionalGeneration"),
            *("BagelForConditionalGeneration", "Blip2ForConditionalGeneration"),
            *("KananaVForConditionalGeneration", "LlavaOnevision2ForConditionalGeneration", "Ovis"),
            *("Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM", "RForConditionalGeneration"),
            "StepVLForConditionalGeneration",
            *("GlmAsrForConditionalGeneration", "GraniteSpeechForConditionalGeneration"),
            *("GraniteSpeechPlusForConditionalGeneration", "InternVLForConditionalGeneration"),
            *("InternVLChatModel", "InternS1ForConditionalGeneration", "Idefics3ForConditionalGeneration"),
            *("SmolVLMForConditionalGeneration", "LlavaForConditionalGeneration"),
            *("LlavaNextForConditionalGeneration", "LlavaNextVideoForConditionalGeneration"),
            *("LlavaOnevisionForConditionalGeneration", "PaliGemmaForConditionalGeneration"),
            *("Qwen2AudioForConditionalGeneration", "VoxtralForConditionalGeneration", "UltravoxModel"),
            *("LightOnOCRForConditionalGeneration", "Lfm2VlForConditionalGeneration", "Ovis2_5"),
            *("SkyworkR1VChatModel", "H2OVLChatModel", "NVLM_D", "Eagle2_5_VLForConditionalGeneration"),
            *("NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3", "Llama_Nemotron_Nano_VL"),
            *("NemotronH_Super_Omni_Reasoning_V3", "NemotronH_Omni_Reasoning_V3"),
            *("Granite4VisionForConditionalGeneration", "DeepseekVLV2ForCausalLM"),
            *(
                "DeepseekOCRForCausalLM",
                "DeepseekOCR2ForCausalLM",
                "UnlimitedOCRForCausalLM",
                "PixtralForConditionalGeneration",
            ),
        ),
        "",
    ),
}
"""Multimodal architecture -> its language model's; empty: as the nested config says."""
MINICPMV = {
    "2.0": "MiniCPMForCausalLM",
    "2.5": "LlamaForCausalLM",
    "2.6": "Qwen2ForCausalLM",
    "4.0": "LlamaForCausalLM",
    "4.5": "Qwen3ForCausalLM",
}
"""MiniCPM-V's version -> its language model."""
TEXT_SECTIONS = ("text_config", "llm_config", "language_config")
INNER = {"Moondream3ForCausalLM": ("config", "text"), "HfMoondream": ("config", "text")}
"""Where the language model's sizes stand two sections deep."""
BY_TRANSFORMERS = frozenset({"Emu3ForConditionalGeneration", "VibeVoiceAsrForConditionalGeneration"})
"""Architectures that vLLM runs by transformers' own classes, which turn positions without a table."""
UNHELD = frozenset(
    {
        "AriaTextForCausalLM",
        *("DFlashMuseGlimmerAssistantModel", "MuseGlimmerAssistantModel"),
        "DSparkDraftModel",
        "MiniMaxM3ForCausalLM",
        "PEagleDraftModel",
        "PeagleLlamaForCausalLM",
        "PeagleQwen3ForCausalLM",
        "XverseForCausalLM",
    }
)
"""Architectures whose own class no oracle was asked about."""
REFUSED = {
    name: why
    for why, names in {
        "its decoder attends to an encoder": ("NemotronParseForConditionalGeneration",),
    }.items()
    for name in names
}
"""Architectures that vLLM 0.32 runs and that are refused, and why."""
NO_PIPELINE = frozenset(
    {
        *("AriaForConditionalGeneration", "DiffusionGemmaForBlockDiffusion"),
        *("CohereAsrForConditionalGeneration", "FireRedASR2ForConditionalGeneration"),
        "FunASRForConditionalGeneration",
        *("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration", "HrmTextForCausalLM"),
        *("IQuestLoopCoderForCausalLM", "Idefics3ForConditionalGeneration", "Mamba2ForCausalLM"),
        *("NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Nano_VL_V2", "NemotronH_Omni_Reasoning_V3"),
        *("NemotronH_Super_Omni_Reasoning_V3", "PaddleOCRVLForConditionalGeneration", "Phi4MMForCausalLM"),
        *("SmolVLMForConditionalGeneration", "WhisperForConditionalGeneration", "Zamba2ForCausalLM"),
    }
)
"""Architectures whose classes vLLM 0.32 does not cut into pipeline stages (its `interfaces.supports_pp` of each)."""
TOWERS_NOT_KNOWN = {
    "Llama_Nemotron_Nano_VL": "the checkpoint's own RADIO or transformers', not vLLM's",
}
"""Why a tower has no row, where that was tried."""
