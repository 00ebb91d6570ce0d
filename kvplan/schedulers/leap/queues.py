"""The sequences of one leaping engine, waiting and running, and how one moves between the two.

What the loops of `running` and `waiting` work on. Knows no leap and nothing of outputs.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from kvplan.schedulers.leap.batch import DecodeBatch
from kvplan.schedulers.leap.extents import ExtentPool, PrefixHits
from kvplan.schedulers.leap.state import DECODE, ENDING, PREFILL, WAITING, OpenStep, Path, Sequence
from kvplan.schedulers.request import NEVER, RequestStatus
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.request_queue import QUEUES

Admissible = tuple[PrefixHits, int, int]
"""How the head of the queue can be admitted: its hits, its first chunk's tokens, the blocks that these take."""


class BlockedHead(NamedTuple):
    """Why the head of the queue cannot be admitted before an end, an abort or, under priority, an arrival."""

    limit: int
    """The step in which it must be looked at all the same."""
    lacks_tokens: bool
    """Whether it waits for tokens of a step: a request that stops decoding lets it in too."""
    need: int = NEVER
    """So many free blocks let it in, where blocks come back while all decode."""
    room: int = NEVER
    """So many cached blocks may be taken before one that it could hit."""


class LeapPool(Protocol):
    """What the loops ask of a pool: an `ExtentPool`, or for several groups numbers alone."""

    num_free: int
    num_unhashed: int
    num_taken: int
    num_evicted: int

    def take(self, num_blocks: int) -> None:
        """Take blocks from the front of the free queue."""

    def release(self, seq: Sequence, num_held: int, num_hashed: int) -> None:
        """Give back a whole table."""

    def adopt(self, seq: Sequence, hits: PrefixHits, when: int) -> None:
        """Hold an admitted request's hits."""

    def num_hashed(self, seq: Sequence, computed: int) -> int:
        """Return how many blocks have a name."""

    def forget(self, seq: Sequence) -> None:
        """Drop a request that has ended."""

    def find_longest_cache_hit(self, seq: Sequence, max_blocks: int, now: int) -> PrefixHits:
        """Return the longest cached prefix."""

    def growing_at(self, path: Path, depth: int) -> list[Sequence]:
        """Return the running sequences that will hash the block at `depth` of a path."""


