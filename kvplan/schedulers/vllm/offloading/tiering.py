"""Tiers below host memory: each finished store goes on to all of them, and what was found there comes back through it.

Mirrors `TieringOffloadingManager` of vLLM's `v1/kv_offload/tiering/manager.py`, the `fs` tier with its threads
(`tiering/fs`) and look-ups that take a step (`tiering/async_lookup.py`), and the `example` tier. Files do not leave and
do not fail. Knows no clock: whoever moves the bytes says when they have moved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kvplan.schedulers.vllm.offloading.config import OffloadingConfig, SecondaryTierConfig
from kvplan.schedulers.vllm.offloading.manager import CPUOffloadingManager, LookupResult, PrepareStoreOutput
from kvplan.schedulers.vllm.offloading.policies import OffloadKey, RequestCacheAccess


class TierJob(NamedTuple):
    """Chunks on their way between host memory and one tier (vLLM `tiering/base.py: TransferJob`)."""

    job_id: int
    tier: int
    request_id: str
    is_promotion: bool
    """From the tier into host memory; else a copy of what was stored there (vLLM: a cascade)."""
    keys: tuple[OffloadKey, ...]
    num_chunks: int
    """Chunks whose bytes move: one that has its file already is not written again."""


class TierTransfers(Protocol):
    """Whoever moves one tier's bytes."""

    def enqueue(self, job: TierJob) -> None:
        """Queue a job."""

    def ended(self) -> list[TierJob]:
        """Return the jobs that have ended and were not returned before, in the order of their ends."""

    def look_up(self) -> None:
        """Ask for the existence of files; the answers are there at the next step."""


class AtOnce:
    """Moves bytes in no time: the `example` tier, and a tier whose driver has no clock."""

    def __init__(self) -> None:
        self._jobs: list[TierJob] = []

    def enqueue(self, job: TierJob) -> None:
        """Have it moved."""
        self._jobs.append(job)

    def ended(self) -> list[TierJob]:
        """Return what was queued."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def look_up(self) -> None:
        """Nothing waits for it."""


class DualQueueThreadPool:
    """Threads that prefer loads and threads that prefer stores, over two queues (vLLM: same name).

    A job is one thread's from its start to its end.
    """

    def __init__(self, n_read_threads: int, n_write_threads: int) -> None:
        self._idle = deque([True] * n_read_threads + [False] * n_write_threads)
        """Whether each idle thread prefers loads; the one longest idle is woken first."""
        self._queues: dict[bool, deque[TierJob]] = {True: deque(), False: deque()}
        self._prefers_loads: dict[int, bool] = {}
        """Job that runs -> its thread's preference."""

    @property
    def is_idle(self) -> bool:
        """Whether no job runs or waits."""
        return not self._prefers_loads

    def enqueue(self, job: TierJob) -> bool:
        """Queue a job; return whether a thread takes it now."""
        if not self._idle:
            self._queues[job.is_promotion].append(job)
            return False
        self._prefers_loads[job.job_id] = self._idle.popleft()
        return True

    def finish(self, job: TierJob) -> TierJob | None:
        """Free a job's thread; return the job that it takes next."""
        prefers_loads = self._prefers_loads.pop(job.job_id)
        queue = self._queues[prefers_loads] or self._queues[not prefers_loads]
        if not queue:
            self._idle.append(prefers_loads)
            return None
        following = queue.popleft()
        self._prefers_loads[following.job_id] = prefers_loads
        return following


@dataclass(slots=True, eq=False)
class LookupState:
    """What is known of one file (vLLM: same name)."""

    result: bool | None = None
    is_in_flight: bool = False
    request_ids: set[str] = field(default_factory=set)
    """Requests that asked; when the last of them has ended, what is known is forgotten."""


