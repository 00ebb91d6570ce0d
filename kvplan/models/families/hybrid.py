"""Hybrids, where some layers keep a state of fixed size: Qwen3-Next, Kimi-Linear, Nemotron-H ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvplan.models.config import MAX_LAYERS, Keys
from kvplan.models.families.common import (
    NO_ATTENTION,
    NO_MLP,
    Body,
    dense_mlp,
    experts,
    gqa,
    mtp,
    num_layers,
    stack,
)
from kvplan.models.families.moe import deepseek_mlps, mla, sparse_layers
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, StateSpec
from kvplan.units import cdiv


def state(family: str, ssm_dtype: str = "auto", **facts: int) -> AttentionSpec:
    """A layer with a state of fixed size."""
    return AttentionSpec(AttentionKind.STATE, state=StateSpec(family, tuple(facts.items()), ssm_dtype))


def gdn(k: Keys) -> AttentionSpec:
    """Gated delta net (Qwen3-Next, Qwen3.5)."""
    return state(
        "gdn_attention",
        k.text("mamba_ssm_dtype", default="auto"),
        num_k_heads=k.count("linear_num_key_heads"),
        num_v_heads=k.count("linear_num_value_heads"),
        head_k_dim=k.count("linear_key_head_dim"),
        head_v_dim=k.count("linear_value_head_dim"),
        conv_kernel_size=k.count("linear_conv_kernel_dim", low=2, high=64),
    )


def qwen3_next(k: Keys) -> Body:
    """Qwen3-Next and Qwen3.5/3.6: three gated delta nets to one gated full attention."""
    n = num_layers(k)
    period = k.count("full_attention_interval", default=4)
    types = k.per_layer("layer_types", n) or tuple(
        "linear_attention" if (i + 1) % period else "full_attention" for i in range(n)
    )
    made = {"linear_attention": gdn(k), "full_attention": gqa(k, qk_norm="head", gated=True)}
    if unknown := set(types) - set(made):
        raise k.error(f"layer_types: unknown attention kind {sorted(unknown)[0]!r}")
    mlps = [dense_mlp(k)] * n if "num_experts" not in k else sparse_layers(k, n, _qwen_shared(k))
    layers = stack(k, [made[t] for t in types], mlps)
    drafted = LayerSpec(made["full_attention"], mlps[-1], norm_size=layers[-1].norm_size)
    return Body(layers, mtp(k, drafted, "mtp_num_hidden_layers", "num_nextn_predict_layers", default=1))


def _qwen_shared(k: Keys) -> MlpSpec:
    shared = k.count("shared_expert_intermediate_size", default=0, low=0)
    width = k.count("moe_intermediate_size")
    return experts(k, width, "num_experts", shared_intermediate_size=shared, shared_gate=bool(shared))


def kimi_linear(k: Keys) -> Body:
    """Kimi-Linear: three KDA layers to one latent attention."""
    n, linear = num_layers(k), k.section("linear_attn_config")
    kda_layers = set(linear.counts("kda_layers"))  # counted from 1
    if not kda_layers <= set(range(1, n + 1)):
        raise k.error(f"kda_layers names layers beyond num_hidden_layers {n}")
    kda = state(
        "kda",
        num_heads=linear.count("num_heads"),
        head_dim=linear.count("head_dim"),
        conv_kernel_size=linear.count("short_conv_kernel_size", default=4, low=2, high=64),
    )
    latent = mla(k)
    attentions = [kda if i + 1 in kda_layers else latent for i in range(n)]
    layers = stack(k, attentions, deepseek_mlps(k, n))
    return Body(layers, mtp(k, layers[-1]))


def mamba2(
    k: Keys, heads: int, head_dim: int, intermediate: int, *keys: str, ssm_dtype: str = "auto"
) -> AttentionSpec:
    """A Mamba-2 mixer; `keys` name n_groups, the state's size and the convolution's width in this config."""
    groups, size, kernel = keys
    return state(
        "mamba2",
        ssm_dtype,
        intermediate_size=intermediate,
        n_groups=k.count(groups),
        num_heads=heads,
        head_dim=head_dim,
        state_size=k.count(size),
        conv_kernel=k.count(kernel, low=2, high=64),
    )


def _bamba_mixer(k: Keys, intermediate: int) -> AttentionSpec:
    heads = k.count("mamba_n_heads")
    head_dim = k.raw.get("mamba_d_head")
    width = intermediate // heads if head_dim in (None, "auto") else k.count("mamba_d_head")
    if width * heads != intermediate:
        raise k.error(f"mamba_n_heads {heads} x mamba_d_head {width} is not the mixer's width {intermediate}")
    return mamba2(k, heads, width, intermediate, "mamba_n_groups", "mamba_d_state", "mamba_d_conv")


def falcon_h1(k: Keys) -> Body:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    n, hidden = num_layers(k), k.count("hidden_size")
    mixer = _bamba_mixer(k, k.count("mamba_d_ssm", default=k.count("mamba_expand", default=2) * hidden))
    assert mixer.state is not None
    mixer = replace(mixer, state=replace(mixer.state, gated_norm=k.flag("mamba_rms_norm")))
    attention = gqa(k, out_bias=k.flag("attention_bias"))
    layer = LayerSpec(attention, dense_mlp(k), beside=mixer, norm_size=2 * hidden)
    return Body((layer,) * n)


def granite_hybrid(k: Keys) -> Body:
    """Granite 4 hybrid: Mamba-2 layers, a few attention layers, experts and a shared MLP in each."""
    n, hidden = num_layers(k), k.count("hidden_size")
    types = k.per_layer("layer_types", n)
    mixers = {"attention": gqa(k)}
    if not types or "mamba" in types:
        mixers["mamba"] = _bamba_mixer(k, k.count("mamba_expand", default=2) * hidden)
    if unknown := set(types) - set(mixers):
        raise k.error(f"layer_types: unknown attention kind {sorted(unknown)[0]!r}")
    shared = k.count("shared_intermediate_size", default=0, low=0)
    if k.count("num_local_experts", default=0, low=0):
        mlp = experts(k, k.count("intermediate_size"), "num_local_experts", shared_intermediate_size=shared)
    else:
        mlp = MlpSpec(shared or k.count("intermediate_size"))
    return Body(stack(k, [mixers[t] for t in types or ("mamba",) * n], [mlp] * n))


def nemotron_h(k: Keys) -> Body:
    """Nemotron-H, Nano v2, Nemotron 3: one of Mamba-2 (M), attention (*), MLP (-) or experts (E) a layer."""
    pattern = k.text("hybrid_override_pattern") or _nemotron_pattern(k)
    heads, head_dim = k.count("mamba_num_heads"), k.count("mamba_head_dim")
    keys = ("n_groups", "ssm_state_size", "conv_kernel")
    dtype = k.text("mamba_ssm_cache_dtype", default="float32")  # vLLM's own default for this family
    made: dict[str, tuple[AttentionSpec, MlpSpec]] = {
        "M": (mamba2(k, heads, head_dim, heads * head_dim, *keys, ssm_dtype=dtype), NO_MLP),
        "*": (gqa(k), NO_MLP),
    }
    if "-" in pattern:
        made["-"] = NO_ATTENTION, dense_mlp(k, num_matrices=2)
    if "E" in pattern:
        made["E"] = NO_ATTENTION, _nemotron_experts(k)
    if unknown := set(pattern) - set(made):
        raise k.error(f"hybrid_override_pattern: unknown layer kind {sorted(unknown)[0]!r}")
    if "num_hidden_layers" in k and num_layers(k) != len(pattern):
        raise k.error(
            f"hybrid_override_pattern has {len(pattern)} entries for num_hidden_layers {num_layers(k)}"
        )
    layers = stack(k, [made[c][0] for c in pattern], [made[c][1] for c in pattern], norms=1)
    return Body(layers, _nemotron_mtp(k, made))


def _nemotron_pattern(k: Keys) -> str:
    letters = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}
    types = k.texts("layers_block_type")
    if not types:
        raise k.error("hybrid_override_pattern is missing")
    if unknown := set(types) - set(letters):
        raise k.error(f"layers_block_type: unknown layer kind {sorted(unknown)[0]!r}")
    if len(types) > MAX_LAYERS:
        raise k.error(f"layers_block_type has {len(types)} entries; at most {MAX_LAYERS}")
    return "".join(letters[t] for t in types)


def _nemotron_experts(k: Keys) -> MlpSpec:
    shared = k.count("moe_shared_expert_intermediate_size", default=0, low=0)
    return experts(
        k,
        k.count("moe_intermediate_size"),
        "n_routed_experts",
        num_matrices=2,
        shared_intermediate_size=shared * k.count("n_shared_experts", default=0, low=0, high=1 << 16),
        router_correction=True,
        latent_size=k.count("moe_latent_size", default=0, low=0),
    )


def _nemotron_mtp(k: Keys, made: Mapping[str, tuple[AttentionSpec, MlpSpec]]) -> tuple[LayerSpec, ...]:
    steps = k.count("num_nextn_predict_layers", default=0, low=0, high=64)
    if not steps:
        return ()
    pattern = k.text("mtp_hybrid_override_pattern", default="*E")
    if unknown := set(pattern) - set(made):
        raise k.error(f"mtp_hybrid_override_pattern: unknown layer kind {sorted(unknown)[0]!r}")
    size = k.count("hidden_size")
    return tuple(LayerSpec(*made[c], norm_size=size) for c in pattern) * steps


def lfm2(k: Keys) -> Body:
    """LFM2: short convolutions with a few attention layers."""
    n = num_layers(k)
    hidden = k.count("hidden_size")
    conv = state(
        "short_conv",
        intermediate_size=k.count("conv_dim", default=hidden),
        conv_kernel=k.count("conv_L_cache"),
    )
    made = {"conv": conv, "full_attention": gqa(k, qk_norm="head")}
    types = k.per_layer("layer_types", n)
    if not types or set(types) - set(made):
        raise k.error("layer_types must name conv or full_attention for every layer")
    return Body(stack(k, [made[t] for t in types], [MlpSpec(_lfm2_width(k))] * n))


def _lfm2_width(k: Keys) -> int:
    width = k.count("block_ff_dim", "intermediate_size")
    if not k.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    factor = k.raw.get("block_ffn_dim_multiplier", 1.0)
    if not isinstance(factor, int | float) or not 0 < factor < 1e3:
        raise k.error("block_ffn_dim_multiplier must be a number above 0")
    multiple = k.count("block_multiple_of", default=256)
    return multiple * cdiv(int(factor * width), multiple)
