"""What would fit: changes of one flag, card or length that turn the answer to yes, each verified by `plan.answer`.

Ranked: changes that cost nothing first, then quality or length given up, then more hardware, cheapest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from kvplan.errors import KvplanError
from kvplan.gpu import get_gpu, gpu_names
from kvplan.limits import Limit
from kvplan.memory.answers import Option, Plan, Question
from kvplan.memory.plan import answer, answers
from kvplan.units import cdiv

_FREE, _QUALITY, _SHORTER, _FEWER, _HARDWARE = range(5)
"""Ranks of a change: free, costs precision, length, concurrency, money."""


def what_would_fit(plan: Plan, limit: int = 8) -> tuple[Option, ...]:
    """Changes that make a plan fit, best first; empty when it fits already.

    Every option was answered by the forward formula and fits. Shared prompts count as in the plan. Where the
    model's whole context is refused but shorter traces are asked, each option serves just those.
    """
    if plan.fits:
        return ()
    base, prefix = _startable(plan)
    found = list(_option(base, prefix.strip(), _FREE)) if prefix else []
    found += [_prefixed(option, prefix) for source in _SOURCES for option in source(base)]
    found.sort(key=lambda option: (option.rank, option.plan.price_per_hour))
    return tuple(found[:limit])


def _prefixed(option: Option, prefix: str) -> Option:
    return replace(option, change=prefix + option.change)


def _startable(plan: Plan) -> tuple[Plan, str]:
    """The plan made to start where flags alone refuse it, and those flags.

    It serves no more than the stated lengths, and no more sequences than there are blocks for states.
    """
    flags = ""
    for limit, change in ((Limit.KV_BLOCKS, _stated_length), (Limit.MAX_NUM_SEQS, _as_many_seqs_as_states)):
        if plan.refusal and plan.refusal.limit is limit:
            changed, flag = change(plan)
            plan, flags = (changed, flags + flag) if changed else (plan, flags)
    return plan, flags


def _stated_length(plan: Plan) -> tuple[Plan | None, str]:
    tokens = plan.question.demand.trace_tokens(plan.max_model_len)
    shorter = _ask(plan.question, max_model_len=tokens) if tokens < plan.max_model_len else None
    return shorter, f"--max-model-len {tokens} "


def _as_many_seqs_as_states(plan: Plan) -> tuple[Plan | None, str]:
    seqs = plan.shape.num_blocks
    return _ask(plan.question, max_num_seqs=seqs) if seqs else None, f"--max-num-seqs {seqs} "


def _ask(question: Question, **flags: object) -> Plan | None:
    """The plan with some flags changed, or None where the engine refuses the combination."""
    try:
        return answer(replace(question, args=question.args.model_copy(update=flags)))
    except KvplanError:
        return None


def _option(plan: Plan | None, change: str, rank: int) -> Iterator[Option]:
    if plan is not None and plan.fits:
        price = f", ${plan.price_per_hour:.2f}/h" if rank == _HARDWARE else ""
        yield Option(change, _holds(plan) + price, rank, plan)


def _holds(plan: Plan) -> str:
    if not plan.question.demand.is_stated and plan.question.demand.num_traces == 1:
        return f"{plan.max_concurrency.value:.2f}x {plan.max_model_len:,} tokens"
    return f"{plan.num_traces:,} traces of {plan.trace_tokens:,} tokens at once"


def _other_seqs(plan: Plan) -> Iterator[Option]:
    if plan.limited_by is not Limit.MAX_NUM_SEQS or plan.refusal:
        return
    seqs = _needed_seqs(plan)
    yield from _option(_ask(plan.question, max_num_seqs=seqs), f"--max-num-seqs {seqs}", _FREE)


def _longer_context(plan: Plan) -> Iterator[Option]:
    """The stated traces exceed max_model_len, but not what the model is made for."""
    model = plan.question.model
    served = plan.trace_tokens <= model.max_model_len or not model.max_model_len_stated
    if plan.too_long and served:
        changed = _ask(plan.question, max_model_len=plan.trace_tokens)
        yield from _option(changed, f"--max-model-len {plan.trace_tokens}", _FREE)


def _longest_context(plan: Plan) -> Iterator[Option]:
    """The engine's own estimate of the longest max_model_len, checked."""
    longest = plan.refusal.max_model_len if plan.refusal else 0
    if longest > 0 and not plan.question.demand.is_stated:
        yield from _option(_ask(plan.question, max_model_len=longest), f"--max-model-len {longest}", _SHORTER)


def _smaller_batch(plan: Plan) -> Iterator[Option]:
    """Smaller profiling batches leave more for KV; the mildest that does."""
    tokens = min(2048, plan.args.max_num_batched_tokens)
    for seqs in sorted({n for n in (_needed_seqs(plan), 64, 256) if n >= _needed_seqs(plan)}, reverse=True):
        if seqs < plan.args.max_num_seqs and seqs <= tokens:
            changed = _ask(plan.question, max_num_batched_tokens=tokens, max_num_seqs=seqs)
            if changed is not None and changed.fits:
                yield from _option(changed, f"--max-num-batched-tokens {tokens} --max-num-seqs {seqs}", _FREE)
                return


