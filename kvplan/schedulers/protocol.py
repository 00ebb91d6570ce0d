"""What a scheduler is to whoever drives it: one protocol, and what its calls tell. No clock, no blocks, no policy.

Three schedulers satisfy it: vLLM step by step, vLLM leaping, SGLang. Synchronous, a driver calls `schedule()` and then
`update_from_output()`; asynchronous, `schedule()` once ahead. A leap stands for both calls of each of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kvplan.schedulers.request import Request

Counts = NDArray[np.int64]


class AcceptDrafts(Protocol):
    """Which drafts are right: fixed by request and output position, however the request gets there."""

    def __call__(self, request: Request, num_drafts: int) -> int:
        """Of the drafts after the request's tokens so far: how many are right in a row."""

    def runs(self, request: Request, first: int, count: int, num_drafts: int) -> Counts:
        """The same at `count` output positions from `first` on, shape (count,)."""


class Chunk(NamedTuple):
    """Part of a prompt computed in one step, or of what a preempted request recomputes."""

    request: Request
    num_tokens: int
    num_computed_tokens: int
    """Tokens before the chunk."""


class Step(NamedTuple):
    """One step's decisions; decodes are told by number and summed context."""

    num_decodes: int
    decode_context: int
    """Sum over the decodes of the tokens attended to, the step's own token included."""
    chunks: list[Chunk]
    admitted: list[tuple[Request, int]]
    """Requests admitted in this step and their prefix-cache hit tokens; their first chunks are in `chunks`."""
    preempted: list[Request]
    decode_tokens: int
    """Tokens of the decodes, drafts included."""

    @property
    def num_tokens(self) -> int:
        """Tokens scheduled."""
        return self.decode_tokens + sum(chunk.num_tokens for chunk in self.chunks)


class Outputs(NamedTuple):
    """What became known when a step's tokens were read."""

    first_tokens: list[Request]
    """Requests whose prefill gave a token: the first one, or after a preemption the next one."""
    finished: list[Request]


NOTHING = Outputs([], [])
"""Shared; nobody may append to it."""


class DraftedPaths(NamedTuple):
    """What the reads of a leap over speculation give each sequence."""

    requests: Sequence[Request]
    tokens: Counts
    """Prompt and sampled tokens, shape (requests, reads)."""
    num_in_flight: int
    """Tokens of a sequence that are scheduled and not read."""


class DraftedSteps(NamedTuple):
    """What the coming steps of a leap over speculation are, one by one."""

    num_tokens: int
    """Tokens of each, drafts included."""
    contexts: Counts
    """Tokens attended to."""
    taken: Counts
    """Blocks taken from the leap's start to the end of each step's schedule, less those that came back."""
    paths: DraftedPaths | None = None
    """Of an engine that keeps counters: what they would be after every read."""


class Leap(NamedTuple):
    """Up to `max_steps` steps that are "+1 for everyone": the same sequences decode, nothing else happens.

    Step i (from 0) attends to `decode_context + i * num_decodes` tokens, or as `drafted` says.
    """

    max_steps: int
    num_decodes: int
    decode_context: int
    ends_on_arrival: bool
    """Whether a new request would be looked at, so that the leap must be cut when one comes."""
    drafted: DraftedSteps | None = None
    """With drafts, where a step gives each sequence as many tokens as are right."""


class DecodePath(Protocol):
    """What reads of outputs do to one sequence of a leaping engine with drafts, from its prefill's token on."""

    def tokens(self) -> Counts:
        """Prompt and sampled tokens after each read, the prefill's own first; as far as is known."""

    def held(self) -> Counts:
        """Tokens in the cache or in flight after each read."""

    def after(self, num_reads: int) -> tuple[int, int]:
        """Both after so many reads behind the prefill's own."""


class FreeBlocks(NamedTuple):
    """Free blocks after each step i (from 0) of a leap."""

    first: int
    least: int
    total: int
    """Their sum."""
    weighted: int
    """The sum of i times them."""


class LeapOutputs(NamedTuple):
    """What became known in a leap: at its first read, of the step that was in flight (asynchronous only; an end then
    makes it a leap of one step), and at its last."""

    first: Outputs
    last: Outputs


new_chunk: Callable[[tuple[Request, int, int]], Chunk] = partial(tuple.__new__, Chunk)
"""Takes the fields as one tuple, like those below: a third of a call of the class, of which a leap has several."""
new_step: Callable[[tuple[int, int, list[Chunk], list[tuple[Request, int]], list[Request], int]], Step]
new_step = partial(tuple.__new__, Step)
new_outputs: Callable[[tuple[list[Request], list[Request]]], Outputs] = partial(tuple.__new__, Outputs)
new_leap: Callable[[tuple[int, int, int, bool, DraftedSteps | None]], Leap] = partial(tuple.__new__, Leap)
new_leap_outputs: Callable[[tuple[Outputs, Outputs]], LeapOutputs] = partial(tuple.__new__, LeapOutputs)


class ContentsMatter(Exception):
    """Somebody asks for content that may be cached where contents are not written down: another scheduler must run.

    Raised by `add_request`, `schedule` and `plan_leap` of a scheduler that leaps; it cannot go on then.
    """


class SchedulerInterface(Protocol):
    """What a replica drives (vLLM's word for it: `v1/core/sched/interface.py`). Blocks are SGLang's pages."""

    def add_request(self, request: Request) -> None:
        """Queue a new request."""

    def abort(self, request_id: str) -> bool:
        """Take a request out, wherever it is; False if it has ended already."""

    def has_requests(self) -> bool:
        """Whether there is something to schedule or to pass on."""

    def schedule(self) -> Step:
        """Decide one step."""

    def update_from_output(self) -> Outputs:
        """Read the oldest scheduled step: which prefills gave a token, which requests ended."""

    def plan_leap(self) -> Leap | None:
        """Propose steps in which all running sequences decode one token and nothing else happens; None if unsure."""

    def commit_leap(self, num_steps: int) -> LeapOutputs:
        """Take `num_steps` steps of the leap just planned, at least one; all of them or cut short."""

    def free_blocks_in(self, num_steps: int) -> int:
        """Return the free blocks that so many steps of the leap just planned leave."""

    def free_blocks_over(self, num_steps: int) -> FreeBlocks | None:
        """Return the free blocks after each of so many steps of the leap just planned; None where they only fall."""

    def decode_path(self, request: Request) -> DecodePath | None:
        """Return how a decoding request fares with drafts; None if it has ended, or its own counters tell it."""

    def head(self) -> Request:
        """Return the request that waits first."""

    @property
    def keeps_counters(self) -> bool:
        """Whether the requests' own counters tell after every read what was computed and sampled."""

    @property
    def num_running(self) -> int:
        """Requests that hold a place in the batch."""

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""

    @property
    def holds_back(self) -> bool:
        """Whether those that wait do so for company alone (TensorRT-LLM's `batch_wait`), as last decided or planned."""

    @property
    def is_short(self) -> bool:
        """Whether the next decode step needs more blocks than there are, so that somebody is preempted."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken, cached ones included."""

    @property
    def num_cached_free_blocks(self) -> int:
        """Free blocks that still hold reusable content."""

    @property
    def num_taken_blocks(self) -> int:
        """Blocks taken from the free queue so far."""
