"""What one engine step must move and multiply on one GPU: bytes and FLOPs from a model's shapes.

Knows shapes and how parallelism cuts them. Does not know how fast anything is (`costs` does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kvplan.formulas.capacity import kv_heads_per_rank
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, ModelSpec, StateSpec

Number = Any
"""A Python number or a numpy array; the formulas of this room take both."""


class StepShape(NamedTuple):
    """All that a step's duration may depend on; every field is a number or an array of one shape.

    The same tuple is the fit's design-matrix row and the simulator's question.
    """

    num_tokens: Number
    """Tokens computed in the step, prefill and decode."""
    num_decodes: Number
    """Sequences that compute one token each (or 1 + drafts)."""
    decode_context: Number
    """Sum over decoding sequences of the tokens attended to."""
    num_prefill_tokens: Number = 0
    """Tokens of prompt chunks in the step."""
    num_prefills: Number = 0
    """Prompts with a chunk in the step."""
    prefill_attention: Number = 0.0
    """Sum over chunks of q * (past + q / 2): the query-key pairs that causal attention visits."""


class Product(NamedTuple):
    """Equal matrix products of a step on one rank: (tokens x in) x (in x out)."""

    num: int
    out_features: float
    in_features: float

    @property
    def parameters(self) -> float:
        """Weights of all of them."""
        return self.num * self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """Layers of one attention shape, on one rank. Bytes and FLOPs are per layer."""

    num_layers: int
    cap: int
    """Context tokens a query sees at most: the window, the sparse top-k; 0 = all of them."""
    kv_bytes_per_token: float
    """Read by one decoding sequence for one token of its context."""
    decode_flops_per_token: float
    pair_flops: float
    """Of one query-key pair in prefill."""
    num_heads: int
    num_kv_heads: int
    head_dim: int = 0
    """Width of a key; of the latent, for MLA; of an indexer's own. 0: not told, as fitted rates need not know."""


@dataclass(frozen=True, slots=True)
class ExpertWork:
    """Mixture-of-experts layers of one shape, on one rank."""

    num_layers: int
    num_experts: int
    """On this rank."""
    share: float
    """Probability that a token visits a given expert (top-k over all experts)."""
    expert_bytes: float
    expert_flops: float
    """Of one token in one expert."""
    visit_bytes: float = 0.0
    """Activations of one token in one expert, in and out of its products, 16 bits each."""
    tokens_factor: float = 1.0
    """Tokens that reach the experts per token of this rank (data-parallel ranks pool theirs)."""
    hidden_size: int = 0
    intermediate_size: float = 0.0
    """Of one expert on this rank."""
    experts_per_token: int = 0
    num_ranks: int = 1
    """Over which whole experts are spread."""


class ExpertGather(NamedTuple):
    """Tokens on their way to experts on other data-parallel ranks (dispatch) and back (combine)."""

    num_ranks: int
    num_layers: int
    token_bytes: float
    """Of one token of one rank, one way, 16 bits an element."""


class ContextExchange(NamedTuple):
    """Queries gathered from the ranks that split a context, and their parts of the output added up, once a layer."""

    num_layers: int
    token_bytes: float
    """Of one decoding token: the all-reduce that moves as much, 16 bits an element."""


class HostReads(NamedTuple):
    """Weights that kernels read from host memory, on one rank, its share of every stage's."""

    dense_bytes: float
    expert_bytes: float
    """Of all experts on the rank."""


NO_HEAD = Product(1, 0, 0)


