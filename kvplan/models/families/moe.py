"""Mixtures of experts: Mixtral, Qwen, GLM, MiniMax, Granite, gpt-oss, Llama 4, MiMo, Gemma 4, DeepSeek."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvplan.models.config import Keys
from kvplan.models.families.common import (
    NO_MLP,
    Body,
    by_layer_type,
    dense_mlp,
    every_nth_full,
    experts,
    gqa,
    mtp,
    num_layers,
    share_kv,
    stack,
    windowed,
)
from kvplan.models.rope import fourier_frequencies
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, MtpSpec, Weight


def mixtral(k: Keys) -> Body:
    """Mixtral."""
    n, attention = num_layers(k), gqa(k)
    if k.count("sliding_window", default=0, low=0):
        attention = windowed(k, attention)
    return Body(
        stack(k, [attention] * n, [experts(k, k.count("intermediate_size"), "num_local_experts")] * n)
    )


def sparse_layers(k: Keys, n: int, moe: MlpSpec) -> list[MlpSpec]:
    """Qwen's rule: every `decoder_sparse_step`-th layer has experts, `mlp_only_layers` never."""
    step, dense = k.count("decoder_sparse_step", default=1), set(k.counts("mlp_only_layers"))
    is_sparse = [i not in dense and (i + 1) % step == 0 for i in range(n)]
    plain = moe if all(is_sparse) else dense_mlp(k)
    return [moe if s else plain for s in is_sparse]


def qwen2_moe(k: Keys) -> Body:
    """Qwen1.5/2 MoE: a shared expert with a gate of its own."""
    n, shared = num_layers(k), k.count("shared_expert_intermediate_size", low=0)
    moe = experts(
        k, k.count("moe_intermediate_size"), "num_experts", shared_intermediate_size=shared, shared_gate=True
    )
    return Body(stack(k, [gqa(k, bias=True)] * n, sparse_layers(k, n, moe)))


def qwen3_moe(k: Keys) -> Body:
    """Qwen3 MoE."""
    n, moe = num_layers(k), experts(k, k.count("moe_intermediate_size"), ("num_experts", "num_local_experts"))
    return Body(stack(k, [gqa(k, qk_norm="head")] * n, sparse_layers(k, n, moe)))


def intern_s1_pro(k: Keys) -> Body:
    """Qwen 3's layers with Fourier position embeddings: a square of coefficients for each head of keys, twice.

    vLLM 0.32's own class starts only where the attribute `model_config`, which it forgets, is given to it.
    """
    size = fourier_frequencies(k)
    if not size:
        raise k.error("rope_scaling without Fourier position embeddings: vLLM's class does not start")
    rows = 2 * size * k.count("num_key_value_heads")
    coefficients = Weight("rotary_emb.coefficients", rows, size, "heads", unit=2 * size)
    return qwen3_moe(k)._replace(extras=(coefficients,))


def deepseek_mlps(k: Keys, n: int) -> list[MlpSpec]:
    """DeepSeek's rule, also GLM-4.5's and Kimi's: the first layers dense, then experts plus shared ones."""
    if "n_routed_experts" not in k and "num_experts" not in k:
        return [dense_mlp(k)] * n
    width = k.count("moe_intermediate_size")
    moe = experts(
        k,
        width,
        ("n_routed_experts", "num_experts"),
        shared_intermediate_size=width
        * k.count("n_shared_experts", "num_shared_experts", default=0, low=0, high=1 << 16),
        router_correction=k.text("topk_method", default=_default_topk(k)) == "noaux_tc",
        router_itemsize=4 if k.text("model_type").startswith(("glm4_moe", "glm4v_moe")) else 0,
    )
    first, every = k.count("first_k_dense_replace", default=0, low=0), k.count("moe_layer_freq", default=1)
    return _interleave(k, [moe if i >= first and i % every == 0 else None for i in range(n)])


def _default_topk(k: Keys) -> str:
    return "greedy" if k.text("model_type") == "deepseek_v2" else "noaux_tc"


def _interleave(k: Keys, moes: list[MlpSpec | None]) -> list[MlpSpec]:
    plain = dense_mlp(k) if None in moes else NO_MLP
    return [plain if moe is None else moe for moe in moes]


def glm4_moe(k: Keys) -> Body:
    """GLM-4.5, 4.6, 4.7."""
    n = num_layers(k)
    attention = gqa(k, qk_norm="head" if k.flag("use_qk_norm") else "")
    layers = stack(k, [attention] * n, deepseek_mlps(k, n))
    return Body(layers, mtp(k, layers[-1]), MtpSpec(repeats_ends=True))


