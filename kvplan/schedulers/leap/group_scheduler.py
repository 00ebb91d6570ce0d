"""The leap over engines whose groups give blocks back: windows, chunks, states, and full attention beside them.

What differs from `scheduler`: free blocks may rise while all decode, so the head of the queue is looked at again once
enough are free; and within a step the order counts in which blocks come back and go. The loops are those of `running`
and `waiting`; here is what they ask.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

from kvplan.schedulers.leap.extents import PrefixHits
from kvplan.schedulers.leap.group_batch import GroupBatch
from kvplan.schedulers.leap.group_pool import GroupPool
from kvplan.schedulers.leap.group_sequence import GroupSequence
from kvplan.schedulers.leap.group_tables import Returned, StateTable
from kvplan.schedulers.leap.groups import Groups
from kvplan.schedulers.leap.queues import Admissible, BlockedHead
from kvplan.schedulers.leap.running import add_chunk, walk
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.leap.state import DECODE, PREFILL, OpenStep, Sequence
from kvplan.schedulers.leap.waiting import NO_PLACE, NO_TOKENS
from kvplan.schedulers.protocol import ContentsMatter, FreeBlocks
from kvplan.schedulers.request import NEVER, Request, RequestStatus
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.mamba_split import SplitProgress


class GroupScheduler(LeapScheduler):
    """vLLM's scheduler for engines of several groups, in closed form between changes."""

    def _set_up_blocks(self, config: EngineConfig) -> None:
        self.block_size = 1  # what the loops know of blocks is tokens here
        self.groups = Groups(config)
        self.batch = self.group_batch = GroupBatch(self.groups)
        self.pool = self.group_pool = GroupPool(config.num_gpu_blocks - 1, self.groups)
        self._lag = self.groups.lag
        self._starts: set[int] = set()
        """What requests begin with that live or have left blocks in the cache."""
        self._gone: deque[tuple[int, int]] = deque()
        """(number above all its blocks in the free queue, what it begins with) of each request that has ended."""

    def _new_sequence(self, request: Request, key: tuple[int, int]) -> Sequence:
        seq = GroupSequence(request, key)
        if self.group_pool.caches:
            self._keep_apart(seq)
        return seq

    def _keep_apart(self, seq: GroupSequence) -> None:
        """Note what a request begins with; nobody else may begin so while it lives or its blocks are there."""
        gone, front = self._gone, self.group_pool.queue.front
        while gone and gone[0][0] <= front:
            self._starts.discard(gone.popleft()[1])
        seq.start = hash(seq.request.content(0, self.groups.hash_size))
        if seq.start in self._starts:
            raise ContentsMatter("requests share content in groups that forget")
        self._starts.add(seq.start)

    def _close(self, seq: Sequence, status: RequestStatus) -> None:
        assert isinstance(seq, GroupSequence)
        if self.group_pool.caches:
            self._gone.append((self.group_pool.queue.tail, seq.start))
        super()._close(seq, status)

    # --- what the loops ask -----------------------------------------------------------------

    def try_head(self, budget: int, chunk: int, step: OpenStep | None = None) -> Admissible | BlockedHead:
        """Look up what the head of the queue would get of the tokens left in a step; `chunk` caps them, 0 = no cap."""
        if budget <= 0:
            return NO_TOKENS
        config, groups = self.config, self.groups
        if len(self.running) >= config.max_num_active_reqs:
            return NO_PLACE
        seq: GroupSequence = self.waiting.peek_request()
        last, found = (
            seq.num_tokens,
            self.group_pool.own_hits(self.waiting.peek_request(), seq.num_tokens - 1),
        )
        seq.junction, start = found.junction, found.num_tokens
        num_tokens = last - start
        if 0 < chunk < num_tokens:
            num_tokens = chunk
        if num_tokens > budget:
            if not config.enable_chunked_prefill:
                return NO_TOKENS
            num_tokens = budget
        if groups.split is not None:
            num_tokens = groups.split.clip(progress_of(seq), num_tokens, start)
            if not num_tokens:
                return NO_TOKENS
        table, end = groups.new_states(start), prefill_end(seq)
        whole = groups.num_whole if start else 0  # which no hit brings
        needed = taken = self._need(table, start, num_tokens, end) + whole
        if self.reserves_full_isl:
            checkpoint = groups.checkpoint(table, start, last, end)
            needed = max(needed, groups.whole_prompt(last, start, table, checkpoint))
        needed += found.num_blocks + (self.watermark_blocks if self.running else 0)
        if needed > self.group_pool.num_free:
            # Where states are cut at a junction, how far the others match counts as well.
            own = seq.parked if groups.split and found.junction else found.pieces
            room = min((self.group_pool.queue.num_before(piece.number) for piece in own), default=NEVER)
            return BlockedHead(NEVER, lacks_tokens=False, need=needed, room=room)
        return PrefixHits([], start, found.num_blocks), num_tokens, taken

    def _need(self, table: StateTable | None, start: int, num_tokens: int, end: int) -> int:
        groups, stop = self.groups, start + num_tokens
        need = groups.length(stop) - groups.length(start)
        if table is not None and groups.state is not None:
            checkpoint = groups.checkpoint(table, start, stop, end)
            need += groups.state.count * table.need(stop, groups.state.size, checkpoint)
        return need

    def tokens_of(self, seq: Sequence, wanted: int, budget: int) -> int:
        """Return how many of the tokens that a running request wants it gets of a step that has `budget` left."""
        num_tokens = wanted if wanted < budget else budget
        if self.groups.split is not None and seq.stage is PREFILL:
            assert isinstance(seq, GroupSequence)
            return self.groups.split.clip(progress_of(seq), num_tokens)
        return num_tokens

    def give_back(self, seq: Sequence) -> None:
        """Give back what a running request has left behind."""
        assert isinstance(seq, GroupSequence)
        step = self.group_batch.num_steps
        if seq.stage is DECODE:
            self._give_back_of_decode(seq, step)
            return
        processed = seq.computed - seq.tokens_in_flight(step, self._lag)
        table = seq.states.copy() if seq.states else None
        returned = self.groups.give_back(seq, seq.gone, seq.states, processed)
        self.group_pool.give(seq, seq.gone, table, processed, returned)
        seq.gone = processed

    def _give_back_of_decode(self, seq: GroupSequence, step: int) -> int:
        """Give back what a decoding sequence has left behind; return what it takes."""
        _, unnamed, named, takes = self.group_batch.events(seq, step)
        if unnamed or named:
            gone, table = self.group_batch.before(seq, step) if named else (0, None)
            self.group_pool.give(
                seq, gone, table, self.group_batch.processed_in(seq, step), Returned(unnamed, named)
            )
        seq.visited, seq.took = step, False
        return takes

    def blocks_for(self, seq: Sequence, computed: int, num_tokens: int) -> int:
        """Return the blocks that so many tokens more take."""
        assert isinstance(seq, GroupSequence)
        if seq.stage is DECODE:
            return self.group_batch.events(seq, self.group_batch.num_steps)[3]
        return self._need(seq.states, computed, num_tokens, prefill_end(seq))

    def take_for(self, seq: Sequence, num_tokens: int, num_blocks: int) -> None:
        """Take these blocks."""
        assert isinstance(seq, GroupSequence)
        self.group_pool.take(num_blocks)
        step = self.group_batch.num_steps
        if seq.stage is DECODE:
            seq.took = True
        elif seq.stage is PREFILL:
            self._book_chunk(seq, seq.computed, num_tokens, step)
        else:  # it is being admitted, and the step counted already
            self._book_chunk(seq, seq.computed - num_tokens, num_tokens, step - 1)

    def _book_chunk(self, seq: GroupSequence, start: int, num_tokens: int, step: int) -> None:
        groups = self.groups
        seq.flight = (step, num_tokens)
        if seq.states is not None and groups.state is not None:
            checkpoint = groups.checkpoint(seq.states, start, start + num_tokens, prefill_end(seq))
            seq.states.take(start + num_tokens, groups.state.size, checkpoint)
            self.group_pool.num_evicted += groups.name_states(seq, start, start + num_tokens, checkpoint)

    def preempt(self, seq: Sequence, step: OpenStep, already: int = 0) -> None:
        """Send a request back to the queue, all its blocks freed; where they are is noted, since it comes again."""
        self.group_pool.parks = self.group_pool.caches
        super().preempt(seq, step, already)
        self.group_pool.parks = False

    # --- one step ---------------------------------------------------------------------------

    def _schedule_running(self, step: OpenStep) -> None:
        """As `running.schedule_running`, where blocks come back too."""
        batch, pool = self.group_batch, self.group_pool
        batch.settle()
        chunk = 0
        if batch.num_decodes > step.budget or len(self.prefills) > 1:
            return walk(self, step)
        takes = batch.next_demand()
        if self.prefills:
            seq = self.prefills[0]
            assert isinstance(seq, GroupSequence)
            wanted = step.chunk_of(seq.num_tokens - seq.computed)
            chunk = self.tokens_of(seq, wanted, step.budget - batch.num_decodes)
            if not chunk or (self.groups.split and chunk != self.tokens_of(seq, wanted, step.budget)):
                return walk(
                    self, step
                )  # a chunk cut at a block end let others in behind it; a longer one may starve them
            takes += self.blocks_for(seq, seq.computed, chunk) + self.groups.num_checkpoints
        if takes <= pool.num_unhashed:  # whatever the order
            pool.pass_steps(batch, 1)
            if chunk:
                self.give_back(seq)
                self.take_for(seq, chunk, self.blocks_for(seq, seq.computed, chunk))
        elif takes > pool.num_free and (chunk or not self.is_fcfs):
            return walk(self, step)
        else:
            self._visit(step, chunk)
        if chunk:
            step.budget -= chunk
            add_chunk(self, seq, chunk, step)
        step.num_decodes = batch.num_decodes
        step.context = batch.context + batch.num_decodes
        step.budget -= batch.num_decodes
        return None

    def _visit(self, step: OpenStep, chunk: int) -> None:
        """Serve those that take or give back blocks, in order; whenever none is left the tail is preempted."""
        batch, pool = self.group_batch, self.group_pool
        now = batch.num_steps
        order = [seq for seq, *_ in batch.eventful(now)]
        if chunk:
            first = self.prefills[0]
            assert isinstance(first, GroupSequence)
            order = sorted([*order, first], key=lambda seq: seq.admission)
        for seq in order:
            if seq.admission not in self.running:
                return
            if seq.stage is DECODE:
                need = self._give_back_of_decode(seq, now)
            else:
                self.give_back(seq)
                need = self.blocks_for(seq, seq.computed, chunk)
            while need > pool.num_free:
                victim = self.tail()
                self.preempt(victim, step)
                if victim is seq:
                    return
            self.take_for(seq, 1 if seq.stage is DECODE else chunk, need)

    # --- leaping ----------------------------------------------------------------------------

    @property
    def is_short(self) -> bool:
        """Whether the next decode step needs more blocks than there are, so that somebody is preempted."""
        self.group_batch.settle()
        return not self.group_batch.steps_that_last(1, self.group_pool.num_free, NEVER)

    def free_blocks_in(self, num_steps: int) -> int:
        """Return the free blocks that so many steps of the leap just planned leave."""
        takes, unnamed, named = self.group_batch.flow(num_steps)
        return self.group_pool.num_free + unnamed + named - takes

    def free_blocks_over(self, num_steps: int) -> FreeBlocks | None:
        """Return the free blocks after each of so many steps of the leap just planned."""
        return self.group_batch.free_sums(num_steps, self.group_pool.num_free)

    def _steps_that_fit(self, steps: int) -> int:
        batch = self.group_batch
        steps = min(steps, batch.next_due() - batch.num_steps)
        need = NEVER
        if self.waiting and self._blocked is not None:
            need, room = self._blocked.need, self._blocked.room
            if room != NEVER:  # as long as none of its hits can be taken
                limit = self.group_pool.num_unhashed + room
                steps = bisect_right(range(1, steps + 1), limit, key=batch.demand)
        return batch.steps_that_last(steps, self.group_pool.num_free, need) if steps > 0 else 0

    def _pass_steps(self, num_steps: int) -> None:
        self.group_pool.pass_steps(self.group_batch, num_steps)
        if self._blocked is not None and self._blocked.room != NEVER:  # its hits may be gone next time
            self._blocked, self._look_ahead = None, True


def progress_of(seq: GroupSequence) -> SplitProgress:
    """Return what decides where a chunk must end."""
    return SplitProgress(seq.computed, seq.request.num_prompt_tokens, seq.num_tokens, seq.junction)


def prefill_end(seq: Sequence) -> int:
    """Return where the prompt, or what a preempted request recomputes, ends."""
    return max(seq.request.num_prompt_tokens, seq.num_tokens - 1)
