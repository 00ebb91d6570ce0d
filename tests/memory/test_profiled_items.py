"""What start-up profiles of towers that hear, and of those whose processors cut and count in their own way.

Tokens and sizes are what vLLM 0.32's own `ProcessingInfo` classes answered (function named beside each), over the
configs of `architectures_vllm_0.32.json.xz` and the defaults of the processors, at contexts of 4,096 and 32,768.
Numbers a patch are the peak of live tensors that torch allocates when vLLM's own modules run on the meta device.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kvplan.engines.flags import EngineArgs, ResolvedArgs
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate
from kvplan.memory.tower_profile import embedded_bytes, largest_item, num_items, tower_bytes
from kvplan.models.config import Keys
from kvplan.models.load import load_model
from kvplan.models.spec import VisionSpec
from kvplan.models.towers.kinds import tower_kinds
from kvplan.models.towers.rows import DECLARED
from kvplan.models.vision import declared_tower

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "architectures_vllm_0.32.json.xz"
QWEN = load_model("Qwen/Qwen3.6-27B")


@cache
def cases() -> dict[str, Any]:
    with lzma.open(FIXTURE) as file:
        found: dict[str, Any] = json.load(file)
    return found


def tower(name: str, section: str = "", text: int = 1024, **sizes: object) -> VisionSpec:
    """The tower of the fixture's config of an architecture, with other sizes in one section.

    `text`: the language model's width.
    """
    config = dict(cases()[name]["config"])
    config = {**config, section: {**config[section], **sizes}} if section else {**config, **sizes}
    found = declared_tower(Keys(name, config), DECLARED[name], text)
    assert found is not None
    return replace(found, architecture=name, towers=tower_kinds(name, Keys(name, config)))


def args(context: int = 32768, batch: int = 8192, **flags: Any) -> ResolvedArgs:
    flags = {"max_model_len": context, "max_num_batched_tokens": batch, "max_num_seqs": 256, **flags}
    return estimate(QWEN, "h100", EngineArgs(**flags)).args


SOUND = {
    "AudioFlamingo3ForConditionalGeneration": (
        15000,
        20 * 1500,
    ),  # _get_audio_post_pool_output_lengths(60,000)
    "FireRedASR2ForConditionalGeneration": (
        375,
        750,
    ),  # the mask of 3,004 frames, halved twice and joined by twos
    "GlmAsrForConditionalGeneration": (
        21 * 375,
        21 * 1500,
    ),  # _calculate_chunk_counts, glmasr_utils: 375 a window
    "GraniteSpeechForConditionalGeneration": (5001, 25000),  # get_max_audio_tokens; 8,000,000 samples
    "GraniteSpeechPlusForConditionalGeneration": (5001, 25000),
    "InklingForConditionalGeneration": (12000, 12000),  # MAX_AUDIO_TOKENS; InklingAudioFeatureExtractor
    "MiDashengLMModel": (50, 250),  # calculate_mel_frames_dasheng(160,000), patches of four frames
    "MossAudioModel": (375, 13),  # get_mm_max_tokens_per_item; compute_num_audio_tokens(100)
    "Qwen2AudioForConditionalGeneration": (750, 1500),  # get_mm_max_tokens_per_item
    "Qwen3ASRForConditionalGeneration": (390, 390),  # _get_feat_extract_output_lengths(3,000)
    "Qwen3ASRRealtimeGeneration": (390, 390),
    "UltravoxModel": (16 * 188, 16 * 1500),  # 188 tokens a window, as its LoRA counts say
    "VibeVoiceAsrForConditionalGeneration": (450, 720_000),  # get_max_audio_tokens; 30 s of 24,000
}
"""Tokens of the longest sound, and frames of it that pass the tower."""
PICTURES = {
    "HfMoondream": (730, 2 * 27**2),  # get_max_image_tokens; Moondream3Processor.preprocess_image: two crops
    "Moondream3ForCausalLM": (730, 2 * 27**2),
    "IsaacForConditionalGeneration": (1536, 78**2),  # get_mm_max_tokens_per_item; 1,248 pixels
    "KananaVForConditionalGeneration": (1225, 70**2),  # get_mm_max_tokens_per_item; 980 pixels
    "MolmoForCausalLM": (1344, 13 * 577),  # get_patches_grid_size (24, 200) by twos and 144; no marks
    "Ovis": (2571, 10 * 32**2),  # OvisProcessor.preprocess_image: ten tiles of 448
    "Phi3VForCausalLM": (781, 5 * 577),  # (4 + 1) x 144 + 1 + (4 + 1) x 12, `calc_num_image_tokens`
    "Phi4MMForCausalLM": (10065, 37 * 32**2),  # get_num_image_tokens of 448 x 16,128
    "Step3VLForConditionalGeneration": (3164, 36 * (36**2 + 1)),  # get_max_image_tokens; get_num_patches: 36
    "Step3p7ForConditionalGeneration": (3164, 36 * 36**2),
    "StepVLForConditionalGeneration": (3164, 36 * 36**2),
}


@pytest.mark.parametrize("name", [*SOUND, *PICTURES])
def test_items_that_no_context_changes(name: str) -> None:
    for context in (4096, 32768):
        found = largest_item(tower(name), args(context))
        assert found is not None
        assert (found.tokens, found.patches) == (SOUND | PICTURES)[name]


@pytest.mark.parametrize(
    ("name", "context", "tokens", "patches"),
    [
        # a video of a slice a frame, 16 at most: get_mm_max_tokens_per_item at 1,024, 4,096 and 32,768
        ("MiniCPMV", 1024, 640, 10 * 11 * 96),
        ("MiniCPMV", 4096, 1024, 16 * 32**2),
        ("MiniCPMV", 32768, 1024, 16 * 32**2),
        ("MiniCPMO", 1024, 640, 10 * 11 * 96),
        ("MiniCPMO", 4096, 1024, 16 * 32**2),
        # get_mm_max_tokens_per_item; get_num_frames_with_most_features: 28 and 48 pairs of 24 x 24 patches
        ("MuseGlimmerForConditionalGeneration", 4096, 4096, 128**2),
        ("MuseGlimmerForConditionalGeneration", 32768, 6912, 48 * 24**2),
        # get_num_frames_with_most_features: one frame; four counted and five run; a video's two marks are left out
        ("Ovis2_5", 4096, 3138, 112**2),
        ("Ovis2_5", 65536, 4 * 3136, 5 * 112**2),
        ("Ovis2_6ForCausalLM", 65536, 4 * 3136, 5 * 112**2),
        ("Ovis2_6_MoeForCausalLM", 65536, 4 * 3136, 5 * 112**2),
        # get_mm_max_tokens_per_item with 1,605,632 pixels; four frames of 1,260 pixels are run
        ("LlavaOnevision2ForConditionalGeneration", 8192, 8100, 4 * 90**2),
        ("LlavaOnevision2ForConditionalGeneration", 32768, 28350, 4 * 90**2),
        # get_num_image_tokens 1,414; get_num_video_tokens 83 a frame, 49 frames and 384
        ("Molmo2ForConditionalGeneration", 1024, 1414, 9 * 27**2),
        ("Molmo2ForConditionalGeneration", 4096, 49 * 83, 49 * 27**2),
        ("Molmo2ForConditionalGeneration", 36864, 384 * 83, 384 * 27**2),
        # get_mm_max_tokens_per_item; _get_max_audio_samples: 180 windows
        ("MossTranscribeDiarizeForConditionalGeneration", 32768, 32768, 180 * 1500),
        ("MossTranscribeDiarizeForConditionalGeneration", 131072, 67500, 180 * 1500),
        # get_max_audio_tokens; get_max_audio_array_len: 87.4 windows
        ("VoxtralForConditionalGeneration", 32768, 32768, 88 * 1500),
    ],
)
def test_items_as_long_as_the_context_lets_them_be(
    name: str, context: int, tokens: int, patches: int
) -> None:
    found = largest_item(tower(name), args(context))
    assert found is not None
    assert (found.tokens, found.patches) == (tokens, patches)


@pytest.mark.parametrize(
    "name", ["MiniCPMV4_6ForConditionalGeneration", "MiniCPMV4_7ForConditionalGeneration"]
)
@pytest.mark.parametrize(
    ("context", "tokens", "frames"), [(2048, 1296, 3), (4096, 3240, 6), (8192, 7128, 12), (32768, 10368, 16)]
)
def test_minicpm_v_4_slices_every_frame(name: str, context: int, tokens: int, frames: int) -> None:
    """get_mm_max_tokens_per_item, get_num_frames_with_most_features; transformers' `MiniCPMV4_6ImageProcessorPil`: nine
    slices of 1,024 patches and the whole in 1,152, padded to that."""
    found = largest_item(tower(name, "vision_config", patch_size=14), args(context))
    assert found is not None
    assert (found.tokens, found.patches) == (tokens, frames * 10 * 1152)


@pytest.mark.parametrize(
    ("name", "text", "numbers"),
    [
        ("GraniteSpeechForConditionalGeneration", 1024, 26669),  # GraniteSpeechCTCEncoder on 25,000 frames
        ("FireRedASR2ForConditionalGeneration", 1024, 101978),  # get_encoder_outputs on four sounds of 30 s
        ("FunASRForConditionalGeneration", 1024, 20659),  # SenseVoiceEncoderSmall on four times 1,000 frames
        ("MiniCPMV", 4096, 26258),  # Resampler4_5 on 16 frames of 1,024 patches
        ("MolmoForCausalLM", 1024, 34379),  # image_vit on 13 crops: it returns the states of all 23 layers
        ("Molmo2ForConditionalGeneration", 1024, 40300),  # image_vit on 9 crops: of 25
        ("Ovis", 1024, 50762),  # the head, `tokenize` and the words' embeddings, for 10 x 256 tokens
        ("Ovis2_5", 1024, 83655),  # the same, chances in float32, for 3,136 tokens
        ("VibeVoiceAsrForConditionalGeneration", 1024, 385),  # get_audio_features on two sounds of 30 s
    ],
)
def test_what_a_patch_holds_beside_plain_layers(name: str, text: int, numbers: int) -> None:
    """Scores, kept states, convolutions, resamplers, heads: within a tenth of what vLLM's own modules allocate."""
    vision, asked = tower(name, text=text), args()
    found = largest_item(vision, asked)
    known = tower_bytes(vision, asked)
    assert found is not None
    assert known is not None
    frames = num_items(found, asked) * found.patches
    assert known / 2 / frames == pytest.approx(numbers, rel=0.1)


