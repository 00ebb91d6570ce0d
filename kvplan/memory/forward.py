"""`estimate`: where a GPU's memory goes, what the engine would print, how many traces live at once, what limits it.

    budget (bytes left for KV) -> layout (blocks, refusal) -> demand (traces) -> Plan

Closed form: no clock, no scheduler. The other direction, what would fit, is `inverse`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from kvplan.engines.cards import cards
from kvplan.engines.drafting import as_draft, check_drafting
from kvplan.engines.expert_balance import check_eplb
from kvplan.engines.flags import EngineArgs, EngineVersion, EntryPoint, ResolvedArgs, parse_engine
from kvplan.engines.kv_transfer import offloading_gib
from kvplan.engines.late_checks import check_whole
from kvplan.engines.nodes import check_nodes
from kvplan.engines.prefill_context import check_hc_sp, check_prefill_context, expert_replicas
from kvplan.engines.rank_weights import rank_weights, weights_of_stages
from kvplan.engines.resolve import as_read_by, resolve
from kvplan.engines.speculative_config import NEED_A_MODEL, speculation
from kvplan.engines.stages import stages_of
from kvplan.engines.weight_offload import check_weight_offload
from kvplan.engines.weights_held import weights_held
from kvplan.formulas.capacity import pool_blocks
from kvplan.formulas.hit_places import interval_fault, unit_fault
from kvplan.ground.config import complaint
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.limits import Limit
from kvplan.ground.units import gib
from kvplan.memory.answers import Plan, Question, Refusal, Span
from kvplan.memory.budget import SKIPS_TOWERS, Budget, Colocated, make_budget, with_stated_blocks
from kvplan.memory.demand import Demand, trace_blocks
from kvplan.memory.encoder_engines import check_encoder
from kvplan.memory.graphs import attention_backends, engine_graphs
from kvplan.memory.kernel_checks import check_interleaving, check_kernels
from kvplan.memory.kv.checks import check_sharding, offloads
from kvplan.memory.layout import KvCacheTooSmall, Layout, kv_layout
from kvplan.memory.other_engines import default_utilization, pool_layout, running_requests
from kvplan.memory.overheads import Range
from kvplan.memory.serve_command import flag_text
from kvplan.models.format_limits import ragged_groups, refused_format
from kvplan.models.fp8_blocks import ragged_shard
from kvplan.models.load import load_model
from kvplan.models.spec import AttentionKind, ModelSpec
from kvplan.models.weights import heaviest
from kvplan.profiles.memory_profile import MemoryProfile

__all__ = ["Plan", "Question", "answer", "estimate"]

ROLES = ("draft", "reward", "reference", "critic")
"""Models that may live beside the planned one."""


def estimate(
    model: ModelSpec | str,
    gpu: GpuSpec | str,
    args: EngineArgs | None = None,
    *,
    engine: EngineVersion | str = "vllm",
    demand: Demand | None = None,
    entry_point: EntryPoint = "serve",
    colocate: Mapping[str, ModelSpec | str] | None = None,
    profile: MemoryProfile | None = None,
    **flags: object,
) -> Plan:
    """Plan the memory of `model` on `gpu`.

    Args:
        model: a spec, a bundled name, a config.json or a folder.
        gpu: a spec or a name of the GPU table; `2xh100`: two of them; `local` asks NVML.
        args: flags of `vllm serve`; the engine's defaults where left out.
        engine: e.g. vllm, vllm@0.19, sglang, tensorrt-llm.
        demand: lengths and concurrency to hold.
        entry_point: `serve` or `llm` (offline); their batch defaults differ.
        colocate: role (draft, reward, reference, critic) -> model on the same GPUs.
        profile: overheads measured on this card; None: the bundled ones.
        **flags: fields of `EngineArgs` and `Demand` by name, in place of `args` and `demand` or beside them;
            counts as vLLM reads them: "32k", "32K".

    Raises:
        KvplanError: a question the engine would not even load, an unknown flag, one given twice or out of range.
            What does not fit is an answer: `Plan.refusal`.

    >>> plan = estimate("Qwen/QwQ-32B", "h100", tensor_parallel_size=2, input_len=512, output_len="32k")
    >>> plan.args.tensor_parallel_size, plan.trace_tokens
    (2, 32512)
    >>> plan.budget == estimate("Qwen/QwQ-32B", "2xh100", input_len=512, output_len="32k").budget
    True
    """
    asked, load = with_flags(args or EngineArgs(), flags), with_flags(demand or Demand(), flags)
    if unknown := sorted(set(flags) - set(EngineArgs.model_fields) - set(Demand.model_fields)):
        known = (*EngineArgs.model_fields, *Demand.model_fields)
        raise KvplanError(f"estimate() has no keyword {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    version = parse_engine(engine) if isinstance(engine, str) else engine
    card, asked = cards(gpu, asked) if isinstance(gpu, str) else (gpu, asked)
    question = Question(
        model=as_read_by(version, load_model(model) if isinstance(model, str) else model, asked),
        gpu=card,
        args=asked,
        engine=version,
        demand=load,
        entry_point=entry_point,
        colocate=tuple(
            (role, load_model(m) if isinstance(m, str) else m) for role, m in (colocate or {}).items()
        ),
        profile=profile,
    )
    return answer(_with_draft(question))


def _with_draft(question: Question) -> Question:
    """The method by the model that drafts, and that model as the method makes it; what only drafts alone is refused."""
    if question.model.only_drafts:
        raise KvplanError(
            f"{question.model.name} only drafts: vLLM starts it beside another model, --speculative-config of that"
        )
    method: str = question.args.speculative_method
    draft = question.draft
    if draft is None:
        if method in NEED_A_MODEL and question.args.num_speculative_tokens:
            raise KvplanError(
                f"--speculative-method {method}: name the model that drafts, --colocate draft=MODEL"
                " (mtp and ngram need none)"
            )
        return question
    method, head = as_draft(question.model, draft, question.args)
    beside = (pair if pair[0] != "draft" else ("draft", head) for pair in question.colocate)
    kept = tuple(
        (role, other) for role, other in beside if other is not None
    )  # None: the target's own layers
    return replace(
        question, colocate=kept, args=question.args.model_copy(update={"speculative_method": method})
    )


C = TypeVar("C", EngineArgs, Demand)


def with_flags(stated: C, flags: Mapping[str, object]) -> C:
    """`stated` with those of `flags` that are its fields, validated; the others are left to whoever knows them.

    Raises KvplanError for a field that `stated` already sets.
    """
    mine = {name: value for name, value in flags.items() if name in type(stated).model_fields}
    if twice := sorted(set(mine) & stated.model_fields_set):
        raise KvplanError(f"{twice[0]} is given twice, in {type(stated).__name__} and as a keyword")
    try:
        return type(stated).model_validate(stated.model_dump(exclude_unset=True) | mine) if mine else stated
    except ValidationError as error:
        raise KvplanError(complaint(error)) from None


def answer(question: Question) -> Plan:
    """The forward formula: from a question to its plan."""
    return _plan(question, _memory(question))


def answers(question: Question) -> Callable[[Demand], Plan]:
    """The forward formula as a function of the load alone.

    Memory is planned once, unless models live beside: their KV depends on the load.
    """
    if question.colocate:
        return lambda demand: answer(replace(question, demand=demand))
    memory = _memory(question)
    return lambda demand: _plan(replace(question, demand=demand), memory)


class _Memory(NamedTuple):
    """A deployment before anybody asks what it is to hold."""

    args: ResolvedArgs
    budget: Budget
    layouts: list[Layout | KvCacheTooSmall]
    shape: Layout
    refusal: Refusal | None


def _memory(question: Question) -> _Memory:
    args = _resolved(question)
    _check_pooling(question, args)
    if question.engine.engine == "vllm":
        check_nodes(args, may_stand_alone=question.model.is_moe or not question.engine.is_vllm(0, 21))
    check_sharding(question.model, args)
    check_drafting(question.model, args, question.engine, question.draft)
    check_weight_offload(question.model, args, question.engine)
    check_eplb(question.model, args, question.engine)
    check_prefill_context(question.model, args, question.engine)
    check_hc_sp(question.model, args, question.engine)
    check_whole(question.model, args, question.engine)
    if offloads(args, question.engine) and question.model.encoded_tokens:
        raise KvplanError(
            "--kv-offloading-size: vLLM keeps the KV of encoder-decoder models on the GPU alone"
        )
    if args.tensor_parallel_size > 1 and question.model.architecture.startswith("NemotronParse"):
        raise KvplanError(
            f"tensor_parallel_size {args.tensor_parallel_size}: vLLM's Nemotron Parse norms whole what each rank has a "
            "part of (its encoder's `sum_proj`), so it runs on one GPU"
        )
    _check_format(question, args)
    _check_fp8_blocks(question, args)
    check_encoder(question.model, args, question.gpu, question.engine)
    if question.engine.engine == "vllm":
        check_kernels(question.model, args, question.gpu)
    budgets = _stage_budgets(question, args, question.demand.trace_tokens(_length(question, args)))
    layouts = _layouts(question, args, budgets)
    found = layouts[0]
    worst = budgets[found.stage]
    refusal: Refusal | None
    if isinstance(found, KvCacheTooSmall):
        shape, refusal = _shape(question, args, worst, found.stage), _refusal(found, worst)
    else:
        shape = found
        stated = _is_stated(args) and question.engine.engine == "vllm"
        if stated and args.num_gpu_blocks_override is not None:
            budgets = [
                with_stated_blocks(b, found.num_blocks * found.bytes_per_block_of(i))
                for i, b in enumerate(budgets)
            ]
        if stated:
            worst = min(budgets, key=lambda b: b.outside.size.value)
        refusal = _overflow(worst, found, args) or _too_few_states(found, args, question)
    if question.engine.engine == "vllm":
        _check_hit_places(shape, args)
        check_interleaving(shape.attention_backends, args)
    return _Memory(_with_requests(question, args, shape, worst), worst, layouts, shape, refusal)


def _check_pooling(question: Question, args: ResolvedArgs) -> None:
    """Refuse what has no meaning where no token is made."""
    if args.runner != "pooling":
        return
    if args.num_speculative_tokens:
        raise KvplanError(
            "--num-speculative-tokens: an engine that pools makes no tokens, so none are drafted"
        )
    if question.demand.output_len:
        raise KvplanError(
            f"--output-len {question.demand.output_len:,}: an engine that pools makes no tokens; --input-len alone"
        )


def _check_hit_places(layout: Layout, args: ResolvedArgs) -> None:
    """Refuse places of prefix-cache hits that these groups do not have, as vLLM does once it knows its blocks."""
    unit, interval = args.prefix_match_unit, args.prefix_cache_retention_interval
    sizes = [group.block_size * group.num_shards for group in layout.groups]
    named = [group.block_size * group.num_shards for group in layout.groups if group.prefix_cacheable]
    states = any(group.kind is AttentionKind.STATE for group in layout.groups)
    offloads_kv = offloading_gib(args.kv_offloading_size, args.kv_transfer_config) is not None
    named_blocks = args.enable_prefix_caching or (offloads_kv and not states)
    if named_blocks and (fault := unit_fault(unit, named or sizes, len(sizes))):
        raise KvplanError(f"--prefix-match-unit {unit} {fault}")
    forgets = states or any(group.kind is AttentionKind.SLIDING for group in layout.groups)
    if fault := interval_fault(interval, sizes, forgets):
        raise KvplanError(f"--prefix-cache-retention-interval {interval} {fault}")


def _check_format(question: Question, args: ResolvedArgs) -> None:
    """Refuse a checkpoint's format where vLLM 0.32 does; older versions and other engines take some of those."""
    if not question.engine.is_vllm(0, 32):
        return
    tp, dp = args.tensor_parallel_size, expert_replicas(args)
    for model in (question.model, *(model for _, model in question.colocate)):
        fault = refused_format(model) or ragged_groups(model, tp, dp, args.enable_expert_parallel)
        if fault:
            raise KvplanError(f"{question.engine} does not load {model.name}: {fault}")


