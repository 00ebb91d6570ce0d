"""Hybrids, where some layers keep a state of fixed size: Qwen3-Next, Kimi-Linear, Nemotron-H ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvplan.ground.units import cdiv
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
from kvplan.models.families.decoders import Experts, layers_with_experts, routed
from kvplan.models.families.moe import deepseek_mlps, mla, sparse_layers
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, MtpSpec, StateSpec, Weight


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
    scales = (Weight("layer_scales", 2 * k.count("hidden_size")),) if k.flag("layer_scale") else ()
    layers = stack(k, [made[t] for t in types], mlps, extras=scales)
    drafted = LayerSpec(made["full_attention"], mlps[-1], norm_size=layers[-1].norm_size, extras=scales)
    drafting = mtp(k, drafted, "mtp_num_hidden_layers", "num_nextn_predict_layers", default=1)
    return Body(layers, drafting, MtpSpec(one_projection=True, numbered_anew=True))


def intern_s2_mobius(k: Keys) -> Body:
    """Intern-S2-Mobius: Qwen3.5's layers, whose routed experts are those of `num_blocks` banks, taken in turn.

    Layers that draft have experts of their own, `mtp_num_experts`. Source: vLLM 0.32 `models/interns2_mobius.py`.
    """
    banks, body = k.count("num_blocks", high=num_layers(k)), qwen3_next(k)
    layers = [
        replace(layer, mlp=replace(layer.mlp, experts_elsewhere=i >= banks))
        for i, layer in enumerate(body.layers)
    ]
    drafted = {
        "num_experts": k.raw.get("mtp_num_experts"),
        "num_experts_per_tok": k.raw.get("mtp_num_experts_per_tok"),
    }
    mlp = _qwen_shared(Keys(k.name, {**k.raw, **{key: n for key, n in drafted.items() if n is not None}}))
    drafting = tuple(replace(layer, mlp=mlp) for layer in body.mtp_layers)
    return body._replace(layers=tuple(layers), mtp_layers=drafting, mtp=replace(body.mtp, short_rotary=True))


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
    facts = {
        "num_heads": linear.count("num_heads"),
        "head_dim": linear.count("head_dim"),
        "conv_kernel_size": linear.count("short_conv_kernel_size", default=4, low=2, high=64),
    }
    if linear.flag("use_full_rank_gate"):
        facts |= {"whole_output_gate": 1, "checkpoints": 1}
    kda = state("kda", "auto", **facts)
    latent, hidden = mla(k), k.count("hidden_size")
    attentions = [kda if i + 1 in kda_layers else latent for i in range(n)]
    mlps, mixes = _kimi_mlps(k, n), "attn_res_block_size" in k  # of what earlier blocks gave
    mixing = (Weight("attn_res", 4 * hidden),) if mixes else ()
    layers = tuple(
        replace(layer, extras=(*mixing, *_kimi_k3_weights(k, layer))) for layer in stack(k, attentions, mlps)
    )
    drafting = stack(k, [latent], mlps[-1:])[0]
    drafting = replace(drafting, extras=_kimi_k3_weights(k, drafting))  # it mixes no earlier blocks
    around = (Weight("output_attn_res", 2 * hidden),) if mixes else ()
    return Body(layers, mtp(k, drafting), extras=around)


def glm5_next(k: Keys) -> Body:
    """GLM-5.3-Flash: KDA with a latent attention without positions in every fourth layer, whose indexer pools its keys.

    Four streams of hidden states are mixed before and after both parts of a layer.
    """
    n, hidden, streams = num_layers(k), k.count("hidden_size"), k.count("hc_mult")
    linear = k.section("linear_attn_config")
    kda = state(
        "kda",
        num_heads=linear.count("num_heads", default=k.count("linear_num_heads", default=0, low=0)),
        head_dim=linear.count("head_dim", default=k.count("linear_head_dim", default=0, low=0)),
        conv_kernel_size=linear.count("short_conv_kernel_size", default=4, low=2, high=64),
        exports=1,
    )
    pool, dim = k.count("index_kpool", high=1 << 10), k.count("index_head_dim")
    latent = mla(
        k,
        index_head_dim=dim,
        index_num_heads=k.count("index_n_heads"),
        index_topk=k.count("index_topk"),
        compress_ratio=pool,
        ring_bytes=pool * 4 * dim,
    )
    made = {
        "linear_attention": kda,
        **dict.fromkeys(("indexed_attention", "deepseek_sparse_attention"), latent),
    }
    types = k.per_layer("layer_types", n)
    if not types or set(types) - set(made):
        raise k.error("layer_types must name linear_attention or deepseek_sparse_attention for every layer")
    mixes = streams * (streams + 2)
    hyper = (
        Weight("hyper.fn", mixes, streams * hidden, copies=2, itemsize=4),
        Weight("hyper.base_and_scale", mixes + 3, copies=2, itemsize=4),
    )
    pooling = (
        Weight("self_attn.indexer.index_kpool_compress_ape", pool, dim, itemsize=4),
        Weight("self_attn.indexer.index_kpool_compress_gate", dim, hidden),
    )
    e = Experts("n_routed_experts", shared="n_shared_experts", correction=True)
    moe = routed(k, e)
    mlps = [moe if sparse else dense_mlp(k) for sparse in layers_with_experts(k, e, n)]
    layers = tuple(
        LayerSpec(made[t], m, norm_size=2 * hidden, extras=hyper if made[t] is kda else (*hyper, *pooling))
        for t, m in zip(types, mlps, strict=True)
    )
    drafting = LayerSpec(latent, mlps[-1], norm_size=2 * hidden, extras=pooling)
    return Body(layers, mtp(k, drafting))


def inkling(k: Keys) -> Body:
    """Inkling: windows but for every sixth layer, relative positions, short convolutions that keep a window of theirs.

    Keys are the checkpoint's: `intermediate_size` is an expert's. Each rank holds the whole embedding.
    """
    n, hidden = num_layers(k), k.count("hidden_size")
    local = set(k.counts("local_layer_ids"))
    layers = [
        _inkling_layer(k, hidden, i in local, i < k.count("dense_mlp_idx", default=0, low=0))
        for i in range(n)
    ]
    norm = (Weight("embed_norm", hidden),) if k.flag("use_embed_norm", True) else ()
    heads = k.section("mtp_config")
    near = set(heads.counts("local_layer_ids"))
    drafts = [
        _inkling_layer(k, hidden, i in near, dense=True)
        for i in range(heads.count("num_nextn_predict_layers", default=0, low=0, high=64))
    ]
    return Body(tuple(layers), tuple(drafts), MtpSpec(shared_norms=1, as_many_as_drafted=True), extras=norm)


def _inkling_layer(k: Keys, hidden: int, local: bool, dense: bool) -> LayerSpec:
    prefix = "swa_" if local else ""
    heads = k.count(f"{prefix}num_attention_heads", "num_attention_heads")
    kv_heads = k.count(f"{prefix}num_key_value_heads", "num_key_value_heads")
    dim, kernel = (
        k.count(f"{prefix}head_dim", "head_dim"),
        k.count("sconv_kernel_size", default=4, low=2, high=64),
    )
    window, positions = k.count("sliding_window_size"), k.count("d_rel")
    attention = AttentionSpec(
        AttentionKind.SLIDING if local else AttentionKind.FULL,
        heads,
        kv_heads,
        dim,
        v_head_dim=dim,
        window=window if local else 0,
        qk_norm="head",
        conv_window=kernel,
        conv_width=1 << (2 * dim + 2 * (hidden // kv_heads) - 1).bit_length(),
    )
    extras = [
        Weight("self_attn.r_proj", heads * positions, hidden, cut="heads", unit=positions, linear=True),
        Weight("self_attn.rel_logits_proj", positions, window if local else k.count("rel_extent")),
        Weight("self_attn.kv_sconv", kv_heads * dim, kernel, cut="rows", copies=2),
        Weight("sconv", hidden, kernel, cut="rows", copies=2),
    ]
    if dense:
        extras.append(Weight("mlp.global_scale", 1))
        return LayerSpec(
            attention, MlpSpec(k.count("dense_intermediate_size")), norm_size=2 * hidden, extras=tuple(extras)
        )
    width, shared = k.count("intermediate_size"), k.count("n_shared_experts", default=0, low=0)
    moe = experts(
        k, width, "n_routed_experts", shared_intermediate_size=shared * width, router_correction=True
    )
    sinks = cdiv(moe.num_experts + shared, 8) * 8 - moe.num_experts
    extras += [Weight("mlp.gate.sinks", sinks, hidden), Weight("mlp.gate.global_scale", 1, itemsize=4)]
    return LayerSpec(attention, moe, norm_size=2 * hidden, extras=tuple(extras))


def _kimi_mlps(k: Keys, n: int) -> list[MlpSpec]:
    """DeepSeek's experts; Kimi-K3's work in a narrower width."""
    width = k.count("routed_expert_hidden_size", default=0, low=0)
    return [replace(m, latent_size=width) if m.num_experts else m for m in deepseek_mlps(k, n)]


def _kimi_k3_weights(k: Keys, layer: LayerSpec) -> tuple[Weight, ...]:
    """What Kimi-K3's layers have besides: a norm of the experts' input, an output gate."""
    hidden, a, found = k.count("hidden_size"), layer.attention, list[Weight]()
    if layer.mlp.num_experts and k.flag("latent_moe_use_norm"):
        found.append(Weight("mlp.routed_expert_norm", k.count("routed_expert_hidden_size")))
    if a.kind is AttentionKind.MLA and k.flag("mla_use_output_gate"):
        found.append(Weight("self_attn.g_proj", a.num_heads * a.v_head_dim, hidden, cut="rows", linear=True))
    return tuple(found)


BIASES = ("use_bias", "use_conv_bias")
BAMBA_BIASES = ("mamba_proj_bias", "mamba_conv_bias")
"""Keys of the biases of a Mamba mixer's projections and of its convolution, which has one unless told."""


