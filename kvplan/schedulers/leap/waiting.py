"""The waiting loop of the leap: who is admitted, and until when a blocked head of the queue surely stays blocked.

The policy is `Scheduler._schedule_waiting`, `_admit` and `_first_chunk`. While sequences only decode, free blocks do
not rise and no place comes free, so a head that waits for either keeps waiting until a request leaves. Its hits can
grow in one way: a running sequence computes the very block that ends them (`BlockedHead.limit`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvplan.schedulers.leap.extents import Hits
from kvplan.schedulers.leap.state import DECODE, PREFILL, Draft, Sequence
from kvplan.schedulers.protocol import new_chunk
from kvplan.schedulers.request import NEVER, RequestStatus

if TYPE_CHECKING:
    from kvplan.schedulers.leap.scheduler import LeapScheduler


class BlockedHead(NamedTuple):
    """Why the head of the queue cannot be admitted before an end, an abort or, under priority, an arrival."""

    limit: int
    """The step in which it must be looked at all the same."""
    lacks_tokens: bool
    """Whether it waits for tokens of a step: a request that stops decoding lets it in too."""


NO_PLACE = BlockedHead(NEVER, lacks_tokens=False)
NO_TOKENS = BlockedHead(NEVER, lacks_tokens=True)


Admission = tuple[Hits, int, int]
"""How the head of the queue can be admitted: its hits, its first chunk's tokens, the blocks that these take."""


def schedule_waiting(engine: LeapScheduler, draft: Draft) -> BlockedHead | None:
    """Admit while tokens, places and blocks last; return why the head surely stays out, None if that is not sure."""
    while engine.waiting:
        found = try_head(engine, draft.budget, draft.chunk)
        if isinstance(found, BlockedHead):
            return None if found.lacks_tokens and draft.chunks else found
        _admit(engine, found, draft)
    return None


def try_head(engine: LeapScheduler, budget: int, chunk: int) -> Admission | BlockedHead:
    """Look up what the head of the queue would get of the tokens left in a step; `chunk` caps them, 0 = no cap."""
    if budget <= 0:
        return NO_TOKENS
    config = engine.config
    if len(engine.running) >= config.max_num_seqs:
        return NO_PLACE
    seq: Sequence = engine.waiting.peek_request()
    size, last = engine.block_size, seq.num_tokens
    hits = engine.pool.find_longest_cache_hit(seq, (last - 1) // size, engine.batch.num_steps)
    computed = hits.num_blocks * size
    num_tokens = last - computed
    if 0 < chunk < num_tokens:
        num_tokens = chunk
    if num_tokens > budget:
        if not config.enable_chunked_prefill:
            return BlockedHead(_next_hit(engine, seq, hits), lacks_tokens=True)
        num_tokens = budget
    needed = (
        -(-(last if config.scheduler_reserve_full_isl else computed + num_tokens) // size) - hits.num_blocks
    )
    reserved = engine.watermark_blocks if engine.running else 0
    if needed + hits.num_evictable + reserved > engine.pool.num_free:
        return BlockedHead(_next_hit(engine, seq, hits), lacks_tokens=False)
    return hits, num_tokens, -(-(computed + num_tokens) // size) - hits.num_blocks


def _admit(engine: LeapScheduler, admission: Admission, draft: Draft) -> None:
    seq: Sequence = engine.waiting.pop_request()
    hits, num_tokens, num_blocks = admission
    engine.num_admissions += 1
    seq.admission = engine.num_admissions
    engine.running[seq.admission] = seq
    seq.known = seq.num_tokens
    num_hit_tokens = hits.num_blocks * engine.block_size
    seq.computed = num_hit_tokens + num_tokens
    engine.pool.adopt(seq, hits, when=2 * engine.batch.num_steps - 2)
    engine.pool.take(num_blocks)
    draft.budget -= num_tokens
    draft.chunks.append(new_chunk((seq.request, num_tokens, num_hit_tokens)))
    draft.admitted.append((seq.request, num_hit_tokens))
    seq.request.status = RequestStatus.RUNNING
    if seq.computed == seq.num_tokens:
        engine.start_decode(seq, draft)
    else:
        seq.stage = PREFILL
        engine.prefills.append(seq)


def _next_hit(engine: LeapScheduler, seq: Sequence, hits: Hits) -> int:
    """Return the step in which a running sequence may hash the block that ends the head's hits."""
    depth, size = hits.num_blocks, engine.block_size
    if depth >= (seq.num_tokens - 1) // size:
        return NEVER
    return min(
        (
            (depth + 1) * size - 1 - other.base if other.stage is DECODE else engine.batch.num_steps
            for other in engine.pool.growing_at(seq.path, depth)
        ),
        default=NEVER,
    )
