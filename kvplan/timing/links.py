"""What joins GPUs, as one number for bytes and one for latency: exchanges that no table timed on that machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvplan.timing.costs import ReduceCosts


@dataclass(frozen=True, slots=True)
class Link:
    """The way between two GPUs of a deployment."""

    name: str
    """pcie4, pcie5, nvlink, ib, or empty: unknown."""
    bytes_per_s: float = 16e9
    """One GPU's, one direction, as collectives reach it."""
    latency_s: float = 10e-6
    """Of one hop: start, copy through the host or switch, synchronise."""
    source: str = "assumed"
    """Where the two numbers come from."""
    comes_first: bool = False
    """Before what a profile's own machine measured: the user stated it, or machines with this card differ much."""

    def __str__(self) -> str:
        kind = f"{self.name} at " if self.name else ""
        return f"{kind}{self.bytes_per_s / 1e9:g} GB/s, {self.latency_s * 1e6:g} us a hop ({self.source})"

    def all_reduce(self, num_ranks: int) -> ReduceCosts:
        """A ring: 2 (n - 1) hops of a 1/n share of the message each."""
        hops = 2 * (num_ranks - 1)
        return ReduceCosts(hops * self.latency_s, self.bytes_per_s * num_ranks / hops)

    def gather(self, num_ranks: int) -> ReduceCosts:
        """All ranks' tokens to all, or summed back: n - 1 hops of a 1/n share of the whole each."""
        hops = num_ranks - 1
        return ReduceCosts(hops * self.latency_s, self.bytes_per_s * num_ranks / hops)

    def stated(self, gb_s: float | None, latency_us: float | None) -> Link:
        """With the user's numbers in place of these."""
        return replace(
            self, comes_first=True, source="stated" if gb_s is not None else f"stated as {self.name}, {self.source}",
            bytes_per_s=self.bytes_per_s if gb_s is None else gb_s * 1e9,
            latency_s=self.latency_s if latency_us is None else latency_us / 1e6,
        )  # fmt: skip


LinkName = Literal["pcie4", "pcie5", "nvlink", "ib"]
LINKS: dict[str, Link] = {
    "pcie4": Link("pcie4", 12e9, 20e-6, "assumed, 8 to 20 GB/s: half of x16 or less without peer-to-peer copies"),
    "pcie5": Link("pcie5", 16e9, 20e-6, "assumed, 12 to 40 GB/s: through the host, as two RTX PRO 6000"),
    "nvlink": Link("nvlink", 300e9, 3e-6, "assumed, 200 to 700 GB/s by generation"),
    "ib": Link("ib", 40e9, 15e-6, "assumed, 400 Gb/s a GPU: 20 to 45 GB/s"),
}  # fmt: skip
"""Defaults by kind, where neither a table nor the user says."""
