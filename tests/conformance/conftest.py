"""`python -m kvplan.conformance`, called on a scenario."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from kvplan.conformance.__main__ import main


class Said(NamedTuple):
    """How the command ended, and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command on a scenario (an object, or the text or path of a file) with flags."""

    def call(scenario: object, *flags: str) -> Said:
        path = scenario if isinstance(scenario, Path) else tmp_path / "scenario.json"
        if path is not scenario:
            path.write_text(scenario if isinstance(scenario, str) else json.dumps(scenario))
        monkeypatch.setattr("sys.argv", ["kvplan.conformance", str(path), *flags])
        code = main()
        return Said(code, *capsys.readouterr())

    return call
