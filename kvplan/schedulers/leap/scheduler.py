"""The leap: vLLM's scheduler jumping from change to change, deciding exactly as if it had walked every step.

Between two changes of the batch every running sequence gets one token per step, so what happens in the next k steps
follows in closed form (`batch`), whatever k is. `plan_leap` proposes steps that are "+1 for everyone" and nothing
else; `commit_leap` takes as many of them as the driver has time for. Every other step is a `schedule()`; its running
loop has a closed form too while all decode (and at most the last one has a prompt chunk), FCFS preemption included;
else `running` goes request by request.

The policy is that of `vllm.scheduler`. The queues are the same code; the two loops of `schedule()` are written
again because nothing per request or per block may be touched here, and the tests hold both to each other, decision by
decision and block by block. Which engines it takes is in `allowed`.
"""

from __future__ import annotations

from collections import deque

from kvplan.schedulers.leap.allowed import why_not
from kvplan.schedulers.leap.queues import Admissible, BlockedHead, LeapQueues
from kvplan.schedulers.leap.running import schedule_running
from kvplan.schedulers.leap.state import (
    DECODE,
    ENDING,
    GONE,
    NO_NEWS,
    WAITING,
    InFlight,
    OpenStep,
    Sequence,
)
from kvplan.schedulers.leap.waiting import NO_PLACE, schedule_waiting, try_head
from kvplan.schedulers.protocol import (
    NOTHING,
    DecodePath,
    FreeBlocks,
    Leap,
    LeapOutputs,
    Outputs,
    Step,
    new_leap,
    new_leap_outputs,
    new_outputs,
    new_step,
)
from kvplan.schedulers.request import NEVER, Request, RequestStatus
from kvplan.schedulers.vllm.admission import HeldBack
from kvplan.schedulers.vllm.config import EngineConfig


