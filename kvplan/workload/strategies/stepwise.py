"""Strategies that branch step by step under a process reward model, and the rollouts that train one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf, log, sqrt
from typing import Annotated, Literal

from pydantic import Field

from kvplan.workload.strategies.parallel import best
from kvplan.workload.strategies.params import Count, Share, Tokens, check_branches
from kvplan.workload.strategies.strategy import ALL, Answer, Ask, Branch, FinishedBranch, Strategy

Aggregation = Literal["sum", "min", "last"]
AGGREGATE: dict[Aggregation, Callable[[float, float], float]] = {
    "sum": lambda so_far, score: so_far + score,
    "min": lambda so_far, score: min(so_far, score),
    "last": lambda so_far, score: score,
}
FIRST: dict[Aggregation, float] = {"sum": 0.0, "min": inf, "last": 0.0}


def beam_search(
    beam_width: Count = 4,
    branch_factor: Count = 4,
    step_tokens: Tokens = 512,
    num_iterations: Count = 40,
    aggregation: Aggregation = "last",
) -> Strategy:
    """Keep the `beam_width` best partial traces, let each branch, score the steps, repeat.

    Starts from `beam_width` first steps, so that w x b x i is w + w b (i - 1) steps at most. A finished trace
    keeps its place in the beam. Snell et al. 2024, arXiv 2408.03314.
    """
    check_branches("beam_search", beam_width * branch_factor)
    ids, join = count(), AGGREGATE[aggregation]
    beam = yield Ask(start=tuple(_step(next(ids), None, step_tokens) for _ in range(beam_width)))
    value = {f.id: join(FIRST[aggregation], f.score) for f in beam}
    for _ in range(num_iterations - 1):
        growing = [f for f in beam if not f.done]
        if not growing:
            break
        children = yield Ask(
            start=tuple(_step(next(ids), f.id, step_tokens) for f in growing for _ in range(branch_factor))
        )
        value |= {f.id: join(value[_parent(f)], f.score) for f in children}
        beam = sorted([f for f in beam if f.done] + children, key=lambda f: -value[f.id])[:beam_width]
    done = [f for f in beam if f.done]
    return Answer.of(max(done, key=lambda f: value[f.id]), len(done)) if done else Answer(None)


def prune_by_steps(
    n: Count = 4, step_tokens: Tokens = 512, num_steps: Count = 64, threshold: Share = 0.5
) -> Strategy:
    """n chains, each on its own; a chain ends at the first step that the PRM scores below the threshold.

    Answers with the best of the chains that came through; right chains that were pruned on the way are the
    verifier's false alarms. Lightman et al. 2023, arXiv 2305.20050, for step scores.
    """
    ids = count()
    steps: dict[int, int] = {}
    finished = yield Ask(start=tuple(_step(next(ids), None, step_tokens) for _ in range(n)), wait=1)
    complete: list[FinishedBranch] = []
    while finished:
        start = []
        for f in finished:
            steps[f.id] = 1 if f.branch.parent is None else steps[f.branch.parent] + 1
            if f.done:
                complete.append(f)
            elif f.score >= threshold and steps[f.id] < num_steps:
                start.append(_step(next(ids), f.id, step_tokens))
        finished = yield Ask(start=tuple(start), wait=1)
    return best(complete, len(complete))


@dataclass(slots=True)
class _Node:
    """One step in the search tree."""

    finished: FinishedBranch | None
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0

    def ucb(self, exploration: float) -> float:
        """Upper confidence bound of a visited child (Kocsis & Szepesvári 2006)."""
        assert self.parent is not None
        return self.value / self.visits + exploration * sqrt(log(self.parent.visits + 1) / self.visits)


def tree_search(
    num_simulations: Count = 16,
    branch_factor: Count = 4,
    step_tokens: Tokens = 512,
    exploration: Annotated[float, Field(ge=0, le=1e6)] = 1.0,
    max_tokens: Tokens = ALL,
) -> Strategy:
    """MCTS: select by UCB, expand by `branch_factor` steps, roll the best out to its end, score, back up.

    Answers with the best-scored rollout. Hao et al. 2023 (RAP), arXiv 2305.14992; Zhang et al. 2024 (ReST-MCTS*),
    arXiv 2406.03816.
    """
    ids, root = count(), _Node(None, None)
    complete: list[FinishedBranch] = []
    for _ in range(num_simulations):
        leaf = _select(root, exploration)
        if leaf.finished is None or (leaf.visits and not leaf.finished.done):
            source = leaf.finished.id if leaf.finished else None
            steps = yield Ask(
                start=tuple(_step(next(ids), source, step_tokens) for _ in range(branch_factor))
            )
            leaf.children = [_Node(f, leaf) for f in steps]
            leaf = max(leaf.children, key=_prior)
        end = leaf.finished
        assert end is not None
        if not end.done:
            [end] = yield Ask(
                start=(Branch(next(ids), end.id, end.tokens, max_tokens=max_tokens, score=True),)
            )
        complete.append(end)
        _back_up(leaf, end.score)
    return best(complete, len(complete))


def monte_carlo_labels(rollouts: Count = 8, step_tokens: Tokens = 512, max_tokens: Tokens = ALL) -> Strategy:
    """Label every step of a trace by the share of rollouts from its prefix that get there: how PRM data is made.

    Wang et al. 2023 (Math-Shepherd), arXiv 2312.08935. The most sharing-heavy load there is: each rollout's
    prompt is the trace up to a step.
    """
    [trace] = yield Ask(start=(Branch(0, max_tokens=max_tokens),))
    ends = range(step_tokens, trace.thinking_tokens, step_tokens)
    check_branches("monte_carlo_labels", len(ends) * rollouts)
    prefixes = [end for end in ends for _ in range(rollouts)]
    finished = yield Ask(
        start=tuple(Branch(1 + i, 0, end, max_tokens=max_tokens) for i, end in enumerate(prefixes))
    )
    return Answer.of(trace, 1 + len(finished))


def _step(branch_id: int, parent: int | None, step_tokens: int) -> Branch:
    return Branch(branch_id, parent, kind="step", max_tokens=step_tokens, score=True)


def _parent(finished: FinishedBranch) -> int:
    assert finished.branch.parent is not None
    return finished.branch.parent


def _prior(node: _Node) -> float:
    assert node.finished is not None
    return node.finished.score


def _select(node: _Node, exploration: float) -> _Node:
    """Walk down: an unvisited child first, best prior first; else the highest bound."""
    while node.children:
        fresh = [child for child in node.children if not child.visits]
        if fresh:
            return max(fresh, key=_prior)
        node = max(node.children, key=lambda child: child.ucb(exploration))
    return node


def _back_up(node: _Node | None, score: float) -> None:
    while node is not None:
        node.visits += 1
        node.value += score
        node = node.parent
