"""What a load may become: lengths that its requests' ends so far allow, and draws of what comes next.

    ages      a request that started k pages ago has decoded what a sequence was given since
    lengths   lognormal; how likely each is follows from the lengths of those that ended (as the server counts them in
              buckets), and from the ages of those that still run, which say "longer than that"
    futures   for each draw of lengths, speed and of the arrivals' rate: requests that are there live as long as their
              ages leave, new ones come as unevenly as they did, until the pool is full

Tokens and seconds; knows no page and no server.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MEDIANS = np.exp(np.linspace(math.log(16), math.log(65_536), 67))
"""Of output tokens, an eighth apart: one likely as another before anything ended."""
SIGMAS = np.array([0.03, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3])
"""Of ln(tokens): from all alike to production's thinking and beyond."""
DRAWS = 400
LEAST_DOUBT = 0.02
"""Of the speed, as a share: what comes is not decoded exactly as what was."""
MOST_REQUESTS = 128
"""In one future; more stand in bundles."""
MOST_HISTORY = 100
"""Requests that earlier ones count for at most: loads change."""
GRID = (MEDIANS[:, None], SIGMAS[None, :])


class History(NamedTuple):
    """Requests that ended before those that are watched."""

    lengths: Array
    """(rows, 3): how many, and between which lengths."""
    mean: float
    running: float
    """Those that had started and not ended then; 0 where that is not known."""


class Past(NamedTuple):
    """Requests that started in each interval between two pages, and those that ended in it."""

    started: Array
    """(intervals + 1,): those that were there at the first page come first."""
    first_age: float
    """Tokens that those had decoded then."""
    given: Array
    """(intervals,): tokens that a running sequence was given."""
    ended: Array
    """(ends, 4): interval, how many, and between which lengths."""
    before: History | None = None
    """Requests that had ended by the first page."""
    longest: float = math.inf
    """Tokens that none can have more of."""


class Speed(NamedTuple):
    """Seconds between two pages, as shares that the pages allow: (DRAWS,) each."""

    step: Array
    """A step of nothing; likewise below for each of what it counts."""
    sequence: Array
    """More for each running sequence."""
    token: Array
    """More for each token that the pool holds."""
    prompt: Array
    """For each prompt token that comes."""


class Arrivals(NamedTuple):
    """How requests come, as the pages allow: (DRAWS,) each."""

    rate: Array
    """A second."""
    dispersion: Array
    """Variance of their number, in a span, by its mean: 1 of random (Poisson) arrivals, 0 at even gaps."""


class Now(NamedTuple):
    """The newest page, and what goes on."""

    running: float
    held: float
    """Tokens in the pool."""
    room: float
    """Tokens at which it is full."""
    prompt_tokens: float
    """That a request holds when it starts, whole blocks."""
    speed: Speed
    arrivals: Arrivals
    horizon_s: float


class _Drawn(NamedTuple):
    """What each future takes to be so: (DRAWS,) each, and how many requests stand for one."""

    median: Array
    sigma: Array
    bundle: float


def ages(past: Past) -> Array:
    """(intervals + 1, intervals + 1): tokens that each cohort had decoded at each page; NaN before it came."""
    at = np.concatenate([[0.0], np.cumsum(past.given)])
    born = np.concatenate([[-past.first_age], at[:-1] + past.given / 2])
    found: Array = at[None, :] - born[:, None]
    found[found < 0] = np.nan
    return found


def length_weights(past: Past) -> Array:
    """(medians, sigmas): how likely lengths are, given who ended when and how long they were; they sum to one.

    Starts and ends as a Poisson process: the sum over ends of ln(their share of what started) less all ends expected.
    """
    reached = np.nan_to_num(ages(past), nan=0.0)
    reached[0] = np.maximum(reached[0], 1e-9)
    lived = reached[0, 0]  # those of the first page
    here = np.maximum(1e-6, 1.0 - _cdf(lived, *GRID))
    gone = _cdf(reached[:, -1], GRID[0][..., None], GRID[1][..., None])
    gone[..., 0] = (gone[..., 0] - (1.0 - here)) / here
    fit = -gone @ past.started
    if past.before is not None:
        fit += _fit_history(past.before, here)
    for interval, count, low, high in past.ended:
        fit += count * np.log(np.maximum(1e-9, _share(past, reached, here, int(interval), low, high)))
    fit[past.longest < MEDIANS] = -np.inf
    weight: Array = np.exp(fit - fit.max())
    weight /= weight.sum()
    return weight


