"""Where a card's memory goes, row by row, and what is left for KV. Bytes, each with a range and its source.

    vLLM           KV = utilization x total - weights - activation peak - runtime growth - CUDA graphs (from 0.20)
    SGLang         KV = free after loading - free before loading x (1 - mem_fraction_static)
    TensorRT-LLM   KV = free_gpu_memory_fraction x free after loading

CUDA context and NCCL lie outside vLLM's budget: its baseline is taken after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from math import ceil, hypot
from typing import Literal

from kvplan.engines.draft_kinds import READ_STATES
from kvplan.engines.ec_transfer import ec_transfer
from kvplan.engines.flags import EngineVersion, ResolvedArgs
from kvplan.engines.mm_limits import unused_towers
from kvplan.engines.rank_weights import weights_of_stages
from kvplan.engines.speculative_config import speculation
from kvplan.engines.stages import PipelineStage
from kvplan.engines.weight_offload import weight_offload
from kvplan.engines.weights_held import weights_held
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import GiB, gib
from kvplan.memory.expert_balance import eplb_bytes
from kvplan.memory.kv.checks import model_dtype
from kvplan.memory.kv.pages import hidden_states_kept
from kvplan.memory.overheads import NOTHING, Overheads, Range, estimate_overheads, exact
from kvplan.memory.tower_attention import workspace_bytes
from kvplan.models.held import AS_LOADED
from kvplan.models.kv_sharing import fast_prefill_bytes, reads_fast_prefill
from kvplan.models.lora import Adapters, lora_bytes
from kvplan.models.lora_classes import TOWERS_ASKED, UNASKED, WITH_TOWERS
from kvplan.models.spec import ModelSpec
from kvplan.profiles.memory_profile import UNSEEN_SPREAD, MemoryProfile, memory_profile

SourceKind = Literal["computed", "measured", "assumed"]
SKIPS_TOWERS = (0, 27)
"""Since when `--language-model-only` leaves the tower's weights out: 0.32's classes do, a log of 0.26 holds them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One use of a card's memory."""

    name: str
    """Key, e.g. weights."""
    label: str
    """As printed."""
    size: Range
    kind: SourceKind
    why: str
    """Formula, log or flag that the figure comes from."""

    @property
    def source(self) -> str:
        """Kind and reason, with the range where there is one."""
        low, high = gib(self.size.low), gib(self.size.high)
        spread = f" ({low:.2f}-{high:.2f})" if high - low >= 0.01 else ""
        return f"{self.kind}: {self.why}{spread}"


@dataclass(frozen=True, slots=True)
class Budget:
    """One GPU's memory: rows that add up to its total."""

    total: Row
    outside: Row
    weights: Row
    activation: Row
    runtime: Row
    graphs: Row
    colocated: tuple[Row, ...]
    kv: Row
    """What is left; negative where nothing is."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every use in the order printed; they sum to the total."""
        middle = (self.weights, *self.colocated, self.activation, self.runtime, self.graphs)
        return (self.outside, *middle, self.kv)

    @property
    def budget_bytes(self) -> int:
        """What the engine may fill."""
        return self.total.size.value - self.outside.size.value


@dataclass(frozen=True, slots=True)
class Colocated:
    """Another model on the same GPUs: its share of one rank."""

    role: str
    model: str
    weights_bytes: int
    kv_bytes: int


