"""What a tier buys: the same requests with and without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvplan.scenario.schema import Scenario, load_scenario, parse_scenario
from kvplan.simulation.bench_report import bench_text
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate
from kvplan.simulation.tier_gain import (
    COMPARED,
    add_tier_gain,
    files_advice,
    side,
    tier_advice,
    without_tier,
)

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


def with_files(**drive: float) -> dict[str, Any]:
    """Host memory that forgets most of what returns, files below it."""
    engine = {**TOLD["engine"], "kv_offloading_size": 0.5}
    kept = {"gb_s": 25, "spec_name": "TieringOffloadingSpec", "secondary_tiers": [drive]}
    return TOLD | {"engine": engine, "kv_offloading": kept}


def test_files_have_a_third_side() -> None:
    """It is the run with host memory alone, however the files were asked for; files that are quick pay beside it."""
    told = with_files(read_gb_s=50, write_gb_s=50)
    result = compared(parse_scenario(told))
    sides = result.offload_comparison
    assert sides is not None
    host = simulate(parse_scenario(told | {"kv_offloading": {"gb_s": 25}}))
    assert sides["without_files"] == side(host)
    assert sides["with"]["prefill_tokens"] < sides["without_files"]["prefill_tokens"]
    assert sides["with"]["mean_ttft_ms"] < sides["without_files"]["mean_ttft_ms"]
    assert any(text.startswith("the files below host memory pay:") for text in result.advice)
    assert "host only" in bench_text(result)
    extra = {
        "cpu_bytes_to_use": 2**29,
        "spec_name": "TieringOffloadingSpec",
        "secondary_tiers": [{"type": "fs", "root_dir": "/f"}],
    }
    flag = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
    engine = {**TOLD["engine"], "kv_offloading_size": None, "kv_transfer_config": flag}
    asked = compared(parse_scenario(TOLD | {"engine": engine}))
    assert asked.offload_comparison is not None
    assert asked.offload_comparison["without_files"] == side(host)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (with_files(read_gb_s=0.3), "the files below host memory save GPU time, yet first tokens come later"),
        (
            with_files() | {"engine": {**TOLD["engine"], "kv_offloading_size": 20}},
            "the files below host memory buy nothing at this load: none was ever read",
        ),
    ],
    ids=["slow", "never read"],
)
def test_files_that_do_not_pay_are_told(told: dict[str, Any], said: str) -> None:
    """Those that are slower than computing, and those below a host memory that holds all that returns."""
    result = compared(parse_scenario(told))
    assert any(text.startswith(said) for text in result.advice)
    sides, offload = result.offload_comparison, result.offload
    assert sides is not None
    assert offload is not None
    unread = not offload["file_tiers"][0]["read_bytes"]
    assert unread == ("none was ever read" in said)
    later = sides["with"]["mean_ttft_ms"] > 1.02 * sides["without_files"]["mean_ttft_ms"]
    assert later == any(
        "longer than computing;" in text or "holds requests up" in text for text in result.advice
    )


def test_files_keep_what_host_memory_loses() -> None:
    """Host memory alone is advised to be larger or to store less; above files, which take no threshold, it is not."""
    told = with_files(read_gb_s=50)
    told["engine"]["kv_offloading_size"] = 1
    alone = simulate(parse_scenario(told | {"kv_offloading": {"gb_s": 25}}))
    above = simulate(parse_scenario(told))
    for ran, is_told in ((alone, True), (above, False)):
        assert ran.offload is not None
        assert ran.offload["evicted_chunks"] > ran.offload["stored_chunks"] / 2
        assert any("store_threshold" in text for text in ran.advice) == is_told
    told["engine"]["kv_offloading_size"] = 0.5
    small = simulate(parse_scenario(told | {"kv_offloading": {"gb_s": 25}}))
    assert small.offload is not None
    assert small.offload["lookup_hits"] == 0 < small.offload["evicted_chunks"]
    assert any("lost most of what it stored" in text for text in small.advice)


@pytest.mark.parametrize(
    ("drive", "verb"), [("nvme5", "pay:"), ("cephfs", "save GPU time, yet first tokens come")]
)
def test_chats_after_lunch_with_more_kv_than_host_memory(drive: str, verb: str) -> None:
    """As the scenario's first lines say: files pay on a fast drive, and over a slow network first tokens come later."""
    told = ["workload.num_requests=36", "engine.kv_offloading_size=4", "workload.session.pause_s=300",
            "engine.num_gpu_blocks_override=6000", f"kv_offloading.secondary_tiers=[{{drive: {drive}}}]"]  # fmt: skip
    result = compared(load_scenario("offload_files", told))
    assert any(text.startswith(f"the files below host memory {verb}") for text in result.advice)


@pytest.mark.parametrize(
    ("ttft", "busy", "said"),
    [(99.0, 50.5, "buy nothing"), (97.0, 50.0, "pay:"), (103.0, 48.0, "save GPU time"), (103.0, 50.0, "make it worse")],
)  # fmt: skip
def test_advice_on_files_follows_from_the_figures(ttft: float, busy: float, said: str) -> None:
    """Against 100 ms and 50 s with host memory alone, whatever no tier at all gives."""
    old = {"loaded_tokens": 0, **dict.fromkeys(COMPARED, 1.0), "mean_ttft_ms": 100.0, "busy_s": 50.0}
    new = old | {"loaded_tokens": 9, "mean_ttft_ms": ttft, "busy_s": busy}
    plain = old | {"mean_ttft_ms": 1.0, "busy_s": 1.0}
    ran = simulate(parse_scenario(with_files(read_gb_s=50)))
    result = replace(ran, offload_comparison={"with": new, "without_files": old, "without": plain})
    assert [text.startswith(f"the files below host memory {said}") for text in files_advice(result)] == [True]


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
