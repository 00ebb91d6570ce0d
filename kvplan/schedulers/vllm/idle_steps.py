"""Steps that run nothing while copies are under way: each asks what the last one asked, and gets the same answers.

A step is a function of what its engine holds. One that ran nothing, began nothing and learned nothing leaves it as it
was, so that the next ones are the same until a copy ends or a request comes or goes. Knows no clock.
"""

from __future__ import annotations

from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.scheduler import Scheduler


class IdleSteps:
    """Whether the step just scheduled is such a one."""

    def __init__(self, scheduler: Scheduler) -> None:
        assert scheduler.loads is not None
        self.scheduler = scheduler
        self.loads = scheduler.loads
        config = scheduler.config
        self.possible = config.enable_chunked_prefill or config.rules.unchunked_heads_block
        """Whether a step leaves the queue's order as it was."""
        self.repeats = False
        """Whether the next step is like it."""
        self._learns = True
        self._num_moves = 0

    def begin(self, is_owed: bool) -> None:
        """Note what the step about to be scheduled starts from; `is_owed`: what is in flight will tell something."""
        scheduler = self.scheduler
        told = scheduler.running or scheduler.finished_req_ids or self.loads.finished_recving
        self._learns = is_owed or bool(told) or not self.possible
        self._num_moves = self.loads.connector.manager.num_moves

    def note(self, output: SchedulerOutput) -> None:
        """See what it decided."""
        meta = output.kv_connector_metadata
        assert meta is not None
        asked = meta.decisions
        self.repeats = not (
            self._learns
            or output.num_scheduled_tokens
            or output.preempted
            or meta.load_jobs
            or meta.store_jobs
            or meta.jobs_to_flush
            or asked.external
            or asked.offers
            or asked.evicted
            or self.loads.connector.manager.num_moves > self._num_moves
        )