def _check_fp8_blocks(question: Question, args: ResolvedArgs) -> None:
    """Refuse shards that are no whole number of the checkpoint's FP8 blocks, with the sizes that are."""
    if question.engine.engine == "tensorrt-llm" or (found := _ragged_shard(question, args)) is None:
        return
    tp = args.tensor_parallel_size
    fewer = [n for n in (8, 4, 2, 1) if n < tp and tp % n == 0]
    changes: list[dict[str, object]] = [{"tensor_parallel_size": tp, "enable_expert_parallel": True}]
    changes += [{"tensor_parallel_size": n} for n in fewer]
    loads = (c for c in changes if _ragged_shard(question, args.model_copy(update=c)) is None)
    said = flag_text(question.engine.engine, **next(loads, {}))
    would = f"; {said} would load" if said else ""
    raise KvplanError(f"{question.engine} does not load this with tensor_parallel_size {tp}: {found}{would}")


def _ragged_shard(question: Question, args: ResolvedArgs) -> str | None:
    engine = question.engine
    return ragged_shard(
        question.model,
        tensor_parallel_size=args.tensor_parallel_size,
        data_parallel_size=expert_replicas(args),
        enable_expert_parallel=args.enable_expert_parallel,
        merged_whole=_checks_merged(engine, question.model),
        refines_experts=engine.is_vllm(0, 29),
        splits_ba=engine.engine == "sglang" and (*engine.version, engine.patch or 99) < (0, 5, 9),
    )