def make_budget(
    model: ModelSpec,
    args: ResolvedArgs,
    gpu: GpuSpec,
    engine: EngineVersion,
    loaded: Range,
    *,
    stage: PipelineStage,
    colocated: tuple[Colocated, ...] = (),
    profile: MemoryProfile | None = None,
) -> Budget:
    """Memory of one rank on one pipeline stage that loads so many bytes of weights."""
    learned = profile or memory_profile(engine.engine, engine.version, engine.legacy)
    gpu = _as_seen(gpu, learned)
    over = estimate_overheads(model, args, gpu, engine, learned, stage)
    kind: SourceKind = "measured"
    if not learned.has_seen(gpu):
        over, kind = _unseen(over), "assumed"
    low, high = gpu.total_bytes_range
    total = Row("total", "total", Range(gpu.total_bytes, low, high), _card_kind(gpu), _card_source(gpu))
    others = (
        *_lora(model, args, stage),
        *_fast_prefill(model, args, engine),
        *_prompt_embeds(model, args),
        *_eplb(model, args, stage),
        *_videos(model, args),
        *_tower_workspace(model, args),
        *(_colocated_row(c) for c in colocated),
    )
    others += (*_draft_logits(model, args, engine), *_extracted(model, args)) if stage.is_last else ()
    others += tuple(_received(args, engine)) if stage.is_first else ()
    weights = _weights(model, args, gpu, engine, loaded, learned, stage)
    activation, runtime = _activation(over, engine, kind), _runtime(over, kind)
    graphs = _graphs(over, over.graphs_inside and gpu.vendor != "amd", kind)
    taken = [row.size for row in (weights, *others, activation, runtime, graphs)]
    kept = sum(row.size.value for row in others if row.name == "mm_ipc")
    outside, kv = _split(gpu, args, engine, taken, runtime.size.value, kept, stage)
    return Budget(
        total=total,
        outside=outside,
        weights=weights,
        activation=activation,
        runtime=runtime,
        graphs=graphs,
        colocated=others,
        kv=kv,
    )


NO_LOGS = "no start-up log of this kind of card"


def _unseen(over: Overheads) -> Overheads:
    """The overheads of a kind of card that no start-up log is known of: others', in a wider range."""

    def wide(size: Range) -> Range:
        return Range(size.value, int(size.low / UNSEEN_SPREAD), int(size.high * UNSEEN_SPREAD))

    return over._replace(
        activation=wide(over.activation),
        activation_why=f"{NO_LOGS}; {over.activation_why}",
        runtime=wide(over.runtime),
        graphs=wide(over.graphs),
        graphs_source=f"{NO_LOGS}; {over.graphs_source}",
    )


def _card_kind(gpu: GpuSpec) -> SourceKind:
    """assumed where no log or tool printed this card's total."""
    unsure = ("assumed", "estimated", "stated by the user", "total as")
    return "assumed" if any(word in gpu.source for word in unsure) else "measured"


def _card_source(gpu: GpuSpec) -> str:
    return f"{gpu.name}: {gpu.source}" + (f"; {gpu.differs}" if gpu.differs else "")


def _as_seen(gpu: GpuSpec, learned: MemoryProfile) -> GpuSpec:
    """The card with the total that the profile saw on it."""
    seen = learned.total_gib.get(gpu.name)
    if seen is None:
        return gpu
    return gpu.model_copy(
        update={"usable_gib": seen.value, "usable_gib_range": (seen.low, seen.high), "source": seen.source}
    )


def _weights(
    model: ModelSpec,
    args: ResolvedArgs,
    gpu: GpuSpec,
    engine: EngineVersion,
    loaded: Range,
    learned: MemoryProfile,
    stage: PipelineStage,
) -> Row:
    """Computed weights, and what the profile saw the model load beyond them."""
    wide, apart = _held_otherwise(model, args, gpu, engine, stage)
    why = _weights_reason(model, args, stage, "held in 16 bits" if gib(wide) >= 0.005 else "")
    why += f"; {gib(wide):.2f} GiB of it for want of a kernel" if gib(wide) >= 0.005 else ""
    why += f"; {gib(apart):.2f} GiB of it between rows of FP8" if gib(apart) >= 0.005 else ""
    why += _in_host(model, args, stage)
    why += "".join(f"; {tower} counted too" for tower in unloaded_towers(model, args, engine))
    more = learned.weights_gib.get(model.name) or learned.weights_gib.get(model.planned_as)
    if more is None:
        why += "; padding by the kernel" if loaded.low < loaded.high else ""
        return Row("weights", "weights", loaded, "computed", why)
    low, value, high = (loaded.value + int(one * GiB) for one in (more.low, more.value, more.high))
    return Row("weights", "weights", Range(value, low, high), "measured", more.source)


