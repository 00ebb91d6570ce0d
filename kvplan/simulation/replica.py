"""One engine and its bookkeeping: what a step lasts, who got which token when, how full the cache is.

A driver alternates `begin(now)`, which decides a step or a leap and says how long it lasts, and `complete(now)`,
which reads what it gave; `cut(now)` shortens a leap that somebody's arrival or leaving ends. Knows no SimPy, no
routing and no workload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvplan.schedulers.protocol import NOTHING, Leap
from kvplan.simulation.in_flight import NEVER_COMES, Flight, Glide
from kvplan.simulation.records import NEVER
from kvplan.simulation.replica_stats import Books
from kvplan.simulation.sim_request import REJECTED, TIMEOUT, Live
from kvplan.timing.step import StepShape


@dataclass(slots=True)
class Replica(Books):
    """One engine on its way through time: steps, leaps, and requests that come and go between them."""

    on_pressure: Callable[[Replica, int], None] | None = None
    """Asked before each decision; may `prune` when `engine.is_short`."""
    flights: deque[Flight] = field(default_factory=deque)
    glide: Glide | None = None
    inbox: list[Live] = field(default_factory=list)
    """Came during a leap; the engine learns of them when it lands."""
    inbox_since: int = 0
    leavers: list[Live] = field(default_factory=list)
    """Clients that gave up; the engine learns of it before the next output is applied."""

    # --- requests come and go ---------------------------------------------------------------

    def submit(self, live: Live, now: int) -> None:
        """Queue a request: now, or when the leap under way lands."""
        live.replica = self.id
        self.num_submitted += 1
        self.queued_blocks += -(-live.num_prompt_tokens // self.block_size)
        live.arrival_time = (
            self.num_submitted
        )  # the order of arrival; ties in time are possible, ties in order not
        if self.glide is not None:
            if not self.inbox:
                self.inbox_since = self.glide.start if self.engine.num_waiting else now
            self.inbox.append(live)
        else:
            self.engine.add_request(live)

    def stall(self, ticks: int) -> None:
        """Let time pass without a step: sequences keep what they hold."""
        self.totals.stalled_ticks += ticks
        self.totals.used_block_ticks += ticks * (self.num_blocks - self.engine.num_free_blocks)
        self.read_weight += self.num_reads * ticks

    def prune(self, live: Live, now: int) -> None:
        """End a running request at once: its blocks are free for the step about to be decided."""
        self.leavers.append(live)
        self._let_go(now)

    def leave(self, live: Live) -> None:
        """Its client has gone."""
        self.leavers.append(live)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return self.engine.num_waiting + len(self.inbox)

    @property
    def num_requests(self) -> int:
        """Requests here, running or waiting."""
        return self.engine.num_running + self.num_waiting

    def stop(self, now: int) -> None:
        """The run ends now: read the steps that have ended."""
        if self.glide is not None:
            reads = self.glide.reads_until(now)
            done = reads - (self.glide.ends_at(reads) > now)
            if done:
                self._land(self.glide, done, self.glide.ends_at(done))

    def spare_blocks(self, now: int) -> int:
        """Free blocks at this moment, less those that the prompts in the queue will take."""
        glide = self.glide
        free = (
            self.engine.num_free_blocks
            if glide is None
            else self.engine.free_blocks_in(glide.reads_until(now))
        )
        return free - self.queued_blocks

    # --- begin ------------------------------------------------------------------------------

    def begin(self, now: int, next_arrival: int = NEVER_COMES, may_leap: bool = True) -> int | None:
        """Decide what runs next; return the ticks until its output can be read, None when there is nothing.

        A leap that a new request would end is planned up to `next_arrival` only.
        """
        if self.leavers:
            self._let_go(now)
        if self.on_pressure is not None:
            self.on_pressure(self, now)
        while True:
            leap = self.engine.plan_leap() if may_leap else None
            if leap is not None:
                return self._begin_leap(leap, now, next_arrival)
            if not self.engine.has_requests():
                break
            flight = self._schedule(now)
            self.flights.append(flight)
            if flight.is_empty and not any(f.ticks for f in self.flights):
                self._settle_empty(now, flight.preempts)
            elif flight.is_empty or len(self.flights) > self.is_async:
                break
        return self.flights[0].ticks if self.flights else None

    def _settle_empty(self, now: int, preempts: bool) -> None:
        """A step with nothing in it and nothing in flight: either a last word about ends, or the head is stuck."""
        while self.flights:
            self.flights.popleft()
            self._read(self.engine.update_from_output(), now)
        if self.engine.num_waiting and not self.engine.num_running and not preempts:
            head = self.engine.head()
            assert isinstance(head, Live)
            self.notes.append(
                f"stuck: request {head.row} ({head.num_prompt_tokens} prompt tokens) cannot be admitted although "
                f"all {self.num_blocks} blocks are free"
            )
            self.engine.abort(head.request_id)
            self._end(head, now, REJECTED, 0)

    def _schedule(self, now: int) -> Flight:
        """One step of the engine; admissions and preemptions are noted."""
        step: Any = self.engine.schedule()  # whose requests are the `Live` ones it was given
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
        num_tokens = decodes * (1 + self.drafts) + num_prefill
        shape = StepShape(num_tokens, decodes, context, num_prefill, num_prefills, pairs)
        ticks = self.step_time.ticks(shape) if shape.num_tokens else 0
        engine = self.engine
        self._note_blocks(self.num_blocks - engine.num_free_blocks)
        self.waits_for = self._why_waiting(shape.num_tokens) if engine.num_waiting else ""
        self.totals.prefill_tokens += num_prefill
        is_empty = not step.num_decodes and not step.chunks
        return Flight(ticks, step.num_decodes, num_prefills, is_empty, bool(step.preempted))

    def _begin_leap(self, leap: Leap, now: int, next_arrival: int) -> int:
        steps, decodes, context, is_open = leap
        base, slope, limit = self.step_time.decode_line(decodes, context)
        lasts = -((context - limit) // decodes)
        ahead = len(self.flights)
        first = self.flights[0].ticks if ahead else 0
        if lasts < steps:
            steps = lasts
        ticks, widening = base + slope * context, slope * decodes
        glide = self.glide = Glide(now, ahead, first, steps, decodes, ticks, widening, is_open)
        n = steps - ahead
        end = now + first + n * ticks + widening * (n * (n - 1) // 2)
        if is_open and end > next_arrival:
            glide.num_steps = steps = glide.reads_until(next_arrival)
            glide.open = False  # it ends where that arrival would cut it
            end = glide.ends_at(steps)
        return end - now

    def cut(self, now: int) -> int:
        """Shorten the leap under way to the first end of a step at `now` or later; return the ticks until then."""
        assert self.glide is not None
        self.glide.num_steps, self.glide.open = self.glide.reads_until(now), False
        return self.glide.ends_at(self.glide.num_steps) - now

    def stretch(self, ticks: int) -> None:
        """Let the step under way last as long as its group's longest."""
        self.flights[0] = self.flights[0]._replace(ticks=ticks)

    # --- complete ---------------------------------------------------------------------------

    def complete(self, now: int) -> None:
        """Read what has run: a step, or a leap."""
        glide = self.glide
        if glide is None:
            self._read_step(now)
            return
        self.glide = None
        if self.leavers:
            self._land_with_leavers(glide, now)
        else:
            self._land(glide, glide.num_steps, now)
        if self.inbox:
            self._empty_inbox(now)

    def _empty_inbox(self, now: int) -> None:
        if not self.waits_for and self.engine.num_running >= self.max_num_seqs - 1:
            self.totals.blocked_seqs_ticks += now - self.inbox_since
        for live in self.inbox:
            self.engine.add_request(live)
        self.inbox.clear()

    def _land_with_leavers(self, glide: Glide, now: int) -> None:
        """Somebody left during the leap's last step: schedule it alone, so that they can go before its output."""
        steps = glide.num_steps - 1
        begun = glide.start
        if steps:
            begun = glide.ends_at(steps)
            self._land(glide, steps, begun)
        self.flights.append(self._schedule(begun))
        self._read_step(now)

    def _read_step(self, now: int) -> None:
        if self.leavers:
            self._let_go(now)
        self._account(self.flights.popleft(), now)
        outputs = self.engine.update_from_output()
        if self.drafts:
            self._look_at_each(now)
        if outputs is not NOTHING:
            self._read(outputs, now)

    def _look_at_each(self, now: int) -> None:
        """What a closed form would say of every sequence: KV held, first visible token."""
        for live in self.resident:
            self._hold(live, live.num_computed_tokens, now)
            if live.first_visible == NEVER and live.num_output_tokens > live.thinking_tokens:
                live.first_visible = now

    def _land(self, glide: Glide, steps: int, now: int) -> None:
        """Let the engine take the leap's steps and account for them."""
        engine, totals = self.engine, self.totals
        used = self.num_blocks - engine.num_free_blocks
        taken = engine.num_taken_blocks
        early, late = engine.commit_leap(steps)
        peak = used + engine.num_taken_blocks - taken
        if peak > totals.peak_used_blocks:
            totals.peak_used_blocks = peak
        totals.leaps += 1
        totals.leapt_steps += steps
        if not glide.ahead:
            self._account_series(glide, steps, glide.start, now, (used + peak) // 2)
            if late is not NOTHING:
                self._read(late, now)
            return
        start = glide.start + glide.first
        self._account(self.flights.popleft(), start)
        if early is not NOTHING:
            self._read(early, start)
        self.flights.append(Flight(glide.ticks + (steps - 1) * glide.slope, glide.num_decodes))
        if steps > 1:
            self._account_series(glide, steps - 1, start, now, (used + peak) // 2)
        if late is not NOTHING:
            self._read(late, now)

    def _let_go(self, now: int) -> None:
        """Take out requests whose clients have gone."""
        for live in self.leavers:
            if live in self.inbox:
                self.inbox.remove(live)
                self._end(live, now, TIMEOUT, 0)
            elif self.engine.abort(live.request_id):
                live.discarded = self.generated(live)
                self._end(live, now, TIMEOUT, live.discarded)
        self.leavers.clear()
