"""The leap under TensorRT-LLM's rules decides as stepping does: reserved blocks, prompts held back for company."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from clocked import Clocked
from drawn import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from leap_scenarios import compare, random_scenario
from syntax_mutants import mutate
from visit_scenarios import KINDS as ALL_VISITED
from visit_scenarios import difference as difference_of_visits
from visit_scenarios import random_visits

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.leap.allowed import why_no_visits, why_not
from kvplan.schedulers.leap.batch import DecodeBatch
from kvplan.schedulers.leap.queues import LeapQueues
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.leap.visits import DecodeVisits
from kvplan.schedulers.vllm.admission import HeldBack

Json = dict[str, Any]
EXAMPLES = examples(100)
KINDS = ("reserve", "wait", "both")
VISITED = [kind for kind in ALL_VISITED if not kind.startswith(("drafts", "tiers"))]


def random_admission(rng: Random, kind: str) -> Json:
    """Return a scenario as JSON; where blocks are reserved, also with prompts that no step may split."""
    row = random_scenario(rng)
    if kind != "wait":
        row["admission"] = "reserve_max"
        if rng.random() < 0.3:
            budget = max(row["max_num_seqs"], row["max_model_len"] // 2)
            row |= {"enable_chunked_prefill": False, "max_num_batched_tokens": budget}
    return row | random_wait(rng) if kind != "reserve" else row


def random_wait(rng: Random) -> Json:
    """Return a rule by which prompts are held back."""
    ratio = rng.choice([0.02, 0.1, 0.3, 0.6, 1.0])
    return {"batch_wait": {"timeout_iters": rng.choice([1, 2, 3, 7, 20, 60]), "max_tokens_ratio": ratio}}


def scenario_of(kind: str, seed: int, is_async: bool) -> VLLMScenario:
    return VLLMScenario(**random_admission(Random(seed), kind) | {"async_scheduling": is_async})


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), is_async=st.booleans(), cut=st.booleans())
@example(seed=652521, is_async=False, cut=False).via(
    "a free hit is evicted where a running request has a copy"
)
@settings(max_examples=EXAMPLES)
def test_random_workloads(kind: str, seed: int, is_async: bool, cut: bool) -> None:
    """Every decision, and blocks, evictions, hits and ends wherever the leap stops, also when it is cut anywhere."""
    scenario = scenario_of(kind, seed, is_async)
    assert not compare(scenario, LeapReplay(scenario, rng=Random(seed) if cut else None))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), is_async=st.booleans())
@settings(max_examples=EXAMPLES // 5)
def test_on_the_clock(kind: str, seed: int, is_async: bool) -> None:
    """Every time to the picosecond, arrivals and aborts in the middle of steps included, and what was waited for."""
    leap, step = (Clocked(scenario_of(kind, seed, is_async), leaps) for leaps in (True, False))
    assert leap.run() == step.run()
    assert waits(leap) == waits(step)


WAITS = ("blocked_seqs_ticks", "blocked_tokens_ticks", "blocked_blocks_ticks", "held_back_ticks")


def waits(clocked: Clocked) -> list[int]:
    """How long requests waited for what."""
    return [getattr(clocked.replica.totals, name) for name in WAITS]


@pytest.mark.parametrize(
    ("num_blocks", "ratio", "expected"),
    [(64, 0.01, []), (64, 1.0, ["held_back_ticks"]), (8, 0.01, ["blocked_blocks_ticks"]),
     (8, 1.0, ["blocked_blocks_ticks", "held_back_ticks"])],
)  # fmt: skip
def test_what_is_waited_for(num_blocks: int, ratio: float, expected: list[str]) -> None:
    """With blocks free a prompt that is held back waits for company; once a look was in vain, for blocks."""
    wait = {"batch_wait": {"timeout_iters": 5, "max_tokens_ratio": ratio}}
    requests = [
        {"id": "a", "prompt": [{"len": 32}], "output_len": 64},
        {"id": "b", "prompt": [{"len": 80}], "output_len": 8, "arrival_step": 4},
    ]
    row = {
        "num_gpu_blocks": num_blocks, "block_size": 16, "max_model_len": 256, "max_num_seqs": 4,
        "max_num_batched_tokens": 256, "requests": requests,
    }  # fmt: skip
    clocked = Clocked(VLLMScenario(**row | wait), True)
    clocked.run()
    found = dict(zip(WAITS, waits(clocked), strict=True))
    assert [name for name, ticks in found.items() if ticks] == expected
    if len(expected) == 2:  # five steps of some sixty
        assert found["held_back_ticks"] * 5 < found["blocked_blocks_ticks"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_leaps(kind: str) -> None:
    """Most steps are leapt over, also those in which prompts are held back."""
    steps = leapt = 0
    for seed in range(20):
        leap = LeapReplay(scenario_of(kind, seed, False))
        steps, leapt = steps + len(leap.run().steps), leapt + leap.num_leapt_steps
    assert leapt > steps / 2


def visited(kind: str, groups: str, seed: int) -> Json:
    """Return a scenario with windows, chunks, states or shared contents as JSON."""
    rng = Random(f"{groups}{seed}")
    row = random_visits(rng, groups)
    if kind != "wait":
        row["admission"] = "reserve_max"
    return row | random_wait(rng) if kind != "reserve" else row


@given(st.sampled_from(KINDS), st.sampled_from(VISITED), st.integers(0, 2**32), st.booleans())
@settings(max_examples=EXAMPLES)
def test_by_visits(kind: str, groups: str, seed: int, cut: bool) -> None:
    """The same over windows, chunks and states, and every block and name in the free queue."""
    row = visited(kind, groups, seed)
    assert not difference_of_visits(row, Random(seed) if cut else None, max_steps=300)[0]


@given(st.sampled_from(KINDS), st.sampled_from(VISITED), st.integers(0, 2**32))
@settings(max_examples=EXAMPLES // 5)
def test_visits_on_the_clock(kind: str, groups: str, seed: int) -> None:
    """Every time to the picosecond there too."""
    scenario = VLLMScenario(**visited(kind, groups, seed))
    visits, step = (Clocked(scenario, False, visits=visits) for visits in (True, False))
    assert visits.run() == step.run()
    assert waits(visits) == waits(step)


def test_beside_drafts_and_several_groups() -> None:
    """Beside drafts step by step, but where a pool holds the longest of all that may run; several groups by visits."""
    tight = {"num_gpu_blocks": 64, "max_model_len": 256, "block_size": 16, "max_num_seqs": 4, "requests": []}
    drafts, groups = {"num_speculative_tokens": 2}, {"kv_cache_groups": [{}, {}]}
    for row, leaps in (
        ({"admission": "reserve_max"}, True),
        ({"admission": "reserve_max", **drafts}, False),
        ({"admission": "reserve_max", **drafts, "num_gpu_blocks": 65}, True),
        ({"admission": "reserve_max", **groups}, False),
        ({"batch_wait": {"timeout_iters": 3, "max_tokens_ratio": 0.5}}, True),
        ({"batch_wait": {"timeout_iters": 3, "max_tokens_ratio": 0.5}, **drafts}, False),
        ({"batch_wait": {"timeout_iters": 3, "max_tokens_ratio": 0.5}, **groups}, False),
    ):
        config = VLLMScenario(**tight | row).engine_config
        assert (not why_not(config)) == leaps, row
        assert (not why_no_visits(config)) == ("num_speculative_tokens" not in row), row


MUTANTS: dict[str, tuple[str, int, Any, str, str, str]] = {
    "nothing is reserved": ("reserve", 0, LeapQueues, "num_reserved", "self.num_promised - held", "0"),
    "who has ended reserves on": (
        "reserve", 0, LeapQueues, "stop_running", "self.num_promised -= self.most_blocks(seq)", "pass"),
    "who is about to end holds nothing": (
        "reserve", 0, LeapQueues, "num_reserved", "seq.stage is ENDING", "False"),
    "prompts in chunks hold nothing": (
        "reserve", 0, LeapQueues, "num_reserved",
        "sum(self.blocks(seq.computed) for seq in self.prefills)", "0"),
    "blocks that are not full are not held": (
        "reserve", 0, DecodeBatch, "num_blocks", "self.context + unused", "self.context"),
    "steps of a leap are not waited": (
        "wait", 0, HeldBack, "pass_steps", "(self.num_waited + num_steps) % (self.rule.timeout_iters + 1)",
        "self.num_waited"),
    "nobody is tried between two waits": (
        "wait", 20, HeldBack, "pass_steps", "(self.num_waited + num_steps) % (self.rule.timeout_iters + 1)",
        "min(self.num_waited + num_steps, self.rule.timeout_iters)"),
    "enough prompts wait on": (
        "wait", 78, HeldBack, "pass_steps",
        "self.num_waited = (self.num_waited + num_steps) % (self.rule.timeout_iters + 1) if is_short else 0",
        "self.num_waited = (self.num_waited + num_steps) % (self.rule.timeout_iters + 1)"),
    "the queue is held back a step more": ("wait", 0, LeapScheduler, "_steps_held",
        "self._held_back.plan((seq.num_tokens for seq in self.waiting), len(self.running), num_decodes)",
        "self._held_back.plan((seq.num_tokens for seq in self.waiting), len(self.running), num_decodes) + 1"),
    "newcomers are not counted": ("wait", 65, LeapScheduler, "plan_leap", "ends_on_arrival = True", "pass"),
    "steps without a place are waited": (
        "wait", 0, LeapScheduler, "commit_leap",
        "held is not None and self.waiting and held.counts(len(self.running), batch.num_decodes)",
        "held is not None and self.waiting"),
    "a victim's token in flight counts": (
        "wait", 449, LeapScheduler, "_is_held_back", "seq.known < seq.num_tokens", "False"),
}  # fmt: skip
"""What a wrong rule says -> the kind of workload that notices, from which seed on one soon does, and the rule."""


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random workloads notice each wrong rule."""
    kind, first, *mutant = MUTANTS[name]
    mutate(monkeypatch, *mutant)
    for seed in range(first, first + 100):
        scenario = scenario_of(kind, seed, bool(seed % 2))
        try:
            if compare(scenario, LeapReplay(scenario)):
                return
        except (AssertionError, IndexError, KeyError, ValueError, StopIteration):
            return
    pytest.fail("nothing shows")


