"""Wrong rules of offloading, one at a time: each must change some reference log."""

from __future__ import annotations

from typing import Any

import pytest
from engine_conformance import offload_golden, offload_replay
from mutants import Mutant, Mutants

from kvplan.conformance.vllm_replay import offload_sha256
from kvplan.schedulers.vllm import kv_loads
from kvplan.schedulers.vllm.offloading import groups, lookup, manager, policies, request_state, stores, worker
from kvplan.schedulers.vllm.offloading import scheduler as connector

Patch = pytest.MonkeyPatch
Tier = manager.CPUOffloadingManager
LRU = policies.LRUCachePolicy
ARC = policies.ARCCachePolicy
Loads = kv_loads.KVLoads
State = request_state.RequestOffloadState
Connector = connector.OffloadingConnectorScheduler

mutant = MUTANTS = Mutants("sync")


@mutant("ses_tight_lru")
def an_end_ranks_heads_oldest(patch: Patch) -> None:
    def finish(self: Any, keys: Any, *others: Any) -> None:
        for key in keys:
            if key in self.chunks:
                self.chunks.move_to_end(key)

    patch.setattr(LRU, "on_request_finished", finish)


@mutant("lru_reader_running")
def loads_refresh_chunks(patch: Patch) -> None:
    def load(self: Any, keys: Any, access: Any) -> None:
        prepare(self, keys, access)
        self.policy.touch(keys)

    prepare = Tier.prepare_load
    patch.setattr(Tier, "prepare_load", load)


@mutant("ses_tight_arc")
def ghosts_are_forgotten(patch: Patch) -> None:
    patch.setattr(ARC, "on_store_miss", lambda self, keys: None)


@mutant("ses_tight_arc")
def own_chunks_count_as_reused(patch: Patch) -> None:
    finish = ARC.on_request_finished
    patch.setattr(
        ARC, "on_request_finished", lambda self, keys, inserted, reused: finish(self, keys, set(), set(keys))
    )


