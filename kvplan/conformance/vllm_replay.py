"""Runs a scenario step by step and logs every decision, in the format of the reference logs.

The model is a stand-in: what a request samples is fixed by the scenario. Synchronous: schedule a step, apply
its output. Asynchronous: schedule step s, then apply the output of step s - 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from kvplan.conformance.replay import MAX_STEPS, STUCK_STEPS, ReplayResult, ScenarioReplay, sha256_of
from kvplan.conformance.scenario import ScenarioRequest
from kvplan.conformance.vllm_offload import ChunkNames, StepCopies, StepFiles, TierScenario, VLLMRequest
from kvplan.conformance.vllm_records import OffloadRecord, StepRecord
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.conformance.vllm_stuck import Stuck, find_stuck
from kvplan.schedulers.request import Request, RequestStatus
from kvplan.schedulers.vllm.async_scheduler import make_scheduler
from kvplan.schedulers.vllm.caveats import caveats
from kvplan.schedulers.vllm.kv_loads import KVLoads
from kvplan.schedulers.vllm.offloading.jobs import KVConnectorOutput, OffloadingConnectorMetadata
from kvplan.schedulers.vllm.offloading.tiering import TieringOffloadingManager
from kvplan.schedulers.vllm.offloading.worker import OffloadingConnectorWorker
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.scheduler import Scheduler

_PLACES = {RequestStatus.RUNNING: "running", RequestStatus.WAITING_FOR_REMOTE_KVS: "loading"}


class OffloadReplay:
    """The worker of a scenario with a tier, and what is logged of both."""

    def __init__(self, scheduler: Scheduler, loads: KVLoads, copies: StepCopies) -> None:
        self.scheduler = scheduler
        self.loads = loads
        self.connector = loads.connector
        self.worker = OffloadingConnectorWorker(copies)
        self.names = ChunkNames(len(scheduler.kv_cache_manager.coordinator.managers))
        self._outputs: deque[KVConnectorOutput] = deque()
        self._files: list[StepFiles] = []
        self._tiers: TieringOffloadingManager | None = None

    def set_tiers(self, tiers: Sequence[TierScenario]) -> None:
        """Give each tier below host memory its threads."""
        manager = self.connector.manager
        if isinstance(manager, TieringOffloadingManager):
            self._tiers, manager.log = manager, []
            self._files = [StepFiles(tier) for tier in tiers]
            for tier, files in zip(manager.secondary_tiers, self._files, strict=True):
                tier.transfers = files

    def step_begins(self) -> None:
        """Let a step pass for files."""
        for files in self._files:
            files.clock += 1

    def execute(
        self, meta: OffloadingConnectorMetadata, record: StepRecord, requests: Iterable[Request]
    ) -> None:
        """Do the worker's part of a step."""
        decisions, manager = meta.decisions, self.connector.manager
        for request_id, keys in decisions.offers:
            self.names.note(request_id, keys)
        record.offload = OffloadRecord(
            lookups=decisions.lookups,
            ext=decisions.external,
            load=[(j.job_id, j.request_id, j.num_blocks, self.names(j.keys)) for j in meta.load_jobs],
            store=[(j.job_id, j.request_id, j.num_blocks, self.names(j.keys)) for j in meta.store_jobs],
            store_failed=decisions.store_failed,
            flush=sorted(meta.jobs_to_flush),
            cpu_evicted=self.names(decisions.evicted),
            cpu_used=manager.num_used,
            cpu_pinned=manager.num_pinned,
            cpu_writing=manager.num_write_pending,
            remote=[r.request_id for r in requests if r.status is RequestStatus.WAITING_FOR_REMOTE_KVS],
            holding=[r.request_id for r in self.loads.holding],
            deferred=self._deferred(),
            fenced=self.connector.num_fenced_blocks,
            jobs=self.connector.num_jobs,
        )
        self.note_tiers(record.offload)
        record.group_used = self.blocks_of_groups()
        self.worker.handle_preemptions(meta)
        self._outputs.append(self.worker.post_forward(meta))

    def note_tiers(self, record: OffloadRecord) -> None:
        """Write down the jobs that tiers below host memory have begun."""
        if self._tiers is None or self._tiers.log is None:
            return
        for job in self._tiers.log:
            begun = record.promotions if job.is_promotion else record.cascades
            names = self.names(job.keys)
            begun.append((job.job_id, job.tier, job.request_id, names if job.is_promotion else sorted(names)))
        self._tiers.log.clear()
        record.tier_jobs = self._tiers.num_tier_jobs

    def _deferred(self) -> int:
        """Count the blocks kept back: from 0.33 on without what windows have left behind."""
        deferred = self.loads.deferred_frees
        if deferred is None:
            return 0
        newer = self.scheduler.config.rules.version >= (0, 33)
        return deferred.num_held_blocks if newer else deferred.num_blocks

    def blocks_of_groups(self) -> list[int]:
        """Count the blocks in each group's tables; those kept back for a step are in none."""
        managers = self.scheduler.kv_cache_manager.coordinator.managers
        tables = [manager.req_to_blocks.values() for manager in managers]
        return [len({b for table in t for b in table if not b.is_null}) for t in tables]

    def read(self, record: StepRecord) -> KVConnectorOutput:
        """Return what the oldest step's poll saw."""
        output = self._outputs.popleft()
        record.offload = record.offload or OffloadRecord()
        record.offload.completed += sorted(output.completed_jobs)
        return output