def minimax_m2(k: Keys) -> Body:
    """MiniMax M2: norms over all of Q and of K."""
    n, attention = num_layers(k), gqa(k, qk_norm="all" if k.flag("use_qk_norm") else "")
    moe = experts(
        k,
        k.count("intermediate_size"),
        "num_local_experts",
        router_correction=k.flag("use_routing_bias", True),
        router_itemsize=4,
    )
    return Body(stack(k, [attention] * n, [moe] * n))


def minimax_m3(k: Keys) -> Body:
    """MiniMax M3: from some layer on, attention reads only the blocks that an indexer picks."""
    n, hidden = num_layers(k), k.count("hidden_size")
    sparse = k.section("sparse_attention_config")
    picks, is_moe = sparse.counts("sparse_attention_freq")[:n], k.counts("moe_layer_freq")
    if len(picks) != n or len(is_moe) != n:
        raise k.error(f"sparse_attention_freq and moe_layer_freq must have num_hidden_layers = {n} entries")
    full = gqa(k, qk_norm="head" if k.flag("use_qk_norm", True) else "")
    heads, dim = sparse.count("sparse_num_index_heads"), sparse.count("sparse_index_dim")
    picked = replace(
        full,
        index_topk=sparse.count("sparse_topk_blocks") * sparse.count("sparse_block_size"),
        index_head_dim=dim,
        index_num_heads=heads,
        index_itemsize=2,
    )
    indexer = (
        Weight("self_attn.index_q_proj", heads * dim, hidden, cut="heads", unit=dim, linear=True),
        Weight("self_attn.index_k_proj", dim, hidden, linear=True),
        Weight("self_attn.index_norms", 2 * dim),
    )
    width = k.count("intermediate_size")
    moe = experts(
        k,
        width,
        "num_local_experts",
        shared_intermediate_size=k.count("shared_intermediate_size", default=width)
        * k.count("n_shared_experts", default=1, low=0, high=1 << 16),
        router_correction=k.flag("use_routing_bias", True),
        router_itemsize=4,
    )
    dense = MlpSpec(k.count("dense_intermediate_size"))
    layers = tuple(
        LayerSpec(
            picked if p else full, moe if m else dense, norm_size=2 * hidden, extras=indexer if p else ()
        )
        for p, m in zip(picks, is_moe, strict=True)
    )
    return Body(layers, mtp(k, layers[-1], "num_mtp_modules"))


def granite_moe(k: Keys) -> Body:
    """Granite 3 MoE."""
    n, shared = num_layers(k), k.count("shared_intermediate_size", default=0, low=0)
    moe = experts(k, k.count("intermediate_size"), "num_local_experts", shared_intermediate_size=shared)
    return Body(stack(k, [gqa(k)] * n, [moe] * n))


def gpt_oss(k: Keys) -> Body:
    """gpt-oss: sinks, biases everywhere, windows on even layers."""
    n, attention = num_layers(k), gqa(k, bias=True, out_bias=True, sinks=True)
    types = k.per_layer("layer_types", n) or every_nth_full(n, 2)
    moe = experts(k, k.count("intermediate_size"), ("num_local_experts", "num_experts"), bias=True)
    return Body(stack(k, by_layer_type(k, attention, types), [moe] * n))


def llama4(k: Keys) -> Body:
    """Llama 4: local chunks on three of four layers, experts on every `interleave_moe_layer_step`-th."""
    n, full = num_layers(k), gqa(k)
    chunk = k.count("attention_chunk_size", default=0, low=0)
    local = replace(full, kind=AttentionKind.CHUNKED, window=chunk) if chunk else full
    rope = k.counts("no_rope_layers") or tuple(int((i + 1) % 4 != 0) for i in range(n))
    if len(rope) != n:
        raise k.error(f"no_rope_layers has {len(rope)} entries for num_hidden_layers {n}")
    width, step = k.count("intermediate_size"), k.count("interleave_moe_layer_step", default=1, low=0)
    moe = experts(k, width, "num_local_experts", shared_intermediate_size=width)
    plain = MlpSpec(k.count("intermediate_size_mlp", "intermediate_size"))
    mlps = [moe if step and (i + 1) % step == 0 else plain for i in range(n)]
    return Body(stack(k, [local if r else full for r in rope], mlps))


