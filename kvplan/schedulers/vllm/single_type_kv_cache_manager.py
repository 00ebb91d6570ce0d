"""Block tables of one KV cache group: what all kinds do, and full attention.

Each method bears the name of the method it mirrors in vLLM's `v1/core/single_type_kv_cache_manager.py`;
windows are in `window_managers`, Mamba-like state in `mamba_manager`. A manager knows one group; what groups
have in common is the coordinator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import NEVER, BlockHash, BlockHasher, Request
from kvplan.schedulers.vllm.block_pool import BlockPool, KVCacheBlock, group_hash
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup

Hits = tuple[list[list[KVCacheBlock]], int]
"""Per group the blocks of a prefix-cache hit (null blocks where none is needed), and its length in tokens."""


class SlotDemand(NamedTuple):
    """How many slots a request must have after `allocate_slots`."""

    num_tokens: int
    """Tokens with slots, those of drafters (lookahead) included."""
    num_tokens_main_model: int
    """Tokens with slots for the model itself."""
    prefill_end: int
    """Where the prompt, or what a preempted request recomputes, ends."""
    apply_admission_cap: bool = False
    """Whether to count no more than kinds that recycle ever hold at once: for the whole prompt, at admission."""
    num_external_tokens: int = 0
    """Of the computed tokens, those that are loaded from beyond the GPU."""


class Retention(NamedTuple):
    """Which blocks of a kind that forgets are worth keeping for later hits."""

    align: int
    """Tokens between two places where a hit can end."""
    interval: int | None
    """Tokens between two places that are kept; 0 = the prompt's end alone, None = all."""
    use_eagle: bool
    """Whether a hit looks one block further, for the drafter."""
    final_segment_end: int | None = None
    """The block where the request ends, whose tail is kept as well; None = not known."""


