"""One problem in progress: drives a strategy's generator, keeps its branches, draws what each will do.

How to drive it, from a simulator, a replay or a test:

    session = Session(problem, strategy, sampler, new_id)   # new_id: the driver's counter of requests
    orders = session.begin()
    loop:
        abort every request in orders.cancel        # running, waiting or paused; its blocks are free at once
        after orders.pause_s: submit every launch in orders.start:
            request_id = launch.request_id
            prompt = launch.prompt                  # segments: equal ones, equal tokens
            stop_at = launch.tokens                 # it ends by itself there, unless that is max_tokens
            max_tokens = launch.branch.max_tokens   # what the scheduler is told
        when a request reaches its end (and, if launch.branch.score, its verifier pass is done):
            orders = session.finish(launch.branch.id)
        when the engine itself ended one after `tokens` generated tokens (pruned under pressure):
            orders = session.prune(launch.branch.id, tokens)
    until orders.answer is not None                 # then nothing of this problem runs any more

What request r generates is the stream `out:r` (`output_of`), so that a child's prompt names its parent's
tokens and shares their blocks by the engine's own rule. The sampler decides lengths, answers and scores at the
launch; the strategy learns them at the end. Knows neither seconds nor blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, Protocol

from kvplan.ground.content import Content, Segment, length_of, output_of
from kvplan.ground.errors import KvplanError
from kvplan.workload.strategies.strategy import Answer, Branch, FinishedBranch, Reason, Strategy


class BranchOutcome(NamedTuple):
    """What a branch will do, drawn when it is launched."""

    tokens: int
    thinking_tokens: int
    reason: Reason
    answer: int | None
    score: float


class Sampler(Protocol):
    """Draws outcomes. One object per problem, with a random stream of its own."""

    def draw(self, branch: Branch, parent: BranchOutcome | None) -> BranchOutcome:
        """Return what `branch` will do; called once per branch, in order of launch."""
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """One task of the workload: its prompt, and the key of a prefix that other problems share."""

    id: int
    prompt_tokens: int
    shared_prefix_tokens: int = 0
    """The first tokens of the prompt, equal in all problems with the same `shared_prefix`."""
    shared_prefix: str = "system"

    def segments(self) -> Content:
        """The prompt: shared part first, then the problem's own."""
        own = self.prompt_tokens - self.shared_prefix_tokens
        parts = (
            Segment(self.shared_prefix, self.shared_prefix_tokens),
            Segment(f"problem{self.id}", own),
        )
        return tuple(s for s in parts if s.length)


