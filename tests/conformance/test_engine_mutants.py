"""Wrong rules, one at a time: each must change some reference log, or the logs would not tell right from wrong.

A mutant patches one method; beside it stands a scenario in which it shows.
"""

from __future__ import annotations

from typing import Any

import pytest
from engine_conformance import golden, replay
from mutants import Mutant, Mutants

from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm import block_pool, kv_cache_coordinator, kv_cache_manager, mamba_manager
from kvplan.schedulers.vllm import scheduler as scheduler_module

Patch = pytest.MonkeyPatch
Pool = block_pool.BlockPool
Manager = kv_cache_manager.KVCacheManager
Coordinator = kv_cache_coordinator.KVCacheCoordinator
Scheduler = scheduler_module.Scheduler
Window = kv_cache_coordinator.SlidingWindowManager
Mamba = mamba_manager.MambaManager


mutant = MUTANTS = Mutants("sync")


@mutant("s07_multiturn_lru")
def blocks_are_freed_first_to_last(patch: Patch) -> None:
    free = Pool.free_blocks
    patch.setattr(Pool, "free_blocks", lambda self, blocks: free(self, list(blocks)[::-1]))


@mutant("m04_free_order")
def unnamed_blocks_go_to_the_tail(patch: Patch) -> None:
    queue = block_pool.FreeKVCacheBlockQueue
    patch.setattr(queue, "prepend_n", queue.append_n)


@mutant("m04_free_order")
def cached_blocks_go_to_the_front(patch: Patch) -> None:
    queue = block_pool.FreeKVCacheBlockQueue
    patch.setattr(queue, "append_n", lambda self, blocks: queue.prepend_n(self, list(blocks)))


@mutant("m03_same_step_dup")
def blocks_are_named_a_step_late(patch: Patch) -> None:
    def cache(self: Any, request: Request, num_computed_tokens: int) -> None:
        cache_blocks(self, request, min(num_computed_tokens, request.num_computed_tokens))

    cache_blocks = Coordinator.cache_blocks
    patch.setattr(Coordinator, "cache_blocks", cache)


@mutant("m06_preempt_cascade", mode="async")
def preempting_steps_admit(patch: Patch) -> None:
    def schedule_running(self: Any, output: Any, budget: Any) -> None:
        running(self, output, budget)
        victims.extend(output.preempted)
        output.preempted.clear()

    def schedule_waiting(self: Any, output: Any, budget: Any) -> None:
        waiting(self, output, budget)
        output.preempted.extend(victims)
        victims.clear()

    victims: list[str] = []
    running, waiting = Scheduler._schedule_running, Scheduler._schedule_waiting
    patch.setattr(Scheduler, "_schedule_running", schedule_running)
    patch.setattr(Scheduler, "_schedule_waiting", schedule_waiting)


@mutant("s02_long_reasoning_preempt")
def victims_go_to_the_end_of_the_queue(patch: Patch) -> None:
    queue = scheduler_module.QUEUES["fcfs"]
    patch.setattr(queue, "prepend_requests", lambda self, requests: [self.add_request(r) for r in requests])


@mutant("m01_full_hit_aligned")
def the_last_block_hits_too(patch: Patch) -> None:
    find = kv_cache_coordinator.UnitaryKVCacheCoordinator.find_longest_cache_hit
    patch.setattr(
        kv_cache_coordinator.UnitaryKVCacheCoordinator,
        "find_longest_cache_hit",
        lambda self, hashes, max_length: find(self, hashes, max_length + 1),
    )


@mutant("m02_output_block_reuse")
def answers_are_not_reused(patch: Patch) -> None:
    cache = Coordinator.cache_blocks
    patch.setattr(Coordinator, "cache_blocks", lambda self, r, n: cache(self, r, min(n, r.num_prompt_tokens)))


@mutant("mam_align_multiturn")
def hits_take_the_newest_copy(patch: Patch) -> None:
    def get_one(self: Any, key: Any) -> Any:
        found = self._cache.get(key)
        return list(found.values())[-1] if isinstance(found, dict) else found

    patch.setattr(block_pool.BlockHashToBlockMap, "get_one_block", get_one)


