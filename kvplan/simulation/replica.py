"""One engine and its bookkeeping: what a step lasts, who got which token when, how full the cache is.

A driver alternates `begin(now)`, which decides a step or a leap and says how long it lasts, and `complete(now)`,
which reads what it gave; `cut(now)` shortens a leap that somebody's arrival or leaving ends. Knows no SimPy, no
routing and no workload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvplan.ground.units import TICKS_PER_S
from kvplan.schedulers.protocol import NOTHING, Counts, DraftedPaths, FreeBlocks, Leap
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.simulation.draft_books import dots
from kvplan.simulation.in_flight import NEVER_COMES, DraftedLeapInFlight, LeapInFlight, StepInFlight
from kvplan.simulation.metrics import Sample
from kvplan.simulation.records import UNSET
from kvplan.simulation.replica_stats import ReplicaStats
from kvplan.simulation.sim_request import REJECTED, TIMEOUT, SimRequest
from kvplan.simulation.transfers import IDLE_LOOP_TICKS, TimedCopies
from kvplan.timing.step import StepShape, decode_ticks

NO_TIER = (0,) * 6
"""Slots taken in it, blocks loaded from it and stored there."""


@dataclass(slots=True)
class Replica(ReplicaStats):
    """One engine on its way through time: steps, leaps, and requests that come and go between them."""

    on_pressure: Callable[[Replica, int], None] | None = None
    """Asked before each decision; may `prune` when `engine.is_short`."""
    on_change: Callable[[], object] | None = None
    """Told whenever blocks or requests have come or gone otherwise than by decoding."""
    in_flight: deque[StepInFlight] = field(default_factory=deque)
    leap: LeapInFlight | DraftedLeapInFlight | None = None
    inbox: list[SimRequest] = field(default_factory=list)
    """Came during a leap; the engine learns of them when it ends."""
    inbox_since: int = NEVER_COMES
    """The first end of a step that sees them wait."""
    leavers: list[SimRequest] = field(default_factory=list)
    """Clients that gave up; the engine learns of it before the next output is applied."""
    tells_first_tokens: bool = False
    """Whether somebody looks when first tokens come: then no leap begins before one in flight is read."""
    copies: TimedCopies | None = None
    """What moves KV to and from the tier beyond the GPU, if there is one."""
    rests_since: int = 0
    """When a wait for copies in flight began."""

    # --- requests come and go ---------------------------------------------------------------

    def receive(self, request: SimRequest, now: int) -> int:
        """Take a request into the API server; return the ticks until the engine gets it (then `submit`)."""
        if self.api is None:
            return 0
        if self.leap is not None:
            self._send_outputs(self.leap, self.leap.reads_until(now) - 1)
        return self.api.receive(request.num_prompt_tokens, now)

    def expect(self, request: SimRequest, change: int) -> None:
        """One more request is (1), or no longer is (-1), on its way here: routers count it."""
        self._change()
        self.num_coming += change
        self.queued_blocks += change * -(-request.num_prompt_tokens // self.block_size)

    def submit(self, request: SimRequest, now: int) -> None:
        """Queue a request: now, or when the leap in flight ends."""
        request.replica = self.id
        self._change()
        if not request.transferred:
            request.engine_arrival = now
        self.num_submitted += 1
        self.queued_blocks += -(-request.num_prompt_tokens // self.block_size)
        request.arrival_time = float(
            self.num_submitted
        )  # its order: ties in time are possible, ties in order not
        if self.leap is not None:
            self.inbox_since = min(self.inbox_since, self.leap.ends_at(self.leap.reads_until(now)))
            self.inbox.append(request)
        else:
            self.engine.add_request(request)

    def _change(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def stall(self, ticks: int) -> None:
        """Let time pass without a step: sequences keep what they hold."""
        self.totals.stalled_ticks += ticks
        self.totals.used_block_ticks += ticks * (self.num_blocks - self.engine.num_free_blocks)
        self.read_weight += self.num_reads * ticks

    def prune(self, request: SimRequest, now: int) -> None:
        """End a running request at once: its blocks are free for the step about to be decided."""
        self.leavers.append(request)
        self._let_go(now)

    def leave(self, request: SimRequest) -> None:
        """Its client has gone."""
        self.leavers.append(request)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return self.engine.num_waiting + len(self.inbox)

    @property
    def num_requests(self) -> int:
        """Requests here, running, waiting or on their way through the API server."""
        return self.engine.num_running + self.num_waiting + self.num_coming

    def stop(self, now: int) -> None:
        """The run ends now: read the steps that have ended."""
        if self.leap is not None:
            reads = self.leap.reads_until(now)
            done = reads - (self.leap.ends_at(reads) > now)
            if done:
                self._note_inbox(self.leap, self.leap.ends_at(done))
                self._finish_leap(self.leap, done, self.leap.ends_at(done))
        elif self.is_resting and self.copies is not None:
            self._stop_resting(self.copies, now)
        self._look_back()

    def spare_blocks(self, now: int) -> int:
        """Free blocks at this moment, less those that the prompts in the queue will take."""
        leap = self.leap
        free = (
            self.engine.num_free_blocks if leap is None else self.engine.free_blocks_in(leap.reads_until(now))
        )
        return free - self.queued_blocks

    def used_share(self, now: int) -> float:
        """Share of the pool's blocks that requests hold at this moment."""
        return 1.0 - (self.spare_blocks(now) + self.queued_blocks) / self.num_blocks

    # --- begin ------------------------------------------------------------------------------

    def begin(self, now: int, next_arrival: int = NEVER_COMES, next_sample: int = 0) -> int | None:
        """Decide what runs next; return the ticks until its output can be read, None when there is nothing.

        A leap that a new request would end is planned up to `next_arrival` only, a wait for copies to `next_sample`.
        """
        if self.on_change is not None:
            self.on_change()
        if self.leavers:
            self._let_go(now)
        if self.api is not None:
            self.api.forget()
        if self.on_pressure is not None:
            self.on_pressure(self, now)
        while True:
            owes = self.tells_first_tokens and any(step.num_chunks for step in self.in_flight)
            planned = None if owes else self.engine.plan_leap()
            if planned is not None:
                return self._begin_leap(planned, now, next_arrival)
            if not self.engine.has_requests():
                break
            step = self._schedule(now)
            self.in_flight.append(step)
            if self.copies is not None and next_sample:
                self._rest(self.copies, now, next_sample)
            if step.is_empty and not any(f.ticks for f in self.in_flight):
                self._settle_empty(now, step.makes_room)
            elif step.is_empty or len(self.in_flight) > self.config.async_scheduling:
                break
        return self.in_flight[0].ticks if self.in_flight else None

    def _settle_empty(self, now: int, makes_room: bool) -> None:
        """A step with nothing in it and nothing in flight: either a last word about ends, or the head is stuck."""
        while self.in_flight:
            self.in_flight.popleft()
            outputs = self.engine.update_from_output()
            if self.drafts:
                self._note_read(now)
            self._read(outputs, now)
        if self.engine.num_waiting and not self.engine.num_running and not makes_room:
            head = self.engine.head()
            assert isinstance(head, SimRequest)
            self.notes.append(
                f"stuck: request {head.row} ({head.num_prompt_tokens} prompt tokens) cannot be admitted although "
                f"all {self.num_blocks} blocks are free"
            )
            self.engine.abort(head.request_id)
            self._end(head, now, REJECTED, 0)

    def _schedule(self, now: int) -> StepInFlight:
        """One step of the engine; admissions and preemptions are noted."""
        num_ended = self.copies.num_seen if self.copies is not None else 0
        if self.copies is not None:
            self.copies.begin(now, now + sum(step.ticks for step in self.in_flight))
        step: Any = self.engine.schedule()  # whose requests are the `SimRequest`s it was given
        for request in step.preempted:
            self._preempted(request, now)
        for request, hit_tokens in step.admitted:
            self._admitted(request, hit_tokens, now)
        decodes, context = step.num_decodes, step.decode_context
        num_prefill = num_prefills = 0
        pairs = 0.0
        for request, num_tokens, before in step.chunks:
            request.kv_area += request.held * (now - request.since)
            request.held, request.since = before + num_tokens, now
            if request.num_preemptions:
                self._count_recomputed(request, num_tokens, before)
            elif request.transferred:
                if before + num_tokens >= request.num_prompt_tokens:  # only its last token is computed here
                    decodes, context = decodes + 1, context + before + num_tokens
                continue
            num_prefills += 1
            num_prefill += num_tokens
            pairs += num_tokens * (before + num_tokens / 2)
        if self.shared is not None:
            context -= self._read_once(self.shared)
        context = max(decodes, context)
        num_tokens = step.decode_tokens + (decodes - step.num_decodes) * self.admitted_alone + num_prefill
        shape = StepShape(num_tokens, decodes, context, num_prefill, num_prefills, pairs)
        ticks = self.step_time.ticks(shape) if shape.num_tokens else 0
        makes_room = bool(step.preempted)
        if self.copies is not None:
            ended = self.copies.num_seen > num_ended
            ticks += self._wait_for_copies(self.copies, ticks, ended)
            makes_room = makes_room or ended
        engine = self.engine
        self._note_blocks(self.num_blocks - engine.num_free_blocks)
        self.waits_for = self._why_waiting(shape.num_tokens) if engine.num_waiting else ""
        self.totals.prefill_tokens += num_prefill
        is_empty = not step.num_decodes and not step.chunks
        return StepInFlight(
            ticks,
            step.num_decodes,
            num_prefills,
            is_empty,
            makes_room,
            num_tokens=num_tokens,
            decode_tokens=step.decode_tokens,
        )

    def _wait_for_copies(self, copies: TimedCopies, ticks: int, ended: bool) -> int:
        """Return how much longer copies make a step: those it flushes, or the loop that waits for one."""
        waits = copies.launch(ticks)
        self.totals.flush_ticks += waits
        if waits or ticks or any(step.ticks for step in self.in_flight):
            return waits
        return IDLE_LOOP_TICKS if ended or not copies.is_idle else 0

    def _rest(self, copies: TimedCopies, now: int, until: int) -> None:
        """If the engine only waits for copies, its loops up to the one that sees an end become one step."""
        assert isinstance(self.engine, StepByStep)
        if not self.engine.repeats or self.in_flight[0].ticks != IDLE_LOOP_TICKS:
            return
        if all(step.is_empty and not step.makes_room for step in self.in_flight):
            self.rests_since = now
            self._wake(max(1, -(-(min(copies.next_seen, until) - now) // IDLE_LOOP_TICKS)))

    @property
    def is_resting(self) -> bool:
        """Whether several steps of a wait for copies are in flight."""
        return bool(self.in_flight) and self.in_flight[0].num_steps > 1

    def _wake(self, num_loops: int) -> int:
        """Let the wait in flight last so many loops, each of as many steps as are in flight; return its ticks."""
        ticks, num_steps = num_loops * IDLE_LOOP_TICKS, 1 + (num_loops - 1) * len(self.in_flight)
        self.in_flight[0] = self.in_flight[0]._replace(ticks=ticks, num_steps=num_steps)
        return ticks

    def _repeat(self, copies: TimedCopies, num_loops: int) -> None:
        """Let the engine take so many loops of a wait behind its first."""
        assert isinstance(self.engine, StepByStep)
        self.engine.repeat(num_loops * len(self.in_flight))
        copies.look_in_vain(self.rests_since + num_loops * IDLE_LOOP_TICKS)

    def _stop_resting(self, copies: TimedCopies, now: int) -> None:
        """The run ends in a wait: count the loops that have ended; one more is under way."""
        first = self.in_flight[0]
        num_loops = min(now - self.rests_since, first.ticks - 1) // IDLE_LOOP_TICKS
        if num_loops:
            self._repeat(copies, num_loops)
            ticks, num_steps = num_loops * IDLE_LOOP_TICKS, num_loops * len(self.in_flight)
            self._account(first._replace(ticks=ticks, num_steps=num_steps), self.rests_since + ticks)

    def _begin_leap(self, planned: Leap, now: int, next_arrival: int) -> int:
        steps, decodes, context, is_open, drafted = planned
        leap: LeapInFlight | DraftedLeapInFlight
        if self.shared is not None:
            context -= self._read_once(self.shared)
        ahead = len(self.in_flight)
        first = self.in_flight[0].ticks if ahead else 0
        if drafted is None:
            base, slope, limit = self.step_time.decode_line(decodes, context)
            steps = min(steps, -((context - limit) // decodes))
            ticks = base + slope * context
            leap = LeapInFlight(now, ahead, first, steps, decodes, ticks, slope * decodes, is_open)
        else:
            durations = decode_ticks(self.step_time, decodes, drafted.num_tokens, drafted.contexts)
            ends = durations.cumsum()
            leap = DraftedLeapInFlight(now, ahead, first, steps, decodes, drafted, durations, ends, is_open)
        self.leap = leap
        self.inbox_since = NEVER_COMES
        self.waits_for = self._why_waiting(leap.num_tokens) if self.engine.num_waiting else ""
        end = leap.ends_at(leap.num_steps)
        if is_open and end > next_arrival:  # it ends where that arrival would cut it
            end = next_arrival + self.cut(next_arrival)
        return end - now

    @property
    def can_be_cut(self) -> bool:
        """Whether a leap or a wait is in flight."""
        return self.leap is not None or self.is_resting

    def cut(self, now: int) -> int:
        """Shorten what is in flight to the first end of a step at `now` or later; return the ticks until then."""
        if self.leap is None:
            waited = min(now - self.rests_since, self.in_flight[0].ticks)
            return self._wake(max(1, -(-waited // IDLE_LOOP_TICKS))) + self.rests_since - now
        self.leap.num_steps, self.leap.open = self.leap.reads_until(now), False
        return self.leap.ends_at(self.leap.num_steps) - now

    def stretch(self, ticks: int) -> None:
        """Let the step under way last as long as its group's longest."""
        if self.in_flight[0].ticks != ticks:
            self.in_flight[0] = self.in_flight[0]._replace(ticks=ticks)

    # --- complete ---------------------------------------------------------------------------

    def _send_outputs(self, leap: LeapInFlight | DraftedLeapInFlight, reads: int) -> None:
        """The API servers get the outputs of a leap's first so many reads."""
        if self.api is None:
            return
        if leap.num_sent < leap.ahead <= reads:
            step, end = self.in_flight[0], leap.ends_at(1)
            leap.num_sent = leap.ahead
            self._send_step(step._replace(ticks=end - leap.start), end)
        known, leap.num_sent = leap.num_sent - leap.ahead, max(reads, leap.num_sent)
        for first, last, steps, _, end in leap.stretches(reads - leap.ahead) if reads > leap.ahead else ():
            slope = (last - first) // (steps - 1) if steps > 1 else 0
            skip = min(known, steps)
            known -= skip
            if steps > skip:
                self.api.give(leap.num_decodes, first + skip * slope, slope, steps - skip, end)

    def _send_step(self, step: StepInFlight, now: int) -> None:
        """The API servers get a step's outputs; each chunk of a prompt counts as one."""
        if self.api is not None and step.ticks:
            self.api.give(step.num_decodes + step.num_chunks, step.ticks, 0, 1, now)

    def complete(self, now: int) -> None:
        """Read what has run: a step, or a leap."""
        if self.on_change is not None:
            self.on_change()
        leap = self.leap
        if leap is None:
            self._read_step(now)
            return
        self.leap = None
        if self.leavers:
            self._finish_leap_with_leavers(leap, now)
        else:
            if now > self.inbox_since:
                self._note_inbox(leap, now)
            self._finish_leap(leap, leap.num_steps, now)
        if self.inbox:
            for request in self.inbox:
                self.engine.add_request(request)
            self.inbox.clear()

    def _note_inbox(self, leap: LeapInFlight | DraftedLeapInFlight, now: int) -> None:
        """Who came during the leap has waited since a step began after that, as step by step would say."""
        if not self.waits_for and now > self.inbox_since:
            why = self._why_waiting(leap.num_tokens)
            setattr(self.totals, why, getattr(self.totals, why) + now - self.inbox_since)

    def _finish_leap_with_leavers(self, leap: LeapInFlight | DraftedLeapInFlight, now: int) -> None:
        """Somebody left during the leap's last step: schedule it alone, so that they can go before its output."""
        steps = leap.num_steps - 1
        begun = leap.start
        if steps:
            begun = leap.ends_at(steps)
            self._note_inbox(leap, begun)
            self._finish_leap(leap, steps, begun)
        self.in_flight.append(self._schedule(begun))
        if self.inbox_since <= begun and not self.waits_for:
            self.waits_for = self._why_waiting(leap.num_tokens)
        self.stretch(now - begun)
        self._read_step(now)

    def _read_step(self, now: int) -> None:
        if self.leavers:
            self._let_go(now)
        step = self.in_flight[0]
        if self.copies is not None:
            if step.num_steps > 1:
                self._repeat(self.copies, step.ticks // IDLE_LOOP_TICKS - 1)
            self.copies.read(now)
        self.in_flight.popleft()
        if self.api is not None:
            self._send_step(step, now)
        self._account(step, now)
        outputs = self.engine.update_from_output()
        if self.drafts:
            self._note_read(now)
            if self.engine.keeps_counters:
                self._look_at_each(now)
        if outputs is not NOTHING:
            self._read(outputs, now)

    def _look_at_each(self, now: int) -> None:
        """What a closed form would say of every sequence: KV held, first visible token."""
        for request in self.resident:
            self._hold(request, request.num_computed_tokens, now)
            if self.pieces is not None and request.decode_from != UNSET:
                self.pieces.walk(request, np.array([request.num_output_tokens]), np.array([now]))
            if request.first_visible == UNSET and request.decode_from != UNSET:
                self._see(request, now)

    def _look_along(self, paths: DraftedPaths, times: Counts) -> None:
        """Look at each sequence after each of a leap's reads, at these times, as `_look_at_each` does after one."""
        tokens = paths.tokens[:, : len(times)]
        held = tokens + (paths.num_in_flight - 1)
        areas = dots(held[:, :-1], np.diff(times))
        first, last = int(times[0]), int(times[-1])
        requests: Any = paths.requests  # the `SimRequest`s that the engine was given
        for request, after, holds, area in zip(requests, tokens, held[:, -1].tolist(), areas, strict=True):
            request.kv_area += request.held * (first - request.since) + area
            request.held, request.since = holds, last
            if self.pieces is not None and request.decode_from != UNSET:
                self.pieces.walk(request, after - request.num_prompt_tokens, times)
            hidden = request.num_prompt_tokens + request.thinking_tokens
            if request.first_visible == UNSET and request.decode_from != UNSET and after[-1] > hidden:
                request.first_visible = int(times[after.searchsorted(hidden + 1)])

    def _finish_drafted(self, leap: DraftedLeapInFlight, steps: int, now: int) -> None:
        """Let the engine take the steps of a leap over drafts; blocks are counted after each, not in the mean."""
        totals, start = self.totals, leap.start + leap.first
        used = leap.steps.taken[:steps] + (self.num_blocks - self.engine.num_free_blocks)
        early, late = self.engine.commit_leap(steps)
        self._note_blocks(int(used.max()))
        totals.leaps += 1
        totals.leapt_steps += steps
        if leap.ahead:
            self.stretch(start - leap.start)
            self._account(self.in_flight.popleft(), start, int(used[0]))
            self._note_read(start)
            if early is not NOTHING:
                self._read(early, start)
            tokens = leap.num_tokens
            last = StepInFlight(
                leap.ticks_of(steps - 1), leap.num_decodes, num_tokens=tokens, decode_tokens=tokens
            )
            self.in_flight.append(last)
        if steps > leap.ahead:
            self._account_each(leap, steps - leap.ahead, start, now, used[leap.ahead :])
        if leap.steps.paths is not None:
            ends = leap.ends[: steps - leap.ahead] + start
            self._look_along(leap.steps.paths, np.append(start, ends) if leap.ahead else ends)
        if late is not NOTHING:
            self._read(late, now)

    def _finish_leap(self, leap: LeapInFlight | DraftedLeapInFlight, steps: int, now: int) -> None:
        """Let the engine take the leap's steps and account for them."""
        if self.api is not None:
            self._send_outputs(leap, steps)
        if isinstance(leap, DraftedLeapInFlight):
            self._finish_drafted(leap, steps, now)
            return
        engine, totals = self.engine, self.totals
        used = self.num_blocks - engine.num_free_blocks
        taken = engine.num_taken_blocks
        free = engine.free_blocks_over(steps)
        early, late = engine.commit_leap(steps)
        peak = self.num_blocks - free.least if free else used + engine.num_taken_blocks - taken
        if peak > totals.peak_used_blocks:
            totals.peak_used_blocks = peak
        totals.leaps += 1
        totals.leapt_steps += steps
        is_exact = free is not None and type(leap) is LeapInFlight  # a lockstep group's steps are no series
        if free is not None:
            if is_exact:
                self._account_blocks(leap, free, now)
            else:
                peak = self.num_blocks - engine.num_free_blocks
            used, peak = (0, 0) if is_exact else (used, peak)
        if not leap.ahead:
            self._account_series(leap, steps, leap.start, now, (used + peak) // 2)
            if late is not NOTHING:
                self._read(late, now)
            return
        start = leap.ends_at(1)
        self.stretch(start - leap.start)
        self._account(self.in_flight.popleft(), start, 0 if is_exact else None)
        if early is not NOTHING:
            self._read(early, start)
        ticks = leap.ticks + (steps - 1) * leap.slope
        tokens = leap.num_tokens
        self.in_flight.append(StepInFlight(ticks, leap.num_decodes, num_tokens=tokens, decode_tokens=tokens))
        if steps > 1:
            self._account_series(leap, steps - 1, start, now, (used + peak) // 2)
        if late is not NOTHING:
            self._read(late, now)

    def _account_blocks(self, leap: LeapInFlight, free: FreeBlocks, now: int) -> None:
        """Sum up the blocks used over a leap's time, step by step: of one in flight, as the next one was scheduled."""
        total, weighted, duration = free.total, free.weighted, now - leap.start
        if leap.ahead:
            total -= free.first
            weighted -= total
        free_ticks = leap.ticks * total + leap.slope * weighted + leap.first * free.first * leap.ahead
        self.totals.used_block_ticks += duration * self.num_blocks - free_ticks

    def _let_go(self, now: int) -> None:
        """Take out requests whose clients have gone."""
        for request in self.leavers:
            if request in self.inbox:
                self.inbox.remove(request)
                self._end(request, now, TIMEOUT, 0)
            elif self.engine.abort(request.request_id):
                request.discarded = self.generated(request)
                self._end(request, now, TIMEOUT, request.discarded)
        self.leavers.clear()


def take_sample(replicas: Sequence[Replica], now: int) -> Sample:
    """What this moment looks like, over all replicas."""
    return Sample(now / TICKS_PER_S, *map(sum, zip(*map(_look_at, replicas), strict=True)))


def _look_at(replica: Replica) -> tuple[int, ...]:
    """A sample's counts, in its order."""
    engine = replica.engine
    used = replica.num_blocks - engine.num_free_blocks
    return (
        engine.num_running, replica.num_waiting, used, engine.num_cached_free_blocks, *replica.held_tokens(),
        replica.totals.preemptions, *(engine.tier_counts() if isinstance(engine, StepByStep) else NO_TIER),
    )  # fmt: skip
