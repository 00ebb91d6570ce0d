"""Problems on the simulator: each is a strategy whose branches are requests, scored by a verifier.

    arrivals -> session (strategy, draws) -> branches -> replicas -> verifier -> session -> ... -> answer

Built on `simulate.Run`: same replicas, same clock, same records, one per branch. A branch that is cancelled or
pruned is aborted in the engine: its blocks are free before the next step is decided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np

from kvplan.errors import KvplanError
from kvplan.limits import Limit
from kvplan.scenario.schema import Scenario
from kvplan.schedulers.request import OutputKv
from kvplan.simulation.deploy import Setup
from kvplan.simulation.observer import NOBODY, Watch
from kvplan.simulation.records import NEVER, Records
from kvplan.simulation.replica import Replica
from kvplan.simulation.replica_process import Fleet, Seat
from kvplan.simulation.result import Result
from kvplan.simulation.run import Progress, Run
from kvplan.simulation.scoring import Effort, Read, ReadCache, RemoteQueue, ScoreBatch
from kvplan.simulation.sim_request import LENGTH, PRUNED, STOP, TIMEOUT, Live
from kvplan.simulation.solve_setup import set_up_all, staffed, verifier_step_time
from kvplan.timing.step import StepTime
from kvplan.units import TICKS_PER_S
from kvplan.workload.arrivals import AllAtOnce
from kvplan.workload.classes import Workload
from kvplan.workload.outcomes import TraceSampler
from kvplan.workload.problems import Problems, StrategySpec, Task, draw_tasks, task_sampler
from kvplan.workload.strategies.session import Launch, Orders, Session
from kvplan.workload.strategies.strategy import Answer
from kvplan.workload.verifiers import ScoreWork

NO_LOAD = Workload(num_requests=1, arrivals=AllAtOnce(kind="all_at_once"))
"""`Run` draws a load; here requests come from strategies instead."""

IDLE_SHARE = 0.2
"""An engine that is idle for longer than this waits for arrivals."""


class Solved(NamedTuple):
    """One problem's outcome. Times are ticks."""

    problem: int
    arrival: int
    finish: int
    first_visible: int
    """When the user first sees something: the first answer token of a streamed branch, else the end."""
    correct: bool
    answered: bool
    num_branches: int
    samples: int


@dataclass(slots=True)
class Attempt:
    """One problem under way."""

    task: Task
    session: Session
    sampler: TraceSampler
    arrival: int
    seat: Seat | None = None
    """Where its branches go when they stay together."""
    first_visible: int = NEVER


class Solution(NamedTuple):
    """One strategy over all problems."""

    strategy: str
    solved: list[Solved]
    records: Records
    effort: Effort
    verdict: str
    duration: int
    """Ticks from the start to the last answer."""
    models: dict[int, str]
    """Replica -> the model it serves, by its name in the scenario."""
    result: Result
    """The run as `kvplan simulate` reports it, branch by branch."""


def solve(
    scenario: Scenario,
    spec: StrategySpec | None = None,
    *,
    step_by_step: bool = False,
    progress: Progress | None = None,
    setups: dict[str, Setup] | None = None,
    watch: Watch = NOBODY,
) -> Solution:
    """Run one strategy (the scenario's first by default) over the scenario's problems.

    Raises KvplanError for what cannot be simulated, DoesNotFit when model and verifier do not fit together.
    """
    assert scenario.problems is not None
    problems = scenario.problems
    chosen = spec or problems.strategies[0].expanded()[0]
    scenario = staffed(scenario, chosen)
    run = Solve(
        scenario, problems, chosen, setups or set_up_all(scenario), step_by_step, progress,
        verifier_step_time(scenario), watch,
    )  # fmt: skip
    return run.solution(run.go())


