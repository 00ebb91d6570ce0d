"""Wrong rules, one at a time: each must change some reference log, or the logs would not tell right from wrong.

A mutant patches one method; beside it stands a scenario in which it shows.
"""

from __future__ import annotations

from typing import Any

import pytest
from mutants import Mutants
from sglang_conformance import golden, replay

from kvplan.schedulers.sglang import prefill_adder, schedule_batch, schedule_policy
from kvplan.schedulers.sglang import scheduler as scheduler_module
from kvplan.schedulers.sglang.kv_cache import KVCache
from kvplan.schedulers.sglang.prefill_adder import PrefillAdder
from kvplan.schedulers.sglang.radix_cache import EVICTION_STRATEGIES, RadixCache
from kvplan.schedulers.sglang.req import Req
from kvplan.schedulers.sglang.schedule_batch import NewTokenRatioTracker, ScheduleBatch
from kvplan.schedulers.sglang.scheduler import SGLangScheduler

Patch = pytest.MonkeyPatch


mutant = MUTANTS = Mutants("normal")


@mutant("g02e_retract_eos")
def the_ratio_never_decays(patch: Patch) -> None:
    patch.setattr(NewTokenRatioTracker, "decay_step", lambda self: None)


@mutant("g02f_conservativeness_005")
def a_retraction_leaves_the_ratio(patch: Patch) -> None:
    patch.setattr(NewTokenRatioTracker, "after_retract", lambda self, reqs: None)


@mutant("m06_ratio_reset")
def idling_leaves_the_ratio(patch: Patch) -> None:
    patch.setattr(NewTokenRatioTracker, "reset", lambda self: None)


@mutant("m07_clip_4096")
def future_tokens_are_not_clipped(patch: Patch) -> None:
    patch.setattr(prefill_adder, "CLIP_MAX_NEW_TOKENS", 1 << 30)


@mutant("g02h_ignore_eos")
def known_lengths_count_by_the_ratio(patch: Patch) -> None:
    patch.setattr(
        PrefillAdder,
        "_future_tokens",
        lambda self, req: min(req.max_new_tokens - req.num_outputs, 4096) * self.new_token_ratio,
    )


@mutant("g02j_shared_prompt_retract")
def a_victim_publishes_its_tokens(patch: Patch) -> None:
    release = KVCache.release
    patch.setattr(KVCache, "release", lambda self, req, *, checkpoint: release(self, req, checkpoint=True))


@mutant("m05_retract_order")
def the_newest_is_retracted(patch: Patch) -> None:
    retract = ScheduleBatch.retract_decode

    def newest_first(self: ScheduleBatch, cache: KVCache) -> Any:
        outputs = [req.num_outputs for req in self.reqs]
        for i, req in enumerate(self.reqs):
            req.num_outputs = len(self.reqs) - i
        found = retract(self, cache)
        for req, n in zip(self.reqs, outputs, strict=False):
            req.num_outputs = n
        return found

    patch.setattr(ScheduleBatch, "retract_decode", newest_first)


@mutant("m11_retract_reentry")
def a_victim_goes_to_the_head_of_the_queue(patch: Patch) -> None:
    enqueue = SGLangScheduler._enqueue

    def to_the_head(self: SGLangScheduler, req: Req) -> None:
        enqueue(self, req)
        if req.num_retractions:
            self.waiting_queue.insert(0, self.waiting_queue.pop())

    patch.setattr(SGLangScheduler, "_enqueue", to_the_head)


@mutant("g02f_conservativeness_005")
def a_retraction_makes_room_for_nobody_else(patch: Patch) -> None:
    patch.setattr("kvplan.schedulers.sglang.kv_cache.RETRACT_DECODE_STEPS", 0)
    patch.setattr(schedule_batch, "RETRACT_DECODE_STEPS", 0)


@mutant("g03_bestof8")
def a_prompt_hits_to_its_last_token(patch: Patch) -> None:
    match = KVCache.match
    patch.setattr(
        KVCache,
        "match",
        lambda self, req, num_tokens, limit=None: match(self, req, num_tokens, num_tokens - 2),
    )


@mutant("g02f_conservativeness_005")
def prompt_and_output_are_one_leaf(patch: Patch) -> None:
    patch.setattr(KVCache, "_split_prompt", lambda self, req, aligned: None)


