"""The README's Python runs as it is printed, and every command it names exists."""

from __future__ import annotations

import re

from places import ROOT

from kvplan.cli.main import COMMANDS
from kvplan.resources import scenarios_dir

README = (ROOT / "README.md").read_text()


def test_the_notebook_lines_run() -> None:
    """The Python block runs without an error."""
    [block] = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(block, "README.md", "exec"), {})


def test_every_command_and_scenario_exists() -> None:
    """`kvplan X` in the README is a command, and the scenarios it names are bundled."""
    assert set(re.findall(r"kvplan ([a-z][a-z-]+)", README)) - {"in", "import"} <= set(COMMANDS)
    named = re.findall(r"kvplan (?:simulate|compare|recommend|sweep) (\w+)(?= |$)", README, re.M)
    bundled = {path.stem for path in scenarios_dir().glob("*.yaml")}
    assert named
    assert set(named) - {"my"} <= bundled


def test_links_lead_somewhere() -> None:
    """Every relative link names a file of the project."""
    root = ROOT
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (root / link).exists(), link
