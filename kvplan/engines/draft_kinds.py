"""What vLLM takes a model that drafts for, by its name and its config.

Source: vLLM 0.32 `config/speculative.py`: `SpeculativeConfig.__post_init__`, `hf_config_override`.
"""

from __future__ import annotations

from kvplan.models.drafts import DFLASH_BY_NAME, DSPARK
from kvplan.models.spec import ModelSpec

MODEL_TYPES = """
    dots3_note deepseek_v3 deepseek_v32 glm_moe_dsa deepseek_v4 pangu_ultra_moe kimi_k3 ernie4_5_moe nemotron_h
    nemotron_h_puzzle qwen3_next qwen4_exp qwen4_exp_text bailing_hybrid exaone_moe exaone4_5 exaone4_5_text qwen3_5
    qwen3_5_moe qwen3_5_text qwen3_5_moe_text intern_s2_preview interns2_mobius longcat_flash step3p5 step3p7 hy_v3
    hy_v4 inkling_mm_model inkling_model minimax_m3_vl glm5_next
"""
ARCHITECTURES = """
    MiMoForCausalLM MiMoV2ForCausalLM MiMoV2OmniForCausalLM MiMoV2FlashForCausalLM Glm4MoeForCausalLM
    Glm4MoeLiteForCausalLM GlmOcrForConditionalGeneration BailingMoeV3ForCausalLM BailingMoeV2_5ForCausalLM
    BailingMoeV3VLForConditionalGeneration Step3p5ForCausalLM Step3p7ForConditionalGeneration
    MiniMaxM3SparseForConditionalGeneration NemotronH_Super_Omni_Reasoning_V3 NemotronH_Omni_Reasoning_V3
"""
"""Model types, and first architectures, that vLLM turns into those of a drafting class."""

