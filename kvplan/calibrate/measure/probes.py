"""Measuring a card: probes in, raw JSONL rows out. Honest timing, nothing already measured is ever lost.

A probe says what it runs, where (its point) and the least it can cost (bytes and FLOPs); `run` times every
probe that the file does not hold yet and appends a row. Knows torch and NVML, not models, fits or profiles.
`measure_*.py` beside this file hold the probes themselves. The row format is `calibration/README.md`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch

from kvplan.calibrate.measurements import SCHEMA_VERSION
from kvplan.calibrate.session import Point, Report, Session, no_report
from kvplan.errors import KvplanError

MIN_REPEATS = 5
"""Fewest timed repetitions behind a median."""
SPREAD_BOUND = {"cuda": 0.10, "cpu": 0.30}
"""Interquartile range over median beyond which a point is measured again, then marked `noisy`."""
SHORTEST_S = 1e-3
"""On a CPU, calls are repeated within one reading until it lasts this long: its clock is coarse and shared."""
OUT_OF_MEMORY = "out of memory"
MOST_FAILURES = 5
"""Probes of one kind that may fail before the rest of them is not tried."""
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

    def key(self, round_: int) -> str:
        """Identity within a file: the same probe is not measured twice in one round."""
        return json.dumps([self.op, self.point, round_], sort_keys=True)


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
    session: Session,
    device: torch.device,
    rounds: int = 1,
    report: Report = no_report,
) -> int:
    """Measure every probe not in the file yet, `rounds` times on different minutes; return how many rows came.

    A probe that runs out of memory is noted as skipped, and so are larger ones of its op: the grid shrinks. One
    that fails otherwise is noted too, and tried again by the next run; after `MOST_FAILURES` of its kind the rest is
    left out.

    Raises:
        KvplanError: the card itself failed.
    """
    todo = [(p, r) for r in range(rounds) for p in probes if p.key(r) not in session.done]
    too_large: dict[str, float] = {}
    failures: Counter[str] = Counter()
    for number, (probe, round_) in enumerate(todo):
        report(probe.op, number, len(todo))
        if failures[_kind(probe)] >= MOST_FAILURES:
            continue
        row = {"op": probe.op, "machine": session.machine["machine"], "round": round_, **probe.point}
        if probe.floor_bytes > too_large.get(probe.op, math.inf):
            row |= {"skipped": "larger than a point that ran out of memory"}
        else:
            try:
                row |= measure(probe, device)
            except Exception as error:  # kernels come from many libraries: no probe may cost the others
                if not out_of_memory(error):
                    failures[_kind(probe)] += 1
                    row |= {"skipped": one_line(error)}
                    end_on_a_failed_card(error, row | {"key": probe.key(round_)}, session)
                    session.append(row)
                    release(device)
                    continue
                row |= {"skipped": OUT_OF_MEMORY}
                too_large[probe.op] = probe.floor_bytes
        row |= {"floor_bytes": probe.floor_bytes, "floor_flops": probe.floor_flops, "key": probe.key(round_)}
        session.append(row)
        session.done.add(probe.key(round_))
        release(device)
    report("", len(todo), len(todo))
    return len(todo)


def _kind(probe: Probe) -> str:
    """What shares a kernel: where one probe of it fails, others are likely to."""
    return " ".join([probe.op, *(str(probe.point.get(name)) for name in ("mode", "dtype", "kv_dtype"))])


def end_on_a_failed_card(error: Exception, row: dict[str, Any], session: Session) -> None:
    """Write the row and raise if the card failed: it answers nothing else until the process ends.

    The row's key keeps the next run from what brought the card down.
    """
    if "CUDA error" in str(error):
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


def one_line(error: Exception) -> str:
    """An error's kind and first line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:160]}" if said else type(error).__name__


def release(device: torch.device) -> None:
    """Give cached memory back, so that a probe starts from the same state as the first one did."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def machine_facts(device: torch.device) -> dict[str, Any]:
    """The first row of a file: what was measured on, with which software."""
    facts: dict[str, Any] = {
        "op": "machine",
        "schema_version": SCHEMA_VERSION,
        "engine": "torch",
        "engine_version": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type != "cuda":
        name = f"cpu-{platform.machine()}-{torch.get_num_threads()}t"
        return facts | {"machine": name, "gpu": "cpu", "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "machine": properties.name,
        "gpu": properties.name,
        "cuda": torch.version.cuda,
        "driver": _nvml(lambda nvml, handle: nvml.nvmlSystemGetDriverVersion(), ""),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "num_sms": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", 0),
        "total_bytes": properties.total_memory,
    }


def clocks(device: torch.device) -> dict[str, Any]:
    """SM and memory clock and power just after a probe; empty without NVML."""
    if device.type != "cuda":
        return {}

    def read(nvml: Any, handle: Any) -> dict[str, Any]:
        return {
            "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "power_w": round(nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
        }

    return dict(_nvml(read, {}))


def used_bytes(device: torch.device) -> int | None:
    """Memory the card has given away, by NVML (context and libraries included); None without NVML."""
    found = _nvml(lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).used, -1)
    return None if found < 0 or device.type != "cuda" else int(found)


def strangers(device_name: str) -> list[int]:
    """Process ids of other programs computing on this card; a measurement beside them is not one.

    Ask before this process touches the card: in a container NVML may know it by another id.
    """
    if device_name != "cuda":
        return []

    def read(nvml: Any, handle: Any) -> list[int]:
        return [p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid != os.getpid()]

    return list(_nvml(read, []))


def _nvml(read: Callable[[Any, Any], Any], otherwise: Any) -> Any:
    """Ask NVML about the first visible card; `otherwise` where library or driver are not there or do not say."""
    try:
        import pynvml

        pynvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if first.startswith(("GPU-", "MIG-")):
            return read(pynvml, pynvml.nvmlDeviceGetHandleByUUID(first))
        return read(pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0))
    except ImportError:
        return otherwise
    except pynvml.NVMLError:
        return otherwise


def pick_device(name: str) -> torch.device:
    """`cuda` or `cpu`; a card that is not there, or a torch that cannot use it, is one clear line.

    A CPU is measured on one thread: several would wait for each other whenever the machine does anything else.
    """
    if name == "cpu":
        torch.set_num_threads(1)
        return torch.device("cpu")
    if name != "cuda":
        raise KvplanError(f"no device {name!r}; there is cuda, cpu")
    if torch.version.cuda is None:
        raise KvplanError(
            f"this torch ({torch.__version__}) is a CPU build; install a CUDA build, or choose the device cpu"
        )
    with warnings.catch_warnings(
        record=True
    ) as said:  # torch warns of an old driver: that is the reason to give
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    if not found:
        why = str(said[0].message).splitlines()[0] if said else "no card, or a driver older than this CUDA"
        raise KvplanError(f"torch sees no CUDA device ({why[:160]}); try `nvidia-smi`")
    return torch.device("cuda", torch.cuda.current_device())
