"""Latent attention beside DeepSeek V3's: V4, V4.1, A.X K1, openPangu Ultra, Sarvam, HunYuan 4, LongCat, MiniCPM 3."""

from __future__ import annotations

from dataclasses import replace

from kvplan.models.config import MAX_LAYERS, Keys
from kvplan.models.families.common import Body, dense_mlp, mtp, num_layers, stack
from kvplan.models.families.decoders import Experts, layers_with_experts, routed
from kvplan.models.families.moe import deepseek, deepseek_mlps, mla
from kvplan.models.spec import AttentionKind, AttentionSpec, DsparkSpec, LayerSpec, MlpSpec, MtpSpec, Weight


def axk1(k: Keys) -> Body:
    """A.X K1: DeepSeek V3 with a norm after the MLP."""
    n = num_layers(k)
    layers = stack(k, [mla(k)] * n, deepseek_mlps(k, n), norms=3)
    return Body(layers, mtp(k, layers[-1]))


def mistral_large3(k: Keys) -> Body:
    """Mistral Large 3: DeepSeek V3's layers; an EAGLE head of its own drafts for it, whatever its config says."""
    return deepseek(k)._replace(mtp_layers=())


def mixed(k: Keys, n: int, e: Experts) -> list[MlpSpec]:
    """Dense layers first, then experts."""
    moe = routed(k, e)
    return [moe if sparse else dense_mlp(k) for sparse in layers_with_experts(k, e, n)]


def pangu_ultra(k: Keys) -> Body:
    """openPangu Ultra MoE: norms before and after both parts."""
    n = num_layers(k)
    e = Experts("n_routed_experts", shared="n_shared_experts", correction="router_enable_expert_bias")
    layers = stack(k, [mla(k)] * n, mixed(k, n, e), norms=4 if k.flag("sandwich_norm") else 2)
    return Body(layers, mtp(k, layers[-1]))


def sarvam_mla(k: Keys) -> Body:
    """Sarvam with latent attention."""
    n = num_layers(k)
    e = Experts(
        shared="num_shared_experts",
        shared_width="moe_shared_expert_intermediate_size",
        correction=k.flag("moe_router_enable_expert_bias", True),
    )
    return Body(stack(k, [mla(k)] * n, mixed(k, n, e)))


def hunyuan4(k: Keys) -> Body:
    """HunYuan 4: gated latent attention with sinks, and four streams of hidden states mixed in every layer.

    Where `layer_types` say sparse, layers have an indexer or reuse another's, as `indexer_types` say.
    """
    n, hidden, streams = num_layers(k), k.count("hidden_size"), k.count("hc_mult", default=4)
    plain = mla(k)
    wide = plain.num_heads * plain.v_head_dim
    extras = [Weight("self_attn.linear_gate", wide, hidden, cut="rows", linear=True)]
    if k.flag("learnable_sink"):
        extras.append(Weight("self_attn.sink", plain.num_heads, cut="rows", itemsize=4))
    mixes = 2 * streams
    extras += [
        Weight("hyper.fn", mixes, streams * hidden, copies=2, itemsize=4),
        Weight("hyper.base_and_scale", mixes + 2, copies=2, itemsize=4),
    ]
    around = (
        Weight("hyper_head.fn", streams, streams * hidden, itemsize=4),
        Weight("hyper_head.base_and_scale", streams + 1, itemsize=4),
    )
    e = Experts("n_routed_experts", shared="n_shared_experts", correction=True, itemsize=4)
    layers = stack(k, _hunyuan4_attentions(k, plain, n), mixed(k, n, e), extras=tuple(extras))
    drafting = replace(layers[-1], extras=tuple(extras[:-2]))  # one stream alone
    return Body(layers, mtp(k, drafting), extras=around)


