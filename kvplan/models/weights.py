"""Parameters of a model, and the bytes of weights that one rank holds.

Knows shapes, dtypes and how parallelism cuts them. Does not know GPUs or KV caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import gcd
from typing import Any, NamedTuple

from kvplan.formulas.capacity import kv_heads_per_rank
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import cdiv
from kvplan.models.held import AS_LOADED, HeldWeights
from kvplan.models.host_weights import (
    LAYERS_ON_CARD,
    NEVER_IN_HOST,
    NOTHING_IN_HOST,
    TOWERS_ON_CARD,
    HostWeights,
    Offload,
    in_host,
    tower_tensor,
)
from kvplan.models.modules import (
    Cut,
    Module,
    checkpoint_name,
    embedding_module,
    extra_modules,
    head_modules,
    layer_modules,
    mtp_modules,
)
from kvplan.models.quantization import Rule, Scheme, quantization_rule
from kvplan.models.rope import MROPE_POSITIONS
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, ModelSpec, RotaryTable
from kvplan.models.tensors import WeightPiece, WeightTensor, allocator_slack, tensors_of, vllm_name
from kvplan.models.vision import vision_modules, vision_rotary

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

HEAD_EVERYWHERE = (
    "Qwen2Moe",
    "Qwen3Moe",
    "Qwen3VLMoe",
    "Qwen3Next",
    "Mixtral",
    "GptOss",
    "GraniteMoe",
    "NemotronH",
)
EMBEDDING_EVERYWHERE = (*HEAD_EVERYWHERE, "Qwen3_5", "InternS2", "Gemma")
"""Architecture prefixes whose vLLM classes build the head, or the embedding, on every pipeline stage (0.32)."""


def holds_embedding(model: ModelSpec, first: bool, last: bool) -> bool:
    """Whether a pipeline stage builds the embedding: the first, the last where the head is the same matrix."""
    tied = last and model.tie_word_embeddings and not model.score_head
    everywhere = model.architecture.startswith(EMBEDDING_EVERYWHERE)
    return not model.only_drafts and (first or tied or everywhere)


def holds_head(model: ModelSpec, last: bool) -> bool:
    """Whether a pipeline stage builds the head."""
    return last or model.architecture.startswith(HEAD_EVERYWHERE)


class LayerWeights(NamedTuple):
    """One layer's weights on one rank, in bytes; scales of quantised matrices counted."""

    attention: int
    """Projections of attention and state mixers, with the copy of kv_b_proj that latent attention decodes by."""
    mlp: int
    """Dense MLP, and experts that every token visits."""
    router: int
    expert: int
    """One routed expert (its share under tensor parallelism)."""
    num_experts: int
    """Routed experts on this rank."""
    norms: int
    slack: int = 0
    """What torch's allocator takes beyond the 16-bit matrices' own bytes (`allocator_slack`); not in the total."""

    @property
    def total(self) -> int:
        """All of the layer."""
        return self.attention + self.mlp + self.router + self.expert * self.num_experts + self.norms


class RankWeights(NamedTuple):
    """Weights of one rank of one pipeline stage, in bytes."""

    layers: tuple[LayerWeights, ...]
    embedding: int
    lm_head: int
    """0 where it shares the embedding's memory."""
    vision: int
    mtp: int
    rotary: int
    """Cosine and sine tables that the engine keeps beside the weights and counts with them."""
    host: HostWeights = NOTHING_IN_HOST
    """What of them lies in host memory."""

    @property
    def total(self) -> int:
        """Bytes of all tensors, wherever they lie."""
        others = self.embedding + self.lm_head + self.vision + self.mtp + self.rotary
        return sum(layer.total for layer in self.layers) + others

    @property
    def loaded(self) -> int:
        """What vLLM prints as "Model loading took ... GiB": the tensors as torch's allocator holds them on the card,
        and the buffers of those that are copied there."""
        slack = sum(layer.slack for layer in self.layers) - self.host.slack
        return self.total - self.host.saved + max(0, slack)


def parameters(model: ModelSpec, *, vision: bool = True, mtp: bool = False) -> int:
    """Exact number of parameters in the checkpoint; tied embeddings count once, and so do zeros that vLLM adds as
    biases (of Whisper's keys).

    >>> from kvplan.models.load import load_model
    >>> parameters(load_model("Qwen/Qwen3-8B"))
    8190735360
    """
    return sum(m.parameters for m in _checkpoint(model, vision=vision, mtp=mtp))


