"""Leaps by visits are the steps: every decision, block id, name and place in the free queue, and vLLM's logs."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from drawn import examples
from engine_conformance import golden, scenarios
from hypothesis import given, settings
from hypothesis import strategies as st
from syntax_mutants import mutate
from visit_scenarios import KINDS, difference, random_visits

from kvplan.conformance.vllm_replay_visits import VisitReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.content import Segment
from kvplan.schedulers.leap import draft_visits
from kvplan.schedulers.leap.allowed import has_one_full_group, why_no_visits
from kvplan.schedulers.leap.draft_visits import DraftVisits
from kvplan.schedulers.leap.visits import AlikeGroups, DecodeVisits
from kvplan.schedulers.request import Request
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.kv_cache_manager import KVCacheManager
from kvplan.schedulers.vllm.mamba_manager import MambaManager
from kvplan.schedulers.vllm.single_type_kv_cache_manager import SingleTypeKVCacheManager

EXAMPLES = examples(100)
SEVERAL = [
    name
    for name, row in scenarios().items()
    if not why_no_visits(VLLMScenario(**row).engine_config)
    and not has_one_full_group(VLLMScenario(**row).engine_config)
]
"""Logs of engines with windows, chunks or several tables, contents shared or not."""


def found(kind: str, seed: int, cut: bool) -> str:
    row = random_visits(Random(f"{kind}{seed}"), kind)
    return difference(row, Random(seed) if cut else None, max_steps=300)[0]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), cut=st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_workloads(kind: str, seed: int, cut: bool) -> None:
    """Contents shared, requests that continue each other, preemption, aborts: also when leaps are cut anywhere."""
    assert not found(kind, seed, cut)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", SEVERAL)
def test_golden(name: str, mode: str) -> None:
    """vLLM 0.32's logs, decision for decision, most steps leapt over."""
    leap = VisitReplay(VLLMScenario(**scenarios()[name] | {"async_scheduling": mode == "async"}))
    result = leap.run()
    assert result.sched_sha256 == golden()[name, mode]["sched_sha256"]
    assert leap.num_leapt_steps > len(result.steps) // 3


def first_that_notices(kind: str, seeds: range) -> int | None:
    """The first workload of a kind that shows a difference, or breaks a scheduler."""
    for seed in seeds:
        try:
            if found(kind, seed, bool(seed % 2)):
                return seed
        except (AssertionError, IndexError, KeyError, ValueError, AttributeError):
            return seed
    return None


