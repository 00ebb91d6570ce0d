"""Language models that only multimodal classes have: Molmo, Moondream 3, Cosmos 3 Edge, Compass, Voxtral Realtime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvplan.ground.units import cdiv
from kvplan.models.config import Keys
from kvplan.models.families.common import NO_MLP, Body, gqa, num_layers, stack
from kvplan.models.families.decoders import Experts, PlainDecoder
from kvplan.models.families.dense import mistral
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, Weight


def molmo(k: Keys) -> Body:
    """Molmo: the width counts gate and up together; 128 words more than the LM head scores."""
    if k.flag("weight_tying"):
        raise k.error("weight_tying: vLLM's class does not start with it")
    if k.count("embedding_size", default=k.count("vocab_size")) != k.count("vocab_size"):
        raise k.error("embedding_size and vocab_size differ")
    n, norms = num_layers(k), "whole" if k.flag("attention_layer_norm") else ""
    mlp = MlpSpec(k.count("intermediate_size") // 2)
    attention = gqa(k, bias=k.flag("qkv_bias"), qk_norm=norms)
    return Body(stack(k, [attention] * n, [mlp] * n), extras=_more_words(k, 128))


def molmo2(k: Keys) -> Body:
    """Molmo 2: norms of Q and K by Qwen 3's way or OLMo's; more words than the LM head scores."""
    kind = "head" if k.text("qk_norm_type", default="olmo") == "qwen3" else "whole"
    attention = gqa(k, bias=k.flag("qkv_bias", True), qk_norm=kind if k.flag("use_qk_norm") else "")
    n, mlp = num_layers(k), MlpSpec(k.count("intermediate_size"))
    words = k.count("additional_vocab_size", default=128, low=0)
    return Body(stack(k, [attention] * n, [mlp] * n), extras=_more_words(k, words))


def _more_words(k: Keys, rows: int) -> tuple[Weight, ...]:
    return (Weight("embed_tokens.more", rows, k.count("hidden_size"), "vocab"),) if rows else ()


def voxtral_realtime(k: Keys) -> Body:
    """Mistral with scales by the delay, and an encoder whose layers look back on a window of frames as a decoder's do.

    `block_pool_size` frames are a token, so the encoder's KV counts as so many times its heads, its window in tokens,
    one more as vLLM keeps it (`whisper_causal.py`). The encoder's weights are the tower's.
    """
    sound, body = k.section("audio_config"), mistral(k)
    pool, hidden = sound.count("block_pool_size", default=4, high=64), k.count("hidden_size")
    width = k.count("ada_rms_norm_t_cond_dim", default=32)
    scales = Weight("ada.0", width, hidden, "rows"), Weight("ada.2", hidden, width, "cols")
    heads, dim = sound.count("encoder_attention_heads") * pool, sound.count("encoder_head_dim")
    window = cdiv(sound.count("sliding_window"), pool) + 1
    frames = AttentionSpec(
        AttentionKind.SLIDING, heads, heads, dim, v_head_dim=dim, window=window, weightless=True
    )
    encoder = (LayerSpec(frames, NO_MLP),) * sound.count("encoder_layers", high=4096)
    decoder = tuple(replace(layer, extras=(*layer.extras, *scales)) for layer in body.layers)
    return body._replace(layers=(*decoder, *encoder))


def _tau(k: Keys) -> tuple[Weight, ...]:
    """Moondream 3 scales queries and values by token and position: two rows a head and a number."""
    heads, hidden = k.count("num_attention_heads"), k.count("hidden_size")
    each = hidden // heads * (heads + 2 * k.count("num_key_value_heads"))
    return (Weight("attn.tau", 2 * heads, each, "rows"), Weight("attn.tau_alpha", heads, cut="rows"))


def _router_biases(k: Keys) -> tuple[Weight, ...]:
    sparse = num_layers(k) - k.count("first_k_dense_replace", low=0)
    return (Weight("gate.bias", k.count("num_experts", high=1 << 16), copies=max(sparse, 0)),)


_MOONDREAM = PlainDecoder(
    {
        "hidden_size": "dim",
        "intermediate_size": "ff_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_context",
        "num_experts": "moe.n_experts",
        "num_experts_per_tok": "moe.n_experts_per_tok",
        "moe_intermediate_size": "moe.expert_inner_dim",
        "first_k_dense_replace": "moe.start_layer",
    },
    {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "vocab_size": 51200,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1024,
        "first_k_dense_replace": 4,
        "rotary_dim": 32,
    },
    bias=True,
    out_bias=True,
    mlp_bias=True,
    matrices=2,
    layernorm=True,
    norms=1,
    experts=Experts(),
    head_bias=True,
    extras=_tau,
    around=_router_biases,
)


def _frames_of_longest_clip(k: Keys) -> int:
    """Cohere's longest clip in the encoder's steps of eight frames of 10 ms, unless told; a shorter one makes fewer."""
    per_s = round(1 / k.section("preprocessor").number("window_stride", 0.01, above=1e-4, high=100))
    return cdiv(k.count("max_audio_clip_s") * per_s, k.section("encoder").count("subsampling_factor"))


def _tokens_of_page(k: Keys) -> int:
    """Nemotron Parse's page: four patches side by side are a token, and one more. Source: `get_num_image_tokens`."""
    sides, patch = k.counts("image_size"), k.section("encoder").count("patch_size", default=16, high=4096)
    if len(sides) != 2:
        raise k.error("image_size must be two numbers")
    return sides[0] // patch * (sides[1] // patch // 4) + 1


