"""The branches of strategies that solve problems, as requests; scored by a verifier.

    arrivals -> session (strategy, draws) -> branches -> replicas -> verifier -> session -> ... -> answer

One record per branch. A branch that is cancelled or pruned is aborted in the engine: its blocks are free before
the next step is decided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np

from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario
from kvplan.schedulers.request import OutputKv
from kvplan.simulation.fleets import Fleet
from kvplan.simulation.in_flight import NEVER_COMES
from kvplan.simulation.misses import is_over
from kvplan.simulation.observer import NO_OBSERVER, Observer, Progress
from kvplan.simulation.records import UNSET
from kvplan.simulation.replica import Replica
from kvplan.simulation.replica_process import ReplicaProcess
from kvplan.simulation.run import Run
from kvplan.simulation.scoring import Effort, Read, ReadCache, RemoteQueue, ScoreBatch
from kvplan.simulation.sim_request import LENGTH, PRUNED, STOP, SimRequest
from kvplan.timing.step import StepTime
from kvplan.workload.classes import Slo
from kvplan.workload.outcomes import TraceSampler
from kvplan.workload.problems import StrategySpec, Task, draw_tasks, task_sampler
from kvplan.workload.strategies.session import Launch, Orders, Session
from kvplan.workload.strategies.strategy import Answer
from kvplan.workload.verifiers import ScoreWork


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


def is_late(solved: Solved, slo: Slo) -> bool:
    """Whether a problem's answer came, or was first seen, later than its target."""
    took, seen = solved.finish - solved.arrival, solved.first_visible - solved.arrival
    return is_over(took, slo.e2el_ms) or is_over(seen, slo.ttfvt_ms)


@dataclass(slots=True)
class Attempt:
    """One problem under way."""

    task: Task
    session: Session
    sampler: TraceSampler
    arrival: int
    process: ReplicaProcess | None = None
    """Where its branches go when they stay together."""
    first_visible: int = UNSET


