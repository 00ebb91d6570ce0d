"""Leaping over drafts is stepping through them on a clock: times, records, KV held, why requests wait."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

import numpy as np
import pytest
from clocked import Clocked
from draft_scenarios import drafted_scenario
from drawn import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from syntax_mutants import mutate
from visit_scenarios import random_visits

from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.scenario.schema import parse_scenario
from kvplan.schedulers.leap.allowed import why_not
from kvplan.schedulers.leap.draft_visits import DraftVisits
from kvplan.schedulers.protocol import DraftedSteps
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.adaptive_verification import AdaptiveVerification, VerificationCosts
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.simulation import draft_books
from kvplan.simulation.draft_books import ReadTimes, dot
from kvplan.simulation.in_flight import DraftedLeapInFlight
from kvplan.simulation.replica import Replica
from kvplan.simulation.simulator import simulate

EXAMPLES = examples(50)
"""Of each mode; 3,000 with `make explore`."""
MODES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
WAITS = (
    "used_block_ticks",
    "blocked_seqs_ticks",
    "blocked_tokens_ticks",
    "blocked_blocks_ticks",
    "held_back_ticks",
)
"""What a leap without drafts tells for its whole length is told step by step here."""


@MODES
@given(seed=st.integers(0, 2**32))
@example(
    seed=40_061
)  # a chunk of one token becomes a decode of several: what is left for the queue's head shrinks
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_scenarios(is_async: bool, seed: int) -> None:
    """Every record to the picosecond, every sum, on any workload, with arrivals and aborts in the middle of steps."""
    scenario = VLLMScenario(**drafted_scenario(Random(seed)) | {"async_scheduling": is_async})
    if why_not(scenario.engine_config):
        return
    leap, step = Clocked(scenario, leaps=True), Clocked(scenario, leaps=False)
    assert leap.run() == step.run()
    for name in WAITS:
        assert getattr(leap.replica.totals, name) == getattr(step.replica.totals, name), name


def reasoning(rng: Random) -> dict[str, Any]:
    """A load of long answers on an engine that drafts."""
    method = rng.choice(["draft_model", "ngram"])
    workload = {
        "num_requests": 25, "seed": rng.randrange(1000), "stop": rng.choice(["eos", "length"]),
        "arrivals": rng.choice([{"kind": "poisson", "rate": 20}, {"kind": "closed_loop", "concurrency": 6}]),
        "prompt": {"kind": "lognormal", "median": 200, "sigma": 0.7, "high": 4000},
        "thinking": {"kind": "lognormal", "median": 300, "sigma": 0.6, "high": 1500},
        "answer": {"kind": "lognormal", "median": 40, "sigma": 0.6, "high": 300},
        **rng.choice([{}, {"timeout_s": 2}, {"abort_share": 0.3, "abort_after_s": 1.0}]),
    }  # fmt: skip
    engine = {
        "num_speculative_tokens": rng.choice([1, 3, 5]),
        "speculative_method": method,
        "max_num_seqs": rng.choice([4, 16]), "max_model_len": 8192,
        "async_scheduling": rng.choice([True, False]), "max_num_batched_tokens": rng.choice([512, 8192]),
    }  # fmt: skip
    rates = rng.choice([0.7, (0.8, 0.6, 0.5)])
    beside = {"draft": "Qwen/Qwen3-0.6B"} if method == "draft_model" else {}
    return {
        "model": "Qwen/Qwen3-8B", "colocate": beside, "workload": workload, "engine": engine,
        "acceptance_rate": rates,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_simulations(seed: int) -> None:
    """A whole simulation with a measured profile, whose drafting takes time: same records, sums, diagnosis."""
    scenario = parse_scenario(reasoning(Random(seed)))
    leaps, steps = simulate(scenario), simulate(scenario, step_by_step=True)
    assert leaps.modes == {"": "leap"}
    assert np.array_equal(leaps.records.table, steps.records.table)
    for name in (
        "steps",
        "busy_ticks",
        "batch_ticks",
        "num_decodes",
        "decode_tokens",
        "peak_used_blocks",
        *WAITS,
    ):
        assert getattr(leaps.totals, name) == getattr(steps.totals, name), name
    assert leaps.limited_by == steps.limited_by
    assert leaps.totals.leapt_steps > leaps.totals.steps / 3
    given = int(leaps.records["output_tokens"].sum()) - len(leaps.records)
    totals, drafts = leaps.totals, scenario.engine.num_speculative_tokens
    assert totals.decode_tokens == totals.num_decodes * (1 + drafts)
    assert totals.num_decodes < given <= totals.decode_tokens


@pytest.mark.parametrize("seed", range(3))
def test_simulations_whose_drafts_hang_on_the_batch(seed: int) -> None:
    """The same by visits, where steps of a few sequences verify more drafts than those of many."""
    row = reasoning(Random(seed))
    tiers = [[1, 2, 5], [3, 3, 2], [4, 16, seed % 2]]
    row["engine"]["speculative_config"] = {"num_speculative_tokens_per_batch_size": tiers}
    scenario = parse_scenario(row)
    leaps, steps = simulate(scenario), simulate(scenario, step_by_step=True)
    assert leaps.modes[""].startswith("leap by visits: num_speculative_tokens_per_batch_size")
    assert np.array_equal(leaps.records.table, steps.records.table)
    for name in (
        "steps",
        "busy_ticks",
        "batch_ticks",
        "num_decodes",
        "decode_tokens",
        "peak_used_blocks",
        *WAITS,
    ):
        assert getattr(leaps.totals, name) == getattr(steps.totals, name), name
    assert leaps.totals.leapt_steps > leaps.totals.steps / 4
    totals, drafts = leaps.totals, scenario.engine.num_speculative_tokens
    assert totals.num_decodes < totals.decode_tokens < totals.num_decodes * (1 + drafts)


def random_costs(rng: Random, scenario: VLLMScenario) -> VerificationCosts:
    """Tables that make batches of all sizes verify some drafts, all or none."""
    step, pad = rng.choice([0.05, 0.3, 1.0]), rng.choice([1, 4, 8])
    tokens = np.arange(scenario.max_num_batched_tokens + 1)
    verify = rng.choice([1.0, 8.0]) + step * -(-tokens // pad) * pad
    return VerificationCosts(
        np.full(scenario.max_num_seqs + 1, rng.choice([0.0, 5.0])), verify, rng.choice([7, 9999])
    )


@pytest.mark.parametrize("kind", ["drafts", "drafts, ring", "tiers", "tiers, full"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(20), deadline=None)
def test_fewer_drafts_are_verified(kind: str, seed: int) -> None:
    """Leaps by visits verify those that the steps verify: every record to the picosecond, every sum."""
    row = random_visits(Random(seed), kind)
    scenario = VLLMScenario(**row | {"enable_adaptive_verification": True, "num_gpu_blocks": 5000})
    costs = random_costs(Random(seed), scenario)
    visits = Clocked(scenario, False, visits=True, costs=costs)
    steps = Clocked(scenario, False, costs=costs)
    assert visits.run() == steps.run()
    for name in (*WAITS, "decode_tokens"):
        assert getattr(visits.replica.totals, name) == getattr(steps.replica.totals, name), name


WRONG_TRIMS = {
    "all are verified in a leap": (
        DraftVisits, "_verified", "self.verification is None or not self.num_drafts", "True"),
    "the step in flight verified as many": (
        DraftVisits, "_verified", "told is None or [*told.values()] == found", "True"),
    "who came in with the last step looks like any": (
        StepByStep, "plan_leap", "self._came_before and self._verification is not None", "False"),
    "a leap's steps are as long as if all were verified": (
        DraftVisits, "_leap_of", "num_running + plan.num_verified", "num_running * (1 + self.num_drafts)"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_TRIMS)
def test_a_wrong_trim_shows(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some workload of the law above notices each."""
    place, name, right, bent = WRONG_TRIMS[wrong]
    mutate(monkeypatch, place, name, right, bent)

    def differs(seed: int) -> bool:
        row = random_visits(Random(seed), "tiers, full" if seed % 2 else "drafts")
        scenario = VLLMScenario(**row | {"enable_adaptive_verification": True, "num_gpu_blocks": 5000})
        costs = random_costs(Random(seed), scenario)
        runs = [Clocked(scenario, False, visits=visits, costs=costs) for visits in (True, False)]
        try:
            return runs[0].run() != runs[1].run()
        except (AssertionError, IndexError, ValueError):
            return True

    assert any(differs(seed) for seed in range(60))