class AsyncLookupManager:
    """Which files exist, asked in one step and answered in the next (vLLM: same name).

    An answer holds as long as a request that asked lives: a file written meanwhile is still missing for it.
    """

    def __init__(self, files: Collection[OffloadKey]) -> None:
        self._files = files
        self._lookup_state: dict[OffloadKey, LookupState] = {}
        self._req_keys: dict[str, set[OffloadKey]] = {}
        self._lookup_batch: list[tuple[OffloadKey, LookupState]] = []
        self._pending_results: list[tuple[OffloadKey, LookupState, bool]] = []
        self._need_to_drain = False

    def lookup(self, key: OffloadKey, request_id: str) -> bool | None:
        """Say whether a file exists, None = not known yet (vLLM: same name)."""
        if self._need_to_drain:
            self.drain_results()
            self._need_to_drain = False
        state = self._lookup_state.get(key)
        if state is None:
            state = self._lookup_state[key] = LookupState()
            self._lookup_batch.append((key, state))
        state.request_ids.add(request_id)
        self._req_keys.setdefault(request_id, set()).add(key)
        return state.result

    def flush(self) -> bool:
        """Look for what this step asked (vLLM: same name); return whether there was anything."""
        self.drain_results()
        self._need_to_drain = True
        batch, self._lookup_batch = self._lookup_batch, []
        for key, state in batch:
            if self._lookup_state.get(key) is state:
                state.is_in_flight = True
                self._pending_results.append((key, state, key in self._files))
        return bool(self._pending_results)

    def drain_results(self) -> None:
        """Take in the answers (vLLM: same name)."""
        for key, state, result in self._pending_results:
            if self._lookup_state.get(key) is not state:
                continue
            if not state.request_ids:
                del self._lookup_state[key]
            else:
                state.result, state.is_in_flight = result, False
        self._pending_results.clear()

    def cleanup(self, request_id: str) -> None:
        """Forget what only this request asked, unless the answer is on its way (vLLM: same name)."""
        for key in self._req_keys.pop(request_id, ()):
            state = self._lookup_state[key]
            state.request_ids.discard(request_id)
            if not state.request_ids and not state.is_in_flight:
                del self._lookup_state[key]


class SecondaryTierManager:
    """One tier below host memory (vLLM: same name)."""

    def __init__(self, config: SecondaryTierConfig) -> None:
        self.config = config
        self.chunks: set[OffloadKey] = set()
        """What it holds; nothing ever leaves."""
        self.transfers: TierTransfers = AtOnce()
        self._finished: list[TierJob] = []
        self._lookups = AsyncLookupManager(self.chunks) if config.type == "fs" else None

    def lookup(self, key: OffloadKey, request_id: str) -> LookupResult:
        """Say whether a chunk is here (vLLM: same name)."""
        if self._lookups is None:
            return LookupResult.HIT if key in self.chunks else LookupResult.MISS
        found = self._lookups.lookup(key, request_id)
        return LookupResult.RETRY if found is None else LookupResult.HIT if found else LookupResult.MISS

    def submit(self, job: TierJob) -> None:
        """Begin to move a job's chunks (vLLM `submit_store`, `submit_load`)."""
        if self._lookups is None:
            self._end(job)
            return
        if not job.is_promotion:
            job = job._replace(num_chunks=sum(key not in self.chunks for key in job.keys))
        self.transfers.enqueue(job)

    def _end(self, job: TierJob) -> None:
        if not job.is_promotion:
            self.chunks.update(job.keys)
        self._finished.append(job)

    def _settle(self) -> None:
        for job in self.transfers.ended():
            self._end(job)

    def get_finished_jobs(self) -> list[TierJob]:
        """Return the jobs that have ended since the last call (vLLM: same name)."""
        self._settle()
        finished, self._finished = self._finished, []
        return finished

    def on_schedule_end(self) -> bool:
        """Look for the files that this step asked for (vLLM: same name); return whether the next step learns of any."""
        self._settle()
        if self._lookups is not None and self._lookups.flush():
            self.transfers.look_up()
            return True
        return bool(self._finished)

    def on_request_finished(self, request_id: str) -> None:
        """Forget a request (vLLM: same name)."""
        if self._lookups is not None:
            self._lookups.cleanup(request_id)


@dataclass(slots=True)
class RequestState:
    """One request, until its last store has gone on to the tiers (vLLM: same name)."""

    pending_primary_stores: int = 0
    is_finished: bool = False


