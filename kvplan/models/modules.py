"""Every weight of a model as a list of modules: names as in checkpoints, shapes as one rank holds them.

Follows vLLM's sharding: columns of Q, K, V, gate and up are cut, rows of O and down; latents, routers and norms are
whole on every rank. Knows no bytes per element (`quantization`, `weights` do).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from kvplan.formulas.capacity import kv_heads_per_rank
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import cdiv
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, ModelSpec, StateSpec, Weight

VOCAB_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of 64 rows."""


class Module(NamedTuple):
    """One matrix (or vector, with one column) on one rank, with the copies that experts make of it."""

    name: str
    """As in the checkpoint below the language model's root: layers.3.self_attn.q_proj, lm_head."""
    role: str
    """attention, mlp, router, expert, norm, embedding, lm_head, score, vision or mtp."""
    rows: int
    cols: int = 1
    bias: int = 0
    copies: int = 1
    itemsize: int = 0
    """Bytes per element where it is not the model's dtype (float32 states and corrections); 0: the model's."""
    linear: bool = True
    """A matrix that a quantisation method may convert."""

    @property
    def parameters(self) -> int:
        """Elements, biases and copies counted."""
        return self.copies * (self.rows * self.cols + self.bias)


class Cut(NamedTuple):
    """How one rank's share is cut out."""

    tp: int = 1
    """Tensor-parallel ranks."""
    expert_tp: int = 1
    """Ranks that split each expert."""
    ep: int = 1
    """Ranks that share out the experts, whole."""
    redundant: int = 0
    """Experts that are there twice, over all ranks."""
    q_ranks: int = 1
    """Ranks whose query heads of latent attention each of them holds."""
    table_ranks: int = 0
    """Ranks that share out tables of n-grams on their cards; 0: these lie in host memory."""
    whole: tuple[str, ...] = ()
    """MLPs that tensor parallelism does not cut: `shared` experts (and what looks n-grams up), `dense` ones."""
    checkpoint: bool = False
    """Count as the checkpoint does: vocabulary without padding, no V projection where keys are values."""

    def of(self, part: str) -> Cut:
        """How such an MLP is cut."""
        return self._replace(tp=1) if part in self.whole else self

    def split(self, size: int, what: str) -> int:
        """`size` cut evenly over the tensor-parallel ranks."""
        return even(size, self.tp, what)

    def kv_heads(self, heads: int) -> int:
        """KV heads per rank: cut, or replicated where there are more ranks than heads."""
        if self.tp <= heads or self.tp % heads:
            even(heads, self.tp, "KV heads")
        return int(kv_heads_per_rank(heads, self.tp))


def even(size: int, ranks: int, what: str) -> int:
    """`size / ranks`, or an error: vLLM refuses uneven shards."""
    if size % ranks:
        raise KvplanError(f"tensor_parallel_size: {size:,} {what} cannot be split evenly over {ranks} ranks")
    return size // ranks


def vector(name: str, size: int, itemsize: int = 0, role: str = "norm") -> Module:
    """A vector of weights, never quantised."""
    return Module(name, role, size, itemsize=itemsize, linear=False)


# ---- attention and state mixers