@dataclass(frozen=True, slots=True)
class StepWork:
    """One rank's work in a step, as numbers per step, per token, per sequence and per context token."""

    num_layers: int
    dense_bytes: float
    """Weights read once a step, whatever the batch: projections, dense MLPs, shared experts."""
    dense_flops: float
    """Of one token in those weights."""
    head_bytes: float
    """The output head, read once a step."""
    head_flops: float
    """Of one sampled row (a decode or a prompt's last chunk)."""
    activation_bytes: float
    """Of one token through the element-wise kernels of all layers, 16 bits each."""
    attention: tuple[AttentionWork, ...]
    experts: tuple[ExpertWork, ...] = ()
    state_bytes: float = 0.0
    """Recurrent state that one decoding sequence reads and writes in a step."""
    num_ranks: int = 1
    """Tensor-parallel ranks that reduce each layer's output."""
    num_all_reduces: int = 0
    all_reduce_bytes: float = 0.0
    """Of one token in one reduction."""
    pipeline_stages: int = 1
    products: tuple[Product, ...] = ()
    """Matrix products of a step outside experts and head."""
    head: Product = NO_HEAD
    gathers: ExpertGather | None = None
    """What passes between data-parallel ranks around the experts."""
    exchange: ContextExchange | None = None
    """What passes between ranks that split contexts (decode context parallelism)."""
    host: HostReads | None = None
    """Of the weights above, what lies in host memory."""

    @property
    def num_gemms(self) -> int:
        """Matrix products of a step outside experts and head."""
        return sum(p.num for p in self.products)

    @property
    def num_attention_layers(self) -> int:
        """Layers that read KV of past tokens."""
        return sum(a.num_layers for a in self.attention)

    @property
    def num_layer_heads(self) -> int:
        """KV heads on this rank, summed over layers."""
        return sum(a.num_layers * a.num_kv_heads for a in self.attention)


