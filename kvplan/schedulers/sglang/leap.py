"""Which passes are "one more token for everyone", how many of them in a row, and what they change.

While the same requests decode, nobody is admitted, nobody ends and memory suffices, a pass adds one token to each:
pool, tree and ratio after n such passes follow from n. Every pass with a change runs the scheduler itself.

Where priorities preempt, each of these passes tries the head of the queue once more, in vain as long as what is
promised to the running requests leaves no room for it. Such tries touch what the head hits, and every now and then
what the queue hits, which evictions follow; once touched, the same touches in the same order change nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.schedulers.protocol import Counts
from kvplan.schedulers.sglang.prefill_adder import CLIP_MAX_NEW_TOKENS, PrefillAdder
from kvplan.schedulers.sglang.req import Req, ceil_page
from kvplan.schedulers.sglang.schedule_policy import REFRESH_INTERVAL
from kvplan.schedulers.sglang.scheduler import SGLangScheduler

MOST_TRIES = 4096
"""Passes for which it is worked out at once that the head stays out."""
ROUNDING = 1e-3
"""Tokens by which it must surely not fit: sums of the scheduler's own are rounded differently."""


class PassPlan(NamedTuple):
    """Passes of pure decode that come next."""

    reqs: list[Req]
    num_passes: int
    ends_on_arrival: bool
    """Whether a new request would be looked at."""


def plan(scheduler: SGLangScheduler) -> PassPlan | None:
    """Return the passes of pure decode that surely come next; None if the next one may be anything else."""
    reqs = decoding(scheduler)
    if not reqs or any(r.to_finish for r in reqs):
        return None
    num_passes = max_passes(scheduler, reqs)
    is_open = not admission_is_shut(scheduler)
    if scheduler.waiting_queue and is_open:
        if scheduler.decodes_before_prefill:
            num_passes = min(num_passes, scheduler.decodes_before_prefill)
        else:
            num_passes = passes_refused(scheduler, reqs, num_passes)
    if num_passes < 1:
        return None
    notes_arrivals = scheduler.config.schedule_policy == "hrrn"  # with what was computed by then
    return PassPlan(reqs, num_passes, is_open or notes_arrivals)


def decoding(scheduler: SGLangScheduler) -> list[Req]:
    """The requests of a pure decode that the next pass repeats unless it prefills; empty if it may do otherwise.

    Those that ended with the last result are dropped, as the next pass begins with.
    """
    batch, queue = scheduler.running_batch, scheduler.result_queue
    if scheduler.last_batch is not batch or batch.is_extend or scheduler.chunked_req:
        return []
    scheduler.drop_finished()
    if scheduler.config.enable_overlap and (
        len(queue) != 1 or [r for r in queue[0].reqs if not r.finished] != batch.reqs
    ):
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
    """Passes that surely decode all of these: until one has ended, or memory is short.

    In the overlap loop an end by length is foreseen, and the request left out of the pass in which it is read.
    """
    left = min([r.last_output - r.num_outputs for r in reqs])
    if scheduler.config.enable_overlap and any(r.max_new_tokens - r.num_outputs == left for r in reqs):
        left -= 1
    cache = scheduler.cache
    room = cache.available_and_evictable
    if left <= 0 or tokens_needed(reqs, cache.page_size, left) <= room:
        return max(left, 0)
    return bisect_left(range(left + 1), room + 1, key=lambda n: tokens_needed(reqs, cache.page_size, n)) - 1


def ends_somebody(reqs: list[Req], num_passes: int) -> bool:
    """Whether somebody ends with the last of so many passes; the scheduler itself must take that one."""
    return any(r.num_outputs + num_passes >= r.last_output for r in reqs)


# --- the queue's head, tried in every pass ------------------------------------------------------


def passes_refused(scheduler: SGLangScheduler, reqs: list[Req], most: int) -> int:
    """Return for how many of the coming passes the head, refused in the last one, surely is again; `most` at most."""
    head = scheduler.refused
    if head is None or not scheduler.preempts or any(r.ignore_eos for r in (head, *reqs)):
        return 0
    running = scheduler.running_batch
    adder = PrefillAdder(scheduler.config, scheduler.cache, running, scheduler.ratio.current)
    if adder.is_spent:
        return 0
    if scheduler.num_allocatable() <= 0:
        return 0 if any(adder.may_displace(head, r) for r in reqs) else most
    short = _shortage(scheduler, reqs, head, adder, min(most, MOST_TRIES))
    refused = short > ROUNDING
    return len(short) if refused.all() else int(refused.argmin())