MUTANTS: dict[str, tuple[str, Any, str, str, str]] = {
    "a window gives back one token late": (
        "window", AlikeGroups, "left_behind", "processed - self.behind", "processed - self.behind - 1"),
    "a chunk gives back one block less": (
        "chunk", AlikeGroups, "left_behind", "processed // self.chunk * self.chunk // self.size",
        "np.maximum(0, processed // self.chunk * self.chunk // self.size - 1)"),
    "the last chunk leaves nothing behind": (
        "window", DecodeVisits, "_left_over", "not end or table[end - 1].is_null", "True"),
    "asynchronous: what is in flight is processed": (
        "window", DecodeVisits, "_changes", "computed - self.depth", "computed"),
    "what others hold comes back": (
        "window", DecodeVisits, "_keep_shared", "block.ref_cnt > 1", "False"),
    "others hold prompts alone": (
        "window", DecodeVisits, "_may_be_shared", "request.request_id in self._repeated", "False"),
    "within a step all take first": (
        "window", DecodeVisits, "_in_order", "(steps * len(ids) + indices) * (kinds[-1] + 1) + kind",
        "(steps * len(ids) + indices) * (kinds[-1] + 1) - kind"),
    "all give back before any takes": (
        "window", DecodeVisits, "_in_order", "(steps * len(ids) + indices) * (kinds[-1] + 1) + kind",
        "(steps * (kinds[-1] + 1) + kind) * len(ids) + indices"),
    "a short step is seen one block late": (
        "window", DecodeVisits, "_steps_that_last", "changes.free < 0", "changes.free < -1"),
    "a blocked head is not looked at again": (
        "window", DecodeVisits, "_steps_that_last", "last & (changes.free >= need)", "last & False"),
    "its hits stay while the head waits": (
        "window", DecodeVisits, "_steps_that_keep_hits", "taken > reach", "taken > reach + 5"),
    "blocks that a window hits are needed as well": (
        "window", SingleTypeKVCacheManager, "least_at_admission",
        "num_hit_blocks if self.recycles else num_held_blocks", "0"),
    "the head comes in one block late": (
        "window", DecodeVisits, "_steps_that_last", "changes.free >= need", "changes.free > need"),
    "an end takes one step more": (
        "window", DecodeVisits, "_steps_left", "left - self.depth", "left - self.depth + 1"),
    "a chunk's blocks come back front to back": (
        "chunk", DecodeVisits, "_change", "reversed(freed)", "freed"),
    "blocks lose their names where they are put off": (
        "window", KVCacheManager, "name_put_off", "request.request_id in self._put_off", "False"),
    "a step gives back what was never named": (
        "chunk", KVCacheManager, "allocate_slots", "self.name_put_off(request)", "None"),
    "a leap gives back what was never named": (
        "chunk", DecodeVisits, "_named_at_return", "self._names_before_returns", "False"),
    "nobody repeats what another says": (
        "echo", DecodeVisits, "name_what_is_repeated", "request.request_id in self._repeated", "False"),
    "a prompt may repeat a later request": (
        "echo", DecodeVisits, "add_request", "stream in self._asked", "False"),
    "what a prompt's chunks left is passed over": (
        "align", MambaManager, "decodes_on", "self.num_retired_blocks.get(request_id, 0) >= left - 1", "True"),
    "a step's states stay unreadable": (
        "align", DecodeVisits, "_head_needs", "self.manager.new_step_starts()", "None"),
    "the next step passes over one that gives back": (
        "window", DecodeVisits, "_next_slots", "groups.next_skip(processed - 1) + 1",
        "groups.next_skip(processed) + 1"),
    "the next step passes over one that takes": (
        "window", DecodeVisits, "_next_slots", "-(-computed // size) * size + 1", "-(-computed // size) * size + 2"),
    "a prompt's late names wait like those of output": (
        "ring", DecodeVisits, "_tokens_unnamed", "self._named_late is None", "True"),
    "a window behind a hit counts as nothing": (
        "ring", KVCacheManager, "least_blocks_to_admit",
        "manager.get_num_skipped_tokens(hit.num_tokens) // manager.block_size", "0"),
    "drafters write no slots": (
        "drafts", DraftVisits, "_changes_of", "computed + self.drafting.lookahead", "computed"),
    "asynchronous: an end takes one step more": (
        "drafts", DraftVisits, "plan_leap", "min(map(len, paths)) - 1 - self.depth", "min(map(len, paths)) - 1"),
    "drafts are whole near the model's length": (
        "drafts", DraftVisits, "plan_leap",
        "self.config.max_model_len - self.num_in_flight - 1 - self.num_drafts", "self.config.max_model_len"),
    "drafting takes no input slots": (
        "drafts", DraftVisits, "_left_for_head",
        "config.max_num_batched_tokens - num_running * (each + config.draft_slots)",
        "config.max_num_batched_tokens - num_running * each"),
    "names wait for no read": (
        "drafts", DraftVisits, "take", "self.scheduler.caches_outputs", "True"),
    "names wait for the next schedule": (
        "drafts, echo", DraftVisits, "take", "self.scheduler.caches_outputs", "False"),
    "what comes back is named as soon as read": (
        "drafts", DraftVisits, "_name", "self.scheduler.caches_outputs", "True"),
    "what comes back is named at the next schedule": (
        "drafts", DraftVisits, "_name", "self.scheduler.caches_outputs", "False"),
    "a drafter's block comes back without its name": (
        "drafts", DraftVisits, "_named_at_return", "named or not self._names_one_more", "True"),
    "with drafts the next step passes over one that gives back": (
        "drafts", DraftVisits, "_next_change", "groups.managers[0].next_skip(processed) + 1",
        "groups.managers[0].next_skip(processed) + 9"),
    "with drafts the next step passes over one that takes": (
        "drafts", DraftVisits, "_next_change", "groups.managers[0].next_need(request_id)",
        "groups.managers[0].next_need(request_id) + 1"),
    "a state leaves none behind its prompt": (
        "drafts, align", DraftVisits, "_left_over", "manager.num_retired_blocks.get(request_id, 0)", "end"),
    "states have slots for drafters": (
        "drafts, align", DraftVisits, "_changes_of", "computed if moves else slots", "slots"),
    "the blocks of drafts stay behind a state": (
        "drafts, align", draft_visits, "_moves", "isinstance(manager, MambaManager) and manager.align", "False"),
    "drafts have no states of their own": (
        "drafts, align", draft_visits, "_taking", "manager.num_speculative_blocks", "0"),
    "a batch of any size drafts as much": (
        "tiers", DraftVisits, "plan_leap", "self.scheduler.drafts_by_batch[len(running)]", "self.drafting.num_drafts"),
    "where drafts lead does not hang on how many": (
        "tiers, full", DraftVisits, "_path", "courses.get(num_drafts)", "next(iter(courses.values()), None)"),
    "a step begins with as many drafts as it makes": (
        "tiers", DraftVisits, "_decodes", "request.num_spec_tokens == self.num_drafts", "True"),
}  # fmt: skip
"""What a wrong rule says -> the kind of workload that notices, and the rule."""

