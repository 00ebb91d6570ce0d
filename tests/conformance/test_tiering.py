"""Tiers below host memory: equal to vLLM's own manager and file system tier, and wrong rules of them are caught."""

from __future__ import annotations

from typing import Any

import pytest
from engine_conformance import offload_golden, tiering_replay

from kvplan.conformance.vllm_replay import offload_sha256
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.offloading import tiering
from kvplan.schedulers.vllm.offloading.config import OffloadingConfig

Patch = pytest.MonkeyPatch
Tiering = tiering.TieringOffloadingManager
Lookups = tiering.AsyncLookupManager
GOLDEN = offload_golden("tiers")
"""60 random scenarios, less those that vLLM or the twin refuses, sync and async."""


def is_equal(name: str, mode: str) -> bool:
    """Whether all hashes of a log are the twin's."""
    log, result = GOLDEN[name, mode], tiering_replay(name, mode).run()
    found = {"sched_sha256": result.sched_sha256, "state_sha256": result.state_sha256}
    return all(
        log[key] == value for key, value in (found | {"offload_sha256": offload_sha256(result)}).items()
    )


@pytest.mark.parametrize("key", sorted(GOLDEN), ids="-".join)
def test_equals_vllm(key: tuple[str, str]) -> None:
    """Every batch, block count, load, store, promotion and copy to a tier is vLLM's."""
    assert is_equal(*key)


def test_the_logs_show_what_tiers_do() -> None:
    """Promotions, copies to several tiers, and both scheduling modes are among them."""
    runs = [tiering_replay(*key).run() for key in sorted(GOLDEN)[:40]]
    seen = [step.offload for run in runs for step in run.steps if step.offload]
    assert sum(len(record.promotions) for record in seen) > 100
    assert sum(len(record.cascades) for record in seen) > 500
    assert {tier for record in seen for _, tier, *_ in record.cascades} == {0, 1}


def answers_come_at_once(patch: Patch) -> None:
    patch.setattr(Lookups, "lookup", lambda self, key, request_id: key in self._files)


def every_call_polls(patch: Patch) -> None:
    def poll(self: Any) -> None:
        self._processed_jobs_this_step = False
        process(self)

    process = Tiering._maybe_process_finished_jobs
    patch.setattr(Tiering, "_maybe_process_finished_jobs", poll)


def answers_are_asked_anew(patch: Patch) -> None:
    def flush(self: Any) -> bool:
        for key, state in [*self._lookup_state.items()]:
            if state.result is False:
                self._lookup_batch.append((key, state))
        return bool(plain(self))

    plain = Lookups.flush
    patch.setattr(Lookups, "flush", flush)


def answers_outlive_their_requests(patch: Patch) -> None:
    patch.setattr(Lookups, "cleanup", lambda self, request_id: None)


def only_the_first_tier_gets_copies(patch: Patch) -> None:
    def begin(self: Any, tier: int, request_id: str, keys: Any, *, is_promotion: bool) -> None:
        if tier and not is_promotion:
            self.complete_load(keys)
        else:
            plain(self, tier, request_id, keys, is_promotion=is_promotion)

    plain = Tiering._begin
    patch.setattr(Tiering, "_begin", begin)


def promotions_begin_one_by_one(patch: Patch) -> None:
    def close(self: Any) -> None:
        for i, by_request in self._pending_promotions.items():
            for request_id, keys in by_request.items():
                for key in keys[1:]:
                    self._begin(i, request_id, [key], is_promotion=True)
                del keys[1:]
        plain(self)

    plain = Tiering.on_schedule_end
    patch.setattr(Tiering, "on_schedule_end", close)


@pytest.mark.parametrize(
    "spoil",
    [
        answers_come_at_once,
        every_call_polls,
        answers_are_asked_anew,
        answers_outlive_their_requests,
        only_the_first_tier_gets_copies,
        promotions_begin_one_by_one,
    ],
)
def test_mutants_are_caught(spoil: Any, monkeypatch: Patch) -> None:
    """A wrong rule changes some log."""
    spoil(monkeypatch)
    assert not all(is_equal(*key) for key in sorted(GOLDEN))


def test_other_versions_and_thresholds_are_refused_by_name() -> None:
    """What was not held to its engine is not taken for it; what vLLM refuses, so does the twin."""
    tier = {"num_chunks": 10, "secondary_tiers": [{"type": "fs"}]}
    with pytest.raises(ValueError, match=r"secondary_tiers: known as vLLM 0\.32 has them"):
        EngineConfig(num_gpu_blocks=10, max_model_len=100, kv_offloading=tier, engine_version="0.33")
    with pytest.raises(ValueError, match="store_threshold is not supported with secondary_tiers"):
        OffloadingConfig(**tier, store_threshold=2)
