"""Flat records -> TTFT, TPOT, ITL, E2E, goodput. Names and definitions are those of `vllm bench serve`.

Percentiles of TTFT, TPOT and E2E are exact over the finished requests. Inter-token latencies are too many to
keep: they are counted in bins 0.25 % wide, a leap's arithmetic series of step times spread over the bins it
crosses, so a percentile is off by less than 0.5 %; the mean is exact.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from math import log
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.formulas.sums import exact_mean, exact_sum
from kvplan.ground.units import TICKS_PER_S
from kvplan.simulation.records import Records
from kvplan.workload.classes import Slo

Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)
TICKS_PER_MS = TICKS_PER_S // 1000


class Summary(NamedTuple):
    """One latency over all requests, milliseconds; NaN when nothing was measured."""

    mean: float
    median: float
    std: float
    p90: float
    p95: float
    p99: float


NOTHING = Summary(*[float("nan")] * 6)


def summarise(values: Floats) -> Summary:
    """Mean and percentiles (linear interpolation, as numpy and vLLM do) of the values that are not NaN."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return NOTHING
    p50, p90, p95, p99 = np.percentile(kept, PERCENTILES)
    middle = exact_mean(kept)
    std = exact_mean((kept - middle) ** 2) ** 0.5
    return Summary(middle, float(p50), std, *map(float, (p90, p95, p99)))


class Latencies(NamedTuple):
    """Per finished request, milliseconds, in the order of the records: a client's, through the API server."""

    ttft: Floats
    """Arrival to first token of any kind."""
    ttfvt: Floats
    """Arrival to first visible token; NaN when the thinking was cut before it."""
    tpot: Floats
    """Time per output token after the first; NaN for a single token (vLLM leaves it out as well)."""
    e2el: Floats
    """Arrival to last token."""


def latencies(records: Records) -> Latencies:
    """Latencies of the requests that got their whole answer."""
    return _latencies(records, "arrival", "first_token", "finish", "first_visible")


def engine_latencies(records: Records) -> Latencies:
    """The same as the engine's own clock has them; none to the first visible token."""
    return _latencies(records, "engine_arrival", "engine_first_token", "engine_finish")


def _latencies(records: Records, arrival: str, first: str, finish: str, visible: str = "") -> Latencies:
    done = records.completed
    start, first_at, end = (records.seconds(name)[done] * 1e3 for name in (arrival, first, finish))
    visible_at = records.seconds(visible)[done] * 1e3 if visible else np.full_like(start, np.nan)
    more = records["output_tokens"][done] - 1
    tpot = np.divide(end - first_at, more, out=np.full_like(end, np.nan), where=more > 0)
    return Latencies(first_at - start, visible_at - start, tpot, end - start)


def meets(found: Latencies, class_id: NDArray[np.int64], slos: list[Slo]) -> NDArray[np.bool_]:
    """Which finished requests meet every target of their class.

    A single token counts as a TPOT of 0, as in vLLM; no visible token is a missed target.
    """
    good = np.ones(len(found.ttft), bool)
    found = found._replace(tpot=np.nan_to_num(found.tpot))
    for name, values in zip(("ttft_ms", "ttfvt_ms", "tpot_ms", "e2el_ms"), found, strict=True):
        limit = np.array([getattr(slo, name) or np.inf for slo in slos])[class_id]
        good &= (values <= limit) | np.isinf(limit)
    return good


BIN_WIDTH = 0.0025
"""Relative width of an ITL bin."""
_LOG_WIDTH = np.log1p(BIN_WIDTH)
_NUM_BINS = 16_384
"""Bins from one tick to 10^17 ticks (a day)."""
_NUM_BUCKETS = 8192
_FLUSH = 5 * 8192


