"""Waiting queues: first come first served, or by priority (vLLM `v1/core/sched/request_queue.py`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, Protocol, TypeVar


class Queued(Protocol):
    """Whatever can queue: requests, or what the leap keeps of them."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What a priority queue compares: priority, then arrival; no two have the same."""


R = TypeVar("R", bound=Queued)


class FCFSRequestQueue(deque[R], Generic[R]):
    """Order of arrival; preempted requests return to the front (vLLM: same name, a deque as well)."""

    def add_request(self, request: R) -> None:
        """Put a new request at the end."""
        self.append(request)

    def peek_request(self) -> R:
        """Look at the head."""
        return self[0]

    def pop_request(self) -> R:
        """Take the head."""
        return self.popleft()

    def prepend_requests(self, requests: Iterable[R]) -> None:
        """Put requests in front, the last one foremost."""
        self.extendleft(requests)

    def remove_requests(self, requests: Container[R]) -> None:
        """Drop these requests."""
        kept = [request for request in self if request not in requests]
        self.clear()
        self.extend(kept)


class PriorityRequestQueue(Generic[R]):
    """Smallest priority first, then arrival; there is no front to return to (vLLM: same name). A heap."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[Any, ...], R]] = []

    def add_request(self, request: R) -> None:
        """Put a request where its priority says."""
        heappush(self._heap, (request.key, request))

    def peek_request(self) -> R:
        """Look at the head."""
        return self._heap[0][1]

    def pop_request(self) -> R:
        """Take the head."""
        return heappop(self._heap)[1]

    def prepend_requests(self, requests: Iterable[R]) -> None:
        """Put requests where their priorities say."""
        for request in requests:
            self.add_request(request)

    def remove_requests(self, requests: Container[R]) -> None:
        """Drop these requests."""
        self._heap = [entry for entry in self._heap if entry[1] not in requests]
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def __contains__(self, request: object) -> bool:
        return any(one is request for _, one in self._heap)

    def __iter__(self) -> Iterator[R]:
        return (request for _, request in sorted(self._heap))


QUEUES: dict[str, type[FCFSRequestQueue[Any]] | type[PriorityRequestQueue[Any]]] = {
    "fcfs": FCFSRequestQueue,
    "priority": PriorityRequestQueue,
}
"""Policy -> waiting queue (vLLM `create_request_queue`)."""
