"""One question, one answer: `plan` writes a scenario and computes nothing of its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import kvplan
from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.models.load import load_model
from kvplan.scenario.schema import dump_scenario, parse_scenario
from kvplan.search.planning import ServingAnswer, first_look, plan
from kvplan.search.question import (
    LONGEST,
    ServingQuestion,
    check_lengths,
    make_scenario,
    read_cards,
    read_targets,
    sizes,
)
from kvplan.search.recommendation import EXPLAINED
from kvplan.search.recommending import recommend
from kvplan.workload.load import draw_load

SMALL = {"thinking": 2048, "prompt": 200, "answer": 100, "users": 12, "pause": 5.0}


@pytest.fixture(scope="module")
def answer() -> ServingAnswer:
    return plan("Qwen/Qwen3-8B", ["1xl40s"], **SMALL)


def test_the_answer_is_the_recommendation_of_the_scenario_it_writes(answer: ServingAnswer) -> None:
    """Through YAML and back: the same ranking, the same figures."""
    written = parse_scenario(yaml.safe_load(dump_scenario(answer.found.scenario)))
    again = recommend(written)
    assert [c.to_dict() for c in again.candidates] == [c.to_dict() for c in answer.found.candidates]


def test_the_verb_is_the_command(answer: ServingAnswer, capsys: pytest.CaptureFixture[str]) -> None:
    """`kvplan.plan(...)` and `kvplan plan ... --json` are one document; frames and pictures come with it."""
    asked = " ".join(f"--{name} {value:g}" for name, value in SMALL.items())
    code = run(f"plan Qwen/Qwen3-8B --gpu 1xl40s {asked} --json --quiet --workers 1".split())
    told = kvplan.plan("Qwen/Qwen3-8B", gpu="1xl40s", **SMALL | {"thinking": "2K"})
    assert json.loads(json.dumps(told.to_dict())) == json.loads(capsys.readouterr().out)
    assert (code, told.verdict) == (answer.exit_code, answer.verdict)
    assert len(told.to_frame()) == len(told.found.candidates)
    assert {"speed", "ranking"} <= set(dir(told.plot))
    assert repr(told) == f"<ServingAnswer: {told.verdict}>"


def test_every_column_and_mark_of_the_ranking_is_explained_below_it(answer: ServingAnswer) -> None:
    """Those of `recommend`, in the same words."""
    below = str(answer).partition("limited by\n")[2].partition("\n\nRun ")[0]
    assert " ".join(below.split()).endswith(" ".join(EXPLAINED))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"user": 5}, "no keyword 'user'; did you mean users"),
        ({"users": 0}, "users 0: must be"),
        ({"users": 5, "slo": "fast"}, "write what<time"),
        ({"question": ServingQuestion(users=5), "users": 6}, "users is given beside a whole question"),
    ],
)
def test_keywords_that_mean_nothing_are_refused_in_one_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(KvplanError, match=said):
        kvplan.plan("Qwen/Qwen3-8B", "l40s", **asked)


def test_the_verdict_follows_from_cards_counted_and_needed(answer: ServingAnswer) -> None:
    owned = answer.owned[0]
    assert owned.best is not None
    assert (
        owned.is_enough
        == (owned.best.num_gpus <= owned.cards.number)
        == answer.fits
        == (answer.exit_code == 0)
    )
    assert re.match(
        r"fits( unless steps take .* as they may)?: Qwen3-8B for 12 users on 1 x l40s", answer.verdict
    )
    assert owned.load == pytest.approx(owned.copies * (owned.best.low or owned.best.highest))


def test_a_verdict_that_the_slow_end_would_turn_says_so(answer: ServingAnswer) -> None:
    """As many copies at the slow end as there are cards: sure; one more: not."""
    best = answer.best
    assert best is not None
    for copies, is_sure in ((1, True), (2, False)):
        slower = replace(best, usd_per_hour_high=copies * best.usd_per_hour)
        told = replace(answer, owned=(answer.owned[0]._replace(best=slower),))
        assert told.is_sure == is_sure
        assert (" unless steps take " in told.verdict) != is_sure


def test_too_few_cards_are_told_with_what_they_carry_and_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvplan.search.question.CARDS", ("l40s", "l4"))
    few = SMALL | {"users": 900, "pause": 1.0, "thinking": 500, "prompt": 50, "answer": 20}
    asked = plan("Qwen/Qwen3-8B", ["1xl40s"], **few)
    assert asked.exit_code == 1
    assert asked.best is not None
    assert asked.best.num_gpus > 1
    assert asked.verdict.startswith("does not fit: 1 x l40s carry ")
    each = asked.best.figures["num_gpus_per_copy"]
    assert (
        f"takes {asked.best.num_gpus // each} copies of {each} x l40s (${asked.best.usd_per_hour:,.2f}/h)"
        in asked.verdict
    )
    assert {cards.number for cards in asked.others} <= {1}
    assert 0 < asked.owned[0].load < 900


def test_a_target_that_no_card_meets_comes_first() -> None:
    asked = plan("Qwen/Qwen3-8B", ["l40s"], **SMALL | {"slo": "tpot<2ms"})
    assert asked.verdict.startswith("no: ")
    assert "nearest" in asked.verdict
    assert (asked.exit_code, asked.changes) == (1, ())


def test_dollars_that_do_not_suffice_are_the_reason() -> None:
    asked = plan("Qwen/Qwen3-8B", ["l40s"], **SMALL | {"max_dollars_per_hour": 0.01})
    assert "$0.01 an hour is allowed" in asked.verdict


def test_prices_of_ones_own_come_first(tmp_path: Path) -> None:
    book = tmp_path / "prices.yaml"
    book.write_text("gpus: {l40s: {usd_per_hour: 0.125, date: 2026-10-01, source: our contract}}\n")
    asked = plan("Qwen/Qwen3-8B", ["1xl40s"], **SMALL, prices=str(book))
    assert asked.best is not None
    assert asked.best.usd_per_hour == 0.125 * asked.best.num_gpus


def test_every_change_moves_one_thing(answer: ServingAnswer) -> None:
    """Longer thinking, longer prompts and a shorter pause never need fewer copies."""
    assert answer.best is not None
    assert len(answer.changes) == 3
    for change in answer.changes:
        assert change.copies is None or change.copies >= answer.best.copies


def test_lengths_are_as_told() -> None:
    """Half the traces think longer than the typical; one in a hundred is cut at the longest."""
    question = ServingQuestion(users=5, thinking=20_000)
    work = make_scenario("Qwen/Qwen3-8B", read_cards(["h100"]), question).workload
    load = draw_load(work.model_copy(update={"num_requests": 20_000}))
    cut = (load.thinking_tokens == 20_000).mean()
    assert 0.007 < cut < 0.013
    assert (load.thinking_tokens > question.median_thinking).mean() == pytest.approx(0.5, abs=0.015)
    assert load.prompt_tokens.max() + load.output_tokens.max() <= question.longest + 2


def test_lengths_that_the_model_does_not_take_are_refused_with_those_it_does() -> None:
    model = load_model("Qwen/Qwen3-8B")
    question = ServingQuestion(users=1, thinking=200_000)
    with pytest.raises(KvplanError, match=r"--thinking [0-9]+ would fit") as told:
        check_lengths(model, question)
    room = int(str(told.value).partition("--thinking ")[2].split()[0])
    assert check_lengths(model, ServingQuestion(users=1, thinking=room)) <= model.max_model_len
    with pytest.raises(KvplanError):
        check_lengths(model, ServingQuestion(users=1, thinking=room + 1))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ttft<2s,tpot<50ms", {"ttft_ms": 2000.0, "tpot_ms": 50.0}),
        ("visible <= 1.5 min", {"ttfvt_ms": 90_000.0}),
        ("E2E=60s", {"e2el_ms": 60_000.0}),
    ],
)
def test_targets_are_read(text: str, found: dict[str, float]) -> None:
    assert read_targets(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "how slow"), ("tpot<50", "unit"), ("tpto<50ms", "tpot"), ("fast", "write what<time")],
)
def test_targets_that_say_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(KvplanError, match=said):
        read_targets(text)


@pytest.mark.parametrize("said", [{}, {"users": 3, "rate": 1.0}])
def test_one_load_is_asked(said: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="one of them"):
        ServingQuestion.model_validate(said)


def test_cards_are_counted_or_not() -> None:
    two, any_number = read_cards(["2xh100", "h200"])
    assert (two.number, any_number.number) == (2, 0)
    assert (sizes(two), sizes(any_number)) == ([1, 2], [1, 2, 4, 8])
    assert sizes(read_cards(["3xh100"])[0]) == [1, 2]
    with pytest.raises(KvplanError, match="named twice"):
        read_cards(["2xh100", "h100-sxm"])


def test_the_first_look_is_the_closed_form() -> None:
    """As `estimate` says, before anything is simulated."""
    question = ServingQuestion(users=500)
    text = first_look("Qwen/QwQ-32B", read_cards(["2xh100"]), question)
    assert text.startswith("at first sight: 2 x h100-sxm hold 7 of the longest requests (40,960 tokens)")


def test_the_typical_is_the_longest_over_its_quantile() -> None:
    assert ServingQuestion(users=1, thinking=floor(1000 * LONGEST)).median_thinking == 1000
    assert ServingQuestion(users=1, thinking=500, typical_thinking=400).median_thinking == 400


def test_a_typical_trace_longer_than_the_longest_is_refused() -> None:
    """With the longest that would do; the two may be one."""
    with pytest.raises(
        KvplanError, match=r"typical_thinking=800 is more than the longest, thinking=500"
    ) as told:
        kvplan.plan("Qwen/Qwen3-8B", "l40s", users=1, thinking=500, typical_thinking=800)
    enough = int(re.findall(r" thinking=(\d+) cuts", str(told.value))[0])
    assert ServingQuestion(users=1, thinking=enough, typical_thinking=800).median_thinking == 800
    assert ServingQuestion(users=1, thinking=500, typical_thinking=500).median_thinking == 500


def test_a_fleet_is_copies_of_the_one_that_is_simulated() -> None:
    """A thousand times the users take a thousand times the copies, in hardly more simulations."""
    rows = []
    for users in (10_000, 10_000_000):
        asked = ServingQuestion(**SMALL | {"users": users})
        scenario = make_scenario("Qwen/Qwen3-8B", read_cards(["1xl40s"]), asked)
        rough = scenario.search.model_copy(update={"refine": 0, "ranges": False})
        rows.append(recommend(scenario.model_copy(update={"search": rough})))
    few, many = rows
    assert few.best is not None
    assert many.best is not None
    assert many.best.copies == pytest.approx(1000 * few.best.copies, rel=0.02)
    spent = [sum(c.num_simulations for c in found.candidates) for found in rows]
    assert spent[1] <= spent[0] + 10


def test_copies_that_nobody_simulated_are_told(answer: ServingAnswer) -> None:
    best = answer.best
    assert best is not None
    for number in (1, 7000):
        many = replace(best, num_gpus=number * best.figures["num_gpus_per_copy"])
        found = replace(answer.found, candidates=[many, *answer.found.candidates[1:]])
        said = str(replace(answer, found=found))
        assert (f"one of {number:,} copies was simulated, at its share of the load" in said) == (number > 1)
