"""Tokens that several running sequences hold in the same blocks: what hardware may read once instead of once each.

A prompt is a path in a tree of segments; a segment's full blocks are shared by all that pass through it. One that was
computed privately although another held it already (both came at once) shares nothing from there on; nobody finds the
last block of a prompt that ends with it, for its last token is always computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvplan.ground.content import Segment
from kvplan.simulation.sim_request import SimRequest

_ROOT = 0


@dataclass(slots=True)
class _Place:
    """A segment in the tree: who holds how much of it."""

    tokens: int
    """Of its full blocks."""
    num_holders: int = 0
    held: int = 0
    """Tokens that they hold, all together; each all of it, or a block less."""


@dataclass(slots=True)
class SharedPrefixes:
    """The prompts of the sequences that decode."""

    block_size: int
    num_redundant: int = 0
    """Tokens that are read again for a further sequence, over all of them."""
    _ids: dict[tuple[int, Segment], int] = field(default_factory=dict)
    _places: dict[int, _Place] = field(default_factory=dict)
    _paths: dict[SimRequest, list[tuple[int, int]]] = field(default_factory=dict)
    """Request -> (place, tokens it holds there)."""

    def add(self, request: SimRequest) -> None:
        """It decodes from now on."""
        if request in self._paths:
            return
        size, path, parent, end = self.block_size, self._paths.setdefault(request, []), _ROOT, 0
        for segment in request.prompt:
            first, end = end // size, end + segment.length
            blocks = end // size - first
            parent = self._ids.setdefault((parent, segment), len(self._ids) + 1)
            place = self._places.setdefault(parent, _Place(blocks * size))
            if place.num_holders:
                is_last = end == request.num_prompt_tokens and not end % size
                blocks -= is_last
                if request.hit_tokens < (first + blocks) * size:
                    return
            self._hold(place, blocks * size, 1)
            path.append((parent, blocks * size))

    def remove(self, request: SimRequest) -> None:
        """It no longer does."""
        for place, tokens in self._paths.pop(request, ()):
            self._hold(self._places[place], tokens, -1)

    def _hold(self, place: _Place, tokens: int, change: int) -> None:
        self.num_redundant -= self._redundant(place)
        place.num_holders += change
        place.held += change * tokens
        self.num_redundant += self._redundant(place)

    def _redundant(self, place: _Place) -> int:
        """What its holders hold beyond one copy of the longest."""
        if place.num_holders < 2:
            return 0
        less = place.tokens - self.block_size
        return place.held - (place.tokens if place.held > place.num_holders * less else less)