def _checks_merged(engine: EngineVersion, model: ModelSpec) -> bool:
    """vLLM lets merged matrices be ragged from 0.14 on; SGLang only MiMo's, whose code skips the check."""
    if engine.engine == "sglang":
        return not model.architecture.startswith("MiMoV2")
    return not engine.is_vllm(0, 14)


def _length(question: Question, args: ResolvedArgs) -> int:
    """The context asked for; with -1 the longest there may be."""
    return args.max_model_len if args.max_model_len > 0 else question.model.default_max_model_len


def _plan(question: Question, memory: _Memory) -> Plan:
    args, layouts = memory.args, memory.layouts
    layout = layouts[0] if isinstance(layouts[0], Layout) else None
    tokens = question.demand.trace_tokens(layout.max_model_len if layout else _length(question, args))
    return Plan(
        question=question,
        args=args,
        budget=memory.budget,
        layout=layout,
        shape=memory.shape,
        refusal=memory.refusal,
        cache_tokens=_span(layouts, lambda one: one.kv_cache_size_tokens),
        max_concurrency=_span(layouts, lambda one: one.max_concurrency),
        trace_tokens=tokens,
        traces=_span(layouts, lambda one: _traces(question.demand, one, args, tokens)),
    )


def concurrency_curve(plan: Plan, trace_tokens: Sequence[int]) -> list[Span]:
    """Traces at once, as `Plan.traces`, if they were that long; all else as asked, one span per length.

    No trace is shorter than the asked prompt. All zero where the engine refuses.
    """
    question, args = plan.question, plan.args
    layouts = _layouts(question, args, _stage_budgets(question, args, plan.trace_tokens))
    shortest = max(1, question.demand.prompt_tokens())
    curve = []
    for tokens in trace_tokens:
        traces = partial(_traces, question.demand, args=args, tokens=max(tokens, shortest))
        curve.append(_span(layouts, traces))
    return curve