def mimo_v2(k: Keys) -> Body:
    """MiMo-V2: windows with heads, dims and sinks of their own; values narrower than keys."""
    n, bias = num_layers(k), k.flag("attention_bias")
    full = gqa(k, v_head_dim=k.count("v_head_dim", "head_dim"), sinks=k.flag("add_full_attention_sink_bias"))
    head_dim = k.count("swa_head_dim")
    local = AttentionSpec(
        AttentionKind.SLIDING,
        k.count("swa_num_attention_heads"),
        k.count("swa_num_key_value_heads"),
        head_dim,
        k.count("swa_v_head_dim", default=head_dim),
        k.count("sliding_window_size", "sliding_window"),
        bias=bias,
        sinks=k.flag("add_swa_attention_sink_bias"),
    )
    is_local, is_moe = k.counts("hybrid_layer_pattern"), k.counts("moe_layer_freq")
    if len(is_local) != n or len(is_moe) != n:
        raise k.error(f"hybrid_layer_pattern and moe_layer_freq must have num_hidden_layers = {n} entries")
    correction = k.text("topk_method") == "noaux_tc"
    moe = experts(
        k,
        k.count("moe_intermediate_size"),
        "n_routed_experts",
        router_correction=correction,
        router_itemsize=4,
    )
    mlps = _interleave(k, [moe if m else None for m in is_moe])
    layers = stack(k, [local if s else full for s in is_local], mlps)
    drafted = LayerSpec(local, dense_mlp(k), norm_size=layers[-1].norm_size)
    return Body(
        layers, (drafted,), MtpSpec(numbered_anew=True, plain_outputs=True)
    )  # the first is all that vLLM builds


def gemma4(k: Keys) -> Body:
    """Gemma 4: global layers with heads of their own and keys as values; last layers may read others' KV."""
    n = num_layers(k)
    types = k.per_layer("layer_types", n) or every_nth_full(n, 6)
    local = windowed(k, gqa(k, qk_norm="head"))
    same = k.flag("attention_k_eq_v")
    dim = k.count("global_head_dim", "head_dim")
    kv_heads = k.count("num_global_key_value_heads", "num_key_value_heads") if same else local.num_kv_heads
    whole = replace(
        local,
        kind=AttentionKind.FULL,
        window=0,
        num_kv_heads=kv_heads,
        head_dim=dim,
        v_head_dim=dim,
        keys_are_values=same,
    )
    made = {"sliding_attention": local, "full_attention": whole}
    if unknown := set(types) - set(made):
        raise k.error(f"layer_types: unknown attention kind {sorted(unknown)[0]!r}")
    extras, around = _gemma4_side(k, n)
    return Body(_gemma4_layers(k, share_kv(k, [made[t] for t in types], types), extras), extras=around)


def diffusion_gemma(k: Keys) -> Body:
    """Gemma 4 with experts that fills a canvas of tokens by diffusion: its last guess comes back through an MLP.

    Source: vLLM 0.32 `models/diffusion_gemma.py`, which takes keys for values whatever the config says.
    """
    hidden = k.count("hidden_size")
    width = k.count("self_conditioning_size", "intermediate_size")
    sparse = "num_experts" in k
    body = gemma4(Keys(k.name, {**k.raw, "attention_k_eq_v": True, "enable_moe_block": sparse}))
    again = (
        Weight("self_conditioning.pre_norm", hidden),
        Weight("self_conditioning.gate_up", 2 * width, hidden),
        Weight("self_conditioning.down", hidden, width),
    )
    return body._replace(extras=(*body.extras, *again))


def gemma4_assistant(k: Keys) -> Body:
    """What drafts for a Gemma 4: small layers of queries that read the target's KV, between two projections.

    It embeds by the target's table and keeps the head of its own width; centroids choose the words that it scores.
    Source: vLLM 0.32 `models/gemma4_mtp.py`.
    """
    body, hidden = gemma4(Keys(k.name, {**k.raw, "num_kv_shared_layers": 0})), k.count("hidden_size")
    wide = k.count("backbone_hidden_size")
    layers = tuple(replace(x, attention=replace(x.attention, kv_shared_with=0)) for x in body.layers)
    around: tuple[Weight, ...] = (
        Weight("pre_projection", hidden, 2 * wide, "rows", linear=True),
        Weight("post_projection", wide, hidden, "cols", linear=True),
    )
    if k.flag("use_ordered_embeddings"):
        around += (
            Weight("masked_embedding.centroids", k.count("num_centroids", default=2048), hidden),
            Weight("masked_embedding.token_ordering", k.count("vocab_size"), itemsize=8),
        )
    return body._replace(layers=layers, extras=(*body.extras, *around))


