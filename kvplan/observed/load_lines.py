"""What a serving engine says of its load: lines that it logs every few seconds, of which the fullest and last count."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_LINES = (
    re.compile(
        r"Running: (?P<running>\d+) reqs?,.{0,40}?(?:Waiting|Pending): (?P<waiting>\d+) reqs?,"
        r".{0,60}?KV cache usage: (?P<usage>[\d.]+)%"
    ),
    re.compile(
        r"#running-req: (?P<running>\d+),.{0,80}?token usage: (?P<share>[\d.]+)"
        r"(?:.{0,200}?#queue-req: (?P<waiting>\d+))?"
    ),
)
"""vLLM's (V0 says Pending), SGLang's."""


class EngineLoad(NamedTuple):
    """An engine under load at its fullest."""

    running: float
    """Sequences in the batch."""
    waiting: float
    """Requests in the queue."""
    usage: float
    """Share of the KV pool in use, 0 to 1."""
    preempted: float
    """Requests thrown out of the batch for want of blocks, as far as is told."""
    most_running: float
    """Largest batch seen."""
    where: str
    """What it was read off."""


def read_load(lines: Iterable[str]) -> EngineLoad | None:
    """The fullest moment of a log: of those with a queue, where there are any. None where it has no such line.

    Args:
        lines: cleaned of colours (`clean_lines`).
    """
    fullest: tuple[bool, float, float, float, int] | None = None
    most = 0.0
    for number, line in enumerate(lines, 1):
        if "unning" not in line:
            continue
        match = next((m for pattern in _LINES if (m := pattern.search(line))), None)
        if match is None:
            continue
        told = match.groupdict()
        usage = float(told["usage"]) / 100 if told.get("usage") else float(told.get("share") or 0)
        running, waiting = float(told["running"]), float(told["waiting"] or 0)
        most = max(most, running)
        moment = (waiting > 0, usage, waiting, running, number)
        fullest = moment if fullest is None else max(fullest, moment)
    if fullest is None:
        return None
    _, usage, waiting, running, number = fullest
    return EngineLoad(running, waiting, usage, 0.0, most, f"line {number}")
