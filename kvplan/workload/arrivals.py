"""When requests arrive: open-loop processes as arrays of times; the closed loop is only described here.

Knows no clock and no engine: the simulation turns seconds into ticks and runs the closed loop.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gamma
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kvplan.ground.config import Config

Floats = NDArray[np.float64]
Rate = Annotated[float, Field(gt=0, le=1e9)]
"""Requests per second."""


class Poisson(Config):
    """Independent arrivals at a constant mean rate; `burstiness` as in `vllm bench serve`."""

    kind: Literal["poisson"]
    rate: Rate
    """Requests per second."""
    burstiness: float = Field(1.0, gt=0, le=1e6)
    """Shape of gamma-distributed gaps: 1 = Poisson, below 1 burstier, above 1 more even."""


class Gamma(Config):
    """Gamma-distributed gaps, given by their coefficient of variation (ServeGen's parameter)."""

    kind: Literal["gamma"]
    rate: Rate
    """Requests per second."""
    cv: float = Field(gt=0, le=1000)
    """Standard deviation of the gaps over their mean; 1 = Poisson."""


class Weibull(Config):
    """Weibull-distributed gaps."""

    kind: Literal["weibull"]
    rate: Rate
    """Requests per second."""
    shape: float = Field(gt=0.05, le=1000)
    """1 = Poisson, below 1 burstier."""


class Even(Config):
    """A request every 1 / rate seconds, the first at 0."""

    kind: Literal["constant"]
    rate: Rate
    """Requests per second."""


class Ramp(Config):
    """A Poisson process whose rate moves linearly from `rate` to `end_rate` over `ramp_s`, then stays."""

    kind: Literal["ramp"]
    rate: Rate
    """Requests per second at the start."""
    end_rate: Rate
    """Requests per second at the end."""
    ramp_s: float = Field(gt=0, le=1e9)
    """Length of the ramp, seconds."""


class AllAtOnce(Config):
    """Everything arrives at time 0, as `vllm bench serve --request-rate inf` sends it."""

    kind: Literal["all_at_once"]


class ClosedLoop(Config):
    """`concurrency` clients; each sends its next request when the last is answered and a pause is over.

    With pauses, each begins after one: clients who all ask at the same moment are a burst that nobody asked for.
    """

    kind: Literal["closed_loop"]
    concurrency: int = Field(ge=1, le=1_000_000)
    """Clients."""
    pause_s: float = Field(0.0, ge=0, le=1e7)
    """Mean pause between an answer and the next request, exponential; 0 = none."""


class TraceReplay(Config):
    """The times of the trace, stretched or squeezed."""

    kind: Literal["replay"]
    speed: float = Field(1.0, gt=0, le=1e6)
    """2 = the trace arrives twice as fast."""


Arrivals = Annotated[
    Poisson | Gamma | Weibull | Even | Ramp | AllAtOnce | ClosedLoop | TraceReplay,
    Field(discriminator="kind"),
]


def _gamma_gaps(rate: float, shape: float, n: int, rng: np.random.Generator) -> Floats:
    return np.cumsum(rng.gamma(shape, 1 / (rate * shape), n))


def _weibull(spec: Weibull, n: int, rng: np.random.Generator) -> Floats:
    scale = 1 / (spec.rate * gamma(1 + 1 / spec.shape))
    return np.cumsum(rng.weibull(spec.shape, n) * scale)


def _ramp(spec: Ramp, n: int, rng: np.random.Generator) -> Floats:
    """Time change of a unit-rate process: solve rate*t + slope*t^2/2 = its n-th point inside the ramp."""
    unit = np.cumsum(rng.exponential(1.0, n))
    slope = (spec.end_rate - spec.rate) / spec.ramp_s
    in_ramp = (spec.rate + spec.end_rate) / 2 * spec.ramp_s
    root = np.sqrt(np.maximum(spec.rate**2 + 2 * slope * unit, spec.end_rate**2 if slope < 0 else 0))
    inside = 2 * unit / (spec.rate + root)
    return np.where(unit < in_ramp, inside, spec.ramp_s + (unit - in_ramp) / spec.end_rate)


_TIMES: dict[str, Callable[[Any, int, np.random.Generator], Floats]] = {
    "poisson": lambda s, n, rng: _gamma_gaps(s.rate, s.burstiness, n, rng),
    "gamma": lambda s, n, rng: _gamma_gaps(s.rate, s.cv**-2, n, rng),
    "weibull": _weibull,
    "constant": lambda s, n, rng: np.arange(n) / s.rate,
    "ramp": _ramp,
    "all_at_once": lambda s, n, rng: np.zeros(n),
    "closed_loop": lambda s, n, rng: np.zeros(n),
}


def arrival_times(spec: Arrivals, n: int, rng: np.random.Generator) -> Floats:
    """Return `n` non-decreasing arrival times [s]; all 0 for a closed loop. A replay has its trace's times."""
    return _TIMES[spec.kind](spec, n, rng)
