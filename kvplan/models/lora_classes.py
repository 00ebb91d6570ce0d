"""What vLLM 0.32's classes declare of LoRA adapters: whether they take any, and which of their matrices how.

Source: `supports_lora`, `embedding_modules`, `packed_modules_mapping`, `is_3d_moe_weight`, `get_mm_mapping` and
`supports_tower_connector_lora` of each class in `model_executor/models` and `models`.
"""

from __future__ import annotations

from typing import TypeVar

Named = TypeVar("Named")

NO_ADAPTERS = """
    AriaForConditionalGeneration BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM
    BailingMoeV3VLForConditionalGeneration BeeForConditionalGeneration BloomForCausalLM Cohere2MoeForCausalLM
    Cohere2VisionForConditionalGeneration CohereAsrForConditionalGeneration Cosmos3EdgeForConditionalGeneration
    DbrxForCausalLM DeepseekV41ForCausalLM DeepseekVLV2ForCausalLM DiffusionGemmaForBlockDiffusion
    Dots3NoteForCausalLM FalconForCausalLM FalconMambaForCausalLM FireRedASR2ForConditionalGeneration
    FunASRForConditionalGeneration FunAudioChatForConditionalGeneration GPT2LMHeadModel GPTJForCausalLM
    Gemma3nForCausalLM Gemma3nForConditionalGeneration Glm5NextForCausalLM HCXVisionV2ForCausalLM HfMoondream
    HrmTextForCausalLM IQuestLoopCoderForCausalLM KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration
    KimiLinearForCausalLM KimiVLForConditionalGeneration LlavaOnevision2ForConditionalGeneration
    LlavaOnevisionForConditionalGeneration Mamba2ForCausalLM MambaForCausalLM MiDashengLMModel
    MiMoV2FlashForCausalLM MiMoV2ForCausalLM MiMoV2OmniForCausalLM MiniMaxM3SparseForCausalLM
    MiniMaxM3SparseForConditionalGeneration Moondream3ForCausalLM MoonshotKimiaForCausalLM
    MossTranscribeDiarizeForConditionalGeneration NemotronParseForConditionalGeneration OpenVLAForActionPrediction
    OrionForCausalLM Ovis Ovis2_5 Ovis2_6ForCausalLM Ovis2_6_MoeForCausalLM PaddleOCRVLForConditionalGeneration
    Phi3VForCausalLM Phi4ForCausalLMV Qwen2AudioForConditionalGeneration RForConditionalGeneration
    SkyworkR1VChatModel StableLmForCausalLM Step1ForCausalLM Step3TextForCausalLM Step3VLForConditionalGeneration
    Step3p5ForCausalLM Step3p7ForConditionalGeneration StepVLForConditionalGeneration Zamba2ForCausalLM
"""
"""Architectures whose classes are not `SupportsLoRA`: "does not support LoRA yet" ends their start."""
UNASKED = """
    ApertusForCausalLM AriaTextForCausalLM DeciLMForCausalLM Emu3ForConditionalGeneration
    Gemma2ForSequenceClassification InklingForCausalLM InklingForConditionalGeneration
    InternS1ProForConditionalGeneration InternS2MobiusForConditionalGeneration KananaVForConditionalGeneration
    LlamaForSequenceClassification MossAudioModel Qwen2ForProcessRewardModel
    Qwen2ForRewardModel Qwen3VLMoeForConditionalGeneration VoxtralRealtimeGeneration XverseForCausalLM
"""
"""Architectures whose adapters vLLM's manager was not asked about: planned as their like, and the plan says so."""
BOTH_ENDS = """
    Cosmos3ForConditionalGeneration Ernie4_5ForCausalLM Exaone4ForCausalLM Exaone4_5_ForConditionalGeneration
    ExaoneForCausalLM ExaoneMoEForCausalLM ExaoneMoeForCausalLM FalconH1ForCausalLM GlmAsrForConditionalGeneration
    Granite4VisionForConditionalGeneration GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM
    GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM GraniteSpeechForConditionalGeneration
    GraniteSpeechPlusForConditionalGeneration H2OVLChatModel HyperCLOVAXForCausalLM IQuestCoderForCausalLM
    InternLM3ForCausalLM InternS1ForConditionalGeneration InternS1ProForConditionalGeneration
    InternS2PreviewForConditionalGeneration IsaacForConditionalGeneration JambaForCausalLM K2HorizonForCausalLM
    KeyeForConditionalGeneration KeyeVL1_5ForConditionalGeneration LLaMAForCausalLM Lfm2ForCausalLM
    Lfm2MoeForCausalLM Lfm2VlForConditionalGeneration LightOnOCRForConditionalGeneration Llama4ForCausalLM
    Llama4ForConditionalGeneration LlamaForCausalLM Llama_Nemotron_Nano_VL LlavaForConditionalGeneration
    LlavaNextForConditionalGeneration LlavaNextVideoForConditionalGeneration MiniCPM3ForCausalLM MiniCPMForCausalLM
    MiniCPMV MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration MixtralForCausalLM
    NemotronForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM NemotronH_Nano_Omni_Reasoning_V3
    NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3 NemotronH_Super_Omni_Reasoning_V3 Param2MoEForCausalLM
    Phi3ForCausalLM PhiMoEForCausalLM QianfanOCRForConditionalGeneration Qwen3ASRForConditionalGeneration
    Qwen3ASRRealtimeGeneration Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3OmniMoeForConditionalGeneration
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Qwen3_5ForCausalLM
    Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration SolarForCausalLM
    TeleChat2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM UltravoxModel VoxtralForConditionalGeneration
"""
"""Architectures whose classes adapt the embedding and the head too."""
ONE_END = """
    ArceeForCausalLM Cohere2ForCausalLM Cohere2VisionForConditionalGeneration CohereCompassForConditionalGeneration
    CohereForCausalLM CwmForCausalLM FlexOlmoForCausalLM
    GlmForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HunYuanVLForConditionalGeneration
    Jais2ForCausalLM JinaEmbeddingsV5Model MellumForCausalLM NanbeigeForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM
    OlmoForCausalLM PhiForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM Starcoder2ForCausalLM
    VaultGemmaForCausalLM VibeVoiceAsrForConditionalGeneration
"""
"""And those that adapt the embedding alone."""
FUSED_EXPERTS = (
    *("GptOss", "Qwen3VLMoe", "InternS1Pro", "InternS2Mobius", "InternS2Preview", "Qwen3_5MoeForCond"),
    "Qwen3OmniMoe",
)
"""Architecture prefixes whose experts' gate and up have one A between them (`is_3d_moe_weight`)."""
WITH_TOWERS = (
    *("Blip2", "Cosmos3For", "DeepseekV4ForCond", "DotsOCR", "Exaone4_5", "Gemma3ForCond", "Gemma4ForCond"),
    *(
        "Gemma4Unified",
        "Glm4v",
        "Glm5Next",
        "GlmOcr",
        "H2OVL",
        "Idefics3",
        "InternS1Pro",
        "InternS2",
        "InternVLChat",
    ),
    *(
        "JinaVL",
        "Keye",
        "Lfm2Vl",
        "Llama4ForCond",
        "LlavaFor",
        "LlavaNext",
        "NVLM_D",
        "OpenCUA",
        "PaliGemma",
        "Pixtral",
    ),
    *(
        "QianfanOCR",
        "Qwen2VL",
        "Qwen2_5_VL",
        "Qwen3ASR",
        "Qwen3OmniMoe",
        "Qwen3VL",
        "Qwen3_5",
        "Qwen4Exp",
        "SmolVLM",
    ),
    "Ultravox",
)
"""Architecture prefixes whose towers may be adapted too (`supports_tower_connector_lora`)."""
PACKED: tuple[tuple[tuple[str, ...], dict[str, int]], ...] = (
    (
        ("ChatGLM", "GLM4V", "Molmo", "Phi3For", "Phi4MM", "Plamo3"),
        {"qkv_proj": 1, "gate_up_proj": 1},
    ),
    (("BailingMoe", "GPTNeoX", "InternLM2", "Param2MoE", "SarvamMoE"), {"qkv_proj": 1}),
    (("Glm4vFor", "GlmFor", "GlmOcr", "GraniteMoeHybrid"), {"gate_up_proj": 1}),
    (("GPTBigCode",), {"qkv_proj": 0}),
    (("K2Horizon",), {"gate_up_proj": 0}),
    (("LongcatFlash", "Glm5Next"), {"fused_qkv_a_proj": 0}),
    (("Qwen3Next",), {"in_proj_qkvz": 1, "in_proj_ba": 1}),
    (("OlmoHybrid",), {"in_proj_qkvz": 4}),
    (("HYV4",), {"wk_weights_proj": 2}),
)
"""Architecture prefixes, and how many parts of an adapter make one of a fused matrix, where not as in `USUAL`."""
USUAL = {
    "qkv_proj": 3,
    "gate_up_proj": 2,
    "fused_qkv_a_proj": 2,
    "in_proj_qkvz": 2,
    "in_proj_ba": 2,
    "kv_proj": 2,
    "fused_wqa_wkv": 2,
    "fused_wkv_wgate": 2,
}
"""What the other classes' `packed_modules_mapping` says; of a matrix that is not in it, nothing."""
INTERLEAVED = ("Qwen3Next",)
"""Architecture prefixes whose linear attention reads Q, K, V and Z of each head side by side, as one output."""
MERGED_QKV = ("PanguProMoE",)
"""Architecture prefixes whose Q, K and V are a matrix of unequal parts, not of heads."""
GATE_APART = {"Afmoe": "self_attn.gate_proj", "MuseGlimmer": "self_attn.output_gate_proj"}
"""Architecture prefix -> name of the attention's output gate where it is a matrix of its own; elsewhere a part of Q."""
CONVOLUTIONS = ("mamba.conv1d", "linear_attn.conv1d", "conv.conv", *(f"self_attn.{x}_conv1d" for x in "qkv"))
"""Convolutions that vLLM makes of linear layers: they have adapters too."""
ALSO_ADAPTED = {
    "DeepseekV4": (
        "self_attn.compressor.wkv_wgate",
        "self_attn.indexer.compressor.wkv_wgate",
        "self_attn.indexer.weights_proj",
    ),
    "Ernie4_5_VLMoe": ("mlp.vision_experts_gate",),
    "Gemma4": ("per_layer_model_projection",),
    "HYV4": ("hyper.fn", "hyper_head.fn", "self_attn.indexer.wk", "self_attn.indexer.weights_proj"),
    "LongcatFlash": ("mlp.gate.idle",),
    "Qwen4Exp": ("hyper.down", "hyper.up"),
}
"""Architecture prefix -> what is never quantised but a linear layer, and so adapted."""
PLAIN_ROUTERS = ("NemotronH",)
"""Architecture prefixes whose router has no adapter: vLLM leaves `mixer.gate` out where experts have no gate."""
TWO_MLPS = ("LongcatFlash",)
"""Architecture prefixes whose layers have two dense MLPs, side by side here."""
TOWERS_ASKED: dict[str, dict[str, int]] = {
    "Gemma3ForCond": {"attn.qkv": 3, "projector": 0},
    "Glm4vForCond": {"attn.qkv": 0, "downsample": 0},
    "Llama4ForCond": {"attn.qkv": 3, "patch_embedding": 1},
    "Qwen2VL": {},
    "Qwen2_5_VL": {"mlp.up": 2},
    "Qwen3VLFor": {},
    "Qwen3_5ForCond": {},
}
"""Architecture prefix -> the tower's matrices with more As than one, or none: those that vLLM was asked of."""
VIT = {"attn.qkv": ("qkv_proj", 3), "attn.out": ("out_proj", 1), "fc1": ("fc1", 1), "fc2": ("fc2", 1)}
TOWER_UNASKED: dict[str, dict[str, tuple[str, int]]] = {
    "Bagel": VIT | {"connector.linear_1": ("fc1", 1), "connector.linear_2": ("fc2", 1)},
    "Ernie4_5_VLMoe": {
        "attn.out": ("proj", 1),
        "fc1": ("fc1", 1),
        "fc2": ("fc2", 1),
        "spatial_linear": ("spatial_linear", 1),
        "temporal_linear1": ("temporal_linear1", 1),
        "temporal_linear2": ("temporal_linear2", 1),
        "mlp": ("mlp", 1),
    },
    "Whisper": VIT,
}
"""Architecture prefix -> the tower's linear layers, by their names here, with vLLM's name and how many As: classes that
do not say which of their modules are the tower's (`get_mm_mapping`) have them adapted like the language model's."""
AS_BAILING = {"qkv_proj": "query_key_value", "o_proj": "dense"}
AS_CHATGLM = AS_BAILING | {"gate_up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"}
AS_OPT = {"o_proj": "out_proj", "up_proj": "fc1", "down_proj": "fc2"}
OWN_NAMES: dict[str, dict[str, str]] = {
    "ChatGLM": AS_CHATGLM,
    "GLM4V": AS_CHATGLM,
    "BailingMoe": AS_BAILING,
    "SarvamMoE": AS_BAILING,
    "GPTNeoX": AS_CHATGLM | {"up_proj": "dense_h_to_4h"},
    "GPTBigCode": {"o_proj": "c_proj", "up_proj": "c_fc", "down_proj": "c_proj"},
    "InternLM2": {"qkv_proj": "wqkv", "o_proj": "wo", "down_proj": "w2"},
    "Lfm2": {"o_proj": "out_proj", "gate_up_proj": "w13", "down_proj": "w2"},
    "OPT": AS_OPT,
    "Blip2": AS_OPT,
    "Whisper": AS_OPT,
    "Ernie4_5_VLMoe": {
        "mlp.experts": "text_experts",
        "mlp.experts.vision": "vision_experts",
        "gate": "text_experts_gate",
    },
    "ExaoneFor": {"o_proj": "out_proj", "down_proj": "c_proj"},
    "PhiFor": AS_OPT | {"o_proj": "dense"},
    "Starcoder2": {"up_proj": "c_fc", "down_proj": "c_proj"},
    "GraniteMoeHybrid": {
        "mlp.shared_experts.gate_up_proj": "input_linear",
        "mlp.shared_experts.down_proj": "output_linear",
    },
    "OlmoHybrid": {"linear_attn.out_proj": "o_proj"},
}
"""Architecture prefix -> what its class calls linear layers, where not as here; the target modules use those names."""


def of_class(architecture: str, table: dict[str, Named], default: Named) -> Named:
    """The table's entry of the architecture's prefix."""
    return next((found for prefix, found in table.items() if architecture.startswith(prefix)), default)


def packed_parts(architecture: str, fused: str) -> int:
    """Parts that adapters of a fused matrix have in this class: each an A; 0: not in its `packed_modules_mapping`.

    >>> packed_parts("LlamaForCausalLM", "qkv_proj"), packed_parts("Phi3ForCausalLM", "qkv_proj")
    (3, 1)
    """
    for prefixes, packed in PACKED:
        if fused in packed and architecture.startswith(prefixes):
            return packed[fused]
    return USUAL.get(fused, 0)
