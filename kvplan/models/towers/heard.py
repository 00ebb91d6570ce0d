"""The longest sound that start-up profiles: frames through the tower, tokens, what convolutions and attention hold.

Numbers are 16-bit ones for each frame that the tower's layers see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvplan.models.towers.parts import TowerFacts, item, sizes


def windows(
    most: int, frames: int, *, masked: bool = False, **more: int
) -> Callable[[TowerFacts], Mapping[str, int]]:
    """`most` of Whisper's windows of 30 s, `frames` positions a token. `masked`: each position has a row of a mask."""

    def found(s: TowerFacts) -> Mapping[str, int]:
        hidden, width, _ = sizes(s.tower)
        positions = s.tower.count(
            "max_source_positions", "max_position_embeddings", default=1500, high=1 << 20
        )
        kept = {"kept": positions} if masked else {}
        mel = 2 * s.tower.count("num_mel_bins", default=80)
        tokens = most * -(-positions // frames)
        return item(hidden, width, most * positions, tokens, pixels=mel, **kept, **more)

    return found


whisper_sound = windows(1, 1)
"""vLLM 0.32 `models/whisper.py: get_supported_mm_limits, get_num_audio_tokens`."""
qwen2_sound = windows(1, 2, whole=1)
"""vLLM 0.32 `models/qwen2_audio.py: get_mm_max_tokens_per_item`; the encoder is transformers' own."""
flamingo_sound = windows(20, 2, masked=True, whole=1)
"""Ten minutes, `max_audio_len` of transformers' `AudioFlamingo3Processor`; the encoder is transformers' own."""
glm_sound = windows(21, 4)
"""655 s, `max_audio_len` of transformers' `GlmAsrProcessor`, in whole windows."""
moss_sound = windows(180, 4, within=1)
"""90 minutes (vLLM 0.32 `models/moss_transcribe_diarize.py: MAX_AUDIO_DURATION_S`)."""
voxtral_sound = windows(1, 4, fills=1)
"""As long as the context (vLLM 0.32 `models/voxtral.py: get_max_audio_array_len`), in windows of 30 s."""


def ultravox_sound(s: TowerFacts) -> Mapping[str, int]:
    """16 windows, and 16 at a time (vLLM 0.32 `models/ultravox.py: _MAX_ENCODER_BATCH_SIZE`)."""
    stack = s.outer.count("stack_factor", default=8, high=1024)
    found = windows(16, stack)(s)
    return {**found, "at_once": found["patches"], "stack": stack}


def realtime_sound(s: TowerFacts) -> Mapping[str, int]:
    """Its layers run inside the language model's pass: some frames for each token of the batch.

    Source: vLLM 0.32 `models/voxtral_realtime.py: forward`; `embed_multimodal` runs the convolutions only.
    """
    hidden, width, _ = sizes(s.tower)
    return item(
        hidden, width, s.tower.count("block_pool_size", default=4, high=1024), 1, pixels=0, gated=True
    )


def granite_sound(s: TowerFacts) -> Mapping[str, int]:
    """8,000,000 samples: 25,000 pairs of frames, and three tokens for each window of 15 of them.

    Attention runs in blocks in torch's plain form: scores in float32 beside those of relative positions, Q, K and V
    copied to float32, two of them scaled, two laid out anew. Source: vLLM 0.32 `models/granite_speech.py`.
    """
    k, pairs = s.tower, (8_000_000 // 160 + 1) // 2
    hidden, inner = k.count("hidden_dim"), k.count("num_heads") * k.count("dim_head")
    window = s.outer.count("window_size", default=15, high=1 << 16)
    tokens = -(-pairs // window) * (window // s.outer.count("downsample_rate", default=5))
    scores = 3 * k.count("num_heads") * k.count("context_size", default=200, high=1 << 16) + 14 * inner
    return item(
        hidden,
        hidden * k.count("feedforward_mult", default=4),
        pairs,
        tokens,
        pixels=k.count("input_dim"),
        whole=1,
        scores=scores,
        kept=hidden * len(k.counts("cat_hidden_layers")),
        window=window,
        window_tokens=window // s.outer.count("downsample_rate", default=5),
    )


def fire_red_sound(s: TowerFacts) -> Mapping[str, int]:
    """30 s: 750 frames behind two convolutions, joined by twos. Attention writes scores out four times, and those of
    relative positions for twice as many keys.

    Source: vLLM 0.32 `models/conformer_encoder.py`, `transformers_utils/processors/fireredasr2.py`.
    """
    hidden, frames = s.tower.count("d_model"), 750
    return item(
        hidden,
        4 * hidden,
        frames,
        frames // s.outer.count("encoder_downsample_rate", default=2, high=64),
        pixels=8 * s.tower.count("idim"),
        whole=1,
        scores=6 * s.tower.count("n_head") * frames,
    )


def cohere_asr_sound(s: TowerFacts) -> Mapping[str, int]:
    """A clip of the longest length in hundredths of a second, thinned out; scores as in `fire_red_sound`.

    The first convolution writes half as many frames and bands, before and after its ReLU. Source: vLLM 0.32
    `models/cohere_asr.py: get_num_audio_tokens, get_dummy_mm_data`.
    """
    k, factor = s.tower, s.tower.count("subsampling_factor", high=4096)
    hidden, bands = k.count("d_model"), k.count("feat_in")
    tokens = -(-100 * s.outer.count("max_audio_clip_s", default=35, high=1 << 20) // factor)
    return item(
        hidden,
        k.count("ff_expansion_factor", high=64) * hidden,
        tokens,
        tokens,
        pixels=2 * bands * factor,
        whole=1,
        scores=6 * k.count("n_heads") * tokens,
        outside=k.count("subsampling_conv_channels") * factor * bands // 2,
    )


def fun_asr_sound(s: TowerFacts) -> Mapping[str, int]:
    """30 s: 500 frames padded to 1,000, thinned out three times. Attention writes scores out four times.

    Source: vLLM 0.32 `models/funasr.py`, `transformers_utils/processors/funasr.py` (`max_length`).
    """
    k, frames, tokens = s.tower, 1000, 500
    for _ in range(3):
        tokens = (tokens + 1) // 2
    hidden, width = k.count("output_size", default=256), k.count("linear_units", default=2048)
    heads = k.count("attention_heads", default=4)
    return item(hidden, width, frames, tokens, pixels=560, whole=1, scores=4 * heads * frames)


def _thinned(s: TowerFacts, seconds: int, chunk: int, chunks_at_once: int) -> tuple[int, dict[str, int]]:
    """Frames of so many seconds behind three convolutions over time and pitch, and what the first of them holds.

    It makes `downsample_hidden_size` channels of half the times and pitches of a chunk, and their activation.
    """
    k = s.tower
    each, lead = -(-chunk // 8), 2 * k.count("downsample_hidden_size", default=480)
    made = lead * -(-k.count("num_mel_bins", default=128) // 2) * -(-chunk // 2)
    whole, rest = divmod(100 * seconds, chunk)
    return whole * each + -(-rest // 8), {"outside": made // each, "at_once": chunks_at_once * each}


def qwen3_asr_sound(s: TowerFacts) -> Mapping[str, int]:
    """30 s in chunks of a second, 500 of them convolved at a time.

    Source: vLLM 0.32 `models/qwen3_asr.py: get_dummy_mm_data`, `qwen3_omni_moe_thinker.py: Qwen3OmniMoeAudioEncoder`.
    """
    k, (hidden, width, _) = s.tower, sizes(s.tower)
    chunk = 2 * k.count("n_window", default=50, high=1 << 16)
    frames, held = _thinned(s, 30, chunk, k.count("conv_chunksize", default=500, high=1 << 16))
    return item(hidden, width, frames, frames, pixels=16 * k.count("num_mel_bins", default=128), **held)


def moss_audio_sound(s: TowerFacts) -> Mapping[str, int]:
    """Counted as 30 s, run as one second, 64 chunks at a time; layers read early are kept.

    Source: vLLM 0.32 `models/moss_audio.py: get_mm_max_tokens_per_item`, `get_dummy_mm_data`.
    """
    k, (hidden, width, _) = s.tower, sizes(s.tower)
    frames, held = _thinned(s, 1, 100, k.count("conv_chunksize", default=64, high=1 << 16))
    kept = hidden * len(k.counts("deepstack_encoder_layer_indexes"))
    mel = 16 * k.count("num_mel_bins", default=128)
    return item(hidden, width, frames, 30 * 100 // 8, pixels=mel, kept=kept, **held)


def midasheng_sound(s: TowerFacts) -> Mapping[str, int]:
    """10 s of samples in float32, four frames of a hundredth of a second a patch, five patches a token.

    Source: vLLM 0.32 `models/midashenglm.py: get_max_audio_len`.
    """
    k = s.tower
    hidden, patches = k.count("embed_dim", default=768), 1000 // 4
    width = round(k.number("mlp_ratio", 4.0, high=1000) * hidden)
    tokens = patches // s.outer.count("subsample_factor", default=5, high=64)
    return item(hidden, width, patches, tokens, pixels=2 * 160_000 // patches)


def vibevoice_sound(s: TowerFacts) -> Mapping[str, int]:
    """30 s of samples, counted as a chunk of 60 s; the first stage's blocks are the widest: no thinning out yet.

    Source: vLLM 0.32 `models/transformers/multimodal.py: get_max_audio_tokens`, `get_dummy_mm_data`; transformers'
    `VibeVoiceAsrConfig.max_position_embeddings`.
    """
    k = s.outer.section("acoustic_tokenizer_encoder_config")
    filters, wider = k.count("num_filters", default=32, high=1 << 16), k.count("ffn_expansion", default=4)
    hop = 1
    for times in k.counts("downsampling_ratios") or (2, 2, 4, 5, 5, 8):
        hop *= times
    tokens = -(
        -s.outer.count("acoustic_tokenizer_chunk_size", default=1_440_000, high=1 << 30) // max(hop, 1)
    )
    hops = {"hop": max(hop, 1)}
    return item(0, 0, 30 * 24_000, tokens, pixels=1, whole=1, outside=(2 * wider + 4) * filters + 1, **hops)


# ---- beside what is seen


def phi4mm_sound(s: TowerFacts) -> Mapping[str, int]:
    """241,000 samples, one sound at a time; the first convolution and its activation are the widest.

    Source: vLLM 0.32 `models/phi4mm.py: _AUDIO_MAX_SOUNDFILE_SIZE`, `phi4mm_utils.py: NemoConvSubsampling`.
    """
    k = s.outer.section("audio_processor").section("config")
    bands, joined = k.count("input_size"), k.count("time_reduction", default=8, high=64)
    channels = k.section("nemo_conv_settings").count("conv_channels", default=1024)
    pixels, frames = joined * bands, (241_000 - 400) // 160 + 1
    tokens = -(-frames // joined)
    return item(
        k.count("attention_dim"),
        k.count("linear_units"),
        tokens,
        tokens,
        pixels=pixels,
        whole=1,
        at_once=tokens,
        outside=channels * joined * -(-bands // 2) + pixels,
        joined=joined,
    )


def gemma3n_sound(s: TowerFacts) -> Mapping[str, int]:
    """Counted as 30 s, run as the 1,024 samples of one Fourier transform: four frames, thinned out twice.

    Source: vLLM 0.32 `models/gemma3n_mm.py: get_dummy_mm_data`, transformers' `Gemma3nAudioFeatureExtractor`.
    """
    k = s.outer.section("audio_config")
    if not k.raw:
        return {}
    hidden = k.count("hidden_size", default=1536)
    tokens, pixels = s.outer.count("audio_soft_tokens_per_image", default=188), 4 * k.count("input_feat_size")
    return item(hidden, 4 * hidden, 1, tokens, pixels=pixels, whole=1)


def gemma4_sound(s: TowerFacts) -> Mapping[str, int]:
    """Counted as 30 s, run as the 512 samples of one Fourier transform: three frames, thinned out twice.

    Source: vLLM 0.32 `models/gemma4_mm.py: get_mm_max_tokens_per_item, _dummy_audio_num_samples`; transformers'
    `Gemma4AudioFeatureExtractor`, and `audio_seq_length` of its `Gemma4Processor`.
    """
    hidden = s.outer.section("audio_config").count("hidden_size")
    return item(hidden, 4 * hidden, 1, 750, pixels=4 * 128, whole=1)


def gemma4_unified_sound(s: TowerFacts) -> Mapping[str, int]:
    """30 s, a frame of its samples a token, without a tower (vLLM 0.32 `models/gemma4_unified.py`)."""
    k = s.outer.section("audio_config")
    if not k.raw:
        return {}
    samples = k.count("audio_embed_dim", default=640)
    return item(0, 0, 750, 750, pixels=samples, whole=1, outside=2 * samples)


def qwen2_5_omni_sound(s: TowerFacts) -> Mapping[str, int]:
    """30 s; the encoder is transformers' own (vLLM 0.32 `models/qwen2_5_omni_thinker.py: get_dummy_mm_data`)."""
    k = s.tower.section("audio_config")
    hidden, width, _ = sizes(k)
    return item(hidden, width, 1500, 750, pixels=2 * k.count("num_mel_bins", default=128), whole=1)


def qwen3_omni_sound(s: TowerFacts) -> Mapping[str, int]:
    """30 s, counted as Qwen 2's ears would (vLLM 0.32 `models/qwen3_omni_moe_thinker.py: get_mm_max_tokens_per_item`,
    that of `Qwen2AudioProcessingInfo`)."""
    return {**qwen3_asr_sound(s._replace(tower=s.tower.section("audio_config"))), "tokens": 750}


def parakeet_sound(s: TowerFacts) -> Mapping[str, int]:
    """Counted as the context; ten minutes at most, in clips of 30 s, each filled up to the longest.

    The first convolution and its activation are the widest. Source: vLLM 0.32 `models/nano_nemotron_vl.py:
    get_mm_max_tokens_per_item, get_dummy_mm_data`, `models/parakeet.py: ParakeetExtractor`.
    """
    k = s.outer.section("sound_config")
    if not k.raw:
        return {}
    (hidden, width, _), bands = sizes(k), k.count("num_mel_bins")
    joined = k.count("subsampling_factor", default=8, high=4096)
    rate, hop = k.count("sampling_rate"), k.count("hop_length", default=160)
    clip, pixels = 30 * rate, joined * bands
    each = clip // hop + 1
    for _ in range(joined.bit_length() - 1):
        each = (each - 1) // 2 + 1
    most = -(-600 * rate // clip)
    return item(
        hidden,
        width,
        most * each,
        1,
        pixels=pixels,
        whole=1,
        outside=k.count("subsampling_conv_channels") * joined * -(-bands // 2) + pixels,
        samples=600 * rate,
        token_samples=joined * hop,
        clip=clip,
        hop=hop,
        joined=joined,
    )
