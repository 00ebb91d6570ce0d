"""Memory for LoRA adapters: vLLM takes it at start-up, for so many adapters of the highest rank.

Source: vLLM 0.32 `lora/layers`: for each linear layer a B (rows x rank) and one or several As (rank x columns) per
adapter, cut as the layer is; for the embedding and the head of families that allow it, a pair over the whole
vocabulary. What each class declares of this: `lora_classes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.models.lora_classes import (
    ALSO_ADAPTED,
    BOTH_ENDS,
    CONVOLUTIONS,
    FUSED_EXPERTS,
    GATE_APART,
    INTERLEAVED,
    MERGED_QKV,
    NO_ADAPTERS,
    ONE_END,
    OWN_NAMES,
    PLAIN_ROUTERS,
    TOWER_UNASKED,
    TOWERS_ASKED,
    TWO_MLPS,
    WITH_TOWERS,
    of_class,
    packed_parts,
)
from kvplan.models.modules import Cut, Module, extra_modules, layer_modules
from kvplan.models.spec import LayerSpec, ModelSpec, VisionSpec
from kvplan.models.tensors import PARTS_OF
from kvplan.models.vision import vision_modules
from kvplan.models.weights import holds_embedding, holds_head, rank_cut

PART_OF = {
    **{name: (fused, 1) for name, fused in PARTS_OF.items()},
    "q_a_proj": ("fused_qkv_a_proj", 1),
    "kv_a_proj_with_mqa": ("fused_qkv_a_proj", 1),
    "in_proj_qkv": ("in_proj_qkvz", 3),
    "in_proj_ba": ("in_proj_ba", 2),
    "mamba.in_proj": ("in_proj", 1),
    "conv.in_proj": ("in_proj", 3),
    "mlp.gate.idle": ("gate", 0),
    "wk": ("wk_weights_proj", 1),
    "weights_proj": ("wk_weights_proj", 1),
    "ple.kv_proj": ("kv_proj", 2),
    "wqa_wkv": ("fused_wqa_wkv", 2),
    "wkv_wgate": ("fused_wkv_wgate", 2),
    "hyper.down": ("input_mix_weight_down_block_inject", 3),
}
"""Names -> vLLM's linear layer that the matrix is a part of, and how many of its outputs it makes."""


class Adapters(NamedTuple):
    """What the flags ask for, in vLLM's words."""

    max_loras: int = 1
    max_lora_rank: int = 16
    fully_sharded_loras: bool = False
    """Cut what is otherwise whole: ranks of A before matrices cut by rows, rows of B behind those cut by columns."""
    enable_moe_shared_loras: bool = False
    """A before all experts of a layer, and B behind them, once."""
    enable_mixed_moe_lora_format: bool = False
    """An A each for gate and up, whatever the class."""
    enable_tower_connector_lora: bool = False
    lora_target_modules: tuple[str, ...] = ()
    """Last segments of names; none: all."""
    itemsize: int = 2


def lora_bytes(
    model: ModelSpec,
    adapters: Adapters,
    *,
    tensor_parallel_size: int = 1,
    span: tuple[int, int] | None = None,
    data_parallel_size: int = 1,
    enable_expert_parallel: bool = False,
    has_tower: bool = True,
    whole_tower: bool = False,
) -> int:
    """Bytes on the rank with most, of those that hold the layers in `span`; None: all layers.

    Raises:
        KvplanError: a class without adapters; experts spread whole and adapters cut over the same ranks; a rank that
            these do not divide.

    >>> from kvplan.models.load import load_model
    >>> lora_bytes(load_model("Llama-3.2-1B"), Adapters(max_loras=2)) // 2**20
    58
    """
    if model.architecture in NO_ADAPTERS.split():
        raise KvplanError(
            f"--enable-lora: {model.architecture} does not support LoRA in vLLM 0.32; leave it out"
        )
    cut = rank_cut(tensor_parallel_size, data_parallel_size, enable_expert_parallel)
    if adapters.fully_sharded_loras:
        _check_cut(model, adapters, tensor_parallel_size, enable_expert_parallel)
    each = {layer: _layer_elements(model, layer, cut, adapters) for layer in set(model.layers)}
    first, end = span or (0, len(model.layers))
    elements = sum(each[layer] for layer in model.layers[first:end])
    elements += _around_layers(model, cut, adapters, first == 0, end == len(model.layers))
    if has_tower and model.vision is not None:
        elements += _of_tower(model, 1 if whole_tower else tensor_parallel_size, adapters)
    return elements * adapters.max_loras * adapters.itemsize


