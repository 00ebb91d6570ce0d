"""`kvplan app`: what it starts, with which settings, and what it says where it cannot."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import ROOT

from kvplan.cli import app_command
from kvplan.cli.main import run
from kvplan.ground.files import app_file


def test_it_starts_the_app_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled page, on the asked port; size of uploads and no statistics, wherever it is started from."""
    pytest.importorskip("streamlit")
    pytest.importorskip("altair")
    started: list[list[str]] = []
    monkeypatch.setattr(app_command, "_serve", lambda words, env: started.append(words) or 0)
    assert run(["app", "--port", "8123"]) == 0
    (words,) = started
    assert Path(words[words.index("run") + 1]) == app_file()
    assert {"--server.port=8123", "--server.maxUploadSize=2", "--browser.gatherUsageStats=false"} <= set(
        words
    )
    assert "--client.showErrorDetails=none" in words


SERVER = "import sys, time\nprint('up', flush=True)\ntime.sleep(60)"


def test_who_ends_the_command_ends_the_server() -> None:
    """As a container or a service manager does; nothing of it goes on."""
    begun = (
        "import os, sys\nfrom kvplan.cli.app_command import _serve\n"
        f"_serve([sys.executable, '-c', {SERVER!r}], os.environ)"
    )
    with subprocess.Popen([sys.executable, "-c", begun], stdout=subprocess.PIPE, cwd=ROOT) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"up\n"
        command.terminate()
        assert command.stdout.read() == b""  # the server held the pipe
        assert command.wait(10) is not None


def test_a_checkout_has_the_same_settings() -> None:
    """`streamlit run app.py` reads .streamlit/config.toml; but for watching files it says what the command says."""
    told = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    flat = {
        f"{section}.{key}": value
        for section, keys in told.items()
        for key, value in (
            *((k, v) for k, v in keys.items() if not isinstance(v, dict)),
            *((f"{k}.{a}", b) for k, v in keys.items() if isinstance(v, dict) for a, b in v.items()),
        )
    }
    words = {
        key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in flat.items()
    }
    assert words == {k: v for k, v in app_command.SETTINGS.items() if k != "server.fileWatcherType"}


def test_what_it_cannot_do_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["app", "--port", "0"]) == 2
    assert "1 to 65535" in capsys.readouterr().err
    monkeypatch.setattr(app_command, "find_spec", lambda name: None)
    assert run(["app"]) == 2
    assert "kvplan[app]" in capsys.readouterr().err
