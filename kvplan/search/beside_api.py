"""A strategy on one's own GPUs beside the same strategy at a hosted API: same branches, tokens and quality.

Hidden tokens are billed as output though nobody sees them. Where the API is dearer a request there is a load from which
on one's own cards are cheaper, if they can carry it. Reads a run's records; runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kvplan.formulas.accounting import Route, api_cost_usd, break_even_requests_per_hour, routing_cost_usd
from kvplan.formulas.sums import exact_sum
from kvplan.ground.price_book import ApiPrice, RoutePrice
from kvplan.ground.tables import short


class BilledTokens(NamedTuple):
    """What one strategy's branches read and wrote, summed over the problems that were simulated."""

    num_problems: int
    prompt: float
    cached: float
    """Of the prompt, found in the cache; billed as the provider bills its own hits."""
    visible: float
    hidden: float


class Bill(NamedTuple):
    """One strategy at one hosted model, dollars a problem."""

    model: str
    usd_per_problem: float
    hidden_share: float
    """Of that, thinking that nobody sees."""
    usd_per_correct: float | None
    break_even_per_hour: float | None
    """Problems an hour from which on one's own GPUs, paid busy or not, are cheaper; None at a free API."""
    price: ApiPrice

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the price's date and source among them."""
        plain = self._asdict() | {"date": self.price.date.isoformat(), "source": self.price.source}
        plain.pop("price")
        return plain | {"input": self.price.input, "output": self.price.output}


def tokens_of(records: Any, num_problems: int) -> BilledTokens:
    """Sums over a run's branches."""
    names = ("prompt_tokens", "hit_tokens", "output_tokens", "thinking_tokens")
    prompt, cached, output, hidden = (exact_sum(np.asarray(records[name], float)) for name in names)
    return BilledTokens(num_problems, prompt, cached, output - hidden, hidden)


def bill(tokens: BilledTokens, price: ApiPrice, accuracy: float, usd_per_hour: float) -> Bill:
    """What a problem costs at a hosted model, and how it stands against GPUs of `usd_per_hour`."""
    total = float(
        api_cost_usd(price, tokens.prompt, tokens.visible, tokens.hidden, cached_tokens=tokens.cached)
    )
    each = total / tokens.num_problems
    hidden = tokens.hidden * price.output / 1e6
    return Bill(
        model=price.model,
        usd_per_problem=each,
        hidden_share=hidden / total if total else 0.0,
        usd_per_correct=each / accuracy if accuracy else None,
        break_even_per_hour=break_even_requests_per_hour(usd_per_hour, 1, each) if each else None,
        price=price,
    )


def bill_text(name: str, found: Bill, usd_per_correct: float | None, problems_per_hour: float) -> str:
    """One sentence: both prices, the hidden part, and from what load on one's own cards are cheaper."""
    api = "-" if found.usd_per_correct is None else f"${found.usd_per_correct:.4f}"
    own = "-" if usd_per_correct is None else f"${usd_per_correct:.4f}"
    said = (
        f"{name} at {found.model} ({found.price.source}, {found.price.date}): {api} per correct answer, "
        f"{found.hidden_share:.0%} of it hidden thinking, against {own} on these GPUs"
    )
    if found.break_even_per_hour is None:
        return said
    carried = found.break_even_per_hour <= problems_per_hour
    reach = "" if carried else f", more than the {short(problems_per_hour)} that they carry as simulated"
    return f"{said}; GPUs are cheaper from {short(found.break_even_per_hour)} problems an hour{reach}"


class Routing(NamedTuple):
    """A day's requests over a router's tiers."""

    requests_per_day: float
    usd_per_day: float
    usd_per_day_dearest: float
    """All of them at the dearest tier."""

    def __str__(self) -> str:
        """E.g. 100,000 requests a day, routed: $435.00, all at the dearest tier: $5,000.00."""
        return (
            f"{self.requests_per_day:,.0f} requests a day, routed: ${self.usd_per_day:,.2f}, all at the dearest tier: "
            f"${self.usd_per_day_dearest:,.2f}"
        )


def route_day(routes: Sequence[RoutePrice], requests_per_day: float) -> Routing | None:
    """What a day costs over a price file's tiers; None without tiers. Raises KvplanError where shares do not add up.

    >>> tiers = [(0.85, 0.001), (0.10, 0.01), (0.05, 0.05)]
    >>> str(route_day([RoutePrice(share=s, usd_per_request=usd) for s, usd in tiers], 100_000))
    '100,000 requests a day, routed: $435.00, all at the dearest tier: $5,000.00'
    """
    if not routes:
        return None
    routed = routing_cost_usd(requests_per_day, [Route(tier.share, tier.usd_per_request) for tier in routes])
    return Routing(requests_per_day, routed, requests_per_day * max(tier.usd_per_request for tier in routes))
