"""Runs a scenario step by step and logs every decision, in the format of the reference logs.

The model is a stand-in: what a request samples is fixed by the scenario. Synchronous: schedule a step, apply
its output. Asynchronous: schedule step s, then apply the output of step s - 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from hashlib import blake2b

from kvplan.conformance.vllm_records import ReplayResult, StepRecord
from kvplan.conformance.vllm_scenario import Scenario, ScenarioRequest
from kvplan.conformance.vllm_stuck import Stuck, find_stuck
from kvplan.schedulers.request import Request, RequestStatus
from kvplan.schedulers.vllm.async_scheduler import make_scheduler
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.scheduler import Scheduler

STUCK_STEPS = 20
"""A run ends after more than so many empty steps with nothing in flight."""


class Replay:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, scheduler: Scheduler | None = None) -> None:
        self.scenario = scenario
        self.scheduler = scheduler or make_scheduler(scenario.engine_config)
        self.manager = self.scheduler.kv_cache_manager
        self.pool = self.manager.block_pool
        self.requests: dict[str, Request] = {}
        self.finish: dict[str, int] = {}
        """id -> step in which it finished or was aborted."""
        self.step = 0
        self._defs = {request.id: request for request in scenario.requests}
        self._pending = list(scenario.requests)
        self._to_abort = [r for r in scenario.requests if r.abort_step is not None or r.abort_follows]
        self._in_flight: deque[SchedulerOutput] = deque()
        self._next_arrival: int | None = 0

    def run(self, max_steps: int = 200_000) -> ReplayResult:
        """Run to the end and keep all records."""
        steps = list(self.iter_steps(max_steps))
        return ReplayResult(steps, self.stuck, self.requests)

    def iter_steps(self, max_steps: int = 200_000) -> Iterator[StepRecord]:
        """Yield a record per step until all is done, or stuck for good."""
        idle_steps = 0
        while self.step <= max_steps and not (idle_steps > STUCK_STEPS and not self._abort_ahead()):
            record = StepRecord(self.step, self._arrivals())
            self._aborts(record, "before_schedule")
            if self._has_requests():
                output = self._schedule(record)
                busy = record.n_tokens > 0 or any(o.num_scheduled_tokens for o in self._in_flight)
                idle_steps = 0 if busy else idle_steps + 1
                self._in_flight.append(output)
                holds_back = self.scenario.async_scheduling and len(self._in_flight) < 2
                if not (holds_back and (record.n_tokens or self._has_requests())):
                    self._aborts(record, "before_output")
                    self._apply(record)
            elif self._in_flight:
                self._aborts(record, "before_output")
                self._apply(record)
            elif self._next_arrival is None:
                break
            else:
                self.step = max(self.step, self._next_arrival)
                continue
            self._count_blocks(record)
            yield record
            self.step += 1
        self.stuck = idle_steps > STUCK_STEPS

    stuck = False
    """Whether the last run ended because nothing could ever run again."""

    def find_stuck(self) -> Stuck | None:
        """Say what a run that is stuck waits for."""
        return find_stuck(self.scheduler)

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

    def _due(self, request: ScenarioRequest) -> int | None:
        if not request.follows:
            return request.arrival_step
        if any(other not in self.finish for other in request.follows):
            return None
        return max(self.finish[other] for other in request.follows) + 1 + request.delay_steps

    def _abort_due(self, request: ScenarioRequest) -> int | None:
        if not request.abort_follows:
            return request.abort_step
        if any(other not in self.finish for other in request.abort_follows):
            return None
        return max(self.finish[other] for other in request.abort_follows) + 1 + request.abort_delay_steps

    def _abort_ahead(self) -> bool:
        return any((due := self._abort_due(r)) is not None and due >= self.step for r in self._to_abort)

    def _arrivals(self) -> list[str]:
        if self._next_arrival is None or self._next_arrival > self.step:
            return []
        dues = [(due, r) for r in self._pending if (due := self._due(r)) is not None]
        ready = sorted((pair for pair in dues if pair[0] <= self.step), key=lambda pair: pair[0])
        for _, request in ready:
            self._pending.remove(request)
            self.requests[request.id] = self.scenario.make_request(request, len(self.requests) + 1)
            self._add_request(self.requests[request.id])
        self._set_next_arrival()
        return [request.id for _, request in ready]

    def _set_next_arrival(self) -> None:
        dues = [due for r in self._pending if (due := self._due(r)) is not None]
        self._next_arrival = min(dues, default=None)

    def _note_finish(self, request_id: str) -> None:
        self.finish[request_id] = self.step
        self._set_next_arrival()

    def _aborts(self, record: StepRecord, when: str) -> None:
        """Abort what is due; an abort that no output followed is read before the next schedule()."""
        for definition in self._to_abort:
            request_id, due = definition.id, self._abort_due(definition)
            if request_id not in self.requests or request_id in self.finish or due is None or due > self.step:
                continue
            if when == definition.abort_when or (when == "before_schedule" and due < self.step):
                request = self.requests[request_id]
                place = "running" if request.status is RequestStatus.RUNNING else "waiting"
                self._abort(request_id)
                record.aborted.append((request_id, place, request.num_output_tokens))
                self._note_finish(request_id)

    def _schedule(self, record: StepRecord) -> SchedulerOutput:
        before = self.pool.num_taken, self.pool.num_evicted, self.manager.num_recycled
        record.free_before = self.pool.get_num_free_blocks()
        running = [request.request_id for request in self.scheduler.running]
        output = self.scheduler.schedule()
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
        return output

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
        finished = self.scheduler.update_from_output(output, accepted)
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
