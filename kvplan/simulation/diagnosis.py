"""What limited a run, and what practice would do about it: read off the totals, in the words of `limits`."""

from __future__ import annotations

from kvplan.engines.kv_transfer import offloading_gib
from kvplan.ground.limits import Limit
from kvplan.ground.tables import counted
from kvplan.memory.serve_command import flag_text
from kvplan.simulation.records import FINISH_REASONS, UNSET
from kvplan.simulation.result import Result

WAITING_SHARE = 0.05
"""Requests waited for a resource in more than this share of busy time: it limits."""


def limited_by(result: Result, is_open_loop: bool) -> Limit:
    """The resource that gave out first.

    Waiting tells queues apart. Where nobody waits, an open loop is limited by what arrives; a closed one by what
    its steps spend their time on: reading weights and KV in decode steps, arithmetic in prompt steps.
    """
    t = result.totals
    if result.verdict == "thrash":
        return Limit.THRASH
    waits = {
        Limit.KV_BLOCKS: t.blocked_blocks_ticks,
        Limit.MAX_NUM_SEQS: t.blocked_seqs_ticks,
        Limit.TOKEN_BUDGET: t.blocked_tokens_ticks,
        Limit.BATCH_WAIT: t.held_back_ticks,
    }
    worst = max(waits, key=lambda limit: waits[limit])
    if waits[worst] > WAITING_SHARE * t.busy_ticks:
        return worst
    if is_open_loop:
        return Limit.ARRIVAL_RATE
    return Limit.COMPUTE if t.prefill_ticks + t.mixed_ticks > t.decode_ticks else Limit.MEMORY_BANDWIDTH


def advise(result: Result) -> list[str]:
    """What practice would change, each with its reason; empty when nothing stands out."""
    return [text for rule in RULES for text in rule(result)]


def _preempted(result: Result) -> list[str]:
    t = result.totals
    computed = t.decode_tokens + t.prefill_tokens
    if not t.preemptions or not computed:
        return []
    share = t.recomputed_tokens / computed
    return [
        f"{counted(t.preemptions, 'preemption')}, {share:.1%} of all computed tokens were computed again: "
        f"more KV blocks ({flag_text(result.scenario.engine_name, kv_cache_dtype='fp8')}, more ranks, a larger card) "
        "or a lower "
        f"{_max_num_seqs(result)}"
    ]


def _cut_thinking(result: Result) -> list[str]:
    done = result.records.completed
    thinking = result.records["thinking_tokens"] > 0
    cut = int((done & thinking & (result.records["first_visible"] == UNSET)).sum())
    if not cut:
        return []
    return [
        f"{counted(cut, 'answer')} {'was' if cut == 1 else 'were'} cut while still thinking: a hard max_tokens pays "
        "for thinking and gets no answer; "
        "use a thinking_token_budget, which closes the thinking and leaves room for the answer"
    ]


def _idle_pool(result: Result) -> list[str]:
    if result.limited_by != Limit.MAX_NUM_SEQS or result.pool.peak_fraction > 0.7:
        return []
    return [
        f"requests waited for {_max_num_seqs(result)} while at most {result.pool.peak_fraction:.0%} of the KV "
        "blocks were used: raise it"
    ]


def _long_queues(result: Result) -> list[str]:
    if not result.is_overloaded:
        return []
    return [
        "most of the time to an answer was spent in the queue: the load is above what this deployment sustains"
    ]


def _refused(result: Result) -> list[str]:
    refused = int((result.records["finish_reason"] == FINISH_REASONS.index("refused")).sum())
    if not refused:
        return []
    share = refused / len(result.records)
    return [
        f"{counted(refused, 'request')} ({share:.1%}) {'was' if refused == 1 else 'were'} refused while others were "
        "under way: their clients got an error, and no figure of this report has them"
    ]


def _max_num_seqs(result: Result) -> str:
    flag = "max_num_active_seqs" if result.scenario.engine.max_num_active_seqs else "max_num_seqs"
    return flag_text(result.scenario.engine_name, **{flag: 1}).split()[0]


def _idle_tier(result: Result) -> list[str]:
    """A tier beyond the GPU that nobody read, or that forgets what comes back; files below it forget nothing."""
    tier = result.offload
    if tier is None:
        return []
    engines = [d.engine for d in result.scenario.deployments.values()]
    size = max(offloading_gib(e.kv_offloading_size, e.kv_transfer_config) or 0 for e in engines)
    forgets = tier["evicted_chunks"] > tier["stored_chunks"] / 2 and (tier["loaded_share"] or 0) < 0.5
    if not tier["lookup_hits"]:
        if forgets:
            return [
                f"nothing was ever loaded from kv_offloading_size {size:g}: it lost most of what it stored before"
                " it was asked for, or nothing returns; it buys nothing at this load"
            ]
        return [
            f"nothing was ever loaded from kv_offloading_size {size:g}: prompts that return still lie on the GPU, or"
            " none return; it buys nothing at this load"
        ]
    if forgets and not tier["file_tiers"]:
        return [
            f"most of what kv_offloading_size {size:g} stores leaves before it is asked for: a larger one, or a"
            " store_threshold of 2, would keep what returns"
        ]
    return []


RULES = (_preempted, _idle_tier, _cut_thinking, _idle_pool, _long_queues, _refused)
