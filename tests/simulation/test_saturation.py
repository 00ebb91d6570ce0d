"""How near a load is to saturation: in closed form, beside queues that are simulated."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate

STEP = {"fixed_us": 5000, "per_sequence_us": 20, "per_context_token_ns": 10, "per_prefill_token_us": 20}


def run(rate: float, num: int = 600, **changes: Any) -> Result:
    workload = {
        "num_requests": num, "arrivals": {"kind": "poisson", "rate": rate},
        "prompt": {"kind": "uniform", "low": 100, "high": 1000}, "answer": {"kind": "uniform", "low": 100, "high": 300},
    }  # fmt: skip
    engine = {"max_num_seqs": 64}
    data = {
        "model": "Qwen/Qwen3-8B",
        "gpu": "h100",
        "step_time": STEP,
        "workload": workload,
        "engine": engine,
    }
    return simulate(parse_scenario(data | changes))


def share(found: Result) -> float:
    assert found.load_share is not None
    return found.load_share


def test_below_saturation_nobody_waits_long_and_above_it_the_queue_grows_with_the_run() -> None:
    """At 0.8 of it requests wait a few steps; at 1.25 twice as many requests wait twice as long."""
    unit = 20 / share(run(20.0))
    calm, some, more = run(0.8 * unit), run(1.25 * unit, 600), run(1.25 * unit, 1200)
    assert share(calm) == pytest.approx(0.8, abs=0.05)
    assert calm.summaries()["queue"].mean < 50
    queues = [found.summaries()["queue"].mean for found in (some, more)]
    assert queues[0] > 500
    assert queues[1] == pytest.approx(2 * queues[0], rel=0.25)


def test_a_load_near_it_is_said() -> None:
    unit = 20 / share(run(20.0))
    notes = {part: run(part * unit).to_dict()["notes"] for part in (0.5, 1.0, 1.5)}
    assert [any("of saturation" in text for text in notes[part]) for part in notes] == [False, True, False]


def test_twice_the_replicas_sustain_twice_the_load() -> None:
    assert share(run(20.0, replicas=2)) == pytest.approx(share(run(20.0)) / 2)


def test_closed_loops_have_none() -> None:
    """They send what is served."""
    loop = {
        "num_requests": 20,
        "arrivals": {"kind": "closed_loop", "concurrency": 4},
        "prompt": 10,
        "answer": 10,
    }
    found = run(1.0, workload=loop)
    assert found.load_share is None
    assert found.to_dict()["load_share"] is None