def offload_sha256(result: ReplayResult[StepRecord]) -> str:
    """Hash over all that was decided about the tier."""
    return sha256_of((step.offload or OffloadRecord()).line() for step in result.steps)


class VLLMReplay(ScenarioReplay[VLLMRequest, StepRecord]):
    """One run of a scenario on the twin of vLLM's scheduler, or on another one with its methods."""

    def __init__(self, scenario: VLLMScenario, scheduler: Scheduler | None = None) -> None:
        super().__init__(scenario.requests)
        self.scenario = scenario
        self.scheduler = scheduler or make_scheduler(scenario.engine_config)
        self.manager = self.scheduler.kv_cache_manager
        self.pool = self.manager.block_pool
        self.requests: dict[str, Request] = {}
        self._defs = {request.id: request for request in scenario.requests}
        self._in_flight: deque[SchedulerOutput] = deque()
        self._arrival: int | None = 0
        """When the next request comes, as far as is known."""
        self._offload: OffloadReplay | None = None
        if scenario.offload is not None and self.scheduler.loads is not None:
            copies = StepCopies(scenario.offload)
            self._offload = OffloadReplay(self.scheduler, self.scheduler.loads, copies)
            self._offload.set_tiers(scenario.offload.secondary_tiers)

    def iter_steps(self, max_steps: int = MAX_STEPS) -> Iterator[StepRecord]:
        """Yield a record per step until all is done, or stuck for good."""
        idle_steps = 0
        while self.step <= max_steps and not (idle_steps > STUCK_STEPS and not self._abort_ahead()):
            record = StepRecord(self.step, self._arrivals())
            self._aborts(record, "before_schedule")
            if self._has_requests():
                output = self._schedule(record)
                busy = record.n_tokens > 0 or any(o.num_scheduled_tokens for o in self._in_flight)
                idle_steps = 0 if busy or self._copies_run() else idle_steps + 1
                self._in_flight.append(output)
                holds_back = self.scenario.async_scheduling and len(self._in_flight) < 2
                if not (holds_back and (record.n_tokens or self._has_requests())):
                    self._aborts(record, "before_output")
                    self._apply(record)
            elif self._in_flight:
                self._aborts(record, "before_output")
                self._apply(record)
            elif self._arrival is None:
                break
            else:
                self.step = max(self.step, self._arrival)
                continue
            self._count_blocks(record)
            yield record
            self.step += 1
        self.stuck = idle_steps > STUCK_STEPS

    def find_stuck(self) -> Stuck | None:
        """Say what a run that is stuck waits for."""
        return find_stuck(self.scheduler)

    def totals(self, result: ReplayResult[StepRecord]) -> dict[str, object]:
        """Return a run's totals and hashes."""
        return self._decisions(result) | {
            "output_tokens": sum(request.num_output_tokens for request in self.requests.values()),
            "evicted": sum(step.evicted for step in result.steps),
            "peak_used": max((step.used or 0 for step in result.steps), default=0),
            "state_sha256": result.state_sha256,
            **({"offload_sha256": offload_sha256(result)} if self._offload else {}),
            "caveats": caveats(self.scheduler.config),
        }

    def _decisions(self, result: ReplayResult[StepRecord]) -> dict[str, object]:
        """Sum up what was decided, blocks apart."""
        steps = result.steps
        return {
            "type": "summary",
            "steps": len(steps),
            "stuck": result.stuck,
            "preemptions": sum(len(step.preempted) for step in steps),
            "scheduled_tokens": sum(step.n_tokens for step in steps),
            "hit_tokens": sum(sum(step.hits.values()) for step in steps),
            "sched_sha256": result.sched_sha256,
        }

    def _copies_run(self) -> bool:
        return self._offload is not None and self._offload.connector.has_pending_push_work()

    def _has_requests(self) -> bool:
        return self.scheduler.has_requests()

    def _add_request(self, request: Request) -> None:
        self.scheduler.add_request(request)

    def _abort(self, request_id: str) -> None:
        self.scheduler.finish_requests([request_id])

    def _count_blocks(self, record: StepRecord) -> None:
        record.free_end = self.pool.get_num_free_blocks()
        record.cached_end = self.pool.num_cached_blocks
        record.group_end = list(self.pool.num_used_by_group)
        if self._offload is not None:
            record.group_end = self._offload.blocks_of_groups()

    def _arrivals(self) -> list[str]:
        if self._arrival is None or self._arrival > self.step:
            return []
        ready = self._take_arrivals()
        for request in ready:
            self.requests[request.id] = self.scenario.make_request(request, len(self.requests) + 1)
            self._add_request(self.requests[request.id])
        self._arrival = self._next_arrival()
        return [request.id for request in ready]

    def _note_finish(self, request_id: str) -> None:
        self.finish[request_id] = self.step
        self._arrival = self._next_arrival()

    def _aborts(self, record: StepRecord, when: str) -> None:
        """Abort what is due; an abort that no output followed is read before the next schedule()."""
        for definition in self._to_abort:
            request_id, due = definition.id, self._abort_due(definition)
            if request_id not in self.requests or request_id in self.finish or due is None or due > self.step:
                continue
            if when == definition.abort_when or (when == "before_schedule" and due < self.step):
                request = self.requests[request_id]
                place = _PLACES.get(request.status, "waiting")
                self._abort(request_id)
                record.aborted.append((request_id, place, request.num_output_tokens))
                self._note_finish(request_id)

    def _schedule(self, record: StepRecord) -> SchedulerOutput:
        before = self.pool.num_taken, self.pool.num_evicted, self.manager.num_recycled
        record.free_before = self.pool.get_num_free_blocks()
        running = [request.request_id for request in self.scheduler.running]
        if self._offload is not None:
            self._offload.step_begins()
        output = self._decide()
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            computed = request.num_computed_tokens - num_tokens
            kind = self._kind(request, num_tokens, computed, output)
            record.sched.append((request_id, num_tokens, computed, kind))
        record.hits = dict(output.admitted)
        victims = set(output.preempted)
        record.preempted = [i for i in reversed(running) if i in victims]
        record.new_blocks = self.pool.num_taken - before[0]
        record.evicted = self.pool.num_evicted - before[1]
        record.recycled = self.manager.num_recycled - before[2]
        record.n_tokens = output.total_num_scheduled_tokens
        record.free = self.pool.get_num_free_blocks()
        record.used = self.pool.num_gpu_blocks - 1 - record.free
        record.running = [request.request_id for request in self.scheduler.running]
        record.waiting = [request.request_id for request in self.scheduler.waiting]
        record.group_used = list(self.pool.num_used_by_group)
        record.spec = dict(output.num_draft_tokens)
        if self._offload is not None and output.kv_connector_metadata is not None:
            self._offload.execute(output.kv_connector_metadata, record, self.requests.values())
        return output

    def _decide(self) -> SchedulerOutput:
        return self.scheduler.schedule()

    def _read(
        self, output: SchedulerOutput, accepted: dict[str, int], kv_output: KVConnectorOutput | None
    ) -> list[Request]:
        return self.scheduler.update_from_output(output, accepted, kv_output)

    @staticmethod
    def _kind(request: Request, num_tokens: int, computed: int, output: SchedulerOutput) -> str:
        if request.request_id in output.admitted:
            return "resumed" if request.num_preemptions else "new"
        num_drafts = output.num_draft_tokens.get(request.request_id, 0)
        return (
            "decode" if num_tokens - num_drafts == 1 and computed >= request.num_prompt_tokens else "prefill"
        )

    def _apply(self, record: StepRecord) -> None:
        output = self._in_flight.popleft()
        accepted = {}
        for request_id, num_drafts in output.num_draft_tokens.items():
            if request_id not in output.prefill_chunks:
                accepted[request_id] = self._num_accepted(request_id, num_drafts, output)
        record.accepted = {i: n for i, n in accepted.items() if i not in self.finish}
        before = {i: self.requests[i].num_tokens for i in output.num_scheduled_tokens}
        kv_output = self._offload.read(record) if self._offload is not None else None
        finished = self._read(output, accepted, kv_output)
        if self._offload is not None and record.offload is not None:
            self._offload.note_tiers(record.offload)
        record.sampled = [i for i, n in before.items() if self.requests[i].num_tokens > n]
        record.finished = [request.request_id for request in finished]
        for request_id in record.finished:
            self._note_finish(request_id)

    def _num_accepted(self, request_id: str, num_drafts: int, output: SchedulerOutput) -> int:
        """Count right drafts in a row; the padding of an admission is never right."""
        if request_id in output.admitted:
            return 0
        position = self.requests[request_id].num_output_tokens
        num_accepted = 0
        while num_accepted < num_drafts and self._is_right(self._defs[request_id], position + num_accepted):
            num_accepted += 1
        return num_accepted

    def _is_right(self, request: ScenarioRequest, position: int) -> bool:
        """Say whether the draft for an output position is right: fixed by request and position alone."""
        if request.accept:
            return bool(request.accept[position % len(request.accept)])
        rate = self.scenario.accept_rate if request.accept_rate is None else request.accept_rate
        digest = blake2b(f"acc:{request.id}|{position}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") < rate * 2**32
