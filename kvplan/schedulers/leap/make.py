"""Which leap an engine takes: of one token a decode, or of drafts."""

from __future__ import annotations

from kvplan.schedulers.leap.draft_scheduler import DraftLeapScheduler
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.protocol import AcceptDrafts
from kvplan.schedulers.vllm.config import EngineConfig


def make_leap_scheduler(config: EngineConfig, accept: AcceptDrafts | None = None) -> LeapScheduler:
    """Return the leaping scheduler of an engine that can leap; `accept` says which drafts are right, None = none."""
    return DraftLeapScheduler(config, accept) if config.num_speculative_tokens else LeapScheduler(config)