def _around_layers(model: ModelSpec, cut: Cut, adapters: Adapters, first: bool, last: bool) -> int:
    """Elements for the embedding, the head or what scores, and linear layers of the model's own.

    Of the first and the last pipeline stage, or of one in between.
    """
    also = of_class(model.architecture, ALSO_ADAPTED, ())
    pairs = zip(extra_modules(model.extras, cut), extra_modules(model.extras, Cut()), strict=True)
    parts = [Part(m.name, m, whole) for m, whole in pairs if m.name in also]
    elements = sum(_of_linear(model, [part], cut, adapters) for part in parts)
    here = {"embed_tokens": holds_embedding(model, first, last), "lm_head": holds_head(model, last)}
    ends = sum(here[name] and _is_target(adapters, name) for name in _ends(model))
    elements += ends * adapters.max_lora_rank * (model.vocab_size + model.hidden_size)
    if model.pools == "classify":
        elements += _scoring(model.score_head[0], model.hidden_size, adapters)
    return elements


SCORING = "ForSequenceClassification"


def _ends(model: ModelSpec) -> tuple[str, ...]:
    """Of embedding and head, those that are adapted; one that scores or embeds has no head."""
    text = model.architecture.replace(SCORING, "ForCausalLM")
    if text in BOTH_ENDS.split():
        return ("embed_tokens", "lm_head")[: 1 if model.pools in ("embed", "classify") else 2]
    return ("embed_tokens",) if text in ONE_END.split() else ()


def _scoring(labels: int, hidden: int, adapters: Adapters) -> int:
    """Elements for the layer that scores, whatever the target modules: A, B, and a whole one with a bias in float32.

    Source: vLLM 0.32 `lora/layers/classifier.py`.
    """
    bias = labels * 4 // adapters.itemsize
    return adapters.max_lora_rank * (hidden + labels) + labels * hidden + bias


def _of_tower(model: ModelSpec, tp: int, adapters: Adapters) -> int:
    """Elements for the tower's linear layers: those that vLLM adapts unasked, or with the flag all."""
    assert model.vision is not None
    unasked = of_class(model.architecture, TOWER_UNASKED, {})
    asked = adapters.enable_tower_connector_lora and model.architecture.startswith(WITH_TOWERS)
    elements = 0
    for m, whole in _tower_pairs(model.vision, tp) if unasked or asked else ():
        part = m.name.removeprefix("vision.")
        name, num_a = unasked.get(part, ("", 0))
        if asked and m.cols > 1:
            num_a = of_class(model.architecture, TOWERS_ASKED, {}).get(part, int("embed" not in part))
            elements += m.copies * adapters.max_lora_rank * (m.rows * (num_a > 0) + m.cols * num_a)
        elif num_a and _is_target(adapters, name):
            elements += _elements(m, whole, num_a, m.rows < whole.rows, tp, adapters)
    return elements


def _tower_pairs(tower: VisionSpec, tp: int) -> Iterator[tuple[Module, Module]]:
    """The tower's matrices on one of `tp` ranks, and whole."""
    return zip(vision_modules(tower, tp), vision_modules(tower, 1), strict=True)


def _check_cut(model: ModelSpec, adapters: Adapters, tp: int, expert_parallel: bool) -> None:
    if model.is_moe and expert_parallel:
        raise KvplanError(
            "--fully-sharded-loras: vLLM does not cut adapters of experts that are spread whole; leave out "
            "--enable-expert-parallel or this"
        )
    if adapters.max_lora_rank % tp:
        raise KvplanError(
            f"--fully-sharded-loras: --max-lora-rank {adapters.max_lora_rank} does not divide by {tp} ranks"
        )


