"""What an engine takes beside weights and KV: activation peak, runtime growth, CUDA graphs. Bytes, with ranges.

Physics with few learned coefficients (`profile.MemoryProfile`): at start-up the engine runs one forward pass of
max_num_batched_tokens and one sampler of max_num_seqs, and keeps the larger peak free for ever after.

    sampler = coefficient x max_num_seqs x vocabulary + max_num_batched_tokens x hidden x 2
    forward = max_num_batched_tokens x (3 x hidden + the widest layer's live tensors) x 2
"""

from __future__ import annotations

from typing import NamedTuple

from kvplan.engines.flags import ResolvedArgs
from kvplan.formulas.capacity import kv_heads_per_rank
from kvplan.gpu import GpuSpec
from kvplan.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from kvplan.profiles.memory_profile import Figure, MemoryProfile
from kvplan.timing.costs import capture_sizes
from kvplan.units import GiB, MiB, cdiv

_MOE_CHUNK = 32768
"""Tokens the fused-experts kernels take at a time; wider batches reuse the same workspace."""


class Range(NamedTuple):
    """Bytes with the range that the learned coefficients span."""

    value: int
    low: int
    high: int

    def __add__(self, other: object) -> Range:
        """Sum of two ranges; not a tuple's concatenation."""
        assert isinstance(other, Range)
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)


NOTHING = Range(0, 0, 0)


class Overheads(NamedTuple):
    """Per GPU, on the rank that has most."""

    activation: Range
    activation_why: str
    """What peaks highest (sampler, forward pass or vision tower), its formula and source."""
    runtime: Range
    graphs: Range
    """What captured CUDA graphs take, whether or not the budget holds them."""
    graphs_source: str = ""


def estimate_overheads(
    model: ModelSpec, args: ResolvedArgs, gpu: GpuSpec, profile: MemoryProfile, *, last_stage: bool = True
) -> Overheads:
    """Overheads of one rank of `model` under `args`; only the last pipeline stage samples."""
    tokens, rows = args.max_num_batched_tokens, args.max_num_seqs
    sampler = _sampler(model, args, profile) if last_stage else NOTHING
    forward = _scaled(forward_bytes(model, args), profile.forward_scale)
    tower, of_tower = _tower(model, args, profile)
    peaks = [
        (sampler, f"sampler of {rows:,} x {model.vocab_size:,} logits", profile.sampler_bytes_per_logit),
        (forward, f"forward pass of {tokens:,} tokens", profile.forward_scale),
        (tower, "vision tower", of_tower),
    ]
    size, what, figure = max(peaks, key=lambda peak: peak[0].value)
    activation = Range(size.value, max(p[0].low for p in peaks), max(p[0].high for p in peaks))
    peers = _scaled(GiB * (args.tensor_parallel_size - 1), profile.runtime_gib_per_peer)
    runtime = _scaled(GiB, profile.runtime_gib) + peers
    per_layer = profile.graph_mib_per_layer.get(gpu.architecture, profile.graph_mib_per_layer["default"])
    graphs = _scaled(MiB * num_graphs(args, gpu) * _stage_layers(model, args), per_layer)
    why = f"{num_graphs(args, gpu)} graphs x {_stage_layers(model, args)} layers; {per_layer.source}"
    return Overheads(activation, f"{what}; {figure.source}", runtime, graphs, why)


def _tower(model: ModelSpec, args: ResolvedArgs, profile: MemoryProfile) -> tuple[Range, Figure]:
    """The peak of profiling the vision tower, and the figure behind it."""
    if model.vision is None or args.language_model_only or args.skip_mm_profiling:
        return NOTHING, profile.vision_gib
    from kvplan.memory.tower_profile import tower_bytes  # only for models that see: a cold start stays short

    known = tower_bytes(model.vision, args) if profile.vision_scale else None
    if known is None or profile.vision_scale is None:
        return _scaled(GiB, profile.vision_gib), profile.vision_gib
    return _scaled(known, profile.vision_scale), profile.vision_scale


def _scaled(unit: float, figure: Figure) -> Range:
    return Range(int(unit * figure.value), int(unit * figure.low), int(unit * figure.high))


def _sampler(model: ModelSpec, args: ResolvedArgs, profile: MemoryProfile) -> Range:
    """The profiling sampler's peak; every rank gathers all logits."""
    rows = args.max_num_seqs
    logits = _scaled(rows * model.vocab_size, profile.sampler_bytes_per_logit)
    hidden = args.max_num_batched_tokens * model.hidden_size * 2
    return logits + Range(hidden, hidden, hidden)


def forward_bytes(model: ModelSpec, args: ResolvedArgs) -> int:
    """Peak of live tensors in one forward pass of max_num_batched_tokens, 16-bit activations."""
    tokens, tp = args.max_num_batched_tokens, args.tensor_parallel_size
    widest = max((_layer_width(layer, model.hidden_size, tokens, tp) for layer in model.layers), default=0.0)
    return int(2 * tokens * (3 * model.hidden_size + widest))


def _layer_width(layer: LayerSpec, hidden: int, tokens: int, tp: int) -> float:
    """Elements per token that the layer's widest moment holds, beside three hidden states."""
    return max(_mlp_width(layer.mlp, hidden, tokens, tp), *(_attention_width(m, tp) for m in layer.mixers))


def _mlp_width(mlp: MlpSpec, hidden: int, tokens: int, tp: int) -> float:
    gates = mlp.num_matrices - 1
    if not mlp.num_experts:
        return (gates + 1) * mlp.intermediate_size / tp
    expert = mlp.intermediate_size / tp
    share = min(1.0, _MOE_CHUNK / tokens)
    routed = mlp.experts_per_token * (max(gates * expert, hidden) + expert) * share
    return routed + hidden + mlp.shared_intermediate_size / tp


def _attention_width(spec: AttentionSpec, tp: int) -> float:
    """Queries, keys, values and the output of one layer."""
    heads, kv_heads = spec.num_heads / tp, int(kv_heads_per_rank(spec.num_kv_heads, tp))
    values = spec.v_head_dim or spec.head_dim
    return heads * (spec.head_dim + values) + kv_heads * (spec.head_dim + values)


def graph_sizes(args: ResolvedArgs, gpu: GpuSpec) -> tuple[int, ...]:
    """Batch sizes, in tokens, that CUDA graphs are captured for (vLLM 0.32 `config/vllm.py`).

    The usual staircase up to twice the widest decode batch, and with drafts each decode size times its width.
    """
    width = 1 + args.num_speculative_tokens
    ceiling = 1024 if 10 <= gpu.compute_capability < 11 else 512
    most = min(args.max_num_seqs * width * 2, ceiling)
    requests = {*capture_sizes(min(args.max_num_seqs, ceiling)), min(args.max_num_seqs, ceiling)}
    decodes = {n * width for n in requests if n * width <= most}
    sizes = {*capture_sizes(most), *decodes}
    return tuple(sorted(n for n in sizes if n <= args.max_num_batched_tokens))


def num_graphs(args: ResolvedArgs, gpu: GpuSpec) -> int:
    """Graphs captured: one per size for mixed steps, one per decode size for pure decode steps."""
    if args.enforce_eager:
        return 0
    sizes = graph_sizes(args, gpu)
    width = 1 + args.num_speculative_tokens
    return len(sizes) + sum(1 for size in sizes if size <= args.max_num_seqs * width and size % width == 0)


def _stage_layers(model: ModelSpec, args: ResolvedArgs) -> int:
    return cdiv(len(model.layers), args.pipeline_parallel_size)
