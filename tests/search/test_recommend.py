"""Recommendations: never worse than trying everything, and an answer when there is none."""

from __future__ import annotations

import json
from math import ceil, inf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import Scenario, load_scenario, parse_scenario
from kvplan.scenario.space import Search
from kvplan.search.candidates import make_load_test, range_over, share_of, total_load
from kvplan.search.day_plan import day_shares, plan_day
from kvplan.search.execution import Execution
from kvplan.search.grid import make_axes, make_points, read_base, settings_text
from kvplan.search.lift import find_lifts
from kvplan.search.point_row import run_point
from kvplan.search.recommendation import Candidate, Recommendation
from kvplan.search.recommending import cost_key, recommend
from kvplan.simulation.uncertainty import find_ends

WORKLOAD = {
    "num_requests": 40,
    "arrivals": {"kind": "poisson", "rate": 1.0},
    "prompt": {"kind": "lognormal", "median": 300, "sigma": 0.7, "high": 2000},
    "thinking": {"kind": "lognormal", "median": 700, "sigma": 0.6, "high": 3000},
    "answer": 120,
}
BASE: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "l40s",
    "engine": {"max_model_len": 8192},
    "workload": WORKLOAD,
    "slo": {"e2el_ms": 90000, "share": 0.95},
    "search": {
        "rate": 1.0,
        "span": 1,
        "seeds": 1,
        "over": {
            "gpu": ["l40s", "h100"],
            "engine.tensor_parallel_size": [1, 2],
            "engine.max_num_seqs": [8, 32],
            "workload.max_tokens": [1000, 4000],
        },
    },
}
SOLVING: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "h100",
    "engine": {"max_model_len": 12288},
    "problems": {
        "num_problems": 8,
        "arrivals": {"kind": "poisson", "rate": 1.0},
        "quality": {
            "name": "test", "source": "assumed", "assumed": ["difficulty"], "thinking_tokens": 1500,
            "sigma_within": 0.3, "sigma_between": 0.3, "answer_tokens": 100,
        },
        "min_accuracy": 0.3,
    },
    "slo": {"e2el_ms": 60000, "share": 0.9},
    "search": {
        "rate": 0.5,
        "span": 1,
        "seeds": 1,
        "over": {
            "problems.strategies": [
                ["single_pass"],
                [{"strategy": "extended_thinking", "thinking_token_budget": 800}],
                [{"strategy": "best_of_n", "n": 4}],
            ],
            "engine.tensor_parallel_size": [1, 2],
            "engine.kv_cache_dtype": ["auto", "fp8"],
        },
    },
}  # fmt: skip


TIGHT: dict[str, Any] = {
    **BASE,
    "engine": {"max_model_len": 32768},
    "slo": {"e2el_ms": 45000, "share": 0.9},
    "search": {
        "rate": 4.0,
        "span": 1,
        "seeds": 1,
        "max_gpus": 4,
        "over": {
            "workload.max_tokens": [500, 2000],
            "gpu": ["h100", "l40s", "l4", "t4"],
            "engine.tensor_parallel_size": [1, 2],
            "engine.kv_cache_dtype": ["auto", "fp8"],
            "engine.max_num_seqs": [8],
        },
    },
}
"""A T4 does not hold the model, an L4 is too slow, four GPUs are few."""


def changed(base: dict[str, Any], **search: Any) -> dict[str, Any]:
    return {**base, "search": {**base["search"], **search}}


# --- the ranking ------------------------------------------------------------------------------------------


def brute_force(data: dict[str, Any], most: int) -> dict[str, tuple[int, float] | None]:
    """For each candidate the fewest copies that carry the load, by trying 1, 2, 3 ..., and what they cost an hour."""
    base = read_base(data)
    search = Search.model_validate(data["search"])
    found: dict[str, tuple[int, float] | None] = {}
    for point in make_points(base, make_axes(search.over)):
        assert point.scenario is not None
        test = make_load_test(point.scenario, search)
        problems = point.scenario.problems
        row = run_point(test.scenario) if problems else {}
        found[point.hash] = None
        if problems and row["accuracy"] < problems.min_accuracy:
            continue
        for copies in range(1, most + 1):
            load = share_of(total_load(test.scenario, search), copies, search.kind)
            row = run_point(test.at(load))
            if row["error"]:  # the engine would not start
                break
            if row["slo_met"]:
                if copies * row["num_gpus"] <= (search.max_gpus or inf):
                    found[point.hash] = copies, copies * row["usd_per_hour"]
                break
    return found


