"""Blocks, the free queue and the prefix cache: who holds a block, and in which order free ones are taken.

Knows block ids and block names. Does not know requests, tokens or attention kinds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

GroupHash = int
"""A block name and its KV cache group in one number: the groups' blocks of one prefix are different blocks."""
NAME_BITS = 32
"""Room for a block name; the group stands above it, so that names that follow each other fall into dictionary slots
that do."""


def group_hash(block_hash: int, group_id: int) -> GroupHash:
    """Name a group's block (vLLM `make_block_hash_with_group_id`, which packs bytes).

    >>> group_hash(5, 0), group_hash(5, 1) != group_hash(5, 0)
    (5, True)
    """
    return group_id << NAME_BITS | block_hash


def name_of(key: GroupHash) -> int:
    """Return the block name in a group's (vLLM `get_block_hash`).

    >>> name_of(group_hash(5, 1))
    5
    """
    return key & ((1 << NAME_BITS) - 1)


@dataclass(slots=True, eq=False)
class KVCacheBlock:
    """One physical block (vLLM `KVCacheBlock`)."""

    block_id: int
    ref_cnt: int = 0
    is_null: bool = False
    group: int = 0
    block_hash: GroupHash | None = None
    num_hash_tokens: int = 0
    """Length of the prefix that `block_hash` names."""
    extra_hashes: list[GroupHash] = field(default_factory=list)
    """Further names of the same block, when a hit may end inside it."""