def _shortage(
    scheduler: SGLangScheduler, reqs: list[Req], head: Req, adder: PrefillAdder, num_passes: int
) -> NDArray[np.float64]:
    """Tokens that the head lacks in each coming pass, shape (num_passes,); `PrefillAdder` refuses it at 0 or more.

    A pass takes tokens of the pool, the running requests may write one less each, and the share of those that are
    reckoned with falls to its floor. What the head hits and nobody holds comes out of the pool; where it is evicted
    meanwhile, as much more must be computed.
    """
    passes = np.arange(num_passes)
    left = np.sort([r.max_new_tokens - r.num_outputs for r in reqs])
    counted = left.searchsorted(
        CLIP_MAX_NEW_TOKENS + passes, "right"
    )  # others may write more than is reckoned with
    future = np.minimum(left, CLIP_MAX_NEW_TOKENS).sum() - np.cumsum(counted) + counted
    ratio = scheduler.ratio
    promised = np.maximum(ratio.current - ratio.decay * passes, ratio.min) * future
    room = (
        scheduler.cache.available_and_evictable
        - _unheld_hit(scheduler, head)
        - _taken(scheduler, reqs, passes)
    )
    short: NDArray[np.float64] = adder.wanted(head) + adder.num_mixed + promised - room
    return short


def _taken(scheduler: SGLangScheduler, reqs: list[Req], passes: Counts) -> Counts:
    """Tokens of pages that the passes before each of these take."""
    page = scheduler.cache.page_size
    crossing = np.bincount([-r.kv_len % page for r in reqs], minlength=page)
    each = crossing[passes % page] * page
    taken: Counts = np.cumsum(each) - each
    return taken


def _unheld_hit(scheduler: SGLangScheduler, head: Req) -> int:
    """Tokens of the head's hit that could be evicted if it did not take them."""
    node, found = head.last_node, 0
    while node is not None and not node.lock_ref:
        found += node.length
        node = node.parent
    return found


# --- taking them --------------------------------------------------------------------------------


def take_passes(scheduler: SGLangScheduler, reqs: list[Req], num_passes: int) -> None:
    """Let so many planned passes happen in which nobody ends."""
    if not num_passes:
        return
    deferred = min(scheduler.decodes_before_prefill, num_passes)
    scheduler.decodes_before_prefill -= deferred
    if scheduler.waiting_queue and not deferred and not admission_is_shut(scheduler):
        _decode_between_tries(scheduler, reqs, num_passes)
        return
    if scheduler.preempts and deferred < num_passes:
        scheduler.running_batch.batch_is_full = False  # nobody is there to find it so
    _decode(scheduler, reqs, num_passes)


def _decode_between_tries(scheduler: SGLangScheduler, reqs: list[Req], num_passes: int) -> None:
    """Decode, trying the head in each pass: for real in the last, and in the first that touches what the queue hits.

    Where that splits nodes of the tree, the next one touches what is left of them; others touch the same once more.
    """
    policy, tree, last = scheduler.policy, scheduler.cache.tree, 0
    number = min(policy.calls_to_refresh, num_passes)
    while number > last:
        policy.pass_over(number - last - 1)
        _decode(scheduler, reqs, number - max(last, 1))
        num_nodes = tree.num_nodes
        policy.touch_waiting_prefixes(scheduler.waiting_queue)  # which is in order since the last try
        if scheduler.num_allocatable() > 0:
            scheduler.init_next_round_input(scheduler.waiting_queue[0])
        splits = tree.num_nodes > num_nodes
        last, number = number, min(number + REFRESH_INTERVAL, num_passes) if splits else num_passes
    _decode(scheduler, reqs, 1)


def _decode(scheduler: SGLangScheduler, reqs: list[Req], num_passes: int) -> None:
    """Let all decode so often: each pass asks for a page per request, evicts what is missing, takes what it needs."""
    if not num_passes:
        return
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
