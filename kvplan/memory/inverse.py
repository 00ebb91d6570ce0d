"""What would fit: changes of a flag, a card or a length that turn the answer to yes, each verified as it is printed.

A source proposes changed plans. What is printed is the difference between two questions, so no flag comes twice;
changes that it does without are taken back; the words, read again, must ask what the forward formula answered.
Ranked: changes that cost nothing first, then quality or length given up, then more hardware, cheapest first.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu, gpu_names
from kvplan.ground.limits import Limit
from kvplan.ground.tables import counted
from kvplan.ground.units import cdiv
from kvplan.memory.answers import Option, Plan, Question
from kvplan.memory.demand import Demand
from kvplan.memory.forward import answer, answers

_FREE, _QUALITY, _SHORTER, _FEWER, _HARDWARE = range(5)
"""Ranks of a change: free, costs precision, length, concurrency, money."""

_SHORT = {"tensor_parallel_size": "-tp", "pipeline_parallel_size": "-pp", "data_parallel_size": "-dp"}
"""Flags that have a short form."""

C = TypeVar("C", EngineArgs, Demand)
Proposals = Iterator[tuple[Plan | None, int]]
"""Changed plans (None where the engine refuses the combination), each with its rank."""


def what_would_fit(plan: Plan, limit: int = 8) -> tuple[Option, ...]:
    """Changes that make a plan fit, best first; empty when it fits already.

    Every option was answered by the forward formula and fits. Shared prompts count as in the plan. Where the
    model's whole context is refused but shorter traces are asked, an option may serve just those.
    """
    if plan.fits:
        return ()
    base = _startable(plan)
    proposed = [(base, _FREE), *(found for source in _SOURCES for found in source(base))]
    options: dict[str, Option] = {}
    for changed, rank in proposed:
        if changed is not None and (option := _option(plan.question, changed, rank)):
            options.setdefault(option.change, option)
    ranked = sorted(options.values(), key=lambda option: (option.rank, option.plan.price_per_hour))
    return tuple(ranked[:limit])


def _option(asked: Question, plan: Plan, rank: int) -> Option | None:
    """What is printed of a changed plan, if it fits and its words ask for it."""
    if not plan.fits:
        return None
    plan = _minimal(asked, plan)
    words = [word for name, value in _changes(asked, plan.question).items() for word in _words(name, value)]
    if not words or not _asks_the_same(_read(asked, words), plan.question):
        return None
    return Option(shlex.join(words), _holds(plan) + (_cost(plan) if rank == _HARDWARE else ""), rank, plan)


def _minimal(asked: Question, plan: Plan) -> Plan:
    """The plan without the changes that it does without; what only made the base start goes first."""
    names = sorted(_changes(asked, plan.question), key=lambda name: name not in _STARTS)
    for name in names if len(names) > 1 else ():
        without = {key: value for key, value in _changes(asked, plan.question).items() if key != name}
        if without and (less := _answer(_changed(asked, without))) is not None and less.fits:
            plan = less
    return plan


_STARTS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")


def _changes(asked: Question, now: Question) -> dict[str, Any]:
    """Name -> new value of each flag, figure of the load and card that differs."""
    card = {"gpu": now.gpu.name} if now.gpu != asked.gpu else {}
    return _differing(asked.args, now.args) | _differing(asked.demand, now.demand) | card


def _differing(one: EngineArgs | Demand, other: EngineArgs | Demand) -> dict[str, Any]:
    before, after = one.model_dump(), other.model_dump()
    return {name: value for name, value in after.items() if value != before[name]}


def _words(name: str, value: object) -> tuple[str, str]:
    return _SHORT.get(name, "--" + name.replace("_", "-")), str(value)


def _read(asked: Question, words: Iterable[str]) -> Question:
    """The question with printed flags in place of its own, read as the command line reads them."""
    names = {flag: name for name, flag in _SHORT.items()}
    pairs = zip(*[iter(words)] * 2, strict=True)
    return _changed(asked, {names.get(flag, flag.strip("-").replace("-", "_")): told for flag, told in pairs})


def _changed(asked: Question, changes: Mapping[str, Any]) -> Question:
    """The question with some names changed; values may be text."""
    return replace(
        asked,
        args=_updated(asked.args, changes),
        demand=_updated(asked.demand, changes),
        gpu=get_gpu(changes["gpu"]) if "gpu" in changes else asked.gpu,
    )


def _updated(stated: C, changes: Mapping[str, Any]) -> C:
    mine = {name: value for name, value in changes.items() if name in type(stated).model_fields}
    return type(stated).model_validate(stated.model_dump(exclude_unset=True) | mine)


def _asks_the_same(one: Question, other: Question) -> bool:
    return not _changes(one, other)


def _startable(plan: Plan) -> Plan:
    """The plan made to start, and to take the asked traces, where flags alone refuse it.

    Its context is that of the stated lengths where the model's own is too long or a stated one too short; it runs
    no more sequences than there are blocks for states, and no fewer than asked.
    """
    for change in (_stated_length, _as_many_seqs_as_states, _longer_context, _asked_seqs):
        plan = change(plan) or plan
    return plan


def _stated_length(plan: Plan) -> Plan | None:
    tokens = plan.question.demand.trace_tokens(plan.max_model_len)
    refused = plan.refusal is not None and plan.refusal.limit is Limit.KV_BLOCKS
    return _ask(plan.question, max_model_len=tokens) if refused and tokens < plan.max_model_len else None


def _as_many_seqs_as_states(plan: Plan) -> Plan | None:
    seqs = plan.shape.num_blocks
    refused = plan.refusal is not None and plan.refusal.limit is Limit.MAX_NUM_SEQS
    return _ask(plan.question, **_fewer_seqs(plan, seqs)) if refused and seqs else None


def _fewer_seqs(plan: Plan, seqs: int) -> dict[str, int]:
    """Room for so many sequences, and no more admitted."""
    active = plan.args.max_num_active_seqs
    return {"max_num_seqs": seqs} | ({"max_num_active_seqs": min(active, seqs)} if active else {})


def _longer_context(plan: Plan) -> Plan | None:
    """The stated traces exceed max_model_len, but not what the model is made for."""
    model = plan.question.model
    served = plan.trace_tokens <= model.max_model_len or not model.max_model_len_stated
    return _ask(plan.question, max_model_len=plan.trace_tokens) if plan.too_long and served else None


def _asked_seqs(plan: Plan) -> Plan | None:
    """max_num_seqs, or what of it is admitted, is less than one replica must run at once."""
    seqs, most = _needed_seqs(plan), plan.args.max_num_seqs
    if seqs <= plan.args.max_num_active_reqs:
        return None
    active = {} if plan.args.max_num_active_seqs is None else {"max_num_active_seqs": seqs}
    return _ask(plan.question, **active, **({"max_num_seqs": seqs} if seqs > most else {}))


def _ask(question: Question, **flags: object) -> Plan | None:
    """The plan with some flags changed, or None where the engine refuses the combination."""
    return _answer(replace(question, args=question.args.model_copy(update=flags)))


def _answer(question: Question) -> Plan | None:
    try:
        return answer(question)
    except KvplanError:
        return None


def _holds(plan: Plan) -> str:
    if not plan.question.demand.is_stated and plan.question.demand.num_traces == 1:
        return f"{plan.max_concurrency.value:.2f}x {plan.max_model_len:,} tokens"
    return f"{counted(plan.num_traces, 'trace')} of {plan.trace_tokens:,} tokens at once"


def _cost(plan: Plan) -> str:
    cards = plan.args.num_gpus
    return f"{f', {cards} cards' if cards > 1 else ''}, ${plan.price_per_hour:.2f}/h"


def _longest_context(plan: Plan) -> Proposals:
    """The engine's own estimate of the longest max_model_len, checked."""
    longest = plan.refusal.max_model_len if plan.refusal else 0
    if longest > 0 and not plan.question.demand.is_stated:
        yield _ask(plan.question, max_model_len=longest), _SHORTER