class BranchRequests:
    """A run's source of requests (`run.Source`): the branches of one strategy on a scenario's problems."""

    span_s = 0.0
    abort_reason = PRUNED
    next_at = NEVER_COMES
    runs_ahead = False

    def __init__(
        self,
        scenario: Scenario,
        spec: StrategySpec,
        verifier_time: StepTime | None = None,
        progress: Progress | None = None,
        observer: Observer = NO_OBSERVER,
    ) -> None:
        assert scenario.problems is not None
        problems = scenario.problems
        self.problems, self.spec, self.verifier_time = problems, spec, verifier_time
        self._start_strategy = spec.starter()
        self.progress, self.observer = progress, observer
        self.class_names = [spec.name]
        self.tasks = draw_tasks(problems, scenario.folder)
        self.effort = Effort()
        self.solved: list[Solved] = []
        self.owners: dict[int, tuple[Attempt, Launch]] = {}
        """Request -> whose branch it is."""
        self.paused: set[int] = set()
        self.new_id = count().__next__
        self.read_cache = ReadCache(problems.verifier.kv_tokens)
        self.stops_when_missed = False
        """Whether the run ends once its targets are surely missed."""
        self._may_be_late = len(self.tasks) * (1 - scenario.slo.share)
        self._coming = iter(self.tasks)
        policy = problems.thinking_kv
        self.output_kv: OutputKv = "keep" if policy == "drop_at_answer" else policy

    # --- problems arrive -----------------------------------------------------------------------

    def start(self, run: Run) -> None:
        """Let the first problems come."""
        self.run, arrivals = run, self.problems.arrivals
        self.remote = RemoteQueue(run.at, self.problems.verifier.concurrency)
        if arrivals.kind == "closed_loop":
            for _ in range(min(arrivals.concurrency, len(self.tasks))):
                self._next_task(arrivals.pause_s)
            return
        for task in self.tasks:
            run.at(round(task.arrival_s * TICKS_PER_S), partial(self._begin, task))

    def _next_task(self, pause_s: float) -> None:
        """A client's next problem: now, or after a pause."""
        task = next(self._coming, None)
        if task is not None and pause_s:
            luck = np.random.default_rng([*task.seed, 1])
            self.run.at(max(1, round(luck.exponential(pause_s) * TICKS_PER_S)), partial(self._begin, task))
        elif task is not None:
            self._begin(task)

    def _begin(self, task: Task) -> None:
        sampler = task_sampler(self.problems, self.spec, task)
        session = Session(task.problem, self._start_strategy(), sampler, self.new_id)
        attempt = Attempt(task, session, sampler, self.run.env.now)
        self.effort.needed_prompt_tokens += task.problem.prompt_tokens
        self._obey(attempt, attempt.session.begin())

    # --- orders ----------------------------------------------------------------------------------

    def _obey(self, attempt: Attempt, orders: Orders) -> None:
        """Abort, start, or be done."""
        for request_id in orders.cancel:
            self.paused.discard(request_id)
            if request_id in self.run.alive:
                self.run.leave(self.run.alive[request_id])
        if orders.answer is not None:
            self._close(attempt, orders.answer)
        elif orders.pause_s:
            self.paused |= {launch.request_id for launch in orders.start}
            resume = partial(self._resume, attempt, orders.start)
            self.run.at(round(orders.pause_s * TICKS_PER_S), resume)
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
        run, branch, fleet = self.run, launch.branch, self.run.fleets[launch.branch.model]
        room = fleet.setup.config.max_model_len - launch.prompt_tokens
        if room < 1:
            run.note("branches whose prompt fills max_model_len got no token")
            self._then(attempt, attempt.session.prune(branch.id, 0))
            return
        if launch.tokens > room:
            run.note("traces were cut at max_model_len")
            attempt.session.cut(branch.id, room)
        told = min(branch.max_tokens, room)
        request = SimRequest(launch.request_id, launch.prompt, told, launch.tokens, launch.thinking_tokens)
        request.output_kv = self.output_kv
        request.session, request.turn, request.arrival = attempt.task.problem.id, branch.id, run.env.now
        self.effort.needed_prompt_tokens += branch.extra_prompt
        if (branch.drop_thinking or branch.folded) and branch.parent is not None and self.output_kv == "keep":
            self.effort.dead_tokens += attempt.session.launches[branch.parent].tokens
        if branch.prunable:
            for process in fleet.decode:
                process.replica.on_pressure = self._relieve
        run.alive[request.row] = request
        self.owners[request.row] = attempt, launch
        self.observer.on_branch(attempt.task.problem.id, launch)
        run.send(fleet, request, self._place)

    def _place(self, fleet: Fleet, request: SimRequest) -> None:
        """To the problem's own replica, or wherever the router says."""
        attempt, own = self.owners[request.row][0], self.owners[request.row][0].process
        if fleet.prefill:
            self.run.place(fleet, request)
        elif own is None or self.problems.placement == "spread" or own not in fleet.decode:
            self.run.place(fleet, request)
            attempt.process, _ = self.run.place_of.get(request.row, (None, request))
        elif own.replica.never_fits(request):
            self.run.place(fleet, request)  # says so and rejects
        else:
            self.run.submit(own, request)

    # --- branches end ----------------------------------------------------------------------------

    def ended(self, request: SimRequest, reason: int, generated: int, process: ReplicaProcess | None) -> None:
        """A branch left its replica: go on when its client has it."""
        if request.finish_delay:
            self.run.at(request.finish_delay, partial(self._ended, request, reason, generated, process))
        else:
            self._ended(request, reason, generated, process)

    def _ended(
        self, request: SimRequest, reason: int, generated: int, process: ReplicaProcess | None
    ) -> None:
        """Have a branch scored, tell the strategy."""
        attempt, launch = self.owners.pop(request.row)
        branch = launch.branch
        if branch.id not in attempt.session.running:  # cancelled by its own strategy
            self._halt_when_done()
            return
        if reason not in (STOP, LENGTH):
            self._then(attempt, attempt.session.prune(branch.id, generated))
            return
        self._count_cut(launch)
        if branch.visible and request.first_visible != UNSET:
            attempt.first_visible = request.seen_visible
        if branch.score:
            self._score(attempt, launch, process)
        else:
            self._then(attempt, attempt.session.finish(branch.id))

    def _count_cut(self, launch: Launch) -> None:
        if launch.branch.kind in ("trace", "thinking", "revision"):
            end, budget = launch.outcome, launch.branch.thinking_token_budget
            self.effort.traces += 1
            self.effort.cut_traces += end.reason == "length" or end.thinking_tokens >= budget

    def _then(self, attempt: Attempt, orders: Orders) -> None:
        """Obey at the end of this instant: the replica is still reading its step.

        Among several replicas, a tick later: after all that ends now, so that none has begun its next step or not.
        """
        if orders.start or orders.cancel or orders.answer is not None:
            self.run.at(int(len(self.run.replicas) > 1), partial(self._obey, attempt, orders))

    def _close(self, attempt: Attempt, answer: Answer) -> None:
        """The strategy has settled on an answer."""
        now = self.run.env.now
        seen = now if attempt.first_visible == UNSET else attempt.first_visible
        outcome = Solved(
            problem=attempt.task.problem.id,
            arrival=attempt.arrival,
            finish=now,
            first_visible=seen,
            correct=answer.correct,
            answered=answer.answer is not None,
            num_branches=len(attempt.session.launches),
            samples=answer.samples,
        )
        self.solved.append(outcome)
        self._may_be_late -= is_late(outcome, self.run.scenario.slo)
        if self.stops_when_missed and self._may_be_late < -1e-6:
            self.run.halt("missed")
        if self.progress is not None:
            self.progress(len(self.solved), len(self.tasks))
        if self.problems.arrivals.kind == "closed_loop":
            self._next_task(self.problems.arrivals.pause_s)
        self._halt_when_done()

    def _halt_when_done(self) -> None:
        """The last cancelled branches leave the engine after the last answer."""
        if len(self.solved) == len(self.tasks) and not self.run.alive:
            self.run.halt("completed")

    # --- scores ------------------------------------------------------------------------------------

    def _score(self, attempt: Attempt, launch: Launch, process: ReplicaProcess | None) -> None:
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
            assert process is not None
            self._score_here(process, work, done)
        elif seconds:
            self.effort.remote_ticks += round(seconds * TICKS_PER_S)
            self.remote.add(round(seconds * TICKS_PER_S), done)
        else:
            done()

    def _scored(self, attempt: Attempt, branch_id: int) -> None:
        self._then(attempt, attempt.session.finish(branch_id))

    def _score_here(self, process: ReplicaProcess, work: ScoreWork, done: Callable[[], None]) -> None:
        """Queue the score for the GPU; all that wait at the end of a step are one batch."""
        batches = process.steps.score_batches
        if not batches:
            assert self.verifier_time is not None
            batches.append(ScoreBatch(self.verifier_time, self.effort))
            process.steps.wake()
        batches[-1].works.append(work)
        batches[-1].done.append(done)

    # --- pressure ------------------------------------------------------------------------------------

    def _relieve(self, replica: Replica, now: int) -> None:
        """Blocks run out: end the worst-scored prunable branches instead of preempting anybody."""
        while replica.engine.is_short:
            here = [request for request in replica.resident if self.owners[request.row][1].branch.prunable]
            if not here:
                return
            worst = min(here, key=lambda request: self.owners[request.row][1].outcome.score)
            replica.prune(worst, now)


def _chain(attempt: Attempt, launch: Launch) -> list[Read]:
    """What a verifier reads of a branch, piece by piece; a branch that left a part of its parent out starts anew."""
    problem, launches = attempt.task.problem, attempt.session.launches
    links: list[Read] = []
    while True:
        branch = launch.branch
        left_out = branch.drop_thinking or branch.folded or branch.parent_tokens is not None
        if branch.parent is None or left_out:
            own = launch.prompt_tokens - problem.prompt_tokens + launch.tokens
            return [
                ((problem.id, None), problem.prompt_tokens),
                ((problem.id, branch.id), own),
                *reversed(links),
            ]
        links.append(((problem.id, branch.id), branch.extra_prompt + launch.tokens))
        launch = launches[branch.parent]
