"""What a machine's links to host memory and files were measured to do: a section of a profile."""

from __future__ import annotations

from pydantic import Field

from kvplan.ground.config import Config


class MeasuredLink(Config):
    """One direction."""

    gb_s: float = Field(gt=0, le=1e5)
    """10^9 bytes a second."""
    low: float = Field(gt=0, le=1e5)
    """At the slow end of what was seen."""
    high: float = Field(gt=0, le=1e5)
    latency_us: float = Field(ge=0, le=1e9)
    """Of one job of a link, of one file of a drive."""
    source: str = Field(max_length=500)
    """What was measured."""


class MeasuredLinks(Config):
    """Of one machine; None where it was not measured."""

    load: MeasuredLink | None = None
    """From host memory to the card."""
    store: MeasuredLink | None = None
    """From the card to host memory."""
    file_read: MeasuredLink | None = None
    """From files, all threads together."""
    file_write: MeasuredLink | None = None
    """To files, all threads together."""
