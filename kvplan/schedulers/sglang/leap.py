"""Which passes are "one more token for everyone", how many of them in a row, and what they change.

While the same requests decode, nobody is tried for admission, nobody ends and memory suffices, a pass adds one token
to each: pool, tree and ratio after n such passes follow from n. Every pass with a change runs the scheduler itself.
"""

from __future__ import annotations

from bisect import bisect_left

from kvplan.schedulers.sglang.req import Req, ceil_page
from kvplan.schedulers.sglang.scheduler import SGLangScheduler


def decoding(scheduler: SGLangScheduler) -> list[Req]:
    """The requests of a pure decode that the next pass repeats; empty if something else may happen in it."""
    batch, queue = scheduler.running_batch, scheduler.result_queue
    if not batch.reqs or scheduler.last_batch is not batch or batch.is_extend:
        return []
    if scheduler.config.enable_overlap and (len(queue) != 1 or queue[0].reqs != batch.reqs):
        return []
    if scheduler.chunked_req or scheduler.decodes_before_prefill:
        return []
    if scheduler.waiting_queue and not admission_is_shut(scheduler):
        return []
    return batch.reqs


def admission_is_shut(scheduler: SGLangScheduler) -> bool:
    """Whether a waiting request is not even looked at until somebody leaves."""
    return scheduler.running_batch.batch_is_full and not scheduler.preempts


def tokens_needed(reqs: list[Req], page_size: int, num_passes: int) -> int:
    """Tokens of pages that so many passes take."""
    if page_size == 1:
        return num_passes * len(reqs)
    return sum(ceil_page(r.kv_len + num_passes, page_size) - ceil_page(r.kv_len, page_size) for r in reqs)


def max_passes(scheduler: SGLangScheduler, reqs: list[Req]) -> int:
    """Passes until the one in which somebody ends, is retracted or is aborted."""
    left = min(r.num_outputs_left for r in reqs) - 1
    cache = scheduler.cache
    room = cache.available_and_evictable
    if left <= 0 or tokens_needed(reqs, cache.page_size, left) <= room:
        return max(left, 0)
    return bisect_left(range(left + 1), room + 1, key=lambda n: tokens_needed(reqs, cache.page_size, n)) - 1


def take_passes(scheduler: SGLangScheduler, reqs: list[Req], num_passes: int) -> None:
    """Let so many passes happen: each asks for a page per request, evicts what is missing, takes what it needs."""
    cache = scheduler.cache
    before_last = tokens_needed(reqs, cache.page_size, num_passes - 1)
    cache.evict_to_free(before_last + len(reqs) * cache.page_size)
    cache.take(tokens_needed(reqs, cache.page_size, num_passes))
    for req in reqs:
        req.kv_len += num_passes
        req.num_outputs += num_passes
        req.request.num_tokens += num_passes
    scheduler.processed_tokens += num_passes * scheduler.running_batch.extend_num_tokens
    ratio = scheduler.ratio
    for _ in range(num_passes):  # pass by pass, as rounding goes; the ratio is at its floor soon
        if ratio.current <= ratio.min:
            break
        ratio.decay_step()
