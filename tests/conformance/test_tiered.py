"""Drafts by the requests of a step (`num_speculative_tokens_per_batch_size`), as vLLM 0.32 schedules them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from conformance.random_scenarios import RANDOM_MAX_STEPS, run_hash, tiered_scenario
from engine_conformance import FOLDER
from syntax_mutants import mutate

from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.formulas import draft_tiers
from kvplan.schedulers.vllm import config
from kvplan.schedulers.vllm.scheduler import Scheduler

TIERED: dict[str, list[str]] = json.loads((FOLDER / "tiered_golden.json").read_text())
"""Seed -> hashes that `vllm_oracle.py --kind tiered --write` took from vLLM, sync and async."""
Patch = pytest.MonkeyPatch


def hashes(seed: str) -> list[str]:
    told = [tiered_scenario(int(seed)) | {"async_scheduling": a} for a in (False, True)]
    return [run_hash(VLLMReplay(VLLMScenario(**data)).run(RANDOM_MAX_STEPS).steps) for data in told]


@pytest.mark.parametrize("seed", TIERED)
def test_equals_vllm(seed: str) -> None:
    assert tiered_scenario(int(seed))["num_speculative_tokens_per_batch_size"]
    assert hashes(seed) == TIERED[seed]


def as_many_as_the_running(patch: Patch) -> None:
    right = "self.drafts_by_batch[len(output.num_scheduled_tokens)]"
    mutate(patch, Scheduler, "schedule", right, "self.drafts_by_batch[len(self.running)]")


def gaps_draft_as_without_tiers(patch: Patch) -> None:
    def stated(tiers: draft_tiers.DraftTiers | None, max_num_seqs: int, most: int) -> tuple[int, ...]:
        found = {n: k for low, high, k in tiers or () for n in range(low, high + 1)}
        return tuple(min(most, found.get(n, most)) for n in range(max_num_seqs + 1))

    patch.setattr(config, "drafts_by_batch", stated)


def tiers_may_exceed_what_is_drafted(patch: Patch) -> None:
    def whole(tiers: draft_tiers.DraftTiers | None, max_num_seqs: int, most: int) -> tuple[int, ...]:
        return draft_tiers.drafts_by_batch(tiers, max_num_seqs, most if tiers is None else 1 << 20)

    patch.setattr(config, "drafts_by_batch", whole)


def admissions_are_padded(patch: Patch) -> None:
    before = Scheduler.__init__

    def pads(self: Scheduler, told: config.EngineConfig) -> None:
        before(self, told)
        self.pads_to_decodes = self.num_spec_tokens > 0

    patch.setattr(Scheduler, "__init__", pads)


WRONG = [
    as_many_as_the_running,
    gaps_draft_as_without_tiers,
    tiers_may_exceed_what_is_drafted,
    admissions_are_padded,
]


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.__name__)
def test_a_wrong_rule_shows(rule: Callable[[Patch], None], monkeypatch: Patch) -> None:
    rule(monkeypatch)

    def differs(seed: str) -> bool:
        try:
            return hashes(seed) != TIERED[seed]
        except (AssertionError, IndexError, KeyError):
            return True

    assert any(map(differs, TIERED))
