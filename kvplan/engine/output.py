"""What one schedule() decides, and what it has left to give while it decides."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class SchedulerOutput:
    """One step's batch (vLLM: same name)."""

    step: int
    """Number of this schedule() call, from 1."""
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    """Request id -> tokens to compute, in batch order."""
    num_draft_tokens: dict[str, int] = field(default_factory=dict)
    """Request id -> how many of them are drafts (vLLM `scheduled_spec_decode_tokens`)."""
    prefill_chunks: set[str] = field(default_factory=set)
    """Requests whose tokens end inside their prompt: they sample nothing."""
    admitted: dict[str, int] = field(default_factory=dict)
    """Requests that left the waiting queue in this step -> tokens their prefix-cache hit saves."""
    preempted: list[str] = field(default_factory=list)
    """Victims, in the order in which they lost their blocks."""

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