def _layer_elements(model: ModelSpec, layer: LayerSpec, cut: Cut, adapters: Adapters) -> int:
    whole = layer_modules(layer, model.hidden_size, Cut())
    pairs = list(zip(layer_modules(layer, model.hidden_size, cut), whole, strict=True))
    found = _linear_layers(model, [p for p in pairs if p[0].role != "expert"], _merged(model, layer, cut))
    elements = sum(_of_linear(model, parts, cut, adapters) for parts in found)
    own = of_class(model.architecture, OWN_NAMES, {})
    experts = [m for m, _ in pairs if m.role == "expert" and m.cols > 1]
    return elements + sum(
        sum(_of_experts(model, m, cut, adapters))
        for m in experts
        if _is_target(adapters, own.get(m.name.rpartition(".")[0], "experts"))
    )


class Part(NamedTuple):
    """What of a linear layer of vLLM's is one matrix here, on one rank and whole."""

    fused: str
    """The linear layer's name in its layer."""
    here: Module
    whole: Module
    outputs: int = 1
    """Of the layer's `output_sizes`, those that it holds."""


def _merged(model: ModelSpec, layer: LayerSpec, cut: Cut) -> dict[str, tuple[str, int]]:
    """Last segments of names -> the linear layer that a matrix is a part of, and outputs that it has there."""
    found = dict(PART_OF)
    states = {m.state.family: m.state for m in layer.mixers if m.state is not None}
    if (mamba := states.get("mamba2")) is not None and mamba["n_groups"] % cut.tp == 0:
        found |= {"mamba.in_proj": ("in_proj", 5), "mamba.conv1d": ("conv1d", 3)}
    if model.architecture.startswith(INTERLEAVED):
        found |= {name: (PART_OF[name][0], 1) for name in ("in_proj_qkv", "in_proj_z", "in_proj_ba")}
    if "kda" in states:
        found |= {
            f"self_attn.{name}_proj": ("in_proj_qkvbfg_a", 1) for name in ("q", "k", "v", "b", "f_a", "g_a")
        }
    return found


def _linear_layers(
    model: ModelSpec, pairs: Sequence[tuple[Module, Module]], merged: Mapping[str, tuple[str, int]]
) -> list[list[Part]]:
    """vLLM's linear layers of a layer, by their parts."""
    also = CONVOLUTIONS + of_class(model.architecture, ALSO_ADAPTED, ())
    found: dict[tuple[str, int], list[Part]] = {}
    seen = Counter[str]()  # a layer may have two mixers of a kind
    for m, whole in _apart(model, pairs):
        router = m.role == "router" and not (
            m.name == "mlp.gate" and model.architecture.startswith(PLAIN_ROUTERS)
        )
        if m.cols == 1 or not (m.linear or router or m.name in also):
            continue
        parent, _, last = m.name.rpartition(".")
        parent = m.name.partition(".")[0] if m.name in merged else parent
        fused, outputs = merged.get(m.name) or merged.get(last) or (last, 1)
        found.setdefault((f"{parent}.{fused}", seen[m.name]), []).append(Part(fused, m, whole, outputs))
        seen[m.name] += 1
    return list(found.values())


