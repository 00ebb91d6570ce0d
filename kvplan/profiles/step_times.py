"""From a model, a card and flags to step times: the best profile there is, or the roofline; and what that rests on.

The one place that decides formats (weights, experts, KV) and which profile serves. Knows no simulator.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from kvplan.engines.compilation_config import compilation_flags
from kvplan.engines.cuda_graphs import find_graphs
from kvplan.engines.drafting import on_first_runner
from kvplan.engines.expert_balance import redundant_experts
from kvplan.engines.flags import EngineArgs, EngineVersion, parse_engine
from kvplan.engines.late_checks import samples_shares
from kvplan.engines.nodes import find_spread
from kvplan.engines.quantization_config import load_format
from kvplan.engines.rank_weights import query_ranks
from kvplan.engines.weight_offload import weight_offload
from kvplan.engines.weights_held import weights_held
from kvplan.formulas.graphs import MAX_CAPTURE_SIZE, Graphs, capture_sizes
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.models.held import AS_LOADED, HeldWeights
from kvplan.models.kv_sharing import first_kv_shared_layer, reads_fast_prefill
from kvplan.models.modules import Cut, Module, checkpoint_name, layer_modules
from kvplan.models.quantization import Rule, Scheme, quantization_rule
from kvplan.models.spec import AttentionKind, MlpSpec, ModelSpec
from kvplan.models.weights import stage_spans
from kvplan.profiles.doubt import Doubt, find_doubt
from kvplan.profiles.engine_terms import with_terms
from kvplan.profiles.graph_doubt import graph_doubts
from kvplan.profiles.host_links import find_host_link
from kvplan.profiles.kernel_doubt import kernel_doubts
from kvplan.profiles.measured_links import MeasuredLinks
from kvplan.profiles.nearest import nearest_profile
from kvplan.profiles.network import Inside, between_machines, inside_machine, network_doubts, over_network
from kvplan.profiles.profile import Profile, load_profile, pick
from kvplan.profiles.timing_profile import ELEMENT_BYTES as ELEMENT_BYTES
from kvplan.profiles.timing_profile import TimingProfile
from kvplan.profiles.weights_in_host import WeightCopies, from_host, with_link
from kvplan.timing.costs import HostCosts, Seconds
from kvplan.timing.links import LINKS, Link
from kvplan.timing.step import MicroBatches, ModelStepTime, StepShape, StepTime, TrimmedStepTime
from kvplan.timing.work import StepWork, step_work

WORKSTATION = ("rtx-",)
"""Cards found in all sorts of machines: what the tables' server had between them says little of yours."""
LINK_SHARE = 0.7
"""Share of a link's rate that exchanges reach (assumed, 0.5 to 0.85)."""


class LastLayers(NamedTuple):
    """Layers that run on the end of each prompt's chunk alone."""

    time: ModelStepTime
    """Of them by themselves, without what a step costs whatever it holds."""
    window: int
    """Tokens of a chunk that they run on."""
    whole_up_to: int
    """Tokens of a step up to which they run on all of them."""


class StepTimes(NamedTuple):
    """Step times for one deployment, and what they rest on."""

    time: ModelStepTime
    profile: Profile
    source: str
    """measured: which profile; or assumed: the profile of which other card."""
    notes: tuple[str, ...]
    """What was borrowed or assumed on the way."""
    doubt: Doubt
    """How far they may be off."""
    draft: ModelStepTime | None = None
    """One pass of the drafter, with `num_speculative_tokens`; None where drafting takes no time on the GPU."""
    last: LastLayers | None = None
    """Layers that long prefills spare most tokens; None: all run whole."""
    copies: WeightCopies | None = None
    """Of weights from host memory; None: none are copied."""

    @property
    def step(self) -> StepTime:
        """What a step of the model takes."""
        step: StepTime = TrimmedStepTime(self.time, *self.last) if self.last else self.time
        return self.copies.around(step) if self.copies else step

    def links(self, gpu: GpuSpec) -> MeasuredLinks | None:
        """What the profile measured of links to host memory and files, where it is that card's own."""
        return self.profile.links if self.profile.gpu in ("", gpu.name) else None

    def outside(self, shape: StepShape) -> tuple[str, ...]:
        """Measured ranges that a step leaves; empty inside, and for a roofline, which measured nothing."""
        timing = self.profile.timing
        return timing.outside(shape) if timing else ()