def dots3_note(k: Keys) -> Body:
    """dots3-note: DeepSeek V3.2's sparse latents in some layers, wider latents within a window in the others; gates.

    Rows of all are as long as the window's. Drafting layers are windows with a dense MLP, unless `mtp_layer_types`
    says otherwise; their embedding is their own. Source: vLLM 0.32 `models/dots3_note/nvidia/model.py`, `mtp.py`,
    `config/speculative.py: hf_config_override`.
    """
    n, hidden, drafts = (
        num_layers(k),
        k.count("hidden_size"),
        k.count("num_nextn_predict_layers", default=1, low=0),
    )
    window, row = (
        k.count("sliding_window_size"),
        k.count("swa_kv_lora_rank") + k.count("swa_qk_rope_head_dim"),
    )
    narrow = Keys(k.name, {**k.raw, **{key[4:]: value for key, value in k.raw.items() if key[:4] == "swa_"}})
    made = {
        "sliding_attention": replace(mla(narrow), kind=AttentionKind.SLIDING, window=window),
        "full_attention": mla(
            k,
            latent_row=row,
            index_topk=k.count("index_topk"),
            index_head_dim=k.count("index_head_dim"),
            index_num_heads=k.count("index_n_heads"),
        ),
    }
    gated = {"sliding_attention": _note_gate(narrow), "full_attention": _note_gate(k)}
    types = (*k.per_layer("layer_types", n), *(k.texts("mtp_layer_types") or ("sliding_attention",) * drafts))
    if len(types) != n + drafts or set(types) - set(made):
        raise k.error(
            f"layer_types must name {' or '.join(made)} for every layer, mtp_layer_types for those that draft"
        )
    block = (*k.section("quantization_config").counts("weight_block_size"), 0)[0]
    moes = [replace(m, block=block) for m in deepseek_mlps(k, n)]
    plain = replace(dense_mlp(k), block=block)
    layers = [
        LayerSpec(made[kind], mlp, norm_size=2 * hidden, extras=gated[kind])
        for kind, mlp in zip(types, (*moes, *(plain,) * drafts), strict=True)
    ]
    embedding = Weight("embed_tokens", k.count("vocab_size"), hidden, cut="vocab")
    around = MtpSpec(quantised_projection=True, extras=(embedding,) if drafts else ())
    return Body(tuple(layers[:n]), tuple(layers[n:]), around)


def _note_gate(k: Keys) -> tuple[Weight, ...]:
    """The gate behind attention, by head and whole on every rank, or by element; a norm of the keys' rotated part."""
    heads, hidden = k.count("num_attention_heads"), k.count("hidden_size")
    gate = Weight("self_attn.g_proj", heads, hidden, linear=True)
    if k.text("attention_gate_type") != "headwise":
        gate = gate._replace(rows=heads * k.count("v_head_dim"), cut="rows")
    return gate, Weight("self_attn.k_rope_only_layernorm", k.count("qk_rope_head_dim"))


SPARSE_TYPES = ("deepseek_sparse_attention", "indexed_attention", "sparse_attention", "sparse")
"""Names of sparse layers among `layer_types`."""


def _hunyuan4_attentions(k: Keys, plain: AttentionSpec, n: int) -> list[AttentionSpec]:
    types = k.per_layer("layer_types", n) or ("full_attention",) * n
    if unknown := set(types) - {"full_attention", *SPARSE_TYPES}:
        raise k.error(f"layer_types: unknown attention kind {sorted(unknown)[0]!r}")
    if not set(types) & set(SPARSE_TYPES):
        return [plain] * n
    owns = k.per_layer("indexer_types", n) or ("full",) * n
    if set(owns) - {"full", "shared"}:
        raise k.error("indexer_types must name full or shared for every layer")
    reuse = replace(plain, index_topk=k.count("index_topk"))
    owner = replace(reuse, index_head_dim=k.count("index_head_dim"), index_num_heads=k.count("index_n_heads"))
    return [
        plain if kind not in SPARSE_TYPES else owner if own == "full" else reuse
        for kind, own in zip(types, owns, strict=True)
    ]


