"""Limits of vLLM's scheduler below what the engine has room for, and states kept where EAGLE's prompts part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from conformance.random_scenarios import RANDOM_MAX_STEPS, limited_scenario, run_hash
from engine_conformance import FOLDER

from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.mamba_split import MambaSplit

LIMITED: dict[str, list[str]] = json.loads((FOLDER / "limited_golden.json").read_text())
"""Seed -> hashes that `vllm_oracle.py --kind limited --write` took from vLLM, sync and async."""
Patch = pytest.MonkeyPatch


def hashes(seed: str) -> list[str]:
    told = [limited_scenario(int(seed)) | {"async_scheduling": a} for a in (False, True)]
    return [run_hash(VLLMReplay(VLLMScenario(**data)).run(RANDOM_MAX_STEPS).steps) for data in told]


@pytest.mark.parametrize("seed", LIMITED)
def test_equals_vllm(seed: str) -> None:
    assert hashes(seed) == LIMITED[seed]


def all_places_are_taken(patch: Patch) -> None:
    patch.setattr(EngineConfig, "max_num_active_reqs", property(lambda self: self.max_num_seqs))


def steps_fill_their_buffers(patch: Patch) -> None:
    patch.setattr(EngineConfig, "token_budget", property(lambda self: self.max_num_batched_tokens))


def the_cap_stays(patch: Patch) -> None:
    def cap(self: EngineConfig, num_requests: int) -> int:
        return 0 if num_requests < 2 else self.long_prefill_token_threshold

    patch.setattr(EngineConfig, "prefill_cap", cap)


def the_cap_is_a_share_of_what_is_scheduled(patch: Patch) -> None:
    def cap(self: EngineConfig, num_requests: int) -> int:
        told, share = self.long_prefill_token_threshold, self.token_budget // max(1, num_requests)
        both = max(told, share) if told and self.long_prefill_token_threshold_adaptive else told
        return 0 if num_requests < 2 else both

    patch.setattr(EngineConfig, "prefill_cap", cap)


def the_chunk_does_not_end_there(patch: Patch) -> None:
    of = MambaSplit.of.__func__  # type: ignore[attr-defined]

    def never(cls: type, config: EngineConfig) -> MambaSplit | None:
        found: MambaSplit | None = of(cls, config)
        return found and replace(found, stops_where_prompts_part=False)

    patch.setattr(MambaSplit, "of", classmethod(never))


def prompts_part_at_blocks(patch: Patch) -> None:
    patch.setattr(EngineConfig, "mamba_shared_prefix_checkpoint", False)


def drafters_do_not_matter(patch: Patch) -> None:
    def told(self: EngineConfig) -> bool:
        return self.enable_mamba_shared_prefix_checkpoint and self.partial_hash_hits

    patch.setattr(EngineConfig, "mamba_shared_prefix_checkpoint", property(told))


MUTANTS = [
    all_places_are_taken,
    steps_fill_their_buffers,
    the_cap_stays,
    the_cap_is_a_share_of_what_is_scheduled,
    the_chunk_does_not_end_there,
    prompts_part_at_blocks,
    drafters_do_not_matter,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """A rule left out or changed is seen in one of the logs."""
    mutant(monkeypatch)
    assert any(hashes(seed) != LIMITED[seed] for seed in LIMITED)