def step_work(
    model: ModelSpec,
    *,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    data_parallel_size: int = 1,
    decode_context_parallel_size: int = 1,
    enable_expert_parallel: bool = False,
    weight_bytes: float = 2.0,
    expert_weight_bytes: float | None = None,
    kv_bytes: float = 2.0,
    num_redundant_experts: int = 0,
    q_ranks: int = 1,
    state_writes: float = 1.0,
) -> StepWork:
    """Count one rank's work. Byte sizes are per parameter and per KV element (scales included by the caller).

    Pipeline stages run in turn on a batch cut in `pipeline_parallel_size` parts, so a step of all parts reads
    every weight once and every context on its own stage; `step` divides accordingly. Without expert parallelism
    the experts are cut over tensor and data ranks together, as vLLM does. Decode context parallelism splits the tokens
    of a context over ranks, each of which then attends for the heads of all (vLLM `v1/attention/ops/dcp.py`); prompts
    gather the context and attend as without.
    Of redundant experts each copy gets its share of the visits. `q_ranks` ranks that each project the queries of all
    gather none. Recurrent states are read in every step and written in `state_writes` of them.
    """
    tp = tensor_parallel_size
    layers = Counter(model.layers)
    hidden = model.hidden_size
    products = _products(layers, hidden, tp, q_ranks)
    dense = sum(p.parameters for p in products)
    head = Product(1, -(-model.vocab_size // tp), hidden)
    ep = tp * data_parallel_size if enable_expert_parallel else 1
    cut = 1 if enable_expert_parallel else tp * data_parallel_size
    per_weight = weight_bytes if expert_weight_bytes is None else expert_weight_bytes
    experts = tuple(
        _expert_work(layer.mlp, n, hidden, ep, cut, per_weight, data_parallel_size, num_redundant_experts)
        for layer, n in _by_mlp(layers).items()
    )
    pooled = sum(e.num_layers for e in experts) if data_parallel_size > 1 else 0
    reduces = sum(n * _num_reductions(layer) for layer, n in layers.items()) + 1 if tp > 1 else 0
    return StepWork(
        num_layers=len(model.layers),
        dense_bytes=dense * weight_bytes,
        dense_flops=2.0 * dense,
        head_bytes=head.parameters * 2.0,
        head_flops=2.0 * head.parameters,
        activation_bytes=2.0 * sum(n * _activations(layer, hidden, tp) for layer, n in layers.items()),
        attention=_attention_work(layers, tp, kv_bytes, decode_context_parallel_size),
        experts=experts,
        state_bytes=sum(n * _state_bytes(a) for layer, n in layers.items() for a in layer.mixers)
        * ((1 + state_writes) / 2 / tp),
        num_ranks=tp,
        num_all_reduces=reduces,
        all_reduce_bytes=hidden * 2.0,
        pipeline_stages=pipeline_parallel_size,
        products=products,
        head=head,
        gathers=ExpertGather(data_parallel_size, pooled, hidden * 2.0) if pooled else None,
        exchange=_exchange(layers, tp, decode_context_parallel_size, q_ranks),
    )


def _exchange(layers: Counter[LayerSpec], tp: int, dcp: int, q_ranks: int) -> ContextExchange | None:
    """An all-gather of the queries and a reduce-scatter of the outputs move what an all-reduce of their mean does."""
    growing = [(a, n) for layer, n in layers.items() for a in layer.mixers if a.kind.is_growing]
    if dcp == 1 or not growing:
        return None
    mean = 0.0
    for a, n in growing:
        latent = a.kind is AttentionKind.MLA
        q = a.kv_lora_rank + a.qk_rope_head_dim if latent else a.head_dim
        q = 0 if latent and q_ranks > 1 else q
        out = a.kv_lora_rank if latent else a.v_head_dim or a.head_dim
        mean += n * (a.num_heads / tp) * dcp * (q + out)
    num = sum(n for _, n in growing)
    return ContextExchange(num, mean / num)


def _by_mlp(layers: Counter[LayerSpec]) -> dict[LayerSpec, int]:
    """One representative layer per mixture-of-experts shape, with the number of such layers."""
    found: dict[MlpSpec, LayerSpec] = {}
    counts: Counter[LayerSpec] = Counter()
    for layer, n in layers.items():
        if layer.mlp.num_experts:
            counts[found.setdefault(layer.mlp, layer)] += n
    return dict(counts)


def _expert_work(
    mlp: MlpSpec,
    num_layers: int,
    hidden: int,
    ep: int,
    cut: int,
    weight_bytes: float,
    pooled: int,
    redundant: int,
) -> ExpertWork:
    physical = mlp.num_experts + redundant
    params = mlp.num_matrices * hidden * mlp.intermediate_size / cut
    return ExpertWork(
        num_layers=num_layers,
        num_experts=-(-physical // ep),
        share=mlp.experts_per_token / physical,
        expert_bytes=params * weight_bytes,
        expert_flops=2.0 * params,
        visit_bytes=visit_bytes(hidden, mlp.intermediate_size / cut, mlp.num_matrices),
        tokens_factor=float(pooled),
        hidden_size=hidden,
        intermediate_size=mlp.intermediate_size / cut,
        experts_per_token=mlp.experts_per_token,
        num_ranks=ep,
    )


def visit_bytes(hidden: Any, intermediate: Any, num_matrices: Any = 3) -> Any:
    """Bytes of activations that one visit of an expert moves, at 16 bits: its input and output, and what passes
    between its products (a gate and an up projection out, their product in). Numbers or arrays.

    >>> visit_bytes(4096, 1536)
    25600
    """
    return 2 * (2 * hidden + num_matrices * intermediate)


def _products(layers: Counter[LayerSpec], hidden: int, tp: int, q_ranks: int = 1) -> tuple[Product, ...]:
    """The products of all layers that every token takes part in, equal ones counted together."""
    counts: Counter[tuple[float, float]] = Counter()
    for layer, n in layers.items():
        for mixer in layer.mixers:
            for shape in projections(mixer, hidden, tp, q_ranks):
                counts[shape] += n
        for shape in _mlp_products(layer.mlp, hidden, tp):
            counts[shape] += n
    return tuple(Product(n, *shape) for shape, n in counts.items())


def _activations(layer: LayerSpec, hidden: int, tp: int) -> float:
    """Elements of one token that a layer's element-wise kernels read and write: norms that also add the residual
    (two in, two out), rotary embedding in place, the gate's product (two in, one out)."""
    mlp = layer.mlp
    mixers = [a for a in layer.mixers if a.kind is not AttentionKind.NONE]
    width = (mlp.shared_intermediate_size if mlp.num_experts else mlp.intermediate_size) / tp
    rotary = sum(
        2.0 * (a.num_heads / tp + float(kv_heads_per_rank(a.num_kv_heads, tp))) * a.head_dim for a in mixers
    )
    return 4.0 * hidden * (len(mixers) + (mlp.intermediate_size > 0)) + rotary + mlp.num_matrices * width


def _mlp_products(mlp: MlpSpec, hidden: int, tp: int) -> Iterator[tuple[float, float]]:
    """(out, in) features of a dense MLP, or of a router and the experts that every token visits."""
    if mlp.num_experts:
        yield mlp.num_experts, hidden
    width = (mlp.shared_intermediate_size if mlp.num_experts else mlp.intermediate_size) / tp
    if width:
        yield (mlp.num_matrices - 1) * width, hidden
        yield hidden, width


def projections(a: AttentionSpec, hidden: int, tp: int, q_ranks: int = 1) -> Iterator[tuple[float, float]]:
    """(out, in) features of one mixer's products on one rank; KV heads are replicated when tp is larger."""
    heads, v = a.num_heads / tp, a.v_head_dim or a.head_dim
    if a.kind is AttentionKind.NONE:
        return
    if a.is_latent:
        latent, qk = a.kv_lora_rank + a.qk_rope_head_dim, a.qk_nope_head_dim + a.qk_rope_head_dim
        queries = q_ranks * heads * qk
        yield a.q_lora_rank + latent if a.q_lora_rank else queries + latent, hidden
        if a.q_lora_rank:
            yield queries, a.q_lora_rank
        yield heads * (a.qk_nope_head_dim + v), a.kv_lora_rank
        yield hidden, heads * v
    elif a.state is not None:
        inner = _state_inner(a.state)
        yield (_state_width(a.state) - inner) / tp, hidden
        yield hidden, inner / tp
    else:
        shares = a.kv_shared_with is not None or not a.num_kv_heads
        kv_heads = 0 if shares else int(kv_heads_per_rank(a.num_kv_heads, tp))
        yield heads * a.head_dim * (1 + a.gated) + kv_heads * (a.head_dim + v), hidden
        yield hidden, heads * v


def _state_inner(state: StateSpec) -> int:
    """Columns that a state mixer's output projection takes in."""
    facts = dict(state.facts)
    if state.family == "gdn_attention":
        return facts["num_v_heads"] * facts["head_v_dim"]
    if state.family == "ngram_conv":
        return 0
    if state.family in ("kda", "linear_attention"):
        return facts["num_heads"] * facts["head_dim"]
    return facts["intermediate_size"]


def _state_width(state: StateSpec) -> int:
    """Columns of a state mixer's input and output projections together, per family."""
    facts = dict(state.facts)
    if state.family == "mamba2":
        groups = 2 * facts["n_groups"] * facts["state_size"]
        return 3 * facts["intermediate_size"] + groups + facts["num_heads"]
    if state.family == "gdn_attention":
        value = facts["num_v_heads"] * facts["head_v_dim"]
        return 2 * facts["num_k_heads"] * facts["head_k_dim"] + 3 * value + 2 * facts["num_v_heads"]
    if state.family == "ngram_conv":
        return facts["intermediate_size"]
    if state.family in ("kda", "linear_attention"):
        return 5 * facts["num_heads"] * facts["head_dim"]
    return 4 * facts["intermediate_size"]


def _num_reductions(layer: LayerSpec) -> int:
    """All-reduces of one layer: after attention, after the MLP."""
    mixes = any(a.kind is not AttentionKind.NONE for a in layer.mixers)
    return int(mixes) + int(layer.mlp.intermediate_size > 0)


def _attention_work(
    layers: Counter[LayerSpec], tp: int, kv_bytes: float, dcp: int
) -> tuple[AttentionWork, ...]:
    counts: Counter[AttentionSpec] = Counter()
    for layer, n in layers.items():
        for a in layer.mixers:
            if a.kind.keeps_tokens or a.kind is AttentionKind.COMPRESSED:
                counts[a] += n
    return tuple(
        replace(work, kv_bytes_per_token=work.kv_bytes_per_token / (dcp if a.kind.is_growing else 1))
        for a, n in counts.items()
        for work in _kinds_of(a, n, tp, kv_bytes)
    )


def _kinds_of(a: AttentionSpec, n: int, tp: int, kv_bytes: float) -> tuple[AttentionWork, ...]:
    """The attention of `n` layers; a sparse one adds its indexer, which reads every token of the context."""
    heads = max(1, a.num_heads // tp)
    if a.kind is AttentionKind.COMPRESSED:
        return _compressed(a, n, heads)
    if not a.is_latent:
        v = a.v_head_dim or a.head_dim
        kv = int(kv_heads_per_rank(a.num_kv_heads, tp))
        flops = 2.0 * heads * (a.head_dim + v)
        per_token = kv * (a.head_dim + v) * kv_bytes
        reach = a.window or (a.index_topk if a.compress_ratio else 0)
        main = AttentionWork(n, reach, per_token, flops, flops, heads, kv, a.head_dim)
        return (main, _index(a, n, a.index_head_dim * a.index_itemsize)) if a.compress_ratio else (main,)
    latent = a.kv_lora_rank + a.qk_rope_head_dim
    decode = 2.0 * heads * (latent + a.kv_lora_rank)
    pair = 2.0 * heads * (a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim)
    row, reach = a.latent_row or latent, a.index_topk or a.window
    main = AttentionWork(n, reach, row * kv_bytes, decode, pair, heads, 1, latent)
    if not a.index_head_dim:  # dense, or a layer that takes the picks of one before it
        return (main,)
    return main, _index(a, n, a.index_head_dim + 4.0)


def _index(a: AttentionSpec, n: int, key_bytes: float) -> AttentionWork:
    """An indexer that looks at every key: one of each token, or of `compress_ratio` tokens where keys are pooled."""
    keys = 1 / max(1, a.compress_ratio)
    looks = 2.0 * a.index_num_heads * a.index_head_dim * keys
    return AttentionWork(n, 0, key_bytes * keys, looks, looks, a.index_num_heads, 1, a.index_head_dim)


def _compressed(a: AttentionSpec, n: int, heads: int) -> tuple[AttentionWork, ...]:
    """DeepSeek V4: the window's latents, and compressed ones, all of them or those that an indexer picks; fp8.

    V4.1's layers that take another's picks read as many; its later indexers score all keys too, and candidates alone
    only where `indexer_sparse_logits` asks for it.
    """
    flops, latent = 4.0 * heads * a.head_dim, a.head_dim + 72.0
    found = [AttentionWork(n, a.window, latent, flops, flops, heads, 1, a.head_dim)]
    if not a.compress_ratio:
        return tuple(found)
    ratio = a.compress_ratio
    reach = a.index_topk * ratio
    found.append(AttentionWork(n, reach, latent / ratio, flops / ratio, flops / ratio, heads, 1, a.head_dim))
    if a.index_head_dim:
        found.append(_index(a, n, a.index_head_dim + 4.0))
    return tuple(found)


def _state_bytes(a: AttentionSpec) -> float:
    """Recurrent state read and written once a step; convolution states are small beside it."""
    if a.state is None:
        return 0.0
    facts, element = dict(a.state.facts), 4.0 if a.state.ssm_dtype == "float32" else 2.0
    elements = {
        "mamba2": facts.get("num_heads", 0) * facts.get("head_dim", 0) * facts.get("state_size", 0),
        "gdn_attention": facts.get("num_v_heads", 0)
        * facts.get("head_v_dim", 0)
        * facts.get("head_k_dim", 0),
        "kda": facts.get("num_heads", 0) * facts.get("head_dim", 0) ** 2,
        "linear_attention": facts.get("num_heads", 0) * facts.get("head_dim", 0) ** 2,
        "mamba1": facts.get("intermediate_size", 0) * facts.get("state_size", 0),
    }
    return 2.0 * element * elements.get(a.state.family, 0)
