"""How far step times may be off where flags choose kernels or exchanges that nobody measured: timed as the default's.

What is known goes into the range: NCCL's own gathers for sums without vLLM's all-reduce, the tokens that a rank's
experts really get for exchanges that send no others, the two ends of overlapping micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvplan.engines.flags import EngineArgs
from kvplan.engines.kernel_flags import SLOWER_ATTENTION, attention_config, kernel_config
from kvplan.engines.weight_offload import weight_offload
from kvplan.models.spec import ModelSpec
from kvplan.profiles.doubt import Unmeasured
from kvplan.timing.costs import Seconds
from kvplan.timing.step import ModelStepTime, StepShape
from kvplan.timing.work import Number

OTHER_KERNELS = 0.7, 1.5
"""Of steps whose kernels were not measured (assumed: as those of an engine that was not seen)."""
SOME_KERNELS = 0.9, 1.2
"""Where they are few of a step's (assumed)."""
WITH_ADAPTERS = 1.0, 1.5
"""Where every matrix has a narrow pair beside it (assumed)."""
BATCHES = 1, 64
"""Decoding sequences for which the ends of exchanges are worked out."""
BATCH_INVARIANT = 1.0, 2.0
"""Kernels whose results do not depend on the batch, and NCCL with one channel (assumed)."""
PAGED_COPIES = 1.0, 3.0
"""Copies out of memory that may be paged go through a buffer of the driver's (assumed)."""

USUAL = {
    8: ("FLASH_ATTN", "TRITON_MLA"),
    9: ("FLASH_ATTN", "FLASH_ATTN_MLA"),
    10: ("FLASHINFER", "FLASHINFER_MLA"),
    11: ("FLASH_ATTN", "TRITON_MLA"),
    12: ("FLASH_ATTN", "TRITON_MLA"),
}
"""Major of compute capability -> vLLM's own first choices of attention, whose times are meant."""


def kernel_doubts(
    model: ModelSpec, args: EngineArgs, major: int, time: ModelStepTime, nccl: Seconds | None = None
) -> Iterator[Unmeasured]:
    """One for each choice that changes the kernels of this model on a card of so high a compute capability.

    `nccl`: its gather among the tensor-parallel ranks.
    """
    if args.enable_lora:
        yield Unmeasured("--enable-lora: adapters' own kernels are not timed", *WITH_ADAPTERS)
    if args.ir_op_priority is not None:
        yield _default("--ir-op-priority", SOME_KERNELS)
    if args.disable_nccl_for_dp_synchronization is False and args.data_parallel_size > 1 and model.is_moe:
        yield Unmeasured("--no-disable-nccl-for-dp-synchronization: timed as by the host", *SOME_KERNELS)
    yield from _sampling(args)
    yield from _variables(model, args)
    if args.model_impl == "transformers":
        yield Unmeasured("--model-impl transformers: timed as vLLM's own class", *SOME_KERNELS)
    yield from _products(model, args)
    yield from _attention(model, args, major)
    yield from _states(model, args)
    yield from _sums(args, time, nccl)
    yield from _exchange(args, time)
    yield from _micro_batches(time)


def _default(what: str, ends: tuple[float, float]) -> Unmeasured:
    return Unmeasured(f"{what}: timed as the default's", *ends)


def _sampling(args: EngineArgs) -> Iterator[Unmeasured]:
    """What sampling does beside its own work can only take longer."""
    told = {
        "--use-fp64-gumbel": args.use_fp64_gumbel,
        "--return-sampling-mask": args.return_sampling_mask,
        "--watermark-config": args.watermark_config is not None,
    }
    for flag, is_on in told.items():
        if is_on:
            yield _default(flag, (1.0, SOME_KERNELS[1]))


def _variables(model: ModelSpec, args: EngineArgs) -> Iterator[Unmeasured]:
    told = args.environment
    if told.batch_invariant:
        yield _default("VLLM_BATCH_INVARIANT", BATCH_INVARIANT)
    if told.moe_routing_simulation_strategy == "normal_routing" and model.is_moe:
        yield Unmeasured("VLLM_MOE_ROUTING_SIMULATION_STRATEGY: experts as drawn evenly", *SOME_KERNELS)
    offload = weight_offload(args)
    if offload is not None and told.weight_offloading_disable_pin_memory:
        yield Unmeasured(
            "VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY: copies timed as pinned memory's", *PAGED_COPIES
        )
    if offload is not None and offload.backend == "uva" and told.weight_offloading_disable_uva:
        yield Unmeasured("VLLM_WEIGHT_OFFLOADING_DISABLE_UVA: copies timed as reads in place", *SOME_KERNELS)


def _products(model: ModelSpec, args: EngineArgs) -> Iterator[Unmeasured]:
    told = kernel_config(args.kernel_config)
    experts = args.moe_backend if args.moe_backend != "auto" else told.moe_backend
    linear = args.linear_backend if args.linear_backend != "auto" else told.linear_backend
    if experts != "auto" and model.is_moe:
        yield _default(f"--moe-backend {experts}", OTHER_KERNELS)
    if (linear != "auto" or told.linear_backend_per_quant) and (model.quantization or args.quantization):
        yield _default(f"--linear-backend {linear}", OTHER_KERNELS)
    if told.enable_flashinfer_autotune is False:
        yield _default("enable_flashinfer_autotune off", SOME_KERNELS)


