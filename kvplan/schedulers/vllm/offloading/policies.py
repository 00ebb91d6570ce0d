"""Which chunk leaves a full tier: least recently used, or adaptive (vLLM `v1/kv_offload/cpu/policies`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from kvplan.schedulers.vllm.block_pool import NAME_BITS, group_hash

OffloadKey = int
"""One chunk of one KV cache group: where it ends in its sequence, its group, and the name of the tokens up to its end,
in one number and from its high bits to its low ones (vLLM packs them into bytes). So one request's chunks sort from
head to tail, over all groups, as numbers do."""
MAX_GROUPS = 256
_END_SHIFT = NAME_BITS + MAX_GROUPS.bit_length() - 1


def offload_key(block_hash: int, group_id: int, num_tokens: int) -> OffloadKey:
    """Name the chunk of a group that ends after so many tokens (vLLM `make_offload_key`).

    >>> key = offload_key(7, 1, 64)
    >>> group_of(key), end_of(key)
    (1, 64)
    """
    return num_tokens << _END_SHIFT | group_hash(block_hash, group_id)


def group_of(key: OffloadKey) -> int:
    """The KV cache group of a chunk (vLLM `get_offload_group_idx`)."""
    return key >> NAME_BITS & MAX_GROUPS - 1


def end_of(key: OffloadKey) -> int:
    """Tokens up to a chunk's end (vLLM `get_offload_key_position`)."""
    return key >> _END_SHIFT


NOT_READY = -1


@dataclass(slots=True, eq=False)
class ChunkStatus:
    """A slot of the tier with something in it (vLLM: same name)."""

    ref_cnt: int = NOT_READY
    """Loads that read it; NOT_READY while it is being written."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be read (vLLM: same name)."""
        return self.ref_cnt >= 0


@dataclass(slots=True)
class RequestCacheAccess:
    """Chunks that one request had to do with (vLLM `_RequestCacheAccess`)."""

    request_id: str = ""
    seen: dict[OffloadKey, None] = field(default_factory=dict)
    inserted: set[OffloadKey] = field(default_factory=set)
    reused: set[OffloadKey] = field(default_factory=set)
    store_misses: set[OffloadKey] = field(default_factory=set)
    finished: bool = False
    rank: int = 0
    """Its chunks' age under LRU, from its first use on; 0 = none yet."""

    def record(self, keys: Iterable[OffloadKey], reused: Iterable[OffloadKey]) -> list[OffloadKey]:
        """Note what was offered or loaded, return what is new; what the request itself inserted is not reused by it."""
        new = [key for key in keys if key not in self.seen]
        self.seen.update(dict.fromkeys(new))
        self.reused.update(key for key in reused if key not in self.inserted)
        return new


class CachePolicy(Protocol):
    """Chunks in the order in which they leave (vLLM: same name)."""

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        """Return a chunk, or None if the tier does not have it."""

    def insert(self, key: OffloadKey, chunk: ChunkStatus, access: RequestCacheAccess) -> None:
        """Take a new chunk in."""

    def on_request_access(self, keys: Sequence[OffloadKey], access: RequestCacheAccess) -> None:
        """See chunks that a request uses for the first time."""

    def on_store_miss(self, keys: Sequence[OffloadKey]) -> None:
        """See chunks offered that are not in the tier, before they come in."""

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """See chunks used, head first."""

    def on_request_finished(
        self,
        keys: Sequence[OffloadKey],
        inserted_only: Collection[OffloadKey],
        reused: Collection[OffloadKey],
    ) -> None:
        """See all chunks that a request inserted or used, head first."""

    def evict(self, num_chunks: int, protected: Collection[OffloadKey]) -> list[OffloadKey] | None:
        """Drop so many chunks that no transfer uses and that are not protected; None, and no change, if too few."""

    def __len__(self) -> int:
        """Chunks in the tier."""


