"""Where strategies leave what a quality set or a pass table measured: more samples, other budgets, other caps.

Asks each strategy for its branches on a few problems, without an engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kvplan.workload.pass_tables import read_pass_table
from kvplan.workload.problems import Problems, StrategySpec, Task, task_sampler
from kvplan.workload.quality_sets import QualitySet
from kvplan.workload.strategies.alone import run_alone
from kvplan.workload.strategies.session import BranchOutcome, Sampler
from kvplan.workload.strategies.strategy import ALL, Branch

WATCHED = 3
"""Problems that a strategy is watched on: the easiest, the hardest and one between."""


class Reach(NamedTuple):
    """What a strategy asks for."""

    samples: int
    """Most traces of their own that one problem got from its own model."""
    budgets: frozenset[int]
    """Thinking tokens after which thinking is closed, or which the prompt states."""
    caps: frozenset[int]
    """`max_tokens` of whole traces."""


class _Watched:
    """A sampler that notes what it is asked for."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.branches = sampler, list[Branch]()

    def draw(self, branch: Branch, parent: BranchOutcome | None) -> BranchOutcome:
        self.branches.append(branch)
        return self.sampler.draw(branch, parent)


def reach(problems: Problems, spec: StrategySpec, tasks: Sequence[Task]) -> Reach:
    """Run a strategy on a few problems and look at its branches."""
    ranked = sorted(tasks, key=lambda task: task.ease)
    picked = [ranked[i * (len(ranked) - 1) // max(WATCHED - 1, 1)] for i in range(min(WATCHED, len(ranked)))]
    asked: list[Branch] = []
    samples = 0
    for task in picked:
        watched = _Watched(task_sampler(problems, spec, task))
        run_alone(task.problem, spec.start(), watched)
        own = [b for b in watched.branches if not b.model]
        samples = max(samples, sum(b.parent is None and b.kind != "classify" for b in own))
        asked += own
    budgets = {min(b.thinking_token_budget, b.stated_budget) for b in asked}
    return Reach(
        samples,
        frozenset(budgets - {ALL}),
        frozenset(b.max_tokens for b in asked if b.kind in ("trace", "revision")),
    )


def quality_said(problems: Problems, folder: Path = Path()) -> str:
    """In one line: where chances and lengths come from."""
    if problems.pass_table is not None:
        return read_pass_table(problems.pass_table, folder).said
    facts = problems.quality
    parts = [f"set {facts.name}: {facts.source}", facts.date, facts.model]
    if facts.assumed:
        parts.append(f"assumed: {', '.join(facts.assumed)}")
    return "; ".join(part for part in parts if part)


def beyond_measured(problems: Problems, spec: StrategySpec, tasks: Sequence[Task]) -> list[str]:
    """A line for each way in which a strategy leaves what was measured; none where nothing was."""
    facts = problems.quality if not spec.model else problems.qualities.get(spec.model, problems.quality)
    asked = reach(problems, spec, tasks)
    if problems.pass_table is not None and not spec.model:
        return list(_beyond_table(spec.name, asked, tasks))
    return [] if facts.is_assumed else list(_beyond_set(spec.name, facts, asked))


def _beyond_table(name: str, asked: Reach, tasks: Sequence[Task]) -> Iterator[str]:
    fewest = min(len(task.skill.samples.tokens) for task in tasks if task.skill.samples)
    if asked.samples > fewest:
        yield (
            f"{name} draws {asked.samples:,} samples of a problem, the pass table has {fewest:,} of some: "
            "beyond those the same come again"
        )
    if asked.budgets:
        yield f"{name}: what a thinking budget does to the pass table's samples is assumed, not measured"


def _beyond_set(name: str, facts: QualitySet, asked: Reach) -> Iterator[str]:
    most, cap = facts.measured_samples, facts.measured_max_tokens
    if most and asked.samples > most:
        yield (
            f"{name} draws {asked.samples:,} samples of a problem, {facts.name} was measured with up to {most:,}: "
            "its chances beyond are extrapolated"
        )
    if asked.budgets and not facts.thinking_curve:
        yield f"{name}: {facts.name} has no measured thinking curve; what a budget costs is assumed"
    if facts.thinking_curve:
        first, last = facts.thinking_curve[0][0], facts.thinking_curve[-1][0]
        outside = sorted(b for b in asked.budgets if not first <= b <= last)
        if outside:
            yield (
                f"{name}: a budget of {outside[0]:,} thinking tokens is outside of the curve of {facts.name} "
                f"({first:,.0f} to {last:,.0f}), which is taken as flat there"
            )
    other = sorted(c for c in asked.caps if cap and c != cap)
    if other:
        told = "no max_tokens" if other[-1] == ALL else f"max_tokens {other[-1]:,}"
        yield f"{name}: {told}, {facts.name} was measured with {cap:,}"