def _biases(k: Keys, names: tuple[str, str]) -> dict[str, int]:
    return {"proj_bias": int(k.flag(names[0])), "conv_bias": int(k.flag(names[1], True))}


def mamba2(
    k: Keys,
    heads: int,
    head_dim: int,
    intermediate: int,
    *keys: str,
    ssm_dtype: str = "auto",
    biases: tuple[str, str] = BIASES,
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
        **_biases(k, biases),
    )


def _bamba_mixer(k: Keys, intermediate: int) -> AttentionSpec:
    heads = k.count("mamba_n_heads")
    head_dim = k.raw.get("mamba_d_head")
    width = intermediate // heads if head_dim in (None, "auto") else k.count("mamba_d_head")
    if width * heads != intermediate:
        raise k.error(f"mamba_n_heads {heads} x mamba_d_head {width} is not the mixer's width {intermediate}")
    keys = ("mamba_n_groups", "mamba_d_state", "mamba_d_conv")
    return mamba2(k, heads, width, intermediate, *keys, biases=BAMBA_BIASES)


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
    types = tuple({"linear_attention": "mamba", "full_attention": "attention"}.get(t, t) for t in types)
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
    if "block_configs" in k:
        raise k.error("block_configs: layers of different sizes are not supported here")
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
    drafting, each = _nemotron_mtp(k, made)
    return Body(layers, drafting, MtpSpec(layers_each=each, one_projection=True))


