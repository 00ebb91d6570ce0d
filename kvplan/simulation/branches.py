"""The tree of branches that a strategy grew for one problem: who came from whom, what was shared, what was pruned.

notes = BranchNotes()
simulate(scenario, observer=Observer(on_branch=notes.start))
tree(notes, result.records, problem=0)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvplan.ground.units import TICKS_PER_S
from kvplan.simulation.records import FINISH_REASONS, Record, Records


class Node(NamedTuple):
    """One branch; tokens count along its own sequence, from the problem's first token."""

    branch: int
    parent: int | None
    depth: int
    kind: str
    prompt_tokens: int
    """Where its own tokens begin."""
    hit_tokens: int
    """Of the prompt, found in the prefix cache: KV shared with parent or siblings."""
    output_tokens: int
    end: str
    """How it ended, as in the records."""
    pruned: bool
    """Given up before its answer: by the engine, or a step that its strategy did not continue."""
    start_s: float
    finish_s: float


@dataclass(slots=True)
class BranchNotes:
    """Notes every branch of a run; `start` is an observer's `on_branch`."""

    launches: dict[int, dict[int, Any]] = field(default_factory=lambda: defaultdict(dict))
    """Problem -> request id -> branch."""

    def start(self, problem: int, launch: Any) -> None:
        """A branch was started."""
        self.launches[problem][launch.request_id] = launch.branch


def tree(notes: BranchNotes, records: Records, problem: int) -> list[Node]:
    """A problem's branches, parents before their children, siblings by number."""
    branches = notes.launches.get(problem, {})
    by_id = {record[0]: Record(*record) for record in records.table.tolist() if record[0] in branches}
    children: dict[int | None, list[int]] = defaultdict(list)
    request = {branch.id: row for row, branch in branches.items() if row in by_id}
    for branch_id in sorted(request):
        parent = branches[request[branch_id]].parent
        children[parent if parent in request else None].append(branch_id)
    found: list[Node] = []
    stack = [(branch_id, 0) for branch_id in reversed(children[None])]
    while stack:
        branch_id, depth = stack.pop()
        row = request[branch_id]
        found.append(_node(branches[row], by_id[row], depth, not children[branch_id]))
        stack += [(child, depth + 1) for child in reversed(children[branch_id])]
    return found


def _node(branch: Any, record: Record, depth: int, is_leaf: bool) -> Node:
    end = FINISH_REASONS[record.finish_reason]
    pruned = end == "pruned" or (is_leaf and branch.kind == "step" and end != "stop")
    return Node(
        branch=branch.id, parent=branch.parent, depth=depth, kind=branch.kind, prompt_tokens=record.prompt_tokens,
        hit_tokens=record.hit_tokens, output_tokens=record.output_tokens, end=end, pruned=pruned,
        start_s=record.arrival / TICKS_PER_S, finish_s=record.finish / TICKS_PER_S,
    )  # fmt: skip