def make_step_times(
    model: ModelSpec,
    gpu: GpuSpec,
    args: EngineArgs | None = None,
    *,
    engine: EngineVersion | str = "vllm",
    profile: Profile | str | Path | None = None,
    link: Link | None = None,
    draft_model: ModelSpec | None = None,
) -> StepTimes:
    """Step times of `model` on `gpu` under `args`; `profile` names or is one, None picks the best.

    `link`, if stated, comes before what the profile's machine had between its GPUs. `draft_model` is who drafts, an
    EAGLE head or a model.

    Raises:
        KvplanError: a profile that is not there or holds no step times.
    """
    args = args or EngineArgs()
    engine = parse_engine(engine) if isinstance(engine, str) else engine
    formats = find_formats(model, args, weights_held(args, gpu, engine))
    work = model_work(model, args, formats)
    chosen, note, rests_on = _chosen(profile, gpu, engine)
    assert chosen.timing is not None
    timing, around = with_terms(chosen.timing, engine, model, gpu, args, work, formats["expert_format"])
    graphs = _graphs(engine, model, gpu, args)
    spread = find_spread(args, moe=model.is_moe)
    options: dict[str, Any] = formats | {"link": link or default_link(gpu)} | _captured(graphs, timing, args)
    options["micro"] = _micro_batches(model, args)
    on_one = inside_machine(work, spread) if spread.num_machines > 1 else work
    notes = tuple(n for n in (note, around, *timing.borrowed(on_one, **options)) if n)
    drafter = find_drafter(model, args, draft_model)
    draft = _drafting(drafter, timing, args, options) if drafter else None
    doubt = find_doubt(
        chosen.timing, engine, model, rests_on.startswith("measured") and chosen.gpu in ("", gpu.name)
    )
    time = timing.step_time(work, **options)
    if spread.num_machines > 1:
        near = timing.step_time(on_one, **options).costs
        inside = Inside(
            near.reduce if spread.sum_ranks_each > 1 else None,
            near.gather if spread.replicas_each > 1 else None,
        )
        across = between_machines(gpu, spread, default_link(gpu))
        time = over_network(time, spread, link, across, inside)
        notes += (f"{spread.crossing} between machines: {link or across}",) if spread.crossing else ()
        doubt = doubt.wider(network_doubts(time, spread, link, across, inside, model.hidden_size))
    if engine.engine == "vllm":
        nccl = cast(Seconds | None, timing.surfaces.get(f"all_gather.{args.tensor_parallel_size}"))
        doubt = doubt.wider(graph_doubts(graphs, args, engine, model, time))
        doubt = doubt.wider(kernel_doubts(model, args, int(gpu.compute_capability), time, nccl))
    if samples_shares(model, args):
        time = ModelStepTime(work, replace(time.costs, row_s=time.costs.row_s / args.tensor_parallel_size))
    copies = None
    if offload := weight_offload(args):
        measured = chosen.links if chosen.gpu in ("", gpu.name) else None
        host_link = find_host_link(gpu, measured=measured)
        notes += (f"weights in host memory come over {host_link}",)
        doubt = with_link(doubt, time, model, args, offload, host_link)
        time, copies = from_host(time, model, args, offload, host_link)
    last = None
    if engine.engine == "vllm" and model.layers[0].attention.shares_latents and args.swa_bounded_replay:
        last = _last_layers(model, graphs, args, formats, time, drafter)
    elif engine.engine == "vllm" and args.kv_sharing_fast_prefill and reads_fast_prefill(model):
        last = _layers_that_share(model, args, formats, time)
    return StepTimes(time, chosen, rests_on, notes, doubt, draft, last, copies)