def _no_videos(plan: Plan) -> Proposals:
    """Start-up's profile without videos, where these are its largest items."""
    if plan.question.model.vision is not None:
        limits = json.loads(plan.question.args.limit_mm_per_prompt or "{}") | {"video": 0}
        yield _ask(plan.question, limit_mm_per_prompt=json.dumps(limits, sort_keys=True)), _QUALITY


def _shorter_items(plan: Plan) -> Proposals:
    """The longest of some contexts, which bound the videos and sounds that start-up profiles too."""
    if plan.question.model.vision is None or plan.question.demand.is_stated or not plan.refusal:
        return
    shorter = (_ask(plan.question, max_model_len=n) for n in _CONTEXTS if n < plan.max_model_len)
    if found := next((changed for changed in shorter if changed is not None and changed.fits), None):
        yield found, _SHORTER


_CONTEXTS = (131072, 65536, 32768, 16384, 8192)


def _smaller_batch(plan: Plan) -> Proposals:
    """Smaller profiling batches leave more for KV; the mildest that does."""
    tokens = min(2048, plan.args.max_num_batched_tokens)
    for seqs in sorted({n for n in (_needed_seqs(plan), 64, 256) if n >= _needed_seqs(plan)}, reverse=True):
        if seqs < plan.args.max_num_seqs and seqs <= tokens:
            changed = _ask(plan.question, max_num_batched_tokens=tokens, **_fewer_seqs(plan, seqs))
            if changed is not None and changed.fits:
                yield changed, _FREE
                return


def _needed_seqs(plan: Plan) -> int:
    """Sequences that one replica must run at once."""
    return cdiv(plan.question.demand.num_traces, plan.args.data_parallel_size)


def _utilization(plan: Plan) -> Proposals:
    if plan.args.gpu_memory_utilization < 0.95 and plan.args.kv_cache_memory_bytes is None:
        yield _ask(plan.question, gpu_memory_utilization=0.95), _FREE


