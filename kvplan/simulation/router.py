"""Which replica gets the next request: one function per policy.

Knows replicas by their queues and free blocks, and prompts by their first pieces. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush, heapreplace
from operator import mul

from kvplan.schedulers.step_by_step import StepByStep
from kvplan.simulation.replica import Replica
from kvplan.simulation.sim_request import SimRequest

MAX_PREFIXES = 100_000
"""Prefixes a router remembers; the oldest are forgotten first."""

IMBALANCE = 8
"""Requests by which a replica may be ahead of the shortest queue and still be chosen for its cache."""

TIER_WEIGHTS = (1.0, 0.8, 0.3)
"""What a token on the GPU, in host memory and in files counts (llm-d-kv-cache: `DefaultKVCacheBackendConfig`)."""

Key = tuple[int, ...]


class LeastFirst:
    """The first of the replicas with the least key, without asking all of them each time.

    While a replica only decodes its key does not fall: it takes blocks. So a key that was once asked for is a bound
    until the replica says that it has changed, and only those at the front of a heap of bounds are asked again.
    """

    def __init__(self, replicas: Sequence[Replica], key: Callable[[Replica, int], Key]) -> None:
        self._key = key
        self._latest: list[tuple[Key, int]] = [((), place) for place in range(len(replicas))]
        self._heap: list[tuple[Key, int]] = []
        """Bounds and places; only a place's latest counts."""
        self._changed = set(range(len(replicas)))
        for place, replica in enumerate(replicas):
            replica.on_change = partial(self._changed.add, place)

    def first(self, replicas: Sequence[Replica], now: int) -> int:
        """Return its place."""
        for place in self._changed:
            entry = self._latest[place] = self._key(replicas[place], now), place
            heappush(self._heap, entry)
        self._changed.clear()
        while True:
            entry = self._heap[0]
            key, place = entry
            if self._latest[place] is not entry:
                heappop(self._heap)
                continue
            found = self._key(replicas[place], now)
            if found == key:
                return place
            assert found > key, "a replica's key fell, and nobody was told"
            self._latest[place] = found, place
            heapreplace(self._heap, self._latest[place])


@dataclass(slots=True)
class Router:
    """A policy and what it remembers."""

    policy: str
    num_routed: int = 0
    owners: dict[tuple[object, ...], int] = field(default_factory=dict)
    """Beginning of a prompt -> place of the replica that saw it last."""
    least: LeastFirst | None = None

    def choose(self, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
        """Return the place of the replica that gets the request; the replicas are the same at every call."""
        place = ROUTERS[self.policy](self, replicas, request, now) if len(replicas) > 1 else 0
        self.num_routed += 1
        return place

    def first(self, replicas: Sequence[Replica], key: Callable[[Replica, int], Key], now: int) -> int:
        """Return the place of the first replica with the least key; the key is the same at every call."""
        if not replicas[0].one_full_group:  # blocks may come back while all decode
            return min(range(len(replicas)), key=lambda place: key(replicas[place], now))
        self.least = self.least or LeastFirst(replicas, key)
        return self.least.first(replicas, now)


def round_robin(router: Router, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
    """Each in turn."""
    return router.num_routed % len(replicas)


def least_kv(router: Router, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
    """The one with the most free blocks after its queue is served; among equals the one with fewer requests."""
    return router.first(replicas, _fullness, now)


def _fullness(replica: Replica, now: int) -> Key:
    return -replica.spare_blocks(now), replica.num_requests


def prefix_aware(router: Router, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
    """The one that last saw the longest beginning of this prompt, unless it is far busier than another."""
    shortest = router.first(replicas, _num_requests, now)
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


def kv_aware(router: Router, replicas: Sequence[Replica], request: SimRequest, now: int) -> int:
    """The one that holds most of this prompt, unless it is far busier than another; its tiers count too, for less.

    As routers do that listen to engines' KV cache events (llm-d's precise prefix-cache scorer); events take no time.
    """
    shortest = router.first(replicas, _num_requests, now)
    limit = replicas[shortest].num_requests + IMBALANCE
    scores = {
        place: _score(replica, request)
        for place, replica in enumerate(replicas)
        if replica.num_requests <= limit
    }
    best = max(scores.values())
    if not best:
        return shortest
    holders = (place for place, score in scores.items() if score == best)
    return min(holders, key=lambda place: (replicas[place].num_requests, place))


def _score(replica: Replica, request: SimRequest) -> float:
    assert isinstance(replica.engine, StepByStep)
    score: float = sum(map(mul, replica.engine.held_prefix(request), TIER_WEIGHTS))
    return score


def _num_requests(replica: Replica, now: int) -> Key:
    return (replica.num_requests,)


ROUTERS: dict[str, Callable[[Router, Sequence[Replica], SimRequest, int], int]] = {
    "round_robin": round_robin,
    "least_kv": least_kv,
    "prefix_aware": prefix_aware,
    "kv_aware": kv_aware,
}
