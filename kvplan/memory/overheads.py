"""What an engine takes beside weights and KV: activation peak, runtime growth, CUDA graphs. Bytes, with ranges.

At start-up the engine runs its vision tower on the largest images, one forward pass of max_num_batched_tokens and one
sampler of max_num_seqs, and keeps the largest of the three peaks free for ever after (`profile_run` of vLLM's model
runners). What is live at each, all in 16 bits but the sampler's:

    kept    = images of that profile and the embeddings they became + the experts' workspace + the GEMMs' workspace
    sampler = kept + max_num_batched_tokens x hidden x 2 + max_num_seqs x (vocabulary x bytes per logit + hidden x 2)
    forward = kept + max_num_batched_tokens x (residual streams x hidden + the widest layer's live tensors) x 2

Bytes per logit are a version's: logits, their fp32 copy, what sorting or thresholds need. Few coefficients are learned
from logs (`profile.MemoryProfile`).
"""

from __future__ import annotations

from typing import NamedTuple

from kvplan.engines.drafting import needs_first_runner
from kvplan.engines.environment import Environment
from kvplan.engines.flags import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.engines.kernel_flags import attention_config
from kvplan.engines.stages import PipelineStage
from kvplan.formulas.capacity import kv_heads_per_rank
from kvplan.formulas.graphs import Graphs
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import GiB, MiB, gib
from kvplan.memory.exchange_buffers import batched_workspace, exchange_bytes
from kvplan.memory.graphs import attention_backends, engine_graphs
from kvplan.memory.tower_attention import heads_width
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from kvplan.profiles.memory_profile import Figure, MemoryProfile

_MOE_CHUNK = 32768
"""Tokens the fused-experts kernels take at a time; wider batches reuse the same workspace."""
_GEMM_WORKSPACE = {"hopper": 32 * MiB, "blackwell": 32 * MiB}
"""What torch lets cuBLAS keep by GPU architecture (`CUDABlas.cpp`)."""
_USUAL_GEMM_WORKSPACE = 8 * MiB
MOST_KEPT = 2048
"""Words of a row whose numbers a sampling mask has."""
_SAMPLER_PROGRAMS = 132
"""Programs of the top-k/top-p kernel, each with a row of its own: as many as the card has multiprocessors, of which
H100 and H200 have 132 and the others 72 to 188."""


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
    """Per GPU of one pipeline stage."""

    activation: Range
    activation_why: str
    """What peaks highest (sampler, forward pass or vision tower), its formula and source."""
    runtime: Range
    graphs: Range
    """What captured CUDA graphs take, whether or not the budget holds them."""
    runtime_why: str = ""
    graphs_source: str = ""
    graphs_inside: bool = False
    """Whether graphs are deducted before the KV pool."""


def estimate_overheads(
    model: ModelSpec,
    args: ResolvedArgs,
    gpu: GpuSpec,
    engine: EngineVersion,
    profile: MemoryProfile,
    stage: PipelineStage,
) -> Overheads:
    """Overheads of one rank of a pipeline stage of `model` under `args`; only the last one samples."""
    tokens, rows = args.max_num_batched_tokens, args.max_num_seqs
    per_logit = bytes_per_logit(model, args, profile)
    kept = kept_bytes(model, args, gpu, profile, stage, engine)
    logits = _scaled(rows * model.vocab_size, per_logit)
    masks = mask_bytes(model, args)
    sampler = logits + exact(kept + sampler_inputs(model, args, profile)) + Range(masks, 0, masks)
    samples = f"sampler of {rows:,} x {model.vocab_size:,} logits"
    if args.runner == "pooling":
        sampler, samples = exact(kept + pooler_bytes(model, args)), f"pooler of {tokens:,} tokens"
    forward = _scaled(forward_bytes(model, args, profile, stage), profile.forward_scale) + exact(kept)
    tower, of_tower = _tower(model, args, gpu, profile, stage)
    indexer = (
        exact(kept + indexer_moment(model, args, profile, stage)) if engine.is_vllm(*INDEXED) else NOTHING
    )
    peaks = [
        (sampler if stage.is_last else NOTHING, samples, per_logit),
        (forward, f"forward pass of {tokens:,} tokens", profile.forward_scale),
        (indexer, "logits of an indexer", profile.forward_scale),
        (tower, _tower_words(model, args, profile, stage), of_tower),
    ]
    size, what, figure = max(peaks, key=lambda peak: peak[0].value)
    activation = Range(size.value, max(p[0].low for p in peaks), max(p[0].high for p in peaks))
    runtime, runtime_why = _runtime(args, gpu, profile)
    if more := flashinfer_workspace(model, args, gpu):
        runtime += Range(more, min(0, more), max(0, more))
        runtime_why += f"; {gib(more):+.2f} GiB of FlashInfer's workspace, or none where it is made later"
    if buffers := exchange_bytes(model, args):
        runtime += exact(buffers)
        runtime_why += f"; {gib(buffers):.2f} GiB of buffers of {args.all2all_backend}"
    per_layer = profile.graph_mib_per_layer.get(gpu.architecture, profile.graph_mib_per_layer["default"])
    captured = captured_graphs(model, args, gpu, engine, profile)
    graphs = _scaled(MiB * captured.num_captured * stage.num_layers, per_layer)
    why = f"{_told(captured)} x {stage.num_layers} layers; {per_layer.source}"
    inside = profile.graphs_in_budget and args.environment.memory_profiler_estimate_cudagraphs
    if profile.outside_in_second_runner and second_runner(model, args, profile):
        inside = False
    what += _words_of_sizes(model, args, profile, stage)
    return Overheads(activation, f"{what}; {figure.source}", runtime, graphs, runtime_why, why, inside)


