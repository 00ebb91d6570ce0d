"""What explains a residual between a log and its plan: one of a few assumptions, tried by asking the plan again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from kvplan.engines.flags import EngineVersion
from kvplan.engines.rank_weights import rank_weights
from kvplan.engines.weights_held import weights_held
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import gib
from kvplan.memory.answers import Plan, Question
from kvplan.memory.forward import answer
from kvplan.memory.overheads import Range
from kvplan.models.spec import AttentionKind
from kvplan.observed.pool import ROUNDING, PrintedPool, figure, pool_within
from kvplan.observed.startup import StartupLog

CLOSE = 0.01
"""Share by which figures may differ and still be called equal."""
SEQS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Usual values of max_num_seqs."""


def explain(
    name: str, printed: float | None, planned: float, plan: Plan, pool: PrintedPool, stated: Collection[str]
) -> str:
    """What the residual between a log's figure and the plan's comes from, under the `stated` flags. Sizes in GiB."""
    if printed is None:
        return "not printed"
    if name == "weights":
        return _explain_weights(printed, planned, plan, stated)
    if name in _SIZES:
        return _SIZES[name](printed, planned, plan)
    return _explain_count(name, printed, plan, pool)


def _explain_total(printed: float, planned: float, plan: Plan) -> str:
    return "what CUDA reports there" if abs(printed - planned) > 0.005 else "agrees"


def _explain_weights(printed: float, planned: float, plan: Plan, stated: Collection[str]) -> str:
    """Which format or split loads that many GiB."""
    if abs(printed - planned) <= max(0.06, CLOSE * planned):
        return "agrees"
    for what, update in formats(plan):
        if set(update) & set(stated):
            continue
        try:
            size = gib(loaded_as(plan, update))
        except KvplanError:
            continue
        if abs(printed - size) <= max(0.06, 2 * CLOSE * size):
            return f"as {what} ({size:.2f} GiB)"
    return f"{printed / planned - 1:+.0%}: another checkpoint format, or layers the config does not tell"


def loaded_as(plan: Plan, update: Mapping[str, object]) -> int:
    """Bytes of weights with other flags."""
    asked, args = plan.question, plan.args.model_copy(update=update)
    return rank_weights(asked.model, args, plan.stage.rank, weights_held(args, asked.gpu, asked.engine))


def formats(plan: Plan) -> Iterator[tuple[str, dict[str, object]]]:
    """Other ways to load the model."""
    if plan.question.model.quantization is None:
        for name in ("fp8", "bitsandbytes"):
            yield f"with --quantization {name}", {"quantization": name}
    if plan.question.model.mtp_layers and not plan.args.num_speculative_tokens:
        drafts = {"num_speculative_tokens": 1, "speculative_method": "mtp"}
        yield "with its MTP layers, --num-speculative-tokens", drafts
    for ranks in (1, 2, 4, 8):
        if ranks != plan.args.tensor_parallel_size:
            yield f"with -tp {ranks}", {"tensor_parallel_size": ranks}


def _explain_activation(printed: float, planned: float, plan: Plan) -> str:
    """Whether the peak lies in the learned range, or which batch has that sampler."""
    row = plan.budget.activation
    if "sampler" in row.why and plan.question.args.max_num_seqs is None and not _within(printed, row.size):
        for seqs in SEQS:
            update = {"max_num_seqs": min(seqs, plan.args.max_num_batched_tokens)}
            size = _activation(plan, update)
            if size and abs(printed - size) <= 0.03 * size:
                return f"as with --max-num-seqs {seqs} ({size:.2f} GiB)"
    return _against_range(printed, row.size)


def _activation(plan: Plan, update: Mapping[str, object]) -> float | None:
    args = plan.question.args.model_copy(update=update)
    try:
        return gib(answer(replace(plan.question, args=args)).budget.activation.size.value)
    except KvplanError:
        return None


def _explain_runtime(printed: float, planned: float, plan: Plan) -> str:
    return _against_range(printed, plan.budget.runtime.size)


def _against_range(printed: float, size: Range) -> str:
    if _within(printed, size):
        return "within the range of the overheads"
    return f"outside the range {gib(size.low):.2f}-{gib(size.high):.2f}: learned from this log"


def _explain_graphs(printed: float, planned: float, plan: Plan) -> str:
    """CUDA graphs, and whether they cost KV."""
    inside = bool(plan.question.profile and plan.question.profile.graphs_in_budget)
    where = "inside the budget" if inside else "outside the budget: costs no KV"
    if printed < 0:
        return f"{where}; memory was freed while capturing, nothing to learn"
    return where if abs(printed - planned) <= 0.3 * planned + 0.05 else f"{where}; learned from this log"