def _fit_history(before: History, here: Array) -> Array:
    """(medians, sigmas): ln likelihood of earlier lengths, by their buckets and their mean (normal)."""
    number = float(before.lengths[:, 0].sum())
    fit = before.running * np.log(here)
    for count, low, high in before.lengths:
        fit = fit + count * np.log(np.maximum(1e-9, _between(low, high)))
    mean = GRID[0] * np.exp(GRID[1] ** 2 / 2)
    spread = mean * np.sqrt(np.expm1(GRID[1] ** 2) / number)
    found: Array = fit - ((before.mean - mean) / spread) ** 2 / 2 - np.log(spread)
    return found * min(1.0, MOST_HISTORY / number)


def _between(low: float, high: float) -> Array:
    """(medians, sigmas): share of lengths between two."""
    return _cdf(np.array(high), *GRID) - _cdf(np.array(low), *GRID)


def _share(past: Past, reached: Array, here: Array, interval: int, low: float, high: float) -> Array:
    """(medians, sigmas): requests expected to end in an interval, with a length between these two."""
    if high < 1.02 * low:  # how many such may have come to their end then is the same for all lengths
        return _between(low, high)
    young = np.clip(reached[:, interval], low, high)
    old = np.clip(reached[:, interval + 1], low, high)
    median, sigma = GRID[0][..., None], GRID[1][..., None]
    share = _cdf(old, median, sigma) - _cdf(young, median, sigma)
    share[..., 0] /= here
    found: Array = share @ past.started
    return found