@dataclass(slots=True)
class Launch:
    """A branch with its prompt spelled out and its end decided."""

    branch: Branch
    request_id: int
    prompt: Content
    outcome: BranchOutcome
    prompt_tokens: int = -1
    """Length of the prompt; counted where it is not told."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0:
            self.prompt_tokens = length_of(self.prompt)

    @property
    def tokens(self) -> int:
        """Tokens it will generate."""
        return self.outcome.tokens

    @property
    def thinking_tokens(self) -> int:
        """How many of them, from the first on, are hidden."""
        return self.outcome.thinking_tokens


@dataclass(frozen=True, slots=True)
class Orders:
    """What the driver has to do now."""

    start: tuple[Launch, ...] = ()
    cancel: tuple[int, ...] = ()
    """Request ids."""
    pause_s: float = 0.0
    answer: Answer | None = None


IDLE = Orders()


def _kept(parent: Launch, child: Branch) -> tuple[int, int]:
    """From where to where `child` takes what its finished parent generated."""
    tokens = parent.outcome.tokens
    end = tokens if child.parent_tokens is None else min(child.parent_tokens, tokens)
    return (min(parent.thinking_tokens, end) if child.drop_thinking else 0), end


def inherited(parent: Launch, child: Branch) -> Content:
    """What `child` takes from its finished parent: the prompt, then what was generated or a part of it."""
    begin, end = _kept(parent, child)
    if begin == end:
        return parent.prompt
    return (*parent.prompt, Segment(output_of(parent.request_id), end - begin, begin))


@dataclass(slots=True)
class Session:
    """One problem and its strategy (see the module's docstring for the protocol).

    Raises KvplanError when a strategy names a branch twice or continues one that has not finished.
    """

    problem: Problem
    plan: Strategy
    sampler: Sampler
    new_id: Callable[[], int] = field(default_factory=lambda: count().__next__)
    """Gives each launch its request id."""
    spells: bool = True
    """Prompts are spelled out; else only their tokens are counted, in half the time."""
    launches: dict[int, Launch] = field(default_factory=dict)
    """Every branch ever launched, by id."""
    running: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    """Branches that finished or were pruned; others may continue them. Cancelled ones are not among them."""
    answer: Answer | None = None
    _inbox: list[FinishedBranch] = field(default_factory=list)
    _wait: int = 0
    _root: Content = ()

    def begin(self) -> Orders:
        """Start the strategy; return its first orders."""
        self._root = self.problem.segments() if self.spells else ()
        return self._advance(None)

    def finish(self, branch_id: int) -> Orders:
        """Branch `branch_id` reached its drawn end (and was scored): return what follows, often nothing.

        A branch that was cancelled in the same instant is ignored.
        """
        if branch_id not in self.running:
            return IDLE
        launch = self.launches[branch_id]
        self.running.remove(branch_id)
        self.ended.add(branch_id)
        self._inbox.append(FinishedBranch(launch.branch, *launch.outcome))
        if self.running and len(self._inbox) < self._wait:
            return IDLE
        inbox, self._inbox = self._inbox, []
        return self._advance(inbox)

    def prune(self, branch_id: int, tokens: int) -> Orders:
        """The engine ended `branch_id` after `tokens` tokens, before it had an answer."""
        self.cut(branch_id, tokens, "pruned")
        return self.finish(branch_id)

    def cut(self, branch_id: int, tokens: int, reason: Reason = "length") -> None:
        """The branch has room for only `tokens` tokens (max_model_len): it will end there, unanswered."""
        launch = self.launches[branch_id]
        old = launch.outcome
        launch.outcome = BranchOutcome(tokens, min(tokens, old.thinking_tokens), reason, None, old.score)

    def _advance(self, inbox: list[FinishedBranch] | None) -> Orders:
        """Let the generator run to its next `Ask` that waits for something, or to its end."""
        start: dict[int, Launch] = {}
        cancel: list[int] = []
        pause_s = 0.0
        while True:
            try:
                ask = next(self.plan) if inbox is None else self.plan.send(inbox)
            except StopIteration as end:
                self.answer = end.value
                self._cancel(sorted(self.running), start, cancel)
                return Orders((), tuple(cancel), 0.0, self.answer)
            self._cancel(ask.cancel, start, cancel)
            start |= {branch.id: self._launch(branch) for branch in ask.start}
            pause_s += ask.pause_s
            self._wait = ask.wait
            if self.running and ask.wait > 0:
                return Orders(tuple(start.values()), tuple(cancel), pause_s)
            inbox = []

    def _cancel(self, ids: Iterable[int], start: dict[int, Launch], cancel: list[int]) -> None:
        """Stop what runs; what was never submitted is simply not started."""
        for branch_id in ids:
            if branch_id in self.running:
                self.running.remove(branch_id)
                if start.pop(branch_id, None) is None:
                    cancel.append(self.launches[branch_id].request_id)

    def _launch(self, branch: Branch) -> Launch:
        if branch.id in self.launches:
            raise KvplanError(f"the strategy starts branch {branch.id} twice; an id is used once")
        parent = None if branch.parent is None else self._parent(branch)
        outcome = self.sampler.draw(branch, parent.outcome if parent else None)
        prompt, tokens = (
            (self._prompt(branch, parent), -1) if self.spells else ((), self._count(branch, parent))
        )
        launch = Launch(branch, self.new_id(), prompt, outcome, tokens)
        self.launches[branch.id] = launch
        self.running.add(branch.id)
        return launch

    def _parent(self, branch: Branch) -> Launch:
        assert branch.parent is not None
        if branch.parent not in self.ended:
            raise KvplanError(f"branch {branch.id} continues branch {branch.parent}, which has not finished")
        return self.launches[branch.parent]

    def _count(self, branch: Branch, parent: Launch | None) -> int:
        """Tokens of the prompt that `_prompt` spells out."""
        if parent is None or branch.folded:
            return self.problem.prompt_tokens + branch.extra_prompt
        begin, end = _kept(parent, branch)
        return parent.prompt_tokens + end - begin + branch.extra_prompt

    def _prompt(self, branch: Branch, parent: Launch | None) -> Content:
        before = self._root if parent is None or branch.folded else inherited(parent, branch)
        if not branch.extra_prompt:
            return before
        return (*before, Segment(f"own{self.problem.id}.{branch.id}", branch.extra_prompt))
