"""Decode steps by visits: while all decode, only requests whose blocks change in a step are looked at in it.

Between two changes of its blocks a decode step of a request is "+1" to its counters. When a block is taken or left
behind is arithmetic of lengths, so a stretch of steps is a calendar of changes, in the order in which the steps would
make them: request by request as they run, each first giving back, then taking, group by group. The calendar says how
far nobody is preempted, admitted or ended; making its changes on the engine's own blocks and queue gives just the
state that the steps would have left. Every other step is the scheduler's own.

Names of full blocks are put off until somebody could see them: until their request gives blocks back or ends, or a
prompt that repeats its output is about to be looked up. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np

from kvplan.ground.content import output_of
from kvplan.ground.units import cdiv
from kvplan.schedulers.leap.allowed import why_no_visits
from kvplan.schedulers.protocol import NOTHING, Counts, FreeBlocks, Leap, Outputs
from kvplan.schedulers.request import NEVER, Request
from kvplan.schedulers.vllm.block_pool import name_of
from kvplan.schedulers.vllm.kv_cache_coordinator import CacheHit
from kvplan.schedulers.vllm.mamba_manager import MambaManager
from kvplan.schedulers.vllm.output import SchedulerOutput, StepBudget
from kvplan.schedulers.vllm.scheduler import Scheduler
from kvplan.schedulers.vllm.single_type_kv_cache_manager import SingleTypeKVCacheManager

MOST_STEPS = 256
"""Steps that a calendar covers: what is planned and not taken is planned again."""


class AlikeGroups(NamedTuple):
    """Groups in a row whose blocks come, or go, in the same steps."""

    managers: list[SingleTypeKVCacheManager]
    size: int
    """Tokens of a block."""
    period: int
    """Steps between two changes."""
    chunk: int = 0
    """Tokens that are left behind at once; 0 = block by block."""
    behind: int = 0
    """Tokens that must be processed beyond a block before it is left behind."""

    def left_behind(self, processed: Counts) -> Counts:
        """Return how many blocks, from the first, lie behind so many processed tokens."""
        if self.chunk:
            return processed // self.chunk * self.chunk // self.size
        return np.maximum(0, processed - self.behind) // self.size

    def next_skip(self, processed: Counts) -> Counts:
        """Return how many tokens must be processed until the next blocks are left behind."""
        if self.chunk:
            return processed // self.chunk * self.chunk + self.chunk
        return (self.left_behind(processed) + 1) * self.size + self.behind


def _taking(managers: Iterable[SingleTypeKVCacheManager]) -> list[AlikeGroups]:
    """Return the groups in a row that take blocks together."""
    rows = groupby(managers, key=lambda manager: manager.block_size)
    return [AlikeGroups(list(row), size, size) for size, row in rows]


def _returning(managers: Iterable[SingleTypeKVCacheManager]) -> list[AlikeGroups]:
    """Return the groups in a row that leave blocks behind together; full attention leaves none."""

    def key(manager: SingleTypeKVCacheManager) -> tuple[str, str, int, int, int]:
        group = manager.group
        return group.kind, group.mode, manager.block_size, group.chunk or 0, group.window or 0

    found = []
    for (kind, mode, size, chunk, window), row in groupby(managers, key=key):
        if kind == "sliding_window":
            found.append(AlikeGroups(list(row), size, size, behind=window - 1))
        elif kind == "chunked_local":
            found.append(AlikeGroups(list(row), size, chunk, chunk=chunk))
        elif kind == "mamba" and mode == "align":
            found.append(AlikeGroups(list(row), size, size, behind=1))
    return found


class Changes(NamedTuple):
    """Changes of blocks in coming steps, one an entry, in the order in which they happen."""

    steps: Counts
    indices: Counts
    """Whose: by place in the batch."""
    kinds: Counts
    """Which of the groups: those that give back, then those that take."""
    first: Counts
    end: Counts
    """The blocks of the table that come back."""
    free: Counts
    """Free blocks after each; negative where blocks have run out."""


class Entries(NamedTuple):
    """Changes of one kind, in no order."""

    steps: Counts
    indices: Counts
    first: Counts
    end: Counts
    net: Counts
    """Blocks that come back, less those that are taken, where nobody else holds them."""


class HeadNeeds(NamedTuple):
    """Free blocks below which the queue's head stays out."""

    now: int
    """As long as no block that it hits is taken; those that others give back are free, and needed as well."""
    least: int
    """Whatever becomes of its hits."""
    held: int = 0
    """Steps in which it is not even looked at."""


