"""Records -> Chrome trace, as Perfetto and chrome://tracing read it: a timeline of who ran when.

One process per replica, one track per running slot with a slice per request and its phases inside (slices of
one track nest), waiting as asynchronous spans, counters for blocks, running and waiting. With a tier beyond the GPU
a track of loads and one of stores, and a counter of its slots; with files below host memory a track for each thread
that reads or writes at once, and counters of files and jobs. Whole microseconds, so that rounding keeps the nesting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from kvplan.ground.errors import KvplanError
from kvplan.ground.files import written_whole
from kvplan.simulation.block_map import BlockMap, ranges
from kvplan.simulation.file_tiers import FileJob
from kvplan.simulation.metrics import Sample
from kvplan.simulation.records import FINISH_REASONS, UNSET, Record, Records
from kvplan.simulation.transfers import Copy

Event = dict[str, Any]
TICKS_PER_US = 10**6
COPY_TRACKS = {False: (1 << 20, "loads from the tier"), True: (1 << 20 | 1, "stores to the tier")}
"""Stores? -> number and name of the track: beyond those of running slots."""
FILE_TRACKS = {True: (1 << 21, "file reads"), False: (1 << 22, "file writes")}
"""Reads? -> number of the first thread's track, and what the tracks are called."""
NO_COPIES: Mapping[int, Sequence[Copy]] = {}
NO_FILE_JOBS: Mapping[int, Sequence[FileJob]] = {}


def chrome_trace(
    records: Records,
    samples: list[Sample],
    blocks: BlockMap | None = None,
    copies: Mapping[int, Sequence[Copy]] = NO_COPIES,
    file_jobs: Mapping[int, Sequence[FileJob]] = NO_FILE_JOBS,
) -> dict[str, Any]:
    """Return the trace document, with who owned which blocks and what was copied where that was noted.

    `copies`: replica -> its copies to and from the tier; `file_jobs`: those that read and write files below host
    memory. `json.dump` writes the document.
    """
    served = sorted(
        (Record(*row) for row in records.table.tolist() if row[2] != UNSET), key=lambda r: r.scheduled
    )
    events = [
        *_names(served),
        *_requests(served),
        *_copies(copies),
        *_file_jobs(file_jobs, max((record.engine_finish for record in served), default=0)),
        *_counters(samples),
        *_tier_counters(samples),
        *_owners(blocks),
    ]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def write_trace(
    records: Records,
    samples: list[Sample],
    path: Path,
    blocks: BlockMap | None = None,
    copies: Mapping[int, Sequence[Copy]] = NO_COPIES,
    file_jobs: Mapping[int, Sequence[FileJob]] = NO_FILE_JOBS,
) -> None:
    """Write the trace as JSON. Raises KvplanError if the file cannot be written."""
    try:
        with written_whole(path) as file:
            json.dump(chrome_trace(records, samples, blocks, copies, file_jobs), file, separators=(",", ":"))
    except OSError as error:
        raise KvplanError(f"--trace {path}: {error.strerror or error}") from None


def _requests(served: list[Record]) -> Iterator[Event]:
    slots: dict[int, Slots] = {}
    for record in served:
        slot = slots.setdefault(record.replica, Slots()).take(record.scheduled, record.engine_finish)
        yield from _slices(record, slot)
        yield from _waiting(record)


class Slots:
    """Numbers for overlapping spans: the smallest number that is free at the span's start."""

    def __init__(self) -> None:
        self._busy: list[tuple[int, int]] = []
        self._free: list[int] = []
        self._count = 0

    def take(self, start: int, end: int) -> int:
        """Return the slot of a span; spans come in order of `start`."""
        while self._busy and self._busy[0][0] <= start:
            heappush(self._free, heappop(self._busy)[1])
        if not self._free:
            heappush(self._free, self._count)
            self._count += 1
        slot = heappop(self._free)
        heappush(self._busy, (end, slot))
        return slot


def _slices(record: Record, slot: int) -> Iterator[Event]:
    """The request, then its phases inside it, as the engine has them."""
    args = {"prompt_tokens": record.prompt_tokens, "output_tokens": record.output_tokens,
            "preemptions": record.num_preemptions, "end": FINISH_REASONS[record.finish_reason]}  # fmt: skip
    yield _slice(f"request {record.request_id}", record, slot, record.scheduled, record.engine_finish, args)
    end = record.engine_finish
    first = end if record.engine_first_token == UNSET else record.engine_first_token
    visible = end if record.first_visible == UNSET else min(record.first_visible, end)
    yield _slice("prefill", record, slot, record.scheduled, first)
    if record.thinking_tokens:
        yield _slice("thinking", record, slot, first, visible)
    yield _slice("answer", record, slot, visible, end)