def _chosen(
    profile: Profile | str | Path | None, gpu: GpuSpec, engine: EngineVersion
) -> tuple[Profile, str, str]:
    """(the profile whose step times stand for this card's, what is to be said of that, what they rest on)."""
    if profile is not None:
        chosen = profile if isinstance(profile, Profile) else load_profile(profile)
        note = "" if chosen.gpu in ("", gpu.name) else f"profile of {chosen.gpu} used for {gpu.name}"
        rests_on = f"measured: profile {chosen.name}"
    else:
        found, note = pick(gpu.name, engine.engine)
        rests_on = f"measured: profile {found.name}" if found else ""
        if found is None:
            found, note = nearest_profile(gpu, engine.engine)
            rests_on = f"assumed: profile {found.name} scaled to {gpu.name}'s data sheet"
        chosen = found
    if chosen.timing is None:
        raise KvplanError(f"profile {chosen.name} holds no step times; name another or leave it out")
    return chosen, note, rests_on


def _trimmed_from(args: EngineArgs) -> int:
    """Tokens from which on a step inside a CUDA graph breaks out of it for the last layers.

    Source: vLLM 0.32 `models/deepseek_v41/nvidia/model_state.py`.
    """
    told = compilation_flags(args.compilation_config)
    return (
        told.decoder_replay_trim_threshold
        if told.cudagraph_decoder_replay and not args.enable_lora
        else 1 << 30
    )


def _last_layers(
    model: ModelSpec,
    graphs: Graphs,
    args: EngineArgs,
    formats: dict[str, Any],
    time: ModelStepTime,
    drafter: ModelSpec | None,
) -> LastLayers | None:
    """Those from the last that makes latents on, where windows are made again after a hit (DeepSeek V4.1).

    They must lie on one pipeline stage and look up no n-grams, ranks must not share a sequence, and who drafts must not
    see further back. Source: vLLM 0.32 `models/deepseek_v41/nvidia/model.py: _decoder_replay_supported`.
    """
    attention = [layer.attention for layer in model.layers]
    made = [i for i, a in enumerate(attention) if a.compress_ratio and not a.latents_elsewhere]
    if not made:
        return None
    first, layers = made[-1], model.layers[made[-1] :]
    window = attention[first].window
    begins = stage_spans(len(model.layers), args.pipeline_parallel_size, args.environment.pp_layer_partition)[
        -1
    ][0]
    looks_up = any(w.cut == "host" for layer in layers for w in layer.extras)
    parallel = args.enable_expert_parallel and args.tensor_parallel_size > 1 and args.data_parallel_size > 1
    looks_back = (
        drafter is not None
        and args.speculative_method in ("draft_model", "eagle", "eagle3")
        and any(not 0 < layer.attention.window <= window for layer in drafter.layers)
    )
    if first < begins or len(layers) < 2 or looks_up or looks_back:
        return None
    if parallel and args.pipeline_parallel_size == 1:
        return None
    threshold = _trimmed_from(args)
    if graphs.others and threshold <= window:
        raise KvplanError(
            f"decoder_replay_trim_threshold {threshold}: must exceed the window, {window} tokens"
        )
    largest = max(graphs.other_sizes, default=0)
    alone = _alone(replace(model, layers=layers), args, formats, time)
    return LastLayers(alone, window, min(largest, threshold - 1))


def _layers_that_share(
    model: ModelSpec, args: EngineArgs, formats: dict[str, Any], time: ModelStepTime
) -> LastLayers | None:
    """Those at the end that read others' KV, where they lie on one pipeline stage: a token of each prompt's chunk.

    vLLM 0.32 `v1/worker/gpu/attn_utils.py: FastPrefillHelper`: in every step with prompt tokens. On several stages its
    classes do not run so (`gemma4.py: fast_prefill_forward` hands nothing on).
    """
    first = first_kv_shared_layer(model)
    if first == len(model.layers) or args.pipeline_parallel_size > 1:
        return None
    return LastLayers(_alone(replace(model, layers=model.layers[first:]), args, formats, time), 1, 0)


def _alone(model: ModelSpec, args: EngineArgs, formats: dict[str, Any], time: ModelStepTime) -> ModelStepTime:
    """Some layers by themselves, without what a step costs whatever it holds."""
    costs = replace(
        time.costs, host=HostCosts(), row_s=0.0, step_s=0.0, capture_sizes=(), decode_sizes=None, tiers=None
    )
    return ModelStepTime(model_work(model, args, formats), costs)


