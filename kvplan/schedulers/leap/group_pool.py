"""The block pool of engines with several groups, by numbers: no block and no content is written down.

The free queue is always blocks without a name first, named ones behind; both are counted. Of the named ones a request
knows its own (`named_queue`), and finds them again after a preemption. That serves while no two requests share content
(`ContentsMatter`).
"""

from __future__ import annotations

from kvplan.schedulers.leap.drops import Drops
from kvplan.schedulers.leap.extents import NO_HITS, PrefixHits
from kvplan.schedulers.leap.group_batch import GroupBatch
from kvplan.schedulers.leap.group_sequence import GroupSequence
from kvplan.schedulers.leap.group_tables import CHUNKED, STATE, WHOLE, WINDOW, Returned, Spec, StateTable
from kvplan.schedulers.leap.groups import Groups
from kvplan.schedulers.leap.named_queue import NamedBlocks, NamedQueue, run_of
from kvplan.schedulers.leap.own_hits import NO_OWN_HITS, OwnHits, find_own_hits, hold
from kvplan.schedulers.leap.state import Path, Sequence


class GroupPool:
    """Free blocks of one engine, counted."""

    def __init__(self, num_blocks: int, groups: Groups) -> None:
        self.groups = groups
        self.is_async = bool(groups.lag)
        self.caches = groups.config.enable_prefix_caching
        self.num_free = self.num_unhashed = num_blocks
        self.num_taken = 0
        self.num_evicted = 0
        self.trie = None
        self.queue = NamedQueue()
        self.parks = False
        """Whether tables given back now are those of requests that may come again."""

    # --- taking and giving back -------------------------------------------------------------

    def take(self, num_blocks: int) -> None:
        """Take blocks from the front of the free queue (vLLM `get_new_blocks`)."""
        self.num_taken += num_blocks
        self.num_free -= num_blocks
        self.num_unhashed -= num_blocks
        if self.num_unhashed < 0:
            self._evict(-self.num_unhashed)

    def _evict(self, num_blocks: int) -> None:
        self.num_evicted += num_blocks
        self.num_unhashed += num_blocks
        self.queue.take(num_blocks)

    def advance(self, takes: int, unnamed: int, named: int, lead: int) -> int:
        """Take and give back what several steps do, in which takes led unnamed returns by `lead` at most.

        Return the number in the queue of the first named block.
        """
        first = self.queue.join(named)
        self.num_taken += takes
        if lead > self.num_unhashed:
            self._evict(lead - self.num_unhashed)
        self.num_unhashed += unnamed - takes
        self.num_free += unnamed + named - takes
        return first

    def pass_steps(self, batch: GroupBatch, num_steps: int) -> None:
        """Let all decode for so many steps; nobody lacks a block in them."""
        start, end = batch.num_steps, batch.num_steps + num_steps
        while batch.num_steps < end:
            some = min(end, batch.next_name()) - batch.num_steps
            self._pass_steps(batch, some)
            batch.num_steps += some
            if batch.num_steps < end:
                batch.settle_names()
        batch.num_steps = start

    def _pass_steps(self, batch: GroupBatch, num_steps: int) -> None:
        """The same, where the same blocks have names."""
        takes, unnamed, named = batch.flow(num_steps)
        lead = 0
        if self.caches and takes > self.num_unhashed:
            lead = batch.lead_of_takes(num_steps, self.num_unhashed)
        first = self.advance(takes, unnamed, named, lead)
        if named and self.groups.parks:
            dropping = batch.dropping()
            drops = Drops(
                self.groups, first, first + named, batch.num_steps, batch.num_steps + num_steps,
                [one for _, one in dropping],
            )  # fmt: skip
            for seq, _ in dropping:
                seq.drops.append(drops)

    def give(
        self, seq: GroupSequence, gone: int, table: StateTable | None, processed: int, returned: Returned
    ) -> None:
        """Give back what one request leaves behind: blocks without a name to the front, the others to the tail."""
        self.num_unhashed += returned.unnamed
        self.num_free += returned.unnamed + returned.named
        if not returned.named:
            return
        number = self.queue.join(returned.named)
        if self.groups.parks:
            for group, which in enumerate(self.groups.order):
                spec = self.groups.specs[which]
                if spec.kind in (WINDOW, CHUNKED):
                    blocks = self._named(seq, spec, spec.gone(gone), spec.gone(processed), processed)
                    number = self._park(seq, group, blocks, number)
                elif spec.kind == STATE and table is not None:
                    number = self._park(seq, group, table.named_behind(processed, spec.size), number)

    def _named(self, seq: GroupSequence, spec: Spec, lo: int, hi: int, hashed: int) -> list[tuple[int, int]]:
        """Return the named blocks among `lo .. hi - 1` of a table without gaps."""
        if spec.kind == WINDOW:
            ranges = self.groups.named_ranges(seq, spec, hashed, lo)
            return [(first, min(last, hi)) for first, last in ranges if first < hi]
        end = lo + self.groups.named_in(seq, spec, lo, hi, hashed)
        return [(lo, end)] if lo < end else []

    def _park(self, seq: GroupSequence, group: int, blocks: list[tuple[int, int]], number: int) -> int:
        """Note where a request's own blocks are in the queue, the last one first; return the next number."""
        held = [extent for extent in seq.inherited if extent.group == group]
        for lo, hi in reversed(blocks):
            # What was hit got its name in an earlier admission: cut there.
            cuts = {lo, hi, *(cut for extent in held for cut in (extent.lo, extent.hi) if lo < cut < hi)}
            stop = hi
            for start in sorted(cuts)[-2::-1]:
                run = run_of(held, group, start, seq.admission)
                seq.parked.append(NamedBlocks(group, start, stop, number, run))
                number += stop - start
                stop = start
        return number

    def num_hashed(self, seq: Sequence, computed: int) -> int:
        """Return how many of a running sequence's `computed` tokens are known."""
        return computed - 1 if self.is_async and computed > seq.known else computed

    def release(self, seq: Sequence, num_held: int, num_hashed: int) -> None:
        """Give back all of a request's tables, which have slots for `num_held` tokens (vLLM `free`)."""
        assert isinstance(seq, GroupSequence)
        groups, unnamed, named = self.groups, 0, 0
        number = self.queue.tail
        for group, which in enumerate(groups.order):
            spec = groups.specs[which]
            if spec.kind == STATE:
                assert seq.states is not None
                held, some = len(seq.states.live), sum(seq.states.live.values())
                if some and self.parks:
                    self._park(
                        seq,
                        group,
                        [(i, i + 1) for i in sorted(seq.states.live) if seq.states.live[i]],
                        number,
                    )
            elif spec.kind == WHOLE:
                held, some = int(num_held > 0), 0
            else:
                gone, end = spec.gone(seq.gone), -(-num_held // spec.size)
                held, some = end - gone, groups.named_in(seq, spec, gone, end, num_hashed)
                if some and self.parks:
                    self._park(seq, group, self._named(seq, spec, gone, end, num_hashed), number)
            number += some
            unnamed, named = unnamed + held - some, named + some
        self.queue.join(named)
        self.num_unhashed += unnamed
        self.num_free += unnamed + named
        seq.reset()

    # --- own hits ---------------------------------------------------------------------------

    def own_hits(self, seq: GroupSequence, max_tokens: int) -> OwnHits:
        """Return what a request finds of its own."""
        if not self.caches or not seq.admission:
            return NO_OWN_HITS
        return find_own_hits(self.groups, seq, self.queue, max_tokens)

    def adopt(self, seq: Sequence, hits: PrefixHits, when: int) -> None:
        """Start an admitted request's tables, with its own blocks if it found any."""
        assert isinstance(seq, GroupSequence)
        seq.reset()
        seq.states = self.groups.new_states(hits.num_blocks)
        found = self.own_hits(seq, seq.num_tokens - 1) if hits.num_blocks else NO_OWN_HITS
        assert found.num_tokens == hits.num_blocks, (found, hits)
        seq.gone = found.num_tokens
        seq.inherited = []
        if found.pieces:
            hold(seq, found, self.queue)
            self.num_free -= found.num_blocks
        seq.ends = self.groups.ends_of(seq, found.num_tokens)

    def find_longest_cache_hit(self, seq: Sequence, max_blocks: int, now: int) -> PrefixHits:
        """Return no hit: nobody shares any."""
        return NO_HITS

    def growing_at(self, path: Path, depth: int) -> list[Sequence]:
        """Return the running sequences that will hash the block at `depth` of a path: nobody shares any."""
        return []

    def forget(self, seq: Sequence) -> None:
        """Drop a request that has ended."""
