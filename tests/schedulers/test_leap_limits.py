"""Limits of the scheduler's own leave leaps what steps are: fewer places and tokens than the engine has room for."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from draft_scenarios import drafted_scenario
from drawn import examples
from group_scenarios import KINDS, random_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from leap_scenarios import compare, random_scenario, with_limits
from visit_scenarios import difference as visits_differ
from visit_scenarios import random_visits

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.errors import KvplanError
from kvplan.schedulers.leap.allowed import why_no_visits, why_not
from kvplan.schedulers.vllm.config import EngineConfig

EXAMPLES = examples(80)
LIMITS = ("max_num_active_seqs", "max_num_scheduled_tokens")


def limited(kind: str, seed: int) -> dict[str, Any]:
    """A random scenario with limits, for the leap of that kind."""
    rng = Random(f"{kind}{seed}")
    if kind == "visits":
        row = with_limits(rng, random_visits(rng, rng.choice(["window", "align", "drafts", "drafts, align"])))
        return _with_shared_checkpoints(rng, row)
    made = {"plain": random_scenario, "drafts": drafted_scenario}
    row = made[kind](rng) if kind in made else random_groups(rng, rng.choice(KINDS))
    return with_limits(rng, row) | {"async_scheduling": rng.random() < 0.5}


def _with_shared_checkpoints(rng: Random, row: dict[str, Any]) -> dict[str, Any]:
    """Where EAGLE drafts beside states: hits that end inside blocks, and states kept where prompts part."""
    kinds = {group["kind"] for group in row["kv_cache_groups"]}
    if row.get("spec_method") not in ("eagle", "mtp", "dspark") or kinds != {"full", "mamba"}:
        return row
    if row["block_size"] % 2 or not row["enable_prefix_caching"]:
        return row
    unit = row["block_size"] // 2
    fine = row | {"prefix_match_unit": unit, "enable_mamba_shared_prefix_checkpoint": rng.random() < 0.8}
    return fine | {"prefix_cache_retention_interval": 0}


def difference(row: dict[str, Any], rng: Random | None) -> str:
    """The first difference between steps and a leap in closed form; "" where it cannot leap."""
    scenario = VLLMScenario(**row)
    if why_not(scenario.engine_config):
        return ""
    try:
        return compare(scenario, LeapReplay(scenario, rng=rng), max_steps=1000)
    except KvplanError:  # contents matter
        return ""


@pytest.mark.parametrize("kind", ["plain", "drafts", "groups"])
@given(seed=st.integers(0, 2**32), cut=st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_leaps_are_the_steps(kind: str, seed: int, cut: bool) -> None:
    """Every decision, block and end is the same, leaps cut short anywhere."""
    assert not difference(limited(kind, seed), Random(seed) if cut else None)


@given(seed=st.integers(0, 2**32), cut=st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_visits_are_the_steps(seed: int, cut: bool) -> None:
    """The same of leaps on the twin's own blocks, where states are kept where EAGLE's prompts part too."""
    row = limited("visits", seed)
    if not why_no_visits(VLLMScenario(**row).engine_config):
        assert not visits_differ(row, Random(seed) if cut else None, max_steps=300)[0]


def _leapt(kind: str) -> Iterator[tuple[dict[str, Any], int]]:
    for seed in range(25):
        scenario = VLLMScenario(**(row := limited(kind, seed)))
        if not why_not(scenario.engine_config):
            leap = LeapReplay(scenario)
            leap.run(1000)
            yield row, leap.num_leapt_steps


@pytest.mark.parametrize("kind", ["plain", "drafts"])
def test_limited_engines_leap(kind: str) -> None:
    """The scenarios above are not all walked: under each limit most engines leap."""
    found = [(row, steps > 0) for row, steps in _leapt(kind)]
    for limit in LIMITS:
        leaps = [leaps for row, leaps in found if row.get(limit)]
        assert len(leaps) >= 5
        assert sum(leaps) > len(leaps) / 2, limit


PLAIN = EngineConfig(num_gpu_blocks=100, max_model_len=200, max_num_seqs=8, max_num_batched_tokens=64)


@pytest.mark.parametrize(
    ("update", "leaps"),
    [
        ({"max_num_scheduled_tokens": 8}, True),
        ({"max_num_scheduled_tokens": 7}, False),
        ({"max_num_scheduled_tokens": 7, "max_num_active_seqs": 7}, True),
        ({"max_num_scheduled_tokens": 100}, True),
        ({"max_num_scheduled_tokens": 30, "num_speculative_tokens": 2}, True),
        ({"max_num_scheduled_tokens": 30, "num_speculative_tokens": 2, "spec_method": "draft_model"}, False),
        ({"long_prefill_token_threshold_adaptive": True}, True),
        ({"long_prefill_token_threshold_adaptive": True, "long_prefill_token_threshold": 9}, False),
    ],
)
def test_what_leaps(update: dict[str, Any], leaps: bool) -> None:
    """Closed forms know one budget of tokens with room for all that run, and a cap that stays."""
    config = EngineConfig.model_validate(PLAIN.model_dump() | update)
    assert (not why_not(config)) == leaps


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"max_num_active_seqs": 9}, "max_num_active_seqs 9 is above max_num_seqs 8"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 300, "max_num_scheduled_tokens": 199},
            "max_num_scheduled_tokens 199 is below max_model_len 200",
        ),
    ],
)
def test_limits_that_do_not_go(update: dict[str, Any], message: str) -> None:
    """More places than there are is refused as by vLLM, and so is what would never run."""
    with pytest.raises(ValueError, match=message):
        EngineConfig.model_validate(PLAIN.model_dump() | update)