class VisitPlan(NamedTuple):
    """A stretch of steps that was planned."""

    running: list[Request]
    computed: Counts
    tokens: Counts
    changes: Changes
    num_free: int
    """When it begins."""


class DecodeVisits:
    """Stretches of decode steps of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        config = scheduler.config
        assert not why_no_visits(config), why_no_visits(config)
        self.scheduler = scheduler
        self.config = config
        self.depth = int(config.async_scheduling)
        """Steps in flight."""
        self.num_drafts = 0
        """Drafts that each request verifies in a step of the stretch."""
        self.manager = scheduler.kv_cache_manager
        self.pool = self.manager.block_pool
        managers = [m for m in self.manager.coordinator.managers if m.grows]
        self.returning, self.taking = _returning(managers), _taking(managers)
        named = [m for m in managers if m.group.prefix_cacheable] if config.enable_prefix_caching else []
        self._name_sizes = [m.block_size for m in named]
        names_all = config.prefix_cache_retention_interval != 0
        self._names_before_returns = config.enable_prefix_caching and any(
            names_all or groups.chunk for groups in self.returning
        )
        """Whether blocks that decode fills are named in groups that give them back."""
        shortest = min(
            (m.block_size for m in named if names_all or m.group.kind in ("full", "chunked_local")),
            default=NEVER,
        )
        align = config.scheduler_block_size
        self._named_late = (shortest, align) if shortest < align else None
        """Size of blocks whose names wait for tokens beyond them, and where those end: hits go by longer blocks."""
        self._skips = all(manager.changes_at_block_ends for manager in managers)
        """Whether the scheduler's own steps pass over requests whose blocks do not change (`num_slots`)."""
        self._states = [m for m in managers if isinstance(m, MambaManager) and m.align]
        self._moving: frozenset[int] = frozenset()
        """Kinds of groups whose blocks move on as they take one: states before those of drafts."""
        self._plan: VisitPlan | None = None
        self._streams: dict[str, str] = {}
        """Stream that a live request generates -> the request."""
        self._asked: set[str] = set()
        """Streams that prompts repeat whose request is not here, or not yet."""
        self._repeated: set[str] = set()
        """Live requests whose output a prompt repeats."""

    # --- who repeats whom -------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Note whose output a new request's prompt repeats, and whether its own is repeated."""
        for segment in request.prompt:
            live = self._streams.get(segment.name)
            if live is not None:
                self._repeated.add(live)
            else:
                self._asked.add(segment.name)
        stream = output_of(request.request_id)
        self._streams[stream] = request.request_id
        if stream in self._asked:
            self._asked.discard(stream)
            self._repeated.add(request.request_id)

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._streams.pop(output_of(request_id), None)
        self._repeated.discard(request_id)

    def name_what_is_repeated(self) -> None:
        """Give blocks of output the names that a prompt may ask for in the step that begins."""
        if self._repeated:
            for request in self.scheduler.running:
                if request.request_id in self._repeated:
                    self.manager.name_put_off(request)

    # --- planning ---------------------------------------------------------------------------

    def plan_leap(self, in_flight: SchedulerOutput | None, prefill_ends: Mapping[str, int]) -> Leap | None:
        """Propose steps in which all that run decode and nobody is preempted, admitted or, but in the last, ends."""
        self._plan = None
        running = self.scheduler.running
        num_running = len(running)
        if not self._all_decode(in_flight):
            return None
        lefts = [self._steps_left(request, prefill_ends[request.request_id]) for request in running]
        most = min(min(lefts), MOST_STEPS)
        if not all(
            state.decodes_on(r.request_id, r.num_computed_tokens) for state in self._states for r in running
        ):
            return None
        needs = self._needs_of_head() if most > 0 else None
        if needs is None:
            return None
        computed = np.array([request.num_computed_tokens for request in running])
        changes = self._changes(running, computed, most)
        steps = self._steps_before_head(changes, most, needs)
        if steps < 1:
            return None
        tokens = np.array([request.num_tokens for request in running])
        self._plan = VisitPlan(running, computed, tokens, changes, self.pool.get_num_free_blocks())
        return Leap(steps, num_running, int(computed.sum()) + num_running, self._ends_on_arrival)

    @property
    def _ends_on_arrival(self) -> bool:
        scheduler, config = self.scheduler, self.config
        full = len(scheduler.running) >= config.max_num_active_reqs
        counts_all = scheduler.held_back is not None and not full  # and holds them back by what it counts
        return config.policy != "fcfs" or counts_all or not (scheduler.waiting or full)

    def _all_decode(self, in_flight: SchedulerOutput | None) -> bool:
        """Whether somebody runs, a step has tokens for all that do, and the one in flight is just such a step."""
        left = self._left_for_head()
        if not self.scheduler.running or min(left.tokens, left.inputs) < 0:
            return False
        return self._is_steady(in_flight) if in_flight is not None else not self.depth

    def _left_for_head(self) -> StepBudget:
        """Return what decodes leave of a step."""
        config, num_running = self.config, len(self.scheduler.running)
        each = 1 + self.num_drafts
        return StepBudget(
            config.token_budget - num_running * each,
            config.max_num_batched_tokens - num_running * (each + config.draft_slots),
            config.draft_slots,
            config.long_prefill_token_threshold,
        )

    def _is_steady(self, output: SchedulerOutput) -> bool:
        """Whether the step in flight decodes all that run, with all drafts, and nothing else."""
        running, scheduled = self.scheduler.running, output.num_scheduled_tokens
        each = 1 + self.num_drafts
        return (
            self.depth > 0
            and len(scheduled) == len(running)
            and output.total_num_scheduled_tokens == each * len(running)
            and not output.prefill_chunks
            and not output.admitted
            and all(request.request_id in scheduled for request in running)
        )

    def _steps_left(self, request: Request, prefill_end: int) -> int:
        """Return how many steps a request surely decodes; 0 if the next one is not plain decode.

        Synchronous, the read of the last one may end it; asynchronous, nothing is known of a step before its read.
        """
        known = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
        if (
            known != 1
            or request.num_computed_tokens < prefill_end
            or request.num_stale_output_tokens
            or request.num_in_flight_tokens != self.depth
        ):
            return 0
        last = request.max_tokens
        if request.stop_at is not None and request.stop_at < last:
            last = max(request.stop_at, request.num_output_tokens + 1)
        left = min(last - request.num_output_tokens, self.config.max_model_len - request.num_tokens)
        return min(left - self.depth, self._tokens_unnamed(request) - request.num_computed_tokens)

    def _tokens_unnamed(self, request: Request) -> int:
        """Return up to how many computed tokens blocks of a prompt surely keep waiting for their names.

        Prompts may be alike, and hits go to the block that was named first: the scheduler's own steps give these names.
        """
        if self._named_late is None:
            return NEVER
        (size, align), prompt = self._named_late, request.num_prompt_tokens
        named = cdiv(prompt, align) * align
        begun, each = prompt // align * align, 1 + self.config.num_speculative_tokens
        if prompt // size * size == begun or request.num_computed_tokens > named + 2 * each:
            return NEVER
        return named - 1 - each

    def _needs_of_head(self) -> HeadNeeds | None:
        """Return what keeps the queue's head out while all decode; None if nothing does."""
        scheduler = self.scheduler
        if not scheduler.waiting or len(scheduler.running) >= self.config.max_num_active_reqs:
            return HeadNeeds(NEVER, NEVER)
        held, rule = self._steps_held(), scheduler.held_back
        if rule is None or not rule.holds:
            needs = self._head_needs()
            if self.pool.get_num_free_blocks() < needs.now:
                return needs._replace(held=held)
        return HeadNeeds(0, 0, held) if held else None

    def _head_needs(self) -> HeadNeeds:
        """Return the free blocks below which the queue's head stays out while all decode."""
        scheduler, running = self.scheduler, self.scheduler.running
        request = scheduler.waiting.peek_request()
        if request.num_stale_output_tokens or any(r.request_id in self._repeated for r in running):
            return HeadNeeds(0, 0)
        budget = self._left_for_head()
        if budget.tokens <= 0 or budget.inputs <= budget.draft_slots:
            return HeadNeeds(NEVER, NEVER)
        self.manager.new_step_starts()
        hit = scheduler.look_up(request)
        beside = SchedulerOutput(0, {running[0].request_id: 1 + self.num_drafts})
        chunk = scheduler.first_chunk(request, hit.num_tokens, beside, budget, hit.num_replay_tokens)[0]
        padded = scheduler.pads_to_decodes and request.num_tokens == hit.num_tokens + 1  # chunks may be cut
        if not chunk:  # another hit is split elsewhere
            return HeadNeeds(NEVER, 0 if self._states or padded else NEVER)
        if self._is_reserved(request, hit, chunk):
            return HeadNeeds(NEVER, 0)
        whole = self.config.reserves_full_isl
        least = 0 if padded else self.manager.least_blocks_to_admit(request, chunk, hit, whole)
        return HeadNeeds(self.manager.free_blocks_to_admit(request, chunk, hit, whole), least)

    def _is_reserved(self, request: Request, hit: CacheHit, chunk: int) -> bool:
        """Whether the head stays out for what is kept for the running requests, as long as its hits stay as they are.

        What these take leaves as many fewer to be kept, what they give back as many more.
        """
        scheduler, manager = self.scheduler, self.manager
        num_tokens = hit.num_tokens - hit.num_replay_tokens + chunk
        kept = scheduler.blocks_to_leave(manager, scheduler.running, request, num_tokens)
        needed = manager.free_blocks_to_admit(request, chunk, hit, False)
        return kept > 0 and needed + kept > self.pool.get_num_free_blocks()

    def _steps_held(self) -> int:
        """Return for how many steps the queue is held back, whoever could enter."""
        scheduler, num_running = self.scheduler, len(self.scheduler.running)
        if scheduler.held_back is None:
            return 0
        return scheduler.held_back.plan((r.num_tokens for r in scheduler.waiting), num_running, num_running)

    def _changes(self, running: Sequence[Request], computed: Counts, num_steps: int) -> Changes:
        """Return what changes in the next steps if all these decode in them."""
        ids = [request.request_id for request in running]
        processed = computed - self.depth
        entries: list[Entries] = []
        for groups in self.returning:
            gone = groups.left_behind(processed)
            entries.append(self._left_over(groups, ids, gone.tolist()))
            steps = groups.next_skip(processed) - processed
            steps, indices = _recurring(steps, groups.period, num_steps)
            end = groups.left_behind(processed[indices] + steps)
            first = (
                groups.left_behind(processed[indices] + steps - groups.period) if groups.chunk else end - 1
            )
            some = first < end
            net = len(groups.managers) * (end - first)[some]
            entries.append(Entries(steps[some], indices[some], first[some], end[some], net))
        kinds = [kind // 2 for kind in range(len(entries))]
        for groups in self.taking:
            tables = groups.managers[0].req_to_blocks
            lengths = np.array([len(tables[i]) for i in ids])
            steps, indices = _recurring(lengths * groups.size - computed, groups.period, num_steps)
            nothing = np.zeros(len(steps), np.int64)
            entries.append(Entries(steps, indices, nothing, nothing + 1, nothing - len(groups.managers)))
            kinds.append(kinds[-1] + 1 if kinds else 0)
        return self._in_order(running, ids, entries, kinds)

    def _in_order(
        self,
        running: Sequence[Request],
        ids: Sequence[str],
        entries: Sequence[Entries],
        kinds: list[int],
    ) -> Changes:
        """Put changes in the order in which they happen, and count the free blocks."""
        steps, indices, first, end, net = (np.concatenate([entry[i] for entry in entries]) for i in range(5))
        kind = np.repeat(kinds, [len(entry.steps) for entry in entries])
        order = np.argsort((steps * len(ids) + indices) * (kinds[-1] + 1) + kind)
        steps, indices, kind, first, end = steps[order], indices[order], kind[order], first[order], end[order]
        net = net[order]
        some = np.flatnonzero((kind < len(self.returning)) & (first < self._may_be_shared(running)[indices]))
        self._keep_shared(ids, some, kind, indices, first, end, net)
        return Changes(steps, indices, kind, first, end, self.pool.get_num_free_blocks() + np.cumsum(net))

    def _may_be_shared(self, running: Sequence[Request]) -> Counts:
        """Return how many blocks of each table others may hold too: of the prompt, or of output that is repeated."""
        size = min((groups.size for groups in self.returning), default=1)
        return np.array(
            [
                NEVER if request.request_id in self._repeated else cdiv(request.num_prompt_tokens, size)
                for request in running
            ]
        )

    def _left_over(self, groups: AlikeGroups, ids: Sequence[str], gone: Sequence[int]) -> Entries:
        """Return what the first step gives back: all that the steps before have left, as after a prompt's chunks."""
        tables = groups.managers[0].req_to_blocks
        found: list[tuple[int, int, int]] = []
        for i, (request_id, end) in enumerate(zip(ids, gone, strict=True)):
            table = tables[request_id]
            if not end or table[end - 1].is_null:
                continue
            first = end
            while first and not table[first - 1].is_null:
                first -= 1
            found.append((i, first, end))
        columns = np.array(found, np.int64).reshape(-1, 3)
        nothing, (indices, begun, ends) = np.zeros(len(found), np.int64), columns.T
        return Entries(nothing, indices, begun, ends, len(groups.managers) * (ends - begun))

    def _keep_shared(
        self,
        ids: Sequence[str],
        returns: Counts,
        kinds: Counts,
        indices: Counts,
        first: Counts,
        end: Counts,
        net: Counts,
    ) -> None:
        """Blocks that others hold as well come back with the last of them."""
        tables = [[m.req_to_blocks for m in groups.managers] for groups in self.returning]
        num_holders: dict[int, int] = {}
        rows = zip(
            returns.tolist(), kinds[returns].tolist(), indices[returns].tolist(),
            first[returns].tolist(), end[returns].tolist(), strict=True,
        )  # fmt: skip
        for entry, kind, index, start, stop in rows:
            for held in tables[kind]:
                for block in held[ids[index]][start:stop]:
                    if block.ref_cnt > 1 and not block.is_null:
                        left = num_holders.get(block.block_id, block.ref_cnt) - 1
                        num_holders[block.block_id] = left
                        net[entry] -= left > 0

    def _steps_before_head(self, changes: Changes, num_steps: int, needs: HeadNeeds) -> int:
        """Return for how many steps nobody is preempted or admitted."""
        steps = self._steps_that_last(changes, num_steps, needs.least)
        if needs.least < needs.now:
            steps = max(steps, self._steps_that_keep_hits(changes, num_steps, needs.now))
        if needs.held:
            steps = max(steps, self._steps_that_last(changes, min(num_steps, needs.held), NEVER))
        return steps

    def _steps_that_last(self, changes: Changes, num_steps: int, need: int) -> int:
        """Return for how many steps blocks last, in order, and fewer than the head's need are free after each."""
        if need != NEVER and not (len(changes.steps) and changes.steps[0] == 0):
            num_steps = num_steps if self.pool.get_num_free_blocks() < need else 0
        short = changes.free < 0
        if need != NEVER:
            last = np.append(changes.steps[1:] != changes.steps[:-1], True)[: len(changes.steps)]
            short |= last & (changes.free >= need)
        return min(num_steps, int(changes.steps[short.argmax()])) if short.any() else num_steps

    def _steps_that_keep_hits(self, changes: Changes, num_steps: int, need: int) -> int:
        """Return for how many steps no free block is taken that may be one of the head's hits, and it stays out."""
        request = self.scheduler.waiting.peek_request()
        num_steps = self._steps_that_last(changes, num_steps, need)
        net = np.diff(changes.free, prepend=self.pool.get_num_free_blocks())
        taken = np.cumsum(-np.minimum(net, 0))
        if not len(taken) or not num_steps:
            return num_steps
        hasher = self.manager.hasher
        names = set(hasher.block_hashes(request, hasher.num_hashed_tokens(request)))
        queue = self.pool.free_block_queue
        reach = queue.num_free_blocks
        for place, block in enumerate(islice(queue, int(taken[-1]))):
            if block.block_hash is not None and (
                name_of(block.block_hash) in names or any(name_of(key) in names for key in block.extra_hashes)
            ):
                reach = place
                break
        beyond = taken > reach
        return min(num_steps, int(changes.steps[beyond.argmax()])) if beyond.any() else num_steps

    def is_short_for(self, decoding: Sequence[Request]) -> bool:
        """Whether these, decoding, need more blocks in the next step than there are, in the order in which they run."""
        if not decoding:
            return False
        computed = np.array([request.num_computed_tokens for request in decoding])
        return bool((self._changes(decoding, computed, 1).free < 0).any())

    # --- what a plan says -------------------------------------------------------------------

    def free_blocks_in(self, num_steps: int) -> int:
        """Return the free blocks that so many steps of the stretch just planned leave."""
        assert self._plan is not None
        changes = self._plan.changes
        count = int(changes.steps.searchsorted(num_steps))
        return int(changes.free[count - 1]) if count else self._plan.num_free

    def free_blocks_over(self, num_steps: int) -> FreeBlocks:
        """Return the free blocks after each of so many steps of the stretch just planned."""
        assert self._plan is not None
        changes = self._plan.changes
        counts = changes.steps.searchsorted(np.arange(1, num_steps + 1))
        free = np.concatenate([[self._plan.num_free], changes.free])[counts]
        weighted = int(free @ np.arange(num_steps))
        return FreeBlocks(int(free[0]), int(free.min()), int(free.sum()), weighted)

    # --- taking it --------------------------------------------------------------------------

    def take(self, num_steps: int) -> Outputs:
        """Take so many steps of the stretch just planned; return who ends with the last read."""
        assert self._plan is not None
        running, computed, tokens, changes, _ = self._plan
        count = int(changes.steps.searchsorted(num_steps))
        self._change(running, changes, count)
        last = num_steps - 1 - self.depth
        for state in self._states:
            for request, before in zip(running, computed.tolist(), strict=True):
                state.retire(request.request_id, before + last)
        slots = self._next_slots(running, computed, num_steps)
        for request, before, had, after in zip(
            running, computed.tolist(), tokens.tolist(), slots, strict=True
        ):
            request.num_computed_tokens, request.num_tokens = before + num_steps, had + num_steps
            request.num_slots = after
        self.manager.put_off_names(running)
        return self._end_leap(running, num_steps)

    def _end_leap(self, running: Sequence[Request], num_steps: int) -> Outputs:
        """Count the steps; return who ends with the last read."""
        scheduler = self.scheduler
        held, num_running = scheduler.held_back, len(running)
        if held is not None and scheduler.waiting and held.counts(num_running, num_running):
            held.pass_steps(num_steps, (r.num_tokens for r in scheduler.waiting), num_running, num_running)
        scheduler.current_step += num_steps
        scheduler.finished_req_ids = {}
        self._plan = None
        if self.depth:
            return NOTHING
        ending = [request for request in running if self._is_last(request)]
        for request in ending:
            request.num_tokens -= 1
        return Outputs([], scheduler.read_last(ending)) if ending else NOTHING

    def _is_last(self, request: Request) -> bool:
        """Whether the newest token ends a request."""
        num_output = request.num_output_tokens
        return (
            num_output >= request.max_tokens
            or request.num_tokens >= self.config.max_model_len
            or (request.stop_at is not None and num_output >= request.stop_at)
        )

    def _change(self, running: Sequence[Request], changes: Changes, count: int) -> None:
        """Make the first so many changes."""
        pool, null, num_returning = self.pool, self.pool.null_block, len(self.returning)
        moving, named = self._moving, self._named_at_return(running)
        ids = [request.request_id for request in running]
        tables = [
            [(manager.group_id, manager.req_to_blocks) for manager in groups.managers]
            for groups in (*self.returning, *self.taking)
        ]
        before = pool.get_num_free_blocks() + pool.num_taken
        rows = zip(
            changes.indices[:count].tolist(), changes.kinds[:count].tolist(),
            changes.first[:count].tolist(), changes.end[:count].tolist(),
            changes.steps[:count].tolist(), strict=True,
        )  # fmt: skip
        for index, kind, first, end, step in rows:
            request_id = ids[index]
            if kind >= num_returning:
                if end > 1 or kind in moving:
                    self._take(kind - num_returning, request_id, index, step)
                    continue
                for group, held in tables[kind]:
                    held[request_id].append(pool.get_new_block(group))
                continue
            if named and first < named[index]:
                self._name(running[index], index, step)
            for _, held in tables[kind]:
                table = held[request_id]
                if end - first == 1:
                    block, table[first] = table[first], null
                    pool.free_block(block)
                else:
                    freed = [block for block in table[first:end] if not block.is_null]
                    table[first:end] = [null] * (end - first)
                    pool.free_blocks(reversed(freed))
        self.manager.num_recycled += pool.get_num_free_blocks() + pool.num_taken - before

    def _named_at_return(self, running: Sequence[Request]) -> list[int]:
        """Return before which block of each what comes back may have got its name in decode; empty if in none."""
        return [NEVER] * len(running) if self._names_before_returns else []

    def _take(self, row: int, request_id: str, index: int, step: int) -> None:
        """Let the groups of a row take what a step needs."""
        raise NotImplementedError  # a step of one token takes one block

    def _name(self, request: Request, index: int, step: int) -> None:
        """Name what the steps before this one have filled."""
        assert self._plan is not None
        request.num_tokens = int(self._plan.tokens[index]) + step
        self.manager.name_blocks(request, request.num_tokens - 1)

    def _next_slots(self, running: Sequence[Request], computed: Counts, num_steps: int) -> list[int]:
        """Return each request's `num_slots` after so many steps, names not put off."""
        if not self._skips:
            return [0] * len(running)
        computed = computed + num_steps
        processed = computed - self.depth
        sizes = {groups.size for groups in self.taking}
        slots = np.min([-(-computed // size) * size + 1 for size in sizes], axis=0)
        for groups in self.returning:
            slots = np.minimum(slots, groups.next_skip(processed - 1) + 1)
        for size in set(self._name_sizes):
            slots = np.minimum(slots, (processed // size + 1) * size)
        return [int(slot) for slot in slots]


def _recurring(first: Counts, period: int, num_steps: int) -> tuple[Counts, Counts]:
    """Return (step, index) of what first comes in step `first[index]` and then every `period` steps."""
    first = np.maximum(first, 0)
    counts = np.maximum(0, -((first - num_steps) // period))
    indices = np.repeat(np.arange(len(first)), counts)
    numbers = np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first[indices] + period * numbers, indices
