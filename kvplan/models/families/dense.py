"""Dense decoders: Llama, Mistral, Phi, Qwen, Gemma, EXAONE, GLM-4 and their relatives."""

from __future__ import annotations

from typing import Any

from kvplan.ground.units import cdiv
from kvplan.models.config import Keys
from kvplan.models.families.common import (
    NO_ATTENTION,
    Body,
    by_layer_type,
    dense_mlp,
    every_nth_full,
    gqa,
    mtp,
    num_layers,
    stack,
    windowed,
)
from kvplan.models.spec import LayerSpec, MlpSpec


def _dense(k: Keys, norms: int = 2, sliding: bool = False, **traits: Any) -> Body:
    """Llama and its relatives. `sliding`: a bare `sliding_window` means all layers."""
    n, attention, mlp = num_layers(k), gqa(k, **traits), dense_mlp(k)
    types = k.per_layer("layer_types", n)
    if types:
        attentions = by_layer_type(k, attention, types)
    elif sliding and k.count("sliding_window", default=0, low=0):
        attentions = [windowed(k, attention)] * n
    else:
        attentions = [attention] * n
    return Body(stack(k, attentions, [mlp] * n, norms))


def llama(k: Keys) -> Body:
    """Llama 2/3, Yi, Granite 3, R1 distills of Llama."""
    return _dense(k, sliding=True, out_bias=k.flag("attention_bias"))


def mistral(k: Keys) -> Body:
    """Mistral, Nemo, Small: a bare `sliding_window` holds for all layers; null is none, left out is 4,096.

    Ministral 3's config class has none by default (transformers 5 `Ministral3Config`).
    """
    return _dense(k if k.text("model_type") == "ministral3" else with_default_window(k), sliding=True)


def phi3(k: Keys) -> Body:
    """Phi-3, Phi-4: a bare `sliding_window` holds for all layers."""
    return _dense(k, sliding=True)


def with_default_window(k: Keys) -> Keys:
    """The config with transformers' default where `sliding_window` is left out.

    4,096 in `MistralConfig` and `Exaone4Config` of transformers; null in the other families here.
    """
    return k if "sliding_window" in k.raw else Keys(k.name, {**k.raw, "sliding_window": 4096})


def uses_window(k: Keys) -> bool:
    """Qwen's switch: windows from layer `max_window_layers` on. vLLM takes all layers or none."""
    first, n = k.count("max_window_layers", default=28, low=0), num_layers(k)
    if not k.flag("use_sliding_window") or first >= n:
        return False
    if first:
        raise k.error(
            f"use_sliding_window with max_window_layers {first} of {n} mixes windows; vLLM refuses it"
        )
    return True


def qwen2(k: Keys) -> Body:
    """Qwen2, Qwen2.5, QwQ, their R1 distills and reward models."""
    return _dense(k, sliding=uses_window(k), bias=True)


def mimo(k: Keys) -> Body:
    """MiMo-7B: Qwen2 with multi-token prediction."""
    body = _dense(k, bias=True)
    return body._replace(mtp_layers=mtp(k, body.layers[-1]))


def qwen3(k: Keys) -> Body:
    """Qwen3 dense: RMS norms on Q and K."""
    return _dense(k, sliding=uses_window(k), qk_norm="head")


def jina_v5(k: Keys) -> Body:
    """Jina embeddings 5: Qwen3 without an LM head, a task's adapter merged in; the smallest is an encoder."""
    if not k.flag("is_decoder", True):
        raise k.error("is an encoder (is_decoder is false): it keeps no KV cache")
    return qwen3(k)


def gemma(k: Keys) -> Body:
    """Gemma 1."""
    return _dense(k)


def gemma2(k: Keys) -> Body:
    """Gemma 2: windows on every other layer, four norms a layer."""
    return _gemma(k, period=2, qk_norm="")


def gemma3(k: Keys) -> Body:
    """Gemma 3: five windows to one full layer, norms on Q and K."""
    return _gemma(k, period=k.count("sliding_window_pattern", default=6), qk_norm="head")


def _gemma(k: Keys, period: int, **traits: Any) -> Body:
    n = num_layers(k)
    types = k.per_layer("layer_types", n) or every_nth_full(n, period)
    return Body(stack(k, by_layer_type(k, gqa(k, **traits), types), [dense_mlp(k)] * n, norms=4))


def exaone4(k: Keys) -> Body:
    """EXAONE 4: a letter pattern such as LLLG, or all full where `sliding_window` is null."""
    k = with_default_window(k)
    n, attention = num_layers(k), gqa(k, qk_norm="head")
    types = k.per_layer("layer_types", n)
    if not types:
        types = _exaone_types(k, n)
    return Body(stack(k, by_layer_type(k, attention, types), [dense_mlp(k)] * n))


def _exaone_types(k: Keys, n: int) -> tuple[str, ...]:
    if "sliding_window" not in k:
        return ("full_attention",) * n
    pattern = k.raw.get("sliding_window_pattern", 4)
    period = len(pattern) if isinstance(pattern, str) else k.count("sliding_window_pattern", default=4)
    if not period:
        raise k.error("sliding_window_pattern is empty")
    return (*every_nth_full(n - 1, period), "full_attention")


def glm4(k: Keys) -> Body:
    """GLM-4 and GLM-Z1 (0414): four norms a layer; GLM-OCR's drafting layer is one of them."""
    body = _dense(k, norms=4)
    return body._replace(mtp_layers=mtp(k, body.layers[-1]))


def nemotron_nas(k: Keys) -> Body:
    """Llama-Nemotron (Super, Ultra): a searched Llama whose layers differ; some lack attention or MLP."""
    blocks = k.raw.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != num_layers(k):
        raise k.error("block_configs must describe each of num_hidden_layers layers")
    made: dict[tuple[int, int], LayerSpec] = {}
    layers = []
    for block in blocks:
        shape = _nas_shape(Keys(k.name, {"block": block}).section("block"), k)
        layers.append(made.setdefault(shape, _nas_layer(k, *shape)))
    return Body(tuple(layers))


def _nas_shape(block: Keys, k: Keys) -> tuple[int, int]:
    """KV heads and MLP width of one block; 0 where it has none."""
    attention, ffn = block.section("attention"), block.section("ffn")
    if attention.flag("replace_with_linear") or ffn.flag("replace_with_linear"):
        raise k.error("block_configs: replace_with_linear is not supported")
    if "window_length" in attention:
        raise k.error("block_configs: window_length is not supported")
    heads, kv_heads, width = k.count("num_attention_heads"), 0, 0
    if not attention.flag("no_op"):
        kv_heads = heads // attention.count("n_heads_in_group", high=heads)
    if not ffn.flag("no_op"):
        width = cdiv(int(2 * ffn.number("ffn_mult", high=1024) * k.count("hidden_size") / 3), 256) * 256
    return kv_heads, width


def _nas_layer(k: Keys, kv_heads: int, width: int) -> LayerSpec:
    norms = bool(kv_heads) + bool(width)
    attention = gqa(Keys(k.name, {**k.raw, "num_key_value_heads": kv_heads})) if kv_heads else NO_ATTENTION
    return LayerSpec(attention, MlpSpec(width), norm_size=norms * k.count("hidden_size"))
