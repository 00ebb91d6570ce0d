"""Problems on the simulator: each is a strategy whose branches are requests, scored by a verifier.

    arrivals -> session (strategy, draws) -> branches -> replicas -> verifier -> session -> ... -> answer

Built on `simulate.Run`: same replicas, same clock, same records, one per branch. A branch that is cancelled or
pruned is aborted in the engine: its blocks are free before the next step is decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple

from kvplan.deploy import Setup, set_up
from kvplan.engine.request import Segment
from kvplan.live import LENGTH, PRUNED, STOP, TIMEOUT, Live
from kvplan.records import NEVER, Records
from kvplan.result import Result
from kvplan.scenario import Scenario
from kvplan.simulate import Fleet, Progress, Run, Seat
from kvplan.units import TICKS_PER_S
from kvplan.workload.arrivals import AllAtOnce
from kvplan.workload.classes import Workload
from kvplan.workload.problems import Problems, StrategySpec, Task, draw_tasks, session
from kvplan.workload.strategies.protocol import Answer
from kvplan.workload.strategies.session import Launch, Orders, Session
from kvplan.workload.verifiers import ScoreWork

NO_LOAD = Workload(num_requests=1, arrivals=AllAtOnce(kind="all_at_once"))
"""`Run` draws a load; here requests come from strategies instead."""


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
class Effort:
    """What branching and scoring took, summed over problems."""

    needed_prompt_tokens: int = 0
    """Each prompt once per problem, and each branch's own instructions."""
    scores: int = 0
    scores_of_right: int = 0
    pruned_right: int = 0
    """Scored branches that were right so far and fell below one half."""
    verified_tokens: int = 0
    """Read by the verifier."""
    verifier_decode_tokens: int = 0
    verifier_ticks: int = 0
    """GPU time of co-located scoring."""
    dropped_thinking_tokens: int = 0
    """Cached thinking that no later prompt can hit, since the template leaves it out."""


@dataclass(slots=True)
class Attempt:
    """One problem under way."""

    task: Task
    session: Session
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
    result: Result
    """The run as `kvplan simulate` reports it, branch by branch."""


