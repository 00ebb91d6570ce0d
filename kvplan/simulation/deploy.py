"""A deployment of a scenario -> what the simulator runs: an engine's sizes, its step times, what they rest on.

Here capacity (`memory`), step time (`timing`) and the engine meet; none of them knows the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from kvplan.engines.drafting import (
    draft_tiers,
    drafting_passes,
    drafts_at_once,
    on_first_runner,
    verifies_adaptively,
)
from kvplan.engines.flags import EngineArgs, ResolvedArgs, parse_engine
from kvplan.engines.kv_transfer import offloading_flags
from kvplan.engines.load_balancing import groups_of_servers, num_api_servers
from kvplan.engines.speculative_config import speculation
from kvplan.formulas.draft_tiers import drafts_by_batch
from kvplan.ground.errors import DoesNotFit, KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import TICKS_PER_S
from kvplan.memory.forward import estimate
from kvplan.memory.layout import KvGroup, Layout
from kvplan.memory.offloading import num_slots, slot_bytes
from kvplan.models.load import load_model, path_exists
from kvplan.models.spec import AttentionKind, ModelSpec
from kvplan.profiles.api_server import find_costs
from kvplan.profiles.host_links import DRIVES, HostLink, find_host_link
from kvplan.profiles.measured_links import MeasuredLinks
from kvplan.profiles.power import Power, find_power
from kvplan.profiles.step_times import default_link, make_step_times
from kvplan.profiles.timing_profile import TimingProfile
from kvplan.scenario.schema import (
    Deployment,
    FileTier,
    Interconnect,
    KvOffloading,
    Scenario,
    SGLangFlags,
    StepTimeSpec,
)
from kvplan.schedulers.sglang.config import SGLangConfig
from kvplan.schedulers.vllm.adaptive_verification import VerificationCosts
from kvplan.schedulers.vllm.caveats import caveats, describe_rules
from kvplan.schedulers.vllm.config import EngineConfig, Kind, KVCacheGroup
from kvplan.schedulers.vllm.offloading.config import OffloadingConfig
from kvplan.schedulers.vllm.rules import parse_version, write_version
from kvplan.simulation.admission_control import NO_LIMITS, QueueLimits
from kvplan.simulation.api_server import NO_API_SERVER, ApiServerTimes
from kvplan.simulation.file_tiers import TimedFiles
from kvplan.simulation.transfers import TimedCopies
from kvplan.simulation.verification_costs import verification_costs
from kvplan.timing.costs import AttentionCosts
from kvplan.timing.links import LINKS, Link
from kvplan.timing.step import (
    NO_KNOT,
    AttentionTimes,
    DraftedStepTime,
    ModelStepTime,
    StepShape,
    StepTime,
)

Outside = Callable[[StepShape], tuple[str, ...]]
"""Which measured ranges of a profile a step leaves, one phrase each."""


def anywhere(shape: StepShape) -> tuple[str, ...]:
    """Nothing was measured, so nothing lies outside it."""
    return ()


class HostTier(NamedTuple):
    """A tier of KV in host memory: over what and how much of a block."""

    link: HostLink
    block_bytes: tuple[int, ...]
    """That one rank copies for one GPU block of each group."""
    size_gib: float
    chunk_bytes: int
    """Of a slot, all ranks' parts; a file below it has as many."""
    file_tiers: tuple[FileTier, ...] = ()
    measured: MeasuredLinks | None = None
    """What the profile of the step times says of links."""

    def copies(self) -> TimedCopies:
        """Return the copies of one more engine."""
        files = [
            TimedFiles(tier.found(self.measured), self.chunk_bytes, tier.n_read_threads, tier.n_write_threads)
            for tier in self.file_tiers
        ]
        return TimedCopies(self.link, self.block_bytes, files=files)


