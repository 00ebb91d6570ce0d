"""Which chunks a step stores: vLLM's `_build_store_jobs` and its store of single states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kvplan.schedulers.request import BlockHasher, RequestStatus
from kvplan.schedulers.vllm.block_pool import KVCacheBlock
from kvplan.schedulers.vllm.offloading.groups import GroupOffloadConfig, SchedulerOffloadConfig
from kvplan.schedulers.vllm.offloading.policies import OffloadKey, offload_key
from kvplan.schedulers.vllm.offloading.request_state import RequestGroupState, RequestOffloadState


class Store(NamedTuple):
    """Chunks that one request offers."""

    keys: list[OffloadKey]
    ranges: list[tuple[int, int]]
    """Per group the chunks looked at: first, end."""


class StoreBlocks(NamedTuple):
    """The GPU blocks that a store reads."""

    fenced: list[KVCacheBlock]
    """Of windows and states: they can be handed out again while the request lives."""
    deferred: list[KVCacheBlock]
    """Of full attention: they can be handed out again once the request has ended."""
    group_blocks: list[int]
    """How many of each group."""


def num_tokens_after(state: RequestOffloadState, num_scheduled: Mapping[str, int]) -> int:
    """Return the tokens whose KV is in the request's blocks once the step has run.

    The last sampled token of a request that has ended was never computed.
    """
    request = state.req
    if request.status is RequestStatus.FINISHED_ABORTED:
        return request.num_computed_tokens
    if request.is_finished:
        return max(request.num_prompt_tokens, request.num_tokens - 1)
    return request.num_computed_tokens + num_scheduled[request.request_id]


def chunks_to_offer(config: SchedulerOffloadConfig, state: RequestOffloadState, num_tokens: int) -> Store:
    """Return what a request offers once `num_tokens` of it may be stored: all from the first chunk not yet stored.

    GPU hits are among them. Groups that forget leave out what no hit can need.
    """
    prompt = state.num_offloadable_tokens(state.req.num_prompt_tokens)
    boundaries: tuple[int, ...] = ()
    if config.retention_interval is not None:
        boundaries = (state.req.num_prompt_tokens - 1,)
        if state.req.shared_prefix_boundary:
            boundaries += (state.req.shared_prefix_boundary,)
    store = Store([], [])
    for group, group_state in zip(config.groups, state.group_states, strict=True):
        end = state.storable_chunks(group.group_id, num_tokens)
        first, horizon = group_state.next_stored_chunk_idx, prompt // group.tokens_per_chunk
        reconsidered = _reconsidered(config, state, group, end, horizon)
        if reconsidered is not None:
            first = min(first, reconsidered)
        store.ranges.append((first, end))
        if group.requires_cow_source or end <= first:
            continue
        final = _final_segment_end(config, state, group, end, horizon)
        mask = config.reachable_chunks(group, first, end, boundaries, final)
        if reconsidered is not None:
            before = config.reachable_chunks(group, first, end, boundaries, horizon)
            done = [
                i < group_state.next_stored_chunk_idx and (before is None or before[i - first])
                for i in range(first, end)
            ]
            mask = [m and not d for m, d in zip(mask or [True] * len(done), done, strict=True)]
        if config.stores_whole_chunks:
            blocks = config.reachable_blocks(group, first, end, boundaries, final)
            whole = _are_whole(config, group_state, first, end, blocks)
            mask = whole if mask is None else [m and w for m, w in zip(mask, whole, strict=True)]
        store.keys.extend(_stored_keys(config, group_state, first, end, mask))
    return store


def _are_whole(
    config: SchedulerOffloadConfig, state: RequestGroupState, first: int, end: int, mask: list[bool] | None
) -> list[bool]:
    """Say of each chunk whether all its blocks that a hit needs are still there."""
    per_chunk = config.blocks_per_chunk
    start = first * per_chunk
    gone = [
        state.blocks[i] is None and (mask is None or mask[i - start]) for i in range(start, end * per_chunk)
    ]
    return [not any(gone[i : i + per_chunk]) for i in range(0, len(gone), per_chunk)]


def _stored_keys(
    config: SchedulerOffloadConfig, state: RequestGroupState, first: int, end: int, mask: list[bool] | None
) -> Iterable[OffloadKey]:
    """Leave out chunks whose last block has gone, and those that the mask leaves out."""
    per_chunk = config.blocks_per_chunk
    for i in range(first, end):
        if state.blocks[(i + 1) * per_chunk - 1] is not None and (mask is None or mask[i - first]):
            yield state.offload_keys[i]


def _reconsidered(
    config: SchedulerOffloadConfig,
    state: RequestOffloadState,
    group: GroupOffloadConfig,
    end: int,
    horizon: int,
) -> int | None:
    """Return the chunk from which a window's last stretch is looked at once more when its request has ended."""
    blocks = config.final_swa_alignment_blocks(group)
    if not state.req.is_finished or end == horizon or config.retention_interval is not None or blocks is None:
        return None
    last = end * config.blocks_per_chunk
    return (last - last % blocks) // config.blocks_per_chunk


def _final_segment_end(
    config: SchedulerOffloadConfig,
    state: RequestOffloadState,
    group: GroupOffloadConfig,
    end: int,
    horizon: int,
) -> int | None:
    """Return the chunk where the request's last segment ends, None while that is not known."""
    if config.retention_interval is not None or group.is_eagle_group:
        return None
    if state.req.is_finished:
        return end
    return horizon if end <= horizon else None


def blocks_to_store(
    config: SchedulerOffloadConfig, state: RequestOffloadState, store: Store, keys: Iterable[OffloadKey]
) -> StoreBlocks:
    """Collect the blocks of the chunks that go to the tier, and note how far each group has come."""
    wanted, blocks = set(keys), StoreBlocks([], [], [])
    per_chunk = config.blocks_per_chunk
    for group, group_state, (first, end) in zip(config.groups, state.group_states, store.ranges, strict=True):
        into = blocks.deferred if group.window_in_chunks is None else blocks.fenced
        num_before = len(into)
        for i in range(first, end):
            if group_state.offload_keys[i] in wanted:
                table = group_state.blocks[i * per_chunk : (i + 1) * per_chunk]
                into.extend(block for block in table if block is not None)
        blocks.group_blocks.append(len(into) - num_before)
        group_state.next_stored_chunk_idx = max(group_state.next_stored_chunk_idx, end)
    return blocks


def boundary_key(
    config: SchedulerOffloadConfig,
    state: RequestOffloadState,
    group_id: int,
    num_tokens: int,
    hasher: BlockHasher,
) -> OffloadKey | None:
    """Name the state that a request has written at a position; None where it may not be stored."""
    group = config.groups[group_id]
    if num_tokens > state.num_offloadable_tokens(state.req.num_tokens) or num_tokens % group.tokens_per_chunk:
        return None
    hashes = hasher.block_hashes(state.req, num_tokens)
    return offload_key(hashes[num_tokens // hasher.hash_block_size - 1], group_id, num_tokens)
