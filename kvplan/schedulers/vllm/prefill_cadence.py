"""Steps kept for decodes: `prefill_schedule_interval` as an engine without data parallelism applies it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.output import SchedulerOutput, StepBudget


class PrefillCadence:
    """Holds prefill back for an interval of steps after one with prefill (vLLM `local_prefill_interval`)."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.num_executed_steps = 0
        self.last_prefill_step = -interval
        self.capacity_bound = False
        """Whether the last step that admitted left somebody waiting: then nothing is held back."""
        self.deferred: set[Request] = set()
        """Waiting requests that were passed over once, their last output not being in yet."""

    @classmethod
    def of(cls, config: EngineConfig) -> PrefillCadence | None:
        """Return the cadence of an engine; None if it has none."""
        interval = config.prefill_schedule_interval if config.rules.prefill_cadence_is_local else 1
        return cls(interval) if interval > 1 else None

    def defers(self, running: Sequence[Request]) -> bool:
        """Say whether the step that begins is kept for decodes."""
        since = self.num_executed_steps + 1 - self.last_prefill_step
        decodes = any(not request.is_prefill_chunk for request in running)
        return since < self.interval and decodes and not self.capacity_bound

    def note_waiting(self, waiting: Collection[Request], budget: StepBudget) -> None:
        """See who was left, once the waiting requests were looked at."""
        self.deferred.intersection_update(waiting)
        if not budget.defers_prefills:
            self.capacity_bound = len(waiting) > len(self.deferred)

    def note_step(self, output: SchedulerOutput, budget: StepBudget) -> None:
        """Count the step; one that prefills restarts the interval."""
        self.num_executed_steps += output.total_num_scheduled_tokens > 0
        if budget.prefill_scheduled or budget.prefill_admitted:
            self.last_prefill_step = self.num_executed_steps
