"""What is written down about an engine while it runs: sums over steps, who got which token when, KV held over time.

Everything is closed form inside a leap: with the number of read steps and its time-weighted sum, any stretch of
any sequence's life is a difference of two numbers. Knows no queue and no clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from kvplan.schedulers.protocol import SchedulerInterface
from kvplan.schedulers.request import RequestStatus
from kvplan.simulation.in_flight import Flight, Glide, series
from kvplan.simulation.metrics import TokenMeter
from kvplan.simulation.records import NEVER
from kvplan.simulation.sim_request import LENGTH, REJECTED, STOP, Live
from kvplan.timing.step import StepTime


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
class Books:
    """One engine, its step times, and what is written down about it."""

    id: int
    engine: SchedulerInterface
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
    totals: Totals = field(default_factory=Totals)
    resident: dict[Live, None] = field(default_factory=dict)
    """Requests that hold blocks."""
    notes: list[str] = field(default_factory=list)
    num_submitted: int = 0
    queued_blocks: int = 0
    """Blocks for the prompts that were never admitted yet."""
    num_reads: int = 0
    """Steps with decodes whose output was read: every sequence that decodes has grown by one in each."""
    read_weight: int = 0
    """Sum over time of `num_reads`, the running step included: with it a sum over any stretch is closed."""
    num_decoding: int = 0
    """Sequences between their first and their last token."""
    pauses: list[tuple[int, int]] = field(default_factory=list)
    """(sequences, ticks) that decoding ones have stood still for, while others' prompts ran alone."""
    waits_for: str = ""
    """Why requests wait since the last schedule: the field of `Totals` that the time goes to; empty = none wait."""
    _to_visible: list[tuple[int, int, int, Live]] = field(default_factory=list)
    """Heap of (read step that gives the first visible token, row, preemptions then, request)."""

    def held_tokens(self) -> tuple[int, int, int, int]:
        """KV held by requests now, in tokens: prompt, prompt found in the cache, thinking, answer."""
        own = shared = thinking = answer = 0
        for live in self.resident:
            held = live.held if live.decode_from == NEVER else live.held + self.num_reads - live.decode_from
            prompt, hit, hidden = live.num_prompt_tokens, live.hit_tokens, live.thinking_tokens
            if held < prompt + hidden:
                prompt = min(held, prompt)
                hidden, hit = held - prompt, min(hit, prompt)
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

    def _account(self, flight: Flight, now: int) -> None:
        """Add one read step that ended now."""
        totals, ticks, decodes = self.totals, flight.ticks, flight.num_decodes
        totals.steps += 1
        self.num_reads += decodes > 0
        self.read_weight += self.num_reads * ticks
        totals.batch_ticks += ticks * (decodes + flight.num_chunks)
        totals.used_block_ticks += ticks * (self.num_blocks - self.engine.num_free_blocks)
        if decodes:
            totals.decode_tokens += decodes
            paused = self._end_pauses(ticks, decodes, now) if self.pauses else 0
            self.meter.add(ticks, ticks, decodes - paused, 1, now - ticks, now)
            if flight.num_chunks:
                totals.mixed_ticks += ticks
            else:
                totals.decode_ticks += ticks
        else:
            totals.prefill_ticks += ticks
            if self.num_decoding and ticks:
                self._pause(ticks)
        if self.waits_for:
            self._note_waiting(ticks)
        if self._to_visible and self._to_visible[0][0] <= self.num_reads:
            self._show(0, 0, now, self.num_reads - 1)

    def _pause(self, ticks: int) -> None:
        """A step without decodes: who decodes waits longer for the next token, those who joined last the least."""
        pauses = [(n, waited + ticks) for n, waited in self.pauses]
        joined = self.num_decoding - sum(n for n, _ in pauses)
        self.pauses = [*pauses, (joined, ticks)] if joined > 0 else pauses

    def _end_pauses(self, ticks: int, decodes: int, now: int) -> int:
        """They decode again; return how many were counted."""
        counted = 0
        for n, waited in self.pauses:
            n = min(n, decodes - counted)
            counted += n
            if n:
                self.meter.add(ticks + waited, ticks + waited, n, 1, now - ticks, now)
        self.pauses = []
        return counted

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
            self.num_decoding -= 1

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
            if live.status is RequestStatus.FINISHED_ABORTED:  # the engine gave up on it
                self._end(live, now, REJECTED, live.num_output_tokens)
                continue
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
        self.num_decoding += 1
        if live.first_visible == NEVER:
            generated = live.held + 1 - live.num_prompt_tokens
            missing = live.thinking_tokens + 1 - generated
            if missing <= 0:
                live.first_visible = now
            else:
                heappush(self._to_visible, (self.num_reads + missing, live.row, live.num_preemptions, live))

    def _end(self, live: Live, now: int, reason: int, generated: int) -> None:
        if live in self.resident:
            self._stop_holding(live, now)
            del self.resident[live]
        elif not live.admitted:
            self.queued_blocks -= -(-live.num_prompt_tokens // self.block_size)
        if live.first_visible != NEVER and generated <= live.thinking_tokens:
            live.first_visible = NEVER
        self.ended(live, now, reason, generated)
