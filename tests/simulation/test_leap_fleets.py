"""Leap equals step by step where runs meet: routers, several models, disaggregation, strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.deploy import set_ups
from kvplan.simulation.replica import Replica
from kvplan.simulation.router import Router
from kvplan.simulation.simulator import simulate, solve

STEP = {"fixed_us": 8000, "per_sequence_us": 20, "per_context_token_ns": 65, "per_prefill_token_us": 30}
SMALL = {"model": "Qwen/Qwen3-0.6B", "gpu": "l4", "step_time": STEP,
         "engine": {"num_gpu_blocks_override": 260, "max_model_len": 4096, "max_num_seqs": 16}}  # fmt: skip
LOAD = {
    "num_requests": 60,
    "arrivals": {"kind": "gamma", "rate": 12, "cv": 2},
    "prompt": {"kind": "uniform", "low": 210, "high": 400},
    "answer": {"kind": "lognormal", "median": 120, "sigma": 0.8, "high": 900},
    "shared_prefix_tokens": 200,
    "shared_prefix_groups": 5,
}
FLEETS: dict[str, dict[str, Any]] = {
    "prefix_aware": {"replicas": 3, "router": "prefix_aware"},
    "least_kv": {"replicas": 3, "router": "least_kv"},
    "disaggregated": {"replicas": 2, "disaggregation": {"prefill_replicas": 2, "transfer_bytes_per_s": 1e9}},
    "two_models": {"models": {"other": {**SMALL, "replicas": 2, "router": "prefix_aware"}}},
}


def same(found: Any, stepped: Any, mode: str = "leap") -> None:
    assert {text.split(":")[0] for text in found.modes.values()} == {mode}
    assert found.totals.leaps > 0 == stepped.totals.leaps
    left, right = found.records.columns(), stepped.records.columns()
    assert left.keys() == right.keys()
    for name, column in left.items():
        assert list(map(str, column)) == list(map(str, right[name])), name
    for name in ("steps", "preemptions", "recomputed_tokens", "busy_ticks"):
        assert getattr(found.totals, name) == getattr(stepped.totals, name), name


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fleet", FLEETS)
def test_fleets(fleet: str, is_async: bool, seed: int) -> None:
    check_fleet(fleet, seed, {"async_scheduling": is_async})


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fleet", FLEETS)
def test_fleets_that_draft(fleet: str, is_async: bool) -> None:
    """The same where steps give several tokens; a transferred prompt of one token left is padded to a decode's size."""
    drafts = {"num_speculative_tokens": 2, "speculative_method": "ngram_gpu"}
    check_fleet(fleet, 1, {"async_scheduling": is_async, **drafts})


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("fleet", ["prefix_aware", "disaggregated"])
def test_fleets_of_windows_that_share_prompts(fleet: str, drafts: int, is_async: bool) -> None:
    """They leap by visits, in fleets too."""
    engine = {**SMALL["engine"], "async_scheduling": is_async, "num_gpu_blocks_override": 600}
    if drafts:
        engine |= {"num_speculative_tokens": drafts, "speculative_method": "ngram_gpu"}
    data = {**SMALL, **FLEETS[fleet], "model": "openai/gpt-oss-20b", "engine": engine, "workload": LOAD}
    spec = parse_scenario(data)
    found = simulate(spec)
    same(found, simulate(spec, step_by_step=True), "leap by visits")
    assert found.totals.leapt_steps > found.totals.steps // 2


def check_fleet(fleet: str, seed: int, flags: dict[str, Any]) -> None:
    load = {**LOAD, "seed": seed}
    if fleet == "two_models":
        own = {
            key: load.pop(key) for key in ("prompt", "answer", "shared_prefix_tokens", "shared_prefix_groups")
        }
        load["classes"] = {"here": {**own}, "there": {**own, "model": "other"}}
    engine = {**SMALL["engine"], **flags}
    spec = parse_scenario({**SMALL, **FLEETS[fleet], "engine": engine, "workload": load})
    found, stepped = simulate(spec), simulate(spec, step_by_step=True)
    same(found, stepped)
    assert found.num_completed == 60


STRATEGIES: tuple[dict[str, Any], ...] = (
    {"strategy": "best_of_n", "n": 6, "max_tokens": 1500},
    {"strategy": "self_consistency", "n": 8, "max_tokens": 1500},
    {"strategy": "beam_search", "beam_width": 2, "branch_factor": 3, "step_tokens": 100, "num_iterations": 6},
    {"strategy": "first_finish", "k": 6, "m": 2, "max_tokens": 1500},
)


@pytest.mark.parametrize("placement", ["one_replica", "spread"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["strategy"])
def test_strategies(strategy: dict[str, Any], placement: str) -> None:
    problems = {
        "num_problems": 5, "quality": "assumed-u-shape", "placement": placement,
        "verifier": {"kind": "prm", "placement": "remote"}, "strategies": [strategy],
    }  # fmt: skip
    spec = parse_scenario({**SMALL, "replicas": 2, "problems": problems})
    found, stepped = solve(spec), solve(spec, step_by_step=True)
    same(found.result, stepped.result)
    assert [(s.finish, s.correct) for s in found.solved] == [(s.finish, s.correct) for s in stepped.solved]


@pytest.mark.parametrize("step_by_step", [False, True], ids=["leap", "step"])
@pytest.mark.parametrize("router", ["least_kv", "prefix_aware"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_least_is_the_least_of_all(
    router: str, step_by_step: bool, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that asks few replicas finds the one that asking all of them would; blocks run out, clients leave."""
    first, places = Router.first, []

    def checked(self: Router, replicas: Sequence[Replica], key: Any, now: int) -> int:
        place = first(self, replicas, key, now)
        assert place == min(range(len(replicas)), key=lambda i: (key(replicas[i], now), i))
        places.append(place)
        return place

    monkeypatch.setattr(Router, "first", checked)
    load = {**LOAD, "num_requests": 150, "timeout_s": 5.0, "arrivals": {"kind": "poisson", "rate": 60}}
    spec = parse_scenario({**SMALL, "replicas": 5, "router": router, "workload": load})
    setups = {name: replace(setup, lockstep_ranks=ranks) for name, setup in set_ups(spec).items()}
    found = simulate(spec, step_by_step=step_by_step, setups=setups)
    assert len(set(places)) == 5 * ranks
    assert found.totals.preemptions > 0 or ranks > 1
    assert found.num_completed < 150
