"""Graded samples of one's own: what each harness writes is read, and every strategy is driven by the very rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvplan.formulas import quality
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import parse_scenario
from kvplan.workload.measured import beyond_measured, quality_said, reach
from kvplan.workload.outcomes import TraceSampler
from kvplan.workload.pass_tables import PassTable, PassTableRead, read_pass_table
from kvplan.workload.problems import Problems, draw_tasks, task_sampler
from kvplan.workload.strategies import Branch
from kvplan.workload.strategies.alone import Ledger, run_alone


def written(tmp_path: Path, name: str, content: Any) -> str:
    """A file with text, one JSON value, or (a tuple) one JSON object a line."""
    text = content if isinstance(content, str) else json.dumps(content)
    if isinstance(content, tuple):
        text = "\n".join(json.dumps(row) for row in content)
    (tmp_path / name).write_text(text)
    return name


def read(tmp_path: Path, name: str, content: Any, **more: Any) -> PassTableRead:
    return read_pass_table(PassTable(path=written(tmp_path, name, content), **more), tmp_path)


# --- formats --------------------------------------------------------------------------------------------------


def test_a_table_with_scores_and_answers(tmp_path: Path) -> None:
    table = (
        "problem,sample,correct,tokens,score,answer\n"
        "a,0,1,100.0,0.9,42\na,1,0,300,0.2,41\na,2,0,250,0.4,40\na,3,0,90,0.1,41\nb,0,0,50,0.5,\n"
    )
    found = read(tmp_path, "t.csv", table)
    assert found.problems["a"].tokens == (100, 300, 250, 90)
    assert found.problems["a"].answers == (0, 1, 2, 1)
    assert found.problems["a"].scores == (0.9, 0.2, 0.4, 0.1)
    assert found.problems["b"].answers == (None,)
    assert found.said == (
        "pass table t.csv (csv): 2 problems, 1 to 4 samples each, 20.0% right, 158 tokens on average; "
        "scores of its own; answers of its own"
    )


def test_lm_evaluation_harness(tmp_path: Path) -> None:
    """`--log_samples` logs each document once per filter, texts and no token counts; reruns are further files."""

    def line(doc: int, kind: str, right: float, text: str, answer: str) -> dict[str, Any]:
        return {
            "doc_id": doc % 2, "doc": {"question": "?"}, "target": "4", "arguments": [["Q", {"until": []}]],
            "resps": [[text]], "filtered_resps": [answer], "filter": kind, "metrics": ["exact_match"],
            "exact_match": right, "doc_hash": f"h{doc}",
        }  # fmt: skip

    rows = (
        line(0, "strict-match", 0.0, "x" * 400, "[invalid]"), line(0, "flexible-extract", 1.0, "x" * 400, "4"),
        line(1, "strict-match", 1.0, "y" * 200, "4"), line(1, "flexible-extract", 1.0, "y" * 200, "4"),
    )  # fmt: skip
    first = read(tmp_path, "samples_gsm8k_1.jsonl", rows)
    assert [s.correct for s in first.problems.values()] == [(False,), (True,)]
    assert [s.tokens for s in first.problems.values()] == [(100,), (50,)]
    assert "tokens of 2 estimated at 4 characters each (assumed)" in first.said
    more = line(2, "flexible-extract", 0.0, "z" * 10, "5")  # of another task, under a number that is taken
    written(tmp_path, "samples_gsm8k_2.jsonl", (*rows[2:], more))
    names = ("samples_gsm8k_1.jsonl", "samples_gsm8k_2.jsonl")
    both = read_pass_table(PassTable(path=names, filter="flexible-extract", characters_per_token=2), tmp_path)
    assert [len(s.tokens) for s in both.problems.values()] == [1, 2, 1]
    assert both.problems["h0"].tokens == (200,)
    assert "samples_gsm8k_1.jsonl and 1 more (lm_eval)" in both.said


def test_livecodebench(tmp_path: Path) -> None:
    """`*_eval_all.json`: a list of problems, each with its outputs and how each was graded."""
    problems = [
        {"question_id": "abc", "output_list": ["p" * 40, "q" * 80], "code_list": ["", ""], "graded_list": [True, False],
         "pass@1": 0.5, "metadata": ["{}", "{}"]},
        {"question_id": "abd", "output_list": ["r" * 8, ""], "code_list": ["", ""], "graded_list": [False, False],
         "pass@1": 0.0, "metadata": ["{}", "{}"]},
    ]  # fmt: skip
    found = read(tmp_path, "x_eval_all.json", problems)
    assert found.problems["abc"].correct == (True, False)
    assert found.problems["abc"].tokens == (10, 20)
    assert found.problems["abd"].tokens == (2, 1)
    assert "(livecodebench)" in found.said
    assert "no answers" in found.said


def test_opencompass(tmp_path: Path) -> None:
    """`details` by number, or a list whose entries hold a list per run, or G-Pass@k's predictions with labels."""
    numbered = {"accuracy": 50.0, "details": {"type": "GEN",
        "0": {"pred": "4", "answer": "4", "correct": True, "origin_prediction": "z" * 44},
        "1": {"pred": "5", "answer": "6", "correct": False, "origin_prediction": "z" * 8}}}  # fmt: skip
    found = read(tmp_path, "gsm8k.json", numbered)
    assert [s.correct for s in found.problems.values()] == [(True,), (False,)]
    assert [s.tokens for s in found.problems.values()] == [(11,), (2,)]
    runs = {"G-Pass@2_1.0": 0.0, "details": [
        {"example_abbr": "aime_0", "pred": ["1", "2", "2"], "answer": ["1", "1", "1"],
         "correct": [True, False, False], "num_tokens": [5, 6, 7]}]}  # fmt: skip
    found = read(tmp_path, "aime.json", runs)
    assert found.problems["aime_0"].answers == (0, 1, 1)
    assert found.problems["aime_0"].tokens == (5, 6, 7)
    grouped = {"details": [{"idx": 3, "answer": "A", "predictions": [
        {"prediction": "So A." * 4, "label": True}, {"prediction": "So B." * 8, "label": False}]}]}  # fmt: skip
    found = read(tmp_path, "mathbench.json", grouped)
    assert found.problems["3"].correct == (True, False)
    assert found.problems["3"].tokens == (5, 10)


