"""Which leap an engine takes: over one table of all tokens, of one token a decode or of drafts; over several groups."""

from __future__ import annotations

from kvplan.schedulers.leap.allowed import has_one_full_group
from kvplan.schedulers.leap.draft_scheduler import DraftLeapScheduler
from kvplan.schedulers.leap.group_scheduler import GroupScheduler
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.protocol import AcceptDrafts
from kvplan.schedulers.vllm.config import EngineConfig


def counts_contents(config: EngineConfig) -> bool:
    """Whether its leap counts cached blocks without writing down what they hold (`ContentsMatter`)."""
    return config.enable_prefix_caching and not has_one_full_group(config)


def make_leap_scheduler(config: EngineConfig, accept: AcceptDrafts | None = None) -> LeapScheduler:
    """Return the leaping scheduler of an engine that can leap; `accept` says which drafts are right, None = none."""
    if config.num_speculative_tokens:
        return DraftLeapScheduler(config, accept)
    return (LeapScheduler if has_one_full_group(config) else GroupScheduler)(config)