@mutant("s05e_reserve_isl_on")
def prompts_are_admitted_by_their_first_chunk(patch: Patch) -> None:
    allocate = Manager.allocate_slots
    patch.setattr(
        Manager,
        "allocate_slots",
        lambda self, *args, full_sequence_must_fit=False, **kwargs: allocate(self, *args, **kwargs),
    )


@mutant("s02c_long_reasoning_watermark")
def the_watermark_is_ignored(patch: Patch) -> None:
    allocate = Manager.allocate_slots
    patch.setattr(
        Manager,
        "allocate_slots",
        lambda self, *args, has_scheduled_reqs=True, **kwargs: allocate(
            self, *args, has_scheduled_reqs=False, **kwargs
        ),
    )


@mutant("m05_head_of_line")
def small_requests_pass_a_blocked_head(patch: Patch) -> None:
    def schedule_waiting(self: Any, output: Any, budget: Any) -> None:
        waiting(self, output, budget)
        if len(self.waiting) > 1 and len(self.running) < self.config.max_num_seqs and budget.tokens:
            head = self.waiting.pop_request()
            waiting(self, output, budget)
            self.waiting.prepend_requests([head])

    waiting = Scheduler._schedule_waiting
    patch.setattr(Scheduler, "_schedule_waiting", schedule_waiting)


@mutant("s02d_long_reasoning_priority")
def the_victim_is_the_tail_under_priority_too(patch: Patch) -> None:
    init = Scheduler.__init__

    def without_priority(self: Any, config: Any) -> None:
        init(self, config)
        self._by_priority = False

    patch.setattr(Scheduler, "__init__", without_priority)


@mutant("lpt_lone")
def the_prompt_cap_holds_for_a_lone_request(patch: Patch) -> None:
    def chunk(self: Any, request: Request, budget: Any) -> int:
        budget.chunk = self.config.long_prefill_token_threshold
        return num_new(self, request, budget)

    num_new = Scheduler._num_new_tokens
    patch.setattr(Scheduler, "_num_new_tokens", chunk)


@mutant("eos_micro_boundary", mode="async")
def a_sure_end_is_scheduled_again(patch: Patch) -> None:
    def num_new(self: Any, request: Request, budget: Any) -> int:
        request.max_tokens += 2
        try:
            return num_new_tokens(self, request, budget)
        finally:
            request.max_tokens -= 2

    num_new_tokens = Scheduler._num_new_tokens
    patch.setattr(Scheduler, "_num_new_tokens", num_new)


@mutant("s02_long_reasoning_preempt", mode="async")
def a_victim_does_not_wait_for_its_output(patch: Patch) -> None:
    preempt = Scheduler._preempt_request

    def forget(self: Any, request: Request) -> None:
        preempt(self, request)
        request.num_stale_output_tokens = 0

    patch.setattr(Scheduler, "_preempt_request", forget)


@mutant("m02_output_block_reuse", mode="async")
def sampled_blocks_are_named_at_the_next_schedule(patch: Patch) -> None:
    patch.setattr(Manager, "cache_blocks", lambda self, request, num_computed_tokens: None)


@mutant("swa_only_w128")
def a_window_keeps_one_token_more(patch: Patch) -> None:
    patch.setattr(Window, "get_num_skipped_tokens", lambda self, n: max(0, n - self.window))


@mutant("swa_full_1_2_w100_odd", mode="async")
def windows_free_what_is_still_in_flight(patch: Patch) -> None:
    def allocate(self: Any, request: Request, *args: Any, **kwargs: Any) -> bool:
        in_flight, request.num_in_flight_tokens = request.num_in_flight_tokens, 0
        try:
            return allocate_slots(self, request, *args, **kwargs)
        finally:
            request.num_in_flight_tokens = in_flight

    allocate_slots = Manager.allocate_slots
    patch.setattr(Manager, "allocate_slots", allocate)


@mutant("swa_admission_budget64")
def windows_are_admitted_without_a_cap(patch: Patch) -> None:
    patch.setattr(Window, "_max_admission_blocks", lambda self, config: None)


