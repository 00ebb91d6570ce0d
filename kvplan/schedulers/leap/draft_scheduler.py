"""The leap over speculative decoding: each coming step verifies drafts whose luck is known beforehand.

The queues, the prefix cache and the waiting loop are those of `scheduler`; what a decode is comes from `drafts`. A step
is leapt over when every decoding sequence takes all its drafts. One that cannot - short of tokens, near the model's
length - is walked request by request, and the sequence is planned anew behind it.
"""

from __future__ import annotations

from kvplan.schedulers.leap.drafts import (
    DraftBatch,
    Drafting,
    DraftPlan,
    DraftSequence,
    DraftStory,
    NoneRight,
)
from kvplan.schedulers.leap.extents import ExtentPool
from kvplan.schedulers.leap.running import make_room, preempt_tail
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.leap.state import DECODE, ENDING, PREFILL, WAITING, BlockRun, OpenStep, Sequence
from kvplan.schedulers.leap.waiting import NO_PLACE
from kvplan.schedulers.protocol import (
    AcceptDrafts,
    Chunk,
    DraftedSteps,
    Leap,
    LeapOutputs,
    Outputs,
    Step,
    new_leap,
)
from kvplan.schedulers.request import NEVER, Request, RequestStatus
from kvplan.schedulers.vllm.config import EngineConfig