def active_parameters(model: ModelSpec) -> int:
    """Parameters that one token visits: of each layer's experts only `experts_per_token`; no vision tower.

    The embedding counts whole, as publishers count it; tables of n-grams in the host's memory do not.
    """
    cut = Cut(checkpoint=True)
    idle = 0
    for layer in model.layers:
        for module in _expert_modules(layer, model.hidden_size, cut):
            if layer.mlp.experts_elsewhere:  # visited once more
                idle -= module.parameters * layer.mlp.experts_per_token // module.copies
            else:
                idle += module.parameters * (module.copies - layer.mlp.experts_per_token) // module.copies
        idle += sum(w.rows * w.cols for w in layer.extras if w.cut == "host")
        idle += sum(w.rows * w.cols * (w.copies - w.picked) for w in layer.extras if w.picked)
    return parameters(model, vision=False) - idle


def _expert_modules(layer: LayerSpec, hidden: int, cut: Cut) -> Iterator[Module]:
    """Those that a layer visits, its own or another's."""
    layer = replace(layer, mlp=replace(layer.mlp, experts_elsewhere=False))
    return (m for m in layer_modules(layer, hidden, cut) if m.role == "expert")


def _checkpoint(model: ModelSpec, *, vision: bool, mtp: bool) -> Iterator[Module]:
    cut = Cut(checkpoint=True)
    if not model.only_drafts:
        yield embedding_module(model, cut)
    yield from extra_modules(model.extras, cut)
    for layer in model.layers:
        yield from layer_modules(layer, model.hidden_size, cut)
    yield from head_modules(model, cut)
    if vision and model.vision:
        yield from vision_modules(model.vision, 1, checkpoint=True)
    if mtp:
        yield from mtp_modules(model, cut)
        if model.mtp.repeats_ends:
            copies = [embedding_module(model, cut), *(m for m in head_modules(model, cut) if m.linear)]
            yield from copies * len(model.mtp_layers)


def heaviest_rank(model: ModelSpec, **options: Any) -> RankWeights:
    """Weights of the rank that holds most on its card, by `stage_weights`' options."""
    return heaviest(stage_weights(model, **options))


def heaviest(ranks: Sequence[RankWeights]) -> RankWeights:
    """The one that holds most on its card."""
    return max(ranks, key=lambda rank: rank.total - rank.host.saved)


def stage_weights(
    model: ModelSpec,
    *,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    pp_layer_partition: tuple[int, ...] = (),
    data_parallel_size: int = 1,
    enable_expert_parallel: bool = False,
    quantization: str | None = None,
    dtype: str = "auto",
    use_mtp: bool = False,
    mtp_quantization: str | None = None,
    language_model_only: bool = False,
    whole_tower: bool = False,
    replicate_embed: bool = False,
    legacy: bool = False,
    least_padding: bool = False,
    offload: Offload | None = None,
    num_redundant_experts: int = 0,
    q_ranks: int = 1,
    table_ranks: int = 0,
    whole: tuple[str, ...] = (),
    held: HeldWeights = AS_LOADED,
) -> tuple[RankWeights, ...]:
    """Weights of one rank of each pipeline stage, as vLLM shards them.

    Args:
        model: the model.
        tensor_parallel_size: ranks that cut each matrix; latents, routers and norms stay whole, KV heads are
            replicated where there are fewer of them than ranks.
        pipeline_parallel_size: stages.
        pp_layer_partition: layers of each stage; empty: even shares.
        data_parallel_size: attention replicas. With experts, they join the ranks that share the experts out.
        enable_expert_parallel: give each rank whole experts instead of a slice of every one.
        quantization: quantise a 16-bit checkpoint on load; None: as the checkpoint says.
        dtype: of what is not quantised; auto: the checkpoint's, with float32 loaded as 16 bits.
        use_mtp: load the multi-token-prediction layers.
        mtp_quantization: quantise those on load in their own way; None: as `quantization`.
        language_model_only: leave the vision tower out.
        whole_tower: hold the tower whole on every rank.
        replicate_embed: hold the embedding whole on every rank, where the class looks (VLLM_REPLICATE_EMBED).
        least_padding: sizes as rounded up by the kernel that rounds least; else by the one that vLLM prefers.
        legacy: vLLM's first engine (V0), which kept latent attention's absorbed products as matrices.
        offload: which tensors lie in host memory; None: none.
        num_redundant_experts: experts that a layer holds twice.
        q_ranks: ranks that each hold the query heads of all of them, in latent attention.
        table_ranks: ranks that share out tables of n-grams; 0: these lie in host memory.
        whole: MLPs that tensor parallelism does not cut, as `Cut` names them.
        held: what the card's kernels make of quantised matrices.

    Raises:
        KvplanError: sizes that cannot be cut evenly, an unknown quantisation or dtype.
    """
    cut = rank_cut(tensor_parallel_size, data_parallel_size, enable_expert_parallel)
    loader = _Loader(
        model=model,
        cut=cut._replace(
            redundant=num_redundant_experts, q_ranks=q_ranks, table_ranks=table_ranks, whole=whole
        ),
        rule=quantization_rule(model, quantization),
        mtp_rule=quantization_rule(model, mtp_quantization or quantization),
        itemsize=_itemsize(model, dtype),
        use_mtp=use_mtp,
        vision=not language_model_only,
        tower_tp=1 if whole_tower else tensor_parallel_size,
        replicate_embed=replicate_embed,
        legacy=legacy,
        least_padding=least_padding,
        offload=offload,
        held=held,
    )
    spans = stage_spans(len(model.layers), pipeline_parallel_size, pp_layer_partition)
    return tuple(loader.stage(span, len(model.layers)) for span in spans)


