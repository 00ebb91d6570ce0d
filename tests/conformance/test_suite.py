"""`kvplan conformance` over logs: the fixtures, one's own, another simulator's; and what it says of each."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from engine_conformance import golden, logs_of, scenarios, scenarios_of
from sglang_conformance import golden as sglang_golden
from sglang_conformance import scenarios as sglang_scenarios

from kvplan.cli.main import run
from kvplan.conformance.twins import TWINS

Json = dict[str, Any]
NAMES = ("m01_full_hit_aligned", "mam_align_bestof8", "spec_k1_multiturn")


def write(path: Path, rows: list[Json]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder like tests/conformance, but small: both engines, a version below."""
    write(tmp_path / "scenarios.jsonl.xz", [scenarios()[name] for name in NAMES])
    write(
        tmp_path / "golden.jsonl.xz",
        [golden()[name, mode] for name in NAMES for mode in ("sync", "async")],
    )
    newer = [log for key, log in logs_of("0.33").items() if key[0] in NAMES]
    write(tmp_path / "vllm" / "0.33" / "golden.jsonl", newer)
    idle = scenarios_of("0.19")["idle_victim_0"]  # asynchronous unless told otherwise
    write(tmp_path / "vllm" / "0.19" / "scenarios.jsonl", [idle])
    older = [log for key, log in logs_of("0.19").items() if key[0] == "idle_victim_0"]
    write(tmp_path / "vllm" / "0.19" / "golden.jsonl", older)
    write(tmp_path / "sglang" / "scenarios.jsonl", [sglang_scenarios()["g01_plain"]])
    write(tmp_path / "sglang" / "golden.jsonl", [sglang_golden()["g01_plain", "normal"]])
    return tmp_path


def scenario_file(folder: Path, name: str) -> Path:
    return write(folder / f"{name}.json", [scenarios()[name]])


def log_of(folder: Path, *flags: str, name: str = "m01_full_hit_aligned") -> Path:
    """The log that the command writes of a scenario."""
    log = folder / "mine.jsonl"
    assert run(["conformance", str(scenario_file(folder, name)), "-o", str(log), *flags]) == 0
    return log


def verdicts(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[Json]]:
    capsys.readouterr()
    code = run(["conformance", *words, "--json"])
    rows: list[Json] = json.loads(capsys.readouterr().out)["logs"]
    return code, rows


def test_a_folder_of_logs_is_run_again(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each log is run by the rules of the version that wrote it."""
    code, rows = verdicts(capsys, str(suite))
    assert code == 0
    assert [row["mirrors"] for row in rows].count("vLLM 0.33.0") == 6
    assert {row["mirrors"] for row in rows} == {
        "vLLM 0.19.0",
        "vLLM 0.32.0",
        "vLLM 0.33.0",
        "SGLang 0.5.23",
    }
    assert not any(row["difference"] for row in rows)
    assert run(["conformance", str(suite)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:5] == ["vLLM", "0.32.0", "6", "638", "0"]


def test_a_log_of_another_version_differs(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.32's log is not 0.33's, and the first step that differs is named."""
    path = suite / "golden.jsonl.xz"
    write(path, [golden()["mam_align_bestof8", "sync"] | {"vllm_version": "0.33.0"}])
    code, found = verdicts(capsys, str(suite))
    assert code == 1
    assert found[0]["difference"].startswith("step 1: n_sched 4, log 1, n_tokens 16, log 4")


@pytest.mark.parametrize("flags", [(), ("--async",), ("--engine-version", "0.33")])
def test_a_log_of_ones_own_is_run_again(
    flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log has all that it takes; a decision that is changed in it is found."""
    log = log_of(tmp_path, *flags)
    code, [row] = verdicts(capsys, str(log))
    assert (code, row["difference"], row["async"]) == (0, "", "--async" in flags)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[2]["sched"][0][1] += 1
    write(log, lines)
    code, [row] = verdicts(capsys, str(log))
    assert code == 1
    assert row["difference"].startswith("step 1: sched ")


def test_a_scenario_may_name_its_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rules are followed, unless the command says another."""
    path = write(tmp_path / "s.json", [scenarios()["mam_align_bestof8"] | {"engine_version": "0.33"}])
    hashes = []
    for flags in ((), ("--engine-version", "0.33"), ("--engine-version", "0.32")):
        assert run(["conformance", str(path), "--summary", *flags]) == 0
        hashes.append(json.loads(capsys.readouterr().out)["sched_sha256"])
    newer, older = (log[("mam_align_bestof8", "sync")]["sched_sha256"] for log in (logs_of("0.33"), golden()))
    assert hashes == [newer, newer, older]


def test_decisions_alone_are_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another simulator need not know blocks: who ran with how much, and who was preempted."""
    log = log_of(tmp_path)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [{key: line[key] for key in ("type", "sched", "preempted")} for line in lines[1:-1]]
    write(log, [lines[0], *steps])
    assert verdicts(capsys, str(log))[0] == 0


def test_another_simulators_logs_beside_the_engines_own(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --truth the goldens are the measure, not the twin."""
    log = log_of(suite)
    assert verdicts(capsys, str(log), "--truth", str(suite))[0] == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[1]["preempted"] = ["x"]
    write(log, lines)
    code, [row] = verdicts(capsys, str(log), "--truth", str(suite))
    assert (code, row["difference"]) == (1, "sched_sha256 differ from vLLM 0.32.0's own")
    lines[0]["config"]["name"] = "else"
    write(log, lines)
    assert run(["conformance", str(log), "--truth", str(suite)]) == 2
    assert "no golden of vLLM 0.32.0 for else, synchronous" in capsys.readouterr().err


HEADER: Json = {"type": "header", "mirrors": "vLLM 0.32.0", "config": {}, "requests": []}
BAD = {
    "no header": ([{"type": "step"}], "a log begins with a header that has config and requests"),
    "another engine": ([HEADER | {"mirrors": "TGI 3"}], "mirrors 'TGI 3': a log is of vLLM or SGLang"),
    "another version": ([HEADER | {"mirrors": "vLLM 0.99.0"}], "vllm has a twin of 0.11 to 0.33"),
    "no number": ([HEADER | {"mirrors": "vLLM latest"}], "latest is no version"),
    "no engine": ([HEADER], "num_gpu_blocks: Field required"),
    "no decisions": ([HEADER, {"type": "step"}], "a step has `sched`"),
    "not an object": ([3], "every line is a JSON object"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_log_is_one_line(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the file and what is missing."""
    rows, message = BAD[what]
    path = write(tmp_path / "log.jsonl", rows)
    assert run(["conformance", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "\x00\xff", "[1"])
def test_broken_files_are_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither JSON nor packed JSON."""
    for name in ("log.jsonl", "log.jsonl.xz"):
        (tmp_path / name).write_text(text, encoding="latin-1")
        assert run(["conformance", str(tmp_path / name)]) == 2
        assert "is not JSON lines" in capsys.readouterr().err


def test_folders_without_logs_and_goldens_without_scenarios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both say what is missing."""
    assert run(["conformance", str(tmp_path)]) == 2
    assert "no golden.jsonl" in capsys.readouterr().err
    write(tmp_path / "golden.jsonl", [{"name": "x", "mode": "sync", "vllm_version": "0.32.0"}])
    assert run(["conformance", str(tmp_path)]) == 2
    assert "golden x has no scenario" in capsys.readouterr().err


def test_without_a_path_the_twins_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """And what each is held to."""
    assert run(["conformance"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TWINS)
    assert "vLLM 0.33.0     every feature of the twin" in lines
