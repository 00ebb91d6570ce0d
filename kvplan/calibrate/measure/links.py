"""Link probes: copies between the card and pinned host memory, each way, and files written and read beside the output.

What a tier of KV beyond the GPU rests on. Files are written as vLLM's file system tier does: one chunk each, straight
to the drive (O_DIRECT) where the file system allows it, several threads at once or one. On a CPU the files are real,
and copies go from memory to memory, so that a run without a card walks the same path.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import mkdtemp
from typing import NamedTuple

import torch

from kvplan.calibrate.measure.device import release
from kvplan.calibrate.measure.probes import end_on_a_failed_card, time_calls, why_skipped
from kvplan.calibrate.measurements import Row
from kvplan.calibrate.session import MeasurementSession, Report, no_report

COPY_BYTES = (1 << 16, 1 << 22, 1 << 28)
"""Of one copy: the smallest tells what a copy costs to begin with, the largest the rate."""
PAGES = (256, 1 << 16)
"""Copies of one job and bytes of each: blocks that lie scattered, layer by layer."""
FILE_BYTES = (1 << 18, 1 << 22)
TOTAL_FILE_BYTES = 1 << 27
"""Of the files of one probe together; no fewer than one for each thread."""
THREADS = (1, 16)
REPEATS = 3


class FileProbe(NamedTuple):
    """So many files of a size, moved by so many threads."""

    file_bytes: int
    num_files: int
    num_threads: int


def measure_links(
    session: MeasurementSession, device: torch.device, report: Report = no_report, deadline: float = float("inf"),
    *, largest_bytes: int = COPY_BYTES[-1], file_bytes: int = TOTAL_FILE_BYTES,
) -> None:  # fmt: skip
    """Append every link row that is not in the file yet; what fails is noted and passed over.

    `largest_bytes` bounds a copy, `file_bytes` the files of one probe together. Past `deadline` (on
    `time.monotonic`'s clock) no further kind is begun; the next run begins it again.
    """
    machine = session.machine["machine"]
    kinds: dict[str, Callable[[], Iterator[Row]]] = {
        "host links": lambda: link_rows(device, largest_bytes),
        "files": lambda: file_rows(session.path.parent, file_bytes),
    }
    for number, (name, rows) in enumerate(kinds.items()):
        key = f"links {name}"
        if key in session.done or time.monotonic() > deadline:
            continue
        report(name, number, len(kinds))
        try:
            for row in rows():
                point = {k: v for k, v in row.items() if k not in ("time_s", "spread")}
                session.append(
                    {"machine": machine, **row, "key": json.dumps(["links", point], sort_keys=True)}
                )
                release(device)
        except (
            Exception
        ) as error:  # a drive that is full, memory that cannot be pinned: none may cost the others
            skipped = {"op": "host_link" if name == "host links" else "file_read", "machine": machine}
            skipped |= {"skipped": why_skipped(error)}
            end_on_a_failed_card(error, skipped | {"key": key}, session)
            session.append(skipped)
            release(device)
        session.append({"op": "done", "machine": machine, "key": key})
        session.done.add(key)


def link_rows(device: torch.device, largest_bytes: int) -> Iterator[Row]:
    """Time copies both ways: single ones of growing size, then one job of many scattered pages."""
    num_pages, page_bytes = PAGES
    jobs = [(1, min(size, largest_bytes)) for size in COPY_BYTES] + [(num_pages, page_bytes)]
    for num_copies, num_bytes in dict.fromkeys(jobs):
        pinned = device.type == "cuda"
        host = torch.empty(num_copies, num_bytes, dtype=torch.uint8, pin_memory=pinned)
        card = torch.empty(2 * num_copies, num_bytes, dtype=torch.uint8, device=device)[::2]
        for direction, to, source in (("to_device", card, host), ("to_host", host, card)):

            def copy(to: torch.Tensor = to, source: torch.Tensor = source) -> None:
                for one, other in zip(to, source, strict=True):
                    one.copy_(other, non_blocking=True)

            timing = time_calls([copy], device)
            yield {
                "op": "host_link",
                "direction": direction,
                "num_bytes": num_bytes,
                "num_copies": num_copies,
                "pinned": pinned,
                "time_s": timing.time_s,
                "spread": round(timing.spread, 4),
            }


def file_rows(folder: Path, total_bytes: int) -> Iterator[Row]:
    """Time files written and then read, in a folder of their own beside the output; it is removed at the end."""
    where = Path(mkdtemp(prefix=".kvplan-files-", dir=folder))
    try:
        direct = takes_direct(where)
        for file_bytes in FILE_BYTES:
            for num_threads in THREADS:
                num_files = max(num_threads, min(64, total_bytes // file_bytes))
                yield from _files(where, FileProbe(file_bytes, num_files, num_threads), direct)
    finally:
        rmtree(where, ignore_errors=True)


def takes_direct(folder: Path) -> bool:
    """Whether the file system takes reads and writes past the page cache."""
    try:
        _write(folder / "probe", mmap.mmap(-1, mmap.PAGESIZE), direct=True)
    except OSError:
        return False
    return True


def _files(folder: Path, probe: FileProbe, direct: bool) -> Iterator[Row]:
    data = mmap.mmap(-1, probe.file_bytes)
    buffers = [mmap.mmap(-1, probe.file_bytes) for _ in range(probe.num_threads)]
    times: dict[str, list[float]] = {"file_write": [], "file_read": []}
    with ThreadPoolExecutor(probe.num_threads) as pool:
        for repeat in range(REPEATS):
            paths = [folder / f"{repeat}-{i}" for i in range(probe.num_files)]
            for op in times:

                def move(i: int, op: str = op, paths: list[Path] = paths) -> None:
                    if op == "file_write":
                        _write(paths[i], data, direct)
                    else:
                        _read(paths[i], buffers[i % probe.num_threads], direct)

                begun = time.perf_counter()
                list(pool.map(move, range(probe.num_files)))
                times[op].append(time.perf_counter() - begun)
            for path in paths:
                path.unlink()
    for op, taken in times.items():
        spread = (max(taken) - min(taken)) / median(taken)
        point = {
            "file_bytes": probe.file_bytes,
            "num_files": probe.num_files,
            "num_threads": probe.num_threads,
        }
        yield {"op": op, **point, "direct": direct, "time_s": median(taken), "spread": round(spread, 4)}


def _flags(flags: int, direct: bool) -> int:
    return flags | (getattr(os, "O_DIRECT", 0) if direct else 0)


def _write(path: Path, data: mmap.mmap, direct: bool) -> None:
    """Write beside and rename, as vLLM's file system tier does."""
    beside = path.with_suffix(".tmp")
    file = os.open(beside, _flags(os.O_CREAT | os.O_EXCL | os.O_WRONLY, direct), 0o644)
    try:
        if os.write(file, data) < len(data):
            raise OSError(f"short write of {len(data)} bytes")
    finally:
        os.close(file)
    os.replace(beside, path)


def _read(path: Path, buffer: mmap.mmap, direct: bool) -> None:
    file = os.open(path, _flags(os.O_RDONLY, direct))
    try:
        if os.readv(file, [buffer]) < len(buffer):
            raise OSError(f"short read of {len(buffer)} bytes")
    finally:
        os.close(file)