def stage_spans(num_layers: int, stages: int, partition: Sequence[int] = ()) -> tuple[tuple[int, int], ...]:
    """Which layers each pipeline stage holds: even shares, the rest from the last but one backwards.

    `partition`: layers of each, as VLLM_PP_LAYER_PARTITION states them.

    Source: vLLM 0.32, `distributed/utils.py: get_pp_indices`.

    >>> stage_spans(62, 4)
    ((0, 15), (15, 31), (31, 47), (47, 62))
    """
    if not 1 <= stages <= num_layers:
        raise KvplanError(
            f"pipeline_parallel_size {stages} must lie between 1 and the model's {num_layers} layers"
        )
    sizes = list(partition) or [num_layers // stages] * stages
    if partition and (len(sizes) != stages or sum(sizes) != num_layers):
        raise KvplanError(
            f"VLLM_PP_LAYER_PARTITION={','.join(map(str, sizes))}: {len(sizes)} stages of {sum(sizes)} layers; there"
            f" are {stages} of {num_layers}"
        )
    for i in range(0 if partition else num_layers % stages):
        sizes[-(i + 2)] += 1
    ends = [sum(sizes[: i + 1]) for i in range(stages)]
    return tuple((end - size, end) for end, size in zip(ends, sizes, strict=True))


def rank_cut(tp: int, dp: int, expert_parallel: bool) -> Cut:
    """How one rank's share is cut out under tensor, data and expert parallelism."""
    for name, size in (("tensor_parallel_size", tp), ("data_parallel_size", dp)):
        if not 1 <= size <= 1 << 16:
            raise KvplanError(f"{name} must be at least 1, not {size}")
    ranks = tp * dp
    return Cut(tp, 1, ranks) if expert_parallel else Cut(tp, ranks, 1)


def _itemsize(model: ModelSpec, dtype: str) -> int:
    wanted = model.dtype if dtype == "auto" else {"half": "float16", "float": "float32"}.get(dtype, dtype)
    if wanted not in ITEM_BYTES:
        raise KvplanError(f"dtype {dtype[:40]!r} is not one of auto, {', '.join(ITEM_BYTES)}")
    return 2 if dtype == "auto" else ITEM_BYTES[wanted]


def _table_bytes(table: RotaryTable, tp: int) -> int:
    heads = int(kv_heads_per_rank(table.kv_heads, tp)) if table.kv_heads else 1
    return table.positions * table.dims * table.itemsize * heads


MAY_REPLICATE = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "Dots3NoteForCausalLM")
"""Classes that make their embedding by `layers/fused_embed_norm.py: make_input_embedding` (vLLM 0.32)."""