def test_whoever_came_in_counts_as_sure_once() -> None:
    """vLLM reads confidences two steps late: 1 until then, so that one budget is spent on others' drafts."""
    costs = VerificationCosts(np.zeros(9), 2.0 + np.arange(99), 9999)
    verification = AdaptiveVerification(costs, (0.5, 0.2))
    output = SchedulerOutput(1, {"a": 3, "b": 3}, {"a": 2, "b": 2})
    assert verification.verified(output, ()) == {"a": 0, "b": 0}
    assert verification.verified(output, {"b"}) == {"a": 1, "b": 1}
    assert verification.steady(2, 2) == [0, 0]
    few = AdaptiveVerification(costs._replace(most_logits=3), (0.9, 0.8))
    assert sum(few.verified(output, {"a", "b"}).values()) == 1


def test_a_simulation_verifies_fewer_drafts() -> None:
    """Leaping or not; an engine that may leave drafts out takes no more tokens a step."""
    row = reasoning(Random(1)) | {"colocate": {"draft": "Qwen/Qwen3-0.6B"}}
    row["engine"] |= {"speculative_method": "draft_model", "num_speculative_tokens": 5}
    row["engine"]["speculative_config"] = {"enable_adaptive_verification": True}
    scenario = parse_scenario(row)
    leaps, steps = simulate(scenario), simulate(scenario, step_by_step=True)
    assert leaps.modes[""].startswith("leap by visits: enable_adaptive_verification")
    assert np.array_equal(leaps.records.table, steps.records.table)
    assert leaps.totals.decode_tokens == steps.totals.decode_tokens < 6 * leaps.totals.num_decodes
    assert leaps.totals.busy_ticks == steps.totals.busy_ticks


