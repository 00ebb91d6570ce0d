"""The token pool and the radix cache on top of it: what requests take, publish and give back.

Counts tokens only. A request's tokens are the tree's (`cache_protected_len`, locked by the request) or private.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvplan.schedulers.sglang.config import SGLangConfig
from kvplan.schedulers.sglang.radix_cache import RadixCache, TokenId
from kvplan.schedulers.sglang.req import Req, ceil_page

RETRACT_DECODE_STEPS = 20
"""Tokens per remaining request that a retraction makes room for (SGLANG_RETRACT_DECODE_STEPS)."""


class KVCache:
    """SGLang's allocator, tree and `mem_cache/common.py`, `allocation.py` in one."""

    def __init__(self, config: SGLangConfig, token_id: TokenId | None = None) -> None:
        self.page_size = config.page_size
        self.size = config.max_total_tokens
        self.available_size = self.size
        """Tokens of free pages."""
        self.num_free_rows = config.num_request_slots
        """Free rows of the request table (SGLang `ReqToTokenPool`)."""
        self.disabled = config.disable_radix_cache
        self.tree = RadixCache(config.page_size, config.radix_eviction_policy, token_id)
        """Stays empty if the radix cache is off."""
        self.num_evicted = 0
        """Cached tokens evicted so far."""
        self.num_taken = 0
        """Tokens of pages taken so far."""

    @property
    def available_and_evictable(self) -> int:
        """Tokens that an allocation could get."""
        return self.available_size + self.tree.evictable_size

    def match(self, req: Req, num_tokens: int, limit: int | None = None) -> None:
        """Adopt the cached prefix of the first `num_tokens`, at most `limit` of it (SGLang `match_kv_cache`)."""
        key = req.key(num_tokens if limit is None else limit)
        if self.disabled:
            req.prefix_len, req.last_node = 0, self.tree.root
        else:
            req.prefix_len, req.last_node = self.tree.match_prefix(key)
        req.num_matched_prefix_tokens = min(req.prefix_len, max(num_tokens - 1, 0))

    def touch(self, req: Req) -> None:
        """Make a waiting request's cached prefix recent (SGLang `touch_waiting_prefix`)."""
        if self.tree.has_page(req.key(min(self.page_size, req.seqlen))):
            self.tree.match_prefix(req.key(req.seqlen))

    def checkpoint(self, req: Req) -> None:
        """Publish what an extend computed; the next one goes on from there (SGLang `checkpoint_kv_cache`)."""
        self._publish(req, min(req.extend_end, req.fill_len))  # overlap: a decode may be under way already
        req.prefix_len = req.extend_end

    def release(self, req: Req, *, checkpoint: bool) -> None:
        """Give back what a request holds, after publishing it if asked to (SGLang `release_kv_cache`)."""
        if not req.holds_row:
            return
        if checkpoint:
            self._publish(req, req.owned_kv_len)
        self.available_size += ceil_page(req.kv_len, self.page_size) - req.cache_protected_len
        if req.lock is not None:
            self.tree.dec_lock_ref(req.lock)
            req.lock = None
        req.holds_row = False
        req.kv_len = 0
        self.num_free_rows += 1

    def retract(self, req: Req, num_remaining: int) -> None:
        """Take everything from a running request, publish nothing, make room for the others (SGLang `release_req`)."""
        self.release(req, checkpoint=False)
        self.evict_to_free(num_remaining * RETRACT_DECODE_STEPS)
        req.reset_for_retract()

    def alloc_for_extend(self, reqs: Sequence[Req]) -> None:
        """Take the pages of a prefill pass (SGLang `alloc_for_extend`)."""
        page, num_tokens = self.page_size, sum(req.extend_len for req in reqs)
        self.evict_to_free(num_tokens if page == 1 else num_tokens + len(reqs) * page)
        for req in reqs:
            self.take(ceil_page(req.extend_end, page) - ceil_page(req.prefix_len, page))
            self.num_free_rows -= not req.holds_row
            req.holds_row, req.kv_len = True, req.extend_end

    def alloc_for_decode(self, reqs: Sequence[Req]) -> None:
        """Take a token for each request (SGLang `alloc_for_decode`), which asks for a page for each."""
        self.evict_to_free(len(reqs) * self.page_size)
        self.take(self._new_tokens(reqs))
        for req in reqs:
            req.kv_len += 1

    def has_room_for_decode(self, reqs: Sequence[Req]) -> bool:
        """Evict what the next token of these needs; say whether it was enough (SGLang `check_decode_mem`)."""
        needed = self._new_tokens(reqs)
        self.evict_to_free(needed)
        return self.available_size >= needed

    def evict_to_free(self, num_tokens: int) -> None:
        """Evict only what is missing (SGLang `evict_to_free_tokens`)."""
        missing = num_tokens - self.available_size
        if missing > 0 and not self.disabled:
            num_evicted = self.tree.evict(missing)
            self.available_size += num_evicted
            self.num_evicted += num_evicted

    def _new_tokens(self, reqs: Sequence[Req]) -> int:
        return self.page_size * sum(req.kv_len % self.page_size == 0 for req in reqs)

    def take(self, num_tokens: int) -> None:
        """Take whole pages."""
        self.available_size -= num_tokens
        self.num_taken += num_tokens
        assert self.available_size >= 0, "admission promised more than there is"

    def _split_prompt(self, req: Req, aligned: int) -> None:
        """Make what follows the prompt a leaf of its own, which is evicted first."""
        prompt = req.num_prompt_tokens // self.page_size * self.page_size
        if 0 < prompt < aligned:
            self.tree.insert(req.key(prompt), prompt)

    def _publish(self, req: Req, up_to: int) -> None:
        """Insert a request's tokens; duplicates are freed, its lock moves (SGLang `RadixCache.checkpoint`)."""
        if self.disabled:
            return
        tree, page = self.tree, self.page_size
        aligned = up_to // page * page
        key = req.key(aligned)
        matched = tree.insert(key, req.cache_inserted_len)
        req.cache_inserted_len = max(req.cache_inserted_len, aligned)
        self._split_prompt(req, aligned)
        self.available_size += max(matched - req.cache_protected_len, 0)
        _, node = tree.match_prefix(key)
        req.cache_protected_len = aligned
        if req.lock is not None:
            tree.dec_lock_ref(req.lock)
        req.lock = tree.inc_lock_ref(node)
        req.last_node = node
