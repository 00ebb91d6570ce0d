"""Who spreads requests over data-parallel replicas: vLLM's own balancer, over all or a machine's, or one outside."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from places import FIXTURES

from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.balancer import Balancer
from kvplan.simulation.deploy import set_up
from kvplan.simulation.simulator import simulate

VLLM = json.loads((FIXTURES / "balancing_vllm_0.32.json").read_text())
DENSE, MOE = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"


@pytest.mark.parametrize("engines", VLLM)
def test_as_vllms_own_balancer_chooses(engines: str) -> None:
    """vLLM 0.32's client, told queues and uses of the KV pool (`tests/models/make_balancing.py`)."""
    balancer = Balancer()
    for drawn in VLLM[engines]:
        replicas = [
            SimpleNamespace(
                num_requests=waiting + running,
                num_waiting=waiting,
                num_coming=0,
                used_share=lambda now, used=used: used,
            )
            for waiting, running, used in drawn["engines"]
        ]
        assert balancer.choose(replicas, 0) == drawn["chosen"]  # type: ignore[arg-type]


def scenario(model: str = DENSE, router: str = "round_robin", **flags: Any) -> Any:
    """Prompts and answers of very different lengths, so that turns are uneven."""
    return parse_scenario(
        {
            "name": "balance",
            "model": model,
            "router": router,
            "engine": {"data_parallel_size": 4, "max_model_len": 16384, "max_num_seqs": 8, **flags},
            "workload": {
                "num_requests": 300,
                "arrivals": {"kind": "poisson", "rate": 8},
                "prompt": {"kind": "lognormal", "median": 500, "sigma": 1.5, "high": 8000},
                "answer": {"kind": "lognormal", "median": 200, "sigma": 1.5, "high": 4000},
            },
        },
        "balance",
    )


def replicas_of(scenario: Any) -> list[int]:
    """Where each request went, in order of arrival."""
    records = simulate(scenario).records
    return [int(place) for place in records["replica"][records["arrival"].argsort(kind="stable")]]


def test_groups_of_a_copy() -> None:
    """All replicas; each machine's; each alone. SGLang spreads in turn."""
    flags: dict[str, Any] = {"data_parallel_size_local": 2}
    assert set_up(scenario().deployments[""]).balanced == (4,)
    assert set_up(scenario(**flags).deployments[""]).balanced == (4,)
    assert set_up(scenario(**flags, data_parallel_hybrid_lb=True).deployments[""]).balanced == (2, 2)
    assert set_up(scenario(MOE, data_parallel_rank=0).deployments[""]).balanced == (1, 1, 1, 1)


def test_one_outside_takes_turns_and_knows_what_it_is_told() -> None:
    """Each replica with an API server of its own: the scenario's router; over machines: each machine in turn."""
    assert replicas_of(scenario(MOE, data_parallel_rank=0)) == [i % 4 for i in range(300)]
    hybrid = replicas_of(scenario(MOE, data_parallel_size_local=2, data_parallel_hybrid_lb=True))
    assert [place // 2 for place in hybrid] == [i % 2 for i in range(300)]
    assert replicas_of(scenario(MOE)) != [i % 4 for i in range(300)]
    told = [replicas_of(scenario(MOE, "least_kv", **more)) for more in ({}, {"data_parallel_rank": 0})]
    assert told[0] == told[1]


def test_fewest_requests_wait_less_than_turns() -> None:
    """Queues of a full engine are avoided: the mean time to the first token falls."""
    own, turns = (simulate(scenario(MOE, **more)) for more in ({}, {"data_parallel_rank": 0}))
    assert own.latencies.ttft.mean() < 0.9 * turns.latencies.ttft.mean()


@pytest.mark.parametrize("model", [DENSE, MOE])
def test_leaping_chooses_as_stepping_does(model: str) -> None:
    told = scenario(model)
    leap, step = (simulate(told, step_by_step=walks) for walks in (False, True))
    assert (leap.records.table == step.records.table).all()
