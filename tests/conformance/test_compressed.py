"""Groups out of prefix caching, as vLLM 0.32 schedules them: circular buffers, windows made again after a hit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from conformance.random_scenarios import RANDOM_MAX_STEPS, compressed_scenario, run_hash
from engine_conformance import FOLDER

from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.vllm import mamba_split
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.schedulers.vllm.window_managers import CircularBufferManager

COMPRESSED: dict[str, list[str]] = json.loads((FOLDER / "compressed_golden.json").read_text())
"""Seed -> hashes that `vllm_oracle.py --kind compressed --write` took from vLLM, sync and async."""
Patch = pytest.MonkeyPatch


def hashes(seed: str) -> list[str]:
    told = [compressed_scenario(int(seed)) | {"async_scheduling": a} for a in (False, True)]
    return [run_hash(VLLMReplay(VLLMScenario(**data)).run(RANDOM_MAX_STEPS).steps) for data in told]


@pytest.mark.parametrize("seed", COMPRESSED)
def test_equals_vllm(seed: str) -> None:
    assert hashes(seed) == COMPRESSED[seed]


def a_hit_is_not_computed_again(patch: Patch) -> None:
    patch.setattr(EngineConfig, "prefix_replay_tokens", 0)


def windows_are_named_after_all(patch: Patch) -> None:
    patch.setattr(KVCacheGroup, "prefix_cacheable", property(lambda self: self.kind != "circular_buffer"))


def a_buffer_grows_with_its_tokens(patch: Patch) -> None:
    patch.delattr(CircularBufferManager, "allocate_new_blocks")
    patch.delattr(CircularBufferManager, "get_num_blocks_to_allocate")


def buffers_set_the_size_of_names(patch: Patch) -> None:
    patch.setattr(EngineConfig, "named_block_sizes", property(lambda self: self.group_block_sizes))


def chunks_end_at_their_blocks(patch: Patch) -> None:
    of = mamba_split.MambaSplit.of.__func__  # type: ignore[attr-defined]

    def smallest(cls: type, config: EngineConfig) -> object:
        found = of(cls, config)
        return found and replace(found, block_size=min(config.group_block_sizes))

    patch.setattr(mamba_split.MambaSplit, "of", classmethod(smallest))


WRONG = [
    a_hit_is_not_computed_again,
    windows_are_named_after_all,
    a_buffer_grows_with_its_tokens,
    buffers_set_the_size_of_names,
    chunks_end_at_their_blocks,
]


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.__name__)
def test_a_wrong_rule_shows(rule: Callable[[Patch], None], monkeypatch: Patch) -> None:
    rule(monkeypatch)

    def differs(seed: str) -> bool:
        try:
            return hashes(seed) != COMPRESSED[seed]
        except (AssertionError, IndexError, KeyError):
            return True

    assert any(map(differs, COMPRESSED))


def test_a_hit_of_no_more_than_the_window_is_none() -> None:
    """The second request would compute all of its 16 cached tokens again; of 20 it keeps four."""
    groups = [{"kind": "sliding_window", "window": 16, "bounded_replay": True, "block_size": 4}, {}]

    def hit(shared: int) -> int:
        prompt = [{"prefix_id": "p", "len": shared}, {"len": 3}]
        told = [
            {"id": i, "prompt": prompt, "output_len": 2, "arrival_step": s} for i, s in (("a", 0), ("b", 9))
        ]
        row = {"block_size": 4, "num_gpu_blocks": 64, "max_model_len": 64, "kv_cache_groups": groups}
        steps = VLLMReplay(VLLMScenario(**row, requests=told)).run().steps
        return next(step.hits["b"] for step in steps if "b" in step.hits)

    assert [hit(n) for n in (16, 20, 40)] == [0, 4, 24]