def test_times_are_kept_while_somebody_needs_them() -> None:
    """Old reads make room for new ones; what was needed is still there."""
    times, needed = ReadTimes(), 1
    for read in range(1, 40_000):
        times.add(7 * read, [needed])
        needed = max(needed, read - 50)
    times.extend(7 * np.arange(40_000, 40_100), [needed])
    assert times.of(needed).tolist() == [7 * read for read in range(needed, 40_100)]
    assert len(times._times) < 20_000


def test_sums_are_exact() -> None:
    """Durations of an hour and a hundred million tokens overflow 64 bits in a second step; not here."""
    ticks, tokens = np.full(5, 3600 * 10**12), np.full(5, 10**8)
    assert dot(ticks, tokens) == 5 * 3600 * 10**20


@MODES
def test_ends_of_steps_and_reads(is_async: bool) -> None:
    """When outputs are read, and how many by a time, agree; asynchronous, the step in flight is read first."""
    durations = np.array([10, 12, 11])
    steps = DraftedSteps(8, np.array([5, 9, 12]), np.array([0, 1, 1]))
    first = 4 if is_async else 0
    leap = DraftedLeapInFlight(100, int(is_async), first, 3, 2, steps, durations, durations.cumsum(), True)
    ends = [104, 114, 126] if is_async else [110, 122, 133]
    assert [leap.ends_at(reads) for reads in (1, 2, 3)] == ends
    for reads, end in enumerate(ends, 1):
        assert leap.reads_until(end) == reads
        assert leap.reads_until(end + 1) == min(reads + 1, 3)
    assert leap.num_tokens == 8


def test_a_wrong_book_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above would notice KV held a read too long, or visible tokens seen a token late."""
    scenario = VLLMScenario(**drafted_scenario(Random(3)))
    right = Clocked(scenario, leaps=False).run()
    for name, wrong in (
        (
            "kv_area",
            lambda path, times, now: dot(np.append(np.diff(times), 0), path.held()[1 : len(times) + 1]),
        ),
        ("visible_at", lambda path, times, hidden: draft_books.visible_at(path, times, hidden + 1)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"kvplan.simulation.replica_stats.{name}", wrong)
            try:
                assert Clocked(scenario, leaps=True).run() != right
            except (IndexError, ValueError):
                continue


WRONG_LOOKS = {
    "KV is held a read too long": ("np.diff(times)", "np.diff(times) * 2"),
    "visible tokens come a token late": ("after.searchsorted(hidden + 1)", "after.searchsorted(hidden + 2)"),
    "what is in flight is not held": ("tokens + (paths.num_in_flight - 1)", "tokens - 1"),
    "a leap ends a read early": ("int(times[-1])", "int(times[0])"),
}


@pytest.mark.parametrize("wrong", WRONG_LOOKS)
def test_a_wrong_look_shows(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of leaps by visits would notice what is written down of each sequence at a wrong read."""
    scenario = VLLMScenario(**random_visits(Random(6), "drafts") | {"async_scheduling": True})
    right = Clocked(scenario, leaps=False).run()
    assert Clocked(scenario, leaps=False, visits=True).run() == right
    mutate(monkeypatch, Replica, "_look_along", *WRONG_LOOKS[wrong])
    with contextlib.suppress(IndexError):
        assert Clocked(scenario, leaps=False, visits=True).run() != right
