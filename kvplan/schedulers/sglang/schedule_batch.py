"""A batch of one pass, how the decode batch shrinks and grows, and who is retracted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kvplan.schedulers.sglang.kv_cache import RETRACT_DECODE_STEPS, KVCache
from kvplan.schedulers.sglang.req import Req

ForwardMode = Literal["prefill", "mixed", "decode"]


class BatchRow(NamedTuple):
    """What a pass computes of one request."""

    req: Req
    num_tokens: int
    prefix_len: int
    """Tokens before them."""
    is_decode: bool


@dataclass(slots=True, eq=False)
class ScheduleBatch:
    """Requests that run together (SGLang `ScheduleBatch`)."""

    reqs: list[Req] = field(default_factory=list)
    mode: ForwardMode = "prefill"
    batch_is_full: bool = False
    """Nobody is tried for admission until somebody leaves."""
    chunked_req: Req | None = None
    """The request whose prefill was not done with this batch."""
    decoding_reqs: list[Req] = field(default_factory=list)
    """Mixed: those that decode in it."""
    prefill_rows: list[BatchRow] = field(default_factory=list)
    """What the pass computes of prompts."""
    decoding_rows: list[BatchRow] = field(default_factory=list)
    """Mixed: of those that decode in it."""
    is_prefill_only: bool = False
    """Nobody in it may write a token, so that it is never decoded."""
    extend_num_tokens: int = 0
    """Prompt tokens; SGLang does not clear it when the batch goes on to decode, which policy hrrn sees."""

    @property
    def rows(self) -> list[BatchRow]:
        """What the pass computes, in order, until its result is applied."""
        if self.mode == "decode":
            return [BatchRow(r, 1, r.kv_len - 1, True) for r in self.reqs]
        return self.prefill_rows + self.decoding_rows

    @property
    def is_extend(self) -> bool:
        """Whether it computes prompts."""
        return self.mode != "decode"

    def copy(self) -> ScheduleBatch:
        """Return what the result of the pass is applied to."""
        return ScheduleBatch(self.reqs, self.mode, decoding_reqs=self.decoding_reqs)

    def filter(self, exclude: Collection[Req] = ()) -> None:
        """Drop finished requests and those named (SGLang `filter_batch`)."""
        if exclude:
            self.reqs = [r for r in self.reqs if r not in exclude]
        self.reqs = [r for r in self.reqs if not r.finished]

    def prepare_for_extend(self, cache: KVCache) -> None:
        """Take memory for a prefill (SGLang: same name)."""
        self.prefill_rows = [BatchRow(r, r.extend_len, r.prefix_len, False) for r in self.reqs]
        self.extend_num_tokens = sum(r.extend_len for r in self.reqs)
        cache.alloc_for_extend(self.reqs)
        for req in self.reqs:
            req.extend_batch_idx += 1
            req.is_retracted = False

    def prepare_for_decode(self, cache: KVCache) -> None:
        """Take memory for one token each (SGLang: same name)."""
        self.mode = "decode"
        cache.alloc_for_decode(self.reqs)

    def mix_with_running(self, running: ScheduleBatch) -> None:
        """Let the decode batch join this prefill (SGLang: same name)."""
        self.mode = "mixed"
        for req in running.reqs:
            req.fill_len, req.extend_end = req.seqlen, req.kv_len
        self.decoding_reqs = running.reqs
        self.decoding_rows = running.rows
        self.extend_num_tokens += len(running.reqs)
        self.reqs = self.reqs + running.reqs
        self.is_prefill_only = False

    def merge(self, other: ScheduleBatch) -> None:
        """Take in a batch whose prefill is done (SGLang `merge_batch`)."""
        self.reqs = self.reqs + other.reqs
        self.is_prefill_only &= other.is_prefill_only

    def retract_decode(self, cache: KVCache) -> tuple[list[Req], list[Req]]:
        """Retract until the others can decode (SGLang: same name); return the retracted and, if even one alone
        does not fit, the aborted.
        """
        kept = sorted(self.reqs, key=lambda r: (r.num_outputs, -r.num_prompt_tokens), reverse=True)
        retracted: list[Req] = []
        while len(kept) > 1 and not (retracted and cache.has_room_for_decode(kept)):
            victim = kept.pop()
            cache.retract(victim, len(kept))
            retracted.append(victim)
        aborted: list[Req] = []
        if len(kept) <= 1 and not cache.has_room_for_decode(kept):
            aborted = [kept.pop()]
            cache.retract(aborted[0], 0)
            aborted[0].finish("abort")
        self.reqs = kept
        return retracted, aborted


class NewTokenRatioTracker:
    """Share of their possible future tokens that running requests are expected to write (SGLang: same name)."""

    INIT, MIN_FACTOR, DECAY_STEPS = 0.7, 0.14, 600

    def __init__(self, conservativeness: float) -> None:
        self.init = min(self.INIT * conservativeness, 1.0)
        self.min = min(self.init * self.MIN_FACTOR, 1.0)
        self.decay = (self.init - self.min) / self.DECAY_STEPS
        self.current = self.init

    def decay_step(self) -> None:
        """A decode pass went well."""
        self.current = max(self.current - self.decay, self.min)

    def reset(self) -> None:
        """The engine is idle."""
        self.current = self.init

    def after_retract(self, reqs: list[Req]) -> None:
        """Estimate anew from those that stay."""
        decoded = sum(r.num_outputs for r in reqs) + RETRACT_DECODE_STEPS * len(reqs)
        self.current = min(1.0, decoded / (sum(r.max_new_tokens for r in reqs) + 1))
