"""Waiting queues: first come first served, or by priority (vLLM `v1/core/sched/request_queue.py`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, Protocol, TypeVar


class Ordered(Protocol):
    """Whatever can queue: requests, or what the leap keeps of them. Compares by priority, then arrival."""

    def __lt__(self, other: Any) -> bool: ...


R = TypeVar("R", bound=Ordered)


class FCFSRequestQueue(Generic[R]):
    """Order of arrival; preempted requests return to the front (vLLM: same name)."""

    def __init__(self) -> None:
        self._queue: deque[R] = deque()

    def add_request(self, request: R) -> None:
        """Put a new request at the end."""
        self._queue.append(request)

    def peek_request(self) -> R:
        """Look at the head."""
        return self._queue[0]

    def pop_request(self) -> R:
        """Take the head."""
        return self._queue.popleft()

    def prepend_requests(self, requests: Iterable[R]) -> None:
        """Put requests in front, the last one foremost."""
        self._queue.extendleft(requests)

    def remove_requests(self, requests: Container[R]) -> None:
        """Drop these requests."""
        self._queue = deque(request for request in self._queue if request not in requests)

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[R]:
        return iter(self._queue)


class PriorityRequestQueue(Generic[R]):
    """Smallest priority first, then arrival; there is no front to return to (vLLM: same name)."""

    def __init__(self) -> None:
        self._heap: list[R] = []

    def add_request(self, request: R) -> None:
        """Put a request where its priority says."""
        heappush(self._heap, request)

    def peek_request(self) -> R:
        """Look at the head."""
        return self._heap[0]

    def pop_request(self) -> R:
        """Take the head."""
        return heappop(self._heap)

    def prepend_requests(self, requests: Iterable[R]) -> None:
        """Put requests where their priorities say."""
        for request in requests:
            heappush(self._heap, request)

    def remove_requests(self, requests: Container[R]) -> None:
        """Drop these requests."""
        self._heap = [request for request in self._heap if request not in requests]
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[R]:
        return iter(sorted(self._heap))


QUEUES: dict[str, type[FCFSRequestQueue[Any]] | type[PriorityRequestQueue[Any]]] = {
    "fcfs": FCFSRequestQueue,
    "priority": PriorityRequestQueue,
}
"""Policy -> waiting queue (vLLM `create_request_queue`)."""
