"""What limits a deployment: one enumeration for plans, simulations and sweeps."""

from __future__ import annotations

from enum import StrEnum


class Limit(StrEnum):
    """The resource that gives out first; more of it would help, more of the others would not."""

    WEIGHTS = "weights"
    """Weights and overheads leave no room for KV."""
    KV_BLOCKS = "kv_blocks"
    """KV memory: sequences wait or are preempted."""
    MAX_NUM_SEQS = "max_num_seqs"
    """The flag caps the batch below what memory would hold."""
    TOKEN_BUDGET = "token_budget"
    """max_num_batched_tokens: prompts queue for prefill."""
    BATCH_WAIT = "batch_wait"
    """The rule that holds prompts back until enough of them wait."""
    MEMORY_BANDWIDTH = "memory_bandwidth"
    """Reading weights and KV sets the step time."""
    COMPUTE = "compute"
    """Arithmetic sets the step time."""
    INTERCONNECT = "interconnect"
    """All-reduces or transfers set the step time."""
    VERIFIER = "verifier"
    """Reward models or critics are waited for."""
    ARRIVAL_RATE = "arrival_rate"
    """The engine is idle: load, not capacity, sets throughput."""
    THRASH = "thrash"
    """Preemption and recompute eat each other."""


def in_words(limit: object) -> str:
    """What gives out first, as people say it; a flag stays one.

    >>> in_words(Limit.KV_BLOCKS), in_words(Limit.ARRIVAL_RATE), in_words(Limit.MAX_NUM_SEQS)
    ('KV blocks', 'arrival rate', 'max_num_seqs')
    """
    text = str(limit)
    return text if text.startswith(("max_", "batch_")) else text.replace("_", " ").replace("kv ", "KV ")
