"""Decoders of an unusual build: Step 3, Falcon, HRM, looped and value-routed attention, openPangu Pro, Gemma 3n.

Weights that no other family has are the layer's `extras`.
"""

from __future__ import annotations

from dataclasses import replace

from kvplan.models.config import Keys
from kvplan.models.families.common import (
    NO_MLP,
    Body,
    by_layer_type,
    dense_mlp,
    gqa,
    mtp,
    num_layers,
    share_kv,
    stack,
)
from kvplan.models.families.decoders import Experts, routed
from kvplan.models.families.latent import mixed
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, MtpSpec, Weight


def falcon(k: Keys) -> Body:
    """Falcon: one or few KV heads, attention and MLP side by side."""
    k = _renamed(k, num_attention_heads="n_head", num_hidden_layers="n_layer")
    n, heads, bias = num_layers(k), k.count("num_attention_heads"), k.flag("bias")
    new = k.flag("new_decoder_architecture")
    one = k.flag("multi_query", True) and not new
    kv_heads = 1 if one else k.count("n_head_kv", "num_kv_heads", default=heads)
    attention = gqa(Keys(k.name, {**k.raw, "num_key_value_heads": kv_heads}), bias=bias, out_bias=bias)
    width = k.count("ffn_hidden_size", default=4 * k.count("hidden_size"))
    parallel = k.flag("parallel_attn", True)
    norms = k.count("num_ln_in_parallel_attn", default=2 if new else 1) if parallel else 2
    layers = stack(k, [attention] * n, [MlpSpec(width, 2, bias=bias)] * n, 2 * norms)
    return Body(layers, final_norms=2)


def _renamed(k: Keys, **names: str) -> Keys:
    """The config with usual keys filled in from a family's own names."""
    return Keys(k.name, {**k.raw, **{usual: k.raw[old] for usual, old in names.items() if old in k}})


def _sparse_from(k: Keys, n: int) -> list[bool]:
    """Step's list of layers with experts: "4,5,6"; all but the first where it is missing."""
    listed = k.text("moe_layers_enum")
    if not listed:
        return [i > 0 for i in range(n)]
    parts = listed.strip().split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise k.error("moe_layers_enum must be layer numbers with commas between")
    return [i in {int(part) for part in parts} for i in range(n)]


def step3(k: Keys) -> Body:
    """Step 3: queries from a shared narrow projection, one KV head."""
    k = _renamed(k, num_key_value_heads="num_attention_groups")
    n, hidden, dim = num_layers(k), k.count("hidden_size"), k.count("head_dim")
    narrow, heads = k.count("share_q_dim"), k.count("num_attention_heads")
    kept = AttentionSpec(AttentionKind.FULL, heads, 1, dim, dim, weightless=True)
    extras = (
        Weight("self_attn.qkv_proj", narrow + 2 * dim, hidden, linear=True),
        Weight("self_attn.inter_norm", narrow),
        Weight("self_attn.wq", heads * dim, narrow, cut="rows", linear=True),
        Weight("self_attn.o_proj", hidden, heads * dim, cut="cols", linear=True),
    )
    return Body(stack(k, [kept] * n, _step_mlps(k, n, correction=False, itemsize=0), extras=extras))


def _step_mlps(k: Keys, n: int, correction: bool, itemsize: int) -> list[MlpSpec]:
    e = Experts("moe_num_experts", "moe_top_k", shared_width="share_expert_dim", correction=correction)
    moe = replace(routed(k, e), router_itemsize=itemsize)
    return [moe if sparse else dense_mlp(k) for sparse in _sparse_from(k, n)]


def step3p5(k: Keys) -> Body:
    """Step 3.5 and 3.7: windows with heads of their own, a gate per head."""
    k = _renamed(k, num_key_value_heads="num_attention_groups")
    n, hidden = num_layers(k), k.count("hidden_size")
    full = gqa(k, qk_norm="head")
    other = k.section("attention_other_setting")
    drafts = len(mtp(k, LayerSpec(full, NO_MLP)))
    types = k.texts("layer_types")[: n + drafts]  # drafting layers stand behind the model's own
    if len(types) < n or set(types) - {"full_attention", "sliding_attention"}:
        raise k.error("layer_types must name full_attention or sliding_attention for every layer")
    types += (types[-1],) * (n + drafts - len(types))
    local = replace(
        full,
        kind=AttentionKind.SLIDING,
        window=k.count("sliding_window"),
        num_heads=other.count("num_attention_heads", default=full.num_heads),
        num_kv_heads=other.count("num_attention_groups", default=full.num_kv_heads),
    )
    mlps = _step_mlps(k, n + drafts, correction=True, itemsize=4)
    layers = []
    for kind, mlp in zip(types, mlps, strict=True):
        attention = full if kind == "full_attention" else local
        gate = Weight("self_attn.g_proj", attention.num_heads, hidden, cut="rows", linear=True)
        extras = (gate,) if k.flag("use_head_wise_attn_gate") else ()
        layers.append(LayerSpec(attention, mlp, norm_size=2 * hidden, extras=extras))
    return Body(tuple(layers[:n]), tuple(layers[n:]), MtpSpec(own_heads=True))