def _nemotron_pattern(k: Keys) -> str:
    letters = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*"}
    letters |= {"mlp": "-", "moe": "E"}
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


def _nemotron_mtp(
    k: Keys, made: Mapping[str, tuple[AttentionSpec, MlpSpec]]
) -> tuple[tuple[LayerSpec, ...], int]:
    """All drafting layers, and how many of them one module has."""
    steps = k.count("num_nextn_predict_layers", default=0, low=0, high=64)
    if not steps:
        return (), 1
    pattern = k.text("mtp_hybrid_override_pattern", default="*E")
    if unknown := set(pattern) - set(made):
        raise k.error(f"mtp_hybrid_override_pattern: unknown layer kind {sorted(unknown)[0]!r}")
    size = k.count("hidden_size")
    return tuple(LayerSpec(*made[c], norm_size=size) for c in pattern) * steps, len(pattern)


def lfm2(k: Keys) -> Body:
    """LFM2: short convolutions with a few attention layers."""
    n = num_layers(k)
    hidden = k.count("hidden_size")
    conv = state(
        "short_conv",
        intermediate_size=k.count("conv_dim", default=hidden),
        conv_kernel=k.count("conv_L_cache"),
        biased=int(k.flag("conv_bias")),
    )
    made = {"conv": conv, "full_attention": gqa(k, qk_norm="head")}
    types = k.per_layer("layer_types", n)
    if not types or set(types) - set(made):
        raise k.error("layer_types must name conv or full_attention for every layer")
    return Body(stack(k, [made[t] for t in types], [MlpSpec(_lfm2_width(k))] * n))