def longcat(k: Keys) -> Body:
    """LongCat Flash: two latent attentions and two dense MLPs a layer, and experts, some of which do nothing."""
    n, hidden = k.count("num_layers", "num_hidden_layers", high=MAX_LAYERS), k.count("hidden_size")
    width = k.count("ffn_hidden_size", "intermediate_size")
    number, idle = k.count("n_routed_experts"), k.count("zero_expert_num", default=0, low=0)
    moe = MlpSpec(
        k.count("expert_ffn_hidden_size", "moe_intermediate_size"),
        num_experts=number,
        experts_per_token=k.count("moe_topk", "num_experts_per_tok"),
        shared_intermediate_size=2 * width,
        router_correction=True,
        router_itemsize=4,
    )
    idle_router = (
        Weight("mlp.gate.idle", idle, hidden, itemsize=4),
        Weight("mlp.gate.idle_correction", idle, itemsize=4),
    )
    layer = LayerSpec(mla(k), moe, beside=mla(k), norm_size=4 * hidden, extras=idle_router if idle else ())
    return Body((layer,) * n, mtp(k, LayerSpec(mla(k), MlpSpec(width), norm_size=2 * hidden)))


def longcat_ngram(k: Keys) -> Body:
    """LongCat Flash Lite: embeddings of n-grams beside those of tokens."""
    hidden = k.count("hidden_size")
    tables = k.count("emb_split_num") * (k.count("emb_neighbor_num") - 1)
    rows = k.count("vocab_size") * k.count("ngram_vocab_size_ratio")
    each = hidden // tables
    extras = (
        Weight("ngram.projection", tables * each, hidden),
        Weight("ngram.embedder", _ngram_rows(rows, tables), each, cut="vocab"),
    )
    return longcat(k)._replace(extras=extras)


def _ngram_rows(rows: int, tables: int) -> int:
    """Rows of all tables: each is one row longer than the last, so that their sizes differ."""
    return sum(rows + 2 * i + 1 for i in range(tables))


def minicpm3(k: Keys) -> Body:
    """MiniCPM 3: latent projections, but keys and values of every head are kept."""
    n, hidden, latent = num_layers(k), k.count("hidden_size"), mla(k)
    heads, dim = latent.num_heads, latent.head_dim
    expanded = heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    extras = (
        Weight("self_attn.q_a_proj", latent.q_lora_rank, hidden, linear=True),
        Weight("self_attn.q_b_proj", heads * dim, latent.q_lora_rank, cut="rows", linear=True),
        Weight(
            "self_attn.kv_a_proj_with_mqa", latent.kv_lora_rank + latent.qk_rope_head_dim, hidden, linear=True
        ),
        Weight("self_attn.kv_b_proj", expanded, latent.kv_lora_rank, cut="rows", linear=True),
        Weight("self_attn.o_proj", hidden, heads * latent.v_head_dim, cut="cols", linear=True),
        Weight("self_attn.latent_norms", latent.q_lora_rank + latent.kv_lora_rank),
    )
    kept = AttentionSpec(AttentionKind.FULL, heads, heads, dim, dim, weightless=True)
    kept = replace(kept, qk_rope_head_dim=latent.qk_rope_head_dim)
    return Body(stack(k, [kept] * n, [dense_mlp(k)] * n, extras=extras))


COMPRESSED_HEADS = 64
"""DeepSeek V4's kernels take that many query heads at least, so sinks are padded to it."""