def _layouts(question: Question, args: ResolvedArgs, budgets: list[Budget]) -> list[Layout | KvCacheTooSmall]:
    """The layout at the likely size of the pool, and at both ends of its range."""
    return [
        _layout(question, args, [getattr(b.kv.size, end) for b in budgets])
        for end in ("value", "low", "high")
    ]


def _resolved(question: Question) -> ResolvedArgs:
    args = question.args
    if question.engine.engine != "vllm" and args.gpu_memory_utilization is None:
        fraction = default_utilization(question.engine, question.model, args, question.gpu)
        args = args.model_copy(update={"gpu_memory_utilization": fraction})
    found = resolve(args, question.model, question.gpu, question.engine, question.entry_point)
    invariant = question.engine.engine == "vllm" and args.environment.batch_invariant
    if invariant and "TRITON_MLA" in attention_backends(question.model, found, question.gpu):
        # vLLM 0.32 `model_executor/layers/attention/mla_attention.py`
        return found.model_copy(update={"enable_prefix_caching": False})
    return found


def _with_requests(question: Question, args: ResolvedArgs, shape: Layout, budget: Budget) -> ResolvedArgs:
    """SGLang settles how many requests may run once it knows its pool."""
    if question.engine.engine != "sglang":
        return args
    asked = question.args.max_num_seqs
    most = running_requests(question.engine, question.model, args, shape, budget.kv.size.value, asked)
    return args.model_copy(update={"max_num_seqs": most})


