"""The slots of the CPU tier: what can be loaded, what is stored, what must leave for it.

Mirrors `CPUOffloadingManager` of vLLM's `v1/kv_offload/cpu/manager.py`. Knows chunks and who asks, no blocks, no steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from kvplan.schedulers.vllm.offloading.config import OffloadingConfig
from kvplan.schedulers.vllm.offloading.policies import (
    CachePolicy,
    ChunkStatus,
    OffloadKey,
    RequestCacheAccess,
    head_first,
    make_policy,
)


class LookupResult(Enum):
    """Whether a chunk can be loaded (vLLM: same name)."""

    MISS = 0
    HIT = 1
    HIT_PENDING = 2
    """It is there, and still being written."""
    RETRY = 3
    """Not known yet: ask again."""


class PrepareStoreOutput(NamedTuple):
    """What an offer led to (vLLM: same name)."""

    keys_to_store: list[OffloadKey]
    evicted_keys: list[OffloadKey]


class CPUOffloadingManager:
    """Chunks in host memory (vLLM: same name)."""

    def __init__(self, config: OffloadingConfig, ranks_by_request: bool = False) -> None:
        self.num_chunks = config.num_chunks
        self.policy: CachePolicy = make_policy(config.eviction_policy, config.num_chunks, ranks_by_request)
        self.store_threshold = config.store_threshold
        self.max_tracker_size = config.max_tracker_size
        self.num_evictable = 0
        """Chunks that no transfer uses."""
        self.num_moves = 0
        """What tiers below did to it so far: jobs begun, ended and refused for the first time, files asked for."""
        self.num_write_pending = 0
        """Chunks being written."""
        self.counts: OrderedDict[OffloadKey, int] | None = (
            OrderedDict() if config.store_threshold >= 2 else None
        )
        """Chunk -> how often it was offered; the one longest not offered first."""

    @property
    def num_used(self) -> int:
        """Slots taken, for good: they are given back by eviction alone."""
        return len(self.policy)

    @property
    def num_pinned(self) -> int:
        """Slots that a transfer reads or writes."""
        return self.num_used - self.num_evictable

    def on_new_request(self, access: RequestCacheAccess) -> None:
        """Note a request (vLLM: same name)."""

    def on_schedule_end(self) -> None:
        """Close a step's look-ups (vLLM: same name)."""

    def has_pending_work(self) -> bool:
        """Whether the engine must go on stepping for the tier's own sake (vLLM: same name)."""
        return False

    def take_evicted(self) -> list[OffloadKey]:
        """Return what left otherwise than for a store since the last call."""
        return []

    def lookup(self, key: OffloadKey, access: RequestCacheAccess) -> LookupResult:
        """Say whether a chunk can be loaded (vLLM: same name)."""
        chunk = self.policy.get(key)
        if chunk is None:
            return LookupResult.MISS
        return LookupResult.HIT if chunk.is_ready else LookupResult.HIT_PENDING

    def _chunk(self, key: OffloadKey) -> ChunkStatus:
        chunk = self.policy.get(key)
        assert chunk is not None, key
        return chunk

    def prepare_load(self, keys: Sequence[OffloadKey], access: RequestCacheAccess) -> None:
        """Pin chunks until their load ends (vLLM: same name)."""
        self.pin(keys)
        self._record_request_cache_access(keys, access, keys)

    def pin(self, keys: Iterable[OffloadKey]) -> None:
        """Keep chunks in the tier while somebody reads them; `complete_load` lets go of them."""
        for key in keys:
            chunk = self._chunk(key)
            assert chunk.is_ready, key
            self.num_evictable -= chunk.ref_cnt == 0
            chunk.ref_cnt += 1

    def _record_request_cache_access(
        self, keys: Iterable[OffloadKey], access: RequestCacheAccess, reused: Iterable[OffloadKey]
    ) -> None:
        """Note a request's use of chunks (vLLM: same name)."""
        new = access.record(keys, reused)
        if new:
            self.policy.on_request_access(new, access)

    def complete_load(self, keys: Iterable[OffloadKey]) -> None:
        """Unpin chunks (vLLM: same name); they stay in the tier."""
        for key in keys:
            chunk = self._chunk(key)
            assert chunk.ref_cnt > 0, key
            chunk.ref_cnt -= 1
            self.num_evictable += chunk.ref_cnt == 0

    def _record_accesses(self, keys: Sequence[OffloadKey]) -> None:
        """Count an offer (vLLM: same name); those counted longest ago make place for new ones, not those offered."""
        counts = self.counts
        assert counts is not None
        protected = {key for key in keys if key in counts}
        for key in keys:
            if key in counts:
                counts.move_to_end(key)
                counts[key] += 1
        num_unprotected = len(counts) - len(protected)
        for key in keys:
            if key in counts:
                continue
            if len(counts) >= self.max_tracker_size:
                if num_unprotected == 0:
                    continue
                counts.popitem(last=False)
                num_unprotected -= 1
            counts[key] = 1

    def prepare_store(
        self, keys: Sequence[OffloadKey], access: RequestCacheAccess
    ) -> PrepareStoreOutput | None:
        """Take slots for the missing ones of the offered chunks: for all or, as None, for none (vLLM: same name)."""
        if self.counts is not None:
            self._record_accesses(keys)
        to_store: list[OffloadKey] = []
        ready: list[OffloadKey] = []
        get = self.policy.get
        for key in keys:
            chunk = get(key)
            if chunk is None:
                if self.counts is None or self.counts.get(key, 0) >= self.store_threshold:
                    to_store.append(key)
            elif chunk.is_ready:
                ready.append(key)
        misses = [key for key in to_store if key not in access.store_misses]
        if misses:
            self.policy.on_store_miss(misses)
            access.store_misses.update(misses)
        recorded = {*to_store, *ready}
        self._record_request_cache_access((key for key in keys if key in recorded), access, ready)
        evicted: list[OffloadKey] = []
        num_missing = len(to_store) - (self.num_chunks - self.num_used)
        if to_store and num_missing > 0:
            victims = None
            if num_missing <= self.num_evictable:
                victims = self.policy.evict(num_missing, set(keys))
            if victims is None:
                return None
            evicted = victims
            self.num_evictable -= len(evicted)
        for key in to_store:
            self.policy.insert(key, ChunkStatus(), access)
        self.num_write_pending += len(to_store)
        access.inserted.update(to_store)
        return PrepareStoreOutput(to_store, evicted)

    def complete_store(self, keys: Iterable[OffloadKey], access: RequestCacheAccess) -> None:
        """Take in that a store has ended (vLLM: same name)."""
        self.make_ready(keys)

    def make_ready(self, keys: Iterable[OffloadKey]) -> None:
        """Make chunks readable."""
        for key in keys:
            chunk = self.policy.get(key)
            if chunk is not None and not chunk.is_ready:
                chunk.ref_cnt = 0
                self.num_write_pending -= 1
                self.num_evictable += 1

    def on_request_finished(self, access: RequestCacheAccess) -> None:
        """Let the policy see a request's chunks as one use (vLLM: same name)."""
        if not access.finished:
            access.finished = True
            self.policy.on_request_finished(
                head_first(access.seen), access.inserted - access.reused, access.reused
            )
