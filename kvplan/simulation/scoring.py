"""Scores on the clock: what verifying took, batches on the engine's own GPU, a remote verifier's queue.

Times are ticks. Knows no SimPy; `branch_requests` tells it when something is to happen.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kvplan.timing.step import StepShape, StepTime
from kvplan.workload.verifiers import ScoreWork


@dataclass(slots=True)
class Effort:
    """What branching and scoring took, summed over problems."""

    needed_prompt_tokens: int = 0
    """Each prompt once per problem, and each branch's own instructions."""
    traces: int = 0
    """Branches that think to an end of their own."""
    cut_traces: int = 0
    """Of these, closed by a thinking budget or cut by max_tokens."""
    scores: int = 0
    false_alarms: int = 0
    """Right work that was scored below one half, where a threshold prunes it."""
    misses: int = 0
    """Wrong work that was scored above one half."""
    verified_tokens: int = 0
    """Read by the verifier."""
    verifier_decode_tokens: int = 0
    verifier_ticks: int = 0
    """GPU time of co-located scoring."""
    remote_ticks: int = 0
    """Service time of remote scoring."""
    dead_tokens: int = 0
    """Generated tokens that stay in the cache though no later prompt can hit them: the template left the thinking
    out, so neither it nor the answer behind it stands where it stood."""


Read = tuple[tuple[int, int | None], int]
"""((problem, branch; None = its prompt), tokens of it): one link of a chain from the prompt to a branch."""


@dataclass(slots=True)
class ReadCache:
    """What an incremental verifier has read and still holds; least recently used out first, leaves before roots."""

    capacity: int
    """Tokens."""
    held: OrderedDict[tuple[int, int | None], int] = field(default_factory=OrderedDict)
    total: int = 0

    def read(self, chain: list[Read]) -> int:
        """Hold a chain, given from the root on; return how many of its tokens were not held and had to be read.

        >>> cache = ReadCache(100)
        >>> cache.read([((0, None), 40), ((0, 1), 30)]), cache.read([((0, None), 40), ((0, 2), 30)])
        (70, 30)
        """
        known = next((i for i, (key, _) in enumerate(chain) if key not in self.held), len(chain))
        for key, tokens in reversed(chain):
            self.total += tokens - self.held.pop(key, 0)
            self.held[key] = tokens
        while self.total > self.capacity:
            self.total -= self.held.popitem(last=False)[1]
        return sum(tokens for _, tokens in chain[known:])


@dataclass(slots=True)
class ScoreBatch:
    """Scores by a verifier on the engine's own GPU: prompts read as one batch, verdicts decoded together."""

    time: StepTime
    """Of the verifier's model."""
    effort: Effort
    works: list[ScoreWork] = field(default_factory=list)
    done: list[Callable[[], None]] = field(default_factory=list)

    def begin(self) -> int:
        """Return the ticks that the batch takes."""
        read = sum(w.read_tokens for w in self.works)
        pairs = sum(w.read_tokens * (w.kv_tokens - w.decode_tokens - w.read_tokens / 2) for w in self.works)
        ticks = self.time.ticks(StepShape(read, 0, 0, read, len(self.works), pairs))
        longest = max(w.decode_tokens for w in self.works)
        if longest:
            context = sum(w.kv_tokens - w.decode_tokens // 2 for w in self.works)
            ticks += longest * self.time.ticks(StepShape(len(self.works), len(self.works), context))
        self.effort.verifier_ticks += ticks
        return ticks

    def end(self) -> None:
        """Hand the scores out."""
        for tell in self.done:
            tell()


@dataclass(slots=True)
class RemoteQueue:
    """A remote verifier: so many scores at a time, the others in line."""

    at: Callable[[int, Callable[[], None]], None]
    """Calls back after so many ticks."""
    free: int
    waiting: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)

    def add(self, ticks: int, done: Callable[[], None]) -> None:
        """Ask for a score that takes `ticks` once it is served."""
        if not self.free:
            self.waiting.append((ticks, done))
            return
        self.free -= 1
        self.at(ticks, lambda: self._leave(done))

    def _leave(self, done: Callable[[], None]) -> None:
        self.free += 1
        done()
        if self.waiting and self.free:
            self.add(*self.waiting.popleft())
