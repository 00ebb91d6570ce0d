"""Random whole runs: fleets, strategies, priorities, and any engine under any load; thousands take a few minutes."""

from __future__ import annotations

from random import Random
from typing import Any

from draft_scenarios import drafted_scenario
from leap_scenarios import random_scenario
from lockstep_scenarios import MS, KnottedStepTime, random_workload
from visit_scenarios import KINDS as VISITED
from visit_scenarios import random_visits

from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.deploy import Setup

Json = dict[str, Any]
KINDS = ("fleets", "strategies", "priorities", "mixed")


def random_run(rng: Random, kind: str) -> tuple[Scenario, dict[str, Setup]]:
    """Return a scenario and its engines."""
    config = _engine(rng, kind)
    setups = {"": _setup(rng, config)}
    data: Json = {
        "model": "stated", "step_time": {"fixed_us": 1}, "acceptance_rate": rng.choice([0.0, 0.5, 0.9]),
        "limits": {"thrash_ratio": 1e6},
    }  # fmt: skip
    if kind == "strategies":
        data |= {"problems": _problems(rng, config.max_model_len), "replicas": rng.choice([1, 1, 2])}
        return parse_scenario(data), setups
    workload = random_workload(rng, max(2, config.max_model_len // 4), rng.choice([2, 20, 200, 2000]))
    workload["num_requests"] = rng.choice([5, 10, 20])
    if kind == "fleets" or (kind == "mixed" and rng.random() < 0.5):
        data |= _fleet(rng, workload)
        if "models" in data:
            setups["other"] = _setup(rng, _engine(rng, "mixed", config.max_model_len))
    return parse_scenario(data | {"workload": workload}), setups


def _engine(rng: Random, kind: str, longest: int = 0) -> EngineConfig:
    """Return an engine of any kind of memory that holds its longest request, of so many tokens at least."""
    while True:
        beside = rng.choice(["full", "full", "full, drafts", *(VISITED if kind != "priorities" else ())])
        if beside == "full":
            row = random_scenario(rng)
        else:
            row = drafted_scenario(rng) if beside == "full, drafts" else random_visits(rng, beside)
        if kind == "strategies":
            row["max_model_len"] = max(row["max_model_len"], 160)
        if row["max_model_len"] >= longest and (row["enable_chunked_prefill"] or not longest):
            break
    row["async_scheduling"] = rng.random() < 0.5
    if kind == "priorities":
        row["policy"] = "priority"
    if not row["enable_chunked_prefill"]:
        row["max_num_batched_tokens"] = max(row["max_num_batched_tokens"], row["max_model_len"])
    groups = row.get("kv_cache_groups") or [{}]
    drafts = row.get("num_speculative_tokens", 0)
    one = -(-(row["max_model_len"] + 2 * drafts) // row["block_size"]) + drafts + 2
    most = one * sum(group.get("repeat", 1) for group in groups)
    row["num_gpu_blocks"] = 1 + int(max(row["num_gpu_blocks"], most * rng.choice([1.0, 1.1, 1.6, 4])))
    row["requests"] = row["requests"][:1]
    row["requests"][0] = {"id": "a", "prompt": [{"len": 1}], "output_len": 1}
    return VLLMScenario(**row).engine_config


def _setup(rng: Random, config: EngineConfig) -> Setup:
    time = KnottedStepTime(
        rng.choice([0, 1, 8]) * MS + 1, rng.choice([0, MS // 50]), rng.choice([0, 3, 67_700, MS // 20]),
        rng.choice([1, MS // 20]), rng.choice([0, 0, 100, 1000]),
    )  # fmt: skip
    return Setup(config, time, 1000.0, 1)


def _fleet(rng: Random, workload: Json) -> Json:
    """Return replicas, a router, and maybe prompts computed apart or a second model that takes a class of requests."""
    fleet: Json = {
        "replicas": rng.choice([1, 2, 2, 4]),
        "router": rng.choice(["round_robin", "least_kv", "prefix_aware"]),
    }
    if rng.random() < 0.2:
        apart = {"prefill_replicas": rng.choice([1, 2]), "transfer_bytes_per_s": rng.choice([1e4, 1e9])}
        fleet |= {"disaggregation": apart}
    elif "classes" in workload and rng.random() < 0.5:
        fleet |= {"models": {"other": {"model": "stated", "replicas": rng.choice([1, 2])}}}
        workload["classes"]["b"]["model"] = "other"
    return fleet


def _problems(rng: Random, longest: int) -> Json:
    tokens = longest // 4
    steps = {"branch_factor": rng.choice([2, 3]), "step_tokens": max(1, tokens // 6), "num_iterations": 4}
    strategy = rng.choice(
        [
            {"strategy": "single_pass", "max_tokens": tokens},
            {"strategy": "best_of_n", "n": rng.choice([2, 6]), "max_tokens": tokens},
            {"strategy": "self_consistency", "n": rng.choice([3, 8]), "max_tokens": tokens},
            {"strategy": "first_finish", "k": 5, "m": rng.choice([1, 2]), "max_tokens": tokens},
            {"strategy": "beam_search", "beam_width": 2, **steps},
            {"strategy": "diverse_tree_search", "num_subtrees": 2, **steps},
            {"strategy": "tree_search", "num_simulations": 4, "step_tokens": max(1, tokens // 4), "max_tokens": tokens},
            {"strategy": "pruned_under_pressure", "n": rng.choice([4, 8]), "max_tokens": tokens},
            {"strategy": "grpo_group", "group_size": rng.choice([2, 6]), "max_tokens": tokens},
        ]
    )  # fmt: skip
    arrivals = rng.choice([{"kind": "closed_loop", "concurrency": 2}, {"kind": "poisson", "rate": 20}])
    quality = {
        "thinking_tokens": max(1, tokens // rng.choice([2, 4])), "answer_tokens": max(1, tokens // 8),
        "sigma_within": rng.choice([0.0, 0.4]), "sigma_between": 0.3,
    }  # fmt: skip
    verifier = {"kind": "prm", "placement": "remote"}
    return {
        "num_problems": rng.choice([2, 4]), "seed": rng.randrange(10**6), "arrivals": arrivals,
        "prompt": rng.choice([3, longest // 8]), "placement": rng.choice(["one_replica", "spread"]),
        "quality": quality, "verifier": verifier, "strategies": [strategy],
    }  # fmt: skip
