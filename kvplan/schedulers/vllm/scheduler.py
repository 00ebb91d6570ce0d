"""Who runs in a step, and with how many tokens: vLLM V1's scheduler, decision for decision.

Mirrors `v1/core/sched/scheduler.py` of vLLM 0.32, and by `rules` that of other versions. There is no clock:
`schedule()` opens a step, `update_from_output()` applies what the model sampled in it. With asynchronous scheduling
step k + 1 is scheduled before the output of step k.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvplan.schedulers.request import Request, RequestStatus
from kvplan.schedulers.vllm.admission import ADMISSIONS, HeldBack
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.kv_cache_coordinator import CacheHit
from kvplan.schedulers.vllm.kv_cache_manager import KVCacheManager
from kvplan.schedulers.vllm.kv_loads import KVLoads
from kvplan.schedulers.vllm.mamba_split import MambaSplit
from kvplan.schedulers.vllm.offloading.jobs import KVConnectorOutput
from kvplan.schedulers.vllm.output import SchedulerOutput, StepBudget, check_stop
from kvplan.schedulers.vllm.prefill_cadence import PrefillCadence
from kvplan.schedulers.vllm.request_queue import QUEUES


class Scheduler:
    """The queues of one engine (vLLM: same name)."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.kv_cache_manager = KVCacheManager(config)
        self.requests: dict[str, Request] = {}
        self.waiting = QUEUES[config.policy]()
        self.running: list[Request] = []
        self.finished_req_ids: dict[str, None] = {}
        """Ended since the last schedule(), in order; vLLM keeps a set."""
        self.current_step = 0
        self.num_spec_tokens = config.num_speculative_tokens
        self.drafts_by_batch = config.drafts_by_batch
        self.pads_to_decodes = (
            self.num_spec_tokens > 0 and config.num_speculative_tokens_per_batch_size is None
        )
        """Whether a request admitted for one token gets as many rows as a decode."""
        self._by_priority = config.policy == "priority"
        self._max_model_len = config.max_model_len
        self._token_budget = config.token_budget
        self._max_num_active_reqs = config.max_num_active_reqs
        self._mamba_split = MambaSplit.of(config)
        self._reserves_full_isl = config.reserves_full_isl
        self._prefix_replay_tokens = config.prefix_replay_tokens if config.enable_prefix_caching else 0
        rules = config.rules
        self._counts_idle_victims = rules.idle_victims_move_nobody
        self._unchunked_heads_block = rules.unchunked_heads_block
        self._foresees_ends = rules.sure_ends_are_foreseen
        self._takes_back_tokens = rules.ends_take_back_tokens
        self._victims_let_others_go_on = self._by_priority and rules.victims_let_others_go_on
        self.caches_outputs = config.async_scheduling or (
            config.num_speculative_tokens > 0 and rules.verified_blocks_are_cached_at_once
        )
        self._prefill_cadence = PrefillCadence.of(config)
        self.blocks_to_leave = ADMISSIONS[config.admission]
        self.held_back = HeldBack(config, config.batch_wait) if config.batch_wait else None
        self.loads = KVLoads(config, self.kv_cache_manager) if config.kv_offloading is not None else None
        self.deferred_frees = self.loads.deferred_frees if self.loads is not None else None

    def add_request(self, request: Request) -> None:
        """Queue a new request (vLLM: same name)."""
        assert request.request_id not in self.requests, f"duplicate request id {request.request_id}"
        self.requests[request.request_id] = request
        self.waiting.add_request(request)
        if self.loads is not None:
            self.loads.connector.on_new_request(request)

    @property
    def num_waiting(self) -> int:
        """Requests in the queues, loading ones included."""
        return len(self.waiting) + (len(self.loads.holding) if self.loads is not None else 0)

    def has_unfinished_requests(self) -> bool:
        """Whether anything runs or waits (vLLM: same name)."""
        return bool(self.running or self.num_waiting)

    def has_requests(self) -> bool:
        """Whether schedule() has something to say: also that requests have finished, or copies are under way.

        (vLLM: same name.)
        """
        if self.has_unfinished_requests() or self.finished_req_ids:
            return True
        return self.loads is not None and (
            bool(self.requests) or self.loads.connector.has_pending_push_work()
        )

    def schedule(self) -> SchedulerOutput:
        """Choose the next step's batch: running requests first, then waiting ones (vLLM: same name)."""
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        output = SchedulerOutput(self.current_step)
        config = self.config
        budget = StepBudget(
            tokens=self._token_budget,
            inputs=config.max_num_batched_tokens,
            draft_slots=config.draft_slots,
            chunk=config.prefill_cap(len(self.running) + self.num_waiting),
        )
        if self._prefill_cadence:
            budget.defers_prefills = self._prefill_cadence.defers(self.running)
        self._schedule_running(output, budget)
        held = (
            self.held_back is not None
            and bool(self.waiting)
            and self.held_back(
                (r.num_tokens for r in self.waiting), len(self.running), output.total_num_scheduled_tokens
            )
        )
        if not output.preempted and not held:
            self._schedule_waiting(output, budget)
            if self.held_back is not None and output.admitted:
                self.held_back.in_vain = False
            if self._prefill_cadence:
                self._prefill_cadence.note_waiting(self.waiting, budget)
        if self._prefill_cadence:
            self._prefill_cadence.note_step(output, budget)
        self.kv_cache_manager.free_copied_blocks()
        if self.loads is not None:
            finished = [*self.finished_req_ids]
            output.kv_connector_metadata = self.loads.connector.build_connector_meta(output, finished)
        if self.deferred_frees is not None and output.num_scheduled_tokens:
            self.deferred_frees.step_scheduled(self.requests[i] for i in output.num_scheduled_tokens)
        output.num_spec_tokens_to_schedule = self.drafts_by_batch[len(output.num_scheduled_tokens)]
        self._update_after_schedule(output)
        return output

    def _schedule_running(self, output: SchedulerOutput, budget: StepBudget) -> None:
        """Give each running request its next tokens, in order, preempting others if blocks run out."""
        index = 0
        while index < len(self.running) and budget.tokens > 0 and budget.inputs > budget.draft_slots:
            request = self.running[index]
            num_new_tokens = self._num_new_tokens(request, budget)
            if num_new_tokens > 0:
                if request.num_computed_tokens + num_new_tokens >= request.num_slots:
                    index = self._make_room(index, num_new_tokens, output, budget)
                    if index < 0:
                        return
                    if request.status is not RequestStatus.RUNNING:
                        if self._victims_let_others_go_on:
                            continue
                        return
                budget.prefill_scheduled |= request.is_prefill_chunk
                self._schedule_drafts(request, num_new_tokens, output)
                output.num_scheduled_tokens[request.request_id] = num_new_tokens
                budget.take(num_new_tokens)
            index += 1

    def _num_new_tokens(self, request: Request, budget: StepBudget) -> int:
        """Return how many tokens a running request gets within budget and model length, drafts and all."""
        computed, placeholders = request.num_computed_tokens, request.num_output_placeholders
        if (
            placeholders
            and self._foresees_ends
            and computed + 2 - placeholders >= request.num_prompt_tokens + request.max_tokens
        ):
            return 0  # the step in flight surely ends it
        if budget.defers_prefills and request.is_prefill_chunk:
            return 0
        num_new_tokens = request.num_tokens + request.num_spec_tokens + placeholders - computed
        if 0 < budget.chunk < num_new_tokens:
            num_new_tokens = budget.chunk
        num_new_tokens = min(num_new_tokens, budget.available(), self._max_model_len - computed - 1)
        return self._mamba_split.clip(request, num_new_tokens) if self._mamba_split else num_new_tokens

    def _make_room(self, index: int, num_new_tokens: int, output: SchedulerOutput, budget: StepBudget) -> int:
        """Preempt others until a running request has its slots, or it was the last to go; return its place then.

        -1 = the next victim's blocks are in the step in flight: nobody gets anything before that is processed.
        """
        request = self.running[index]
        while not self.kv_cache_manager.allocate_slots(request, num_new_tokens):
            victim = self.running[-1]
            if self._by_priority:
                victim = max(self.running, key=lambda r: (r.priority, r.arrival_time))
            if self.deferred_frees is not None and not self.deferred_frees.can_free(victim):
                return -1
            if self._by_priority:
                place = self.running.index(victim)
                del self.running[place]
                scheduled = victim.request_id in output.num_scheduled_tokens
                index -= place < index and (scheduled or self._counts_idle_victims)
                if scheduled:
                    budget.give_back(output.num_scheduled_tokens.pop(victim.request_id))
                    output.num_draft_tokens.pop(victim.request_id, None)
            else:
                self.running.pop()
            self._preempt_request(victim)
            output.preempted.append(victim.request_id)
            if victim is request:
                break
        return index

    def _schedule_drafts(self, request: Request, num_new_tokens: int, output: SchedulerOutput) -> None:
        """Note how many of the tokens are drafts; the budget may have cut some."""
        if request.num_spec_tokens:
            past = request.num_computed_tokens + num_new_tokens - request.num_tokens
            num_drafts = past - request.num_output_placeholders
            if num_drafts > 0:
                output.num_draft_tokens[request.request_id] = min(num_drafts, request.num_spec_tokens)
            request.num_spec_tokens = 0

    def _preempt_request(self, request: Request) -> None:
        """Take all blocks back; the request starts over from the front of the queue (vLLM: same name)."""
        self.kv_cache_manager.free(request)
        if self.loads is not None:
            self.loads.inflight_prefills.pop(request, None)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        request.num_spec_tokens = 0
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        request.num_preemptions += 1
        self.waiting.prepend_requests([request])

    def _schedule_waiting(self, output: SchedulerOutput, budget: StepBudget) -> None:
        """Admit waiting requests while tokens, places and blocks last; one that must wait blocks the rest.

        Those that hold blocks, for their load, come before all others.
        """
        skipped: list[Request] = []
        loads = self.loads
        while budget.tokens > 0 and budget.inputs > budget.draft_slots:
            queue = loads.holding if loads is not None and loads.holding else self.waiting
            if not queue or len(self.running) >= self._max_num_active_reqs:
                break
            request: Request = queue.peek_request()
            if loads is not None and not loads.is_ready(request):
                loads.skipped.append(queue.pop_request())
            elif request.num_stale_output_tokens:  # its last output is not in yet
                skipped.append(queue.pop_request())
                if self._prefill_cadence:
                    self._prefill_cadence.deferred.add(request)
            elif self._admit(request, output, budget):
                queue.pop_request()
            elif loads is not None and loads.passes(request):
                (loads.skipped if loads.holds(request) else skipped).append(queue.pop_request())
            elif self._is_passed_over(request, output, budget):
                skipped.insert(0, queue.pop_request())
            else:
                break
        self.waiting.prepend_requests(reversed(skipped))
        if loads is not None:
            loads.requeue_skipped()

    def _is_passed_over(self, request: Request, output: SchedulerOutput, budget: StepBudget) -> bool:
        """Say whether a prompt that cannot be cut lets those behind it go first, as it once did."""
        if self._unchunked_heads_block or self.config.enable_chunked_prefill:
            return False
        num_hit_tokens = self.kv_cache_manager.get_computed_blocks(request).num_tokens
        return not self.first_chunk(request, num_hit_tokens, output, budget)[0]

    def _admit(self, request: Request, output: SchedulerOutput, budget: StepBudget) -> bool:
        """Look up the prefix cache, size the first chunk, take blocks; False if the request must wait."""
        hit, num_external = self.kv_cache_manager.empty_hit, 0
        if not request.num_computed_tokens:
            hit = self.look_up(request)
            if self.loads is not None:
                found = self._load(self.loads, request, hit)
                if found is None:
                    return False
                num_external = found
        num_replay_tokens = hit.num_replay_tokens
        num_computed_tokens = request.num_computed_tokens + hit.num_tokens + num_external - num_replay_tokens
        num_new_tokens, num_drafts = self.first_chunk(
            request, hit.num_tokens + num_external, output, budget, num_replay_tokens
        )
        if num_new_tokens == 0 or not self.kv_cache_manager.allocate_slots(
            request,
            num_new_tokens,
            hit,
            full_sequence_must_fit=self._reserves_full_isl,
            reserved_blocks=self.blocks_to_leave(
                self.kv_cache_manager, self.running, request, num_computed_tokens + num_new_tokens
            ),
            has_scheduled_reqs=bool(self.running),
            num_external_tokens=num_external,
        ):
            return False
        if num_external and self.loads is not None:
            self.loads.connector.update_state_after_alloc(request, num_external)
        self.running.append(request)
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = num_computed_tokens
        output.admitted[request.request_id] = num_computed_tokens
        budget.prefill_admitted |= num_computed_tokens < request.num_tokens - 1
        if self.loads is not None and num_computed_tokens + num_new_tokens < request.num_tokens:
            self.loads.inflight_prefills[request] = None
        output.num_scheduled_tokens[request.request_id] = num_new_tokens
        if num_drafts:
            output.num_draft_tokens[request.request_id] = num_drafts
        budget.take(num_new_tokens)
        return True

    def look_up(self, request: Request) -> CacheHit:
        """Find a waiting request's cached prefix, and where others share more of it than a sparse group has.

        A hit that would all be computed again, for windows out of prefix caching, is none.
        """
        hit = self.kv_cache_manager.get_computed_blocks(request)
        uncached = hit.num_uncached_common_prefix_tokens
        request.shared_prefix_boundary = hit.num_tokens + uncached if uncached else 0
        if not self._prefix_replay_tokens or not hit.num_tokens:
            return hit
        if hit.num_tokens <= self._prefix_replay_tokens:
            return self.kv_cache_manager.empty_hit
        return hit._replace(num_replay_tokens=self._prefix_replay_tokens)

    def _load(self, loads: KVLoads, request: Request, hit: CacheHit) -> int | None:
        """Ask the tier what it has after the GPU's hit; return the tokens that are loaded inside this step.

        None = the request is not admitted now: it waits for its load, asks again in the next step, or has no room for
        the load and blocks the rest.
        """
        num_external = loads.connector.get_num_new_matched_tokens(request, hit.num_tokens)
        if num_external == 0 or loads.connector.loads_in_step(request):
            return num_external
        if num_external is None:
            loads.passed = request
            return None
        if self.kv_cache_manager.allocate_slots(
            request,
            0,
            hit,
            full_sequence_must_fit=self._reserves_full_isl,
            reserved_blocks=loads.reserved_blocks(),
            has_scheduled_reqs=bool(self.running),
            num_external_tokens=num_external,
            loads_later=True,
        ):
            loads.connector.update_state_after_alloc(request, num_external)
            loads.start(request, hit.num_tokens + num_external)
        return None

    def first_chunk(
        self,
        request: Request,
        num_hit_tokens: int,
        output: SchedulerOutput,
        budget: StepBudget,
        num_replay_tokens: int = 0,
    ) -> tuple[int, int]:
        """Return the tokens of an admission and how many are placeholder drafts; (0, 0) = not in this step.

        A single-token admission beside decodes is padded to a decode's size, so that one CUDA graph fits all; not where
        that size changes from step to step.
        """
        num_computed_tokens = request.num_computed_tokens + num_hit_tokens - num_replay_tokens
        num_new_tokens, num_drafts = request.num_tokens - num_computed_tokens, 0
        if budget.defers_prefills and num_new_tokens > 1:
            return 0, 0
        decodes = bool(output.num_scheduled_tokens) and len(output.num_scheduled_tokens) > len(
            output.admitted
        )
        if self.pads_to_decodes and num_new_tokens == 1 and not budget.prefill_scheduled:
            padded = 1 + self.num_spec_tokens
            if (decodes or num_computed_tokens) and num_computed_tokens + padded + 1 <= self._max_model_len:
                if padded > budget.available():
                    return 0, 0
                num_new_tokens, num_drafts = padded, self.num_spec_tokens
        if 0 < budget.chunk < num_new_tokens:
            num_new_tokens = budget.chunk
        if not self.config.enable_chunked_prefill and num_new_tokens > budget.available():
            return 0, 0
        num_new_tokens = min(num_new_tokens, budget.available())
        if self._mamba_split:
            num_new_tokens = self._mamba_split.clip(request, num_new_tokens, num_hit_tokens)
            if num_drafts and num_new_tokens not in (0, 1 + num_drafts):
                return 1, 0
        return num_new_tokens, num_drafts

    def _update_after_schedule(self, output: SchedulerOutput) -> None:
        """Count the step's tokens as computed, so that the next can be scheduled (vLLM: same name)."""
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            request.num_computed_tokens += num_tokens
            request.num_in_flight_tokens += num_tokens
            known = request.num_tokens + request.num_output_placeholders
            request.is_prefill_chunk = request.num_computed_tokens < known
            if request.is_prefill_chunk:
                output.prefill_chunks.add(request_id)
            elif self.loads is not None:
                self.loads.inflight_prefills.pop(request, None)
        self.finished_req_ids = {}

    def update_from_output(
        self,
        output: SchedulerOutput,
        accepted: Mapping[str, int] | None = None,
        kv_connector_output: KVConnectorOutput | None = None,
    ) -> list[Request]:
        """Apply what the model sampled in a step; return the requests that ended (vLLM: same name).

        A request samples one token, and one more for each of its `accepted` drafts; one in mid prompt samples
        none.
        """
        finished = []
        if self.deferred_frees is not None and output.num_scheduled_tokens:
            self.deferred_frees.step_processed()
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self.requests.get(request_id)
            if request is None or request.is_finished:
                continue  # aborted or ended while the step ran
            request.num_in_flight_tokens -= num_tokens
            is_stale = request.num_stale_output_tokens > 0
            if is_stale:
                request.num_stale_output_tokens -= num_tokens
            if request_id in output.prefill_chunks:
                continue
            num_sampled = 1 + (accepted.get(request_id, 0) if accepted else 0)
            num_drafts = output.num_draft_tokens.get(request_id, 0)
            if num_drafts and not is_stale:
                num_rejected = num_drafts + 1 - num_sampled
                if request.num_computed_tokens > 0:
                    request.num_computed_tokens -= num_rejected
                if request.num_output_placeholders > 0:
                    request.num_output_placeholders -= num_rejected
            if self._update_request_with_output(request, num_sampled, is_stale):
                finished.append(request)
                self._free_request(request)
        self._remove(finished)
        self._update_draft_token_ids(output)
        if kv_connector_output is not None:
            self._update_from_kv_xfer_finished(kv_connector_output)
        return finished

    def read_last(self, requests: Iterable[Request]) -> list[Request]:
        """Read the last token of requests that decode, nothing in flight, and let them go, in order; return them."""
        finished = [r for r in requests if self._update_request_with_output(r, 1, False)]
        for request in finished:
            self._free_request(request)
        self._remove(finished)
        return finished

    def _update_from_kv_xfer_finished(self, kv_connector_output: KVConnectorOutput) -> None:
        """Take in which copies have ended: loaded requests can go on, aborted ones give their blocks back.

        (vLLM: same name.)
        """
        assert self.loads is not None
        self.loads.connector.update_connector_output(kv_connector_output)
        for request_id in kv_connector_output.finished_recving:
            request = self.requests[request_id]
            if request.is_finished:
                self._free_blocks(request)
            else:
                self.loads.finished_recving.add(request)

    def _update_request_with_output(self, request: Request, num_sampled: int, is_stale: bool) -> bool:
        """Append sampled tokens up to an end; was there one? Name blocks that are full of known tokens now."""
        was_running, num_tokens = request.status is RequestStatus.RUNNING, request.num_tokens
        stopped = check_stop(request, num_sampled, self._max_model_len)
        num_new = request.num_tokens - num_tokens
        if self.config.async_scheduling and not is_stale:
            request.num_output_placeholders -= num_new
        if was_running and self.caches_outputs:
            past_end = num_sampled - num_new
            known = request.num_computed_tokens - request.num_in_flight_tokens - past_end
            self.kv_cache_manager.cache_blocks(request, known)
        if stopped and self._takes_back_tokens and not is_stale:
            request.num_computed_tokens -= num_sampled - num_new
        return stopped

    def _update_draft_token_ids(self, output: SchedulerOutput) -> None:
        """Take the drafter's tokens for each request past its prompt (vLLM `update_draft_token_ids`)."""
        if self.num_spec_tokens:
            made = output.num_spec_tokens_to_schedule
            for request_id in output.num_scheduled_tokens:
                request = self.requests.get(request_id)
                if request is not None:
                    request.num_spec_tokens = 0 if request.is_prefill_chunk else made

    def finish_requests(
        self, request_ids: Iterable[str], status: RequestStatus = RequestStatus.FINISHED_ABORTED
    ) -> list[Request]:
        """End requests from outside, wherever they are; their blocks are free at once (vLLM: same name)."""
        found = [self.requests[i] for i in dict.fromkeys(request_ids) if i in self.requests]
        live = [request for request in found if not request.is_finished]
        self._remove(live)
        for request in live:
            is_loading = self.loads is not None and self.loads.is_loading(request)
            request.status = status
            self._free_request(request, delay_free_blocks=is_loading)
        return live

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> None:
        """Forget a finished request and give back its blocks, after its load if there is one (vLLM: same name)."""
        if self.loads is not None:
            self.loads.forget(request)
            processed = max(0, request.num_computed_tokens - request.num_in_flight_tokens)
            self.kv_cache_manager.remove_skipped_blocks(request.request_id, processed)
            self.loads.connector.request_finished(request)
        self.finished_req_ids[request.request_id] = None
        if not delay_free_blocks:
            self._free_blocks(request)

    def _free_blocks(self, request: Request) -> None:
        """Give back a finished request's blocks, once the step in flight no longer writes them (vLLM: same name)."""
        if self.deferred_frees is None or self.deferred_frees.can_free(request):
            self.kv_cache_manager.free(request)
        else:
            self.deferred_frees.defer(request)
        self.kv_cache_manager.hasher.forget(request.request_id)
        del self.requests[request.request_id]

    def _remove(self, requests: list[Request]) -> None:
        """Take requests out of the queues."""
        if requests:
            gone = set(requests)
            num_running = len(self.running)
            self.running = [request for request in self.running if request not in gone]
            if num_running - len(self.running) < len(gone):
                self.waiting.remove_requests(gone)
                if self.loads is not None:
                    self.loads.holding.remove_requests(gone)
