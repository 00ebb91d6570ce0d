"""When jobs are handed to the copies, and when their ends are seen.

Mirrors `OffloadingConnectorWorker` of vLLM's `offloading/worker.py`: a store waits for the step after the one that
decided it, a load begins behind its step's own kernels, and ends are polled once a step.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from kvplan.schedulers.vllm.offloading.jobs import (
    KVConnectorOutput,
    OffloadingConnectorMetadata,
    TransferJob,
)


class Copies(Protocol):
    """Whoever moves bytes: one queue for each direction, first in, first out (vLLM `OffloadingWorker`)."""

    def submit(self, job: TransferJob) -> None:
        """Queue a copy."""

    def wait(self, jobs: Collection[int]) -> None:
        """Let these end, and all before them in their direction, before anything else happens."""

    def get_finished(self) -> list[int]:
        """Return the jobs that have ended since the last poll."""


class OffloadingConnectorWorker:
    """The worker's side of the connector (vLLM: same name)."""

    def __init__(self, copies: Copies) -> None:
        self.copies = copies
        self._load_jobs: dict[int, str] = {}
        self._unsubmitted_store_jobs: list[TransferJob] = []

    def handle_preemptions(self, meta: OffloadingConnectorMetadata) -> None:
        """Before the forward pass: submit the last step's stores, wait for what this one flushes (vLLM: same name)."""
        flushed = meta.jobs_to_flush
        now = [job for job in meta.store_jobs if job.job_id in flushed]
        for job in (*self._unsubmitted_store_jobs, *now):
            self.copies.submit(job)
        self._unsubmitted_store_jobs = [job for job in meta.store_jobs if job.job_id not in flushed]
        if flushed:
            self.copies.wait(flushed)

    def post_forward(self, meta: OffloadingConnectorMetadata) -> KVConnectorOutput:
        """After it is launched: submit this step's loads, and poll."""
        for job in meta.load_jobs:
            if not job.is_sync:
                self._load_jobs[job.job_id] = job.request_id
            self.copies.submit(job)
        sync = {job.job_id for job in meta.load_jobs if job.is_sync}
        if sync:
            self.copies.wait(sync)
        completed = self.copies.get_finished()
        loaded = [self._load_jobs.pop(job_id) for job_id in completed if job_id in self._load_jobs]
        return KVConnectorOutput(completed, loaded)
