"""What a strategy says and hears: branches to run, branches to cancel, finished ones. No clock, no engine.

A strategy is a plain generator. It yields `Ask`s and is sent the list of `FinishedBranch` branches that each one
waited for; what it returns is its `Answer`:

    def best_of_n(n: int, max_tokens: int) -> Strategy:
        finished = yield Ask(start=tuple(Branch(i, max_tokens=max_tokens, score=True) for i in range(n)))
        return Answer.of(max(finished, key=lambda f: f.score))

Nobody drives a generator by hand: `Session` (session.py) does, for the bare loop of a unit test and for the
simulator alike. Knows tokens and branches; does not know problems, probabilities, blocks or seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass
from math import nan
from typing import Literal, TypeAlias

ALL = sys.maxsize
"""`Ask.wait`: everything that is still running."""

RIGHT = 0
"""The answer id of the right answer; wrong answers are 1, 2, ... so that votes can split."""

Kind = Literal["trace", "step", "thinking", "answer", "revision", "critique", "summary", "classify"]
"""trace = thinking, then the answer; step = one piece of a trace, cut at `max_tokens`; thinking = a trace
whose end is held back (with a parent: it went on, after "Wait"); answer = only the visible part, after
thinking that the prompt holds; critique = tokens about its parent, no answer of its own; summary = the parent
said in `max_tokens` tokens, no answer of its own; revision = another trace on the same question, mending or
spoiling; classify = a router's small pass. A trace with a parent is a
rollout from its middle when `parent_tokens` is set, else the next turn of a chat."""

Reason = Literal["stop", "length", "pruned"]
"""stop = ended by itself; length = cut by `max_tokens`; pruned = taken by the engine under pressure."""


@dataclass(slots=True)
class Branch:
    """One request to run. Its prompt is its parent's content plus `extra_prompt` tokens of its own.

    With `parent=None` the parent is the problem's prompt. The content of a branch is its prompt and all it
    generated; a child of it shares that KV by the engine's own rule.
    """

    id: int
    """Unique within the problem; the strategy numbers its branches."""
    parent: int | None = None
    """The finished branch whose content the prompt begins with."""
    parent_tokens: int | None = None
    """Only the first this many generated tokens of the parent (a rollout from the middle); None = all."""
    extra_prompt: int = 0
    """Tokens after the parent's content: an instruction, "Wait", the user's next message."""
    drop_thinking: bool = False
    """The parent's thinking is left out of this prompt: chat templates do so between turns."""
    kind: Kind = "trace"
    max_tokens: int = ALL
    """Hard cap on generated tokens. What it cuts has no answer."""
    thinking_token_budget: int = ALL
    """vLLM's soft cap: at this many thinking tokens the thinking is closed, and the answer follows."""
    min_thinking_tokens: int = 0
    """The end of thinking is suppressed before this many tokens (budget forcing)."""
    length_scale: float = 1.0
    """Transform of the natural thinking length: an effort stated in the prompt."""
    score: bool = False
    """The verifier scores it when it finishes; `FinishedBranch.score` holds the result."""
    visible: bool = False
    """The user reads its answer as it streams; otherwise nothing is seen before the strategy returns."""
    prunable: bool = False
    """When blocks run out the engine may end it (lowest running score first) instead of preempting."""
    model: str = ""
    """Which of several models runs it; empty = the scenario's only one."""
    folded: bool = False
    """The prompt has nothing of the parent's content, only the problem and `extra_prompt`: a summary stands for it."""
    stated_budget: int = ALL
    """Thinking tokens that the prompt asks for; a trace that would think longer heeds it as far as `heed` says."""
    heed: float = 1.0
    """How far: 1 = to the token, 0 = not at all, between them budget^heed x natural length^(1 - heed)."""


@dataclass(slots=True)
class FinishedBranch:
    """A branch that ended, as the strategy sees it."""

    branch: Branch
    tokens: int
    """Generated tokens, thinking and answer."""
    thinking_tokens: int
    reason: Reason
    answer: int | None
    """Which answer it gave; None when it gave none. Strategies may compare answers, not look for RIGHT."""
    score: float = nan
    """The verifier's score (higher is better; for a step: of the content up to its end); NaN unless asked."""

    @property
    def id(self) -> int:
        """The branch's id."""
        return self.branch.id

    @property
    def done(self) -> bool:
        """The trace ended by itself, so that there is nothing to continue."""
        return self.reason == "stop"


@dataclass(frozen=True, slots=True)
class Ask:
    """One turn of a strategy: cancel these, start those, wait for `wait` results, then go on.

    Cancelled branches stop at once, their blocks are free at once, and they are not handed back. When fewer
    than `wait` branches are running the strategy gets what there is; with none running, an empty list.
    """

    start: tuple[Branch, ...] = ()
    cancel: tuple[int, ...] = ()
    wait: int = ALL
    pause_s: float = 0.0
    """Seconds before `start` is submitted: the user reads and types, a tool runs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the strategy settles on. Whatever still runs when it returns is cancelled."""

    answer: int | None
    branch: int | None = None
    """The branch the answer was taken from, if from one."""
    samples: int = 0
    """How many candidate answers the choice was made from."""

    @property
    def correct(self) -> bool:
        """Whether it is the right one. No answer is a wrong answer."""
        return self.answer == RIGHT

    @classmethod
    def of(cls, finished: FinishedBranch, samples: int = 1) -> Answer:
        """The answer of one finished branch."""
        return cls(finished.answer, finished.id, samples)


Strategy: TypeAlias = Generator[Ask, list[FinishedBranch], Answer]
"""A running strategy."""
