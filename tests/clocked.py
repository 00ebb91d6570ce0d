"""A scenario that counts steps, put on a clock: its arrivals and aborts become times, one replica serves it.

What a driver does with a `Replica` - decide, let time pass, read, cut a leap short - in its smallest honest form, so
that the leaping and the step-by-step scheduler can be compared in time as well as in decisions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvplan.conformance.scenario import ScenarioRequest
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.units import TICKS_PER_S
from kvplan.schedulers.leap.make import make_leap_scheduler
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.adaptive_verification import AdaptiveVerification, VerificationCosts
from kvplan.simulation.acceptance import accept_drafts
from kvplan.simulation.deploy import StatedStepTime
from kvplan.simulation.in_flight import NEVER_COMES
from kvplan.simulation.metrics import TokenMeter
from kvplan.simulation.records import Record
from kvplan.simulation.replica import Replica
from kvplan.simulation.sim_request import SimRequest

MS = TICKS_PER_S // 1000
STEP_TIME = StatedStepTime(8 * MS, MS // 50, 67_700, MS // 20)
"""8 ms, 20 us a sequence, 67.7 ns a token of context, 50 us a token of prompt."""
STEP_TICKS = 9 * MS
"""What a step of a scenario becomes; no multiple of any step's duration, so things happen in the middle of steps."""


class Told(NamedTuple):
    """What a run on the clock decided, and when."""

    records: list[Record]
    """In the order in which requests ended."""
    hit_tokens: int
    taken_blocks: int
    evicted_blocks: int
    free_blocks: int
    cached_blocks: int
    intervals: tuple[int, int]
    """Between two tokens of a sequence: how many, and their sum in ticks."""
    totals: dict[str, int]


class Clocked:
    """One run. `leaps=False` is the step-by-step scheduler behind the same replica, `visits` lets that one leap."""

    def __init__(
        self,
        scenario: VLLMScenario,
        leaps: bool,
        block_ticks: bool = False,
        visits: bool = False,
        costs: VerificationCosts | None = None,
    ) -> None:
        self.sums = (*SUMS, "used_block_ticks") if block_ticks else SUMS
        config = scenario.engine_config
        self.scenario = scenario
        accept = accept_drafts(scenario.accept_rate, (7,))
        drafts = config.num_speculative_tokens
        verification = AdaptiveVerification(costs, accept.survival(drafts)) if costs else None
        self.engine = (
            make_leap_scheduler(config, accept)
            if leaps
            else StepByStep(config, accept, leaps=visits, verification=verification)
        )
        self.replica = Replica(0, self.engine, STEP_TIME, config, TokenMeter(), self._ended)
        self.records: list[Record] = []
        self.hit_tokens = 0
        self._ends: dict[str, int] = {}
        self._lives: dict[str, SimRequest] = {}
        self._to_come = list(scenario.requests)
        self._to_leave = [r for r in scenario.requests if r.abort_step is not None or r.abort_follows]
        self._can_cut = False
        self._count_hits()

    def run(self) -> Told:
        """Run until nothing is left to do."""
        now, replica = 0, self.replica
        while True:
            self._happen(now)
            ticks = replica.begin(now)
            if ticks is None:
                now = self._next()
                if now == NEVER_COMES:
                    return self._told()
                continue
            end, self._can_cut = now + ticks, replica.leap is not None
            while (at := self._next()) <= end:
                if self._happen(at):
                    self._can_cut = False
                    end = at + replica.cut(at)
            replica.complete(end)
            now = end

    def _happen(self, now: int) -> bool:
        """Let what is due arrive or leave; say whether that cuts the leap under way."""
        cuts = False
        for request in sorted((r for r in self._to_come if self._due(r) <= now), key=self._due):
            self._to_come.remove(request)
            live = self._lives[request.id] = self._live(request)
            live.arrival = now
            self.replica.submit(live, now)
            cuts |= self.replica.leap is not None and self.replica.leap.open
        for request in [r for r in self._to_leave if self._leaves(r) <= now]:
            self._to_leave.remove(request)
            if request.id not in self._ends:
                self.replica.leave(self._lives[request.id])
                cuts = True
        return cuts and self._can_cut

    def _live(self, request: ScenarioRequest) -> SimRequest:
        row, outputs = self.scenario.requests.index(request), request.output_len
        prompt, told = self.scenario.prompts[request.id], self.scenario.max_tokens(request)
        live = SimRequest(row, prompt, told, outputs, outputs // 2, 0, request.priority, request.id)
        live.stop_at = outputs if request.stop == "eos" else None
        return live

    def _ended(self, live: SimRequest, now: int, reason: int, generated: int) -> None:
        self._ends[live.request_id] = now
        self.records.append(Record(*live.record(now, reason, generated)))

    # --- steps as times ---------------------------------------------------------------------

    def _next(self) -> int:
        """When the next thing happens that is known now."""
        dues = [self._due(r) for r in self._to_come] + [self._leaves(r) for r in self._to_leave]
        return min(dues, default=NEVER_COMES)

    def _due(self, request: ScenarioRequest) -> int:
        return self._after(request.follows, request.delay_steps, request.arrival_step)

    def _leaves(self, request: ScenarioRequest) -> int:
        if request.id not in self._lives:
            return NEVER_COMES
        due = self._after(request.abort_follows, request.abort_delay_steps, request.abort_step)
        half = STEP_TICKS // 2 if request.abort_when == "before_output" else 0
        return max(due + half, self._lives[request.id].arrival)

    def _after(self, others: tuple[str, ...], delay_steps: int, step: int | None) -> int:
        if not others:
            assert step is not None
            return step * STEP_TICKS
        if any(other not in self._ends for other in others):
            return NEVER_COMES
        return max(self._ends[other] for other in others) + delay_steps * STEP_TICKS

    # --- what is told -----------------------------------------------------------------------

    def _count_hits(self) -> None:
        """Sum up the hits of every admission; a record tells the first one's."""
        schedule = self.engine.schedule

        def counted() -> Any:
            step = schedule()
            self.hit_tokens += sum(hit for _, hit in step.admitted)
            return step

        self.replica.engine = _Counted(self.engine, counted)

    def _told(self) -> Told:
        engine, totals, meter = self.engine, self.replica.totals, self.replica.meter
        meter.flush()
        if isinstance(engine, LeapScheduler):
            evicted = engine.pool.num_evicted
        else:
            evicted = engine.scheduler.kv_cache_manager.block_pool.num_evicted
        return Told(
            self.records, self.hit_tokens, engine.num_taken_blocks, evicted, engine.num_free_blocks,
            engine.num_cached_free_blocks, (meter.total, meter.sum_ticks),
            {name: getattr(totals, name) for name in self.sums},
        )  # fmt: skip


class _Counted:
    """An engine whose `schedule` is looked at."""

    def __init__(self, engine: Any, schedule: Any) -> None:
        self._engine = engine
        self.schedule = schedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


SUMS = (
    "steps", "decode_ticks", "prefill_ticks", "mixed_ticks", "batch_ticks", "peak_used_blocks", "decode_tokens",
    "prefill_tokens", "recomputed_tokens", "preemptions",
)  # fmt: skip
"""The replica's sums that leaping must not change. (KV used over time is not here: with full attention it is the mean
of a leap's two ends. Nor is why requests wait, which a leap tells for its whole length.)"""
