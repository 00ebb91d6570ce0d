"""The card as CUDA and NVML tell of it: which one, whose, how hot, how full. Knows no probe."""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from kvplan.calibrate.measurements import SCHEMA_VERSION
from kvplan.ground.errors import KvplanError


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


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be allocated on the card; no bound on a CPU."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else math.inf


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
