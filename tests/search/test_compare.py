"""`kvplan compare`: every strategy scenario runs, the table says what it rests on, directions hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import ROOT
from strategy_sentences import check_sentence, check_text

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import StepTimeSpec, load_scenario, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.search.comparison import Comparison, compare
from kvplan.search.strategy_row import StrategyRow
from kvplan.simulation.deploy import Setup, StatedStepTime

SCENARIOS = sorted((ROOT / "scenarios").glob("strategy_*.yaml"))
SHORT = {
    "thinking_tokens": 400, "answer_tokens": 20, "sigma_between": 0.2, "difficulty": {"beta": [0.4, 0.4]},
    "source": "arXiv 0000.00000",
}  # fmt: skip


def engine(num_blocks: int = 4000) -> dict[str, Setup]:
    time = StepTimeSpec(fixed_us=5000, per_sequence_us=20, per_context_token_ns=30, per_prefill_token_us=20)
    config = EngineConfig(num_gpu_blocks=num_blocks, max_model_len=8192)
    return {"": Setup(config, StatedStepTime.of(time), 147_456.0, 1, usd_per_gpu_hour=3.6)}


def table(
    strategies: list[object], num_problems: int = 30, num_blocks: int = 4000, **more: object
) -> Comparison:
    slo = more.pop("slo", {})
    problems = {"num_problems": num_problems, "strategies": strategies, "quality": SHORT, **more}
    told = parse_scenario({"model": "Qwen/Qwen3-8B", "slo": slo, "problems": problems})
    return compare(told, setups=engine(num_blocks))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
def test_every_strategy_scenario_runs(path: Path) -> None:
    """All of them, with fewer problems: the run ends by itself, every figure is a number that makes sense, and the
    last sentence says what the intervals support."""
    found = compare(load_scenario(path, ["problems.num_problems=3"]), ranges=False, max_draws=60_000)
    assert found.rows
    assert repr(found) == f"<Comparison of {', '.join(row.strategy for row in found.rows)}>"
    for row in found.rows:
        assert row.verdict == "completed"
        assert row.num_problems == 3
        assert 0 <= row.accuracy <= 1
        assert 0 < row.latency_p50_s <= row.latency_p99_s
        assert row.first_visible_p50_s <= row.latency_p50_s
        assert 0 < row.kv_gib_s <= 1.05 * row.kv_logical_gib_s
        assert row.flops > 2 * 7e9 * row.generated_tokens
        assert row.reprefilled_tokens >= 0
        shared = row.sharing_peak_blocks
        assert shared["copy_on_write"] <= shared["full_block"] <= shared["none"]
        assert shared["token"] <= 16 * shared["none"]
    assert any(row.pareto for row in found.rows)
    check_sentence(found)
    check_text(found)
    assert path.read_text().startswith("#")


def by_name(found: Comparison) -> dict[str, StrategyRow]:
    return {row.strategy: row for row in found.rows}


def test_more_samples_buy_accuracy_for_money() -> None:
    """On the same problems best-of-16 is at least as accurate as best-of-4, and dearer per right answer."""
    found = table([{"strategy": "best_of_n", "n": [1, 4, 16]}])
    one, four, sixteen = found.rows
    assert one.accuracy <= four.accuracy <= sixteen.accuracy
    assert one.generated_tokens < four.generated_tokens < sixteen.generated_tokens
    assert sixteen.usd_per_correct is not None
    assert four.usd_per_correct is not None
    assert sixteen.usd_per_correct > four.usd_per_correct
    assert found.choice == "best_of_n(n=16)"


def test_ranges_come_from_both_ends_and_may_change_the_choice() -> None:
    """A limit just above the best one's p99 is missed at the slow end: another is chosen there, and by `robust`."""
    cut = "{strategy: extended_thinking, thinking_token_budget: 1000}"
    said = ["problems.num_problems=6", f"problems.strategies=[single_pass, {cut}]"]
    free = compare(load_scenario("strategy_thinking_budget", said))
    best = next(row for row in free.rows if row.strategy == free.choice)
    for row in free.rows:
        low, high = row.ranges["latency_p99_s"]
        assert low < row.latency_p99_s < high
        assert row.ranges["usd_per_correct"][1] > row.usd_per_correct if row.usd_per_correct else True
        assert row.ranges["joules_per_output_token"][0] < row.joules_per_output_token
        assert row.to_dict()["latency_p99_s_high"] == high
    limit = [*said, f"slo.e2el_ms={best.latency_p99_s * 1010}"]
    tight = load_scenario("strategy_thinking_budget", limit)
    found, robust = compare(tight), compare(tight, robust=True)
    assert found.choice == best.strategy
    assert "within the error of step times it may be another" in found.reason
    assert robust.choice != best.strategy
    plain = compare(tight, ranges=False)
    assert plain.rows[0].to_dict()["latency_p99_s_high"] is None
    with pytest.raises(KvplanError, match="robust chooses by the slow end"):
        compare(tight, ranges=False, robust=True)


