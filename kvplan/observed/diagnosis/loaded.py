"""A server that runs, but waits or preempts: what gives out first under its load."""

from __future__ import annotations

from collections.abc import Iterator

from kvplan.observed.diagnosis.cause import Case, Cause, Fix, gains
from kvplan.observed.explain import SEQS
from kvplan.observed.load_lines import EngineLoad

FULL = 0.95
"""Share of the pool beyond which requests wait for blocks."""
ROOMY = 0.9


def loaded(case: Case) -> Iterator[Cause]:
    """Causes of a queue, and of preemptions."""
    load = case.load
    thrown = any(case.message(kind) for kind in ("preempted", "retracted")) or bool(load and load.preempted)
    if thrown or (load and load.usage >= FULL):
        yield _full(case, load, thrown)
    if load and load.waiting and load.usage < ROOMY:
        yield _capped(case, load) if _is_capped(case, load) else _prompts(case, load)


def _full(case: Case, load: EngineLoad | None, thrown: bool) -> Cause:
    """The KV pool is full."""
    words = "the KV pool is full"
    if load is not None:
        words += (
            f": {load.usage:.1%} in use with {load.running:,.0f} sequences running and {load.waiting:,.0f} waiting "
            f"({load.where})"
        )
    if thrown:
        count = f"{load.preempted:,.0f} " if load and load.preempted else ""
        words += f"; {count}requests were thrown out and computed again"
    plan = case.plan
    tried = [
        gains(plan, gpu_memory_utilization=0.95),
        gains(plan, kv_cache_dtype="fp8"),
        gains(plan, tensor_parallel_size=2 * plan.args.tensor_parallel_size) if plan else None,
    ]
    fixes = [fix for fix in tried if fix]
    if not fixes:
        fixes = [
            Fix(
                "--kv-cache-dtype fp8, more cards, or a thinking budget",
                "more room, or shorter answers",
                False,
            )
        ]
    if thrown and load and load.running > 1:
        seqs = max(1, int(0.8 * load.running))
        fixes.append(Fix(f"--max-num-seqs {seqs}", "requests wait instead of being computed twice", False))
    return Cause("kv_full", words, 0.9 if thrown or (load and load.waiting) else 0.6, tuple(fixes))


def _is_capped(case: Case, load: EngineLoad) -> bool:
    limit = case.number("max_num_seqs") or (case.plan.args.max_num_seqs if case.plan else None)
    return load.most_running >= 0.97 * limit if limit else load.most_running in SEQS


def _capped(case: Case, load: EngineLoad) -> Cause:
    """The batch is as large as the flag lets it be."""
    words = (
        f"{load.waiting:,.0f} requests wait while {load.running:,.0f} run and {load.usage:.0%} of the KV pool is in "
        f"use: max_num_seqs caps the batch ({load.where})"
    )
    room = int(load.running / max(load.usage, 0.01) * ROOMY)
    fix = Fix(f"--max-num-seqs {room}", f"{ROOMY:.0%} of the pool at the same lengths", False)
    return Cause("max_num_seqs", words, 0.85, (fix,))


def _prompts(case: Case, load: EngineLoad) -> Cause:
    """Neither blocks nor the batch's size: prompts wait for their turn."""
    words = (
        f"{load.waiting:,.0f} requests wait while {load.usage:.0%} of the KV pool is in use and {load.running:,.0f} "
        f"run: prompts come faster than they are computed, or they just came ({load.where})"
    )
    fixes = (
        Fix(
            "--max-num-batched-tokens 16384, or another copy (-dp 2)", "prompts sooner, decodes later", False
        ),
    )
    return Cause("prompts", words, 0.55, fixes)