def _slice(name: str, record: Record, slot: int, start: int, end: int, args: Event | None = None) -> Event:
    begin = start // TICKS_PER_US
    return {"name": name, "ph": "X", "pid": record.replica, "tid": slot, "ts": begin,
            "dur": end // TICKS_PER_US - begin, "args": args or {}}  # fmt: skip


def _waiting(record: Record) -> Iterator[Event]:
    for phase, ticks in (("b", record.arrival), ("e", record.scheduled)):
        yield {"name": "waiting", "cat": "queue", "ph": phase, "id": record.request_id, "pid": record.replica,
               "ts": ticks // TICKS_PER_US}  # fmt: skip


def _names(served: list[Record]) -> Iterator[Event]:
    for replica in sorted({record.replica for record in served}):
        yield {"name": "process_name", "ph": "M", "pid": replica, "args": {"name": f"replica {replica}"}}


def _counters(samples: list[Sample]) -> Iterator[Event]:
    """One counter track per quantity, all replicas together."""
    for sample in samples:
        common = {"ph": "C", "pid": 0, "ts": round(sample.time_s * 1e6)}
        yield {**common, "name": "requests", "args": {"running": sample.running, "waiting": sample.waiting}}
        yield {
            **common,
            "name": "blocks",
            "args": {"used": sample.used_blocks, "cached": sample.cached_blocks},
        }


def _tier_counters(samples: list[Sample]) -> Iterator[Event]:
    """Slots taken in the tiers, and GPU blocks that moved so far, all replicas together; nothing without a tier."""
    for sample in samples if any(sample.stored_blocks for sample in samples) else ():
        common = {"ph": "C", "pid": 0, "ts": round(sample.time_s * 1e6)}
        yield {**common, "name": "tier chunks", "args": {"used": sample.tier_chunks}}
        moved = {"loaded": sample.loaded_blocks, "stored": sample.stored_blocks}
        yield {**common, "name": "tier blocks moved", "args": moved}
    for sample in samples if any(s.files or s.file_writes for s in samples) else ():
        common = {"ph": "C", "pid": 0, "ts": round(sample.time_s * 1e6)}
        yield {**common, "name": "files", "args": {"held": sample.files}}
        jobs = {"reads": sample.file_reads, "writes": sample.file_writes}
        yield {**common, "name": "file jobs", "args": jobs}


def _copies(copies: Mapping[int, Sequence[Copy]]) -> Iterator[Event]:
    """A slice per copy; those of one direction follow each other."""
    for replica, made in copies.items():
        for tid, name in COPY_TRACKS.values():
            yield {"name": "thread_name", "ph": "M", "pid": replica, "tid": tid, "args": {"name": name}}
        for copy in made:
            begin, what = copy.start // TICKS_PER_US, "store" if copy.is_store else "load"
            yield {"name": f"{what} request {copy.request_id}", "ph": "X", "pid": replica,
                   "tid": COPY_TRACKS[copy.is_store][0], "ts": begin, "dur": copy.end // TICKS_PER_US - begin,
                   "args": {"blocks": copy.num_blocks}}  # fmt: skip


def _file_jobs(file_jobs: Mapping[int, Sequence[FileJob]], last: int) -> Iterator[Event]:
    """A slice per job from a thread's taking it, on the lowest free track; what never ended ends with the run."""
    for replica, jobs in file_jobs.items():
        for is_read, (first, name) in FILE_TRACKS.items():
            slots, used = Slots(), 0
            for job in sorted((job for job in jobs if job.is_read == is_read), key=lambda job: job.start):
                end = job.end if job.end is not None else max(last, job.start)
                slot = slots.take(job.start, end)
                if slot == used:
                    used += 1
                    yield {"name": "thread_name", "ph": "M", "pid": replica, "tid": first + slot,
                           "args": {"name": f"{name} {slot}"}}  # fmt: skip
                begin = job.start // TICKS_PER_US
                args = {"files": job.num_files, "bytes": job.num_bytes,
                        "queued_us": (job.start - job.queued) // TICKS_PER_US}  # fmt: skip
                yield {"name": f"{'read' if is_read else 'write'} request {job.request_id}", "ph": "X", "pid": replica,
                       "tid": first + slot, "ts": begin, "dur": end // TICKS_PER_US - begin, "args": args}  # fmt: skip


def _owners(blocks: BlockMap | None) -> Iterator[Event]:
    """An instant per noted moment and replica: request -> the block ids it holds, as `0-3,7`; `` = free, cached."""
    for moment in blocks.moments if blocks else ():
        for replica, extents in enumerate(moment.replicas):
            yield {"name": "block owners", "ph": "i", "s": "p", "pid": replica, "tid": 0,
                   "ts": round(moment.time_s * 1e6), "args": ranges(extents)}  # fmt: skip