@mutant("cpu_full_of_writes")
def an_offer_is_stored_in_part(patch: Patch) -> None:
    def offer(self: Any, keys: Any, access: Any) -> Any:
        whole = prepare(self, keys, access)
        return prepare(self, keys[: len(keys) // 2], access) if whole is None and len(keys) > 1 else whole

    prepare = Tier.prepare_store
    patch.setattr(Tier, "prepare_store", offer)


@mutant("sys_threshold2")
def every_offer_is_stored(patch: Patch) -> None:
    def offer(self: Any, keys: Any, access: Any) -> Any:
        self.store_threshold = 1
        return prepare(self, keys, access)

    prepare = Tier.prepare_store
    patch.setattr(Tier, "prepare_store", offer)


@mutant("ses_basic")
def answers_are_stored(patch: Patch) -> None:
    patch.setattr(State, "num_offloadable_tokens", lambda self, n: min(n, self.req.num_tokens))


@mutant("part_max_load")
def loads_have_no_cap(patch: Patch) -> None:
    patch.setattr(lookup.ChunkLookup, "_longest", lambda self, state: state.req.num_tokens)


@mutant("store_half_done")
def what_is_being_written_is_a_miss(patch: Patch) -> None:
    def look(keys: Any, find: Any, access: Any) -> int:
        hit = manager.LookupResult.HIT
        return next((i for i, key in enumerate(keys) if find(key, access) is not hit), len(keys))

    patch.setattr(lookup, "maximal_prefix_lookup", look)


@mutant("bo8_from_cpu")
def siblings_load_their_own_copy(patch: Patch) -> None:
    patch.setattr(lookup.ChunkLookup, "_is_being_loaded", lambda self, *args: False)


@mutant("part_gpu_cpu_factor4")
def less_than_a_chunk_is_loaded(patch: Patch) -> None:
    agree = lookup.ChunkLookup._agree

    def loose(self: Any, state: Any) -> int | None:
        found = agree(self, state)
        if found == 0:
            keys = state.group_states[0].offload_keys
            size = self.config.groups[0].tokens_per_chunk
            hits = lookup.maximal_prefix_lookup(keys, self.lookup, state.access)
            return max(0, (hits or 0) * size - state.num_locally_computed_tokens)
        return found

    patch.setattr(lookup.ChunkLookup, "_agree", loose)


@mutant("part_all_aligned")
def no_token_is_left_to_compute(patch: Patch) -> None:
    longest = lookup.ChunkLookup._longest
    patch.setattr(lookup.ChunkLookup, "_longest", lambda self, state: longest(self, state) - 1)


@mutant("rnd60_lru")
def loads_leave_prompts_nothing(patch: Patch) -> None:
    patch.setattr(Loads, "reserved_blocks", lambda self: 0)


@mutant("rnd60_lru")
def a_loaded_head_without_room_is_passed_over(patch: Patch) -> None:
    passes = Loads.passes
    patch.setattr(Loads, "passes", lambda self, request: passes(self, request) or self.holds(request))


@mutant("end_store_flush")
def ended_requests_are_not_watched(patch: Patch) -> None:
    patch.setattr(Connector, "request_finished", lambda self, request: None)


@mutant("swa_mix_slow")
def windows_are_not_watched(patch: Patch) -> None:
    watch = Connector._watch
    patch.setattr(Connector, "_watch", lambda self, job, blocks: None if blocks else watch(self, job, blocks))


@mutant("swa_mix_full")
def windows_store_all_chunks(patch: Patch) -> None:
    patch.setattr(groups.SchedulerOffloadConfig, "reachable_chunks", lambda self, *args: None)


@mutant("mamba_mix")
def states_are_not_stored(patch: Patch) -> None:
    patch.setattr(Connector, "_store_states", lambda self, handoffs: ())


@mutant("spec_eagle")
def the_drafters_last_chunk_is_stored(patch: Patch) -> None:
    def storable(self: Any, i: int, num_tokens: int) -> int:
        group, state = self.config.groups[i], self.group_states[i]
        return min(num_tokens // group.tokens_per_chunk, len(state.blocks), len(state.offload_keys))

    patch.setattr(State, "storable_chunks", storable)


@mutant("pre_basic", mode="async")
def blocks_come_back_at_once(patch: Patch) -> None:
    patch.setattr(kv_loads.DeferredFrees, "can_free", lambda self, request: True)


@mutant("ses_full")
def the_last_token_is_stored_too(patch: Patch) -> None:
    def after(state: Any, num_scheduled: Any) -> int:
        return state.req.num_tokens if state.req.is_finished else num_tokens(state, num_scheduled)

    num_tokens = stores.num_tokens_after
    patch.setattr(connector, "num_tokens_after", after)


@mutant("ses_basic")
def stores_begin_in_their_own_step(patch: Patch) -> None:
    def before(self: Any, meta: Any) -> None:
        for job in meta.store_jobs:
            self.copies.submit(job)
        if meta.jobs_to_flush:
            self.copies.wait(meta.jobs_to_flush)

    patch.setattr(worker.OffloadingConnectorWorker, "handle_preemptions", before)


@mutant("abort_load")
def aborted_loads_give_blocks_back_at_once(patch: Patch) -> None:
    patch.setattr(Loads, "is_loading", lambda self, request: False)


def is_caught(case: Mutant) -> bool:
    """Whether a hash of the log differs, or the engine falls over."""
    log = offload_golden()[case.scenario, case.mode]
    try:
        result = offload_replay(case.scenario, case.mode).run(max_steps=2000)
    except (AssertionError, KeyError, IndexError, ValueError):
        return True
    hashes = result.sched_sha256, result.state_sha256, offload_sha256(result)
    return hashes != (log["sched_sha256"], log["state_sha256"], log["offload_sha256"])


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rule does not pass for vLLM's."""
    case = MUTANTS[name]
    assert not is_caught(case), "the logs must agree before the rule is bent"
    case.apply(monkeypatch)
    assert is_caught(case)
