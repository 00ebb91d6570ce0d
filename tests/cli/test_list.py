"""What has a name is listed, and what is listed can be shown."""

from __future__ import annotations

import json

import pytest

from kvplan.cli.list_commands import SHELVES
from kvplan.cli.main import run
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


def test_a_scenario_shows_its_text(capsys: Capture) -> None:
    """It can be saved and run."""
    assert run(["show", "chat"]) == 0
    assert load_scenario("chat").model in capsys.readouterr().out


def test_unknown_names_offer_the_closest_and_the_list(capsys: Capture) -> None:
    assert run(["show", "best_of"]) == 2
    said = capsys.readouterr().err
    assert "did you mean best_of_n" in said
    assert "kvplan list" in said
    assert run(["list", "models", "no-such-model"]) == 1
