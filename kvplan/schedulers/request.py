"""A request as the scheduler sees it: lengths, counters and the identity of its tokens, never the tokens.

Two blocks hold the same tokens exactly when their contents (`kvplan.content`) are equal; that is all that prefix
caching needs.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from typing import Literal

from kvplan.content import Content, Segment, merge_segments, output_of

NEVER = 1 << 60
"""A step that does not come, a position that no request reaches."""

OutputKv = Literal["keep", "drop_after_turn", "never_cache"]


class RequestStatus(IntEnum):
    """Where a request is in its life; everything after PREEMPTED is finished (vLLM `RequestStatus`)."""

    WAITING = 1
    WAITING_FOR_REMOTE_KVS = 2
    RUNNING = 3
    PREEMPTED = 4
    FINISHED_STOPPED = 5
    FINISHED_LENGTH_CAPPED = 6
    FINISHED_ABORTED = 7


@dataclass(slots=True, eq=False)
class Request:
    """One sequence: what was asked for, and how far the engine got (vLLM `v1/request.py: Request`)."""

    request_id: str
    prompt: Content
    max_tokens: int
    """Output tokens after which the scheduler ends the request; it plans with this number."""
    priority: int = 0
    """Smaller is served first, under the priority policy."""
    arrival_time: float = 0
    """Orders requests of one priority; any number that grows."""
    stop_at: int | None = None
    """The output token that is a stop token, counted from 1. Read only when that token has been sampled, as
    vLLM reads token values; whoever drives the engine may set it while the request runs.
    """

    output_kv: OutputKv = "keep"
    """What becomes of the blocks it generates: keep = the engine's own rule (vLLM); drop_after_turn = they lose
    their names when it ends; never_cache = they never get any. The two are not vLLM's.
    """

    max_load_tokens: int | None = None
    """Most tokens that are loaded from a tier beyond the GPU; None = all (vLLM `kv_transfer_params`)."""
    max_offload_tokens: int | None = None
    """Of the first so many tokens KV is stored there; None = of all (vLLM `kv_transfer_params`)."""

    status: RequestStatus = field(default=RequestStatus.WAITING, init=False)
    num_prompt_tokens: int = field(init=False)
    num_tokens: int = field(init=False)
    """Prompt and sampled tokens."""
    num_computed_tokens: int = field(default=0, init=False)
    """Tokens whose KV is computed or being computed by a step in flight."""
    num_spec_tokens: int = field(default=0, init=False)
    """Drafts to verify in the next step (vLLM: len(spec_token_ids))."""
    num_output_placeholders: int = field(default=0, init=False)
    """Asynchronous scheduling: output tokens of steps in flight, drafts included."""
    num_in_flight_tokens: int = field(default=0, init=False)
    num_stale_output_tokens: int = field(default=0, init=False)
    """Tokens in flight when the request was preempted: their output is kept, the counters are not touched."""
    is_prefill_chunk: bool = field(default=False, init=False)
    shared_prefix_boundary: int = field(default=0, init=False)
    """A position where other requests share more than a sparse group has cached; pinned for the next one."""
    num_preemptions: int = field(default=0, init=False)
    last_sched_seq: int = field(default=0, init=False)
    """The last step with tokens that it was in, counted by the scheduler where frees are deferred."""
    num_slots: int = field(default=0, init=False)
    """A step that ends before this many computed tokens changes no block; kept by `KVCacheManager`."""
    _ends: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.prompt) > 1 or not self.prompt or not self.prompt[0].length:
            self.prompt = merge_segments(self.prompt)
        self._ends = list(accumulate([segment.length for segment in self.prompt]))
        self.num_tokens = self.num_prompt_tokens = self._ends[-1] if self._ends else 0

    @property
    def num_output_tokens(self) -> int:
        """Sampled tokens, a stop token included."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        """Ended by a stop token, by length or by an abort."""
        return self.status > RequestStatus.PREEMPTED

    def prompt_token(self, position: int) -> tuple[str, int, int]:
        """Return stream and index of one prompt token, and how many of the same stream follow, itself included."""
        i = bisect_right(self._ends, position)
        segment, left = self.prompt[i], self._ends[i] - position
        return segment.name, segment.end - left, left

    def content(self, start: int, end: int) -> Content:
        """Say which tokens stand at positions `start .. end - 1`, prompt and output, merged."""
        pieces = []
        prompt_end = self.num_prompt_tokens
        i = bisect_right(self._ends, start)
        while start < min(end, prompt_end):
            segment, stop = self.prompt[i], min(end, self._ends[i])
            offset = segment.start + start - (self._ends[i] - segment.length)
            pieces.append(Segment(segment.name, stop - start, offset))
            start, i = stop, i + 1
        if start < end:
            pieces.append(Segment(output_of(self.request_id), end - start, start - prompt_end))
        return tuple(pieces) if len(pieces) == 1 else merge_segments(pieces)

    def __lt__(self, other: Request) -> bool:
        """Order by priority, then arrival, as vLLM's priority queue does."""
        return (self.priority, self.arrival_time, self.request_id) < (
            other.priority,
            other.arrival_time,
            other.request_id,
        )


BlockHash = int
"""Names the tokens from a sequence's start up to a block's end."""


class BlockHasher:
    """Chained names of blocks: equal prefixes get equal numbers (vLLM `get_request_block_hasher`).

    vLLM chains SHA-256 over token values; here each new (parent, content) pair gets the next number, so
    nothing can collide. Names are made when they are first asked for. A name can cover some tokens after its block.
    """

    def __init__(self, hash_block_size: int, num_lookahead_tokens: int = 0) -> None:
        self.hash_block_size = hash_block_size
        self.num_lookahead_tokens = num_lookahead_tokens
        self._names: dict[tuple[BlockHash, Content] | tuple[BlockHash, str, int], BlockHash] = {}
        """Parent and content; of a block within one run of tokens, the run's name and where in it the block starts."""
        self._chains: dict[str, list[BlockHash]] = {}

    def num_hashed_tokens(self, request: Request) -> int:
        """Count the tokens in blocks that have a name: full ones, and the tokens after them known as well."""
        num_tokens = max(0, request.num_tokens - self.num_lookahead_tokens)
        return num_tokens - num_tokens % self.hash_block_size

    def block_hashes(self, request: Request, num_tokens: int) -> list[BlockHash]:
        """Return the request's block names, of at least all full blocks within its first `num_tokens`."""
        chain = self._chains.setdefault(request.request_id, [])
        size, names = self.hash_block_size, self._names
        start = len(chain) * size
        while start + size <= num_tokens:
            parent = chain[-1] if chain else 0
            num_blocks = (num_tokens - start) // size
            if start < request.num_prompt_tokens:
                name, index, left = request.prompt_token(start)
                whole = min(num_blocks, (left - self.num_lookahead_tokens) // size)
                for offset in range(index, index + whole * size, size):
                    parent = names.setdefault((parent, name, offset), len(names) + 1)
                    chain.append(parent)
                if whole > 0:
                    start += whole * size
                    continue
            content = request.content(start, start + size + self.num_lookahead_tokens)
            [run, *others] = content
            key = (parent, content) if others else (parent, run.name, run.start)
            chain.append(names.setdefault(key, len(names) + 1))
            start += size
        return chain

    def forget(self, request_id: str) -> None:
        """Drop a finished request's chain; the names stay, since its blocks may stay cached."""
        self._chains.pop(request_id, None)
