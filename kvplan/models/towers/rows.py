"""Vision and audio towers by declaration: an architecture's row says which parts its config's sizes make.

Each row is held to vLLM 0.32's own class (`tests/models/test_architectures.py`), its largest item to what vLLM profiles
(`tests/memory/test_largest_items.py`, `test_profiled_items.py`).
"""

from __future__ import annotations

from kvplan.models.towers.both import (
    inkling,
    mimo_v2_omni,
    minicpmo,
    nano_nemotron,
    phi4mm,
    qwen2_5_omni,
    qwen3_omni,
)
from kvplan.models.towers.convolved import emu3, vibevoice
from kvplan.models.towers.dots_note import dots_note, dots_note_sound, dots_note_video
from kvplan.models.towers.from_timm import (
    both_at_224,
    deepseek_vl2,
    gemma3n,
    mobilenet_image,
    openvla,
    tiled_square,
)
from kvplan.models.towers.heard import (
    cohere_asr_sound,
    fire_red_sound,
    flamingo_sound,
    fun_asr_sound,
    gemma3n_sound,
    gemma4_unified_sound,
    glm_sound,
    granite_sound,
    midasheng_sound,
    moss_audio_sound,
    moss_sound,
    parakeet_sound,
    phi4mm_sound,
    qwen2_5_omni_sound,
    qwen2_sound,
    qwen3_asr_sound,
    qwen3_omni_sound,
    realtime_sound,
    ultravox_sound,
    vibevoice_sound,
    voxtral_sound,
    whisper_sound,
)
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
    most_patches,
    nemotron_parse,
    ovis,
    ovis2_5,
    paddle_ocr,
    parsed_image,
    phi3v,
    phi4_siglip,
    pixtral,
    radio_of_transformers,
    radio_tiles,
    rvl,
)
from kvplan.models.towers.largest import (
    aria_image,
    bagel_image,
    blip2_image,
    cosmos3_edge_video,
    deepseek_v4_image,
    deepseek_v41_image,
    dots_image,
    eagle_tiles,
    emu3_image,
    ernie_video,
    gated_image,
    gemma4_unified_video,
    glm4v_9b_image,
    glm5_items,
    glm_items,
    granite4_pinpoints,
    hunyuan_image,
    hyperclovax_video,
    intern_video,
    keye_image,
    kimi_image,
    lfm2_image,
    llava_video,
    mimo_video,
    minimax_items,
    nemotron_video,
    omni_image,
    onevision,
    paddle_image,
    pangu_pair,
    pinpoints,
    qwen_tower,
    split_image,
    stated_tiles,
    tiles_or_frames,
    tiles_twice,
    views,
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
from kvplan.models.towers.seen import (
    glimmer_image,
    inkling_image,
    inkling_sound,
    isaac_image,
    kanana_image,
    minicpm4_image,
    minicpm_image,
    minicpmo_image,
    molmo2_image,
    molmo_image,
    moondream_image,
    onevision2_image,
    ovis2_5_image,
    ovis_image,
    phi3v_image,
    phi4mm_image,
    step_image,
)
from kvplan.models.towers.sound import (
    audio_flamingo,
    cohere_asr,
    fire_red_asr,
    frames_rotated,
    fun_asr,
    fun_audio_chat,
    glm_asr,
    granite_speech,
    grouped_speech,
    kimi_audio,
    large_v3_window,
    midasheng,
    moss_audio,
    moss_transcribe,
    qwen2_audio,
    qwen3_asr,
    ultravox,
    voxtral,
    voxtral_realtime,
    whisper,
)

DECLARED: dict[str, Tower] = {
    "AriaForConditionalGeneration": Tower("vision_config", aria, largest=aria_image),
    "AudioFlamingo3ForConditionalGeneration": Tower(
        "audio_config", audio_flamingo, heads=False, largest=flamingo_sound
    ),
    "BeeForConditionalGeneration": Tower("vision_config", bee, largest=pinpoints),
    "DeepseekOCRForCausalLM": Tower("vision_config", deepseek_ocr, heads=False, largest=views(640, 2, 2)),
    "DeepseekOCR2ForCausalLM": Tower(
        "vision_config", deepseek_ocr2, heads=False, largest=views(768, 2, 2, ends=False)
    ),
    "DeepseekVLV2ForCausalLM": Tower("vision_config", deepseek_vl2, heads=False, largest=tiled_square),
    "DotsOCRForCausalLM": Tower("vision_config", dots_ocr, largest=dots_image),
    "Dots3NoteForCausalLM": Tower("", dots_note, heads=False, largest=dots_note_video, sound=dots_note_sound),
    "Eagle2_5_VLForConditionalGeneration": Tower("vision_config", eagle, largest=eagle_tiles),
    "Ernie4_5_VLMoeForConditionalGeneration": Tower("vision_config", ernie_vl, largest=ernie_video),
    "Exaone4_5_ForConditionalGeneration": Tower(
        "vision_config",
        lambda s: qwen2_5(s.tower),
        rotary=True,
        largest=qwen_tower(True),
    ),
    "Gemma4UnifiedForConditionalGeneration": Tower(
        "vision_config",
        gemma4_unified,
        heads=False,
        largest=gemma4_unified_video,
        sound=gemma4_unified_sound,
    ),
    "GLM4VForCausalLM": Tower("vision_config", glm4v_9b, largest=glm4v_9b_image),
    "FunAudioChatForConditionalGeneration": Tower("audio_config", fun_audio_chat, largest=grouped_speech),
    "Gemma3nForConditionalGeneration": Tower(
        "vision_config", gemma3n, heads=False, largest=mobilenet_image, sound=gemma3n_sound
    ),
    "GlmAsrForConditionalGeneration": Tower("audio_config", glm_asr, largest=glm_sound),
    "Glm5NextForConditionalGeneration": Tower(
        "vision_config",
        glm_ocr,
        rotary=True,
        long_table=True,
        largest=glm5_items,
    ),
    "GlmOcrForConditionalGeneration": Tower("vision_config", glm_ocr, rotary=True, largest=glm_items),
    "Granite4VisionForConditionalGeneration": Tower(
        "vision_config", granite4_vision, largest=granite4_pinpoints
    ),
    "GraniteSpeechForConditionalGeneration": Tower(
        "encoder_config", granite_speech, heads=False, largest=granite_sound
    ),
    "GraniteSpeechPlusForConditionalGeneration": Tower(
        "encoder_config", granite_speech, heads=False, largest=granite_sound
    ),
    "H2OVLChatModel": Tower("vision_config", intern_vit, largest=tiles_twice),
    "HCXVisionV2ForCausalLM": Tower(
        "vision_config",
        hyperclovax,
        rotary=True,
        largest=hyperclovax_video,
    ),
    "Idefics3ForConditionalGeneration": Tower("vision_config", idefics3, largest=split_image),
    "InternS1ForConditionalGeneration": Tower("vision_config", intern_s1, heads=False, largest=intern_video),
    "InternVLChatModel": Tower("vision_config", intern_vit, largest=tiles_or_frames),
    "KeyeForConditionalGeneration": Tower("vision_config", keye, largest=keye_image),
    "KeyeVL1_5ForConditionalGeneration": Tower("vision_config", keye, largest=keye_image),
    "KimiVLForConditionalGeneration": Tower("vision_config", moonvit, largest=kimi_image),
    "Lfm2VlForConditionalGeneration": Tower("vision_config", lfm2_vl, largest=lfm2_image),
    "LightOnOCRForConditionalGeneration": Tower("vision_config", lighton_ocr, largest=gated_image),
    **dict.fromkeys(
        (
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
            "NemotronH_Super_Omni_Reasoning_V3",
        ),
        Tower("vision_config", nano_nemotron, heads=False, largest=nemotron_video, sound=parakeet_sound),
    ),
    "BailingMoeV3VLForConditionalGeneration": Tower(
        "vision_config", bailing_v3_vl, rotary=True, largest=qwen_tower(False, videos=False)
    ),
    "Llama_Nemotron_Nano_VL": Tower("vision_config", radio_of_transformers, heads=False, largest=radio_tiles),
    "LlavaNextForConditionalGeneration": Tower(
        "vision_config", llava_next, largest=pinpoints, kind="clip_vision_model"
    ),
    "LlavaNextVideoForConditionalGeneration": Tower(
        "vision_config", lambda s: llava_next(s, cut=False), largest=llava_video, kind="clip_vision_model"
    ),
    "LlavaOnevisionForConditionalGeneration": Tower(
        "vision_config", llava_onevision, largest=onevision, kind="siglip_vision_model"
    ),
    "MiMoV2OmniForCausalLM": Tower("vision_config", mimo_v2_omni, rotary=True, largest=mimo_video),
    "MiniCPMV4_6ForConditionalGeneration": Tower("vision_config", minicpmv4, largest=minicpm4_image),
    "MiniCPMV4_7ForConditionalGeneration": Tower("vision_config", minicpmv4, largest=minicpm4_image),
    "MiniCPMV": Tower("vision_config", minicpmv, largest=minicpm_image),
    "MiniMaxM3SparseForConditionalGeneration": Tower("vision_config", minimax_m3, largest=minimax_items),
    "MoonshotKimiaForCausalLM": Tower("", kimi_audio, heads=False, largest=large_v3_window),
    "MossTranscribeDiarizeForConditionalGeneration": Tower(
        "audio_config", moss_transcribe, largest=moss_sound
    ),
    "MuseGlimmerForConditionalGeneration": Tower("vision_config", muse_glimmer, largest=glimmer_image),
    "NemotronParseForConditionalGeneration": Tower(
        "encoder", nemotron_parse, heads=False, largest=parsed_image
    ),
    "NVLM_D": Tower("vision_config", lambda s: intern_vit(s, bias=False), largest=stated_tiles),
    "OpenCUAForConditionalGeneration": Tower(
        "vision_config",
        lambda s: qwen2_5(s.tower),
        rotary=True,
        largest=qwen_tower(True, videos=False),
    ),
    "Ovis2_5": Tower("vit_config", ovis2_5, largest=ovis2_5_image),
    "OpenVLAForActionPrediction": Tower("", openvla, heads=False, largest=both_at_224),
    "PaddleOCRVLForConditionalGeneration": Tower("vision_config", paddle_ocr, largest=paddle_image),
    "Phi3VForCausalLM": Tower("img_processor", phi3v, heads=False, largest=phi3v_image),
    "Phi4MMForCausalLM": Tower(
        "audio_processor", phi4mm, heads=False, largest=phi4mm_image, sound=phi4mm_sound
    ),
    "Phi4ForCausalLMV": Tower("vision_config", phi4_siglip, largest=most_patches),
    "PixtralForConditionalGeneration": Tower("vision_config", pixtral, largest=gated_image),
    "QianfanOCRForConditionalGeneration": Tower("vision_config", intern_vit, largest=stated_tiles),
    "Qwen2AudioForConditionalGeneration": Tower(
        "audio_config", qwen2_audio, heads=False, largest=qwen2_sound
    ),
    **dict.fromkeys(
        ("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"),
        Tower(
            "thinker_config",
            qwen2_5_omni,
            heads=False,
            rotary=True,
            largest=omni_image(True),
            sound=qwen2_5_omni_sound,
        ),
    ),
    "Qwen3ASRForConditionalGeneration": Tower(
        "audio_config", qwen3_asr, heads=False, largest=qwen3_asr_sound
    ),
    "Qwen3ASRRealtimeGeneration": Tower("audio_config", qwen3_asr, heads=False, largest=qwen3_asr_sound),
    "Qwen3OmniMoeForConditionalGeneration": Tower(
        "thinker_config",
        qwen3_omni,
        heads=False,
        rotary=True,
        largest=omni_image(False),
        sound=qwen3_omni_sound,
    ),
    "SkyworkR1VChatModel": Tower("vision_config", intern_vit, largest=stated_tiles),
    "SmolVLMForConditionalGeneration": Tower("vision_config", idefics3, largest=split_image),
    "Step3VLForConditionalGeneration": Tower("vision_config", step3, largest=step_image),
    "Step3p7ForConditionalGeneration": Tower("vision_config", step3p7, largest=step_image),
    "UltravoxModel": Tower("audio_config", ultravox, largest=ultravox_sound),
    "UnlimitedOCRForCausalLM": Tower("vision_config", deepseek_ocr, heads=False, largest=views(640, 4, 8)),
    "VoxtralForConditionalGeneration": Tower("audio_config", voxtral, largest=voxtral_sound),
    "BagelForConditionalGeneration": Tower("vit_config", bagel, largest=bagel_image),
    "Blip2ForConditionalGeneration": Tower("vision_config", blip2, largest=blip2_image),
    "Cosmos3EdgeForConditionalGeneration": Tower("vision_config", cosmos3_edge, largest=cosmos3_edge_video),
    "CohereAsrForConditionalGeneration": Tower("encoder", cohere_asr, heads=False, largest=cohere_asr_sound),
    "DeepseekV4ForConditionalGeneration": Tower("", deepseek_v4, heads=False, largest=deepseek_v4_image),
    "DeepseekV41ForCausalLM": Tower("vision_config", deepseek_v41, heads=False, largest=deepseek_v41_image),
    "Emu3ForConditionalGeneration": Tower("vq_config", emu3, largest=emu3_image),
    "FireRedASR2ForConditionalGeneration": Tower(
        "audio_encoder_conf", fire_red_asr, heads=False, largest=fire_red_sound
    ),
    "FunASRForConditionalGeneration": Tower(
        "audio_encoder_conf", fun_asr, heads=False, largest=fun_asr_sound
    ),
    **dict.fromkeys(
        ("HfMoondream", "Moondream3ForCausalLM"), Tower("", moondream, heads=False, largest=moondream_image)
    ),
    "HunYuanVLForConditionalGeneration": Tower(
        "vision_config", hunyuan_vl, heads=False, largest=hunyuan_image
    ),
    "InklingForConditionalGeneration": Tower(
        "", inkling, heads=False, largest=inkling_image, sound=inkling_sound
    ),
    "IsaacForConditionalGeneration": Tower("vision_config", isaac, largest=isaac_image),
    "KananaVForConditionalGeneration": Tower("vision_config", kanana, rotary=True, largest=kanana_image),
    "LlavaOnevision2ForConditionalGeneration": Tower("vision_config", onevision2, largest=onevision2_image),
    "MiDashengLMModel": Tower("audio_encoder_config", midasheng, largest=midasheng_sound),
    "MiniCPMO": Tower("vision_config", minicpmo, largest=minicpmo_image),
    "MolmoForCausalLM": Tower("", molmo, heads=False, largest=molmo_image),
    "Molmo2ForConditionalGeneration": Tower("vit_config", molmo2, largest=molmo2_image),
    "MossAudioModel": Tower("audio_config", moss_audio, largest=moss_audio_sound),
    # its limit of pixels stands in a file of the checkpoint; public copies of its processor differ
    "OpenPanguVLForConditionalGeneration": Tower("vision_config", open_pangu, largest=pangu_pair),
    "Ovis": Tower("visual_tokenizer_config", ovis, heads=False, largest=ovis_image),
    **dict.fromkeys(
        ("Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"), Tower("vit_config", ovis2_5, largest=ovis2_5_image)
    ),
    "RForConditionalGeneration": Tower("vision_config", rvl, largest=pinpoints, kind="siglip_vision_model"),
    "StepVLForConditionalGeneration": Tower("vision_config", step3p7, largest=step_image),
    "VibeVoiceAsrForConditionalGeneration": Tower("", vibevoice, heads=False, largest=vibevoice_sound),
    "VoxtralRealtimeGeneration": Tower(
        "audio_config", voxtral_realtime, table=frames_rotated, largest=realtime_sound
    ),
    "WhisperForConditionalGeneration": Tower("", lambda s: whisper(s.tower), largest=whisper_sound),
}
"""Architecture -> its tower."""
