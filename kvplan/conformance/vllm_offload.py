"""Offloading in scenarios: the tier, copies that take steps instead of time, and what the log says of them.

The format is that of the project's reference logs: a clock of polls, one a step. A job is done in the first poll at
which its delay has passed, all earlier ones of its direction are done, and its blocks are copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

from pydantic import Field

from kvplan.conformance.scenario import ScenarioRequest
from kvplan.ground.config import Config
from kvplan.ground.units import cdiv
from kvplan.schedulers.vllm.offloading.config import OffloadingConfig, SecondaryTierConfig
from kvplan.schedulers.vllm.offloading.jobs import TransferJob
from kvplan.schedulers.vllm.offloading.policies import OffloadKey, end_of, group_of
from kvplan.schedulers.vllm.offloading.tiering import DualQueueThreadPool, TierJob


class TierScenario(SecondaryTierConfig):
    """A tier below host memory; its transfers take steps."""

    write_delay: int = Field(1, ge=0)
    """Steps from when a thread takes a write to its end; 0 = it has ended when somebody looks."""
    read_delay: int = Field(1, ge=0)
    """Steps of a read."""
    chunks_per_step: int | None = Field(None, ge=1)
    """Chunks that one thread moves per step, beside the delay; None = any number."""

    @property
    def engine_part(self) -> SecondaryTierConfig:
        """What the engine is told."""
        return SecondaryTierConfig(**{name: getattr(self, name) for name in SecondaryTierConfig.model_fields})


class OffloadScenario(Config):
    """The tier and the link of a scenario."""

    num_cpu_blocks: int = Field(ge=1)
    """GPU blocks that the tier holds, of one group."""
    policy: Literal["lru", "arc"] = "lru"
    """Which chunk leaves a full tier."""
    block_size_factor: int = Field(1, ge=1)
    """GPU blocks of a chunk."""
    offload_prompt_only: bool = True
    """Store prompts alone."""
    store_threshold: int = Field(0, ge=0)
    """Store a chunk from this offer on."""
    max_tracker_size: int = Field(64_000, ge=1)
    """Chunks whose offers are counted."""
    sync_load_tokens: int = Field(0, ge=0)
    """Tokens that a step may load before its forward pass (`sync_load_budget_bytes`, from 0.33 on)."""
    store_delay: int = Field(1, ge=0)
    """Polls from the start of a store to its end; 0 = in the poll of the step that begins it."""
    load_delay: int = Field(1, ge=0)
    """Polls from the start of a load to its end."""
    store_blocks_per_step: int | None = Field(None, ge=1)
    """GPU blocks stored per step; None = any number."""
    load_blocks_per_step: int | None = Field(None, ge=1)
    """GPU blocks loaded per step; None = any number."""

    secondary_tiers: tuple[TierScenario, ...] = ()
    """Tiers below host memory."""

    @property
    def engine_part(self) -> OffloadingConfig:
        """What the engine is told."""
        return OffloadingConfig(
            num_chunks=self.num_cpu_blocks // self.block_size_factor,
            blocks_per_chunk=self.block_size_factor,
            eviction_policy=self.policy,
            offload_prompt_only=self.offload_prompt_only,
            store_threshold=self.store_threshold,
            max_tracker_size=self.max_tracker_size,
            sync_load_budget_bytes=self.sync_load_tokens,
            secondary_tiers=tuple(tier.engine_part for tier in self.secondary_tiers),
        )


class VLLMRequest(ScenarioRequest):
    """One request of a scenario for vLLM."""

    max_load_tokens: int | None = Field(None, ge=0)
    """Most tokens loaded from the tier."""
    max_offload_tokens: int | None = Field(None, ge=0)
    """Most leading tokens stored in it."""


@dataclass(slots=True)
class StepCopy:
    """A copy under way."""

    job_id: int
    num_left: int
    """Blocks still to copy."""
    begun: int
    """The poll since which it runs."""
    is_forced: bool = False
    """Whether somebody waits for it: it ends at the next poll."""


class StepCopies:
    """Two queues, one each way, and a clock of polls."""

    def __init__(self, offload: OffloadScenario) -> None:
        self.num_polls = 0
        self._queues: dict[bool, deque[StepCopy]] = {True: deque(), False: deque()}
        self._delay = {True: offload.store_delay, False: offload.load_delay}
        self._rate = {True: offload.store_blocks_per_step, False: offload.load_blocks_per_step}

    def submit(self, job: TransferJob) -> None:
        """Queue a copy."""
        self._queues[job.is_store].append(StepCopy(job.job_id, job.num_blocks, self.num_polls))

    def wait(self, jobs: Collection[int]) -> None:
        """Let these end at the next poll, and all before them in their direction."""
        for queue in self._queues.values():
            last = max((i for i, copy in enumerate(queue) if copy.job_id in jobs), default=-1)
            for i in range(last + 1):
                queue[i].is_forced = True

    def get_finished(self) -> list[int]:
        """Poll: return what has ended, stores first."""
        ended = []
        for is_store, queue in self._queues.items():
            self._copy(queue, self._rate[is_store])
            while queue and self._is_done(queue[0], is_store):
                ended.append(queue.popleft().job_id)
        self.num_polls += 1
        return ended

    def _copy(self, queue: deque[StepCopy], rate: int | None) -> None:
        if rate is not None:
            for copy in queue:
                if not copy.is_forced and copy.begun < self.num_polls:
                    num_blocks = min(rate, copy.num_left)
                    copy.num_left -= num_blocks
                    rate -= num_blocks

    def _is_done(self, copy: StepCopy, is_store: bool) -> bool:
        late = self.num_polls - copy.begun >= self._delay[is_store]
        return copy.is_forced or (late and (self._rate[is_store] is None or copy.num_left <= 0))


class StepFiles:
    """One tier's threads, on a clock of steps."""

    def __init__(self, tier: TierScenario) -> None:
        self.tier = tier
        self.clock = 0
        self.pool = DualQueueThreadPool(tier.n_read_threads, tier.n_write_threads)
        self._running: list[tuple[int, int, TierJob]] = []
        """(end, job id, job)."""

    def enqueue(self, job: TierJob) -> None:
        """Queue a job."""
        if self.pool.enqueue(job):
            self._start(job, self.clock)

    def _start(self, job: TierJob, now: int) -> None:
        rate = self.tier.chunks_per_step
        delay = self.tier.read_delay if job.is_promotion else self.tier.write_delay
        end = now + delay + (cdiv(job.num_chunks, rate) if rate else 0)
        heappush(self._running, (end, job.job_id, job))

    def ended(self) -> list[TierJob]:
        """Return what has ended by now; a thread that becomes free takes its next job at that step."""
        ended = []
        while self._running and self._running[0][0] <= self.clock:
            end, _, job = heappop(self._running)
            ended.append(job)
            following = self.pool.finish(job)
            if following is not None:
                self._start(following, end)
        return ended

    def look_up(self) -> None:
        """Answers are there at the next step."""


class ChunkNames:
    """Chunks by the request that named them first."""

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self._names: dict[OffloadKey, str] = {}

    def note(self, request_id: str, keys: Collection[OffloadKey]) -> None:
        """Name chunks that have no name yet."""
        for key in keys:
            suffix = f"/{group_of(key)}" if self._num_groups > 1 else ""
            self._names.setdefault(key, f"{request_id}@{end_of(key)}{suffix}")

    def __call__(self, keys: Collection[OffloadKey]) -> list[str]:
        """Return the names of chunks."""
        return [self._names[key] for key in keys]
