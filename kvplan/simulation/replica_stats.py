"""What is written down about an engine while it runs: sums over steps, who got which token when, KV held over time.

Everything is closed form inside a leap: with the number of read steps and its time-weighted sum, any stretch of
any sequence's life is a difference of two numbers. Knows no queue and no clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from kvplan.schedulers.protocol import Counts, DecodePath, SchedulerInterface
from kvplan.schedulers.request import RequestStatus
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.api_server import ApiServers
from kvplan.simulation.draft_books import ReadTimes, dot, kv_area, visible_at
from kvplan.simulation.held_tokens import GrowingTokens, HeldTokens, held_tokens
from kvplan.simulation.in_flight import DraftedLeapInFlight, LeapInFlight, StepInFlight, Stretch
from kvplan.simulation.metrics import TokenMeter
from kvplan.simulation.records import UNSET
from kvplan.simulation.shared_prefixes import SharedPrefixes
from kvplan.simulation.sim_request import LENGTH, REJECTED, STOP, SimRequest
from kvplan.simulation.streams import Pieces
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
    num_decodes: int = 0
    """Decodes of one sequence in one step; with drafts each gives one token and those drafts that were right."""
    decode_tokens: int = 0
    """Tokens computed in them, drafts included."""
    prefill_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    flush_ticks: int = 0
    """Steps waited for copies to the tier beyond the GPU, whose blocks they wrote over."""
    blocked_seqs_ticks: int = 0
    """Requests wait while the batch has max_num_seqs sequences."""
    blocked_tokens_ticks: int = 0
    """Requests wait while the step has max_num_batched_tokens tokens."""
    blocked_blocks_ticks: int = 0
    """Requests wait for KV blocks."""
    held_back_ticks: int = 0
    """Prompts wait for company (`batch_wait`), and did not find the blocks lacking when last looked at."""

    @property
    def busy_ticks(self) -> int:
        """Time in which a step ran."""
        return self.decode_ticks + self.prefill_ticks + self.mixed_ticks


Ended = Callable[[SimRequest, int, int, int], None]
"""(request, now, finish reason, tokens generated)."""


@dataclass(slots=True)
class ReplicaStats:
    """One engine, its step times, and what is written down about it."""

    id: int
    engine: SchedulerInterface
    step_time: StepTime
    config: EngineConfig
    meter: TokenMeter
    ended: Ended
    api: ApiServers | None = None
    """Its share of the API servers; None where they take no time."""
    shared_reads: float = 0.0
    """Share of what several sequences hold together that a step reads once."""
    shared: SharedPrefixes | None = None
    """What they hold together; None where each reads its own."""
    totals: Totals = field(default_factory=Totals)
    resident: dict[SimRequest, None] = field(default_factory=dict)
    """Requests that hold blocks."""
    pieces: Pieces | None = None
    """Its streams, where they send tokens in groups; None: each token is a piece."""
    still: dict[SimRequest, None] = field(default_factory=dict)
    """Those of them that do not decode in closed form: they have prompt chunks to come, or drafts."""
    notes: list[str] = field(default_factory=list)
    num_submitted: int = 0
    num_coming: int = 0
    """Requests on their way through the API server."""
    queued_blocks: int = 0
    """Blocks for the prompts that were never admitted yet, or are on their way."""
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
    times: ReadTimes = field(default_factory=ReadTimes)
    """With drafts, in a leaping engine: when outputs were read."""
    _to_visible: list[tuple[int, int, int, SimRequest]] = field(default_factory=list)
    """Heap of (read step that gives the first visible token, row, preemptions then, request)."""
    _growing: GrowingTokens = field(default_factory=GrowingTokens)
    num_blocks: int = field(init=False)
    """Usable blocks."""
    block_size: int = field(init=False)
    drafts: int = field(init=False)
    """Speculation: drafts per decode. A step may give a sequence several tokens; what it gave is a path to look up,
    or, step by step, is looked at one by one."""
    admitted_alone: int = field(init=False)
    """Tokens of a step that admits a request for one token, where steps are padded to a decode's."""
    one_full_group: bool = field(init=False)
    """Whether every token of a request takes a slot of one kind, so that its need is known beforehand."""

    def __post_init__(self) -> None:
        config, groups = self.config, self.config.groups
        self.num_blocks, self.block_size = config.num_gpu_blocks - 1, config.block_size
        self.drafts = config.num_speculative_tokens
        tiers = config.num_speculative_tokens_per_batch_size
        self.admitted_alone = 1 if tiers else 1 + self.drafts
        self.one_full_group = len(groups) == 1 and groups[0].kind == "full"

    def held_tokens(self) -> HeldTokens:
        """KV held by requests now."""
        growing = self._growing.at(self.num_reads)
        if not self.still:
            return growing
        still = [held_tokens(request, self._holds(request)) for request in self.still]
        return HeldTokens(*map(sum, zip(growing, *still, strict=True)))

    def _holds(self, request: SimRequest) -> int:
        """Tokens of a request that does not grow by one a read: as told last, or by its path over drafts."""
        path = request.decode_path
        return request.held if path is None else path.after(self.times.count - request.decode_from)[1]

    def generated(self, request: SimRequest) -> int:
        """Tokens that a request has been given so far, up to the last read step."""
        if self.drafts:
            path = request.decode_path
            if path is None:
                return request.num_output_tokens
            return path.after(self.times.count - request.decode_from)[0] - request.num_prompt_tokens
        if request.decode_from == UNSET:
            return max(0, request.high_water + 1 - request.num_prompt_tokens)
        return request.held + 1 - request.num_prompt_tokens + self.num_reads - request.decode_from

    def never_fits(self, request: SimRequest) -> str:
        """Say what a request needs and what there is if all blocks together do not hold it; empty if they do."""
        if not self.one_full_group:
            return ""
        tokens = request.num_prompt_tokens + request.output_tokens - 1
        needed = -(-tokens // self.block_size)
        if needed <= self.num_blocks:
            return ""
        return (
            f"request {request.row} needs {needed} blocks for its {tokens} tokens of KV; "
            f"the pool has {self.num_blocks} of {self.block_size} tokens"
        )

    def _delay(self, now: int) -> int:
        """Ticks from the step's end at `now` to a client's seeing its tokens."""
        return self.api.delay_at(now) if self.api is not None else 0

    def _count_late(self, api: ApiServers, first: int, last: int, num: int, steps: int) -> None:
        """Where a round of sending takes longer than a step of `first` ticks, clients count fewer intervals."""
        if api.times.is_late(num, first):
            seen = api.times.round
            self.meter.merge(first, last, num * steps, seen(num, first), seen(num, last))

    def _account(self, step: StepInFlight, now: int, used: int | None = None) -> None:
        """Add one read step that ended now, in which `used` blocks were held; None = as many as are now."""
        if used is None:
            used = self.num_blocks - self.engine.num_free_blocks
        totals, ticks, decodes = self.totals, step.ticks, step.num_decodes
        totals.steps += step.num_steps
        self.num_reads += decodes > 0
        self.read_weight += self.num_reads * ticks
        totals.batch_ticks += ticks * (decodes + step.num_chunks)
        totals.used_block_ticks += ticks * used
        if decodes:
            totals.num_decodes += decodes
            totals.decode_tokens += step.decode_tokens
            if self.pieces is not None and not self.drafts:
                self.pieces.reads.add(self.num_reads - 1, [Stretch(ticks, ticks, 1, now - ticks, now)])
            paused = self._end_pauses(ticks, decodes, now) if self.pauses else 0
            self.meter.add(ticks, ticks, decodes - paused, 1, now - ticks, now)
            if self.api is not None:
                self._count_late(self.api, ticks, ticks, decodes - paused, 1)
            if step.num_chunks:
                totals.mixed_ticks += ticks
            else:
                totals.decode_ticks += ticks
        else:
            if not step.is_empty:
                totals.prefill_ticks += ticks
            if self.num_decoding and ticks:
                self._pause(ticks)
        if self.waits_for:
            self._note_waiting(ticks)
        if self._to_visible and self._to_visible[0][0] <= self.num_reads:
            self._show(lambda _: now)

    def _read_once(self, shared: SharedPrefixes) -> int:
        """Tokens of the summed context that a step does not read again."""
        return round(self.shared_reads * shared.num_redundant)

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

    def _account_series(self, leap: LeapInFlight, reads: int, start: int, now: int, used: int) -> None:
        """Add the read steps of a leap, in closed form."""
        totals, before, decodes = self.totals, self.num_reads, leap.num_decodes
        duration = now - start
        totals.steps += reads
        self.num_reads = before + reads
        self.read_weight += before * duration + leap.weight(reads)
        totals.batch_ticks += duration * decodes
        totals.used_block_ticks += duration * used
        totals.num_decodes += decodes * reads
        totals.decode_tokens += leap.num_tokens * reads
        totals.decode_ticks += duration
        if self.pieces is not None:
            self.pieces.reads.add(before, leap.stretches(reads))
        for first, last, steps, begun, end in leap.stretches(reads):
            self.meter.add(first, last, decodes, steps, begun, end)
            if self.api is not None:
                self._count_late(self.api, first, last, decodes, steps)
        if self.waits_for:
            self._note_waiting(duration)
        if self._to_visible and self._to_visible[0][0] <= self.num_reads:
            self._show(lambda read: leap.ends_at(leap.ahead + read - before))

    def _account_each(
        self, leap: DraftedLeapInFlight, reads: int, start: int, now: int, used: Counts
    ) -> None:
        """Add the read steps of a leap over drafts; `used` blocks were in each."""
        totals, durations, decodes = self.totals, leap.durations[:reads], leap.num_decodes
        duration, at = now - start, start
        totals.steps += reads
        self.num_reads += reads
        totals.batch_ticks += duration * decodes
        totals.used_block_ticks += dot(durations, used)
        totals.num_decodes += decodes * reads
        totals.decode_tokens += leap.num_tokens * reads
        totals.decode_ticks += duration
        add = self.meter.add
        for ticks in durations.tolist():
            add(ticks, ticks, decodes, 1, at, at + ticks)
            at += ticks
        if self.waits_for:
            self._note_waiting(duration)
        if not self.engine.keeps_counters:
            self.times.extend(leap.ends[:reads] + start, self._decoding_since())

    def _note_read(self, now: int) -> None:
        """With drafts and no look at each sequence: when an output was read."""
        if not self.engine.keeps_counters:
            self.times.add(now, self._decoding_since())

    def _decoding_since(self) -> Iterator[int]:
        return (request.decode_from for request in self.resident if request.decode_from != UNSET)

    def _show(self, ends_at: Callable[[int], int]) -> None:
        """Set the time of first visible tokens that came in the steps just read."""
        heap = self._to_visible
        while heap and heap[0][0] <= self.num_reads:
            step, _, preemptions, request = heappop(heap)
            if request.num_preemptions == preemptions and request in self.resident:
                self._growing.answers(step)
                if request.first_visible == UNSET:
                    request.first_visible = ends_at(step)
                    request.visible_delay = self._delay(request.first_visible)

    def _note_blocks(self, used: int) -> None:
        if used > self.totals.peak_used_blocks:
            self.totals.peak_used_blocks = used

    def _why_waiting(self, num_tokens: int) -> str:
        if self.engine.num_running >= self.config.max_num_active_reqs:
            return "blocked_seqs_ticks"
        if self.engine.holds_back:
            return "held_back_ticks"
        return "blocked_tokens_ticks" if num_tokens >= self.config.token_budget else "blocked_blocks_ticks"

    def _note_waiting(self, ticks: int) -> None:
        setattr(self.totals, self.waits_for, getattr(self.totals, self.waits_for) + ticks)

    def _admitted(self, request: SimRequest, hit_tokens: int, now: int) -> None:
        self.resident[request] = self.still[request] = None
        if not request.admitted:
            request.admitted = True
            self.queued_blocks -= -(-request.num_prompt_tokens // self.block_size)
        request.since = now
        request.held = hit_tokens
        if request.scheduled == UNSET:
            request.scheduled = now
            request.hit_tokens = hit_tokens

    def _hold(self, request: SimRequest, tokens: int, now: int) -> None:
        """The request holds another number of tokens from now on."""
        request.kv_area += request.held * (now - request.since)
        request.held, request.since = tokens, now

    def _count_recomputed(self, request: SimRequest, num_tokens: int, before: int) -> None:
        again = max(0, min(before + num_tokens, request.high_water) - before)
        request.recomputed += again
        self.totals.recomputed_tokens += again

    def _stop_holding(self, request: SimRequest, now: int) -> None:
        """Close the account of KV held over time: while decoding, one token more per read step."""
        if self.drafts:
            self._stop_drafting(request, now)
        elif request.decode_from == UNSET:
            request.kv_area += request.held * (now - request.since)
        else:
            if self.pieces is not None:
                had = request.held + 1 - request.num_prompt_tokens
                self.pieces.give(request, had, request.decode_from + 1, self.num_reads)
            offset = request.held - request.decode_from
            request.kv_area += offset * (now - request.since) + self.read_weight - request.weight_from
            request.held += self.num_reads - request.decode_from
            request.decode_from = UNSET
            self.num_decoding -= 1
            self._growing.leave(request, request.held, self.num_reads)

    def _look_back(self) -> None:
        """The run ends: what is written down of those that draft is as of the last read, leaping or not."""
        if not self.times.count:
            return
        last = int(self.times.of(self.times.count)[-1])
        for request in self.resident:
            path = request.decode_path
            if path is not None:
                self._look_up(request, path, self.times.of(request.decode_from), last)
            elif last > request.since:
                request.kv_area += request.held * (last - request.since)

    def _look_up(self, request: SimRequest, path: DecodePath, times: Counts, now: int) -> None:
        """Look up in a path what was held until now, and when the first visible token came."""
        request.kv_area += kv_area(path, times, now)
        if request.first_visible == UNSET:
            seen = visible_at(path, times, request.num_prompt_tokens + request.thinking_tokens)
            request.first_visible = UNSET if seen is None else seen

    def _stop_drafting(self, request: SimRequest, now: int) -> None:
        """With drafts: look up in the path what was held, and when the first visible token came."""
        path = request.decode_path
        if path is None:
            request.kv_area += request.held * (now - request.since)
            request.decode_from = UNSET
            return
        times = self.times.of(request.decode_from)
        if self.pieces is not None:
            self.pieces.walk(request, path.tokens()[: len(times)] - request.num_prompt_tokens, times)
        self._look_up(request, path, times, now)
        request.held = path.after(len(times) - 1)[1]
        request.decode_from, request.decode_path = UNSET, None

    def _preempted(self, request: SimRequest, now: int) -> None:
        self.totals.preemptions += 1
        self._stop_holding(request, now)
        if self.shared is not None:
            self.shared.remove(request)
        request.high_water = max(request.high_water, request.held)
        request.held = 0
        request.lost_at = now
        self.resident.pop(request, None)
        self.still.pop(request, None)

    def _read(self, outputs: Any, now: int) -> None:
        """Note first tokens and ends."""
        for request in outputs.first_tokens:
            self._starts_decoding(request, now)
        for request in outputs.finished:
            stopped = request.status is RequestStatus.FINISHED_STOPPED
            if request.status is RequestStatus.FINISHED_ABORTED:  # the engine gave up on it
                self._end(request, now, REJECTED, request.num_output_tokens)
                continue
            request.discarded = int(self.config.async_scheduling and stopped)
            self._end(request, now, STOP if stopped or request.num_output_tokens < request.max_tokens else LENGTH,
                      request.num_output_tokens)  # fmt: skip

    def _starts_decoding(self, request: SimRequest, now: int) -> None:
        """A prefill has given its token: the first one, or the next one after a preemption."""
        if request.first_token == UNSET:
            request.first_token, request.first_delay = now, self._delay(now)
            if not request.thinking_tokens:
                request.first_visible, request.visible_delay = now, request.first_delay
        elif request.lost_at != UNSET:
            self.meter.add(now - request.lost_at, now - request.lost_at, 1, 1, now - 1, now)
            request.lost_ticks += now - request.lost_at
        if request not in self.resident:
            return  # preempted while this token was in flight
        if self.shared is not None:
            self.shared.add(request)
        if self.drafts:
            self._starts_drafting(request, now)
            return
        if self.pieces is not None:
            self.pieces.begin(request, request.held + 1 - request.num_prompt_tokens, now)
        self._hold(request, request.held, now)
        request.decode_from, request.weight_from = self.num_reads, self.read_weight
        self.num_decoding += 1
        del self.still[request]
        self._growing.join(request, request.held, self.num_reads)
        missing = request.thinking_tokens + request.num_prompt_tokens - request.held
        if missing > 0:
            entry = (self.num_reads + missing, request.row, request.num_preemptions, request)
            heappush(self._to_visible, entry)
        elif request.first_visible == UNSET:
            request.first_visible, request.visible_delay = now, self._delay(now)

    def _starts_drafting(self, request: SimRequest, now: int) -> None:
        """With drafts: follow its path, if it has one, else look at it after every read."""
        path = request.decode_path = self.engine.decode_path(request)
        request.decode_from = self.times.count
        if self.pieces is not None:
            told = int(path.tokens()[0]) - request.num_prompt_tokens if path is not None else None
            self.pieces.begin(request, request.num_output_tokens if told is None else told, now)
        if path is not None:
            self._hold(request, request.held, now)
        elif request.first_visible == UNSET:
            self._see(request, now)

    def _see(self, request: SimRequest, now: int) -> None:
        """Note the first visible token, if it has just come."""
        if request.num_output_tokens > request.thinking_tokens:
            request.first_visible = now

    def _end(self, request: SimRequest, now: int, reason: int, generated: int) -> None:
        if request in self.resident:
            self._stop_holding(request, now)
            del self.resident[request]
            if self.shared is not None:
                self.shared.remove(request)
            self.still.pop(request, None)
        elif not request.admitted:
            self.queued_blocks -= -(-request.num_prompt_tokens // self.block_size)
        if request.first_visible != UNSET and generated <= request.thinking_tokens:
            request.first_visible = UNSET
        if (
            self.drafts and request.thinking_tokens
        ):  # seen as late as the last token: a path is looked at when it ends
            request.visible_delay = self._delay(now)
        if self.pieces is not None:
            self.pieces.end(request, generated, now, reason in (STOP, LENGTH))
        if reason in (STOP, LENGTH):  # a stream's tokens leave in order
            seen = max(request.first_token + request.first_delay, request.seen_visible)
            request.finish_delay = max(self._delay(now), seen - now)
        self.ended(request, now, reason, generated)