def test_field_names_are_configurable(tmp_path: Path) -> None:
    """Any JSONL: keys named by the user, dots into objects; scores of any scale keep their order in 0 to 1."""
    rows = tuple(
        {"task": "t1", "grade": {"ok": ok}, "usage": {"completion_tokens": n}, "rm": rm, "final": final}
        for ok, n, rm, final in ((True, 10, 3.5, "7"), (False, 20, -8.0, "8"), (True, 30, 0.0, "7"))
    )
    fields = {
        "problem": "task",
        "correct": "grade.ok",
        "tokens": "usage.completion_tokens",
        "score": "rm",
        "answer": "final",
    }
    found = read(tmp_path, "own.jsonl", rows, fields=fields)
    samples = found.problems["t1"]
    assert (samples.correct, samples.tokens, samples.answers) == (
        (True, False, True),
        (10, 20, 30),
        (0, 1, 0),
    )
    assert samples.scores is not None
    assert samples.scores == pytest.approx((1 / (1 + np.exp(-3.5)), 1 / (1 + np.exp(8)), 0.5))
    assert "squashed to 0..1" in found.said


@pytest.mark.parametrize(
    ("name", "content", "more", "words"),
    [
        ("t.csv", "problem,sample,tokens,correct\na,0,100,maybe\n", {}, "line 2: tokens must be 1 to"),
        ("t.csv", "problem,sample,tokens,correct\na,0,100,1\na,0,90,0\n", {}, "row 3: problem 'a' has sample '0'"),
        ("t.csv", "problem,sample,correct,tokens,score\na,0,1,9,high\n", {}, "line 2: score must be a number"),
        ("t.csv", "problem,sample,correct,tokens,score\na,0,1,9,0.5\na,1,1,9,\n", {}, "some samples have a score"),
        ("t.jsonl", ({"problem": "a", "correct": 1, "tokens": 5}, {"problem": "a"}), {}, "row 2: no correct"),
        ("t.jsonl", '{"problem": "a", "correct": 1, "tokens": 5}\n{oops\n', {}, "row 2: not a JSON object"),
        ("t.jsonl", ({"problem": "a", "correct": 1},), {}, "row 1: neither tokens nor a text to count"),
        ("t.json", [1, 2], {}, "row 1: not a JSON object"),
        ("t.json", {"details": {}}, {}, "`details` has no samples"),
        ("t.json", [], {}, "has no rows"),
        ("t.json", "", {}, "no column"),
        ("t.jsonl", ({"doc_id": 1, "resps": [["x"]], "filter": "a"},), {"filter": "b"}, "there are a"),
        ("t.jsonl", ({"a": 1},), {"fields": {"problm": "a"}}, "did you mean problem"),
        ("t.jsonl", ({"a": 1, "correct": 1},), {"fields": {"problem": "b"}}, "row 1: no b"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(
    tmp_path: Path, name: str, content: Any, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(KvplanError) as caught:
        read(tmp_path, name, content, **more)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# --- strategies on a table -----------------------------------------------------------------------------------------

ROWS = [  # correct, tokens, score, answer; right traces are short, one wrong answer is popular
    (1, 900, 0.7, "4"), (0, 2000, 0.8, "5"), (0, 2600, 0.3, "5"), (1, 700, 0.4, "4"), (0, 3000, 0.1, "6"),
    (0, 2200, 0.2, "5"), (1, 800, 0.95, "4"), (0, 2100, 0.5, ""),
]  # fmt: skip


def problems(tmp_path: Path, strategy: dict[str, Any] | str, columns: int = 4, copies: int = 1) -> Problems:
    """The rows as a table, with scores and answers or without."""
    header = ["correct", "tokens", "score", "answer"][:columns]
    lines = [",".join(["problem", "sample", *header])]
    for copy in range(copies):
        lines += [",".join([f"p{copy}", str(i), *map(str, row[:columns])]) for i, row in enumerate(ROWS)]
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    return Problems(pass_table="own.csv", strategies=(strategy,))  # type: ignore[arg-type]


def ledgers(told: Problems, folder: Path, seeds: int) -> list[Ledger]:
    [spec] = told.strategies
    [task, *_] = draw_tasks(told, folder)
    samplers = (task_sampler(told, spec, task._replace(seed=(seed, 0))) for seed in range(seeds))
    return [run_alone(task.problem, spec.start(), sampler) for sampler in samplers]


def test_all_samples_are_the_tables_own(tmp_path: Path) -> None:
    """Eight of eight: each row once, tokens and all; the vote and the best score are the table's, whatever the seed."""
    total = sum(row[1] for row in ROWS)
    vote = ledgers(
        problems(tmp_path, {"strategy": "self_consistency", "n": 8, "vote_stop": False}), tmp_path, 20
    )
    assert {one.generated_tokens for one in vote} == {total}
    assert {one.answer.answer for one in vote} == {
        0
    }  # three say 4, three say 5; the tie goes to the shortest trace
    best = ledgers(problems(tmp_path, {"strategy": "best_of_n", "n": 8}), tmp_path, 20)
    assert {one.answer.answer for one in best} == {0}
    assert {one.generated_tokens for one in best} == {total}


def test_samples_are_drawn_without_replacement(tmp_path: Path) -> None:
    """Coverage at k is the unbiased pass@k of the table (Chen et al. 2021), not 1 - (1 - p)^k."""
    count = 600
    for k in (2, 4, 6):
        told = problems(tmp_path, {"strategy": "best_of_n", "n": k}, columns=2)
        [task] = draw_tasks(told, tmp_path)
        covered = []
        for seed in range(count):
            sampler = task_sampler(told, told.strategies[0], task._replace(seed=(seed, 0)))
            covered.append(any(sampler.draw(Branch(i), None).answer == 0 for i in range(k)))
        expected = float(quality.pass_at_k(8, 3, k))
        assert np.mean(covered) == pytest.approx(expected, abs=4 * (0.25 / count) ** 0.5)
    assert abs(float(quality.pass_at_k(8, 3, 6)) - (1 - (5 / 8) ** 6)) > 0.05  # the test can tell


def test_right_and_length_stay_together(tmp_path: Path) -> None:
    """Every trace drawn is a row: its tokens tell whether it is right, what it says and what it scores."""
    told = problems(tmp_path, "single_pass")
    [task] = draw_tasks(told, tmp_path)
    by_tokens = {row[1]: row for row in ROWS}
    for seed in range(40):
        sampler = task_sampler(told, told.strategies[0], task._replace(seed=(seed, 0)))
        for i in range(8):
            drawn = sampler.draw(Branch(i, score=True), None)
            right, tokens, score, answer = by_tokens[drawn.tokens]
            assert (drawn.answer == 0) == bool(right)
            assert (drawn.answer is None) == (not answer)
            assert drawn.score == score
            assert tokens == drawn.tokens
    singles = ledgers(told, tmp_path, 800)
    share = np.mean([one.answer.correct for one in singles])
    assert share == pytest.approx(3 / 8, abs=4 * (0.25 / 800) ** 0.5)


def test_the_shortest_is_right_where_right_ones_are_short(tmp_path: Path) -> None:
    """short-1@k on a table: the first to finish is the shortest row drawn."""
    first = ledgers(problems(tmp_path, {"strategy": "first_finish", "m": 1, "k": 8}), tmp_path, 10)
    assert {(one.ticks, one.answer.answer) for one in first} == {(700, 0)}


def test_scores_drive_the_verifier(tmp_path: Path) -> None:
    """With the table's scores the choice is theirs, even where the stated verifier guesses; without them it is not."""
    guess = {"kind": "rule", "true_positive_rate": 0.5, "true_negative_rate": 0.5}
    for columns, expected in ((4, {True}), (2, {True, False})):
        told = problems(tmp_path, {"strategy": "best_of_n", "n": 8}, columns)
        told = told.model_copy(update={"verifier": type(told.verifier)(**guess)})
        assert {one.answer.correct for one in ledgers(told, tmp_path, 40)} == expected


def test_a_trace_cut_into_steps_is_still_the_row(tmp_path: Path) -> None:
    """Rejecting nothing, in steps: the rows' tokens, answers and last scores; a fork is another future."""
    told = problems(tmp_path, {"strategy": "speculative_rejection", "n": 8, "keep": 1.0, "step_tokens": 300})
    whole = ledgers(told, tmp_path, 10)
    assert {one.generated_tokens for one in whole} == {sum(row[1] for row in ROWS)}
    assert {one.answer.answer for one in whole} == {0}
    [task] = draw_tasks(told, tmp_path)
    sampler: TraceSampler = task_sampler(told, told.strategies[0], task)
    root = sampler.draw(Branch(0, kind="step", max_tokens=300), None)
    futures = [sampler.draw(Branch(i, 0, score=True, kind="step"), root) for i in range(1, 40)]
    assert futures[0].score in {row[2] for row in ROWS}
    assert len(Counter(f.answer for f in futures)) > 1
    assert all(f.score not in {row[2] for row in ROWS} for f in futures[1:])


def test_beyond_the_table_it_says_so(tmp_path: Path) -> None:
    """Twelve of eight: four rows come again, and the caveat says so; eight of eight says nothing."""
    told = problems(tmp_path, {"strategy": "best_of_n", "n": 12})
    tasks, [spec] = draw_tasks(told, tmp_path), told.strategies
    [line] = beyond_measured(told, spec, tasks)
    assert "draws 12 samples of a problem, the pass table has 8" in line
    sampler = task_sampler(told, spec, tasks[0])
    taken = Counter(sampler.draw(Branch(i), None).tokens for i in range(12))
    assert sorted(taken.values()) == [1] * 4 + [2] * 4
    enough = problems(tmp_path, {"strategy": "best_of_n", "n": 8})
    assert not beyond_measured(enough, enough.strategies[0], draw_tasks(enough, tmp_path))


def test_what_comes_again_is_the_same(tmp_path: Path) -> None:
    """A row without answer and score gives the same answer and score again: asking n of n twice tells nothing new."""
    rows = "\n".join(f"a,{s},{int(s < 3)},{100 + s}" for s in range(8))
    written(tmp_path, "bare.csv", f"problem,sample,correct,tokens\n{rows}")
    noisy = {"kind": "rule", "true_positive_rate": 0.7, "true_negative_rate": 0.7}
    told = Problems.model_validate(
        {"pass_table": "bare.csv", "verifier": noisy, "strategies": [{"strategy": "best_of_n", "n": 24}]}
    )
    [task] = draw_tasks(told, tmp_path)
    sampler = task_sampler(told, told.strategies[0], task)
    drawn = [sampler.draw(Branch(i, score=True), None) for i in range(24)]
    assert sorted(drawn[:8]) == sorted(drawn[8:16]) == sorted(drawn[16:])
    assert len({one.answer for one in drawn}) > 2


def test_what_was_read_is_part_of_the_result(tmp_path: Path) -> None:
    """`sources` of a run say it in one line; caveats what leaves it. More problems than `num_problems` are no fault."""
    from kvplan.schedulers.vllm.config import EngineConfig
    from kvplan.simulation.deploy import Setup, StatedStepTime
    from kvplan.simulation.simulator import solve

    problems(tmp_path, "single_pass", copies=3)
    told = parse_scenario(
        {"model": "Qwen/Qwen3-8B", "step_time": {"fixed_us": 5000}, "problems": {
            "num_problems": 1, "pass_table": str(tmp_path / "own.csv"), "qualities": {"other": "assumed-u-shape"},
            "strategies": [{"strategy": "best_of_n", "n": 9}]}}
    )  # fmt: skip
    time = StatedStepTime.of(told.step_time)
    found = solve(
        told, setups={"": Setup(EngineConfig(num_gpu_blocks=4000, max_model_len=4096), time, 131_072.0, 1)}
    )
    assert len(found.solved) == 3
    assert found.result.sources["quality"].startswith("pass table")
    assert any("the pass table has 8" in text for text in found.result.caveats)


# --- sets -------------------------------------------------------------------------------------------------------


def test_leaving_what_a_set_measured_is_said() -> None:
    """More samples, budgets off the curve or without one, other caps: one line each, and none within."""
    facts = {
        "source": "x",
        "coverage": [[1, 0.4], [16, 0.7]],
        "measured_max_tokens": 32768,
        "assumed": ["answer_tokens"],
    }

    def lines(strategy: dict[str, Any], **more: Any) -> list[str]:
        told = Problems(num_problems=5, quality={"name": "s", **facts, **more}, strategies=(strategy,))  # type: ignore[arg-type]
        return beyond_measured(told, told.strategies[0], draw_tasks(told))

    cap = {"max_tokens": 32768}
    assert lines({"strategy": "best_of_n", "n": 16, **cap}) == []
    assert "measured with up to 16" in lines({"strategy": "best_of_n", "n": 17, **cap})[0]
    assert "no max_tokens, s was measured with 32,768" in lines({"strategy": "single_pass"})[0]
    assert "max_tokens 8,192" in lines({"strategy": "single_pass", "max_tokens": 8192})[0]
    budget = {"strategy": "extended_thinking", "thinking_token_budget": 4000, **cap}
    assert "no measured thinking curve" in lines(budget)[0]
    curve = {"thinking_curve": [[500, 0.4], [3000, 0.6]]}
    assert "outside of the curve of s (500 to 3,000)" in lines(budget, **curve)[0]
    assert lines(budget | {"thinking_token_budget": 2000}, **curve) == []
    assert lines({"strategy": "best_of_n", "n": 400}, source="assumed") == []


def test_a_strategys_reach_is_what_it_asks_for() -> None:
    told = Problems(
        num_problems=9, strategies=({"strategy": "adaptive_best_of_n", "n_hard": 40, "max_tokens": 9000},)
    )  # type: ignore[arg-type]
    asked = reach(told, told.strategies[0], draw_tasks(told))
    assert asked.samples == 40
    assert asked.caps == {9000}
    assert not asked.budgets
    assert quality_said(told).startswith("set assumed-u-shape: assumed; U shape")


def test_lists_of_unlike_lengths_are_an_error(tmp_path: Path) -> None:
    """Two grades and one output: a file that was cut; no text is measured for another sample."""
    with pytest.raises(KvplanError, match="row 1: 2 samples graded, and a list beside them has 1"):
        read(tmp_path, "cut.json", [{"question_id": "q", "graded_list": [True, False], "output_list": ["x"]}])