class TieringOffloadingManager(CPUOffloadingManager):
    """Host memory with tiers below it (vLLM: same name, around a manager of host memory)."""

    def __init__(self, config: OffloadingConfig, ranks_by_request: bool = False) -> None:
        super().__init__(config, ranks_by_request)
        self.secondary_tiers = [SecondaryTierManager(tier) for tier in config.secondary_tiers]
        self.num_promoted = 0
        """Chunks brought back into host memory so far."""
        self.log: list[TierJob] | None = None
        """All jobs as they begin, where somebody wants to see them."""
        self._num_jobs = 0
        self._jobs: dict[int, TierJob] = {}
        self._pending_promotions: dict[int, dict[str, list[OffloadKey]]] = {}
        """Tier -> request -> chunks, until the step's end."""
        self._evicted: list[OffloadKey] = []
        self._processed_jobs_this_step = False
        self._req_state: dict[str, RequestState] = {}

    @property
    def num_tier_jobs(self) -> int:
        """Jobs between host memory and the tiers under way."""
        return len(self._jobs)

    @property
    def num_promotions(self) -> int:
        """Those of them that bring chunks back into host memory."""
        return sum(job.is_promotion for job in self._jobs.values())

    def on_new_request(self, access: RequestCacheAccess) -> None:
        """Note a request (vLLM: same name); both kinds of tiers take chunks as they come."""
        self._req_state[access.request_id] = RequestState()

    def lookup(self, key: OffloadKey, access: RequestCacheAccess) -> LookupResult:
        """Say whether a chunk can be loaded (vLLM: same name).

        One that a tier has comes into host memory first, if there is room for it: what finds none is missing.
        """
        self._maybe_process_finished_jobs()
        found = super().lookup(key, access)
        if found is not LookupResult.MISS:
            return found
        retry = False
        for i, tier in enumerate(self.secondary_tiers):
            result = tier.lookup(key, access.request_id)
            if result is LookupResult.HIT:
                promoted = self._initiate_promotion(i, key, access)
                return LookupResult.HIT_PENDING if promoted else LookupResult.MISS
            retry |= result is LookupResult.RETRY
        return LookupResult.RETRY if retry else LookupResult.MISS

    def _initiate_promotion(self, tier: int, key: OffloadKey, access: RequestCacheAccess) -> bool:
        """Take a slot for a tier's chunk, False if there is none (vLLM: same name)."""
        was_missed = key in access.store_misses
        taken = super().prepare_store([key], access)
        if taken is None:
            self.num_moves += not was_missed  # refused once more, it leaves nothing behind
            return False
        self._evicted += taken.evicted_keys
        chunks = self._pending_promotions.setdefault(tier, {}).setdefault(access.request_id, [])
        chunks += taken.keys_to_store
        return True

    def take_evicted(self) -> list[OffloadKey]:
        """Return what left host memory for promotions since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def prepare_store(
        self, keys: Sequence[OffloadKey], access: RequestCacheAccess
    ) -> PrepareStoreOutput | None:
        """Take slots in host memory (vLLM: same name), once all jobs that have ended let go of theirs."""
        self._maybe_process_finished_jobs()
        taken = super().prepare_store(keys, access)
        if taken is not None and taken.keys_to_store:
            self._req_state[access.request_id].pending_primary_stores += 1
        return taken

    def complete_store(self, keys: Iterable[OffloadKey], access: RequestCacheAccess) -> None:
        """Make chunks readable, and begin to copy them to all tiers (vLLM: same name)."""
        keys = tuple(keys)
        super().complete_store(keys, access)
        for i in range(len(self.secondary_tiers)):
            self.pin(keys)
            self._begin(i, access.request_id, keys, is_promotion=False)
        self._req_state[access.request_id].pending_primary_stores -= 1
        self._maybe_finalize_request(access.request_id)

    def _begin(self, tier: int, request_id: str, keys: Sequence[OffloadKey], *, is_promotion: bool) -> None:
        job = TierJob(self._num_jobs, tier, request_id, is_promotion, tuple(keys), len(keys))
        self._num_jobs += 1
        self._jobs[job.job_id] = job
        self.num_moves += 1
        if self.log is not None:
            self.log.append(job)
        self.secondary_tiers[tier].submit(job)

    def _maybe_process_finished_jobs(self) -> None:
        """Let go of what jobs that have ended used, at the first call of a step (vLLM: same name)."""
        if self._processed_jobs_this_step:
            return
        self._processed_jobs_this_step = True
        for tier in self.secondary_tiers:
            for job in tier.get_finished_jobs():
                self.num_moves += 1
                del self._jobs[job.job_id]
                if job.is_promotion:
                    self.num_promoted += len(job.keys)
                    self.make_ready(job.keys)
                else:
                    self.complete_load(job.keys)

    def on_schedule_end(self) -> None:
        """Close a step (vLLM: same name): begin its promotions and its look-ups.

        The next call of a store asks once more what has ended, and then nobody before the end of the next step.
        """
        self._maybe_process_finished_jobs()
        self._processed_jobs_this_step = False
        for i, by_request in self._pending_promotions.items():
            for request_id, keys in by_request.items():
                self._begin(i, request_id, keys, is_promotion=True)
        self._pending_promotions.clear()
        for tier in self.secondary_tiers:
            self.num_moves += tier.on_schedule_end()

    def on_request_finished(self, access: RequestCacheAccess) -> None:
        """Let the policy see a request's chunks as one use, and the tiers that it has ended (vLLM: same name)."""
        super().on_request_finished(access)
        self._req_state[access.request_id].is_finished = True
        self._maybe_finalize_request(access.request_id)

    def _maybe_finalize_request(self, request_id: str) -> None:
        """Tell the tiers of an end once no store can follow (vLLM: same name)."""
        state = self._req_state[request_id]
        if state.is_finished and not state.pending_primary_stores:
            for tier in self.secondary_tiers:
                tier.on_request_finished(request_id)
            del self._req_state[request_id]

    def has_pending_work(self) -> bool:
        """Whether the engine must go on stepping for the tiers' sake (vLLM: same name)."""
        return bool(self._jobs)
