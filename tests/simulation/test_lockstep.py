"""Ranks in lockstep leap as they step: every decision, time, record and sum; and the clock that they share."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from drawn import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lockstep_scenarios import KnottedStepTime, random_lockstep
from syntax_mutants import mutate

from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.deploy import Setup
from kvplan.simulation.group_clock import GroupClock, RankLeap
from kvplan.simulation.load_requests import LoadRequests
from kvplan.simulation.lockstep import LockstepGroup
from kvplan.simulation.lockstep_drafts import DraftedLockstepGroup, DraftedRankLeap
from kvplan.simulation.replica import Replica
from kvplan.simulation.replica_stats import ReplicaStats
from kvplan.simulation.result import Result
from kvplan.simulation.run import Run
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import StepShape
from kvplan.workload.load import draw_load

SUMS = (
    "steps", "decode_ticks", "prefill_ticks", "mixed_ticks", "batch_ticks", "decode_tokens", "prefill_tokens",
    "recomputed_tokens", "preemptions", "blocked_seqs_ticks", "blocked_tokens_ticks", "blocked_blocks_ticks",
    "held_back_ticks",
)  # fmt: skip
AT_THE_END = ("peak_used_blocks",)
"""The step under way when the horizon comes has begun step by step, and is not read: in a leap it has not."""
EXAMPLES = examples(100)


def told(seed: int, step_by_step: bool, drafts: int = 0) -> tuple[dict[str, Any], int]:
    """All that leaping must not change; and how many leaps there were."""
    scenario, setups = random_lockstep(Random(seed), drafts)
    source = LoadRequests(draw_load(scenario.workload), scenario.workload.seed, None)
    run = Run(scenario, setups, source, step_by_step)
    run.go()
    run.meter.flush()
    names = SUMS if run.verdict == "horizon" else SUMS + AT_THE_END
    sums = [[getattr(replica.totals, name) for name in names] for replica in run.replicas]
    intervals = run.meter.total, run.meter.sum_ticks
    found = {"verdict": run.verdict, "end": run.now, "sums": sums, "intervals": intervals, "notes": run.notes}
    found["records"] = run.records.table.tolist()
    return found, sum(replica.totals.leaps for replica in run.replicas)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES)
def test_leaping_is_stepping(seed: int) -> None:
    """Who ran when, to the picosecond, on any load: other groups beside, clients that leave, blocks that run out."""
    (leapt, _), (stepped, none) = told(seed, step_by_step=False), told(seed, step_by_step=True)
    assert leapt == stepped
    assert not none


@pytest.mark.parametrize("drafts", [1, 3])
@given(seed=st.integers(0, 2**32))
@example(seed=1286)  # the run ends between the chunks of a prompt
@settings(max_examples=EXAMPLES // 2)
def test_leaping_over_drafts_is_stepping(drafts: int, seed: int) -> None:
    """The same where no two steps are alike, over full attention and by visits, up to where the run ends."""
    leapt, stepped = told(seed, False, drafts)[0], told(seed, True, drafts)[0]
    assert leapt == stepped


# --- wrong rules show ---------------------------------------------------------------------------

Wrong = Callable[[pytest.MonkeyPatch], None]


def dummies_take_no_time(patch: pytest.MonkeyPatch) -> None:
    init = LockstepGroup.__init__

    def wrong(self: LockstepGroup, ranks: list[Replica]) -> None:
        init(self, ranks)
        self._dummy = (0, 0)

    patch.setattr(LockstepGroup, "__init__", wrong)


def the_first_to_be_slowest_stays_it(patch: pytest.MonkeyPatch) -> None:
    plan = GroupClock.plan
    patch.setattr(GroupClock, "plan", lambda self, now, lines, n: plan(self, now, [max(lines)], n))


def each_rank_keeps_its_own_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replica, "stretch", lambda self, ticks: None)


def arrivals_wait_for_the_end_of_a_leap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LockstepGroup, "can_be_cut", False)


def a_step_in_flight_is_on_the_line(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: RankLeap) -> tuple[tuple[int, int], int]:
        done = self.clock.reads - self.begun
        return (self.ticks + (done - self.ahead) * self.slope, self.slope), self.num_steps - done

    patch.setattr(RankLeap, "next_line", property(wrong))


def steps_weigh_alike(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: RankLeap, reads: int) -> int:
        duration = self.ends_at(self.ahead + reads) - self.ends_at(self.ahead)
        return duration * (reads + 1) // 2

    patch.setattr(RankLeap, "weight", wrong)


def a_step_in_flight_pools_as_the_leap_does(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RankLeap, "reads_ahead", property(lambda self: False))


def ranks_pool_as_many_as_their_own(patch: pytest.MonkeyPatch) -> None:
    pool = KnottedStepTime.pool_ticks
    patch.setattr(KnottedStepTime, "pool_ticks", lambda self, n, ranks: pool(self, n, [n] * len(ranks)))


MUTANTS: dict[Wrong, int] = {
    dummies_take_no_time: 0,
    the_first_to_be_slowest_stays_it: 30,
    each_rank_keeps_its_own_time: 0,
    arrivals_wait_for_the_end_of_a_leap: 6,
    a_step_in_flight_is_on_the_line: 3,
    steps_weigh_alike: 0,
    a_step_in_flight_pools_as_the_leap_does: 3,
    ranks_pool_as_many_as_their_own: 1,
}
"""Wrong rule -> a seed whose run tells it from the right one."""


@pytest.mark.parametrize("wrong", MUTANTS, ids=lambda wrong: wrong.__name__)
def test_wrong_rules_show(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    right, _ = told(MUTANTS[wrong], step_by_step=True)
    wrong(monkeypatch)
    assert told(MUTANTS[wrong], step_by_step=False)[0] != right


WRONG_DRAFTS: dict[str, tuple[Any, str, str, str]] = {
    "dummies take no time": (DraftedLockstepGroup, "_coming_of", "self._dummy[0]", "0"),
    "each rank keeps its own time": (DraftedLockstepGroup, "complete", "rank.stretch(now - self._now)", "None"),
    "a step in flight keeps its own time": (Replica, "_finish_drafted", "self.stretch(start - leap.start)", "None"),
    "a step in flight ends as if alone": (
        DraftedRankLeap, "begin", "int(self.times[0]) - self.start", "self.first"),
    "the step in flight takes the group's time": (
        DraftedRankLeap, "ticks_of", "self.alone[self.ahead + step]", "self.durations[step - 1]"),
    "ranks pool as many as their own": (
        DraftedLockstepGroup, "_pool_ticks", "self._pooled.pool_ticks(num_tokens, tokens)",
        "self._pooled.pool_ticks(num_tokens, [num_tokens] * len(tokens))"),
    "a step in flight pools as the leap does": (
        DraftedLockstepGroup, "_coming_of",
        "leap.ahead and not leap.num_done and rank.in_flight[0].num_tokens != leap.num_tokens", "False"),
    "arrivals wait for the end of a leap": (
        DraftedLockstepGroup, "cut", "int(self._times.searchsorted(now)) + 1", "len(self._times)"),
    "whom the run's end cuts off is not looked at": (ReplicaStats, "_look_back", "path is not None", "False"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_DRAFTS)
def test_wrong_rules_of_drafts_show(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three runs tells each from the right one; the last is cut off by its horizon."""
    seeds = (0, 3, 25)
    right = {seed: told(seed, True, drafts=2)[0] for seed in seeds}
    mutate(monkeypatch, *WRONG_DRAFTS[wrong])
    assert any(told(seed, False, drafts=2)[0] != right[seed] for seed in seeds)