def test_convolutions_of_qwen_3_are_run_500_seconds_at_a_time() -> None:
    """`conv2d1` of 128 pitches and 100 times: 236,308 numbers for each of 13 frames, whatever the number of sounds."""
    vision = tower("Qwen3ASRForConditionalGeneration")
    few, many = (tower_bytes(vision, args(batch=batch)) for batch in (1024, 32768))
    assert few == pytest.approx(2 * (2 * 390) * 236308, rel=0.001)
    kept = 2048 * (84 * 390 - 500 * 13)  # pitches of the sounds that wait
    assert many == pytest.approx(2 * (500 * 13 * 236308 + kept), rel=0.001)


@pytest.mark.parametrize(
    ("name", "frames", "numbers"),
    [
        (
            "NemotronH_Nano_Omni_Reasoning_V3",
            20 * 376,
            131832,
        ),  # ParakeetEncoder on 1 and 6 clips of 3,001 frames
        ("Phi4MMForCausalLM", 188, 328320),  # NemoConvSubsampling on 1,504 frames
        ("Dots3NoteForCausalLM", 750, 247808),  # DotsSpeechEncoder._forward_conv2d_stem on 1 and 2 minutes
    ],
)
def test_first_convolutions_are_what_ears_hold(name: str, frames: int, numbers: int) -> None:
    """Numbers a frame behind them, of a sound that is run where nothing may be seen."""
    vision = tower(name)
    asked = args(batch=256, limit_mm_per_prompt='{"image": 0, "video": 0}')  # one sound
    found, known = largest_item(vision, asked), tower_bytes(vision, asked)
    assert found is not None
    assert known is not None
    assert (found.kind, found.patches) == ("audio", frames)
    assert known / 2 / frames == pytest.approx(numbers, rel=0.01)


