"""What joins a GPU with the memory beyond it, PCIe or NVLink-C2C, and drives below that. `catalog/host_links.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import yaml

from kvplan.ground.files import catalog_dir
from kvplan.ground.gpu import GpuSpec
from kvplan.profiles.measured_links import MeasuredLink, MeasuredLinks

HostLinkName = Literal["pcie3", "pcie4", "pcie5", "c2c"]
DriveName = Literal["nvme4", "nvme5", "cephfs"]
DRIVES: dict[str | None, DriveName | None] = {None: None, "LOCAL": None, "REMOTE": "cephfs"}
"""A tier's `locality` in vLLM's words -> the drive taken for it where none is stated; None: as measured, or nvme4."""


@dataclass(frozen=True, slots=True)
class HostLink:
    """One direction of one GPU's way to the tier beyond it; the other direction is independent."""

    name: str
    bytes_per_s: float
    low: float
    """Bytes a second at the slow end of the range."""
    high: float
    latency_s: float
    """From the submission of a job to its first byte."""
    source: str
    store_bytes_per_s: float = 0.0
    """Of the other direction, to host memory, where it was measured apart; 0: the same."""

    def __str__(self) -> str:
        return f"{self.name} at {self.bytes_per_s / 1e9:g} GB/s ({self.source})"

    def seconds(self, num_bytes: float, is_store: bool = False) -> float:
        """Return how long a copy of so many bytes takes, alone on the link."""
        rate = self.store_bytes_per_s if is_store and self.store_bytes_per_s else self.bytes_per_s
        return self.latency_s + num_bytes / rate


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((catalog_dir() / "host_links.yaml").read_text())
    return found


def find_host_link(
    gpu: GpuSpec,
    kind: HostLinkName | None = None,
    gb_s: float | None = None,
    measured: MeasuredLinks | None = None,
) -> HostLink:
    """Return the link of a kind, or the card's own; `gb_s` in place of its rate.

    What is stated comes before what was `measured`, and that before the catalog.
    """
    if kind is None and gb_s is None and measured is not None and measured.load is not None:
        load, store = measured.load, measured.store
        low, value, high = (rate * 1e9 for rate in (load.low, load.gb_s, load.high))
        back = store.gb_s * 1e9 if store is not None else 0.0
        return HostLink("measured", value, low, high, load.latency_us / 1e6, load.source, back)
    table = _table()
    name = kind or _own_link(gpu, table["c2c_cards"])
    row = table["links"][name]
    low, high = row["range"]
    link = HostLink(name, row["gb_s"] * 1e9, low * 1e9, high * 1e9, row["latency_us"] / 1e6, row["source"])
    if gb_s is None:
        return link
    rate = gb_s * 1e9
    return replace(link, bytes_per_s=rate, low=rate, high=rate, source="stated")


def _own_link(gpu: GpuSpec, c2c_cards: list[str]) -> str:
    if gpu.name in c2c_cards:
        return "c2c"
    return "pcie5" if gpu.pcie_gb_s > 32 else "pcie4" if gpu.pcie_gb_s > 16 else "pcie3"


@dataclass(frozen=True, slots=True)
class Drive:
    """Where an engine's files lie."""

    name: str
    read_bytes_per_s: float
    """Of all threads together."""
    read_low: float
    read_high: float
    write_bytes_per_s: float
    write_low: float
    write_high: float
    latency_s: float
    """Of one file, on its thread."""
    source: str

    def __str__(self) -> str:
        read, write = (f"{rate / 1e9:g}" for rate in (self.read_bytes_per_s, self.write_bytes_per_s))
        return f"{self.name}, reads {read} and writes {write} GB/s ({self.source})"

    def read_seconds(self, num_files: int, file_bytes: int, rate: float | None = None) -> float:
        """Return how long one thread reads so many files, alone on the drive: a job of vLLM's is one thread's."""
        return num_files * (self.latency_s + file_bytes / (rate or self.read_bytes_per_s))


def find_drive(
    name: DriveName | None = None,
    read_gb_s: float | None = None,
    write_gb_s: float | None = None,
    measured: MeasuredLinks | None = None,
) -> Drive:
    """Return a drive of a kind; stated rates in place of its own. Without a kind `measured` comes before nvme4."""
    if name is None and measured is not None and measured.file_read and measured.file_write:
        return _measured_drive(measured.file_read, measured.file_write, read_gb_s, write_gb_s)
    name = name or "nvme4"
    row = _table()["drives"][name]
    rates: dict[str, float] = {}
    for way, stated in (("read", read_gb_s), ("write", write_gb_s)):
        value, (low, high) = row[f"{way}_gb_s"], row[f"{way}_range"]
        if stated is not None:
            value = low = high = stated
        rates |= {f"{way}_bytes_per_s": value * 1e9, f"{way}_low": low * 1e9, f"{way}_high": high * 1e9}
    told = [way for way, stated in (("reads", read_gb_s), ("writes", write_gb_s)) if stated is not None]
    source = f"{' and '.join(told)} stated; {row['source']}" if told else row["source"]
    return Drive(name, latency_s=row["latency_us"] / 1e6, source=source, **rates)


def _measured_drive(
    read: MeasuredLink, write: MeasuredLink, read_gb_s: float | None, write_gb_s: float | None
) -> Drive:
    """The drive of a profile; a stated rate has no range."""
    rates: dict[str, float] = {}
    for way, link, stated in (("read", read, read_gb_s), ("write", write, write_gb_s)):
        value, low, high = (
            (stated, stated, stated) if stated is not None else (link.gb_s, link.low, link.high)
        )
        rates |= {f"{way}_bytes_per_s": value * 1e9, f"{way}_low": low * 1e9, f"{way}_high": high * 1e9}
    latency_s = max(read.latency_us, write.latency_us) / 1e6
    return Drive("measured", latency_s=latency_s, source=read.source, **rates)