def captured_graphs(
    model: ModelSpec, args: ResolvedArgs, gpu: GpuSpec, engine: EngineVersion, profile: MemoryProfile
) -> Graphs:
    """The graphs that the engine captures."""
    return engine_graphs(model, args, gpu, engine, second_runner=second_runner(model, args, profile))


def _told(graphs: Graphs) -> str:
    """E.g. 86 graphs; with what the default is not: 51 graphs (PIECEWISE)."""
    told = [] if graphs.mode == "FULL_AND_PIECEWISE" else [graphs.mode]
    told += ["any number of drafts"] if graphs.varlen else []
    if graphs.widths:
        told.append(f"of {', '.join(str(width - 1) for width in graphs.widths)} drafts")
    told += [f"{graphs.num_cases} sets for LoRA"] if graphs.num_cases > 1 else []
    return f"{graphs.num_captured} graphs" + (f" ({', '.join(told)})" if told else "")


def exact(num_bytes: int) -> Range:
    """A range of one value."""
    return Range(num_bytes, num_bytes, num_bytes)


def second_runner(model: ModelSpec, args: EngineArgs, profile: MemoryProfile) -> bool:
    """Whether vLLM's second model runner serves the model, asked to or by default: its sampler holds fewer logits."""
    asked, named = args.environment.use_v2_model_runner, profile.second_runner
    if args.watermark_config is not None or args.return_sampling_mask:  # which the first one has not
        asked = True
    if asked is not None and profile.second_sampler_bytes_per_logit is not None:
        return asked
    if args.num_micro_batches > 1 or needs_first_runner(args):
        return False
    mixers = (mixer for layer in model.layers for mixer in layer.mixers)
    dense = not model.is_moe and all(mixer.kind is not AttentionKind.STATE for mixer in mixers)
    return "all" in named or ("dense" in named and dense) or model.architecture in named


def bytes_per_logit(model: ModelSpec, args: EngineArgs, profile: MemoryProfile) -> Figure:
    """What the profiling sampler holds per logit."""
    second = profile.second_sampler_bytes_per_logit if second_runner(model, args, profile) else None
    return second or profile.sampler_bytes_per_logit


def kept_bytes(
    model: ModelSpec,
    args: ResolvedArgs,
    gpu: GpuSpec,
    profile: MemoryProfile,
    stage: PipelineStage,
    engine: EngineVersion,
) -> int:
    """What stays allocated from earlier in the profile run, whichever moment peaks."""
    workspace = _GEMM_WORKSPACE.get(gpu.architecture, _USUAL_GEMM_WORKSPACE)
    if profile.keeps_expert_workspace:
        layers = stage.layers(model)
        widths = (_expert_workspace(layer.mlp, model.hidden_size, args) for layer in layers)
        own = int(2 * min(args.max_num_batched_tokens, _MOE_CHUNK) * max(widths, default=0))
        shared = batched_workspace(model, args) or own + own * (args.num_micro_batches - 1) // (
            args.num_micro_batches
        )  # each part's own; the first's is for steps that stay whole
        workspace += max(shared, indexer_workspace(model, args, stage, engine))
    if profile.legacy or not _profiles_tower(model, args, profile, stage):
        return workspace
    from kvplan.memory.tower_profile import embedded_bytes

    assert model.vision is not None
    return workspace + embedded_bytes(model.vision, args, model.hidden_size)