def _needed_seqs(plan: Plan) -> int:
    """Sequences that one replica must run at once."""
    return cdiv(plan.question.demand.num_traces, plan.args.data_parallel_size)


def _utilization(plan: Plan) -> Iterator[Option]:
    if plan.args.gpu_memory_utilization < 0.95 and plan.args.kv_cache_memory_bytes is None:
        changed = _ask(plan.question, gpu_memory_utilization=0.95)
        yield from _option(changed, "--gpu-memory-utilization 0.95", _FREE)


def _kv_dtype(plan: Plan) -> Iterator[Option]:
    if plan.question.args.kv_cache_dtype == "auto" and plan.question.gpu.compute_capability >= 8:
        yield from _option(_ask(plan.question, kv_cache_dtype="fp8"), "--kv-cache-dtype fp8", _QUALITY)


def _quantization(plan: Plan) -> Iterator[Option]:
    args, model = plan.question.args, plan.question.model
    if (
        args.quantization is None
        and model.quantization is None
        and plan.question.gpu.compute_capability >= 8.9
    ):
        yield from _option(_ask(plan.question, quantization="fp8"), "--quantization fp8", _QUALITY)


def _shorter_output(plan: Plan) -> Iterator[Option]:
    """The longest output that the asked traces can have."""
    demand = plan.question.demand
    if plan.refusal or not demand.output_len or demand.output_len < 2:
        return
    for option in _most(plan, "output_len", demand.output_len - 1, _SHORTER):
        if (
            2 * (option.plan.question.demand.output_len or 0) >= demand.output_len
        ):  # else it is another question
            yield option


def _fewer_traces(plan: Plan) -> Iterator[Option]:
    """As many of the asked traces as live at once."""
    demand = plan.question.demand
    if plan.refusal or plan.too_long or plan.num_traces < 1 or demand.num_traces == 1:
        return
    name = "num_samples" if demand.num_requests == 1 else "num_requests"
    if 2 * plan.num_traces >= demand.num_traces:  # else it is another question
        yield from _most(plan, name, getattr(demand, name), _FEWER)


def _most(plan: Plan, name: str, high: int, rank: int) -> Iterator[Option]:
    """The largest value of one figure of the load, up to `high`, that fits."""
    demand, load = plan.question.demand, answers(plan.question)

    def ask(value: int) -> Plan:
        return load(demand.model_copy(update={name: value}))

    value = _largest(lambda n: ask(n).fits, high)
    if value:
        yield from _option(ask(value), f"--{name.replace('_', '-')} {value}", rank)


def _largest(fits: Callable[[int], bool], high: int) -> int:
    """Largest n in 1..high that fits, by bisection; 0 if none does."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _more_ranks(plan: Plan) -> Iterator[Option]:
    """The smallest tensor parallelism that holds it."""
    yield from _smallest(plan, "tensor_parallel_size", "-tp")


def _more_replicas(plan: Plan) -> Iterator[Option]:
    """The fewest replicas that hold all requests."""
    if not plan.refusal and plan.question.demand.num_requests > 1:
        yield from _smallest(plan, "data_parallel_size", "-dp")


def _smallest(plan: Plan, name: str, flag: str) -> Iterator[Option]:
    for size in (2, 4, 8, 16):
        if size > getattr(plan.args, name):
            changed = _ask(plan.question, **{name: size})
            if changed is not None and changed.fits:
                yield from _option(changed, f"{flag} {size}", _HARDWARE)
                return


def _other_cards(plan: Plan) -> Iterator[Option]:
    """The two cheapest cards that hold it with the same flags."""
    held = [
        (card.price_per_hour, name) for name in gpu_names() if (card := get_gpu(name)) and _bigger(plan, name)
    ]
    asked = ((name, _on(plan.question, name)) for _, name in sorted(held))
    holding = ((name, changed) for name, changed in asked if changed is not None and changed.fits)
    for name, changed in islice(holding, 2):
        yield from _option(changed, f"--gpu {name}", _HARDWARE)


def _bigger(plan: Plan, name: str) -> bool:
    """More memory, and not half the bandwidth: a card that could take this one's place."""
    card, now = get_gpu(name), plan.question.gpu
    return card.total_bytes > now.total_bytes and card.bandwidth >= now.bandwidth / 2


def _on(question: Question, name: str) -> Plan | None:
    try:
        return answer(replace(question, gpu=get_gpu(name)))
    except KvplanError:
        return None


_SOURCES = (
    _longer_context,
    _other_seqs,
    _utilization,
    _smaller_batch,
    _kv_dtype,
    _quantization,
    _longest_context,
    _shorter_output,
    _fewer_traces,
    _more_ranks,
    _more_replicas,
    _other_cards,
)
"""Where options come from, each asked once."""