def _explain_pool(printed: float, planned: float, plan: Plan) -> str:
    """The pool is what the rows above leave."""
    if abs(printed - planned) <= 0.006:
        return "agrees"
    inside = "within" if _within(printed, plan.budget.kv.size) else "outside"
    return f"the rows above; {inside} the range of the overheads"


def _within(value: float, size: Range) -> bool:
    return gib(size.low) - 0.006 <= value <= gib(size.high) + 0.006


_SIZES: dict[str, Callable[[float, float, Plan], str]] = {
    "total": _explain_total,
    "activation": _explain_activation,
    "non_torch": _explain_runtime,
    "cuda_graph": _explain_graphs,
    "kv_pool": _explain_pool,
}


def _explain_count(name: str, printed: float, plan: Plan, pool: PrintedPool) -> str:
    """Whether blocks, tokens or concurrency follow from the printed pool, or under which flag they would."""
    if pool.low is None or pool.high is None:
        return "the printed pool holds no request of this length"
    if pool.printed_gib is None:
        return "the pool is read off this figure" if pool.num_bytes else "no pool gives this figure"
    if pool.holds(name, printed):
        states = " of K and V; the states' slots are pinned" if pool.states_pinned else ""
        return f"follows from the printed GiB{states}"
    what = alternative(name, printed, plan, pool)
    if what:
        return f"follows from the printed GiB {what}"
    low, high = figure(pool.low, name), figure(pool.high, name)
    return f"the printed GiB would be {low:,.6g}" + (f"-{high:,.6g}" if high != low else "")


def alternative(name: str, printed: float, plan: Plan, pool: PrintedPool) -> str:
    """The assumption under which the printed GiB becomes the printed figure; empty if none of the tried does."""
    return next((what for what, other in _variants(plan) if _give({name: printed}, other, pool)), "")


def _give(figures: Mapping[str, float], plan: Plan, pool: PrintedPool) -> bool:
    """Whether the printed GiB becomes these printed figures under this plan."""
    if pool.printed_gib is None:
        return False
    other = pool_within(plan, pool.printed_gib, ROUNDING)
    return all(other.holds(name, printed) for name, printed in figures.items())


class Adopted(NamedTuple):
    """A question that explains the log's tokens where the told one does not."""

    question: Question
    why: str


def adopt(log: StartupLog, plan: Plan, pool: PrintedPool, stated: Collection[str]) -> Adopted | None:
    """The first assumption under which every printed figure follows from the printed pool, if one is needed.

    Args:
        stated: flags, and `engine`, that the user or the log states: those stay.
    """
    figures = {
        n: log.figures[n] for n in ("num_gpu_blocks", "cache_tokens", "max_concurrency") if log.figures.get(n)
    }
    if pool.printed_gib is None or all(pool.holds(name, printed) for name, printed in figures.items()):
        return None
    for what, other in _variants(plan):
        if not _changes(plan.question, other.question) & set(stated) and _give(figures, other, pool):
            why = f"planned {what}: the log's {pool.printed_gib:g} GiB become its tokens so"
            return Adopted(other.question, why)
    return None


def _changes(before: Question, after: Question) -> set[str]:
    old, new = before.args.model_dump(), after.args.model_dump()
    return {name for name in old if old[name] != new[name]} | (
        {"engine"} if before.engine != after.engine else set()
    )