def _gemma4_side(k: Keys, n: int) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    """The small models' embeddings per layer: what each layer has of them, and what stands beside the layers."""
    side, hidden = k.count("hidden_size_per_layer_input", default=0, low=0), k.count("hidden_size")
    if not side:
        return (), ()
    rows = k.count("vocab_size_per_layer_input", "vocab_size")
    layer = (
        Weight("per_layer_input_gate", side, hidden, linear=True),
        Weight("per_layer_projection", hidden, side, linear=True),
        Weight("post_per_layer_input_norm", hidden),
    )
    around = (
        Weight("embed_tokens_per_layer", rows, n * side, cut="vocab"),
        Weight("per_layer_model_projection", n * side, hidden, cut="rows"),
        Weight("per_layer_projection_norm", side),
    )
    return layer, around


def _gemma4_layers(
    k: Keys, attentions: list[AttentionSpec], extras: tuple[Weight, ...]
) -> tuple[LayerSpec, ...]:
    dense = dense_mlp(k)
    if not k.flag("enable_moe_block"):
        double = replace(dense, intermediate_size=2 * dense.intermediate_size)
        wide = k.flag("use_double_wide_mlp")
        mlps = [double if wide and a.kv_shared_with is not None else dense for a in attentions]
        return stack(k, attentions, mlps, 4, extras)
    width, beside = k.count("moe_intermediate_size"), dense.intermediate_size
    moe = experts(k, width, "num_experts", shared_intermediate_size=beside, router_scales=True)
    return stack(k, attentions, [moe] * len(attentions), norms=7)


# ---- latent attention


def mla(k: Keys, **traits: Any) -> AttentionSpec:
    """Multi-head latent attention from DeepSeek's keys."""
    nope, rope = k.count("qk_nope_head_dim"), k.count("qk_rope_head_dim", low=0)
    return AttentionSpec(
        AttentionKind.MLA,
        k.count("num_attention_heads"),
        1,
        nope + rope,
        k.count("v_head_dim"),
        kv_lora_rank=k.count("kv_lora_rank"),
        qk_rope_head_dim=rope,
        qk_nope_head_dim=nope,
        q_lora_rank=k.count("q_lora_rank", default=0, low=0),
        bias=k.flag("attention_bias"),
        **traits,
    )


def deepseek(k: Keys) -> Body:
    """DeepSeek V2, V3, R1 and Kimi-K2."""
    n = num_layers(k)
    if "kv_lora_rank" not in k:  # DeepSeek-OCR's language model: heads without latents
        layers = stack(k, [gqa(k)] * n, deepseek_mlps(k, n))
        return Body(layers)
    if "q_lora_rank" not in k.raw:
        raise k.error("q_lora_rank is missing (null where queries are not compressed)")
    layers = stack(k, [mla(k)] * n, deepseek_mlps(k, n))
    return Body(layers, mtp(k, layers[-1]), MtpSpec(repeats_ends=True))


def deepseek_sparse(k: Keys) -> Body:
    """DeepSeek V3.2 and GLM-5: latent attention with an indexer; some layers may reuse another's indexer."""
    n = num_layers(k)
    reuse = mla(k, index_topk=k.count("index_topk"))
    owner = replace(reuse, index_head_dim=k.count("index_head_dim"), index_num_heads=k.count("index_n_heads"))
    layers = stack(k, [owner if own else reuse for own in _indexed(k, n)], deepseek_mlps(k, n))
    drafting = LayerSpec(owner, layers[-1].mlp, norm_size=layers[-1].norm_size)
    repeats = k.text("model_type") != "glm_moe_dsa"
    return Body(layers, mtp(k, drafting), MtpSpec(repeats_ends=repeats))


def _indexed(k: Keys, n: int) -> list[bool]:
    """Which layers have an indexer of their own."""
    if pattern := k.raw.get("index_topk_pattern"):
        if not isinstance(pattern, str | list) or len(pattern) < n:
            raise k.error("index_topk_pattern must name every layer")
        return [entry != "S" for entry in pattern[:n]]
    every, offset = k.count("index_topk_freq", default=1), k.count("index_skip_topk_offset", default=2, low=0)
    return [max(i - offset + 1, 0) % every == 0 for i in range(n)]