def ernie_vl(k: Keys) -> Body:
    """ERNIE 4.5 VL: in its sparse layers experts of text and as many narrower ones of images, each with a router."""
    n, hidden, attention = num_layers(k), k.count("hidden_size"), gqa(k, bias=k.flag("use_bias"))
    numbers, widths = k.counts("moe_num_experts"), k.counts("moe_intermediate_size")
    if len(widths) != 2 or len(numbers) != 2 or numbers[0] != numbers[1] or 0 in (*numbers, *widths):
        raise k.error("moe_num_experts and moe_intermediate_size must be two numbers, of text and of images")
    text = Keys(k.name, {**k.raw, "moe_num_experts": numbers[0], "moe_intermediate_size": widths[0]})
    e = Experts("moe_num_experts", "moe_k", shared="moe_num_shared_experts", correction=True, itemsize=4)
    images = (
        Weight("mlp.vision_experts_gate", numbers[1], hidden, itemsize=4),
        Weight("mlp.vision_correction_bias", numbers[1], itemsize=4),
        Weight(
            "mlp.experts.vision.gate_up_proj", 2 * widths[1], hidden, "rows", copies=numbers[1], linear=True
        ),
        Weight("mlp.experts.vision.down_proj", hidden, widths[1], "cols", copies=numbers[1], linear=True),
    )
    sparse = LayerSpec(attention, routed(text, e), norm_size=2 * hidden, extras=images)
    dense = LayerSpec(attention, dense_mlp(k), norm_size=2 * hidden)
    every = k.count("moe_layer_interval", default=1)
    first, last = _expert_span(k, n)
    has = [first <= i <= last and (i + 1) % every == 0 for i in range(n)]
    return Body(tuple(sparse if h else dense for h in has))


def _expert_span(k: Keys, n: int) -> tuple[int, int]:
    """First and last layer with experts, which must be those of images too."""
    starts, ends = k.counts("moe_layer_start_index"), k.counts("moe_layer_end_index") or (n - 1,)
    if not starts or len(set(starts)) > 1 or len({min(end, n - 1) for end in ends}) > 1:
        raise k.error("layers with experts of text and of images must be the same")
    return starts[0], min(ends[0], n - 1)


def hrm_text(k: Keys) -> Body:
    """HRM: two stacks of layers, run in cycles; each pass keeps KV of its own."""
    each, high, low = (k.count(key, high=256) for key in ("num_layers_per_stack", "H_cycles", "L_cycles"))
    attention = gqa(k, gated=True)
    own = LayerSpec(attention, dense_mlp(k))
    again = LayerSpec(replace(attention, weightless=True), NO_MLP)
    passes = each * high * (low + 1)
    extras = (Weight("z_L_init", k.count("hidden_size")),)
    return Body((own,) * (2 * each) + (again,) * (passes - 2 * each), extras=extras, final_norms=0)


def iquest_loop(k: Keys) -> Body:
    """IQuest Loop Coder: layers run twice, the second time over a window beside the first pass's KV."""
    n = num_layers(k)
    full = gqa(k)
    again = replace(
        full,
        kind=AttentionKind.SLIDING,
        window=k.count("loop_window_size", default=64),
        weightless=True,
    )
    gate = Weight("gate_projections", full.num_heads, full.head_dim, cut="rows", bias=True)
    layer = LayerSpec(full, dense_mlp(k), beside=again, norm_size=2 * k.count("hidden_size"), extras=(gate,))
    return Body((layer,) * n)


