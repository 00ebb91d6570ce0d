"""vLLM's scheduler behind the protocol that the leap has too, so that one loop drives both.

Tells decodes from prompt chunks as the leap does: a request decodes once all tokens it had when it was admitted
are computed. Knows no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kvplan.schedulers.leap.allowed import has_one_full_group, why_no_visits
from kvplan.schedulers.leap.draft_visits import make_visits
from kvplan.schedulers.protocol import (
    NOTHING,
    AcceptDrafts,
    Chunk,
    DecodePath,
    FreeBlocks,
    Leap,
    LeapOutputs,
    Outputs,
    Step,
)
from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.adaptive_verification import AdaptiveVerification
from kvplan.schedulers.vllm.async_scheduler import make_scheduler
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.held_prefix import HeldPrefix, held_prefix
from kvplan.schedulers.vllm.idle_steps import IdleSteps
from kvplan.schedulers.vllm.offloading.jobs import (
    KVConnectorOutput,
    OffloadingConnectorMetadata,
    OffloadingDecisions,
)
from kvplan.schedulers.vllm.offloading.tiering import SecondaryTierManager, TieringOffloadingManager
from kvplan.schedulers.vllm.offloading.worker import Copies, OffloadingConnectorWorker
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.quiet_steps import QuietSteps


@dataclass(slots=True)
class OffloadTotals:
    """What an engine's tier did so far, in tokens, GPU blocks and chunks."""

    lookups: int = 0
    """Requests whose prompt was looked up there, each time once an answer came."""
    lookup_hits: int = 0
    """Those of them that loaded."""
    retries: int = 0
    """Times a request was told to ask again, since chunks of its prompt were under way."""
    loaded_tokens: int = 0
    load_jobs: int = 0
    load_blocks: int = 0
    store_jobs: int = 0
    store_blocks: int = 0
    stored_chunks: int = 0
    failed_offers: int = 0
    """Offers for which the tier had no room."""
    evicted_chunks: int = 0
    flushed_jobs: int = 0
    """Stores that a step waited for, since it wrote over their blocks."""

    def ask(self, decisions: OffloadingDecisions, times: int = 1) -> None:
        """Add the look-ups of one step, or of so many that are alike."""
        for _, _, found in decisions.lookups:
            self.retries += times * (found is None)
            self.lookups += times * (found is not None)

    def note(self, meta: OffloadingConnectorMetadata) -> None:
        """Add one step's decisions."""
        decisions = meta.decisions
        if not (decisions.lookups or decisions.offers or meta.load_jobs or meta.jobs_to_flush):
            return
        self.ask(decisions)
        self.lookup_hits += len(decisions.external)
        self.loaded_tokens += sum(decisions.external.values())
        self.load_jobs += len(meta.load_jobs)
        self.load_blocks += sum(job.num_blocks for job in meta.load_jobs)
        self.store_jobs += len(meta.store_jobs)
        self.store_blocks += sum(job.num_blocks for job in meta.store_jobs)
        self.stored_chunks += sum(len(job.keys) for job in meta.store_jobs)
        self.failed_offers += len(decisions.store_failed)
        self.evicted_chunks += len(decisions.evicted)
        self.flushed_jobs += len(meta.jobs_to_flush)


