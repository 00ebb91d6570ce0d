"""A request as SGLang's scheduler sees it, around the request that both engine twins take.

Tokens are named, not listed: `kvplan.schedulers.request.Segment` runs of streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from kvplan.ground.content import Content, Segment, output_of
from kvplan.schedulers.request import Request, RequestStatus

if TYPE_CHECKING:
    from kvplan.schedulers.sglang.radix_cache import TreeNode

FinishReason = Literal["", "stop", "length", "abort"]

ABORTED_TOKEN = Segment("token:0", 1)
"""What stands for the prompt of a refused request (SGLang `set_finish_with_abort`)."""

STATUS = {
    "stop": RequestStatus.FINISHED_STOPPED,
    "length": RequestStatus.FINISHED_LENGTH_CAPPED,
    "abort": RequestStatus.FINISHED_ABORTED,
}


def ceil_page(tokens: int, page_size: int) -> int:
    """Round up to whole pages."""
    return -(-tokens // page_size) * page_size


@dataclass(slots=True, eq=False)
class Req:
    """One sequence and how far it got (SGLang `schedule_batch.py: Req`, `ReqKvInfo`)."""

    request: Request
    max_new_tokens: int
    """Output tokens after which it ends, cut to what the pool can hold."""
    priority: int = 0
    ignore_eos: bool = False
    """Its length is known: admission counts all of its future tokens."""
    refused: bool = False
    """Its prompt was too long: one token stands for it, and it ends as aborted."""

    num_outputs: int = field(default=0, init=False)
    """Sampled tokens (SGLang: len(output_ids))."""
    prefix_len: int = field(default=0, init=False)
    """Tokens before the extend: hit, or computed by earlier chunks."""
    extend_end: int = field(default=0, init=False)
    """Where the extend of the pass ends."""
    fill_len: int = field(default=0, init=False)
    """Tokens to prefill in all, as last looked at (SGLang: len(full_untruncated_fill_ids))."""
    num_matched_prefix_tokens: int = field(default=0, init=False)
    """Hit as the policy last saw it."""
    kv_len: int = field(default=0, init=False)
    """Tokens with a place in the pool (SGLang: kv_committed_len = kv_allocated_len)."""
    cache_protected_len: int = field(default=0, init=False)
    """Of these, the tree's."""
    cache_inserted_len: int = field(default=0, init=False)
    holds_row: bool = field(default=False, init=False)
    """Has a row in the request table (SGLang: req_pool_idx)."""
    last_node: TreeNode | None = field(default=None, init=False)
    lock: TreeNode | None = field(default=None, init=False)
    """The node up to which its prefix is locked."""
    inflight_middle_chunks: int = field(default=0, init=False)
    extend_batch_idx: int = field(default=0, init=False)
    """Prefill passes since it was last admitted."""
    num_retractions: int = field(default=0, init=False)
    is_retracted: bool = field(default=False, init=False)
    to_finish: bool = field(default=False, init=False)
    """It is aborted with its next token."""
    finished: bool = field(default=False, init=False)
    """Whether it has ended."""
    finished_reason: FinishReason = field(default="", init=False)
    finished_len: int | None = field(default=None, init=False)
    """Output tokens up to the stop; None after an abort."""
    queue_entry: int = field(default=0, init=False)
    """Counts entries into the waiting queue."""
    arrival_processed_tokens: int = field(default=0, init=False)
    """Tokens that the engine had computed when it entered the queue (policy hrrn)."""

    last_output: int = field(init=False)
    """Output tokens when it ends; the scheduler does not know of a stop token."""

    def __post_init__(self) -> None:
        stop_at = None if self.ignore_eos else self.request.stop_at
        self.last_output = self.max_new_tokens if stop_at is None else min(stop_at, self.max_new_tokens)

    @property
    def rid(self) -> str:
        """Its id."""
        return self.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt (SGLang: len(origin_input_ids))."""
        return 1 if self.refused else self.request.num_prompt_tokens

    @property
    def seqlen(self) -> int:
        """Prompt and sampled tokens."""
        return self.num_prompt_tokens + self.num_outputs

    @property
    def extend_len(self) -> int:
        """Tokens that the prefill pass computes."""
        return self.extend_end - self.prefix_len

    @property
    def next_output_finishes_by_length(self) -> bool:
        """Whether one more token is surely its last."""
        return self.num_outputs + 1 >= self.max_new_tokens

    @property
    def owned_kv_len(self) -> int:
        """Tokens whose KV is worth keeping when it ends (SGLang: same name)."""
        if self.finished_len is None:
            return self.kv_len
        return min(self.kv_len, self.num_prompt_tokens + self.finished_len)

    def key(self, end: int) -> Content:
        """Which tokens stand at positions 0 .. end - 1."""
        if self.refused:
            sampled = (Segment(output_of(self.rid), end - 1),) if end > 1 else ()
            return (ABORTED_TOKEN, *sampled) if end else ()
        return self.request.content(0, end)

    def sample(self) -> None:
        """Take one more token and see whether it ends the request (SGLang `update_finish_state`)."""
        self.num_outputs += 1
        self.request.num_tokens += 1
        if self.to_finish:
            self.finish("abort")
        elif self.num_outputs == self.request.stop_at and not self.ignore_eos:
            self.finished_len = self.num_outputs
            self.finish("stop")
        elif self.num_outputs >= self.max_new_tokens:
            self.finished_len = self.max_new_tokens
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End it."""
        self.finished, self.finished_reason, self.to_finish = True, reason, False
        self.request.status = STATUS[reason]

    def reset_for_retract(self) -> None:
        """Forget what was computed; the outputs stay (SGLang: same name)."""
        self.num_retractions += 1
        self.request.num_preemptions += 1
        self.request.status = RequestStatus.PREEMPTED
        self.prefix_len = self.extend_end = self.kv_len = 0
        self.cache_protected_len = self.cache_inserted_len = 0
        self.num_matched_prefix_tokens = self.inflight_middle_chunks = self.extend_batch_idx = 0
        self.last_node = self.lock = None
        self.is_retracted = True
