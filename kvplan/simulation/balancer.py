"""vLLM's own load balancer: which of the data-parallel replicas behind the same API servers gets a request.

The one with the fewest requests, where those that wait count more on an engine whose KV is more than half used; equals
in turn. Source: vLLM 0.32 `v1/engine/core_client.py: DPLBAsyncMPClient`. There a server knows its own requests and, up
to 100 ms late, what engines tell of all; here all is known at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvplan.simulation.replica import Replica

HALF_USED, PER_WAITING = 0.5, 6.0
"""From which use of the KV pool on a waiting request counts more, and how much more, at a pool twice as full."""


@dataclass(slots=True)
class Balancer:
    """Where the search for the least busy begins: one further at every request."""

    turn: int = 0

    def choose(self, replicas: Sequence[Replica], now: int) -> int:
        """Return the place of the replica that gets the request; the replicas are the same at every call."""
        number = len(replicas)
        order = [(self.turn + i) % number for i in range(number)]
        self.turn = (self.turn + 1) % number
        return min(order, key=lambda place: _load(replicas[place], now)) if number > 1 else 0


def _load(replica: Replica, now: int) -> float:
    """Requests there or on their way, and more for those that wait."""
    waiting = replica.num_waiting + replica.num_coming
    if not waiting:
        return replica.num_requests
    beyond = max(0.0, replica.used_share(now) - HALF_USED)
    return replica.num_requests + waiting * PER_WAITING * beyond