@mutant("g07c_tree_dfs")
def a_match_does_not_touch(patch: Patch) -> None:
    match = RadixCache.match_prefix

    def untouched(self: RadixCache, key: Any) -> Any:
        stamps: dict[Any, int] = {}
        stack = [self.root]
        while stack:
            node = stack.pop()
            stamps[node] = node.last_access_time
            stack += node.children.values()
        found = match(self, key)
        for node, stamp in stamps.items():
            node.last_access_time = stamp
        return found

    patch.setattr(RadixCache, "match_prefix", untouched)


@mutant("g06d_multiturn_lfu")
def lfu_counts_no_hits(patch: Patch) -> None:
    patch.setitem(EVICTION_STRATEGIES, "lfu", EVICTION_STRATEGIES["lru"])


@mutant("g09_random")
def the_queue_is_not_refreshed(patch: Patch) -> None:
    patch.setattr(schedule_policy.SchedulePolicy, "touch_waiting_prefixes", lambda self, queue: None)


@mutant("g08e_shortest_prefill")
def copies_are_not_held_back(patch: Patch) -> None:
    patch.setattr(schedule_policy, "IN_BATCH_DEPRIORITIZE", 1 << 30)


@mutant("g08d_lpm_over128")
def lpm_sorts_any_queue(patch: Patch) -> None:
    patch.setattr(schedule_policy, "PREFIX_MATCH_MAX", 1 << 30)


@mutant("g07c_tree_dfs")
def dfs_goes_to_the_lightest_first(patch: Patch) -> None:
    order = RadixCache.dfs_weight_order
    patch.setattr(RadixCache, "dfs_weight_order", lambda self, found: order(self, found)[::-1])


@mutant("g04_chunked")
def a_chunk_takes_the_whole_prompt(patch: Patch) -> None:
    patch.setattr("kvplan.schedulers.sglang.config.SGLangConfig.chunk_size", property(lambda self: None))


@mutant("g06c_multiturn_page16")
def a_paged_decode_evicts_only_what_it_needs(patch: Patch) -> None:
    def only_needed(self: KVCache, reqs: list[Req]) -> None:
        self.evict_to_free(self._new_tokens(reqs))
        self.take(self._new_tokens(reqs))
        for req in reqs:
            req.kv_len += 1

    patch.setattr(KVCache, "alloc_for_decode", only_needed)


@mutant("m04_head_of_line")
def a_full_batch_still_admits(patch: Patch) -> None:
    get = SGLangScheduler._get_new_batch_prefill

    def anyone(self: SGLangScheduler) -> Any:
        self.waiting_queue.sort(key=lambda req: req.seqlen)
        return get(self)

    patch.setattr(SGLangScheduler, "_get_new_batch_prefill", anyone)


@mutant("m10_priority")
def nobody_is_preempted(patch: Patch) -> None:
    patch.setattr(PrefillAdder, "preempt_to_schedule", lambda self, req: False)


@mutant("m09_abort")
def an_abort_is_immediate(patch: Patch) -> None:
    abort = scheduler_module.SGLangScheduler.abort_request

    def at_once(self: SGLangScheduler, request_id: str) -> None:
        abort(self, request_id)
        for req in self.running_batch.reqs:
            if req.to_finish:
                req.finish("abort")
                self.cache.release(req, checkpoint=True)

    patch.setattr(SGLangScheduler, "abort_request", at_once)


@mutant("g02_retract", "overlap")
def who_surely_ends_is_decoded_again(patch: Patch) -> None:
    patch.setattr(SGLangScheduler, "_reqs_finishing_in_flight", lambda self, batch: ())


@mutant("g04c_mixed")
def a_mixed_chunk_is_not_smaller(patch: Patch) -> None:
    init = PrefillAdder.__init__

    def whole(self: PrefillAdder, config: Any, *rest: Any) -> None:
        init(self, config, *rest)
        self.rem_chunk_tokens = config.chunk_size

    patch.setattr(PrefillAdder, "__init__", whole)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_logs_catch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rule gives other hashes, or does not get through at all."""
    apply, scenario, mode = MUTANTS[name]
    log = golden()[scenario, mode]
    apply(monkeypatch)
    try:
        result = replay(scenario, mode)
    except AssertionError:
        return
    assert (result.sched_sha256, result.state_sha256) != (log["sched_sha256"], log["state_sha256"])
