"""The API server before an engine: a latency that clients see and that moves when requests come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate

STEP = {"fixed_us": 5000, "per_sequence_us": 20, "per_context_token_ns": 10, "per_prefill_token_us": 50}
SLOW = {"request_ms": 10, "per_1k_tokens_ms": 2.5}


def run(step_by_step: bool = False, **changes: Any) -> Result:
    workload = {
        "num_requests": 40, "arrivals": {"kind": "poisson", "rate": 4.0},
        "prompt": {"kind": "uniform", "low": 100, "high": 4000}, "answer": {"kind": "uniform", "low": 2, "high": 60},
    }  # fmt: skip
    data = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STEP, "workload": workload}
    return simulate(parse_scenario(data | changes), step_by_step=step_by_step)


def one_by_one(**changes: Any) -> Result:
    return run(
        workload={
            "num_requests": 12, "prompt": {"kind": "uniform", "low": 100, "high": 4000}, "answer": 20,
            "arrivals": {"kind": "closed_loop", "concurrency": 1},
        },
        engine={"async_scheduling": False},  # no step in flight when the next request comes
        **changes,
    )  # fmt: skip


def test_a_lone_client_sees_the_frontend_and_nothing_else() -> None:
    """TTFT and E2E grow by the stated latency of each prompt, TPOT by nothing; rounds take that much longer."""
    plain, slow = one_by_one(), one_by_one(frontend=SLOW)
    prompts = plain.records["prompt_tokens"]
    latency = 0.010 + 0.0025 * prompts / 1000
    assert slow.latencies.ttft == pytest.approx(plain.latencies.ttft + 1e3 * latency, abs=1e-6)
    assert slow.latencies.e2el == pytest.approx(plain.latencies.e2el + 1e3 * latency, abs=1e-6)
    assert slow.latencies.tpot == pytest.approx(plain.latencies.tpot)
    assert slow.duration_s - plain.duration_s == pytest.approx(latency.sum())


@given(st.floats(0, 200), st.floats(0, 50), st.integers(0, 99), st.sampled_from([1, 2]))
def test_leaping_equals_stepping(request_ms: float, per_1k: float, seed: int, replicas: int) -> None:
    """The same times to the picosecond, whenever requests come out of the frontend."""
    changes = {"frontend": {"request_ms": request_ms, "per_1k_tokens_ms": per_1k}, "replicas": replicas}
    for arrivals in ({"kind": "poisson", "rate": 4.0}, {"kind": "closed_loop", "concurrency": 5}):
        workload = {
            "num_requests": 20, "arrivals": arrivals, "seed": seed, "prompt": 500,
            "answer": {"kind": "uniform", "low": 2, "high": 60},
        }  # fmt: skip
        runs = [run(step, workload=workload, **changes) for step in (False, True)]
        assert (runs[0].records.table == runs[1].records.table).all()


def test_who_leaves_in_the_frontend_never_reaches_the_engine() -> None:
    """A client that gives up before its request is through takes no block and no step."""
    workload = {
        "num_requests": 5, "arrivals": {"kind": "all_at_once"}, "prompt": 100, "answer": 10, "timeout_s": 0.5,
    }  # fmt: skip
    result = run(workload=workload, frontend={"request_ms": 1000})
    assert set(result.records["finish"]) == {round(0.5e12)}
    assert not result.totals.prefill_tokens


def test_strategies_call_through_it() -> None:
    """Each branch of a strategy is a request: four problems in sequence pay four times."""
    problems = {
        "num_problems": 4, "arrivals": {"kind": "closed_loop", "concurrency": 1}, "strategies": ["single_pass"],
    }  # fmt: skip
    data = {
        "model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STEP, "problems": problems,
        "engine": {"async_scheduling": False},
    }  # fmt: skip
    plain, slow = (
        simulate(parse_scenario(data | extra)) for extra in ({}, {"frontend": {"request_ms": 250}})
    )
    assert slow.duration_s - plain.duration_s == pytest.approx(4 * 0.25)
