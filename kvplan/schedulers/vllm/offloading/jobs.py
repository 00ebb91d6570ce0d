"""What scheduler, worker and copies tell each other about transfers (vLLM `offloading/common.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kvplan.schedulers.vllm.offloading.policies import OffloadKey


class TransferJob(NamedTuple):
    """One load or one store (vLLM: same name)."""

    job_id: int
    request_id: str
    is_store: bool
    group_blocks: tuple[int, ...]
    """GPU blocks copied, of each group."""
    keys: tuple[OffloadKey, ...]
    """Chunks read or written."""
    is_sync: bool = False
    """A load that its own step waits for."""

    @property
    def num_blocks(self) -> int:
        """GPU blocks copied, of all groups together."""
        return sum(self.group_blocks)


class KVConnectorOutput(NamedTuple):
    """What the worker saw end at its poll (vLLM: same name)."""

    completed_jobs: list[int]
    finished_recving: list[str]
    """Requests whose load is done."""


NOTHING_ENDED = KVConnectorOutput([], [])


@dataclass(slots=True)
class OffloadingDecisions:
    """What one schedule() decided about the tier, beside its jobs; for logs and statistics."""

    lookups: list[tuple[str, int, int | None]] = field(default_factory=list)
    """(request, tokens hit on the GPU, tokens that can be loaded after them; None = ask again)."""
    external: dict[str, int] = field(default_factory=dict)
    """Request -> tokens of the load that began."""
    offers: list[tuple[str, tuple[OffloadKey, ...]]] = field(default_factory=list)
    """(request, chunks offered to the tier), in order."""
    store_failed: list[tuple[str, int]] = field(default_factory=list)
    """(request, chunks) for which the tier had no room."""
    evicted: list[OffloadKey] = field(default_factory=list)


@dataclass(slots=True)
class OffloadingConnectorMetadata:
    """What a step tells the worker (vLLM: same name)."""

    load_jobs: list[TransferJob]
    store_jobs: list[TransferJob]
    jobs_to_flush: set[int]
    """Jobs that must end before the step's forward pass, since it writes over their blocks."""
    decisions: OffloadingDecisions
