"""A scenario on a clock: the only file that knows SimPy.

    arrivals -> frontend -> router -> replica: decide a step or a leap, let its time pass, read what it gave
                                         ^ cut short by an arrival it would look at, or by a client that leaves

The clock counts whole picoseconds, so leaping and stepping agree exactly. An arrival that falls on the end of a
step is seen by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from operator import itemgetter
from typing import Any

import numpy as np
import simpy
from simpy.events import URGENT, Event

from kvplan.errors import KvplanError
from kvplan.scenario.schema import MAX_HORIZON_S, Frontend, Scenario
from kvplan.simulation.collect import sum_up, take_sample
from kvplan.simulation.deploy import Setup, set_ups
from kvplan.simulation.fleets import make_fleet
from kvplan.simulation.in_flight import NEVER_COMES
from kvplan.simulation.interrupts import interrupts
from kvplan.simulation.load_requests import Arrivals
from kvplan.simulation.metrics import Timeline, TokenMeter
from kvplan.simulation.observer import NOBODY, Watch
from kvplan.simulation.records import SUMMARY_FIELDS, Record, Records
from kvplan.simulation.replica_process import Fleet, Lockstep, Seat
from kvplan.simulation.result import Result
from kvplan.simulation.rows import Rows
from kvplan.simulation.sim_request import REFUSED, REJECTED, TIMEOUT, UNFINISHED, Live
from kvplan.timing.step import StepShape
from kvplan.units import TICKS_PER_S
from kvplan.workload.load import draw_load

Process = Generator[Event, Any, None]
Progress = Callable[[int, int], None]
"""Called with (requests ended, requests in all)."""

WATCH_EVERY = 256
"""Steps and leaps between two looks at the wall clock and at thrashing."""


def simulate(
    scenario: Scenario,
    *,
    step_by_step: bool = False,
    progress: Progress | None = None,
    keep_records: bool = True,
    keep_samples: bool = True,
    setups: dict[str, Setup] | None = None,
    watch: Watch = NOBODY,
) -> Result:
    """Run a scenario to its end, its horizon, a verdict, or Ctrl-C; always returns what was simulated.

    Without `keep_records` only what the report needs of each request stays in memory; without `keep_samples` no
    timeline is taken.
    `setups` replaces the planned engines, by name in `scenario.deployments`; `watch` looks on and may end the run.
    Raises KvplanError for what cannot be simulated, DoesNotFit when an engine would not start.
    """
    if scenario.problems is not None:
        from kvplan.simulation.branch_requests import solve  # it builds on this file

        return solve(
            scenario, step_by_step=step_by_step, progress=progress, setups=setups, watch=watch
        ).result
    run = Run(scenario, setups or set_ups(scenario), step_by_step, progress, watch)
    run.runs_ahead = run.num_replicas == 1 and not run.arrivals.any_follow and not run.any_leave
    if not keep_records:
        run.records.fields = SUMMARY_FIELDS
        run.pick = itemgetter(*(Record._fields.index(name) for name in SUMMARY_FIELDS))
    if not keep_samples:
        run.timeline.next_at = NEVER_COMES
    return run.go()


class Run:
    """One simulation."""

    def __init__(
        self,
        scenario: Scenario,
        setups: dict[str, Setup],
        step_by_step: bool,
        progress: Progress | None,
        watch: Watch = NOBODY,
    ) -> None:
        self.scenario = scenario
        self.env: Any = simpy.Environment(0)
        self.progress = progress
        self.step_by_step = step_by_step
        self.watch = watch
        self.load = draw_load(scenario.workload, scenario.folder)
        self.records = Records(self.load.class_names)
        self.pick: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None
        """Which fields of a record are kept; None = all."""
        self.meter = TokenMeter()
        self.notes: dict[str, int] = {}
        self.modes: dict[str, str] = {}
        self.alive: dict[int, Live] = {}
        self.seat_of: dict[int, tuple[Seat, Live]] = {}
        """Where a request is, and the engine's request for it."""
        self.any_leave = bool(np.isfinite(self.load.leaves_after_s).any())
        self.arrivals = Arrivals(self)
        self.any_frontend = any(d.frontend != Frontend() for d in scenario.deployments.values())
        self.runs_ahead = False
        """Whether a replica may go on by itself until something else happens; its own ends change nothing then."""
        self.last_end = 0
        """When the last request ended."""
        self.open = len(self.load)
        """Requests that have not ended and still can."""
        self.stop: Event = self.env.event()
        self.num_replicas = 0
        self.interrupted = False
        self.turns = 0
        self.started = time.monotonic()
        self.fleets = {name: make_fleet(self, setups[name], name) for name in scenario.deployments}
        self.replicas = [seat.replica for f in self.fleets.values() for seat in (*f.prefill, *f.seats)]
        self.fleet_of_class = [self.fleets[cls.model] for cls in self.load.classes]
        self.records.kv_bytes_per_token = self.fleets[""].setup.kv_bytes_per_token
        self.rows = Rows(self.load, np.array([f.setup.config.max_model_len for f in self.fleet_of_class]))
        self.timeline = Timeline(self._sample_interval())

    def _sample_interval(self) -> int:
        span = float(np.nanmax(self.load.arrival_s))
        if not span <= MAX_HORIZON_S:
            raise KvplanError(
                f"the last request arrives after {span / 86400:,.4g} days, the clock ends after"
                f" {MAX_HORIZON_S / 86400:.0f}; raise the rate, or ask for fewer requests"
            )
        return max(TICKS_PER_S // 20, round(span / 400 * TICKS_PER_S))

    # --- running ----------------------------------------------------------------------------

    def go(self) -> Result:
        """Run until everything has ended or something stops it."""
        self._start()
        self.at(round(self.scenario.limits.horizon_s * TICKS_PER_S), lambda _: self._halt("horizon"))
        with interrupts(self):
            verdict = self.env.run(until=self.stop)
        now = max(self.env.now, self.last_end)
        for replica in self.replicas:
            replica.stop(now)
        for live in list(self.alive.values()):
            self._close_unfinished(live, now)
        return sum_up(self, str(verdict), now)

    def _halt(self, verdict: str) -> None:
        if not self.stop.triggered:
            self.stop.succeed(verdict)

    def at(self, delay: int, callback: Callable[[Event], None]) -> None:
        """Call back after so many ticks, before anything else that happens at that time."""
        event = Event(self.env)
        event._ok, event._value = True, None
        event.callbacks.append(callback)
        self.env.schedule(event, URGENT, delay)

    def serve(self, seat: Seat) -> Process:
        """One replica's life: decide, let time pass, read."""
        env, replica, now = self.env, seat.replica, 0
        alone = self.num_replicas == 1 and not self.arrivals.any_follow and not self.any_frontend
        while True:
            while seat.aside:
                job = seat.aside.popleft()
                taken = job.begin()
                yield env.timeout(taken)
                replica.stall(taken)
                job.end()
                now = env.now
            ticks = replica.begin(now, self.arrivals.next_at if alone else NEVER_COMES)
            if ticks is None:
                seat.sleeper = env.event()
                yield seat.sleeper
                now = env.now
                continue
            now += ticks
            if not self.runs_ahead or now >= env.peek():
                seat.gliding = replica.glide is not None
                try:
                    yield env.timeout(now - env.now)
                except simpy.Interrupt:
                    yield env.timeout(replica.cut(env.now))
                    now = env.now
                seat.gliding = False
            replica.complete(now)
            self.turns += 1
            if now >= self.timeline.next_at or self.interrupted or not self.turns % WATCH_EVERY:
                self._watch(now)
                if self.stop.triggered:
                    return

    def serve_lockstep(self, group: Lockstep) -> Process:
        """Ranks that step together: each step lasts as long as the fullest rank's; idle ranks run dummy batches."""
        env, replicas = self.env, [seat.replica for seat in group.seats]
        dummy = replicas[0].step_time.ticks(StepShape(1, 1, 1))
        while True:
            waits = [replica.begin(env.now, may_leap=False) for replica in replicas]
            if all(wait is None for wait in waits):
                group.sleeper = env.event()
                for seat in group.seats:
                    seat.sleeper = group.sleeper
                yield group.sleeper
                continue
            ticks = max(dummy if wait is None else wait for wait in waits)
            yield env.timeout(ticks)
            for replica, wait in zip(replicas, waits, strict=True):
                if wait is not None:
                    replica.stretch(ticks)
                    replica.complete(env.now)
            self.turns += 1
            self._watch(env.now)

    def _watch(self, now: int) -> None:
        """Sample the timeline; now and then look at the wall clock and at thrashing."""
        if now >= self.timeline.next_at:
            self.timeline.add(now, take_sample(self.replicas, now))
            self.watch.on_sample(now / TICKS_PER_S, self.replicas)
        if self.interrupted or self.watch.cancelled():
            self._halt("interrupted")
        if self.turns % WATCH_EVERY:
            return
        if time.monotonic() - self.started > self.scenario.limits.wall_clock_s:
            self._halt("wall_clock")
        recomputed = sum(r.totals.recomputed_tokens for r in self.replicas)
        useful = sum(r.totals.decode_tokens + r.totals.prefill_tokens for r in self.replicas) - recomputed
        if recomputed > self.scenario.limits.thrash_ratio * useful:
            self._halt("thrash")

    # --- arrivals ---------------------------------------------------------------------------

    def _start(self) -> None:
        self.arrivals.start()

    def launch(self, row: int) -> None:
        """A request arrives: refused, or routed to a replica."""
        live = self.rows.make(row)
        live.arrival = self.env.now
        fleet = self.fleet_of_class[live.class_id]
        self.alive[row] = live
        if self.rows.any_refused and self.rows.refused[row]:
            self.note("prompts longer than max_model_len - 1 were refused, as vLLM refuses them")
            self.ended(live, self.env.now, REJECTED, 0)
        else:
            self._send(fleet, live)
        if self.any_leave and row in self.alive:
            self._wait_to_leave(live)

    def _send(self, fleet: Fleet, live: Live) -> None:
        """Through the API server, if that takes time, to the engine."""
        ticks = fleet.frontend_ticks(live.num_prompt_tokens)
        if ticks:
            self.at(ticks, lambda _: self._place(fleet, live) if live.row in self.alive else None)
        else:
            self._place(fleet, live)

    def _place(self, fleet: Fleet, live: Live) -> None:
        """To a replica that computes its prompt, or all of it."""
        if fleet.prefill_router is not None:
            self._launch_prefill(fleet, live)
        else:
            self._route(fleet, live)

    def _wait_to_leave(self, live: Live) -> None:
        """Note when the client gives up, if it does."""
        leaves = self.load.leaves_after_s[live.row]
        if leaves != np.inf:
            self.at(round(float(leaves) * TICKS_PER_S), lambda _: self._leave(live))

    def _route(self, fleet: Fleet, live: Live) -> None:
        """Choose a replica that decodes it."""
        seat = fleet.seats[fleet.router.choose(fleet.replicas, live, self.env.now)]
        replica = seat.replica
        reason = replica.never_fits(live)
        if reason:
            self.note(f"never fits: {reason}")
            self.ended(live, self.env.now, REJECTED, 0)
        elif fleet.max_queue is not None and replica.num_waiting >= fleet.max_queue:
            self.ended(live, self.env.now, REFUSED, 0)
        else:
            self.seat_of[live.row] = seat, live
            seat.submit(live)

    def _launch_prefill(self, fleet: Fleet, live: Live) -> None:
        """Disaggregated: compute the prompt elsewhere first; its one token is thrown away, as vLLM's proxy does."""
        assert fleet.prefill_router is not None
        places = [seat.replica for seat in fleet.prefill]
        seat = fleet.prefill[fleet.prefill_router.choose(places, live, self.env.now)]
        prefill = Live(live.row, live.prompt, 1, 1, 0, live.class_id, live.priority)
        prefill.arrival = live.arrival
        if seat.replica.never_fits(prefill):
            self.note(f"never fits: {seat.replica.never_fits(prefill)}")
            self.ended(live, self.env.now, REJECTED, 0)
            return
        prefill.on_end = lambda done, now, reason: self._transfer(fleet, done, live, reason)
        self.seat_of[live.row] = seat, prefill
        seat.submit(prefill)

    def _transfer(self, fleet: Fleet, prefill: Live, live: Live, reason: int) -> None:
        """Move the prompt's KV; then the request queues where it decodes."""
        assert fleet.transfer_ticks is not None
        self.seat_of.pop(live.row, None)
        live.scheduled, live.hit_tokens = prefill.scheduled, prefill.hit_tokens
        live.kv_area, live.transferred = prefill.kv_area, True
        if reason == TIMEOUT:
            self.ended(live, self.env.now, TIMEOUT, 0)
        else:
            ticks = fleet.transfer_ticks(live.num_prompt_tokens)
            self.at(ticks, lambda _: self._route(fleet, live) if live.row in self.alive else None)

    def _leave(self, live: Live) -> None:
        """The client gives up, wherever the request is."""
        if live.row not in self.alive:
            return
        place = self.seat_of.get(live.row)
        if place is None:
            self.ended(live, self.env.now, TIMEOUT, 0)
        else:
            place[0].leave(place[1])

    # --- endings ----------------------------------------------------------------------------

    def ended(self, live: Live, now: int, reason: int, generated: int) -> None:
        """A request left a replica, or never got into one."""
        if live.on_end is not None:
            live.on_end(live, now, reason)
            return
        self._record(live, now, reason, generated)
        row = live.row
        del self.alive[row]
        self.seat_of.pop(row, None)
        self.open -= 1
        if self.progress is not None:
            self.progress(len(self.records), len(self.load))
        if self.arrivals.any_follow:
            self.open -= self.arrivals.ended(row, reason)
        self.last_end = now
        if not self.open:
            self._halt("completed")

    def _record(self, live: Live, now: int, reason: int, generated: int) -> None:
        record = live.record(now, reason, generated)
        self.records.add(record if self.pick is None else self.pick(record))

    def _close_unfinished(self, live: Live, now: int) -> None:
        """The run ended first."""
        live.on_end = None
        place = self.seat_of.get(live.row)
        self._record(live, now, UNFINISHED, place[0].replica.generated(place[1]) if place else 0)

    def note(self, text: str) -> None:
        """Say something about the run; what is said often is counted."""
        self.notes[text] = self.notes.get(text, 0) + 1
