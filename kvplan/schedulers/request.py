"""A request as the scheduler sees it: lengths, counters and the identity of its tokens, never the tokens.

Two blocks hold the same tokens exactly when their contents (`kvplan.ground.content`) are equal; that is all that prefix
caching needs.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from typing import Literal

from kvplan.ground.content import Content, Segment, merge_segments, output_of

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

    def token(self, position: int) -> tuple[str, int, int]:
        """Return stream and index of one token, and how many of the same stream follow, itself included."""
        if position >= self.num_prompt_tokens:
            return output_of(self.request_id), position - self.num_prompt_tokens, NEVER
        i = bisect_right(self._ends, position)
        segment, left = self.prompt[i], self._ends[i] - position
        return segment.name, segment.end - left, left

    def content(self, start: int, end: int) -> Content:
        """Say which tokens stand at positions `start .. end - 1`, prompt and output, merged."""
        prompt_end = self.num_prompt_tokens
        if not start and end == prompt_end:
            return self.prompt
        pieces = []
        i = bisect_right(self._ends, start)
        while start < min(end, prompt_end):
            segment, stop = self.prompt[i], min(end, self._ends[i])
            offset = segment.start + start - (self._ends[i] - segment.length)
            pieces.append(Segment(segment.name, stop - start, offset))
            start, i = stop, i + 1
        if start < end:
            pieces.append(Segment(output_of(self.request_id), end - start, start - prompt_end))
        return tuple(pieces) if len(pieces) == 1 else merge_segments(pieces)

    @property
    def key(self) -> tuple[int, float, str]:
        """By priority, then arrival, then name, as vLLM's priority queue compares."""
        return self.priority, self.arrival_time, self.request_id


BlockHash = int
"""Names the tokens from a sequence's start up to a block's end."""


@dataclass(slots=True)
class _Chain:
    """One request's block names, and where in which run its last one stands."""

    names: list[BlockHash] = field(default_factory=list)
    stream: str | None = None
    """Stream of the last block, None if it has several."""
    index: int = 0
    """The stream's next token."""
    run: list[BlockHash] = field(default_factory=list)
    place: int = 0
    """The run's next block."""


class BlockHasher:
    """Chained names of blocks: equal prefixes get equal numbers (vLLM `get_request_block_hasher`).

    vLLM chains SHA-256 over token values; here each new (parent, content) pair gets the next number, so
    nothing can collide. Names are made when they are first asked for. A name can cover some tokens after its block.
    """

    def __init__(self, hash_block_size: int, num_lookahead_tokens: int = 0) -> None:
        self.hash_block_size = hash_block_size
        self.num_lookahead_tokens = num_lookahead_tokens
        self._num_names = 0
        self._names: dict[tuple[BlockHash, Content], BlockHash] = {}
        """Parent and content -> name, of blocks that more than one stream has a part in."""
        self._runs: dict[tuple[BlockHash, str, int], list[BlockHash]] = {}
        """Parent, stream and index -> names of the blocks that follow, all of this stream, as far as somebody asked.

        A name stands in one run, or is a mixed block's, so a chain that is within a run finds its next name there.
        """
        self._chains: dict[str, _Chain] = {}

    def num_hashed_tokens(self, request: Request) -> int:
        """Count the tokens in blocks that have a name: full ones, and the tokens after them known as well."""
        num_tokens = max(0, request.num_tokens - self.num_lookahead_tokens)
        return num_tokens - num_tokens % self.hash_block_size

    def block_hashes(self, request: Request, num_tokens: int) -> list[BlockHash]:
        """Return the request's block names, of at least all full blocks within its first `num_tokens`."""
        chain = self._chains.get(request.request_id)
        if chain is None:
            chain = self._chains[request.request_id] = _Chain()
        size, lookahead = self.hash_block_size, self.num_lookahead_tokens
        start = len(chain.names) * size
        while start + size <= num_tokens:
            stream, index, left = request.token(start)
            num_blocks = min(num_tokens - start, left - lookahead) // size
            if num_blocks > 0:
                self._follow_run(chain, stream, index, num_blocks)
                start += num_blocks * size
            else:
                self._name_mixed(chain, request.content(start, start + size + lookahead))
                start += size
        return chain.names

    def _follow_run(self, chain: _Chain, stream: str, index: int, num_blocks: int) -> None:
        """Name blocks that hold one stream's tokens from `index` on; a chain that is within this run goes on in it."""
        if chain.stream != stream or chain.index != index:
            parent = chain.names[-1] if chain.names else 0
            chain.run, chain.place = self._runs.setdefault((parent, stream, index), []), 0
        run, end = chain.run, chain.place + num_blocks
        if end > len(run):
            num_new = end - len(run)
            run.extend(range(self._num_names + 1, self._num_names + num_new + 1))
            self._num_names += num_new
        chain.names += run[chain.place : end]
        chain.stream, chain.index, chain.place = stream, index + num_blocks * self.hash_block_size, end

    def _name_mixed(self, chain: _Chain, content: Content) -> None:
        """Name a block that several streams have a part in."""
        key = (chain.names[-1] if chain.names else 0, content)
        name = self._names.get(key)
        if name is None:
            self._num_names += 1
            name = self._names[key] = self._num_names
        chain.names.append(name)
        chain.stream = None

    def forget(self, request_id: str) -> None:
        """Drop a finished request's chain; the names stay, since its blocks may stay cached."""
        self._chains.pop(request_id, None)
