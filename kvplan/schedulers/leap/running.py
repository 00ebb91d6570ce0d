"""The running loop of the leap: in closed form while all decode, else request by request.

The policy is `Scheduler._schedule_running` and `_make_room`. It is written again because a decoding request has no
counters here that could be updated, and must not be visited; the tests hold both to each other. Visits are left for
several prompts in chunks, preemption by priority or beside a chunk, and a budget smaller than the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvplan.schedulers.leap.state import DECODE, LEFT_OVER, PREFILL, Draft, Sequence
from kvplan.schedulers.protocol import Chunk

if TYPE_CHECKING:
    from kvplan.schedulers.leap.scheduler import LeapScheduler


def schedule_running(engine: LeapScheduler, draft: Draft) -> None:
    """Give each running request its next tokens, in order, preempting others if blocks run out."""
    batch, pool = engine.batch, engine.pool
    need = batch.next_demand()
    if batch.num_decodes > draft.budget or len(engine.prefills) > 1:
        return _walk(engine, draft)
    if engine.prefills:
        seq = engine.prefills[0]
        num_tokens = min(draft.chunk_of(seq.num_tokens - seq.computed), draft.budget - batch.num_decodes)
        need += engine.blocks(seq.computed + num_tokens) - engine.blocks(seq.computed)
        if need > pool.num_free or not num_tokens:
            return _walk(engine, draft)
        # Whoever is behind the chunk gets its token whether the chunk is booked before or after it: it was admitted
        # with tokens to spare behind those ahead, of whom none has had more in one step since (a chunk that was cut
        # by the budget let nobody in behind it).
        pool.take(need)
        draft.budget -= num_tokens
        _add_chunk(engine, seq, num_tokens, draft)
    elif need <= pool.num_free:
        pool.take(need)
    elif engine.is_fcfs:
        _preempt_tail(engine, draft, need)
    else:
        return _walk(engine, draft)
    draft.num_decodes = batch.num_decodes
    draft.context = batch.context + batch.num_decodes
    draft.budget -= batch.num_decodes
    return None


def _preempt_tail(engine: LeapScheduler, draft: Draft, need: int) -> None:
    """Serve `need` decodes a block each, in order, preempting the tail whenever none is left.

    Whoever is last in `running` is also the last to be served, so only the victims need to be looked at.
    """
    while True:
        served = min(need, engine.pool.num_free)
        engine.pool.take(served)
        need -= served
        if not need:
            return
        victim = engine.tail()
        if victim.stage is DECODE and engine.batch.takes_block(victim):
            need -= 1
        engine.preempt(victim, draft)


def _add_chunk(engine: LeapScheduler, seq: Sequence, num_tokens: int, draft: Draft) -> None:
    """Note a running request's next chunk; blocks and budget are taken."""
    draft.chunks.append(Chunk(seq.request, num_tokens, seq.computed))
    seq.computed += num_tokens
    if seq.run is not None:
        seq.run.marks.append((seq.computed // engine.block_size, 2 * engine.batch.num_steps, 0))
    if seq.computed == seq.num_tokens:
        engine.prefills.remove(seq)
        draft.completed.append(seq)


def _walk(engine: LeapScheduler, draft: Draft) -> None:
    """Schedule the running requests one by one, as vLLM does."""
    now = engine.batch.num_steps
    order = list(engine.running.values())
    served: dict[int, int] = {}
    at = 0
    while at < len(order) and draft.budget > 0:
        seq = order[at]
        if seq.stage is not LEFT_OVER:
            computed = seq.computed_at(now)
            wanted = 1 if seq.stage is DECODE else draft.chunk_of(seq.num_tokens - computed)
            num_tokens = min(wanted, draft.budget)
            need = engine.blocks(computed + num_tokens) - engine.blocks(computed)
            at = _make_room(engine, draft, seq, need, order, served, at)
            if at < 0:
                break
            engine.pool.take(need)
            served[seq.admission] = num_tokens
            draft.budget -= num_tokens
        at += 1
    for seq in order:
        _settle(engine, draft, seq, served.get(seq.admission, 0))


def _make_room(
    engine: LeapScheduler,
    draft: Draft,
    seq: Sequence,
    need: int,
    order: list[Sequence],
    served: dict[int, int],
    at: int,
) -> int:
    """Preempt until `need` blocks are free; return the sequence's place in `order`, or -1 if it had to go itself."""
    while need > engine.pool.num_free:
        place = len(order) - 1 if engine.is_fcfs else order.index(max(order, key=lambda seq: seq.key))
        victim = order.pop(place)
        at -= place < at
        already = served.pop(victim.admission, 0)
        draft.budget += already
        engine.preempt(victim, draft, already)
        if victim is seq:
            return -1
    return at


def _settle(engine: LeapScheduler, draft: Draft, seq: Sequence, num_tokens: int) -> None:
    """Book what a request that stayed got in this step."""
    now = engine.batch.num_steps
    if seq.stage is PREFILL:
        if num_tokens:
            _add_chunk(engine, seq, num_tokens, draft)
    elif seq.stage is DECODE and num_tokens:
        draft.num_decodes += 1
        draft.context += seq.base + now + 1
    elif seq.stage is DECODE:
        if seq.run is not None:
            seq.run.marks.append((engine.pool.num_hashed(seq, seq.base + now), None, seq.base))
        engine.batch.pass_over(seq)
        engine.passed_over.append(seq)
