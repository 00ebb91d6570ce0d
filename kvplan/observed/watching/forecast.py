"""When the KV pool is full at this trend: what a server's pages say of its load, and draws of what that may become.

    seconds = steps x (step + sequence x running + token x held) + prompt x prompt tokens     between two pages

The four coefficients are drawn among those that explain the pages (`draw_speeds`); arrivals are counted as far back as
they are one trend; lengths follow from who ended and who still runs (`futures`). Knows no engine and no clock of its
own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.observed.metrics_page import Histogram, Snapshot
from kvplan.observed.watching.futures import (
    DRAWS,
    LEAST_DOUBT,
    MOST_HISTORY,
    Arrivals,
    History,
    Now,
    Past,
    Speed,
    draw_times,
)
from kvplan.observed.watching.usage_log import Usage

Array = NDArray[np.float64]

FULL = 0.98
"""Share of the pool at which requests begin to wait or are preempted: whole blocks, and what a step may need."""
QUEUE_FULL = 0.95
"""Share at which a queue says the same; below it, one whose prompts would fill the pool."""
TREND_PAGES = 120
"""Pages that the trend of the load is read off, the last ones."""
SPEED_PAGES = 8
"""Pages whose level the speed has; how it changes with the load is read off all."""
NUM_SPEEDS = 3000
"""Drawn, of which the likeliest go on."""
SHARE_PRIOR = 0.5
"""Dirichlet's parameter of the time's four shares: below 1, few of them matter."""
PAGE_NOISE = 0.05
"""Share by which the time of a page scatters, whatever the running sequences."""
LEAST_LEFT = 0.02
"""Share of the time between two pages that prompts leave to other steps."""
DISPERSIONS = np.exp2(np.linspace(-9, 3, 25))
"""Of arrivals, one as likely as another before any is counted."""
ROUNDING = 1 / 12
"""Variance of a whole number about the count that it is cut from."""
LONGEST = 1e9
"""Tokens; where a histogram ends."""
FARTHEST = 50.0
"""Times the watched span: beyond it a trend says nothing."""
NEAR = 0.2
"""Share of the time left by which a forecast may be off."""
NUM_TOLD = 300
"""Moments that are tried as the forecast."""
QUANTILES = (0.05, 0.95)
"""Of the futures: a 90 % range."""
SEED = 0
"""The same pages give the same forecast."""


class Forecast(NamedTuple):
    """When the pool is full."""

    seconds: float
    """From the last page; 0 = it is now, infinite = not at this trend, NaN = too little to say."""
    low: float
    """One in twenty futures that the pages allow is full sooner."""
    high: float
    """One in twenty is full later."""
    growth: float
    """Share of the pool a second, now."""

    def __str__(self) -> str:
        if math.isnan(self.seconds):
            return "too little to say"
        if self.seconds == 0:
            return "now"
        if math.isinf(self.seconds):
            return "not at this trend"
        high = "" if math.isinf(self.high) else f"{_time(self.high)}"
        spread = f" ({_time(self.low)} to {high or 'never'})"
        return f"in {_time(self.seconds)}{spread}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


UNKNOWN = Forecast(math.nan, math.nan, math.nan, math.nan)


def forecast(pages: Sequence[Snapshot], requests: Sequence[Usage] = ()) -> Forecast:
    """When the pool is full at the trend of these pages, oldest first.

    Args:
        pages: at least three, in which something was decoded; counters that fall begin a new run.
        requests: finished ones of a log; those from before the first page say how long answers are, where the server
            does not.
    """
    pages = _one_run(pages)[-TREND_PAGES:]
    if not pages:
        return UNKNOWN
    last, pool = pages[-1], pages[-1].pool_tokens
    if _is_full(pages):
        return Forecast(0.0, 0.0, 0.0, 0.0)
    speed = draw_speeds(pages, np.random.default_rng(SEED))
    if speed is None or not pool > 0:
        return UNKNOWN
    span = last.time_s - pages[0].time_s
    now = Now(
        running=last.running,
        held=last.usage * pool,
        room=FULL * pool,
        prompt_tokens=_prompt_tokens(pages) + _half_block(last),
        speed=speed,
        arrivals=draw_arrivals(pages, np.random.default_rng(SEED)),
        horizon_s=FARTHEST * span,
    )
    times = draw_times(past_of(pages, requests), now, np.random.default_rng(SEED))
    low, high = (float(np.quantile(times, q, method="nearest")) for q in QUANTILES)
    return Forecast(min(max(low, _near_most(times)), high), low, high, _growth(pages))


def _near_most(times: Array) -> float:
    """The forecast that is near most futures; infinite where half of them never fill.

    One that is off by `NEAR` counts half, and the less the more it is off: an edge would hang on single draws.
    """
    if np.isinf(np.quantile(times, 0.5, method="nearest")):
        return math.inf
    full = np.maximum(1e-9, times[np.isfinite(times)])
    told = np.geomspace(full.min(), full.max(), NUM_TOLD)
    off = (told[:, None] / full - 1) / NEAR
    return float(told[(1 / (1 + off**4)).sum(axis=1).argmax()])


def _is_full(pages: Sequence[Snapshot]) -> bool:
    """Whether blocks are what requests wait for, or were thrown out for since the page before."""
    last = pages[-1]
    thrown = len(pages) > 1 and last.preemptions > pages[-2].preemptions
    wanted = last.waiting * _prompt_tokens(pages) / last.pool_tokens if last.pool_tokens > 0 else 0.0
    queued = last.waiting > 0 and (last.usage >= QUEUE_FULL or last.usage + wanted >= FULL)
    return last.usage >= FULL or thrown or queued


def _one_run(pages: Sequence[Snapshot]) -> list[Snapshot]:
    """The pages since the server last started, with times that rise."""
    run: list[Snapshot] = []
    for page in pages:
        if run and page.generation_tokens < run[-1].generation_tokens:
            run = []
        if not run or page.time_s > run[-1].time_s:
            run.append(page)
    return run


def draw_arrivals(pages: Sequence[Snapshot], rng: np.random.Generator) -> Arrivals:
    """Rates and dispersions that explain how many requests came between pages.

    The count at a page is rate x time, and a walk of variance dispersion x rate x time about it, in whole requests:
    for each dispersion the rate is that of generalized least squares, as far off as its variance says, and the
    dispersion as likely as what the rate leaves unexplained (restricted likelihood).
    """
    spans, numbers = _trend(pages)
    if not numbers.sum() > 0:
        return Arrivals(np.zeros(DRAWS), np.ones(DRAWS))
    level = numbers.sum() / spans.sum()
    walk = DISPERSIONS[:, None, None] * np.diag(level * spans)
    whole = ROUNDING * (2 * np.eye(len(spans)) - np.eye(len(spans), k=1) - np.eye(len(spans), k=-1))
    inverse = np.linalg.inv(walk + whole)
    known = np.einsum("i,dij,j->d", spans, inverse, spans)
    rate = np.einsum("i,dij,j->d", spans, inverse, numbers) / known
    off = numbers - rate[:, None] * spans
    odd = np.einsum("di,dij,dj->d", off, inverse, off)
    fit = (np.linalg.slogdet(inverse)[1] - np.log(known) - odd) / 2
    chance = np.exp(fit - fit.max())
    chosen = rng.choice(len(DISPERSIONS), DRAWS, p=chance / chance.sum())
    scale = 1 / (np.maximum(1e-9, rate[chosen]) * known[chosen])
    return Arrivals(scale * rng.gamma(rate[chosen].clip(min=0) / scale + 0.5), DISPERSIONS[chosen])


def _trend(pages: Sequence[Snapshot]) -> tuple[Array, Array]:
    """Seconds, and requests that came, between the pages of the longest span, back from now, whose halves agree.

    What came in one go before it is no trend.
    """
    times = np.array([page.time_s for page in pages])
    came = np.array([page.running + page.waiting + page.finished for page in pages])
    first = 0
    while first < len(pages) - 3:
        middle = int(np.searchsorted(times, (times[first] + times[-1]) / 2))
        whole = came[-1] - came[first]
        share = (times[middle] - times[first]) / (times[-1] - times[first])
        off = came[middle] - came[first] - share * whole
        if off * off <= 4 * max(1.0, share * (1 - share) * whole):
            break
        first = middle
    return np.diff(times[first:]), np.diff(came[first:])


def draw_speeds(pages: Sequence[Snapshot], rng: np.random.Generator) -> Speed | None:
    """Speeds that explain how many steps were done between pages; None where nothing was decoded.

    Any shares of the time are as likely as others at first; each is weighed by how evenly steps follow from the time
    that prompts leave them. What a step takes has the level of the last pages.
    """
    work, seconds, weight = _work(pages)
    if len(pages) < 3 or not len(seconds):
        return None
    mean = np.maximum(1e-12, np.average(work, axis=0, weights=weight) / np.average(seconds, weights=weight))
    drawn = rng.dirichlet(np.full(4, SHARE_PRIOR), NUM_SPEEDS) / mean
    off = _slower(drawn, work, seconds)
    rows = weight.sum()
    misfit = np.square(off - np.average(off, axis=1, weights=weight)[:, None]) @ weight + PAGE_NOISE**2
    fit = -rows / 2 * np.log(misfit)
    chance = np.exp(fit - fit.max())
    chosen = rng.choice(NUM_SPEEDS, DRAWS, p=chance / chance.sum())
    late = slice(-SPEED_PAGES, None)
    level = np.average(off[chosen, late], axis=1, weights=weight[late])
    doubt = np.maximum(LEAST_DOUBT, np.sqrt(misfit[chosen] / rows) / 2)
    step, sequence, token, prompt = drawn[chosen].T
    factor = np.exp(level + doubt * rng.standard_normal(DRAWS))
    return Speed(step * factor, sequence * factor, token * factor, prompt)


def _slower(speeds: Array, work: Array, seconds: Array) -> Array:
    """(speeds, rows): ln of the time that steps had, by what they would have taken."""
    left = np.maximum(LEAST_LEFT * seconds, seconds - speeds[:, 3:] * work[:, 3])
    return np.log(left / (speeds[:, :3] @ work[:, :3].T))


def _work(pages: Sequence[Snapshot]) -> tuple[Array, Array, Array]:
    """Between each two pages: steps, sequences and held tokens over them, prompt tokens; seconds; how much it counts.

    How many sequences shared what was decoded is known the less the more their number changed.
    """
    rows = []
    for before, after in pairwise(pages):
        decoded = after.generation_tokens - before.generation_tokens
        running = (before.running + after.running) / 2
        if decoded > 0 and running > 0:
            steps = decoded / running
            held = (before.usage + after.usage) / 2 * after.pool_tokens
            told = after.prompt_tokens - before.prompt_tokens
            change = math.log((after.running + 1) / (before.running + 1)) ** 2 / 12
            rows.append(
                (
                    steps,
                    decoded,
                    steps * held,
                    told,
                    after.time_s - before.time_s,
                    1 / (1 + change / PAGE_NOISE**2),
                )
            )
    table: Array = np.array(rows, np.float64).reshape(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5]


def past_of(pages: Sequence[Snapshot], requests: Sequence[Usage] = ()) -> Past:
    """Who started and ended between the pages, and how many tokens each sequence was given."""
    first, pairs = pages[0], list(pairwise(pages))
    mean = [max(1e-9, (before.running + after.running) / 2) for before, after in pairs]
    decoded = [max(0.0, after.generation_tokens - before.generation_tokens) for before, after in pairs]
    started = [
        max(0.0, after.running + after.finished - before.running - before.finished) for before, after in pairs
    ]
    held = first.usage * first.pool_tokens / first.running if first.running else 0.0
    return Past(
        started=np.array([first.running, *started]),
        first_age=max(0.0, held - _prompt_tokens(pages)),
        given=np.array(decoded) / np.array(mean),
        ended=np.array([row for i, pair in enumerate(pairs) for row in _ends(i, *pair)]).reshape(-1, 4),
        before=_history(first, requests),
        longest=_longest(pages[-1].answers),
    )


def _longest(lengths: Histogram) -> float:
    """Tokens of which no answer has more.

    vLLM's buckets end at 1, 2 and 5 times powers of ten up to `max_model_len` (`vllm/v1/metrics/buckets.py`): that is
    less than the next of them.
    """
    last = max((edge for edge in lengths.edges if edge < math.inf), default=math.inf)
    return next((n * 10.0**power for power in range(9) for n in (1, 2, 5) if n * 10**power > last), math.inf)


def _history(first: Snapshot, requests: Sequence[Usage]) -> History | None:
    """What the server's own counts say of requests that it finished before, else a log with times."""
    told = first.answers
    if told.requests and abs(told.requests - first.finished) < 0.5:
        return History(np.array(list(_buckets(told))), told.mean, first.running)
    lengths = [request.output_tokens for request in requests if request.time_s < first.time_s][-MOST_HISTORY:]
    if not lengths:
        return None
    return History(np.array([(1.0, 0.995 * n, 1.005 * n) for n in lengths]), fmean(lengths), 0.0)


