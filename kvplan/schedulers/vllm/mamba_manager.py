"""Block tables of a group whose layers keep a state of fixed size: Mamba, gated delta net, linear attention.

Mirrors `MambaManager` of vLLM's `v1/core/single_type_kv_cache_manager.py`. In mode `none` a request holds one
block for life (and one per draft); in mode `align` a block per prefix-cache position, of which it keeps the
newest.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import BlockHash, BlockHasher, Request
from kvplan.schedulers.vllm.block_pool import BlockPool, GroupHash, KVCacheBlock, group_hash
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.schedulers.vllm.mamba_split import (
    get_mamba_prefill_checkpoint_position,
    is_mamba_prefill_checkpoint_valid,
)
from kvplan.schedulers.vllm.single_type_kv_cache_manager import (
    Hits,
    Retention,
    SingleTypeKVCacheManager,
    SlotDemand,
)


class MambaManager(SingleTypeKVCacheManager):
    """State blocks of one group (vLLM `MambaManager`)."""

    recycles = True

    def __init__(
        self, config: EngineConfig, group: KVCacheGroup, group_id: int, pool: BlockPool, hasher: BlockHasher
    ) -> None:
        super().__init__(config, group, group_id, pool, hasher)
        self.align = group.mode == "align"
        self.num_speculative_blocks = config.num_speculative_tokens
        self.drop_eagle_checkpoint_block = config.use_eagle_block_drop
        self.marks_states_once = config.rules.states_are_marked_once
        self.shared_prefix_checkpoint = config.mamba_shared_prefix_checkpoint
        self.cached_blocks_this_step: set[GroupHash] = set()
        """States that this step writes: nobody can read them before the next one."""
        self.last_state_block_idx: dict[str, int] = {}
        self.num_retired_blocks: dict[str, int] = {}
        self.allocated_block_reqs: set[str] = set()
        self.checkpoints: dict[str, tuple[int, int]] = {}
        """Requests whose step writes a state inside its chunk: (position, index of the block)."""
        self.pending_boundary_state_offloads: list[tuple[str, KVCacheBlock, int]] = []
        """(request, block, position) of states written and worth keeping, for a connector to store."""
        self.offers_states = self.align and config.kv_offloading is not None

    def most_blocks(self, num_tokens: int) -> int:
        """Return 1 + drafts, and in mode align one for the state before and one for a checkpoint."""
        return 1 + self.num_speculative_blocks + (1 + self.group.checkpoint_blocks if self.align else 0)

    @property
    def changes_at_block_ends(self) -> bool:
        """Whether decode steps between block ends change nothing: not if the prompt's state is named again in each."""
        return not self.pool.enable_caching and not self.group.checkpoint_blocks

    def next_need(self, request_id: str) -> int:
        """Return how many computed tokens make the request take a block, the drafts' own blocks apart."""
        return super().next_need(request_id) - self.num_speculative_blocks * self.block_size

    def next_skip(self, processed_computed_tokens: int) -> int:
        """Return how many tokens must be processed until the next state is in use."""
        return (
            self.get_num_skipped_tokens(processed_computed_tokens) // self.block_size + 1
        ) * self.block_size + 1

    def decodes_on(self, request_id: str, num_computed_tokens: int) -> bool:
        """Whether nothing is left of a prompt's chunks but its newest state and, till the next step, the one before.

        Decode steps take and give back one state a block from then on.
        """
        if request_id in self.checkpoints or request_id in self.partial_hit_reqs:
            return False
        left = self.get_num_skipped_tokens(num_computed_tokens) // self.block_size
        return self.num_retired_blocks.get(request_id, 0) >= left - 1

    def retire(self, request_id: str, processed_computed_tokens: int) -> None:
        """Note that the states before so many processed tokens have come back, block by block as they were left."""
        self.num_retired_blocks[request_id] = max(
            self.num_retired_blocks.get(request_id, 0),
            self.get_num_skipped_tokens(processed_computed_tokens) // self.block_size,
        )

    def least_at_admission(self, num_tokens: int, num_hit_blocks: int, num_held_blocks: int) -> int:
        """Return 1: the state that runs; hits that hold others' states spare none."""
        return 1

    def new_step_starts(self) -> None:
        """States of the last step can be read now."""
        self.cached_blocks_this_step.clear()

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Only the newest state matters (vLLM: same name)."""
        return num_computed_tokens - 1

    def find_longest_cache_hit(
        self, hashes: Sequence[BlockHash], max_length: int, group_ids: Sequence[int], drop_eagle_block: bool
    ) -> Hits:
        """Find the last cached state within `max_length` tokens, from the right (vLLM: same name)."""
        size, align = self.block_size, self.cache_hit_alignment_tokens
        unit = align if align < size and size % align == 0 else size
        scale = unit // self.hasher.hash_block_size
        for i in range(min(max_length // unit, len(hashes) // scale) - 1, -1, -1):
            cached = self.pool.get_cached_block(hashes[(i + 1) * scale - 1], group_ids)
            length = (i + 1) * unit
            if cached is not None and length % align == 0:
                gap = [self.pool.null_block] * (i * unit // size)
                return [[*gap, block] for block in cached], length
        return [[] for _ in group_ids], 0

    def reachable_block_mask(
        self, first: int, end: int, boundaries: Sequence[int], retention: Retention
    ) -> list[bool] | None:
        """Keep the states at the boundaries and at each interval's end (vLLM: same name)."""
        align, size, interval = retention.align, self.block_size, retention.interval
        if interval is None:
            return None
        per_segment = interval // size
        if interval and per_segment <= 1:
            return None
        mask = [bool(interval) and (i + 1) % per_segment == 0 for i in range(first, end)]
        for boundary in boundaries:
            block = boundary // align * align // size - 1
            if first <= block < end:
                mask[block - first] = True
        return mask

    def remove_skipped_blocks(self, request_id: str, processed_computed_tokens: int) -> None:
        """Give back states that were copied on (vLLM: same name)."""
        super().remove_skipped_blocks(request_id, processed_computed_tokens)
        last = self.last_state_block_idx.get(request_id)
        if last is None or last >= cdiv(processed_computed_tokens, self.block_size) - 1:
            return
        table = self.req_to_blocks[request_id]
        if not table[last].is_null:
            self.pool.free_blocks([table[last]])
            table[last] = self.pool.null_block

    def _remove_blocks_before(self, request_id: str, end: int) -> None:
        if not self.align:
            super()._remove_blocks_before(request_id, end)
            return
        table = self.req_to_blocks[request_id]
        first = self.num_retired_blocks.get(request_id, 0)
        if first >= end:
            return
        freed = []
        for i in range(end - 1, first - 1, -1):  # states awaiting retirement have gaps between them
            if not table[i].is_null:
                freed.append(table[i])
                table[i] = self.pool.null_block
        self.pool.free_blocks(freed)
        self.num_retired_blocks[request_id] = end

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        demand: SlotDemand,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_computed_tokens: int,
    ) -> int:
        """Count state blocks to take (vLLM: same name); too many if the hit state is written only now."""
        if new_computed_blocks and new_computed_blocks[-1].block_hash in self.cached_blocks_this_step:
            return self.pool.num_gpu_blocks + 1
        if not self.align:
            num_tokens = demand.num_tokens + self.block_size * self.num_speculative_blocks
            demand = demand._replace(num_tokens=num_tokens)
            return super().get_num_blocks_to_allocate(
                request_id, demand, new_computed_blocks, num_computed_tokens
            )
        num_tokens = demand.num_tokens_main_model  # a drafter has no state layers
        num_required = cdiv(num_tokens, self.block_size) + self.num_speculative_blocks
        num_new = num_required - len(new_computed_blocks) - len(self.req_to_blocks.get(request_id, ()))
        num_local = num_computed_tokens - demand.num_external_tokens
        copied = (
            self.has_partial_local_hit(new_computed_blocks, num_local) or request_id in self.partial_hit_reqs
        )
        if copied:
            num_new = max(num_new, 0) + 1
        prefill_end = demand.prefill_end if self.retention_interval == 0 else 0
        checkpoint = self._internal_checkpoint(request_id, num_computed_tokens, num_tokens, prefill_end)
        if not demand.apply_admission_cap:
            self.checkpoints.pop(request_id, None)
            if checkpoint:
                self.checkpoints[request_id] = (checkpoint, cdiv(num_tokens, self.block_size) - 2)
        cap = 1 + copied + bool(checkpoint)
        if request_id not in self.allocated_block_reqs:
            cap += self.num_speculative_blocks
        if num_new > 0:
            num_new = min(num_new, cap)
        return num_new + sum(block.ref_cnt == 0 and not block.is_null for block in new_computed_blocks)

    def _internal_checkpoint(self, request_id: str, start: int, end: int, prefill_end: int) -> int:
        """Return the position of a state written in mid chunk, or 0 (vLLM `_needs_internal_checkpoint`)."""
        position = get_mamba_prefill_checkpoint_position(
            end, self.cache_hit_alignment_tokens, self.drop_eagle_checkpoint_block
        )
        index = cdiv(end, self.block_size) - 2
        table = self.req_to_blocks.get(request_id, [])
        needed = (
            self.align
            and self.group.checkpoint_blocks > 0
            and end >= prefill_end
            and is_mamba_prefill_checkpoint_valid(
                start,
                end,
                position,
                unit=self.hasher.hash_block_size,
                block_size=self.block_size,
                alignment=self.group.checkpoint_alignment,
            )
            and index >= 0
            and (
                index >= len(table)
                or table[index].is_null
                or (
                    request_id in self.allocated_block_reqs
                    and index >= len(table) - self.num_speculative_blocks
                )
            )
        )
        return position if needed else 0

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> None:
        """Take blocks for the running state and the drafts', null ones before (vLLM: same name)."""
        if not self.align:
            num_tokens += self.block_size * self.num_speculative_blocks
            super().allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)
            return
        table = self.req_to_blocks.setdefault(request_id, [])
        num_required = cdiv(num_tokens_main_model, self.block_size) + self.num_speculative_blocks
        checkpoint_block = int(request_id in self.checkpoints)
        partial_hit = self.partial_hit_reqs.pop(request_id, None)
        running = request_id in self.allocated_block_reqs
        self.allocated_block_reqs.add(request_id)
        if num_required <= len(table) and partial_hit is None and not checkpoint_block:
            return
        num_before = len(table)
        if running:  # the running state stands before the drafts'
            self.last_state_block_idx[request_id] = num_before - 1 - self.num_speculative_blocks
        elif num_before:  # a hit's state is the last block
            self.last_state_block_idx[request_id] = num_before - 1
        num_null = num_required - self.num_speculative_blocks - 1 - checkpoint_block
        table.extend([self.pool.null_block] * (num_null - num_before))
        if running:
            for i in range(num_before - self.num_speculative_blocks, min(num_before, num_null)):
                table.append(table[i])  # scratch blocks move on with the running state
                table[i] = self.pool.null_block
        num_new = max(num_required - len(table), 0)
        new_blocks = self.pool.get_new_blocks(num_new + (partial_hit is not None), self.group_id)
        if partial_hit is not None:
            copy = new_blocks.pop(0)
            self._copy_partial_hit(request_id, *partial_hit, copy, running)
        table.extend(new_blocks)

    def _copy_partial_hit(
        self, request_id: str, index: int, source: KVCacheBlock, copy: KVCacheBlock, running: bool
    ) -> None:
        """Part a shared state: a running request keeps its block and the cache gets the copy."""
        if not running:
            self._apply_cow(request_id, index, source, copy)
            return
        self.pool.move_block_hashes(source, copy)
        self.pending_cow_copies.append((source, copy))
        source.ref_cnt += 1
        if copy.block_hash is not None:
            self.cached_blocks_this_step.add(copy.block_hash)

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """Forget a request and the states it wrote in this step (vLLM: same name)."""
        self.allocated_block_reqs.discard(request_id)
        for notes in (self.last_state_block_idx, self.num_retired_blocks, self.checkpoints):
            notes.pop(request_id, None)
        pending = self.pending_boundary_state_offloads
        if pending:
            self.pending_boundary_state_offloads = [entry for entry in pending if entry[0] != request_id]
        return super().pop_blocks_for_free(request_id)

    def cache_blocks(self, request: Request, num_tokens: int, boundaries: Sequence[int]) -> None:
        """Name the states worth keeping (vLLM: same name) and note that they are written in this step."""
        before = self.num_cached_block.get(request.request_id, 0)
        super().cache_blocks(request, num_tokens, boundaries)
        after = self.num_cached_block.get(request.request_id, 0)
        if self.align:
            self._cache_partial_tail_block(request, num_tokens)
        for block in self.req_to_blocks[request.request_id][before:after]:
            if block.block_hash is not None:
                self.cached_blocks_this_step.add(block.block_hash)
                if self.offers_states:
                    entry = request.request_id, block, block.num_hash_tokens
                    self.pending_boundary_state_offloads.append(entry)

    def _cache_partial_tail_block(self, request: Request, num_tokens: int) -> None:
        """Name the state at the prompt's last resumable position (vLLM: same name)."""
        unit, table = self.hasher.hash_block_size, self.req_to_blocks[request.request_id]
        if request.request_id in self.checkpoints:
            position, index = self.checkpoints[request.request_id]
            if not self._keeps_checkpoint(request, position):
                self.pool.evict_cached_block(table[index])  # the running state will be written over it
            elif table[index].num_hash_tokens != position:
                self._cache_state(request, table[index], position, replace_existing=True)
            return
        index = cdiv(num_tokens, self.block_size) - 1
        prompt_position = get_mamba_prefill_checkpoint_position(
            request.num_prompt_tokens, unit, self.drop_eagle_checkpoint_block
        )
        if num_tokens <= 0 or index >= len(table) or table[index].is_null:
            return
        if num_tokens != prompt_position and not self._is_junction(request, num_tokens):
            return
        if self.marks_states_once and table[index].num_hash_tokens == num_tokens:
            return
        self._cache_state(request, table[index], num_tokens)
        if num_tokens % self.block_size:
            self.partial_hit_reqs[request.request_id] = (index, table[index])
            self.num_cached_block[request.request_id] = index

    def _is_junction(self, request: Request, num_tokens: int) -> bool:
        """Whether a prompt's chunk ends where others part from it, and that state is kept wherever it lies."""
        return (
            self.shared_prefix_checkpoint
            and num_tokens == request.shared_prefix_boundary
            and request.num_computed_tokens < num_tokens <= request.num_prompt_tokens
        )

    def _keeps_checkpoint(self, request: Request, position: int) -> bool:
        """Whether a state written inside a chunk can be hit later."""
        if position == request.shared_prefix_boundary:
            return True
        prompt_position = get_mamba_prefill_checkpoint_position(
            request.num_prompt_tokens, self.cache_hit_alignment_tokens, self.drop_eagle_checkpoint_block
        )
        if position == prompt_position:
            return True
        block = position // self.block_size - 1
        mask = self.reachable_block_mask(block, block + 1, (), self.retention)
        return position % self.block_size == 0 and (mask is None or mask[0])

    def _cache_state(
        self, request: Request, block: KVCacheBlock, position: int, replace_existing: bool = False
    ) -> None:
        hashes = self.hasher.block_hashes(request, position)
        key = group_hash(hashes[position // self.hasher.hash_block_size - 1], self.group_id)
        self.pool.cache_partial_block(block, key, position, replace_existing)
        self.cached_blocks_this_step.add(key)
