"""What vLLM 0.32's classes make of a config's ties and biases, whatever the config says of them.

Each was asked with each switch turned (`tests/models/make_switches.py`).
"""

from __future__ import annotations

from kvplan.models.config import Keys

UNBIASED = (
    *(
        "Afmoe",
        "CohereFor",
        "Cohere2",
        "Cosmos3Edge",
        "DeepseekFor",
        "DeepseekV2",
        "Dots3Note",
        "FalconH1",
        "GemmaFor",
    ),
    *("GraniteMoeFor", "GraniteMoeSWA", "GraniteMoeShared", "IQuestLoop", "InternLM2", "Lfm2", "MiniCPMFor"),
    *("MiniMaxM3", "Mixtral", "MuseGlimmer", "OlmoHybrid", "Olmoe", "Orion", "Cwm"),
    *("InternS2Mobius", "Plamo3", "Qwen3_5", "TeleChat2"),
)
"""Language models whose class in vLLM 0.32 reads no `attention_bias` (prefixes)."""
OUT_BIASED = (
    *("Apertus", "Arcee", "AriaText", "CohereCompass", "Exaone", "FlexOlmo", "Gemma2", "Gemma3"),
    *("Gemma4", "GraniteSWA", "HunYuanDense", "HyperCLOVAX", "HrmText", "InternLM3", "K2Horizon", "Mellum"),
    *("Ministral3", "Mistral", "Nanbeige", "NemotronFor", "OlmoFor", "Olmo2", "Olmo3", "PanguPro", "Phi3"),
    *("Rnj1", "SmolLM3", "Step1", "VaultGemma", "VoxtralRealtime"),
)
"""Those whose class gives the output projection a bias too where `attention_bias` is set (prefixes)."""
UNBIASED_MLP = ("Dots3Note", "FalconH1", "GlmMoeDsa", "MiniCPM3")
"""Those whose class reads no `mlp_bias` (prefixes)."""
NEVER_TIED = (
    *("AXK1", "Afmoe", "AriaText", "BailingMoeV2_5", "BailingMoeV3", "Cosmos3Edge", "Deepseek", "Dots3Note"),
    "Glm4Moe",
    *("Glm5Next", "GlmMoeDsa", "GptOss", "HfMoondream", "Inkling", "Jamba", "KimiK25", "KimiLinear"),
    *("LongcatFlash", "MiMoV2", "MiniMaxM", "MistralLarge3", "Molmo", "Moondream3"),
    *("MuseGlimmer", "NemotronH", "Olmoe", "PhiMoE", "Qwen3Next", "Qwen4Exp", "Step3"),
)
"""Language models whose class in vLLM 0.32 has a head of its own, whatever the config says (prefixes)."""
ALWAYS_TIED = (
    "CohereFor",
    "Cohere2",
    "CohereCompass",
    "Gemma2",
    "Gemma3nFor",
    "JinaEmbeddingsV5",
    "Lfm2",
    "Zamba2",
)
"""Those whose class scores with the embeddings, whatever the config says (prefixes)."""
TIES_INSIDE = (
    *("HunYuanVL", "Idefics3", "InternS1Pro", "InternS2Mobius", "InternS2Preview", "MiniCPMV4_"),
    *("Ovis2_6_Moe", "Qwen3_5", "SmolVLM"),
)
"""Multimodal classes whose language model reads the tie of its own section alone (prefixes)."""
TIES_EITHER = (
    *("Emu3", "Glm4v", "GlmOcr", "LlavaFor", "LlavaNextVideo", "LlavaOnevisionFor", "OpenCUA", "PaddleOCR"),
    *("Qwen2VL", "Qwen2_5_VL", "VibeVoice"),
)
"""Those that are tied where either the top or the section says so (prefixes); in all others the top's word counts."""
UNTIED_OUTSIDE = (
    "Cosmos3For",
    "Exaone4_5",
    "Granite4Vision",
    "Isaac",
    "Llama4",
    "LlavaNextFor",
    "QianfanOCR",
    "Qwen3VL",
)
"""Those whose top says no by default (prefixes). Where others' says yes by default, their checkpoints decide."""


def biases(text: Keys, architecture: str) -> Keys:
    """The config with its biases as vLLM's class takes them: not at all, or for the output too."""
    if architecture.startswith(UNBIASED_MLP):
        text = Keys(text.name, {**text.raw, "mlp_bias": False})
    if not text.flag("attention_bias") or not architecture.startswith((*UNBIASED, *OUT_BIASED)):
        return text
    told = {"attention_bias": False} if architecture.startswith(UNBIASED) else {"attention_out_bias": True}
    return Keys(text.name, {**text.raw, **told})


def ties(outer: Keys, text: Keys, whole: str, architecture: str, *, section: Keys, default: bool) -> bool:
    """Whether the LM head is the embedding: as the class has it, else as the config says or its class by default.

    Of a language model with a section of its own, the top's word counts (vLLM 0.32 `VllmConfig.with_hf_config`).

    Args:
        outer: the whole config.
        text: the language model's keys, the config's where its section has none.
        whole: the model's architecture.
        architecture: its language model's.
        section: where the language model's sizes stand; the whole config where it has no section.
        default: what the class of the config says.
    """
    if architecture.startswith((*NEVER_TIED, *ALWAYS_TIED)):
        return architecture.startswith(ALWAYS_TIED)
    told, nested = outer.raw.get("tie_word_embeddings"), section.raw is not outer.raw
    if nested and whole.startswith(TIES_INSIDE):
        return section.flag("tie_word_embeddings", default)
    top = isinstance(told, bool) or whole.startswith(UNTIED_OUTSIDE)
    if nested and top and not whole.startswith(TIES_EITHER):
        return outer.flag("tie_word_embeddings")
    return outer.flag("tie_word_embeddings") or text.flag("tie_word_embeddings", default)