# --- how few times anybody is looked at ---------------------------------------------------------


TIME = KnottedStepTime(10**9, 10**8, 10**4, 10**6)
"""A decode costs more than a prompt of 16 tokens."""


def run(num_requests: int, answer: int, ranks: int) -> Result:
    """Requests that come together, on ranks of 16 places."""
    config = EngineConfig(num_gpu_blocks=200_000, max_num_seqs=16, max_model_len=200_000)
    arrivals = {"kind": "all_at_once"}
    workload = {"num_requests": num_requests, "prompt": 16, "answer": answer, "arrivals": arrivals}
    scenario = parse_scenario({"model": "stated", "step_time": {"fixed_us": 1}, "workload": workload})
    return simulate(scenario, setups={"": Setup(config, TIME, 1.0, 1, lockstep_ranks=ranks)})


def test_a_group_leaps_by_changes_not_by_tokens() -> None:
    """Answers a hundred times as long take as many leaps."""
    short, long = run(40, 1000, 4), run(40, 100_000, 4)
    assert short.modes == {"": "leap"}
    assert long.totals.leaps == short.totals.leaps
    assert long.totals.steps > 90 * short.totals.steps


def test_changes_of_one_rank_end_no_leap_of_others() -> None:
    """One long answer a rank, and short ones that come and go on other ranks: its leap is one."""
    config = EngineConfig(num_gpu_blocks=200_000, max_num_seqs=1, max_model_len=200_000)
    own = {"prompt": 16, "stop": "length"}
    workload = {
        "num_requests": 60, "arrivals": {"kind": "constant", "rate": 2},
        "classes": {"long": own | {"share": 0.05, "answer": 50_000}, "short": own | {"share": 0.95, "answer": 100}},
    }  # fmt: skip
    scenario = parse_scenario(
        {"model": "stated", "step_time": {"fixed_us": 1}, "workload": workload, "router": "least_kv"}
    )
    found = simulate(scenario, setups={"": Setup(config, TIME, 1.0, 1, lockstep_ranks=8)})
    assert found.num_completed == 60
    assert 0 < (found.records["output_tokens"] == 50_000).sum() < 8
    assert found.totals.leaps <= 2 * 60


