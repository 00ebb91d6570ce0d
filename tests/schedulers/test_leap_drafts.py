"""The leap over drafts decides as vLLM's scheduler does step by step: every step, block, hit, eviction and end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from draft_scenarios import drafted_scenario, told_scenario
from drawn import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from leap_scenarios import compare

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.leap import drafts, waiting
from kvplan.schedulers.leap.allowed import why_not
from kvplan.schedulers.leap.draft_scheduler import DraftLeapScheduler, DraftPool
from kvplan.schedulers.leap.drafts import DraftBatch, DraftPlan, follow

EXAMPLES = examples(50)
"""Of each mode; 3,000 with `make explore`."""
MODES = pytest.mark.parametrize("mode", ["sync", "async"])


def difference(row: dict[str, Any], mode: str, rng: Random | None = None) -> str:
    """Run a scenario on both schedulers; return the first difference."""
    scenario = VLLMScenario(**row | {"async_scheduling": mode == "async"})
    if why_not(scenario.engine_config):
        return ""
    leap = LeapReplay(scenario, rng=rng)
    found = compare(scenario, leap)
    if not found and not leap.engine.sequences and leap.engine.num_free_blocks != scenario.num_gpu_blocks - 1:
        return f"{leap.engine.num_free_blocks} blocks free at the end"
    return found


@MODES
@given(seed=st.integers(0, 2**32), cut=st.booleans())
@example(seed=11_645, cut=True)  # a head that is looked at ahead of a step gets what all drafts leave of it
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_workloads(mode: str, seed: int, cut: bool) -> None:
    """Leap equals step by step whoever drafts and however many drafts are right, leaps cut short anywhere."""
    assert not difference(drafted_scenario(Random(seed)), mode, Random(seed) if cut else None)


@MODES
@given(seed=st.integers(0, 2**32), cut=st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_other_methods_and_keys(mode: str, seed: int, cut: bool) -> None:
    """Leap equals step by step with DFlash, Medusa, parallel drafting, and hits that keep their last block."""
    assert not difference(told_scenario(Random(seed)), mode, Random(seed) if cut else None)


def test_most_steps_are_leapt_over() -> None:
    """Random workloads change all the time; two steps of three are leapt over all the same."""
    leapt = steps = 0
    for seed in range(12):
        scenario = VLLMScenario(**drafted_scenario(Random(seed)))
        if not why_not(scenario.engine_config):
            leap = LeapReplay(scenario)
            leap.run()
            leapt, steps = leapt + leap.num_leapt_steps, steps + leap.step
    assert leapt > 0.6 * steps


@given(st.lists(st.integers(0, 5), max_size=700))
@settings(max_examples=40, deadline=None)
def test_paths_are_followed(right: list[int]) -> None:
    """Each step leads past the drafts that were right and one token more; the last stops at the end."""
    at, path = 0, [0]
    while at < len(right):
        at = min(at + 1 + right[at], len(right))
        path.append(at)
    assert follow(np.array(right, np.int64)).tolist() == path


@given(right=st.lists(st.integers(0, 3), min_size=2, max_size=200), start=st.integers(1, 199))
@settings(max_examples=40, deadline=None)
def test_paths_that_meet_are_one(right: list[int], start: int) -> None:
    """A path from elsewhere, as after a preemption, is what following it alone gives, joined to the last or not."""
    drafting = drafts.Drafting(3, 0, 1000, False, False, 0, _Given(right))
    seq = drafts.DraftSequence(_request(prompt=6, output=1 + len(right)), (0, 1))
    drafts.path_from(seq, 7, drafting)
    start = min(start, len(right))
    alone = follow(np.array(right[start:], np.int64)) + 7 + start
    assert drafts.path_from(seq, 7 + start, drafting).tolist() == alone.tolist()


class _Given:
    def __init__(self, right: list[int]) -> None:
        self.right = right

    def __call__(self, request: Any, num_drafts: int) -> int:
        return self.right[request.num_output_tokens - 1]

    def runs(self, request: Any, first: int, count: int, num_drafts: int) -> Any:
        return np.array(self.right[first - 1 : first - 1 + count], np.int64)


def test_a_plan_adds_up() -> None:
    """Nine tokens with two drafts, the first of them right at every other position: what each step is, by hand."""
    batch = DraftBatch(4, drafts.Drafting(2, 2, 100, False, False, 0, _EveryOther()))
    seq = drafts.DraftSequence(_request(prompt=6, output=9), (0, 1))
    seq.computed = 6
    batch.start(seq)
    plan = seq.plan
    assert plan is not None
    assert plan.tokens.tolist() == [7, 9, 11, 13, 15]
    assert plan.reach.tolist() == [9, 11, 13, 15]
    assert plan.blocks.tolist() == [2, 3, 4, 4, 5]
    assert (batch.next_context(), batch.next_demand(), batch.demand(4)) == (9, 1, 3)
    assert batch.next_end() == 4
    assert [plan.named_before(step, is_read=False) for step in range(5)] == [1, 1, 2, 2, 3]


class _EveryOther:
    def __call__(self, request: Any, num_drafts: int) -> int:
        return request.num_output_tokens % 2

    def runs(self, request: Any, first: int, count: int, num_drafts: int) -> Any:
        return np.arange(first, first + count) % 2


def _request(prompt: int, output: int) -> Any:
    from kvplan.ground.content import Segment
    from kvplan.schedulers.request import Request

    return Request("one", (Segment("x", prompt),), output)


FEWER_HITS: dict[str, Any] = {
    "block_size": 4, "num_gpu_blocks": 12, "max_num_batched_tokens": 6, "max_num_seqs": 4, "max_model_len": 128,
    "num_speculative_tokens": 3, "spec_method": "ngram", "scheduler_reserve_full_isl": False,
    "requests": [
        {"id": "a", "prompt": [{"len": 9}], "output_len": 1},
        {"id": "d", "prompt": [{"len": 21}], "output_len": 1, "arrival_step": 4},
        {"id": "b", "prompt": [{"len": 4}], "output_len": 30, "arrival_step": 12},
        {"id": "c", "prompt": [{"prompt_of": "a"}], "output_len": 1, "arrival_step": 14},
    ],
}  # fmt: skip
"""c wants one token beside its hits, padded to four where the step has two left. Once b has taken one of the hit blocks
it asks for a chunk instead, which can be cut."""


@MODES
def test_a_padded_head_gets_in_with_fewer_hits(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at in every step while its hits can be taken; else it would wait for b's end."""
    assert not difference(FEWER_HITS, mode)
    leap = LeapReplay(VLLMScenario(**FEWER_HITS | {"async_scheduling": mode == "async"}))
    leap.run()
    assert leap.finish["c"] < leap.finish["b"]
    monkeypatch.setattr(waiting, "_looked_at", lambda queues, seq, hits, padding: 1 << 60)
    assert difference(FEWER_HITS, mode)