def lfm2_moe(k: Keys) -> Body:
    """LFM2 MoE: LFM2 with experts from the third layer on."""
    n = num_layers(k)
    body = lfm2(Keys(k.name, {**k.raw, "block_auto_adjust_ff_dim": False}))
    e = Experts(dense="num_dense_layers", correction="use_expert_bias")
    moe, dense = routed(k, e), dense_mlp(k)
    sparse = layers_with_experts(k, e, n)
    mlps = [moe if s else dense for s in sparse]
    return Body(stack(k, [layer.attention for layer in body.layers], mlps))


def mamba1(
    k: Keys, intermediate: int, *keys: str, norms: bool, biases: tuple[str, str] = BIASES
) -> AttentionSpec:
    """A Mamba mixer; `keys` name the state's size, the convolution's width and the rank of its steps."""
    size, kernel, rank = keys
    default_rank = cdiv(k.count("hidden_size"), 16)
    spec = StateSpec(
        "mamba1",
        (
            ("intermediate_size", intermediate),
            ("state_size", k.count(size)),
            ("conv_kernel", k.count(kernel, low=2, high=64)),
            (
                "time_step_rank",
                default_rank if k.raw.get(rank) == "auto" else k.count(rank, default=default_rank),
            ),
            *_biases(k, biases).items(),
        ),
        gated_norm=norms,
    )
    return AttentionSpec(AttentionKind.STATE, state=spec)


def mamba(k: Keys) -> Body:
    """Mamba and Falcon-Mamba: states only, whose norms in Falcon's have no weights."""
    n = num_layers(k)
    width = k.count("intermediate_size", default=k.count("expand", default=2) * k.count("hidden_size"))
    mixer = mamba1(k, width, "state_size", "conv_kernel", "time_step_rank", norms=False)
    return Body(stack(k, [mixer] * n, [NO_MLP] * n, norms=1))


def mamba2_only(k: Keys) -> Body:
    """Mamba 2: states only."""
    n = num_layers(k)
    heads, dim = k.count("num_heads"), k.count("head_dim")
    mixer = mamba2(k, heads, dim, heads * dim, "n_groups", "state_size", "conv_kernel")
    return Body(stack(k, [mixer] * n, [NO_MLP] * n, norms=1))