def solve(
    scenario: Scenario,
    spec: StrategySpec | None = None,
    *,
    step_by_step: bool = False,
    progress: Progress | None = None,
    setups: dict[str, Setup] | None = None,
) -> Solution:
    """Run one strategy (the scenario's first by default) over the scenario's problems.

    Raises KvplanError for what cannot be simulated, DoesNotFit when model and verifier do not fit together.
    """
    assert scenario.problems is not None
    chosen = spec or scenario.problems.strategies[0]
    engines = setups or {name: set_up(d) for name, d in scenario.deployments.items()}
    run = Solve(scenario, scenario.problems, chosen, engines, step_by_step, progress)
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
    ) -> None:
        super().__init__(scenario.model_copy(update={"workload": NO_LOAD}), setups, step_by_step, progress)
        self.problems, self.spec = problems, spec
        self.tasks = draw_tasks(problems, scenario.folder)
        self.open = len(self.tasks)
        self.records.class_names = [spec.name]
        self.effort = Effort()
        self.solved: list[Solved] = []
        self.owners: dict[int, tuple[Attempt, Launch]] = {}
        """Request -> whose branch it is."""
        self.paused: set[int] = set()
        self.new_id = count().__next__
        self.scoring = RemoteQueue(self._at, problems.verifier.concurrency)
        self._coming = iter(self.tasks)

    def solution(self, result: Result) -> Solution:
        """What came of it."""
        end = max((s.finish for s in self.solved), default=self.env.now)
        return Solution(self.spec.name, self.solved, self.records, self.effort, result.verdict, end, result)

    # --- problems arrive -----------------------------------------------------------------------

    def _start_arrivals(self) -> None:
        arrivals = self.problems.arrivals
        if arrivals.kind == "closed_loop":
            for _ in range(min(arrivals.concurrency, len(self.tasks))):
                self._next_task()
            return
        for task in self.tasks:
            self._at(round(task.arrival_s * TICKS_PER_S), lambda _, task=task: self._begin(task))

    def _next_task(self) -> None:
        task = next(self._coming, None)
        if task is not None:
            self._begin(task)

    def _begin(self, task: Task) -> None:
        attempt = Attempt(task, session(self.problems, self.spec, task, self.new_id), self.env.now)
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
            self._at(round(orders.pause_s * TICKS_PER_S), lambda _: self._resume(attempt, orders.start))
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
        prompt = tuple(Segment(*piece) for piece in launch.prompt)
        room = fleet.setup.config.max_model_len - launch.prompt_tokens
        if room < 1:
            self._note("branches whose prompt fills max_model_len got no token")
            self._then(attempt, attempt.session.prune(branch.id, 0))
            return
        if launch.tokens > room:
            self._note("traces were cut at max_model_len")
            attempt.session.cut(branch.id, room)
        told = min(branch.max_tokens, room)
        live = Live(launch.request_id, prompt, told, launch.tokens, launch.thinking_tokens)
        live.session, live.turn, live.arrival = attempt.task.problem.id, branch.id, self.env.now
        self.effort.needed_prompt_tokens += branch.extra_prompt
        self.alive[live.row] = live
        self.owners[live.row] = attempt, launch
        self._place(attempt, fleet, live)

    def _place(self, attempt: Attempt, fleet: Fleet, live: Live) -> None:
        """To the problem's own replica, or wherever the router says."""
        seat = attempt.seat
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

    def _ended(self, live: Live, now: int, reason: int, generated: int) -> None:
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
        if branch.id not in attempt.session.running:
            return  # cancelled by its own strategy
        if reason not in (STOP, LENGTH):
            self._then(attempt, attempt.session.prune(branch.id, generated))
            return
        if branch.visible and live.first_visible != NEVER:
            attempt.first_visible = live.first_visible
        if branch.score:
            self._score(attempt, launch, seat)
        else:
            self._then(attempt, attempt.session.finish(branch.id))

    def _then(self, attempt: Attempt, orders: Orders) -> None:
        """Obey at the end of this instant: the replica is still reading its step."""
        if orders.start or orders.cancel or orders.answer is not None:
            self._at(0, lambda _: self._obey(attempt, orders))

    def _close(self, attempt: Attempt, answer: Answer) -> None:
        """The strategy has settled on an answer."""
        now, problem = self.env.now, attempt.task.problem.id
        seen = now if attempt.first_visible == NEVER else attempt.first_visible
        branches = len(attempt.session.launches)
        outcome = Solved(
            problem, attempt.arrival, now, seen, answer.correct, answer.answer is not None, branches, answer.samples
        )
        self.solved.append(outcome)
        self.open -= 1
        if self.progress is not None:
            self.progress(len(self.solved), len(self.tasks))
        if not self.open:
            self._halt("completed")
        elif self.problems.arrivals.kind == "closed_loop":
            self._next_task()

    # --- scores ------------------------------------------------------------------------------------

    def _score(self, attempt: Attempt, launch: Launch, seat: Seat | None) -> None:
        """Have a finished branch scored, then go on with the strategy."""
        verifier = self.problems.verifier
        content = launch.prompt_tokens + launch.tokens
        work = verifier.work(content, launch.tokens + launch.branch.extra_prompt)
        self.effort.scores += 1
        self.effort.verified_tokens += work.read_tokens
        self.effort.verifier_decode_tokens += work.decode_tokens
        done = partial(self._scored, attempt, launch.branch.id)
        seconds = verifier.remote_s(work) if verifier.placement == "remote" else 0.0
        if verifier.placement == "colocated" and verifier.needs_model:
            assert seat is not None
            self._score_here(seat, work, done)
        elif seconds:
            self.scoring.add(round(seconds * TICKS_PER_S), done)
        else:
            done()

    def _scored(self, attempt: Attempt, branch_id: int) -> None:
        self._then(attempt, attempt.session.finish(branch_id))

    def _score_here(self, seat: Seat, work: ScoreWork, done: Callable[[], None]) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class RemoteQueue:
    """A remote verifier: so many scores at a time, the others in line."""

    at: Callable[..., None]
    """`Run._at`."""
    free: int
    waiting: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)

    def add(self, ticks: int, done: Callable[[], None]) -> None:
        """Ask for a score that takes `ticks` once it is served."""
        if not self.free:
            self.waiting.append((ticks, done))
            return
        self.free -= 1
        self.at(ticks, lambda _: self._leave(done))

    def _leave(self, done: Callable[[], None]) -> None:
        self.free += 1
        done()
        if self.waiting and self.free:
            self.add(*self.waiting.popleft())
