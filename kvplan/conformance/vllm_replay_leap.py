"""Runs a scenario on the leaping scheduler and spells its leaps out, step by step: the same log, told differently.

A leap tells how many steps are "+1 for everyone"; its steps are written down one by one, so that `sched_sha256` is
over the same lines as the step-by-step scheduler's. Block counts within a leap are not told; `looks` has those between
leaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from kvplan.conformance.replay import MAX_STEPS, ReplayResult
from kvplan.conformance.vllm_records import StepRecord
from kvplan.conformance.vllm_replay_spelled import Look, ScriptedDrafts, SpelledReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.conformance.vllm_stuck import Stuck
from kvplan.ground.errors import KvplanError
from kvplan.schedulers.leap.allowed import why_not
from kvplan.schedulers.leap.draft_scheduler import DraftLeapScheduler
from kvplan.schedulers.leap.make import make_leap_scheduler
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.leap.state import Sequence, Stage
from kvplan.schedulers.protocol import ContentsMatter, Leap
from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.output import SchedulerOutput


class LeapReplay(SpelledReplay):
    """One run of a scenario on `LeapScheduler`.

    `leaps=False` walks every step with it; `rng` cuts leaps short anywhere, as a clock may.
    """

    engine: LeapScheduler

    def __init__(self, scenario: VLLMScenario, leaps: bool = True, rng: Random | None = None) -> None:
        config = scenario.engine_config
        reason = why_not(config)
        if reason:
            raise KvplanError(f"{scenario.name or 'the scenario'} cannot leap: {reason}")
        super().__init__(scenario)
        self.engine = make_leap_scheduler(config, ScriptedDrafts(self._run_of))
        self.leaps = leaps
        self._open_books(rng)

    def iter_steps(self, max_steps: int = MAX_STEPS) -> Iterator[StepRecord]:
        """Yield the record of each step; raise KvplanError where cached contents turn out to matter."""
        try:
            yield from super().iter_steps(max_steps)
        except ContentsMatter as why:
            raise KvplanError(f"{self.scenario.name or 'the scenario'} cannot leap: {why}") from why

    def find_stuck(self) -> Stuck | None:
        """Say what a run that is stuck waits for."""
        config, head = self.scheduler.config, self.engine.head()
        head.num_tokens = self.engine.sequences[head.request_id].num_tokens
        needed = self.manager.blocks_to_admit(head, config)
        return Stuck(head, needed, config.num_gpu_blocks - 1, config.block_size)

    def totals(self, result: ReplayResult[StepRecord]) -> dict[str, object]:
        """Return a run's totals; nobody counts blocks inside a leap."""
        return self._decisions(result) | {"leaps": self.num_leaps}

    def _count_blocks(self, record: StepRecord) -> None:
        """Leave them out of the log: inside a leap nobody counts."""
        self._hit_tokens += sum(record.hits.values())
        if not self._spelled:
            pool = self.engine.pool
            cached = None if self.engine.running else self.engine.num_cached_free_blocks
            self.looks.append(Look(self.step, pool.num_free, cached, pool.num_evicted, self._hit_tokens))

    def _schedule(self, record: StepRecord) -> SchedulerOutput:
        if not self._spelled:
            computed = {
                seq.request: self.engine.computed_tokens(seq.request.request_id) for seq in self._running()
            }
            leap = self.engine.plan_leap() if self.leaps else None
            num_steps = self._steps_of(leap) if leap else 0
            if leap and num_steps > 0:
                self._spell_leap(leap, num_steps, computed)
            else:
                self._spell_step(computed)
        spelled = self._spelled.popleft()
        record.sched, record.hits, record.preempted = spelled.sched, spelled.hits, spelled.preempted
        record.n_tokens = sum(entry[1] for entry in record.sched)
        record.running = [seq.request.request_id for seq in self._running()]
        return SchedulerOutput(self.step, {entry[0]: entry[1] for entry in record.sched})

    def _running(self) -> list[Sequence]:
        return list(self.engine.running.values())

    def _spell_step(self, before: dict[Request, int]) -> None:
        decodes = {seq.request for seq in self._running() if seq.stage is Stage.DECODE}
        step = self.engine.schedule()
        chunks = {chunk.request: chunk.num_tokens for chunk in step.chunks}
        spelled = StepRecord(0, hits={request.request_id: hit for request, hit in step.admitted})
        victims = {request.request_id for request in step.preempted}
        spelled.preempted = [r.request_id for r in reversed(before) if r.request_id in victims]
        for seq in self._running():
            request = seq.request
            admitted = request.request_id in spelled.hits
            start = spelled.hits[request.request_id] if admitted else before[request]
            num_tokens = chunks.get(request, 0)
            if request in decodes:
                num_tokens = self._decode_tokens(request, start)
            if num_tokens:
                is_decode = request in decodes or (num_tokens == 1 and start >= request.num_prompt_tokens)
                kind = "decode" if is_decode else "prefill"
                if admitted:
                    kind = "resumed" if request.num_preemptions else "new"
                spelled.sched.append((request.request_id, num_tokens, start, kind))
        self._spelled.append(spelled)

    def _spell_leap(self, leap: Leap, num_steps: int, before: dict[Request, int]) -> None:
        self.num_leaps += num_steps > 1
        self.num_leapt_steps += num_steps
        running = [seq.request for seq in self._running()]
        decodes = [r for r in running if self.engine.sequences[r.request_id].stage is Stage.DECODE]
        each = 1 + self.engine.config.num_speculative_tokens
        starts = {r: self._starts(r, before[r], num_steps) for r in decodes}
        context = sum(before[r] + each for r in decodes)
        assert (len(decodes), context) == (leap.num_decodes, leap.decode_context)
        outputs = self.engine.commit_leap(num_steps)
        for i in range(num_steps):
            self._spelled.append(
                StepRecord(0, sched=[(r.request_id, each, starts[r][i], "decode") for r in decodes])
            )
        ends: list[list[Request]] = [[] for _ in range(num_steps)]
        ends[0] = outputs.first.finished
        ends[-1] = [*ends[-1], *outputs.last.finished]
        self._known_ends.extend(ends)

    def _decode_tokens(self, request: Request, start: int) -> int:
        """Return the tokens that a decode has just been given."""
        if isinstance(self.engine, DraftLeapScheduler):
            return self.engine.unfull.get(request, self.engine.decode_tokens)
        return self.engine.computed_tokens(request.request_id) - start

    def _starts(self, request: Request, start: int, num_steps: int) -> list[int]:
        """Return the tokens computed before each of a leap's steps."""
        seq = self.engine.sequences[request.request_id]
        now = self.engine.batch.num_steps
        return [start, *(seq.computed_at(now + i) for i in range(1, num_steps))]

    def _apply(self, record: StepRecord) -> None:
        self._in_flight.popleft()
        finished = (
            self._known_ends.popleft() if self._known_ends else self.engine.update_from_output().finished
        )
        record.finished = [request.request_id for request in finished]
        for request_id in record.finished:
            self._note_finish(request_id)
