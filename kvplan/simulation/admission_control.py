"""Requests that an engine's API servers refuse while many are under way: HTTP 503, so that clients try elsewhere.

vLLM 0.32 `v1/engine/async_llm.py: check_admission` looks when a request comes, and again before the engine gets it:
* `max_num_queued_reqs` counts the requests that the engine has, waiting or running, of all API servers together
  (`v1/engine/admission_control.py`), until a server has read their last output.
* `max_num_queued_tokens` counts the whole prompts of those that have no token yet, hits and chunks not taken off, of
  the one server that asks. The one with the fewest accepts a connection (`entrypoints/launchers/launcher.py`).

Outputs count as read when their client sees them. Every request is taken to come on a connection of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from kvplan.simulation.records import UNSET
from kvplan.simulation.sim_request import SimRequest


class QueueLimits(NamedTuple):
    """What the API servers of one copy of a deployment take in."""

    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    num_servers: int = 1
    """API server processes before all its data-parallel replicas."""

    @property
    def refuse(self) -> bool:
        """Whether there is a limit at all."""
        return self.max_num_queued_reqs is not None or self.max_num_queued_tokens is not None


class _Leaving(NamedTuple):
    """A request that has ended, until its client sees the end."""

    at: int
    server: int
    was_inside: bool


NO_LIMITS = QueueLimits()
"""Everybody is taken in."""


@dataclass(slots=True)
class AdmissionControl:
    """The requests of one copy's API servers."""

    limits: QueueLimits
    num_inside: int = 0
    """Requests that the engine has, or whose last output is still to be read."""
    _server: dict[SimRequest, int] = field(default_factory=dict)
    """Whose connection each request is on."""
    _inside: set[SimRequest] = field(default_factory=set)
    _connections: list[int] = field(init=False)
    _prefilling: list[dict[SimRequest, None]] = field(init=False)
    """By server: those that had no token when last looked at."""
    _leaving: list[_Leaving] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._connections = [0] * self.limits.num_servers
        self._prefilling = [{} for _ in self._connections]

    def refuses(self, request: SimRequest, now: int) -> str:
        """Say which limit a request that comes, or goes on to the engine, would pass; empty if none."""
        self._pass(now)
        reqs, tokens = self.limits.max_num_queued_reqs, self.limits.max_num_queued_tokens
        if reqs is not None and self.num_inside + 1 > reqs:
            return f"max_num_queued_reqs {reqs:,}"
        if tokens is not None and self._queued_tokens(self._server_of(request), now) >= tokens:
            return f"max_num_queued_tokens {tokens:,}"
        return ""

    def come(self, request: SimRequest) -> None:
        """A request has come to a server."""
        self._server[request] = server = self._server_of(request)
        self._connections[server] += 1

    def enter(self, request: SimRequest) -> None:
        """The engine gets it."""
        self._inside.add(request)
        self.num_inside += 1
        self._prefilling[self._server[request]][request] = None

    def leave(self, request: SimRequest, at: int) -> None:
        """It has ended, and its client sees that then; nothing is to be done for one that never came."""
        server = self._server.pop(request, None)
        if server is None:
            return
        was_inside = request in self._inside
        self._inside.discard(request)
        self._prefilling[server].pop(request, None)
        heappush(self._leaving, _Leaving(at, server, was_inside))

    def _pass(self, now: int) -> None:
        while self._leaving and self._leaving[0].at <= now:
            gone = heappop(self._leaving)
            self._connections[gone.server] -= 1
            self.num_inside -= gone.was_inside

    def _server_of(self, request: SimRequest) -> int:
        known = self._server.get(request)
        return self._connections.index(min(self._connections)) if known is None else known

    def _queued_tokens(self, server: int, now: int) -> int:
        prefilling = self._prefilling[server]
        for request in [
            r for r in prefilling if r.first_token != UNSET and r.first_token + r.first_delay <= now
        ]:
            del prefilling[request]
        return sum(request.num_prompt_tokens for request in prefilling)
