"""docs/reference.md is what the code says; exit codes are what the commands end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reference
from validation import section

from kvplan.cli.main import COMMANDS, run

PAGE = "reference.md"


def test_commands_and_flags() -> None:
    section("commands", reference.commands(), PAGE)


def test_exit_codes() -> None:
    assert reference.EXIT_1.keys() <= COMMANDS.keys()
    section("exit-codes", reference.exit_codes(), PAGE)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "estimate Qwen/Qwen3-8B --gpu h100"),
        (1, "estimate Qwen/Qwen3-8B --gpu rtx-4090"),
        (2, "estimate Qwen/Qwen3-8B --gpu h101"),
        (1, "serve-command Qwen/Qwen3-8B --gpu rtx-4090"),
        (1, "models no-such-model"),
        (1, "simulate chat --set workload.num_requests=5 --goodput ttft:0.001 --quiet"),
    ],
)
def test_codes_are_those(code: int, words: str) -> None:
    assert run(words.split()) == code


def test_scenario_keys() -> None:
    section("scenario-keys", reference.scenario_keys(), PAGE)


def test_profile_keys() -> None:
    section("profile-keys", reference.profile_keys(), PAGE)


def test_json_keys(tmp_path: Path) -> None:
    section("json-keys", reference.json_keys(tmp_path), PAGE)


def test_every_command_that_prints_json_is_there() -> None:
    """All but `serve-command`; `fit` prints a profile."""
    flags = {name: reference.command_section(name) for name in COMMANDS}
    assert {name for name, text in flags.items() if "`--json`" in text} == {*reference.FOLDED, "fit"}


def test_a_key_that_comes_or_goes_is_seen() -> None:
    """What a list's items have is merged; an absent key is no row."""
    some = [json.loads(text) for text in ('{"a": [{"b": 1}, {"b": null, "c": {"d": "x"}}]}', '{"e": true}')]
    assert dict(reference.keys_of(some, {})) == {
        "`a`": "list of object",
        "`a[]`": "object",
        "`a[].b`": "integer or null",
        "`a[].c`": "object",
        "`a[].c.d`": "text",
        "`e`": "true, false",
    }
