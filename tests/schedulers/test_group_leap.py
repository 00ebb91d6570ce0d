"""The leap over windows, chunks and states decides as the step-by-step scheduler does, and so as vLLM's logs."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

import pytest
from drawn import examples
from engine_conformance import golden, scenarios
from group_scenarios import KINDS, random_groups, random_returns, random_unshared
from hypothesis import given, settings
from hypothesis import strategies as st
from leap_scenarios import compare
from syntax_mutants import mutate

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.content import Segment
from kvplan.ground.errors import KvplanError
from kvplan.schedulers.leap import group_pool, own_hits
from kvplan.schedulers.leap import groups as groups_module
from kvplan.schedulers.leap.allowed import has_one_full_group, why_not
from kvplan.schedulers.leap.group_batch import GroupBatch
from kvplan.schedulers.leap.group_scheduler import GroupScheduler
from kvplan.schedulers.leap.group_sequence import GroupSequence
from kvplan.schedulers.leap.group_tables import Spec, StateTable
from kvplan.schedulers.leap.groups import Groups
from kvplan.schedulers.leap.named_queue import NamedBlocks, NamedQueue
from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.config import EngineConfig

RETURNS = ("returns", "returns align", "returns chunk")
"""Where preempted requests find their own again: in windows, in states, in chunks."""
EXAMPLES = examples(100)
SEVERAL = [
    name
    for name, row in scenarios().items()
    if not why_not(VLLMScenario(**row).engine_config)
    and not has_one_full_group(VLLMScenario(**row).engine_config)
]
CONTENTS = {
    "chk_multiturn", "chk_random40", "mam_align_bestof8", "mam_align_junction", "mam_align_multiturn",
    "mam_align_random40", "mam_align_random40_eos", "mam_swa_full", "swa_bestof8", "swa_block_sizes_16_32",
    "swa_junction", "swa_multiturn", "swa_random40_eos", "swa_random40_priority", "swa_random60",
}  # fmt: skip
"""Logs whose requests share contents: these are walked."""


def difference(row: dict[str, Any], is_async: bool, rng: Random | None = None) -> str:
    """Run a scenario on both schedulers; return the first difference, empty also where contents matter."""
    scenario = VLLMScenario(**row | {"async_scheduling": is_async})
    if why_not(scenario.engine_config):
        return ""
    leap = LeapReplay(scenario, rng=rng)
    try:
        found = compare(scenario, leap, max_steps=1500)  # some preempt themselves without end
    except KvplanError:
        return ""
    if not found and not leap.engine.sequences and leap.engine.num_free_blocks != scenario.num_gpu_blocks - 1:
        return f"{leap.engine.num_free_blocks} blocks free at the end"
    return found


def scenario_of(kind: str, seed: int) -> tuple[dict[str, Any], bool]:
    """Return a random scenario, with prefix caching in every other one, and whether to run it asynchronously."""
    if kind.startswith("returns"):
        return random_returns(Random(seed), kind.partition(" ")[2]), bool(seed % 2)
    make = random_unshared if seed % 2 and kind != "none" else random_groups
    return make(Random(f"{kind}{seed}"), kind), bool(seed // 2 % 2)


@pytest.mark.parametrize("kind", [*KINDS, *RETURNS])
@given(seed=st.integers(0, 2**32), cut=st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_workloads(kind: str, seed: int, cut: bool) -> None:
    """Every decision, and every block, eviction and end wherever the leap stops, also when it is cut anywhere."""
    row, is_async = scenario_of(kind, seed)
    assert not difference(row, is_async, Random(seed) if cut else None)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", SEVERAL)
def test_golden(name: str, mode: str) -> None:
    """vLLM 0.32's logs, decision for decision; those in which cached contents matter say so."""
    leap = LeapReplay(VLLMScenario(**scenarios()[name] | {"async_scheduling": mode == "async"}))
    result = None
    with suppress(KvplanError):
        result = leap.run()
    if result is None:
        assert name in CONTENTS
        return
    assert result.sched_sha256 == golden()[name, mode]["sched_sha256"]
    assert leap.num_leapt_steps > len(result.steps) // 2


def first_that_notices(kind: str, seeds: range) -> int | None:
    """The first workload of a kind that shows a difference, or breaks a scheduler."""
    for seed in seeds:
        row, is_async = scenario_of(kind, seed)
        try:
            if difference(row, is_async):
                return seed
        except (AssertionError, IndexError, KeyError, ValueError, StopIteration):
            return seed
    return None


