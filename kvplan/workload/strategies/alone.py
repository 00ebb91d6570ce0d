"""A strategy without an engine: every branch runs at once and gets one token per tick. The floor under any
real system, exact in tokens and fast enough for a notebook.

Ticks count decode steps on an empty, endless GPU; prompts cost nothing, verifiers answer at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvplan.workload.strategies.footprint import Footprint, Held, footprint
from kvplan.workload.strategies.session import Launch, Orders, Problem, Sampler, Session
from kvplan.workload.strategies.strategy import ALL, Answer, Strategy


@dataclass(slots=True)
class Ledger:
    """What one problem took."""

    answer: Answer = field(default_factory=lambda: Answer(None))
    ticks: int = 0
    """Decode steps from start to answer: the longest chain of branches."""
    num_branches: int = 0
    generated_tokens: int = 0
    """Of all branches, up to where they were cancelled."""
    prompt_tokens: int = 0
    """Of all branches, each prompt whole: what an engine without a cache computes."""
    scored: int = 0
    """Verifier passes."""
    scored_tokens: int = 0
    """What they read, from the start each time."""
    peak: Footprint | None = None
    """KV when most blocks were held under vLLM's rule, looked at whenever something ends."""

    def start(self, launch: Launch) -> None:
        """Count a branch that begins."""
        self.num_branches += 1
        self.prompt_tokens += launch.prompt_tokens

    def end(self, launch: Launch, tokens: int) -> None:
        """Count a branch that ended after `tokens` tokens."""
        self.generated_tokens += tokens
        if launch.branch.score and tokens == launch.outcome.tokens:
            self.scored += 1
            self.scored_tokens += launch.prompt_tokens + tokens


def run_alone(
    problem: Problem,
    plan: Strategy,
    sampler: Sampler,
    *,
    block_size: int = 0,
    max_model_len: Mapping[str, int] | None = None,
) -> Ledger:
    """Run a strategy on one problem with nothing in its way; `block_size` > 0 also finds the peak of its KV.

    `max_model_len`: tokens of a prompt and what follows it, by `Branch.model`; longer branches are cut there.
    """
    session, ledger, running = Session(problem, plan, sampler, spells=block_size > 0), Ledger(), _Running()
    orders = session.begin()
    while True:
        if max_model_len:
            _cut(session, orders, max_model_len)
        running.obey(orders, ledger)
        if orders.answer is not None:
            ledger.answer, ledger.ticks = orders.answer, running.now
            return ledger
        if block_size and running.next_end() > running.looked_at:
            running.looked_at = running.next_end()
            held = footprint(running.held_at_next_end(), block_size)
            if ledger.peak is None or held.full_block_blocks > ledger.peak.full_block_blocks:
                ledger.peak = held
        launch = running.pop()
        ledger.end(launch, launch.outcome.tokens)
        orders = session.finish(launch.branch.id)


def _cut(session: Session, orders: Orders, max_model_len: Mapping[str, int]) -> None:
    for launch in orders.start:
        room = max_model_len.get(launch.branch.model, ALL) - launch.prompt_tokens
        if launch.tokens > room:
            session.cut(launch.branch.id, max(room, 0))


@dataclass(slots=True)
class _Running:
    """Branches in flight, by the tick at which they end."""

    now: int = 0
    since: dict[int, tuple[int, Launch]] = field(default_factory=dict)
    heap: list[tuple[int, int]] = field(default_factory=list)
    looked_at: int = -1
    """The last end before which the footprint was taken; branches that end together are looked at once."""

    def obey(self, orders: Orders, ledger: Ledger) -> None:
        for request_id in orders.cancel:
            began, launch = self.since.pop(request_id)
            ledger.end(launch, min(self.now - began, launch.tokens))
        now, since, heap = self.now, self.since, self.heap
        for launch in orders.start:
            since[launch.request_id] = (now, launch)
            heapq.heappush(heap, (now + launch.outcome.tokens, launch.request_id))
            ledger.start(launch)

    def pop(self) -> Launch:
        """Let time go on to the next end."""
        self.next_end()
        self.now, request_id = heapq.heappop(self.heap)
        return self.since.pop(request_id)[1]

    def next_end(self) -> int:
        """The tick at which the next branch ends."""
        while self.heap[0][1] not in self.since:
            heapq.heappop(self.heap)
        return self.heap[0][0]

    def held_at_next_end(self) -> list[Held]:
        end = self.next_end()
        return [Held.of(launch, end - began) for began, launch in self.since.values()]
