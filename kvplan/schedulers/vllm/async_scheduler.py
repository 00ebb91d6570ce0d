"""Scheduling ahead of the model's output: vLLM's `v1/core/sched/async_scheduler.py`."""

from __future__ import annotations

from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.scheduler import Scheduler


class AsyncScheduler(Scheduler):
    """Schedules a step before the output of the one in flight is known (vLLM: same name)."""

    def _update_after_schedule(self, output: SchedulerOutput) -> None:
        """Leave a place for what the step will sample (vLLM: same name)."""
        super()._update_after_schedule(output)
        for request_id in output.num_scheduled_tokens:
            if request_id not in output.prefill_chunks:
                request = self.requests[request_id]
                request.num_output_placeholders += 1 + output.num_draft_tokens.get(request_id, 0)
                request.num_spec_tokens = output.num_spec_tokens_to_schedule

    def _update_draft_token_ids(self, output: SchedulerOutput) -> None:
        """Do nothing: drafts never leave the GPU."""


def make_scheduler(config: EngineConfig) -> Scheduler:
    """Return the scheduler for a config: synchronous or asynchronous."""
    return (AsyncScheduler if config.async_scheduling else Scheduler)(config)