def test_ultravox_runs_sixteen_windows_at_a_time() -> None:
    """A second sound adds its pitches alone: 16 windows of 1,500 pairs of frames of 128 each."""
    vision = tower("UltravoxModel")
    two, one = tower_bytes(vision, args(batch=8192)), tower_bytes(vision, args(batch=3072))
    assert one is not None
    assert two == one + 2 * 16 * 1500 * 2 * 128


def test_voxtral_realtime_runs_its_layers_on_every_token_of_the_batch() -> None:
    vision = tower("VoxtralRealtimeGeneration")
    small, large = (tower_bytes(vision, args(batch=batch)) for batch in (2048, 8192))
    assert small is not None
    assert large == 4 * small


def test_sound_is_never_run_more_often_than_prompts_hold_it() -> None:
    """FunASR's sounds are 63 tokens: 130 fill a batch of 8,192, but a prompt holds one, so no more than prompts run."""
    vision = tower("FunASRForConditionalGeneration")
    few, many = (tower_bytes(vision, args(max_num_seqs=seqs)) for seqs in (13, 256))
    assert few is not None
    assert many is not None
    assert many == pytest.approx(10 * few, rel=1e-6)
    assert embedded_bytes(vision, args(max_num_seqs=13), 1024) < embedded_bytes(vision, args(), 1024)


