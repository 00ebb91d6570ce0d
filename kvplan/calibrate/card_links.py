"""The links of a profile, from a file's link rows: host memory and files, as far as the rows tell."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from kvplan.calibrate.measurements import Measurements, Row
from kvplan.profiles.measured_links import MeasuredLink, MeasuredLinks


def learn_links(found: Measurements) -> MeasuredLinks | None:
    """Rates and latencies of the measured machine; None where no row tells one.

    Copies count on a card alone, between it and pinned memory; files that went through the page cache tell nothing of
    a drive.
    """
    machine = found.machine.get("machine", "a machine")
    link_rows = [
        r for r in found.links if r["op"] == "host_link" and r.get("pinned") and r.get("num_copies") == 1
    ]
    links = MeasuredLinks(
        load=_link([r for r in link_rows if r["direction"] == "to_device"], machine),
        store=_link([r for r in link_rows if r["direction"] == "to_host"], machine),
        file_read=_drive([r for r in found.links if r["op"] == "file_read" and r.get("direct")], machine),
        file_write=_drive([r for r in found.links if r["op"] == "file_write" and r.get("direct")], machine),
    )
    return links if any((links.load, links.store, links.file_read, links.file_write)) else None


def _link(rows: Sequence[Row], machine: str) -> MeasuredLink | None:
    """The rate of the largest copies; what the smallest takes beyond its bytes is what a copy costs to begin with."""
    if not rows:
        return None
    largest, smallest = (pick(row["num_bytes"] for row in rows) for pick in (max, min))
    rates = [row["num_bytes"] / row["time_s"] for row in rows if row["num_bytes"] == largest]
    rate = median(rates)
    first = [row["time_s"] - smallest / rate for row in rows if row["num_bytes"] == smallest]
    return _found(rates, median(first) if largest > smallest else 0.0, f"pinned copies on {machine}")


def _drive(rows: Sequence[Row], machine: str) -> MeasuredLink | None:
    """The best rate of all threads together; what one thread takes for a small file beyond its bytes."""
    if not rows:
        return None
    most = max(row["num_threads"] for row in rows)
    largest, smallest = (pick(row["file_bytes"] for row in rows) for pick in (max, min))
    rates = [r["file_bytes"] * r["num_files"] / r["time_s"] for r in rows if r["num_threads"] == most]
    alone = [r for r in rows if r["num_threads"] == 1]
    own = [r["file_bytes"] * r["num_files"] / r["time_s"] for r in alone if r["file_bytes"] == largest]
    rate = max([*rates, *own])
    first = [r["time_s"] / r["num_files"] - smallest / rate for r in alone if r["file_bytes"] == smallest]
    return _found([rate], median(first) if first else 0.0, f"files past the page cache on {machine}")


def _found(rates: Sequence[float], latency_s: float, source: str) -> MeasuredLink:
    return MeasuredLink(
        gb_s=median(rates) / 1e9,
        low=min(rates) / 1e9,
        high=max(rates) / 1e9,
        latency_us=max(0.0, latency_s * 1e6),
        source=f"measured: {source}",
    )
