"""The notebooks run, stay small, and say what the command line and the app say for the same inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from places import ROOT

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("altair")
pytest.importorskip("streamlit")

import nbformat
from nbclient import NotebookClient
from streamlit.testing.v1 import AppTest

from kvplan.cli.main import run as cli
from kvplan.pages.simulation_tab import shown_ms

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


def executed(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything that a notebook prints, run afresh."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook: Any = nbformat.read(ROOT / "examples" / name, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    charts = sum("vega" in key for out in outputs for key in out.get("data", {}))
    assert charts or any("altair" in str(out.get("data", {})).lower() for out in outputs)
    return "".join(out.text for out in outputs if out.output_type == "stream")


def app(**inputs: str) -> dict[str, str]:
    """The metrics of the app as a link opens it, after a run on the Simulate tab."""
    found = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    for key, value in inputs.items():
        found.query_params[key] = value
    found.run()
    if inputs.get("tab") == "Simulate":
        found.button(key="simulate_run").click().run()
    return {metric.label: metric.value for metric in found.metric}


def test_there_are_three_and_they_are_small() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert path.stat().st_size < MAX_BYTES
        cells = json.loads(path.read_text())["cells"]
        assert any(cell.get("outputs") for cell in cells)


QUIET = ("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.filterwarnings(*QUIET)
def test_the_engineer_is_told_what_the_command_says(
    monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    """The answer as the notebook prints it is the command's text, down to the last line."""
    told = executed("engineer.ipynb", monkeypatch)
    words = "plan Qwen/QwQ-32B --gpu 2xh100 --users 500 --thinking 32K --workers 1 --quiet"
    assert printed(*words.split()).strip() in told


@pytest.mark.filterwarnings(*QUIET)
def test_the_researcher_is_told_what_the_command_says(
    monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    """And the two strategies cost about the same: within a tenth, GPU seconds a problem."""
    told = executed("researcher.ipynb", monkeypatch)
    strategies = (
        "[{strategy: best_of_n, n: 64, max_tokens: 24K},"
        " {strategy: beam_search, beam_width: 18, branch_factor: 4, step_tokens: 1K}]"
    )
    sets = ["--set", "problems.num_problems=24", "--set", f"problems.strategies={strategies}"]
    assert printed("compare", "strategy_beam", *sets, "--no-range", "--quiet").strip() in told
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


def test_the_app_says_what_the_command_says(printed: Printed) -> None:
    flags = ["--gpu", "h100", "--input-len", "512", "--output-len", "16K", "--num-samples", "32"]
    text = printed("estimate", "Qwen/Qwen3-8B", *flags)
    shown = app()
    assert f"GPU KV cache size: {shown['GPU KV cache size']}" in text
    assert f"{shown['Traces at once']} traces at once" in text


def test_the_app_simulates_what_the_command_simulates(printed: Printed) -> None:
    words = ("simulate", "long_thinking", "--num-prompts", "150", "--quiet", "--no-range", "--json")
    document = json.loads(printed(*words))
    shown = app(tab="Simulate", scenario="long_thinking", set="workload.num_requests=150")
    assert shown["Mean E2EL"] == shown_ms(document["mean_e2el_ms"])
    assert shown["Preemptions"] == f"{document['num_preemptions']:,}"