def _stage_budgets(question: Question, args: ResolvedArgs, trace_tokens: int) -> list[Budget]:
    """One budget per pipeline stage; of other engines than vLLM each as heavy as the heaviest."""
    others = tuple(_colocated(question, args, role, model, trace_tokens) for role, model in question.colocate)
    stages = stages_of(question.model, args)
    return [
        make_budget(
            question.model,
            args,
            question.gpu,
            question.engine,
            loaded,
            stage=stage,
            colocated=tuple(one for one in others if one.role != "draft" or stage.is_last),
            profile=question.profile,
        )
        for stage, loaded in zip(stages, _stage_weights(question, args), strict=True)
    ]


def _stage_weights(question: Question, args: ResolvedArgs) -> list[Range]:
    """What a rank of each pipeline stage loads, by the kernel that pads least and by the one that vLLM prefers."""
    loads, engine = args, question.engine
    if engine.engine == "vllm" and not engine.is_vllm(*SKIPS_TOWERS):
        loads = args.model_copy(update={"language_model_only": False})
    held = weights_held(args, question.gpu, engine)
    ranks, least = (
        weights_of_stages(question.model, loads, engine.legacy, least_padding=least, held=held)
        for least in (False, True)
    )
    if engine.engine != "vllm":
        ranks, least = ((heaviest(each),) * len(each) for each in (ranks, least))
    return [Range(r.loaded, one.loaded, r.loaded) for r, one in zip(ranks, least, strict=True)]


def _colocated(question: Question, args: ResolvedArgs, role: str, model: ModelSpec, tokens: int) -> Colocated:
    """A co-located model's share of one rank: its weights, and KV for one trace at a time.

    What drafts lies on the last pipeline stage (vLLM 0.32 `v1/worker/gpu/model_runner.py`).

    A draft model's KV lives in the engine's own pool, so its layers are laid out with the main model's.
    """
    if role not in ROLES:
        raise KvplanError(f"--colocate {role}=...: the roles are {', '.join(ROLES)}")
    formats = speculation(args.speculative_config).quantization if role == "draft" else None
    ranks = EngineArgs(tensor_parallel_size=args.tensor_parallel_size, dtype=args.dtype, quantization=formats)
    weights = rank_weights(model, ranks, held=weights_held(args, question.gpu, question.engine))
    if role == "draft":
        if not args.num_speculative_tokens:
            raise KvplanError(
                "--colocate draft=...: say how many tokens it drafts, --num-speculative-tokens N"
            )
        return Colocated(role, model.name, weights, 0)
    length = min(tokens, model.max_model_len)
    scoring = args.model_copy(update={"max_model_len": length, "num_speculative_tokens": 0})
    layout = kv_layout(model, scoring, 1 << 60, capability=capability(question.gpu))
    return Colocated(role, model.name, weights, layout.blocks_per_request * layout.bytes_per_block)


def capability(gpu: GpuSpec) -> tuple[int, int]:
    """CUDA compute capability as (major, minor)."""
    major, minor = divmod(round(gpu.compute_capability * 10), 10)
    return major, minor


def _layout(question: Question, args: ResolvedArgs, available: list[int]) -> Layout | KvCacheTooSmall:
    """The KV layout of these pool sizes, one per stage, or the engine's refusal."""
    least = available.index(min(available))
    if min(available) <= 0 and args.num_gpu_blocks_override is None:
        return KvCacheTooSmall("no memory left for KV", 0, min(available), 0, least)
    try:
        if question.engine.engine != "vllm":
            found = pool_layout(
                question.engine, question.model, args, available[least], capability(question.gpu)
            )
            return replace(found, stage=least)
        return kv_layout(
            question.model,
            args,
            available,
            capability=capability(question.gpu),
            draft=question.draft,
            version=question.engine.version,
        )
    except KvCacheTooSmall as small:
        if question.engine.engine != "vllm":
            small.stage = least
        return small


