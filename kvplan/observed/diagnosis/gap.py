"""An engine that started with less KV than planned, or with other tokens than its GiB: where the difference lies.

Rows that the log prints say their part; what no row says is tried as another utilisation, card, batch or format,
each planned again, with how far its pool then is from the printed one. Sizes in GiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import exp

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec, get_gpu, gpu_names
from kvplan.ground.units import GiB, gib
from kvplan.memory.answers import Plan, Question
from kvplan.memory.forward import answer
from kvplan.observed.diagnosis.cause import Case, Cause, Fix, as_printed, gains
from kvplan.observed.explain import SEQS, formats
from kvplan.observed.reconciliation import Line, Reconciliation

NOTED = 0.75
"""GiB of KV, and the share below, by which log and plan may differ without a word."""
NOTED_SHARE = 0.03
CLOSE_GIB = 0.15
"""GiB by which a true assumption is usually off: what printed figures and overheads leave open."""
COMMON_GIB = (16, 24, 32, 40, 48, 64, 80, 96, 141, 180, 192, 256, 288)
"""Sizes that cards are sold by."""
_ROWS = {"weights": "weights", "activation": "activation", "non_torch": "runtime", "cuda_graph": "graphs"}


def gap(case: Case) -> Iterator[Cause]:
    """Causes of a pool that is smaller, or larger, than planned."""
    found = case.found
    if found is None:
        if "pinned_tokens" in case.log.figures:
            yield _pin(f"max_tokens {case.log.figures['pinned_tokens']:,.0f}")
        return
    causes = list(_pinned(case, found)) or _differences(case, found)
    scale = _say(case, found)
    yield from (cause._replace(weight=cause.weight * scale) for cause in causes)
    yield from _counted_otherwise(found, bool(causes))


def _differences(case: Case, found: Reconciliation) -> list[Cause]:
    """What of the difference the log's rows say, and what may explain the rest; nothing where log and plan agree."""
    missing = missing_gib(found)
    if missing is None or abs(missing) <= max(NOTED, NOTED_SHARE * gib(found.plan.budget.kv.size.value)):
        return []
    if missing < 0 and found.agrees:  # more than planned, within what overheads account for: nobody's trouble
        return []
    planned = found.plan.budget.kv.size
    if 0 < missing <= gib(planned.value - planned.low):  # the plan itself leaves that open
        return []
    rest, causes = missing, list[Cause]()
    for line, part in _parts(found):
        rest -= part
        if part * missing > 0 and abs(part) >= 0.25:
            causes.append(_row(case, line, part, missing))
    if abs(rest) > max(NOTED, 0.15 * abs(missing)):
        causes += list(_images(found, rest)) or _unsaid(case, found, missing, rest)
    return causes


def _say(case: Case, found: Reconciliation) -> float:
    """How much a difference from the plan says: all where nothing else is wrong, less where the engine refused.

    There it is the cause only if the planned pool would have been enough.
    """
    if not case.messages:
        return 1.0
    return 0.9 if found.plan.serves else 0.5


def missing_gib(found: Reconciliation) -> float | None:
    """Planned less logged KV; None where the log tells no pool, or a flag states it."""
    args, pool = found.plan.question.args, found.pool
    logged = (
        pool.printed_gib if pool.num_bytes is None or pool.printed_gib is not None else gib(pool.num_bytes)
    )
    if logged is None or args.kv_cache_memory_bytes or args.num_gpu_blocks_override:
        return None
    return gib(found.plan.budget.kv.size.value) - logged


def _parts(found: Reconciliation) -> Iterator[tuple[Line, float]]:
    """Printed rows, and by how much each takes more than planned."""
    graphs = found.plan.budget.graphs.size.value
    for line in found.lines:
        counts = line.name in _ROWS and (line.name != "cuda_graph" or graphs)
        if counts and line.residual is not None:
            yield line, line.residual


def _row(case: Case, line: Line, part: float, missing: float) -> Cause:
    """A printed row that takes more, or less, than planned."""
    more = "more" if part > 0 else "less"
    explained = f" ({line.explanation})" if line.explanation.startswith("as ") else ""
    words = (
        f"{line.label}: the log prints {line.printed:.2f} GiB, {abs(part):.2f} {more} than planned, of "
        f"{abs(missing):.2f} GiB {_amiss(missing)}{explained}"
    )
    name = {"weights": "checkpoint", "non_torch": "occupied", "cuda_graph": "graphs"}.get(
        line.name, "activation"
    )
    fixes: list[Fix | None] = []
    if part > 0 and line.name == "activation":
        fixes = [gains(case.plan, max_num_seqs=64), gains(case.plan, max_num_batched_tokens=2048)]
    if part > 0 and line.name == "cuda_graph":
        fixes = [gains(case.plan, max_num_seqs=64), gains(case.plan, enforce_eager=True)]
    if part > 0 and line.name == "weights":
        fixes = [gains(case.plan, quantization="fp8")]
    return Cause(name, words, min(0.95, 0.4 + 0.5 * min(1.0, part / missing)), tuple(f for f in fixes if f))