class StepByStep:
    """`Scheduler`, walking steps; the same methods and outcomes as `LeapScheduler`."""

    def __init__(
        self,
        config: EngineConfig,
        accept: AcceptDrafts | None = None,
        copies: Copies | None = None,
        leaps: bool = False,
        verification: AdaptiveVerification | None = None,
    ) -> None:
        """`copies` moves KV to and from the tier beyond the GPU, if the engine has one.

        It may leap between copies, and without a tier over decode steps in which few blocks change. `verification`
        says which drafts are verified; None: all.
        """
        assert (copies is None) == (config.kv_offloading is None)
        self.config = config
        self.offloaded = OffloadTotals()
        self._worker = OffloadingConnectorWorker(copies) if copies is not None else None
        self._kv_outputs: deque[KVConnectorOutput] = deque()
        self.scheduler = make_scheduler(config)
        self._accept = accept
        self._quiet = QuietSteps(self.scheduler) if leaps and copies is not None else None
        self._idle = IdleSteps(self.scheduler) if leaps and copies is not None else None
        self._verification = verification
        self._came_before: Collection[str] = ()
        """Requests admitted in the last step with tokens."""
        self._changes = (
            make_visits(self.scheduler, accept, verification) if not why_no_visits(config) else None
        )
        self._visits = self._changes if leaps else None
        self._in_flight: deque[tuple[SchedulerOutput, list[Request]]] = deque()
        self._prefill_ends: dict[str, int] = {}
        """Request id -> computed tokens at which its prefill is done."""

    def tier_counts(self) -> tuple[int, int, int, int, int, int]:
        """Slots taken in the tier beyond the GPU, GPU blocks loaded from it and stored there so far.

        Then of the tiers below it: files held, jobs that read files, jobs that write them.
        """
        loads = self.scheduler.loads
        if loads is None:
            return 0, 0, 0, 0, 0, 0
        manager, files, reads, jobs = loads.connector.manager, 0, 0, 0
        if isinstance(manager, TieringOffloadingManager):
            files = sum(len(tier.chunks) for tier in manager.secondary_tiers)
            reads, jobs = manager.num_promotions, manager.num_tier_jobs
        moved = self.offloaded
        return manager.num_used, moved.load_blocks, moved.store_blocks, files, reads, jobs - reads

    @property
    def secondary_tiers(self) -> list[SecondaryTierManager]:
        """Tiers below host memory; whoever has a clock gives each its `transfers`."""
        loads = self.scheduler.loads
        manager = loads.connector.manager if loads is not None else None
        return manager.secondary_tiers if isinstance(manager, TieringOffloadingManager) else []

    def held_prefix(self, request: Request) -> HeldPrefix:
        """What is held of the prompt of a request that is not here."""
        return held_prefix(self.scheduler, request)

    def add_request(self, request: Request) -> None:
        """Queue a new request."""
        self.scheduler.add_request(request)
        if self._visits is not None:
            self._visits.add_request(request)

    def abort(self, request_id: str) -> bool:
        """Take a request out, its blocks at once; False if it has ended already."""
        self._forget(request_id)
        return bool(self.scheduler.finish_requests([request_id]))

    def has_requests(self) -> bool:
        """Whether there is something to schedule or to pass on."""
        return self.scheduler.has_requests()

    def plan_leap(self) -> Leap | None:
        """Propose the steps between copies, of an engine with a tier; else those whose changes are known beforehand."""
        in_flight = self._in_flight[0][0] if self._in_flight else None
        if self._in_flight and self._in_flight[0][1]:
            return None
        if self._visits is not None:
            if self._came_before and self._verification is not None:
                return None  # whose drafts count as sure in the next step
            return self._visits.plan_leap(in_flight, self._prefill_ends)
        if self._quiet is None:
            return None
        steps = self._quiet.most_steps(in_flight)
        if steps < 2 or (in_flight is None and self.config.async_scheduling):
            return None
        running = self.scheduler.running
        context = sum(request.num_computed_tokens for request in running) + len(running)
        return Leap(steps, len(running), context, True)

    def commit_leap(self, num_steps: int) -> LeapOutputs:
        """Take steps of the leap just planned."""
        if self._visits is not None:
            outputs = self._visits.take(num_steps)
            for request in outputs.finished:
                self._forget(request.request_id)
            return LeapOutputs(NOTHING, outputs)
        assert self._quiet is not None
        self._quiet.take(num_steps)
        return LeapOutputs(NOTHING, NOTHING)

    def schedule(self) -> Step:
        """Decide one step and sort it into decodes and chunks."""
        scheduler = self.scheduler
        if self._visits is not None:
            self._visits.name_what_is_repeated()
        if self._idle is not None:
            tells = any(one.completed_jobs for one in self._kv_outputs)
            self._idle.begin(tells or any(one.num_scheduled_tokens for one, _ in self._in_flight))
        output = scheduler.schedule()
        requests = scheduler.requests
        if self._verification is not None and output.num_scheduled_tokens:
            if output.num_draft_tokens:
                output.num_verified_drafts = self._verification.verified(output, self._came_before)
            self._came_before = output.admitted
        trimmed = _trimmed(output)
        if self._worker is not None and output.kv_connector_metadata is not None:
            meta = output.kv_connector_metadata
            self.offloaded.note(meta)
            self._worker.handle_preemptions(meta)
            self._kv_outputs.append(self._worker.post_forward(meta))
        if self._idle is not None:
            self._idle.note(output)
        for request_id in output.admitted:
            self._prefill_ends[request_id] = requests[request_id].num_tokens
        chunks: list[Chunk] = []
        completed: list[Request] = []
        num_decodes = decode_context = decode_tokens = 0
        differ = (
            self._verification is not None or self.config.num_speculative_tokens_per_batch_size is not None
        )
        each = 0 if differ else 1 + scheduler.num_spec_tokens
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request, end = requests[request_id], self._prefill_ends[request_id]
            before = request.num_computed_tokens - num_tokens
            if before >= end:
                num_verified = num_tokens - trimmed.get(request_id, 0)
                num_decodes += 1
                decode_context += before + num_verified
                decode_tokens += each or num_verified
                continue
            chunks.append(Chunk(request, num_tokens, before))
            if before + num_tokens >= end:
                completed.append(request)
        self._in_flight.append((output, completed))
        admitted = [(requests[i], hit) for i, hit in output.admitted.items()]
        preempted = [requests[i] for i in output.preempted]
        return Step(num_decodes, decode_context, chunks, admitted, preempted, decode_tokens)

    @property
    def repeats(self) -> bool:
        """Whether the step just scheduled did nothing, nor will the next ones until a copy ends or requests change."""
        return self._idle is not None and self._idle.repeats

    def repeat(self, num_steps: int) -> None:
        """Schedule and read so many more steps like the newest one, which repeats."""
        meta = self.newest_output.kv_connector_metadata
        assert meta is not None
        self.scheduler.current_step += num_steps
        self.offloaded.ask(meta.decisions, num_steps)

    @property
    def newest_output(self) -> SchedulerOutput:
        """What the last `schedule()` decided, in the scheduler's own words."""
        return self._in_flight[-1][0]

    def update_from_output(self) -> Outputs:
        """Read the oldest scheduled step: which prefills gave a token, which requests ended."""
        output, completed = self._in_flight.popleft()
        scheduler = self.scheduler
        accepted = None
        if output.num_draft_tokens and self._accept is not None:
            live, verified = scheduler.requests, output.num_verified_drafts or output.num_draft_tokens
            accepted = {
                i: self._accept(live[i], n)
                for i, n in verified.items()
                if i in live and i not in output.admitted  # whose drafts are placeholders
            }
        first_tokens = [request for request in completed if request.request_id in scheduler.requests]
        kv_output = self._kv_outputs.popleft() if self._kv_outputs else None
        finished = scheduler.update_from_output(output, accepted, kv_output)
        for request in finished:
            self._forget(request.request_id)
        return Outputs(first_tokens, finished)

    def _forget(self, request_id: str) -> None:
        """A request has ended."""
        self._prefill_ends.pop(request_id, None)
        if self._visits is not None:
            self._visits.forget(request_id)

    def decode_path(self, request: Request) -> DecodePath | None:
        """None: a request's own counters tell it."""
        return None

    @property
    def keeps_counters(self) -> bool:
        """Every step counts."""
        return True

    @property
    def num_running(self) -> int:
        """Requests that hold a place in the batch."""
        return len(self.scheduler.running)

    @property
    def is_short(self) -> bool:
        """Whether the next decode step needs more blocks than there are, so that somebody is preempted."""
        config, size = self.config, self.config.block_size
        due = [r for r in self.scheduler.running if r.num_computed_tokens >= self._prefill_ends[r.request_id]]
        if self._changes is not None and not has_one_full_group(config):
            return self._changes.is_short_for(due)
        if not config.num_speculative_tokens:
            return sum(r.num_computed_tokens % size == 0 for r in due) > self.num_free_blocks
        more, longest = 1 + config.num_lookahead_tokens, config.max_model_len
        tables = self.scheduler.kv_cache_manager.coordinator.managers[0].req_to_blocks
        ends = ((r, min(r.num_computed_tokens + r.num_spec_tokens + more, longest)) for r in due)
        need = (-(-end // size) - len(tables[r.request_id]) for r, end in ends)
        return sum(max(0, blocks) for blocks in need) > self.num_free_blocks

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return self.scheduler.num_waiting

    @property
    def holds_back(self) -> bool:
        """Whether those that wait do so for company alone (`batch_wait`)."""
        return self.scheduler.held_back is not None and self.scheduler.held_back.holds

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken, cached ones included."""
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    @property
    def num_cached_free_blocks(self) -> int:
        """Free blocks that still hold reusable content."""
        return self.scheduler.kv_cache_manager.block_pool.num_cached_free_blocks

    @property
    def num_taken_blocks(self) -> int:
        """Blocks taken from the free queue so far."""
        return self.scheduler.kv_cache_manager.block_pool.num_taken

    def free_blocks_in(self, num_steps: int) -> int:
        """Return the free blocks that so many steps of the leap just planned leave."""
        if self._visits is not None:
            return self._visits.free_blocks_in(num_steps)
        assert self._quiet is not None
        return self._quiet.free_blocks_in(num_steps)

    def free_blocks_over(self, num_steps: int) -> FreeBlocks | None:
        """Between copies of a tier blocks are told at a leap's two ends."""
        return self._visits.free_blocks_over(num_steps) if self._visits is not None else None

    def head(self) -> Request:
        """The request that waits first."""
        loads = self.scheduler.loads
        queue = loads.holding if loads is not None and loads.holding else self.scheduler.waiting
        first: Request = queue.peek_request()
        return first


def _trimmed(output: SchedulerOutput) -> Mapping[str, int]:
    """Drafts that a step schedules and does not verify, by request."""
    verified = output.num_verified_drafts
    return {i: n - verified[i] for i, n in output.num_draft_tokens.items()} if verified is not None else {}