def deepseek_v4(k: Keys) -> Body:
    """DeepSeek V4: a window of latents in every layer, compressed latents behind it, hyper-connections between layers.

    Source: vLLM 0.32 `models/deepseek_v4`.
    """
    names, sees = k.texts("architectures"), k.count("vision_n_layers", default=0, low=0) > 0
    if sees and names[:1] == ("DeepseekV4ForCausalLM",):
        raise k.error("vision_n_layers: a vision tower, but architectures names the language model")
    n, hidden = num_layers(k), k.count("hidden_size")
    ratios = k.counts("compress_ratios")[:n]
    if len(ratios) != n or set(ratios) - {0, 1, 4, 128}:
        raise k.error("compress_ratios must be 0, 4 or 128 for every layer")
    hashed = k.count("num_hash_layers", default=0, low=0)
    width, vocab = k.count("moe_intermediate_size"), k.count("vocab_size")
    number, top = k.count("n_routed_experts"), k.count("num_experts_per_tok")
    shared = width * k.count("n_shared_experts", default=1, low=0, high=1 << 16)
    moe = MlpSpec(width, num_experts=number, experts_per_token=top, shared_intermediate_size=shared)
    scored = replace(moe, router_correction=True)
    made: dict[int, tuple[AttentionSpec, tuple[Weight, ...]]] = {r: _compressed(k, r) for r in set(ratios)}
    seen = (Weight("mlp.gate.bias_vl", number, itemsize=4),) if sees else ()  # the router's, for images
    layers = []
    for i, ratio in enumerate(ratios):
        attention, extras = made[ratio]
        table = (Weight("mlp.gate.tid2eid", vocab, top, itemsize=4),) if i < hashed else ()
        mlp = moe if i < hashed and not sees else scored
        layers.append(LayerSpec(attention, mlp, norm_size=2 * hidden, extras=(*extras, *table, *seen)))
    streams = k.count("hc_mult", default=4, high=64)
    around = (
        Weight("hyper_head.fn", streams, streams * hidden, itemsize=4),
        Weight("hyper_head.base_and_scale", streams + 1, itemsize=4),
    )
    window, extras = made.get(0) or _compressed(k, 0)
    extras = (*extras, *seen)
    drafting = LayerSpec(window, scored, norm_size=2 * hidden, extras=(*extras, *around))
    around_mtp = MtpSpec(quantised_projection=True)
    stages = k.count("n_mtp_layers", default=3, high=64)
    context = Weight("context_wkv_proj", stages * k.count("head_dim"), hidden, linear=True)
    dspark = _dspark(k, replace(drafting, extras=extras), stages, context, *around)
    return Body(tuple(layers), mtp(k, drafting), around_mtp, dspark, extras=around)


def _dspark(k: Keys, layer: LayerSpec, num_layers: int, *more: Weight) -> DsparkSpec | None:
    """Layers that draft a block of tokens at once, from hidden states of some of the target's layers.

    A head of low rank corrects each token by the one before it, another says how sure it is (vLLM 0.32
    `models/deepseek_v4/nvidia/dspark.py`).
    """
    targets = k.counts("dspark_target_layer_ids")
    if not targets:
        return None
    hidden, vocab, rank = k.count("hidden_size"), k.count("vocab_size"), k.count("dspark_markov_rank")
    extras = [
        Weight("main_proj", hidden, len(targets) * hidden, linear=True),
        Weight("main_and_last_norm", 2 * hidden),
        Weight("markov_head.markov_w1", vocab, rank),
        Weight("markov_head.markov_w2", k.count("draft_vocab_size", default=vocab), rank),
    ]
    if k.flag("enable_confidence_head", True):
        extras.append(Weight("confidence_head.proj", 1, hidden + rank, itemsize=4))
    around = MtpSpec(projected=False, extras=(*extras, *more))
    return DsparkSpec((layer,) * num_layers, around, k.count("dspark_block_size", default=5, high=64))


def _compressed(k: Keys, ratio: int) -> tuple[AttentionSpec, tuple[Weight, ...]]:
    """One layer's attention and its weights, hyper-connections among them."""
    heads, dim, hidden = k.count("num_attention_heads"), k.count("head_dim"), k.count("hidden_size")
    ratio = 0 if ratio == 1 else ratio
    indexed = ratio == 4
    index_dim, index_heads = k.count("index_head_dim"), k.count("index_n_heads")
    attention = AttentionSpec(
        AttentionKind.COMPRESSED,
        heads,
        1,
        dim,
        dim,
        k.count("sliding_window"),
        qk_rope_head_dim=k.count("qk_rope_head_dim"),
        q_lora_rank=k.count("q_lora_rank"),
        window_block=64,
        compress_ratio=ratio,
        index_head_dim=index_dim if indexed else 0,
        index_num_heads=index_heads if indexed else 0,
        index_topk=k.count("index_topk") if indexed else 0,
        weightless=True,
    )
    return attention, (*_v4_projections(k, heads, dim), *_v4_compressor(k, ratio), *_v4_hyper(k, hidden))