@dataclass(frozen=True, slots=True)
class Setup:
    """One engine instance, ready to run."""

    config: EngineConfig
    step_time: StepTime
    kv_bytes_per_token: float
    """Of one sequence's growth, all ranks together; what a transfer moves per token."""
    num_gpus: int
    """GPUs of one replica."""
    usd_per_gpu_hour: float = 0.0
    gpu: str = ""
    """The card's name."""
    lockstep_ranks: int = 1
    """Data-parallel ranks that step together (MoE)."""
    replicas_per_copy: int = 1
    """Independent data-parallel replicas in one copy."""
    balanced: tuple[int, ...] = ()
    """Data-parallel replicas of one copy by the API servers before them, which spread requests; empty: none do."""
    outside: Outside = anywhere
    """Which measured ranges a step leaves."""
    doubt: tuple[float, float] = (1.0, 1.0)
    """Steps may take from so many to so many times as long, in nine cases of ten; stated ones take just so long."""
    prompt_doubt: tuple[float, float] = (1.0, 1.0)
    """The same of what prompts add to a step."""
    shared_reads: float = 0.0
    """Share of the KV that several running sequences hold together which a step reads once, not once for each."""
    api: ApiServerTimes = NO_API_SERVER
    """What one engine's share of the API servers takes."""
    api_ends: tuple[ApiServerTimes, ApiServerTimes] = (NO_API_SERVER, NO_API_SERVER)
    """The least and the most of it that was measured."""
    stream_interval: int = 1
    """Tokens of a stream that leave together."""
    queue_limits: QueueLimits = NO_LIMITS
    """What the API servers of one copy take in."""
    power: Power | None = None
    """What its cards draw; None where nobody knows."""
    sources: dict[str, str] = field(default_factory=dict)
    """Where the figures come from."""
    sglang: SGLangFlags | None = None
    """SGLang's flags, if its scheduler runs instead of vLLM's."""
    tier: HostTier | None = None
    """What lies beyond the GPU; None = nothing."""
    verification: VerificationCosts | None = None
    """What verifying and drafting cost, where they say how many drafts are verified; None = all are."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """Which engines the scheduler's rules stand for without having been checked against them."""
        return caveats(self.config)


