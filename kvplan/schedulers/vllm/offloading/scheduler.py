"""What the tier loads and stores in each step, and which copies a step must wait for.

Mirrors `OffloadingConnectorScheduler` of vLLM's `distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py`.
Loads hold their blocks; stores hold none, and are flushed when one of theirs is handed out again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import BlockHasher, Request
from kvplan.schedulers.vllm.block_pool import KVCacheBlock
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.kv_cache_manager import KVCacheManager
from kvplan.schedulers.vllm.offloading.groups import SchedulerOffloadConfig
from kvplan.schedulers.vllm.offloading.jobs import (
    KVConnectorOutput,
    OffloadingConnectorMetadata,
    OffloadingDecisions,
    TransferJob,
)
from kvplan.schedulers.vllm.offloading.lookup import ChunkLookup
from kvplan.schedulers.vllm.offloading.manager import CPUOffloadingManager
from kvplan.schedulers.vllm.offloading.policies import OffloadKey
from kvplan.schedulers.vllm.offloading.request_state import RequestOffloadState
from kvplan.schedulers.vllm.offloading.stores import (
    blocks_to_store,
    boundary_key,
    chunks_to_offer,
    num_tokens_after,
)
from kvplan.schedulers.vllm.offloading.tiering import TieringOffloadingManager
from kvplan.schedulers.vllm.output import SchedulerOutput


@dataclass(slots=True)
class TransferJobStatus:
    """A job under way (vLLM: same name)."""

    req_id: str
    keys: tuple[OffloadKey, ...]
    is_store: bool
    deferred_fence_blocks: Sequence[KVCacheBlock] = ()
    """Blocks that are watched once the request has ended."""
    fenced_blocks: Sequence[KVCacheBlock] = ()
    """Blocks that are watched from the start."""


class OffloadingConnectorScheduler:
    """The scheduler's side of the connector (vLLM: same name)."""

    def __init__(self, config: EngineConfig, kv_cache_manager: KVCacheManager) -> None:
        assert config.kv_offloading is not None
        self.kv_cache_manager = kv_cache_manager
        self.hasher: BlockHasher = kv_cache_manager.hasher
        managers = kv_cache_manager.coordinator.managers
        self.config = SchedulerOffloadConfig.of(config, config.kv_offloading, managers)
        kind = TieringOffloadingManager if config.kv_offloading.secondary_tiers else CPUOffloadingManager
        self.manager = kind(config.kv_offloading, config.rules.tier_ranks_by_request)
        self._restarts_stores = config.rules.lookups_restart_stores
        self._sync_budget = config.kv_offloading.sync_load_budget_bytes
        self._kv_bytes_per_token = config.kv_offloading.kv_bytes_per_token
        self._sync_bytes = 0
        self._sync_loads: set[str] = set()
        """Requests that load inside this step."""
        self.num_unordered_ends = 0
        """Steps before which several requests had ended: vLLM takes them in the order of a set of strings."""
        self._lookup = ChunkLookup(self.config, self.manager.lookup)
        self._windows = [g.group_id for g in self.config.groups if g.window_in_chunks is not None]
        self._tracks_loads = config.enable_prefix_caching
        self._chunks_being_loaded: set[OffloadKey] = set()
        self._req_status: dict[str, RequestOffloadState] = {}
        self._jobs: dict[int, TransferJobStatus] = {}
        self._num_jobs = 0
        self._load_jobs: list[TransferJob] = []
        self._allocated: set[KVCacheBlock] = set()
        """Blocks handed out in this step."""
        self._jobs_to_flush: set[int] = set()
        self._block_to_pending_jobs: dict[KVCacheBlock, set[int]] = {}
        self._decisions = OffloadingDecisions()

    @property
    def num_jobs(self) -> int:
        """Jobs under way."""
        return len(self._jobs)

    @property
    def num_requests(self) -> int:
        """Requests that it follows: living ones, and those that have ended and still have jobs under way."""
        return len(self._req_status)

    @property
    def num_fenced_blocks(self) -> int:
        """GPU blocks whose next use would flush a store."""
        return len(self._block_to_pending_jobs)

    def has_pending_push_work(self) -> bool:
        """Whether the engine must go on stepping for its jobs' sake (vLLM: same name)."""
        return bool(self._jobs) or self.manager.has_pending_work()

    def has_nothing_to_store(self, request_id: str) -> bool:
        """Whether a request that decodes has offered all that may be stored, and grows by nothing that may."""
        state = self._req_status[request_id]
        if state.has_nothing_to_store:
            return True
        most = state.num_offloadable_tokens(state.req.num_prompt_tokens)
        capped = self.config.offload_prompt_only or most == state.req.max_offload_tokens
        state.has_nothing_to_store = capped and all(
            group_state.next_stored_chunk_idx >= most // group.tokens_per_chunk
            for group, group_state in zip(self.config.groups, state.group_states, strict=True)
        )
        return state.has_nothing_to_store

    def follow_tables(self, request_ids: Iterable[str]) -> None:
        """Take in the blocks that requests got in steps without copies: nobody else can have watched them."""
        for request_id in request_ids:
            state = self._req_status[request_id]
            for group, group_state in zip(self.config.groups, state.group_states, strict=True):
                new = group.manager.req_to_blocks[request_id][len(group_state.blocks) :]
                group_state.blocks.extend(new)

    # --- requests ---------------------------------------------------------------------------

    def on_new_request(self, request: Request) -> None:
        """Note a request that joins the queue (vLLM: same name)."""
        state = self._req_status[request.request_id] = RequestOffloadState(self.config, request)
        self.manager.on_new_request(state.access)

    def request_finished(self, request: Request) -> None:
        """Note that a request has ended, before its blocks are free (vLLM: same name): they are watched from now on."""
        state = self._req_status[request.request_id]
        state.update_offload_keys(self.hasher)
        for job_id in state.transfer_jobs:
            self._watch(job_id, self._jobs[job_id].deferred_fence_blocks)

    # --- loads ------------------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> int | None:
        """Return the tokens that can be loaded after the GPU's hit; None = ask again (vLLM: same name)."""
        state = self._req_status[request.request_id]
        state.clear_blocks(self._restarts_stores)
        if state.transfer_jobs:
            num_tokens = None
        else:
            state.update_offload_keys(self.hasher)
            state.num_locally_computed_tokens = num_computed_tokens
            num_tokens = self._lookup(state, self._chunks_being_loaded)
        if self._sync_budget:
            self._reserve_sync_load(state, num_computed_tokens, num_tokens or 0)
        self._decisions.lookups.append((request.request_id, num_computed_tokens, num_tokens))
        return num_tokens

    def _reserve_sync_load(
        self, state: RequestOffloadState, num_computed_tokens: int, num_hit_tokens: int
    ) -> None:
        """Let a hit load inside the step if the step's budget has room, and a token is left to compute (vLLM: same)."""
        request_id = state.req.request_id
        self._sync_loads.discard(request_id)
        num_bytes = num_hit_tokens * self._kv_bytes_per_token
        leaves = num_computed_tokens + num_hit_tokens < state.req.num_tokens
        if num_hit_tokens and leaves and self._sync_bytes + num_bytes <= self._sync_budget:
            self._sync_bytes += num_bytes
            self._sync_loads.add(request_id)

    def loads_in_step(self, request: Request) -> bool:
        """Whether the load just looked up happens inside the step, so that the request runs in it."""
        return request.request_id in self._sync_loads

    def update_state_after_alloc(self, request: Request, num_external_tokens: int) -> None:
        """Begin the load of a request that has its blocks (vLLM: same name)."""
        if not num_external_tokens:
            return
        state = self._req_status[request.request_id]
        computed, is_sync = state.num_locally_computed_tokens, request.request_id in self._sync_loads
        end = computed + num_external_tokens
        keys: list[OffloadKey] = []
        group_blocks: list[int] = []
        for group, group_state in zip(self.config.groups, state.group_states, strict=True):
            table = group.manager.req_to_blocks[request.request_id]
            self._allocated.update(block for block in table if not block.is_null)
            last = cdiv(end, group.tokens_per_block)
            first = next(
                (
                    i
                    for i in range(cdiv(computed, group.tokens_per_block), last)
                    if not table[i].is_null and (is_sync or table[i].block_hash is None)
                ),
                last,
            )
            num_chunks = cdiv(end, group.tokens_per_chunk)
            if first < last:
                keys += group_state.offload_keys[first // self.config.blocks_per_chunk : num_chunks]
            group_blocks.append(last - first)
            group_state.next_stored_chunk_idx = num_chunks
        self.manager.prepare_load(keys, state.access)
        job = self._new_job(state, tuple(keys), is_store=False, group_blocks=group_blocks)
        self._load_jobs.append(job._replace(is_sync=is_sync))
        self._decisions.external[request.request_id] = num_external_tokens
        if self._tracks_loads and not is_sync:
            self._chunks_being_loaded.update(keys)

    def _new_job(
        self,
        state: RequestOffloadState,
        keys: tuple[OffloadKey, ...],
        *,
        is_store: bool,
        group_blocks: Iterable[int],
    ) -> TransferJob:
        job = TransferJob(self._num_jobs, state.req.request_id, is_store, tuple(group_blocks), keys)
        self._num_jobs += 1
        state.transfer_jobs.add(job.job_id)
        self._jobs[job.job_id] = TransferJobStatus(job.request_id, keys, is_store)
        return job

    def _watch(self, job_id: int, blocks: Iterable[KVCacheBlock]) -> None:
        """Flush the job if one of the blocks is handed out again."""
        for block in blocks:
            self._block_to_pending_jobs.setdefault(block, set()).add(job_id)

    def _remove_pending_job(self, job_id: int, blocks: Iterable[KVCacheBlock]) -> None:
        for block in blocks:
            pending = self._block_to_pending_jobs[block]
            pending.remove(job_id)
            if not pending:
                del self._block_to_pending_jobs[block]

    # --- stores -----------------------------------------------------------------------------

    def build_connector_meta(
        self, output: SchedulerOutput, finished_req_ids: Sequence[str]
    ) -> OffloadingConnectorMetadata:
        """Close a step's decisions: what it loads, stores and waits for (vLLM: same name)."""
        self._update_req_states(output)
        self._decisions.evicted += self.manager.take_evicted()
        self.manager.on_schedule_end()
        self._flush(output)
        handoffs = self.kv_cache_manager.take_boundary_state_offloads()
        stores = [*self._store_states(handoffs), *self._build_store_jobs(output, finished_req_ids)]
        meta = OffloadingConnectorMetadata(self._load_jobs, stores, self._jobs_to_flush, self._decisions)
        self.num_unordered_ends += len(finished_req_ids) > 1
        for request_id in finished_req_ids:
            state = self._req_status.get(request_id)
            if state is not None:
                state.finished_signaled = True
                self.manager.on_request_finished(state.access)
                if not state.transfer_jobs:
                    del self._req_status[request_id]
        self._load_jobs, self._jobs_to_flush, self._allocated = [], set(), set()
        self._sync_bytes, self._sync_loads = 0, set()
        self._decisions = OffloadingDecisions()
        return meta

    def _update_req_states(self, output: SchedulerOutput) -> None:
        """Follow the tables of all scheduled requests (vLLM: same name)."""
        grown: dict[str, list[int]] = {}
        for request_id in output.num_scheduled_tokens:
            state = self._req_status[request_id]
            state.update_offload_keys(self.hasher)
            if request_id in output.admitted:
                state.clear_blocks()
            grown[request_id] = [len(group_state.blocks) for group_state in state.group_states]
            for group, group_state in zip(self.config.groups, state.group_states, strict=True):
                new = group.manager.req_to_blocks[request_id][len(group_state.blocks) :]
                group_state.blocks.extend(None if block.is_null else block for block in new)
                self._allocated.update(block for block in new if not block.is_null)
        if self._windows and self._allocated:
            self._forget_stale_blocks(grown)

    def _forget_stale_blocks(self, grown: dict[str, list[int]]) -> None:
        """Drop blocks, not stored yet, that fell behind a window and were handed out again."""
        for request_id, state in self._req_status.items():
            for i in self._windows:
                blocks = state.group_states[i].blocks
                end = grown[request_id][i] if request_id in grown else len(blocks)
                first = state.group_states[i].next_stored_chunk_idx * self.config.blocks_per_chunk
                for j in range(first, end):
                    if blocks[j] in self._allocated:
                        blocks[j] = None

    def _flush(self, output: SchedulerOutput) -> None:
        """Find the jobs that this step would overwrite: those of victims, and those whose blocks were handed out."""
        for request_id in output.preempted:
            state = self._req_status.get(request_id)
            if state is not None:
                self._jobs_to_flush |= state.transfer_jobs - {job.job_id for job in self._load_jobs}
        pending = self._block_to_pending_jobs
        if pending:
            for block in self._allocated:
                self._jobs_to_flush.update(pending.get(block, ()))

    def _store_states(
        self, handoffs: dict[str, list[tuple[int, KVCacheBlock, int]]]
    ) -> Iterable[TransferJob]:
        """Store states one by one as they are written (vLLM `_build_aligned_boundary_store_jobs`)."""
        for request_id, entries in handoffs.items():
            state = self._req_status.get(request_id)
            if state is None:
                continue
            for group_id, block, num_tokens in entries:
                key = boundary_key(self.config, state, group_id, num_tokens, self.hasher)
                if key is None or block.is_null:
                    continue
                keys = self._offer(state, (key,))
                if keys:
                    one = (int(i == group_id) for i in range(len(self.config.groups)))
                    job = self._new_job(state, keys, is_store=True, group_blocks=one)
                    self._watch(job.job_id, [block])
                    self._jobs[job.job_id].fenced_blocks = [block]
                    yield job

    def _build_store_jobs(
        self, output: SchedulerOutput, finished_req_ids: Iterable[str]
    ) -> Iterable[TransferJob]:
        """Offer what each request of the step has ready, and those that ended since the last (vLLM: same name)."""
        for request_id in chain(output.num_scheduled_tokens, finished_req_ids):
            state = self._req_status.get(request_id)
            if state is not None:
                job = self._store(state, num_tokens_after(state, output.num_scheduled_tokens))
                if job is not None:
                    yield job

    def _store(self, state: RequestOffloadState, num_tokens: int) -> TransferJob | None:
        """Store what one request has ready; all of the offer, or nothing of it for now."""
        if state.has_nothing_to_store and not state.req.is_finished:
            return None
        num_tokens = state.num_offloadable_tokens(num_tokens)
        store = chunks_to_offer(self.config, state, num_tokens)
        keys = self._offer(state, tuple(store.keys)) if store.keys else ()
        if keys is None:
            return None
        if not keys:
            state.advance_stored_idx(num_tokens)
            return None
        blocks = blocks_to_store(self.config, state, store, keys)
        job = self._new_job(state, keys, is_store=True, group_blocks=blocks.group_blocks)
        status = self._jobs[job.job_id]
        status.fenced_blocks, status.deferred_fence_blocks = blocks.fenced, blocks.deferred
        self._watch(job.job_id, blocks.fenced)
        if state.req.is_finished:
            self._watch(job.job_id, blocks.deferred)
            if not self._allocated.isdisjoint(blocks.deferred):
                self._jobs_to_flush.add(job.job_id)
        return job

    def _offer(
        self, state: RequestOffloadState, keys: tuple[OffloadKey, ...]
    ) -> tuple[OffloadKey, ...] | None:
        """Offer chunks to the tier; return those it takes, None if it has no room for them."""
        decisions = self._decisions
        decisions.offers.append((state.req.request_id, keys))
        taken = self.manager.prepare_store(keys, state.access)
        if taken is None:
            decisions.store_failed.append((state.req.request_id, len(keys)))
            return None
        decisions.evicted += taken.evicted_keys
        return tuple(taken.keys_to_store)

    # --- ends of jobs -----------------------------------------------------------------------

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Take in which jobs have ended (vLLM: same name)."""
        for job_id in connector_output.completed_jobs:
            job = self._jobs.pop(job_id)
            state = self._req_status[job.req_id]
            if job.is_store:
                self.manager.complete_store(job.keys, state.access)
            else:
                self.manager.complete_load(job.keys)
                self._chunks_being_loaded.difference_update(job.keys)
            if self._block_to_pending_jobs:
                self._remove_pending_job(job_id, job.fenced_blocks)
                if state.req.is_finished:
                    self._remove_pending_job(job_id, job.deferred_fence_blocks)
            state.transfer_jobs.remove(job_id)
            if state.finished_signaled and not state.transfer_jobs:
                del self._req_status[job.req_id]