class DraftPool(ExtentPool):
    """Extents whose blocks are hashed as drafts turn out right."""

    def hashed_at(self, seq: Sequence, now: int) -> int:
        """Full blocks of a running sequence that are hashed in the step that was scheduled last."""
        assert isinstance(seq, DraftSequence)
        if seq.stage is PREFILL or seq.plan is None:
            return min(seq.computed, seq.num_tokens - self.lookahead, seq.cacheable) // self.block_size
        named = seq.plan.named_before(seq.plan.at(now), is_read=False)
        return min(named, seq.cacheable // self.block_size)

    def _when_hashed(self, run: BlockRun, depth: int) -> tuple[int, int]:
        plans: list[DraftPlan] = run.plans
        whens = [when for hi, when, _ in run.marks if depth < hi and when is not None][:1]
        whens += [plan.when_named(depth) for plan in plans]
        return min(whens), run.admission


class DraftLeapScheduler(LeapScheduler):
    """vLLM's scheduler with full attention and drafts, in closed form between changes."""

    def __init__(self, config: EngineConfig, accept: AcceptDrafts | None = None) -> None:
        super().__init__(config)
        self.num_drafts = config.num_speculative_tokens
        self.decode_tokens = 1 + self.num_drafts
        self.max_model_len = config.max_model_len
        names_on_read = self.is_async or config.rules.verified_blocks_are_cached_at_once
        self.drafting = Drafting(
            self.num_drafts, config.num_lookahead_tokens, config.max_model_len, self.is_async, names_on_read,
            config.num_hash_lookahead_tokens, accept or NoneRight(),
        )  # fmt: skip
        self.batch = self.draft_batch = DraftBatch(config.block_size, self.drafting)
        self.pool = DraftPool(
            config.num_gpu_blocks - 1,
            config.block_size,
            config.enable_prefix_caching,
            hash_lag=0,
            unhashed_first=config.rules.unhashed_blocks_go_first,
            drops_last_hit=config.use_eagle_block_drop,
            lookahead=config.num_hash_lookahead_tokens,
        )
        self.unfull: dict[Request, int] = {}
        """Decodes of the last step that got fewer tokens than all, and how many."""
        self._ended: dict[Request, Sequence] = {}
        """Since the last step or leap began: a leap may tell of a first token when the request has ended as well."""
        self._stale: list[tuple[Request, int]] = []
        """Asynchronous: requests preempted since the last read, and their tokens once the step in flight is read."""

    # --- sequences --------------------------------------------------------------------------

    def _new_sequence(self, request: Request, key: tuple[int, int]) -> Sequence:
        return DraftSequence(request, key)

    def next_hash(self, seq: Sequence, depth: int) -> int:
        """Return the step in which a decoding sequence hashes its block at `depth`, as far as is known."""
        plan = _plan_of(seq)
        when = plan.when_named(depth) if plan else NEVER
        return NEVER if when == NEVER else (when + 1) // 2

    def blocks(self, num_tokens: int) -> int:
        """Return the blocks that so many tokens fill or begin, with the slots that the drafter writes."""
        slots = min(num_tokens + self.drafting.lookahead, self.max_model_len)
        return -(-slots // self.block_size)

    def padding(self, num_hit_tokens: int, step: OpenStep | None) -> int:
        """Return the placeholder drafts that make an admission of one token as large as the decodes beside it."""
        has_chunk = step is not None and len(step.chunks) > len(step.admitted)
        decodes = self.draft_batch.num_decodes if step is None else step.num_decodes
        fits = num_hit_tokens + self.decode_tokens + 1 <= self.max_model_len
        return self.num_drafts if fits and not has_chunk and (decodes or num_hit_tokens) else 0

    def holds(self, seq: Sequence, already: int = 0) -> tuple[int, int, int]:
        """Return a running sequence's blocks, how many are hashed, its tokens once every step in flight is read."""
        plan = _plan_of(seq)
        if plan is None:
            computed = seq.computed + already
            hashed = min(computed, seq.num_tokens - self.drafting.hash_lookahead) // self.block_size
            return self.blocks(computed), hashed, seq.num_tokens
        step = plan.at(self.draft_batch.num_steps)
        held = plan.held_before(step)
        hashed = plan.named_before(step, is_read=len(self._in_flight) == self.is_async)
        if already:
            held = max(held, self.blocks(plan.computed_before(step) + already))
            hashed = max(hashed, plan.named_by(step))
        return held, hashed, int(plan.tokens[min(step, plan.num_to_end)])

    def _num_held(self, seq: Sequence, num_tokens: int) -> int:
        """Return the blocks of a running sequence once it has slots for so many tokens more."""
        now, plan = self.draft_batch.num_steps, _plan_of(seq)
        held = self.blocks(seq.computed) if plan is None else plan.held_before(plan.at(now))
        return max(held, self.blocks(seq.computed_at(now) + num_tokens)) if num_tokens else held

    def preempt(self, seq: Sequence, step: OpenStep, already: int = 0) -> None:
        """Send a request back to the queue, all its blocks freed (vLLM `_preempt_request`)."""
        assert isinstance(seq, DraftSequence)
        plan = _plan_of(seq)
        super().preempt(seq, step, already)
        if plan is None:
            return
        if self.is_async:
            at = plan.at(self.draft_batch.num_steps)
            seq.request.num_tokens = int(plan.known[min(at, len(plan.known) - 1)])
            self._stale.append((seq.request, seq.num_tokens))
        else:
            seq.request.num_tokens = seq.num_tokens
        seq.plan = None

    def stop_running(self, seq: Sequence) -> None:
        """Take a sequence out of the batch; its stage stays."""
        super().stop_running(seq)
        for plan in seq.run.plans if seq.run is not None else ():
            plan.close()

    def decode_path(self, request: Request) -> DraftStory | None:
        """Return how a decoding request fares; it stays so when the request leaves."""
        seq = self.sequences.get(request.request_id) or self._ended.get(request)
        return seq.story if isinstance(seq, DraftSequence) else None

    def _close(self, seq: Sequence, status: RequestStatus) -> None:
        super()._close(seq, status)
        self._ended[seq.request] = seq

    def _hold_last(self, seq: Sequence) -> tuple[int, int]:
        plan = _plan_of(seq)
        assert plan is not None
        step = plan.at(self.draft_batch.num_steps)
        hashed = (seq.end - 1) // self.block_size
        if not self.drafting.names_on_read:
            hashed = plan.named_before(step, is_read=False)
        return plan.held_before(step), hashed

    def _decoded_on(self, seq: Sequence) -> bool:
        plan = _plan_of(seq)
        assert plan is not None
        return self.draft_batch.num_steps > plan.end

    # --- leaping ----------------------------------------------------------------------------

    @property
    def _decode_budget(self) -> int:
        """Tokens of the budget that the decodes of a step take."""
        return self.draft_batch.num_decodes * (self.decode_tokens + self.draft_slots)

    def plan_leap(self) -> Leap | None:
        """Propose steps in which all running sequences verify all their drafts and nothing else happens."""
        batch, free = self.draft_batch, self.pool.num_free
        if not batch.num_decodes or self.prefills or len(self._in_flight) != self.is_async:
            return None
        if self._decode_budget > self._token_budget or batch.next_demand() > free:
            return None
        steps, cut = batch.next_end() - batch.num_steps, batch.next_cut() - batch.num_steps
        if self.is_async:
            if self._in_flight[0][1]:
                steps = 1
            elif batch.surprises():
                steps += 1
        steps = min(steps, cut, self._steps_blocked())
        if steps < 1:
            return None
        taken = batch.taken(steps)
        if taken[-1] > free:
            steps = int(taken.searchsorted(free, "right"))
        if steps < 1:
            return None
        drafted = DraftedSteps(batch.num_decodes * self.decode_tokens, batch.contexts(steps), taken[:steps])
        is_full = len(self.running) >= self._max_num_seqs
        ends_on_arrival = not self.is_fcfs or not (self.waiting or is_full)
        return new_leap((steps, batch.num_decodes, int(drafted.contexts[0]), ends_on_arrival, drafted))

    def _steps_blocked(self) -> int:
        """Return for how many steps the head of the queue surely stays out; with nobody waiting for ever."""
        if not self.waiting:
            return NEVER
        if self._blocked is None and len(self.running) >= self._max_num_seqs:
            self._blocked = NO_PLACE
        if self._blocked is None and self._look_ahead:
            self._blocked = self._head_stays_out()
        return 0 if self._blocked is None else self._blocked.limit - self.draft_batch.num_steps

    def commit_leap(self, num_steps: int) -> LeapOutputs:
        """Take `num_steps` steps of the leap just planned, at least one; all of them or cut short."""
        self.unfull = {}
        self._ended.clear()
        return super().commit_leap(num_steps)

    # --- one step ---------------------------------------------------------------------------

    def schedule(self) -> Step:
        """Decide one step (vLLM: same name)."""
        self.unfull = {}
        self._ended.clear()
        step = super().schedule()
        if step.chunks or self.unfull:  # the next one may have fewer tokens left: a smaller chunk may fit
            self._blocked = None
        return step

    def update_from_output(self) -> Outputs:
        """Read the tokens of the oldest scheduled step (vLLM: same name): first tokens and ends."""
        for request, num_tokens in self._stale:
            request.num_tokens = num_tokens
        self._stale.clear()
        return super().update_from_output()

    def _schedule_running(self, step: OpenStep) -> None:
        """Give each running request its next tokens: in closed form while all verify all their drafts."""
        batch, pool = self.draft_batch, self.pool
        need, tokens = batch.next_demand(), self._decode_budget
        if tokens > step.budget or batch.next_cut() == batch.num_steps:
            return self._walk(step)
        if self.prefills:
            seq = self.prefills[0]
            num_tokens = step.budget - tokens - self.draft_slots
            num_tokens = min(step.chunk_of(seq.num_tokens - seq.computed), num_tokens)
            if seq is not self.tail() or num_tokens <= 0:
                return self._walk(step)
            more = self.blocks(seq.computed + num_tokens) - self.blocks(seq.computed)
            if need + more > pool.num_free:
                return self._walk(step)
            pool.take(need + more)
            step.budget -= num_tokens + self.draft_slots
            self._add_chunk(seq, num_tokens, step)
        elif need <= pool.num_free:
            pool.take(need)
        elif self.is_fcfs and self.decode_tokens <= self.block_size:  # nobody takes two blocks
            preempt_tail(self, step, need)
        else:
            return self._walk(step)
        step.num_decodes, step.context = batch.num_decodes, batch.next_context()
        step.budget -= self._decode_budget
        return None

    def _add_chunk(self, seq: Sequence, num_tokens: int, step: OpenStep) -> None:
        """Note a running request's next chunk; blocks and budget are taken."""
        step.chunks.append(Chunk(seq.request, num_tokens, seq.computed))
        seq.computed += num_tokens
        if seq.run is not None:
            named = min(seq.computed, seq.num_tokens - self.drafting.hash_lookahead) // self.block_size
            seq.run.marks.append((named, 2 * self.draft_batch.num_steps, 0))
        if seq.computed == seq.num_tokens:
            self.prefills.remove(seq)
            step.completed.append(seq)

    def _walk(self, step: OpenStep) -> None:
        """Schedule the running requests one by one, as vLLM does."""
        order = list(self.running.values())
        served: dict[int, int] = {}
        at = 0
        while at < len(order) and step.budget > self.draft_slots:
            seq = order[at]
            num_tokens = self._wanted(seq, step)
            if num_tokens > 0:
                need = self._num_held(seq, num_tokens) - self._num_held(seq, 0)
                at = make_room(self, step, seq, need, order, served, at)
                if seq.stage is WAITING:
                    if self.victims_let_others_go_on:
                        continue
                    break
                self.pool.take(need)
                served[seq.admission] = num_tokens
                step.budget -= num_tokens + self.draft_slots
            at += 1
        for seq in order:
            self._settle(seq, served.get(seq.admission, 0), step)

    def _wanted(self, seq: Sequence, step: OpenStep) -> int:
        """Return the tokens that a running request gets of what is left."""
        if seq.stage is ENDING:
            return 0
        computed = seq.computed_at(self.draft_batch.num_steps)
        wanted = self.decode_tokens if seq.stage is DECODE else step.chunk_of(seq.num_tokens - computed)
        return min(wanted, step.budget - self.draft_slots, self.max_model_len - computed - 1)

    def _settle(self, seq: Sequence, num_tokens: int, step: OpenStep) -> None:
        """Book what a request that stayed got in this step."""
        if seq.stage is PREFILL:
            if num_tokens:
                self._add_chunk(seq, num_tokens, step)
            return
        if seq.stage is not DECODE:
            return
        assert isinstance(seq, DraftSequence)
        if num_tokens:
            step.num_decodes += 1
            step.context += seq.computed_at(self.draft_batch.num_steps) + num_tokens
        if num_tokens < self.decode_tokens:
            self.unfull[seq.request] = num_tokens
            self.draft_batch.cut(seq, num_tokens, self._num_held(seq, num_tokens))


def _plan_of(seq: Sequence) -> DraftPlan | None:
    """The plan of a sequence that decodes, or has just ended."""
    assert isinstance(seq, DraftSequence)
    return seq.plan if seq.stage in (DECODE, ENDING) else None