@dataclass(frozen=True, slots=True)
class StatedStepTime:
    """Four coefficients in ticks: t = fixed + per_sequence*B + per_context*sum(context) + per_prefill*tokens."""

    fixed: int
    per_sequence: int
    per_context: int
    per_prefill: int

    @classmethod
    def of(cls, spec: StepTimeSpec) -> StatedStepTime:
        """From a scenario's `step_time`."""
        assert spec.fixed_us is not None
        us = TICKS_PER_S // 10**6
        return cls(
            round(spec.fixed_us * us),
            round(spec.per_sequence_us * us),
            round(spec.per_context_token_ns * us / 1e3),
            round(spec.per_prefill_token_us * us),
        )

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step."""
        decode = self.per_sequence * shape.num_decodes + self.per_context * shape.decode_context
        return int(self.fixed + decode + self.per_prefill * shape.num_prefill_tokens)

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """A pure decode step is `a + b * context`, for every context."""
        return self.fixed + self.per_sequence * num_decodes, self.per_context, NO_KNOT


def set_ups(scenario: Scenario) -> dict[str, Setup]:
    """Plan every deployment of a scenario, by name."""
    return {name: set_up(d, scenario.folder) for name, d in scenario.deployments.items()}


def set_up(deployment: Deployment, folder: Path = Path()) -> Setup:
    """Plan one deployment: blocks, groups, step times.

    Raises KvplanError for flags the engine refuses, DoesNotFit when it would not start.
    """
    sglang = deployment.sglang
    flags = deployment.engine
    if sglang is not None and flags.async_scheduling is None:  # the overlap loop is SGLang's default on a GPU
        flags = flags.model_copy(update={"async_scheduling": True})
    plan = estimate(
        model_beside(deployment.model, folder), deployment.gpu, flags,
        engine=deployment.engine_of,
        colocate={role: model_beside(name, folder) for role, name in deployment.colocate.items()},
    )  # fmt: skip
    if plan.layout is None:
        raise DoesNotFit(plan.refusal.reason if plan.refusal else plan.shortfall)
    args, layout, gpu, model = plan.args, plan.layout, plan.question.gpu, plan.question.model
    if model.encoded_tokens or model.canvas_length:
        what = "its encoder's steps" if model.encoded_tokens else "steps of diffusion"
        raise KvplanError(f"{model.name}: {what} are not timed, so it is planned, not simulated")
    if args.runner == "pooling":
        raise KvplanError(
            f"{model.name}: an engine that embeds or scores makes no tokens, so it is planned, not simulated; a scorer"
            " beside a search is the `verifier` of `problems`"
        )
    if args.prefill_context_parallel_size > 1:
        raise KvplanError(
            "--prefill-context-parallel-size: steps that ranks split are not timed, so it is planned, not simulated"
        )
    rules = (deployment.admission, deployment.batch_wait)
    if sglang is not None and rules != ("grow", None):
        raise KvplanError(
            "admission and batch_wait are rules for vLLM's scheduler; leave them out beside `sglang`"
        )
    if sglang is not None and deployment.router == "kv_aware":
        raise KvplanError("router kv_aware is simulated with vLLM's scheduler only; leave out `sglang`")
    if sglang is not None and model.is_moe and args.data_parallel_size > 1:
        raise KvplanError("data-parallel attention is simulated for vLLM only; leave out `sglang`")
    if layout.num_blocks < 2:
        raise DoesNotFit(f"{model.name} on {gpu.name}: the KV pool has no usable block")
    timed = _step_time(model, gpu, args, deployment, folder)
    sources = timed.sources
    if sglang is not None:
        sources["scheduler"] = "SGLang 0.5.23's, as its own logs show it"
    ranks = args.data_parallel_size
    config = _engine_config(args, layout, deployment, model)
    if config.token_budget < config.max_num_active_reqs:
        raise KvplanError(
            f"--max-num-scheduled-tokens {config.token_budget:,}: fewer than the {config.max_num_active_reqs:,} that "
            "may run; steps that pass sequences over are planned, not simulated"
        )
    tier = _tier(deployment, model, gpu, args, layout, timed.links)
    if tier is not None:
        sources["kv_offloading"] = f"{config.kv_offloading.num_chunks:,} chunks; {tier.link}"  # type: ignore[union-attr]
        for i, files in enumerate(tier.file_tiers):
            sources[f"kv_offloading.secondary_tiers.{i}"] = f"files; {files.found(tier.measured)}"
    if sglang is None:
        sources["scheduler"] = describe_rules(config)
    verification = None
    if verifies_adaptively(args):
        engine = parse_engine(deployment.engine_of)
        verification = verification_costs(timed.time, model, gpu, args, engine, layout.max_model_len)
        sources["verification"] = VERIFICATION
    apis = [api_times(deployment, args, end, timed.seen_by_client) for end in ("value", "low", "high")]
    return Setup(
        config=config if sglang is None else _sglang_sizes(config, flags.max_num_seqs),
        step_time=timed.time,
        kv_bytes_per_token=kv_bytes_per_token(layout, args),
        num_gpus=args.num_gpus // ranks,
        usd_per_gpu_hour=gpu.price_per_hour,
        gpu=gpu.name,
        shared_reads=timed.shared_reads,
        lockstep_ranks=ranks if model.is_moe else 1,
        replicas_per_copy=1 if model.is_moe else ranks,
        balanced=groups_of_servers(args) if sglang is None and ranks > 1 else (),
        outside=timed.outside,
        doubt=timed.doubt[:2],
        prompt_doubt=timed.doubt[2:],
        api=apis[0],
        api_ends=(apis[1], apis[2]),
        stream_interval=args.stream_interval,
        queue_limits=QueueLimits(
            args.max_num_queued_reqs,
            args.max_num_queued_tokens,
            num_api_servers(args) // len(groups_of_servers(args)),
        ),
        power=find_power(gpu),
        sources={**sources, "kv_pool": plan.budget.kv.source, "price": gpu.price_source},
        sglang=sglang,
        tier=tier,
        verification=verification,
    )


VERIFICATION = (
    "assumed: every draft looks as likely as its place's acceptance rate, where vLLM tells drafts apart and so accepts"
    " more; costs by these step times, where vLLM measures them at start-up"
)


def _tier(
    deployment: Deployment,
    model: ModelSpec,
    gpu: GpuSpec,
    args: ResolvedArgs,
    layout: Layout,
    measured: MeasuredLinks | None,
) -> HostTier | None:
    """What a deployment has beyond the GPU; raises KvplanError for keys of a tier that is not there."""
    told = told_tier(deployment)
    if args.kv_offloading_size is None:
        if told != KvOffloading():
            raise KvplanError(
                "kv_offloading: says how a tier is kept; engine.kv_offloading_size gives it its GiB"
            )
        return None
    return HostTier(
        find_host_link(gpu, told.link, told.gb_s, measured),
        tuple(group.copied_bytes for group in layout.groups),
        args.kv_offloading_size,
        slot_bytes(model, args, layout, told.blocks_per_chunk),
        told.secondary_tiers,
        measured,
    )


def told_tier(deployment: Deployment) -> KvOffloading:
    """How the tier is kept: by the scenario's own keys, or by vLLM's flag; a link may stand beside the latter."""
    told, flag = deployment.kv_offloading, deployment.engine.kv_transfer_config
    if flag is None:
        return told
    link = {"link": told.link, "gb_s": told.gb_s}
    if told != KvOffloading(**link):
        raise KvplanError(
            "kv_offloading: engine.kv_transfer_config says how the tier is kept; beside it stand link and gb_s alone"
        )
    flags = offloading_flags(flag)
    tiers = tuple(
        FileTier(
            n_read_threads=tier.n_read_threads,
            n_write_threads=tier.n_write_threads,
            drive=DRIVES[tier.locality],
        )
        for tier in flags.secondary_tiers
    )
    kept = flags.model_dump(exclude={"cpu_bytes_to_use", "secondary_tiers"})
    return KvOffloading(**kept, **link, secondary_tiers=tiers)


def _offloading_config(
    deployment: Deployment, model: ModelSpec, args: ResolvedArgs, layout: Layout
) -> OffloadingConfig | None:
    """The tier as the scheduler sees it."""
    told = told_tier(deployment)
    if args.kv_offloading_size is None:
        return None
    chunks = num_slots(model, args, layout, told.blocks_per_chunk)
    if not chunks:
        raise DoesNotFit(
            f"engine.kv_offloading_size {args.kv_offloading_size:g} GiB holds not one chunk of KV"
        )
    return OffloadingConfig(
        num_chunks=chunks,
        blocks_per_chunk=told.blocks_per_chunk,
        eviction_policy=told.eviction_policy,
        offload_prompt_only=told.offload_prompt_only,
        store_threshold=told.store_threshold,
        max_tracker_size=told.max_tracker_size,
        secondary_tiers=tuple(tier.engine_part for tier in told.secondary_tiers),
    )


def api_times(
    deployment: Deployment,
    args: EngineArgs,
    end: Literal["value", "low", "high"] = "value",
    only_stated: bool = False,
) -> ApiServerTimes:
    """What API servers take for one data-parallel replica: as stated, the rest as measured for the engine's version.

    Stated step times are a world of their own: nothing else takes time unless it is stated too. So it is with
    `only_stated`, where a profile was timed at a server's clients.
    """
    costs = find_costs(parse_engine(deployment.engine_of))
    is_stated = only_stated or deployment.step_time.fixed_us is not None
    ranks = args.data_parallel_size
    share = ranks / (num_api_servers(args) if deployment.sglang is None else args.api_server_count or 1)

    def ticks(name: str, unit_s: float, times: float = 1.0) -> int:
        value = getattr(deployment.frontend, name)
        if value is None:
            value = 0.0 if is_stated or costs is None else getattr(getattr(costs, name), end)
        return round(float(value) * unit_s * TICKS_PER_S * times)

    return ApiServerTimes(
        request=ticks("request_ms", 1e-3),
        prompt_token=ticks("per_1k_tokens_ms", 1e-6),
        output=ticks("output_us", 1e-6, share),
        send=ticks("send_us", 1e-6, share / args.stream_interval),
        latency=ticks("latency_ms", 1e-3),
        share=share,
        workers=1 if end == "high" or deployment.sglang is not None else args.renderer_num_workers,
    )


def sglang_config(config: EngineConfig, flags: SGLangFlags) -> SGLangConfig:
    """SGLang's view of a plan: as many tokens as vLLM's usable blocks hold, chunks of max_num_batched_tokens.

    Raises KvplanError for what is modelled for vLLM only and for sizes that SGLang refuses.
    """
    if config.kv_cache_groups:
        raise KvplanError(
            "windows, states and KV compression are simulated for vLLM only; leave out `sglang`"
        )
    by_priority = config.policy == "priority"
    try:
        return SGLangConfig(
            max_total_tokens=(config.num_gpu_blocks - 1) * config.block_size,
            context_length=config.max_model_len,
            page_size=config.block_size,
            max_running_requests=config.max_num_seqs,
            chunked_prefill_size=config.max_num_batched_tokens if config.enable_chunked_prefill else -1,
            disable_radix_cache=not config.enable_prefix_caching,
            enable_priority_scheduling=by_priority,
            schedule_low_priority_values_first=by_priority,
            enable_overlap=config.async_scheduling,
            **flags.model_dump(),
        )
    except ValidationError as error:
        raise KvplanError(f"sglang: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _sglang_sizes(config: EngineConfig, asked: int | None) -> EngineConfig:
    """SGLang uses every page, and takes far more requests at once unless told."""
    config = config.model_copy(update={"num_gpu_blocks": config.num_gpu_blocks + 1})
    if asked is not None:
        return config
    slots = sglang_config(config.model_copy(update={"max_num_seqs": None}), SGLangFlags()).num_request_slots
    return config.model_copy(update={"max_num_seqs": slots})


def kv_bytes_per_token(layout: Layout, args: ResolvedArgs) -> float:
    """Bytes by which one more token grows a long sequence, all ranks together; windows and states do not grow."""
    kept = (g for g in layout.groups if g.kind.is_growing)
    growing = sum((g.bytes_per_block + g.other_stages_bytes) / g.block_tokens for g in kept)
    return growing * args.tensor_parallel_size


KINDS: dict[AttentionKind, Kind] = {
    AttentionKind.FULL: "full",
    AttentionKind.MLA: "full",
    AttentionKind.SLIDING: "sliding_window",
    AttentionKind.CHUNKED: "chunked_local",
    AttentionKind.STATE: "mamba",
    AttentionKind.CIRCULAR: "circular_buffer",
}


def _engine_config(
    args: ResolvedArgs, layout: Layout, deployment: Deployment, model: ModelSpec
) -> EngineConfig:
    """The scheduler's view of a plan under the deployment's rules.

    Raises KvplanError for rules that this layout does not take.
    """
    try:
        rules = {name: getattr(deployment, name) for name in ("admission", "batch_wait")}
        if deployment.engine_name == "vllm":
            rules["engine_version"] = write_version(parse_version(deployment.engine_version))
        rules["kv_offloading"] = _offloading_config(deployment, model, args, layout)
        return EngineConfig.model_validate(_vllm_config(args, layout).model_dump() | rules)
    except ValidationError as error:
        text = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise KvplanError(f"{deployment.model}: {text}") from None


def _vllm_config(args: ResolvedArgs, layout: Layout) -> EngineConfig:
    """The scheduler's view of a plan under vLLM's own rules."""
    drafts, told = args.num_speculative_tokens, speculation(args.speculative_config)
    groups = tuple(scheduler_group(group, args) for group in layout.groups)
    plain = len(groups) == 1 and groups[0].kind == "full"
    states = args.enable_prefix_caching and any(group.kind == "mamba" for group in groups)
    if states and args.decode_context_parallel_size > 1:
        raise KvplanError(
            "decode_context_parallel_size beside states with prefix caching: where vLLM's hits end inside blocks is not"
            " followed; --no-enable-prefix-caching simulates"
        )
    return EngineConfig(
        block_size=groups[0].block_size if plain and groups[0].block_size else layout.block_size,
        num_gpu_blocks=layout.num_blocks,
        max_num_seqs=args.max_num_seqs,
        max_num_active_seqs=args.max_num_active_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_scheduled_tokens=args.max_num_scheduled_tokens,
        max_model_len=layout.max_model_len,
        enable_prefix_caching=args.enable_prefix_caching,
        prefix_match_unit=args.prefix_match_unit,
        prefix_cache_retention_interval=args.prefix_cache_retention_interval,
        enable_chunked_prefill=args.enable_chunked_prefill,
        policy=args.scheduling_policy,
        async_scheduling=args.async_scheduling,
        watermark=args.watermark,
        scheduler_reserve_full_isl=args.scheduler_reserve_full_isl,
        long_prefill_token_threshold=args.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=args.long_prefill_token_threshold_adaptive,
        enable_mamba_shared_prefix_checkpoint=args.enable_mamba_shared_prefix_checkpoint,
        kv_cache_groups=() if plain else groups,
        num_speculative_tokens=drafts,
        num_speculative_tokens_per_batch_size=draft_tiers(args),
        spec_method=args.speculative_method,
        parallel_drafting=told.parallel_drafting,
        disable_eagle_block_drop=told.disable_eagle_block_drop,
        enable_adaptive_verification=verifies_adaptively(args),
        prefill_schedule_interval=args.prefill_schedule_interval,
    )


def scheduler_group(group: KvGroup, args: EngineArgs) -> KVCacheGroup:
    """What the scheduler knows of a group of the plan."""
    kind = KINDS[group.kind]
    return KVCacheGroup(
        kind=kind,
        block_size=group.block_tokens,
        window=group.window if kind == "sliding_window" else None,
        chunk=group.window if kind == "chunked_local" else None,
        bounded_replay=group.bounded_replay,
        mode="align" if args.enable_prefix_caching else "none",
        checkpoint_blocks=int(group.checkpoint_alignment > 0),
        checkpoint_alignment=group.checkpoint_alignment or None,
        eagle=args.num_speculative_tokens > 0
        and args.speculative_method in ("mtp", "dspark")
        and not speculation(args.speculative_config).disable_eagle_block_drop
        and group.holds_last_layer,
    )


def model_beside(name: str, folder: Path) -> ModelSpec:
    """A model by name, or by a path that starts at the scenario's folder."""
    beside = folder / name
    return load_model(str(beside) if path_exists(beside) else name)


