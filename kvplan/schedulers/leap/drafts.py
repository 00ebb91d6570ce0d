"""Decoding with drafts in closed form: what each coming step of a sequence is, and calendars of all sequences' steps.

Which drafts are right is fixed by request and output position, so from the token of its prefill on the path of a
sequence over its positions is known: `p -> p + 1 + right(p)`. A `DraftPlan` holds it as arrays over the coming steps;
`DraftBatch` sums takes and contexts of all plans by step. A sequence adds its plan when it starts to decode and takes
the rest out when it is preempted. Nothing is touched while steps pass.

A step that gives a sequence fewer drafts than all (near the model's length, out of tokens) is no part of a plan: the
running loop walks it, and the sequence gets a plan anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from kvplan.schedulers.leap.batch import DecodeBatch
from kvplan.schedulers.leap.state import DECODE, Sequence
from kvplan.schedulers.protocol import AcceptDrafts, Counts
from kvplan.schedulers.request import NEVER, Request

_SHORT = 128
_SOON = 32
"""Steps within which two paths of one request meet, if they ever do: each skips few positions."""
_LEVELS = 6
"""Doublings of the jump table; longer jumps are taken one by one."""


class Drafting(NamedTuple):
    """What an engine's drafts do to a decode."""

    num_drafts: int
    lookahead: int
    """Slots past a step's tokens that the drafter writes."""
    max_model_len: int
    is_async: bool
    names_on_read: bool
    """Whether blocks get their names as soon as their tokens are read, not at the next schedule only."""
    hash_lookahead: int
    """Tokens after a block that its name covers."""
    accept: AcceptDrafts


class NoneRight:
    """Drafts that are all wrong."""

    def __call__(self, request: Request, num_drafts: int) -> int:
        """None."""
        return 0

    def runs(self, request: Request, first: int, count: int, num_drafts: int) -> Counts:
        """None anywhere."""
        return np.zeros(count, np.int64)