@pytest.mark.parametrize(
    ("data", "most", "causes"),
    [(BASE, 6, set()), (SOLVING, 4, set()), (TIGHT, 4, {"memory", "refused", "gpus", "time"})],
    ids=["requests", "problems", "pruned"],
)
def test_recommendations_agree_with_brute_force(data: dict[str, Any], most: int, causes: set[str]) -> None:
    """The same candidates are feasible with the same copies, so the first costs what the best of all costs.

    And what the closed form rules out, for whatever cause, is not feasible when it is tried.
    """
    tried = brute_force(data, most)
    found = recommend(changed(data, max_copies=most))
    costs = [answer[1] for answer in tried.values() if answer]
    assert found.best is not None
    assert found.best.usd_per_hour == pytest.approx(min(costs))
    assert causes <= {c.cause for c in found.candidates if c.pruned}
    by_settings = {json.dumps(c.settings): c for c in found.candidates}
    for point in make_points(read_base(data), make_axes(data["search"]["over"])):
        mine, answer = by_settings[json.dumps(point.settings)], tried[point.hash]
        assert mine.feasible == (answer is not None), point.settings
        assert not (mine.pruned and answer), point.settings
        if answer:
            assert mine.copies == answer[0], point.settings
    assert [c.feasible for c in found.candidates] == sorted(
        (c.feasible for c in found.candidates), reverse=True
    )


@pytest.fixture(scope="module")
def found() -> Recommendation:
    over = {"gpu": ["l40s", "t4"], "engine.max_num_seqs": [4], "engine.kv_cache_dtype": ["auto"]}
    data = changed(BASE, spare=1, day="reasoning-api", seeds=4, refine=1, over=over)
    return recommend(data, {"engine.kv_cache_dtype": ["auto", "fp8"]})


def test_rows_add_up(found: Recommendation) -> None:
    """Copies carry the load with their headroom; GPUs, prices and costs follow from them."""
    for c in found.candidates:
        if not c.feasible:
            assert c.why
            assert c.usd_per_hour is None
            continue
        assert c.highest is not None
        assert c.copies is not None
        assert c.copies * c.highest >= 1.0 * (1 - 1e-9)
        assert c.headroom == pytest.approx(c.copies * c.highest - 1)
        assert c.num_gpus == (c.copies + 1) * c.figures["num_gpus"]
        assert c.usd_per_hour == pytest.approx((c.copies + 1) * c.figures["usd_per_hour"])
        visible = c.figures["visible_throughput"] * c.figures["duration_s"] / c.figures["completed"]
        assert c.usd_per_million_visible_tokens == pytest.approx(c.usd_per_hour / 3600 / visible * 1e6)
        assert c.limited_by
        assert c.commands[0].startswith("vllm serve Qwen/Qwen3-8B")
    costs = [c.usd_per_hour for c in found.candidates if c.feasible]
    assert costs == sorted(costs)


def test_the_best_have_an_interval(found: Recommendation) -> None:
    """Drawn until it is narrow, at most as often as said; what the best needs follows from its low end."""
    best = found.best
    assert best is not None
    assert best.low is not None
    assert best.high is not None
    assert best.copies is not None
    assert best.low < best.high
    assert 3 <= best.num_draws <= 4
    assert best.copies * best.low >= 1.0
    assert all(c.low <= c.highest <= c.high for c in found.candidates if c.low is not None)
    assert all((c.low is None) == (c.num_draws < 2) for c in found.candidates)


def test_a_range_has_all_draws_in_it() -> None:
    """Far draws stand outside the interval of their mean, few near ones inside it: neither the row's nor the least is
    ever outside of what is said."""
    assert range_over([137.0, 113.0, 129.0, 115.0, 131.0]) == (113.0, 137.0)
    low, high = range_over([100.0, 101.0, 102.0])
    half = 2.920 / sqrt(3)  # Student's t of two degrees of freedom, times a deviation of 1
    assert (low, high) == pytest.approx((101 - half, 101 + half))
    assert range_over([6.0, 9.0]) == (6.0, 9.0)


def test_a_pareto_front_has_no_dominated_row(found: Recommendation) -> None:
    feasible = [c for c in found.candidates if c.feasible]
    for c in feasible:
        mine = np.array([c.usd_per_hour, c.figures["p99_e2el_ms"]])
        others = [np.array([o.usd_per_hour, o.figures["p99_e2el_ms"]]) for o in feasible]
        assert c.pareto == (not any((o <= mine).all() and (o < mine).any() for o in others))


def test_the_lift_is_simulated(found: Recommendation) -> None:
    """The change named carries a quarter more."""
    assert found.best is not None
    assert "1.25 times as much" in found.best.lift


