"""One engine and its bookkeeping: what a step lasts, who got which token when, how full the cache is.

A driver alternates `begin(now)`, which decides a step or a leap and says how long it lasts, and `complete(now)`,
which reads what it gave; `cut(now)` shortens a leap that somebody's arrival or leaving ends. Knows no SimPy, no
routing and no workload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import isqrt
from typing import Any, NamedTuple, Protocol

from kvplan.engine.leap_state import NOTHING, Landing, Leap, Outputs, Step
from kvplan.engine.request import Request, RequestStatus
from kvplan.live import LENGTH, REJECTED, STOP, TIMEOUT, Live
from kvplan.metrics import TokenMeter
from kvplan.records import NEVER
from kvplan.timing import StepShape, StepTime


class Engine(Protocol):
    """The face that the leaping and the step-by-step scheduler share."""

    def add_request(self, request: Request) -> None: ...  # noqa: D102
    def abort(self, request_id: str) -> bool: ...  # noqa: D102
    def has_requests(self) -> bool: ...  # noqa: D102
    def schedule(self) -> Step: ...  # noqa: D102
    def update_from_output(self) -> Outputs: ...  # noqa: D102
    def plan_leap(self) -> Leap | None: ...  # noqa: D102
    def commit_leap(self, num_steps: int) -> Landing: ...  # noqa: D102
    @property
    def num_running(self) -> int: ...  # noqa: D102
    @property
    def num_waiting(self) -> int: ...  # noqa: D102
    @property
    def is_short(self) -> bool: ...  # noqa: D102
    @property
    def num_free_blocks(self) -> int: ...  # noqa: D102
    def free_blocks_in(self, num_steps: int) -> int: ...  # noqa: D102
    @property
    def num_cached_free_blocks(self) -> int: ...  # noqa: D102
    @property
    def num_taken_blocks(self) -> int: ...  # noqa: D102
    def head(self) -> Request: ...  # noqa: D102


NEVER_COMES = 1 << 63
"""Later than any tick of a run."""


class Flight(NamedTuple):
    """A scheduled step whose output is not read yet."""

    ticks: int
    num_decodes: int
    num_chunks: int = 0
    """Prompt chunks that are computed (a transferred prompt's are not)."""
    is_empty: bool = False
    """Nothing was scheduled."""
    preempts: bool = False


@dataclass(slots=True)
class Glide:
    """A leap under way: the read of what was in flight (asynchronous only), then an arithmetic series of steps."""

    start: int
    first: int
    """Ticks until the step in flight is read; 0 under synchronous scheduling."""
    num_steps: int
    """Steps to schedule, and reads to do."""
    num_decodes: int
    ticks: int
    """Duration of the series' first step."""
    slope: int
    """Ticks by which each later step is longer."""
    open: bool
    """Whether a new request ends it."""

    def ends_at(self, reads: int) -> int:
        """When the first so many outputs have been read."""
        n = reads - 1 if self.first else reads
        return self.start + self.first + n * self.ticks + self.slope * (n * (n - 1) // 2)

    def reads_until(self, now: int) -> int:
        """The fewest reads that end at `now` or later; never more than were planned."""
        gap = now - self.start - self.first
        if gap <= 0:
            return 1
        steps = steps_to_cover(self.ticks, self.slope, gap) + (self.first > 0)
        return min(steps, self.num_steps)


def series(ticks: int, slope: int, n: int) -> int:
    """Sum of n steps, the first of `ticks`, each `slope` longer than the one before.

    >>> series(10, 2, 3)
    36
    """
    return n * ticks + slope * (n * (n - 1) // 2)


def steps_to_cover(ticks: int, slope: int, gap: int) -> int:
    """The smallest n with series(ticks, slope, n) >= gap > 0, exactly.

    >>> steps_to_cover(10, 2, 36), steps_to_cover(10, 2, 37)
    (3, 4)
    """
    if not slope:
        return -(-gap // ticks)
    b = 2 * ticks - slope
    n = max(0, (isqrt(b * b + 8 * slope * gap) - b) // (2 * slope) - 1)
    while n * ticks + slope * (n * (n - 1) // 2) < gap:
        n += 1
    return n


@dataclass(slots=True)
class Totals:
    """What a replica sums up, in ticks and tokens."""

    steps: int = 0
    leaps: int = 0
    leapt_steps: int = 0
    decode_ticks: int = 0
    """Steps of decodes only."""
    prefill_ticks: int = 0
    """Steps of prompt chunks only."""
    mixed_ticks: int = 0
    batch_ticks: int = 0
    """Sequences in the step, times its duration."""
    stalled_ticks: int = 0
    """The engine waited for another model on the same GPUs."""
    used_block_ticks: int = 0
    peak_used_blocks: int = 0
    decode_tokens: int = 0
    prefill_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    blocked_seqs_ticks: int = 0
    """Requests wait while the batch has max_num_seqs sequences."""
    blocked_tokens_ticks: int = 0
    """Requests wait while the step has max_num_batched_tokens tokens."""
    blocked_blocks_ticks: int = 0
    """Requests wait for KV blocks."""

    @property
    def busy_ticks(self) -> int:
        """Time in which a step ran."""
        return self.decode_ticks + self.prefill_ticks + self.mixed_ticks


Ended = Callable[[Live, int, int, int], None]
"""(request, now, finish reason, tokens generated)."""


@dataclass(slots=True)
class Replica:
    """One engine with its step times."""

    id: int
    engine: Engine
    step_time: StepTime
    num_blocks: int
    """Usable blocks."""
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    is_async: bool
    one_full_group: bool
    """Whether every token of a request takes a slot of one kind, so that its need is known beforehand."""
    meter: TokenMeter
    ended: Ended
    drafts: int = 0
    """Speculation: drafts per decode. A step may give a sequence several tokens, so they are looked at one by one."""
    on_pressure: Callable[[Replica, int], None] | None = None
    """Asked before each decision; may `prune` when `engine.is_short`."""
    totals: Totals = field(default_factory=Totals)
    flights: deque[Flight] = field(default_factory=deque)
    glide: Glide | None = None
    inbox: list[Live] = field(default_factory=list)
    """Came during a leap; the engine learns of them when it lands."""
    inbox_since: int = 0
    leavers: list[Live] = field(default_factory=list)
    """Clients that gave up; the engine learns of it before the next output is applied."""
    resident: dict[Live, None] = field(default_factory=dict)
    """Requests that hold blocks."""
    notes: list[str] = field(default_factory=list)
    num_submitted: int = 0
    queued_blocks: int = 0
    """Blocks for the prompts that were never admitted yet."""
    num_reads: int = 0
    """Steps whose output was read."""
    read_weight: int = 0
    """Sum over read steps of (its number * its ticks): with it a sum over any stretch is closed."""
    waits_for: str = ""
    """Why requests wait since the last schedule: the field of `Totals` that the time goes to; empty = none wait."""
    _to_visible: list[tuple[int, int, int, Live]] = field(default_factory=list)
    """Heap of (read step that gives the first visible token, row, preemptions then, request)."""

    # --- requests come and go ---------------------------------------------------------------

    def submit(self, live: Live) -> None:
        """Queue a request: now, or when the leap under way lands."""
        live.replica = self.id
        self.num_submitted += 1
        self.queued_blocks += -(-live.num_prompt_tokens // self.block_size)
        live.arrival_time = (
            self.num_submitted
        )  # the order of arrival; ties in time are possible, ties in order not
        if self.glide is not None:
            if not self.inbox:
                self.inbox_since = self.glide.start if self.engine.num_waiting else live.arrival
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

    def held_tokens(self) -> tuple[int, int, int, int]:
        """KV held by requests now, in tokens: prompt, prompt found in the cache, thinking, answer."""
        own = shared = thinking = answer = 0
        for live in self.resident:
            held = live.held if live.decode_from == NEVER else live.held + self.num_reads - live.decode_from
            prompt = min(held, live.num_prompt_tokens)
            hidden = min(held - prompt, live.thinking_tokens)
            hit = min(live.hit_tokens, prompt)
            own, shared, thinking, answer = (
                own + prompt - hit,
                shared + hit,
                thinking + hidden,
                answer + held - prompt - hidden,
            )
        return own, shared, thinking, answer

    def generated(self, live: Live) -> int:
        """Tokens that a request has been given so far, up to the last read step."""
        if self.drafts:
            return live.num_output_tokens
        if live.decode_from == NEVER:
            return max(0, live.high_water + 1 - live.num_prompt_tokens)
        return live.held + 1 - live.num_prompt_tokens + self.num_reads - live.decode_from

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

    def never_fits(self, live: Live) -> str:
        """Say what a request needs and what there is if all blocks together do not hold it; empty if they do."""
        if not self.one_full_group:
            return ""
        tokens = live.num_prompt_tokens + live.output_tokens - 1
        needed = -(-tokens // self.block_size)
        if needed <= self.num_blocks:
            return ""
        return (
            f"request {live.row} needs {needed} blocks for its {tokens} tokens of KV; "
            f"the pool has {self.num_blocks} of {self.block_size} tokens"
        )

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
        first = self.flights[0].ticks if self.flights else 0
        if lasts < steps:
            steps = lasts
        ticks, widening = base + slope * context, slope * decodes
        glide = self.glide = Glide(now, first, steps, decodes, ticks, widening, is_open)
        n = steps - 1 if first else steps
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
        if not glide.first:
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

    # --- bookkeeping ------------------------------------------------------------------------

    def _account(self, flight: Flight, now: int) -> None:
        """Add one read step that ended now."""
        totals, ticks, decodes = self.totals, flight.ticks, flight.num_decodes
        totals.steps += 1
        self.num_reads += 1
        self.read_weight += self.num_reads * ticks
        totals.batch_ticks += ticks * (decodes + flight.num_chunks)
        totals.used_block_ticks += ticks * (self.num_blocks - self.engine.num_free_blocks)
        if decodes:
            totals.decode_tokens += decodes
            self.meter.add(ticks, ticks, decodes, 1, now - ticks, now)
            if flight.num_chunks:
                totals.mixed_ticks += ticks
            else:
                totals.decode_ticks += ticks
        else:
            totals.prefill_ticks += ticks
        if self.waits_for:
            self._note_waiting(ticks)
        if self._to_visible and self._to_visible[0][0] <= self.num_reads:
            self._show(0, 0, now, self.num_reads - 1)

    def _account_series(self, glide: Glide, reads: int, start: int, now: int, used: int) -> None:
        """Add the read steps of a leap, in closed form."""
        totals, before, ticks, slope = self.totals, self.num_reads, glide.ticks, glide.slope
        duration = now - start
        totals.steps += reads
        self.num_reads = before + reads
        pairs = reads * (reads - 1) // 2
        self.read_weight += (before + 1) * duration + ticks * pairs + slope * (pairs * (2 * reads - 1) // 3)
        totals.batch_ticks += duration * glide.num_decodes
        totals.used_block_ticks += duration * used
        totals.decode_tokens += glide.num_decodes * reads
        totals.decode_ticks += duration
        self.meter.add(ticks, ticks + slope * (reads - 1), glide.num_decodes, reads, start, now)
        if self.waits_for:
            self._note_waiting(duration)
        if self._to_visible and self._to_visible[0][0] <= self.num_reads:
            self._show(ticks, slope, start, before)

    def _show(self, ticks: int, slope: int, start: int, before: int) -> None:
        """Set the time of first visible tokens that came in the steps just read."""
        heap = self._to_visible
        while heap and heap[0][0] <= self.num_reads:
            step, _, preemptions, live = heappop(heap)
            if live.num_preemptions == preemptions and live in self.resident:
                live.first_visible = start + series(ticks, slope, step - before)

    def _note_blocks(self, used: int) -> None:
        if used > self.totals.peak_used_blocks:
            self.totals.peak_used_blocks = used

    def _why_waiting(self, num_tokens: int) -> str:
        if self.engine.num_running >= self.max_num_seqs:
            return "blocked_seqs_ticks"
        return "blocked_tokens_ticks" if num_tokens >= self.max_num_batched_tokens else "blocked_blocks_ticks"

    def _note_waiting(self, ticks: int) -> None:
        setattr(self.totals, self.waits_for, getattr(self.totals, self.waits_for) + ticks)

    def _admitted(self, live: Live, hit_tokens: int, now: int) -> None:
        self.resident[live] = None
        if not live.admitted:
            live.admitted = True
            self.queued_blocks -= -(-live.num_prompt_tokens // self.block_size)
        live.since = now
        live.held = hit_tokens
        if live.scheduled == NEVER:
            live.scheduled = now
            live.hit_tokens = hit_tokens

    def _hold(self, live: Live, tokens: int, now: int) -> None:
        """The request holds another number of tokens from now on."""
        live.kv_area += live.held * (now - live.since)
        live.held, live.since = tokens, now

    def _count_recomputed(self, live: Live, num_tokens: int, before: int) -> None:
        again = max(0, min(before + num_tokens, live.high_water) - before)
        live.recomputed += again
        self.totals.recomputed_tokens += again

    def _stop_holding(self, live: Live, now: int) -> None:
        """Close the account of KV held over time: while decoding, one token more per read step."""
        if live.decode_from == NEVER:
            live.kv_area += live.held * (now - live.since)
        else:
            offset = live.held - live.decode_from
            live.kv_area += offset * (now - live.since) + self.read_weight - live.weight_from
            live.held += self.num_reads - live.decode_from
            live.decode_from = NEVER

    def _preempted(self, live: Live, now: int) -> None:
        self.totals.preemptions += 1
        self._stop_holding(live, now)
        live.high_water = max(live.high_water, live.held)
        live.held = 0
        live.lost_at = now
        self.resident.pop(live, None)

    def _read(self, outputs: Any, now: int) -> None:
        """Note first tokens and ends."""
        for live in outputs.first_tokens:
            self._starts_decoding(live, now)
        for live in outputs.finished:
            stopped = live.status is RequestStatus.FINISHED_STOPPED
            live.discarded = int(self.is_async and stopped)
            self._end(live, now, STOP if stopped or live.num_output_tokens < live.max_tokens else LENGTH,
                      live.num_output_tokens)  # fmt: skip

    def _starts_decoding(self, live: Live, now: int) -> None:
        """A prefill has given its token: the first one, or the next one after a preemption."""
        if live.first_token == NEVER:
            live.first_token = now
            if not live.thinking_tokens:
                live.first_visible = now
        elif live.lost_at != NEVER:
            self.meter.add(now - live.lost_at, now - live.lost_at, 1, 1, now - 1, now)
            live.lost_ticks += now - live.lost_at
        if live not in self.resident:
            return  # preempted while this token was in flight
        if self.drafts:
            return
        self._hold(live, live.held, now)
        live.decode_from, live.weight_from = self.num_reads, self.read_weight
        if live.first_visible == NEVER:
            generated = live.held + 1 - live.num_prompt_tokens
            missing = live.thinking_tokens + 1 - generated
            if missing <= 0:
                live.first_visible = now
            else:
                heappush(self._to_visible, (self.num_reads + missing, live.row, live.num_preemptions, live))

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

    def _end(self, live: Live, now: int, reason: int, generated: int) -> None:
        if live in self.resident:
            self._stop_holding(live, now)
            del self.resident[live]
        elif not live.admitted:
            self.queued_blocks -= -(-live.num_prompt_tokens // self.block_size)
        if live.first_visible != NEVER and generated <= live.thinking_tokens:
            live.first_visible = NEVER
        self.ended(live, now, reason, generated)