@dataclass(slots=True)
class TokenMeter:
    """Inter-token latencies and the token rate over time, from whole leaps, in bounded memory."""

    total: int = 0
    """Intervals counted."""
    sum_ticks: int = 0
    bucket_ticks: int = TICKS_PER_S
    """Width of a bucket of the rate: a second, doubled when a run outgrows the buckets."""
    _counts: Floats = field(default_factory=lambda: np.zeros(_NUM_BINS))
    _tokens: Floats = field(default_factory=lambda: np.zeros(_NUM_BUCKETS))
    _pending: array[int] = field(default_factory=lambda: array("q"))
    """Five numbers a leap, to be moved into the bins."""
    _merged: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    _shift: Floats | None = None
    """What merged pieces change in the bins as clients see them."""
    _fewer: float = 0.0
    """By how many intervals they see less."""
    _grouped: list[PieceMeter] = field(default_factory=list)
    """Meters of streams that send in groups; what they count is here too."""

    def of_groups(self) -> PieceMeter:
        """A meter for streams that send in groups."""
        self._grouped.append(PieceMeter(whole=self))
        return self._grouped[-1]

    def merge(self, first: int, last: int, weight: int, first_seen: int, last_seen: int) -> None:
        """Of what was added: clients see so many intervals as fewer, longer ones, with several tokens in each piece."""
        self._merged.append((first, last, weight, first_seen, last_seen))

    def add(self, first: int, last: int, num_decodes: int, num_steps: int, start: int, end: int) -> None:
        """Count a leap (or a step): intervals from `first` to `last` ticks between `start` and `end`."""
        self._pending.extend((first, last, num_decodes * num_steps, start, end))
        if len(self._pending) >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Move what was added into the bins."""
        if not self._pending:
            return
        self._flush_merged()
        first, last, weight, start, end = np.array(self._pending, np.int64).reshape(-1, 5).T
        self.total += int(weight.sum())
        self.sum_ticks += sum(map(mul, weight.tolist(), (first + last).tolist())) // 2
        self._counts += _binned(first.astype(float), last.astype(float), weight.astype(float))
        self._spread(start, end, weight.astype(float))
        del self._pending[:]

    def _flush_merged(self) -> None:
        if not self._merged:
            return
        first, last, weight, first_seen, last_seen = np.array(self._merged, np.float64).T
        seen = weight * (first + last) / (first_seen + last_seen)
        shift = _binned(first_seen, last_seen, seen) - _binned(first, last, weight)
        self._shift = shift if self._shift is None else self._shift + shift
        self._fewer += exact_sum(weight) - exact_sum(seen)
        self._merged = []

    def _spread(self, start: NDArray[np.int64], end: NDArray[np.int64], tokens: Floats) -> None:
        """Tokens per bucket of time, each leap spread evenly over its duration."""
        while end.max() >= self.bucket_ticks * _NUM_BUCKETS:
            self._tokens = np.concatenate([self._tokens.reshape(-1, 2).sum(1), np.zeros(_NUM_BUCKETS // 2)])
            self.bucket_ticks *= 2
        t0, t1 = start / self.bucket_ticks, np.maximum(end, start + 1) / self.bucket_ticks
        i0, i1 = np.floor(t0).astype(int), np.floor(t1).astype(int)
        rate = (
            tokens * self.bucket_ticks / np.maximum(end - start, 1)
        )  # in whole ticks: t1 - t0 may round to 0
        head = np.where(i0 == i1, tokens, rate * (i0 + 1 - t0))
        tail = np.where(i0 == i1, 0.0, rate * (t1 - i1))
        whole = np.where(i1 > i0 + 1, rate, 0.0)
        size = _NUM_BUCKETS + 2
        steps = np.bincount(i0 + 1, whole, size) - np.bincount(i1, whole, size)
        found = np.bincount(i0, head, size) + np.bincount(i1, tail, size) + np.cumsum(steps)
        self._tokens += found[:_NUM_BUCKETS]

    def intervals(self) -> Summary:
        """Inter-token latency of the engine: mean exact, percentiles within half a bin, milliseconds."""
        self.flush()
        return self._summary(self._counts, float(self.total))

    def seen_intervals(self) -> Summary:
        """Time between two pieces of a stream, as a client counts; between two tokens unless some left together."""
        self.flush()
        if self._shift is None and not self._grouped:
            return self.intervals()
        counts, total, ticks = self._counts.copy(), self.total - self._fewer, self.sum_ticks
        if self._shift is not None:
            counts += self._shift
        for meter in self._grouped:
            meter.flush()
            counts += meter.pieces - meter._counts
            total += meter.num_pieces - meter.total
            ticks += meter.pieces_ticks - meter.sum_ticks
        return self._summary(np.maximum(counts, 0.0), total, ticks)

    def _summary(self, counts: Floats, total: float, ticks: int | None = None) -> Summary:
        if not total:
            return NOTHING
        middle = np.exp((np.arange(_NUM_BINS) + 0.5) * _LOG_WIDTH) / TICKS_PER_MS
        share = np.cumsum(counts) / counts.sum()
        p50, p90, p95, p99 = middle[np.searchsorted(share, np.array(PERCENTILES) / 100)]
        average = (self.sum_ticks if ticks is None else ticks) / total / TICKS_PER_MS
        # no @ here: BLAS would wake its threads for a few thousand numbers, at a quarter of a short run's CPU time
        variance = exact_sum(counts * (middle - average) ** 2) / float(counts.sum())
        return Summary(average, *map(float, (p50, variance**0.5, p90, p95, p99)))

    def peak_tokens_per_s(self) -> float:
        """Decoded tokens per second in the busiest bucket."""
        self.flush()
        return float(self._tokens.max()) * TICKS_PER_S / self.bucket_ticks


@dataclass(slots=True, kw_only=True)
class PieceMeter(TokenMeter):
    """What streams give that send in groups: their engines' intervals, told to a run's meter too, and the pieces'."""

    whole: TokenMeter
    num_pieces: int = 0
    """Intervals between two pieces."""
    pieces_ticks: int = 0
    """Their sum."""
    pieces: Floats = field(default_factory=lambda: np.zeros(_NUM_BINS))

    def add(self, first: int, last: int, num_decodes: int, num_steps: int, start: int, end: int) -> None:
        """Count a leap or a step of the engine."""
        TokenMeter.add(self, first, last, num_decodes, num_steps, start, end)
        self.whole.add(first, last, num_decodes, num_steps, start, end)

    def merge(self, first: int, last: int, weight: int, first_seen: int, last_seen: int) -> None:
        """Pieces are counted as they are due, not as late as a busy server sends them."""

    def add_pieces(self, ticks: NDArray[np.int64]) -> None:
        """Count intervals between pieces of one stream."""
        self.num_pieces += len(ticks)
        self.pieces_ticks += int(ticks.sum())
        each = ticks.astype(float)
        self.pieces += _binned(each, each, np.ones(len(ticks)))


