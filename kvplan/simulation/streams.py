"""Streams that send tokens in groups: vLLM's `stream_interval`, from the end of each read to what clients count.

vLLM 0.32 `v1/engine/output_processor.py: make_request_output`: a read's tokens are kept back until so many have come
since the last piece; the first token and the last ones are sent at once. So the first token, the end, and the time per
token stay; clients see fewer, longer intervals, and a first visible token with its group.

Without drafts reads are closed form and give a token each; with drafts the tokens after each read are a table.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from kvplan.schedulers.protocol import Counts
from kvplan.simulation.in_flight import Stretch
from kvplan.simulation.metrics import PieceMeter
from kvplan.simulation.records import UNSET
from kvplan.simulation.sim_request import SimRequest


class ReadLog:
    """When reads ended that gave tokens, by number from 1 on: series of steps."""

    def __init__(self) -> None:
        self._rows = array("q")
        """Four numbers a stretch: reads before it, its start, ticks of its first step, by how much each is longer."""

    def add(self, num_before: int, stretches: Iterable[Stretch]) -> None:
        """Note reads behind the first so many."""
        for first, last, steps, start, _ in stretches:
            slope = (last - first) // (steps - 1) if steps > 1 else 0
            self._rows.extend((num_before, start, first, slope))
            num_before += steps

    def times(self, reads: Counts) -> Counts:
        """When these reads ended.

        >>> log = ReadLog()
        >>> log.add(0, [Stretch(10, 14, 3, 100, 136), Stretch(5, 5, 1, 140, 145)])
        >>> log.times(np.array([1, 3, 4])).tolist()
        [110, 136, 145]
        """
        before, start, ticks, slope = np.frombuffer(self._rows, np.int64).reshape(-1, 4).T
        row = np.searchsorted(before, reads) - 1
        nth = reads - before[row]
        found: Counts = start[row] + ticks[row] * nth + slope[row] * (nth * (nth - 1) // 2)
        return found


@dataclass(slots=True)
class SentStream:
    """What of a request has been sent."""

    num_sent: int
    """Tokens."""
    sent_at: int
    """When the last piece was."""
    visible_at: int = UNSET
    """When the piece with the first visible token was, behind a thinking."""


@dataclass(slots=True)
class Pieces:
    """The streams of one replica."""

    interval: int
    """Tokens from one piece to the next."""
    meter: PieceMeter
    reads: ReadLog = field(default_factory=ReadLog)
    _streams: dict[SimRequest, SentStream] = field(default_factory=dict)

    def begin(self, request: SimRequest, num_output: int, now: int) -> None:
        """A prefill has given a token: the first one is sent; after a preemption it may fill a group."""
        stream = self._streams.get(request)
        if stream is None:
            self._streams[request] = SentStream(num_output, now)
        elif num_output >= stream.num_sent + self.interval:
            self._send(request, stream, np.array([num_output]), np.array([now]))

    def give(self, request: SimRequest, num_output: int, first: int, last: int) -> None:
        """Reads from `first` to `last` gave a request a token each, behind the `num_output` that it had."""
        stream = self._streams[request]
        sent = np.arange(stream.num_sent + self.interval, num_output + last - first + 2, self.interval)
        if len(sent):
            self._send(request, stream, sent, self.reads.times(first - 1 + sent - num_output))

    def walk(self, request: SimRequest, num_output: Counts, times: Counts) -> None:
        """A request had so many tokens after reads at these times."""
        stream, at = self._streams[request], 0
        sent: list[int] = []
        count = stream.num_sent
        while (at := int(num_output.searchsorted(count + self.interval))) < len(num_output):
            count = int(num_output[at])
            sent.append(at)
        if sent:
            self._send(request, stream, num_output[sent], times[sent])

    def end(self, request: SimRequest, num_output: int, now: int, is_whole: bool) -> None:
        """A request is over: what is left of a whole answer is sent; note when something visible was."""
        stream = self._streams.pop(request, None)
        if stream is None or not is_whole:
            return
        if num_output > stream.num_sent:
            self._send(request, stream, np.array([num_output]), np.array([now]))
        if stream.visible_at != UNSET and request.first_visible != UNSET:
            request.visible_delay += stream.visible_at - request.first_visible

    def _send(self, request: SimRequest, stream: SentStream, counts: Counts, times: Counts) -> None:
        """Pieces are sent, up to so many tokens each."""
        hidden = request.thinking_tokens
        if stream.num_sent <= hidden < counts[-1]:
            stream.visible_at = int(times[counts.searchsorted(hidden + 1)])
        self.meter.add_pieces(np.diff(times, prepend=stream.sent_at))
        stream.num_sent, stream.sent_at = int(counts[-1]), int(times[-1])
