"""The notebooks run, stay small, and say what the command line and the app say for the same inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_capacity_says_what_command_and_app_say(monkeypatch: pytest.MonkeyPatch, printed: Printed) -> None:
    """The plan as a notebook prints it is the command's text, and its figures are the app's."""
    told = executed("capacity.ipynb", monkeypatch)
    flags = ["--gpu", "h100", "--input-len", "512", "--output-len", "16K", "--num-samples", "32"]
    text = printed("estimate", "Qwen/Qwen3-8B", *flags)
    before, _, after = text.partition("What would fit:")
    assert before.strip() in told
    assert after.strip().splitlines()[-1] in told
    shown = app()
    assert f"GPU KV cache size: {shown['GPU KV cache size']}" in told
    assert f"{shown['Traces at once']} traces at once" in told


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_simulation_says_what_command_and_app_say(monkeypatch: pytest.MonkeyPatch, printed: Printed) -> None:
    told = executed("simulation.ipynb", monkeypatch)
    words = ("simulate", "long_thinking", "--num-prompts", "150", "--quiet", "--no-range")
    assert printed(*words).strip() in told
    document = json.loads(printed(*words, "--json"))
    line = f"{document['limited_by']} {document['num_preemptions']} {round(document['mean_e2el_ms'], 3)}"
    assert line in told
    shown = app(tab="Simulate", scenario="long_thinking", set="workload.num_requests=150")
    assert shown["Mean E2EL"] == shown_ms(document["mean_e2el_ms"])
    assert shown["Preemptions"] == f"{document['num_preemptions']:,}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_calibration_says_what_fit_says(monkeypatch: pytest.MonkeyPatch, printed: Printed) -> None:
    """The same rows through `kvplan fit`: the same held-out errors."""
    told = executed("calibration.ipynb", monkeypatch)
    file = ROOT / "calibration" / "measurements" / "vllm-cpu-0.32.jsonl"
    profile = json.loads(printed("fit", str(file), "--json"))
    for error in profile["timing"]["errors"]:
        assert f"median {error['median']:.1%}  p95 {error['p95']:.1%}  bias {error['bias']:+.1%}" in told
