"""What the KV cache groups do together: one pool, one answer to how long a prefix-cache hit is.

Mirrors vLLM's `v1/core/kv_cache_coordinator.py`; the base class is its `KVCacheCoordinatorNoPrefixCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import BlockHash, BlockHasher, Request
from kvplan.schedulers.vllm.block_pool import BlockPool, KVCacheBlock
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.mamba_manager import MambaManager
from kvplan.schedulers.vllm.single_type_kv_cache_manager import (
    FullAttentionManager,
    SingleTypeKVCacheManager,
    SlotDemand,
)
from kvplan.schedulers.vllm.window_managers import (
    ChunkedLocalAttentionManager,
    CircularBufferManager,
    SlidingWindowManager,
)

MANAGERS: dict[str, type[SingleTypeKVCacheManager]] = {
    "full": FullAttentionManager,
    "sliding_window": SlidingWindowManager,
    "chunked_local": ChunkedLocalAttentionManager,
    "mamba": MambaManager,
    "circular_buffer": CircularBufferManager,
}
"""Kind of group -> its manager (vLLM `KVCacheSpecRegistry`)."""

GroupBlocks = Sequence[Sequence[KVCacheBlock]]


class CacheHit(NamedTuple):
    """A prefix-cache hit."""

    blocks: GroupBlocks
    """Per group; empty groups where nothing is hit."""
    num_tokens: int
    num_uncached_common_prefix_tokens: int = 0
    """How much further one group alone would have matched."""
    num_replay_tokens: int = 0
    """At the end of the hit, tokens that are computed again for windows that stay out of prefix caching."""


def replay_boundaries(num_prompt_tokens: int, block_size: int, use_eagle: bool) -> tuple[int, ...]:
    """Return the positions at which a later request with this prompt can resume (vLLM: same name)."""
    if not use_eagle:
        return (num_prompt_tokens - 1,)
    resend = (num_prompt_tokens - 1) // block_size * block_size
    extension = num_prompt_tokens // block_size * block_size
    return tuple(sorted({max(resend - block_size, 0), max(extension - block_size, 0)}))


class KVCacheCoordinator:
    """All groups of an engine without prefix caching."""

    def __init__(self, config: EngineConfig, pool: BlockPool, hasher: BlockHasher) -> None:
        self.hasher = hasher
        self.scheduler_block_size = config.scheduler_block_size
        groups = config.groups
        self.eagle_group_ids = {i for i, group in enumerate(groups) if group.eagle}
        if config.use_eagle and not self.eagle_group_ids:
            self.eagle_group_ids = set(range(len(groups)))
        if not config.use_eagle_block_drop:
            self.eagle_group_ids = set()
        self.managers = [
            MANAGERS[group.kind](config, group, i, pool, hasher) for i, group in enumerate(groups)
        ]

    def new_step_starts(self) -> None:
        """Tell the managers that a step starts (vLLM: same name)."""
        for manager in self.managers:
            manager.new_step_starts()

    def find_longest_cache_hit(self, hashes: Sequence[BlockHash], max_length: int) -> CacheHit:
        """Find nothing (vLLM: same name)."""
        return CacheHit([() for _ in self.managers], 0)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        demand: SlotDemand,
        new_computed_blocks: GroupBlocks,
        num_computed_tokens: int,
    ) -> int:
        """Sum what the groups need (vLLM: same name): the step gets all of it or nothing."""
        num_blocks = 0
        for manager, blocks in zip(self.managers, new_computed_blocks, strict=True):
            num_blocks += manager.get_num_blocks_to_allocate(request_id, demand, blocks, num_computed_tokens)
        return num_blocks

    def allocate_new_computed_blocks(
        self, request_id: str, blocks: GroupBlocks, num_computed_tokens: int, num_external_tokens: int = 0
    ) -> None:
        """Start the tables with hit blocks, all groups before any block is taken (vLLM: same name)."""
        for manager, hit in zip(self.managers, blocks, strict=True):
            manager.add_local_computed_blocks(request_id, hit, num_computed_tokens, num_external_tokens)
        if num_external_tokens:
            for manager in self.managers:
                manager.allocate_external_computed_blocks(
                    request_id, num_computed_tokens, num_external_tokens
                )

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> None:
        """Take each group's blocks, group by group (vLLM: same name)."""
        for manager in self.managers:
            manager.allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)

    def get_num_cacheable_tokens(self, num_computed_tokens: int, manager: SingleTypeKVCacheManager) -> int:
        """Return how many tokens may be named in this group (vLLM: same name)."""
        return num_computed_tokens

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Name the blocks that are full (vLLM: same name)."""
        boundaries = replay_boundaries(
            request.num_prompt_tokens, self.scheduler_block_size, bool(self.eagle_group_ids)
        )
        for manager in self.managers:
            manager.cache_blocks(
                request, self.get_num_cacheable_tokens(num_computed_tokens, manager), boundaries
            )

    def remove_skipped_blocks(self, request_id: str, processed_computed_tokens: int) -> None:
        """Give back what windows and states have left behind (vLLM: same name)."""
        for manager in self.managers:
            manager.remove_skipped_blocks(request_id, processed_computed_tokens)

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """Forget a request and return its blocks, group by group, for the caller to give back (vLLM: same name)."""
        return [block for manager in self.managers for block in manager.pop_blocks_for_free(request_id)]

    def free(self, request_id: str) -> None:
        """Give back all blocks of a request, group by group (vLLM: same name)."""
        for manager in self.managers:
            manager.free(request_id)


class UnitaryKVCacheCoordinator(KVCacheCoordinator):
    """One group with prefix caching (vLLM: same name)."""

    def __init__(self, config: EngineConfig, pool: BlockPool, hasher: BlockHasher) -> None:
        super().__init__(config, pool, hasher)
        self.managers[0].use_eagle = bool(self.eagle_group_ids)

    def find_longest_cache_hit(self, hashes: Sequence[BlockHash], max_length: int) -> CacheHit:
        """Ask the one manager (vLLM: same name)."""
        manager = self.managers[0]
        return CacheHit(*manager.find_longest_cache_hit(hashes, max_length, [0], manager.use_eagle))


class SpecGroup(NamedTuple):
    """Groups with one spec: looked up together, hit together (vLLM: same name)."""

    manager: SingleTypeKVCacheManager
    group_ids: list[int]

    @property
    def is_full(self) -> bool:
        """Whether a shorter hit is always a hit too."""
        return isinstance(self.manager, FullAttentionManager)


class HybridKVCacheCoordinator(KVCacheCoordinator):
    """Several groups with prefix caching (vLLM: same name)."""

    def __init__(self, config: EngineConfig, pool: BlockPool, hasher: BlockHasher) -> None:
        super().__init__(config, pool, hasher)
        self.partial_hash_hits = config.partial_hash_hits
        self.attention_groups = self.split_kv_cache_groups()

    def split_kv_cache_groups(self) -> list[SpecGroup]:
        """Join groups of one spec, full attention first (vLLM `verify_and_split_kv_cache_groups`)."""
        by_spec: dict[object, SpecGroup] = {}
        for manager in self.managers:
            if not manager.group.prefix_cacheable:
                continue
            spec = manager.group.model_copy(update={"eagle": False})
            by_spec.setdefault(spec, SpecGroup(manager, [])).group_ids.append(manager.group_id)
        for group in by_spec.values():
            for i in group.group_ids:
                self.managers[i].use_eagle = any(j in self.eagle_group_ids for j in group.group_ids)
        return sorted(by_spec.values(), key=lambda group: not group.is_full)

    def _align_cacheable(self, num_tokens: int) -> int:
        """Return the longest prefix of `num_tokens` that a hit could match (vLLM: same name)."""
        return num_tokens if self.partial_hash_hits else num_tokens - num_tokens % self.scheduler_block_size

    def get_num_cacheable_tokens(self, num_computed_tokens: int, manager: SingleTypeKVCacheManager) -> int:
        """Return how many tokens may be named; EAGLE needs one block more (vLLM: same name)."""
        aligned = self._align_cacheable(num_computed_tokens)
        if manager.use_eagle and aligned > 0:
            return min(num_computed_tokens, aligned + manager.block_size)
        return aligned

    def find_longest_cache_hit(self, hashes: Sequence[BlockHash], max_length: int) -> CacheHit:
        """Let each kind shorten the hit until all agree (vLLM: same name)."""
        hits: dict[int, list[KVCacheBlock]] = {}
        full_length: dict[int, int] = {}
        eagle_verified: set[int] = set()
        simple = len(self.attention_groups) == 2 and self.attention_groups[0].is_full
        length, longest = max_length, 0
        while True:
            current = length
            for group in self.attention_groups:
                first = group.group_ids[0]
                if first in full_length:  # a shorter prefix of a full-attention hit is a hit
                    current = min(current, full_length[first])
                    continue
                drop = group.manager.use_eagle and first not in eagle_verified
                bound = current
                if drop and not isinstance(group.manager, MambaManager):
                    bound = min(
                        current + self._eagle_margin(group.manager), len(hashes) * self.hasher.hash_block_size
                    )
                blocks, new = group.manager.find_longest_cache_hit(hashes, bound, group.group_ids, drop)
                if drop:
                    eagle_verified.add(first)
                elif new < current:
                    eagle_verified.clear()
                current = new
                hits.update(zip(group.group_ids, blocks, strict=True))
                if group.is_full:
                    full_length[first] = new
                longest = max(longest, current)
            if current >= length:
                break
            length = current
            if simple:
                break
        for group in self.attention_groups:
            if group.is_full:
                for i in group.group_ids:
                    del hits[i][cdiv(length, group.manager.block_size) :]
        return CacheHit([hits.get(i, []) for i in range(len(self.managers))], length, longest - length)

    def _eagle_margin(self, manager: SingleTypeKVCacheManager) -> int:
        """Return what EAGLE matches past a hit, and then drops (vLLM `eagle_proof_margin`)."""
        if self.partial_hash_hits and isinstance(manager, FullAttentionManager):
            return min(manager.block_size, self.hasher.hash_block_size)
        return manager.block_size


def get_kv_cache_coordinator(
    config: EngineConfig, pool: BlockPool, hasher: BlockHasher
) -> KVCacheCoordinator:
    """Choose by caching and number of groups (vLLM: same name)."""
    if not config.enable_prefix_caching:
        return KVCacheCoordinator(config, pool, hasher)
    unitary = len(config.groups) == 1
    return (UnitaryKVCacheCoordinator if unitary else HybridKVCacheCoordinator)(config, pool, hasher)
