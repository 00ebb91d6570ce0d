"""Strategies that branch step by step under a process reward model, and the rollouts that train one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from math import ceil, inf, log, sqrt
from typing import Annotated, Literal

from pydantic import Field

from kvplan.workload.strategies.parallel import best
from kvplan.workload.strategies.params import Count, Share, Tokens, TokensOrNone, check_branches
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
    first_steps: TokensOrNone = 0,
) -> Strategy:
    """Keep the `beam_width` best partial traces, let each branch, score the steps, repeat.

    Starts from `first_steps` steps, or with 0 from `beam_width`, so that w x b x i is w + w b (i - 1) steps at most. A
    finished trace keeps its place in the beam. Snell et al. 2024, arXiv 2408.03314, whose N beams start from N = w b.
    """
    check_branches("beam_search", max(beam_width * branch_factor, first_steps))
    ids, join = count(), AGGREGATE[aggregation]
    first = max(first_steps, beam_width)
    beam = yield Ask(start=tuple(_step(next(ids), None, step_tokens) for _ in range(first)))
    value = {f.id: join(FIRST[aggregation], f.score) for f in beam}
    beam = sorted(beam, key=lambda f: -value[f.id])[:beam_width]
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


def diverse_tree_search(
    num_subtrees: Count = 4, branch_factor: Count = 4, step_tokens: Tokens = 512, num_iterations: Count = 40
) -> Strategy:
    """DVTS: so many beams of width 1 side by side, each keeping the best of its own steps; the best end answers.

    Beeching, Tunstall & Rush 2024, "Scaling test-time compute with open models" (Hugging Face). No subtree can crowd
    out another, which keeps answers apart that `beam_search` would drop.
    """
    check_branches("diverse_tree_search", num_subtrees * branch_factor)
    ids, tips = count(), dict[int, FinishedBranch]()
    for _ in range(num_iterations):
        growing = [tree for tree in range(num_subtrees) if tree not in tips or not tips[tree].done]
        if not growing:
            break
        owner = {next(ids): tree for tree in growing for _ in range(branch_factor)}
        source = {tree: tip.id for tree, tip in tips.items()}
        children = yield Ask(
            start=tuple(_step(i, source.get(tree), step_tokens) for i, tree in owner.items())
        )
        for child in sorted(children, key=lambda f: f.score):  # the last of each subtree is its best
            tips[owner[child.id]] = child
    done = [tip for tip in tips.values() if tip.done]
    return best(done, len(done))


def backtracking_search(
    branch_factor: Count = 4, step_tokens: Tokens = 512, threshold: Share = 0.5, max_steps: Count = 256
) -> Strategy:
    """Depth first: go on from the best step that reaches the threshold; where none does, back to the next best.

    The first trace that ends with a passing step answers. Yao et al. 2023 (tree of thoughts), arXiv 2305.10601.
    """
    check_branches("backtracking_search", branch_factor)
    ids, taken = count(), 0
    stack: list[FinishedBranch] = []
    source: int | None = None
    while taken < max_steps:
        children = yield Ask(start=tuple(_step(next(ids), source, step_tokens) for _ in range(branch_factor)))
        taken += branch_factor
        stack += sorted((f for f in children if f.score >= threshold), key=lambda f: f.score)
        if not stack:
            return Answer(None)
        tip = stack.pop()
        if tip.done:
            return Answer.of(tip)
        source = tip.id
    return Answer(None)


def speculative_rejection(
    n: Count = 16,
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5,
    step_tokens: Tokens = 1024,
    num_rounds: Count = 64,
) -> Strategy:
    """Best-of-N that drops the worse of its unfinished traces: each `step_tokens`, the best share `keep` goes on.

    Sun et al. 2024, arXiv 2410.20290. keep = 1 is best-of-N with scores on the way; what is dropped frees its KV.
    """
    ids = count()
    growing = yield Ask(start=tuple(_step(next(ids), None, step_tokens) for _ in range(n)))
    complete = [f for f in growing if f.done]
    for _ in range(num_rounds - 1):
        growing = sorted((f for f in growing if not f.done), key=lambda f: -f.score)
        growing = growing[: ceil(keep * len(growing))]
        if not growing:
            break
        growing = yield Ask(start=tuple(_step(next(ids), f.id, step_tokens) for f in growing))
        complete += [f for f in growing if f.done]
    return best(complete, len(complete))


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


@dataclass(slots=True, eq=False)
class _Node:
    """One step in the search tree."""

    finished: FinishedBranch | None
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0

    @property
    def at(self) -> FinishedBranch:
        """The step that this node stands for; the root has none."""
        assert self.finished is not None
        return self.finished

    @property
    def branch(self) -> int | None:
        """Its branch, which children continue; None at the root."""
        return None if self.finished is None else self.finished.id

    @property
    def is_to_grow(self) -> bool:
        """Whether a simulation that gets here adds steps: at the root, and where one was before."""
        return self.finished is None or (self.visits > 0 and not self.finished.done)

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
    num_concurrent: Count = 1,
) -> Strategy:
    """MCTS: select by UCB, expand by `branch_factor` steps, roll the best out to its end, score, back up.

    Of `num_concurrent` at once each is a virtual loss on its path until it has a score (Chaslot et al. 2008).
    Hao et al. 2023 (RAP), arXiv 2305.14992; Zhang et al. 2024 (ReST-MCTS*), arXiv 2406.03816.
    """
    ids, root, complete = count(), _Node(None, None), list[FinishedBranch]()
    while len(complete) < num_simulations:
        leaves = []
        for _ in range(min(num_concurrent, num_simulations - len(complete))):
            leaves.append(_select(root, exploration))
            _back_up(leaves[-1][0], visits=1)  # a visit that has won nothing yet: the virtual loss
        parents = {next(ids): leaf for leaf in _growing(leaves) for _ in range(branch_factor)}
        steps = tuple(_step(i, leaf.branch, step_tokens) for i, leaf in parents.items())
        for f in (yield Ask(start=steps)):
            parents[f.id].children.append(_Node(f, parents[f.id]))
        ends = [_first_visit(leaf, exploration) if grows else leaf for leaf, grows in leaves]
        rolls = {next(ids): end for end in ends if not end.at.done}
        rolled = yield Ask(start=tuple(_rollout(i, end.at, max_tokens) for i, end in rolls.items()))
        for end, f in [(rolls[f.id], f) for f in rolled] + [(end, end.at) for end in ends if end.at.done]:
            complete.append(f)
            _back_up(end, value=f.score)
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


def _rollout(branch_id: int, source: FinishedBranch, max_tokens: int) -> Branch:
    return Branch(branch_id, source.id, source.tokens, max_tokens=max_tokens, score=True)


def _prior(node: _Node) -> float:
    return node.at.score


def _select(root: _Node, exploration: float) -> tuple[_Node, bool]:
    """Walk down: an unvisited child first, best prior first; else the highest bound. Also whether it is to grow."""
    node = root
    while node.children:
        node = _child(node, exploration)
        if not node.visits:
            break
    return node, node.is_to_grow


def _child(node: _Node, exploration: float) -> _Node:
    fresh = [child for child in node.children if not child.visits]
    if fresh:
        return max(fresh, key=_prior)
    return max(node.children, key=lambda child: child.ucb(exploration))


def _growing(leaves: Iterable[tuple[_Node, bool]]) -> dict[_Node, None]:
    """Those that are to grow, each once."""
    return dict.fromkeys(leaf for leaf, grows in leaves if grows)


def _first_visit(node: _Node, exploration: float) -> _Node:
    """Go on from a node that has just grown: to a child, with its visit."""
    child = _child(node, exploration)
    child.visits += 1
    return child


def _back_up(node: _Node | None, visits: int = 0, value: float = 0.0) -> None:
    while node is not None:
        node.visits += visits
        node.value += value
        node = node.parent