def indexer_workspace(
    model: ModelSpec, args: ResolvedArgs, stage: PipelineStage, engine: EngineVersion
) -> int:
    """Bytes of an indexer's keys of long prompts in the workspace that all layers share, where experts' rows are fewer.

    132 bytes (128 of a key in FP8, 4 of its scale; 68 in MXFP4) for 8 x `sparse_mla_prefill_workspace_factor` x
    max_model_len tokens, or for one of `compress_ratio` of them, and 1 MiB of the top-k kernel's. Source: vLLM 0.32
    `v1/attention/backends/mla/indexer.py: get_max_prefill_buffer_size`, `sparse_attn_indexer.py`. Older ones had 40
    times max_model_len whatever its length (issue 55221, pull requests 42856 and 41002), in a workspace since pull
    request 27532, so in all that keep one.
    """
    mixers = _indexers(model, stage)
    if not mixers:
        return 0
    told, length = attention_config(args.attention_config), args.max_model_len
    usual = 5 if length <= 256 * 1024 or not engine.is_vllm(*INDEXED) else 2
    factor = told.sparse_mla_prefill_workspace_factor or usual
    least = min(max(m.compress_ratio, 1) for m in mixers)
    key = 68 if told.indexer_kv_dtype == "mxfp4" else 132
    return length * (576 * 2 // 132) * factor // least * key + MiB


def _expert_workspace(mlp: MlpSpec, hidden: int, args: ResolvedArgs) -> float:
    """Elements per token of the two buffers that the experts' kernels share among all layers.

    Source: `workspace_shapes` of vLLM's Triton and Marlin experts; gpt-oss' own kernels on Hopper have none.
    """
    if not mlp.num_experts or mlp.bias:
        return 0
    split = 1 if args.enable_expert_parallel else args.tensor_parallel_size
    expert, width = mlp.intermediate_size / split, mlp.latent_size or hidden
    return mlp.experts_per_token * (max(expert, width) + max((mlp.num_matrices - 1) * expert, width))


def sampler_inputs(model: ModelSpec, args: ResolvedArgs, profile: MemoryProfile) -> int:
    """Bytes beside the logits when the profiling sampler peaks; every rank gathers all logits."""
    rows, tokens = args.max_num_seqs, args.max_num_batched_tokens
    states = 2 * model.hidden_size * (tokens + rows)
    if second_runner(model, args, profile):
        return states  # whose noise lives in registers (`v1/worker/gpu/sample/gumbel.py`)
    thresholds = 4 * model.vocab_size * min(rows, _SAMPLER_PROGRAMS) if profile.sampler_thresholds else 0
    wider = 4 * rows * model.vocab_size if args.use_fp64_gumbel else 0  # the noise (`v1/sample/ops`)
    return states + thresholds + wider


def mask_bytes(model: ModelSpec, args: ResolvedArgs) -> int:
    """Bytes of what `--return-sampling-mask` keeps of a step's rows: words that could have been drawn, as bits and, up
    to 2,048 of them, by their numbers; at most so much, where the logits that it is made of are gone before.

    Source: vLLM 0.32 `v1/worker/gpu/sample/output.py: SamplingMaskTensors.from_logits`.
    """
    if not args.return_sampling_mask:
        return 0
    return args.max_num_seqs * (-(-model.vocab_size // 8) + 4 * min(model.vocab_size, MOST_KEPT) + 4)


def pooler_bytes(model: ModelSpec, args: ResolvedArgs) -> int:
    """Bytes that are live when start-up pools a step of max_num_batched_tokens: states, and what becomes of them.

    Reward models of two layers hold the states in the scores' dtype, the first layer's answer and what of it is
    positive; embeddings stay, as wide as the states, in float32, until all requests have theirs; other scores are few.
    Source: vLLM 0.32 `v1/worker/gpu/pool/pooling_runner.py`, `model_executor/layers/pooler/tokwise/heads.py`,
    `model_executor/models/qwen2_rm.py`.
    """
    per_token, size = 2 * model.hidden_size, model.score_itemsize
    if len(model.score_head) == 2:
        inner = model.score_head[0] // args.tensor_parallel_size
        per_token += size * (model.hidden_size + 2 * inner)
    elif not model.score_head:
        per_token += size * model.hidden_size
    return args.max_num_batched_tokens * per_token


def _profiles_tower(
    model: ModelSpec, args: ResolvedArgs, profile: MemoryProfile, stage: PipelineStage
) -> bool:
    """Whether images run through the tower: on every stage, by vLLM's second runner on the first alone.

    Source: vLLM 0.32 `profile_run` of `v1/worker/gpu_model_runner.py` and `v1/worker/gpu/model_runner.py`.
    """
    here = stage.is_first or not second_runner(model, args, profile)
    if not here or model.vision is None or args.language_model_only or args.skip_mm_profiling:
        return False
    from kvplan.memory.tower_profile import runs_none  # only for models that see: a cold start stays short

    return not runs_none(model.vision, args)


def _words_of_sizes(
    model: ModelSpec, args: ResolvedArgs, profile: MemoryProfile, stage: PipelineStage
) -> str:
    """Of sizes of items that flags state: which do not act."""
    stated = args.mm_processor_kwargs or args.limit_mm_per_prompt
    if not stated or not _profiles_tower(model, args, profile, stage):
        return ""
    from kvplan.memory.tower_profile import idle_words, sizes_left_out

    assert model.vision is not None
    if sizes_left_out(model.vision, args):
        return ", stated sizes not planned"
    idle = idle_words(model.vision, args)
    return f", {idle}" if idle else ""


def _tower(
    model: ModelSpec, args: ResolvedArgs, gpu: GpuSpec, profile: MemoryProfile, stage: PipelineStage
) -> tuple[Range, Figure]:
    """The peak of profiling the vision tower, and the figure behind it."""
    if not _profiles_tower(model, args, profile, stage):
        return NOTHING, profile.vision_gib
    from kvplan.memory.tower_profile import tower_bytes  # only for models that see: a cold start stays short

    assert model.vision is not None
    known = tower_bytes(model.vision, args, heads_width(model, args, gpu)) if profile.vision_scale else None
    if known is None or profile.vision_scale is None:
        return _scaled(GiB, profile.vision_gib), profile.vision_gib
    peak = _scaled(known, profile.vision_scale)
    if args.model_impl == "transformers":  # another tower's code, on items that its own processor makes
        peak = Range(peak.value, peak.low // 2, 2 * peak.high)
    return peak, profile.vision_scale


def _tower_words(model: ModelSpec, args: ResolvedArgs, profile: MemoryProfile, stage: PipelineStage) -> str:
    """What the tower is profiled on, where its peak is computed from that."""
    if not _profiles_tower(model, args, profile, stage) or profile.vision_scale is None:
        return "vision tower"
    from kvplan.memory.tower_profile import profiled_items

    assert model.vision is not None
    items = profiled_items(model.vision, args)
    whose = ", as of vLLM's own class" if args.model_impl == "transformers" else ""
    return f"{items[0]} tower on {items[1]}{whose}" if items else "vision tower"


def _runtime(args: ResolvedArgs, gpu: GpuSpec, profile: MemoryProfile) -> tuple[Range, str]:
    """Growth outside torch's peak, by card and by what joins its ranks."""
    figure = profile.runtime_gib_of.get(gpu.architecture, profile.runtime_gib)
    runtime, why = _scaled(GiB, figure), figure.source
    if args.tensor_parallel_size > 1:
        joined = profile.runtime_gib_joined if "NVLink" in gpu.interconnect else None
        if joined is not None:
            return runtime + _scaled(GiB, joined), f"{joined.source}; one alone: {why}"
        peers = profile.runtime_gib_per_peer
        runtime += _scaled(GiB * (args.tensor_parallel_size - 1), peers)
        why += f"; per further rank: {peers.source}"
    return runtime, why


def _scaled(unit: float, figure: Figure) -> Range:
    return Range(int(unit * figure.value), int(unit * figure.low), int(unit * figure.high))


def flashinfer_workspace(model: ModelSpec, args: ResolvedArgs, gpu: GpuSpec) -> int:
    """Bytes of FlashInfer's workspace beyond the usual, which logs have; latent attention takes it in the profile run,
    other attention with its first step.

    Source: vLLM 0.32 `v1/attention/backends/flashinfer.py`, `mla/prefill/flashinfer.py`.
    """
    more = args.environment.flashinfer_workspace_buffer_size - Environment().flashinfer_workspace_buffer_size
    serves = more and any(name.startswith("FLASHINFER") for name in attention_backends(model, args, gpu))
    return more if serves else 0


INDEXED = (0, 32)
"""Whose indexers' profile run was read; what older versions reserve is not known."""


def _indexers(model: ModelSpec, stage: PipelineStage) -> list[AttentionSpec]:
    """Attention of a stage whose indexer is vLLM's `SparseAttnIndexer`."""
    kinds = (AttentionKind.MLA, AttentionKind.COMPRESSED)
    return [m for layer in stage.layers(model) for m in layer.mixers if m.index_topk and m.kind in kinds]


def indexer_moment(model: ModelSpec, args: ResolvedArgs, profile: MemoryProfile, stage: PipelineStage) -> int:
    """Bytes when an indexer's logits peak in the profile run: VLLM_SPARSE_INDEXER_MAX_LOGITS_MB, and the streams.

    Source: vLLM 0.32 `model_executor/layers/sparse_attn_indexer.py`, `sparse_mqa_indexer.py`.
    """
    if not _indexers(model, stage):
        return 0
    streams = 2 * args.max_num_batched_tokens * profile.residual_streams * model.hidden_size
    return streams + args.environment.sparse_indexer_max_logits_mb * MiB


def forward_bytes(model: ModelSpec, args: ResolvedArgs, profile: MemoryProfile, stage: PipelineStage) -> int:
    """Peak of live tensors in one forward pass of max_num_batched_tokens, 16-bit activations."""
    tokens, tp = args.max_num_batched_tokens, args.tensor_parallel_size
    copied = _quantised_copy(model)
    layers = stage.layers(model)
    widths = (_layer_width(layer, model.hidden_size, tokens, tp, copied, profile) for layer in layers)
    widest = max(widths, default=0.0)
    return int(2 * tokens * (profile.residual_streams * model.hidden_size + widest))


def _quantised_copy(model: ModelSpec) -> float:
    """Size of the copy that an int8 layer makes of the down projection's input, over the 16-bit one's.

    FP8 layers quantise in the same kernel that multiplies gate and up.
    """
    told = str((model.quantization or {}).get("config_groups", ""))
    return 0.5 if "'num_bits': 8" in told and "'type': 'int'" in told and "'channel'" in told else 0.0


def _layer_width(
    layer: LayerSpec, hidden: int, tokens: int, tp: int, copied: float, profile: MemoryProfile
) -> float:
    """Elements per token that the layer's widest moment holds, beside the residual streams."""
    mlp = layer.mlp
    if not mlp.num_experts:
        inside = (mlp.num_matrices + copied) * mlp.intermediate_size / tp
    else:
        inside = hidden + mlp.num_matrices * mlp.shared_intermediate_size / tp
        if not profile.keeps_expert_workspace:
            inside += _routed_width(mlp, hidden, tp) * min(1.0, _MOE_CHUNK / tokens)
    return max(inside, *(_attention_width(m, tp) for m in layer.mixers))


def _routed_width(mlp: MlpSpec, hidden: int, tp: int) -> float:
    expert = mlp.intermediate_size / tp
    return mlp.experts_per_token * (max((mlp.num_matrices - 1) * expert, hidden) + expert)


def _attention_width(spec: AttentionSpec, tp: int) -> float:
    """Queries, keys, values and the output of one layer."""
    heads, kv_heads = spec.num_heads / tp, int(kv_heads_per_rank(spec.num_kv_heads, tp))
    values = spec.v_head_dim or spec.head_dim
    return heads * (spec.head_dim + values) + kv_heads * (spec.head_dim + values)
