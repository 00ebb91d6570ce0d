"""An engine that refuses to start for want of KV memory: which share of the budget is out of the usual.

Each candidate gives back so many GiB; one that alone gives back what is missing, and is far from the usual, comes
first. Sizes in GiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvplan.ground.units import GiB, gib
from kvplan.memory.answers import Plan
from kvplan.observed.diagnosis.cause import Case, Cause, Fix, about, needed_gib, options, proven
from kvplan.observed.learn import activation_bytes, non_torch_gib

USUAL_SHARE = 0.85
"""A smaller gpu_memory_utilization is chosen, for another process beside it or by mistake."""
HIGHEST_SHARE = 0.95
MUCH_NON_TORCH = 3.0
"""GiB; runtimes take 0.3 to 2, so more is another process's that vLLM counted as its own."""


class Short(NamedTuple):
    """What was asked of the pool, and what there is."""

    held: float | None
    """GiB for KV; negative where weights alone exceed the budget."""
    needed: float | None
    """GiB that one request of max_model_len needs."""
    asked_len: float | None
    held_len: float | None
    """Tokens that would fit."""

    @property
    def missing(self) -> float | None:
        """GiB; the least that is, where no length is told and weights alone exceed the budget."""
        if self.held is None or (self.needed is None and self.held >= 0):
            return None
        return (self.needed or 0.0) - self.held

    @property
    def has_room(self) -> bool:
        """Whether a shorter context would start."""
        return bool(self.held_len) or (self.held is not None and self.held > 0)


def starved(case: Case) -> Iterator[Cause]:
    """Causes of `No available memory for the cache blocks` and of `max seq len is larger than ...`."""
    if case.message("no_room") is None and case.message("too_long") is None:
        return
    short, fixes = _short(case), options(case.plan)
    causes = [cause for source in _SOURCES for cause in source(case, short, fixes)]
    yield from causes or [_nothing_told()]


def _short(case: Case) -> Short:
    told, figures, plan = case.message("too_long"), case.log.figures, case.plan
    said = told.figures if told else {}
    tokens = said.get("held") or figures.get("estimated_len") or figures.get("cache_tokens")
    needed = said.get("needed") or figures.get("needed_gib") or needed_gib(plan)
    held = figures.get("kv_gib")
    if held is None and told is None and plan is not None:
        held = gib(plan.budget.kv.size.value)
    return Short(held, needed, said.get("asked") or figures.get("refused_len"), tokens)


def _pinned(case: Case, short: Short, fixes: tuple[Fix, ...]) -> Iterator[Cause]:
    """A flag that states the pool, whatever the card holds."""
    for flag in ("kv_cache_memory_bytes", "num_gpu_blocks_override"):
        if case.log.flags.get(flag):
            name = "--" + flag.replace("_", "-")
            fix = proven(case.plan, **{flag: None}) or Fix(f"without {name}", "the card decides", False)
            words = f"{name} {case.log.flags[flag]} states the pool, whatever the card has free"
            yield Cause("pinned_pool", words, 0.95, (fix._replace(change=f"without {name}"),))


def _share(case: Case, short: Short, fixes: tuple[Fix, ...]) -> Iterator[Cause]:
    """gpu_memory_utilization below the usual."""
    share, total = case.share(), _total(case)
    if share is None or share >= HIGHEST_SHARE:
        return
    if total is None:
        if share < USUAL_SHARE:
            yield _low(share)
        return
    more = (HIGHEST_SHARE - share) * total
    enough = short.missing is not None and more >= short.missing
    usual = "low" if share < USUAL_SHARE else "a usual share"
    weight = (0.9 if enough else 0.5) if share < USUAL_SHARE else (0.5 if enough else 0.1)
    held = f"; {short.missing:.2f} GiB are missing" if short.missing is not None and short.missing > 0 else ""
    words = (
        f"gpu_memory_utilization {share:g} is {usual}: {HIGHEST_SHARE:g} of {total:.1f} GiB would give "
        f"{more:.2f} GiB more{held}"
    )
    own = [proven(case.plan, gpu_memory_utilization=value) for value in (0.9, HIGHEST_SHARE) if value > share]
    mended = tuple(fix for fix in own if fix)[:1] or about(fixes, "--gpu-memory-utilization")
    flag = Fix(f"--gpu-memory-utilization {HIGHEST_SHARE:g}", f"{more:.2f} GiB more for KV", False)
    yield Cause("utilization", words, weight, mended or ((flag,) if case.plan is None and enough else ()))


def _low(share: float) -> Cause:
    """A share below the usual, of a card that nobody names."""
    words = f"gpu_memory_utilization {share:g} is low: {HIGHEST_SHARE / share:.1f} times as much is usual"
    fix = Fix(f"--gpu-memory-utilization {HIGHEST_SHARE:g}", "if nothing else is on the card", False)
    return Cause("utilization", words, 0.6 if share > 0.5 else 0.78, (fix,))