def test_lifts_buy_allowed_cards_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the space names its cards, no other is proposed; where it does not, any faster one may be."""
    tried: list[str] = []

    def noted(scenarios: list[Scenario], execution: Execution, task: object) -> list[dict[str, Any]]:
        tried.extend(scenario.gpu for scenario in scenarios)
        return [{"met": False} for _ in scenarios]

    monkeypatch.setattr("kvplan.search.lift.run_scenarios", noted)
    scenario = parse_scenario({**BASE, "gpu": "l40s"})
    for gpus, other in ((["l40s", "h100"], {"h100-sxm"}), (["l40s"], set())):
        tried.clear()
        find_lifts([(scenario, 1.0)], Execution(), Search(), gpus)
        assert {gpu for gpu in tried if gpu != "l40s"} == other
        assert len(tried) > 3
    tried.clear()
    find_lifts([(scenario, 1.0)], Execution(), Search())
    assert any(gpu != "l40s" for gpu in tried)


def test_what_is_pruned_is_said(found: Recommendation) -> None:
    pruned = [c for c in found.candidates if c.pruned]
    assert pruned
    assert all(c.num_simulations == 0 and c.why for c in pruned)
    text = str(found)
    assert (
        f"never simulated, the closed form rules them out: {len(pruned)} of {len(found.candidates)}" in text
    )
    assert "run: vllm serve" in text
    assert "of them spare" in text
    table = text.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 100
    assert len(table) == 1 + sum(c.feasible for c in found.candidates)


def test_documents_and_frames(found: Recommendation) -> None:
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["num_pruned"] == found.num_pruned
    assert {tuple(row) for row in document["candidates"]} == {tuple(document["candidates"][0])}
    frame = found.to_frame()
    assert len(frame) == len(found.candidates)
    assert {"gpu", "engine.max_num_seqs", "usd_per_hour", "limited_by"} <= set(frame.columns)
    assert "vllm serve" in found._repr_html_()
    feasible = sum(c.feasible for c in found.candidates)
    assert (
        repr(found)
        == f"<Recommendation: {feasible} of {len(found.candidates)} candidates feasible; {found.reason}>"
    )


def test_as_much_as_fits_is_ranked_by_the_cost_of_visible_tokens() -> None:
    data = changed(BASE, rate=None, over={"gpu": ["l40s", "h100"], "engine.max_num_seqs": [16]})
    rows = recommend(data).candidates
    assert [c.copies for c in rows] == [1, 1]
    assert [c.headroom for c in rows] == [None, None]
    costs = [c.usd_per_million_visible_tokens for c in rows]
    assert costs == sorted(costs)


def test_disaggregated_and_tiered_fleets_are_candidates() -> None:
    """Prefill and decode replicas, and replicas of a second model, are keys like any other."""
    split = [[1, {"prefill_replicas": 1, "transfer_bytes_per_s": 50e9}], [2, None]]
    data = changed(
        BASE, rate=None, refine=0, over={"replicas+disaggregation": split, "engine.max_num_seqs": [16]}
    )
    rows = recommend(data).candidates
    assert {c.num_gpus for c in rows} == {2}
    assert all(c.feasible for c in rows)
    tiers = load_scenario(
        "fleet",
        [
            "slo={ttft_ms: 20000, share: 0.9}",
            "workload.num_requests=40",
            "search={refine: 0, span: 1, rate: 0.5, precision: 0.2}",
        ],
    )
    both: list[Candidate] = recommend(tiers, {"replicas": [2, 6]}).candidates
    assert sorted((c.num_gpus or 0) // (c.copies or 1) for c in both) == [4, 8]
    assert all(len(c.commands) == 2 for c in both)


# --- what the error of step times could turn --------------------------------------------------------------


def test_the_best_rows_are_simulated_at_the_ends_of_their_steps(found: Recommendation) -> None:
    """What the range says: its low load is sustained with slow steps, dollars follow, all others are in proportion."""
    best = found.best
    assert best is not None
    assert best.is_range_simulated
    for c in (c for c in found.candidates if c.feasible):
        assert c.highest_low < c.highest < c.highest_high
        assert c.copies_low <= c.copies <= c.copies_high
        assert c.usd_per_hour_low <= c.usd_per_hour <= c.usd_per_hour_high
        assert c.usd_per_hour_high == pytest.approx((c.copies_high + 1) * c.figures["usd_per_hour"])
        assert c.usd_per_million_visible_tokens_high >= c.usd_per_million_visible_tokens
        if c.is_range_simulated:
            assert c.figures["p99_e2el_ms_low"] < c.figures["p99_e2el_ms"] < c.figures["p99_e2el_ms_high"]
        elif c.low is None:
            assert c.highest_low == pytest.approx(c.highest / c.step_high)
    search = found.search.model_copy(update={"spare": 0})
    test = make_load_test(best.scenario, search)._replace(end=find_ends(False)[1])
    assert test.try_load(best.highest_low).met
    assert f"90 % of {settings_text(best.settings)}: copies" in str(found)


def test_robust_ranks_by_the_slow_end() -> None:
    """Cheap as predicted but doubtful comes after a little dearer and sure; what may cost any price comes last."""

    def row(low: float, usd: float, high: float | None) -> Candidate:
        return Candidate(
            settings={}, scenario=None, feasible=True, pruned=False, cause="", why="", usd_per_hour=usd,
            usd_per_hour_low=low, usd_per_hour_high=high,
        )  # fmt: skip

    rows = [row(9, 10, 20), row(11, 12, 14), row(5, 6, None)]
    for robust, order in ((False, [6, 10, 12]), (True, [12, 10, 6])):
        asked = Search(rate=1, robust=robust)
        assert [c.usd_per_hour for c in sorted(rows, key=lambda c: cost_key(c, asked))] == order


@pytest.mark.parametrize(
    ("name", "over", "changes"),
    [
        ("grpo", "gpu: [h100, h200], engine.kv_cache_dtype: [fp8]", ["search.deadline_s=150"]),
        (
            "qwq_500_users", "gpu+engine.tensor_parallel_size: [[h200, 2], [h100, 4]], engine.kv_cache_dtype: [fp8]",
            ["search.span=2", "workload.num_requests=200", "workload.arrivals.pause_s=30"],
        ),
    ],
    ids=["grpo", "qwq"],
)  # fmt: skip
def test_bundled_scenarios_that_tie_say_so(name: str, over: str, changes: list[str]) -> None:
    """H100 or H200 is a matter of a step's error; the figure that would settle it is named with its prediction."""
    quick = ["search.seeds=1", "search.refine=1", "search.precision=0.1", f"search.over={{{over}}}"]
    found = recommend(scenario(name, *changes, *quick))
    assert "; tied with gpu h" in found.reason
    settled = found.reason.partition("What settles it: the time per output token of ")[2]
    assert any(settled.startswith(settings_text(c.settings)) for c in found.candidates if c.feasible)
    assert "(predicted: " in found.reason


