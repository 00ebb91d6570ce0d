"""The running loop of the leap: in closed form while all decode, else request by request.

The policy is `Scheduler._schedule_running` and `_make_room`. It is written again because a decoding request has no
counters here that could be updated, and must not be visited; the tests hold both to each other. Visits are left for
several prompts in chunks, preemption beside a chunk, or by priority while somebody ends, and a budget smaller than the
batch.
"""

from __future__ import annotations

from operator import attrgetter

from kvplan.schedulers.leap.queues import LeapQueues
from kvplan.schedulers.leap.state import DECODE, ENDING, PREFILL, WAITING, OpenStep, Sequence
from kvplan.schedulers.protocol import Chunk

_KEY = attrgetter("key")


def schedule_running(queues: LeapQueues, step: OpenStep) -> None:
    """Give each running request its next tokens, in order, preempting others if blocks run out."""
    batch, pool = queues.batch, queues.pool
    need = batch.next_demand()
    if batch.num_decodes > step.budget or len(queues.prefills) > 1:
        return walk(queues, step)
    if queues.prefills:
        seq = queues.prefills[0]
        num_tokens = min(step.chunk_of(seq.num_tokens - seq.computed), step.budget - batch.num_decodes)
        need += queues.blocks(seq.computed + num_tokens) - queues.blocks(seq.computed)
        if need > pool.num_free or not num_tokens:
            return walk(queues, step)
        # Whoever is behind the chunk gets its token whether the chunk is booked before or after it: it was admitted
        # with tokens to spare behind those ahead, of whom none has had more in one step since (a chunk that was cut
        # by the budget let nobody in behind it).
        pool.take(need)
        step.budget -= num_tokens
        add_chunk(queues, seq, num_tokens, step)
    elif need <= pool.num_free:
        pool.take(need)
    elif queues.is_fcfs:
        preempt_tail(queues, step, need)
    elif any(
        seq.stage is ENDING for seq in queues.running.values()
    ):  # a victim that moves the others' places
        return walk(queues, step)
    else:
        return _preempt_lowest(queues, step)
    step.num_decodes = batch.num_decodes
    step.context = batch.context + batch.num_decodes
    step.budget -= batch.num_decodes
    return None


def preempt_tail(queues: LeapQueues, step: OpenStep, need: int) -> None:
    """Serve `need` decodes a block each, in order, preempting the tail whenever none is left.

    Whoever is last in `running` is also the last to be served, so only the victims need to be looked at.
    """
    while True:
        served = min(need, queues.pool.num_free)
        queues.pool.take(served)
        need -= served
        if not need:
            return
        victim = queues.tail()
        if victim.stage is DECODE and queues.batch.takes_block(victim):
            need -= 1
        queues.preempt(victim, step)


def _preempt_lowest(queues: LeapQueues, step: OpenStep) -> None:
    """Serve decodes in order, preempting whoever is least important whenever no block is left.

    Only those that take a block need to be looked at; and all behind one that had to go itself, where the engine's
    version serves nobody behind it.
    """
    batch, pool, running = queues.batch, queues.pool, queues.running
    passed: list[Sequence] = []
    for seq in list(filter(batch.takes_block, running.values())):
        if seq.stage is WAITING:  # it has made room for another
            continue
        while not pool.num_free and seq.stage is DECODE:
            victim = max(running.values(), key=_KEY)
            queues.preempt(victim, step, already=int(victim.admission < seq.admission))
        if seq.stage is DECODE:
            pool.take(1)
        elif not queues.victims_let_others_go_on:
            passed = [other for other in running.values() if other.admission > seq.admission]
            break
    step.num_decodes = batch.num_decodes - len(passed)
    step.context = batch.context + step.num_decodes - sum(seq.computed_at(batch.num_steps) for seq in passed)
    step.budget -= step.num_decodes
    for seq in passed:
        _pass_over(queues, seq)


def add_chunk(queues: LeapQueues, seq: Sequence, num_tokens: int, step: OpenStep) -> None:
    """Note a running request's next chunk; blocks and budget are taken."""
    step.chunks.append(Chunk(seq.request, num_tokens, seq.computed))
    seq.computed += num_tokens
    if seq.run is not None:
        seq.run.marks.append((seq.computed // queues.block_size, 2 * queues.batch.num_steps, 0))
    if seq.computed == seq.num_tokens:
        queues.prefills.remove(seq)
        step.completed.append(seq)


def walk(queues: LeapQueues, step: OpenStep) -> None:
    """Schedule the running requests one by one, as vLLM does."""
    now = queues.batch.num_steps
    order = list(queues.running.values())
    served: dict[int, int] = {}
    at = 0
    while at < len(order) and step.budget > 0:
        seq = order[at]
        if seq.stage is not ENDING:
            computed = seq.computed_at(now)
            wanted = 1 if seq.stage is DECODE else step.chunk_of(seq.num_tokens - computed)
            num_tokens = queues.tokens_of(seq, wanted, step.budget)
            if not num_tokens:
                at += 1
                continue
            queues.give_back(seq)
            need = queues.blocks_for(seq, computed, num_tokens)
            at = make_room(queues, step, seq, need, order, served, at)
            if seq.stage is WAITING:
                if queues.victims_let_others_go_on:
                    continue
                break
            queues.take_for(seq, num_tokens, need)
            served[seq.admission] = num_tokens
            step.budget -= num_tokens
        at += 1
    for seq in order:
        _settle(queues, step, seq, served.get(seq.admission, 0))


def make_room(
    queues: LeapQueues,
    step: OpenStep,
    seq: Sequence,
    need: int,
    order: list[Sequence],
    served: dict[int, int],
    at: int,
) -> int:
    """Preempt until `need` blocks are free or the sequence went itself; return its place in `order` then."""
    while need > queues.pool.num_free:
        place = len(order) - 1 if queues.is_fcfs else order.index(max(order, key=lambda seq: seq.key))
        victim = order.pop(place)
        already = served.pop(victim.admission, 0)
        at -= place < at and (already > 0 or queues.counts_idle_victims)
        step.budget += already + queues.draft_slots * (already > 0)
        queues.preempt(victim, step, already)
        if victim is seq:
            break
    return at


def _settle(queues: LeapQueues, step: OpenStep, seq: Sequence, num_tokens: int) -> None:
    """Book what a request that stayed got in this step."""
    now = queues.batch.num_steps
    if seq.stage is PREFILL:
        if num_tokens:
            add_chunk(queues, seq, num_tokens, step)
    elif seq.stage is DECODE and num_tokens:
        step.num_decodes += 1
        step.context += seq.base + now + 1
    elif seq.stage is DECODE:
        _pass_over(queues, seq)


def _pass_over(queues: LeapQueues, seq: Sequence) -> None:
    """Let a decoding request miss the step."""
    if seq.run is not None:
        hashed = queues.pool.num_hashed(seq, seq.computed_at(queues.batch.num_steps))
        seq.run.marks.append((hashed, None, seq.base))
    queues.batch.pass_over(seq)
    queues.passed_over.append(seq)
