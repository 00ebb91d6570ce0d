"""The waiting loop of the leap: who is admitted, and until when a blocked head of the queue surely stays blocked.

The policy is `Scheduler._schedule_waiting`, `_admit` and `_first_chunk`. While sequences only decode, free blocks do
not rise and no place comes free, so a head that waits for either keeps waiting until a request leaves. Its hits can
grow in one way: a running sequence computes the very block that ends them (`BlockedHead.limit`).
"""

from __future__ import annotations

from kvplan.schedulers.leap.extents import PrefixHits
from kvplan.schedulers.leap.queues import Admissible, BlockedHead, LeapQueues
from kvplan.schedulers.leap.state import DECODE, PREFILL, OpenStep, Sequence
from kvplan.schedulers.protocol import new_chunk
from kvplan.schedulers.request import NEVER, RequestStatus

NO_PLACE = BlockedHead(NEVER, lacks_tokens=False)
NO_TOKENS = BlockedHead(NEVER, lacks_tokens=True)


def schedule_waiting(queues: LeapQueues, step: OpenStep) -> BlockedHead | None:
    """Admit while tokens, places and blocks last; return why the head surely stays out, None if that is not sure."""
    while queues.waiting:
        found = queues.try_head(step.budget, step.chunk, step)
        if isinstance(found, BlockedHead):
            return None if found.lacks_tokens and step.chunks else found
        _admit(queues, found, step)
    return None


def try_head(
    queues: LeapQueues, budget: int, chunk: int, step: OpenStep | None = None
) -> Admissible | BlockedHead:
    """Look up what the head of the queue would get of the tokens left in a step; `chunk` caps them, 0 = no cap.

    No step: one of decodes alone.
    """
    budget -= queues.draft_slots
    if budget <= 0:
        return NO_TOKENS
    config = queues.config
    if len(queues.running) >= config.max_num_active_reqs:
        return NO_PLACE
    seq: Sequence = queues.waiting.peek_request()
    size, last = queues.block_size, seq.num_tokens
    hits = queues.pool.find_longest_cache_hit(seq, (last - 1) // size, queues.batch.num_steps)
    computed = hits.num_blocks * size
    num_tokens = last - computed
    if 0 < chunk < num_tokens:
        num_tokens = chunk
    padding = queues.padding(computed, step) if num_tokens == 1 else 0
    num_tokens += padding
    if num_tokens > budget:
        if padding or not config.enable_chunked_prefill:
            return BlockedHead(_looked_at(queues, seq, hits, padding), lacks_tokens=True)
        num_tokens = budget
    slots = queues.blocks(computed + num_tokens)
    needed = slots - hits.num_blocks
    if queues.reserves_max:
        needed = queues.most_blocks(seq) - hits.num_blocks + queues.num_reserved()
    elif computed + num_tokens < last and queues.reserves_full_isl:
        needed = max(slots, -(-last // size)) - hits.num_blocks
    reserved = queues.watermark_blocks if queues.running else 0
    short = needed + hits.num_evictable + reserved - queues.pool.num_free
    if short > 0:
        if (
            queues.reserves_max and short <= hits.num_evictable
        ):  # it asks for fewer once its hits are others' copies
            return BlockedHead(queues.batch.num_steps, lacks_tokens=False)
        return BlockedHead(_looked_at(queues, seq, hits, padding), lacks_tokens=False)
    return hits, num_tokens, slots - hits.num_blocks


def _admit(queues: LeapQueues, admissible: Admissible, step: OpenStep) -> None:
    seq: Sequence = queues.waiting.pop_request()
    hits, num_tokens, num_blocks = admissible
    queues.num_admissions += 1
    seq.admission = queues.num_admissions
    queues.running[seq.admission] = seq
    if queues.reserves_max:
        queues.num_promised += queues.most_blocks(seq)
    seq.known = seq.num_tokens
    num_hit_tokens = hits.num_blocks * queues.block_size
    seq.computed = num_hit_tokens + num_tokens
    queues.pool.adopt(seq, hits, when=2 * queues.batch.num_steps - 2)
    queues.take_for(seq, num_tokens, num_blocks)
    step.budget -= num_tokens + queues.draft_slots
    step.chunks.append(new_chunk((seq.request, num_tokens, num_hit_tokens)))
    step.admitted.append((seq.request, num_hit_tokens))
    seq.request.status = RequestStatus.RUNNING
    if seq.computed >= seq.num_tokens:
        queues.start_decode(seq, step)
    else:
        seq.stage = PREFILL
        queues.prefills.append(seq)


def _looked_at(queues: LeapQueues, seq: Sequence, hits: PrefixHits, padding: int) -> int:
    """Return the step in which a blocked head may get in, for the change of its hits alone.

    Fewer hits do not help, but for one that is padded: then it asks for a chunk, which is smaller or can be cut.
    """
    if padding and hits.num_evictable:
        return queues.batch.num_steps
    return _next_hit(queues, seq, hits)


def _next_hit(queues: LeapQueues, seq: Sequence, hits: PrefixHits) -> int:
    """Return the step in which a running sequence may hash the block that ends the head's hits."""
    depth = hits.num_found
    if depth >= (seq.num_tokens - 1) // queues.block_size:
        return NEVER
    return min(
        (
            queues.next_hash(other, depth) if other.stage is DECODE else queues.batch.num_steps
            for other in queues.pool.growing_at(seq.path, depth)
        ),
        default=NEVER,
    )
