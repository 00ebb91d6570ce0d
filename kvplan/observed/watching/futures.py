"""What a load may become: lengths that its requests' ends so far allow, and draws of what comes next.

    ages      a request that started k pages ago has decoded what a sequence was given since
    lengths   lognormal; how likely each is follows from how many ended between each two pages (Poisson), given who was
              there and how old they were. Requests that all still run say: longer than that
    futures   for each draw of lengths and of the arrivals' rate: requests that are there live as long as their ages
              leave, new ones come at random, until the pool is full

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
DRAWS = 100
LEAST_DOUBT = 0.02
"""Of the speed, as a share: what comes is not decoded exactly as what was."""
MOST_REQUESTS = 128
"""In one future; more stand in bundles."""


class Past(NamedTuple):
    """Requests that started in each interval between two pages, and how many ended in it."""

    started: Array
    """(intervals + 1,): those that were there at the first page come first."""
    first_age: float
    """Tokens that those had decoded then."""
    given: Array
    """(intervals,): tokens that a running sequence was given."""
    ended: Array
    """(intervals,)."""


class Now(NamedTuple):
    """The newest page, and what goes on."""

    running: float
    held: float
    """Tokens in the pool."""
    room: float
    """Tokens at which it is full."""
    prompt_tokens: float
    base_s: float
    per_token_s: float
    speed_doubt: float
    arrivals: float
    """Counted over `seconds`."""
    seconds: float
    horizon_s: float


class _Drawn(NamedTuple):
    """What each future takes to be so: (DRAWS,) each, and how many requests stand for one."""

    median: Array
    sigma: Array
    rate: Array
    speed: Array
    bundle: float


def ages(past: Past) -> Array:
    """(intervals + 1, intervals + 1): tokens that each cohort had decoded at each page; NaN before it came."""
    at = np.concatenate([[0.0], np.cumsum(past.given)])
    born = np.concatenate([[-past.first_age], at[:-1] + past.given / 2])
    found: Array = at[None, :] - born[:, None]
    found[found < 0] = np.nan
    return found


def length_weights(past: Past) -> Array:
    """(medians, sigmas): how likely lengths are, given when requests ended; they sum to one."""
    reached = np.nan_to_num(ages(past), nan=0.0)
    reached[0] = np.maximum(reached[0], 1e-9)
    gone = _cdf(reached[None, None], MEDIANS[:, None, None, None], SIGMAS[None, :, None, None])
    here = 1.0 - gone[:, :, :1, :1]  # those of the first page had lived so long
    share = np.diff(gone, axis=-1)
    share[:, :, :1] = share[:, :, :1] / np.maximum(here, 1e-6)
    expected = np.maximum(1e-9, np.einsum("c,msci->msi", past.started, share))
    fit = (past.ended * np.log(expected) - expected).sum(axis=-1)
    weight: Array = np.exp(fit - fit.max())
    weight /= weight.sum()
    return weight


def draw_times(past: Past, now: Now, rng: np.random.Generator) -> Array:
    """(DRAWS,): seconds until the pool is full, infinite where it is not by the horizon."""
    weight = length_weights(past)
    chosen = rng.choice(weight.size, DRAWS, p=weight.ravel())
    median, sigma = MEDIANS[chosen // len(SIGMAS)], SIGMAS[chosen % len(SIGMAS)]
    rate = rng.gamma(now.arrivals + 0.5, 1 / now.seconds, DRAWS) if now.arrivals else np.zeros(DRAWS)
    speed = np.exp(max(LEAST_DOUBT, now.speed_doubt / 2) * rng.standard_normal(DRAWS))
    bundle = max(1.0, now.running / MOST_REQUESTS)
    held, left = _there(past, now, median, sigma, bundle, rng)
    return _run(now, held, left, _Drawn(median, sigma, rate, speed, bundle), rng)


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
    median, sigma, rate, speed, bundle = drawn
    full, clock, step = np.full(DRAWS, np.inf), 0.0, now.horizon_s / 2000
    total = bundle * held.sum(axis=1)
    while clock < now.horizon_s and np.isinf(full).any():
        each = step * speed / np.maximum(1e-9, now.base_s + now.per_token_s * total)
        held = np.where(left > 0, held + np.minimum(each[:, None], left), 0.0)
        left = np.maximum(0.0, left - each[:, None])
        held, left = _arrive(now, held, left, rng.poisson(rate * step / bundle), (median, sigma), rng)
        before, total = total, bundle * held.sum(axis=1)
        within = np.clip((now.room - before) / np.maximum(1e-9, total - before), 0.0, 1.0)
        reached = np.isinf(full) & (total >= now.room)
        full[reached] = clock + step * within[reached]
        clock, step = clock + step, min(1.05 * step, now.horizon_s / 60)
    return full


def _arrive(
    now: Now,
    held: Array,
    left: Array,
    come: NDArray[np.int64],
    lengths: tuple[Array, Array],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Put new requests where old ones ended, in columns of their own where there is no room."""
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
    held[:, :most] = np.where(put, now.prompt_tokens, held[:, :most])
    left[:, :most] = np.where(put, length, left[:, :most])
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
