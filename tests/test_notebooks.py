"""The notebooks run, stay small, and say what the command line says for the same inputs.

Where docs/personas.md asks the same, its transcript stands for the command; test_personas.py holds it to that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from places import ROOT
from test_personas import transcript

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("altair")

import nbformat
from nbclient import NotebookClient

from kvplan.cli.main import run as cli

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MAX_BYTES = 60_000

Printed = Callable[..., str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """What a command prints."""

    def of(*words: str) -> str:
        capsys.readouterr()
        cli(list(words))
        return capsys.readouterr().out

    return of


def streams(notebook: Any) -> str:
    """All that it prints."""
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    return "".join(out.text for out in outputs if out.output_type == "stream")


def executed(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything that a notebook prints, run afresh; what is stored in it is the same."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook: Any = nbformat.read(ROOT / "examples" / name, as_version=4)
    stored = streams(notebook)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    charts = sum("vega" in key for out in outputs for key in out.get("data", {}))
    assert charts or any("altair" in str(out.get("data", {})).lower() for out in outputs)
    assert streams(notebook) == stored
    return stored


def test_there_are_three_and_they_are_small() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert path.stat().st_size < MAX_BYTES
        cells = json.loads(path.read_text())["cells"]
        assert any(cell.get("outputs") for cell in cells)


QUIET = ("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.filterwarnings(*QUIET)
def test_the_engineer_is_told_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer as the notebook prints it is the command's text, down to the last line."""
    told = executed("engineer.ipynb", monkeypatch)
    assert transcript("kvplan plan Qwen/QwQ-32B --gpu 2xh100 --users 500 --thinking 32K").strip() in told


@pytest.mark.filterwarnings(*QUIET)
def test_the_researcher_is_told_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the two strategies cost about the same: within a tenth, GPU seconds a problem."""
    told = executed("researcher.ipynb", monkeypatch)
    strategies = (
        "[{strategy: best_of_n, n: 64, max_tokens: 24K},"
        " {strategy: beam_search, beam_width: 18, branch_factor: 4, step_tokens: 1K}]"
    )
    sets = f'--set problems.num_problems=24 --set "problems.strategies={strategies}"'
    assert transcript(f"kvplan compare strategy_beam {sets} --no-range").strip() in told
    first, second = (float(gpu_s) for gpu_s in re.findall(r"(\d+) GPU-s a problem", told))
    assert 0.9 < first / second < 1.1


@pytest.mark.filterwarnings(*QUIET)
def test_the_rl_engineer_is_told_what_the_command_says(
    monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    """Steps get shorter with more cards, and never by more than the cards; each is the command's."""
    told = executed("rl_engineer.ipynb", monkeypatch)
    steps = {int(n): float(s.replace(",", "")) for n, s in re.findall(r"(\d) H100: step of ([\d,]+) s", told)}
    for cards in (1, 4):
        words = ("simulate", "strategy_grpo", "--set", f"replicas={cards}", "--no-range", "--quiet", "--json")
        assert round(json.loads(printed(*words))["duration_s"]) == steps[cards]
    for few, many in pairwise(steps):
        assert steps[many] < steps[few] <= steps[many] * many / few
