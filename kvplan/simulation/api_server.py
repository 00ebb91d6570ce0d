"""An engine's API server processes as a queue: requests on their way in, tokens on their way to clients. In ticks.

vLLM's code (0.32) says how it runs, and that it never holds an engine's steps back:
* `v1/engine/core.py` puts a step's outputs into an unbounded queue, from which a thread sends them over a socket
  without a high-water mark (`utils/network_utils.py`): the engine waits for nobody. A slow server delays clients, and
  so what they send next.
* `v1/engine/async_llm.py` has one task per process that takes all outputs that have come and turns them into text; a
  stream that has not sent its last tokens yet sends the new ones with them, in one piece (`RequestOutputCollector`). So
  requests and text may pile up without end, but what is to be sent never lags by more than one round over all streams.
* A connection is accepted by the process that has the fewest (`entrypoints/launchers/launcher.py`): streams are even.

Work is done in order of arrival: a request's, and a step's outputs. Inside a run of decode steps the backlog has a
closed form, exact in whole ticks, so that leaping and stepping agree. Processes share the work evenly; a request's own
is done by one. Of a step's pieces all are taken to leave as the middle one does. With several workers a process makes
as many prompts tokens at a time (`renderers/base.py`, each with a tokenizer of its own): one takes as long as ever, the
queue behind it gets shorter. At the slow end they are taken to wait for one interpreter's lock, and gain nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kvplan.simulation.in_flight import series, steps_to_cover

LEAST_SHARE = 32
"""Sending gets at least one part in so many of a process, however much text there is to make."""


class ApiServerTimes(NamedTuple):
    """What API servers take for one engine, ticks; queued work is that of all processes, divided by their number."""

    request: int = 0
    """CPU time of a request, prompt aside."""
    prompt_token: int = 0
    """More of it per prompt token."""
    output: int = 0
    """A sequence's new tokens taken from the engine and made text, of the queue."""
    send: int = 0
    """A piece of a stream sent, of the queue."""
    latency: int = 0
    """Hops that nobody queues for, per request."""
    share: float = 1.0
    """Engines per process: by how much a request's work occupies this engine's queue."""
    workers: int = 1
    """Threads of a process that make prompts tokens beside each other (--renderer-num-workers)."""

    @property
    def takes_time(self) -> bool:
        """Whether there is anything to simulate."""
        return any(self[:-2])

    def is_late(self, num_streams: int, step: int) -> bool:
        """Whether a round of sending takes longer than a step, so that tokens leave several at once."""
        return num_streams * (self.output + self.send) > step

    def round(self, num_streams: int, step: int) -> int:
        """Time between two pieces of a stream: a step, or a round of sending where that takes longer.

        >>> ApiServerTimes(output=1, send=3).round(10, 100), ApiServerTimes(output=1, send=3).round(10, 20)
        (100, 60)
        """
        return max(step, num_streams * self.send * step // self._left(num_streams, step))

    def sent_after(self, behind: int, num_streams: int, step: int) -> int:
        """Ticks from the end of a step to its middle piece's way out, `behind` ticks of other work before it.

        Later steps' text comes before what is not sent by then, but not before the text that waits already, and
        sending keeps its least share: what is behind is waited for once, however much comes after it.

        >>> times = ApiServerTimes(output=8, send=2)
        >>> times.sent_after(40, 9, 100), times.sent_after(10_000, 100, 100)
        (50, 13232)
        """
        sending = self.send * (num_streams + 1) // 2
        work = behind + sending
        if work <= step:
            return work
        after_later_text = step + (work - step) * step // self._left(num_streams, step)
        return min(after_later_text, behind + sending * LEAST_SHARE)

    def _left(self, num_streams: int, step: int) -> int:
        """Of a step's time, what making text leaves for sending."""
        return max(step - num_streams * self.output, step // LEAST_SHARE, 1)


NO_API_SERVER = ApiServerTimes()
"""Takes no time."""


def backlog(behind: int, work: int, ticks: int, slope: int, count: int) -> int:
    """Ticks of work that wait after `count` steps, `behind` at their start (Lindley's recursion in closed form).

    The k-th step takes ticks + k * slope and brings `work` at its end; between two ends the backlog shrinks by what
    passes. As steps never get shorter, it goes back to the first step without a break, or was empty before the last.

    >>> backlog(0, 5, 3, 1, 4), backlog(20, 5, 8, 0, 3)
    (5, 11)
    """
    grown = max(behind, ticks) + count * work - series(ticks, slope, count)
    return max(grown, work)


class _Span(NamedTuple):
    """Steps of a kind, as they went by."""

    start: int
    behind: int
    gap: int
    """From the start to the first step's end; less than `ticks` where a request came in between."""
    num_outputs: int
    ticks: int
    slope: int
    num_steps: int


@dataclass(slots=True)
class ApiServers:
    """The queue before and after one engine."""

    times: ApiServerTimes
    behind: int = 0
    """Ticks of work not done yet, at `at`."""
    at: int = 0
    asked: int = 0
    """Work that came so far, ticks of each process, were every piece sent apart."""
    _spans: list[_Span] = field(default_factory=list)

    def receive(self, num_prompt_tokens: int, now: int) -> int:
        """Take in a request; return the ticks until the engine gets it."""
        request, prompt = self.times.request, self.times.prompt_token * num_prompt_tokens
        load = round((request + prompt / self.times.workers) * self.times.share)
        waits = max(0, self.behind - (now - self.at))
        self.behind, self.at = waits + load, now
        self.asked += load
        return waits + request + prompt + self.times.latency

    def give(self, num_outputs: int, ticks: int, slope: int, count: int, end: int) -> None:
        """`count` steps went by, each with so many sequences' outputs; the last one ends at `end`."""
        start = end - (ticks if count == 1 else series(ticks, slope, count))
        if self.at > start:  # a request came during the first of them
            first = end - series(ticks + slope, slope, count - 1)
            self._pass(_Span(self.at, self.behind, first - self.at, num_outputs, ticks, slope, 1), first)
            ticks, count, start = ticks + slope, count - 1, first
        else:
            self.behind = max(0, self.behind - (start - self.at))
        if count:
            self._pass(_Span(start, self.behind, ticks, num_outputs, ticks, slope, count), end)

    def _pass(self, span: _Span, end: int) -> None:
        self._spans.append(span)
        self.behind, self.at = self._behind(span, span.num_steps), end
        self.asked += span.num_steps * span.num_outputs * (self.times.output + self.times.send)

    def _behind(self, span: _Span, steps: int) -> int:
        return backlog(span.behind, self.times.output * span.num_outputs, span.gap, span.slope, steps)

    def delay_at(self, now: int) -> int:
        """Ticks from a step's end, just passed, to a client's seeing its tokens."""
        for span in reversed(self._spans):
            if span.start < now:
                break
        else:
            return 0
        if now >= self.at:  # the last of what went by: its backlog is known
            steps, behind = span.num_steps, max(0, self.behind - (now - self.at))
        else:
            steps = 1 if span.num_steps == 1 else steps_to_cover(span.ticks, span.slope, now - span.start)
            behind = self._behind(span, steps)
        step = span.ticks + span.slope * (steps - 1)
        return self.times.sent_after(behind, span.num_outputs, step)

    def forget(self) -> None:
        """Nobody asks for steps before the last ones any more."""
        del self._spans[:-1]
