"""`reconcile`: a real engine's start-up log beside the plan of the same model, flags and card, line by line.

    log --logs.read_log--> figures, flags, names --> plan --reconcile_explain--> lines, each with what explains it
                                                          --reconcile_learn--> overheads, for `estimate --profile`

Knows no formula of memory: `plan` does. Knows no log format: `logs` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from kvplan.answers import Plan, Question
from kvplan.demand import Demand
from kvplan.engine_args import LATEST, EngineArgs, EngineVersion, EntryPoint, parse_engine
from kvplan.errors import KvplanError
from kvplan.gpu import GpuSpec, get_gpu, gpu_names, match_product
from kvplan.logs import StartupLog, read_log
from kvplan.memory_profile import Figure, MemoryProfile, memory_profile
from kvplan.model import ModelSpec, find_bundled, load_model
from kvplan.other_engines import default_utilization
from kvplan.plan import answer
from kvplan.profile import Profile
from kvplan.reconcile_explain import (
    adopt,
    contradictions,
    explain_activation,
    explain_graphs,
    explain_layout,
    explain_pool,
    explain_runtime,
    explain_weights,
)
from kvplan.reconcile_learn import Unlearned, activation_bytes, before_loading, learn, non_torch_gib
from kvplan.reconcile_pool import PrintedPool, pool_gib, printed_pool
from kvplan.units import GiB, gib


class Line(NamedTuple):
    """One figure of the log and the plan's."""

    name: str
    """Key, e.g. weights."""
    label: str
    """As printed."""
    unit: str
    """GiB, blocks, tokens or x."""
    printed: float | None
    """What the log says; None where it does not."""
    planned: float
    """What the plan of the same flags says."""
    explanation: str
    """What the residual comes from."""

    @property
    def residual(self) -> float | None:
        """Log less plan, in the line's unit."""
        return None if self.printed is None else self.printed - self.planned


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A log and its plan."""

    log: StartupLog
    plan: Plan
    """The plan of the log's model, flags and card, with bundled overheads."""
    lines: tuple[Line, ...]
    pool: PrintedPool
    """The KV pool that the log tells, and what kvplan makes of that pool."""
    contradictions: tuple[str, ...]
    """Figures of the log that exclude each other; such a log teaches nothing."""
    overheads: MemoryProfile | None
    """Overheads under which the plan gives the log's pool; None where the log does not tell."""
    why_nothing_learned: str
    """Why there are none; empty where there are."""
    assumptions: tuple[str, ...]
    """What the log did not say and was assumed."""

    def profile(self, name: str) -> Profile:
        """The overheads as a profile for `estimate --profile`. Raises KvplanError where nothing was learned."""
        if self.overheads is None:
            raise KvplanError(f"nothing to save: {self.why_nothing_learned}")
        question = self.plan.question
        return Profile(
            name=name,
            gpu=question.gpu.name,
            engine=question.engine.engine,
            engine_version=self.log.version or "{}.{}".format(*question.engine.version),
            memory=self.overheads,
            source=f"start-up log of {question.engine} with {question.model.name} on {question.gpu.name}",
        )

    def to_dict(self) -> dict[str, object]:
        """The document that `kvplan reconcile --json` prints."""
        from kvplan.reconcile_report import document

        return document(self)

    def __str__(self) -> str:
        from kvplan.reconcile_report import text

        return text(self)


def reconcile(
    log: str | Iterable[str] | StartupLog,
    *,
    model: ModelSpec | str | None = None,
    gpu: GpuSpec | str | None = None,
    engine: EngineVersion | str | None = None,
    args: EngineArgs | None = None,
    entry_point: EntryPoint = "serve",
) -> Reconciliation:
    """Set a start-up log beside the plan of the same model, flags and card.

    Args:
        log: the text, its lines (`logs.file_lines` streams a file), or a log already read.
        model, gpu, engine: where the log does not print them, or to overrule it.
        args: flags that the log does not print; they win over the log's.
        entry_point: `llm` for offline use, whose batch defaults differ.

    Raises:
        KvplanError: no log of an engine, contradicting figures, a model or card that nobody names.
    """
    told = log if isinstance(log, StartupLog) else read_log(log)
    question, assumptions = _question(told, model, gpu, engine, args, entry_point)
    plan = answer(question)
    pool = printed_pool(told, plan)
    stated = _stated(told, engine, args)
    better = adopt(told, plan, pool, stated)
    if better is not None:
        plan = answer(better.question)
        pool, assumptions = printed_pool(told, plan), (*assumptions, better.why)
    conflicts = contradictions(told, plan, pool)
    learned = Unlearned(conflicts[0]) if conflicts else learn(told, plan, pool)
    why = learned if isinstance(learned, Unlearned) else ""
    overheads = None if isinstance(learned, Unlearned) else learned
    lines = _lines(told, plan, pool)
    return Reconciliation(told, plan, lines, pool, conflicts, overheads, str(why), assumptions)