def _images(found: Reconciliation, rest: float) -> Iterator[Cause]:
    """Images of the profile run, where the log says that there were some and learning put the rest there."""
    learned = next((one for one in found.learned if one.name == "vision_gib"), None)
    if learned is None or "encoder_tokens" not in found.log.figures or rest < 0:
        return
    planned = gib(found.plan.budget.activation.size.value)
    words = (
        f"{rest:.2f} GiB missing: the profile run's images would explain it, with a peak of {learned.value:.2f} GiB "
        f"where {planned:.2f} was planned; the log says that it profiled images"
    )
    fewer = Fix("--limit-mm-per-prompt with fewer images", "a smaller profile run", False)
    none = gains(as_printed(found), language_model_only=True)
    yield Cause("images", words, 0.9, (fewer, *((none,) if none else ())))


def _pinned(case: Case, found: Reconciliation) -> Iterator[Cause]:
    """A flag that states the pool, where the card would hold more."""
    args, log = found.plan.question.args, case.log
    logged = found.pool.num_bytes or int((found.pool.printed_gib or 0) * GiB)
    flag = next((f for f in ("kv_cache_memory_bytes", "num_gpu_blocks_override") if getattr(args, f)), None)
    if flag is None and "states" not in found.why_nothing_learned:
        return
    free = answer(
        replace(
            found.plan.question,
            args=args.model_copy(update={"kv_cache_memory_bytes": None, "num_gpu_blocks_override": None}),
        )
    )
    more = gib(free.budget.kv.size.value - logged)
    if logged and more > max(NOTED, NOTED_SHARE * gib(logged)):
        tokens = log.figures.get("pinned_tokens")
        said = f"max_tokens {tokens:,.0f}" if tokens else f"--{flag.replace('_', '-')}" if flag else ""
        yield _pin(
            said or "the slots of its states, by a flag,", f"; the card would hold {more:.1f} GiB more"
        )


def _pin(what: str, more: str = "") -> Cause:
    return Cause("pinned_pool", f"{what} states the pool, whatever the card has free{more}", 0.5)


def _amiss(missing: float) -> str:
    return "missing" if missing > 0 else "too many"


def _unsaid(case: Case, found: Reconciliation, missing: float, rest: float) -> Iterator[Cause]:
    """What no printed row says: a share, a card, a batch, a format under which the plan has the log's pool."""
    told = set(case.log.flags) | ({"gpu_memory_utilization"} if "utilization" in case.log.figures else set())
    tried: list[tuple[str, str, float, Question]] = []
    if "gpu_memory_utilization" not in told:
        tried += _shares(found, rest)
    tried += _cards(case, found, rest)
    tried += _batches(found, told)
    if "weights_gib" not in case.log.figures:
        tried += [
            ("checkpoint", f"weights {what}", 0.6, _with(found.plan, update))
            for what, update in formats(found.plan)
            if not set(update) & told
        ]
    said = f"{abs(missing):.2f}"
    causes = []
    for name, what, prior, question in tried:
        plan = _answer(question)
        if plan is None:
            continue
        off = abs(gib(plan.budget.kv.size.value) - (gib(found.plan.budget.kv.size.value) - rest))
        if off > max(CLOSE_GIB, 0.1 * abs(rest)):
            continue
        part = "it" if abs(rest - missing) < 0.05 else f"{abs(rest):.2f}"
        words = f"{said} GiB {_amiss(missing)}: {what} would explain {part}"
        words += f", to {max(off, 0.01):.2f} GiB" if off <= abs(rest) else ""
        words += _budget_agrees(found, name)
        weight = prior * (0.6 + 0.4 * exp(-off / CLOSE_GIB))
        causes.append(Cause(name, words, weight, _share_fix(case, name, rest)))
    yield from sorted(causes, key=lambda cause: -cause.weight)[:4]
    if not causes:
        low, high = (gib(size) for size in found.plan.budget.kv.size[1:])
        growth = next((one.value for one in found.learned if one.name == "runtime_gib"), None)
        words = (
            f"{said} GiB {_amiss(missing)}, and neither another utilisation, card, batch nor format explains it; "
            f"the overheads' range is {low:.1f}-{high:.1f} GiB of KV"
        )
        words += f"; a runtime growth of {growth:.2f} GiB a card would" if growth else ""
        yield Cause("unexplained", words, 0.2)


