"""In which order the waiting queue is looked at."""

from __future__ import annotations

from kvplan.schedulers.request import NEVER
from kvplan.schedulers.sglang.config import CACHE_AWARE, SGLangConfig
from kvplan.schedulers.sglang.kv_cache import KVCache
from kvplan.schedulers.sglang.radix_cache import RadixCache, TokenId
from kvplan.schedulers.sglang.req import Req, ceil_page

IN_BATCH_CHECK, IN_BATCH_DEPRIORITIZE = 32, 32
"""A request that hits at most so many tokens and shares so many with one before it in the queue goes last."""
PREFIX_MATCH_MAX = 128
"""With more requests waiting, lpm and hrrn keep the order of arrival (WAITING_QUEUE_PREFIX_MATCH_MAX)."""
REFRESH_INTERVAL = 32
"""Passes between two refreshes of what the queue will hit (WAITING_PREFIX_REFRESH_INTERVAL)."""


class SchedulePolicy:
    """Sorts the waiting queue in place (SGLang `SchedulePolicy`)."""

    def __init__(self, config: SGLangConfig, cache: KVCache, token_id: TokenId | None = None) -> None:
        name = config.schedule_policy
        self.policy = "fcfs" if config.disable_radix_cache and name in CACHE_AWARE else name
        self.by_priority = config.enable_priority_scheduling
        self.sign = 1 if config.schedule_low_priority_values_first else -1
        self.cache = cache
        self.token_id = token_id
        self.refreshes = config.radix_eviction_policy == "lru" and not config.disable_radix_cache
        self._num_refresh_calls = 0

    def calc_priority(self, queue: list[Req], processed_tokens: int) -> None:
        """Bring the queue into the policy's order (SGLang: same name)."""
        policy = self.policy
        if policy in ("lpm", "hrrn") and len(queue) > PREFIX_MATCH_MAX:
            policy = "fcfs"
        if policy in CACHE_AWARE:
            self._sort_by_cache(policy, queue, self._compute_prefix_matches(queue), processed_tokens)
            return
        if self.policy == "fcfs" and self.by_priority:
            queue.sort(key=lambda r: (r.priority * self.sign, r.queue_entry))
        elif policy == "lof":
            priority = self.sign if self.by_priority else 0
            queue.sort(key=lambda r: (r.priority * priority, -r.max_new_tokens))
        self.touch_waiting_prefixes(queue)

    @property
    def calls_to_refresh(self) -> int:
        """Calls of `calc_priority` until the one that touches what the queue will hit; NEVER = none does."""
        return (-self._num_refresh_calls) % REFRESH_INTERVAL + 1 if self.refreshes else NEVER

    def pass_over(self, num_calls: int) -> None:
        """Count calls that would change nothing."""
        self._num_refresh_calls += num_calls * self.refreshes

    def chunk_limit(self, chunked: Req, queue: list[Req], budget: int) -> int | None:
        """Cap a going chunk to leave room for shorter prompts (SGLang `shortest_prefill_chunk_limit`)."""
        page = self.cache.page_size
        if self.policy != "shortest-prefill-first" or budget < 2 * page:
            return None
        remaining, reserved = chunked.fill_len - chunked.prefix_len, 0
        for req in queue:
            work = prefill_work(req)
            charge = ceil_page(work, page)
            if work >= remaining or reserved + charge > budget - page:
                break
            reserved += charge
        return (budget - reserved) // page * page if reserved else None

    def _sort_by_cache(
        self, policy: str, queue: list[Req], deprioritized: set[Req], processed_tokens: int
    ) -> None:
        last = float("inf")
        if policy == "lpm":
            queue.sort(key=lambda r: last if r in deprioritized else -r.num_matched_prefix_tokens)
        elif policy == "dfs-weight":
            order = self.cache.tree.dfs_weight_order([r.last_node for r in queue if r.last_node is not None])
            queue[:] = [queue[i] for i in order]
        elif policy == "shortest-prefill-first":
            queue.sort(key=lambda r: (r in deprioritized, prefill_work(r), r.queue_entry))
        else:
            queue.sort(
                key=lambda r: (last if r in deprioritized else -response_ratio(r, processed_tokens), r.rid)
            )

    def _compute_prefix_matches(self, queue: list[Req]) -> set[Req]:
        """Match all; return those that had better wait for one before them (SGLang: same name)."""
        deprioritized = set()
        in_batch = RadixCache(1, "lru", self.token_id)
        for req in queue:
            self.cache.match(req, req.seqlen)
            if req.prefix_len > IN_BATCH_CHECK:
                continue
            key = req.key(req.seqlen)
            if in_batch.match_prefix(key)[0] >= IN_BATCH_DEPRIORITIZE:
                deprioritized.add(req)
            else:
                in_batch.insert(key)
        return deprioritized

    def touch_waiting_prefixes(self, queue: list[Req]) -> None:
        """Keep what the queue will hit from being evicted; its head last (SGLang: same name)."""
        if not queue or not self.refreshes:
            return
        self._num_refresh_calls += 1
        if self._num_refresh_calls % REFRESH_INTERVAL == 1:
            for req in reversed(queue[:PREFIX_MATCH_MAX]):
                self.cache.touch(req)


def prefill_work(req: Req) -> int:
    """Tokens that its prefill would compute (SGLang `_shortest_prefill_work`)."""
    return max(1, req.seqlen - req.num_matched_prefix_tokens)


def response_ratio(req: Req, processed_tokens: int) -> float:
    """Tokens computed while it waited, per token it needs (SGLang `_sort_by_hrrn`)."""
    uncached = max(0, req.num_prompt_tokens - req.num_matched_prefix_tokens)
    waited = max(0, processed_tokens - req.arrival_processed_tokens)
    return waited / uncached if uncached else float("inf")