def _stated(log: StartupLog, engine: object, args: EngineArgs | None) -> set[str]:
    """Flags that nobody may assume otherwise: the user's, and the log's own words."""
    told = {name for name, value in log.flags.items() if value != "auto"}
    version = {"engine"} if log.version or engine is not None else set()
    return told | version | (args.model_fields_set if args else set())


def _question(
    log: StartupLog,
    model: ModelSpec | str | None,
    gpu: GpuSpec | str | None,
    engine: EngineVersion | str | None,
    args: EngineArgs | None,
    entry_point: EntryPoint,
) -> tuple[Question, tuple[str, ...]]:
    """What the log was started with, and what had to be assumed."""
    card = get_gpu(gpu) if isinstance(gpu, str) else gpu or _card(log)
    version, assumed = _version(log, engine)
    spec = load_model(model) if isinstance(model, str) else model or _model(log)
    flags = args_of(log, spec, args)
    share = _sglang_share(log)
    if share is not None and flags.gpu_memory_utilization is None:
        usual = default_utilization(version, spec, flags, card)
        if abs(share - usual) > 0.003:
            flags = flags.model_copy(update={"gpu_memory_utilization": share})
            assumed += (f"mem_fraction_static {share:g} by the log's free memory; the default is {usual:g}",)
    if log.model and model is None and log.model.rsplit("/", 1)[-1] != spec.name.rsplit("/", 1)[-1]:
        assumed += (f"{log.model} is planned as {spec.name}, which has its architecture",)
    length = flags.max_model_len or 0
    spec = replace(spec, max_model_len=max(spec.max_model_len, length))
    profile = memory_profile(version.engine, version.version, version.legacy)
    total = log.gib("total_gib")
    if total:
        seen = Figure(value=total, low=total, high=total, source="the start-up log")
        profile = profile.model_copy(update={"total_gib": {card.name: seen}})
    return Question(spec, card, flags, version, Demand(), entry_point, (), profile), assumed


def _model(log: StartupLog) -> ModelSpec:
    if not log.model:
        raise KvplanError("the log does not name its model; name it: --model NAME, a config.json or a folder")
    name = log.model if find_bundled(log.model) else log.model.rsplit("/", 1)[-1]
    if find_bundled(name) is None:
        raise KvplanError(
            f"the log's model {log.model!r} is not bundled; give its config: --model path/to/config.json"
        )
    return load_model(name)


def _card(log: StartupLog) -> GpuSpec:
    total = log.gib("total_gib")
    if log.gpu:
        try:
            return get_gpu(log.gpu)
        except KvplanError:
            if total:
                return match_product(log.gpu, int(total * GiB))
            raise KvplanError(
                f"the log's card {log.gpu!r} is not in the table; name one like it: --gpu NAME"
            ) from None
    if total is None:
        raise KvplanError("the log does not name its card; name it: --gpu NAME (`kvplan gpus` lists them)")
    cards = [get_gpu(name) for name in gpu_names()]
    near = [c.name for c in cards if c.usable_gib_range[0] - 0.1 <= total <= c.usable_gib_range[1] + 0.1]
    like = (
        f", e.g. --gpu {near[0]}; cards of {total:.2f} GiB: {', '.join(near)}" if near else " (`kvplan gpus`)"
    )
    raise KvplanError(f"the log does not name its card; name it: --gpu NAME{like}")


def _version(log: StartupLog, asked: EngineVersion | str | None) -> tuple[EngineVersion, tuple[str, ...]]:
    if asked is not None:
        version = parse_engine(asked) if isinstance(asked, str) else asked
        if version.engine != log.engine:
            raise KvplanError(f"--engine {version}: the log is one of {log.engine}")
        return version, ()
    if log.version:
        number = ".".join(log.version.split(".")[:2])
        return parse_engine(f"{log.engine}@{number}" + ("-v0" if log.legacy else "")), ()
    numbers = _guess(log)
    told = EngineVersion(log.engine, numbers, log.legacy)  # type: ignore[arg-type]
    return told, (
        f"the log does not print a version; {told} by the form and date of its lines (--engine overrules)",
    )


def _guess(log: StartupLog) -> tuple[int, int]:
    """A version by the figures printed (vLLM estimates CUDA graphs from 0.21 on), or the date (SGLang 0.5: 2025-08)."""
    if log.engine == "sglang" and log.month and log.month < "2025-08":
        return (0, 4)
    if log.engine != "vllm":
        return LATEST[log.engine]
    if log.legacy:
        return (0, 6) if "peak_torch_gib" in log.figures else (0, 7)
    return (
        (0, 32)
        if "consumed_gib" in log.figures
        else (0, 21)
        if "graphs_estimated_gib" in log.figures
        else (0, 20)
    )


