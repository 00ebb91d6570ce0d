"""What a log was started with, as a question to the planner: model, card, version and flags, told or assumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from kvplan.engines.flags import LATEST, EngineArgs, EngineVersion, EntryPoint, parse_engine
from kvplan.engines.resolve import as_read_by
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec, get_gpu, gpu_names, match_product
from kvplan.ground.units import GiB
from kvplan.memory.answers import Question
from kvplan.memory.demand import Demand
from kvplan.memory.other_engines import default_utilization
from kvplan.models.load import find_bundled, load_model
from kvplan.models.spec import ModelSpec
from kvplan.observed.learn import before_loading
from kvplan.observed.pool import pool_gib
from kvplan.observed.startup import StartupLog
from kvplan.profiles.memory_profile import Figure, memory_profile


def stated_flags(log: StartupLog, engine: object, args: EngineArgs | None) -> set[str]:
    """Flags that nobody may assume otherwise: the user's, and the log's own words."""
    told = {name for name, value in log.flags.items() if value != "auto"}
    version = {"engine"} if log.version or engine is not None else set()
    return told | version | (args.model_fields_set if args else set())


def question_of(
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
    spec = as_read_by(version, spec, flags)
    share = _sglang_share(log)
    if share is not None and flags.gpu_memory_utilization is None:
        usual = default_utilization(version, spec, flags, card)
        if abs(share - usual) > 0.003:
            flags = flags.model_copy(update={"gpu_memory_utilization": share})
            assumed += (f"mem_fraction_static {share:g} by the log's free memory; the default is {usual:g}",)
    same = spec.planned_as or spec.name
    if model is None and not _same_name(log.model, same):
        assumed += (f"{log.model} is planned as {same}, which has its architecture",)
    length = flags.max_model_len or 0
    spec = replace(spec, max_model_len=max(spec.max_model_len, length))
    profile = memory_profile(version.engine, version.version, version.legacy)
    total = log.figures.get("total_gib")
    if total:
        seen = Figure(value=total, low=total, high=total, source="the start-up log")
        profile = profile.model_copy(update={"total_gib": {card.name: seen}})
    question = Question(
        model=spec,
        gpu=card,
        args=flags,
        engine=version,
        demand=Demand(),
        entry_point=entry_point,
        profile=profile,
    )
    return question, assumed


def _model(log: StartupLog) -> ModelSpec:
    if not log.model:
        raise KvplanError("the log does not name its model; name it: --model NAME, a config.json or a folder")
    name = next((name for name in _spellings(log.model) if find_bundled(name)), None)
    if name is None:
        raise KvplanError(
            f"the log's model {log.model!r} is not bundled; give its config: --model path/to/config.json"
        )
    return load_model(name)


def _same_name(told: str, name: str) -> bool:
    """Whether a log's name or path may be that of a repository: its last part, and its publisher where it has one."""
    publisher, _, last = told.rpartition("/")
    repository = publisher and "/" not in publisher and publisher[0] not in ".~"
    return name in (told, *_cached(told)) or (not repository and last == name.rpartition("/")[2])


def _spellings(told: str) -> list[str]:
    """Names that a log's model may stand for: itself, its hub cache's repository, and its last part.

    The last part of a repository's name may be another publisher's checkpoint, which is then said.
    """
    return [told, *_cached(told), told.rpartition("/")[2]]


def _cached(told: str) -> list[str]:
    """Repositories that the folders of a path were downloaded from."""
    return [part.removeprefix("models--").replace("--", "/") for part in told.split("/") if "--" in part]


def _card(log: StartupLog) -> GpuSpec:
    total = log.figures.get("total_gib")
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
    told = EngineVersion(log.engine, _guess(log), log.legacy)  # type: ignore[arg-type]
    why = f"the log does not print a version; {told} by the form and date of its lines (--engine overrules)"
    return told, (why,)


def _guess(log: StartupLog) -> tuple[int, int]:
    """A version by the figures printed (vLLM estimates CUDA graphs from 0.21 on), or the date (SGLang 0.5: 2025-08)."""
    if log.engine == "sglang" and log.month and log.month < "2025-08":
        return (0, 4)
    if log.engine != "vllm":
        return LATEST[log.engine]
    if log.legacy:
        return (0, 6) if "peak_torch_gib" in log.figures else (0, 7)
    if "consumed_gib" in log.figures:
        return (0, 32)
    return (0, 21) if "graphs_estimated_gib" in log.figures else (0, 20)


def args_of(log: StartupLog, model: ModelSpec, more: EngineArgs | None = None) -> EngineArgs:
    """The log's flags as `EngineArgs`; those the user states win. Values that no engine takes are left out."""
    figures = log.figures
    told: dict[str, Any] = {k: value for k, value in log.flags.items() if k in EngineArgs.model_fields}
    told = {**log.assumed_ranks, **told}
    if figures.get("utilization") and "kv_cache_memory_bytes" not in told:
        told.setdefault("gpu_memory_utilization", round(figures["utilization"], 6))
    length = figures.get("concurrency_len") or figures.get("context_len") or figures.get("max_seq_len")
    if length:
        told["max_model_len"] = int(length)
    for flag, figure in (("max_num_seqs", "max_batch_size"), ("max_num_batched_tokens", "max_num_tokens")):
        if figure in figures:
            told.setdefault(flag, int(figures[figure]))
    if "asked_gib" in figures:
        told.setdefault("kv_cache_memory_bytes", int(figures["asked_gib"] * GiB))
    if figures.get("state_slots") and figures["state_slots"] == told.get("max_num_seqs"):
        # SGLang sizes states by the requests only without its radix cache
        told["enable_prefix_caching"] = False
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
    return EngineArgs(**args.model_dump(exclude_defaults=True))


def _sglang_share(log: StartupLog) -> float | None:
    """mem_fraction_static as 1 - (free after loading - pool) / free before, where the log prints all three."""
    after, before, pool = log.figures.get("after_gib"), before_loading(log), pool_gib(log)
    if log.engine != "sglang" or log.flags.get("num_gpu_blocks_override") or not (after and before and pool):
        return None
    return round(1 - (after - pool) / before, 3)


ON_LOAD = ("fp8", "bitsandbytes")
"""Quantisations that vLLM applies to 16-bit checkpoints while loading."""