def _binned(first: Floats, last: Floats, weight: Floats) -> Floats:
    """Counts by bin: every arithmetic series is cut into pieces narrower than a bin."""
    low, high = (
        np.log(np.maximum(np.minimum(first, last), 1)),
        np.log(np.maximum(np.maximum(first, last), 1)),
    )
    pieces = np.minimum(np.ceil((high - low) / _LOG_WIDTH), 2000).astype(np.int64) + 1
    owner = np.repeat(np.arange(len(pieces)), pieces)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    ticks = first[owner] + (last - first)[owner] * (step + 0.5) / pieces[owner]
    bins = np.minimum(np.log(np.maximum(ticks, 1.0)) / _LOG_WIDTH, _NUM_BINS - 1).astype(np.int64)
    return np.bincount(bins, (weight / pieces)[owner], _NUM_BINS).astype(float)


assert log(1e17) / _LOG_WIDTH < _NUM_BINS


class Sample(NamedTuple):
    """What one moment looked like, over all replicas. KV in tokens, each token counted where it is held."""

    time_s: float
    running: int
    waiting: int
    used_blocks: int
    cached_blocks: int
    """Free blocks that still hold reusable content."""
    prompt_tokens: int
    shared_tokens: int
    """Prompt tokens that came from the prefix cache; copies of one block are counted once per holder."""
    thinking_tokens: int
    answer_tokens: int
    preemptions: int = 0
    """So far."""
    tier_chunks: int = 0
    """Slots taken in the tiers beyond the GPUs."""
    loaded_blocks: int = 0
    """GPU blocks loaded from them so far."""
    stored_blocks: int = 0
    """GPU blocks stored there so far."""
    files: int = 0
    """Files held in the tiers below host memory, a chunk each."""
    file_reads: int = 0
    """Jobs that read files, queued or under way."""
    file_writes: int = 0
    """Jobs that write files, queued or under way."""


@dataclass(slots=True)
class Timeline:
    """Samples at even distances, never more than `max_samples`: when full, every other one goes."""

    interval: int
    """Ticks between two samples."""
    max_samples: int = 512
    samples: list[Sample] = field(default_factory=list)
    next_at: int = 0

    def add(self, now: int, sample: Sample) -> None:
        """Keep a sample taken at `now` ticks (not before `next_at`)."""
        self.samples.append(sample)
        if len(self.samples) >= self.max_samples:
            del self.samples[1::2]
            self.interval *= 2
        self.next_at = (now // self.interval + 1) * self.interval
