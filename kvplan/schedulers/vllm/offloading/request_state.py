"""What the offloading connector knows of one request (vLLM `RequestOffloadState`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import or_

from kvplan.schedulers.request import BlockHasher, Request
from kvplan.schedulers.vllm.block_pool import KVCacheBlock
from kvplan.schedulers.vllm.offloading.groups import SchedulerOffloadConfig
from kvplan.schedulers.vllm.offloading.policies import OffloadKey, RequestCacheAccess, offload_key


@dataclass(slots=True)
class RequestGroupState:
    """One group of one request (vLLM: same name)."""

    offload_keys: list[OffloadKey] = field(default_factory=list)
    """One for each chunk whose tokens are known."""
    blocks: list[KVCacheBlock | None] = field(default_factory=list)
    """The request's table as it grew; None = nothing to store there (vLLM: block id 0)."""
    next_stored_chunk_idx: int = 0


@dataclass(slots=True)
class RequestOffloadState:
    """One request (vLLM: same name)."""

    config: SchedulerOffloadConfig
    req: Request
    access: RequestCacheAccess = field(init=False)
    group_states: list[RequestGroupState] = field(init=False)
    num_locally_computed_tokens: int = 0
    """Hit on the GPU, at its last lookup."""
    transfer_jobs: set[int] = field(default_factory=set)
    """Its jobs under way: one load, or stores."""
    finished_signaled: bool = False
    has_nothing_to_store: bool = False
    """Whether it has offered all that may ever be stored; known once somebody asked."""

    def __post_init__(self) -> None:
        self.access = RequestCacheAccess(self.req.request_id)
        self.group_states = [RequestGroupState() for _ in self.config.groups]

    def update_offload_keys(self, hasher: BlockHasher) -> None:
        """Name the chunks that became full of known tokens (vLLM: same name)."""
        num_tokens = hasher.num_hashed_tokens(self.req)
        for group, state in zip(self.config.groups, self.group_states, strict=True):
            keys, size = state.offload_keys, group.tokens_per_chunk
            if (len(keys) + 1) * size <= num_tokens:
                hashes = hasher.block_hashes(self.req, num_tokens)
                first = offload_key(0, group.group_id, (len(keys) + 1) * size)
                end = offload_key(0, group.group_id, num_tokens + 1)
                nameless = range(first, end, offload_key(0, 0, size))
                step = size // hasher.hash_block_size
                keys.extend(map(or_, nameless, hashes[(len(keys) + 1) * step - 1 :: step]))

    def clear_blocks(self, restart: bool = False) -> None:
        """Forget the table: the request starts over; its stores too if asked."""
        self.has_nothing_to_store = False
        for state in self.group_states:
            state.blocks.clear()
            if restart:
                state.next_stored_chunk_idx = 0

    def storable_chunks(self, i: int, num_offloadable_tokens: int) -> int:
        """Count leading chunks of group `i` that can be stored: computed, in blocks, named (vLLM: same name).

        A drafter's last chunk can still change while the request decodes.
        """
        group, state = self.config.groups[i], self.group_states[i]
        num_chunks = num_offloadable_tokens // group.tokens_per_chunk
        decodes = num_offloadable_tokens > self.req.num_prompt_tokens
        if group.is_eagle_group and decodes and not self.req.is_finished:
            num_chunks = max(0, num_chunks - 1)
        return min(num_chunks, len(state.blocks) // self.config.blocks_per_chunk, len(state.offload_keys))

    def advance_stored_idx(self, num_offloadable_tokens: int) -> None:
        """Pass over what need not be stored (vLLM: same name)."""
        for i, state in enumerate(self.group_states):
            state.next_stored_chunk_idx = max(
                state.next_stored_chunk_idx, self.storable_chunks(i, num_offloadable_tokens)
            )

    def num_offloadable_tokens(self, num_computed_tokens: int) -> int:
        """Return how many of the computed tokens may be stored (vLLM `_calc_num_offloadable_tokens`)."""
        num_tokens = min(num_computed_tokens, self.req.num_tokens)
        if self.req.max_offload_tokens is not None:
            num_tokens = min(num_tokens, self.req.max_offload_tokens)
        if self.config.offload_prompt_only:
            num_tokens = min(num_tokens, self.req.num_prompt_tokens)
        return num_tokens