class LeapScheduler(LeapQueues):
    """vLLM's scheduler with full attention, sync or async, FCFS or priority, in closed form between changes.

    Drive it as vLLM's engine core drives its scheduler: synchronous, `schedule()` then `update_from_output()`;
    asynchronous, `schedule()` once ahead. A step of a leap counts as both calls.
    """

    def __init__(self, config: EngineConfig) -> None:
        assert not why_not(config), why_not(config)
        super().__init__(config)
        self.sequences: dict[str, Sequence] = {}
        """The live ones, by request id."""
        self._max_num_seqs = config.max_num_active_reqs
        self._token_budget = config.token_budget
        self.decode_tokens = 1
        """Of a decode, drafts included."""
        self._num_arrivals = 0
        self._finished_unread = False
        self._in_flight: deque[InFlight] = deque()
        self._blocked: BlockedHead | None = None
        """Why the head of the queue need not be looked at, if that is so."""
        self._held_back = HeldBack(config, config.batch_wait) if config.batch_wait else None
        self._look_ahead = False
        """Whether the head of the queue probably stays out although the last step cannot say so."""

    # --- the queue --------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a new request (vLLM: same name). Its `stop_at` is read now: a leap knows ends beforehand."""
        assert request.request_id not in self.sequences, f"duplicate request id {request.request_id}"
        self._num_arrivals += 1
        seq = self._new_sequence(request, (request.priority, self._num_arrivals))
        self.sequences[request.request_id] = seq
        if not (self.is_fcfs and self.waiting):
            self._blocked, self._look_ahead = None, False
        self.waiting.add_request(seq)

    def _new_sequence(self, request: Request, key: tuple[int, int]) -> Sequence:
        return Sequence(request, key)

    def abort(self, request_id: str) -> bool:
        """Take a request out, its blocks at once (vLLM `finish_requests`); False if it has ended already."""
        seq = self.sequences.get(request_id)
        if seq is None:
            return False
        if seq.stage is WAITING:
            self.waiting.remove_requests({seq})
        else:
            held, hashed, _ = self.holds(seq)
            self.stop_running(seq)
            self._drop_output(seq)
            self.pool.release(seq, held, hashed)
        self._close(seq, RequestStatus.FINISHED_ABORTED)
        return True

    def has_requests(self) -> bool:
        """Whether vLLM would call `schedule()`: live requests, or ends not yet passed on (vLLM: same name)."""
        return bool(self.sequences) or self._finished_unread

    def computed_tokens(self, request_id: str) -> int:
        """Return how many tokens of a live request have KV, or get it in a step in flight."""
        return self.sequences[request_id].computed_at(self.batch.num_steps)

    @property
    def keeps_counters(self) -> bool:
        """Decoding requests are not touched."""
        return False

    @property
    def num_running(self) -> int:
        """Requests that hold a place in the batch."""
        return len(self.running)

    @property
    def is_short(self) -> bool:
        """Whether the next decode step needs more blocks than there are, so that somebody is preempted."""
        return self.batch.next_demand() > self.pool.num_free

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self.waiting)

    @property
    def holds_back(self) -> bool:
        """Whether those that wait do so for company alone (`batch_wait`)."""
        return self._held_back is not None and self._held_back.holds

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken, cached ones included."""
        return self.pool.num_free

    @property
    def num_cached_free_blocks(self) -> int:
        """Free blocks that still hold reusable content."""
        return self.pool.num_free - self.pool.num_unhashed

    @property
    def num_taken_blocks(self) -> int:
        """Blocks taken from the free queue so far."""
        return self.pool.num_taken

    def free_blocks_in(self, num_steps: int) -> int:
        """Return the free blocks that so many steps of the leap just planned leave."""
        return self.pool.num_free - self.batch.demand(num_steps)

    def free_blocks_over(self, num_steps: int) -> FreeBlocks | None:
        """Blocks are only taken while all decode."""
        return None

    def decode_path(self, request: Request) -> DecodePath | None:
        """Without drafts every read gives a decoding request one token."""
        return None

    def head(self) -> Request:
        """Return the request that waits first."""
        seq: Sequence = self.waiting.peek_request()
        return seq.request

    # --- leaping ----------------------------------------------------------------------------

    def plan_leap(self) -> Leap | None:
        """Propose steps in which all running sequences decode one token and nothing else happens; None if unsure."""
        batch = self.batch
        num_decodes = batch.num_decodes
        if not num_decodes or self.prefills or len(self._in_flight) != self.is_async:
            return None
        if num_decodes > self._token_budget or self.is_short:
            return None
        full = len(self.running) >= self._max_num_seqs
        steps, limit = batch.next_end() - batch.num_steps, NEVER
        if self.waiting:
            if self._blocked is None and full:
                self._blocked = NO_PLACE
            if self._blocked is None and self._look_ahead:
                self._blocked = self._head_stays_out()
            limit = held = self._steps_held(num_decodes)
            if self._blocked is not None and not self.holds_back:
                limit = max(held, self._blocked.limit - batch.num_steps)
            if limit < 1:
                return None
        if self.is_async:
            if self._in_flight[0][1]:
                steps = 1
            elif batch.surprises():
                steps += 1
        steps = self._steps_that_fit(steps if steps < limit else limit)
        if steps < 1:
            return None
        ends_on_arrival = not self.is_fcfs or not (self.waiting or full)
        if self._held_back is not None and not full:  # it is counted with those that wait
            ends_on_arrival = True
        return new_leap((steps, num_decodes, batch.context + num_decodes, ends_on_arrival, None))

    def _steps_held(self, num_decodes: int) -> int:
        """Return for how many steps of so many decodes each the queue is held back, whoever could enter."""
        if self._held_back is None:
            return 0
        return self._held_back.plan((seq.num_tokens for seq in self.waiting), len(self.running), num_decodes)

    def _is_held_back(self, step: OpenStep) -> bool:
        """Whether the queue is passed over in this step; a victim's token in flight does not count yet."""
        if self._held_back is None or not self.waiting:
            return False
        victims = set(step.preempted) if self.is_async else ()
        tokens = (
            seq.num_tokens - (seq.request in victims and seq.known < seq.num_tokens) for seq in self.waiting
        )
        return self._held_back(tokens, len(self.running), self._token_budget - step.budget)

    def _decoded_on(self, seq: Sequence) -> bool:
        """Whether a sequence whose last token is scheduled has been scheduled once more since."""
        return seq.computed_at(self.batch.num_steps) == seq.end

    @property
    def _decode_budget(self) -> int:
        """Tokens of the budget that the decodes of a step take."""
        return self.batch.num_decodes

    def _steps_that_fit(self, steps: int) -> int:
        """Return for how many of these steps blocks last and the head of the queue stays out."""
        free, num_decodes, batch = self.pool.num_free, self.batch.num_decodes, self.batch
        least = num_decodes * (steps // self.block_size)
        if least + num_decodes > free and (least > free or batch.demand(steps) > free):
            return batch.steps_that_fit(free)
        return steps

    def _pass_steps(self, num_steps: int) -> None:
        """Take the blocks of so many steps of the leap just planned."""
        self.pool.take(self.batch.demand(num_steps))

    def try_head(self, budget: int, chunk: int, step: OpenStep | None = None) -> Admissible | BlockedHead:
        """Look up what the head of the queue would get of the tokens left in a step; `chunk` caps them, 0 = no cap."""
        return try_head(self, budget, chunk, step)

    def _head_stays_out(self) -> BlockedHead | None:
        """Look at the head of the queue as the next step would, if all only decode in it."""
        budget, chunk = self._token_budget - self._decode_budget, self.config.long_prefill_token_threshold
        found = self.try_head(budget, chunk)
        return found if isinstance(found, BlockedHead) else None

    def commit_leap(self, num_steps: int) -> LeapOutputs:
        """Take `num_steps` steps of the leap just planned, at least one; all of them or cut short."""
        batch, held = self.batch, self._held_back
        if held is not None and self.waiting and held.counts(len(self.running), batch.num_decodes):
            tokens = (seq.num_tokens for seq in self.waiting)
            held.pass_steps(num_steps, tokens, len(self.running), batch.num_decodes)
        self._pass_steps(num_steps)
        batch.num_steps += num_steps
        batch.context += num_steps * batch.num_decodes
        self._finished_unread = False
        early = NOTHING
        if self.is_async:
            early = self.update_from_output()
            in_flight = self._read_later([])
            ended = [seq for seq in in_flight[1] if self._decoded_on(seq)]
            self._in_flight.append(
                ([], [seq for seq in in_flight[1] if seq not in ended]) if ended else in_flight
            )
        else:
            ended = batch.pop_ended()
        if not ended:
            return new_leap_outputs((early, NOTHING))
        return new_leap_outputs((early, new_outputs(([], list(map(self._finish, ended))))))

    # --- one step ---------------------------------------------------------------------------

    def schedule(self) -> Step:
        """Decide one step (vLLM: same name): running requests first, then waiting ones unless one was preempted."""
        step = OpenStep(self._token_budget, self.config.prefill_cap(len(self.running) + len(self.waiting)))
        self._finished_unread, self._blocked, self._look_ahead = False, None, True
        self._schedule_running(step)
        self.batch.num_steps += 1
        self.batch.context += step.num_decodes
        for seq in step.completed:
            self.start_decode(seq, step)
        held = self._is_held_back(step)
        if not step.preempted and not held:
            self._blocked = schedule_waiting(self, step)
            if self._held_back is not None and step.admitted:
                self._held_back.in_vain = False
        self._in_flight.append(self._read_later(step.first_tokens))
        tokens = step.num_decodes * self.decode_tokens
        return new_step((step.num_decodes, step.context, step.chunks, step.admitted, step.preempted, tokens))

    def _schedule_running(self, step: OpenStep) -> None:
        schedule_running(self, step)

    def update_from_output(self) -> Outputs:
        """Read the tokens of the oldest scheduled step (vLLM: same name): first tokens and ends."""
        first_tokens, ends = self._in_flight.popleft()
        if self.passed_over:
            self._hash_all_known()
        if not first_tokens and not ends:
            return NOTHING
        begun = [seq.request for seq in first_tokens if seq.stage is not GONE]
        return new_outputs((begun, [self._finish(seq) for seq in ends if seq.stage is not GONE]))

    def _read_later(self, first_tokens: list[Sequence]) -> InFlight:
        """Note what a step's tokens will tell; under async scheduling a sure end is not scheduled again."""
        ends = self.batch.pop_ended()
        if self.is_async:
            for seq in ends:
                if seq.sure_end:
                    self.batch.stop(seq)
                    seq.stage = ENDING
                    if self._blocked is not None and self._blocked.lacks_tokens:
                        self._blocked = None
        return (first_tokens, ends) if first_tokens or ends else NO_NEWS

    # --- leaving the batch ------------------------------------------------------------------

    def _finish(self, seq: Sequence) -> Request:
        """End a request whose last token was read; one preempted meanwhile ends from the queue."""
        request = seq.request
        if seq.stage is WAITING:
            self.waiting.remove_requests({seq})
        else:
            held, hashed = self._hold_last(seq)
            self.stop_running(seq)
            self._drop_output(seq)
            self.pool.release(seq, held, hashed)
        request.num_tokens = seq.end
        stopped = seq.end - request.num_prompt_tokens == request.stop_at
        self._close(seq, RequestStatus.FINISHED_STOPPED if stopped else RequestStatus.FINISHED_LENGTH_CAPPED)
        return request

    def _hold_last(self, seq: Sequence) -> tuple[int, int]:
        """Return the blocks of a sequence that ends, its last token read, and how many are hashed."""
        computed, hashed = seq.computed_at(self.batch.num_steps), (seq.end - 1) // self.block_size
        if seq.stage is ENDING:
            self._mark_until(seq, computed, hashed)
        return self.blocks(computed), hashed

    def _drop_output(self, seq: Sequence) -> None:
        """A request that ends takes the names of what it generated along, if it was asked to."""
        if seq.request.output_kv == "drop_after_turn":
            seq.cacheable = seq.request.num_prompt_tokens

    def _close(self, seq: Sequence, status: RequestStatus) -> None:
        self.pool.forget(seq)
        seq.stage = GONE
        seq.request.status = status
        del self.sequences[seq.request.request_id]
        self._finished_unread, self._blocked, self._look_ahead = True, None, False

    def _hash_all_known(self) -> None:
        """Under async scheduling, hash what the last token read completes of sequences with no step in flight."""
        for seq in self.passed_over:
            if self.is_async and seq.stage is DECODE:
                computed = seq.computed_at(self.batch.num_steps)
                self._mark_until(seq, computed, computed // self.block_size)
                seq.known = computed + 1
        self.passed_over.clear()

    def _mark_until(self, seq: Sequence, computed: int, hashed: int) -> None:
        """Note that blocks are hashed as a token is read, not while scheduling."""
        if seq.run is not None:
            seq.run.marks.append((self.pool.num_hashed(seq, computed), None, seq.base))
            seq.run.marks.append((hashed, 2 * self.batch.num_steps - 1, 0))
