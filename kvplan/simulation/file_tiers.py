"""Files below host memory on the clock: an engine's threads share a drive, one queue each way. Times are ticks.

A job is one thread's from start to end, file by file. Jobs of one direction share its rate evenly; a thread alone is as
slow as it opens, moves and closes one file after another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from kvplan.ground.units import TICKS_PER_S
from kvplan.profiles.host_links import Drive
from kvplan.schedulers.vllm.offloading.tiering import DualQueueThreadPool, TierJob
from kvplan.simulation.in_flight import NEVER_COMES


@dataclass(slots=True)
class Way:
    """Reads, or writes: jobs that progress side by side."""

    file_bytes: int
    bytes_per_s: float
    latency_s: float
    at: float = 0.0
    """Seconds up to which it has been followed: between two changes of its jobs all go at one pace."""
    done: float = 0.0
    """Files that a job under way since the start would have moved."""
    jobs: list[tuple[float, int, TierJob]] = field(default_factory=list)
    """(`done` at its end, job id, job)."""

    @property
    def files_per_s(self) -> float:
        """Of each job: a thread's own pace, or its share of the drive."""
        own = 1 / (self.latency_s + self.file_bytes / self.bytes_per_s)
        return min(own, self.bytes_per_s / (self.file_bytes * max(1, len(self.jobs))))

    @property
    def next_end(self) -> float:
        """When the next job ends, if none joins."""
        return self.at + (self.jobs[0][0] - self.done) / self.files_per_s if self.jobs else inf

    def advance(self, now: float) -> None:
        """Move files until then."""
        if self.jobs:
            self.done += (now - self.at) * self.files_per_s
        else:
            self.done = 0.0
        self.at = now

    def start(self, job: TierJob) -> None:
        """Let a job join."""
        heappush(self.jobs, (self.done + job.num_chunks, job.job_id, job))

    def pop(self) -> TierJob:
        """Return the job that ends now."""
        self.done, _, job = heappop(self.jobs)
        return job


@dataclass(slots=True)
class FileJob:
    """What is noted of a job for those who look at a run."""

    request_id: str
    is_read: bool
    num_files: int
    """That it moves; 0 where all were written before."""
    num_bytes: int
    queued: int
    start: int
    """When a thread took it."""
    end: int | None = None
    """None: still under way when the run ended."""


@dataclass(slots=True)
class TimedFiles:
    """The files of one engine's tier (vLLM's fs tier)."""

    drive: Drive
    file_bytes: int
    """Of one chunk, all ranks' parts."""
    n_read_threads: int = 16
    n_write_threads: int = 16
    now: int = 0
    """The decision of the step under way."""
    num_ended: int = 0
    """Jobs whose end was seen, and look-ups that were answered."""
    next_end: int = NEVER_COMES
    """When the next job ends, if none joins."""
    files: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """Files read and written so far."""
    log: list[FileJob] | None = None
    """All jobs in the order in which threads took them, where somebody wants to see them."""
    _looks_up: bool = False
    _polled: int = 0
    """When somebody last asked what had ended."""
    _busy_s: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    """By direction: time in which it moved bytes, up to where it has been followed."""
    _queued: dict[int, int] = field(default_factory=dict)
    """Job that waits for a thread -> since when."""
    _noted: dict[int, FileJob] = field(default_factory=dict)
    """Job under way -> its row of the log."""
    _pool: DualQueueThreadPool = field(init=False)
    _ways: dict[bool, Way] = field(init=False)

    def __post_init__(self) -> None:
        self._pool = DualQueueThreadPool(self.n_read_threads, self.n_write_threads)
        rates = {True: self.drive.read_bytes_per_s, False: self.drive.write_bytes_per_s}
        self._ways = {way: Way(self.file_bytes, rate, self.drive.latency_s) for way, rate in rates.items()}

    @property
    def is_idle(self) -> bool:
        """Whether no file moves and no look-up waits for the next step."""
        return self._pool.is_idle and not self._looks_up

    @property
    def busy_s(self) -> dict[bool, float]:
        """By direction, reads first: time in which it moved bytes, as far as somebody has looked."""
        polled = self._polled / TICKS_PER_S
        return {
            is_read: self._busy_s[is_read] + (max(0.0, polled - way.at) if way.jobs else 0.0)
            for is_read, way in self._ways.items()
        }

    @property
    def next_seen(self) -> int:
        """The first decision that sees a job end or look-ups answered, if nothing more is asked."""
        return self.now if self._looks_up else self.next_end

    def begin(self, now: int) -> None:
        """Note that a step is being decided."""
        self.now = now
        if self._looks_up:
            self._looks_up = False
            self.num_ended += 1

    def look_up(self) -> None:
        """Answer at the next step: a batch of look-ups takes less than that (vLLM: a thread of its own)."""
        self._looks_up = True

    def enqueue(self, job: TierJob) -> None:
        """Queue a job, now."""
        self._advance(self.now / TICKS_PER_S)
        self._polled = self.now
        if self._pool.enqueue(job):
            self._start(job, self.now, self.now)
            self._look_ahead()
        elif self.log is not None:
            self._queued[job.job_id] = self.now

    def _start(self, job: TierJob, queued: int, now: int) -> None:
        self._ways[job.is_promotion].start(job)
        self.files[job.is_promotion] += job.num_chunks
        if self.log is not None:
            size = job.num_chunks * self.file_bytes
            noted = FileJob(job.request_id, job.is_promotion, job.num_chunks, size, queued, now)
            self.log.append(noted)
            self._noted[job.job_id] = noted

    def _advance(self, now: float) -> None:
        for is_read, way in self._ways.items():
            if way.jobs:
                self._busy_s[is_read] += now - way.at
            way.advance(now)

    def _look_ahead(self) -> None:
        end = min(way.next_end for way in self._ways.values())
        self.next_end = NEVER_COMES if end == inf else round(end * TICKS_PER_S)

    def ended(self) -> list[TierJob]:
        """Return the jobs that have ended by now, in order."""
        ended = []
        self._polled = self.now
        while self.next_end <= self.now:
            way = min(self._ways.values(), key=lambda way: way.next_end)
            self._advance(max(way.at, way.next_end))
            job, at = way.pop(), round(way.at * TICKS_PER_S)
            ended.append(job)
            if job.job_id in self._noted:
                self._noted.pop(job.job_id).end = at
            following = self._pool.finish(job)
            if following is not None:
                self._start(following, self._queued.pop(following.job_id, at), at)
            self._look_ahead()
        self.num_ended += len(ended)
        return ended
