"""What a replay of vLLM's twin writes down of each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class OffloadRecord:
    """What happened to the tier in one step."""

    lookups: list[tuple[str, int, int | None]] = field(default_factory=list)
    """(id, tokens hit on the GPU, tokens hit in the tier; None = ask again)."""
    ext: dict[str, int] = field(default_factory=dict)
    """id -> tokens of the load that began."""
    load: list[tuple[int, str, int, list[str]]] = field(default_factory=list)
    """(job, id, GPU blocks, chunks): a chunk is the id of who named it first, @, its last token, and / its group."""
    store: list[tuple[int, str, int, list[str]]] = field(default_factory=list)
    store_failed: list[tuple[str, int]] = field(default_factory=list)
    """(id, chunks) for which the tier had no room."""
    flush: list[int] = field(default_factory=list)
    """Jobs that the step waited for."""
    completed: list[int] = field(default_factory=list)
    """Jobs whose end the scheduler learned of."""
    cpu_evicted: list[str] = field(default_factory=list)
    cpu_used: int | None = None
    """Slots taken after schedule(); None where nothing was left to schedule."""
    cpu_pinned: int | None = None
    cpu_writing: int | None = None
    remote: list[str] = field(default_factory=list)
    """Requests that wait for their load."""
    holding: list[str] = field(default_factory=list)
    """Waiting requests that hold blocks."""
    deferred: int | None = None
    """GPU blocks kept back until the step in flight is processed."""
    fenced: int | None = None
    """GPU blocks whose reuse would flush a store."""
    jobs: int | None = None
    """Jobs under way."""
    promotions: list[tuple[int, int, str, list[str]]] = field(default_factory=list)
    """(job, tier, id, chunks) that a tier below host memory begins to bring back."""
    cascades: list[tuple[int, int, str, list[str]]] = field(default_factory=list)
    """(job, tier, id, chunks) that begin to go to a tier below host memory."""
    tier_jobs: int | None = None
    """Jobs of those tiers under way; None where there is no such tier."""

    def line(self) -> str:
        """Return the line that `offload_sha256` hashes."""
        loads, stores = (
            ";".join(f"{job},{i},{n},{'+'.join(chunks)}" for job, i, n, chunks in jobs)
            for jobs in (self.load, self.store)
        )
        lookups = ";".join(f"{i},{local},{external}" for i, local, external in self.lookups)
        counts = (self.cpu_used, self.cpu_pinned, self.cpu_writing, self.deferred)
        numbers = ",".join("" if count is None else str(count) for count in counts)
        flush, completed = ",".join(map(str, self.flush)), ",".join(map(str, self.completed))
        parts = (loads, stores, flush, completed, ",".join(self.cpu_evicted), lookups, ",".join(self.remote))
        return "|".join((*parts, numbers, *self._tier_parts())) + "\n"

    def _tier_parts(self) -> tuple[str, ...]:
        """What is said of tiers below host memory, where there are any."""
        if self.tier_jobs is None:
            return ()
        begun = (
            ";".join(f"{job},{tier},{i},{'+'.join(chunks)}" for job, tier, i, chunks in jobs)
            for jobs in (self.promotions, self.cascades)
        )
        return (*begun, str(self.tier_jobs))

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a log's line."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class StepRecord:
    """What was decided in one step; block counts leave out the null block."""

    step: int
    arrivals: list[str] = field(default_factory=list)
    sched: list[tuple[str, int, int, str]] = field(default_factory=list)
    """(id, tokens, computed before, new | resumed | prefill | decode) in batch order."""
    hits: dict[str, int] = field(default_factory=dict)
    """Admitted id -> prefix-cache hit tokens."""
    preempted: list[str] = field(default_factory=list)
    free_before: int = 0
    new_blocks: int = 0
    evicted: int = 0
    recycled: int = 0
    """Blocks that came back from behind a window, a chunk or an old state."""
    n_tokens: int = 0
    free: int | None = None
    """Free blocks after schedule(); None if nothing was left to schedule."""
    used: int | None = None
    running: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    group_used: list[int] = field(default_factory=list)
    spec: dict[str, int] = field(default_factory=dict)
    """id -> drafts scheduled."""
    accepted: dict[str, int] = field(default_factory=dict)
    """id -> drafts accepted, of the output applied in this step."""
    sampled: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    aborted: list[tuple[str, str, int]] = field(default_factory=list)
    """(id, running | waiting, tokens it had)."""
    free_end: int = 0
    cached_end: int = 0
    group_end: list[int] = field(default_factory=list)
    offload: OffloadRecord | None = None
    """What happened to the tier beyond the GPU; None without one."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as one line of the log."""
        own = {name: getattr(self, name) for name in self.__slots__ if name != "offload"}
        return {"type": "step"} | own | (self.offload.to_json() if self.offload is not None else {})

    def row(self, with_state: bool) -> list[int | None]:
        """Return the reference log's columns: counts of this step, None where nothing was scheduled any more."""
        sched, num_decodes = self.sched, sum(entry[3] == "decode" for entry in self.sched)
        row: list[int | None] = [
            self.step,
            len(sched),
            self.n_tokens,
            num_decodes,
            self.used,
            self.free_end,
            self.new_blocks,
        ]
        row += [self.evicted, sum(self.hits.values()), len(self.waiting), len(self.finished)]
        if with_state:
            row += [self.recycled, self.cached_end, sum(self.spec.values()), sum(self.accepted.values())]
            row.append(len(self.aborted))
            row += self.group_used or [None for _ in self.group_end]
        return row

    def sched_line(self) -> str:
        """Return the line that `sched_sha256` hashes."""
        batch = ";".join(f"{i},{n},{before}" for i, n, before, _ in self.sched)
        return f"{batch}|{','.join(self.preempted)}\n"

    def state_line(self) -> str:
        """Return the line that `state_sha256` hashes; logs of offloading have another one."""
        if self.offload is not None:
            return self._offload_state_line()
        free = "" if self.free is None else self.free
        counts = f"{self.new_blocks},{self.recycled},{free},{self.free_end},{self.cached_end}"
        groups = "|".join(",".join(map(str, used)) for used in (self.group_used, self.group_end))
        return f"{counts}|{groups}|{','.join(self.finished)}|{','.join(a[0] for a in self.aborted)}\n"

    def _offload_state_line(self) -> str:
        free = "" if self.free is None else self.free
        counts = f"{self.new_blocks},{self.evicted},{free},{self.free_end},{self.cached_end}"
        groups = ",".join(map(str, self.group_used))
        return f"{counts}|{groups}|{','.join(self.finished)}|{','.join(a[0] for a in self.aborted)}\n"
