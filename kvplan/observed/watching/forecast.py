"""When the KV pool is full at this trend: what a server's pages say of its load, and draws of what that may become.

    decoded = running / (a + b x tokens)   per second; a step takes longer the more context it reads

Arrivals are those of the later half of the pages; a and b are fitted to the time that a decoded token took, the level
to the last pages; lengths follow from who started and ended when (`futures`). Knows no engine and no clock of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.observed.metrics_page import Snapshot
from kvplan.observed.watching.futures import Now, Past, draw_times

Array = NDArray[np.float64]

FULL = 0.98
"""Share of the pool at which requests begin to wait or are preempted: whole blocks, and what a step may need."""
TREND_PAGES = 120
"""Pages that the trend of the load is read off, the last ones."""
SPEED_PAGES = 8
"""Pages that the speed is read off."""
FARTHEST = 50.0
"""Times the watched span: beyond it a trend says nothing."""
QUANTILES = (0.05, 0.5, 0.95)
"""Of the futures: a 90 % range about the median."""
SEED = 0
"""The same pages give the same forecast."""


class Trend(NamedTuple):
    """What a load does, per second."""

    arrivals: float
    """Requests."""
    ends_per_token: float
    """Requests that end for each token decoded."""
    prompt_tokens: float
    """KV tokens that a request brings when it starts."""
    length_tokens: float
    """KV tokens that it gives back when it ends."""
    base_s: float
    """Of a token of one sequence in an empty pool."""
    per_token_s: float
    """More for every token that the pool holds."""
    num_arrivals: float
    """How many the rate is read off; likewise below."""
    num_ends: float
    speed_doubt: float = 0.0
    """Share by which pages scatter about a + b x tokens."""


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


def forecast(pages: Sequence[Snapshot]) -> Forecast:
    """When the pool is full at the trend of these pages, oldest first.

    At least three pages, in which something was decoded; of one server's run (counters that fall begin a new one).
    """
    pages = _one_run(pages)[-TREND_PAGES:]
    if not pages:
        return UNKNOWN
    last, pool = pages[-1], pages[-1].pool_tokens
    if _is_full(pages):
        return Forecast(0.0, 0.0, 0.0, 0.0)
    trend = measure(pages)
    if trend is None or not pool > 0:
        return UNKNOWN
    span = last.time_s - pages[0].time_s
    now = Now(
        running=last.running,
        held=last.usage * pool,
        room=FULL * pool,
        prompt_tokens=_prompt_tokens(pages),
        base_s=trend.base_s,
        per_token_s=trend.per_token_s,
        speed_doubt=trend.speed_doubt,
        arrivals=trend.num_arrivals,
        seconds=trend.num_arrivals / trend.arrivals if trend.arrivals else span,
        horizon_s=FARTHEST * span,
    )
    times = draw_times(_past(pages), now, np.random.default_rng(SEED))
    low, middle, high = (float(np.quantile(times, q, method="nearest")) for q in QUANTILES)
    return Forecast(middle, low, high, _growth(trend, last.running, last.usage * pool) / pool)


def _is_full(pages: Sequence[Snapshot]) -> bool:
    """Whether blocks are what requests wait for, or were thrown out for since the page before."""
    last = pages[-1]
    thrown = len(pages) > 1 and last.preemptions > pages[-2].preemptions
    return last.usage >= FULL or thrown or (last.waiting > 0 and last.usage >= 0.95)


def _one_run(pages: Sequence[Snapshot]) -> list[Snapshot]:
    """The pages since the server last started, with times that rise."""
    run: list[Snapshot] = []
    for page in pages:
        if run and page.generation_tokens < run[-1].generation_tokens:
            run = []
        if not run or page.time_s > run[-1].time_s:
            run.append(page)
    return run


def measure(pages: Sequence[Snapshot]) -> Trend | None:
    """The trend of at least three pages; None where nothing was decoded.

    Arrivals, ends and lengths are those of the later half: what came in one go before it is no trend.
    """
    speed = _speed(pages)
    if len(pages) < 3 or speed is None:
        return None
    last, middle = pages[-1], (pages[0].time_s + pages[-1].time_s) / 2
    first = next(page for page in reversed(pages[:-2]) if page.time_s <= middle or page is pages[0])
    span, decoded = last.time_s - first.time_s, last.generation_tokens - first.generation_tokens
    arrived = _arrived(last) - _arrived(first)
    started = arrived - (last.waiting - first.waiting)
    ended = last.finished - first.finished
    told = last.prompt_tokens - first.prompt_tokens
    lengths = last.prompts.since(first.prompts).total + last.answers.since(first.answers).total
    return Trend(
        arrivals=max(0.0, arrived) / span,
        ends_per_token=ended / decoded if decoded else 0.0,
        prompt_tokens=told / started if started > 0 else 0.0,
        length_tokens=lengths / ended if ended > 0 else 0.0,
        base_s=speed[0],
        per_token_s=speed[1],
        num_arrivals=max(0.0, arrived),
        num_ends=ended,
        speed_doubt=min(0.5, speed[2]),
    )


def _arrived(page: Snapshot) -> float:
    return page.running + page.waiting + page.finished


def _speed(pages: Sequence[Snapshot]) -> tuple[float, float, float] | None:
    """Seconds that a sequence waits for its next token: a + b x tokens held; b from all pages, a from the last.

    And how far pages scatter about it, as a share.
    """
    held, took, weight = _token_times(pages)
    if not len(held):
        return None
    late = slice(-SPEED_PAGES, None)
    level, at = (float(np.average(x[late], weights=weight[late])) for x in (took, held))
    slope = min(max(0.0, _slope(held, took, weight)), 0.9 * level / at) if at > 0 else 0.0
    base = level - slope * at
    off = took / (base + slope * held) - 1
    return base, slope, math.sqrt(float(np.average(off * off, weights=weight)))


def _token_times(pages: Sequence[Snapshot]) -> tuple[Array, Array, Array]:
    """Between each two pages: tokens held, seconds a token, and how many steps that was."""
    rows = []
    for before, after in pairwise(pages):
        decoded = after.generation_tokens - before.generation_tokens
        running = (before.running + after.running) / 2
        if decoded > 0 and running > 0:
            tokens = (before.usage + after.usage) / 2 * after.pool_tokens
            rows.append((tokens, running * (after.time_s - before.time_s) / decoded, decoded / running))
    table: Array = np.array(rows, np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _slope(x: Array, y: Array, weight: Array) -> float:
    """Of the weighted least-squares line."""
    dx, dy = x - np.average(x, weights=weight), y - np.average(y, weights=weight)
    spread = float(np.average(dx * dx, weights=weight))
    return float(np.average(dx * dy, weights=weight)) / spread if spread > 0 else 0.0


def _past(pages: Sequence[Snapshot]) -> Past:
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
        ended=np.array([max(0.0, after.finished - before.finished) for before, after in pairs]),
    )


def _prompt_tokens(pages: Sequence[Snapshot]) -> float:
    """Of a request, since the server started."""
    last = pages[-1]
    return last.prompt_tokens / max(1.0, last.running + last.finished)


def _decoded(trend: Trend, running: float, held: float) -> float:
    """Tokens a second."""
    return running / max(1e-9, trend.base_s + trend.per_token_s * held)


def _growth(trend: Trend, running: float, held: float) -> float:
    """KV tokens a second."""
    decoded = _decoded(trend, running, held)
    ends = trend.ends_per_token * decoded
    return trend.arrivals * trend.prompt_tokens + decoded - ends * trend.length_tokens
