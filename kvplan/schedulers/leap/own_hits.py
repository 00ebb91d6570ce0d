"""What a preempted request finds of its own in the prefix cache: full attention, windows and states.

The policy is `HybridKVCacheCoordinator.find_longest_cache_hit` over the blocks that the request itself has left in the
free queue. Nobody else has such blocks, so all of them are free, and of equal ones the first named is hit.
"""

from __future__ import annotations

from typing import NamedTuple

from kvplan.schedulers.leap.group_sequence import GroupSequence
from kvplan.schedulers.leap.group_tables import CHUNKED, FULL, STATE, Spec
from kvplan.schedulers.leap.groups import Groups
from kvplan.schedulers.leap.named_queue import NamedBlocks, NamedQueue
from kvplan.schedulers.protocol import ContentsMatter

Blocks = list[tuple[int, int]]
"""Disjoint ranges, in order, none touching the next."""


class OwnHits(NamedTuple):
    """A hit of own blocks."""

    num_tokens: int
    junction: int
    """How far one kind alone would have matched, if that is further; else 0."""
    pieces: list[NamedBlocks]
    """The blocks, as parts of what is parked."""

    @property
    def num_blocks(self) -> int:
        """Blocks that leave the free queue."""
        return sum(piece.hi - piece.lo for piece in self.pieces)


NO_OWN_HITS = OwnHits(0, 0, [])


def find_own_hits(groups: Groups, seq: GroupSequence, queue: NamedQueue, max_tokens: int) -> OwnHits:
    """Return the longest prefix of at most `max_tokens` that is there."""
    if not seq.parked and not seq.drops:
        return NO_OWN_HITS
    _forget_taken(seq, queue)
    begun = {extent.group for extent in seq.parked if not extent.lo}
    if not groups.full_groups <= begun:
        return NO_OWN_HITS
    if any(spec.reach % spec.size for spec in groups.chunked):
        raise ContentsMatter("a preempted request may find chunks of its own that end inside a block")
    for drops in seq.drops:
        if drops.end > queue.front:
            drops.resolve()
    seq.drops.clear()
    _forget_taken(seq, queue)
    cached = {spec: _cached(groups, seq, spec) for spec in groups.specs if spec.is_named}
    length, longest = _agree(groups, cached, max_tokens)
    if groups.replay_tokens:
        if length > groups.replay_tokens:
            raise ContentsMatter("a preempted request makes windows again after what it finds of its own")
        return OwnHits(0, longest if longest > length else 0, [])
    pieces = [
        piece
        for group, which in enumerate(groups.order)
        if groups.specs[which] in cached
        for piece in _choose(seq, group, groups.specs[which], length)
    ]
    return OwnHits(length, longest if longest > length else 0, pieces)


def _forget_taken(seq: GroupSequence, queue: NamedQueue) -> None:
    left = (extent.left(queue.front) for extent in seq.parked)
    seq.parked[:] = [extent for extent in left if extent.lo < extent.hi]


def _agree(groups: Groups, cached: dict[Spec, Blocks], max_tokens: int) -> tuple[int, int]:
    """Let each kind shorten the hit until all agree; return it, and the longest on the way."""
    specs = sorted(cached, key=lambda spec: spec.kind != FULL)
    length, longest = max_tokens, 0
    while True:
        current = length
        for spec in specs:
            current = _find(spec, cached[spec], current, groups.alignment)
            longest = max(longest, current)
        if current >= length:
            break
        length = current
        if len(specs) == 1 or (len(specs) == 2 and specs[0].kind == FULL):
            break
    return (length, longest) if len(groups.order) > 1 else (length, 0)


def _find(spec: Spec, blocks: Blocks, max_tokens: int, alignment: int) -> int:
    """Return the longest hit of one kind: from the start, or for a window the last stretch that fills it."""
    unit = max(1, alignment // spec.size)
    most = max_tokens // spec.size
    if spec.kind == FULL:
        end = min(blocks[0][1], most) if blocks and not blocks[0][0] else 0
        return end // unit * unit * spec.size
    if spec.kind == STATE:
        return max((min(hi, most) for lo, hi in blocks if lo < most), default=0) * spec.size
    if spec.kind == CHUNKED:  # earlier chunks are taken for granted
        first = spec.gone(max_tokens)
        return next((min(hi, most) for lo, hi in blocks if lo <= first < hi), first) * spec.size
    for lo, hi in reversed(blocks):
        end = min(hi, most) // unit * unit
        if end > lo and (end - lo >= spec.num_named or not lo):
            return end * spec.size
    return 0


def _cached(groups: Groups, seq: GroupSequence, spec: Spec) -> Blocks:
    """Return the blocks that all groups of a kind have."""
    found: Blocks | None = None
    for group, which in enumerate(groups.order):
        if which == spec.index:
            mine = _union([(extent.lo, extent.hi) for extent in seq.parked if extent.group == group])
            found = mine if found is None else _both(found, mine)
    return found or []


def _union(blocks: Blocks) -> Blocks:
    found: Blocks = []
    for lo, hi in sorted(blocks):
        if found and lo <= found[-1][1]:
            found[-1] = (found[-1][0], max(hi, found[-1][1]))
        else:
            found.append((lo, hi))
    return found


def _both(a: Blocks, b: Blocks) -> Blocks:
    if a == b:
        return a
    both = [(max(lo, low), min(hi, high)) for lo, hi in a for low, high in b]
    return [(lo, hi) for lo, hi in both if lo < hi]


def _choose(seq: GroupSequence, group: int, spec: Spec, num_tokens: int) -> list[NamedBlocks]:
    """Return which copies a hit of so many tokens takes in one group: of each block the one named first."""
    wanted: Blocks = [(spec.gone(num_tokens), num_tokens // spec.size)]
    pieces = []
    for extent in sorted((e for e in seq.parked if e.group == group), key=lambda extent: extent.run):
        rest: Blocks = []
        for lo, hi in wanted:
            first, last = max(lo, extent.lo), min(hi, extent.hi)
            if first >= last:
                rest.append((lo, hi))
                continue
            pieces.append(extent.part(first, last))
            rest += [(lo, first)] * (lo < first) + [(last, hi)] * (last < hi)
        wanted = rest
    assert not [one for one in wanted if one[0] < one[1]], "a hit of blocks that are not there"
    return pieces


def hold(seq: GroupSequence, hits: OwnHits, queue: NamedQueue) -> None:
    """Take the blocks of a hit out of the queue."""
    for piece in hits.pieces:
        queue.remove(piece.number, piece.hi - piece.lo)
        at = next(i for i, extent in enumerate(seq.parked) if extent.holds(piece))
        whole = seq.parked.pop(at)
        if piece.hi < whole.hi:
            seq.parked.append(whole.part(piece.hi, whole.hi))
        if whole.lo < piece.lo:
            seq.parked.append(whole.part(whole.lo, piece.lo))
    seq.inherited = hits.pieces
