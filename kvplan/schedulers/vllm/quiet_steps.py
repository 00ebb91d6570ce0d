"""Many steps at once in which nothing happens beyond the GPU: "+1 for everyone", blocks taken as each step would.

For engines with a tier, between copies. Between two changes of a request's blocks (`Request.num_slots`) only counters
move; where one is due, the scheduler's own code runs with the counters of that step. So every decision is that of the
steps one by one. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import NEVER, Request
from kvplan.schedulers.vllm.kv_loads import KVLoads
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.scheduler import Scheduler


class QuietSteps:
    """Leaps of one scheduler; `in_flight` is the step whose output is not read yet (asynchronous only)."""

    def __init__(self, scheduler: Scheduler) -> None:
        config = scheduler.config
        assert scheduler.loads is not None
        self.scheduler = scheduler
        self.loads: KVLoads = scheduler.loads
        self.block_size = config.block_size
        self.depth = int(config.async_scheduling)
        plain = len(config.groups) == 1 and config.groups[0].kind == "full"
        self.possible = plain and not config.num_speculative_tokens
        """Whether the engine's kinds of layers allow it."""

    def most_steps(self, in_flight: SchedulerOutput | None) -> int:
        """Return how many steps are surely quiet; 0 where the next one may not be."""
        scheduler, running = self.scheduler, self.scheduler.running
        if not self.possible or not running or scheduler.num_waiting or scheduler.finished_req_ids:
            return 0
        connector, deferred = self.loads.connector, self.loads.deferred_frees
        if connector.has_pending_push_work() or (deferred is not None and deferred.num_blocks):
            return 0
        if self.depth and not (in_flight is not None and self._is_steady(in_flight)):
            return 0
        if len(running) > scheduler.config.token_budget:
            return 0
        steps = min(map(self._steps_left, running))
        return max(0, min(steps, self._steps_with_room(len(running))))

    def _is_steady(self, output: SchedulerOutput) -> bool:
        """Whether the step in flight decodes all that run, one token each, and nothing else."""
        running = self.scheduler.running
        scheduled = output.num_scheduled_tokens
        return (
            len(scheduled) == len(running) == output.total_num_scheduled_tokens
            and not output.prefill_chunks
            and not output.admitted
            and all(request.request_id in scheduled for request in running)
        )

    def _steps_left(self, request: Request) -> int:
        """Return how many outputs of a request can be read before its last one; 0 if it is not in plain decode."""
        known = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
        if known != 1 or request.is_prefill_chunk or request.num_stale_output_tokens:
            return 0
        if not self.loads.connector.has_nothing_to_store(request.request_id):
            return 0
        last = request.max_tokens if request.stop_at is None else min(request.max_tokens, request.stop_at)
        left = min(last - request.num_output_tokens, self.scheduler.config.max_model_len - request.num_tokens)
        return left - 1 - self.depth

    def _steps_with_room(self, num_running: int) -> int:
        """Return how many steps the free blocks surely last."""
        free = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return max(0, (free // num_running - 1) * self.block_size)

    def free_blocks_in(self, num_steps: int) -> int:
        """Return the free blocks that so many quiet steps leave."""
        [manager] = self.scheduler.kv_cache_manager.coordinator.managers
        taken = (
            cdiv(r.num_computed_tokens + num_steps, self.block_size)
            - len(manager.req_to_blocks[r.request_id])
            for r in self.scheduler.running
        )
        free = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return free - sum(max(0, blocks) for blocks in taken)

    def take(self, num_steps: int) -> None:
        """Take so many quiet steps: schedule each, and read as many outputs."""
        scheduler, manager = self.scheduler, self.scheduler.kv_cache_manager
        running = scheduler.running
        start = [(r.num_computed_tokens, r.num_tokens) for r in running]
        due = [(max(0, r.num_slots - 1 - start[i][0]), i) for i, r in enumerate(running)]
        heapify(due)
        for step, indices in _by_step(due, num_steps):
            for i in indices:
                request = running[i]
                request.num_computed_tokens, request.num_tokens = start[i][0] + step, start[i][1] + step
                allocated = manager.allocate_slots(request, 1)
                assert allocated, "a quiet step ran out of blocks"
            for i in indices:
                self._read(running[i], *start[i], step)
                following = max(step + 1, running[i].num_slots - 1 - start[i][0])
                if following < min(num_steps, NEVER):
                    heappush(due, (following, i))
        for (computed, tokens), request in zip(start, running, strict=True):
            request.num_computed_tokens, request.num_tokens = computed + num_steps, tokens + num_steps
        scheduler.current_step += num_steps
        if self.loads.deferred_frees is not None:
            self.loads.deferred_frees.steps_passed(num_steps, running)
        self.loads.connector.follow_tables(request.request_id for request in running)

    def _read(self, request: Request, computed: int, tokens: int, step: int) -> None:
        """Read the output after that step; asynchronous, blocks that it makes full get their names then."""
        if not self.scheduler.caches_outputs:
            return
        request.num_computed_tokens, request.num_tokens = computed + step + 1, tokens + step + 1
        self.scheduler.kv_cache_manager.cache_blocks(request, computed + step + 1 - self.depth)


def _by_step(due: list[tuple[int, int]], num_steps: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the steps in which something is due, and what, in order of the batch; more may be added meanwhile."""
    while due and due[0][0] < num_steps:
        step, indices = due[0][0], []
        while due and due[0][0] == step:
            indices.append(heappop(due)[1])
        yield step, indices
