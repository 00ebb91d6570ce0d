"""How far step times may be off: ranges from models left out, through the queue, and what they do to decisions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kvplan.cli.main import run
from kvplan.engines.flags import parse_engine
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.doubt import UNMEASURED, UNSEEN_ENGINE, StepErrors, all_errors, find_doubt
from kvplan.profiles.profile import load_profile
from kvplan.profiles.step_times import make_step_times
from kvplan.scenario.schema import parse_scenario
from kvplan.scenario.space import Search
from kvplan.search.recommendation import Candidate, tie
from kvplan.simulation.deploy import set_ups
from kvplan.simulation.simulator import simulate
from kvplan.simulation.uncertainty import ranges, watts_doubt
from kvplan.timing.step import ScaledStepTime, StepShape

DENSE, MIXTURE = load_model("Qwen/Qwen3-8B"), load_model("openai/gpt-oss-120b")
SPEC: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B", "gpu": "h100",
    "workload": {
        "num_requests": 60, "arrivals": {"kind": "poisson", "rate": 2}, "prompt": 300, "thinking": 200, "answer": 100,
    },
    "engine": {"max_num_seqs": 16, "max_model_len": 8192},
}  # fmt: skip


def test_every_regime_holds_one_and_says_where_from() -> None:
    """A range holds its own prediction, and rests on more than one family."""
    for row in all_errors():
        assert row.low < 1 < row.high
        assert row.num_families > 2
        assert len(row.source) > 20


@pytest.mark.parametrize(
    ("profile", "engine", "model", "points"),
    [
        ("h100-sxm-vllm", "vllm@0.11", DENSE, "ML.ENERGY"), ("h100-sxm-vllm", "vllm@0.32", MIXTURE, "silicon"),
        ("h200-sglang", "sglang", DENSE, "silicon"), ("rtx-4090-vllm", "vllm@0.32", DENSE, "LLMServingSim"),
    ],
)  # fmt: skip
def test_the_regime_follows_engine_version_and_class(
    profile: str, engine: str, model: Any, points: str
) -> None:
    timing = load_profile(profile).timing
    assert timing is not None
    assert points in find_doubt(timing, parse_engine(engine), model, is_own_card=True).why


def test_what_nobody_measured_is_wide() -> None:
    timing = load_profile("h100-sxm-vllm").timing
    assert timing is not None
    assert find_doubt(timing, parse_engine("vllm"), DENSE, is_own_card=False) == UNMEASURED
    assert find_doubt(timing, parse_engine("vllm@0.8"), DENSE, is_own_card=True) == UNSEEN_ENGINE
    narrow = make_step_times(DENSE, get_gpu("h100")).doubt
    for gpu, profile in (("h800", None), ("h100", "h200-vllm")):
        found = make_step_times(DENSE, get_gpu(gpu), profile=profile).doubt
        assert found.low < narrow.low < 1 < narrow.high < found.high


@pytest.mark.parametrize("factor", [0.83, 1.0, 1.2345])
def test_scaled_steps_leap_as_they_step(factor: float) -> None:
    """A decode step is its line, at every context and across knots, its slope in whole picoseconds; others scale."""
    time = make_step_times(load_model("google/gemma-3-27b-it"), get_gpu("h100")).time
    scaled = ScaledStepTime(time, factor)
    for context in (0, 16, 1000, 16384, 16385, 200_000, 10_000_000):
        a, b, limit = scaled.decode_line(16, context)
        assert scaled.ticks(StepShape(16, 16, context)) == a + b * context
        assert limit == time.decode_line(16, context)[2]
        assert a + b * context == pytest.approx(factor * time.ticks(StepShape(16, 16, context)), rel=1e-5)
    mixed = StepShape(516, 16, 8000, 500, 1, 125_000.0)
    assert scaled.ticks(mixed) == pytest.approx(factor * time.ticks(mixed), abs=1)


def test_prompts_scale_apart() -> None:
    """What prompts add to the decodes of a step takes its own factor, all of a step without decodes does."""
    time = make_step_times(load_model("google/gemma-3-27b-it"), get_gpu("h100")).time
    scaled = ScaledStepTime(time, 1.1, 2.0)
    decodes, prompts = StepShape(16, 16, 8000), StepShape(500, 0, 0, 500, 1, 125_000.0)
    mixed = StepShape(516, 16, 8000, 500, 1, 125_000.0)
    alone = time.ticks(decodes)
    assert scaled.ticks(decodes) == pytest.approx(1.1 * alone, rel=1e-5)
    assert scaled.ticks(prompts) == pytest.approx(2 * time.ticks(prompts), abs=1)
    assert scaled.ticks(mixed) == pytest.approx(1.1 * alone + 2 * (time.ticks(mixed) - alone), abs=1)
    same = ScaledStepTime(time, 1.1, 1.1)
    assert same.ticks(mixed) == pytest.approx(ScaledStepTime(time, 1.1).ticks(mixed), abs=1)


@pytest.mark.parametrize("row", all_errors(), ids=lambda row: f"{row.engine}-{row.kind}-{row.evidence}")
def test_first_tokens_are_less_sure_than_decodes(row: StepErrors) -> None:
    """In every regime; TTFT's range follows it through the queue."""
    assert row.prompt_high / row.prompt_low > row.high / row.low