def k2_horizon(k: Keys) -> Body:
    """K2 Horizon: where there are experts, several value projections too, of which a router picks; gated output."""
    n, hidden = num_layers(k), k.count("hidden_size")
    full = gqa(k)
    queries, keys = full.num_heads * full.head_dim, full.num_kv_heads * full.head_dim
    choices = k.count("mova_num_experts", default=0, low=0, high=1 << 10)
    picks = k.count("mova_num_experts_per_tok", default=0, low=0)
    num_experts = k.count("num_experts", default=0, low=0)
    gated: tuple[Weight, ...] = ()
    if k.raw.get("attention_gate_func") is not None:
        gated += (Weight("self_attn.gate_proj", queries, hidden, cut="rows", linear=True),)
    if k.flag("query_key_norm"):
        gated += (
            Weight("self_attn.q_norm", queries, cut="rows"),
            Weight("self_attn.k_norm", keys, cut="heads", unit=full.head_dim),
        )
    bias = k.flag("moe_gate_bias")
    routing = (Weight("mlp.gate_bias", num_experts, itemsize=4),) if num_experts and bias else ()
    values = (
        Weight("self_attn.q_proj", queries, hidden, cut="rows", linear=True),
        Weight("self_attn.k_proj", keys, hidden, cut="heads", unit=full.head_dim, linear=True),
        Weight("self_attn.v_router", max(choices, 1), hidden),
        *((Weight("self_attn.v_router_bias", max(choices, 1), itemsize=4),) if bias else ()),
        Weight(
            "self_attn.v_experts",
            keys,
            hidden,
            "heads",
            unit=full.head_dim,
            copies=max(choices, 1),
            linear=True,
            picked=min(picks, choices),
        ),
        Weight("self_attn.o_proj", hidden, queries, cut="cols", linear=True),
    )
    step, plain = k.count("decoder_sparse_step", default=1), set(k.counts("mlp_only_layers"))
    sparse = [num_experts > 0 and i not in plain and (i + 1) % step == 0 for i in range(n)]
    dense = stack(k, [full] * n, [dense_mlp(k)] * n, extras=gated)
    if not any(sparse):
        return Body(dense)
    moe = routed(k, Experts(shared="num_shared_experts", dense="first_k_dense_replace"))
    one, extras = (replace(full, weightless=True), values) if choices else (full, ())
    routers = stack(k, [one] * n, [moe] * n, extras=(*extras, *gated, *routing))
    return Body(tuple(routers[i] if s else dense[i] for i, s in enumerate(sparse)))


def pangu_pro_v2(k: Keys) -> Body:
    """openPangu Pro MoE v2: learned sinks in front of every context, norms of keys only."""
    n = num_layers(k)
    full = gqa(k, bias=k.flag("qkv_bias"))
    if k.count("v_channels", default=full.head_dim) != full.head_dim:
        raise k.error("v_channels other than head_dim is not supported")
    sinks = k.count("param_sink_number", default=0, low=0)
    wide = full.num_kv_heads * full.head_dim
    extras = [Weight("self_attn.k_layernorm", full.head_dim)]
    if sinks:
        sides = 2 if k.flag("param_sink_with_value") else 1
        extras.append(Weight("self_attn.param_sink", wide, sinks * sides, cut="rows"))
    e = Experts("n_routed_experts", shared="n_shared_experts", correction="router_enable_expert_bias")
    norms = 4 if k.flag("sandwich_norm") else 2
    layers = stack(k, [full] * n, mixed(k, n, e), norms, tuple(extras))
    return Body(layers, mtp(k, layers[-1]))


def gemma3n(k: Keys) -> Body:
    """Gemma 3n: embeddings per layer, four streams of hidden states, low-rank side paths."""
    n, hidden = num_layers(k), k.count("hidden_size")
    types = k.per_layer("layer_types", n)
    if not types:
        raise k.error("layer_types is missing")
    side, streams, rank = (
        k.count(key, high=1 << 16)
        for key in ("hidden_size_per_layer_input", "altup_num_inputs", "laurel_rank")
    )
    extras = (
        Weight("altup.correct_output_scale", hidden, itemsize=4),
        Weight("altup.correction_coefs", streams, streams),
        Weight("altup.prediction_coefs", streams * streams, streams),
        Weight("altup.modality_router", streams, hidden),
        Weight("altup.router_norm", hidden),
        Weight("laurel.linear_left", rank, hidden, cut="rows"),
        Weight("laurel.linear_right", hidden, rank, cut="cols"),
        Weight("per_layer_input_gate", side, hidden, linear=True),
        Weight("per_layer_projection", hidden, side, linear=True),
        Weight("side_norms", 2 * hidden),
    )
    around = (
        Weight("altup_projections", hidden, hidden, cut="rows", copies=2 * (streams - 1)),
        Weight("embed_tokens_per_layer", k.count("vocab_size_per_layer_input"), n * side, cut="vocab"),
        Weight("per_layer_model_projection", n * side, hidden, cut="rows"),
        Weight("per_layer_projection_norm", side),
    )
    attentions = share_kv(k, by_layer_type(k, gqa(k, qk_norm="head"), types), types)
    widths = k.counts("intermediate_size") if isinstance(k.raw.get("intermediate_size"), list) else ()
    mlps = [MlpSpec(w) for w in widths] or [dense_mlp(k)] * n
    if len(mlps) != n:
        raise k.error(f"intermediate_size has {len(mlps)} entries for num_hidden_layers {n}")
    return Body(stack(k, attentions, mlps, norms=4, extras=extras), extras=around)