def _split(
    gpu: GpuSpec,
    args: ResolvedArgs,
    engine: EngineVersion,
    taken: list[Range],
    context: int,
    kept: int,
    stage: PipelineStage,
) -> tuple[Row, Row]:
    """(outside the budget, left for KV); a stated pool gives up `kept` bytes of its own."""
    used = _sum(taken)
    total = gpu.total_bytes
    if args.kv_cache_memory_bytes is not None:
        asked = exact(args.kv_cache_memory_bytes - kept)
        rest = exact(total - used.value - asked.value)
        outside = Row("outside_budget", "left over", rest, "computed", "the rest of the card")
        return outside, Row("kv_pool", "KV cache", asked, "computed", "--kv-cache-memory-bytes")
    share = _share(args, engine, total, used, context)
    low, high = (_share(args, engine, end, used, context).budget for end in gpu.total_bytes_range)
    more, less = _joint(taken)
    flag = share.flag + ("; the host's own use must fit in it" if gpu.unified_memory else "")
    outside = Row("outside_budget", share.label, exact(total - share.budget), "computed", flag)
    pool = Range(share.budget - used.value, low - used.value - more, high - used.value + less)
    why = "what weights and overheads leave" + (f" on {stage}, the tightest" if stage.num > 1 else "")
    return outside, Row("kv_pool", "KV cache", pool, "computed", why)


def with_stated_blocks(budget: Budget, pool_bytes: int) -> Budget:
    """The budget where blocks are stated: vLLM takes so much, whatever is left, and the rest of the card stays."""
    rest = exact(budget.outside.size.value + budget.kv.size.value - pool_bytes)
    return replace(
        budget,
        outside=Row("outside_budget", "left over", rest, "computed", "the rest of the card"),
        kv=Row("kv_pool", "KV cache", exact(pool_bytes), "computed", "--num-gpu-blocks-override"),
    )


def _joint(ranges: list[Range]) -> tuple[int, int]:
    """(more, less) than their summed values: deviations of one figure say nothing of another's, so squares add up."""
    more = hypot(*(one.high - one.value for one in ranges))
    return int(more), int(hypot(*(one.value - one.low for one in ranges)))


def _sum(ranges: list[Range]) -> Range:
    return reduce(lambda a, b: a + b, ranges, NOTHING)


@dataclass(frozen=True, slots=True)
class _Share:
    budget: int
    label: str
    flag: str


def _share(args: ResolvedArgs, engine: EngineVersion, total: int, used: Range, context: int) -> _Share:
    """The part of the card that the engine fills; `context` is gone before SGLang looks."""
    fraction = args.gpu_memory_utilization
    if engine.engine == "tensorrt-llm":
        filled = used.value + int((total - used.value) * fraction)
        return _Share(filled, f"kept free ({1 - fraction:.2g} of the rest)", "free_gpu_memory_fraction")
    if engine.engine == "sglang":
        filled = context + int((total - context) * fraction)
        why = "--mem-fraction-static; activations and graphs live here"
        return _Share(filled, f"outside the {fraction:g} share", why)
    return _Share(ceil(total * fraction), f"outside the {fraction:g} budget", "--gpu-memory-utilization")


def _weights_reason(model: ModelSpec, args: ResolvedArgs, stage: PipelineStage, held: str) -> str:
    stated = "as stated" if args.quantization_config else args.quantization
    how = f"quantised ({stated})" if stated else _format_of(model)
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size
    share = f", one of {ranks} ranks" if ranks > 1 else ""
    layers = f"{stage.first_layer}-{stage.end_layer - 1}"
    share += f", layers {layers} ({stage})" if stage.num > 1 else ""
    share += f", experts over {args.num_gpus} GPUs" if args.enable_expert_parallel and model.is_moe else ""
    return f"parameters of {model.architecture} x {how}{f' {held}' if held else ''}{share}"


def _held_otherwise(
    model: ModelSpec, args: ResolvedArgs, gpu: GpuSpec, engine: EngineVersion, stage: PipelineStage
) -> tuple[int, int]:
    """Bytes more than the checkpoint's for the kernels of this card: (of matrices in 16 bits, between rows of FP8)."""
    held = weights_held(args, gpu, engine)
    if not held.is_noticed or not (model.quantization or args.quantization or args.quantization_config):
        return 0, 0
    plain, dense, whole = (
        weights_of_stages(model, args, held=one)[stage.rank].loaded
        for one in (AS_LOADED, held._replace(apart=False), held)
    )
    return dense - plain, whole - dense