class LRUCachePolicy:
    """The one longest not used leaves (vLLM: same name).

    A chunk is used when it comes in, and when a request ends that inserted, loaded or offered it: then the request's
    chunks are ranked anew, its tail oldest. A load alone is no use.
    """

    def __init__(self, cache_capacity: int) -> None:
        self.chunks: OrderedDict[OffloadKey, ChunkStatus] = OrderedDict()
        """The oldest first."""
        self.get = self.chunks.get

    def __len__(self) -> int:
        return len(self.chunks)

    def insert(self, key: OffloadKey, chunk: ChunkStatus, access: RequestCacheAccess) -> None:
        """Take a new chunk in, as the youngest (vLLM: same name)."""
        self.chunks[key] = chunk

    def on_request_access(self, keys: Sequence[OffloadKey], access: RequestCacheAccess) -> None:
        """A use before the request's end changes nothing."""

    def on_store_miss(self, keys: Sequence[OffloadKey]) -> None:
        """Nothing to learn from a miss."""

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """Make chunks the youngest, the head last (vLLM: same name)."""
        for key in reversed(keys):
            if key in self.chunks:
                self.chunks.move_to_end(key)

    def on_request_finished(
        self,
        keys: Sequence[OffloadKey],
        inserted_only: Collection[OffloadKey],
        reused: Collection[OffloadKey],
    ) -> None:
        """Rank all of a request's chunks anew (vLLM: same name)."""
        self.touch(keys)

    def evict(self, num_chunks: int, protected: Collection[OffloadKey]) -> list[OffloadKey] | None:
        """Drop the oldest (vLLM: same name)."""
        victims = list(_first(self.chunks, num_chunks, protected))
        if len(victims) < num_chunks:
            return None
        for key in victims:
            del self.chunks[key]
        return victims


class RequestLRUCachePolicy:
    """LRU of 0.33 (vLLM `LRUCachePolicy`): a request's chunks have its rank from first use on, the tail oldest."""

    def __init__(self, cache_capacity: int) -> None:
        self.chunks: dict[OffloadKey, ChunkStatus] = {}
        self.get = self.chunks.get
        self._ranks: dict[OffloadKey, tuple[int, int]] = {}
        self._heap: list[tuple[int, int, int, OffloadKey]] = []
        """(rank, less the end, group, chunk); an entry whose rank has changed is void."""
        self._next_rank = 0

    def __len__(self) -> int:
        return len(self.chunks)

    def _new_rank(self) -> int:
        self._next_rank += 1
        return self._next_rank

    def _set_rank(self, key: OffloadKey, rank: tuple[int, int]) -> None:
        self._ranks[key] = rank
        heappush(self._heap, (*rank, group_of(key), key))

    def _request_rank(self, access: RequestCacheAccess) -> int:
        access.rank = access.rank or self._new_rank()
        return access.rank

    def insert(self, key: OffloadKey, chunk: ChunkStatus, access: RequestCacheAccess) -> None:
        """Take a new chunk in, with its request's rank (vLLM: same name)."""
        self.chunks[key] = chunk
        self._set_rank(key, (self._request_rank(access), -end_of(key)))

    def on_store_miss(self, keys: Sequence[OffloadKey]) -> None:
        """Make chunks the youngest; those that are missing are not there (vLLM: the same as a touch)."""

    def on_request_access(self, keys: Sequence[OffloadKey], access: RequestCacheAccess) -> None:
        """Give chunks the request's rank, unless theirs is younger (vLLM: same name)."""
        request_rank = self._request_rank(access)
        for key in keys:
            rank = (request_rank, -end_of(key))
            if key in self.chunks and self._ranks[key] < rank:
                self._set_rank(key, rank)

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """Make chunks the youngest, the head last (vLLM: same name)."""
        for key in reversed(keys):
            if key in self.chunks:
                self._set_rank(key, (self._new_rank(), 0))

    def on_request_finished(
        self,
        keys: Sequence[OffloadKey],
        inserted_only: Collection[OffloadKey],
        reused: Collection[OffloadKey],
    ) -> None:
        """Rank all of a request's chunks anew (vLLM: same name)."""
        self.touch(keys)

    def evict(self, num_chunks: int, protected: Collection[OffloadKey]) -> list[OffloadKey] | None:
        """Drop the oldest (vLLM: same name)."""
        victims: dict[OffloadKey, tuple[int, int, int, OffloadKey]] = {}
        passed: list[tuple[int, int, int, OffloadKey]] = []
        while self._heap and len(victims) < num_chunks:
            entry = heappop(self._heap)
            key = entry[3]
            if self._ranks.get(key) != entry[:2] or key in victims:
                continue
            if self.chunks[key].ref_cnt or key in protected:
                passed.append(entry)
            else:
                victims[key] = entry
        enough = len(victims) == num_chunks
        for entry in (*passed, *(() if enough else victims.values())):
            heappush(self._heap, entry)
        if not enough:
            return None
        for key in victims:
            del self.chunks[key], self._ranks[key]
        return list(victims)