class _Timed(NamedTuple):
    """Step times, their measured range, where they come from, how far they may be off."""

    time: StepTime
    outside: Outside
    sources: dict[str, str]
    doubt: tuple[float, float, float, float]
    """Low and high, of steps and of what prompts add to them."""
    shared_reads: float
    seen_by_client: bool = False
    links: MeasuredLinks | None = None
    """What the profile measured of links to host memory and files."""


def _step_time(
    model: ModelSpec, gpu: GpuSpec, args: ResolvedArgs, deployment: Deployment, folder: Path
) -> _Timed:
    spec = deployment.step_time
    shared = spec.shared_reads
    if spec.fixed_us is not None:
        stated = {"step_time": "stated in the scenario"}
        return _Timed(StatedStepTime.of(spec), anywhere, stated, (1.0, 1.0, 1.0, 1.0), shared or 0.0)
    profile = spec.profile
    if profile is not None and path_exists(folder / profile):
        profile = str(folder / profile)
    link = stated_link(gpu, deployment.interconnect)
    drafts = deployment.colocate.get("draft")
    found = make_step_times(
        model, gpu, args, engine=deployment.engine_of, profile=profile, link=link,
        draft_model=model_beside(drafts, folder) if drafts else None,
    )  # fmt: skip
    sources = {"step_time": found.source, "step_time_range": str(found.doubt)}
    timing = found.profile.timing
    if link is not None and args.num_gpus > 1:
        sources["interconnect"] = str(link)
    if timing is not None and timing.errors:
        sources["step_time_error"] = _errors(timing)
    if found.notes:
        sources["step_time_notes"] = "; ".join(found.notes)
    found = found._replace(time=_on_clock(found.time, args.async_scheduling))
    if last := found.last:
        found = found._replace(last=last._replace(time=_on_clock(last.time, args.async_scheduling)))
        ends = f"last {last.window} tokens" if last.window > 1 else "last token"
        layers = f"{last.time.work.num_layers} of {found.time.work.num_layers} layers"
        sources["last_layers"] = (
            f"{layers} run on the {ends} of a prompt's chunk"
            f" alone{f', in steps of more than {last.whole_up_to}' * (last.whole_up_to > 0)}"
        )
    time = found.step
    if found.draft is not None:
        tokens, at_once = args.num_speculative_tokens, drafts_at_once(args)
        passes, each = (1, tokens) if at_once else (tokens, 1)
        if args.speculative_method == "medusa":  # every head reads the one state
            passes, each, at_once = 1, 1, True
        second = not on_first_runner(args, parse_engine(deployment.engine_of))
        by_batch = () if at_once else drafting_passes(args, second, model.num_mtp_modules)
        time = DraftedStepTime(time, found.draft, passes, each, by_batch)
        layers = f"{found.draft.work.num_layers} layers a step"
        often = f"{min(by_batch)} to {max(by_batch)}" if by_batch else passes
        sources["drafting"] = f"one pass of {layers}" if at_once else f"{often} passes of {layers}"
    if (tiers := draft_tiers(args)) is not None:
        made = drafts_by_batch(tiers, args.max_num_seqs, args.num_speculative_tokens)[1:]
        sources["drafts"] = f"{min(made)} to {max(made)} by the requests of a step"
    shared = found.time.costs.shared_reads if shared is None else shared
    at_client = timing is not None and timing.seen_by_client
    return _Timed(time, found.outside, sources, found.doubt[:4], shared, at_client, found.links(gpu))