VISIT_MUTANTS: dict[str, tuple[str, int, Any, str, str, str]] = {
    "a block more is kept": (
        "reserve", 0, DecodeVisits, "_is_reserved", "needed + kept > self.pool.get_num_free_blocks()",
        "needed + kept >= self.pool.get_num_free_blocks()"),
    "steps by visits are not waited": (
        "wait", 0, HeldBack, "pass_steps", "(self.num_waited + num_steps) % (self.rule.timeout_iters + 1)",
        "self.num_waited"),
    "a head that could enter is held back a step more": (
        "wait", 0, DecodeVisits, "_steps_before_head", "min(num_steps, needs.held)", "min(num_steps, needs.held + 1)"),
}  # fmt: skip
"""What a wrong rule of visits says -> the kind of workload that notices, from which seed on, and the rule."""


@pytest.mark.parametrize("name", VISIT_MUTANTS)
def test_mutants_of_visits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random workloads notice each wrong rule."""
    kind, first, *mutant = VISIT_MUTANTS[name]
    mutate(monkeypatch, *mutant)
    for seed in range(first, first + 60):
        row = visited(kind, VISITED[seed % len(VISITED)], seed)
        try:
            if difference_of_visits(row, max_steps=300)[0]:
                return
        except (AssertionError, IndexError, KeyError, ValueError, StopIteration):
            return
    pytest.fail("nothing shows")
