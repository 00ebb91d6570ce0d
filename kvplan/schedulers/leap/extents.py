"""The block pool and prefix cache of the leap: extents of blocks, never an object per block.

Decides what `kv_cache_manager` and `block_pool` decide for full attention:

* The free queue is always unhashed blocks first, hashed ones behind. Unhashed ones are alike: a number. Hashed ones
  are a linked list of `Piece`s; of the front piece the deep end is taken first, since a request gives its blocks back
  in reverse.
* What a request computes after one admission is a `BlockRun`. How much of it is hashed follows from the tokens its
  owner has computed; nothing is written down while it grows.
* A hit holds a stretch of another run, which is cut into pieces at the stretch's ends; pieces are never joined again,
  so a table can name a run and two depths.

Knows runs, pieces and who holds them. Does not know queues, budgets or when anything happens.
"""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

from kvplan.schedulers.leap.contents import ContentTrie
from kvplan.schedulers.leap.state import BlockRun, Hit, Hold, Path, Piece, Sequence, Trunk


class PrefixHits(NamedTuple):
    """The longest prefix found in the cache."""

    stretches: list[Hit]
    """Behind those that `hold` stands for."""
    num_blocks: int
    num_evictable: int
    """How many of them lie in the free queue."""
    num_found: int = 0
    """With the one that a drafter leaves out."""
    hold: Hold | None = None
    """What others hold of it already."""


NO_HITS = PrefixHits([], 0, 0)
NAMELESS = BlockRun(None, 0)
NAMELESS_TRUNK = Trunk(None, (0, "", 0), None)
"""Of pieces whose blocks have no name."""