def test_without_ears_inkling_profiles_a_small_picture() -> None:
    """160 pixels doubled: 8 x 9 patches of 40 (`InklingImageProcessor.preprocess`)."""
    found = largest_item(tower("InklingForConditionalGeneration", audio_config={}), args())
    assert found is not None
    assert (found.tokens, found.patches, found.pixels) == (72, 72, 2 * 40 * 40 * 3)


def test_what_every_rank_holds_whole_is_not_cut() -> None:
    """transformers' own encoder; MLPs of Muse Glimmer's tower, which are its widest."""
    for name in ("Qwen2AudioForConditionalGeneration", "MuseGlimmerForConditionalGeneration"):
        vision = tower(name)
        assert tower_bytes(vision, args()) == tower_bytes(vision, args(tensor_parallel_size=4))


@pytest.mark.parametrize(
    ("name", "gpu", "engine", "flags", "kv_gib"),
    [
        # QwenLM/Qwen3-ASR issue 54 (github.com): 21 sounds profiled; 48 GB, a card that its reporter later calls L20
        ("Qwen/Qwen3-ASR-1.7B", "l20", "vllm@0.14", (65536, 8192, 0.8), 28.0),
        # AetharaAI/AetherVoice-X (github.com), `l4-360-us-west-or-1`: max_num_batched_tokens 2,048, eager
        ("mistralai/Voxtral-Mini-4B-Realtime-2602", "l4", "vllm@0.17", (8192, 2048, 0.85), 9.58),
    ],
)
def test_pools_of_start_up_logs_lie_inside_the_range(
    name: str, gpu: str, engine: str, flags: tuple[int, int, float], kv_gib: float
) -> None:
    """Of models that hear. Qwen3-ASR's lay outside it when its convolutions were not counted: 29.89 to 30.35."""
    context, batch, share = flags
    asked = EngineArgs(
        max_model_len=context,
        max_num_batched_tokens=batch,
        gpu_memory_utilization=share,
        enforce_eager=gpu == "l4",
    )
    pool = estimate(name, gpu, asked, engine=engine).budget.kv.size
    assert pool.low <= (kv_gib + 0.005) * GiB
    assert (kv_gib - 0.005) * GiB <= pool.high
