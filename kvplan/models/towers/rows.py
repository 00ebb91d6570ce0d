"""Vision and audio towers by declaration: an architecture's row says which parts its config's sizes make.

Each row is held to vLLM 0.32's own class (`tests/models/test_architectures.py`).
"""

from __future__ import annotations

from kvplan.models.towers.both import inkling, minicpmo, nano_nemotron, phi4mm, qwen2_5_omni, qwen3_omni
from kvplan.models.towers.convolved import emu3, vibevoice
from kvplan.models.towers.images import (
    aria,
    bagel,
    bailing_v3_vl,
    bee,
    blip2,
    eagle,
    granite4_vision,
    idefics3,
    intern_s1,
    intern_vit,
    isaac,
    keye,
    lfm2_vl,
    lighton_ocr,
    llava_next,
    llava_onevision,
    minicpmv,
    minicpmv4,
    molmo,
    moondream,
    ovis,
    ovis2_5,
    paddle_ocr,
    phi3v,
    pixtral,
    rvl,
)
from kvplan.models.towers.largest import (
    deepseek_v4_image,
    deepseek_v41_image,
    dots_image,
    gated_image,
    glm_image,
    half_minute,
    kimi_image,
    omni_image,
    one_image,
    paddle_image,
    pinpoints,
    qwen_tower,
    tiles,
)
from kvplan.models.towers.own_images import (
    cosmos3_edge,
    deepseek_ocr,
    deepseek_ocr2,
    deepseek_v4,
    deepseek_v41,
    dots_ocr,
    ernie_vl,
    gemma4_unified,
    glm4v_9b,
    glm_ocr,
    hunyuan_vl,
    hyperclovax,
    kanana,
    mimo_v2_omni,
    minimax_m3,
    molmo2,
    moonvit,
    muse_glimmer,
    onevision2,
    open_pangu,
    qwen2_5,
    step3,
    step3p7,
)
from kvplan.models.towers.parts import Tower
from kvplan.models.towers.sound import (
    audio_flamingo,
    fire_red_asr,
    frames_rotated,
    fun_asr,
    glm_asr,
    granite_speech,
    midasheng,
    moss_audio,
    moss_transcribe,
    qwen2_audio,
    qwen3_asr,
    ultravox,
    voxtral,
    voxtral_realtime,
)

