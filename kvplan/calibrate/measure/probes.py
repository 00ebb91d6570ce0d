"""Measuring a card: probes in, raw JSONL rows out. Honest timing, nothing already measured is ever lost.

A probe says what it runs, where (its point) and the least it can cost (bytes and FLOPs); `run` times every
probe that the file does not hold yet and appends a row. Knows torch and NVML, not models, fits or profiles.
`measure_*.py` beside this file hold the probes themselves. The row format is `calibration/README.md`.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch

from kvplan.calibrate.measure.device import clocks, release
from kvplan.calibrate.session import MeasurementSession, Point, Report, no_report
from kvplan.ground.errors import KvplanError

MIN_REPEATS = 5
"""Fewest timed repetitions behind a median."""
SPREAD_BOUND = {"cuda": 0.10, "cpu": 0.30}
"""Interquartile range over median beyond which a point is measured again, then marked `noisy`."""
SHORTEST_S = 1e-3
"""On a CPU, calls are repeated within one reading until it lasts this long: its clock is coarse and shared."""
OUT_OF_MEMORY = "out of memory"
MOST_FAILURES = 5
"""Probes of one kind that may fail before the rest of them is not tried."""
PLAUSIBLE = 0.8
"""Share of the floor that bytes and FLOPs set below which a time is no measurement (ceilings are measured too)."""
TARGET_S = {"cuda": 0.15, "cpu": 0.06}
"""Time spent repeating one probe, once it is warm."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to time."""

    op: str
    """gemm, copy, decode_attention, prefill_attention, mixed_attention, decode_step, ..."""
    point: Point
    """What tells this probe from others of its op; goes into the row as it is."""
    prepare: Callable[[], Sequence[Callable[[], object]]]
    """Allocate and return the callables to time in turn (several input sets, so that no cache serves them all)."""
    floor_bytes: float = 0.0
    floor_flops: float = 0.0
    touched_bytes: float = 0.0
    """Of all input sets together: what a cache would have to hold to serve them all."""

    def key(self, round_: int) -> str:
        """Identity within a file: the same probe is not measured twice in one round."""
        return json.dumps([self.op, self.point, round_], sort_keys=True)


class Ceilings(NamedTuple):
    """The best rates seen on this machine: no time may say that a probe did better."""

    bytes_per_s: float = math.inf
    flops_per_s: float = math.inf
    """Of 16-bit products; those of 8 bits may be twice as fast."""
    l2_bytes: float = 0.0
    """Inputs that fit are read from the cache: their bytes set no floor."""

    def floor_s(self, probe: Probe) -> float:
        """The least seconds that a probe's bytes and FLOPs can take here."""
        rate = self.flops_per_s * (2 if "fp8" in str(probe.point.get("dtype")) else 1)
        moved = probe.floor_bytes if probe.touched_bytes > self.l2_bytes else 0.0
        return max(moved / self.bytes_per_s, probe.floor_flops / rate)


def ceilings_of(session: MeasurementSession, l2_bytes: float) -> Ceilings:
    """The best rates of the copies and of the 16-bit products in a session's file; unlimited where it holds none."""
    rows = [row for row in session.rows() if "time_s" in row and not row.get("noisy")]
    copied = [row["floor_bytes"] / row["time_s"] for row in rows if row["op"] == "copy"]
    products = [row for row in rows if row["op"] == "gemm" and row["dtype"] != "fp8"]
    multiplied = [row["floor_flops"] / row["time_s"] for row in products]
    return Ceilings(max(copied, default=math.inf), max(multiplied, default=math.inf), l2_bytes)


class Timing(NamedTuple):
    """Seconds of one call: the median, and how far the middle half of the repetitions lies apart, relative."""

    time_s: float
    spread: float
    num_repeats: int


def time_calls(calls: Sequence[Callable[[], object]], device: torch.device) -> Timing:
    """Time one call: warm up, repeat for about `TARGET_S`, take the median. CUDA events on a GPU."""
    timed = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    for call in calls[:2]:
        call()
    first = timed(calls, 3)
    lasts = max(median(first), SHORTEST_S if device.type == "cpu" else 1e-7)
    repeats = int(min(100, max(MIN_REPEATS, TARGET_S[device.type] / lasts)))
    times = sorted(timed(calls, repeats))
    middle = median(times)
    quarter = len(times) // 4
    return Timing(middle, (times[-1 - quarter] - times[quarter]) / middle, repeats)


