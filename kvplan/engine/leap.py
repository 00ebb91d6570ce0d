"""The leap: vLLM's scheduler jumping from change to change, deciding exactly as if it had walked every step.

Between two changes of the batch every running sequence gets one token per step. From the moment it starts to decode,
the step in which it ends and its phase within a block are fixed numbers: with `num_steps` steps taken, a decoding
sequence has computed `base + num_steps` tokens. So the blocks needed in the next k steps follow from a histogram of
`base % block_size`, the next end is the top of a heap, and nothing per sequence changes while steps pass.

`plan_leap` proposes steps that are "+1 for everyone" and nothing else; `commit_leap` takes as many of them as the
driver has time for. Every other step is a `schedule()`: its running loop has a closed form too while all decode (and
one prompt chunk may stand last), FCFS preemption included; else `_walk_running` goes request by request.

Held to `scheduler.Scheduler` step by step by tests. Full attention only; groups of other kinds and speculation are
for the step-by-step scheduler (`why_not`).
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from kvplan.engine.config import EngineConfig
from kvplan.engine.leap_extents import ExtentPool, Hits, Mark
from kvplan.engine.leap_state import NOTHING, Chunk, Landing, Leap, Outputs, Sequence, Stage, Step
from kvplan.engine.request import Request, RequestStatus

NEVER = 1 << 60


def why_not(config: EngineConfig) -> str:
    """Say why an engine cannot leap; empty when it can."""
    kinds = {group.kind for group in config.groups}
    if kinds != {"full"} or len(config.groups) > 1:
        return f"KV cache groups {sorted(kinds)}: freed blocks and sparse hits are not in closed form"
    if config.num_speculative_tokens:
        return "speculation: how many tokens a step emits is not known beforehand"
    return ""


class _InFlight(NamedTuple):
    """What the tokens of one scheduled step will tell when they are read."""

    first_tokens: list[Sequence]
    ends: list[Sequence]


class _Draft:
    """One step while it is decided."""

    __slots__ = (
        "admitted",
        "budget",
        "chunks",
        "completed",
        "context",
        "num_decodes",
        "preempted",
        "threshold",
    )

    def __init__(self, budget: int, threshold: int) -> None:
        self.budget = budget
        self.threshold = threshold
        self.num_decodes = 0
        self.context = 0
        self.chunks: list[Chunk] = []
        self.completed: list[Sequence] = []
        """Whose last chunk is in this step."""
        self.admitted: list[tuple[Request, int]] = []
        self.preempted: list[Request] = []


class LeapScheduler:
    """vLLM's scheduler with full attention, sync or async, FCFS or priority, in closed form between changes."""

    def __init__(self, config: EngineConfig) -> None:
        assert not why_not(config), why_not(config)
        self.config = config
        self.block_size = config.block_size
        self.is_async = config.async_scheduling
        self.is_fcfs = config.policy == "fcfs"
        usable = config.num_gpu_blocks - 1
        self.pool = ExtentPool(usable, config.block_size, config.enable_prefix_caching, int(self.is_async))
        self.watermark_blocks = int(config.watermark * config.num_gpu_blocks)
        self.num_steps = 0
        """`schedule()` calls so far, leapt ones included."""
        self.running: dict[int, Sequence] = {}
        """By admission number, which is vLLM's order."""
        self.waiting: deque[Sequence] | list[Sequence] = deque() if self.is_fcfs else []
        self.sequences: dict[str, Sequence] = {}
        self._num_admissions = 0
        self._num_arrivals = 0
        self._finished_unread = False
        # the decoding sequences, in closed form
        self._num_decodes = 0
        self._context = 0
        """Sum of their computed tokens."""
        self._phases = [0] * config.block_size
        """How many have `base % block_size == i`."""
        self._ends: list[tuple[int, int, Sequence]] = []
        """Heap of (num_steps once its last token is scheduled, admission, sequence); stale entries are skipped."""
        self._prefills: list[Sequence] = []
        """The running sequences with more chunks to come."""
        self._passed_over: list[Sequence] = []
        """Decoding, but not scheduled in this step."""
        self._in_flight: deque[_InFlight] = deque()
        # why the head of the queue waits
        self._head_blocked = False
        """Whether only an end, an abort or, under priority, an arrival can let the head of the queue in."""
        self._head_limit = NEVER
        """The step in which a running sequence may hash a block that the blocked head can hit."""
        self._head_lacks_tokens = False
        """Whether it waits for tokens of a step, not for blocks or a place."""

    # --- queues -----------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Put a new request at its place in the queue (vLLM: same name)."""
        self._num_arrivals += 1
        seq = Sequence(request, (request.priority, self._num_arrivals))
        self.sequences[request.request_id] = seq
        if not (self.is_fcfs and self.waiting):
            self._head_blocked = False
        self._enqueue(seq)

    def abort(self, request_id: str) -> bool:
        """Take a request out, its blocks at once (vLLM `finish_requests`); False if it has ended already."""
        seq = self.sequences.get(request_id)
        if seq is None:
            return False
        if seq.stage is Stage.WAITING:
            self._unqueue(seq)
        else:
            computed = seq.computed_at(self.num_steps)
            self._stop_running(seq)
            self.pool.release(seq, -(-computed // self.block_size), self.pool.num_hashed(seq, computed))
        self._close(seq, RequestStatus.FINISHED_ABORTED)
        return True

    def has_requests(self) -> bool:
        """Whether vLLM would call `schedule()` again: live requests, or ends it has not passed on (vLLM: same name)."""
        return bool(self.sequences) or self._finished_unread

    def computed_tokens(self, request_id: str) -> int:
        """Tokens of a live request that have KV, or get it in the step in flight."""
        return self.sequences[request_id].computed_at(self.num_steps)

    @property
    def num_running(self) -> int:
        """Requests that hold a place in the batch."""
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self.waiting)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken, cached ones included."""
        return self.pool.num_free

    @property
    def num_cached_free_blocks(self) -> int:
        """Free blocks that still hold reusable content."""
        return self.pool.num_free - self.pool.num_unhashed

    def _enqueue(self, seq: Sequence) -> None:
        if isinstance(self.waiting, deque):
            self.waiting.append(seq)
        else:
            heappush(self.waiting, seq)

    def _requeue(self, seq: Sequence) -> None:
        if isinstance(self.waiting, deque):
            self.waiting.appendleft(seq)
        else:
            heappush(self.waiting, seq)

    def _unqueue(self, seq: Sequence) -> None:
        self.waiting.remove(seq)
        if isinstance(self.waiting, list):
            heapify(self.waiting)

    # --- one step ---------------------------------------------------------------------------

    def schedule(self) -> Step:
        """Decide one step (vLLM: same name): running requests first, then waiting ones unless one was preempted."""
        config = self.config
        company = len(self.running) + len(self.waiting) > 1
        draft = _Draft(config.max_num_batched_tokens, config.long_prefill_token_threshold if company else 0)
        self._finished_unread = self._head_blocked = False
        self._schedule_running(draft)
        self.num_steps += 1
        self._context += draft.num_decodes
        in_flight = _InFlight([], [])
        for seq in draft.completed:
            self._start_decode(seq, in_flight)
        if not draft.preempted:
            self._schedule_waiting(draft, in_flight)
        self._collect_ends(in_flight)
        self._in_flight.append(in_flight)
        return Step(draft.num_decodes, draft.context, draft.chunks, draft.admitted, draft.preempted)

    def update_from_output(self) -> Outputs:
        """Read the tokens of the oldest scheduled step (vLLM: same name): first tokens and ends."""
        first_tokens, ends = self._in_flight.popleft()
        for seq in self._passed_over:
            self._know_all(seq)
        self._passed_over.clear()
        if not first_tokens and not ends:
            return NOTHING
        return Outputs(
            [seq.request for seq in first_tokens if seq.stage is not Stage.GONE],
            [self._finish(seq) for seq in ends if seq.stage is not Stage.GONE],
        )

    def _schedule_running(self, draft: _Draft) -> None:
        need = self._phases[-self.num_steps % self.block_size]
        if self._num_decodes > draft.budget or len(self._prefills) > 1:
            return self._walk_running(draft)
        if self._prefills:
            last = self._prefills[0]
            num_tokens = self._chunk(last.num_tokens - last.computed, draft.budget - self._num_decodes, draft)
            need += self._blocks(last.computed + num_tokens) - self._blocks(last.computed)
            if (
                need > self.pool.num_free
                or not num_tokens
                or last is not self.running[next(reversed(self.running))]
            ):
                return self._walk_running(draft)
            self._add_chunk(last, num_tokens, draft)
            self.pool.take(need)
        elif need > self.pool.num_free:
            if not self.is_fcfs:
                return self._walk_running(draft)
            self._preempt_tail(draft, need)
        else:
            self.pool.take(need)
        draft.num_decodes = self._num_decodes
        draft.context = self._context + self._num_decodes
        draft.budget -= self._num_decodes
        return None

    def _preempt_tail(self, draft: _Draft, need: int) -> None:
        """Serve `need` decodes a block each, in order, preempting the tail whenever none is left.

        Whoever is last in `running` is also last to be served, so nobody needs to be looked at but the victims.
        """
        while True:
            served = min(need, self.pool.num_free)
            self.pool.take(served)
            need -= served
            if not need:
                return
            victim = self.running[next(reversed(self.running))]
            if victim.stage is Stage.DECODE and not (victim.base + self.num_steps) % self.block_size:
                need -= 1
            self._preempt(victim, draft)

    def _walk_running(self, draft: _Draft) -> None:
        """Schedule the running requests one by one, as vLLM does."""
        order = list(self.running.values())
        served: dict[int, int] = {}
        at = 0
        while at < len(order) and draft.budget > 0:
            seq = order[at]
            if seq.stage is not Stage.LEFT_OVER:
                computed = seq.computed_at(self.num_steps)
                decodes = seq.stage is Stage.DECODE
                num_tokens = 1 if decodes else self._chunk(seq.num_tokens - computed, draft.budget, draft)
                need = self._blocks(computed + num_tokens) - self._blocks(computed)
                while need > self.pool.num_free and seq.stage is not Stage.WAITING:
                    victim = order[-1] if self.is_fcfs else max(order, key=lambda seq: seq.key)
                    place = order.index(victim)
                    at -= place < at
                    del order[place]
                    extra = served.pop(victim.admission, 0)
                    draft.budget += extra
                    self._preempt(victim, draft, extra)
                if seq.stage is Stage.WAITING:
                    break
                self.pool.take(need)
                served[seq.admission] = num_tokens
                draft.budget -= num_tokens
            at += 1
        for seq in order:
            num_tokens = served.get(seq.admission, 0)
            if seq.stage is Stage.DECODE and num_tokens:
                draft.num_decodes += 1
                draft.context += seq.base + self.num_steps + 1
            elif seq.stage is Stage.DECODE:
                self._pass_over(seq)
            elif num_tokens:
                draft.budget += num_tokens
                self._add_chunk(seq, num_tokens, draft)

    def _chunk(self, remaining: int, budget: int, draft: _Draft) -> int:
        return min(remaining, budget, draft.threshold or remaining)

    def _add_chunk(self, seq: Sequence, num_tokens: int, draft: _Draft) -> None:
        draft.chunks.append(Chunk(seq.request, num_tokens, seq.computed))
        draft.budget -= num_tokens
        seq.computed += num_tokens
        if seq.run is not None:
            seq.run.marks.append(Mark(seq.computed // self.block_size, 2 * self.num_steps, 0))
        if seq.computed == seq.num_tokens:
            self._prefills.remove(seq)
            draft.completed.append(seq)

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # --- admission --------------------------------------------------------------------------

    def _schedule_waiting(self, draft: _Draft, in_flight: _InFlight) -> None:
        config, pool, size = self.config, self.pool, self.block_size
        while self.waiting and draft.budget > 0:
            if len(self.running) >= config.max_num_seqs:
                self._block_head(NEVER)
                return
            seq = self.waiting[0]
            hits = pool.find_longest_cache_hit(seq, (seq.num_tokens - 1) // size, self.num_steps)
            computed = hits.num_blocks * size
            remaining = self._chunk(seq.num_tokens - computed, seq.num_tokens, draft)
            if remaining > draft.budget and not config.enable_chunked_prefill:
                if not draft.chunks:
                    self._block_head(self._next_hit(seq, hits), lacks_tokens=True)
                return
            num_tokens = min(remaining, draft.budget)
            need = self._blocks(computed + num_tokens) - hits.num_blocks
            must_fit = (
                self._blocks(seq.num_tokens) - hits.num_blocks if config.scheduler_reserve_full_isl else need
            )
            reserved = self.watermark_blocks if self.running else 0
            if must_fit + hits.num_evictable + reserved > pool.num_free:
                self._block_head(self._next_hit(seq, hits))
                return
            self._admit(seq, hits, num_tokens, need, draft)
            if seq.computed == seq.num_tokens:
                self._start_decode(seq, in_flight)
            else:
                seq.stage = Stage.PREFILL
                self._prefills.append(seq)
        if self.waiting and not draft.chunks:
            self._block_head(NEVER, lacks_tokens=True)

    def _admit(self, seq: Sequence, hits: Hits, num_tokens: int, need: int, draft: _Draft) -> None:
        if isinstance(self.waiting, deque):
            self.waiting.popleft()
        else:
            heappop(self.waiting)
        self._num_admissions += 1
        seq.admission = self._num_admissions
        self.running[seq.admission] = seq
        seq.known = seq.num_tokens
        computed = hits.num_blocks * self.block_size
        seq.computed = computed + num_tokens
        pool = self.pool
        if pool.trie is not None:
            if computed:
                pool.touch(seq, hits)
            pool.open_run(seq, hits.num_blocks, 2 * self.num_steps - 2)
        pool.take(need)
        draft.budget -= num_tokens
        draft.chunks.append(Chunk(seq.request, num_tokens, computed))
        draft.admitted.append((seq.request, computed))
        seq.request.status = RequestStatus.RUNNING

    def _block_head(self, limit: int, lacks_tokens: bool = False) -> None:
        self._head_blocked = True
        self._head_lacks_tokens = lacks_tokens
        self._head_limit = limit

    def _next_hit(self, seq: Sequence, hits: Hits) -> int:
        """Return the step in which a running sequence may hash the block that ends the head's hits."""
        depth, size = hits.num_blocks, self.block_size
        if depth >= (seq.num_tokens - 1) // size:
            return NEVER
        growing = self.pool.growing_at(seq.path, depth)
        return min(
            (
                (depth + 1) * size - 1 - other.base if other.stage is Stage.DECODE else self.num_steps
                for other in growing
            ),
            default=NEVER,
        )

    # --- decoding in closed form ------------------------------------------------------------

    def _start_decode(self, seq: Sequence, in_flight: _InFlight) -> None:
        seq.stage = Stage.DECODE
        seq.base = seq.computed - self.num_steps
        self._phases[seq.base % self.block_size] += 1
        self._num_decodes += 1
        self._context += seq.computed
        heappush(self._ends, (seq.end - 1 - seq.base, seq.admission, seq))
        if seq.num_tokens == seq.request.num_prompt_tokens:
            in_flight.first_tokens.append(seq)

    def _stop_decode(self, seq: Sequence) -> None:
        seq.computed = seq.base + self.num_steps
        self._phases[seq.base % self.block_size] -= 1
        self._num_decodes -= 1
        self._context -= seq.computed

    def _pass_over(self, seq: Sequence) -> None:
        """Let a decoding sequence miss this step: it ends one later."""
        if seq.run is not None:
            hashed = self.pool.num_hashed(seq, seq.computed_at(self.num_steps))
            seq.run.marks.append(Mark(hashed, None, seq.base))
        size = self.block_size
        self._phases[seq.base % size] -= 1
        seq.base -= 1
        self._phases[seq.base % size] += 1
        heappush(self._ends, (seq.end - 1 - seq.base, seq.admission, seq))
        self._passed_over.append(seq)

    def _know_all(self, seq: Sequence) -> None:
        """Hash what the last token completes, of a decoding sequence that has no step in flight any more."""
        computed = seq.computed_at(self.num_steps)
        if self.is_async and seq.stage is Stage.DECODE:
            seq.known = computed + 1
            if seq.run is not None:
                seq.run.marks.append(Mark(computed // self.block_size, 2 * self.num_steps - 1, 0))

    def _collect_ends(self, in_flight: _InFlight) -> None:
        """Note whose last token is in this step; under async scheduling a sure end is not scheduled again."""
        ends = self._ends
        while ends and ends[0][0] <= self.num_steps:
            when, admission, seq = heappop(ends)
            if seq.stage is Stage.DECODE and seq.admission == admission and seq.end - 1 - seq.base == when:
                in_flight.ends.append(seq)
                if self.is_async and seq.sure_end:
                    self._stop_decode(seq)
                    seq.stage = Stage.LEFT_OVER
                    self._head_blocked = self._head_blocked and not self._head_lacks_tokens

    # --- leaving the batch ------------------------------------------------------------------

    def _stop_running(self, seq: Sequence) -> None:
        if seq.stage is Stage.DECODE:
            self._stop_decode(seq)
        elif seq.stage is Stage.PREFILL:
            self._prefills.remove(seq)
        del self.running[seq.admission]

    def _preempt(self, seq: Sequence, draft: _Draft, extra: int = 0) -> None:
        """Send a request back to the queue, all its blocks freed (vLLM `_preempt_request`).

        `extra` tokens were already scheduled in this step. The token in flight, if any, still counts.
        """
        computed = seq.computed_at(self.num_steps)
        self._stop_running(seq)
        if seq.stage is not Stage.PREFILL:
            seq.num_tokens = computed + 1
        hashed = self.pool.num_hashed(seq, computed + extra)
        self.pool.release(seq, self._blocks(computed + extra), hashed)
        seq.stage, seq.computed = Stage.WAITING, 0
        seq.request.status = RequestStatus.PREEMPTED
        seq.request.num_preemptions += 1
        draft.preempted.append(seq.request)
        self._requeue(seq)

    def _finish(self, seq: Sequence) -> Request:
        """End a request whose last token was read; one preempted meanwhile ends from the queue."""
        if seq.stage is Stage.WAITING:
            self._unqueue(seq)
        else:
            was_left_over = seq.stage is Stage.LEFT_OVER
            computed = seq.computed_at(self.num_steps)
            hashed = (seq.end - 1) // self.block_size
            if was_left_over and seq.run is not None:
                seq.run.marks.append(Mark(self.pool.num_hashed(seq, computed), None, seq.base))
                seq.run.marks.append(Mark(hashed, 2 * self.num_steps - 1, 0))
            self._stop_running(seq)
            self.pool.release(seq, self._blocks(computed), hashed)
        seq.request.num_tokens = seq.end
        outputs = seq.end - seq.request.num_prompt_tokens
        stopped = outputs == seq.request.stop_at
        self._close(seq, RequestStatus.FINISHED_STOPPED if stopped else RequestStatus.FINISHED_LENGTH_CAPPED)
        return seq.request

    def _close(self, seq: Sequence, status: RequestStatus) -> None:
        self.pool.forget(seq)
        seq.stage = Stage.GONE
        seq.request.status = status
        del self.sequences[seq.request.request_id]
        self._finished_unread = True
        self._head_blocked = False

    # --- leaping ----------------------------------------------------------------------------

    def plan_leap(self) -> Leap | None:
        """Propose steps in which every running sequence decodes one token and nothing else happens; None if unsure."""
        num_decodes = self._num_decodes
        if not num_decodes or self._prefills or len(self._in_flight) != self.is_async:
            return None
        if num_decodes > self.config.max_num_batched_tokens:
            return None
        full = len(self.running) >= self.config.max_num_seqs
        if self.waiting and not self._head_blocked:
            if not full:
                return None
            self._block_head(NEVER)
        steps = self._next_end() - self.num_steps
        if self.waiting:
            steps = min(steps, self._head_limit - self.num_steps)
        if self.is_async and self._in_flight[0].ends:
            steps = min(steps, 1)
        if self._demand(steps) > self.pool.num_free:
            steps = self._steps_that_fit()
        if steps < 1:
            return None
        ends_on_arrival = not self.is_fcfs or not (self.waiting or full)
        return Leap(steps, num_decodes, self._context + num_decodes, ends_on_arrival)

    def commit_leap(self, num_steps: int) -> Landing:
        """Take `num_steps` steps of the leap just planned, at least one; all of them or cut short."""
        early = NOTHING
        self._finished_unread = False
        if self.is_async:
            self._advance(1)
            num_steps -= 1
            early = self.update_from_output()
        if num_steps:
            self._finished_unread = False
            self._advance(num_steps)
        in_flight = _InFlight([], [])
        self._collect_ends(in_flight)
        self._in_flight.append(in_flight)
        return Landing(early, NOTHING if self.is_async else self.update_from_output())

    def _advance(self, num_steps: int) -> None:
        self.pool.take(self._demand(num_steps))
        self.num_steps += num_steps
        self._context += num_steps * self._num_decodes

    def _next_end(self) -> int:
        """Return `num_steps` as it will be once the next last token is scheduled."""
        ends = self._ends
        while ends:
            when, admission, seq = ends[0]
            if seq.stage is Stage.DECODE and seq.admission == admission and seq.end - 1 - seq.base == when:
                return when
            heappop(ends)
        return NEVER

    def _demand(self, num_steps: int) -> int:
        """Return the blocks that `num_steps` decode steps take from now on."""
        size, phases = self.block_size, self._phases
        rounds, rest = divmod(num_steps, size)
        top = -self.num_steps % size + 1
        if rest <= top:
            return rounds * self._num_decodes + sum(phases[top - rest : top])
        return rounds * self._num_decodes + sum(phases[:top]) + sum(phases[size + top - rest :])

    def _steps_that_fit(self) -> int:
        """Return how many decode steps the free blocks last."""
        size, phases = self.block_size, self._phases
        rounds, free = divmod(self.pool.num_free, self._num_decodes)
        steps = rounds * size
        while True:
            free -= phases[-(self.num_steps + steps) % size]
            if free < 0:
                return steps
            steps += 1