WITHOUT_PASSES = ("ngram", "ngram_gpu", "suffix", "extract_hidden_states", "custom_class")
"""Methods that draft without a pass on the GPU, or by the user's own code."""


def find_drafter(
    model: ModelSpec, args: EngineArgs, draft_model: ModelSpec | None = None
) -> ModelSpec | None:
    """What runs once for each draft: a model, a layer of the target with its LM head, or nothing (n-gram).

    MTP runs its own layer, DSpark all of its own at once. An EAGLE head that is not named is one dense layer of the
    target's attention (its width, where the target is a mixture, is that of all experts a token visits: assumed).
    """
    if not args.num_speculative_tokens or args.speculative_method in WITHOUT_PASSES:
        return None
    if draft_model is not None or args.speculative_method == "draft_model":
        return draft_model
    if args.speculative_method == "mtp" and model.mtp_layers:
        return replace(model, layers=model.mtp_layers[: model.mtp.layers_each])
    if args.speculative_method == "dspark" and model.dspark:
        return replace(model, layers=model.dspark.layers)
    last = next(
        (a for a in reversed(model.layers) if a.attention.kind is AttentionKind.FULL), model.layers[-1]
    )
    mlp = last.mlp
    if mlp.num_experts:
        width = mlp.intermediate_size * mlp.experts_per_token + mlp.shared_intermediate_size
        mlp = MlpSpec(intermediate_size=width)
    return replace(model, layers=(replace(last, mlp=mlp, beside=None),))


def _drafting(
    drafter: ModelSpec, timing: TimingProfile, args: EngineArgs, options: dict[str, Any]
) -> ModelStepTime:
    """A decode step of the drafter: its kernels and layers; sampling and the host are the verifying step's."""
    flags = args.model_copy(update={"data_parallel_size": 1})
    formats = find_formats(drafter, flags)
    time = timing.step_time(
        model_work(drafter, flags, formats), **options | formats | {"micro": MicroBatches(), "tiers": None}
    )
    return ModelStepTime(time.work, replace(time.costs, host=HostCosts(), row_s=0.0, step_s=0.0))


def _graphs(engine: EngineVersion, model: ModelSpec, gpu: GpuSpec, args: EngineArgs) -> Graphs:
    """vLLM's CUDA graphs, from 0.11 on by the batch; other engines' and older ones' by the staircase up to 512."""
    if args.enforce_eager:
        return Graphs()
    if not engine.is_vllm(0, 11):
        return Graphs("FULL", capture_sizes(MAX_CAPTURE_SIZE))
    first = on_first_runner(args, engine)
    return find_graphs(args, model, gpu.compute_capability, rounds_all=first, version=engine)


def _micro_batches(model: ModelSpec, args: EngineArgs) -> MicroBatches:
    """Parts of long steps, where experts are spread over data-parallel ranks; whole steps elsewhere."""
    if not (model.is_moe and args.enable_expert_parallel and args.data_parallel_size > 1):
        return MicroBatches()
    return MicroBatches(
        args.num_micro_batches, args.dbo_decode_token_threshold, args.dbo_prefill_token_threshold
    )


def _captured(graphs: Graphs, timing: TimingProfile, args: EngineArgs) -> dict[str, Any]:
    """The graphs' sizes as `step_costs` takes them; none where the profile's steps were measured without any.

    A profile whose server captured fewer says how far its graphs reach, unless the flags do.
    """
    told = compilation_flags(args.compilation_config)
    sizes = args.cudagraph_capture_sizes or told.cudagraph_capture_sizes
    stated = sizes or args.max_cudagraph_capture_size or told.max_cudagraph_capture_size
    limit = timing.max_capture_size
    if limit and (stated or limit == MAX_CAPTURE_SIZE):
        limit = 1 << 30
    pieces = graphs.decodes == "piecewise"
    return {
        "sizes": tuple(n for n in graphs.other_sizes if n <= limit),
        "decode_sizes": tuple(n for n in graphs.decode_sizes if n <= limit),
        "whole_decodes": 0 if pieces else max(graphs.own_decode_sizes or graphs.other_sizes, default=0),
        "largest_graph": max(graphs.decode_sizes, default=0),
        "tiers": graphs._replace(sizes=tuple(n for n in graphs.sizes if n <= limit))
        if graphs.widths
        else None,
    }