def mixer_modules(a: AttentionSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    """The weights of one attention or state mixer, names relative to the layer."""
    if a.kind is AttentionKind.NONE or a.weightless:
        return iter(())
    if a.is_latent:
        return _mla(a, hidden, cut)
    if a.state is not None:
        return STATE_MODULES[a.state.family](a.state, hidden, cut)
    return _gqa(a, hidden, cut)


def _gqa(a: AttentionSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    heads, kv_heads = cut.split(a.num_heads, "attention heads"), cut.kv_heads(a.num_kv_heads)
    q, k, v = heads * a.head_dim, kv_heads * a.head_dim, kv_heads * a.v_head_dim
    prefix = "encoder_attn" if a.kind is AttentionKind.CROSS else "self_attn"
    widths, hidden_in = {"q_proj": 2 * q if a.gated else q}, hidden * (2 if a.reads_embedding else 1)
    if a.kv_shared_with is None:
        widths |= {"k_proj": k} if a.keys_are_values and cut.checkpoint else {"k_proj": k, "v_proj": v}
    for name, width in widths.items():
        yield Module(f"{prefix}.{name}", "attention", width, hidden_in, bias=width if a.bias else 0)
    out_bias = hidden if a.out_bias else 0
    yield Module(f"{prefix}.o_proj", "attention", hidden, heads * a.v_head_dim, bias=out_bias)
    if a.sinks:
        yield vector("self_attn.sinks", heads)
    if a.qk_norm:
        whole = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        sizes = {"head": (a.head_dim, a.head_dim), "all": (q, k), "whole": whole}
        q_norm, k_norm = sizes[a.qk_norm]
        yield vector("self_attn.q_norm", q_norm)
        if a.kv_shared_with is None:
            yield vector("self_attn.k_norm", k_norm)


def _mla(a: AttentionSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    heads, latent = cut.split(a.num_heads, "attention heads"), a.kv_lora_rank
    if a.q_lora_rank:
        yield Module("self_attn.q_a_proj", "attention", a.q_lora_rank, hidden)
        yield vector("self_attn.q_a_layernorm", a.q_lora_rank)
        yield Module("self_attn.q_b_proj", "attention", cut.q_ranks * heads * a.head_dim, a.q_lora_rank)
    else:
        yield Module("self_attn.q_proj", "attention", cut.q_ranks * heads * a.head_dim, hidden)
    yield Module("self_attn.kv_a_proj_with_mqa", "attention", latent + a.qk_rope_head_dim, hidden)
    yield vector("self_attn.kv_a_layernorm", latent)
    yield Module("self_attn.kv_b_proj", "attention", heads * (a.qk_nope_head_dim + a.v_head_dim), latent)
    yield Module("self_attn.o_proj", "attention", hidden, heads * a.v_head_dim)
    if a.index_head_dim:
        width = a.index_num_heads * a.index_head_dim
        yield Module("self_attn.indexer.wq_b", "attention", width, a.q_lora_rank)
        yield Module("self_attn.indexer.wk", "attention", a.index_head_dim, hidden, linear=False)
        yield Module("self_attn.indexer.weights_proj", "attention", a.index_num_heads, hidden, linear=False)
        yield vector("self_attn.indexer.k_norm", 2 * a.index_head_dim, itemsize=4)


def _mamba2(s: StateSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    inner, heads = (
        cut.split(s["intermediate_size"], "Mamba channels"),
        cut.split(s["num_heads"], "Mamba heads"),
    )
    groups = even(s["n_groups"], cut.tp, "Mamba groups") if s["n_groups"] > 1 else 1
    conv = inner + 2 * groups * s["state_size"]
    rows, biased = inner + conv + heads, s["proj_bias"]
    yield Module("mamba.in_proj", "attention", rows, hidden, bias=biased * rows)
    yield Module(
        "mamba.conv1d", "attention", conv, s["conv_kernel"], bias=s["conv_bias"] * conv, linear=False
    )
    yield vector("mamba.A", heads, itemsize=4)
    yield vector("mamba.D_and_dt_bias", 2 * heads)
    if s.gated_norm:
        yield vector("mamba.norm", inner)
    yield Module("mamba.out_proj", "attention", hidden, inner, bias=biased * hidden)


def _gdn(s: StateSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    keys = cut.split(s["num_k_heads"], "linear-attention key heads") * s["head_k_dim"]
    heads = cut.split(s["num_v_heads"], "linear-attention value heads")
    values = heads * s["head_v_dim"]
    yield vector("linear_attn.dt_bias", heads)
    yield vector("linear_attn.A_log", heads, itemsize=4)
    yield Module("linear_attn.conv1d", "attention", 2 * keys + values, s["conv_kernel_size"], linear=False)
    yield Module("linear_attn.in_proj_qkv", "attention", 2 * keys + values, hidden)
    yield Module("linear_attn.in_proj_z", "attention", values, hidden)
    yield Module("linear_attn.in_proj_ba", "attention", 2 * heads, hidden)
    yield vector("linear_attn.norm", s["head_v_dim"])
    yield Module("linear_attn.out_proj", "attention", hidden, values)


def _kda(s: StateSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    heads, dim = cut.split(s["num_heads"], "KDA heads"), s["head_dim"]
    width = heads * dim
    for name in ("q_proj", "k_proj", "v_proj"):
        yield Module(f"self_attn.{name}", "attention", width, hidden)
    yield Module("self_attn.conv1d", "attention", 3 * width, s["conv_kernel_size"], itemsize=4, linear=False)
    # Kimi-K3's projections are one matrix, whose rows are padded
    padding = -(4 * width + dim + heads) % 16 if "checkpoints" in dict(s.facts) and not cut.checkpoint else 0
    yield Module("self_attn.b_proj", "attention", heads + padding, hidden)
    for gate in ("f", "g"):
        if dict(s.facts).get("whole_gates") or (gate == "g" and dict(s.facts).get("whole_output_gate")):
            yield Module(f"self_attn.{gate}_proj", "attention", width, hidden)
            continue
        yield Module(f"self_attn.{gate}_a_proj", "attention", dim, hidden)
        yield Module(f"self_attn.{gate}_b_proj", "attention", width, dim)
    yield vector("self_attn.A_log_and_dt_bias", heads + width, itemsize=4)
    yield vector("self_attn.o_norm", dim)
    yield Module("self_attn.o_proj", "attention", hidden, width)


def _mamba1(s: StateSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    inner = cut.split(s["intermediate_size"], "Mamba channels")
    rank, size = s["time_step_rank"], s["state_size"]
    biased, convolved = s["proj_bias"], s["conv_bias"] * inner
    yield Module("mamba.in_proj", "attention", 2 * inner, hidden, bias=biased * 2 * inner)
    yield Module("mamba.conv1d", "attention", inner, s["conv_kernel"], bias=convolved, linear=False)
    yield Module("mamba.x_proj", "attention", rank + 2 * size, inner)
    yield Module("mamba.dt_proj", "attention", inner, rank, bias=inner)
    yield Module("mamba.A", "norm", inner, size, itemsize=4, linear=False)
    yield vector("mamba.D", inner)
    if s.gated_norm:
        yield vector("mamba.dt_b_c_norms", rank + 2 * size)
    yield Module("mamba.out_proj", "attention", hidden, inner, bias=biased * hidden)


def _linear_attention(s: StateSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    heads, dim = cut.split(s["num_heads"], "linear-attention heads"), s["head_dim"]
    width = heads * dim
    yield Module("self_attn.query_key_value", "attention", 3 * width, hidden)
    yield Module("self_attn.g_proj", "attention", width, hidden)
    yield Module("self_attn.dense", "attention", hidden, width)
    yield vector("self_attn.qk_norm", 2 * dim if s["qk_norm"] else 0)
    yield vector("self_attn.g_norm", width)


def _short_conv(s: StateSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    width = cut.split(s["intermediate_size"], "convolution channels")
    biased = s["biased"]
    yield Module("conv.in_proj", "attention", 3 * width, hidden, bias=biased * 3 * width)
    yield Module("conv.conv", "attention", width, s["conv_kernel"], bias=biased * width, linear=False)
    yield Module("conv.out_proj", "attention", hidden, width, bias=biased * hidden)


def _ngram_conv(s: StateSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    """Whole on every rank; the table of embeddings is the layer's, in host memory."""
    width = s["intermediate_size"]
    yield Module("ple.kv_proj", "attention", width + hidden, s["embedding_dim"])
    yield vector("ple.norms", 3 * width)
    yield Module("ple.conv1d", "attention", width, s["conv_kernel"], linear=False)


STATE_MODULES = {
    "mamba1": _mamba1,
    "mamba2": _mamba2,
    "gdn_attention": _gdn,
    "kda": _kda,
    "linear_attention": _linear_attention,
    "short_conv": _short_conv,
    "ngram_conv": _ngram_conv,
}


# ---- MLPs and experts


def mlp_modules(m: MlpSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    """The weights of one layer's feed-forward part, names relative to the layer."""
    if m.num_experts:
        yield from _moe(m, hidden, cut)
    elif m.intermediate_size:
        width = _share(m.intermediate_size, m, cut.of("dense"), "MLP channels")
        yield from _matrices("mlp.", "mlp", m, width, hidden)


def _share(size: int, m: MlpSpec, cut: Cut, what: str) -> int:
    """Channels of one rank, in whole blocks where the class pads to them."""
    if m.block and not cut.checkpoint:
        return cdiv(size, m.block * cut.tp) * m.block
    return cut.split(size, what)


def _matrices(
    prefix: str, role: str, m: MlpSpec, width: int, hidden: int, copies: int = 1
) -> Iterator[Module]:
    up_names = ("gate_proj", "up_proj") if m.num_matrices == 3 else ("up_proj",)
    for name in up_names:
        yield Module(f"{prefix}{name}", role, width, hidden, width if m.bias else 0, copies)
    yield Module(f"{prefix}down_proj", role, hidden, width, hidden if m.bias else 0, copies)


def _moe(m: MlpSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    if not m.experts_elsewhere:
        yield from _router(m, hidden)
    if m.shared_gate:
        yield Module("mlp.shared_expert_gate", "router", 1, hidden, linear=False)
    if m.shared_intermediate_size:
        shared = _share(m.shared_intermediate_size, m, cut.of("shared"), "shared-expert channels")
        yield from _matrices("mlp.shared_experts.", "mlp", replace(m, bias=False), shared, hidden)
    inside = m.latent_size or hidden
    if m.latent_size:
        yield Module("mlp.fc1_latent_proj", "mlp", inside, hidden)
        yield Module("mlp.fc2_latent_proj", "mlp", hidden, inside)
    if not m.experts_elsewhere:
        width = even(m.intermediate_size, cut.expert_tp, "channels of an expert")
        copies = cdiv(m.num_experts + cut.redundant, cut.ep)
        yield from _matrices("mlp.experts.", "expert", m, width, inside, copies=copies)


def _router(m: MlpSpec, hidden: int) -> Iterator[Module]:
    bias = m.num_experts if m.bias else 0
    yield Module("mlp.gate", "router", m.num_experts, hidden, bias, itemsize=m.router_itemsize, linear=False)
    if m.router_correction:
        yield vector("mlp.gate.e_score_correction_bias", m.num_experts, itemsize=4, role="router")
    if m.router_scales:
        yield vector("mlp.gate.scales", hidden + m.num_experts, role="router")


# ---- layers and what surrounds them

RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "NemotronH": (("mamba.", "mixer."), ("self_attn.", "mixer."), ("mlp.", "mixer.")),
    **dict.fromkeys(
        ("Gemma4", "DiffusionGemma"),
        (("mlp.experts.", "experts."), ("mlp.gate", "router"), ("mlp.shared_experts.", "mlp.")),
    ),
    "Llama4": (("mlp.", "feed_forward."),),
    "FalconH1": (("mlp.", "feed_forward."),),
    "Mixtral": (("mlp.", "block_sparse_moe."),),
    "GraniteMoe": (("mlp.shared_experts.", "shared_mlp."), ("mlp.", "block_sparse_moe.")),
    "BailingMoeV3": (("self_attn.", "attention."),),
    "KimiLinear": (("mlp.", "block_sparse_moe."),),
    "KimiK3": (
        ("mlp.experts.", "block_sparse_moe.experts."),
        ("mlp.shared_experts.", "block_sparse_moe.shared_experts."),
        ("mlp.fc1_latent_proj", "block_sparse_moe.routed_expert_down_proj"),
        ("mlp.fc2_latent_proj", "block_sparse_moe.routed_expert_up_proj"),
    ),
    "MiniMaxM3": (
        ("mlp.experts.", "block_sparse_moe.experts."),
        ("mlp.shared_experts.", "block_sparse_moe.shared_experts."),
    ),
}
"""Architecture prefix -> where its checkpoints call a module otherwise; ignore lists use those names."""


def checkpoint_name(architecture: str, name: str) -> str:
    """The module's name in this architecture's checkpoints, relative to its layer."""
    for prefix, pairs in RENAMES.items():
        if architecture.startswith(prefix):
            for ours, theirs in pairs:
                if name.startswith(ours):
                    return theirs + name[len(ours) :]
    return name


def layer_modules(layer: LayerSpec, hidden: int, cut: Cut) -> list[Module]:
    """All weights of one layer on one rank, names relative to the layer."""
    found = [m for mixer in layer.mixers for m in mixer_modules(mixer, hidden, cut)]
    found += mlp_modules(layer.mlp, hidden, cut)
    found += extra_modules(layer.extras, cut)
    found.append(vector("norms", layer.norm_size))
    return found


def extra_modules(extras: tuple[Weight, ...], cut: Cut) -> Iterator[Module]:
    """A family's own weights on one rank; under `mlp.experts.` they are experts', under `mlp.` the MLP's, else the
    attention's."""
    for w in extras:
        if w.name.startswith("mlp.experts.") and w.copies > 1:
            yield from _own_experts(w, cut)
            continue
        rows, cols = w.rows, w.cols
        in_host = w.cut == "host" and not cut.checkpoint and not cut.table_ranks
        if in_host or (w.copied and cut.checkpoint):
            continue
        if w.cut in ("rows", "cols") and w.unit > 1 and w.unit % cut.tp:
            pass  # whole on every rank
        elif w.cut == "host" and not cut.checkpoint:
            rows = cdiv(rows, cut.table_ranks)
        elif w.cut == "rows":
            ranks = cut.of("shared") if w.name == "engram.wkv" else cut
            rows = ranks.split(rows, f"rows of {w.name}")
        elif w.cut == "cols":
            cols = cut.split(cols, f"columns of {w.name}")
        elif w.cut == "vocab":
            rows = padded_rows(rows, cut)
        elif w.cut == "heads":
            rows = cut.kv_heads(rows // w.unit) * w.unit
        role = "mlp" if w.name.startswith("mlp.") else "norm" if cols == 1 else "attention"
        yield Module(w.name, role, rows, cols, rows if w.bias else 0, w.copies, w.itemsize, w.linear)


def _own_experts(w: Weight, cut: Cut) -> Iterator[Module]:
    """Matrices of a family's own experts, cut or shared out as the others."""
    ranks = cut.expert_tp
    rows = even(w.rows, ranks, f"rows of {w.name}") if w.cut == "rows" else w.rows
    cols = even(w.cols, ranks, f"columns of {w.name}") if w.cut == "cols" else w.cols
    copies = cdiv(w.copies, cut.ep)
    yield Module(w.name, "expert", rows, cols, rows if w.bias else 0, copies, w.itemsize, w.linear)


def padded_rows(rows: int, cut: Cut) -> int:
    """Rows of a vocabulary's matrix on one rank."""
    if cut.checkpoint:
        return rows
    return even(cdiv(rows, VOCAB_MULTIPLE) * VOCAB_MULTIPLE, cut.tp, "rows of the padded vocabulary")


def embedding_module(model: ModelSpec, cut: Cut) -> Module:
    """The token embedding."""
    rows = padded_rows(model.vocab_size, cut)
    return Module("embed_tokens", "embedding", rows, model.hidden_size, linear=False)


def head_modules(model: ModelSpec, cut: Cut) -> Iterator[Module]:
    """What turns the last hidden state into an answer: final norm, then LM head or reward head."""
    hidden = model.hidden_size
    yield vector("norm", model.final_norms * hidden)
    if model.score_head:
        yield from _score_modules(model, cut)
        if not model.architecture.startswith(HEADS_BESIDE_SCORES):
            return
    if model.headless:
        return
    if model.backbone_hidden_size or not (model.tie_word_embeddings or model.shares_ends):
        rows = padded_rows(model.vocab_size, cut)
        yield Module("lm_head", "lm_head", rows, hidden, rows if model.lm_head_bias else 0)


HEADS_BESIDE_SCORES = ("JinaVL",)
"""Architectures that keep the LM head beside the layers that score."""


def _score_modules(model: ModelSpec, cut: Cut) -> Iterator[Module]:
    """One plain layer, or two with biases: the first cut by rows, the second by columns (Qwen2.5-Math's).

    vLLM keeps them in float32 unless told otherwise, on every pipeline stage.
    """
    widths, hidden, size = model.score_head, model.hidden_size, model.score_itemsize
    if len(widths) == 1:
        cols = even(hidden, cut.tp, "hidden channels") if model.pools == "own" else hidden
        yield Module("score", "score", widths[0], cols, itemsize=size, linear=model.score_converts)
        return
    inner = even(widths[0], cut.tp, "channels of the reward head")
    linear = model.score_converts
    yield Module("score.0", "score", inner, hidden, inner, itemsize=size, linear=linear)
    yield Module("score.2", "score", widths[1], inner, widths[1], itemsize=size, linear=linear)


def mtp_modules(model: ModelSpec, cut: Cut) -> Iterator[Module]:
    """The multi-token-prediction layers, each with its projection of (embedding, hidden state) and norms."""
    hidden, around = model.hidden_size, model.mtp
    for i, layer in enumerate(model.mtp_layers):
        for module in layer_modules(layer, hidden, cut):
            name = checkpoint_name(model.architecture, module.name)
            linear = module.linear and not (around.plain_outputs and name.endswith("self_attn.o_proj"))
            yield module._replace(name=f"mtp.layers.{i}.{name}", linear=linear)
        if around.own_heads:
            rows = padded_rows(model.vocab_size, cut)
            yield Module(f"mtp.layers.{i}.lm_head", "lm_head", rows, hidden)
        if not around.projected or (i and around.one_projection):
            continue
        rows = even(hidden, cut.tp, "hidden channels") if around.one_projection else hidden
        yield Module(f"mtp.layers.{i}.eh_proj", "mtp", rows, 2 * hidden, linear=around.quantised_projection)
        norms = around.norms - (around.shared_norms if i else 0)
        yield vector(f"mtp.layers.{i}.mtp_norms", norms * hidden)
    for module in extra_modules(around.extras, cut):
        yield module._replace(name=f"mtp.{module.name}")
