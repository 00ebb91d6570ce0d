"""What `compare` concludes: only what its intervals support, whatever the order, in a hundred columns."""

from __future__ import annotations

import csv
import io
import json
import re
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategy_sentences import check_sentence
from test_compare import SHORT, by_name, engine, table

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.search.comparison import compare
from kvplan.search.sampling import Sampling
from kvplan.search.strategy_table import COLUMNS, pick_columns, short_names
from kvplan.workload.problems import Problems, StrategySpec

THREE = {"strategy": "first_finish", "m": 3, "k": 5}


def test_one_strategy_under_two_names_is_a_tie() -> None:
    """Nobody is called best of two that are one; swapping them swaps their rows and changes nothing else."""
    named = [{**THREE, "label": "one"}, {**THREE, "label": "other"}]
    found, turned = table(named, 12), table(named[::-1], 12)
    assert found.chosen.best is None
    assert found.to_dict()["ties"][0]["tie"] is True
    assert found.reason == turned.reason
    assert found.choice == turned.choice
    assert "most accurate" not in str(found)
    for name in ("one", "other"):
        assert by_name(found)[name] == by_name(turned)[name]


def test_the_order_of_strategies_changes_nothing() -> None:
    told = [{"strategy": "best_of_n", "n": 4}, "single_pass", THREE, {"strategy": "self_consistency", "n": 5}]
    found, turned = table(told, 12), table(told[::-1], 12)
    assert by_name(found) == by_name(turned)
    assert found.reason == turned.reason
    check_sentence(found)


def test_a_limit_says_what_few_problems_leave_open() -> None:
    """Twelve problems do not bound a 99th percentile; 400 do."""
    told = [{"strategy": "best_of_n", "n": [1, 4]}]
    few = table(told, 12, slo={"e2el_ms": 20_000.0})
    assert "12 problems do not bound its p99, 368 would" in few.reason
    many = table(told, 400, slo={"e2el_ms": 60_000.0})
    assert "bound" not in many.reason
    assert many.rows[0].to_dict()["latency_p99_s_sampling_high"] is not None


def test_what_the_engine_prunes_counts() -> None:
    """Pruning under pressure costs votes: the accuracy is the expectation with what the engine changed of it."""
    told: list[Any] = [{"strategy": "pruned_under_pressure", "n": 16}]
    hard = SHORT | {"difficulty": {"levels": [[0.3, 1.0]]}, "wrong_answers": 3}
    noisy = {"kind": "rule", "true_positive_rate": 0.7, "true_negative_rate": 0.6}
    roomy, full = (table(told, 20, n, quality=hard, verifier=noisy) for n in (4000, 120))
    free, tight = roomy.rows[0], full.rows[0]
    assert free.engine_points == 0
    assert tight.pruned_branches > 100
    assert tight.accuracy == pytest.approx(free.accuracy + tight.engine_points / 100)
    assert tight.accuracy_high - tight.accuracy_low > free.accuracy_high - free.accuracy_low  # type: ignore[operator]
    said = " ".join(full.notes())
    assert re.search(r"as simulated, 20 problems; some [1-9][\d,]{2,} would tell to 2 points", said)
    assert "would tell" not in " ".join(table([THREE], 20).notes())


@pytest.mark.parametrize(("below", "words"), [(0.5, True), (10.0, False)])
def test_a_choice_that_may_miss_the_accuracy_asked_for_says_so(below: float, words: bool) -> None:
    """Asked for half a point less than is expected to 2 points, it may be less; for ten less, it is not."""
    expected = table([THREE], 4).rows[0].accuracy
    asked = round(expected - below / 100, 4)
    found = table([THREE], 4, min_accuracy=asked)
    assert found.choice
    assert (f"it may be below the {100 * asked:g} % asked for" in found.reason) == words


def test_intervals_over_problems_shrink_with_problems() -> None:
    """Four times the problems, about half the interval of mean latency and of cost; more for a share of it."""
    few, many = (table([THREE], n).rows[0] for n in (20, 80))
    for name in ("latency_mean_s", "usd_per_correct"):
        width = [(high - low) / (high + low) for low, high in (few.sampling[name], many.sampling[name])]
        assert 1.3 < width[0] / width[1] < 4
    assert few.sampling["latency_p99_s"].high == inf
    assert few.to_dict()["latency_p99_s_sampling_high"] is None


def test_problems_and_draws_vary_apart() -> None:
    """Draws of a vote vary where chances are middling; problems vary as their chances do: all alike, hardly at all."""
    alike = SHORT | {"difficulty": {"levels": [[0.5, 1.0]]}, "sigma_between": 0.0}
    apart = SHORT | {"difficulty": {"levels": [[0.0, 0.5], [1.0, 0.5]]}}
    same, other = (table([THREE], 3, quality=q).rows[0] for q in (alike, apart))
    assert same.sd_within_problem == pytest.approx(50, abs=5)
    assert same.sd_between_problems < 10  # type: ignore[operator]
    assert other.sd_between_problems == pytest.approx(50, abs=5)
    assert other.sd_within_problem == 0