# --- nothing feasible, bad input -------------------------------------------------------------------------


def test_the_gpus_that_would_do_do() -> None:
    """Where only the number of GPUs is in the way, what is said to suffice suffices, and one less does not."""
    data = changed(BASE, rate=40.0, max_gpus=1, over={"engine.max_num_seqs": [32]})
    said = recommend(data).reason
    assert ", 1 GPU is allowed" in said
    gpus = int(said.partition("seqs 32: ")[2].partition(" GPUs")[0])
    assert recommend(changed(data, max_gpus=gpus)).best is not None
    assert recommend(changed(data, max_gpus=gpus - 1)).best is None


def test_an_interrupt_keeps_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it comes after the last candidate, while lifts are looked for."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvplan.search.recommending.find_lifts", stopped)
    found = recommend(changed(BASE, refine=0, over={"engine.max_num_seqs": [8, 32]}))
    assert found.exit_code == 130
    assert len(found.candidates) == 2
    assert found.reason == "interrupted: 2 of 2 candidates were looked at"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slo": {"e2el_ms": 1500}}, ["16 are too slow", "nearest: gpu h100, tensor_parallel_size 2", "in time, p99"]),
        ({"search": {**BASE["search"], "max_gpus": 1, "over": {"engine.max_num_seqs": [6, 8]}}}, ["need more GPUs"]),
        ({"search": {**BASE["search"], "over": {"gpu": ["t4", "rtx-3060"]}}}, ["2 do not fit in memory", "no memory"]),
    ],
    ids=["latency", "gpus", "memory"],
)  # fmt: skip
def test_nothing_feasible_says_what_and_how_near(
    change: dict[str, Any], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1; the constraint that kills it and the nearest candidate in one line."""
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps({**BASE, **change}))
    assert run(["recommend", str(path), "--quiet", "--workers", "1"]) == 1
    out = capsys.readouterr().out.replace("\n  ", " ").splitlines()
    assert out[0].startswith("nothing is feasible: of ")
    assert all(text in out[0] for text in said)


def test_an_accuracy_out_of_reach_is_the_reason() -> None:
    data = {**SOLVING, "problems": {**SOLVING["problems"], "min_accuracy": 1.0}}
    data["search"] = {**SOLVING["search"], "over": {"engine.kv_cache_dtype": ["auto", "fp8"]}}
    found = recommend(data)
    assert found.exit_code == 1
    assert "2 are wrong too often" in found.reason
    assert "accuracy" in found.reason.partition("nearest")[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slo": {}}, "nothing says how slow is too slow"),
        ({"search": {}}, "nothing varies"),
        ({"search": {"rate": 1, "users": 2}}, "rate and users: say one of them"),
        ({"search": {"rate": 1, "day": "weekend", "over": {"gpu": ["h100"]}}}, "unknown profile 'weekend'"),
        ({"search": {"day": [1, 2]}}, "its shares are of a rate or of users"),
        ({"search": {"over": {"engine.tp": [1]}}}, "engine.tp: unknown key"),
        ({"search": {"over": {"gpu+replicas": [["h100"]]}}}, "must be a list of 2"),
        ({"search": {"ovr": {}}}, "search.ovr: unknown key; did you mean over"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KvplanError) as error:
        recommend({**BASE, **changes})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# --- a day ------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=48).filter(lambda s: max(s) > 0),
    st.integers(1, 500),
    st.integers(0, 2),
)
def test_a_day_is_carried_in_every_hour(shares: list[float], load: int, spare: int) -> None:
    """Scheduled copies carry each hour's load with its spares, and never cost more than the static ones."""
    shares = list(day_shares(shares))
    day = plan_day(shares, load, 7.0, spare, 2, 5.0)
    assert all(
        (copies - spare) * 7.0 >= share * load - 1e-6
        for copies, share in zip(day.copies, shares, strict=True)
    )
    assert day.static_copies == ceil(load / 7.0 - 1e-9) + spare == max(day.copies)
    assert day.scheduled_usd <= day.static_usd * (1 + 1e-9)
    assert day.static_gpu_hours == day.static_copies * 48


def test_bundled_days_are_shares_of_a_peak() -> None:
    for name in ("reasoning-api", "office-hours"):
        shares = day_shares(name)
        assert len(shares) == 24
        assert max(shares) == 1


# --- the scenarios ----------------------------------------------------------------------------------------


def scenario(name: str, *overrides: str) -> Scenario:
    return load_scenario(f"recommend_{name}", overrides)


def test_deepseek_r1_does_not_fit_on_eight_h100() -> None:
    """671 B parameters in 8 bits: 8 H200 hold them, 8 H100 do not, 16 in two stages do."""
    found = recommend(scenario("deepseek_r1", "search.seeds=1", "workload.num_requests=40", "search.span=2"))
    outcome = {(c.settings["gpu"], c.settings["engine.pipeline_parallel_size"]): c for c in found.candidates}
    assert outcome["h200", 1].feasible
    assert outcome["h100", 2].feasible
    assert outcome["h100", 1].cause == "memory"
    assert found.best is outcome["h200", 1]


def test_qwq_for_500_users_needs_no_more_copies_than_users_ask() -> None:
    over = {"gpu": ["h200"], "engine.tensor_parallel_size": [2], "engine.kv_cache_dtype": ["fp8"]}
    best = recommend(scenario("qwq_500_users", "search.refine=0"), over).best
    assert best is not None
    assert best.highest is not None
    assert best.copies == ceil(500 / best.highest)
    assert best.figures["p99_e2el_ms"] <= 60000
    assert best.day is not None
    assert best.day.scheduled_usd < best.day.static_usd


def test_grpo_copies_follow_from_the_prompts_done_in_time() -> None:
    over = {"gpu": ["h100"], "engine.kv_cache_dtype": ["fp8"]}
    best = recommend(scenario("grpo", "search.deadline_s=200", "search.refine=0"), over).best
    assert best is not None
    assert best.highest is not None
    assert best.copies * best.highest >= 1024 > (best.copies - 1) * best.highest
    assert best.figures["duration_s"] <= 200


def test_equal_accuracy_asks_the_small_model_for_more_samples() -> None:
    """Over one accuracy, every candidate that is left reaches it."""
    small = "search.over={problems.strategies: [[single_pass], [{strategy: self_consistency, n: 4}]]}"
    overrides = ("problems.num_problems=20", "search.refine=0", "problems.min_accuracy=0.5", small)
    found = recommend(scenario("equal_accuracy", *overrides))
    assert all(c.figures["accuracy"] >= 0.5 for c in found.candidates if c.feasible)
    assert all(c.cause == "accuracy" or c.feasible for c in found.candidates)
