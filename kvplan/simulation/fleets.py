"""The replicas of a run, deployment by deployment: which scheduler each has, leaping or not, how drafts fare."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Deployment
from kvplan.schedulers.leap.allowed import why_no_visits, why_not
from kvplan.schedulers.leap.make import counts_contents, make_leap_scheduler
from kvplan.schedulers.protocol import SchedulerInterface
from kvplan.schedulers.sglang.stepper import SGLangEngine
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.adaptive_verification import AdaptiveVerification
from kvplan.simulation.acceptance import accept_drafts
from kvplan.simulation.admission_control import AdmissionControl
from kvplan.simulation.api_server import ApiServers
from kvplan.simulation.balancer import Balancer
from kvplan.simulation.deploy import Setup, sglang_config
from kvplan.simulation.lockstep_drafts import lockstep_group
from kvplan.simulation.metrics import PieceMeter, TokenMeter
from kvplan.simulation.replica import Replica
from kvplan.simulation.replica_process import EngineProcess, ReplicaProcess
from kvplan.simulation.replica_stats import Ended
from kvplan.simulation.router import Router
from kvplan.simulation.shared_prefixes import SharedPrefixes
from kvplan.simulation.sim_request import SimRequest
from kvplan.simulation.streams import Pieces
from kvplan.simulation.transfers import TimedCopies

MOST_STEPPED_BLOCKS = 20_000_000
"""Blocks of all replicas that go step by step; each takes 250 bytes or so, 5 GB in all."""
FEW_REPLICAS = 16
"""So many are set up whatever the time is."""


@dataclass(slots=True)
class Served:
    """Replicas that a router spreads requests over: to one of them, or to API servers that spread on."""

    router: Router
    processes: list[ReplicaProcess] = field(default_factory=list)
    groups: list[list[ReplicaProcess]] = field(default_factory=list)
    """The same by the API servers before them, where the router knows those alone; empty: it knows each."""
    balancers: list[Balancer] = field(default_factory=list)
    """Of each group."""

    def choose(self, request: SimRequest, now: int) -> ReplicaProcess:
        """The replica that gets a request."""
        if not self.groups:
            return self.processes[self.router.choose([p.replica for p in self.processes], request, now)]
        place = self.router.choose([group[0].replica for group in self.groups], request, now)
        group = self.groups[place]
        return group[self.balancers[place].choose([p.replica for p in group], now)]

    def add(self, group: list[ReplicaProcess], balances: bool) -> None:
        """One more group; `balances`: its API servers spread requests over it."""
        self.processes += group
        if balances:
            self.groups.append(group)
            self.balancers.append(Balancer())


@dataclass(slots=True)
class Fleet:
    """The replicas of one deployment."""

    deployment: Deployment
    setup: Setup
    decoders: Served
    """All of them, unless prompts are computed apart."""
    prefillers: Served
    """Disaggregated: where prompts are computed."""

    @property
    def decode(self) -> list[ReplicaProcess]:
        """Replicas that decode."""
        return self.decoders.processes

    @property
    def prefill(self) -> list[ReplicaProcess]:
        """Replicas that compute prompts alone."""
        return self.prefillers.processes

    @property
    def processes(self) -> list[ReplicaProcess]:
        """All replicas."""
        return [*self.prefill, *self.decode]

    def choose(self, request: SimRequest, now: int) -> ReplicaProcess:
        """The replica that decodes a request."""
        return self.decoders.choose(request, now)

    def choose_prefill(self, request: SimRequest, now: int) -> ReplicaProcess:
        """The replica that computes a request's prompt."""
        return self.prefillers.choose(request, now)

    def transfer_ticks(self, num_prompt_tokens: int) -> int:
        """Ticks to move a prompt's KV from prefill to decode."""
        apart = self.deployment.disaggregation
        assert apart is not None
        token_s = self.setup.kv_bytes_per_token / apart.transfer_bytes_per_s
        return round((apart.latency_s + num_prompt_tokens * token_s) * TICKS_PER_S)