def test_one_crowd_is_one_draw() -> None:
    """Problems that come all at once tell nothing of another crowd: no interval over problems, and null says so."""
    row = table(["single_pass"], 12, arrivals={"kind": "all_at_once"}).rows[0]
    assert row.sampling == {}
    assert row.to_dict()["latency_mean_s_sampling_low"] is None
    assert row.accuracy_low is not None


def test_what_traits_explain_is_no_luck() -> None:
    """Latencies that are a line of length, over problems spread evenly over length, have next to no spread."""
    length = np.linspace(100, 900, 30)
    traits = np.column_stack([np.full(30, 0.5), length])
    sample = Sampling(Problems(), 2 * length + 5, length, traits)
    assert sample.mean(sample.took)[1] == pytest.approx(0, abs=1e-12)
    assert Sampling(Problems(), 2 * length + 5, length, traits[:, :0]).mean(sample.took)[1] > 100


def test_columns_are_asked_for_by_name_and_group() -> None:
    found = table(["single_pass"], 3)
    assert "GPU-s/correct" not in str(found)
    text = found.text(["speed", "usd_per_correct_range"])
    assert "GPU-s/correct" in text
    assert "usd_per_correct 90 %" in text
    assert pick_columns(["all"])[:2] == ["accuracy", "latency"]
    every = found.text(["all"]).splitlines()
    assert max(map(len, every)) <= 100
    titles = " ".join(line for line in every if line.startswith("   strategy"))
    assert all(title in titles for title, _ in COLUMNS.values())
    with pytest.raises(KvplanError, match="no column 'tokn'; did you mean token"):
        pick_columns(["tokn"])


def test_a_tie_that_costs_more_is_no_front() -> None:
    """Three of five against all five: as accurate, as far as draws tell, and no faster and dearer: it has no star. Who
    is surely more accurate has one at any price."""
    told: list[object] = [
        THREE,
        {"strategy": "first_finish", "m": 5, "k": 5},
        {"strategy": "best_of_n", "n": 16},
    ]
    found = table(told, 12, quality=SHORT | {"sigma_within": 0.6, "wrong_answers": 1000})
    cheap, dear, best = found.rows
    apart = found.expectation.difference(0, 1)
    assert cheap.pareto
    assert dear.latency_p99_s > cheap.latency_p99_s
    assert dear.pareto is not apart.is_tie
    assert best.pareto
    for row in found.rows:
        others = [r for r in found.rows if r is not row]
        assert row.pareto or any(r.latency_p99_s <= row.latency_p99_s for r in others)


def test_one_is_singular() -> None:
    """One problem, one candidate: no text counts "1 problems"."""
    found = table(["single_pass"], 1, slo={"e2el_ms": 60_000})
    text = found.text(["all"])
    assert "1 problem does not bound its p99" in " ".join(text.split())
    assert not re.search(r"\b1 (problems|branches|strategies|samples|copies|GPUs|candidates|points)\b", text)


def test_what_all_share_is_said_once() -> None:
    specs = [StrategySpec(strategy="best_of_n", params={"n": n, "max_tokens": "24K"}) for n in (4, 16)]
    assert short_names(specs) == (["best_of_n(n=4)", "best_of_n(n=16)"], "max_tokens=24K")
    assert short_names(specs[:1])[1] == ""


def test_csv_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a strategy, the keys of --json's rows; what is not known is empty."""
    out = tmp_path / "rows.csv"
    file = tmp_path / "s.yaml"
    twice = "[single_pass, {strategy: single_pass, label: again}]"
    file.write_text(f"model: Qwen/Qwen3-8B\nproblems: {{num_problems: 3, strategies: {twice}}}\n")
    assert run(["compare", str(file), "--json", "--quiet", "--csv", str(out), "--precision", "4"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["strategy"] for row in rows] == ["single_pass", "again"]
    for row, told in zip(rows, document["strategies"], strict=True):
        assert float(row["accuracy_low"]) == told["accuracy_low"]
        assert row["latency_p99_s_sampling_high"] == ""
    assert document["precision"] == 4
    assert document["accuracy_over"] == "problems"
    assert document["ties"][0]["text"].startswith("tie: ")


def test_nonsense_is_refused() -> None:
    told = {"model": "Qwen/Qwen3-8B", "problems": {"num_problems": 2}}
    with pytest.raises(KvplanError, match="precision"):
        compare(told, setups=engine(), precision=0)
