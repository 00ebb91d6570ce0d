"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from places import ROOT

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import cell_text, refuse_same_file, safe_cell, write_whole, written_whole

WRITER = """
import sys
from kvplan.ground.files import write_whole
n = 0
while True:
    n += 1
    write_whole(sys.argv[1], f"{n}\\n" * 200_000)
"""


def test_a_killed_writer_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """Killed at random moments, every line of the file comes from one write."""
    path, luck = tmp_path / "out.txt", random.Random(0)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT)
        while not path.exists():
            time.sleep(0.01)
        time.sleep(luck.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        lines = path.read_text().splitlines()
        assert len(lines) == 200_000
        assert len(set(lines)) == 1
        path.unlink()


@pytest.mark.parametrize("failing", ["fsync", "replace", "fchmod"])
def test_a_full_disk_leaves_the_old_file(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half file, no temporary file, and the error names the asked path."""
    path = tmp_path / "out.txt"
    write_whole(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left") as error:
        write_whole(path, "new")
    assert error.value.filename == str(path)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_block_leaves_the_old_file(tmp_path: Path) -> None:
    """An error while the text is made is not a reason to lose what was there."""
    path = tmp_path / "out.txt"
    write_whole(path, "old")

    def half() -> None:
        with written_whole(path) as file:
            file.write("half")
            raise KeyError("x")

    with pytest.raises(KeyError):
        half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_permissions_and_pipes_stay_what_they_were(tmp_path: Path) -> None:
    """A link keeps its target, a file its mode; a stream is written straight."""
    path, link = tmp_path / "out.txt", tmp_path / "link.txt"
    write_whole(path, "old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    write_whole("/dev/null", "nothing")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """As open() does."""
    with pytest.raises(FileNotFoundError) as error:
        write_whole(tmp_path / "no" / "out.txt", "x")
    assert error.value.filename == str(tmp_path / "no" / "out.txt")


def test_outputs_never_fall_on_inputs_or_on_each_other(tmp_path: Path) -> None:
    """Also through a link or another spelling of the path; a shared pipe is fine."""
    path, link = tmp_path / "m.jsonl", tmp_path / "link"
    path.write_text("x")
    link.symlink_to(path)
    for spelled in (path, link, tmp_path / "." / "m.jsonl"):
        with pytest.raises(KvplanError, match="that file is read as"):
            refuse_same_file([path], {"-o": spelled})
    with pytest.raises(KvplanError, match="is written by --records"):
        refuse_same_file([], {"--records": tmp_path / "x", "--trace": tmp_path / "x"})
    refuse_same_file([path, None], {"--records": "/dev/null", "--trace": "/dev/null", "--plot": None})


@pytest.mark.parametrize(
    ("words", "flag", "name"),
    [
        ("estimate Qwen/Qwen3-8B --gpu h100", "--plot", "x.svg"),
        ("simulate chat", "--records", "x.csv"),
        ("simulate chat", "--trace", "x.json"),
        ("simulate chat", "--plot", "x.svg"),
        ("compare strategy_best_of_n", "--csv", "x.csv"),
        ("compare strategy_best_of_n", "--report", "x.html"),
        ("compare strategy_best_of_n", "--plot", "x.svg"),
        ("recommend chat --over gpu=h100", "--plot", "x.svg"),
        ("sweep chat --over gpu=h100", "-o", "x.csv"),
        ("plan Qwen/Qwen3-8B --gpu h100 --users 2", "--report", "x.html"),
        ("plan Qwen/Qwen3-8B --gpu h100 --users 2", "--scenario", "x.yaml"),
        ("plan Qwen/Qwen3-8B --gpu h100 --users 2", "--plot", "x.svg"),
        ("compare-run a.json b.csv", "--plot", "x.svg"),
        ("reconcile no.log", "--save", "x.json"),
        ("fit no.jsonl", "--plot", "x.svg"),
        ("conformance no.json", "--output", "x.log"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(
    words: str,
    flag: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In every command that writes a file: a folder that is missing or takes no file, or a folder of that name. One
    line that names the flag and the place, and nothing was begun."""
    begun: list[str] = []
    for place in (
        "cli.search_commands.compare",
        "cli.search_commands.sweep_rows",
        "cli.search_commands.recommend",
        "cli.simulation_commands.simulate",
        "cli.plan_command.plan",
        "cli.memory_commands.estimate",
    ):
        monkeypatch.setattr(f"kvplan.{place}", lambda *told, **named: begun.append(place))  # noqa: B023
    (tmp_path / name).mkdir()
    full = tmp_path / "full"
    full.mkdir()

    def refuses(dir: Path) -> None:
        raise OSError(28, "No space left on device")

    for target, said in ((tmp_path / "none" / name, "there is no folder"), (tmp_path / name, "is a folder"),
                         (full / name, "cannot be written (No space left on device)")):  # fmt: skip
        if target.parent == full:
            monkeypatch.setattr("kvplan.ground.files.tempfile.TemporaryFile", refuses)
        assert run([*words.split(), flag, str(target)]) == 2
        assert f"{flag} {target}: {said}" in capsys.readouterr().err
    assert not begun


FORMULAS = ("=1+1", "+1", "-1", "@x", "\tx", "'=x", "''+x")


@given(st.text() | st.sampled_from(FORMULAS) | st.text("'=+-@a\t"))
@example("'")
@example("it's")
def test_no_cell_is_run_and_every_cell_comes_back(text: str) -> None:
    """A spreadsheet runs a cell by its first character; the apostrophe before it is taken off again."""
    cell = safe_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell_text(cell) == text
    assert (cell == text) == (not text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r")))