class _Loader(NamedTuple):
    """Everything that decides how many bytes a module takes."""

    model: ModelSpec
    cut: Cut
    rule: Rule
    mtp_rule: Rule
    itemsize: int
    use_mtp: bool
    vision: bool
    tower_tp: int
    replicate_embed: bool
    legacy: bool
    least_padding: bool
    offload: Offload | None
    held: HeldWeights

    @property
    def embedding_cut(self) -> Cut:
        """Inkling's ranks each hold the whole embedding; encoder-decoders' too, unpadded, but for Nemotron Parse's."""
        if self.model.encoded_tokens and not self.model.architecture.startswith("NemotronParse"):
            return Cut(checkpoint=True)
        asked = self.replicate_embed and self.model.architecture in MAY_REPLICATE
        whole = asked or self.model.architecture.startswith("Inkling")
        return self.cut._replace(tp=1) if whole else self.cut

    @property
    def rotary_tables(self) -> float:
        """Tables of the language model, with one more or a quarter where drafting layers have their own."""
        around = self.model.mtp
        return 1 + self.use_mtp * (around.own_rotary + around.short_rotary / MROPE_POSITIONS)

    def module_bytes(self, m: Module) -> int:
        piece = self.piece(m)
        return piece.elements + piece.scales + piece.biases

    def piece(self, m: Module) -> WeightPiece:
        """A module's bytes by kind."""
        scheme = self.rule(m) if m.linear or m.role == "embedding" else None
        itemsize = m.itemsize or self.itemsize
        is_expert, is_matrix = m.role == "expert", m.cols > 1
        if m.name.endswith("engram.embed_tokens"):  # DeepSeek V4.1: bytes, with one of scale for 32 of them
            return WeightPiece(m.name, m.rows * m.cols, m.rows * m.cols // 32, is_plain=False)
        if scheme is None:
            elements, biases = m.copies * m.rows * m.cols * itemsize, m.copies * m.bias * itemsize
            return WeightPiece(m.name, elements, 0, biases, is_expert, is_matrix=is_matrix)
        if is_expert and scheme.block_rows > 1:
            scheme = _finer_blocks(scheme, m)
        rows, cols = _padded(m, (self.least_padding and scheme.least_pad) or scheme.pad)
        scales = scheme.matrix_bytes(rows, cols) - cdiv(rows * cols * scheme.bits, 8)
        elements = self.held.elements_bytes(m, scheme, rows, cols)
        biases = (rows if m.bias else 0) * itemsize
        scale = "weight_scale_inv" if scheme.name.endswith("block") else "weight_scale"
        each = WeightPiece(m.name, elements, scales, biases, is_expert, False, is_matrix, scale)
        return each.times(m.copies)

    def stage(self, span: tuple[int, int], num_layers: int) -> RankWeights:
        """Weights of the layers in `span`, and of what stands at the pipeline's ends."""
        model, first, last = self.model, span[0] == 0, span[1] == num_layers
        embeds, heads = holds_embedding(model, first, last), holds_head(model, last)
        mtp = mtp_modules(model, self.cut) if self.use_mtp and last else ()
        tower = vision_modules(model.vision, self.tower_tp) if self.vision and model.vision else ()
        return RankWeights(
            layers=tuple(self.layer(i) for i in range(*span)),
            embedding=sum(
                self.module_bytes(m)
                for m in (
                    *((embedding_module(model, self.embedding_cut),) if embeds else ()),
                    *(extra_modules(model.extras, self.cut) if first else ()),
                    *self.banks(span),
                )
            ),
            lm_head=sum(
                self.module_bytes(m) for m in head_modules(model, self.cut) if heads or m.role == "score"
            ),
            vision=sum(map(self.module_bytes, tower)),
            mtp=sum(map(self._replace(rule=self.mtp_rule).module_bytes, mtp)),
            rotary=int(self.rotary_tables * sum(_table_bytes(t, self.cut.tp) for t in model.rotary))
            + (vision_rotary(model.vision) if self.vision and model.vision else 0),
            host=self.in_host(span, tower),
        )

    def banks(self, span: tuple[int, int]) -> Iterator[Module]:
        """Experts of layers of other stages that some of this one may share: each stage holds all."""
        shared = any(layer.mlp.experts_elsewhere for layer in self.model.layers)
        for i, layer in enumerate(self.model.layers if shared else ()):
            if not (span[0] <= i < span[1] or layer.mlp.experts_elsewhere):
                for module in layer_modules(layer, self.model.hidden_size, self.cut):
                    if module.name.startswith(("mlp.experts.", "mlp.gate")):
                        yield module._replace(name=f"layers.{i}.{module.name}")

    def in_host(self, span: tuple[int, int], tower: Sequence[Module]) -> HostWeights:
        """What of a stage lies in host memory."""
        architecture = self.model.architecture
        if self.offload is None or architecture in NEVER_IN_HOST:
            return NOTHING_IN_HOST
        seen = () if architecture.startswith(TOWERS_ON_CARD) else tower
        tensors = [
            tower_tensor(architecture, m.name, self.module_bytes(m) // m.copies)
            for m in seen
            for _ in range(m.copies)
        ]
        layers = () if architecture.startswith(LAYERS_ON_CARD) else range(*span)
        return in_host(self.offload, [self.tensors(i) for i in layers], tensors)

    def tensors(self, index: int) -> list[WeightTensor]:
        """One layer's parameters as vLLM has them; what it makes of them after loading is none."""
        layer, architecture = self.model.layers[index], self.model.architecture
        made_later = {w.name for w in layer.extras if w.copied}
        banked = any(each.mlp.experts_elsewhere for each in self.model.layers)
        pieces = []
        for module in layer_modules(layer, self.model.hidden_size, self.cut):
            if module.name in made_later or (banked and module.name.startswith(("mlp.experts.", "mlp.gate"))):
                continue  # banks of experts stand beside the layers
            name = checkpoint_name(architecture, module.name)
            piece = self.piece(module._replace(name=f"layers.{index}.{name}"))
            pieces.append(piece._replace(name=module.name))
        return [tensor._replace(name=vllm_name(architecture, tensor.name)) for tensor in tensors_of(pieces)]

    def layer(self, index: int) -> LayerWeights:
        """One layer's weights by part."""
        layer, hidden = self.model.layers[index], self.model.hidden_size
        parts = dict.fromkeys(("attention", "mlp", "router", "expert", "norm"), 0)
        copies, fused = 0, dict[str, int]()
        for module in layer_modules(layer, hidden, self.cut):
            name = checkpoint_name(self.model.architecture, module.name)
            size = self.module_bytes(module._replace(name=f"layers.{index}.{name}"))
            parts[module.role] += size
            if module.role == "expert":
                copies = module.copies
            if size == module.parameters * self.itemsize:
                tensor = _fused(module.name)
                fused[tensor] = fused.get(tensor, 0) + size
        absorbed = sum(_absorbed_elements(a, self.cut) for a in layer.mixers) * self.itemsize
        if self.legacy:
            absorbed += sum(_legacy_elements(a, hidden, self.cut) for a in layer.mixers) * self.itemsize
        return LayerWeights(
            parts["attention"] + absorbed,
            parts["mlp"],
            parts["router"],
            parts["expert"] // copies if copies else 0,
            copies,
            parts["norm"],
            sum(map(allocator_slack, fused.values())),
        )


def _fused(name: str) -> str:
    """The tensor that a module is a part of: vLLM fuses Q, K and V, gate and up, and each of an expert's for all."""
    parent, _, last = name.rpartition(".")
    tensor = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"} | dict.fromkeys(
        ("gate_proj", "up_proj"), "gate_up_proj"
    )
    return f"{parent}.{tensor.get(last, last)}"


def _absorbed_elements(a: AttentionSpec, cut: Cut) -> int:
    """vLLM keeps `kv_b_proj` a second time, in 16 bits and split in two, for decoding on latents."""
    if not a.is_latent:
        return 0
    return a.num_heads // cut.tp * (a.qk_nope_head_dim + a.v_head_dim) * a.kv_lora_rank


def _legacy_elements(a: AttentionSpec, hidden: int, cut: Cut) -> int:
    """V0's absorbed matrices W_Q_UK, W_QR (from the query's latent, where it has one) and W_UV_O.

    Source: vLLM 0.7 `attention/backends/mla/common.py`.
    """
    if a.kind is not AttentionKind.MLA:
        return 0
    query = a.q_lora_rank or hidden
    return a.num_heads // cut.tp * (query * (a.kv_lora_rank + a.qk_rope_head_dim) + hidden * a.kv_lora_rank)


def _finer_blocks(scheme: Scheme, m: Module) -> Scheme:
    """vLLM splits an expert's scale blocks until they divide the slice of the expert that a rank holds."""
    block = gcd(scheme.block_rows, m.cols if m.name.endswith("down_proj") else m.rows)
    return replace(scheme, block_rows=block, block_cols=block)


def _padded(m: Module, pad: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns rounded up to the kernel's tiles: `pad` is (intermediate, hidden)."""
    row_tile, col_tile = pad[::-1] if m.name.endswith("down_proj") else pad
    return cdiv(m.rows, row_tile) * row_tile, cdiv(m.cols, col_tile) * col_tile