def _kv_dtype(plan: Plan) -> Proposals:
    if plan.question.args.kv_cache_dtype == "auto" and plan.question.gpu.compute_capability >= 8:
        yield _ask(plan.question, kv_cache_dtype="fp8"), _QUALITY


def _quantization(plan: Plan) -> Proposals:
    args, model = plan.question.args, plan.question.model
    if (
        args.quantization is None
        and model.quantization is None
        and plan.question.gpu.compute_capability >= 8.9
    ):
        yield _ask(plan.question, quantization="fp8"), _QUALITY


def _shorter_output(plan: Plan) -> Proposals:
    """The longest output that the asked traces can have; less than half of it is another question."""
    asked = plan.question.demand.output_len
    if plan.refusal or not asked or asked < 2:
        return
    most = _most(plan, "output_len", asked - 1)
    if most and 2 * (most.question.demand.output_len or 0) >= asked:
        yield most, _SHORTER


def _fewer_traces(plan: Plan) -> Proposals:
    """As many of the asked traces as live at once; less than half of them is another question."""
    demand = plan.question.demand
    if plan.refusal or plan.too_long or demand.num_traces == 1 or 2 * plan.num_traces < demand.num_traces:
        return
    name = "num_samples" if demand.num_requests == 1 else "num_requests"
    yield _most(plan, name, getattr(demand, name)), _FEWER


def _most(plan: Plan, name: str, high: int) -> Plan | None:
    """The plan with the largest value of one figure of the load, up to `high`, that fits."""
    demand, load = plan.question.demand, answers(plan.question)

    def ask(value: int) -> Plan:
        return load(demand.model_copy(update={name: value}))

    value = _largest(lambda n: ask(n).fits, high)
    return ask(value) if value else None


def _largest(fits: Callable[[int], bool], high: int) -> int:
    """Largest n in 1..high that fits, by bisection; 0 if none does."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _more_cards(plan: Plan) -> Proposals:
    """The smallest tensor parallelism, and the fewest copies; both on the fewest cards where those are many."""
    wider = list(_wider(plan))
    found = [next((changed for changed in wider if changed.fits), None), _copies(plan)]
    fewest = min((one.args.num_gpus for one in found if one), default=None)
    if fewest is None or fewest > _MANY_CARDS:
        both = (copied for changed in wider if (copied := _copies(_startable(changed))))
        best = min(both, key=lambda one: one.args.num_gpus, default=None)
        if best is not None and (fewest is None or best.args.num_gpus < fewest):
            found = [best]
    yield from ((changed, _HARDWARE) for changed in found)


_MANY_CARDS = 8
"""Cards beyond which other shapes are asked for too."""


def _wider(plan: Plan) -> Iterator[Plan]:
    """The plan on more ranks: tensor parallelism, then stages of eight."""
    args = plan.args
    shapes = [(size, args.pipeline_parallel_size) for size in (2, 4, 8, 16)] + [(8, 2), (8, 4), (8, 8)]
    for tensor, stages in shapes:
        if tensor * stages > args.tensor_parallel_size * args.pipeline_parallel_size:
            changed = _ask(plan.question, tensor_parallel_size=tensor, pipeline_parallel_size=stages)
            if changed is not None:
                yield changed


def _copies(plan: Plan) -> Plan | None:
    """As many replicas as hold all traces, if more than there are; what one holds may change with their number."""
    asked, changed = plan.question.demand.num_traces, plan
    for _ in range(4):
        each = changed.num_traces // changed.args.data_parallel_size
        if changed.fits or changed.refusal or changed.too_long or not each:
            break
        copies = cdiv(asked, each)
        if copies > _MOST_COPIES:
            return None
        following = _ask(plan.question, data_parallel_size=copies)
        if following is None:
            return None
        changed = following
    return changed if changed.fits and changed is not plan else None


_MOST_COPIES = 4096
"""Of `EngineArgs.data_parallel_size`."""


def _other_cards(plan: Plan) -> Proposals:
    """The two cheapest cards that hold it with the same flags."""
    names = sorted((get_gpu(name).price_per_hour, name) for name in gpu_names() if _bigger(plan, name))
    asked = (_answer(replace(plan.question, gpu=get_gpu(name))) for _, name in names)
    holding = (changed for changed in asked if changed is not None and changed.fits)
    yield from ((changed, _HARDWARE) for changed in islice(holding, 2))


def _bigger(plan: Plan, name: str) -> bool:
    """More memory, and not half the bandwidth: a card that could take this one's place."""
    card, now = get_gpu(name), plan.question.gpu
    return card.total_bytes > now.total_bytes and card.bandwidth >= now.bandwidth / 2


_SOURCES = (
    _utilization,
    _smaller_batch,
    _kv_dtype,
    _quantization,
    _no_videos,
    _longest_context,
    _shorter_items,
    _shorter_output,
    _fewer_traces,
    _more_cards,
    _other_cards,
)
"""Where options come from, each asked once."""
