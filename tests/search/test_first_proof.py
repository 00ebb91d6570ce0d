"""A trial that stops at the first proof of a miss says what the whole one would say, sooner."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from kvplan.scenario.schema import parse_scenario
from kvplan.search.highest_load import LoadTest
from kvplan.search.point_row import CUT, run_point
from kvplan.simulation.simulator import simulate

STEP = {"fixed_us": 8000, "per_sequence_us": 20, "per_context_token_ns": 65, "per_prefill_token_us": 30}
ENGINE = {"num_gpu_blocks_override": 400, "max_model_len": 4096, "max_num_seqs": 16}
SMALL = {"model": "Qwen/Qwen3-0.6B", "gpu": "l4", "step_time": STEP, "engine": ENGINE}


def loaded(rng: Random) -> dict[str, Any]:
    """A load near what the engine sustains, with one target or several, of one class or two."""
    lengths = {"kind": "lognormal", "sigma": 0.7, "high": 900}
    targets = {
        "ttft_ms": rng.choice([300, 3000]), "ttfvt_ms": rng.choice([2000, 6000]),
        "tpot_ms": rng.choice([9.3, 12]), "e2el_ms": rng.choice([4000, 10_000]),
    }  # fmt: skip
    slo = {name: targets[name] for name in rng.sample(list(targets), rng.randint(1, 3))}
    own = {
        "prompt": lengths | {"median": 150}, "thinking": lengths | {"median": 60}, "answer": lengths | {"median": 60},
        **rng.choice([{}, {"timeout_s": 15}]),
    }  # fmt: skip
    arrivals = rng.choice(
        [{"kind": "poisson", "rate": rng.choice([3, 8, 20])}, {"kind": "closed_loop", "concurrency": 20}]
    )
    work: dict[str, Any] = {"num_requests": 120, "seed": rng.randrange(1000), "arrivals": arrivals}
    if rng.random() < 0.5:
        work["classes"] = {"a": own | {"slo": slo | {"share": 0.9}}, "b": own}
    else:
        work |= own
    return {**SMALL, "workload": work, "slo": slo | {"share": rng.choice([0.5, 0.9, 0.99])}}


def test_a_miss_is_a_miss() -> None:
    """Stopped exactly where the whole run misses its targets; otherwise the runs are one."""
    seen = set()
    for seed in range(40):
        scenario = parse_scenario(loaded(Random(seed)))
        whole, short = run_point(scenario), run_point(scenario, stop_when_missed=True)
        assert (short is CUT) == (whole["slo_met"] is False)
        assert short is CUT or short == whole
        seen.add(short is CUT)
    assert seen == {True, False}


def test_a_stopped_run_is_shorter() -> None:
    data = {**SMALL, "slo": {"ttft_ms": 200, "share": 0.99}}
    load = {"num_requests": 400, "arrivals": {"kind": "poisson", "rate": 50}, "prompt": 300, "answer": 200}
    scenario = parse_scenario({**data, "workload": load})
    whole, short = simulate(scenario), simulate(scenario, stop_when_missed=True)
    assert (whole.verdict, short.verdict) == ("completed", "missed")
    assert short.slo_met is False
    assert short.totals.steps < 0.2 * whole.totals.steps


@pytest.mark.parametrize("concurrency", [1, 64])
def test_problems_that_are_late(concurrency: int) -> None:
    """Whole problems are in time or late, whatever their branches are."""
    problems = {
        "num_problems": 64, "arrivals": {"kind": "closed_loop", "concurrency": concurrency},
        "quality": {"thinking_tokens": 300, "answer_tokens": 20}, "prompt": 100,
        "strategies": [{"strategy": "self_consistency", "n": 4}],
    }  # fmt: skip
    scenario = parse_scenario({**SMALL, "problems": problems, "slo": {"e2el_ms": 9000, "share": 0.8}})
    whole, short = run_point(scenario), run_point(scenario, stop_when_missed=True)
    assert whole["slo_met"] is (concurrency == 1)
    assert (short is CUT) == (not whole["slo_met"])
    assert short is CUT or short == whole


def test_a_deadline_that_has_passed() -> None:
    """A batch that is not done by its deadline is missed; the whole trial has its figures."""
    load = {"num_requests": 10, "prompt": 300, "answer": 200, "arrivals": {"kind": "all_at_once"}}
    test = LoadTest(parse_scenario({**SMALL, "workload": load}), "batch", deadline_s=5.0)
    few, many = test.try_load(10), test.try_load(300)
    assert few.met
    assert not many.met
    assert many.row is CUT
    whole = test.whole(many)
    assert whole.row["duration_s"] > 5
    assert whole.row == run_point(test.at(300))
    assert test.whole(few) is few


def test_who_still_waits_is_late() -> None:
    """A queue that grows is seen by who has no first token yet when it is due, not only once they have ended."""
    data = {**SMALL, "slo": {"ttft_ms": 1000, "share": 0.9}}
    load = {"num_requests": 300, "arrivals": {"kind": "poisson", "rate": 6}, "prompt": 300, "answer": 1500}
    scenario = parse_scenario({**data, "workload": load})
    whole, short = simulate(scenario), simulate(scenario, stop_when_missed=True)
    assert (whole.verdict, short.verdict) == ("completed", "missed")
    first = whole.records.seconds("first_token") - whole.records.seconds("arrival")
    assert (first > 1).sum() > 30
    assert short.records.completed.sum() < 30  # fewer have ended than must be late
