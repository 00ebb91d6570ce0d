"""Watts and joules: laws of the formula, of what a step moves, and of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.power import find_power
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.deploy import set_ups
from kvplan.simulation.energy import read_context, work_of
from kvplan.simulation.simulator import simulate
from kvplan.timing.energy import Done, PowerCosts, moved
from kvplan.timing.step import DraftedStepTime, ScaledStepTime
from kvplan.timing.work import step_work

SPEC: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B", "gpu": "h100",
    "workload": {
        "num_requests": 40, "arrivals": {"kind": "all_at_once"}, "prompt": 300, "thinking": 200, "answer": 100,
        "stop": "length",
    },
    "engine": {"max_num_seqs": 64, "max_model_len": 8192},
}  # fmt: skip


def spec(**workload: Any) -> Any:
    return parse_scenario(SPEC | {"workload": SPEC["workload"] | workload})


def test_watts_rise_with_work_up_to_the_board_s() -> None:
    costs = PowerCosts(700, 400, 50, 200, 400)
    idle = costs.watts(0, 0, 0)
    assert idle == 400
    assert idle < costs.watts(0.5, 0, 0) < costs.watts(0.5, 0.5, 0) < costs.watts(0.5, 0.5, 0.04) <= 700
    assert costs.watts(1, 1, 1) == 700


def test_a_step_moves_its_weights_and_its_contexts() -> None:
    """Dense: weights once a step; 2 FLOPs a weight and token; a window reads no more than itself."""
    model = load_model("Qwen/Qwen3-8B")
    work = step_work(model)
    weights, kv, flops = moved(work, Done(10, 80, 80, 80, 80 * 1000.0))
    assert weights == 10 * (work.dense_bytes + work.head_bytes)
    assert kv == 80 * 1000 * sum(a.num_layers * a.kv_bytes_per_token for a in work.attention)
    assert flops > 80 * (work.dense_flops + work.head_flops)
    assert moved(work, Done(0, 0, 0, 0, 0.0)) == (0.0, 0.0, 0.0)
    window = step_work(load_model("openai/gpt-oss-20b"))
    short, long = (moved(window, Done(1, 8, 8, 8, 8.0 * c))[1] for c in (128, 1024))
    assert short < long < 8 * short
    few, many = (moved(window, Done(1, n, n, n, 0.0))[0] for n in (1, 64))
    assert few < many < 64 * few


def test_every_card_with_a_board_power_has_watts() -> None:
    for name in ("h100", "b200", "h200", "a100-80gb", "rtx-4090", "mi300x"):
        power = find_power(get_gpu(name))
        assert power is not None
        assert 0 < power.costs.idle < power.costs.tdp
        assert power.low < 1 < power.high
        assert ("assumed" in power.source) == (name not in ("h100", "b200"))
    assert find_power(get_gpu("t4")) is None


def test_contexts_are_those_of_the_records() -> None:
    """One request alone: its prompt and each token before, once a decode."""
    records = simulate(spec(num_requests=1)).records
    assert read_context(records) == sum(300 + i for i in range(1, 300))


def test_a_run_s_joules_are_watts_times_time() -> None:
    """Between idle and the board's; standing by costs too; kWh and grams follow."""
    busy, slow = simulate(spec()), simulate(spec(arrivals={"kind": "poisson", "rate": 0.05}))
    idle, tdp = 408, 700
    for result in (busy, slow):
        document = result.to_dict()
        found = document["energy"]
        assert idle < found["mean_watts"] < tdp
        tokens = document["total_output_tokens"]
        assert found["joules_per_output_token"] == pytest.approx(
            found["mean_watts"] * result.duration_s / tokens
        )
        assert found["kwh_per_million_output_tokens"] == pytest.approx(
            found["joules_per_output_token"] / 3.6 * 1.2
        )
        assert found["gco2_per_million_output_tokens"] == pytest.approx(
            found["kwh_per_million_output_tokens"] * 473
        )
    assert busy.energy is not None
    assert slow.energy is not None
    assert busy.energy.mean_watts > slow.energy.mean_watts
    assert (
        busy.to_dict()["energy"]["joules_per_output_token"]
        < slow.to_dict()["energy"]["joules_per_output_token"]
    )


def test_leaping_and_stepping_draw_the_same() -> None:
    leap, step = (simulate(spec(), step_by_step=by_step).energy for by_step in (False, True))
    assert leap == step


def test_what_cannot_be_told_is_null() -> None:
    """Stated steps say nothing of work; a card without a board power draws nobody knows what."""
    for more in ({"step_time": {"fixed_us": 9000}}, {"gpu": "t4", "model": "Qwen/Qwen2.5-0.5B-Instruct"}):
        document = simulate(parse_scenario(SPEC | more)).to_dict()
        assert document["energy"]["mean_watts"] is None
        assert document["energy"].keys() >= {"joules_per_output_token", "source"}


def test_work_is_found_behind_drafts_and_ends() -> None:
    time = set_ups(parse_scenario(SPEC))[""].step_time
    work = work_of(time)
    assert work is not None
    assert work_of(ScaledStepTime(DraftedStepTime(time, time, 2), 1.1)) is work


def test_a_mixture_s_lone_rank_reads_fewer_experts() -> None:
    alone = step_work(load_model("Qwen/Qwen3-30B-A3B-Thinking-2507"))
    spread = step_work(load_model("Qwen/Qwen3-30B-A3B-Thinking-2507"), tensor_parallel_size=4)
    done = Done(1, 4, 4, 4, 0.0)
    assert moved(spread, done)[0] < moved(alone, done)[0] / 3
    assert replace(alone, pipeline_stages=2).pipeline_stages == 2
    assert moved(replace(alone, pipeline_stages=2), done)[0] == moved(alone, done)[0] / 2
