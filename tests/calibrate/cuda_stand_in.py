"""A stand-in for a card: torch.cuda's counters, events, graphs and NVML over tensors that lie in this machine's memory.

Only what cannot be without a GPU is played: devices named cuda become the CPU, events say a modelled time, graphs run
their step while they are captured and nothing when replayed, counters count the tensors alive. The code under test is
the code that a card runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
CONTEXT_BYTES = 500 << 20
GRAPH_BYTES = 1 << 19


class _OnTheCpu(TorchFunctionMode):
    """Tensors asked for on `cuda` are made on the CPU, and say of themselves that they are on a card."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if func is torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA
        if func is torch.empty and isinstance(args[0], int) and args[0] > 0.97 * self.card.free_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        kwargs = {k: v for k, v in (kwargs or {}).items() if k != "pin_memory"}
        kwargs = {k: CPU if k == "device" and v is not None else v for k, v in (kwargs or {}).items()}
        args = tuple(CPU if isinstance(a, torch.device) else a for a in args)
        made = func(*args, **kwargs)
        for one in made if isinstance(made, tuple | list) else (made,):
            if type(one) is torch.Tensor:
                self.card.tensors[id(one)] = one
        return made


class Card:
    """What the stand-in plays; tests change it."""

    event_s = 1e-3
    """Seconds between two events."""
    strangers: tuple[int, ...] = ()
    name = "NVIDIA H100 80GB HBM3"
    capability = (9, 0)
    num_sms = 132
    total_bytes = 80 << 30
    free_bytes = 1 << 26
    power_w = 512
    graphs = 0
    graphs_alive = 0

    def __init__(self) -> None:
        self.tensors: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()

    def allocated(self) -> int:
        """Bytes of the tensors alive."""
        with torch._C.DisableTorchFunction():
            storages = [x.untyped_storage() for x in self.tensors.values()]
            return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


class _Event:
    card: Card

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        pass

    def elapsed_time(self, end: Any) -> float:
        return 1e3 * self.card.event_s


class _Stream:
    def wait_stream(self, other: Any) -> None:
        pass


@contextmanager
def _entered(*args: Any) -> Iterator[None]:
    yield


def nvml(card: Card) -> ModuleType:
    """pynvml as far as it is asked."""
    module = ModuleType("pynvml")
    answers: dict[str, Any] = {
        "NVMLError": type("NVMLError", (Exception,), {}),
        "NVML_CLOCK_SM": 1,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": lambda name: name,
        "nvmlSystemGetDriverVersion": lambda: "580.65",
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1980,
        "nvmlDeviceGetPowerUsage": lambda handle: 1000 * card.power_w,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
            used=CONTEXT_BYTES + card.allocated() + card.graphs_alive * GRAPH_BYTES
        ),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
            SimpleNamespace(pid=pid) for pid in (os.getpid(), *card.strangers)
        ],
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    return module


@contextmanager
def stand_in() -> Iterator[Card]:
    """Play a Hopper card for the duration; `torch.device("cuda")` works as far as kvplan uses it."""
    card = Card()
    kind = type("Event", (_Event,), {"card": card})

    class Graph:
        def __init__(self) -> None:
            card.graphs += 1
            card.graphs_alive += 1

        def __del__(self) -> None:
            card.graphs_alive -= 1

        def replay(self) -> None:
            pass

    def properties(device: Any = None) -> SimpleNamespace:
        major, minor = card.capability
        return SimpleNamespace(
            name=card.name, major=major, minor=minor, multi_processor_count=card.num_sms, L2_cache_size=50 << 20,
            total_memory=card.total_bytes,
        )  # fmt: skip

    played: dict[str, Callable[..., Any] | Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: card.capability,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (card.free_bytes, card.total_bytes),
        "memory_allocated": lambda device=None: card.allocated(),
        "memory_reserved": lambda device=None: card.allocated(),
        "max_memory_allocated": lambda device=None: card.allocated(),
        "reset_peak_memory_stats": lambda device=None: None,
        "current_stream": _Stream,
        "Stream": _Stream,
        "stream": _entered,
        "graph": _entered,
        "CUDAGraph": Graph,
        "Event": kind,
    }
    generator = torch.Generator
    with pytest.MonkeyPatch.context() as patch, _OnTheCpu(card):
        for name, answer in played.items():
            patch.setattr(torch.cuda, name, answer)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(
            torch, "Generator", type("Generator", (), {"__new__": lambda cls, device=None: generator()})
        )
        patch.setitem(sys.modules, "pynvml", nvml(card))
        yield card