def _cpu_seconds(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """CPU seconds of this thread: what the clock on the wall would say on a machine that does nothing else."""
    times = []
    for _ in range(repeats):
        count, start, spent = 0, time.thread_time(), 0.0
        while count < len(calls) or spent < SHORTEST_S:
            calls[count % len(calls)]()
            count += 1
            spent = time.thread_time() - start
        times.append(spent / count)
    return times


def _cuda_seconds(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for i, (start, end) in enumerate(events):
        call = calls[i % len(calls)]
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def measure(probe: Probe, device: torch.device) -> dict[str, Any]:
    """Time one probe; a noisy point is measured again (twice at most) and the steadiest reading kept."""
    calls = probe.prepare()
    best = time_calls(calls, device)
    for _ in range(2):
        if best.spread <= SPREAD_BOUND[device.type]:
            break
        best = min(best, time_calls(calls, device), key=lambda t: t.spread)
    return {
        "time_s": best.time_s,
        "spread": round(best.spread, 4),
        "num_repeats": best.num_repeats,
        "noisy": best.spread > SPREAD_BOUND[device.type],
        **clocks(device),
    }


def run(
    probes: Iterable[Probe],
    session: MeasurementSession,
    device: torch.device,
    rounds: int = 1,
    report: Report = no_report,
    ceilings: Ceilings = Ceilings(),  # noqa: B008  (a tuple of numbers)
    deadline: float = math.inf,
    first_round: int = 0,
) -> int:
    """Measure every probe not in the file yet, once in each round; return how many rows came.

    A probe that runs out of memory is noted as skipped, and so are larger ones of its op: the grid shrinks. One
    that fails otherwise is noted too, and tried again by the next run; after `MOST_FAILURES` of its kind the rest is
    left out. Past `deadline` (on `time.monotonic`'s clock) nothing more is begun; the next run goes on there.

    Raises:
        KvplanError: the card itself failed.
    """
    todo = [(p, r) for r in range(first_round, rounds) for p in probes if p.key(r) not in session.done]
    too_large: dict[str, float] = {}
    failures: Counter[str] = Counter()
    for number, (probe, round_) in enumerate(todo):
        report(probe.op, number, len(todo))
        if time.monotonic() > deadline:
            left = {"op": "stage", "machine": session.machine["machine"], "of": probe.op}
            session.append(left | {"skipped": f"no time left for {len(todo) - number} points"})
            return number
        if failures[_kind(probe)] >= MOST_FAILURES:
            continue
        row = {"op": probe.op, "machine": session.machine["machine"], "round": round_, **probe.point}
        row |= {"floor_bytes": probe.floor_bytes, "floor_flops": probe.floor_flops}
        key = {"key": probe.key(round_)}
        if probe.floor_bytes > too_large.get(probe.op, math.inf):
            row |= key | {"skipped": "larger than a point that ran out of memory"}
        else:
            try:
                row |= key | _gated(measure(probe, device), ceilings.floor_s(probe))
            except Exception as error:  # kernels come from many libraries: no probe may cost the others
                row["skipped"] = why_skipped(error)
                end_on_a_failed_card(error, row | key, session)
                if out_of_memory(error):
                    row |= key
                    too_large[probe.op] = probe.floor_bytes
                else:
                    failures[_kind(probe)] += 1
        session.append(row)
        if "key" in row:
            session.done.add(probe.key(round_))
        release(device)
    report("", len(todo), len(todo))
    return len(todo)


def _gated(measured: dict[str, Any], floor_s: float) -> dict[str, Any]:
    """What was measured, or why it is no measurement: sooner done than its bytes and FLOPs allow."""
    time_s = measured["time_s"]
    if time_s >= PLAUSIBLE * floor_s:
        return measured
    why = f"{1e6 * time_s:.3g} us, where its bytes and FLOPs take {1e6 * floor_s:.3g}: not a measurement"
    return {"skipped": why}


def _kind(probe: Probe) -> str:
    """What shares a kernel: where one probe of it fails, others are likely to."""
    return " ".join([probe.op, *(str(probe.point.get(name)) for name in ("mode", "dtype", "kv_dtype"))])


def end_on_a_failed_card(error: Exception, row: dict[str, Any], session: MeasurementSession) -> None:
    """Write the row and raise if the card failed: it answers nothing else until the process ends.

    The row's key keeps the next run from what brought the card down.
    """
    if "CUDA error" in str(error) and not out_of_memory(error):
        session.append(row)
        raise KvplanError(
            f"the card fails: {one_line(error)}; what was measured is in {session.path}, run it again to go on"
        ) from error


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is no room; a CPU's allocator, cuBLAS and graphs have no error of their own."""
    said = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in said
    )


def why_skipped(error: Exception) -> str:
    """What a row says of a probe that failed."""
    return OUT_OF_MEMORY if out_of_memory(error) else one_line(error)


def one_line(error: Exception) -> str:
    """An error's kind and first line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:160]}" if said else type(error).__name__
