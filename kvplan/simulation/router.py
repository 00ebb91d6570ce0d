"""Which replica gets the next request: one function per policy.

Knows replicas by their queues and free blocks, and prompts by their first pieces. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvplan.simulation.replica import Replica
from kvplan.simulation.sim_request import SimRequest

MAX_PREFIXES = 100_000
"""Prefixes a router remembers; the oldest are forgotten first."""

IMBALANCE = 8
"""Requests by which a replica may be ahead of the shortest queue and still be chosen for its cache."""


@dataclass(slots=True)
class Router:
    """A policy and what it remembers."""

    policy: str
    num_routed: int = 0
    owners: dict[tuple[object, ...], int] = field(default_factory=dict)
    """Beginning of a prompt -> place of the replica that saw it last."""

    def choose(self, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
        """Return the place of the replica that gets the request."""
        place = ROUTERS[self.policy](self, replicas, request, now) if len(replicas) > 1 else 0
        self.num_routed += 1
        return place


def round_robin(router: Router, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
    """Each in turn."""
    return router.num_routed % len(replicas)


def least_kv(router: Router, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
    """The one with the most free blocks after its queue is served; among equals the one with fewer requests."""
    return min(
        range(len(replicas)), key=lambda i: (-replicas[i].spare_blocks(now), replicas[i].num_requests, i)
    )


def prefix_aware(router: Router, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
    """The one that last saw the longest beginning of this prompt, unless it is far busier than another."""
    shortest = min(range(len(replicas)), key=lambda i: (replicas[i].num_requests, i))
    limit = replicas[shortest].num_requests + IMBALANCE
    keys = [request.prompt[:n] for n in range(len(request.prompt), 0, -1)]
    found = (router.owners[key] for key in keys if key in router.owners)
    place = next((i for i in found if replicas[i].num_requests <= limit), shortest)
    for key in keys:
        router.owners.pop(key, None)
        router.owners[key] = place
    while len(router.owners) > MAX_PREFIXES:
        del router.owners[next(iter(router.owners))]
    return place


ROUTERS: dict[str, Callable[[Router, Sequence[Replica], SimRequest, int], int]] = {
    "round_robin": round_robin,
    "least_kv": least_kv,
    "prefix_aware": prefix_aware,
}