def test_a_range_holds_the_run_and_its_ends() -> None:
    """Latencies lie between the ends, tokens a second too; a queue makes more of the slow end than the step has."""
    scenario = parse_scenario(
        SPEC | {"workload": SPEC["workload"] | {"arrivals": {"kind": "poisson", "rate": 6}}}
    )
    setups = set_ups(scenario)
    result = simulate(scenario, setups=setups)
    found = ranges(scenario, setups, result)
    assert found is not None
    document = result.to_dict()
    document |= document["cost"] | document["energy"]
    for name, (low, high) in found.figures.items():
        assert low <= document[name] <= high
    assert {"usd_per_million_output_tokens", "joules_per_output_token"} <= found.figures.keys()
    setup = setups[""]
    tpot = found.figures["mean_tpot_ms"]
    assert tpot[0] < document["mean_tpot_ms"] < tpot[1]
    assert found.figures["mean_ttft_ms"][1] / document["mean_ttft_ms"] > setup.prompt_doubt[1]
    ends = [
        replace(setup, step_time=ScaledStepTime(setup.step_time, *end), api=api)
        for *end, api in zip(setup.doubt, setup.prompt_doubt, setup.api_ends, strict=True)
    ]
    runs = [simulate(scenario, setups={"": end}) for end in ends]
    assert tpot[1] == max(run.to_dict()["mean_tpot_ms"] for run in runs)


def test_stated_steps_have_no_doubt() -> None:
    scenario = parse_scenario(SPEC | {"step_time": {"fixed_us": 10_000}})
    setups = set_ups(scenario)
    assert setups[""].doubt == (1.0, 1.0)
    assert ranges(scenario, setups, simulate(scenario, setups=setups)) is None


def test_a_verdict_that_the_ends_do_not_share_is_unsure() -> None:
    """A target just met is missed at the slow end; one far away is not."""
    plain = simulate(parse_scenario(SPEC)).latencies.tpot.max()
    for limit, unsure in ((plain * 1.02, True), (plain * 3, False)):
        scenario = parse_scenario(SPEC | {"slo": {"tpot_ms": float(limit), "share": 1.0}})
        setups = set_ups(scenario)
        result = simulate(scenario, setups=setups)
        assert result.slo_met
        found = ranges(scenario, setups, result)
        assert found is not None
        assert any("missed at the slow end" in text for text in found.flips) == unsure