_BART: dict[str, Any] = {
    **dict.fromkeys(("bias", "out_bias", "mlp_bias", "layernorm"), True),
    "matrices": 2,
    "norms": 3,
    "rotary": False,
}
"""Decoders beside an encoder, as Bart's and Whisper's."""
MULTIMODAL: dict[str, PlainDecoder] = {
    "NemotronParseForConditionalGeneration": PlainDecoder(
        {
            "hidden_size": "decoder.d_model",
            "intermediate_size": "decoder.encoder_ffn_dim",  # as vLLM's `BartDecoderLayer` reads it
            "num_hidden_layers": "decoder.decoder_layers",
            "num_attention_heads": "decoder.decoder_attention_heads",
            "vocab_size": "decoder.vocab_size",
            "max_position_embeddings": "decoder.max_position_embeddings",
            "tie_word_embeddings": "decoder.tie_word_embeddings",
        },
        {"max_sequence_length": 9000},
        **_BART,
        around=lambda k: (Weight("layernorm_embedding", 2 * k.count("hidden_size")),),
        attends=_tokens_of_page,
    ),
    "WhisperForConditionalGeneration": PlainDecoder(
        {
            "hidden_size": "d_model",
            "intermediate_size": "decoder_ffn_dim",
            "num_hidden_layers": "decoder_layers",
            "num_attention_heads": "decoder_attention_heads",
            "max_position_embeddings": "max_target_positions",
        },
        **_BART,
        tied=True,
        around=lambda k: (
            Weight("embed_positions", k.count("max_position_embeddings"), k.count("hidden_size")),
        ),
        attends=lambda k: k.count("max_source_positions"),
    ),
    "CohereAsrForConditionalGeneration": PlainDecoder(
        {
            "hidden_size": "transf_decoder.config_dict.hidden_size",
            "intermediate_size": "transf_decoder.config_dict.inner_size",
            "num_hidden_layers": "transf_decoder.config_dict.num_layers",
            "num_attention_heads": "transf_decoder.config_dict.num_attention_heads",
            "max_position_embeddings": "transf_decoder.config_dict.max_sequence_length",
            "vocab_size": "head.num_classes",
        },
        **_BART,
        head_bias=True,
        around=lambda k: (Weight("embedding.layer_norm", 2 * k.count("hidden_size")),),
        attends=_frames_of_longest_clip,
    ),
    "CohereCompassForConditionalGeneration": PlainDecoder(norms=1, tied=True, rotary=False),
    "Cosmos3EdgeForConditionalGeneration": PlainDecoder(matrices=2),
    "HfMoondream": _MOONDREAM,
    "Moondream3ForCausalLM": _MOONDREAM,
}
"""Architecture -> its language model, where a row says it."""
