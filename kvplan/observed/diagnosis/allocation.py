"""An allocation that failed: who held the card, and what the engine was doing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvplan.ground.units import gib
from kvplan.observed.diagnosis.cause import Case, Cause, Fix, about, options, proven
from kvplan.observed.diagnosis.messages import SPEAKS, Message, stage_of

MUCH_OTHER = 1.0
"""GiB that another process holds; CUDA's own context is less."""
CONTEXT = 0.6
"""GiB that CUDA's context takes of a card, beside what PyTorch reserves."""
MUCH_IDLE = 0.1
"""Share of the card that the allocator holds without using it."""


def allocation(case: Case) -> Iterator[Cause]:
    """Causes of `out of memory`, read off PyTorch's own figures and the traceback above them."""
    told = case.message("allocation")
    if told is None:
        return
    stage = stage_of(told)
    yield from _held_by_others(case, told)
    yield from _idle(told)
    yield from _at(case, told, stage)


def _held_by_others(case: Case, told: Message) -> Iterator[Cause]:
    said = told.figures
    others = _others(said)
    if others < MUCH_OTHER:
        return
    where = f" of the card's {said['total']:.2f}" if "total" in said else ""
    words = f"another process holds {others:.2f}{where} GiB; this one had {said.get('free', 0.0):.2f} GiB left to take"
    share = case.share()
    total = said.get("total")
    lower = share - others / total if share and total else None
    fix = proven(case.plan, gpu_memory_utilization=round(lower, 2)) if lower and lower > 0.05 else None
    ended = Fix("nvidia-smi; end the other process", f"{others:.2f} GiB come free", False)
    yield Cause(
        "occupied", words, 0.9 if others > 0.1 * (total or 24) else 0.7, (ended, *((fix,) if fix else ()))
    )


def _others(said: Mapping[str, float]) -> float:
    """GiB that other processes hold, as far as PyTorch tells.

    From 2.2 on it lists them and speaks of "this process" apart; 2.1, and a process in a container, list themselves
    among them; before that only the card's total, what is free and what this process reserved are told.
    """
    own = said.get("reserved", said.get("allocated", 0.0) + said.get("idle", 0.0))
    if "mine" in said:
        left = said["total"] - said["free"] - said["mine"] if {"total", "free"} <= said.keys() else 0.0
        return said.get("others") or left
    if "others" in said:
        return said["others"] - own - CONTEXT if own and said.get("processes", 1) > 1 else 0.0
    return said["total"] - said["free"] - own - CONTEXT if own and {"total", "free"} <= said.keys() else 0.0


def _idle(told: Message) -> Iterator[Cause]:
    said = told.figures
    idle = said.get("idle") or said.get("reserved", 0.0) - said.get("allocated", 0.0)
    if idle < MUCH_IDLE * said.get("total", 24.0) or idle < said["tried"] / 2:
        return
    words = f"{idle:.2f} GiB lie idle in PyTorch's allocator, in pieces too small for {said['tried']:.2f} GiB"
    fix = Fix("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", "pieces that grow", False)
    yield Cause("fragmentation", words, 0.72, (fix,))


def _at(case: Case, told: Message, stage: str) -> Iterator[Cause]:
    """What the stage says."""
    if stage in ("load", ""):
        yield from _weights(case, told, stage)
    if stage in ("profile", "images", "sampler", ""):
        yield from _peak(case, told, stage)
    if stage in ("graphs", "pool", "serve"):
        yield from _beside(case, told, stage)


def _size(told: Message) -> str:
    return f"{told.figures['tried']:.2f} GiB" if "tried" in told.figures else "memory"


def _weights(case: Case, told: Message, stage: str) -> Iterator[Cause]:
    """The weights are more than the card."""
    plan, total = case.plan, told.figures.get("total")
    if plan is not None:
        weights, card = gib(plan.budget.weights.size.value), total or gib(plan.budget.total.size.value)
        part = weights / card
        size = f"weights of {plan.question.model.name}, {weights:.2f} GiB a card, on {card:.2f} GiB"
        weight = 0.92 if part > 0.92 else 0.75 if part > 0.75 else 0.3
        if stage == "load" or part > 0.75:
            fixes = about(options(plan), "-tp", "-pp", "--quantization", "--gpu")
            yield Cause("weights", f"{size}: {part:.0%} of it", weight, fixes)
        return
    mine = told.figures.get("allocated")
    held = f" with {mine:.2f} GiB allocated" if mine else ""
    of = f" on a card of {total:.2f} GiB" if total else ""
    words = f"{SPEAKS[stage]} asked for {_size(told)} more{held}{of}: the model's weights are more than this card holds"
    fixes = (Fix("-tp 2, or a quantised checkpoint (fp8, AWQ)", "half the bytes a card", False),)
    yield Cause("weights", words, 0.82 if stage == "load" else 0.5, fixes)


def _peak(case: Case, told: Message, stage: str) -> Iterator[Cause]:
    """The profile run's batch is too large for what the weights left."""
    plan = case.plan
    name = {"images": "images", "sampler": "sampler"}.get(stage, "activation")
    words = f"{SPEAKS[stage]} asked for {_size(told)}, more than was left"
    if plan is not None and stage:
        row = plan.budget.activation
        words += f": the planned peak is {gib(row.size.value):.2f} GiB ({row.why})"
    fixes = []
    batch, seqs = (plan.args.max_num_batched_tokens, plan.args.max_num_seqs) if plan else (8192, 256)
    for told_flags in ({"max_num_seqs": max(1, seqs // 4)}, {"max_num_batched_tokens": max(512, batch // 4)}):
        fixes.append(proven(plan, **told_flags))
    verified = tuple(fix for fix in fixes if fix)
    if stage == "images":
        fewer = "--limit-mm-per-prompt with fewer images, or --language-model-only"
        verified = (Fix(fewer, "a smaller profile run", False), *verified)
    smaller = Fix(f"--max-num-batched-tokens {max(512, batch // 4)}", "a smaller profile run", False)
    rows = Fix(f"--max-num-seqs {max(1, seqs // 4)}", "fewer rows of logits", False)
    own = verified or (rows if stage == "sampler" else smaller,)
    yield Cause(name, words, 0.8 if stage else 0.35, own)


def _beside(case: Case, told: Message, stage: str) -> Iterator[Cause]:
    """What lies outside the budget: graphs, and steps larger than those profiled."""
    share = case.share()
    at = f" {share:g}" if share else ""
    words = (
        f"{SPEAKS[stage]} asked for {_size(told)} that gpu_memory_utilization{at} leaves no room for: what is not "
        "in the profile run lies outside it"
    )
    lower = round((share or 0.9) - 0.05, 2)
    fix = proven(case.plan, gpu_memory_utilization=lower)
    fixes = [fix or Fix(f"--gpu-memory-utilization {lower:g}", "more beside the pool", False)]
    if stage == "graphs":
        eager = Fix("--enforce-eager", "no graphs; slower steps", False)
        fixes.append(proven(case.plan, enforce_eager=True) or eager)
    seqs = max(1, case.plan.args.max_num_seqs // 4) if case.plan else 64
    fixes.append(
        proven(case.plan, max_num_seqs=seqs) or Fix(f"--max-num-seqs {seqs}", "smaller steps", False)
    )
    name = "graphs" if stage == "graphs" else "utilization_too_high"
    yield Cause(name, words, 0.8, tuple(fixes))