class Solve(Run):
    """One simulation of one strategy."""

    def __init__(
        self,
        scenario: Scenario,
        problems: Problems,
        spec: StrategySpec,
        setups: dict[str, Setup],
        step_by_step: bool,
        progress: Progress | None,
        verifier_time: StepTime | None = None,
        watch: Watch = NOBODY,
    ) -> None:
        verifier = problems.verifier
        in_lockstep = any(setup.lockstep_ranks > 1 for setup in setups.values())
        if in_lockstep and verifier.needs_model and verifier.placement == "colocated":
            raise KvplanError(
                "a co-located verifier beside data-parallel ranks in lockstep is not modelled; use placement: remote"
            )
        alone = scenario.model_copy(update={"workload": NO_LOAD})
        super().__init__(alone, setups, step_by_step, progress, watch)
        self.whole, self.problems, self.spec = scenario, problems, spec
        self.tasks = draw_tasks(problems, scenario.folder)
        self.open = len(self.tasks)
        self.records.class_names = [spec.name]
        self.effort = Effort()
        self.solved: list[Solved] = []
        self.owners: dict[int, tuple[Attempt, Launch]] = {}
        """Request -> whose branch it is."""
        self.paused: set[int] = set()
        self.new_id = count().__next__
        self.read_cache = ReadCache(problems.verifier.kv_tokens)
        self.scoring = RemoteQueue(self.at, problems.verifier.concurrency)
        self._coming = iter(self.tasks)
        self.verifier_time = verifier_time
        policy = problems.thinking_kv
        self.output_kv: OutputKv = "keep" if policy == "drop_at_answer" else policy

    def solution(self, result: Result) -> Solution:
        """What came of it."""
        end = max((s.finish for s in self.solved), default=self.env.now)
        result.scenario, result.num_requests = self.whole, len(self.records)
        result.limited_by = self._limit(result)
        models = {
            seat.replica.id: deployment.model
            for name, deployment in self.scenario.deployments.items()
            for seat in (*self.fleets[name].seats, *self.fleets[name].prefill)
        }
        return Solution(
            self.spec.name, self.solved, self.records, self.effort, result.verdict, end, models, result
        )

    def _limit(self, result: Result) -> str:
        """The verifier where scoring takes most of the time; arrivals where nobody waits; else the engine's."""
        scoring = max(
            self.effort.verifier_ticks, self.effort.remote_ticks // self.problems.verifier.concurrency
        )
        if scoring > result.totals.busy_ticks:
            return Limit.VERIFIER
        idle = 1 - result.totals.busy_ticks / max(1, len(self.replicas) * self.env.now)
        if self.problems.arrivals.kind not in ("closed_loop", "all_at_once") and idle > IDLE_SHARE:
            return Limit.ARRIVAL_RATE
        return result.limited_by

    # --- problems arrive -----------------------------------------------------------------------

    def _start(self) -> None:
        arrivals = self.problems.arrivals
        if arrivals.kind == "closed_loop":
            for _ in range(min(arrivals.concurrency, len(self.tasks))):
                self._next_task(arrivals.pause_s)
            return
        for task in self.tasks:
            self.at(round(task.arrival_s * TICKS_PER_S), partial(self._arrive, task))

    def _arrive(self, task: Task, _: object) -> None:
        self._begin(task)

    def _next_task(self, pause_s: float) -> None:
        """A client's next problem: now, or after a pause."""
        task = next(self._coming, None)
        if task is not None and pause_s:
            luck = np.random.default_rng([*task.seed, 1])
            self.at(max(1, round(luck.exponential(pause_s) * TICKS_PER_S)), partial(self._arrive, task))
        elif task is not None:
            self._begin(task)

    def _begin(self, task: Task) -> None:
        sampler = task_sampler(self.problems, self.spec, task)
        attempt = Attempt(
            task, Session(task.problem, self.spec.start(), sampler, self.new_id), sampler, self.env.now
        )
        self.effort.needed_prompt_tokens += task.problem.prompt_tokens
        self._obey(attempt, attempt.session.begin())

    # --- orders ----------------------------------------------------------------------------------

    def _obey(self, attempt: Attempt, orders: Orders) -> None:
        """Abort, start, or be done."""
        for request_id in orders.cancel:
            self.paused.discard(request_id)
            if request_id in self.alive:
                self._leave(self.alive[request_id])
        if orders.answer is not None:
            self._close(attempt, orders.answer)
        elif orders.pause_s:
            self.paused |= {launch.request_id for launch in orders.start}
            self.at(round(orders.pause_s * TICKS_PER_S), lambda _: self._resume(attempt, orders.start))
        else:
            for launch in orders.start:
                self._submit(attempt, launch)

    def _resume(self, attempt: Attempt, launches: tuple[Launch, ...]) -> None:
        for launch in launches:
            if launch.request_id in self.paused:
                self.paused.remove(launch.request_id)
                self._submit(attempt, launch)

    def _submit(self, attempt: Attempt, launch: Launch) -> None:
        """Turn a branch into a request and queue it."""
        branch, fleet = launch.branch, self.fleets[launch.branch.model]
        room = fleet.setup.config.max_model_len - launch.prompt_tokens
        if room < 1:
            self.note("branches whose prompt fills max_model_len got no token")
            self._then(attempt, attempt.session.prune(branch.id, 0))
            return
        if launch.tokens > room:
            self.note("traces were cut at max_model_len")
            attempt.session.cut(branch.id, room)
        told = min(branch.max_tokens, room)
        live = Live(launch.request_id, launch.prompt, told, launch.tokens, launch.thinking_tokens)
        live.output_kv = self.output_kv
        live.session, live.turn, live.arrival = attempt.task.problem.id, branch.id, self.env.now
        self.effort.needed_prompt_tokens += branch.extra_prompt
        if branch.drop_thinking and branch.parent is not None and self.output_kv == "keep":
            self.effort.dead_tokens += attempt.session.launches[branch.parent].tokens
        if branch.prunable:
            for replica in fleet.replicas:
                replica.on_pressure = self._relieve
        self.alive[live.row] = live
        self.owners[live.row] = attempt, launch
        self.watch.on_branch(attempt.task.problem.id, launch)
        self._send(fleet, live)

    def _place(self, fleet: Fleet, live: Live) -> None:
        """To the problem's own replica, or wherever the router says."""
        attempt = self.owners[live.row][0]
        seat = attempt.seat
        if fleet.prefill_router is not None:
            self._launch_prefill(fleet, live)
            return
        if seat is None or self.problems.placement == "spread" or seat.replica not in fleet.replicas:
            self._route(fleet, live)
            attempt.seat = self.seat_of[live.row][0] if live.row in self.seat_of else None
            return
        reason = seat.replica.never_fits(live)
        if reason:
            self._route(fleet, live)  # says so and rejects
        else:
            self.seat_of[live.row] = seat, live
            seat.submit(live)

    # --- branches end ----------------------------------------------------------------------------

    def ended(self, live: Live, now: int, reason: int, generated: int) -> None:
        """A branch left its replica: record it, have it scored, tell the strategy."""
        if live.on_end is not None:
            live.on_end(live, now, reason)
            return
        reason = PRUNED if reason == TIMEOUT else reason
        self.records.add(live.record(now, reason, generated))
        del self.alive[live.row]
        seat, _ = self.seat_of.pop(live.row, (None, live))
        attempt, launch = self.owners.pop(live.row)
        branch = launch.branch
        if branch.id not in attempt.session.running:  # cancelled by its own strategy
            self._halt_when_done()
            return
        if reason not in (STOP, LENGTH):
            self._then(attempt, attempt.session.prune(branch.id, generated))
            return
        self._count_cut(launch)
        if branch.visible and live.first_visible != NEVER:
            attempt.first_visible = live.first_visible
        if branch.score:
            self._score(attempt, launch, seat)
        else:
            self._then(attempt, attempt.session.finish(branch.id))

    def _count_cut(self, launch: Launch) -> None:
        if launch.branch.kind in ("trace", "thinking", "revision"):
            end, budget = launch.outcome, launch.branch.thinking_token_budget
            self.effort.traces += 1
            self.effort.cut_traces += end.reason == "length" or end.thinking_tokens >= budget

    def _then(self, attempt: Attempt, orders: Orders) -> None:
        """Obey at the end of this instant: the replica is still reading its step."""
        if orders.start or orders.cancel or orders.answer is not None:
            self.at(0, lambda _: self._obey(attempt, orders))

    def _close(self, attempt: Attempt, answer: Answer) -> None:
        """The strategy has settled on an answer."""
        now, problem = self.env.now, attempt.task.problem.id
        seen = now if attempt.first_visible == NEVER else attempt.first_visible
        branches = len(attempt.session.launches)
        outcome = Solved(
            problem,
            attempt.arrival,
            now,
            seen,
            answer.correct,
            answer.answer is not None,
            branches,
            answer.samples,
        )
        self.solved.append(outcome)
        self.open -= 1
        if self.progress is not None:
            self.progress(len(self.solved), len(self.tasks))
        if self.problems.arrivals.kind == "closed_loop":
            self._next_task(self.problems.arrivals.pause_s)
        self._halt_when_done()

    def _halt_when_done(self) -> None:
        """The last cancelled branches leave the engine after the last answer."""
        if not self.open and not self.alive:
            self._halt("completed")

    # --- scores ------------------------------------------------------------------------------------

    def _score(self, attempt: Attempt, launch: Launch, seat: Seat | None) -> None:
        """Have a finished branch scored, then go on with the strategy."""
        verifier = self.problems.verifier
        new = self.read_cache.read(_chain(attempt, launch)) if verifier.kv == "incremental" else 0
        work = verifier.work(launch.prompt_tokens + launch.tokens, new)
        self.effort.scores += 1
        good, kept = attempt.sampler.scored_good[launch.branch.id], launch.outcome.score > 0.5
        self.effort.false_alarms += good and not kept
        self.effort.misses += kept and not good
        self.effort.verified_tokens += work.read_tokens
        self.effort.verifier_decode_tokens += work.decode_tokens
        done = partial(self._scored, attempt, launch.branch.id)
        seconds = verifier.remote_s(work) if verifier.placement == "remote" else 0.0
        if verifier.placement == "colocated" and verifier.needs_model:
            assert seat is not None
            self._score_here(seat, work, done)
        elif seconds:
            self.effort.remote_ticks += round(seconds * TICKS_PER_S)
            self.scoring.add(round(seconds * TICKS_PER_S), done)
        else:
            done()

    def _scored(self, attempt: Attempt, branch_id: int) -> None:
        self._then(attempt, attempt.session.finish(branch_id))

    def _score_here(self, seat: Seat, work: ScoreWork, done: Callable[[], None]) -> None:
        """Queue the score for the GPU; all that wait at the end of a step are one batch."""
        last = seat.aside[-1] if seat.aside else None
        if not isinstance(last, ScoreBatch):
            assert self.verifier_time is not None
            last = ScoreBatch(self.verifier_time, self.effort)
            seat.aside.append(last)
            seat.wake()
        last.works.append(work)
        last.done.append(done)

    # --- pressure ------------------------------------------------------------------------------------

    def _relieve(self, replica: Replica, now: int) -> None:
        """Blocks run out: end the worst-scored prunable branches instead of preempting anybody."""
        while replica.engine.is_short:
            here = [live for live in replica.resident if self.owners[live.row][1].branch.prunable]
            if not here:
                return
            worst = min(here, key=lambda live: self.owners[live.row][1].outcome.score)
            replica.prune(worst, now)


def _chain(attempt: Attempt, launch: Launch) -> list[Read]:
    """What a verifier reads of a branch, piece by piece; a branch that left a part of its parent out starts anew."""
    problem, launches = attempt.task.problem, attempt.session.launches
    links: list[Read] = []
    while True:
        branch = launch.branch
        if branch.parent is None or branch.drop_thinking or branch.parent_tokens is not None:
            own = launch.prompt_tokens - problem.prompt_tokens + launch.tokens
            return [
                ((problem.id, None), problem.prompt_tokens),
                ((problem.id, branch.id), own),
                *reversed(links),
            ]
        links.append(((problem.id, branch.id), branch.extra_prompt + launch.tokens))
        launch = launches[branch.parent]