MUTANTS: dict[str, tuple[str, Any, str, str, str]] = {
    "a window gives back one block early": (
        "window", Spec, "next_return", "max(processed, self.offset + self.size)", "max(processed, self.offset)"),
    "the last chunk leaves nothing behind": (
        "window", GroupBatch, "_enter", "returned != NOTHING_BACK", "False"),
    "a hit brings a circular buffer": (
        "ring", GroupScheduler, "try_head", "groups.num_whole if start else 0", "0"),
    "windows out of prefix caching have names": (
        "ring", groups_module, "_specs", "kind == WINDOW and is_named", "kind == WINDOW"),
    "what is computed again is a hit": (
        "ring", group_pool, "find_own_hits", "length > groups.replay_tokens", "False"),
    "the head comes in after the leap": (
        "window", GroupBatch, "_regular_steps_that_last", "free + max(after) >= need", "False"),
    "a blocked head is not looked at again": (
        "window", GroupScheduler, "_steps_that_fit", "self._blocked.need", "NEVER"),
    "blocks that come back late in a step help those before": (
        "window", GroupBatch, "steps_that_last", "takes > free and free < self._lead(step)",
        "takes > free + self._frees[phase] + takes"),
    "what the victim gave back comes back twice": (
        "window", GroupScheduler, "_give_back_of_decode", "seq.visited, seq.took = step, False", "pass"),
    "a chunk leaves one block behind": (
        "chunk", Spec, "gone", "processed // self.reach * self.reach // self.size",
        "max(0, processed // self.reach * self.reach // self.size - 1)"),
    "a chunk never comes back": (
        "chunk", GroupBatch, "_enter", "self._expect_chunk(seq, spec, computed + 1)", "None"),
    "asynchronous: what is in flight is processed": (
        "window", GroupSequence, "tokens_in_flight", "self.flight[0] == step - 1", "False"),
    "a longer chunk leaves the decodes their tokens": (
        "align", GroupScheduler, "_schedule_running",
        "self.groups.split and chunk != self.tokens_of(seq, wanted, step.budget)", "False"),
    "a state stays until the next one is full": (
        "align", StateTable, "remove", "(processed - 1) // size", "(processed - 2) // size"),
    "a checkpoint takes no block": (
        "align", Groups, "checkpoint", "index not in table.live", "False"),
    "names are lost from step ends": (
        "window", GroupBatch, "_regular_lead", "map(add, before, takes)", "map(add, before, self._lends[i:stop])"),
    "names in a window are kept for ever": (
        "window", GroupBatch, "settle_names", "self._uncount(seq, (NAMED, start, spec.size, spec.count))", "None"),
    "all of a request's own blocks are still there": (
        "returns", NamedQueue, "take", "num_blocks or (self._holes and self._holes[0][0] == self.front)", "False"),
    "hits leave no holes": (
        "returns", group_pool, "hold", "queue.remove(piece.number, piece.hi - piece.lo)", "None"),
    "a window's hit needs no whole window": (
        "returns", own_hits, "_find", "end - lo >= spec.num_named or not lo", "True"),
    "a junction keeps no names": (
        "returns", Groups, "ends_of", "ends.append(seq.junction // self.alignment * self.alignment)", "None"),
    "its hits stay while the head waits": (
        "returns", GroupScheduler, "_steps_that_fit", "room != NEVER", "False"),
    "a hit's state has no name": (
        "returns align", Groups, "new_states", "{length - 1: True}", "{length - 1: False}"),
    "a junction keeps no state": (
        "returns align", Groups, "name_states", "(last, seq.junction // self.alignment * self.alignment)", "(last,)"),
    "a chunk's hit needs all earlier chunks": (
        "returns chunk", own_hits, "_find", "lo <= first < hi", "not lo and first < hi"),
    "a state has no name": (
        "align", Groups, "name_states", "start < position <= end and index in table.live", "False"),
}  # fmt: skip
"""What a wrong rule says -> the kind of workload that notices, and the rule."""

FIRST_SEED = {
    "a hit brings a circular buffer": 9,
    "windows out of prefix caching have names": 13,
    "the head comes in after the leap": 19,
    "blocks that come back late in a step help those before": 23,
    "what the victim gave back comes back twice": 23,
    "a longer chunk leaves the decodes their tokens": 33,
    "names are lost from step ends": 9,
    "hits leave no holes": 5,
    "its hits stay while the head waits": 41,
    "a chunk's hit needs all earlier chunks": 6,
}
"""The first workload that notices, where it is not among the first few."""


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random workloads notice each wrong rule, and the right one passes them."""
    kind, *mutant = MUTANTS[name]
    with monkeypatch.context() as patch:
        mutate(patch, *mutant)
        first = FIRST_SEED.get(name, 0)
        seed = first_that_notices(kind, range(first, first + 400))
    assert seed is not None
    assert not difference(*scenario_of(kind, seed))


def test_of_equal_blocks_the_first_named_is_hit() -> None:
    """A request that computed its prompt twice hits the older copy where it is left, the younger one behind it."""
    seq = GroupSequence(Request("r", (Segment("x", 40),), 1), (0, 1))
    old, young = NamedBlocks(0, 0, 3, 10, run=1), NamedBlocks(0, 0, 8, 20, run=2)
    seq.parked += [young, old]
    groups = Groups(EngineConfig(num_gpu_blocks=99, max_model_len=64, block_size=4, kv_cache_groups=({}, {})))
    seq.parked += [extent._replace(group=1) for extent in seq.parked]
    found = own_hits.find_own_hits(groups, seq, NamedQueue(), 39)
    assert found.num_tokens == 32
    assert [piece[:4] for piece in found.pieces[:2]] == [(0, 0, 3, 10), (0, 3, 8, 20)]


def test_numbers_skip_what_is_held_again() -> None:
    """Blocks that leave the middle of the queue are not taken from its front."""
    queue = NamedQueue()
    queue.join(10)
    queue.remove(2, 3)
    assert queue.num_before(7) == 4
    queue.take(3)
    assert (queue.front, queue.num_before(9)) == (6, 3)
    queue.remove(6, 2)
    assert (queue.front, queue.tail) == (8, 10)
