"""What branches with a common beginning share: whole blocks, single tokens, blocks until they are written, nothing.

`full_block` is vLLM V1's rule and was held to its logs. The others stand for other engines on vLLM's scheduler and say
that they were not checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvplan.content import Segment
from kvplan.schedulers.request import BlockHash, Request
from kvplan.schedulers.vllm.block_pool import KVCacheBlock
from kvplan.schedulers.vllm.single_type_kv_cache_manager import FullAttentionManager

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvplan.schedulers.vllm.config import EngineConfig


def keep(config: EngineConfig) -> EngineConfig:
    """Change nothing."""
    return config


def one_token_blocks(config: EngineConfig) -> EngineConfig:
    """Cut the pool into blocks of one token."""
    num_tokens = (config.num_gpu_blocks - 1) * config.block_size
    return config.model_copy(update={"block_size": 1, "num_gpu_blocks": num_tokens + 1})


def no_prefix_caching(config: EngineConfig) -> EngineConfig:
    """Let every branch compute and hold its whole prefix."""
    return config.model_copy(update={"enable_prefix_caching": False})


class SharingRule(NamedTuple):
    """A sharing rule and what it stands for."""

    resolve: Callable[[EngineConfig], EngineConfig]
    """The engine that follows the rule."""
    engine: str
    caveat: str
    """Empty, or which engine it was not checked against."""


SHARINGS: dict[str, SharingRule] = {
    "full_block": SharingRule(keep, "vLLM V1", ""),
    "token": SharingRule(
        one_token_blocks, "SGLang's radix tree at page size 1", "sharing token: not checked against SGLang"
    ),
    "copy_on_write": SharingRule(
        keep, "vLLM V0's fork of a sequence", "sharing copy_on_write: not checked against vLLM V0"
    ),
    "none": SharingRule(no_prefix_caching, "an engine without prefix caching", ""),
}
"""Name -> rule."""


class Branching(NamedTuple):
    """A block that others may fork: which request wrote it, where it starts, how far it was written at least."""

    block: KVCacheBlock
    request: Request
    start: int
    end: int


def common_tokens(a: Sequence[Segment], b: Sequence[Segment]) -> int:
    """Count the tokens that two contents begin with in common."""
    total = 0
    for x, y in zip(a, b, strict=False):
        if (x.name, x.start) != (y.name, y.start):
            break
        total += min(x.length, y.length)
        if x.length != y.length:
            break
    return total


class CopyOnWriteManager(FullAttentionManager):
    """A branch begins with its parent's blocks, the partly filled one copied when it must be written.

    A branch whose whole prompt its parent has computed shares all full blocks of it, the last one too, since it would
    write the same there.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._written: dict[BlockHash, dict[int, Branching]] = {}
        """Name of a prefix -> the blocks that continue it."""
        self._shared_last: KVCacheBlock | None = None

    def cache_blocks(self, request: Request, num_tokens: int, boundaries: Sequence[int]) -> None:
        """Name the full blocks, and note every block written for forks."""
        first = self.num_cached_block.get(request.request_id, 0)
        super().cache_blocks(request, num_tokens, boundaries)
        table = self.req_to_blocks[request.request_id]
        hashes = self.hasher.block_hashes(request, num_tokens)
        for i in range(first, min(len(table), num_tokens // self.block_size + 1)):
            parent = hashes[i - 1] if i else 0
            written = Branching(table[i], request, i * self.block_size, num_tokens)
            self._written.setdefault(parent, {})[table[i].block_id] = written
        if len(self._written) > 2 * self.pool.num_gpu_blocks:
            self._forget_lost_blocks()

    def _forget_lost_blocks(self) -> None:
        for parent, blocks in self._written.items():
            self._written[parent] = {i: b for i, b in blocks.items() if self._num_filled(parent, b)}
        self._written = {parent: blocks for parent, blocks in self._written.items() if blocks}

    def extend_hit(
        self, request: Request, blocks: list[KVCacheBlock], num_tokens: int
    ) -> tuple[list[KVCacheBlock], int]:
        """Add to a hit of full blocks the block that goes on longest as the request does."""
        self._shared_last = None
        size, longest = self.block_size, request.num_tokens - 1 - num_tokens
        hashes = self.hasher.block_hashes(request, request.num_tokens)
        parent = hashes[num_tokens // size - 1] if num_tokens else 0
        wanted = request.content(num_tokens, num_tokens + min(size, longest + 1))
        best, best_block = 0, self.pool.null_block
        for written in self._written.get(parent, {}).values():
            filled = self._num_filled(parent, written)
            theirs = written.request.content(written.start, written.start + filled)
            common = common_tokens(wanted, theirs)
            if common > best:
                best, best_block = common, written.block
        if best > longest and best == size:
            self._shared_last = best_block
        if min(best, longest) > 0:
            return [*blocks, best_block], num_tokens + min(best, longest)
        return blocks, num_tokens

    def _num_filled(self, parent: BlockHash, written: Branching) -> int:
        """Count tokens that are in the block now; 0 if somebody else has it."""
        block, request, start, end = written
        index, table = start // self.block_size, self.req_to_blocks.get(request.request_id, ())
        if index < len(table) and table[index] is block:
            end = max(end, min(request.num_computed_tokens, request.num_tokens))
            return min(self.block_size, end - start)
        name = self.hasher.name(parent, request.content(start, start + self.block_size))
        return self.block_size if block.block_hash == (name, self.group_id) else 0

    def has_partial_local_hit(
        self, new_computed_blocks: Sequence[KVCacheBlock], num_computed_tokens: int
    ) -> bool:
        """Whether the last block must be copied: not if the branch would write what is there."""
        partial = super().has_partial_local_hit(new_computed_blocks, num_computed_tokens)
        return partial and new_computed_blocks[-1] is not self._shared_last