def _v4_projections(k: Keys, heads: int, dim: int) -> tuple[Weight, ...]:
    hidden, latent = k.count("hidden_size"), k.count("q_lora_rank")
    groups, out = k.count("o_groups"), k.count("o_lora_rank")
    return (
        Weight("self_attn.wqa_wkv", latent + dim, hidden, linear=True),
        Weight("self_attn.wq_b", heads * dim, latent, cut="rows", linear=True),
        Weight("self_attn.wo_a", groups * out, heads * dim // groups, cut="rows", linear=True),
        Weight("self_attn.wo_b", hidden, groups * out, cut="cols", linear=True),
        Weight("self_attn.q_and_kv_norm", latent + dim),
        Weight("self_attn.sinks", max(heads, COMPRESSED_HEADS), itemsize=4),
    )


def _v4_compressor(k: Keys, ratio: int) -> tuple[Weight, ...]:
    """What turns `ratio` latents into one; with overlapping windows, and an indexer, at a ratio of 4."""
    if not ratio:
        return ()
    hidden, dim, index = k.count("hidden_size"), k.count("head_dim"), k.count("index_head_dim")
    overlap = 2 if ratio == 4 else 1
    own = (
        Weight("self_attn.compressor.ape", ratio, overlap * dim, itemsize=4),
        Weight("self_attn.compressor.wkv_wgate", 2 * overlap * dim, hidden),
        Weight("self_attn.compressor.norm", dim),
    )
    if ratio != 4:
        return own
    index_heads = k.count("index_n_heads")
    return (
        *own,
        Weight("self_attn.indexer.wq_b", index_heads * index, k.count("q_lora_rank"), linear=True),
        Weight("self_attn.indexer.weights_proj", index_heads, hidden),
        Weight("self_attn.indexer.compressor.ape", ratio, overlap * index, itemsize=4),
        Weight("self_attn.indexer.compressor.wkv_wgate", 2 * overlap * index, hidden),
        Weight("self_attn.indexer.compressor.norm", index),
    )


def _v4_hyper(k: Keys, hidden: int) -> tuple[Weight, ...]:
    """Mixing of the streams before and after attention, and before and after the MLP."""
    streams = k.count("hc_mult", default=4, high=64)
    mixes = streams * (streams + 2)
    return (
        Weight("hyper.fn", mixes, streams * hidden, copies=2, itemsize=4),
        Weight("hyper.base_and_scale", mixes + 3, copies=2, itemsize=4),
    )


def deepseek_v41(k: Keys) -> Body:
    """DeepSeek V4.1: four layers compress latents that the layers behind them read too; tables of n-grams.

    Each layer keeps its window. Layers with an indexer pick for those up to the next; an indexer's keys stand where
    the latents do. Tables of n-grams lie in the host's memory. Source: vLLM 0.32 `models/deepseek_v41`.
    """
    n, hidden = num_layers(k), k.count("hidden_size")
    ratios, sources = k.counts("compress_ratios")[:n], k.counts("kv_source_layer_ids")
    if len(ratios) != n or set(ratios) - {0, 1, 2}:
        raise k.error("compress_ratios must be 0, 1 or 2 for every layer")
    picks, number = set(k.counts("index_source_layer_ids")), k.count("n_routed_experts")
    width = k.count("moe_intermediate_size")
    moe = MlpSpec(
        width,
        num_experts=number,
        experts_per_token=k.count("num_experts_per_tok"),
        shared_intermediate_size=width * k.count("n_shared_experts", default=1, low=0, high=1 << 16),
        router_correction=True,
    )
    every = (
        *_v4_projections(k, k.count("num_attention_heads"), k.count("head_dim")),
        *_v4_hyper(k, hidden),
        Weight("mlp.gate.bias_of_images", number, itemsize=4),
    )
    tables, drafted = _ngram_tables(k, hidden), k.count("dspark_n_routed_experts", default=number)
    drafting = LayerSpec(
        _shared_latents(k, 0, owns=False, picks=False),
        replace(moe, num_experts=drafted, experts_per_token=_drafting_experts(k)),
        norm_size=2 * hidden,
        extras=(*every[:-1], Weight("mlp.gate.bias_of_images", drafted, itemsize=4)),
    )
    stages = k.count("n_mtp_layers", "num_nextn_predict_layers", default=3, high=64)
    layers = [
        LayerSpec(
            _shared_latents(k, ratio, i in sources, i in picks),
            moe,
            norm_size=2 * hidden,
            extras=(*every, *_v41_indexer(k, ratio, i in sources, i in picks), *tables.get(i, ())),
        )
        for i, ratio in enumerate(ratios)
    ]
    return Body(tuple(layers), dspark=_dspark(k, drafting, stages))


def _drafting_experts(k: Keys) -> int:
    """Experts that a drafted token visits."""
    return k.count("dspark_num_experts_per_tok", default=k.count("num_experts_per_tok"))


def _shared_latents(k: Keys, ratio: int, owns: bool, picks: bool) -> AttentionSpec:
    dim, index = k.count("head_dim"), k.count("index_head_dim")
    return AttentionSpec(
        AttentionKind.COMPRESSED,
        k.count("num_attention_heads"),
        1,
        dim,
        dim,
        k.count("sliding_window"),
        qk_rope_head_dim=k.count("qk_rope_head_dim"),
        q_lora_rank=k.count("q_lora_rank"),
        window_block=32,
        shares_latents=True,
        compress_ratio=ratio,
        latents_elsewhere=ratio > 0 and not owns,
        index_head_dim=index if picks and ratio else 0,
        index_num_heads=k.count("index_n_heads") if picks and ratio else 0,
        index_topk=k.count("index_topk") if ratio else 0,
        weightless=True,
    )


def _v41_indexer(k: Keys, ratio: int, owns: bool, picks: bool) -> tuple[Weight, ...]:
    """Queries of an indexer; where latents are made, its keys' projection and the compressor, whose gate weighs two."""
    hidden, dim, index = k.count("hidden_size"), k.count("head_dim"), k.count("index_head_dim")
    heads, found = k.count("index_n_heads"), list[Weight]()
    if picks:
        found += [
            Weight("self_attn.indexer.wq_b", heads * index, k.count("q_lora_rank"), linear=True),
            Weight("self_attn.indexer.weights_proj", heads, hidden),
        ]
    if owns:
        found += [
            Weight("self_attn.indexer.wk", index, dim),
            Weight("self_attn.compressor.wkv_wgate", (2 if ratio > 1 else 1) * dim, hidden),
            Weight("self_attn.compressor_and_index_norm", dim + index),
        ]
    return tuple(found)


def _ngram_tables(k: Keys, hidden: int) -> dict[int, tuple[Weight, ...]]:
    """Layer -> its table of n-grams, in the host's memory, and what weighs rows of it against every stream."""
    at, rows = k.counts("engram_layer_ids"), k.counts("engram_num_embeddings")
    if len(at) != len(rows):
        raise k.error("engram_num_embeddings must have one entry for each of engram_layer_ids")
    if not at:
        return {}
    dim, streams = k.count("engram_head_dim", high=1 << 20), k.count("hc_mult", default=4, high=64)
    columns = (k.count("engram_max_ngram_size", low=2, high=64) - 1) * k.count("engram_n_heads", high=1 << 12)
    around = (
        Weight("engram.wkv", hidden * (streams + 1), columns * dim, cut="rows", linear=True),
        Weight("engram.q_and_k", 2 * streams * hidden),
    )
    return {
        i: (*around, Weight("engram.embed_tokens", n, dim, cut="host")) for i, n in zip(at, rows, strict=True)
    }
