"""docs/personas.md says what its commands print, character by character."""

from __future__ import annotations

import os
import re
import shlex

import pytest
from places import ROOT

from kvplan.cli.main import run

PAGE = ROOT / "docs" / "personas.md"
BLOCK = re.compile(r"```console\n\$ (kvplan [^\n]+)\n(.*?)```", re.S)
COMMANDS = [command for command, _ in BLOCK.findall(PAGE.read_text())]
ALONE = {"plan": ["--workers", "1", "--quiet"], "recommend": ["--workers", "1", "--quiet"]}
"""In this process; the answer is the same."""


def transcript(command: str) -> str:
    """What the page says that a command prints."""
    return dict(BLOCK.findall(PAGE.read_text()))[command]


def printed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = shlex.split(command)[1:]
    code = run([*words, *ALONE.get(words[0], [])])
    assert code in (0, 1)
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: " ".join(text.split()[1:3]))
def test_a_transcript_is_what_its_command_prints(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(command, capsys)
    if os.environ.get("KVPLAN_WRITE_DOCS"):
        page = BLOCK.sub(
            lambda found: f"```console\n$ {command}\n{told}```" if found[1] == command else found[0],
            PAGE.read_text(),
        )
        PAGE.write_text(page)
    assert transcript(command) == told


def test_three_people_decide_in_three_commands_each() -> None:
    """The first answer takes one."""
    people = re.split(r"\n## ", PAGE.read_text())[1:]
    assert len(people) == 3
    for text in people:
        assert 1 <= len(BLOCK.findall(text)) <= 3
        assert "\nDecision: " in text