def _variants(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The plan under other flags or versions that change how a pool becomes tokens: one at a time, then two."""
    flags, versions = _flag_changes(plan), _versions(plan)
    for what, update in flags:
        yield f"with {what}", _with(plan, update)
    for what, version in versions:
        yield what, _with(plan, {}, version)
    for what, update in flags:
        for how, version in versions:
            yield f"with {what}, {how}", _with(plan, update, version)
    if plan.args.kv_cache_dtype != "fp8":
        for what, update in flags:
            if "kv_cache_dtype" not in update:
                yield (
                    f"with --kv-cache-dtype fp8 and {what}",
                    _with(plan, {**update, "kv_cache_dtype": "fp8"}),
                )


def _with(plan: Plan, update: dict[str, object], engine: EngineVersion | None = None) -> Plan:
    question = plan.question
    args = question.args.model_copy(update=update)
    return replace(plan, question=replace(question, args=args, engine=engine or question.engine))


def _flag_changes(plan: Plan) -> list[tuple[str, dict[str, object]]]:
    model, args = plan.question.model, plan.args
    ranks = [n for n in (2, 4, 8) if args.tensor_parallel_size > 1 and n != args.tensor_parallel_size]
    changes: list[tuple[str, dict[str, object]]] = [(f"-tp {n}", {"tensor_parallel_size": n}) for n in ranks]
    changes += [
        (f"--kv-cache-dtype {dtype}", {"kv_cache_dtype": dtype})
        for dtype in ("fp8", "bfloat16")
        if dtype != args.kv_cache_dtype
    ]
    if model.is_hybrid:
        caching = not args.enable_prefix_caching
        flag = "--enable-prefix-caching" if caching else "--no-enable-prefix-caching"
        changes.append((flag, {"enable_prefix_caching": caching}))
        states = ("bfloat16", "float32") if args.mamba_ssm_cache_dtype == "auto" else ()
        changes += [
            (f"--mamba-ssm-cache-dtype {dtype}", {"mamba_ssm_cache_dtype": dtype}) for dtype in states
        ]
    if model.mtp_layers and not args.num_speculative_tokens:
        changes += [(f"{n} MTP drafts", {"num_speculative_tokens": n}) for n in (1, 2, 3)]
    if args.block_size is None and not model.is_hybrid:
        changes += [(f"--block-size {n}", {"block_size": n}) for n in (32, 64, 128)]
    return [*changes, ("--disable-hybrid-kv-cache-manager", {"disable_hybrid_kv_cache_manager": True})]


def _versions(plan: Plan) -> list[tuple[str, EngineVersion]]:
    """The two ways in which vLLM has counted a hybrid's tokens."""
    engine = plan.question.engine
    if engine.engine != "vllm" or engine.legacy:
        return []
    other = (0, 20) if engine.version >= (0, 21) else (0, 21)
    return [(f"as vLLM {other[0]}.{other[1]} counts", EngineVersion("vllm", other))]


# ---- figures that exclude each other


def contradictions(log: StartupLog, plan: Plan, pool: PrintedPool) -> tuple[str, ...]:
    """Figures of one log that cannot all be true, named."""
    return (*_budget_conflict(log, plan), *_count_conflicts(log, plan, pool))


def _budget_conflict(log: StartupLog, plan: Plan) -> Iterator[str]:
    """vLLM's identity: utilization x total = weights + activation + non-torch + KV (+ graphs from 0.20)."""
    names = ("total_gib", "weights_gib", "activation_gib", "non_torch_gib", "kv_gib")
    if log.engine != "vllm" or any(log.figures.get(name) is None for name in names):
        return
    total, *used, pool = (log.figures[name] for name in names)
    usual = log.figures.get("utilization") or plan.args.gpu_memory_utilization
    share = float(str(log.flags.get("gpu_memory_utilization", usual)))
    graphs = log.figures.get("graphs_estimated_gib", 0.0)
    rest = share * total - sum(used)
    slack = 0.05 + 0.0055 * total  # shares are printed with two decimals
    if min(abs(rest - pool), abs(rest - graphs - pool)) > slack:
        yield (
            f"{share:g} x {total:.2f} GiB less weights, activation and non-torch leaves {rest:.2f} GiB, "
            f"the log prints {pool:.2f} GiB for KV (line {log.lines['kv_gib']})"
        )


def _count_conflicts(log: StartupLog, plan: Plan, pool: PrintedPool) -> Iterator[str]:
    """Tokens, blocks and concurrency of one pool, where every layer keeps every token."""
    tokens, times, length = (
        log.figures.get(n) for n in ("cache_tokens", "max_concurrency", "concurrency_len")
    )
    groups = plan.shape.groups
    simple = len(groups) == 1 and groups[0].kind in (AttentionKind.FULL, AttentionKind.MLA)
    if simple and tokens and times and length and abs(tokens / length - times) > 0.006 + CLOSE * times:
        yield f"{tokens:,.0f} tokens are {tokens / length:.2f} requests of {length:,.0f}, the log prints {times:.2f}x"
    for name in ("num_gpu_blocks", "cache_tokens", "max_concurrency"):
        printed = log.figures.get(name)
        if printed is None or not simple or pool.printed_gib is None or pool.low is None or pool.high is None:
            continue
        if pool.holds(name, printed) or alternative(name, printed, plan, pool):
            continue
        low, high = figure(pool.low, name), figure(pool.high, name)
        if not low * (1 - 2 * CLOSE) <= printed <= high * (1 + 2 * CLOSE):
            yield (
                f"{pool.printed_gib:.2f} GiB of KV would be {high:,.6g} {name} of {plan.question.model.name}, the log "
                f"prints {printed:,.6g} (line {log.lines[name]}): another model, or another rank's figure"
            )
