"""Which stated sizes act on which tower, and how: one row an architecture.

Source: vLLM 0.32, the `ProcessingInfo` and `DummyInputsBuilder` of each class (`model_executor/models`, `models`); held
to `fixtures/stated_items_vllm_0.32.json` (`tests/models/make_stated.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.memory.stated import clips, cuts, fitted, grids, notes, sounds, tiles, whole
from kvplan.memory.stated.ways import Shown, SizeRule, StatedSizes, TowerRow, fewer_counted, fewer_run

PIXELS = "size", "min_pixels", "max_pixels"
CROPS = ("crop_to_patches", "min_patches", "max_patches")


def _gemma4_frames(shown: Shown) -> Mapping[str, int]:
    """Two at least are run, eight tokens more than its 70 each are counted."""
    n = min(shown.frames or 32, 32)
    return {"frame_patches": shown.facts["frame_patches"] // 32 * max(n, 2), "frame_tokens": n * 78}


def _molmo2_frames(shown: Shown) -> Mapping[str, int]:
    """Two at least."""
    return {"frames": min(shown.facts["frames"], max(shown.frames, 2))} if shown.frames else {}


def _ernie_frames(shown: Shown) -> Mapping[str, int]:
    """Pairs of the largest picture's sides are counted, frames of stated ones are run.

    Source: vLLM 0.32 `models/ernie45_vl.py: get_max_video_tokens, get_dummy_mm_data`.
    """
    assert shown.way is not None
    counted = shown.way.clipped({}).tokens
    fitting = shown.facts["pair"] * max(shown.context // counted, 1)
    run = min(fitting, max(shown.frames or fitting, 2))
    return {"frame_tokens": counted, "frames_run": 1, "frame_patches": run * shown.frame.patches}


def _keye_frames(shown: Shown) -> Mapping[str, int]:
    """A share of what the pictures of a prompt leave of the context, 16 frames at most; 2,048 since Keye 1.5.

    Source: vLLM 0.32 `models/keye.py: get_num_frames_with_most_features`.
    """
    assert shown.way is not None
    tokens = shown.way.clipped({}).tokens
    total = max(shown.context - shown.limits["image"] * tokens, 0) // tokens
    counted = max(min(total // max(shown.limits["video"], 1), shown.facts["most_frames"]), 1)
    run = min(counted, shown.frames or counted)
    sizes = {"frames": 1, "frame_tokens": counted * tokens}
    return sizes | {"frames_run": 1, "frame_patches": run * shown.frame.patches}


def _nemotron(asked: StatedSizes) -> SizeRule:
    """Tiles, or where the config bounds patches, pictures as large as the context."""
    return fitted.filling(asked) if "image_least" in asked.facts else tiles.radio(asked)


def _tubelets(shown: Shown) -> Mapping[str, int]:
    """Frames of a tubelet are run together."""
    return {"most_run": -(-shown.frames // shown.facts["media_frames"])} if shown.frames else {}


def _whole_frames(shown: Shown) -> Mapping[str, int]:
    """Frames of a slice, which are never cut."""
    assert shown.way is not None
    side = shown.facts["side"]
    frame = shown.way._replace(width=side, height=side).clipped(shown.told)
    return {"frame_patches": frame.patches, **fewer_run(shown)}


def _sliced_frames(shown: Shown) -> Mapping[str, int]:
    """Frames are sliced as pictures are."""
    assert shown.way is not None
    side = shown.facts["side"]
    way = shown.way._replace(height=side * shown.keys.get("max_slice_nums", 9))
    counted, run = way.clipped({}), way.clipped(shown.told)
    return {"frame_tokens": counted.tokens, "frame_patches": run.patches, **fewer_run(shown)}


def _anything(asked: StatedSizes) -> SizeRule:
    raise AssertionError  # planned by functions of its own


QWENS = TowerRow(_anything, PIXELS, video=fewer_run, video_sides=True)
"""Qwen's and its kin's (`kvplan/memory/item_sizes.py`)."""
GLMS = QWENS
"""GLM's (`kvplan/memory/glm_items.py`)."""

