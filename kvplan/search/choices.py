"""Choosing among measured or simulated options: the best within limits, and the Pareto front. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvplan.ground.errors import DoesNotFit, KvplanError


class Choice(NamedTuple):
    """One way of running: what it gets and what it takes."""

    name: str
    accuracy: float
    latency_s: float
    cost_usd: float = 0.0


def best_within(options: Sequence[Choice], max_latency_s: float = inf, min_accuracy: float = 0.0) -> Choice:
    """The most accurate option within the limits; of equals the cheaper, then the faster one.

    Raises DoesNotFit with the option that comes closest when none keeps both limits.

    >>> routes = [Choice("direct", 0.78, 0.24), Choice("bounded", 0.86, 0.78), Choice("search", 0.90, 2.6)]
    >>> best_within(routes, max_latency_s=1.0, min_accuracy=0.84).name
    'bounded'
    """
    if not options:
        raise KvplanError("nothing to choose from: no options")
    fitting = [o for o in options if o.latency_s <= max_latency_s and o.accuracy >= min_accuracy]
    if not fitting:
        in_time = [o for o in options if o.latency_s <= max_latency_s]
        near = max(in_time, key=lambda o: o.accuracy) if in_time else min(options, key=lambda o: o.latency_s)
        least = f" reaches {100 * min_accuracy:g} %" if min_accuracy > 0 else " is there"
        in_s = f" within {max_latency_s:g} s" if max_latency_s < inf else ""
        raise DoesNotFit(
            f"no option{least}{in_s};"
            f" {near.name} comes closest with {100 * near.accuracy:.1f} % in {near.latency_s:.3g} s"
        )
    return max(fitting, key=lambda o: (o.accuracy, -o.cost_usd, -o.latency_s))


def pareto(
    higher: ArrayLike, lower: Sequence[ArrayLike], ends: tuple[ArrayLike, ArrayLike] | None = None
) -> NDArray[np.bool_]:
    """Which rows nobody beats: no other row has at least as much of `higher` and at most as much of each `lower`,
    with one of them strictly better. `ends`: (low, high) of `higher`; rows whose intervals overlap have as much.

    >>> pareto([0.5, 0.8, 0.7], [[1.0, 2.0, 2.0]]).tolist()
    [True, True, False]
    >>> pareto([0.5, 0.52], [[1.0, 2.0]], ([0.48, 0.5], [0.52, 0.54])).tolist()
    [True, False]
    """
    low, high = (-np.asarray(column, float) for column in (ends or (higher, higher)))
    table = np.column_stack([np.asarray(column, float) for column in lower])
    no_worse = (high[:, None] <= low[None, :]) & (table[:, None, :] <= table[None, :, :]).all(axis=2)
    better = (low[:, None] < high[None, :]) | (table[:, None, :] < table[None, :, :]).any(axis=2)
    return np.asarray(~(no_worse & better).any(axis=0))
