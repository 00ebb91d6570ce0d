"""The scheduler's view of KV memory: prefix-cache hits, slots for a step, and giving back.

Mirrors vLLM's `v1/core/kv_cache_manager.py`. Knows no queues and no budgets.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import NEVER, BlockHasher, Request, RequestStatus
from kvplan.schedulers.vllm.block_pool import BlockPool, KVCacheBlock
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.kv_cache_coordinator import CacheHit, get_kv_cache_coordinator
from kvplan.schedulers.vllm.mamba_manager import MambaManager
from kvplan.schedulers.vllm.single_type_kv_cache_manager import SlotDemand


class KVCacheManager:
    """Blocks of all requests of one engine (vLLM: same name)."""

    def __init__(self, config: EngineConfig) -> None:
        self.max_model_len = config.max_model_len
        self.enable_caching = config.enable_prefix_caching
        self.num_lookahead_tokens = config.num_lookahead_tokens
        self.block_pool = BlockPool(
            config.num_gpu_blocks,
            self.enable_caching,
            len(config.groups),
            config.rules.unhashed_blocks_go_first,
        )
        self.hasher = BlockHasher(config.hash_block_size, config.num_hash_lookahead_tokens)
        self.coordinator = get_kv_cache_coordinator(config, self.block_pool, self.hasher)
        self.watermark_blocks = int(config.watermark * config.num_gpu_blocks)
        self.empty_hit = CacheHit([() for _ in config.groups], 0)
        self.num_recycled = 0
        """Blocks that came back from living requests so far."""
        self._put_off: dict[str, int] = {}
        """Requests whose full blocks may lack names that nobody could see -> tokens that the names would cover."""
        self._recycles = any(manager.recycles for manager in self.coordinator.managers)
        self._changes_at_block_ends = all(m.changes_at_block_ends for m in self.coordinator.managers)

    def new_step_starts(self) -> None:
        """Tell the managers that a step starts (vLLM: same name)."""
        self.coordinator.new_step_starts()

    def get_computed_blocks(self, request: Request) -> CacheHit:
        """Find the cached prefix (vLLM: same name): all tokens but the last at most."""
        if not self.enable_caching:
            return self.empty_hit
        hashes = self.hasher.block_hashes(request, self.hasher.num_hashed_tokens(request))
        return self.coordinator.find_longest_cache_hit(hashes, request.num_tokens - 1)

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        hit: CacheHit | None = None,
        *,
        full_sequence_must_fit: bool = False,
        reserved_blocks: int = 0,
        has_scheduled_reqs: bool = True,
        num_external_tokens: int = 0,
        loads_later: bool = False,
    ) -> bool:
        """Give the request slots for `num_new_tokens` more; False if there are not enough (vLLM: same name).

        `hit` is what a request brings when it is admitted, and has slots for what it computes again;
        `num_external_tokens` what is loaded after it. If it `loads_later` than this step, its blocks get no names
        before that, and drafters no slots. `reserved_blocks` must stay free for others. Blocks behind a window come
        back even if the rest fails.
        """
        hit = hit or self.empty_hit
        request_id, pool = request.request_id, self.block_pool
        num_computed = request.num_computed_tokens + hit.num_tokens
        if num_external_tokens:
            num_computed = min(num_computed + num_external_tokens, self.max_model_len)
        num_lookahead = 0 if loads_later else self.num_lookahead_tokens
        count, end = self.coordinator.get_num_blocks_to_allocate, self._prefill_end(request)
        watermark = self._watermark(request, has_scheduled_reqs)
        if full_sequence_must_fit:
            demand = self._whole_demand(request, num_external_tokens)
            needed = count(request_id, demand, hit.blocks, num_computed)
            if needed + watermark > pool.get_num_free_blocks():
                return False
        num_main = num_computed + max(0, num_new_tokens - hit.num_replay_tokens)
        num_slots = min(num_main + num_lookahead, self.max_model_len)
        if self._recycles:
            self.name_put_off(request)
            self.remove_skipped_blocks(request_id, max(0, num_computed - request.num_in_flight_tokens))
        demand = SlotDemand(num_slots, num_main, end, False, num_external_tokens)
        needed = count(request_id, demand, hit.blocks, num_computed)
        if needed + watermark + reserved_blocks > pool.get_num_free_blocks():
            return False
        if num_external_tokens or any(hit.blocks):
            self.coordinator.allocate_new_computed_blocks(
                request_id, hit.blocks, num_computed, num_external_tokens
            )
        self.coordinator.allocate_new_blocks(request_id, num_slots, num_main)
        if self.enable_caching and not loads_later:
            self.coordinator.cache_blocks(request, _nameable(request, min(num_main, request.num_tokens)))
        if self._changes_at_block_ends:
            request.num_slots = self._next_change(request_id, num_computed - request.num_in_flight_tokens)
        return True

    def _watermark(self, request: Request, has_scheduled_reqs: bool) -> int:
        """Return the free blocks that an admission must leave."""
        is_waiting = request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        return self.watermark_blocks if has_scheduled_reqs and is_waiting else 0

    def _whole_demand(self, request: Request, num_external_tokens: int = 0) -> SlotDemand:
        """Return what all of a request's tokens take."""
        num_all = min(request.num_tokens, self.max_model_len)
        return SlotDemand(num_all, num_all, self._prefill_end(request), True, num_external_tokens)

    def free_blocks_to_admit(
        self, request: Request, num_new_tokens: int, hit: CacheHit, full_sequence_must_fit: bool
    ) -> int:
        """Return the free blocks below which `allocate_slots` keeps a request waiting beside others that run."""
        num_past_hit = max(0, num_new_tokens - hit.num_replay_tokens)
        num_main, end = hit.num_tokens + num_past_hit, self._prefill_end(request)
        num_slots = min(num_main + self.num_lookahead_tokens, self.max_model_len)
        demands = [SlotDemand(num_slots, num_main, end)]
        if full_sequence_must_fit:
            demands.append(self._whole_demand(request))
        count = self.coordinator.get_num_blocks_to_allocate
        needed = max(count(request.request_id, demand, hit.blocks, hit.num_tokens) for demand in demands)
        return needed + self._watermark(request, True)

    def least_blocks_to_admit(
        self, request: Request, num_new_tokens: int, hit: CacheHit, full_sequence_must_fit: bool
    ) -> int:
        """Return the least that `free_blocks_to_admit` can come to while blocks are only taken and given back.

        Hits get no longer then. Blocks that full attention hits and somebody holds may still be held; of those that
        other kinds hit, all.
        """
        managers = self.coordinator.managers
        needed = 0
        if not any(
            isinstance(manager, MambaManager) for manager in managers
        ):  # else a chunk may end elsewhere
            num_past_hit = max(0, num_new_tokens - hit.num_replay_tokens)
            needed = sum(cdiv(num_past_hit, manager.block_size) for manager in managers if manager.grows)
        if full_sequence_must_fit:
            num_all = self._whole_demand(request).num_tokens
            least = (
                manager.least_at_admission(
                    num_all,
                    max(len(blocks), manager.get_num_skipped_tokens(hit.num_tokens) // manager.block_size),
                    sum(block.ref_cnt > 0 for block in blocks),
                )
                for manager, blocks in zip(managers, hit.blocks, strict=True)
            )
            needed = max(needed, sum(least))
        return needed + self._watermark(request, True)

    def _next_change(self, request_id: str, processed: int) -> int:
        """Return the computed tokens at which the request needs a block, fills one or leaves one behind."""
        change = NEVER
        for manager in self.coordinator.managers:
            change = min(change, manager.next_need(request_id), manager.next_skip(processed) + 1)
            if self.enable_caching and manager.group.prefix_cacheable:
                num_named = manager.num_cached_block.get(request_id, 0)
                change = min(change, (num_named + 1) * manager.block_size)
        return change

    def blocks_to_admit(self, request: Request, config: EngineConfig) -> int:
        """Return the free blocks that a waiting request needs without any hit: for its first chunk, or all of it."""
        chunk, end = min(request.num_tokens, config.token_budget), self._prefill_end(request)
        demands = [SlotDemand(min(chunk + self.num_lookahead_tokens, self.max_model_len), chunk, end)]
        if config.reserves_full_isl:
            demands.append(SlotDemand(request.num_tokens, request.num_tokens, end, apply_admission_cap=True))
        count = self.coordinator.get_num_blocks_to_allocate
        return max(count(request.request_id, demand, self.empty_hit.blocks, 0) for demand in demands)

    def _prefill_end(self, request: Request) -> int:
        return max(request.num_prompt_tokens, request.num_tokens - 1)

    def most_blocks(self, num_tokens: int) -> int:
        """Return how many blocks a request of so many tokens ever holds."""
        num_slots = min(num_tokens + self.num_lookahead_tokens, self.max_model_len)
        return sum(manager.most_blocks(num_slots) for manager in self.coordinator.managers)

    def num_held_blocks(self, request: Request) -> int:
        """Count the blocks in a request's tables."""
        tables = (m.req_to_blocks.get(request.request_id, ()) for m in self.coordinator.managers)
        return sum(not block.is_null for table in tables for block in table)

    def remove_skipped_blocks(self, request_id: str, processed_computed_tokens: int) -> None:
        """Give back what windows and states have left behind (vLLM: same name)."""
        before = self.block_pool.get_num_free_blocks()
        self.coordinator.remove_skipped_blocks(request_id, processed_computed_tokens)
        self.num_recycled += self.block_pool.get_num_free_blocks() - before

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Name blocks that became full (vLLM: same name)."""
        if self.enable_caching and num_computed_tokens >= request.num_slots:
            self.name_blocks(request, num_computed_tokens)

    def name_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Name the blocks that are full of a request's first tokens, as far as they have no names yet."""
        self.coordinator.cache_blocks(request, _nameable(request, num_computed_tokens))

    def put_off_names(self, requests: Iterable[Request], num_tokens: Iterable[int] = repeat(NEVER)) -> None:
        """Leave it to whatever gives blocks of these back to name what they, decoding, have filled.

        Of all processed tokens, or fewer: of `num_tokens`.
        """
        if self.enable_caching:
            self._put_off.update(zip((request.request_id for request in requests), num_tokens, strict=False))

    def name_put_off(self, request: Request) -> None:
        """Name what a request has filled, if that was put off."""
        if request.request_id in self._put_off:
            most = self._put_off.pop(request.request_id)
            self.name_blocks(request, min(most, request.num_computed_tokens - request.num_in_flight_tokens))

    def free(self, request: Request) -> None:
        """Give back all of a request's blocks (vLLM: same name)."""
        self.name_put_off(request)
        self._forget_outputs(request)
        self.coordinator.free(request.request_id)
        request.num_slots = 0

    def pop_blocks_for_free(self, request: Request) -> list[KVCacheBlock]:
        """Forget a request and return its blocks, for the caller to give back later (vLLM: same name)."""
        self._forget_outputs(request)
        request.num_slots = 0
        return self.coordinator.pop_blocks_for_free(request.request_id)

    def _forget_outputs(self, request: Request) -> None:
        """Take the names of generated blocks away where nobody will ask for them."""
        if request.output_kv == "drop_after_turn" and request.is_finished:
            for manager in self.coordinator.managers:
                table = manager.req_to_blocks.get(request.request_id, [])
                self.block_pool.forget_blocks(table[request.num_prompt_tokens // manager.block_size :])

    def take_boundary_state_offloads(self) -> dict[str, list[tuple[int, KVCacheBlock, int]]]:
        """Drain the states written since the last call: request -> (group, block, position) (vLLM: same name)."""
        offloads: dict[str, list[tuple[int, KVCacheBlock, int]]] = {}
        for manager in self.coordinator.managers:
            if isinstance(manager, MambaManager):
                pending, manager.pending_boundary_state_offloads = manager.pending_boundary_state_offloads, []
                for request_id, block, position in pending:
                    offloads.setdefault(request_id, []).append((manager.group_id, block, position))
        return offloads

    def free_copied_blocks(self) -> None:
        """Let go of both ends of this step's block copies (vLLM `take_kv_cache_block_copies`)."""
        for manager in self.coordinator.managers:
            pairs, manager.pending_cow_copies = manager.pending_cow_copies, []
            if pairs:
                self.block_pool.free_blocks(block for pair in pairs for block in pair)


def _nameable(request: Request, num_tokens: int) -> int:
    """Of a request's first tokens, those whose blocks may be cached."""
    return min(num_tokens, request.num_prompt_tokens) if request.output_kv == "never_cache" else num_tokens
