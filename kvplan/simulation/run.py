"""A run on a clock: the only file that knows SimPy.

    source -> router -> API server -> replica: decide a step or a leap, let its time pass, read what it gave
                                         ^ cut short by an arrival it would look at, or by a client that leaves

The clock counts whole picoseconds, so leaping and stepping agree exactly. An arrival that falls on the end of a
step is seen by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Protocol

import simpy
from simpy.events import NORMAL, URGENT, Event

from kvplan.ground.collector import rare_searches
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario
from kvplan.simulation.deploy import Setup
from kvplan.simulation.fleets import Fleet, FleetBuilder
from kvplan.simulation.interrupts import interrupts
from kvplan.simulation.metrics import Sample, Timeline, TokenMeter
from kvplan.simulation.observer import NO_OBSERVER, Observer
from kvplan.simulation.records import UNSET, Records
from kvplan.simulation.replica import Replica, take_sample
from kvplan.simulation.replica_process import EngineProcess, ReplicaProcess
from kvplan.simulation.sim_request import REFUSED, REJECTED, TIMEOUT, UNFINISHED, SimRequest

Process = Generator[Event, Any, None]

CHECK_EVERY = 256
"""Steps and leaps between two looks at thrashing."""
FEW_SAMPLES = 64
"""Of a timeline: fewer draw no line."""
LOOK_EVERY = 16
"""Steps, leaps or requests between two looks at the wall clock; a step of a large batch takes milliseconds."""


class Source(Protocol):
    """Where a run's requests come from: the arrivals of a load, or the branches of strategies."""

    class_names: list[str]
    """By the requests' class ids."""
    span_s: float
    """When the last request comes that waits for no other."""
    abort_reason: int
    """What a record says of a request whose client left."""
    next_at: int
    """When the next request comes, if nothing else brings one to the only replica before; else NEVER_COMES."""
    runs_ahead: bool
    """Whether a replica may go on by itself until something else happens; its own ends change nothing then."""

    def start(self, run: Run) -> None:
        """Let the first requests come."""
        ...

    def ended(self, request: SimRequest, reason: int, generated: int, process: ReplicaProcess | None) -> None:
        """A request has left the replica that had it; the last one halts the run."""
        ...