class FreeKVCacheBlockQueue:
    """Free blocks in the order in which they will be taken (vLLM `FreeKVCacheBlockQueue`).

    Two-ended: blocks nobody can hit go to the front, cached ones to the tail. Any block can leave the middle.
    """

    def __init__(self, blocks: Iterable[KVCacheBlock]) -> None:
        self._queue: OrderedDict[KVCacheBlock, None] = OrderedDict.fromkeys(blocks)

    @property
    def num_free_blocks(self) -> int:
        """Blocks in the queue, cached ones included."""
        return len(self._queue)

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """Take the first `n` blocks."""
        if n == 1:
            return [self._queue.popitem(last=False)[0]]
        taken = list(islice(self._queue, n))
        for block in taken:
            del self._queue[block]
        return taken

    def popleft(self) -> KVCacheBlock:
        """Take the first block (vLLM: same name)."""
        return self._queue.popitem(last=False)[0]

    def prepend(self, block: KVCacheBlock) -> None:
        """Put one block at the front."""
        self._queue[block] = None
        self._queue.move_to_end(block, last=False)

    def append(self, block: KVCacheBlock) -> None:
        """Put one block at the tail (vLLM: same name)."""
        self._queue[block] = None

    def remove(self, block: KVCacheBlock) -> None:
        """Take one block out of the middle."""
        del self._queue[block]

    def prepend_n(self, blocks: Sequence[KVCacheBlock]) -> None:
        """Put blocks at the front, the first one foremost."""
        for block in reversed(blocks):
            self._queue[block] = None
            self._queue.move_to_end(block, last=False)

    def append_n(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Put blocks at the tail, in order."""
        self._queue.update(dict.fromkeys(blocks))

    def __iter__(self) -> Iterator[KVCacheBlock]:
        return iter(self._queue)


class BlockHashToBlockMap:
    """Name -> blocks with that content, the first cached one first (vLLM `BlockHashToBlockMap`).

    Equal blocks are not merged, since a request's block table must not change.
    """

    def __init__(self) -> None:
        self._cache: dict[GroupHash, KVCacheBlock | dict[int, KVCacheBlock]] = {}
        """The block itself where there is one, as nearly always: a dictionary each would be most of the memory."""

    def get_one_block(self, key: GroupHash) -> KVCacheBlock | None:
        """Return the copy cached first, or None."""
        found = self._cache.get(key)
        return next(iter(found.values())) if isinstance(found, dict) else found

    def contain(self, key: GroupHash, block_id: int) -> bool:
        """Whether this block is cached under this name."""
        found = self._cache.get(key)
        if isinstance(found, dict):
            return block_id in found
        return found is not None and found.block_id == block_id

    def insert(self, key: GroupHash, block: KVCacheBlock) -> None:
        """Cache a block under a name."""
        found = self._cache.setdefault(key, block)
        if isinstance(found, dict):
            found[block.block_id] = block
        elif found is not block:
            self._cache[key] = {found.block_id: found, block.block_id: block}

    def pop(self, key: GroupHash, block: KVCacheBlock) -> None:
        """Drop one block's entry, if it is there."""
        found = self._cache.get(key)
        if found is block:
            del self._cache[key]
        elif isinstance(found, dict):
            found.pop(block.block_id, None)
            if not found:
                del self._cache[key]


class BlockPool:
    """All blocks of one engine (vLLM `v1/core/block_pool.py: BlockPool`).

    `num_gpu_blocks` counts the null block, which is never handed out: it stands in block tables for what a
    window or a state has left behind.
    """

    def __init__(
        self,
        num_gpu_blocks: int,
        enable_caching: bool,
        num_groups: int = 1,
        takes_unhashed_first: bool = True,
    ) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.enable_caching = enable_caching
        self.takes_unhashed_first = takes_unhashed_first
        """Whether freed blocks without a name go to the front of the queue; else they too go to its tail."""
        self.blocks = [KVCacheBlock(i) for i in range(num_gpu_blocks)]
        self.free_block_queue = FreeKVCacheBlockQueue(self.blocks)
        self.null_block = self.free_block_queue.popleft_n(1)[0]
        self.null_block.is_null = True
        self.cached_block_hash_to_block = BlockHashToBlockMap()
        self.num_taken = 0
        """Blocks taken from the free queue so far."""
        self.num_evicted = 0
        """Cached blocks taken, which lost their names, so far."""
        self.num_cached_blocks = 0
        """Blocks that have a name now."""
        self.num_cached_free_blocks = 0
        """Those of them that nobody holds."""
        self.num_used_by_group = [0] * num_groups

    def get_num_free_blocks(self) -> int:
        """Count free blocks, cached ones included (vLLM: same name)."""
        return self.free_block_queue.num_free_blocks

    def get_cached_block(self, block_hash: int, group_ids: Sequence[int]) -> list[KVCacheBlock] | None:
        """Return the cached block of each group, or None when one of them misses (vLLM: same name)."""
        found = []
        for group in group_ids:
            block = self.cached_block_hash_to_block.get_one_block(group_hash(block_hash, group))
            if block is None:
                return None
            found.append(block)
        return found

    def get_new_blocks(self, num_blocks: int, group: int = 0) -> list[KVCacheBlock]:
        """Take blocks from the front of the free queue; cached ones lose their names (vLLM: same name)."""
        assert num_blocks <= self.get_num_free_blocks()
        taken = self.free_block_queue.popleft_n(num_blocks)
        for block in taken:
            if block.block_hash is not None:
                self._remove_cached_block_hashes(block)
                self.num_evicted += 1
            block.ref_cnt = 1
            block.group = group
        self.num_taken += num_blocks
        self.num_used_by_group[group] += num_blocks
        return taken

    def get_new_block(self, group: int) -> KVCacheBlock:
        """Take the first block of the free queue, as `get_new_blocks` does."""
        block = self.free_block_queue.popleft()
        if block.block_hash is not None:
            self.evict_cached_block(block)
        block.ref_cnt, block.group = 1, group
        self.num_taken += 1
        self.num_used_by_group[group] += 1
        return block

    def touch(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Hold hit blocks: one reference more, and out of the free queue (vLLM: same name)."""
        for block in blocks:
            if block.ref_cnt == 0 and not block.is_null:
                self.free_block_queue.remove(block)
                self.num_cached_free_blocks -= block.block_hash is not None
                self.num_used_by_group[block.group] += 1
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        """Give back blocks, first to be taken again first (vLLM: same name).

        Unnamed ones go to the front of the queue, cached ones to its tail.
        """
        evict_first: list[KVCacheBlock] = []
        evict_last: list[KVCacheBlock] = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0 and not block.is_null:
                self.num_used_by_group[block.group] -= 1
                self.num_cached_free_blocks += block.block_hash is not None
                to_front = block.block_hash is None and self.takes_unhashed_first
                (evict_first if to_front else evict_last).append(block)
        self.free_block_queue.prepend_n(evict_first)
        self.free_block_queue.append_n(evict_last)

    def free_block(self, block: KVCacheBlock) -> None:
        """Give back one block, as `free_blocks` does."""
        block.ref_cnt -= 1
        if block.ref_cnt == 0 and not block.is_null:
            self.num_used_by_group[block.group] -= 1
            is_named = block.block_hash is not None
            self.num_cached_free_blocks += is_named
            if is_named or not self.takes_unhashed_first:
                self.free_block_queue.append(block)
            else:
                self.free_block_queue.prepend(block)

    def cache_block(self, block: KVCacheBlock, key: GroupHash, num_tokens: int) -> None:
        """Name a block whose prefix has `num_tokens` tokens (vLLM `_insert_block_hash`)."""
        if self.cached_block_hash_to_block.contain(key, block.block_id):
            return
        if block.block_hash is None:
            block.block_hash, block.num_hash_tokens = key, num_tokens
            self.num_cached_blocks += 1
            self.num_cached_free_blocks += block.ref_cnt == 0
        else:
            block.extra_hashes.append(key)
        self.cached_block_hash_to_block.insert(key, block)

    def cache_full_blocks(
        self,
        blocks: Sequence[KVCacheBlock],
        names: Iterable[int],
        group: int,
        first: int,
        block_size: int,
        mask: Sequence[bool] | None = None,
    ) -> None:
        """Name blocks `first`, `first + 1`, ... of a table, which are full (vLLM: same name); mask: those alone.

        A name that one had as a partial block goes.
        """
        insert, num_tokens = self.cached_block_hash_to_block.insert, first * block_size
        for i, (block, name) in enumerate(zip(blocks, names, strict=False)):
            num_tokens += block_size
            if block.is_null or (mask is not None and not mask[i]):
                continue
            if block.block_hash is not None:
                self._remove_cached_block_hashes(block)
            key = group_hash(name, group)
            block.block_hash, block.num_hash_tokens = key, num_tokens
            self.num_cached_blocks += 1
            self.num_cached_free_blocks += block.ref_cnt == 0
            insert(key, block)

    def cache_partial_block(
        self, block: KVCacheBlock, key: GroupHash, num_tokens: int, replace_existing: bool = False
    ) -> None:
        """Name the prefix that ends inside a block; a shorter prefix's name goes (vLLM: same name)."""
        known = self.cached_block_hash_to_block.contain(key, block.block_id)
        longer = block.block_hash is not None and not known and block.num_hash_tokens < num_tokens
        if replace_existing or longer:
            self._remove_cached_block_hashes(block)
        self.cache_block(block, key, num_tokens)

    def move_block_hashes(self, source: KVCacheBlock, target: KVCacheBlock) -> None:
        """Let a private copy take over a block's names (vLLM: same name)."""
        num_tokens = source.num_hash_tokens
        for key in self._remove_cached_block_hashes(source):
            self.cache_block(target, key, num_tokens)

    def evict_cached_block(self, block: KVCacheBlock) -> None:
        """Take a block's names away (vLLM `_maybe_evict_cached_block`)."""
        if self._remove_cached_block_hashes(block):
            self.num_evicted += 1

    def forget_blocks(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Take the names of blocks away that nobody will ask for; it does not count as eviction."""
        for block in blocks:
            self._remove_cached_block_hashes(block)

    def _remove_cached_block_hashes(self, block: KVCacheBlock) -> list[GroupHash]:
        if block.block_hash is None:
            return []
        keys = [block.block_hash]
        if block.extra_hashes:
            keys += block.extra_hashes
            block.extra_hashes = []
        for key in keys:
            self.cached_block_hash_to_block.pop(key, block)
        block.block_hash, block.num_hash_tokens = None, 0
        self.num_cached_blocks -= 1
        self.num_cached_free_blocks -= block.ref_cnt == 0
        return keys