def args_of(log: StartupLog, model: ModelSpec, more: EngineArgs | None = None) -> EngineArgs:
    """The log's flags as `EngineArgs`; those the user states win. Values that no engine takes are left out."""
    told: dict[str, Any] = {
        name: value for name, value in log.flags.items() if name in EngineArgs.model_fields
    }
    if log.gib("utilization") and "kv_cache_memory_bytes" not in told:
        told.setdefault("gpu_memory_utilization", log.figures["utilization"])
    length = log.gib("concurrency_len") or log.gib("context_len") or log.gib("max_seq_len")
    if length:
        told["max_model_len"] = int(length)
    for flag, figure in (("max_num_seqs", "max_batch_size"), ("max_num_batched_tokens", "max_num_tokens")):
        if figure in log.figures:
            told.setdefault(flag, int(log.figures[figure]))
    tokens = log.flags.get("max_total_tokens")
    if isinstance(tokens, int):
        told.setdefault("num_gpu_blocks_override", tokens // int(told.get("block_size") or 1))
    if log.gib("state_slots") and log.gib("state_slots") == told.get("max_num_seqs"):
        told["enable_prefix_caching"] = (
            False  # SGLang sizes states by the requests only without its radix cache
        )
    if told.get("dtype") == model.dtype:
        del told["dtype"]
    if model.quantization is not None or told.get("quantization") not in ON_LOAD:
        told.pop("quantization", None)
    told |= more.model_dump(exclude_unset=True) if more else {}
    args = EngineArgs()
    for name, value in told.items():
        try:
            args = EngineArgs(**args.model_dump(exclude_unset=True) | {name: value})
        except (ValidationError, KvplanError):
            if more and name in more.model_fields_set:
                raise
    defaults = args.model_dump(exclude_defaults=True)
    return EngineArgs(**defaults)


def _sglang_share(log: StartupLog) -> float | None:
    """mem_fraction_static as 1 - (free after loading - pool) / free before, where the log prints all three."""
    after, before, pool = log.gib("after_gib"), before_loading(log), pool_gib(log)
    if log.engine != "sglang" or log.flags.get("max_total_tokens") or not (after and before and pool):
        return None
    return round(1 - (after - pool) / before, 3)


ON_LOAD = ("fp8", "bitsandbytes")
"""Quantisations that vLLM applies to 16-bit checkpoints while loading."""


def _lines(log: StartupLog, plan: Plan, pool: PrintedPool) -> tuple[Line, ...]:
    """The figures in the order an engine meets them."""
    budget, figures = plan.budget, log.figures
    weights = figures.get("weights_gib")
    if weights is None and "weights_mib" in figures:
        weights = figures["weights_mib"] / 1024
    peak = activation_bytes(log)
    activation = None if peak is None else peak / GiB
    graphs = figures.get("graphs_estimated_gib") if plan.budget.graphs.size.value else None
    rows = [
        Line(
            "total", "card's total", "GiB", figures.get("total_gib"), gib(plan.question.gpu.total_bytes), ""
        ),
        Line("weights", "weights", "GiB", weights, gib(budget.weights.size.value), ""),
        Line("activation", "activation peak", "GiB", activation, gib(budget.activation.size.value), ""),
        Line(
            "non_torch",
            "runtime (non-torch)",
            "GiB",
            non_torch_gib(log),
            gib(budget.runtime.size.value),
            "",
        ),
        Line("cuda_graph", "CUDA graphs", "GiB", graphs or figures.get("graphs_gib"), gib(_graphs(plan)), ""),
        Line("kv_pool", "KV cache", "GiB", pool.printed_gib, gib(budget.kv.size.value), ""),
        Line("num_gpu_blocks", "blocks", "blocks", figures.get("num_gpu_blocks"), plan.shape.num_blocks, ""),
        Line(
            "cache_tokens",
            "tokens",
            "tokens",
            figures.get("cache_tokens"),
            plan.shape.kv_cache_size_tokens,
            "",
        ),
        Line(
            "max_concurrency",
            "concurrency",
            "x",
            figures.get("max_concurrency"),
            plan.shape.max_concurrency,
            "",
        ),
    ]
    return tuple(row._replace(explanation=_explain(row, log, plan, pool)) for row in rows)


def _graphs(plan: Plan) -> int:
    """CUDA graphs, whether or not the budget holds them."""
    from kvplan.overheads import estimate_overheads

    question = plan.question
    assert question.profile is not None
    return estimate_overheads(question.model, plan.args, question.gpu, question.profile).graphs.value


def _explain(line: Line, log: StartupLog, plan: Plan, pool: PrintedPool) -> str:
    if line.printed is None:
        return "not printed"
    if line.name == "total":
        return "what CUDA reports there" if abs(line.printed - line.planned) > 0.005 else "agrees"
    if line.name == "weights":
        return explain_weights(line.printed, plan)
    if line.name == "activation":
        return explain_activation(line.printed, plan)
    if line.name == "non_torch":
        return explain_runtime(line.printed, plan)
    if line.name == "cuda_graph":
        return explain_graphs(line.printed, line.planned, plan)
    if line.name == "kv_pool":
        return explain_pool(line.printed, plan)
    return explain_layout(line.name, line.printed, log, plan, pool)