@dataclass(slots=True, eq=False, repr=False)
class DraftPlan:
    """The coming decode steps of one sequence, by step from `start` on."""

    start: int
    """Number of the first step."""
    tokens: Counts
    """Prompt and sampled tokens once every step before it is read; the last entry is the sequence's end."""
    known: Counts
    """Tokens known when it is scheduled. Asynchronous: those of the step before the one in flight."""
    reach: Counts
    """Tokens computed after it, drafts included: what it attends to."""
    blocks: Counts
    """Blocks held before it; one entry more than steps."""
    in_flight: tuple[int, int]
    """Tokens of the step in flight when the first step is scheduled, and when any later one is."""
    num_named: int
    """Blocks named when the step before the first one was scheduled."""
    num_to_end: int
    """Steps up to the one that samples the last token."""
    is_cut: bool
    """Whether the step after the last of `reach` cannot take all drafts."""
    names_on_read: bool
    hash_lookahead: int
    block_size: int
    num_scheduled: int = 0
    """Steps of it that are scheduled in the end; fewer than planned once a later plan has taken over."""
    num_read: int = 0
    """Reads of outputs before its steps, the first one's included."""
    number: int = 0
    """Which of all plans of the engine it is, from 1."""

    def __post_init__(self) -> None:
        self.num_scheduled, self.num_read = len(self.reach), len(self.known)

    def close(self) -> None:
        """Forget what only coming steps need; what it says of names and reads stays."""
        self.reach, self.blocks = self.reach[:0], self.blocks[-1:]

    @property
    def end(self) -> int:
        """What the engine's `num_steps` is once the last token is scheduled."""
        return self.start + self.num_to_end

    def at(self, num_steps: int) -> int:
        """Number of the coming step, counted from the first."""
        return num_steps - self.start

    def computed_before(self, step: int) -> int:
        """Tokens computed or in flight when a step is scheduled."""
        return int(self.known[step]) - 1 + self.in_flight[step > 0]

    def held_before(self, step: int) -> int:
        """Blocks held when a step is scheduled."""
        return int(self.blocks[min(step, len(self.reach))])

    def named_before(self, step: int, is_read: bool) -> int:
        """Full blocks with a name before a step is scheduled, the outputs before it read or not yet."""
        if step > len(self.reach):
            step, is_read = len(self.reach), True
        named = self.named_by(step - 1) if step else self.num_named
        if is_read and self.names_on_read:
            named = max(named, (int(self.known[step]) - 1) // self.block_size)
        return named

    def named_by(self, step: int) -> int:
        """Full blocks that have a name once a step is scheduled."""
        return (int(self.known[step]) - self.hash_lookahead) // self.block_size

    def when_named(self, depth: int) -> int:
        """When the block at a depth gets its name: twice the step that does, less 1 if at the read before it."""
        full = (depth + 1) * self.block_size
        step = int(self.known.searchsorted(full + self.hash_lookahead))
        when = 2 * (self.start + step) if step < self.num_scheduled else NEVER
        if self.names_on_read:
            step = int(self.known.searchsorted(full + 1))
            if step < self.num_read:
                when = min(when, 2 * (self.start + step) - 1)
        return when


@dataclass(slots=True)
class DraftStory:
    """What reads of outputs did, and will do, to one sequence since its prefill: plans that were cut short, and one."""

    past: list[tuple[Counts, Counts]] = field(default_factory=list)
    """(tokens, tokens held) after reads."""
    plan: DraftPlan | None = None

    def tokens(self) -> Counts:
        """Prompt and sampled tokens after each read, the prefill's own first."""
        return self._all(0)

    def held(self) -> Counts:
        """Tokens in the cache or in flight after each read."""
        return self._all(1)

    def after(self, num_reads: int) -> tuple[int, int]:
        """Both after so many reads behind the prefill's own."""
        for tokens, held in self.past:
            if num_reads < len(tokens):
                return int(tokens[num_reads]), int(held[num_reads])
            num_reads -= len(tokens)
        plan = self.plan
        assert plan is not None
        now = int(plan.tokens[num_reads])
        return now, now - 1 + plan.in_flight[1]

    def close(self, step: int, num_tokens: int) -> None:
        """The plan ended before `step`, which got `num_tokens`; asynchronous, they are in flight at the read before."""
        plan = self.plan
        assert plan is not None
        tokens, held = plan.tokens[: step + 1], _held(plan)[: step + 1].copy()
        held[-1] = tokens[-1] - 1 + (num_tokens if plan.in_flight[1] else 0)
        self.past.append((tokens, held))

    def _all(self, what: int) -> Counts:
        plan = self.plan
        assert plan is not None
        last = (plan.tokens, _held(plan))[what]
        return np.concatenate([*(past[what] for past in self.past), last]) if self.past else last


def _held(plan: DraftPlan) -> Counts:
    return plan.tokens + (plan.in_flight[1] - 1)


@dataclass(slots=True, eq=False, repr=False)
class DraftCourse:
    """Where decode steps lead one request, whatever the others do."""

    request: Request
    end: int
    """Prompt and all output."""
    first: int = 0
    """Tokens at which `right` begins."""
    right: Counts | None = None
    """Right drafts in a row at each of the coming positions; drawn once."""
    path_before: Counts | None = None
    """The tokens after each step, as asked for last."""


@dataclass(slots=True, eq=False, repr=False)
class DraftSequence(Sequence):
    """A live request whose decodes verify drafts; of its course as `DraftCourse` says."""

    plan: DraftPlan | None = None
    story: DraftStory = field(default_factory=DraftStory)
    first: int = 0
    right: Counts | None = None
    path_before: Counts | None = None

    def computed_at(self, num_steps: int) -> int:
        """Tokens computed or in flight once the engine has taken `num_steps` steps."""
        plan = self.plan
        if self.stage is not DECODE or plan is None:
            return self.computed
        return plan.computed_before(plan.at(num_steps))


class DraftBatch(DecodeBatch):
    """Block demand, contexts and next end of all decoding sequences, step by step in arrays."""

    __slots__ = ("_contexts", "_cuts", "_num_plans", "_offset", "_takes", "drafting")

    def __init__(self, block_size: int, drafting: Drafting) -> None:
        super().__init__(block_size)
        self.drafting = drafting
        self._offset = 0
        """The step at index 0 of the calendars."""
        self._contexts: Counts = np.zeros(1024, np.int64)
        self._takes: Counts = np.zeros(1024, np.int64)
        self._num_plans = 0
        self._cuts: list[tuple[int, int, DraftSequence, DraftPlan]] = []
        """Heap of (step that cannot take all drafts, number of the plan, sequence, plan); stale ones are skipped."""

    # --- sequences come and go --------------------------------------------------------------

    def start(self, seq: Sequence) -> None:
        """Let a sequence decode from the next step on: all its tokens are computed."""
        assert isinstance(seq, DraftSequence)
        seq.stage = DECODE
        self.num_decodes += 1
        seq.story = DraftStory()
        known, size = seq.num_tokens, self.block_size
        held = -(-min(seq.computed + self.drafting.lookahead, self.drafting.max_model_len) // size)
        in_flight = 1 + seq.computed - known if self.drafting.is_async else 0
        named = (known - self.drafting.hash_lookahead) // size
        plan = self._plan(seq, known, known + 1, in_flight, held, named)
        self._enter(seq, plan)

    def stop(self, seq: Sequence) -> None:
        """Take a sequence out; its stage is the caller's to set."""
        assert isinstance(seq, DraftSequence)
        assert seq.plan is not None
        seq.computed = seq.computed_at(self.num_steps)
        self._leave(seq.plan)
        self.num_decodes -= 1

    def cut(self, seq: DraftSequence, num_tokens: int, held: int) -> None:
        """The step being scheduled gives a sequence fewer tokens than all: plan anew from the step after it.

        `held` are its blocks then.
        """
        plan, drafting = seq.plan, self.drafting
        assert plan is not None
        self._leave(plan)
        step = plan.at(self.num_steps)
        seq.story.close(min(step, plan.num_to_end), num_tokens)
        before = int(plan.tokens[min(step, plan.num_to_end)])
        after = before
        if num_tokens and before < seq.end:
            right = seq.right
            assert right is not None
            after = min(before + 1 + min(int(right[before - seq.first]), num_tokens - 1), seq.end)
        named = plan.named_before(step, is_read=True)
        if num_tokens:
            named = max(named, plan.named_by(min(step, plan.num_to_end)))
        plan.num_scheduled, plan.num_read = step + (num_tokens > 0), step + 1
        known, in_flight = (before, num_tokens) if drafting.is_async else (after, 0)
        self.num_steps += 1  # the new plan's steps are those after this one
        self._enter(seq, self._plan(seq, known, after, in_flight, held, named), before < seq.end)
        self.num_steps -= 1

    def _enter(self, seq: DraftSequence, plan: DraftPlan, has_to_end: bool = True) -> None:
        """Put a plan into the calendars."""
        seq.plan = seq.story.plan = plan
        if seq.run is not None:
            seq.run.plans.append(plan)
        count = len(plan.reach)
        self._num_plans += 1
        plan.number = self._num_plans
        if has_to_end and plan.num_to_end <= count:
            heappush(self._ends, (plan.end, seq.admission, plan.number, seq))
        if plan.is_cut:
            heappush(self._cuts, (plan.start + count, self._num_plans, seq, plan))
        at = self._index(plan.start, count)
        self._contexts[at : at + count] += plan.reach
        self._takes[at : at + count] += np.diff(plan.blocks)

    def _leave(self, plan: DraftPlan) -> None:
        """Take the coming steps of a plan out of the calendars."""
        step, count = plan.at(self.num_steps), len(plan.reach)
        if step < count:
            at = plan.start - self._offset
            self._contexts[at + step : at + count] -= plan.reach[step:]
            self._takes[at + step : at + count] -= np.diff(plan.blocks[step:])

    def _index(self, start: int, count: int) -> int:
        """Return where a step is in the calendars, so many more and one there; what is past makes room."""
        at, size = start - self._offset, len(self._takes)
        if at + count >= size:
            past = min(self.num_steps - self._offset, size)
            at = start - self.num_steps
            rest = np.zeros(max(2 * (at + count) - (size - past), 1024), np.int64)
            self._contexts = np.concatenate([self._contexts[past:], rest])
            self._takes = np.concatenate([self._takes[past:], rest])
            self._offset = self.num_steps
        return at

    # --- plans ------------------------------------------------------------------------------

    def _plan(
        self, seq: DraftSequence, known: int, tokens: int, in_flight: int, held: int, named: int
    ) -> DraftPlan:
        """Return the steps from the coming one on.

        `known` tokens are read when it is scheduled, `in_flight` more are being computed and make them `tokens`.
        """
        k, lookahead, longest, is_async, names_on_read, hash_lookahead, _ = self.drafting
        path = path_from(seq, tokens, self.drafting)
        to_end, knows = len(path) - 1, path
        if is_async:
            knows = np.concatenate([[known], path])
            reach = knows[: to_end + 1] + (2 * k + 1)
            reach[0] = known + in_flight + k
            is_sure = knows[to_end] + 1 >= seq.request.num_prompt_tokens + seq.request.max_tokens
            seq.sure_end = bool(is_sure and (to_end or in_flight))
            reach = reach[: to_end + (not seq.sure_end)]
        else:
            reach = path[:-1] + k
        is_cut = len(reach) > 0 and int(reach[-1]) >= longest
        if is_cut:
            reach = reach[: reach.searchsorted(longest)]
        blocks = np.empty(len(reach) + 1, np.int64)
        blocks[0] = held
        np.add(reach, lookahead + self.block_size - 1, out=blocks[1:])
        if len(reach) and reach[-1] + lookahead > longest:
            np.minimum(blocks, longest + self.block_size - 1, out=blocks)
            blocks[0] = held
        blocks[1:] //= self.block_size
        if held and len(reach):
            np.maximum(blocks, held, out=blocks)
        return DraftPlan(
            self.num_steps, path, knows, reach, blocks, (in_flight, (1 + k) * is_async), named,
            to_end, is_cut, names_on_read, hash_lookahead, self.block_size,
        )  # fmt: skip

    # --- what is asked of the coming steps --------------------------------------------------

    def takes_block(self, seq: Sequence) -> bool:
        """Whether a sequence takes blocks in the next step."""
        assert isinstance(seq, DraftSequence)
        plan = seq.plan
        assert plan is not None
        step = plan.at(self.num_steps)
        return bool(plan.blocks[step + 1] > plan.blocks[step])

    def next_demand(self) -> int:
        """Return the blocks that the next step's decodes take."""
        return int(self._takes[self.num_steps - self._offset]) if self.num_decodes else 0

    def next_context(self) -> int:
        """Return what the next step's decodes attend to."""
        return int(self._contexts[self.num_steps - self._offset]) if self.num_decodes else 0

    def contexts(self, num_steps: int) -> Counts:
        """Return what the decodes of each of the next steps attend to."""
        at = self.num_steps - self._offset
        return self._contexts[at : at + num_steps].copy()

    def taken(self, num_steps: int) -> Counts:
        """Return the blocks that the decodes of the next steps take, summed up."""
        at = self.num_steps - self._offset
        return self._takes[at : at + num_steps].cumsum()

    def demand(self, num_steps: int) -> int:
        """Return the blocks that the decodes of the next `num_steps` steps take."""
        at = self.num_steps - self._offset
        return int(self._takes[at : at + num_steps].sum())

    def next_cut(self) -> int:
        """Return the next step that gives somebody fewer drafts than all."""
        cuts = self._cuts
        while cuts:
            when, _, seq, plan = cuts[0]
            if seq.plan is plan and seq.stage is DECODE:
                return when
            heappop(cuts)
        return NEVER

    def next_end(self) -> int:
        """Return what `num_steps` will be once the next last token is scheduled."""
        ends = self._ends
        while ends:
            when, _, number, seq = ends[0]
            assert isinstance(seq, DraftSequence)
            if seq.plan is not None and seq.plan.number == number and seq.stage is DECODE:
                return when
            heappop(ends)
        return NEVER


def path_from(seq: DraftSequence | DraftCourse, tokens: int, drafting: Drafting) -> Counts:
    """Return the tokens after each step from `tokens` to the end."""
    if seq.right is None:
        seq.first, first = tokens, tokens - seq.request.num_prompt_tokens
        count = max(0, seq.end - tokens)
        seq.right = drafting.accept.runs(seq.request, first, count, drafting.num_drafts)
    path = _joined(seq, tokens)
    if path is None:
        path = follow(seq.right[tokens - seq.first :]) + tokens
    seq.path_before = path
    return path


def _joined(seq: DraftSequence | DraftCourse, tokens: int) -> Counts | None:
    """Return the path from `tokens` on if it soon meets the last one: from there on they are one."""
    before, right, at = seq.path_before, seq.right, tokens
    lead: list[int] = []
    if before is None or right is None:
        return None
    for _ in range(_SOON):
        place = int(before.searchsorted(at))
        if place == len(before):
            return None
        if before[place] == at:
            return np.concatenate([lead, before[place:]]) if lead else before[place:]
        lead.append(at)
        at = min(at + 1 + int(right[at - seq.first]), seq.end)
    return None


def follow(right: Counts) -> Counts:
    """Return where `p -> p + 1 + right[p]` leads from 0 on, up to and with len(right), where it stops.

    >>> follow(np.array([1, 0, 2, 0, 0]))
    array([0, 2, 5])
    """
    size = len(right)
    if size < _SHORT:
        at, found, steps = 0, [0], right.tolist()
        while at < size:
            at = min(at + 1 + steps[at], size)
            found.append(at)
        return np.array(found, np.int64)
    jump = np.append(np.minimum(right + np.arange(1, size + 1), size), size)
    levels = []
    for _ in range(_LEVELS):
        levels.append(jump)
        jump = jump[jump]
    at, far = 0, []
    while at < size:
        far.append(at)
        at = int(jump[at])
    path = np.array(far, np.int64)[:, None]
    for level in levels:
        path = np.concatenate([path, level[path]], axis=1)
    path = path.ravel()
    end = int(path.searchsorted(size))
    return path[: end + 1] if end < len(path) else np.append(path, size)