def default_link(gpu: GpuSpec) -> Link:
    """What joins cards of a kind where neither a profile nor the user says: half the data sheet's rate, or PCIe's."""
    if gpu.interconnect.startswith("PCIe"):
        found = LINKS["pcie5" if gpu.pcie_gb_s > 32 else "pcie4"]
        return replace(found, comes_first=gpu.name.startswith(WORKSTATION))
    rate = LINK_SHARE * gpu.interconnect_bandwidth
    return Link(
        gpu.interconnect, rate, LINKS["nvlink"].latency_s, f"{LINK_SHARE:.0%} of the data sheet, assumed"
    )


def model_work(model: ModelSpec, args: EngineArgs, formats: dict[str, Any]) -> StepWork:
    """What one rank moves and multiplies in a step, at the bytes of the formats found."""
    return step_work(
        model,
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        data_parallel_size=args.data_parallel_size if model.is_moe else 1,
        decode_context_parallel_size=args.decode_context_parallel_size,
        enable_expert_parallel=args.enable_expert_parallel,
        weight_bytes=ELEMENT_BYTES[formats["weight_format"]],
        expert_weight_bytes=ELEMENT_BYTES[formats["expert_format"]],
        kv_bytes=ELEMENT_BYTES[formats["kv_format"]],
        num_redundant_experts=redundant_experts(model, args),
        q_ranks=query_ranks(model, args),
        state_writes=1 / args.replayssm_buffer_len if args.use_replayssm else 1.0,
    )


def find_formats(model: ModelSpec, args: EngineArgs, held: HeldWeights = AS_LOADED) -> dict[str, Any]:
    """Formats of weights, experts and KV, as `timing_profile.step_costs` takes them; `held`: what the card makes of
    weights."""
    plain = "float32" if args.dtype == "float32" else "bf16"
    weight, expert = _matrix_formats(model, load_format(args), plain, held)
    return {
        "weight_format": weight,
        "expert_format": expert,
        "kv_format": _kv_format(args.kv_cache_dtype),
        "mla": any(layer.attention.kind is AttentionKind.MLA for layer in model.layers),
    }


@lru_cache(64)
def _matrix_formats(
    model: ModelSpec, quantization: str | None, plain: str, held: HeldWeights
) -> tuple[str, str]:
    """(of all other weights, of experts), by the names that the checkpoint's rule is about."""
    rule = quantization_rule(model, quantization)
    modules = [
        module._replace(name=f"layers.{i}.{checkpoint_name(model.architecture, module.name)}")
        for i, layer in enumerate(model.layers)
        for module in layer_modules(layer, model.hidden_size, Cut())
    ]
    experts = [m for m in modules if m.role == "expert"]
    dense = [m for m in modules if m.role in ("attention", "mlp") and m.linear]
    weight = _format(dense, rule, plain, held)
    return weight, _format(experts, rule, plain, held) if experts else weight


def _format(modules: Iterable[Module], rule: Rule, plain: str, held: HeldWeights) -> str:
    """Format of most of the elements."""
    sizes: dict[str, int] = {}
    for module in modules:
        scheme = rule(module)
        wide = scheme is not None and held.is_wide(module, scheme, module.cols)
        name = plain if wide else _scheme_format(scheme, plain)
        sizes[name] = sizes.get(name, 0) + module.parameters
    return max(sizes, key=lambda name: sizes[name], default=plain)


def _scheme_format(scheme: Scheme | None, plain: str) -> str:
    if scheme is None:
        return plain
    if scheme.name.startswith("fp8"):
        return "fp8_block" if "block" in scheme.name else "fp8_static" if scheme.is_static else "fp8"
    if scheme.name.startswith(("nvfp4", "mxfp4")):
        return scheme.name[:5]
    if scheme.name.startswith("mxfp8"):
        return "fp8"
    return "int8" if scheme.bits == 8 else "int4"


def _kv_format(name: str) -> str:
    if name.startswith("fp8"):
        return "fp8"
    return "nvfp4" if name == "nvfp4" else "fp8" if name.startswith("int8") else "bf16"
