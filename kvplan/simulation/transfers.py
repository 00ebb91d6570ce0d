"""Copies between a GPU and the tier beyond it, on the clock: one queue each way, over a stated link.

A store waits for the kernels launched before it, a load for those of its own step; each direction moves one job at a
time, first in, first out, beside the model's steps. Ends are seen at the poll of a step, just after its launch. Times
are ticks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import mul
from typing import NamedTuple

from kvplan.ground.units import TICKS_PER_S
from kvplan.profiles.host_links import HostLink
from kvplan.schedulers.vllm.offloading.jobs import TransferJob
from kvplan.simulation.file_tiers import TimedFiles
from kvplan.simulation.in_flight import NEVER_COMES

POLL_TICKS = TICKS_PER_S // 1000
"""Host time from a step's decision to its poll, in which small copies still end (assumed, 0.3 to 2 ms)."""
IDLE_LOOP_TICKS = TICKS_PER_S // 1000
"""How long an engine sleeps between empty steps while copies run (vLLM `v1/engine/core.py`)."""


class Transfer(NamedTuple):
    """A copy that has its turn."""

    job: TransferJob
    start: int
    end: int


class Copy(NamedTuple):
    """What is noted of a copy for those who look at a run."""

    request_id: str
    is_store: bool
    num_blocks: int
    start: int
    end: int


@dataclass(slots=True)
class TimedCopies:
    """The copies of one engine; its ranks copy their parts side by side."""

    link: HostLink
    block_bytes: tuple[int, ...]
    """That one rank copies for one GPU block of each group."""
    now: int = 0
    """The decision of the step under way."""
    gpu_free_at: int = 0
    """End of the kernels launched so far."""
    waited_until: int = 0
    """End of the last copy that the step under way must wait for."""
    files: list[TimedFiles] = field(default_factory=list)
    """The tiers below host memory, in order."""
    num_ended: int = 0
    """Copies whose end was seen."""
    log: list[Copy] | None = None
    """All copies in the order of their turns, where somebody wants to see them."""
    busy_ticks: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """By direction, stores first: time in which it moved bytes."""
    moved_bytes: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """By direction: bytes of one rank."""
    _running: dict[bool, deque[Transfer]] = field(default_factory=lambda: {True: deque(), False: deque()})
    _free_at: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    _loads: list[TransferJob] = field(default_factory=list)
    """Of the step under way: they begin behind its kernels."""

    @property
    def is_idle(self) -> bool:
        """Whether no copy is under way, to host memory or below it."""
        return not (self._loads or any(self._running.values())) and all(files.is_idle for files in self.files)

    @property
    def num_seen(self) -> int:
        """Ends that were seen so far, of copies, files and look-ups."""
        return self.num_ended + sum(files.num_ended for files in self.files)

    @property
    def next_seen(self) -> int:
        """The first decision that sees an end, if nothing more begins; NEVER_COMES: none is to come."""
        ends = [running[0].end - POLL_TICKS for running in self._running.values() if running]
        return min([*ends, *(files.next_seen for files in self.files)], default=NEVER_COMES)

    def look_in_vain(self, now: int) -> None:
        """Note that a step was decided then, and saw nothing end."""
        for files in self.files:
            files.begin(now)
            ended = files.ended()
            assert not ended, "an engine waited past the end of a copy"

    def keep_log(self) -> None:
        """Note every copy from now on, and every job of the files."""
        self.log = []
        for files in self.files:
            files.log = []

    def begin(self, now: int, gpu_free_at: int) -> None:
        """Note that a step is being decided, and when the kernels before it end."""
        self.now, self.gpu_free_at, self.waited_until = now, gpu_free_at, 0
        for files in self.files:
            files.begin(now)

    def read(self, now: int) -> None:
        """Note that a step's output is being read: what ends with it goes on to files from now on."""
        for files in self.files:
            files.now = now

    def submit(self, job: TransferJob) -> None:
        """Queue a copy."""
        if job.is_store or job.is_sync:
            self._start(job, self.gpu_free_at if job.is_store else self.now)
        else:
            self._loads.append(job)

    def _start(self, job: TransferJob, not_before: int) -> None:
        way = job.is_store
        start = max(self._free_at[way], not_before)
        num_bytes = sum(map(mul, job.group_blocks, self.block_bytes))
        ticks = round(self.link.seconds(num_bytes, way) * TICKS_PER_S)
        self.moved_bytes[way] += num_bytes
        transfer = Transfer(job, start, start + ticks)
        self._free_at[way] = transfer.end
        self._running[way].append(transfer)
        self.busy_ticks[way] += ticks
        if self.log is not None:
            self.log.append(Copy(job.request_id, way, job.num_blocks, start, transfer.end))

    def wait(self, jobs: Collection[int]) -> None:
        """Hold the step under way until these have ended."""
        for running in self._running.values():
            for transfer in running:
                if transfer.job.job_id in jobs:
                    self.waited_until = max(self.waited_until, transfer.end)

    def get_finished(self) -> list[int]:
        """Poll: return the jobs that have ended, those that were waited for among them."""
        seen, ended = max(self.now + POLL_TICKS, self.waited_until), []
        for running in self._running.values():
            while running and running[0].end <= seen:
                ended.append(running.popleft().job.job_id)
        self.num_ended += len(ended)
        return ended

    def launch(self, ticks: int) -> int:
        """Let the step of so many ticks run; return how much longer it takes for what it waited for."""
        waits = max(0, self.waited_until - self.gpu_free_at)
        self.gpu_free_at += waits + ticks
        for job in self._loads:
            self._start(job, self.gpu_free_at)
        self._loads.clear()
        return waits
