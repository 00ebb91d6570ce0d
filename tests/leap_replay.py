"""Runs a scenario on the leaping scheduler and writes down what each step decided, leapt steps included.

The order of a step - arrivals, aborts, schedule, aborts, output - is that of `kvplan.engine.replay`, so that the two
can be compared line by line. Leaps are cut where the scenario wants something to happen, and at random if asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from kvplan.engine.leap import LeapScheduler
from kvplan.engine.leap_state import Leap, Outputs, Sequence, Stage, Step
from kvplan.engine.replay import STUCK_STEPS, ReplayResult
from kvplan.engine.scenario import Scenario, ScenarioRequest


@dataclass(slots=True)
class LeapResult:
    """What a run decided: a line per step, and the blocks wherever it stopped to look."""

    lines: list[str] = field(default_factory=list)
    looks: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(step, free blocks at its end, evicted so far, hit tokens so far)."""
    finish: dict[str, int] = field(default_factory=dict)
    first_token: dict[str, int] = field(default_factory=dict)
    num_leaps: int = 0
    num_leapt_steps: int = 0
    num_real_steps: int = 0
    num_preemptions: int = 0


class LeapReplay:
    """One run. `rng` cuts leaps at random; `leaps=False` walks every step with the same scheduler."""

    def __init__(self, scenario: Scenario, leaps: bool = True, rng: Random | None = None) -> None:
        self.scenario = scenario
        self.leaps = leaps
        self.rng = rng
        self.engine = LeapScheduler(scenario.engine_config)
        self.result = LeapResult()
        self.step = 0
        self._pending = list(scenario.requests)
        self._arrived: set[str] = set()
        self._tokens_in_flight: list[int] = []
        self._hit_tokens = 0

    def run(self) -> LeapResult:
        """Run to the end, or until nothing can ever run again."""
        idle_steps = 0
        while not (idle_steps > STUCK_STEPS and not self._abort_ahead()):
            self._arrive(self.step)
            self._abort("before_schedule")
            if self.engine.has_requests():
                leap = self.engine.plan_leap() if self.leaps else None
                num_steps = self._cut(leap) if leap else 0
                if leap and num_steps:
                    self._leap(leap, num_steps)
                    idle_steps = 0
                    continue
                busy = self._schedule()
                idle_steps = 0 if busy else idle_steps + 1
            elif self._tokens_in_flight:
                self.result.lines.append("|\n")
                self._read()
            elif not (dues := [due for r in self._pending if (due := self._due(r)) is not None]):
                break
            else:
                self.step = max(self.step, *dues) if len(dues) == 1 else max(self.step, min(dues))
                continue
            self._look()
            self.step += 1
        return self.result

    # --- one step, or many ------------------------------------------------------------------

    def _schedule(self) -> bool:
        """Schedule a step, and read an output if one is due; say whether anything runs."""
        engine = self.engine
        order = [seq.request.request_id for seq in engine.running.values()]
        left_over = {seq for seq in engine.running.values() if seq.stage is Stage.LEFT_OVER}
        step = engine.schedule()
        self.result.num_real_steps += 1
        self.result.num_preemptions += len(step.preempted)
        self.result.lines.append(self._line(step, order, left_over))
        self._hit_tokens += sum(hit for _, hit in step.admitted)
        busy = bool(step.num_tokens) or any(self._tokens_in_flight)
        self._tokens_in_flight.append(step.num_tokens)
        holds_back = self.scenario.async_scheduling and len(self._tokens_in_flight) < 2
        if not (holds_back and (step.num_tokens or engine.has_requests())):
            self._read()
        return busy

    def _read(self) -> None:
        self._abort("before_output")
        self._tokens_in_flight.pop(0)
        self._note(self.engine.update_from_output(), self.step)

    def _leap(self, leap: Leap, num_steps: int) -> None:
        decoding = [seq for seq in self.engine.running.values() if seq.stage is Stage.DECODE]
        computed = [seq.computed_at(self.engine.batch.num_steps) for seq in decoding]
        assert (len(decoding), sum(computed) + len(computed)) == (leap.num_decodes, leap.decode_context)
        ids = [seq.request.request_id for seq in decoding]
        for i in range(num_steps):
            batch = (f"{request_id},1,{c + i}" for request_id, c in zip(ids, computed, strict=True))
            self.result.lines.append(";".join(batch) + "|\n")
        self._arrive(self.step + num_steps - 1)
        landing = self.engine.commit_leap(num_steps)
        self._note(landing.early, self.step)
        self.step += num_steps
        self._note(landing.late, self.step - 1)
        self.result.num_leaps += 1
        self.result.num_leapt_steps += num_steps
        self.step -= 1
        self._look()
        self.step += 1

    def _line(self, step: Step, order: list[str], left_over: set[Sequence]) -> str:
        chunks = {chunk.request.request_id: chunk for chunk in step.chunks}
        parts: list[str] = []
        contexts: list[int] = []
        for seq in self.engine.running.values():
            request_id = seq.request.request_id
            if request_id in chunks:
                chunk = chunks[request_id]
                parts.append(f"{request_id},{chunk.num_tokens},{chunk.num_computed_tokens}")
            elif (
                seq.stage is not Stage.PREFILL and seq not in left_over and seq not in self.engine.passed_over
            ):
                contexts.append(seq.computed_at(self.engine.batch.num_steps))
                parts.append(f"{request_id},1,{contexts[-1] - 1}")
        assert (len(contexts), sum(contexts)) == (step.num_decodes, step.decode_context)
        preempted = {request.request_id for request in step.preempted}
        return f"{';'.join(parts)}|{','.join(i for i in reversed(order) if i in preempted)}\n"

    def _note(self, outputs: Outputs, step: int) -> None:
        for request in outputs.first_tokens:
            self.result.first_token.setdefault(request.request_id, step)
        for request in outputs.finished:
            self.result.finish[request.request_id] = step

    def _look(self) -> None:
        pool = self.engine.pool
        self.result.looks.append((self.step, pool.num_free, pool.num_evicted, self._hit_tokens))

    # --- what the scenario wants ------------------------------------------------------------

    def _cut(self, leap: Leap) -> int:
        """Return how many steps of a leap can pass before the scenario wants something."""
        num_steps = leap.max_steps
        if self.rng is not None:
            num_steps = self.rng.randint(1, num_steps)
        due = {r.id: self._due(r) for r in self._pending}
        if leap.ends_on_arrival:
            num_steps = min([num_steps, *(d - self.step for d in due.values() if d is not None)])
        for r in self.scenario.requests:
            abort, arrival = self._abort_due(r), due.get(r.id, 0)
            if abort is not None and arrival is not None and r.id not in self.result.finish:
                num_steps = min(num_steps, max(abort, arrival) - self.step)
        return max(0, num_steps)

    def _arrive(self, step: int) -> None:
        dues = [(due, r) for r in self._pending if (due := self._due(r)) is not None and due <= step]
        for _, request in sorted(dues, key=lambda pair: pair[0]):
            self._pending.remove(request)
            self._arrived.add(request.id)
            self.engine.add_request(self.scenario.make_request(request, len(self._arrived)))

    def _abort(self, when: str) -> None:
        for r in self.scenario.requests:
            due = self._abort_due(r)
            if r.id not in self._arrived or r.id in self.result.finish or due is None or due > self.step:
                continue
            if when == r.abort_when or (when == "before_schedule" and due < self.step):
                assert self.engine.abort(r.id)
                self.result.finish[r.id] = self.step

    def _due(self, request: ScenarioRequest) -> int | None:
        return self._after(request.follows, request.delay_steps, request.arrival_step)

    def _abort_due(self, request: ScenarioRequest) -> int | None:
        return self._after(request.abort_follows, request.abort_delay_steps, request.abort_step)

    def _after(self, others: tuple[str, ...], delay_steps: int, step: int | None) -> int | None:
        if not others:
            return step
        ends = [self.result.finish.get(other) for other in others]
        return None if None in ends else max(end for end in ends if end is not None) + 1 + delay_steps

    def _abort_ahead(self) -> bool:
        return any(
            (due := self._abort_due(r)) is not None and due >= self.step for r in self.scenario.requests
        )


def difference(theirs: ReplayResult, ours: LeapResult) -> str:
    """Say where the step-by-step scheduler and the leap first differ; empty if nowhere."""
    lines = [step.sched_line() for step in theirs.steps]
    for i, (a, b) in enumerate(zip(lines, ours.lines, strict=False)):
        if a != b:
            return f"line {i}: step by step {a!r}, leap {b!r}"
    if len(lines) != len(ours.lines):
        return f"{len(lines)} steps, leap {len(ours.lines)}"
    state, evicted, hits = {}, 0, 0
    finish: dict[str, int] = {}
    for step in theirs.steps:
        evicted, hits = evicted + step.evicted, hits + sum(step.hits.values())
        state[step.step] = (step.step, step.free_end, evicted, hits)
        finish |= dict.fromkeys(step.finished, step.step) | {a[0]: step.step for a in step.aborted}
    for look in ours.looks:
        if look != state[look[0]]:
            return f"(step, free, evicted, hits) {state[look[0]]}, leap {look}"
    return "" if finish == ours.finish else f"ends {finish}, leap {ours.finish}"