def _attention(model: ModelSpec, args: EngineArgs, major: int) -> Iterator[Unmeasured]:
    mixers = [m for layer in model.layers for m in layer.mixers]
    told, usual = attention_config(args.attention_config), attention_config(None)
    backend = args.attention_backend or told.backend
    if backend not in (None, "AUTO", *USUAL.get(major, ())):
        yield _default(f"--attention-backend {backend}", SOME_KERNELS)
    changed = [name for name in SLOWER_ATTENTION if getattr(told, name) != getattr(usual, name)]
    if changed:
        yield _default(f"--attention-config {', '.join(changed)}", SOME_KERNELS)
    topk = args.sparse_indexer_topk_backend
    topk = topk if topk != "auto" else kernel_config(args.kernel_config).sparse_indexer_topk_backend
    if topk != "auto" and any(m.index_topk for m in mixers):
        yield _default(f"--sparse-indexer-topk-backend {topk}", SOME_KERNELS)
    if args.dcp_comm_backend == "a2a" and args.decode_context_parallel_size > 1:
        yield _default("--dcp-comm-backend a2a", SOME_KERNELS)


FAMILIES = {
    "mamba_backend": ("triton", ("mamba1", "mamba2")),
    "mamba_ssu_algorithm": (None, ("mamba1", "mamba2")),
    "gdn_prefill_backend": (None, ("gdn_attention",)),
    "kda_prefill_backend": (None, ("kda",)),
    "kda_decode_backend": (None, ("kda",)),
}
"""Flags of states' kernels -> the usual value, the families that they are of."""


def _states(model: ModelSpec, args: EngineArgs) -> Iterator[Unmeasured]:
    families = {m.state.family for layer in model.layers for m in layer.mixers if m.state is not None}
    for name, (usual, of) in FAMILIES.items():
        told = getattr(args, name)
        if told not in (usual, "auto") and families & set(of):
            yield _default(f"--{name.replace('_', '-')} {told}", SOME_KERNELS)


def _sums(args: EngineArgs, time: ModelStepTime, nccl: Seconds | None) -> Iterator[Unmeasured]:
    """Sums by NCCL alone: at least what the quicker of both takes, at most a reduce-scatter and a gather of NCCL's."""
    if not args.disable_custom_all_reduce or not time.work.num_all_reduces:
        return
    each = nccl or time.costs.reduce

    def twice(num_bytes: Number) -> Number:
        return 2.0 * each(num_bytes)

    slower = ModelStepTime(time.work, replace(time.costs, reduce=twice))
    yield Unmeasured(
        "--disable-custom-all-reduce: timed as the quicker of vLLM's all-reduce and NCCL's",
        1.0,
        _most(slower, time),
    )


def _exchange(args: EngineArgs, time: ModelStepTime) -> Iterator[Unmeasured]:
    """Kernels that send tokens to the ranks of their experts alone: what the default's take, down to that share."""
    gathers = time.work.gathers
    if gathers is None or args.all2all_backend in ("allgather_reducescatter", "naive", "pplx"):
        return
    ranks, visits = gathers.num_ranks, max((e.experts_per_token for e in time.work.experts), default=1)
    reached = ranks * (1.0 - (1.0 - 1.0 / ranks) ** max(1, visits))
    usual = time.costs.gather

    def fewer(num_bytes: Number) -> Number:
        return usual(num_bytes * (reached / ranks))

    quicker = ModelStepTime(time.work, replace(time.costs, gather=fewer))
    yield Unmeasured(
        f"--all2all-backend {args.all2all_backend}: timed as all-gather and reduce-scatter",
        min(1.0, 1.0 / _most(time, quicker)),
        SOME_KERNELS[1],
    )


def _micro_batches(time: ModelStepTime) -> Iterator[Unmeasured]:
    """Between exchanges hidden as far as there is work, and none hidden."""
    micro = time.costs.micro
    if micro.num < 2 or time.work.gathers is None:
        return
    alone = ModelStepTime(time.work, replace(time.costs, micro=micro._replace(overlap=0.0)))
    most = max(_ratio(alone, time, n) for n in (micro.decodes_from, 4 * micro.decodes_from, 512))
    yield Unmeasured(
        f"{micro.num} micro-batches: exchanges hidden as far as there is work, at the slow end not at all",
        1.0,
        most,
    )


def _most(slow: ModelStepTime, fast: ModelStepTime) -> float:
    return max(_ratio(slow, fast, n) for n in BATCHES)


def _ratio(slow: ModelStepTime, fast: ModelStepTime, num: int) -> float:
    shape = StepShape(num, num, 1000 * num)
    return max(1.0, slow.ticks(shape) / fast.ticks(shape))