def test_a_latency_limit_changes_the_choice() -> None:
    """T_max over N: under a limit between the two p99s the smaller N wins; below both, none fits (exit 1)."""
    names = [{"strategy": "best_of_n", "n": [4, 16]}]
    free = by_name(table(names))
    small, large = (free[f"best_of_n(n={n})"].latency_p99_s for n in (4, 16))
    assert small < large
    between = table(names, slo={"e2el_ms": 500 * (small + large)})
    assert between.choice == "best_of_n(n=4)"
    none = table(names, slo={"e2el_ms": 100.0})
    assert none.choice == ""
    assert none.exit_code == 1
    assert "comes closest" in none.reason


def test_costs_are_time_times_price() -> None:
    """One GPU at $3.60 an hour is $0.001 a second."""
    row = table(["single_pass"]).rows[0]
    assert row.gpu_s_per_correct is not None
    assert row.usd_per_correct == pytest.approx(row.gpu_s_per_correct / 1000)
    assert row.correct_per_s == pytest.approx(1 / row.gpu_s_per_correct)


def test_nothing_right_costs_no_finite_price() -> None:
    row = table(["single_pass"], quality=SHORT | {"difficulty": {"levels": [[0.0, 1.0]]}}).rows[0]
    assert row.accuracy == 0
    assert row.usd_per_correct is None
    assert "-" in str(table(["single_pass"], quality=SHORT | {"difficulty": {"levels": [[0.0, 1.0]]}}))


def test_a_budget_sweep_recommends_a_cap() -> None:
    """Smaller budgets cut more traces and hold less KV; the caps are the traces' p99 and the cheapest compared."""
    found = table([{"strategy": "extended_thinking", "thinking_token_budget": [100, 300, 2000]}], 60)
    low, middle, high = found.rows
    assert low.cut_share > middle.cut_share > high.cut_share
    assert low.accuracy < high.accuracy
    assert low.kv_gib_s < middle.kv_gib_s < high.kv_gib_s
    assert 600 < found.caps["p99_of_traces"] < 1200
    costs = {100: low.usd_per_correct, 300: middle.usd_per_correct, 2000: high.usd_per_correct}
    assert costs[int(found.caps["cost_optimal"])] == min(c for c in costs.values() if c is not None)


def test_pruning_beats_preempting_when_blocks_run_out() -> None:
    """STEP against self-consistency in a pool that holds half the traces: no recompute, shorter, fewer tokens."""
    found = table(
        [
            {"strategy": "self_consistency", "n": 16, "vote_stop": False},
            {"strategy": "pruned_under_pressure", "n": 16},
        ],
        6,
        200,
    )
    votes, step = found.rows
    assert votes.preemptions > 0 == step.preemptions
    assert step.reprefilled_tokens < votes.reprefilled_tokens
    assert step.latency_p50_s < votes.latency_p50_s
    assert step.pruned_branches > 0


def test_the_caution_comes_first() -> None:
    """A comparison on an assumed set says so in its first line; on a cited set it does not."""
    assumed = table(["single_pass"], 3, quality=SHORT | {"source": "assumed", "name": "mine"})
    assert str(assumed).splitlines()[0].startswith("NOTE assumed chances of success (quality set mine)")
    cited = table(["single_pass"], 3)
    assert "assumed" not in str(cited)


@pytest.mark.parametrize(
    ("strategies", "more", "words"),
    [
        (["single_pass"], {}, "no hard cap on thinking"),
        ([{"strategy": "beam_search", "step_tokens": 64}], {}, "compare best_of_n before trees"),
        ([{"strategy": "beam_search", "step_tokens": 64}], {}, "without a process reward model"),
        (
            [{"strategy": "best_of_n", "n": 2, "max_tokens": 4000}],
            {"num_problems": 60},
            "always or never solved",
        ),
    ],
)
def test_advice_where_practice_knows_better(
    strategies: list[object], more: dict[str, int], words: str
) -> None:
    found = table(strategies, **{"num_problems": 4, **more})  # type: ignore[arg-type]
    assert any(words in text for text in found.advice)