def is_caught(num_seeds: int) -> bool:
    """Whether any workload shows a difference between the schedulers, or breaks one."""
    rows = (drafted_scenario(Random(seed)) for seed in range(num_seeds))
    for row, mode in itertools.product(rows, ("sync", "async")):
        try:
            if difference(row, mode):
                return True
        except (AssertionError, IndexError, KeyError, ValueError, StopIteration, RuntimeError):
            return True
    return False


def _replace(plan: DraftPlan, **fields: Any) -> DraftPlan:
    for name, value in fields.items():
        setattr(plan, name, value)
    return plan


def _no_lookahead(right: Any) -> Any:
    def blocks(self: DraftLeapScheduler, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    return blocks


def _in_flight_is_right(right: Any) -> Any:
    def cut(self: DraftBatch, seq: Any, num_tokens: int, held: int) -> None:
        before = seq.right
        seq.right = np.full_like(seq.right, 9)
        right(self, seq, num_tokens, held)
        seq.right = before

    return cut


def _keeps_its_future(right: Any) -> Any:
    return lambda self, plan: None


MUTANTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "drafters write no slots": (DraftLeapScheduler, "blocks", _no_lookahead),
    "admissions are not padded": (DraftLeapScheduler, "padding", lambda right: lambda self, n, step: 0),
    "admissions are padded beside chunks": (
        DraftLeapScheduler, "padding", lambda right: lambda self, n, step: right(self, n, None)),
    "a preempted plan stays in the calendars": (DraftBatch, "_leave", _keeps_its_future),
    "cut drafts count as if verified": (DraftBatch, "cut", _in_flight_is_right),
    "no step is cut": (DraftBatch, "next_cut", lambda right: lambda self: 1 << 60),
    "leaps one step too far": (DraftBatch, "next_end", lambda right: lambda self: right(self) + 1),
    "a sure end is scheduled once more": (
        DraftLeapScheduler, "_decoded_on", lambda right: lambda self, seq: not right(self, seq)),
    "names at the next schedule only": (
        DraftPlan, "named_before", lambda right: lambda self, step, is_read: right(self, step, False)),
    "names as soon as read": (
        DraftPlan, "named_before", lambda right: lambda self, step, is_read: right(self, step, True)),
    "a preempted path goes on as before": (
        drafts, "_joined", lambda right: lambda seq, tokens: seq.path_before),
    "names a step late": (DraftPlan, "when_named", lambda right: lambda self, depth: right(self, depth) + 2),
    "hits keep the drafter's block": (
        DraftPool, "_hits", lambda right: lambda self, hits, n, free, hold: drafts_hits(hits, n, free)),
    "decodes take one token of the budget": (
        DraftLeapScheduler, "_decode_budget", lambda right: property(lambda self: self.batch.num_decodes)),
}  # fmt: skip


def drafts_hits(hits: Any, num_blocks: int, num_free: int) -> Any:
    """All that was found."""
    from kvplan.schedulers.leap.extents import PrefixHits

    return PrefixHits(hits, num_blocks, num_free, num_blocks)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rule shows on random workloads."""
    place, attribute, wrong = MUTANTS[name]
    monkeypatch.setattr(place, attribute, wrong(getattr(place, attribute)))
    assert is_caught(num_seeds=150)
