"""What tokens are where nobody keeps tokens: runs of named streams. Workload writes them, schedulers compare them.

A token is `(name, index)`: the index-th token of a named stream. A prompt is a tuple of `Segment`s of such streams, and
what a request generates is the stream `output_of(request_id)`, so a follow-up prompt can name an answer before it
exists. Two runs hold the same tokens exactly when their segments, after merging, are equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Segment(NamedTuple):
    """Tokens `start .. start + length - 1` of the stream `name`."""

    name: str
    length: int
    start: int = 0

    @property
    def end(self) -> int:
        """The index after the segment's last token."""
        return self.start + self.length


Content = tuple[Segment, ...]
"""A run of tokens, segment by segment."""


def output_of(request_id: str | int) -> str:
    """Name the stream of tokens that a request generates."""
    return f"out:{request_id}"


def prompt_of(request_id: str | int) -> str:
    """Name the stream of prompt tokens that a request shares with nobody."""
    return f"p{request_id}"


def length_of(content: Iterable[Segment]) -> int:
    """Count tokens."""
    return sum([segment.length for segment in content])


def merge_segments(segments: Iterable[Segment]) -> Content:
    """Join neighbours that continue each other, drop empty ones: one spelling for one content.

    >>> merge_segments([Segment("a", 4), Segment("a", 2, start=4), Segment("b", 0)])
    (Segment(name='a', length=6, start=0),)
    """
    merged: list[Segment] = []
    for segment in segments:
        if not segment.length:
            continue
        if merged and merged[-1].name == segment.name and merged[-1].end == segment.start:
            merged[-1] = merged[-1]._replace(length=merged[-1].length + segment.length)
        else:
            merged.append(segment)
    return tuple(merged)