def _share_fix(case: Case, name: str, rest: float) -> tuple[Fix, ...]:
    if name != "utilization" or rest < 0 or case.found is None:
        return ()
    share = case.found.plan.args.gpu_memory_utilization
    now = case.plan
    fix = Fix(f"--gpu-memory-utilization {share:g}", f"{rest:.1f} GiB more for KV, as planned", bool(now))
    return (fix,)


def _shares(found: Reconciliation, rest: float) -> list[tuple[str, str, float, Question]]:
    """The utilisation that leaves the printed pool: as solved, in whole percents."""
    total, now = gib(found.plan.budget.total.size.value), found.plan.args.gpu_memory_utilization
    share = round(now - rest / total, 2)
    if not 0.01 <= share <= 1 or share == now:
        return []
    tidy = round(share * 100) % 5 == 0
    question = _with(found.plan, {"gpu_memory_utilization": share})
    return [("utilization", f"utilisation {share:g}", 0.85 if tidy else 0.62, question)]


def _cards(case: Case, found: Reconciliation, rest: float) -> list[tuple[str, str, float, Question]]:
    """Cards of another usual size, one of each, where the log does not print its own."""
    if "total_gib" in case.log.figures or case.log.gpu:
        return []
    plan, sizes = found.plan, dict[int, GpuSpec]()
    now = gib(plan.budget.total.size.value)
    for card in sorted((get_gpu(name) for name in gpu_names()), key=lambda card: -card.bandwidth):
        total = gib(card.total_bytes)
        size = min(COMMON_GIB, key=lambda n: abs(n - total))
        if (
            abs(size - total) <= 0.06 * size
            and abs(size - now) > 0.06 * size
            and card.vendor == plan.question.gpu.vendor
        ):
            sizes.setdefault(size, card)
    return [
        ("card", f"a {size} GB card ({card.name})", 0.7, _on(plan.question, card))
        for size, card in sizes.items()
    ]


def _on(question: Question, card: GpuSpec) -> Question:
    """The question on another card, whose size is its own again."""
    profile = question.profile
    assert profile is not None
    totals = {name: figure for name, figure in profile.total_gib.items() if name != question.gpu.name}
    return replace(question, gpu=card, profile=profile.model_copy(update={"total_gib": totals}))


def _batches(found: Reconciliation, told: set[str]) -> list[tuple[str, str, float, Question]]:
    """Another profiling batch."""
    tried = []
    for flag, values in (("max_num_seqs", SEQS), ("max_num_batched_tokens", (16384, 32768, 65536, 131072))):
        if flag not in told:
            for value in values:
                question = _with(found.plan, {flag: value})
                tried.append(("activation", f"--{flag.replace('_', '-')} {value}", 0.65, question))
    return tried


def _with(plan: Plan, update: dict[str, object]) -> Question:
    args = EngineArgs.model_validate(plan.question.args.model_dump(exclude_unset=True) | update)
    return replace(plan.question, args=args)


def _answer(question: Question) -> Plan | None:
    try:
        return answer(question)
    except KvplanError:
        return None


def _budget_agrees(found: Reconciliation, name: str) -> str:
    """Whether the log's own rows add up to that share of the card."""
    figures = found.log.figures
    rows = ("weights_gib", "activation_gib", "non_torch_gib", "kv_gib")
    if name != "utilization" or not all(row in figures for row in rows):
        return ""
    total = figures.get("total_gib", gib(found.plan.budget.total.size.value))
    return f"; the log's own rows add up to {sum(figures[row] for row in rows) / total:.2f} of the card"


def _counted_otherwise(found: Reconciliation, explained: bool) -> Iterator[Cause]:
    """Tokens that follow from the printed GiB only under an assumption that `reconcile` had to make."""
    for assumption in found.assumptions:
        if assumption.startswith("planned with "):  # a version's way to count is no flag
            how = assumption.removeprefix("planned ").partition(":")[0]
            words = f"the log's tokens are its GiB only {how}: nobody told kvplan so"
            yield Cause(
                "flags_unsaid", words, 0.5, (Fix(f"name it: {how.removeprefix('with ')}", "", False),)
            )
    for conflict in found.contradictions:
        yield Cause("contradiction", f"figures of the log exclude each other: {conflict}", 0.6)
    if found.beyond and not explained:
        yield Cause("other_subject", f"not this plan's start: {found.why_nothing_learned}", 0.45)