def _apart(model: ModelSpec, pairs: Iterable[tuple[Module, Module]]) -> Iterator[tuple[Module, Module]]:
    """Matrices that are several layers there: Q and a gate beside it, three convolutions, a layer's two MLPs."""
    gate = of_class(model.architecture, GATE_APART, "")
    two_mlps = model.architecture.startswith(TWO_MLPS)
    for m, whole in pairs:
        if gate and m.name == "self_attn.q_proj":
            m, whole = m._replace(rows=m.rows // 2), whole._replace(rows=whole.rows // 2)
            yield m, whole
            yield m._replace(name=gate), whole._replace(name=gate)
        elif m.name == "self_attn.conv1d":
            for part in "qkv":
                name = f"self_attn.{part}_conv1d"
                yield m._replace(name=name, rows=m.rows // 3), whole._replace(name=name, rows=whole.rows // 3)
        elif two_mlps and m.name.startswith("mlp.shared_experts."):
            yield _half(m), _half(whole)
        else:
            yield m, whole


def _half(m: Module) -> Module:
    """One of two MLPs that stand side by side, twice."""
    if m.name.endswith("down_proj"):
        return m._replace(cols=m.cols // 2, copies=2)
    return m._replace(rows=m.rows // 2, copies=2)


def _is_target(adapters: Adapters, *names: str) -> bool:
    """Whether any of a module's names is asked for; none asked: all are."""
    targets = set(adapters.lora_target_modules)
    return not targets or not targets.isdisjoint(names)


def _names(architecture: str, parts: Sequence[Part]) -> set[str]:
    """What a linear layer is asked for by: its own name and those of its parts, or of what has it as a part elsewhere.

    Source: vLLM 0.32 `lora/utils.py: is_in_target_modules`.
    """
    own = of_class(architecture, OWN_NAMES, {})
    parent, _, last = parts[0].here.name.rpartition(".")
    alone = len(parts) == 1
    name = last if alone else parts[0].fused
    found = {own.get(f"{parent}.{name}") or own.get(name, name)}
    whole = PARTS_OF.get(last, "")
    if packed_parts(architecture, whole) > 1:
        found |= {whole} if alone else {part.here.name.rpartition(".")[2] for part in parts}
    return found


def _of_linear(model: ModelSpec, parts: Sequence[Part], cut: Cut, adapters: Adapters) -> int:
    """Elements of A and B of a linear layer of vLLM's."""
    if not _is_target(adapters, *_names(model.architecture, parts)):
        return 0
    num_a = _num_a(model.architecture, parts, adapters)
    rows = sum(p.here.rows for p in parts) if num_a else 0
    by_rows = any(p.here.rows < p.whole.rows or p.here.name.endswith((".k_proj", ".v_proj")) for p in parts)
    return _elements(parts[0].here._replace(rows=rows), parts[0].whole, num_a, by_rows, cut.tp, adapters)


def _elements(m: Module, whole: Module, num_a: int, by_rows: bool, tp: int, adapters: Adapters) -> int:
    """So many As and their Bs; fully sharded, A's ranks are cut before cut rows, B's rows behind cut columns."""
    rank, shards = adapters.max_lora_rank, tp if adapters.fully_sharded_loras else 1
    by_cols = m.cols < whole.cols
    first = num_a * m.cols * (rank // shards if by_rows and not by_cols else rank)
    return m.copies * (first + rank * (m.rows // shards if by_cols else m.rows))


def _num_a(architecture: str, parts: Sequence[Part], adapters: Adapters) -> int:
    """How many As the class of a linear layer's adapters has; 0: vLLM has no such class.

    Source: vLLM 0.32 `can_replace_layer` of the classes in `lora/layers/column_parallel_linear.py`.
    """
    fused, outputs = parts[0].fused, sum(part.outputs for part in parts)
    packed = packed_parts(architecture, fused)
    if outputs == 1:
        return 1
    if packed == 2:
        return outputs
    if outputs == 2 or (fused == "qkv_proj" and not architecture.startswith(MERGED_QKV)):
        return packed
    return 0 if adapters.fully_sharded_loras else outputs


def _of_experts(model: ModelSpec, m: Module, cut: Cut, adapters: Adapters) -> Iterator[int]:
    """Elements of A and B of one of an expert's matrices, over all experts on the rank."""
    rank, shards = adapters.max_lora_rank, cut.expert_tp if adapters.fully_sharded_loras else 1
    one = adapters.enable_moe_shared_loras
    fused = model.architecture.startswith(FUSED_EXPERTS) and not one
    fused = fused and not adapters.enable_mixed_moe_lora_format
    if m.name.endswith("down_proj"):
        yield m.copies * m.cols * rank
        yield (1 if one else m.copies) * rank * m.rows // shards
    else:
        if not (fused and m.name.endswith("gate_proj")):
            num_a = 2 if m.name.endswith("gate_up_proj") else 1
            yield num_a * (1 if one else m.copies) * m.cols * rank // shards
        yield m.copies * rank * m.rows