FIRST_SEED = {
    "others hold prompts alone": 109,
    "a blocked head is not looked at again": 19,
    "its hits stay while the head waits": 33,
    "blocks that a window hits are needed as well": 19,
    "the head comes in one block late": 19,
    "a step gives back what was never named": 6,
    "nobody repeats what another says": 302,
    "a prompt may repeat a later request": 387,
    "what a prompt's chunks left is passed over": 26,
    "a step's states stay unreadable": 10,
    "the next step passes over one that gives back": 9,
    "the next step passes over one that takes": 19,
    "a prompt's late names wait like those of output": 365,
    "a window behind a hit counts as nothing": 53,
    "drafters write no slots": 2,
    "asynchronous: an end takes one step more": 3,
    "drafts are whole near the model's length": 3,
    "drafting takes no input slots": 242,
    "names wait for no read": 4,
    "names wait for the next schedule": 16,
    "what comes back is named as soon as read": 5,
    "what comes back is named at the next schedule": 8,
    "a drafter's block comes back without its name": 64,
    "with drafts the next step passes over one that gives back": 2,
    "with drafts the next step passes over one that takes": 46,
}
"""The first workload that notices, where it is not the first or second."""


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random workloads notice each wrong rule, and the right one passes them."""
    kind, *mutant = MUTANTS[name]
    with monkeypatch.context() as patch:
        mutate(patch, *mutant)
        first = FIRST_SEED.get(name, 0)
        seed = first_that_notices(kind, range(first, first + 100))
    assert seed is not None
    assert not found(kind, seed, bool(seed % 2))


FEWER_HITS: dict[str, Any] = {
    "block_size": 4, "num_gpu_blocks": 23, "max_num_batched_tokens": 6, "max_num_seqs": 4, "max_model_len": 128,
    "kv_cache_groups": [{"kind": "sliding_window", "window": 64}, {}],
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


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_padded_head_gets_in_with_fewer_hits(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its hits can be taken it stays out for as long as they are there only; else it would wait for b's end."""
    row = FEWER_HITS | {"async_scheduling": mode == "async"}
    found, leap, _ = difference(row)
    assert not found
    assert leap.num_leapt_steps > 3
    assert leap.finish["c"] < leap.finish["b"]
    right = "scheduler.pads_to_decodes and request.num_tokens == hit.num_tokens + 1"
    mutate(monkeypatch, DraftVisits, "_head_needs", right, "False")
    assert difference(row)[0]


@pytest.mark.parametrize("num_blocks", [6, 7, 8, 10, 13])
def test_short_of_blocks(num_blocks: int) -> None:
    """A window's blocks come back to who takes after it in a step; somebody is preempted in just the steps told."""
    groups = ({"kind": "sliding_window", "window": 6}, {})
    sizes = {"block_size": 4, "max_model_len": 64, "num_gpu_blocks": num_blocks}
    config = EngineConfig(kv_cache_groups=groups, scheduler_reserve_full_isl=False, **sizes)
    engine = StepByStep(config)
    for i in range(4):
        engine.add_request(Request(str(i), (Segment(str(i), 2 + i),), 14))
    told: list[bool] = []
    seen: list[bool] = []
    for _ in range(200):
        short = engine.is_short
        step = engine.schedule()
        if not step.chunks:
            told.append(short)
            seen.append(bool(step.preempted))
        engine.update_from_output()
    assert told == seen
    assert any(seen) or num_blocks > 10