class Run:
    """One simulation."""

    def __init__(
        self,
        scenario: Scenario,
        setups: dict[str, Setup],
        source: Source,
        step_by_step: bool = False,
        observer: Observer = NO_OBSERVER,
        started: float | None = None,
        contents: str = "",
    ) -> None:
        self.scenario, self.source, self.observer = scenario, source, observer
        self.env: Any = simpy.Environment(0)
        self.stop: Event = self.env.event()
        self.started = time.monotonic() if started is None else started
        self.records = Records(source.class_names, setups[""].kv_bytes_per_token)
        self.meter = TokenMeter()
        self.timeline = Timeline(max(TICKS_PER_S // 20, round(source.span_s / 400 * TICKS_PER_S)))
        self.beginning = Timeline(TICKS_PER_S // 20, max_samples=128)
        """Finer, while the timeline has few samples: what a run that is soon broken off can show."""
        self.notes: dict[str, int] = {}
        self.alive: dict[int, SimRequest] = {}
        self.place_of: dict[int, tuple[ReplicaProcess, SimRequest]] = {}
        """Where a request is, and the engine's request for it."""
        self.turns = self.sent = 0
        self.interrupted = False
        self.verdict = ""
        self.now = 0
        """When the last request ended in its engine; once the run is over, when it ended."""
        self.seen = 0
        """When the last client got its last token."""
        self.engines: list[EngineProcess] = []
        """What steps by itself: replicas, and groups of ranks in lockstep."""
        builder = FleetBuilder(
            seed=scenario.workload.seed, step_by_step=step_by_step, meter=self.meter, ended=self.ended,
            start=self._start, deadline=self.started + scenario.limits.wall_clock_s, contents=contents,
        )  # fmt: skip
        self.modes = builder.modes
        self.fleets = {
            name: builder.build(name, deployment, setups[name])
            for name, deployment in scenario.deployments.items()
        }
        self.replicas = [process.replica for fleet in self.fleets.values() for process in fleet.processes]
        for replica in self.replicas:
            if replica.copies is not None and observer.copies:
                replica.copies.keep_log()

    def go(self) -> None:
        """Run until everything has ended or something stops it."""
        self.source.start(self)
        self.at(round(self.scenario.limits.horizon_s * TICKS_PER_S), lambda: self.halt("horizon"))
        with interrupts(self), rare_searches():
            self.verdict = str(self.env.run(until=self.stop))
        self.now = max(self.env.now, self.now)
        for replica in self.replicas:
            replica.stop(self.now)
        for request in self.alive.values():
            process, served = self.place_of.get(request.row, (None, request))
            generated = process.replica.generated(served) if process else 0
            self.records.add(request.record(self.now, UNFINISHED, generated))
        self.now = max(self.now, self.seen)

    def at(self, delay: int, callback: Callable[[], None]) -> None:
        """Call back after so many ticks, before anything else that happens at that time."""
        event = Event(self.env)
        event._ok, event._value = True, None
        event.callbacks.append(lambda _: callback())
        self.env.schedule(event, URGENT, delay)

    def _pass(self, ticks: int, replica_id: int) -> Event:
        """Let time pass for a replica; what ends at one moment ends in order of replicas, leaping or not."""
        event = Event(self.env)
        event._ok, event._value = True, None
        self.env.schedule(event, NORMAL + 1 + replica_id, ticks)
        return event

    def halt(self, verdict: str) -> None:
        """End the run after what happens now."""
        if not self.stop.triggered:
            self.stop.succeed(verdict)

    def note(self, text: str) -> None:
        """Say something about the run; what is said often is counted."""
        self.notes[text] = self.notes.get(text, 0) + 1

    # --- the clock --------------------------------------------------------------------------

    def _start(self, process: EngineProcess) -> None:
        process.process = self.env.process(self._serve(process))
        self.engines.append(process)

    def _serve(self, process: EngineProcess) -> Process:
        """An engine's life: decide a step or a leap, let its time pass, read what it gave."""
        env, source, engine, now = self.env, self.source, process.engine, 0
        while True:
            while process.score_batches:
                yield from self._score(process)
                now = env.now
            ticks = engine.begin(now, source.next_at, self.timeline.next_at)
            if ticks is None:
                process.sleeper = env.event()
                yield process.sleeper
                now = env.now
                continue
            now += ticks
            if not source.runs_ahead or now >= env.peek():
                process.can_cut = engine.can_be_cut
                try:
                    yield self._pass(now - env.now, engine.id)
                except simpy.Interrupt:
                    yield self._pass(engine.cut(env.now), engine.id)
                    now = env.now
                process.can_cut = False
            engine.complete(now)
            self.turns += 1
            if now >= self.timeline.next_at or self.interrupted or not self.turns % LOOK_EVERY:
                self._check(now)
                if self.stop.triggered:
                    return

    def _score(self, process: EngineProcess) -> Process:
        """A verifier on the same GPUs scores what waits; the engine stands still."""
        assert isinstance(process.engine, Replica), "refused beside ranks in lockstep"
        batch = process.score_batches.popleft()
        ticks = batch.begin()
        yield self.env.timeout(ticks)
        process.engine.stall(ticks)
        batch.end()

    def _check(self, now: int) -> None:
        """Sample the timeline; look at who wants to end the run, at the wall clock, now and then at thrashing."""
        if now >= self.timeline.next_at:
            self.timeline.add(now, take_sample(self.replicas, now))
            self.observer.on_sample(now / TICKS_PER_S, self.replicas)
        if now >= self.beginning.next_at and len(self.timeline.samples) < FEW_SAMPLES:
            self.beginning.add(now, take_sample(self.replicas, now))
        if self.interrupted or self.observer.cancelled():
            self.halt("interrupted")
        self._look_at_the_clock()
        if self.turns % CHECK_EVERY:
            return
        recomputed = sum(r.totals.recomputed_tokens for r in self.replicas)
        useful = sum(r.totals.decode_tokens + r.totals.prefill_tokens for r in self.replicas) - recomputed
        if recomputed > self.scenario.limits.thrash_ratio * useful:
            self.halt("thrash")

    @property
    def samples(self) -> list[Sample]:
        """What the timeline shows: of a run that was broken off early, the finer samples of its beginning."""
        is_short = self.verdict == "interrupted" and len(self.timeline.samples) < FEW_SAMPLES
        return self.beginning.samples if is_short else self.timeline.samples

    def _look_at_the_clock(self) -> None:
        if time.monotonic() - self.started > self.scenario.limits.wall_clock_s:
            self.halt("wall_clock")

    # --- a request's way --------------------------------------------------------------------

    def send(self, fleet: Fleet, request: SimRequest, place: Callable[[Fleet, SimRequest], None]) -> None:
        """`place` it on a replica."""
        self.sent += 1
        if not self.sent % LOOK_EVERY:  # choosing among thousands of replicas takes its time
            self._look_at_the_clock()
        place(fleet, request)

    def place(self, fleet: Fleet, request: SimRequest) -> None:
        """To a replica that computes its prompt, or all of it."""
        if fleet.prefill:
            self._prefill(fleet, request)
        else:
            self._route(fleet, request)

    def submit(self, process: ReplicaProcess, request: SimRequest, max_queue: int | None = None) -> None:
        """To this replica, through its API server unless another's has had it; refused where the queue is full."""
        if self._refuses(process, request):
            return
        if process.admission is not None:
            process.admission.come(request)
        replica = process.replica
        ticks = 0 if request.transferred else replica.receive(request, self.env.now)
        if not ticks:
            self._hand_over(process, request, max_queue)
            return
        self.place_of[request.row] = process, request
        replica.expect(request, 1)

        def come() -> None:
            replica.expect(request, -1)
            if request.row in self.alive:
                self._hand_over(process, request, max_queue)

        self.at(ticks, come)

    def _hand_over(self, process: ReplicaProcess, request: SimRequest, max_queue: int | None) -> None:
        if max_queue is not None and process.replica.num_waiting >= max_queue:
            self.ended(request, self.env.now, REFUSED, 0)
        elif not self._refuses(process, request):
            self.place_of[request.row] = process, request
            if process.admission is not None:
                process.admission.enter(request)
            process.submit(request, self.env.now)

    def _refuses(self, process: ReplicaProcess, request: SimRequest) -> bool:
        """End a request that the API servers refuse; its client gets HTTP 503."""
        reason = process.admission.refuses(request, self.env.now) if process.admission is not None else ""
        if reason:
            self.note(f"{reason}: a request was refused with HTTP 503")
            self.ended(request, self.env.now, REFUSED, 0)
        return bool(reason)

    def _route(self, fleet: Fleet, request: SimRequest) -> None:
        """To the replica that the router chooses, unless it cannot or will not take it."""
        process = fleet.choose(request, self.env.now)
        if not self._rejects(process, request, request):
            self.submit(process, request, fleet.deployment.max_queue)

    def _rejects(self, process: ReplicaProcess, served: SimRequest, request: SimRequest) -> bool:
        """End a request if the replica can never hold what it is to serve of it."""
        reason = process.replica.never_fits(served)
        if reason:
            self.note(f"never fits: {reason}")
            self.ended(request, self.env.now, REJECTED, 0)
        return bool(reason)

    def _prefill(self, fleet: Fleet, request: SimRequest) -> None:
        """Disaggregated: compute the prompt elsewhere first; its one token is thrown away, as vLLM's proxy does."""
        process = fleet.choose_prefill(request, self.env.now)
        prefill = SimRequest(
            request.row, request.prompt, 1, 1, class_id=request.class_id, priority=request.priority
        )
        prefill.arrival = request.arrival
        if not self._rejects(process, prefill, request):
            prefill.on_end = lambda done, now, reason: self._transfer(fleet, done, request, reason)
            self.submit(process, prefill)

    def _transfer(self, fleet: Fleet, prefill: SimRequest, request: SimRequest, reason: int) -> None:
        """Move the prompt's KV; then the request queues where it decodes."""
        self.place_of.pop(request.row, None)
        request.scheduled, request.hit_tokens = prefill.scheduled, prefill.hit_tokens
        request.engine_arrival = prefill.engine_arrival
        request.kv_area, request.transferred = prefill.kv_area, True
        if reason in (TIMEOUT, REFUSED):
            self.ended(request, self.env.now, reason, 0)
        else:
            ticks = fleet.transfer_ticks(request.num_prompt_tokens)
            self.at(ticks, lambda: self._route(fleet, request) if request.row in self.alive else None)

    def leave(self, request: SimRequest) -> None:
        """The client gives up, wherever the request is."""
        if request.row not in self.alive:
            return
        process, served = self.place_of.get(request.row, (None, request))
        if process is None or served.engine_arrival == UNSET:
            self.ended(request, self.env.now, TIMEOUT, 0)
        else:
            process.leave(served)

    def ended(self, request: SimRequest, now: int, reason: int, generated: int) -> None:
        """A request left a replica, or never got into one."""
        process, _ = self.place_of.get(request.row, (None, request))
        if process is not None and process.admission is not None:
            process.admission.leave(request, now + request.finish_delay)
        if request.on_end is not None:
            request.on_end(request, now, reason)
            return
        reason = self.source.abort_reason if reason == TIMEOUT else reason
        self.records.add(request.record(now, reason, generated))
        del self.alive[request.row]
        self.place_of.pop(request.row, None)
        self.now = now
        self.seen = max(self.seen, now + request.finish_delay)
        if not len(self.records) % CHECK_EVERY:  # where all are refused, no step ends
            self._look_at_the_clock()
        self.source.ended(request, reason, generated, process)
