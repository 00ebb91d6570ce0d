"""Charts as files, and the report: what is asked for is written, numbers are the document's, no network."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from kvplan.charts.report import report_html
from kvplan.charts.saving import check_plot
from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.search.planning import ServingAnswer, plan

STARTS = {".svg": b"<svg", ".png": b"\x89PNG", ".html": b"<!DOCTYPE html>"}


@pytest.mark.parametrize("suffix", STARTS)
def test_a_picture_is_written_as_its_suffix_says(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"memory{suffix}"
    assert run(["estimate", "Qwen/Qwen3-8B", "--plot", str(path)]) == 0
    assert path.read_bytes().lstrip().startswith(STARTS[suffix])


@pytest.mark.parametrize("name", ["memory.jpg", "memory", "no/such/folder/memory.svg"])
def test_what_cannot_be_written_is_said_before_the_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", "chat", "--plot", str(tmp_path / name)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("kvplan: --plot ")


def test_a_missing_library_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(KvplanError, match=r"pip install 'kvplan\[plot\]'"):
        check_plot(Path("a.svg"))


@pytest.fixture(scope="module")
def answer() -> ServingAnswer:
    return plan("Qwen/Qwen3-8B", ["1xl40s"], users=12, pause=5.0, thinking=2048, prompt=200, answer=100)


def test_the_report_holds_the_answer(answer: ServingAnswer) -> None:
    """Verdict, every deployment, every command and every memory row of the document, in one page."""
    page = report_html(answer)
    assert answer.best is not None
    assert answer.plan is not None
    verdict = answer.verdict[0].upper() + answer.verdict[1:]
    for text in (verdict, *answer.best.commands, *(row.label for row in answer.plan.budget.rows)):
        assert text in page
    assert page.count("<svg") == 3
    assert page.count("<h2>To be surer</h2>") == 1
    assert "<li>To be surer</li>" not in page
    assert not re.findall(r">([\d.,]+) to \1<", page)  # a figure that is sure has no range


def test_the_report_asks_nobody(answer: ServingAnswer) -> None:
    """No script, no style or picture from elsewhere."""
    page = report_html(answer)
    assert not re.findall(r"<script|<link|<img|<iframe|@import|url\(\s*['\"]?(?:https?:)?//", page)
    assert set(re.findall(r"https?://[^\s\"'<)]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_a_name_is_text_in_the_report(answer: ServingAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's path may hold anything."""
    nasty = answer.found.scenario.model_copy(update={"model": "<script>alert(1)</script>"})
    monkeypatch.setattr(answer.found, "scenario", nasty)
    assert "<script>" not in report_html(answer)


def test_results_draw_themselves(answer: ServingAnswer) -> None:
    """Every picture that a class offers can be drawn; an unknown one is told with those there are."""
    from kvplan import estimate, simulate
    from kvplan.ground.pictures import DRAWN

    results = {
        "Plan": estimate("Qwen/Qwen3-8B", "h100"),
        "Result": simulate({"model": "Qwen/Qwen3-8B", "workload": {"num_requests": 5}}),
        "Recommendation": answer.found,
    }
    for name, result in results.items():
        assert dir(result.plot) == sorted(DRAWN[name])
        for picture in DRAWN[name]:
            assert getattr(result.plot, picture)().to_dict()["layer"]
    with pytest.raises(AttributeError, match="did you mean kv"):
        results["Result"].plot.kvs  # noqa: B018


@pytest.mark.parametrize("flag", ["--plot", "--report"])
@pytest.mark.parametrize("place", ["none/x.html", "folder.html"])
def test_no_place_to_write_is_said_before_the_work(
    flag: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the flag that named it: no such folder, or a folder itself."""
    (tmp_path / "folder.html").mkdir()
    path = str(tmp_path / place)
    assert run(["plan", "Qwen/Qwen3-8B", "--gpu", "1xh100", "--users", "1", flag, path]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith(f"kvplan: {flag} {path}: ")