def _shape(question: Question, args: ResolvedArgs, budget: Budget, stage: int) -> Layout:
    """The layout of a pool of any size, with the blocks that this stage's budget would give."""
    unbound = args.model_copy(update={"num_gpu_blocks_override": None})
    endless = _layout(question, unbound, [1 << 60] * args.pipeline_parallel_size)
    if isinstance(endless, KvCacheTooSmall):
        raise KvplanError(
            f"{question.model.name}: no pool holds a sequence ({endless}); check its config.json"
        )
    block_bytes = endless.bytes_per_block_of(stage)
    blocks = pool_blocks(max(0, budget.kv.size.value), max(1, block_bytes))
    return replace(endless, num_blocks=int(blocks), bytes_per_block=block_bytes, stage=stage)


def _refusal(small: KvCacheTooSmall, budget: Budget) -> Refusal:
    if budget.kv.size.value <= 0:
        return _no_room(budget)
    return Refusal(
        str(small), Limit.KV_BLOCKS, small.needed_bytes, small.available_bytes, small.max_model_len
    )


def _no_room(budget: Budget) -> Refusal:
    """Weights and overheads alone exceed the budget."""
    needed = budget.budget_bytes - budget.kv.size.value
    reason = (
        f"no memory left for KV: weights and overheads need {gib(needed):.2f} GiB, "
        f"the budget is {gib(budget.budget_bytes):.2f}; more ranks, a larger GPU or fewer bits would do"
    )
    return Refusal(reason, Limit.WEIGHTS, needed, budget.budget_bytes, 0)


def _is_stated(args: ResolvedArgs) -> bool:
    """Whether flags say how large the KV pool is, whatever the card has left."""
    return (args.kv_cache_memory_bytes, args.num_gpu_blocks_override) != (None, None)


def _overflow(budget: Budget, layout: Layout, args: ResolvedArgs) -> Refusal | None:
    """With a stated pool nothing is left to give: the rest of the card may not hold the weights."""
    over = -budget.outside.size.value
    if not _is_stated(args) or over <= 0:
        return None
    needed = budget.total.size.value + over
    asked = "weights, overheads and the asked KV pool"
    reason = f"{asked} need {gib(needed):.2f} GiB, the card has {gib(needed - over):.2f}"
    return Refusal(reason, Limit.WEIGHTS, needed, needed - over, layout.max_model_len)


def _too_few_states(layout: Layout, args: ResolvedArgs, question: Question) -> Refusal | None:
    """Full CUDA graphs want a block of state per sequence (vLLM since 0.17, `config/compilation.py`)."""
    states = any(group.kind is AttentionKind.STATE for group in layout.groups)
    if not (states and question.engine.is_vllm(0, 17) and args.max_num_seqs > layout.num_blocks):
        return None
    if engine_graphs(question.model, args, question.gpu, question.engine).decodes != "full":
        return None
    reason = (
        f"max_num_seqs {args.max_num_seqs} exceeds the {layout.num_blocks} blocks that states can take; "
        f"--max-num-seqs {layout.num_blocks} or less would start"
    )
    block = layout.bytes_per_block
    return Refusal(
        reason, Limit.MAX_NUM_SEQS, args.max_num_seqs * block, layout.num_blocks * block, layout.max_model_len
    )


def _traces(demand: Demand, layout: Layout, args: ResolvedArgs, tokens: int) -> float:
    """Traces at once over all data-parallel replicas; each replica's pool holds its own requests."""
    blocks = trace_blocks(layout, args, tokens, demand.prompt_tokens(), demand.num_samples)
    if not blocks.alone:
        return float(args.max_num_active_reqs * args.data_parallel_size)
    return float(blocks.most_traces(layout.num_blocks, demand.num_samples) * args.data_parallel_size)


def _span(layouts: list[Layout | KvCacheTooSmall], figure: Callable[[Layout], float]) -> Span:
    """A figure at the value, low and high end of the KV pool; 0 where the engine refuses."""
    return Span(*(figure(one) if isinstance(one, Layout) else 0 for one in layouts))