def _in_host(model: ModelSpec, args: ResolvedArgs, stage: PipelineStage) -> str:
    """What of them lies in host memory."""
    if weight_offload(args) is None:
        return ""
    host = weights_of_stages(model, args)[stage.rank].host
    buffers = f", {gib(host.buffers):.2f} GiB of buffers counted" if host.buffers else ""
    return f"; {gib(host.host_bytes):.2f} GiB more in host memory{buffers}"


def unloaded_towers(model: ModelSpec, args: ResolvedArgs, engine: EngineVersion) -> list[str]:
    """Of several towers those that count although vLLM leaves them out: their share of the weights is not known."""
    if model.vision is None or args.language_model_only or not engine.is_vllm(*SKIPS_TOWERS):
        return []
    unused = unused_towers(args.limit_mm_per_prompt, model.vision.towers)
    return [f"the unused tower for {' and '.join(kinds)}" for kinds in unused]


def _format_of(model: ModelSpec) -> str:
    if not model.quantization:
        return model.dtype
    return str(model.quantization.get("quant_method", "quantised as the checkpoint says"))


def _colocated_row(other: Colocated) -> Row:
    size = exact(other.weights_bytes + other.kv_bytes)
    why = f"weights of {other.model}" + (
        f" and {gib(other.kv_bytes):.2f} GiB of its KV" if other.kv_bytes else ""
    )
    return Row(f"colocated_{other.role}", f"{other.role} model", size, "computed", why)


def _lora(model: ModelSpec, args: ResolvedArgs, stage: PipelineStage) -> Iterator[Row]:
    """Memory that adapters may fill, taken at start-up."""
    if not args.enable_lora:
        return
    size = lora_bytes(
        model,
        _adapters(args),
        tensor_parallel_size=args.tensor_parallel_size,
        span=(stage.first_layer, stage.end_layer),
        data_parallel_size=args.data_parallel_size,
        enable_expert_parallel=args.enable_expert_parallel,
        has_tower=model.vision is not None and not args.language_model_only,
        whole_tower=args.mm_encoder_tp_mode == "data",
    )
    why = f"{args.max_loras} of rank {args.max_lora_rank}: A and B of every linear layer"
    if model.architecture in UNASKED.split():
        why += f", as its like; vLLM was not asked of {model.architecture}"
    unasked = not model.architecture.startswith(tuple(TOWERS_ASKED))
    if args.enable_tower_connector_lora and model.architecture.startswith(WITH_TOWERS) and unasked:
        why += "; the tower's as one A and B for each matrix, where vLLM was not asked"
    yield Row("lora", "LoRA adapters", exact(size), "computed", why)


def _prompt_embeds(model: ModelSpec, args: ResolvedArgs) -> Iterator[Row]:
    """The buffer that a step's embeddings are put into; models with a tower have it in any case.

    Source: vLLM 0.32 `v1/worker/gpu/model_states/default.py: DefaultModelState`.
    """
    if args.enable_prompt_embeds and (model.vision is None or args.language_model_only):
        itemsize = 4 if model_dtype(model, args) == "float32" else 2
        size = args.max_num_batched_tokens * model.hidden_size * itemsize
        why = f"{args.max_num_batched_tokens:,} tokens x {model.hidden_size:,}"
        yield Row("prompt_embeds", "prompt embeddings", exact(size), "computed", why)


def _fast_prefill(model: ModelSpec, args: ResolvedArgs, engine: EngineVersion) -> Iterator[Row]:
    """Buffers of layers that skip prefill, made when the model is loaded."""
    if args.kv_sharing_fast_prefill and engine.engine == "vllm" and reads_fast_prefill(model):
        size = fast_prefill_bytes(model, args.max_num_batched_tokens)
        why = f"hidden states and embeddings of {args.max_num_batched_tokens:,} tokens"
        yield Row("fast_prefill", "fast prefill buffers", exact(size), "computed", why)


def _adapters(args: ResolvedArgs) -> Adapters:
    """As the flags ask for them; auto is the model's dtype."""
    told = {name: getattr(args, name) for name in Adapters._fields if name != "itemsize"}
    wide = args.lora_dtype == "auto" and args.dtype in ("float32", "float")
    return Adapters(**told, itemsize=4 if wide else 2)