def _length(case: Case, short: Short, fixes: tuple[Fix, ...]) -> Iterator[Cause]:
    """max_model_len asks for more than the pool holds, but some length would do."""
    if not short.has_room or case.message("too_long") is None:
        return
    asked = f"{short.asked_len:,.0f} tokens" if short.asked_len else "max_model_len"
    chosen = (
        "as asked"
        if case.log.flags.get("max_model_len")
        else "the model's own, as no --max-model-len is told"
    )
    there = f"{short.held_len:,.0f} tokens" if short.held_len else f"{short.held:.2f} GiB"
    needs = f" ({short.needed:.2f} GiB of KV)" if short.needed and short.held is not None else ""
    words = f"one request of {asked}{needs} is more than the pool: it holds {there}; the length is {chosen}"
    mended: tuple[Fix, ...] = ()
    if short.held_len:
        length = int(short.held_len)
        fix = proven(case.plan, max_model_len=length) or _somewhat_shorter(case.plan, length)
        mended = (fix or Fix(f"--max-model-len {length}", "the engine's own figure", False),)
    others = (*about(fixes, "--kv-cache-dtype"), *about(fixes, "-tp", "--gpu"))
    yield Cause("length", words, 0.75, (*(mended or about(fixes, "--max-model-len")), *others))


def _somewhat_shorter(plan: Plan | None, length: int) -> Fix | None:
    """A length that the planner holds where it counts a little less room than the engine said."""
    fixes = (proven(plan, max_model_len=int(length * share)) for share in (0.98, 0.95, 0.9))
    return next((fix for fix in fixes if fix), None)


def _weights(case: Case, short: Short, fixes: tuple[Fix, ...]) -> Iterator[Cause]:
    """Weights fill the budget."""
    weights, budget = _row(case, "weights_gib", "weights"), _budget(case)
    if weights is None or budget is None:
        return
    part = weights / budget
    if part < 0.6 or (
        part > 1 and short.has_room
    ):  # beyond the budget with room for KV: another format was loaded
        return
    whose = case.log.model or (case.found.plan.question.model.name if case.found else "the model")
    words = f"the weights of {whose} take {weights:.2f} of the {budget:.2f} GiB budget ({part:.0%})"
    weight = (
        0.85 if not short.has_room and part >= 0.8 else (0.7 if part >= 0.9 else 0.55 if part > 0.8 else 0.4)
    )
    yield Cause("weights", words, weight, about(fixes, "-tp", "-pp", "--quantization", "--gpu"))


def _peak(case: Case, short: Short, fixes: tuple[Fix, ...]) -> Iterator[Cause]:
    """The profile run's activation peak: batch tokens, sampler rows or images."""
    printed = activation_bytes(case.log)
    peak = printed / GiB if printed else _row(case, "", "activation")
    budget = _budget(case)
    if peak is None or budget is None or peak < 0.1 * budget:
        return
    plan = case.plan
    why = plan.budget.activation.why if plan else ""
    kinds = {"vision": "images", "audio": "images", "sampler": "sampler"}
    name = kinds.get(why.partition(" ")[0], "activation")
    enough = short.missing is not None and 0.6 * peak >= short.missing
    told = {"max_num_batched_tokens", "max_num_seqs"} & set(case.log.flags)
    words = f"the profile run's activation peak takes {peak:.2f} of the {budget:.2f} GiB budget"
    words += f" ({why})" if why else ""
    smaller = proven(plan, max_num_batched_tokens=2048, max_num_seqs=64)
    mended = (smaller,) if smaller else about(fixes, "--max-num-batched-tokens", "--max-num-seqs")
    yield Cause(name, words, (0.8 if told else 0.6) if enough else 0.3, mended)


def _others(case: Case, short: Short, fixes: tuple[Fix, ...]) -> Iterator[Cause]:
    """Memory that vLLM counts as its own and is not torch's."""
    growth = non_torch_gib(case.log)
    if growth is None or growth < MUCH_NON_TORCH:
        return
    words = (
        f"{growth:.2f} GiB are not torch's: runtimes take 0.3 to 2, the rest is another process on the card"
    )
    fix = Fix("nvidia-smi; end the other process", f"about {growth - 1:.1f} GiB more for KV", False)
    yield Cause("occupied", words, 0.86, (fix,))


def _nothing_told() -> Cause:
    """Only the complaint is there."""
    words = (
        "weights and the profile run fill gpu_memory_utilization x the card; the text does not say how far"
    )
    fixes = (
        Fix("-tp 2, a quantised checkpoint, or a larger card", "fewer bytes of weights a card", False),
        Fix("--gpu-memory-utilization 0.95", "if nothing else is on the card", False),
    )
    return Cause("weights", words, 0.5, fixes)


_SOURCES = (_pinned, _share, _length, _weights, _peak, _others)


def _total(case: Case) -> float | None:
    """GiB of the card: printed, else the table's."""
    plan = case.plan
    return case.figure("total_gib") or (gib(plan.budget.total.size.value) if plan else None)


def _budget(case: Case) -> float | None:
    """GiB that the engine may fill."""
    total, share = _total(case), case.share()
    return total * share if total and share else None


def _row(case: Case, figure: str, row: str) -> float | None:
    """A figure of the log, else the plan's."""
    plan = case.plan
    return case.figure(figure) or (gib(getattr(plan.budget, row).size.value) if plan else None)


def states(case: Case) -> Iterator[Cause]:
    """More sequences than there are blocks for recurrent states."""
    told = case.message("states")
    if told is None:
        return
    seqs, blocks = int(told.figures["seqs"]), int(told.figures["blocks"])
    words = f"max_num_seqs {seqs:,} wants a block of state each; the pool has {blocks:,}"
    fixes = [proven(case.plan, max_num_seqs=n) for n in (blocks, int(0.9 * blocks))]
    mended = next((fix for fix in fixes if fix), None)
    more = proven(case.plan, gpu_memory_utilization=HIGHEST_SHARE)
    own = mended or Fix(f"--max-num-seqs {blocks}", "the engine's own figure", False)
    yield Cause("states", words, 0.95, (own, *((more,) if more else ())))
