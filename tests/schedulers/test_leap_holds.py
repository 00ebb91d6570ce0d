"""Hits that several requests hold together, in the leap: trees of continued requests, as searches make them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leap_scenarios import compare

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.leap.extents import ExtentPool
from kvplan.schedulers.leap.state import Hold


def tree(seed: int) -> dict[str, Any]:
    """Requests that go on where an earlier one ended, or part of it, many at a time in a pool that is often short."""
    rng = Random(seed)
    size, requests = rng.choice([1, 2, 4]), [{"id": "r0", "prompt": [{"len": 9}], "output_len": 7}]
    lengths = {"r0": (9, 7)}
    for i in range(1, rng.randint(8, 30)):
        after = rng.choice(requests[-6:])["id"]
        prompt, output = lengths[after]
        told = rng.randint(1, output)
        own = rng.choice([0, 0, 1, 5])
        begun = [{"prompt_of": after}, {"output_of": after, "len": told}, *([{"len": own}] if own else [])]
        lengths[f"r{i}"] = prompt + told + own, rng.randint(1, 9)
        requests.append(
            {"id": f"r{i}", "prompt": begun, "output_len": lengths[f"r{i}"][1], "after": [after],
             "delay_steps": rng.choice([0, 0, 0, 3, 20])}
        )  # fmt: skip
    longest = max(map(sum, lengths.values()))
    return {
        "block_size": size, "max_model_len": longest, "max_num_seqs": rng.choice([2, 5, 16]),
        "num_gpu_blocks": longest // size + 2 + rng.choice([0, 5, 40, 300]),
        "max_num_batched_tokens": rng.choice([16, 64, 512]), "enable_prefix_caching": True,
        "async_scheduling": rng.random() < 0.5, "requests": requests,
    }  # fmt: skip


def difference(seed: int) -> str:
    scenario = VLLMScenario(**tree(seed))
    return compare(scenario, LeapReplay(scenario))


@given(st.integers(0, 2**32))
@settings(max_examples=150)
def test_the_leap_is_the_walk(seed: int) -> None:
    """Every decision, hit, eviction and free block, however many hold a beginning together."""
    assert difference(seed) == ""


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_looking_from_the_start_finds_the_same(seed: int) -> None:
    """What others hold already is what a walk along the whole path finds, in the same tokens and evictable blocks."""
    found = ExtentPool.find_longest_cache_hit

    def both(self: ExtentPool, seq: Any, max_blocks: int, now: int) -> Any:
        hits = found(self, seq, max_blocks, now)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ExtentPool, "_held", lambda *args: (0, None))
            whole = found(self, seq, max_blocks, now)
        assert hits.num_blocks == whole.num_blocks
        assert hits.num_evictable == whole.num_evictable
        assert hits.stretches == whole.stretches[len(whole.stretches) - len(hits.stretches) :]
        return hits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExtentPool, "find_longest_cache_hit", both)
        scenario = VLLMScenario(**tree(seed))
        LeapReplay(scenario).run()


def _any_depth(self: ExtentPool, path: Any, max_blocks: int) -> tuple[int, Hold | None]:
    return next(
        ((at, trunk.hold) for at, (trunk, _, _) in enumerate(path) if trunk.hold is not None), (0, None)
    )


def _counted_once(right: Callable[..., None]) -> Callable[..., None]:
    def adopt(self: ExtentPool, seq: Any, hits: Any, when: int) -> None:
        right(self, seq, hits, when)
        if hits.hold is not None and hits.hold is seq.hold:
            hits.hold.refs -= 1

    return adopt


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("_held", lambda right: _any_depth), ("adopt", _counted_once)],
    ids=["holds deeper than the path", "a second holder is not counted"],
)
def test_mutants_are_caught(name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rule shows in some tree."""
    monkeypatch.setattr(ExtentPool, name, wrong(getattr(ExtentPool, name)))

    def caught(seed: int) -> bool:
        try:
            return bool(difference(seed))
        except (AssertionError, IndexError, StopIteration, ValueError, AttributeError):
            return True

    assert any(caught(seed) for seed in range(60))
