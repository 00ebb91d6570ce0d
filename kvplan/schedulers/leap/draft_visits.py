"""Decode steps by visits, with drafts: which of them are right is known, so what each coming step of a request is.

A step takes as many tokens as it verifies, and leads as far as they are right (`drafts.path_from`). So a calendar has
no periods: the tokens of all requests before each step stand in one array, and blocks change wherever the number that
these ask for does. Making the changes is as without drafts (`visits`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from kvplan.schedulers.leap.drafts import DraftCourse, Drafting, NoneRight, path_from
from kvplan.schedulers.leap.visits import MOST_STEPS, AlikeGroups, Changes, DecodeVisits, Entries
from kvplan.schedulers.protocol import (
    AcceptDrafts,
    Counts,
    DraftedPaths,
    DraftedSteps,
    Leap,
    Outputs,
)
from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.adaptive_verification import AdaptiveVerification
from kvplan.schedulers.vllm.mamba_manager import MambaManager
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.scheduler import Scheduler
from kvplan.schedulers.vllm.single_type_kv_cache_manager import SingleTypeKVCacheManager


def make_visits(
    scheduler: Scheduler, accept: AcceptDrafts | None, verification: AdaptiveVerification | None = None
) -> DecodeVisits:
    """Return the stretches of an engine with drafts or without; `accept` says which drafts are right, None = none.

    `verification` says which of them are verified; None: all.
    """
    if scheduler.config.num_speculative_tokens:
        return DraftVisits(scheduler, accept, verification)
    return DecodeVisits(scheduler)


class DraftVisitPlan(NamedTuple):
    """A stretch of steps that was planned."""

    running: list[Request]
    tokens: Counts
    """Of each request before each step and after the last, shape (requests, steps + 1)."""
    changes: Changes
    num_free: int
    """When it begins."""
    num_verified: int
    """Drafts that a step verifies, of all requests."""


class DraftVisits(DecodeVisits):
    """Stretches of decode steps of one scheduler whose decodes verify drafts."""

    _plan: DraftVisitPlan | None  # type: ignore[assignment]

    def __init__(
        self,
        scheduler: Scheduler,
        accept: AcceptDrafts | None = None,
        verification: AdaptiveVerification | None = None,
    ) -> None:
        super().__init__(scheduler)
        self.verification = verification
        config, managers = self.config, [m for m in self.manager.coordinator.managers if m.grows]
        self.num_drafts = config.num_speculative_tokens
        self.drafting = Drafting(
            self.num_drafts, config.num_lookahead_tokens, config.max_model_len, bool(self.depth),
            scheduler.caches_outputs, config.num_hash_lookahead_tokens, accept or NoneRight(),
        )  # fmt: skip
        self.taking = _taking(managers)
        states = {i for i, groups in enumerate(self.taking) if _moves(groups.managers[0])}
        self._moving = frozenset(len(self.returning) + i for i in states)
        self._names_one_more = config.enable_prefix_caching and any(
            manager.use_eagle for groups in self.returning for manager in groups.managers
        )
        """Whether hits need a block behind the prompt, which decode fills."""
        self._courses: dict[str, dict[int, DraftCourse]] = {}
        """Request id -> drafts that a step verifies -> where they lead."""

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        super().forget(request_id)
        self._courses.pop(request_id, None)

    @property
    def num_in_flight(self) -> int:
        """Tokens of a request that are scheduled and not read whenever a step of the stretch is."""
        return self.depth * (1 + self.num_drafts)

    # --- planning ---------------------------------------------------------------------------

    def plan_leap(self, in_flight: SchedulerOutput | None, prefill_ends: Mapping[str, int]) -> Leap | None:
        """Propose steps in which all that run verify all drafts and nobody comes or goes; the last may end some."""
        self._plan = None
        running = self.scheduler.running
        self.num_drafts = self.scheduler.drafts_by_batch[len(running)]
        if not self._all_decode(in_flight) or not all(
            self._decodes(request, prefill_ends[request.request_id]) for request in running
        ):
            return None
        verified = self._verified(in_flight)
        if verified is None:
            return None
        paths = [self._path(request, num) for request, num in zip(running, verified, strict=True)]
        most = min(min(map(len, paths)) - 1 - self.depth, MOST_STEPS)
        needs = self._needs_of_head() if most > 0 else None
        if needs is None:
            return None
        tokens = np.array([path[: most + 1] for path in paths])
        longest = self.config.max_model_len - self.num_in_flight - 1 - self.num_drafts
        most = min(most, int((tokens.max(axis=0) <= longest).sum()))
        unnamed = np.array([[self._tokens_unnamed(request)] for request in running])
        most = min(most, int((tokens - 1 + self.num_in_flight < unnamed).all(axis=0).sum()))
        if most < 1:
            return None
        before = tokens[:, :most]
        changes = self._changes_of(running, before - 1, before + (self.num_in_flight + self.num_drafts))
        steps = self._steps_before_head(changes, most, needs)
        if steps < 1:
            return None
        free = self.pool.get_num_free_blocks()
        self._plan = DraftVisitPlan(running, tokens, changes, free, sum(verified))
        return self._leap_of(self._plan, steps)

    def _leap_of(self, plan: DraftVisitPlan, steps: int) -> Leap:
        tokens, num_running = plan.tokens, len(plan.running)
        contexts = tokens[:, :steps].sum(axis=0) + num_running * self.num_in_flight + plan.num_verified
        taken = plan.num_free - self._free_after(steps)
        paths = DraftedPaths(plan.running, tokens[:, 1 : steps + 1], self.num_in_flight)
        drafted = DraftedSteps(num_running + plan.num_verified, contexts, taken, paths)
        return Leap(steps, num_running, int(contexts[0]), self._ends_on_arrival, drafted)

    def _decodes(self, request: Request, prefill_end: int) -> bool:
        """Whether a request's next step is plain decode with all drafts; the one in flight as well, if there is one."""
        return (
            request.num_spec_tokens == self.num_drafts
            and request.num_computed_tokens == request.num_tokens - 1 + self.num_in_flight
            and request.num_tokens > prefill_end
            and not any(
                request.request_id in state.checkpoints or request.request_id in state.partial_hit_reqs
                for state in self._states
            )
        )

    def _verified(self, in_flight: SchedulerOutput | None) -> list[int] | None:
        """Return the drafts of each request that every step verifies; None where the one in flight verifies others."""
        num_running = len(self.scheduler.running)
        if self.verification is None or not self.num_drafts:
            return [self.num_drafts] * num_running
        found = self.verification.steady(num_running, self.num_drafts)
        told = in_flight.num_verified_drafts if in_flight is not None else None
        return found if told is None or [*told.values()] == found else None

    def _path(self, request: Request, num_drafts: int) -> Counts:
        """Return the tokens of a request after each read, those it has now first, up to its end."""
        courses, tokens = self._courses.setdefault(request.request_id, {}), request.num_tokens
        course = courses.get(num_drafts)
        if course is None:
            stop = request.max_tokens if request.stop_at is None else min(request.max_tokens, request.stop_at)
            end = min(request.num_prompt_tokens + stop, self.config.max_model_len)
            course = courses[num_drafts] = DraftCourse(request, max(end, tokens))
        before = course.path_before
        if before is not None:
            place = int(before.searchsorted(tokens))
            if place < len(before) and before[place] == tokens:
                return before[place:]
        return path_from(course, tokens, self.drafting._replace(num_drafts=num_drafts))

    def _changes_of(self, running: Sequence[Request], processed: Counts, computed: Counts) -> Changes:
        """Return what changes in steps before which so many tokens are processed, and after which so many computed.

        Both of shape (requests, steps).
        """
        ids = [request.request_id for request in running]
        slots = np.minimum(computed + self.drafting.lookahead, self.config.max_model_len)
        entries: list[Entries] = []
        kinds: list[int] = []
        for kind, groups in enumerate(self.returning):
            gone = groups.left_behind(processed)
            entries += [self._left_over(groups, ids, gone[:, 0].tolist()), _rises(gone, len(groups.managers))]
            kinds += [kind, kind]
        for row, groups in enumerate(self.taking):
            manager, num_before = groups.managers[0], groups.behind
            held = [[len(manager.req_to_blocks[i])] for i in ids]
            moves = len(self.returning) + row in self._moving
            blocks = -(-(computed if moves else slots) // groups.size) + num_before
            blocks = np.maximum.accumulate(np.concatenate([held, blocks], axis=1), axis=1)
            rises = _rises(blocks, -len(groups.managers), from_first=True)
            entries.append(rises)
            kinds.append(len(self.returning) + row)
        return self._in_order(running, ids, entries, kinds)

    def is_short_for(self, decoding: Sequence[Request]) -> bool:
        """Whether these, decoding, need more blocks in the next step than there are, in the order in which they run."""
        if not decoding:
            return False
        computed = np.array([[request.num_computed_tokens] for request in decoding])
        in_flight = np.array([[request.num_in_flight_tokens] for request in decoding])
        drafts = np.array([[request.num_spec_tokens] for request in decoding])
        changes = self._changes_of(decoding, computed - in_flight, computed + 1 + drafts)
        return bool((changes.free < 0).any())

    def _left_over(self, groups: AlikeGroups, ids: Sequence[str], gone: Sequence[int]) -> Entries:
        manager = groups.managers[0]
        if not isinstance(manager, MambaManager):
            return super()._left_over(groups, ids, gone)
        found: list[tuple[int, int, int, int]] = []
        for i, (request_id, end) in enumerate(zip(ids, gone, strict=True)):
            first = manager.num_retired_blocks.get(request_id, 0)
            num_left = sum(not block.is_null for block in manager.req_to_blocks[request_id][first:end])
            if num_left:
                found.append((i, first, end, num_left))
        indices, begun, ends, lefts = np.array(found, np.int64).reshape(-1, 4).T
        return Entries(np.zeros(len(found), np.int64), indices, begun, ends, len(groups.managers) * lefts)

    # --- what a plan says -------------------------------------------------------------------

    def _free_after(self, num_steps: int) -> Counts:
        """Return the free blocks after each of the first so many steps."""
        assert self._plan is not None
        changes = self._plan.changes
        counts = changes.steps.searchsorted(np.arange(1, num_steps + 1))
        return np.concatenate([[self._plan.num_free], changes.free])[counts]

    # --- taking it --------------------------------------------------------------------------

    def take(self, num_steps: int) -> Outputs:
        """Take so many steps of the stretch just planned; return who ends with the last read."""
        assert self._plan is not None
        running, tokens, changes, *_ = self._plan
        self._change(running, changes, int(changes.steps.searchsorted(num_steps)))
        last, after = tokens[:, num_steps - 1].tolist(), tokens[:, num_steps].tolist()
        for state in self._states:
            for request, known in zip(running, last, strict=True):
                state.retire(request.request_id, known - 1)
        named = [known - 1 for known in after] if self.scheduler.caches_outputs else last
        for request, before, known, end in zip(running, last, after, named, strict=True):
            request.num_tokens = known
            request.num_computed_tokens = known - 1 + self.num_in_flight
            request.num_slots = self._next_change(request.request_id, before - 1, end) if self._skips else 0
        self.manager.put_off_names(running, named)
        return self._end_leap(running, num_steps)

    def _next_change(self, request_id: str, processed: int, named: int) -> int:
        """Return a request's `num_slots`, its names not put off."""
        change = min(groups.managers[0].next_need(request_id) for groups in self.taking)
        for groups in self.returning:
            change = min(change, groups.managers[0].next_skip(processed) + 1)
        for size in self._name_sizes:
            change = min(change, (named // size + 1) * size)
        return change

    def _named_at_return(self, running: Sequence[Request]) -> list[int]:
        named = DecodeVisits._named_at_return(self, running)
        if named or not self._names_one_more:
            return named
        size = min(groups.size for groups in self.returning)
        return [max(r.num_prompt_tokens, r.shared_prefix_boundary) // size + 2 for r in running]

    def _take(self, row: int, request_id: str, index: int, step: int) -> None:
        assert self._plan is not None
        computed = int(self._plan.tokens[index, step]) + self.num_in_flight + self.num_drafts
        slots = min(computed + self.drafting.lookahead, self.config.max_model_len)
        for manager in self.taking[row].managers:
            manager.allocate_new_blocks(request_id, slots, computed)

    def _name(self, request: Request, index: int, step: int) -> None:
        """Name what the steps before this one have filled; some versions only at the schedule of the one before."""
        assert self._plan is not None
        if not step:
            self.manager.name_put_off(request)
        elif self.scheduler.caches_outputs:
            request.num_tokens = int(self._plan.tokens[index, step])
            self.manager.name_blocks(request, request.num_tokens - 1)
        else:
            request.num_tokens = int(self._plan.tokens[index, step - 1])
            self.manager.name_blocks(request, request.num_tokens)


def _moves(manager: SingleTypeKVCacheManager) -> bool:
    """Whether blocks move on as a request takes one: those of drafts, behind a state that runs."""
    return isinstance(manager, MambaManager) and manager.align


def _taking(managers: Iterable[SingleTypeKVCacheManager]) -> list[AlikeGroups]:
    """Return the groups in a row that take blocks together, and how many each has before its tokens ask for one."""

    def key(manager: SingleTypeKVCacheManager) -> tuple[int, bool, int]:
        drafts = manager.num_speculative_blocks if isinstance(manager, MambaManager) else 0
        return manager.block_size, _moves(manager), drafts

    rows = groupby(managers, key=key)
    return [AlikeGroups(list(row), size, size, behind=drafts) for (size, _, drafts), row in rows]


def _rises(blocks: Counts, per_block: int, from_first: bool = False) -> Entries:
    """Return where a number of blocks, of shape (requests, steps), is more than a step before.

    `from_first`: the first column is what there was before the first step; the entry is how many more.
    """
    more = np.diff(blocks, axis=1).T
    steps, indices = np.nonzero(more)
    count = more[steps, indices]
    if from_first:
        return Entries(steps, indices, np.zeros_like(count), count, per_block * count)
    end = blocks[indices, steps + 1]
    return Entries(steps + 1, indices, end - count, end, per_block * count)