def stated_link(gpu: GpuSpec, asked: Interconnect | None) -> Link | None:
    """The link that a scenario states, its gaps from the kind or the card; None where it states none."""
    if asked is None:
        return None
    link = LINKS[asked.kind] if asked.kind else default_link(gpu)
    return link.stated(asked.gb_s, asked.latency_us)


def _errors(timing: TimingProfile) -> str:
    """Held-out median errors per regime; a regime that was checked in several ways has a range."""
    found: dict[str, list[float]] = {}
    for error in timing.errors:
        found.setdefault(error.regime, []).append(error.median)
    spans = {k: f"{min(v):.1%}" + (f" to {max(v):.1%}" if len(v) > 1 else "") for k, v in found.items()}
    return "held-out medians: " + ", ".join(f"{regime} {span}" for regime, span in spans.items())


def _on_clock(time: ModelStepTime, is_async: bool) -> ModelStepTime:
    """Host time hides under the GPU's with asynchronous scheduling, and adds to it without; lengths differ."""
    costs = replace(time.costs, host=replace(time.costs.host, overlaps=is_async))
    return ModelStepTime(time.work, replace(costs, attention=_skewed(costs.attention, costs.skew)))


def _skewed(attention: AttentionTimes, skew: float) -> AttentionTimes:
    """Decodes of unequal lengths; a surface has them as they were timed."""
    if not skew or not isinstance(attention, AttentionCosts):
        return attention
    return replace(attention, bytes_per_s=attention.bytes_per_s / (1 + skew),
                   mixed_bytes_per_s=attention.mixed_bytes_per_s / (1 + skew))  # fmt: skip