class SingleTypeKVCacheManager:
    """A block for every `block_size` tokens, kept to the end; the kinds below change what they must."""

    recycles = False
    """Whether blocks come back while the request lives."""
    grows = True
    """Whether more tokens take more blocks."""

    def __init__(
        self, config: EngineConfig, group: KVCacheGroup, group_id: int, pool: BlockPool, hasher: BlockHasher
    ) -> None:
        assert group.block_size is not None
        self.group = group
        self.group_id = group_id
        self.block_size = group.block_size
        self.pool = pool
        self.hasher = hasher
        self.scale = max(1, self.block_size // config.hash_block_size)
        self.num_lookahead_tokens = config.num_lookahead_tokens
        self.retention_interval = config.prefix_cache_retention_interval
        self.cache_hit_alignment_tokens = (
            config.hash_block_size if config.partial_hash_hits else config.scheduler_block_size
        )
        self.use_eagle = False
        """Whether hits drop the last block, for the drafter needs its hidden states; set by the coordinator.
        """
        self.pins_below_junction = config.rules.junctions_are_pinned_below
        self.max_admission_blocks = self._max_admission_blocks(config)
        self.req_to_blocks: dict[str, list[KVCacheBlock]] = {}
        self.num_cached_block: dict[str, int] = {}
        self.partial_hit_reqs: dict[str, tuple[int, KVCacheBlock]] = {}
        """Requests whose table holds a shared block that they will write into: (index, block)."""
        self.pending_cow_copies: list[tuple[KVCacheBlock, KVCacheBlock]] = []

    def _max_admission_blocks(self, config: EngineConfig) -> int | None:
        return None

    def most_blocks(self, num_tokens: int) -> int:
        """Return how many blocks a request of so many tokens ever holds."""
        num_blocks = cdiv(num_tokens, self.block_size)
        return num_blocks if self.max_admission_blocks is None else min(num_blocks, self.max_admission_blocks)

    def least_at_admission(self, num_tokens: int, num_hit_blocks: int, num_held_blocks: int) -> int:
        """Return the least that a prompt takes that hits so many blocks or fewer, so many of them held by others."""
        spared = num_hit_blocks if self.recycles else num_held_blocks
        return max(0, self.most_blocks(num_tokens) - spared)

    @property
    def changes_at_block_ends(self) -> bool:
        """Whether a decode step between two block ends, and before `next_skip`, changes nothing here."""
        return self.scale == 1

    def next_need(self, request_id: str) -> int:
        """Return how many computed tokens make the request take a block."""
        return len(self.req_to_blocks[request_id]) * self.block_size - self.num_lookahead_tokens + 1

    def next_skip(self, processed_computed_tokens: int) -> int:
        """Return how many tokens must be processed until the next block falls behind."""
        return NEVER

    def new_step_starts(self) -> None:
        """Forget what concerned the last step only."""

    def has_partial_local_hit(
        self, new_computed_blocks: Sequence[KVCacheBlock], num_computed_tokens: int
    ) -> bool:
        """Whether the hit ends inside its last block, which must then be copied."""
        return bool(new_computed_blocks) and num_computed_tokens % self.block_size != 0

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        demand: SlotDemand,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_computed_tokens: int,
    ) -> int:
        """Count blocks to take, and hit blocks to take out of the free queue (vLLM: same name)."""
        num_required = cdiv(demand.num_tokens, self.block_size)
        if demand.apply_admission_cap and self.max_admission_blocks is not None:
            num_required = min(num_required, self.max_admission_blocks)
        num_held = len(self.req_to_blocks.get(request_id, ()))
        if request_id in self.num_cached_block:
            return max(num_required - num_held, 0)
        num_skipped = self.get_num_skipped_tokens(num_computed_tokens) // self.block_size
        num_new = max(num_required - max(num_skipped, len(new_computed_blocks) + num_held), 0)
        touched = new_computed_blocks[max(0, num_skipped - num_held) :]
        num_evictable = sum(block.ref_cnt == 0 and not block.is_null for block in touched)
        num_local = num_computed_tokens - demand.num_external_tokens
        copied = self.has_partial_local_hit(new_computed_blocks, num_local)
        return num_new + num_evictable + copied

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_computed_tokens: int,
        num_external_tokens: int = 0,
    ) -> None:
        """Start a table with the blocks of a hit (vLLM: same name); those behind the window become null.

        `num_computed_tokens` counts the `num_external_tokens` that will be loaded after the hit.
        """
        table = self.req_to_blocks.setdefault(request_id, [])
        assert not table
        num_skipped = self.get_num_skipped_tokens(num_computed_tokens) // self.block_size
        held = new_computed_blocks[max(num_skipped, 0) :]
        self.pool.touch(held)
        table.extend([self.pool.null_block] * num_skipped)
        table.extend(held)
        self.num_cached_block[request_id] = len(table)
        num_local = num_computed_tokens - num_external_tokens
        if self.has_partial_local_hit(held, num_local):
            index = num_local // self.block_size
            self.partial_hit_reqs[request_id] = (index, held[-1])
            self.num_cached_block[request_id] = index

    def allocate_external_computed_blocks(
        self, request_id: str, num_computed_tokens: int, num_external_tokens: int
    ) -> None:
        """Take blocks for tokens that will be loaded, as far as they are not behind the window (vLLM: same name)."""
        in_reach = num_computed_tokens - max(0, self.get_num_skipped_tokens(num_computed_tokens))
        if min(in_reach, num_external_tokens) > 0:
            table = self.req_to_blocks[request_id]
            num_new = cdiv(num_computed_tokens, self.block_size) - len(table)
            if num_new > 0:
                table.extend(self.pool.get_new_blocks(num_new, self.group_id))

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> None:
        """Take blocks for `num_tokens` slots; a shared partial block is copied first (vLLM: same name)."""
        if request_id in self.partial_hit_reqs:
            index, source = self.partial_hit_reqs.pop(request_id)
            self._apply_cow(request_id, index, source, self.pool.get_new_blocks(1, self.group_id)[0])
        table = self.req_to_blocks.setdefault(request_id, [])
        num_new = cdiv(num_tokens, self.block_size) - len(table)
        if num_new > 0:
            table.extend(self.pool.get_new_blocks(num_new, self.group_id))

    def _apply_cow(self, request_id: str, index: int, source: KVCacheBlock, copy: KVCacheBlock) -> None:
        """Put a private copy in place of a shared block; both are held until the step is scheduled."""
        self.req_to_blocks[request_id][index] = copy
        self.pending_cow_copies.append((source, copy))
        copy.ref_cnt += 1

    def cache_blocks(self, request: Request, num_tokens: int, boundaries: Sequence[int]) -> None:
        """Name the full blocks within the first `num_tokens`, for others to hit (vLLM: same name).

        Groups that keep little name only what a hit at one of `boundaries` needs.
        """
        if not self.group.prefix_cacheable:
            return
        first = self.num_cached_block.get(request.request_id, 0)
        end = min(num_tokens, self.hasher.num_hashed_tokens(request)) // self.block_size
        if first < end:
            junction = request.shared_prefix_boundary
            if junction:
                boundaries = (*boundaries, junction)
                if self.use_eagle and self.pins_below_junction:
                    boundaries = (*boundaries, junction - self.block_size)
            mask = self.reachable_block_mask(first, end, boundaries, self.retention)
            table = self.req_to_blocks[request.request_id]
            hashes = self.hasher.block_hashes(request, end * self.block_size)
            names = hashes[(first + 1) * self.scale - 1 :: self.scale]
            self.pool.cache_full_blocks(table[first:end], names, self.group_id, first, self.block_size, mask)
            self.num_cached_block[request.request_id] = end

    @cached_property
    def retention(self) -> Retention:
        """What the prefix cache keeps; asked for once the coordinator has said who drafts."""
        return Retention(self.cache_hit_alignment_tokens, self.retention_interval, self.use_eagle)

    def reachable_block_mask(
        self, first: int, end: int, boundaries: Sequence[int], retention: Retention
    ) -> list[bool] | None:
        """Say which of the blocks `first .. end - 1` are worth a name; None = all (vLLM: same name)."""
        return None

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """Forget a request; its blocks, in order of allocation, go back to the pool by the caller (vLLM: same name)."""
        self.num_cached_block.pop(request_id, None)
        self.partial_hit_reqs.pop(request_id, None)
        return self.req_to_blocks.pop(request_id, [])

    def free(self, request_id: str) -> None:
        """Give back a request's blocks, the last one first (vLLM: same name)."""
        self.pool.free_blocks(reversed(self.pop_blocks_for_free(request_id)))

    def remove_skipped_blocks(self, request_id: str, processed_computed_tokens: int) -> None:
        """Give back blocks that no later token attends to (vLLM: same name); null blocks take their place."""
        num_skipped = self.get_num_skipped_tokens(processed_computed_tokens)
        table = self.req_to_blocks.get(request_id)
        if num_skipped > 0 and table is not None:
            self._remove_blocks_before(request_id, min(num_skipped // self.block_size, len(table)))

    def _remove_blocks_before(self, request_id: str, end: int) -> None:
        """Mirrors `_remove_blocks_in_range`: back to front, up to what an earlier call removed."""
        table = self.req_to_blocks[request_id]
        freed = []
        for i in range(end - 1, -1, -1):
            if table[i].is_null:
                break
            freed.append(table[i])
            table[i] = self.pool.null_block
        self.pool.free_blocks(freed)

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Count leading tokens that the next token does not attend to (vLLM: same name)."""
        return 0

    def find_longest_cache_hit(
        self, hashes: Sequence[BlockHash], max_length: int, group_ids: Sequence[int], drop_eagle_block: bool
    ) -> Hits:
        """Find the longest cached prefix of at most `max_length` tokens in all the groups (vLLM: same name).

        `hashes` are the request's, of all its full hash blocks. A hit's length is a multiple of the
        alignment.
        """
        raise NotImplementedError


class FullAttentionManager(SingleTypeKVCacheManager):
    """Every token attends to all before it (vLLM `FullAttentionManager`)."""

    def cache_blocks(self, request: Request, num_tokens: int, boundaries: Sequence[int]) -> None:
        """Name the full blocks, and the prompt's tail where hits may end inside a block (vLLM: same name)."""
        super().cache_blocks(request, num_tokens, boundaries)
        if self.scale > 1:
            self._cache_partial_tail_block(request, num_tokens)

    def _cache_partial_tail_block(self, request: Request, num_tokens: int) -> None:
        """Name the prompt's tail where it ends inside a block (vLLM: same name)."""
        unit = self.hasher.hash_block_size
        limit = request.num_prompt_tokens - (0 if self.use_eagle else 1)
        boundary = min(limit // unit * unit, self.hasher.num_hashed_tokens(request))
        if boundary == 0 or boundary > num_tokens or boundary % self.block_size == 0:
            return
        table = self.req_to_blocks[request.request_id]
        index = boundary // self.block_size
        if index < len(table) and not table[index].is_null:
            block_hash = self.hasher.block_hashes(request, boundary)[boundary // unit - 1]
            key = group_hash(block_hash, self.group_id)
            self.pool.cache_partial_block(table[index], key, boundary)

    def find_longest_cache_hit(
        self, hashes: Sequence[BlockHash], max_length: int, group_ids: Sequence[int], drop_eagle_block: bool
    ) -> Hits:
        """Find the cached blocks from the start, then a tail inside a block (vLLM: same name)."""
        size, unit, align = self.block_size, self.hasher.hash_block_size, self.cache_hit_alignment_tokens
        computed: list[list[KVCacheBlock]] = [[] for _ in group_ids]
        for i in range(min(max_length // size, len(hashes) // self.scale)):
            cached = self.pool.get_cached_block(hashes[(i + 1) * self.scale - 1], group_ids)
            if cached is None:
                break
            append_hits(computed, cached)
        length = len(computed[0]) * size
        if align < size and size % align == 0:
            longest = min(length // unit + self.scale - 1, max_length // unit, len(hashes))
            for i in range(longest - 1, length // unit - 1, -1):
                tail = self.pool.get_cached_block(hashes[i], group_ids)
                if tail is not None:
                    append_hits(computed, tail)
                    length = (i + 1) * unit
                    break
        if drop_eagle_block and length:
            length -= min(align, size)
        length -= length % align
        for blocks in computed:
            del blocks[cdiv(length, size) :]
        return computed, length


def append_hits(computed: list[list[KVCacheBlock]], cached: Sequence[KVCacheBlock]) -> None:
    """Add one block per group."""
    for blocks, block in zip(computed, cached, strict=True):
        blocks.append(block)
