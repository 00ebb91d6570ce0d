"""A deployment's replicas, and one engine of a run: which scheduler, leaping or not, and how drafts fare."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kvplan.schedulers.leap.allowed import why_not
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.protocol import SchedulerInterface
from kvplan.schedulers.request import Request
from kvplan.schedulers.sglang.stepper import SGLangEngine
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.simulation.deploy import Setup, sglang_config
from kvplan.simulation.replica import Replica
from kvplan.simulation.replica_process import Fleet, Lockstep, Seat
from kvplan.simulation.router import Router
from kvplan.units import TICKS_PER_S

if TYPE_CHECKING:
    from kvplan.simulation.run import Run


def make_fleet(run: Run, setup: Setup, name: str) -> Fleet:
    """Return the replicas of one of a run's deployments, each with its process on the clock."""
    deployment = run.scenario.deployments[name]
    fleet = Fleet(setup, Router(deployment.router), deployment.max_queue, deployment.frontend)
    for _ in range(deployment.replicas * setup.replicas_per_copy):
        fleet.seats += _copy(run, setup, name, deployment.disaggregation is not None)
    apart = deployment.disaggregation
    if apart is not None:
        for _ in range(apart.prefill_replicas):
            fleet.prefill += _copy(run, setup, name)
        fleet.prefill_router = Router(deployment.router)
        token_s, latency = setup.kv_bytes_per_token / apart.transfer_bytes_per_s, apart.latency_s
        fleet.transfer_ticks = lambda tokens: round((latency + tokens * token_s) * TICKS_PER_S)
    fleet.replicas = [seat.replica for seat in fleet.seats]
    return fleet


def _copy(run: Run, setup: Setup, name: str, decodes_only: bool = False) -> list[Seat]:
    """One engine, or the ranks of a lockstep group."""
    ranks = [Seat(run.env, make_replica(run, setup, name, decodes_only)) for _ in range(setup.lockstep_ranks)]
    if len(ranks) > 1:
        group = Lockstep(ranks)
        group.process = run.env.process(run.serve_lockstep(group))
        for seat in ranks:
            seat.process = group.process
        run.modes[name] = "step by step: data-parallel ranks of a mixture of experts run in lockstep"
    else:
        ranks[0].process = run.env.process(run.serve(ranks[0]))
    return ranks


def make_replica(run: Run, setup: Setup, name: str, decodes_only: bool) -> Replica:
    """Return the next replica of a run, leaping if its engine can."""
    config = setup.config
    if decodes_only:  # a transferred prompt takes blocks, not token budget
        room = config.max_model_len + config.max_num_seqs
        config = config.model_copy(
            update={"max_num_batched_tokens": max(room, config.max_num_batched_tokens)}
        )
    engine: SchedulerInterface
    reason = "asked for" if run.step_by_step else "" if setup.sglang is not None else why_not(config)
    if setup.sglang is not None:
        engine = SGLangEngine(sglang_config(config, setup.sglang), may_leap=not reason)
    else:
        engine = StepByStep(config, _accept(run, name)) if reason else LeapScheduler(config)
    run.modes.setdefault(name, f"step by step: {reason}" if reason else "leap")
    groups = config.groups
    run.num_replicas += 1
    return Replica(
        run.num_replicas - 1, engine, setup.step_time, config.num_gpu_blocks - 1, config.block_size,
        config.max_num_seqs, config.max_num_batched_tokens, config.async_scheduling,
        len(groups) == 1 and groups[0].kind == "full", run.meter, run.ended,
        drafts=config.num_speculative_tokens,
    )  # fmt: skip


def _accept(run: Run, name: str) -> Callable[[Request, int], int]:
    """How many drafts are right, each with the deployment's chance, up to the first wrong one."""
    rate = run.scenario.deployments[name].acceptance_rate
    rng = np.random.default_rng([run.scenario.workload.seed, 2, len(run.modes)])

    def accept(request: Request, num_drafts: int) -> int:
        right = rng.random(num_drafts) < rate
        return num_drafts if right.all() else int(right.argmin())

    return accept