def _eplb(model: ModelSpec, args: ResolvedArgs, stage: PipelineStage) -> Iterator[Row]:
    """What balancing experts takes at start-up."""
    if size := eplb_bytes(model, args, stage):
        why = "one layer's experts on their way, maps and loads of every layer (--enable-eplb)"
        yield Row("eplb", "balancing of experts", exact(size), "computed", why)


def _videos(model: ModelSpec, args: ResolvedArgs) -> Iterator[Row]:
    """What API servers may take of the card, out of the KV pool."""
    if model.vision is not None and args.mm_ipc_gpu_memory_gb:
        size = int(args.mm_ipc_gpu_memory_gb * GiB)
        yield Row("mm_ipc", "decoding of videos", exact(size), "computed", "--mm-ipc-gpu-memory-gb")


def _tower_workspace(model: ModelSpec, args: ResolvedArgs) -> Iterator[Row]:
    """What kernels of the tower's attention keep from loading on."""
    if size := workspace_bytes(model, args):
        why = f"--mm-encoder-attn-backend {args.mm_encoder_attn_backend}"
        yield Row("tower_workspace", "tower's workspace", exact(size), "computed", why)


def _received(args: ResolvedArgs, engine: EngineVersion) -> Iterator[Row]:
    """Where embeddings from an encoder's own engine arrive, registered before start-up profiles."""
    if engine.engine == "vllm" and (size := ec_transfer(args.ec_transfer_config).buffer_bytes):
        yield Row("ec_buffer", "buffer of embeddings", exact(size), "computed", "ec_buffer_size")


def _draft_logits(model: ModelSpec, args: ResolvedArgs, engine: EngineVersion) -> tuple[Row, ...]:
    """Logits of every draft, kept for the rejection test where drafts are sampled.

    Source: vLLM 0.32 `v1/worker/gpu/spec_decode/speculator.py: DraftModelSpeculator`.
    """
    sampled = speculation(args.speculative_config).draft_sample_method == "probabilistic"
    keeps = sampled and args.speculative_method in (*READ_STATES, "draft_model") and engine.is_vllm(0, 32)
    if not keeps or not args.num_speculative_tokens:
        return ()
    itemsize = 4 if model_dtype(model, args) == "float32" else 2
    size = args.max_num_seqs * args.num_speculative_tokens * model.vocab_size * itemsize
    why = f"{args.max_num_seqs} requests x {args.num_speculative_tokens} drafts x {model.vocab_size:,} logits"
    return (Row("draft_logits", "draft logits", exact(size), "computed", why),)


def _extracted(model: ModelSpec, args: ResolvedArgs) -> Iterator[Row]:
    """The buffer of a step's states that method extract_hidden_states hands on."""
    states = hidden_states_kept(args)
    if states:
        itemsize = 4 if model_dtype(model, args) == "float32" else 2
        size = args.max_num_batched_tokens * states * model.hidden_size * itemsize
        why = f"{args.max_num_batched_tokens:,} tokens x {states} states x {model.hidden_size:,}"
        yield Row("extracted_states", "extracted states", exact(size), "computed", why)


def _activation(over: Overheads, engine: EngineVersion, kind: SourceKind) -> Row:
    if engine.engine == "sglang":
        why = f"about {gib(over.activation.value):.2f} GiB, inside the reserve of mem_fraction_static"
        return Row("activation", "activation peak", NOTHING, "computed", why)
    if " tower on " in over.activation_why and kind == "measured":
        kind = "computed"  # by what its layers hold; logs of other towers give the range
    return Row("activation", "activation peak", over.activation, kind, over.activation_why)


def _runtime(over: Overheads, kind: SourceKind) -> Row:
    why = f"{NO_LOGS}; {over.runtime_why}" if kind == "assumed" else over.runtime_why
    return Row("non_torch", "runtime (non-torch)", over.runtime, "assumed" if "assumed" in why else kind, why)


def _graphs(over: Overheads, inside: bool, kind: SourceKind) -> Row:
    if inside:
        return Row("cuda_graph", "CUDA graphs", over.graphs, kind, over.graphs_source)
    about = f"about {gib(over.graphs.value):.2f} GiB, taken outside the budget"
    return Row("cuda_graph", "CUDA graphs", NOTHING, "computed", about)
