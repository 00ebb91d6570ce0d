"""The README's Python runs as it is printed, its commands run, and its one long output is what the command prints."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from kvplan.cli.main import COMMANDS, build_app, run, spell
from kvplan.ground.files import scenarios_dir
from kvplan.ground.gpu import get_gpu

README = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.S)
LINES = [line for block in CONSOLE for line in block.splitlines() if line.startswith("$ kvplan ")]
FEWER = {
    "simulate": "--set workload.num_requests=20 --quiet",
    "compare": "--set problems.num_problems=2 --quiet",
    "sweep": "--set workload.num_requests=5 --workers 1 --quiet",
}
"""Fewer requests, so that the same command is over soon."""


def test_the_notebook_lines_run() -> None:
    """The Python block runs without an error, and its figures are those that its comment says."""
    [block] = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    memory, answer = names["memory"], names["answer"]
    said = f"# {memory.num_traces} traces of {memory.trace_tokens:,} tokens at once, {memory.limited_by}"
    assert said in block
    assert memory.num_traces > 0
    assert answer.fits


def test_the_estimate_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    [block] = [block for block in CONSOLE if block.startswith("$ kvplan estimate")]
    command, _, printed = block.partition("\n")
    assert run(shlex.split(command)[2:]) in (0, 1)
    assert capsys.readouterr().out.split() == printed.split()


def test_the_plan_is_priced_as_the_table_prices() -> None:
    """Its search is too long for a test; copies times cards times the card's price it has to be."""
    [(copies, cards, gpu, usd)] = re.findall(r"takes (\d+) copies of (\d+) x (\S+) \(\$([\d.]+)/h\)", README)
    assert int(copies) * int(cards) * get_gpu(gpu).price_per_hour == float(usd)


@pytest.mark.parametrize("line", LINES)
def test_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer requests; those that search are read only. `my.yaml` is a copy of a scenario."""
    shutil.copy(scenarios_dir() / "chat.yaml", tmp_path / "my.yaml")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[2:]
    if words[0] in ("plan", "recommend"):
        build_app(words[0]).parse_args(spell(words), exit_on_error=False, print_error=False)
    else:
        assert run([*words, *FEWER.get(words[0], "").split()]) in (0, 1)


def test_every_command_and_scenario_exists() -> None:
    """`kvplan X` in the README is a command, and the scenarios it names are bundled."""
    assert set(re.findall(r"kvplan ([a-z][a-z-]+)", README)) - {"in", "import"} <= set(COMMANDS)
    named = re.findall(r"kvplan (?:simulate|compare|recommend|sweep) (\w+)(?= |$)", README, re.M)
    bundled = {path.stem for path in scenarios_dir().glob("*.yaml")}
    assert named
    assert set(named) - {"my"} <= bundled


def test_every_make_target_exists() -> None:
    """And in CONTRIBUTING too."""
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= set(targets)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 130