def _buckets(lengths: Histogram) -> Iterator[tuple[float, float, float]]:
    """How many, and between which lengths; empty ones left out."""
    low, below = 0.0, 0.0
    for edge, number in zip(lengths.edges, lengths.counts, strict=True):
        if number > below:
            yield number - below, low, min(edge, LONGEST)
        low, below = edge, number


def _ends(interval: int, before: Snapshot, after: Snapshot) -> Iterator[tuple[float, float, float, float]]:
    """Requests that ended in an interval: how many, and between which lengths (a single one's is known)."""
    count = after.finished - before.finished
    lengths = after.answers.since(before.answers)
    if count <= 0:
        return
    if abs(lengths.requests - count) > 0.5:
        yield interval, count, 0.0, LONGEST
    elif count == 1:
        yield interval, 1.0, 0.995 * lengths.total, 1.005 * lengths.total
    else:
        yield from ((interval, *row) for row in _buckets(lengths))


def _prompt_tokens(pages: Sequence[Snapshot]) -> float:
    """Of a request, since the server started."""
    last = pages[-1]
    return last.prompt_tokens / max(1.0, last.running + last.finished)


def _half_block(page: Snapshot) -> float:
    """Tokens of a request's last block that nobody uses, on average."""
    size = page.cache.get("block_size", "")
    return float(size) / 2 if size.isdigit() else 0.0


def _growth(pages: Sequence[Snapshot]) -> float:
    """Share of the pool a second, over the last pages."""
    before, last = pages[-min(len(pages), SPEED_PAGES + 1)], pages[-1]
    return (last.usage - before.usage) / (last.time_s - before.time_s)
