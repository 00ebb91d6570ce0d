"""The decoding sequences of an engine whose groups give blocks back: in which steps how many come and go.

Histograms of phases say what any number of steps takes and gives back (`groups` has the rules), whatever the number is.
They are twice a period long, so that the phases of up to a period of steps are one slice.
What is irregular is kept beside them: the first step after a prompt gives back what the last chunk left behind, under
asynchronous scheduling the second one too; a window gives back nothing before it is full; a chunk gives all it has at
once. A leap ends where one of these is due.

In a step each sequence first gives back and then takes, in order of admission: blocks that come back late in a step do
not help those before.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import accumulate
from operator import add, mul, sub

from kvplan.schedulers.leap.batch import DecodeBatch
from kvplan.schedulers.leap.drops import Dropping
from kvplan.schedulers.leap.group_sequence import Counted, GroupSequence
from kvplan.schedulers.leap.group_tables import WINDOW, Returned, Spec, StateTable
from kvplan.schedulers.leap.groups import Groups
from kvplan.schedulers.leap.state import DECODE, Sequence
from kvplan.schedulers.protocol import FreeBlocks
from kvplan.schedulers.request import NEVER

TAKES, RETURNS, NAMED, NAMED_END = range(4)
"""The histograms, and what ends an entry of the last."""
Due = tuple[int, int, int, int, GroupSequence, Spec]
"""(step, admission, what, base, sequence, spec); one whose sequence has moved on is skipped."""
Irregular = tuple[GroupSequence, int, int, Returned]
"""(sequence, admission, base, what comes back beside the histograms)."""
NOTHING_BACK = Returned(0, 0)
Events = tuple[GroupSequence, int, int, int]
"""(sequence, blocks that it gives back in a step without a name, and with one, and then takes)."""


class GroupBatch(DecodeBatch):
    """Blocks that come and go with the decoding sequences of an engine, and the step counter."""

    __slots__ = (
        "_chunks", "_dropping", "_due", "_events", "_frees", "_irregular", "_leads", "_lends",
        "_names", "_takes", "groups", "lag", "lends_a_period", "period", "shortest", "takes_a_period", "trend",
    )  # fmt: skip

    def __init__(self, groups: Groups) -> None:
        super().__init__(1)
        self.groups, self.lag, self.period = groups, groups.lag, groups.period
        self.shortest = min((size for size, _ in groups.takes), default=1)
        self._takes = [0] * (2 * self.period)
        """By step modulo the period: blocks taken."""
        self._frees = [0] * (2 * self.period)
        """Likewise: blocks given back by windows and states, less those taken."""
        self._lends = [0] * (2 * self.period)
        """Likewise: blocks taken, less those given back without a name."""
        self.takes_a_period = self.trend = self.lends_a_period = 0
        """Their sums over one period."""
        self._irregular: dict[int, list[Irregular]] = {}
        """By step: what comes back beside the histograms, in the next step and the one after it."""
        self._dropping: dict[int, GroupSequence] = {}
        """By admission: those that may leave named blocks behind."""
        self._due: list[Due] = []
        """Heap of what changes the histograms: any time in the `shortest` steps up to its own."""
        self._names: list[Due] = []
        """Likewise, of which blocks have names: what a leap adds up in pieces."""
        self._leads: dict[tuple[int, bool], int] = {}
        """What `_lead` has found by phase, as long as nothing changes there."""
        self._chunks: list[Due] = []
        """Heap of the steps in which a sequence leaves a chunk behind."""
        self._events: list[dict[int, Events]] = [{} for _ in range(self.period)]
        """Likewise, by admission: what each sequence adds to the histograms."""

    # --- coming and going -------------------------------------------------------------------

    def start(self, seq: Sequence) -> None:
        """Let a sequence decode from the next step on: all its tokens are computed."""
        assert isinstance(seq, GroupSequence)
        super().start(seq)
        self._enter(seq, self.num_steps)

    def stop(self, seq: Sequence) -> None:
        """Take a sequence out, what it holds written down; its stage is the caller's to set."""
        assert isinstance(seq, GroupSequence)
        self._write_down(seq)
        self._leave(seq)
        super().stop(seq)

    def pass_over(self, seq: Sequence) -> None:
        """Let a sequence miss the step that is being scheduled: it ends one later."""
        assert isinstance(seq, GroupSequence)
        self._write_down(seq)
        self._leave(seq)
        super().pass_over(seq)
        self._enter(seq, self.num_steps + 1)

    def _enter(self, seq: GroupSequence, step: int) -> None:
        """Count a sequence in that decodes next in `step`; after one step (two, if asynchronous) it is regular."""
        groups, base = self.groups, seq.base
        computed = base + step
        seq.entered, seq.before = step, []
        seq.first_processed = computed - seq.tokens_in_flight(step, self.lag)
        until = [seq.first_processed, computed][: 1 + self.lag]
        gone, table = seq.gone, seq.states
        for i, processed in enumerate(until):
            seq.before.append((gone, table))
            if table is not None:
                table = table.copy()
            returned = groups.give_back(seq, gone, table, processed)
            gone = processed
            if table is not None and groups.state is not None:
                table.take(computed + 1 + i, groups.state.size, 0)
            if returned != NOTHING_BACK:
                self._note_irregular(step + i, seq, returned)
        for size, count in groups.takes:
            self._count(seq, TAKES, base, size, count)
        names_states = seq.states is not None and any(seq.states.live.values())
        seq.drops_until = step + self.lag if names_states else -1
        for spec in groups.returning:
            self._expect(seq, spec, computed + 1)
        for spec in groups.chunked:
            self._expect_chunk(seq, spec, computed + 1)
            seq.drops_until = NEVER if groups.parks else -1
        if seq.drops_until >= step:
            self._dropping[seq.admission] = seq

    def _note_irregular(self, step: int, seq: GroupSequence, returned: Returned) -> None:
        self._irregular.setdefault(step, []).append((seq, seq.admission, seq.base, returned))

    def _step_of(self, seq: GroupSequence, processed: int) -> int:
        """Return the step that begins with so many tokens processed."""
        return processed - seq.base + self.lag

    def _expect(self, seq: GroupSequence, spec: Spec, processed: int) -> None:
        """Note from when on a group's blocks come back regularly, and which of them have names."""
        first = spec.next_return(processed)
        self._file(self._due, seq, spec, RETURNS, self._step_of(seq, first))
        if spec.kind == WINDOW:
            index = spec.gone(first) - 1
            for lo, hi in self.groups.named_ranges(seq, spec, NEVER, spec.gone(seq.gone)):
                last = self._step_of(seq, spec.returns_at(hi - 1))
                seq.drops_until = max(seq.drops_until, last, seq.entered + self.lag)
                lo = max(lo, index)
                if lo < hi:
                    self._file(self._names, seq, spec, NAMED, self._step_of(seq, spec.returns_at(lo)))
                    self._file(self._names, seq, spec, NAMED_END, self._step_of(seq, spec.returns_at(hi)))

    def _expect_chunk(self, seq: GroupSequence, spec: Spec, processed: int) -> None:
        self._file(self._chunks, seq, spec, RETURNS, self._step_of(seq, spec.next_return(processed)))

    def _file(self, heap: list[Due], seq: GroupSequence, spec: Spec, what: int, due: int) -> None:
        heappush(heap, (due, seq.admission, what, seq.base, seq, spec))

    def dropping(self) -> list[tuple[GroupSequence, Dropping]]:
        """Return the sequences that may leave named blocks behind from the next step on."""
        found = []
        for seq in [*self._dropping.values()]:
            if seq.drops_until < self.num_steps:
                del self._dropping[seq.admission]
                continue
            as_now = Dropping(
                seq.parked, seq.admission, seq.base, seq.entered, seq.gone, seq.first_processed, seq.ends,
                seq.inherited, seq.cacheable, seq.before,
            )  # fmt: skip
            found.append((seq, as_now))
        return found

    def settle(self) -> None:
        """Bring the histograms up to the next step."""
        step, due, chunks = self.num_steps, self._due, self._chunks
        while due and due[0][0] < step + self.shortest:
            _, admission, _, base, seq, spec = heappop(due)
            if seq.stage is DECODE and seq.admission == admission and seq.base == base:
                self._count(seq, RETURNS, base - spec.offset - self.lag, spec.size, spec.count)
        if self._names:
            self.settle_names()
        while chunks and chunks[0][0] <= step:
            when, admission, _, base, seq, spec = heappop(chunks)
            if seq.stage is DECODE and seq.admission == admission and seq.base == base:
                processed = base + step - self.lag
                if when == step:
                    lo, hi = spec.gone(processed - 1), spec.gone(processed)
                    named = self.groups.named_in(seq, spec, lo, hi, NEVER)
                    self._note_irregular(
                        step, seq, Returned((hi - lo - named) * spec.count, named * spec.count)
                    )
                self._expect_chunk(seq, spec, processed + 1)
        if self._irregular:
            for past in [past for past in self._irregular if past < step]:
                del self._irregular[past]

    def settle_names(self) -> None:
        """Bring up to the next step which of the blocks that come back have names."""
        names, horizon = self._names, self.num_steps + self.shortest
        while names and names[0][0] < horizon:
            _, admission, what, base, seq, spec = heappop(names)
            if seq.stage is DECODE and seq.admission == admission and seq.base == base:
                start = base - spec.offset - self.lag
                if what == NAMED:
                    self._count(seq, NAMED, start, spec.size, spec.count)
                else:
                    self._uncount(seq, (NAMED, start, spec.size, spec.count))

    def next_name(self) -> int:
        """Return the step from which on other blocks that come back have names than now."""
        return self._names[0][0] if self._names else NEVER

    def _count(self, seq: GroupSequence, which: int, start: int, size: int, amount: int) -> None:
        """Enter a sequence's events of the steps s with `start + s` a multiple of `size`."""
        seq.counted.append((which, start, size, amount))
        self._add(seq, which, start, size, amount)

    def _uncount(self, seq: GroupSequence, entry: Counted) -> None:
        seq.counted.remove(entry)
        which, start, size, amount = entry
        self._add(seq, which, start, size, -amount)

    def _add(self, seq: GroupSequence, which: int, start: int, size: int, amount: int) -> None:
        """Count so many more blocks of a sequence in the steps s with `start + s` a multiple of `size`."""
        unnamed, named, takes = [(0, 0, amount), (amount, 0, 0), (-amount, amount, 0)][which]
        frees, lends = unnamed + named - takes, takes - unnamed
        period, admission, leads = self.period, seq.admission, self._leads
        for phase in range(-start % size, period, size):
            for i in (phase, phase + period):
                self._takes[i] += takes
                self._frees[i] += frees
                self._lends[i] += lends
            events = self._events[phase]
            _, u, n, t = events.get(admission, (seq, 0, 0, 0))
            events[admission] = seq, u + unnamed, n + named, t + takes
            leads.pop((phase, True), None)
            leads.pop((phase, False), None)
        times = period // size
        self.takes_a_period += times * takes
        self.trend += times * frees
        self.lends_a_period += times * lends

    def _leave(self, seq: GroupSequence) -> None:
        for which, start, size, amount in seq.counted:
            self._add(seq, which, start, size, -amount)
            for phase in range(-start % size, self.period, size):
                self._events[phase].pop(seq.admission, None)
        seq.counted.clear()
        self._dropping.pop(seq.admission, None)

    # --- one sequence -----------------------------------------------------------------------

    def _write_down(self, seq: GroupSequence) -> None:
        """Note what a sequence has given back, and its states' table, as of now."""
        step = self.num_steps
        if seq.visited == step:
            seq.gone, seq.states = self.processed_in(seq, step), self._visited_table(seq, step)
        else:
            seq.gone, seq.states = self.before(seq, step)

    def before(self, seq: GroupSequence, step: int) -> tuple[int, StateTable | None]:
        """Return up to where a sequence has given back when a step begins, and its states' table."""
        since = step - seq.entered
        if since < len(seq.before):
            return seq.before[since]
        gone = seq.first_processed if since == 1 and self.lag else seq.base + step - 1 - self.lag
        return gone, self._regular_table(seq.base + step, gone)

    def _regular_table(self, tokens: int, gone: int) -> StateTable | None:
        state = self.groups.state
        if state is None:
            return None
        length = -(-tokens // state.size)
        return StateTable(length, dict.fromkeys(range(state.gone(gone), length), False))

    def _visited_table(self, seq: GroupSequence, step: int) -> StateTable | None:
        table = self.before(seq, step)[1]
        if table is not None and self.groups.state is not None:
            table = table.copy()
            table.remove(self.processed_in(seq, step), self.groups.state.size)
            if seq.took:
                table.take(seq.base + step + 1, self.groups.state.size, 0)
        return table

    def processed_in(self, seq: GroupSequence, step: int) -> int:
        """Return a sequence's processed tokens as a step schedules it."""
        return seq.first_processed if step == seq.entered else seq.base + step - self.lag

    def events(self, seq: GroupSequence, step: int) -> Events:
        """Return what a sequence gives back and takes in a step, once `settle` has brought that up to date."""
        return self._events_in(step).get(seq.admission, (seq, 0, 0, 0))

    def _events_in(self, step: int) -> dict[int, Events]:
        """Return what each sequence that takes or gives back a block in a step does, by admission."""
        events = self._events[step % self.period]
        if step in self._irregular:
            events = events.copy()
            for seq, admission, base, returned in self._irregular[step]:
                if seq.stage is DECODE and seq.admission == admission and seq.base == base:
                    _, unnamed, named, takes = events.get(admission, (seq, 0, 0, 0))
                    events[admission] = seq, unnamed + returned.unnamed, named + returned.named, takes
        return events

    # --- what steps take and give back ------------------------------------------------------

    def _beside(self, step: int) -> Returned:
        """Return what comes back in a step beside the histograms."""
        if step not in self._irregular:
            return NOTHING_BACK
        unnamed = named = 0
        for seq, admission, base, returned in self._irregular[step]:
            if seq.stage is DECODE and seq.admission == admission and seq.base == base:
                unnamed, named = unnamed + returned.unnamed, named + returned.named
        return Returned(unnamed, named)

    def next_demand(self) -> int:
        """Return the blocks that the next step's decodes take."""
        return self._takes[self.num_steps % self.period]

    def demand(self, num_steps: int) -> int:
        """Return the blocks that the decodes of the next `num_steps` steps take."""
        rounds, rest = divmod(num_steps, self.period)
        i = self.num_steps % self.period
        return rounds * self.takes_a_period + sum(self._takes[i : i + rest])

    def flow(self, num_steps: int) -> tuple[int, int, int]:
        """Return the blocks that the decodes of the next steps take, give back without a name, and with one."""
        rounds, rest = divmod(num_steps, self.period)
        i = self.num_steps % self.period
        j = i + rest
        takes = rounds * self.takes_a_period + sum(self._takes[i:j])
        lends = rounds * self.lends_a_period + sum(self._lends[i:j])
        unnamed, named = takes - lends, rounds * self.trend + sum(self._frees[i:j]) + lends
        if self._irregular:
            for step in range(self.num_steps, self.num_steps + min(1 + self.lag, num_steps)):
                more = self._beside(step)
                unnamed, named = unnamed + more.unnamed, named + more.named
        return takes, unnamed, named

    def next_due(self) -> int:
        """Return the step that no leap may reach past."""
        due = self._due[0][0] if self._due else NEVER
        return min(due, self._chunks[0][0]) if self._chunks else due

    def steps_that_last(self, num_steps: int, free: int, need: int) -> int:
        """Return for how many of the next steps nobody lacks a block, and fewer than `need` are free after each."""
        done = 0
        step = self.num_steps
        if need == NEVER and self.takes_a_period * (num_steps // self.period + 1) <= free:
            return num_steps
        for _ in range(1 + self.lag):  # steps in which something irregular may come back
            phase = step % self.period
            takes = self._takes[phase]
            if done == num_steps or (takes > free and free < self._lead(step)):
                return done
            free += self._frees[phase] + sum(self._beside(step))
            if free >= need:
                return done
            done, step = done + 1, step + 1
        rest = num_steps - done
        if rest <= 0:
            return done
        return done + self._regular_steps_that_last(step, rest, free, need)

    def _regular_steps_that_last(self, step: int, num_steps: int, free: int, need: int) -> int:
        i, period = step % self.period, self.period
        takes, after = self._takes[i : i + period], list(accumulate(self._frees[i : i + period]))
        # Over a period nobody gives back more than he takes: what is not reached in the first is never reached.
        if free + max(after) >= need:
            reached = next(j for j, change in enumerate(after) if free + change >= need)
            num_steps = min(num_steps, reached)
        before = [0, *after[:-1]]
        lowest = list(map(sub, before, takes))  # as if all that comes back in a step came last
        exact: set[int] = set()
        while True:
            least = free + min(lowest[:num_steps], default=0)
            rounds = 0
            if least >= 0:
                rounds = least // -self.trend + 1 if self.trend else num_steps
            if rounds * period >= num_steps:
                return num_steps
            left = free + rounds * self.trend
            j = next((j for j, low in enumerate(lowest) if left + low < 0), period)
            short = rounds * period + j
            if j == period or short >= num_steps:
                return num_steps
            if j in exact:
                return short
            exact.add(j)
            lowest[j] = before[j] - self._lead(step + j)

    def _lead(self, step: int, named_too: bool = True) -> int:
        """Return by how many blocks at most takes lead returns within a step, in order; of unnamed ones if asked so."""
        key = step % self.period, named_too
        known = self._leads.get(key) if step not in self._irregular else None
        if known is not None:
            return known
        lead = most = 0
        events = self._events_in(step)
        for admission in sorted(events):
            _, unnamed, named, takes = events[admission]
            lead += takes - unnamed - (named if named_too else 0)
            if takes and lead > most:
                most = lead
        if step not in self._irregular:
            self._leads[key] = most
        return most

    def lead_of_takes(self, num_steps: int, spare: int) -> int:
        """Return by how many blocks at most takes lead unnamed returns within the next steps, if more than `spare`."""
        step, end, lead, most = self.num_steps, self.num_steps + num_steps, 0, spare
        before = []
        for _ in range(min(1 + self.lag, num_steps)):
            i = step % self.period
            before.append((lead, lead + self._takes[i], step))
            lead += self._lends[i] - self._beside(step).unnamed
            step += 1
        if step < end:
            most = self._regular_lead(step, end - step, lead, most)
        for start, bound, at in before:  # the order within a step is looked into only where it could matter
            if bound > most:
                most = max(most, start + self._lead(at, named_too=False))
        return most

    def _regular_lead(self, step: int, num_steps: int, lead: int, most: int) -> int:
        """As `lead_of_takes`, from a step on in which nothing irregular is left."""
        i, period = step % self.period, self.period
        rounds, rest = divmod(num_steps, period)
        stop = i + (period if rounds else rest)
        takes = self._takes[i:stop]
        before = accumulate(self._lends[i : stop - 1], initial=lead)
        tops: list[int] = list(map(add, before, takes))
        if rounds:  # over a period takes lead: what is most is most in the last one
            last = rounds * self.lends_a_period
            whole = last - self.lends_a_period
            tops = [top + last for top in tops[:rest]] + [top + whole for top in tops[rest:]]
        while True:
            top = max(tops)
            if top <= most:
                return most
            j = tops.index(top)
            tops[j] = top - takes[j] + self._lead(step + j, named_too=False)
            if tops[j] == top or tops[j] >= max(tops):
                return max(most, tops[j])
            most = max(most, tops[j])
            tops[j] = -1

    def free_sums(self, num_steps: int, free: int) -> FreeBlocks:
        """Return least and sums of the free blocks after each of the next steps, of which `free` are free before."""
        step, total, weighted, least, first = self.num_steps, 0, 0, free, free
        for i in range(min(1 + self.lag, num_steps)):  # steps in which something irregular may come back
            free += self._frees[step % self.period] + sum(self._beside(step))
            total, weighted, step = total + free, weighted + i * free, step + 1
            least = free if not i else min(least, free)
            first = first if i else free
        done, rest = step - self.num_steps, self.num_steps + num_steps - step
        if rest:
            regular = self._regular_sums(step, rest, free)
            least, total = min(least, regular[0]), total + regular[1]
            weighted += regular[2] + done * regular[1]
        return FreeBlocks(first, least, total, weighted)

    def _regular_sums(self, step: int, num_steps: int, free: int) -> tuple[int, int, int]:
        """As `free_sums`, from a step on in which nothing irregular is left: the least, the sum, the weighted sum."""
        i, period, trend = step % self.period, self.period, self.trend
        rounds, rest = divmod(num_steps, period)
        after = list(accumulate(self._frees[i : i + (period if rounds else rest)]))
        total = weighted = 0
        least = NEVER
        if rounds:
            indices = period * (period - 1) // 2
            sum_after, weighted_after = sum(after), sum(map(mul, after, range(period)))
            r1 = rounds * (rounds - 1) // 2
            r2 = r1 * (2 * rounds - 1) // 3
            total = period * (rounds * free + r1 * trend) + rounds * sum_after
            weighted = period * period * (r1 * free + r2 * trend) + indices * (rounds * free + r1 * trend)
            weighted += period * r1 * sum_after + rounds * weighted_after
            least = free + (rounds - 1) * trend + min(after)
        if rest:
            start, tail = free + rounds * trend, after[:rest]
            sum_tail = sum(tail)
            total += rest * start + sum_tail
            span = rest * rounds * period + rest * (rest - 1) // 2
            weighted += start * span + rounds * period * sum_tail + sum(map(mul, tail, range(rest)))
            least = min(least, start + min(tail))
        return least, total, weighted

    def eventful(self, step: int) -> list[Events]:
        """Return the decoding sequences that take or give back a block in a step, in order of admission."""
        events = self._events_in(step)
        return [events[admission] for admission in sorted(events)]