class ARCCachePolicy:
    """Adaptive replacement (vLLM: same name): T1 holds chunks used once, T2 those reused by a later request.

    B1 and B2 remember what left each of them; a chunk offered again that B1 (B2) remembers makes T1's share larger
    (smaller).
    """

    def __init__(self, cache_capacity: int) -> None:
        self.cache_capacity = cache_capacity
        self.target_t1_size = 0.0
        self.t1: OrderedDict[OffloadKey, ChunkStatus] = OrderedDict()
        self.t2: OrderedDict[OffloadKey, ChunkStatus] = OrderedDict()
        self.b1: OrderedDict[OffloadKey, None] = OrderedDict()
        self.b2: OrderedDict[OffloadKey, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.t1) + len(self.t2)

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        """Return a chunk, or None (vLLM: same name)."""
        return self.t1.get(key) or self.t2.get(key)

    def insert(self, key: OffloadKey, chunk: ChunkStatus, access: RequestCacheAccess) -> None:
        """Take a new chunk into T1 (vLLM: same name)."""
        self.t1[key] = chunk
        self.b1.pop(key, None)
        self.b2.pop(key, None)

    def on_request_access(self, keys: Sequence[OffloadKey], access: RequestCacheAccess) -> None:
        """A use before the request's end changes nothing."""

    def on_store_miss(self, keys: Sequence[OffloadKey]) -> None:
        """Shift T1's share by what the ghosts remember (vLLM: same name)."""
        for key in reversed(keys):
            self._adapt_to_ghost_hit(key)

    def _adapt_to_ghost_hit(self, key: OffloadKey) -> None:
        if key in self.b1:
            delta = max(1, len(self.b2) / len(self.b1))
            self.target_t1_size = min(self.target_t1_size + delta, self.cache_capacity)
            self.b1.move_to_end(key)
        elif key in self.b2:
            delta = max(1, len(self.b1) / len(self.b2))
            self.target_t1_size = max(self.target_t1_size - delta, 0)
            self.b2.move_to_end(key)

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """Move what is ready to T2's young end (vLLM: same name)."""
        for key in reversed(keys):
            if key in self.t1:
                chunk = self.t1.pop(key)
                (self.t2 if chunk.is_ready else self.t1)[key] = chunk
            elif key in self.t2:
                self.t2.move_to_end(key)
            else:
                self._adapt_to_ghost_hit(key)

    def on_request_finished(
        self,
        keys: Sequence[OffloadKey],
        inserted_only: Collection[OffloadKey],
        reused: Collection[OffloadKey],
    ) -> None:
        """Move what the request reused to T2, what it inserted to the young end of its list (vLLM: same name)."""
        for key in reversed(keys):
            if key in inserted_only:
                for chunks in (self.t1, self.t2):
                    if key in chunks:
                        chunks.move_to_end(key)
            elif key in reused:
                if key in self.t1:
                    self.t2[key] = self.t1.pop(key)
                elif key in self.t2:
                    self.t2.move_to_end(key)

    def evict(self, num_chunks: int, protected: Collection[OffloadKey]) -> list[OffloadKey] | None:
        """Drop the oldest of T1 while it has its share, else of T2 (vLLM: same name)."""
        size = len(self.t1)
        once, often = _first(self.t1, size, protected), _first(self.t2, len(self.t2), protected)
        victims: list[tuple[OffloadKey, bool]] = []
        for _ in range(num_chunks):
            key = next(once, None) if size >= int(self.target_t1_size) else None
            from_t1 = key is not None
            if key is None:
                key = next(often, None)
            if key is None:
                key, from_t1 = next(once, None), True
            if key is None:
                return None
            size -= from_t1
            victims.append((key, from_t1))
        for key, from_t1 in victims:
            chunks, ghosts = (self.t1, self.b1) if from_t1 else (self.t2, self.b2)
            del chunks[key]
            ghosts[key] = None
        for ghosts in (self.b1, self.b2):
            while len(ghosts) > self.cache_capacity:
                ghosts.popitem(last=False)
        return [key for key, _ in victims]


def _first(
    chunks: OrderedDict[OffloadKey, ChunkStatus], num_chunks: int, protected: Collection[OffloadKey]
) -> Iterator[OffloadKey]:
    """Yield the first chunks, at most so many, that no transfer uses and that are not protected."""
    for key, chunk in chunks.items():
        if num_chunks <= 0:
            return
        if chunk.ref_cnt == 0 and key not in protected:
            num_chunks -= 1
            yield key


def make_policy(name: str, cache_capacity: int, ranks_by_request: bool) -> CachePolicy:
    """Return the policy of a name, as a version has it (vLLM `CachePolicyFactory`)."""
    if name == "arc":
        return ARCCachePolicy(cache_capacity)
    return (RequestLRUCachePolicy if ranks_by_request else LRUCachePolicy)(cache_capacity)


def head_first(keys: Iterable[OffloadKey]) -> list[OffloadKey]:
    """Order one request's chunks from head to tail, over all groups (vLLM `order_request_keys`)."""
    return sorted(keys)
