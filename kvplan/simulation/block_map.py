"""Who owns which KV blocks at sampled moments of a step-by-step run: real block ids of the engine's own pool.

    blocks = BlockMap()
    simulate(scenario, step_by_step=True, observer=Observer(on_sample=blocks.look))

A leaping run has no block ids, so nothing is noted of one. Knows blocks and request ids, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.block_pool import BlockPool

MAX_MOMENTS = 128
"""When there are more, every other one goes."""


class Extent(NamedTuple):
    """Consecutive blocks with the same owners."""

    first: int
    length: int
    owners: tuple[str, ...]
    """Ids of the requests that hold them; several: shared; none: free, but cached."""


class TierSlots(NamedTuple):
    """Slots of one engine's tier beyond the GPU."""

    moving: int
    """Read or written by a copy."""
    resting: int
    """Filled otherwise: to be loaded, or evicted."""
    free: int


class ChunkPlaces(NamedTuple):
    """Chunks of one engine beyond its GPU, by where they lie."""

    host_only: int
    """Lost if evicted: not in files, or on the way there."""
    both: int
    files_only: int
    """Forgotten by host memory: they come back through it."""


class Moment(NamedTuple):
    """All blocks of all replicas at one time; blocks in no extent are free and empty."""

    time_s: float
    replicas: tuple[tuple[Extent, ...], ...]
    tiers: tuple[TierSlots | None, ...] = ()
    """By replica; None where it has none."""
    places: tuple[ChunkPlaces | None, ...] = ()
    """By replica; None where it has no files below host memory."""


class Holding(NamedTuple):
    """What one request holds at a moment."""

    request: str
    num_blocks: int
    num_shared: int
    """Of these, held by other requests too."""
    ids: str
    """As `0-3,7`."""


@dataclass(slots=True)
class BlockMap:
    """Notes block owners; `look` is an observer's `on_sample`."""

    max_moments: int = MAX_MOMENTS
    moments: list[Moment] = field(default_factory=list)
    num_blocks: int = 0
    """Of one replica's pool, the null block (id 0) included."""
    block_size: int = 0
    _stride: int = 1
    _seen: int = 0

    def look(self, time_s: float, replicas: Sequence[Any]) -> None:
        """Note this moment, unless moments come too close for the memory they take."""
        engines = [r.engine for r in replicas if isinstance(r.engine, StepByStep)]
        self._seen += 1
        if not engines or (self._seen - 1) % self._stride:
            return
        self.num_blocks = max(e.config.num_gpu_blocks for e in engines)
        self.block_size = engines[0].config.block_size
        self.moments.append(
            Moment(
                time_s,
                tuple(map(extents, engines)),
                tuple(map(tier_slots, engines)),
                tuple(map(chunk_places, engines)),
            )
        )
        if len(self.moments) >= self.max_moments:
            del self.moments[1::2]
            self._stride *= 2

    @property
    def high_water(self) -> int:
        """One more than the largest block id that was ever held or cached."""
        ends = (e.first + e.length for m in self.moments for r in m.replicas for e in r)
        return max(ends, default=0)

    def at(self, time_s: float) -> Moment:
        """The last moment noted up to a time, else the first."""
        earlier = [m for m in self.moments if m.time_s <= time_s]
        return earlier[-1] if earlier else self.moments[0]


def extents(engine: StepByStep) -> tuple[Extent, ...]:
    """An engine's blocks now, runs of equal owners joined."""
    manager = engine.scheduler.kv_cache_manager
    owners: dict[int, list[str]] = {block: [] for block in _cached(manager.block_pool)}
    for one in manager.coordinator.managers:
        for request, table in one.req_to_blocks.items():
            for block in table:
                if not block.is_null:
                    owners.setdefault(block.block_id, []).append(request)
    return tuple(_joined((block, tuple(who)) for block, who in sorted(owners.items())))


def tier_slots(engine: StepByStep) -> TierSlots | None:
    """The slots of an engine's tier now; None where it has none."""
    loads = engine.scheduler.loads
    if loads is None:
        return None
    manager = loads.connector.manager
    return TierSlots(
        manager.num_pinned, manager.num_used - manager.num_pinned, manager.num_chunks - manager.num_used
    )


def chunk_places(engine: StepByStep) -> ChunkPlaces | None:
    """Where an engine's chunks lie now; None where no files lie below host memory."""
    loads = engine.scheduler.loads
    if loads is None or not engine.secondary_tiers:
        return None
    manager = loads.connector.manager
    files = frozenset[int]().union(*(tier.chunks for tier in engine.secondary_tiers))
    both = sum(manager.policy.get(key) is not None for key in files)
    return ChunkPlaces(manager.num_used - both, both, len(files) - both)


def _cached(pool: BlockPool) -> Iterable[int]:
    return (block.block_id for block in pool.free_block_queue if block.block_hash is not None)


def _joined(blocks: Iterable[tuple[int, tuple[str, ...]]]) -> Iterable[Extent]:
    now: Extent | None = None
    for block, who in blocks:
        if now is not None and now.first + now.length == block and now.owners == who:
            now = now._replace(length=now.length + 1)
            continue
        if now is not None:
            yield now
        now = Extent(block, 1, who)
    if now is not None:
        yield now


def holdings(found: Sequence[Extent]) -> list[Holding]:
    """Request by request, the one with most blocks first."""
    named = ranges(found)
    total = {who: 0 for who in named if who}
    shared = dict(total)
    for extent in found:
        for who in extent.owners:
            total[who] += extent.length
            shared[who] += extent.length * (len(extent.owners) > 1)
    rows = [Holding(who, total[who], shared[who], named[who]) for who in total]
    return sorted(rows, key=lambda row: (-row.num_blocks, len(row.request), row.request))


def ranges(found: Sequence[Extent]) -> dict[str, str]:
    """Request -> the ids of its blocks, as `0-3,7`; the empty name has the cached free ones.

    >>> ranges([Extent(1, 4, ("a", "b")), Extent(5, 1, ("a",)), Extent(9, 1, ("a",))])
    {'a': '1-5,9', 'b': '1-4'}
    """
    pieces: dict[str, list[list[int]]] = {}
    for extent in found:
        end = extent.first + extent.length
        for who in extent.owners or ("",):
            mine = pieces.setdefault(who, [])
            if mine and mine[-1][1] == extent.first:
                mine[-1][1] = end
            else:
                mine.append([extent.first, end])
    return {
        who: ",".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in mine)
        for who, mine in pieces.items()
    }