def jamba(k: Keys) -> Body:
    """Jamba: Mamba with a few attention layers, experts in every other one."""
    n, hidden = num_layers(k), k.count("hidden_size")
    width = k.count("mamba_expand", default=2) * hidden
    mixer = mamba1(
        k, width, "mamba_d_state", "mamba_d_conv", "mamba_dt_rank", norms=True, biases=BAMBA_BIASES
    )
    attention = gqa(k)
    every, first = k.count("attn_layer_period", default=8), k.count("attn_layer_offset", default=4, low=0)
    mixers = [attention if i % every == first else mixer for i in range(n)]
    period, offset = (
        k.count("expert_layer_period", default=2),
        k.count("expert_layer_offset", default=1, low=0),
    )
    dense = dense_mlp(k)
    moe = dense
    if k.count("num_experts", default=16) > 1:
        moe = routed(k, Experts(width="intermediate_size"))
    return Body(stack(k, mixers, [moe if i % period == offset else dense for i in range(n)]))


def zamba2(k: Keys) -> Body:
    """Zamba 2: Mamba 2, and now and then an attention block whose weights several layers share."""
    hidden, heads = k.count("hidden_size"), k.count("num_attention_heads")
    types = k.texts("layers_block_type")
    if not types or set(types) - {"mamba", "linear_attention", "hybrid"}:
        raise k.error("layers_block_type must name mamba or hybrid for every layer")
    if k.flag("use_shared_attention_adapter"):
        raise k.error("use_shared_attention_adapter is not supported")
    inner = k.count("mamba_expand", default=2) * hidden
    ssm = k.count("n_mamba_heads", default=8)
    keys = ("mamba_ngroups", "mamba_d_state", "mamba_d_conv")
    mixer = mamba2(k, ssm, inner // ssm, inner, *keys, biases=("add_bias_linear", "use_conv_bias"))
    dim = k.count("attention_head_dim", default=2 * hidden // heads)
    kept = AttentionSpec(AttentionKind.FULL, heads, heads, dim, dim, weightless=True)
    plain = LayerSpec(mixer, NO_MLP, norm_size=hidden)
    blocks, seen, layers = k.count("num_mem_blocks", default=1), 0, []
    for kind in types:
        if kind != "hybrid":
            layers.append(plain)
            continue
        extras = (*_zamba_adapters(k), *(_zamba_block(k, heads * dim) if seen < blocks else ()))
        layers.append(LayerSpec(kept, NO_MLP, beside=mixer, norm_size=hidden, extras=extras))
        seen += 1
    return Body(tuple(layers))


def _zamba_block(k: Keys, wide: int) -> tuple[Weight, ...]:
    """The shared block; its attention reads the hidden state and the embedding side by side."""
    hidden, width = k.count("hidden_size"), k.count("intermediate_size")
    return (
        Weight("self_attn.qkv_proj", 3 * wide, 2 * hidden, cut="rows", linear=True),
        Weight("self_attn.o_proj", hidden, wide, cut="cols", linear=True),
        Weight("mlp.gate_up_proj", 2 * width, hidden, cut="rows", linear=True),
        Weight("mlp.down_proj", hidden, width, cut="cols", linear=True),
        Weight("shared_norms", 3 * hidden),
    )


def _zamba_adapters(k: Keys) -> tuple[Weight, ...]:
    """What each layer adds to the shared block."""
    hidden, width, rank = k.count("hidden_size"), k.count("intermediate_size"), k.count("adapter_rank")
    return (
        Weight("linear", hidden, hidden, linear=True),
        Weight("mlp.adapter.A", rank, hidden, cut="rows", linear=True),
        Weight("mlp.adapter.B", 2 * width, rank, cut="rows", linear=True),
    )


def olmo_hybrid(k: Keys) -> Body:
    """OLMo Hybrid: three gated delta nets to one full attention."""
    n = num_layers(k)
    made = {"linear_attention": gdn(k), "full_attention": gqa(k, qk_norm="whole")}
    types = k.per_layer("layer_types", n)
    if not types or set(types) - set(made):
        raise k.error("layer_types must name linear_attention or full_attention for every layer")
    return Body(stack(k, [made[t] for t in types], [dense_mlp(k)] * n))


def qwen4(k: Keys) -> Body:
    """Qwen 4: Qwen3-Next's layers between streams of hidden states that low-rank matrices mix.

    Attention picks tokens by an indexer's pooled keys, where the config has one; some layers add embeddings of n-grams.
    """
    n, streams, rank = num_layers(k), k.count("hc_count", high=64), k.count("hc_lowrank")
    hidden = k.count("hidden_size")
    types = k.per_layer("layer_types", n)
    indexer, attention = _qwen4_indexer(k, gqa(k, qk_norm="head", gated=True))
    made = {"linear_attention": gdn(k), "indexed_attention": attention}
    made["full_attention"] = made["indexed_attention"]
    if not types or set(types) - set(made):
        raise k.error("layer_types must name linear_attention or indexed_attention for every layer")
    mlps = sparse_layers(k, n, _qwen_shared(k))
    mixes = _qwen4_mixes(streams * hidden, rank, streams * streams, 2)
    plain, indexed = (
        stack(k, [made[t] for t in types], mlps, 0, extras) for extras in (mixes, mixes + indexer)
    )
    layers = [p if t == "linear_attention" else i for t, p, i in zip(types, plain, indexed, strict=True)]
    table, ngrams = _qwen4_ngrams(k, streams * hidden)
    for number in k.counts("ple_layer_ids"):
        if not 1 <= number <= n:
            raise k.error(f"ple_layer_ids must lie between 1 and {n}")
        layer = layers[number - 1]
        layers[number - 1] = replace(
            layer, beside=AttentionSpec(AttentionKind.STATE, state=ngrams), extras=(*layer.extras, table)
        )
    around = _qwen4_mixes(streams * hidden, rank, 0, 1)
    draft = stack(k, [attention], mlps[-1:], 0, (*mixes, *indexer, *around))[0]
    drafts = mtp(k, draft, "mtp_num_hidden_layers", "num_nextn_predict_layers")
    around_mtp = MtpSpec(one_projection=True, norms=1 + streams)
    return Body(tuple(layers), drafts, around_mtp, extras=around, final_norms=0, sized_for=(ngrams,))


def _qwen4_indexer(k: Keys, attention: AttentionSpec) -> tuple[tuple[Weight, ...], AttentionSpec]:
    """The indexer's weights, whole on every rank, and the attention that reads by it.

    Of every `indexer_compress_ratio` tokens it keeps one key, and once a request those not yet summed up, with three
    positions of eight bytes where images have positions of their own.
    """
    if "indexer_n_heads" not in k:
        return (), attention
    heads, kv_heads, dim = (k.count(f"indexer_{what}") for what in ("n_heads", "kv_heads", "head_dim"))
    ratio, positions = (
        k.count("indexer_compress_ratio"),
        24 * ("mrope_section" in k.section("rope_parameters")),
    )
    weights = (
        Weight(
            "self_attn.indexer.index_qk_proj", (heads + kv_heads) * dim, k.count("hidden_size"), linear=True
        ),
        Weight("self_attn.indexer.qk_norms", 2 * dim),
    )
    return weights, replace(
        attention,
        index_head_dim=dim,
        index_num_heads=heads,
        index_itemsize=2,
        index_topk=k.count("indexer_budget"),
        compress_ratio=ratio,
        ring_bytes=ratio * (2 * dim * kv_heads + positions),
    )


def _qwen4_ngrams(k: Keys, wide: int) -> tuple[Weight, StateSpec]:
    """The table of n-grams, which vLLM keeps in the host's memory, and the convolution that mixes what it looks up.

    Sizes that a config leaves out are its config class's (transformers `configuration_qwen4_exp.py`).
    """
    size = k.count("ngram_size", default=3, low=2, high=64)
    dim = k.count("ple_embed_dim", default=k.count("hidden_size"))
    heads = (size - 1) * k.count("heads_per_ngram", default=8)
    rows = heads * k.count("ngram_vocab_size_base", default=20_000_000)
    conv = k.count("ple_conv_kernel_size", default=4, low=2, high=64)
    facts = {"intermediate_size": wide, "conv_kernel": conv, "dilation": size, "embedding_dim": dim}
    return Weight("ple.ngram_embedding", rows, dim // heads, "host"), StateSpec(
        "ngram_conv", tuple(facts.items())
    )


def _qwen4_mixes(wide: int, rank: int, inject: int, copies: int) -> tuple[Weight, ...]:
    """Hyper-connections: a norm over all streams, down to a low rank and up again."""
    return (
        Weight("hyper.norm", wide, copies=copies),
        Weight("hyper.down", rank + inject, wide, copies=copies),
        Weight("hyper.up", wide, rank, copies=copies),
    )


def bailing_linear(k: Keys) -> Body:
    """Ling and Ring 2.5: linear attention with a latent attention in every group of layers."""
    n, group = num_layers(k), k.count("layer_group_size")
    linear = state(
        "linear_attention",
        num_heads=k.count("num_attention_heads"),
        head_dim=k.count("head_dim"),
        qk_norm=int(k.flag("use_qk_norm")),
    )
    latent = _bailing_latent(k)
    mixers = [latent if _is_latent(i, n, group) else linear for i in range(n)]
    mlps = _bailing_mlps(k, n)
    return Body(stack(k, mixers, mlps), mtp(k, stack(k, [latent], mlps[-1:])[0]))


def _bailing_latent(k: Keys) -> AttentionSpec:
    """Latent attention. vLLM knows it by the model type; blocks of other types are sized as if it were whole."""
    kv_heads = k.count("num_key_value_heads", default=k.count("num_attention_heads"))
    known = k.text("model_type") == "bailing_hybrid"
    return mla(k, sized_as=None if known else (kv_heads, k.count("head_dim")))


def bailing_v3(k: Keys) -> Body:
    """Ling 3: KDA with whole gates, and a latent attention, its output gated, in every group of layers."""
    n, group = num_layers(k), k.count("layer_group_size")
    if not k.flag("no_kda_lora"):
        raise k.error("no_kda_lora must be true, as the engine expects")
    kda = state(
        "kda",
        num_heads=k.count("num_attention_heads"),
        head_dim=k.count("head_dim"),
        conv_kernel_size=k.count("short_conv_kernel_size", low=2, high=64),
        whole_gates=1,
    )
    kv_heads = k.count("num_key_value_heads", default=k.count("num_attention_heads"))
    latent = _bailing_latent(k)
    grain = k.text("gated_attention_proj_granularity_type")
    width = {"head_wise": kv_heads, "element_wise": kv_heads * latent.v_head_dim}.get(grain or "", 0)
    gate = (
        (Weight("self_attn.g_proj", width, k.count("hidden_size"), cut="rows", linear=True),) if width else ()
    )
    mlps = _bailing_mlps(k, n)
    plain, gated = stack(k, [kda] * n, mlps), stack(k, [latent] * n, mlps, extras=gate)
    layers = tuple(gated[i] if _is_latent(i, n, group) else plain[i] for i in range(n))
    return Body(layers, mtp(k, gated[-1]))


def _is_latent(i: int, n: int, group: int) -> bool:
    """The last layer of each group, and all layers that fill no group."""
    return (i + 1) % group == 0 or i >= n // group * group


def _bailing_mlps(k: Keys, n: int) -> list[MlpSpec]:
    e = Experts(
        shared="num_shared_experts",
        shared_width="moe_shared_expert_intermediate_size",
        correction="moe_router_enable_expert_bias",
        itemsize=4,
    )
    moe = routed(k, e)
    return [moe if sparse else dense_mlp(k) for sparse in layers_with_experts(k, e, n)]


def _lfm2_width(k: Keys) -> int:
    width = k.count("block_ff_dim", "intermediate_size")
    if not k.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    factor, multiple = (
        k.number("block_ffn_dim_multiplier", 1.0, high=1e3),
        k.count("block_multiple_of", default=256),
    )
    return multiple * cdiv(int(factor * width), multiple)