# --- the clock ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32))
def test_the_clock_adds_up(seed: int) -> None:
    """Ends, places, weights and stretches are those of the steps one by one; leaps may be cut."""
    rng = Random(seed)
    clock, now, ends, ticks = GroupClock(), 0, [0], [0]
    for _ in range(rng.randint(1, 6)):
        now += rng.choice([0, 0, 7])
        begun, num_reads = len(ends) - 1, rng.randint(1, 40)
        big = rng.choice([5, 50, 10**10])
        lines = [
            (rng.randint(1, big), rng.randint(0, rng.choice([0, big // 5]))) for _ in range(rng.randint(1, 7))
        ]
        end = clock.plan(now, lines, num_reads)
        slow = [max(a + b * i for a, b in lines) for i in range(num_reads)]
        assert end == now + sum(slow)
        if rng.random() < 0.5:
            at = rng.randint(now, end)
            end = clock.cut(at)
            assert clock.planned - begun == next(
                n for n in range(1, num_reads + 1) if now + sum(slow[:n]) >= at
            )
        for step in slow[: clock.planned - begun]:
            now += step
            ticks.append(step)
            ends.append(now)
            assert clock.read_at(now) == len(ends) - 1
        assert end == now
        clock.land()
    assert [clock.ends_at(n) for n in range(1, len(ends))] == ends[1:]
    weights = [clock.weight_at(n) for n in range(len(ends))]
    assert weights == [sum(n * ticks[n] for n in range(m + 1)) for m in range(len(ends))]
    after, until = sorted(rng.sample(range(len(ends)), 2)) if len(ends) > 1 else (0, 0)
    pieces = clock.stretches(after, until)
    assert sum(piece.num_steps for piece in pieces) == until - after
    assert sum((p.first + p.last) * p.num_steps for p in pieces) == 2 * sum(ticks[after + 1 : until + 1])
    assert [piece.end for piece in pieces[-1:]] == ends[until : until + 1][: len(pieces)]


def test_a_dummy_batch_is_one_token() -> None:
    """An idle rank decodes one token beside each step of the others; a short prompt alone would be done sooner."""
    alone, company = run(1, 1, 1), run(1, 1, 2)
    assert round(alone.duration_s * TICKS_PER_S) == TIME.fixed + 16 * TIME.per_prefill
    assert (
        round(company.duration_s * TICKS_PER_S)
        == TIME.ticks(StepShape(1, 1, 1))
        == TIME.fixed + 10**8 + 10**4
    )