@mutant("swa_multiturn")
def windows_are_cached_densely(patch: Patch) -> None:
    patch.setattr(Window, "reachable_block_mask", lambda self, first, end, boundaries, retention: None)


@mutant("swa_junction")
def junctions_are_not_pinned(patch: Patch) -> None:
    find = Manager.get_computed_blocks
    patch.setattr(
        Manager,
        "get_computed_blocks",
        lambda self, request: find(self, request)._replace(num_uncached_common_prefix_tokens=0),
    )


@mutant("chk_full_1_3_llama4")
def chunks_are_kept_one_token_longer(patch: Patch) -> None:
    chunked = kv_cache_coordinator.ChunkedLocalAttentionManager
    patch.setattr(chunked, "get_num_skipped_tokens", lambda self, n: (n - 1) // self.chunk * self.chunk)


@mutant("mam_align_bestof8")
def states_are_hit_in_the_step_that_writes_them(patch: Patch) -> None:
    count = Mamba.get_num_blocks_to_allocate

    def forgetful(self: Any, *args: Any, **kwargs: Any) -> int:
        self.cached_blocks_this_step.clear()
        return count(self, *args, **kwargs)

    patch.setattr(Mamba, "get_num_blocks_to_allocate", forgetful)


@mutant("mam_align_1_3_gdn")
def prompt_chunks_end_anywhere(patch: Patch) -> None:
    split = scheduler_module.MambaSplit
    patch.setattr(split, "clip", lambda self, request, num_new_tokens, num_hit_tokens=0: num_new_tokens)


@mutant("mam_align_ckpt")
def no_state_is_written_inside_a_chunk(patch: Patch) -> None:
    patch.setattr(Mamba, "_internal_checkpoint", lambda self, *args: 0)


@mutant("spec_k1_multiturn")
def eagle_keeps_the_last_hit_block(patch: Patch) -> None:
    unitary = kv_cache_coordinator.UnitaryKVCacheCoordinator
    patch.setattr(
        unitary,
        "find_longest_cache_hit",
        lambda self, hashes, n: kv_cache_coordinator.CacheHit(
            *self.managers[0].find_longest_cache_hit(hashes, n, [0], False)
        ),
    )


@mutant("spec_k3_eagle")
def drafters_need_no_slots(patch: Patch) -> None:
    patch.setattr(kv_cache_manager.EngineConfig, "num_lookahead_tokens", 0)


@mutant("spec_k3_eagle")
def rejected_drafts_stay_computed(patch: Patch) -> None:
    def update(self: Any, output: Any, accepted: Any = None, kv_output: Any = None) -> list[Request]:
        output.num_draft_tokens = {}
        return update_from_output(self, output, accepted, kv_output)

    update_from_output = Scheduler.update_from_output
    patch.setattr(Scheduler, "update_from_output", update)


@mutant("spec_k3_draft_model")
def a_draft_model_takes_no_input_slot(patch: Patch) -> None:
    patch.setattr(kv_cache_manager.EngineConfig, "draft_slots", 0)


@mutant("abort_first_wins")
def aborted_requests_keep_their_blocks(patch: Patch) -> None:
    def finish(self: Any, request_ids: Any, **kwargs: Any) -> list[Request]:
        live = [self.requests[i] for i in request_ids if i in self.requests]
        self._remove(live)
        for request in live:
            del self.requests[request.request_id]
        return live

    patch.setattr(Scheduler, "finish_requests", finish)


def is_caught(case: Mutant) -> bool:
    """Whether the log differs, or the engine falls over."""
    log = golden()[case.scenario, case.mode]
    try:
        result = replay(case.scenario, case.mode)
    except (AssertionError, KeyError, IndexError):
        return True
    rows = [step.row("state_sha256" in log) for step in result.steps]
    return result.sched_sha256 != log["sched_sha256"] or rows != log["rows"]


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rule does not pass for vLLM's."""
    case = MUTANTS[name]
    assert not is_caught(case), "the logs must agree before the rule is bent"
    case.apply(monkeypatch)
    assert is_caught(case)