def draw_times(past: Past, now: Now, rng: np.random.Generator) -> Array:
    """(DRAWS,): seconds until the pool is full, infinite where it is not by the horizon."""
    weight = length_weights(past)
    chosen = rng.choice(weight.size, DRAWS, p=weight.ravel())
    between = np.exp(math.log(MEDIANS[1] / MEDIANS[0]) * (rng.random(DRAWS) - 0.5))  # two of the grid
    median, sigma = MEDIANS[chosen // len(SIGMAS)] * between, SIGMAS[chosen % len(SIGMAS)]
    bundle = max(1.0, now.running / MOST_REQUESTS)
    held, left = _there(past, now, median, sigma, bundle, rng)
    return _run(now, held, left, _Drawn(median, sigma, bundle), rng)


def _there(
    past: Past, now: Now, median: Array, sigma: Array, bundle: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """(DRAWS, requests): tokens that each running request holds, and has still to decode."""
    count = max(1, round(now.running / bundle))
    age = ages(past)[:, -1]
    alive = past.started * (1.0 - _cdf(age[None, :], median[:, None], sigma[:, None])) + 1e-12
    bounds = np.cumsum(alive, axis=1) / alive.sum(axis=1, keepdims=True)
    which = (rng.random((DRAWS, count, 1)) > bounds[:, None, :]).sum(axis=2).clip(max=len(age) - 1)
    mine = age[which]
    below = _cdf(mine, median[:, None], sigma[:, None])
    length = _quantile(below + (1 - below) * rng.random(mine.shape), median[:, None], sigma[:, None])
    held = now.prompt_tokens + mine
    held *= (now.held / bundle / np.maximum(1.0, held.sum(axis=1)))[:, None]  # as many as the page says
    return held, np.maximum(0.0, length - mine)


def _run(now: Now, held: Array, left: Array, drawn: _Drawn, rng: np.random.Generator) -> Array:
    median, sigma, bundle = drawn
    rate, dispersion = now.arrivals
    full, clock, step = np.full(DRAWS, np.inf), 0.0, now.horizon_s / 2000
    total, speed = bundle * held.sum(axis=1), now.speed
    owed, prompts = rng.random(DRAWS), np.zeros(DRAWS)  # arrivals, and seconds that prompts still take
    while clock < now.horizon_s and np.isinf(full).any():
        owed += rng.gamma(np.maximum(1e-9, rate * step / dispersion), dispersion / bundle)
        come = np.floor(owed).astype(np.int64)
        owed -= come
        running = bundle * (left > 0).sum(axis=1)
        prompts += speed.prompt * now.prompt_tokens * bundle * come
        busy = np.minimum(prompts, step)
        prompts -= busy
        each = (step - busy) / np.maximum(1e-9, speed.step + speed.sequence * running + speed.token * total)
        given = np.minimum(each[:, None], left)
        more = bundle * (given.sum(axis=1) + come * (now.prompt_tokens + each))
        held, left = np.where(left > 0, held + given, 0.0), left - given
        jumps = bundle * (np.square(held * (left <= 0)).sum(axis=1) + come * now.prompt_tokens**2)
        held, left = _arrive(now.prompt_tokens, each, held, left, come, (median, sigma), rng)
        before, total = total, bundle * held.sum(axis=1)
        short = more >= now.room - before  # else no order of starts and ends fills it
        reached = np.isinf(full) & short & _was_full(now.room - before, now.room - total, jumps, rng)
        within = np.clip((now.room - before) / np.maximum(1e-9, np.abs(total - before)), 0.0, 1.0)
        full[reached] = clock + step * within[reached]
        rate, left[reached] = np.where(reached, 0.0, rate), 0.0  # what becomes of these is not asked
        clock, step = clock + step, min(1.05 * step, now.horizon_s / 60)
    return full


def _was_full(before: Array, after: Array, jumps: Array, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether the room ran out during a step, whose starts and ends came in any order: `jumps` is their squares' sum.

    A Brownian bridge from one room to the other comes to 0 with the chance exp(-2 before after / variance).
    """
    room = np.maximum(0.0, before) * np.maximum(0.0, after)
    found: NDArray[np.bool_] = rng.random(len(room)) < np.exp(-2 * room / np.maximum(1e-9, jumps))
    return found


def _arrive(
    prompt_tokens: float,
    given: Array,
    held: Array,
    left: Array,
    come: NDArray[np.int64],
    lengths: tuple[Array, Array],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Put requests that came during a step where old ones ended, in columns of their own where there is no room.

    They came at any moment of it, so they were given a part of what others were, and some have ended already.
    """
    held = np.where(left > 0, held, 0.0)
    most = int(come.max())
    if not most:
        return held, left
    order = np.argsort(left > 0, axis=1, kind="stable")  # the ended first
    held, left = np.take_along_axis(held, order, 1), np.take_along_axis(left, order, 1)
    short = max(0, int((come - (left <= 0).sum(axis=1)).max()))
    held, left = (np.pad(one, ((0, 0), (short, 0))) for one in (held, left))
    new = np.arange(most)[None, :] < come[:, None]
    z = rng.standard_normal(new.shape)
    length = lengths[0][:, None] * np.exp(lengths[1][:, None] * z)
    free = left[:, :most] <= 0
    put = new & free
    age = given[:, None] * rng.random(new.shape)
    put &= age < length
    held[:, :most] = np.where(put, prompt_tokens + age, held[:, :most])
    left[:, :most] = np.where(put, length - age, left[:, :most])
    return held, left


def _cdf(tokens: Array, median: Array, sigma: Array) -> Array:
    """Share of lengths below `tokens`."""
    z = np.log(np.maximum(tokens, 1e-9) / median) / sigma
    # Abramowitz and Stegun 26.2.17, within 1e-7
    t = 1 / (1 + 0.2316419 * np.abs(z))
    tail = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * t * (
        0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    )  # fmt: skip
    found: Array = np.where(z > 0, 1 - tail, tail)
    return found


def _quantile(share: Array, median: Array, sigma: Array) -> Array:
    """The length below which that share lies: Abramowitz and Stegun 26.2.23, within 4.5e-4 of sigma."""
    p = np.clip(np.where(share > 0.5, 1 - share, share), 1e-12, 0.5)
    t = np.sqrt(-2 * np.log(p))
    z = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    found: Array = median * np.exp(sigma * np.where(share > 0.5, z, -z))
    return found
