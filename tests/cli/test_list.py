"""What has a name is listed, and what is listed can be shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvplan.cli.list_commands import SHELVES
from kvplan.cli.main import run
from kvplan.profiles.profile import bundled_profiles
from kvplan.scenario.schema import load_scenario
from kvplan.workload.strategies.catalog import parameters

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("kind", SHELVES)
def test_every_name_that_is_listed_is_shown(kind: str) -> None:
    """Models and cards, of which there are hundreds, at every twentieth."""
    names = [name for name, _ in SHELVES[kind].names()]
    assert names
    for name in names[:: max(1, len(names) // 20)]:
        assert SHELVES[kind].find(name), name
    assert SHELVES[kind].find("no-such-name") is None


@pytest.mark.parametrize("kind", SHELVES)
def test_lines_and_documents_agree(kind: str, capsys: Capture) -> None:
    assert run(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)[kind]
    assert [line.split()[0] for line in lines] == [row["name"].split()[0] for row in rows]
    assert max(map(len, lines)) < 160


def test_a_strategy_shows_its_parameters_and_defaults(capsys: Capture) -> None:
    assert run(["show", "best_of_n", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["is"]["parameters"]
    fields = parameters("best_of_n").model_fields
    assert shown.keys() == fields.keys()
    assert shown["n"]["default"] == fields["n"].default
    assert shown["max_tokens"]["default"] is None


def test_a_profile_shows_its_errors_in_words(capsys: Capture) -> None:
    """Each says of how many points, and which of its figures is what."""
    assert run(["show", "h100-sxm-vllm", "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)["is"]["held_out_errors"]
    timing = next(p for p in bundled_profiles() if p.name == "h100-sxm-vllm").timing
    assert timing is not None
    assert len(errors) == len(timing.errors)
    for text, error in zip(errors, timing.errors, strict=True):
        assert (
            f"{error.num_points:,} points, {error.median:.1%} off in the median, {error.p95:.1%} at" in text
        )


def test_what_is_assumed_says_so_once(capsys: Capture) -> None:
    assert run(["list", "quality"]) == 0
    told = capsys.readouterr().out
    assert "assumed" in told
    assert "assumed: assumed" not in told


def test_a_scenario_shows_its_text(capsys: Capture) -> None:
    """It can be saved and run."""
    assert run(["show", "chat"]) == 0
    assert load_scenario("chat").model in capsys.readouterr().out


def test_a_file_of_samples_shows_what_is_in_it(capsys: Capture, tmp_path: Path) -> None:
    """What was read in a line, pass@k without bias, lengths of right and wrong samples; damaged rows are one line."""
    table = tmp_path / "own.csv"
    rows = [f"a,{i},{int(i < 2)},{100 + i}" for i in range(4)] + [f"b,{i},0,{200 + i}" for i in range(5)]
    table.write_text("problem,sample,correct,tokens\n" + "\n".join(rows))
    assert run(["show", str(table), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "pass_table"
    assert shown["is"]["is"].startswith(
        f"pass table {table} (csv): 2 problems, 4 to 5 samples each, 22.2% right"
    )
    assert shown["is"]["pass_at_k"] == {"1": 0.25, "2": round((1 - 1 / 6) / 2, 4), "4": 0.5}
    assert shown["is"]["mean_tokens"] == {"right": 100.5, "wrong": round((205 + 1010) / 7, 1)}
    table.write_text("problem,sample,correct,tokens\na,0,1,many\n")
    assert run(["show", str(table)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_names_offer_the_closest_and_the_list(capsys: Capture) -> None:
    assert run(["show", "best_of"]) == 2
    said = capsys.readouterr().err
    assert "did you mean best_of_n" in said
    assert "kvplan list" in said
    assert run(["list", "models", "no-such-model"]) == 1