STATED: dict[str, TowerRow] = {
    "Gemma3ForConditionalGeneration": TowerRow(
        whole.pan_and_scan,
        (
            "do_pan_and_scan",
            "pan_and_scan_max_num_crops",
            "pan_and_scan_min_crop_size",
            "pan_and_scan_min_ratio_to_activate",
        ),
    ),
    **dict.fromkeys(
        ("Gemma4ForConditionalGeneration", "DiffusionGemmaForBlockDiffusion"),
        TowerRow(
            whole.soft_tokens, ("max_soft_tokens",), fixed=True, video=_gemma4_frames, sound=sounds.gemma4
        ),
    ),
    "Gemma4UnifiedForConditionalGeneration": TowerRow(
        whole.soft_tokens,
        ("max_soft_tokens",),
        fixed=True,
        video=_gemma4_frames,
        sound=sounds.gemma4_unified,
    ),
    "Mistral3ForConditionalGeneration": TowerRow(whole.pixtral, ("size",)),
    "PixtralForConditionalGeneration": TowerRow(whole.pixtral),
    "LightOnOCRForConditionalGeneration": TowerRow(whole.pixtral_by_config, ("size",)),
    "KimiVLForConditionalGeneration": TowerRow(whole.kimi_vl, ("in_token_limit",)),
    "KimiK3ForConditionalGeneration": TowerRow(whole.kimi_k3),
    "KimiK25ForConditionalGeneration": TowerRow(),
    **dict.fromkeys(
        ("InternVLChatModel", "SkyworkR1VChatModel", "QianfanOCRForConditionalGeneration"),
        TowerRow(tiles.dynamic, tiles.TILE_KEYS, strict=True, video=fewer_counted),
    ),
    **dict.fromkeys(
        ("InternVLForConditionalGeneration", "InternS1ForConditionalGeneration"),
        TowerRow(tiles.cropped, CROPS, video=fewer_counted),
    ),
    "Cohere2VisionForConditionalGeneration": TowerRow(
        tiles.least_upscaled, ("crop_to_patches", "max_patches")
    ),
    "Llama4ForConditionalGeneration": TowerRow(tiles.canvas, ("max_patches", "resize_to_max_canvas")),
    **dict.fromkeys(
        ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
        TowerRow(tiles.split, ("size", "do_image_splitting")),
    ),
    "Phi3VForCausalLM": TowerRow(tiles.crops_of_336, ("num_crops",)),
    "Phi4MMForCausalLM": TowerRow(tiles.crops_of_448, ("dynamic_hd",), sound=sounds.phi4mm),
    "DeepseekVLV2ForCausalLM": TowerRow(tiles.candidates),
    "MolmoForCausalLM": TowerRow(tiles.molmo, ("max_crops",)),
    "Molmo2ForConditionalGeneration": TowerRow(tiles.molmo2, ("max_crops",), video=_molmo2_frames),
    "DotsOCRForCausalLM": TowerRow(whole.within((3136, 11289600), exact=True), PIXELS, most=True),
    "PaddleOCRVLForConditionalGeneration": TowerRow(
        whole.within((147384, 28 * 28 * 1280), lengthened=True, rows_first=True), PIXELS
    ),
    **dict.fromkeys(
        ("KeyeForConditionalGeneration", "KeyeVL1_5ForConditionalGeneration"),
        TowerRow(
            whole.within((28 * 28 * 130, 28 * 28 * 1280), edges=PIXELS[1:], lengthened=True),
            PIXELS,
            most=True,
            video=_keye_frames,
            video_sides=True,
            always=True,
        ),
    ),
    "Ernie4_5_VLMoeForConditionalGeneration": TowerRow(
        whole.within((56 * 56, 28 * 28 * 6177)), PIXELS, most=True, video=_ernie_frames, video_sides=True
    ),
    **dict.fromkeys(
        ("NVLM_D", "Eagle2_5_VLForConditionalGeneration"),
        TowerRow(tiles.dynamic, tiles.TILE_KEYS, strict=True),
    ),
    "LlavaNextForConditionalGeneration": TowerRow(tiles.pinpoints(), always=True),
    "LlavaOnevisionForConditionalGeneration": TowerRow(
        tiles.pinpoints((1153, 944), cut=True), video=fewer_counted, always=True
    ),
    "BeeForConditionalGeneration": TowerRow(tiles.pinpoints(cut=True), always=True),
    "RForConditionalGeneration": TowerRow(tiles.pinpoints(), always=True),
    "Granite4VisionForConditionalGeneration": TowerRow(tiles.pinpoints(), always=True),
    **dict.fromkeys(
        (
            "Step3VLForConditionalGeneration",
            "Step3p7ForConditionalGeneration",
            "StepVLForConditionalGeneration",
        ),
        TowerRow(tiles.windows, most=True),
    ),
    "Ovis": TowerRow(tiles.covering, ("max_partition", "covering_threshold")),
    **dict.fromkeys(
        (
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
            "NemotronH_Super_Omni_Reasoning_V3",
        ),
        TowerRow(
            _nemotron,
            ("max_num_tiles",),
            most=True,
            always=True,
            strict=True,
            video=_tubelets,
            sound=sounds.parakeet,
        ),
    ),
    "Llama_Nemotron_Nano_VL": TowerRow(tiles.radio, ("max_num_tiles", "use_thumbnail")),
    **dict.fromkeys(
        ("MiniCPMV", "MiniCPMO"),
        TowerRow(tiles.slices(1), ("max_slice_nums",), most=True, video=_whole_frames, video_sides=True),
    ),
    **dict.fromkeys(
        ("MiniCPMV4_6ForConditionalGeneration", "MiniCPMV4_7ForConditionalGeneration"),
        TowerRow(tiles.slices(4), ("max_slice_nums",), most=True, video=_sliced_frames, video_sides=True),
    ),
    **dict.fromkeys(
        ("Ovis2_5", "Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"),
        TowerRow(whole.ovis2_5, ("min_pixels", "max_pixels"), video=fewer_counted),
    ),
    "H2OVLChatModel": TowerRow(cuts.twice, cuts.TWICE_KEYS, strict=True, always=True),
    "Lfm2VlForConditionalGeneration": TowerRow(cuts.large_alone, cuts.LARGE_KEYS, scoped="idle"),
    "IsaacForConditionalGeneration": TowerRow(
        grids.by_patches, ("min_num_patches", "max_num_patches"), most=True, always=True
    ),
    "MuseGlimmerForConditionalGeneration": TowerRow(
        grids.nearest_grid, most=True, strict=True, scoped="refused", video=clips.glimmer, video_sides=True
    ),
    "MiniMaxM3SparseForConditionalGeneration": TowerRow(
        grids.by_area_or_side,
        ("min_pixels", "max_pixels", "max_long_side_pixel"),
        most=True,
        video=clips.minimax,
        video_sides=True,
    ),
    "MiMoV2OmniForCausalLM": TowerRow(
        grids.own_limits,
        PIXELS,
        most=True,
        scoped="idle",
        video=clips.mimo,
        video_sides=True,
        always=True,
    ),
    "HCXVisionV2ForCausalLM": TowerRow(
        grids.shown_at("side", clips.QWEN2), PIXELS, video=clips.hyperclovax, video_sides=True
    ),
    "KananaVForConditionalGeneration": TowerRow(
        grids.fitted_square(9999, (56 * 56, 14 * 14 * 4 * 1280)), PIXELS[1:], fixed=True, scoped="idle"
    ),
    "LlavaOnevision2ForConditionalGeneration": TowerRow(
        grids.fitted_square(1800, (256 * 28 * 28, 1_605_632)),
        PIXELS,
        fixed=True,
        scoped="idle",
        video=clips.as_pictures,
        video_frames=False,
    ),
    "Emu3ForConditionalGeneration": TowerRow(grids.emu3, PIXELS[1:], most=True, scoped="refused"),
    "HunYuanVLForConditionalGeneration": TowerRow(grids.hunyuan, PIXELS, most=True),
    "LlavaNextVideoForConditionalGeneration": TowerRow(video=fewer_counted),
    "AudioFlamingo3ForConditionalGeneration": TowerRow(sound=sounds.flamingo),
    "GlmAsrForConditionalGeneration": TowerRow(sound=sounds.glm),
    "MossTranscribeDiarizeForConditionalGeneration": TowerRow(sound=sounds.moss_windows),
    "VoxtralForConditionalGeneration": TowerRow(sound=sounds.voxtral),
    **dict.fromkeys(
        ("GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration"),
        TowerRow(sound=sounds.granite),
    ),
    "FireRedASR2ForConditionalGeneration": TowerRow(sound=sounds.fire_red),
    "FunASRForConditionalGeneration": TowerRow(sound=sounds.fun_asr),
    "MiDashengLMModel": TowerRow(sound=sounds.midasheng),
    **dict.fromkeys(
        ("Qwen3ASRForConditionalGeneration", "Qwen3ASRRealtimeGeneration"), TowerRow(sound=sounds.qwen3)
    ),
    "MossAudioModel": TowerRow(sound=sounds.moss_audio),
    "InklingForConditionalGeneration": TowerRow(whole.inkling, sound=sounds.inkling),
    "DeepseekV4ForConditionalGeneration": TowerRow(fitted.deepseek_v4, most=True, always=True),
    "DeepseekV41ForCausalLM": TowerRow(fitted.deepseek_v41, most=True, always=True),
    "Phi4ForCausalLMV": TowerRow(fitted.native, ("min_num_patches", "max_num_patches"), most=True),
    "Dots3NoteForCausalLM": TowerRow(
        notes.picture, (*notes.KEYS, "image_detail"), most=True, video=notes.frames, video_sides=True
    ),
    "UltravoxModel": TowerRow(sound=sounds.ultravox),
    "FunAudioChatForConditionalGeneration": TowerRow(sound=sounds.fun_audio_chat),
    "VibeVoiceAsrForConditionalGeneration": TowerRow(sound=sounds.vibevoice),
    "Gemma3nForConditionalGeneration": TowerRow(sound=sounds.gemma3n),
    **dict.fromkeys(
        ("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"),
        QWENS._replace(sound=sounds.qwen2_5_omni),
    ),
    "OpenPanguVLForConditionalGeneration": QWENS,
    "Cosmos3EdgeForConditionalGeneration": QWENS._replace(video=None),
    "Qwen3OmniMoeForConditionalGeneration": QWENS._replace(sound=sounds.qwen3_omni),
    **dict.fromkeys(
        (
            # 30 s however long the sound is
            "WhisperForConditionalGeneration",
            "Qwen2AudioForConditionalGeneration",
            # their classes pass no length on
            "MoonshotKimiaForCausalLM",
            "CohereAsrForConditionalGeneration",
            # its layers run with the language model's
            "VoxtralRealtimeGeneration",
        ),
        TowerRow(),
    ),
    **dict.fromkeys(
        (
            "AriaForConditionalGeneration",
            "BagelForConditionalGeneration",
            "Blip2ForConditionalGeneration",
            "DeepseekOCRForCausalLM",
            "DeepseekOCR2ForCausalLM",
            "UnlimitedOCRForCausalLM",
            "GLM4VForCausalLM",
            "HfMoondream",
            "Moondream3ForCausalLM",
            "NemotronParseForConditionalGeneration",
            "OpenVLAForActionPrediction",
            "LlavaForConditionalGeneration",
            "PaliGemmaForConditionalGeneration",
        ),
        TowerRow(),
    ),
}
"""Architecture -> how stated sizes act; those of Qwen and GLM have functions of their own."""
