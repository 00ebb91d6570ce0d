"""SGLang's scheduler: a pass is a prefill batch if one can be formed, else a decode of all running requests.

`schedule()` decides a pass and launches it, `process()` applies what it gave: the same pass in the normal loop,
the one before in the overlap loop. No clock, no randomness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvplan.schedulers.request import Request
from kvplan.schedulers.sglang.config import SGLangConfig
from kvplan.schedulers.sglang.kv_cache import KVCache
from kvplan.schedulers.sglang.prefill_adder import AddReqResult, PrefillAdder
from kvplan.schedulers.sglang.radix_cache import TokenId
from kvplan.schedulers.sglang.req import Req, ceil_page
from kvplan.schedulers.sglang.schedule_batch import NewTokenRatioTracker, ScheduleBatch
from kvplan.schedulers.sglang.schedule_policy import SchedulePolicy


class SGLangScheduler:
    """One engine (SGLang `managers/scheduler.py: Scheduler`)."""

    def __init__(self, config: SGLangConfig, token_id: TokenId | None = None) -> None:
        self.config = config
        self.cache = KVCache(config, token_id)
        self.policy = SchedulePolicy(config, self.cache, token_id)
        self.ratio = NewTokenRatioTracker(config.schedule_conservativeness)
        self.preempts = config.enable_priority_scheduling and not config.disable_priority_preemption
        self.waiting_queue: list[Req] = []
        self.running_batch = ScheduleBatch()
        self.last_batch: ScheduleBatch | None = None
        self.result_queue: deque[ScheduleBatch] = deque()
        self.chunked_req: Req | None = None
        self.retracted: list[Req] = []
        """In the last pass, in order."""
        self.preempted: list[Req] = []
        """In the last pass, for requests of higher priority."""
        self.oom_aborted: list[Req] = []
        """In the last pass: not even alone was there room for its next token."""
        self.dropped: list[Req] = []
        """Aborted outside of a result, since the last `schedule()`."""
        self.sampled: list[Req] = []
        """Those that got a token when a result was last applied."""
        self.rested = True
        """Whether the last pass had nothing to do and nothing to wait for (SGLang `on_idle`)."""
        self._pending_chunked_abort: Req | None = None
        self.decodes_before_prefill = 0
        """Decode passes to go before another prefill is tried (prefill_decode_interval)."""
        self.deferred = False
        """Whether the last pass tried no prefill for that reason."""
        self.refused: Req | None = None
        """The queue's head, if the last pass tried it in vain and nothing but a plain decode has happened since."""
        self.processed_tokens = 0
        """Prompt tokens that passes have computed (policy hrrn); decodes count their batch's again, as SGLang does."""
        self._num_queued = 0

    # --- requests come and go ---------------------------------------------------------------

    def add_request(self, request: Request, *, ignore_eos: bool = False) -> Req:
        """Queue a request; its output is cut to what the pool can hold, a prompt beyond that is refused.

        SGLang `handle_generate_request`, `init_req_max_new_tokens`.
        """
        config, prompt = self.config, request.num_prompt_tokens
        room = config.max_total_tokens - ceil_page(prompt, config.page_size) - config.page_size - 1
        max_new = max(0, min(request.max_tokens, config.max_req_len - prompt - 1, room))
        req = Req(request, max_new, request.priority, ignore_eos, prompt >= config.max_req_input_len)
        req.to_finish = req.refused
        self._enqueue(req)
        return req

    def abort_request(self, request_id: str) -> None:
        """Take a request out: at once if it waits, with its next token if it runs (SGLang: same name)."""
        if self.chunked_req is not None and self.chunked_req.rid == request_id:
            self._pending_chunked_abort = self.chunked_req
        for req in [r for r in self.waiting_queue if r.rid == request_id]:
            self.refused = None
            self.waiting_queue.remove(req)
            req.finish("abort")
            self.dropped.append(req)
        in_flight = self.running_batch.reqs + (self.last_batch.reqs if self.last_batch else [])
        for req in in_flight:
            if req.rid == request_id and not req.finished:
                req.to_finish = True

    def _enqueue(self, req: Req) -> None:
        self.refused = None
        self._num_queued += 1
        req.queue_entry = self._num_queued
        req.arrival_processed_tokens = self.processed_tokens
        self.waiting_queue.append(req)

    # --- a pass -----------------------------------------------------------------------------

    def schedule(self) -> ScheduleBatch | None:
        """Decide the next pass and launch it; None if there is nothing to launch."""
        self.retracted, self.preempted, self.oom_aborted = [], [], []
        batch = self.get_next_batch_to_run()
        if batch is not None:
            self.processed_tokens += batch.extend_num_tokens
            self.result_queue.append(batch.copy())
        return batch

    def process(self, batch: ScheduleBatch | None) -> ScheduleBatch | None:
        """End the pass: apply the result that is due, or rest; return what was applied (SGLang `event_loop_*`)."""
        is_overlap = self.config.enable_overlap
        result, self.sampled = None, []
        if len(self.result_queue) > (is_overlap and batch is not None):
            result = self.result_queue.popleft()
            self._process_batch_result(result)
        self.rested = result is None and batch is None and self.is_fully_idle
        if self.rested:
            self.ratio.reset()
        self.last_batch = batch
        return result

    @property
    def is_fully_idle(self) -> bool:
        """Whether nothing runs, waits or is in flight (SGLang: same name)."""
        last = self.last_batch
        return not (
            self.running_batch.reqs
            or self.chunked_req
            or (last and last.reqs)
            or self.result_queue
            or self.waiting_queue
        )

    def get_next_batch_to_run(self) -> ScheduleBatch | None:
        """Prefill if possible, else decode (SGLang: same name)."""
        self.refused = None
        self._process_pending_chunked_abort()
        self._merge_last_batch()
        self.drop_finished()
        batch = None if self._should_defer_prefill() else self._get_new_batch_prefill()
        if batch is None and self.running_batch.reqs and not self.running_batch.is_prefill_only:
            batch = self._update_running_batch(self.running_batch)
        if batch is not None and batch.is_extend:
            self.decodes_before_prefill = self.config.prefill_decode_interval
        return batch

    def drop_finished(self) -> None:
        """Take those that have ended out of the decode batch; others may be tried for their places."""
        running = self.running_batch
        num_running = len(running.reqs)
        running.filter()
        if len(running.reqs) < num_running:
            running.batch_is_full, self.refused = False, None

    def _process_pending_chunked_abort(self) -> None:
        """Drop a request between two chunks of its prefill (SGLang: same name)."""
        req, self._pending_chunked_abort = self._pending_chunked_abort, None
        if req is None or req.finished or not req.holds_row:
            return
        if self.chunked_req is not req:
            self.abort_request(req.rid)
            return
        req.finish("abort")
        self.cache.release(req, checkpoint=False)
        self.chunked_req = None
        self.dropped.append(req)

    def _merge_last_batch(self) -> None:
        """Requests whose prefill is done join the decode batch."""
        exclude: list[Req] = []
        chunked, last = self.chunked_req, self.last_batch
        if chunked is not None:
            exclude.append(chunked)
            if chunked.extend_end > chunked.prefix_len:
                self.cache.checkpoint(chunked)
        if last is None or not last.is_extend:
            return
        if last.chunked_req is not None:
            exclude.append(last.chunked_req)
        before = len(last.reqs)
        last.filter(exclude)
        if len(last.reqs) < before:
            self.running_batch.batch_is_full = False
        if last.reqs:
            if self.running_batch.reqs:
                self.running_batch.merge(last)
            else:
                self.running_batch = last

    def _should_defer_prefill(self) -> bool:
        """Decode some passes between two prefill passes, even if nobody is there to decode (SGLang: same name)."""
        self.deferred = self.decodes_before_prefill > 0
        self.decodes_before_prefill -= self.deferred
        return self.deferred

    # --- prefill ----------------------------------------------------------------------------

    def _get_new_batch_prefill(self) -> ScheduleBatch | None:
        """Form a prefill batch (SGLang `_get_new_batch_prefill_raw`)."""
        running, chunked = self.running_batch, self.chunked_req
        if self.preempts or not running.reqs:
            running.batch_is_full = False
        if chunked is None and (running.batch_is_full or not self.waiting_queue):
            return None
        if chunked is None and not self.preempts and self.num_allocatable() <= 0:
            running.batch_is_full = True
            return None
        self.policy.calc_priority(self.waiting_queue, self.processed_tokens)
        adder = PrefillAdder(self.config, self.cache, running, self.ratio.current)
        if chunked is not None:
            chunked.fill_len = chunked.seqlen
            adder.chunked_req_limit = self.policy.chunk_limit(
                chunked, self.waiting_queue, adder.rem_chunk_tokens or 0
            )
            self.chunked_req = adder.add_chunked_req(chunked)
        self._admit(adder)
        num_admitted = len(adder.can_run) - (chunked is not None)
        self.waiting_queue = self.waiting_queue[num_admitted:]  # in order, until one did not fit
        for req in adder.preempted:
            self._enqueue(req)
        self.preempted = adder.preempted
        if adder.can_run:
            return self._launch_prefill(adder)
        self.refused = None if adder.preempted else self.waiting_queue[0]
        return None

    def _admit(self, adder: PrefillAdder) -> None:
        """Add requests of the queue, in order, until one does not fit."""
        running = self.running_batch
        for req in self.waiting_queue:
            if adder.budget_state() is AddReqResult.OTHER:
                return
            held = sum(r.holds_row for r in adder.can_run)
            if len(adder.can_run) >= self.num_allocatable(held):
                running.batch_is_full = True
            if running.batch_is_full and not (self.preempts and adder.preempt_to_schedule(req)):
                return
            self.init_next_round_input(req)
            result = adder.add_one_req(req, self.chunked_req is not None)
            if result is AddReqResult.NO_TOKEN:
                running.batch_is_full = bool(adder.can_run or running.reqs)
            if result is not AddReqResult.CONTINUE:
                return

    def num_allocatable(self, num_held_rows: int = 0) -> int:
        """Requests that may be in a prefill batch (SGLang `get_num_allocatable_reqs`)."""
        return min(
            self.config.num_request_slots - len(self.running_batch.reqs),
            self.cache.num_free_rows + num_held_rows,
        )

    def init_next_round_input(self, req: Req) -> None:
        """Look up what is cached of a prompt, its last token left out (SGLang: same name)."""
        req.fill_len = req.seqlen
        self.cache.match(req, req.fill_len, max(req.fill_len - 1, 0))
        req.cache_protected_len = req.prefix_len

    def _launch_prefill(self, adder: PrefillAdder) -> ScheduleBatch:
        if adder.new_chunked_req is not None:
            self.chunked_req = adder.new_chunked_req
        if self.chunked_req is not None:
            self.chunked_req.inflight_middle_chunks += 1
        batch = ScheduleBatch(adder.can_run, chunked_req=self.chunked_req)
        batch.is_prefill_only = all(r.max_new_tokens == 0 for r in adder.can_run)
        batch.prepare_for_extend(self.cache)
        running = self.running_batch
        if self.config.enable_mixed_chunk and self.config.chunk_size and running.reqs:
            finishing = self._reqs_finishing_in_flight(running)
            running.filter(finishing)
            if finishing:
                running.batch_is_full = False
            if running.reqs and self.cache.has_room_for_decode(running.reqs):
                running.prepare_for_decode(self.cache)
                batch.mix_with_running(running)
                self.running_batch = ScheduleBatch(batch_is_full=running.batch_is_full)
        return batch

    # --- decode -----------------------------------------------------------------------------

    def _reqs_finishing_in_flight(self, batch: ScheduleBatch) -> Sequence[Req]:
        """Those whose last token, by length, is in flight (SGLang `_reqs_finishing_inflight`)."""
        if not self.config.enable_overlap or not self.result_queue:
            return ()
        queued = set(self.result_queue[0].reqs)
        return [r for r in batch.reqs if r in queued and r.next_output_finishes_by_length]

    def _update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch | None:
        """Decode one token of each running request, after retracting if memory is short (SGLang: same name)."""
        before = len(batch.reqs)
        finishing = self._reqs_finishing_in_flight(batch)
        batch.filter(finishing)
        if not batch.reqs:
            batch.batch_is_full = False
            return None
        is_short = not self.cache.has_room_for_decode(batch.reqs)
        if is_short and finishing:  # their memory comes free at the end of this pass
            batch.batch_is_full = False
            return None
        if is_short:
            self.retracted, self.oom_aborted = batch.retract_decode(self.cache)
            self.ratio.after_retract(batch.reqs)
            for req in self.retracted:
                self._enqueue(req)
        else:
            self.ratio.decay_step()
        if len(batch.reqs) < before:
            batch.batch_is_full = False
            self.refused = None
        if not batch.reqs:
            return None
        batch.prepare_for_decode(self.cache)
        return batch

    # --- results ----------------------------------------------------------------------------

    def _process_batch_result(self, batch: ScheduleBatch) -> None:
        """Append the tokens; publish prompts, release the finished (SGLang `SchedulerBatchResultProcessor`)."""
        is_extend, decoding = batch.is_extend, set(batch.decoding_reqs)
        if is_extend:
            self.refused = None
        for req in batch.reqs:
            if req.is_retracted or (req.finished and req.inflight_middle_chunks <= 0):
                continue
            if is_extend and req.inflight_middle_chunks > 0:
                req.inflight_middle_chunks -= 1
                continue
            req.sample()
            self.sampled.append(req)
            if req.finished:
                self.cache.release(req, checkpoint=True)
            elif is_extend and req not in decoding:
                self.cache.checkpoint(req)