def test_the_command_gives_low_and_high(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(SPEC))
    assert run(["simulate", str(path), "--quiet"]) == 0
    assert "Range (90 %: step times" in capsys.readouterr().out
    assert run(["simulate", str(path), "--quiet", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    low, high = document["intervals"]["mean_tpot_ms"]
    assert low < document["mean_tpot_ms"] < high
    assert run(["simulate", str(path), "--quiet", "--json", "--no-range"]) == 0
    assert json.loads(capsys.readouterr().out)["intervals"] is None


def candidate(gpu: str, step_time: str, copies: tuple[int, int, int], usd: float) -> Candidate:
    """Copies at the quick end, as predicted, at the slow end."""
    low, middle, high = copies
    return Candidate(
        settings={"gpu": gpu}, scenario=None, feasible=True, pruned=False, cause="", why="", copies=middle,
        usd_per_hour=middle * usd, usd_per_hour_low=low * usd, usd_per_hour_high=high * usd, step_time=step_time,
        step_low=0.9, step_high=1.2, figures={"mean_tpot_ms": 20.0, "mean_batch_size": 64.0},
    )  # fmt: skip


def test_ranks_that_the_error_could_turn_are_ties() -> None:
    """11 copies of one card or 6 of another at nearly the same price; what would settle it is named."""
    asked = Search(users=100)
    first, second = candidate("a", "p", (10, 11, 12), 1.0), candidate("b", "q", (5, 6, 7), 2.0)
    said = tie([first, second], asked)
    assert "tied with gpu b" in said
    assert "time per output token of gpu a at 64 sequences (predicted: 20 ms, -10% to +20%)" in said
    assert tie([first], asked) == ""
    assert tie([first, replace(second, step_time="p")], asked) == ""
    assert tie([first, candidate("c", "q", (5, 6, 7), 4.0)], asked) == ""
    assert "tied" in tie([first, candidate("c", "q", (3, 6, 9), 4.0)], asked)


def test_one_profile_shares_its_error_for_one_model_only() -> None:
    """Two models that one profile times are wrong each in its own way."""
    asked = Search(rate=1)
    first, second = candidate("a", "p", (10, 11, 12), 1.0), candidate("a", "p", (5, 6, 7), 2.0)
    one, two = (replace(first, settings={"model": "m"}), replace(second, settings={"model": "n"}))
    assert tie([one, two], asked)
    assert not tie([one, replace(two, settings={"model": "m"})], asked)


def test_no_load_at_the_slow_end_costs_any_price() -> None:
    lost = replace(candidate("a", "p", (10, 11, 12), 1.0), usd_per_hour_high=None)
    assert lost.pessimistic_cost(Search(rate=1)) == float("inf")
    assert "no load at all" in tie([lost, candidate("b", "q", (5, 6, 7), 2.0)], Search(rate=1))


def test_watts_add_their_own_doubt_in_quadrature() -> None:
    """J/token of a run: at least as wide as watts alone, narrower than both ranges multiplied."""
    scenario = parse_scenario(SPEC)
    setups = set_ups(scenario)
    result = simulate(scenario, setups=setups)
    found = ranges(scenario, setups, result)
    assert found is not None
    value = result.to_dict()["energy"]["joules_per_output_token"]
    assert found.figures["mean_watts"][1] <= 700
    low, high = (end / value for end in found.figures["joules_per_output_token"])
    own, (quick, slow) = watts_doubt(setups), setups[""].doubt
    assert own[0] * quick < low <= own[0]
    assert own[1] <= high < own[1] * slow


def test_an_overload_that_the_ends_do_not_share_is_unsure() -> None:
    """At the load where queues begin to grow, the slow end is overloaded."""
    said = set()
    for rate in (8, 9, 10, 11, 12):
        work = SPEC["workload"] | {"arrivals": {"kind": "poisson", "rate": rate}, "num_requests": 150}
        scenario = parse_scenario(SPEC | {"workload": work})
        setups = set_ups(scenario)
        found = ranges(scenario, setups, simulate(scenario, setups=setups))
        assert found is not None
        said |= {text for text in found.flips if "overloaded" in text}
    assert any("slow end of the step's range overloaded" in text for text in said)


def test_a_range_is_wider_outside_of_what_was_measured() -> None:
    """Contexts that the profile's tables do not reach: twice as far in logarithms, and the text says why."""
    steps = SPEC | {"frontend": "none"}
    far = parse_scenario(steps | {
        "model": "Qwen/Qwen3-8B", "gpu": "rtx-4090", "engine": {"max_num_seqs": 4, "max_model_len": 32768},
        "workload": {"num_requests": 4, "arrivals": {"kind": "all_at_once"}, "prompt": 30_000, "answer": 300},
    })  # fmt: skip
    work = SPEC["workload"] | {"arrivals": {"kind": "all_at_once"}, "num_requests": 16}
    near = parse_scenario(steps | {"gpu": "rtx-4090", "workload": work})
    spans = []
    for scenario in (near, far):
        setups = set_ups(scenario)
        for keep in (True, False):
            result = simulate(scenario, setups=setups, keep_samples=keep)
            assert result.is_extrapolated == (scenario is far)
        found = ranges(scenario, setups, result)
        assert found is not None
        assert ("outside of what was measured" in found.what) == (scenario is far)
        spans.append(found.figures["mean_tpot_ms"][1] / result.to_dict()["mean_tpot_ms"])
    doubt = set_ups(near)[""].doubt
    for span, factor in zip(spans, (doubt[1], doubt[1] ** 2), strict=True):
        assert factor * 0.999 <= span <= factor * 1.01  # few steps of a decode hold somebody's prompt too
