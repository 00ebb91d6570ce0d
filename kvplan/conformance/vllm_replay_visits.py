"""Runs a scenario on the scheduler that leaps by visits (`leap.visits`) and spells its leaps out, step by step.

Its records are those of the step-by-step scheduler but for blocks, which are counted between leaps only (`looks`).
"""

from __future__ import annotations

from random import Random

from kvplan.conformance.vllm_records import StepRecord
from kvplan.conformance.vllm_replay_spelled import Look, ScriptedDrafts, SpelledReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.errors import KvplanError
from kvplan.schedulers.leap.allowed import why_no_visits
from kvplan.schedulers.protocol import Leap
from kvplan.schedulers.request import Request
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.offloading.jobs import KVConnectorOutput
from kvplan.schedulers.vllm.output import SchedulerOutput


class VisitReplay(SpelledReplay):
    """One run of a scenario; `rng` cuts leaps short anywhere, as a clock may."""

    engine: StepByStep

    def __init__(self, scenario: VLLMScenario, rng: Random | None = None) -> None:
        config = scenario.engine_config
        reason = why_no_visits(config)
        if reason:
            raise KvplanError(f"{scenario.name or 'the scenario'} cannot leap by visits: {reason}")
        self.engine = StepByStep(config, ScriptedDrafts(self._run_of), leaps=True)
        super().__init__(scenario, self.engine.scheduler)
        self._open_books(rng)

    def _count_blocks(self, record: StepRecord) -> None:
        """Leave them out of the log: inside a leap nobody counts."""
        self._hit_tokens += sum(record.hits.values())
        if not self._spelled:
            free, cached = self.pool.get_num_free_blocks(), self.pool.num_cached_blocks
            held = bool(self.scheduler.running)
            look = Look(self.step, free, None if held else cached, self.pool.num_evicted, self._hit_tokens)
            self.looks.append(look)

    def _schedule(self, record: StepRecord) -> SchedulerOutput:
        if not self._spelled:
            leap = self.engine.plan_leap()
            num_steps = self._steps_of(leap) if leap else 0
            if not leap or num_steps < 1:
                return super()._schedule(record)
            self._spell(leap, num_steps)
        spelled = self._spelled.popleft()
        record.sched, record.n_tokens, record.free = spelled.sched, spelled.n_tokens, spelled.free
        return SchedulerOutput(self.step, {entry[0]: entry[1] for entry in record.sched})

    def _spell(self, leap: Leap, num_steps: int) -> None:
        running = self.scheduler.running
        each = leap.drafted.num_tokens // len(running) if leap.drafted else 1
        starts = self._starts(leap, num_steps)
        assert (len(running), sum(start[0] + each for start in starts)) == leap[1:3]
        self.num_leaps += num_steps > 1
        self.num_leapt_steps += num_steps
        for i in range(num_steps):
            each_start = zip(running, starts, strict=True)
            record = StepRecord(
                0, sched=[(r.request_id, each, start[i], "decode") for r, start in each_start]
            )
            record.n_tokens, record.free = each * len(running), self.engine.free_blocks_in(i + 1)
            self._spelled.append(record)
        outputs = self.engine.commit_leap(num_steps)
        self._known_ends.extend([] for _ in range(num_steps - 1))
        self._known_ends.append(outputs.last.finished)

    def _starts(self, leap: Leap, num_steps: int) -> list[list[int]]:
        """Return the tokens that each running request has computed before each of a leap's steps."""
        paths = leap.drafted.paths if leap.drafted is not None else None
        starts = [[r.num_computed_tokens, *[0] * (num_steps - 1)] for r in self.scheduler.running]
        for row, start in enumerate(starts):
            for i in range(1, num_steps):
                drafted = paths and int(paths.tokens[row, i - 1]) - 1 + paths.num_in_flight
                start[i] = drafted or start[0] + i
        return starts

    def _decide(self) -> SchedulerOutput:
        self.engine.schedule()
        return self.engine.newest_output

    def _read(
        self, output: SchedulerOutput, accepted: dict[str, int], kv_output: KVConnectorOutput | None
    ) -> list[Request]:
        if self._known_ends:
            return self._known_ends.popleft()
        return self.engine.update_from_output().finished
