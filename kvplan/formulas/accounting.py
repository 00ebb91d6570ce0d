"""What tokens and GPU time cost: hidden and visible tokens, hosted prices, one's own cards.

Prices are data (`catalog/prices.yaml`), each with its date and source. Pure; broadcasts over numpy arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir
from kvplan.ground.price_book import ApiPrice

Floats = NDArray[np.float64]


@lru_cache(maxsize=1)
def api_prices() -> dict[str, ApiPrice]:
    """The bundled price lists by model."""
    rows = yaml.safe_load((catalog_dir() / "prices.yaml").read_text())
    return {row["model"]: ApiPrice(**row) for row in rows}


def api_price(model: str) -> ApiPrice:
    """Return the price list of `model`, or raise KvplanError with the closest names."""
    prices = api_prices()
    if model not in prices:
        raise KvplanError(
            f"no price for {model!r}{did_you_mean(model, prices)}; there are {', '.join(prices)}"
        )
    return prices[model]


def api_cost_usd(
    price: ApiPrice,
    prompt_tokens: ArrayLike,
    visible_tokens: ArrayLike,
    hidden_tokens: ArrayLike = 0,
    *,
    cached_tokens: ArrayLike = 0,
) -> Floats:
    """Cost of a request at a hosted API [$]. Hidden tokens are billed as output although nobody sees them.

    >>> gpt5 = api_price("gpt-5")
    >>> float(api_cost_usd(gpt5, 0, visible_tokens=180, hidden_tokens=1220).round(4))
    0.014
    """
    prompt, cached = np.asarray(prompt_tokens, float), np.asarray(cached_tokens, float)
    hit_price = price.input if price.cached_input is None else price.cached_input
    generated = np.asarray(visible_tokens, float) + np.asarray(hidden_tokens, float)
    return np.asarray(((prompt - cached) * price.input + cached * hit_price + generated * price.output) / 1e6)


def gpu_cost_usd(num_gpus: ArrayLike, hours: ArrayLike, usd_per_gpu_hour: ArrayLike) -> Floats:
    """Cost of GPUs that are paid by the hour, busy or not [$].

    >>> float(gpu_cost_usd(226.75 * 8, 24, 2.0))  # DeepSeek's fleet for a day
    87072.0
    """
    return np.asarray(
        np.asarray(num_gpus, float) * np.asarray(hours, float) * np.asarray(usd_per_gpu_hour, float)
    )


def fleet_nodes(
    input_tokens_per_day: ArrayLike,
    output_tokens_per_day: ArrayLike,
    prefill_rate: ArrayLike,
    decode_rate: ArrayLike,
) -> Floats:
    """Nodes that a day's tokens keep busy, prefill and decode apart; rates in tokens a second and node.

    >>> float(fleet_nodes(608e9, 168e9, 73.7e3, 14.8e3).round(1))
    226.9
    """
    return np.asarray(
        np.asarray(input_tokens_per_day, float) / 86400 / np.asarray(prefill_rate, float)
        + np.asarray(output_tokens_per_day, float) / 86400 / np.asarray(decode_rate, float)
    )


def live_streams(output_tokens_per_day: ArrayLike, tokens_per_s: ArrayLike) -> Floats:
    """Little's law: how many sequences decode at once when each runs at `tokens_per_s`."""
    return np.asarray(np.asarray(output_tokens_per_day, float) / 86400 / np.asarray(tokens_per_s, float))


def time_to_first_visible_s(ttft_s: ArrayLike, hidden_tokens: ArrayLike, tokens_per_s: ArrayLike) -> Floats:
    """Seconds until the reader sees something: the first token, then the hidden ones at the decode rate.

    >>> (1000 * time_to_first_visible_s(0.18, [0, 128, 512, 1024], 80)).round().tolist()
    [180.0, 1780.0, 6580.0, 12980.0]
    """
    return np.asarray(
        np.asarray(ttft_s, float) + np.asarray(hidden_tokens, float) / np.asarray(tokens_per_s, float)
    )


class Route(NamedTuple):
    """One tier of a router: the share of requests it gets and what one of them costs."""

    share: float
    usd_per_request: float


def routing_cost_usd(num_requests: float, routes: Iterable[Route]) -> float:
    """Cost of requests that a router spreads over tiers [$]. Raises KvplanError unless the shares add up to 1.

    >>> round(routing_cost_usd(100_000, [Route(0.85, 0.001), Route(0.10, 0.01), Route(0.05, 0.05)]), 2)
    435.0
    """
    tiers = list(routes)
    if abs(sum(t.share for t in tiers) - 1) > 1e-9 or any(t.share < 0 for t in tiers):
        raise KvplanError(f"the shares of the routes must add up to 1, not {sum(t.share for t in tiers):g}")
    return num_requests * sum(t.share * t.usd_per_request for t in tiers)


def break_even_requests_per_hour(
    usd_per_gpu_hour: float, num_gpus: float, api_usd_per_request: float
) -> float:
    """Requests an hour above which one's own GPUs are cheaper than a hosted API.

    >>> break_even_requests_per_hour(3.0, 1, 0.015)
    200.0
    """
    if api_usd_per_request <= 0:
        raise KvplanError("a free API is never beaten: api_usd_per_request must be above 0")
    return usd_per_gpu_hour * num_gpus / api_usd_per_request