def _admission(setup: Setup) -> AdmissionControl | None:
    """What the API servers of one more copy refuse; None: nothing."""
    return AdmissionControl(setup.queue_limits) if setup.queue_limits.refuse else None


@dataclass(slots=True)
class FleetBuilder:
    """Builds a run's fleets; numbers the replicas and notes which can leap."""

    seed: int
    step_by_step: bool
    meter: TokenMeter
    ended: Ended
    start: Callable[[EngineProcess], None]
    """Puts one engine, or the ranks of a lockstep group, on the clock."""
    deadline: float = inf
    """`time.monotonic()` at which the run's time is over: building thousands of pools takes part of it."""
    contents: str = ""
    """Why what blocks hold matters in this run; engines that do not write it down go step by step then."""
    num_replicas: int = 0
    num_stepped_blocks: int = 0
    """Blocks of replicas that go step by step or by visits: each is an object."""
    modes: dict[str, str] = field(default_factory=dict)
    """Deployment -> `leap`, or why it leaps by visits alone, or goes step by step."""

    def build(self, name: str, deployment: Deployment, setup: Setup) -> Fleet:
        """Return the replicas of a deployment, each with its process on the clock."""
        fleet = Fleet(deployment, setup, Served(Router(deployment.router)), Served(Router(deployment.router)))
        apart = deployment.disaggregation
        copies = deployment.replicas * setup.replicas_per_copy + (apart.prefill_replicas if apart else 0)
        self._check_room(setup, copies * setup.lockstep_ranks, deployment.router)
        for _ in range(deployment.replicas):
            engines = [self._engine(name, fleet, apart is not None) for _ in range(setup.replicas_per_copy)]
            self._serve(fleet.decoders, setup, [process for ranks in engines for process in ranks])
        for _ in range(apart.prefill_replicas if apart else 0):
            self._serve(fleet.prefillers, setup, self._engine(name, fleet))
        return fleet

    @staticmethod
    def _serve(served: Served, setup: Setup, copy: list[ReplicaProcess]) -> None:
        """Put API servers that may refuse before the replicas of a copy, group by group."""
        sizes = setup.balanced if sum(setup.balanced) == len(copy) else (len(copy),)
        balances = served.router.policy == "round_robin" and bool(setup.balanced)
        for size in sizes:
            group, copy = copy[:size], copy[size:]
            servers = _admission(setup)
            for process in group:
                process.admission = servers
            served.add(group, balances)

    def _engine(self, name: str, fleet: Fleet, decodes_only: bool = False) -> list[ReplicaProcess]:
        """One engine, or the ranks of a lockstep group."""
        num_ranks = fleet.setup.lockstep_ranks
        ranks = [self._replica(name, fleet, decodes_only) for _ in range(num_ranks)]
        steps = EngineProcess(lockstep_group(ranks) if num_ranks > 1 else ranks[0])
        self.start(steps)
        return [ReplicaProcess(rank, steps) for rank in ranks]

    def _replica(self, name: str, fleet: Fleet, decodes_only: bool) -> Replica:
        """Return the next replica, leaping if its engine can."""
        setup, config = fleet.setup, fleet.setup.config
        if decodes_only:  # a transferred prompt takes blocks, not token budget
            room = max(config.max_model_len + config.max_num_seqs, config.max_num_batched_tokens)
            config = config.model_copy(
                update={"max_num_batched_tokens": room, "max_num_scheduled_tokens": None}
            )
        engine: SchedulerInterface
        copies: TimedCopies | None = None
        counts_prompts = setup.queue_limits.max_num_queued_tokens is not None
        walks = self._why_every_step(setup, fleet.deployment.router)
        if counts_prompts and decodes_only:
            walks = (
                walks
                or "max_num_queued_tokens counts prompts until their first token, which came over the wire"
            )
        reason = walks or self._why_no_closed_form(setup)
        told, stream = fleet.deployment, (self.seed, 2, len(self.modes))
        accept = accept_drafts(told.acceptance_rate, stream, told.accepted_lengths)
        self._check_time()
        if setup.sglang is not None:
            engine = SGLangEngine(sglang_config(config, setup.sglang), may_leap=not reason)
        elif reason:
            copies = setup.tier.copies() if setup.tier is not None else None
            costs, drafts = setup.verification, config.num_speculative_tokens
            verification = AdaptiveVerification(costs, accept.survival(drafts)) if costs else None
            engine = StepByStep(config, accept, copies, leaps=not walks, verification=verification)
            if copies is not None:
                for tier, files in zip(engine.secondary_tiers, copies.files, strict=True):
                    tier.transfers = files
        else:
            engine = make_leap_scheduler(config, accept)
        self.modes.setdefault(name, self._mode(setup, walks, reason))
        self.num_replicas += 1
        api = ApiServers(setup.api) if setup.api.takes_time else None
        meter = self.meter if setup.stream_interval == 1 else self.meter.of_groups()
        replica = Replica(
            self.num_replicas - 1, engine, setup.step_time, config, meter, self.ended, api, copies=copies
        )
        replica.tells_first_tokens = counts_prompts
        if isinstance(meter, PieceMeter):
            replica.pieces = Pieces(setup.stream_interval, meter)
        if setup.shared_reads and config.enable_prefix_caching:
            replica.shared_reads, replica.shared = setup.shared_reads, SharedPrefixes(config.block_size)
        return replica

    @staticmethod
    def _mode(setup: Setup, walks: str, reason: str) -> str:
        """Say how its replicas go through time: `leap`, or why not in closed form."""
        if not reason or walks or setup.sglang is not None:
            return f"step by step: {reason}" if reason else "leap"
        if setup.tier is not None:
            return f"step by step: {reason}; leaps between them"
        no_visits = why_no_visits(setup.config)
        return f"step by step: {reason}" if no_visits else f"leap by visits: {reason}"

    def _why_every_step(self, setup: Setup, router: str) -> str:
        """Why each step of its replicas must be looked at; empty where some may be leapt over."""
        config = setup.config
        if self.step_by_step:
            return "asked for"
        if router == "kv_aware":
            return "the router asks at each arrival what every replica holds"
        if setup.shared_reads and (config.async_scheduling or config.num_speculative_tokens):
            return (
                "prompts are read once for all that share them, under asynchronous scheduling or with drafts"
            )
        return ""

    def _why_no_closed_form(self, setup: Setup) -> str:
        """Why its replicas keep every block; empty where they leap in closed form."""
        config = setup.config
        if setup.sglang is not None:
            return ""
        return why_not(config) or (self.contents if counts_contents(config) else "")

    def _check_time(self) -> None:
        """Where a few replicas are set up, the run itself looks at the clock, and has something to show."""
        if self.num_replicas >= FEW_REPLICAS and time.monotonic() > self.deadline:
            raise KvplanError(
                f"limits.wall_clock_s: over when {self.num_replicas:,} replicas had been set up; "
                "ask for fewer, or give it longer"
            )

    def _check_room(self, setup: Setup, num_replicas: int, router: str) -> None:
        """Refuse what would fill this machine's memory."""
        if setup.sglang is None and (self._why_every_step(setup, router) or self._why_no_closed_form(setup)):
            self.num_stepped_blocks += num_replicas * setup.config.num_gpu_blocks
        if self.num_stepped_blocks > MOST_STEPPED_BLOCKS:
            raise KvplanError(
                f"{num_replicas:,} replicas of {setup.config.num_gpu_blocks:,} blocks, step by step: "
                f"{MOST_STEPPED_BLOCKS:,} blocks in all can be simulated so; ask for fewer replicas"
            )
