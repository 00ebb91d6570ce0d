"""Block tables of groups that forget: sliding window, chunked local attention, circular buffer.

Mirrors the managers of these names in vLLM's `v1/core/single_type_kv_cache_manager.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import NEVER, BlockHash
from kvplan.schedulers.vllm.block_pool import KVCacheBlock
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.single_type_kv_cache_manager import (
    Hits,
    Retention,
    SingleTypeKVCacheManager,
    SlotDemand,
    append_hits,
)


class SlidingWindowManager(SingleTypeKVCacheManager):
    """Tokens more than `window - 1` behind the next one are dead (vLLM `SlidingWindowManager`)."""

    recycles = True

    @property
    def window(self) -> int:
        """Tokens that the newest token sees, itself included."""
        assert self.group.window is not None
        return self.group.window

    def _max_admission_blocks(self, config: EngineConfig) -> int:
        """Mirrors `SlidingWindowSpec.max_admission_blocks_per_request`; a window may start in mid block."""
        return (
            cdiv(min(self.window - 1 + config.max_in_flight_tokens, config.max_model_len), self.block_size)
            + 1
        )

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Count tokens in front of the window (vLLM: same name)."""
        return max(0, num_computed_tokens - self.window + 1)

    def next_skip(self, processed_computed_tokens: int) -> int:
        """Return how many tokens must be processed until the next block falls behind the window."""
        num_skipped = self.get_num_skipped_tokens(processed_computed_tokens) // self.block_size
        return (num_skipped + 1) * self.block_size + self.window - 1

    def _contiguous_blocks_for_hit(self, use_eagle: bool) -> int:
        return cdiv(self.window - 1, self.block_size) + use_eagle

    def find_longest_cache_hit(
        self, hashes: Sequence[BlockHash], max_length: int, group_ids: Sequence[int], drop_eagle_block: bool
    ) -> Hits:
        """Find the last run of cached blocks that fills a window, from the right (vLLM: same name)."""
        size, align = self.block_size, self.cache_hit_alignment_tokens
        needed = self._contiguous_blocks_for_hit(drop_eagle_block)
        num_blocks = max_length // size
        computed = [[self.pool.null_block] * num_blocks for _ in group_ids]
        run, end = 0, 0
        for i in range(num_blocks - 1, -1, -1):
            cached = self.pool.get_cached_block(hashes[(i + 1) * self.scale - 1], group_ids)
            if cached is None:
                run = 0
                continue
            if run == 0 and (i if drop_eagle_block else i + 1) * size % align:
                continue
            for blocks, block in zip(computed, cached, strict=True):
                blocks[i] = block
            run += 1
            if run >= needed:
                end = i + run
                break
        else:  # a shorter run counts where the prompt starts with it
            end = run
            while end * size % align:
                end -= 1
        if drop_eagle_block and end:
            end -= 1
            while end * size % align:
                end -= 1
        for blocks in computed:
            del blocks[end:]
        return computed, end * size

    def reachable_block_mask(
        self, first: int, end: int, boundaries: Sequence[int], retention: Retention
    ) -> list[bool] | None:
        """Keep what a hit at a boundary, or at an interval's end, needs (vLLM: same name)."""
        (align, interval, use_eagle, final), size = retention, self.block_size
        if align % size:
            return None
        needed, shift = self._contiguous_blocks_for_hit(use_eagle), int(use_eagle)
        mask = [False] * (end - first)
        if interval != 0:
            per_segment = (align if interval is None else interval) // size
            if needed >= per_segment:
                return None
            for i in range(max(first, shift), end):
                mask[i - first] = (i - shift) % per_segment >= per_segment - needed
            if final is not None and not use_eagle and final % per_segment:
                start = max(final - final % per_segment, final - needed)
                for i in range(max(first, start), min(end, final)):
                    mask[i - first] = True
        if interval is not None:
            for boundary in boundaries:
                last = boundary // align * align // size + shift
                for i in range(max(first, last - needed), min(end, last)):
                    mask[i - first] = True
        return mask


class ChunkedLocalAttentionManager(SingleTypeKVCacheManager):
    """A token sees its own chunk only (vLLM `ChunkedLocalAttentionManager`)."""

    recycles = True

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        assert self.group.chunk is not None
        return self.group.chunk

    def _max_admission_blocks(self, config: EngineConfig) -> int:
        """Mirrors `ChunkedLocalAttentionSpec.max_admission_blocks_per_request`."""
        return cdiv(min(self.chunk + config.max_in_flight_tokens, config.max_model_len), self.block_size)

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Count tokens of the chunks before the next token's (vLLM: same name)."""
        return num_computed_tokens // self.chunk * self.chunk

    def next_skip(self, processed_computed_tokens: int) -> int:
        """Return how many tokens must be processed until the next chunk begins."""
        return self.get_num_skipped_tokens(processed_computed_tokens) + self.chunk

    def find_longest_cache_hit(
        self, hashes: Sequence[BlockHash], max_length: int, group_ids: Sequence[int], drop_eagle_block: bool
    ) -> Hits:
        """Take earlier chunks for granted, look up the current one's blocks (vLLM: same name)."""
        first = self.get_num_skipped_tokens(max_length) // self.block_size
        computed = [[self.pool.null_block] * first for _ in group_ids]
        for i in range(first, max_length // self.block_size):
            cached = self.pool.get_cached_block(hashes[(i + 1) * self.scale - 1], group_ids)
            if cached is None:
                break
            append_hits(computed, cached)
        return computed, len(computed[0]) * self.block_size


class CircularBufferManager(SingleTypeKVCacheManager):
    """One block from admission to the end, of no part in prefix caching (vLLM `CircularBufferManager`)."""

    grows = False

    def most_blocks(self, num_tokens: int) -> int:
        """Return one, whatever the length."""
        return 1

    def next_need(self, request_id: str) -> int:
        """Return that no number of tokens makes the request take another."""
        return NEVER

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        demand: SlotDemand,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_computed_tokens: int,
    ) -> int:
        """Count the block, if the request has none (vLLM: same name)."""
        return 0 if self.req_to_blocks.get(request_id) else 1

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_computed_tokens: int,
        num_external_tokens: int = 0,
    ) -> None:
        """Take nothing from a hit (vLLM: same name)."""

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> None:
        """Take the block (vLLM: same name)."""
        table = self.req_to_blocks.setdefault(request_id, [])
        if not table:
            table.extend(self.pool.get_new_blocks(1, self.group_id))

    def remove_skipped_blocks(self, request_id: str, processed_computed_tokens: int) -> None:
        """Keep the block (vLLM: same name)."""