FEED_HEADS = frozenset(
    [
        "AfmoeForCausalLM",
        "ApertusForCausalLM",
        "ArceeForCausalLM",
        "Cohere2MoeForCausalLM",
        "CohereCompassForConditionalGeneration",
        "Cosmos3ForConditionalGeneration",
        "CwmForCausalLM",
        "DeepseekForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV32ForCausalLM",
        "DeepseekV3ForCausalLM",
        "DeepseekV41ForCausalLM",
        "DeepseekV4ForCausalLM",
        "DeepseekV4ForConditionalGeneration",
        "Emu3ForConditionalGeneration",
        "Ernie4_5ForCausalLM",
        "Exaone4_5_ForConditionalGeneration",
        "FlexOlmoForCausalLM",
        "GPTBigCodeForCausalLM",
        "GPTNeoXForCausalLM",
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
        "Glm5NextForCausalLM",
        "Glm5NextForConditionalGeneration",
        "GlmForCausalLM",
        "GlmMoeDsaForCausalLM",
        "GptOssForCausalLM",
        "GraniteForCausalLM",
        "GraniteSWAForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "HunYuanMoEV1ForCausalLM",
        "HunYuanVLForConditionalGeneration",
        "IQuestCoderForCausalLM",
        "InternLM3ForCausalLM",
        "InternS1ProForConditionalGeneration",
        "InternS2MobiusForConditionalGeneration",
        "InternS2PreviewForConditionalGeneration",
        "Jais2ForCausalLM",
        "JinaEmbeddingsV5Model",
        "K2HorizonForCausalLM",
        "KimiK25ForConditionalGeneration",
        "KimiK3ForConditionalGeneration",
        "KimiLinearForCausalLM",
        "LLaMAForCausalLM",
        "LagunaForCausalLM",
        "LightOnOCRForConditionalGeneration",
        "Llama4ForCausalLM",
        "Llama4ForConditionalGeneration",
        "LlamaForCausalLM",
        "LlavaForConditionalGeneration",
        "MellumForCausalLM",
        "MiMoForCausalLM",
        "MiMoV2FlashForCausalLM",
        "MiMoV2ForCausalLM",
        "MiMoV2OmniForCausalLM",
        "MiniCPM3ForCausalLM",
        "MiniCPMForCausalLM",
        "MiniCPMV4_6ForConditionalGeneration",
        "MiniCPMV4_7ForConditionalGeneration",
        "MiniMaxM2ForCausalLM",
        "MiniMaxM3SparseForCausalLM",
        "MiniMaxM3SparseForConditionalGeneration",
        "Ministral3ForCausalLM",
        "Mistral3ForConditionalGeneration",
        "MistralForCausalLM",
        "MistralLarge3ForCausalLM",
        "MuseGlimmerForCausalLM",
        "MuseGlimmerForConditionalGeneration",
        "NanbeigeForCausalLM",
        "NemotronHForCausalLM",
        "NemotronHPuzzleForCausalLM",
        "NemotronH_Nano_Omni_Reasoning_V3",
        "NemotronH_Nano_VL_V2",
        "NemotronH_Omni_Reasoning_V3",
        "NemotronH_Super_Omni_Reasoning_V3",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "OlmoForCausalLM",
        "OpenCUAForConditionalGeneration",
        "Phi3ForCausalLM",
        "PhiForCausalLM",
        "PixtralForConditionalGeneration",
        "Plamo3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3ASRForConditionalGeneration",
        "Qwen3ASRRealtimeGeneration",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3OmniMoeForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen4ExpForConditionalGeneration",
        "SarvamMLAForCausalLM",
        "SeedOssForCausalLM",
        "SmolLM3ForCausalLM",
        "Starcoder2ForCausalLM",
        "Step1ForCausalLM",
        "TeleChat2ForCausalLM",
        "TeleChat3ForCausalLM",
        "TeleFLMForCausalLM",
        "VaultGemmaForCausalLM",
        "VibeVoiceAsrForConditionalGeneration",
    ]
)
"""Architectures whose classes hand out hidden states of layers within, as EAGLE-3, DFlash and DSpark read them (vLLM
0.32 `interfaces.py: SupportsEagle3`)."""
READ_STATES = ("mtp", "eagle", "eagle3", "dflash", "dspark")
"""Methods whose drafts follow from the target's hidden states (vLLM: `use_eagle`)."""
FED = ("eagle3", "dflash", "dspark", "extract_hidden_states")
"""Methods that read those."""


def method_of_draft(method: str, name: str, draft: ModelSpec | None) -> str:
    """The method that vLLM makes of a model's name, and of its config where that is known; heads that are named stay.

    Raises:
        ValueError: a model that does not draft that way.

    >>> method_of_draft("draft_model", "AngelSlim/Qwen3-8B_eagle3", None)
    'eagle3'
    """
    if method in ("eagle", "eagle3", "dflash", "dspark"):
        return method
    named, architecture = name.casefold(), draft.architecture if draft else ""
    for part, found in (
        ("eagle-", "eagle"),
        ("eagle3", "eagle3"),
        ("dflash", "dflash"),
        ("dspark", "dspark"),
    ):
        if part in named or (found == "dflash" and architecture in DFLASH_BY_NAME):
            return found
    if architecture in DSPARK:
        return "dspark"
    if draft is None:
        return method
    if method == "medusa" or draft.model_type in ("medusa", "mlp_speculator"):
        return draft.model_type if draft.model_type == "mlp_speculator" else "medusa"
    if draft.backbone_hidden_size or (draft.model_type and drafts_itself(draft)):
        return "mtp"
    if method != "draft_model":
        raise ValueError(f"Unsupported speculative method: {method!r}; {name[:80]} does not draft that way")
    return method


def drafts_itself(model: ModelSpec) -> bool:
    """Whether vLLM has a class for its drafting layers; of a config without model type nothing is known."""
    known = model.model_type in MODEL_TYPES.split() or model.architecture in ARCHITECTURES.split()
    return known or not model.model_type