DECLARED: dict[str, Tower] = {
    "AriaForConditionalGeneration": Tower("vision_config", aria),
    "AudioFlamingo3ForConditionalGeneration": Tower(
        "audio_config", audio_flamingo, heads=False, largest=lambda s: half_minute(s, 2)
    ),
    "BeeForConditionalGeneration": Tower("vision_config", bee, largest=pinpoints),
    "DeepseekOCRForCausalLM": Tower("vision_config", deepseek_ocr, heads=False),
    "DeepseekOCR2ForCausalLM": Tower("vision_config", deepseek_ocr2, heads=False),
    "DotsOCRForCausalLM": Tower("vision_config", dots_ocr, largest=dots_image),
    "Eagle2_5_VLForConditionalGeneration": Tower("vision_config", eagle),
    "Ernie4_5_VLMoeForConditionalGeneration": Tower("vision_config", ernie_vl),
    "Exaone4_5_ForConditionalGeneration": Tower(
        "vision_config",
        lambda s: qwen2_5(s.tower),
        rotary=True,
        largest=qwen_tower(True),
    ),
    "Gemma4UnifiedForConditionalGeneration": Tower("vision_config", gemma4_unified, heads=False),
    "GLM4VForCausalLM": Tower("vision_config", glm4v_9b),
    "GlmAsrForConditionalGeneration": Tower("audio_config", glm_asr, largest=lambda s: half_minute(s, 4)),
    "Glm5NextForConditionalGeneration": Tower(
        "vision_config",
        glm_ocr,
        rotary=True,
        long_table=True,
        largest=glm_image,
    ),
    "GlmOcrForConditionalGeneration": Tower("vision_config", glm_ocr, rotary=True, largest=glm_image),
    "Granite4VisionForConditionalGeneration": Tower("vision_config", granite4_vision),
    "GraniteSpeechForConditionalGeneration": Tower("encoder_config", granite_speech, heads=False),
    "GraniteSpeechPlusForConditionalGeneration": Tower("encoder_config", granite_speech, heads=False),
    "H2OVLChatModel": Tower("vision_config", intern_vit, largest=tiles),
    "HCXVisionV2ForCausalLM": Tower(
        "vision_config",
        hyperclovax,
        rotary=True,
        largest=qwen_tower(True),
    ),
    "Idefics3ForConditionalGeneration": Tower("vision_config", idefics3),
    "InternS1ForConditionalGeneration": Tower("vision_config", intern_s1, heads=False),
    "InternVLChatModel": Tower("vision_config", intern_vit, largest=tiles),
    "KeyeForConditionalGeneration": Tower("vision_config", keye),
    "KeyeVL1_5ForConditionalGeneration": Tower("vision_config", keye),
    "KimiVLForConditionalGeneration": Tower("vision_config", moonvit, largest=kimi_image),
    "Lfm2VlForConditionalGeneration": Tower("vision_config", lfm2_vl),
    "LightOnOCRForConditionalGeneration": Tower("vision_config", lighton_ocr, largest=gated_image),
    **dict.fromkeys(
        (
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
            "NemotronH_Super_Omni_Reasoning_V3",
        ),
        Tower("vision_config", nano_nemotron, heads=False),
    ),
    "BailingMoeV3VLForConditionalGeneration": Tower(
        "vision_config", bailing_v3_vl, rotary=True, largest=qwen_tower(False)
    ),
    "LlavaNextForConditionalGeneration": Tower(
        "vision_config", llava_next, largest=pinpoints, kind="clip_vision_model"
    ),
    "LlavaNextVideoForConditionalGeneration": Tower(
        "vision_config", lambda s: llava_next(s, cut=False), largest=pinpoints, kind="clip_vision_model"
    ),
    "LlavaOnevisionForConditionalGeneration": Tower(
        "vision_config", llava_onevision, largest=pinpoints, kind="siglip_vision_model"
    ),
    "MiMoV2OmniForCausalLM": Tower("vision_config", mimo_v2_omni, rotary=True),
    "MiniCPMV4_6ForConditionalGeneration": Tower("vision_config", minicpmv4),
    "MiniCPMV4_7ForConditionalGeneration": Tower("vision_config", minicpmv4),
    "MiniCPMV": Tower("vision_config", minicpmv),
    "MiniMaxM3SparseForConditionalGeneration": Tower("vision_config", minimax_m3, largest=one_image),
    "MossTranscribeDiarizeForConditionalGeneration": Tower(
        "audio_config", moss_transcribe, largest=lambda s: half_minute(s, 4)
    ),
    "MuseGlimmerForConditionalGeneration": Tower("vision_config", muse_glimmer),
    "NVLM_D": Tower("vision_config", lambda s: intern_vit(s, bias=False), largest=tiles),
    "OpenCUAForConditionalGeneration": Tower(
        "vision_config",
        lambda s: qwen2_5(s.tower),
        rotary=True,
        largest=qwen_tower(True),
    ),
    "Ovis2_5": Tower("vit_config", ovis2_5),
    "PaddleOCRVLForConditionalGeneration": Tower("vision_config", paddle_ocr, largest=paddle_image),
    "Phi3VForCausalLM": Tower("img_processor", phi3v, heads=False),
    "Phi4MMForCausalLM": Tower("audio_processor", phi4mm, heads=False),
    "PixtralForConditionalGeneration": Tower("vision_config", pixtral, largest=gated_image),
    "QianfanOCRForConditionalGeneration": Tower("vision_config", intern_vit, largest=tiles),
    "Qwen2AudioForConditionalGeneration": Tower(
        "audio_config", qwen2_audio, heads=False, largest=lambda s: half_minute(s, 2)
    ),
    "Qwen2_5OmniForConditionalGeneration": Tower(
        "thinker_config", qwen2_5_omni, heads=False, rotary=True, largest=omni_image(True)
    ),
    "Qwen2_5OmniModel": Tower(
        "thinker_config", qwen2_5_omni, heads=False, rotary=True, largest=omni_image(True)
    ),
    "Qwen3ASRForConditionalGeneration": Tower("audio_config", qwen3_asr, heads=False),
    "Qwen3ASRRealtimeGeneration": Tower("audio_config", qwen3_asr, heads=False),
    "Qwen3OmniMoeForConditionalGeneration": Tower(
        "thinker_config", qwen3_omni, heads=False, rotary=True, largest=omni_image(False)
    ),
    "SkyworkR1VChatModel": Tower("vision_config", intern_vit, largest=tiles),
    "SmolVLMForConditionalGeneration": Tower("vision_config", idefics3),
    "Step3VLForConditionalGeneration": Tower("vision_config", step3),
    "Step3p7ForConditionalGeneration": Tower("vision_config", step3p7),
    "UltravoxModel": Tower("audio_config", ultravox, largest=lambda s: half_minute(s, 8)),
    "UnlimitedOCRForCausalLM": Tower("vision_config", deepseek_ocr, heads=False),
    "VoxtralForConditionalGeneration": Tower("audio_config", voxtral, largest=lambda s: half_minute(s, 4)),
    "BagelForConditionalGeneration": Tower("vit_config", bagel),
    "Blip2ForConditionalGeneration": Tower("vision_config", blip2),
    "Cosmos3EdgeForConditionalGeneration": Tower("vision_config", cosmos3_edge),
    "DeepseekV4ForConditionalGeneration": Tower("", deepseek_v4, heads=False, largest=deepseek_v4_image),
    "DeepseekV41ForCausalLM": Tower("vision_config", deepseek_v41, heads=False, largest=deepseek_v41_image),
    "Emu3ForConditionalGeneration": Tower("vq_config", emu3),
    "FireRedASR2ForConditionalGeneration": Tower("audio_encoder_conf", fire_red_asr, heads=False),
    "FunASRForConditionalGeneration": Tower("audio_encoder_conf", fun_asr, heads=False),
    **dict.fromkeys(("HfMoondream", "Moondream3ForCausalLM"), Tower("", moondream, heads=False)),
    "HunYuanVLForConditionalGeneration": Tower("vision_config", hunyuan_vl, heads=False),
    "InklingForConditionalGeneration": Tower("", inkling, heads=False),
    "IsaacForConditionalGeneration": Tower("vision_config", isaac),
    "KananaVForConditionalGeneration": Tower("vision_config", kanana, rotary=True),
    "LlavaOnevision2ForConditionalGeneration": Tower("vision_config", onevision2),
    "MiDashengLMModel": Tower("audio_encoder_config", midasheng),
    "MiniCPMO": Tower("vision_config", minicpmo),
    "MolmoForCausalLM": Tower("", molmo, heads=False),
    "Molmo2ForConditionalGeneration": Tower("vit_config", molmo2),
    "MossAudioModel": Tower("audio_config", moss_audio),
    "OpenPanguVLForConditionalGeneration": Tower("vision_config", open_pangu),
    "Ovis": Tower("visual_tokenizer_config", ovis, heads=False),
    **dict.fromkeys(("Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"), Tower("vit_config", ovis2_5)),
    "RForConditionalGeneration": Tower("vision_config", rvl, largest=pinpoints, kind="siglip_vision_model"),
    "StepVLForConditionalGeneration": Tower("vision_config", step3p7),
    "VibeVoiceAsrForConditionalGeneration": Tower("", vibevoice, heads=False),
    "VoxtralRealtimeGeneration": Tower("audio_config", voxtral_realtime, table=frames_rotated),
}
"""Architecture -> its tower."""