@pytest.mark.parametrize(("samples", "says"), [(1, False), (8, False), (16, True)])
def test_a_table_says_what_its_samples_can(tmp_path: Path, samples: int, says: bool) -> None:
    """One sample says nothing of always or never; a budget that cuts one trace in a hundred is a row's."""
    rows = [f"{i},{s},{i % 2},{100 * (s + 1) + i}" for i in range(10) for s in range(samples)]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["problem,sample,correct,tokens", *rows]))
    found = table([{"strategy": "best_of_n", "n": 2, "max_tokens": 4000}], pass_table=str(path))
    assert any("all or none of their samples right" in text for text in found.advice) == says
    assert not any("always or never solved" in text for text in found.advice)
    longest = 100 * samples + 9
    assert longest - 120 <= found.caps["p99_of_traces"] <= longest - SHORT["answer_tokens"]


def test_no_advice_without_a_reason() -> None:
    capped = table(
        [{"strategy": "best_of_n", "n": 2, "max_tokens": 4000}],
        4,
        quality=SHORT | {"difficulty": {"levels": [[0.5, 1]]}},
        verifier={"kind": "rule"},
    )
    assert capped.advice == []


def test_routing_spends_less_than_the_best_and_gets_more_than_the_least() -> None:
    """A perfect router: easy problems get one sample, hard ones sixteen; an inaccurate one does worse."""
    easy, hard = {"strategy": "single_pass"}, {"strategy": "best_of_n", "n": 16}

    def router(accuracy: float) -> dict[str, object]:
        tiers = [{"share": 0.5, "strategy": easy}, {"share": 0.5, "strategy": hard}]
        return {
            "strategy": "difficulty_router",
            "label": f"router {accuracy}",
            "accuracy": accuracy,
            "tiers": tiers,
        }

    rows = by_name(table([easy, hard, router(1.0), router(0.0)], 60))
    assert rows["router 1.0"].generated_tokens < rows["best_of_n(n=16)"].generated_tokens
    assert rows["single_pass"].accuracy < rows["router 1.0"].accuracy <= rows["best_of_n(n=16)"].accuracy
    assert rows["router 0.0"].accuracy < rows["router 1.0"].accuracy


def test_a_small_model_with_search_against_a_large_single_pass() -> None:
    """Each strategy pays for its own model's GPU alone; the large one is better per sample, the small one cheaper."""
    found = compare(load_scenario("strategy_small_against_large", ["problems.num_problems=12"]))
    rows = by_name(found)
    small, large = rows["single_pass(max_tokens=24K)"], rows["single_pass(max_tokens=24K) on large"]
    assert large.accuracy >= small.accuracy
    assert large.flops > 2 * small.flops
    assert rows["best_of_n(n=8, max_tokens=24K)"].accuracy >= small.accuracy


def test_hosted_prices_stand_beside_ones_own() -> None:
    found = table(["single_pass"], api_model="deepseek-r1")
    assert found.rows[0].api_usd_per_correct is not None
    assert "API $/correct" in found.text(["api_usd_per_correct"])