class ExtentPool:
    """Free blocks and cached contents of one engine with one full-attention group.

    `hash_lag` is 1 under asynchronous scheduling, where the token of the step in flight is not known yet. Hits leave
    out their last block if they are to be dropped for a drafter that needs its hidden states (EAGLE, MTP), or blocks
    are hashed with `lookahead` tokens after them.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_caching: bool,
        hash_lag: int,
        unhashed_first: bool = True,
        drops_last_hit: bool = False,
        lookahead: int = 0,
    ) -> None:
        self.block_size = block_size
        self.drops_last_hit = drops_last_hit
        self.lookahead = lookahead
        self.hash_lag = hash_lag
        self.num_free = num_blocks
        self.num_taken = 0
        self.num_evicted = 0
        self.trie = ContentTrie(block_size, lookahead) if enable_caching else None
        self.num_unhashed = num_blocks
        self._owed = 0
        """Blocks taken from the front of the queue of hashed ones; they leave it before somebody looks for hits."""
        self._queue = Piece(NAMELESS, NAMELESS_TRUNK, 0, 0, 0)
        self._queue.next = self._queue.prev = self._queue
        self.unhashed_first = unhashed_first or not enable_caching
        if not self.unhashed_first:
            self._line_up(num_blocks)

    # --- taking and giving back -------------------------------------------------------------

    def take(self, num_blocks: int) -> None:
        """Take blocks from the front of the free queue (vLLM `get_new_blocks`)."""
        self.num_taken += num_blocks
        self.num_free -= num_blocks
        if not self.unhashed_first:
            self._take_in_line(num_blocks)
            return
        self.num_unhashed -= num_blocks
        if self.num_unhashed < 0:
            self.num_evicted -= self.num_unhashed
            self._owed -= self.num_unhashed
            self.num_unhashed = 0

    def _evict(self, num_blocks: int) -> None:
        while num_blocks:
            piece = self._queue.next
            length = piece.hi - piece.lo
            if length > num_blocks:
                piece.hi -= num_blocks
                return
            num_blocks -= length
            self._unlink(piece)
            self._drop(piece)

    def _line_up(self, num_blocks: int) -> None:
        """Put blocks without a name at the tail of the queue, as versions did that took blocks as they were freed."""
        if num_blocks and not self.unhashed_first:
            self._link(Piece(NAMELESS, NAMELESS_TRUNK, 0, num_blocks, 0), self._queue.prev)

    def _take_in_line(self, num_blocks: int) -> None:
        while num_blocks:
            piece = self._queue.next
            if piece.run is not NAMELESS:
                evicted = min(num_blocks, piece.hi - piece.lo)
                self.num_evicted += evicted
                self._evict(evicted)
                num_blocks -= evicted
                continue
            taken = min(num_blocks, piece.hi)
            piece.hi -= taken
            self.num_unhashed -= taken
            num_blocks -= taken
            if not piece.hi:
                self._unlink(piece)

    def release(self, seq: Sequence, num_held: int, num_hashed: int) -> None:
        """Give back a whole table, deep end first (vLLM `free`): unhashed to the queue's front, hashed to its tail."""
        num_hashed = min(num_hashed, seq.cacheable // self.block_size)
        run = seq.run
        if run is None:
            self.num_free += num_held
            self.num_unhashed += num_held
            return
        self.num_free += num_held - num_hashed
        self.num_unhashed += num_held - num_hashed
        self._line_up(num_held - num_hashed)
        for piece in reversed(run.pieces[:]):
            self._give_back(piece, num_hashed)
        self._release_hold(seq.hold, num_hashed)
        run.owner, run.base = None, seq.base
        seq.run = seq.hold = None

    def _release_hold(self, hold: Hold | None, num_hashed: int) -> None:
        """Let go of hits from the last one on, up to where others hold them."""
        while hold is not None:
            hold.refs -= 1
            if hold.refs:
                return
            other, lo, hi = hold.hit
            for piece in reversed(other.pieces[:]):
                if lo <= piece.lo < hi:
                    self._give_back(piece, num_hashed)
            if hold.trunk.hold is hold:
                hold.trunk.hold = None
            hold = hold.before

    def _give_back(self, piece: Piece, num_hashed: int) -> None:
        """Let go of what stays cached of a piece; the rest loses its name."""
        if piece.lo >= num_hashed:
            self._drop(piece)
            return
        if piece.hi > num_hashed:
            piece.hi = num_hashed
        self._let_go(piece)

    def _let_go(self, piece: Piece) -> None:
        piece.refs -= 1
        if not piece.refs:
            self.num_free += piece.hi - piece.lo
            self._link(piece, self._queue.prev)

    def forget(self, seq: Sequence) -> None:
        """Drop a request that has ended; what it computed stays cached."""
        if seq.path and self.trie is not None:
            self.trie.leave(seq.path[-1][0])
            seq.path = ()

    # --- prefix cache -----------------------------------------------------------------------

    def adopt(self, seq: Sequence, hits: PrefixHits, when: int) -> None:
        """Hold an admitted request's hits and follow what it computes; its first chunk is hashed at `when`."""
        if self.trie is None:
            return
        hold = hits.hold
        for hit in hits.stretches:
            trunk = self._touch(hit).trunk
            trunk.hold = Hold(hold, hit, trunk)
            if hold is not None:
                hold.refs += 1
            hold = trunk.hold
        if hold is not None:
            hold.refs += 1
        seq.hold = hold
        run = seq.run = BlockRun(seq, seq.admission)
        run.marks.append((min(seq.computed, seq.num_tokens - self.lookahead) // self.block_size, when, 0))
        first = hits.num_blocks
        behind = takewhile(lambda part: part[2] > first, reversed(seq.path))
        for trunk, lo, hi in reversed([*behind]):
            piece = Piece(run, trunk, max(lo, first), hi, 1)
            run.pieces.append(piece)
            trunk.pieces.append(piece)
            trunk.refs += 1

    def _touch(self, hit: Hit) -> Piece:
        """Hold hit blocks; free ones leave the queue (vLLM `touch`)."""
        piece = self._cut(hit)
        if not piece.refs:
            self.num_free -= piece.hi - piece.lo
            self._unlink(piece)
        piece.refs += 1
        return piece

    def find_longest_cache_hit(self, seq: Sequence, max_blocks: int, now: int) -> PrefixHits:
        """Return the longest cached prefix of at most `max_blocks`; of equal blocks the one hashed first."""
        if self.trie is None:
            return NO_HITS
        if self._owed:
            self._evict(self._owed)
            self._owed = 0
        if not seq.path:
            seq.path = self.trie.enter(seq.request)
        hits: list[Hit] = []
        evictable = 0
        at, hold = self._held(seq.path, max_blocks)
        depth = hold.hit.hi if hold is not None else 0
        for trunk, _, hi in seq.path[at:]:
            end = min(hi, max_blocks)
            while depth < end:
                piece, stop = self._first_copy(trunk.pieces, depth, end, now)
                if piece is None:
                    return self._hits(hits, depth, evictable, hold) if depth else NO_HITS
                hits.append(Hit(piece.run, depth, stop))
                evictable += 0 if piece.refs else stop - depth
                depth = stop
        return self._hits(hits, depth, evictable, hold)

    def _held(self, path: Path, max_blocks: int) -> tuple[int, Hold | None]:
        """Return the deepest hits of a path that somebody holds now, and the part of the path where they end.

        They are what looking from the start would find: what is held does not leave, and of equal blocks the one that
        was hashed first when they were found stays the first.
        """
        if not self.drops_last_hit:
            for at in range(len(path) - 1, -1, -1):
                trunk, _, hi = path[at]
                if trunk.hold is not None and trunk.hold.hit.hi <= min(hi, max_blocks):
                    return at, trunk.hold
        return 0, None

    def _hits(self, hits: list[Hit], num_blocks: int, num_evictable: int, hold: Hold | None) -> PrefixHits:
        """What was found, less the block that a drafter leaves out."""
        if not (self.drops_last_hit and num_blocks):
            return PrefixHits(hits, num_blocks, num_evictable, num_blocks, hold)
        run, lo, hi = hits.pop()
        is_free = not next(piece for piece in run.pieces if piece.lo <= lo < piece.hi).refs
        if lo < hi - 1:
            hits.append(Hit(run, lo, hi - 1))
        return PrefixHits(hits, num_blocks - 1, num_evictable - is_free, num_blocks)

    def _first_copy(self, pieces: list[Piece], depth: int, end: int, now: int) -> tuple[Piece | None, int]:
        """Return the copy of the block at `depth` that was hashed first, and up to where it surely stays the first."""
        if len(pieces) == 1 and pieces[0].lo <= depth < pieces[0].hi and pieces[0].run.owner is None:
            return pieces[0], min(end, pieces[0].hi)
        found: list[Piece] = []
        for piece in pieces:
            if piece.lo > depth:
                end = min(end, piece.lo)
                continue
            owner = piece.run.owner
            hashed = min(piece.hi, self.hashed_at(owner, now)) if owner else piece.hi
            if hashed > depth:
                found.append(piece)
                end = min(end, hashed)
        if len(found) < 2:
            return (found[0], end) if found else (None, depth)
        return min(found, key=lambda piece: self._when_hashed(piece.run, depth)), depth + 1

    def hashed_at(self, seq: Sequence, now: int) -> int:
        """Full blocks of a running sequence that are hashed in the step that was scheduled last."""
        return self.num_hashed(seq, seq.computed_at(now))

    def num_hashed(self, seq: Sequence, computed: int) -> int:
        """Full blocks, of a running sequence's `computed` tokens, whose content is known and therefore hashed."""
        if self.hash_lag and computed > seq.known:
            computed -= 1
        return min(computed, seq.cacheable) // self.block_size

    def _when_hashed(self, run: BlockRun, depth: int) -> tuple[int, int]:
        base = run.owner.base if run.owner else run.base
        for hi, when, base_then in run.marks:
            if depth < hi:
                if when is not None:
                    return when, run.admission
                base = base_then
                break
        return 2 * ((depth + 1) * self.block_size - 1 + self.hash_lag - base), run.admission

    def growing_at(self, path: Path, depth: int) -> list[Sequence]:
        """Return the running sequences that will hash the block at `depth` of a path when they get there."""
        for trunk, lo, hi in path:
            if lo <= depth < hi:
                owners = (p.run.owner for p in trunk.pieces if p.lo <= depth < p.hi)
                return [o for o in owners if o is not None and depth < o.cacheable // self.block_size]
        return []

    # --- pieces -----------------------------------------------------------------------------

    def _cut(self, hit: Hit) -> Piece:
        """Cut the piece that is exactly a hit out of its run; of a free one the deep rest stays in front."""
        pieces = hit.run.pieces
        if pieces[0].lo == hit.lo and pieces[0].hi == hit.hi:
            return pieces[0]
        at = next(i for i, piece in enumerate(pieces) if piece.lo <= hit.lo < piece.hi)
        piece = pieces[at]
        if piece.hi > hit.hi:
            deep = Piece(piece.run, piece.trunk, hit.hi, piece.hi, piece.refs)
            pieces.insert(at + 1, deep)
            self._adopt(deep, piece.prev if not piece.refs else None)
            piece.hi = hit.hi
        if piece.lo < hit.lo:
            shallow = Piece(piece.run, piece.trunk, piece.lo, hit.lo, piece.refs)
            pieces.insert(at, shallow)
            self._adopt(shallow, piece if not piece.refs else None)
            piece.lo = hit.lo
        return piece

    def _adopt(self, piece: Piece, after: Piece | None) -> None:
        piece.trunk.pieces.append(piece)
        piece.trunk.refs += 1
        if after is not None:
            self._link(piece, after)

    def _drop(self, piece: Piece) -> None:
        piece.run.pieces.remove(piece)
        piece.trunk.pieces.remove(piece)
        assert self.trie is not None
        self.trie.leave(piece.trunk)

    def _link(self, piece: Piece, after: Piece) -> None:
        piece.prev, piece.next = after, after.next
        after.next.prev = after.next = piece

    def _unlink(self, piece: Piece) -> None:
        piece.prev.next, piece.next.prev = piece.next, piece.prev
