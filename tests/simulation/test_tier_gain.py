"""What a tier buys: the same requests with and without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.simulation.bench_report import bench_text
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate
from kvplan.simulation.tier_gain import COMPARED, add_tier_gain, side, tier_advice, without_tier

TOLD: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "h100",
    "engine": {
        "max_model_len": 4096, "num_gpu_blocks_override": 400, "kv_offloading_size": 20, "max_num_seqs": 4,
    },
    "kv_offloading": {"gb_s": 25},
    "step_time": {"fixed_us": 5000, "per_prefill_token_us": 50},
    "workload": {
        "num_requests": 14,
        "arrivals": {"kind": "poisson", "rate": 3},
        "prompt": {"kind": "uniform", "low": 600, "high": 1400},
        "answer": {"kind": "uniform", "low": 20, "high": 80},
        "session": {"turns": {"kind": "constant", "value": 3}, "pause_s": 8},
    },
}  # fmt: skip


def compared(scenario: Scenario) -> Result:
    result = simulate(scenario)
    add_tier_gain(scenario, result)
    return result


def test_both_sides_are_runs_of_the_same_requests() -> None:
    """One side is the result's own, the other what the scenario without a tier gives, figure by figure."""
    scenario = parse_scenario(TOLD)
    result = compared(scenario)
    both = result.offload_comparison
    assert both is not None
    assert both["with"] == side(result)
    told = TOLD | {"engine": {**TOLD["engine"], "kv_offloading_size": None}, "kv_offloading": {}}
    plain = simulate(parse_scenario(told))
    assert both["without"] == side(plain)
    assert both["without"]["loaded_tokens"] == 0 < both["with"]["loaded_tokens"]
    assert set(both["with"]) == {"loaded_tokens", *COMPARED}
    assert result.to_dict()["offload_comparison"] == both
    assert any(text.startswith("the tier pays:") for text in result.advice)


def test_a_link_that_is_too_slow_is_told() -> None:
    """A load is taken however slow it is: first tokens come later than without a tier, and the advice says so."""
    result = compared(parse_scenario(TOLD | {"kv_offloading": {"gb_s": 0.5}}))
    both = result.offload_comparison
    assert both is not None
    assert both["with"]["mean_ttft_ms"] > both["without"]["mean_ttft_ms"]
    assert any("copies take longer than computing" in text for text in result.advice)


@pytest.mark.parametrize(
    ("ttft", "busy", "said"),
    [
        (100.0, 50.0, "the tier buys nothing at this load"),
        (99.0, 50.5, "the tier buys nothing at this load"),
        (97.0, 50.0, "the tier pays"),
        (100.0, 48.0, "the tier pays"),
        (103.0, 48.0, "the tier saves GPU time, yet"),
        (103.0, 50.0, "the tier makes it worse"),
    ],
)
def test_advice_follows_from_the_figures(ttft: float, busy: float, said: str) -> None:
    """Against 100 ms and 50 s without a tier."""
    old = {"loaded_tokens": 0, **dict.fromkeys(COMPARED, 1.0), "mean_ttft_ms": 100.0, "busy_s": 50.0}
    new = old | {"loaded_tokens": 9, "mean_ttft_ms": ttft, "busy_s": busy}
    result = replace(simulate(parse_scenario(TOLD)), offload_comparison={"with": new, "without": old})
    assert [text.startswith(said) for text in tier_advice(result)] == [True]


def test_without_a_tier_nothing_is_compared() -> None:
    """The key is there all the same."""
    plain = without_tier(parse_scenario(TOLD))
    result = compared(plain)
    assert result.to_dict()["offload_comparison"] is None
    assert "With the tier" not in bench_text(result)
    assert "With the tier and without" in bench_text(compared(parse_scenario(TOLD)))


def test_the_tier_of_a_further_model() -> None:
    """A tier that only another model of the run has is compared and advised on like the first one's."""
    main = {key: value for key, value in TOLD.items() if key != "kv_offloading"}
    main["engine"] = TOLD["engine"] | {"kv_offloading_size": None}
    other = {key: TOLD[key] for key in ("model", "gpu", "engine", "step_time")}
    scenario = parse_scenario(main | {"models": {"second": other}})
    assert all(d.engine.kv_offloading_size is None for d in without_tier(scenario).deployments.values())
    result = compared(scenario)
    assert result.offload_comparison is not None
    assert any("kv_offloading_size 20" in text for text in result.advice)
