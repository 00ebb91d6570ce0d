"""What one schedule() decides, what it has left to give while it decides, and when sampled tokens end a request."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvplan.schedulers.request import Request, RequestStatus
from kvplan.schedulers.vllm.offloading.jobs import OffloadingConnectorMetadata


@dataclass(slots=True)
class SchedulerOutput:
    """One step's batch (vLLM: same name)."""

    step: int
    """Number of this schedule() call, from 1."""
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    """Request id -> tokens to compute, in batch order."""
    num_draft_tokens: dict[str, int] = field(default_factory=dict)
    """Request id -> how many of them are drafts (vLLM `scheduled_spec_decode_tokens`)."""
    num_spec_tokens_to_schedule: int = 0
    """Drafts that are made in this step, for the next one of each request past its prompt (vLLM: same name)."""
    num_verified_drafts: dict[str, int] | None = None
    """Request id -> drafts that the worker verifies, where it verifies fewer than are scheduled; None: all."""
    prefill_chunks: set[str] = field(default_factory=set)
    """Requests whose tokens end inside their prompt: they sample nothing."""
    admitted: dict[str, int] = field(default_factory=dict)
    """Requests that left the waiting queue in this step -> tokens their prefix-cache hit saves."""
    preempted: list[str] = field(default_factory=list)
    """Victims, in the order in which they lost their blocks."""
    kv_connector_metadata: OffloadingConnectorMetadata | None = None
    """What the step loads, stores and waits for; None without a connector."""

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Tokens of the step."""
        return sum(self.num_scheduled_tokens.values())


@dataclass(slots=True)
class StepBudget:
    """What is left to give out in this step."""

    tokens: int
    inputs: int
    """Input slots: as tokens, less what drafting needs per request."""
    draft_slots: int
    chunk: int
    """Cap on one prompt's tokens; 0 = none."""
    prefill_scheduled: bool = False
    prefill_admitted: bool = False
    """Whether a waiting request was admitted with more than one token left to compute."""
    defers_prefills: bool = False
    """Whether this step is kept for decodes."""

    def available(self) -> int:
        """Return the most tokens one request can get."""
        return min(self.tokens, self.inputs - self.draft_slots)

    def take(self, num_tokens: int) -> None:
        """Give tokens to a request."""
        self.tokens -= num_tokens
        self.inputs -= num_tokens + self.draft_slots

    def give_back(self, num_tokens: int) -> None:
        """Undo `take`, for a victim scheduled in this very step."""
        self.take(-num_tokens)
        self.inputs += 2 * self.draft_slots


def check_stop(request: Request, num_sampled: int, max_model_len: int) -> bool:
    """Append sampled tokens up to the first that ends the request; say whether one did.

    vLLM `sched/utils.py: check_stop`: a stop token is looked for before the length.
    """
    num_output = request.num_output_tokens
    to_length = min(request.max_tokens - num_output, max_model_len - request.num_tokens)
    to_stop = num_sampled + 1 if request.stop_at is None else max(1, request.stop_at - num_output)
    num_new = min(num_sampled, to_length, to_stop)
    request.num_tokens += num_new
    if num_new == to_stop:
        request.status = RequestStatus.FINISHED_STOPPED
    elif num_new == to_length:
        request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    return request.is_finished