class LeapQueues:
    """Queues, decoding batch and block pool of one engine."""

    batch: DecodeBatch
    pool: LeapPool

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.is_async = config.async_scheduling
        self.is_fcfs = config.policy == "fcfs"
        rules = config.rules
        self._set_up_blocks(config)
        self.victims_let_others_go_on = not self.is_fcfs and rules.victims_let_others_go_on
        self.counts_idle_victims = rules.idle_victims_move_nobody
        self.reserves_full_isl = config.reserves_full_isl
        self.reserves_max = config.admission == "reserve_max" and not config.num_speculative_tokens
        self.num_promised = 0
        """Blocks that the running requests may hold at most, all together, where they are reserved."""
        self.running: dict[int, Sequence] = {}
        """By admission number, which is vLLM's order."""
        self.waiting = QUEUES[config.policy]()
        self.prefills: list[Sequence] = []
        """The running sequences with more chunks to come."""
        self.passed_over: list[Sequence] = []
        """Decoding, but not scheduled in this step."""
        self.watermark_blocks = int(config.watermark * config.num_gpu_blocks)
        self.num_admissions = 0
        self.draft_slots = config.draft_slots
        """Tokens of the budget that drafting takes for each request in a step."""

    def padding(self, num_hit_tokens: int, step: OpenStep | None) -> int:
        """Return the placeholder drafts of an admission of one token; without drafts there are none."""
        return 0

    def holds(self, seq: Sequence, already: int = 0) -> tuple[int, int, int]:
        """Return a running sequence's blocks, how many are hashed, its tokens once every step in flight is read.

        `already` tokens were scheduled in this step, and are taken back.
        """
        computed = seq.computed_at(self.batch.num_steps)
        hashed = self.pool.num_hashed(seq, computed + already)
        return self.blocks(computed + already), hashed, computed + 1

    def next_hash(self, seq: Sequence, depth: int) -> int:
        """Return the step in which a decoding sequence hashes its block at `depth`, as far as is known."""
        return (depth + 1) * self.block_size - 1 - seq.base

    def _set_up_blocks(self, config: EngineConfig) -> None:
        self.block_size = config.block_size
        self.batch = DecodeBatch(config.block_size)
        self.pool = ExtentPool(
            config.num_gpu_blocks - 1,
            config.block_size,
            config.enable_prefix_caching,
            hash_lag=int(self.is_async),
            unhashed_first=config.rules.unhashed_blocks_go_first,
        )

    def try_head(self, budget: int, chunk: int, step: OpenStep | None = None) -> Admissible | BlockedHead:
        """Look up what the head of the queue would get of the tokens left in a step; `chunk` caps them, 0 = no cap."""
        raise NotImplementedError

    def blocks(self, num_tokens: int) -> int:
        """Return the blocks that so many tokens fill or begin."""
        return -(-num_tokens // self.block_size)

    def tokens_of(self, seq: Sequence, wanted: int, budget: int) -> int:
        """Return how many of the tokens that a running request wants it gets of a step that has `budget` left."""
        return wanted if wanted < budget else budget

    def give_back(self, seq: Sequence) -> None:
        """Give back what a running request has left behind: nothing where all tokens see all others."""

    def most_blocks(self, seq: Sequence) -> int:
        """Return the blocks that a request may ever hold (`KVCacheManager.most_blocks`)."""
        request = seq.request
        return self.blocks(min(request.num_prompt_tokens + request.max_tokens, self.config.max_model_len))

    def num_reserved(self) -> int:
        """Return the blocks that the running requests may still take (`admission.reserve_max`).

        While all decode, as many fewer are free: a head that is refused stays so.
        """
        held = self.batch.num_blocks() + sum(self.blocks(seq.computed) for seq in self.prefills)
        if len(self.running) > self.batch.num_decodes + len(self.prefills):
            held += sum(self.blocks(seq.computed) for seq in self.running.values() if seq.stage is ENDING)
        return self.num_promised - held

    def blocks_for(self, seq: Sequence, computed: int, num_tokens: int) -> int:
        """Return the blocks that so many tokens more take."""
        return self.blocks(computed + num_tokens) - self.blocks(computed)

    def take_for(self, seq: Sequence, num_tokens: int, num_blocks: int) -> None:
        """Take these blocks."""
        self.pool.take(num_blocks)

    def tail(self) -> Sequence:
        """Return the running request that was admitted last."""
        return self.running[next(reversed(self.running))]

    def start_decode(self, seq: Sequence, step: OpenStep) -> None:
        """Note that a sequence's last chunk is in this step: the step samples a token, and the next one decodes."""
        self.batch.start(seq)
        step.first_tokens.append(seq)

    def preempt(self, seq: Sequence, step: OpenStep, already: int = 0) -> None:
        """Send a request back to the queue, all its blocks freed (vLLM `_preempt_request`).

        `already` tokens were scheduled in this step. The token in flight, if there is one, still counts.
        """
        held, hashed, num_tokens = self.holds(seq, already)
        if seq.stage is not PREFILL:
            seq.num_tokens = num_tokens
        self.stop_running(seq)
        self.pool.release(seq, held, hashed)
        seq.stage, seq.computed = WAITING, 0
        seq.request.status = RequestStatus.PREEMPTED
        seq.request.num_preemptions += 1
        step.preempted.append(seq.request)
        self.waiting.prepend_requests((seq,))

    def stop_running(self, seq: Sequence) -> None:
        """Take a sequence out of the batch; its stage stays."""
        if seq.stage is DECODE:
            self.batch.stop(seq)
        elif seq.stage is PREFILL:
            self.prefills.remove(seq)
        del self.running[seq.admission]
        if self.reserves_max:
            self.num_promised -= self.most_blocks(seq)