def test_the_command_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json has one shape; the table has a line per strategy; exit codes as everywhere."""
    file = tmp_path / "two.yaml"
    file.write_text(
        "model: Qwen/Qwen3-8B\nproblems: {num_problems: 2, strategies: [single_pass, {strategy: best_of_n, n: 2}]}\n"
    )
    assert run(["compare", str(file), "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["strategy"] for row in document["strategies"]] == ["single_pass", "best_of_n(n=2)"]
    assert document["schema_version"] == 1
    assert document["inputs"]["problems"]["num_problems"] == 2
    assert run(["compare", str(file), "--quiet", "--set", "slo.e2el_ms=1"]) == 1
    assert "best_of_n(n=2)" in capsys.readouterr().out


def test_a_scenario_without_problems_is_refused() -> None:
    with pytest.raises(KvplanError, match="no `problems`"):
        compare(parse_scenario({"model": "Qwen/Qwen3-8B"}))


def test_a_model_that_the_scenario_lacks_is_named() -> None:
    with pytest.raises(KvplanError, match="'big' is not in `models`"):
        table([{"strategy": "single_pass", "model": "big"}])


def test_a_verifiers_errors_are_counted() -> None:
    """At rates 0.9 and 0.8 about a tenth of right work is an alarm, a fifth of wrong work a miss."""
    verifier = {"kind": "rule", "true_positive_rate": 0.9, "true_negative_rate": 0.8}
    half = SHORT | {"difficulty": {"levels": [[0.5, 1.0]]}}
    row = table([{"strategy": "best_of_n", "n": 16}], 60, verifier=verifier, quality=half).rows[0]
    assert row.false_alarms / 480 == pytest.approx(0.1, abs=0.05)
    assert row.misses / 480 == pytest.approx(0.2, abs=0.06)
    exact = table([{"strategy": "best_of_n", "n": 16}], 5).rows[0]
    assert exact.false_alarms == exact.misses == 0


def test_a_router_sends_the_hard_ones_to_a_larger_model() -> None:
    """Tiers may run on further models; the classifier's pass is a request of its own."""
    tiers = [
        {"share": 0.5, "strategy": {"strategy": "single_pass", "max_tokens": 4000}},
        {"share": 0.5, "model": "large", "strategy": {"strategy": "single_pass", "max_tokens": 4000}},
    ]
    better = SHORT | {"difficulty": {"beta": [4.0, 0.4]}}
    problems = {
        "num_problems": 40, "quality": SHORT, "qualities": {"large": better},
        "strategies": [
            {"strategy": "single_pass", "max_tokens": 4000},
            {"strategy": "difficulty_router", "label": "router", "tiers": tiers, "instruction_tokens": 60},
        ],
    }  # fmt: skip
    told = parse_scenario(
        {
            "model": "Qwen/Qwen3-8B",
            "models": {"large": {"model": "Qwen/Qwen3-32B", "gpu": "h200"}},
            "problems": problems,
        }
    )
    alone, routed = compare(told, setups=engine() | {"large": engine()[""]}).rows
    assert routed.num_branches == 2 * alone.num_branches == 80
    assert routed.accuracy > alone.accuracy + 0.1
    assert routed.flops > 1.5 * alone.flops


def test_two_strategies_are_not_called_alike() -> None:
    """A sentence about A is about one of them; the same strategy twice is a tie with itself."""
    wide, narrow = ({"strategy": "best_of_n", "n": n, "label": "A"} for n in (8, 2))
    with pytest.raises(KvplanError, match="two that differ are called 'A'"):
        table([wide, narrow], 2)
    assert table([wide, wide], 2).chosen.best is None


def test_the_slow_end_has_intervals_too() -> None:
    """Chosen by the slow end, a sentence still says how sure its accuracy is, and whose end its seconds are."""
    sets = ["problems.num_problems=8", "problems.quality=assumed-u-shape"]
    found = compare(load_scenario("strategy_best_of_n", sets), robust=True, max_draws=20_000)
    assert f"({100 * (found.rows[found.chosen.place].accuracy_low or 0):.1f}.." in found.reason
    assert "at the slow end of what steps may take" in found.reason


def test_a_verifier_that_nobody_stated_is_never_wrong() -> None:
    """Said where something asks it, until one is stated."""
    judged, vote = {"strategy": "best_of_n", "n": 2}, {"strategy": "self_consistency", "n": 2}
    assert any("no verifier is stated" in text for text in table([judged], 2).advice)
    assert not any("no verifier" in text for text in table([vote], 2).advice)
    assert not any("no verifier" in text for text in table([judged], 2, verifier={"kind": "rule"}).advice)


def test_limits_that_nobody_set_are_not_said_missed() -> None:
    late = table(["single_pass"], 2, slo={"e2el_ms": 1})
    assert late.reason.startswith("no option is there within 0.001 s; single_pass comes closest")
    wrong = table(["single_pass"], 2, min_accuracy=0.999)
    assert wrong.reason.startswith("no option reaches 99.9 %; single_pass comes closest")


def test_a_tie_of_few_problems_has_no_cheapest(tmp_path: Path) -> None:
    """What a correct answer costs is no surer than how many are correct: eight problems with a sample each, on which
    one pass and four agree, leave 37 points open, more than what the further samples of a step cost."""
    rows = [f"p{i},0,1,{400 + i}" for i in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(["problem,sample,correct,tokens", *rows]) + "\n")
    strategies = ["single_pass", {"strategy": "best_of_n", "n": 4}]
    found = table(strategies, 8, pass_table=str(tmp_path / "t.csv"))
    assert found.differences[0].high == pytest.approx(100 * (1 - 0.025 ** (1 / 8)))
    assert found.rows[0].usd_per_correct < found.rows[1].usd_per_correct  # type: ignore[operator]
    assert "none of them is the cheapest for sure; single_pass takes" in found.reason
