"""`python -m kvplan.conformance`: logs, hashes, and one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_conformance import golden, scenarios

from kvplan.conformance.__main__ import main

GOOD: dict[str, Any] = {
    "num_gpu_blocks": 20,
    "max_model_len": 200,
    "max_num_batched_tokens": 256,
    "requests": [
        {"id": "a", "output_len": 5, "prompt": [{"len": 30}]},
        {
            "id": "b",
            "output_len": 5,
            "prompt": [{"prompt_of": "a"}, {"output_of": "a", "len": 2}],
            "after": "a",
        },
    ],
}


def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scenario: object, *flags: str) -> int:
    """Run the command on a scenario; return its exit code."""
    path = tmp_path / "scenario.json"
    path.write_text(scenario if isinstance(scenario, str) else json.dumps(scenario))
    monkeypatch.setattr("sys.argv", ["kvplan.conformance", str(path), *flags])
    return main()


@pytest.mark.parametrize(("name", "flags"), [("s01_plain_cot", ()), ("mam_align_ckpt", ("--async",))])
def test_log_ends_with_the_hashes(
    name: str,
    flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One JSON object per step; the last line has vLLM's hash."""
    assert call(monkeypatch, tmp_path, scenarios()[name], *flags) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    log = golden()[name, "async" if flags else "sync"]
    assert [line["type"] for line in lines] == ["header", *["step"] * len(log["rows"]), "summary"]
    assert lines[-1]["sched_sha256"] == log["sched_sha256"]
    assert lines[-1].items() >= {k: v for k, v in log["summary"].items() if k != "prompt_tokens"}.items()


def test_output_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With -o the log goes to a file and the totals to the screen."""
    assert call(monkeypatch, tmp_path, GOOD, "-o", str(tmp_path / "log.jsonl")) == 0
    totals = json.loads(capsys.readouterr().out)
    assert totals == json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert totals["hit_tokens"] == 16


BAD = {
    "unknown key": (GOOD | {"blocksize": 3}, "blocksize"),
    "unknown request key": (GOOD | {"requests": [{"id": "a", "output": 5, "prompt": [1]}]}, "requests.0"),
    "negative count": (GOOD | {"max_num_seqs": -1}, "max_num_seqs"),
    "no blocks": (GOOD | {"num_gpu_blocks": 1}, "num_gpu_blocks"),
    "over max_model_len": (GOOD | {"max_model_len": 20}, "over max_model_len 20"),
    "cycle": (GOOD | {"requests": [r | {"after": "b"} for r in GOOD["requests"]]}, "wait for each other"),
    "unknown request": (GOOD | {"requests": [GOOD["requests"][0] | {"after": "x"}]}, "which is not there"),
    "the same id twice": (GOOD | {"requests": [GOOD["requests"][0]] * 2}, "twice"),
    "later prompt": (GOOD | {"requests": GOOD["requests"][::-1]}, "no earlier request"),
    "window missing": (GOOD | {"kv_cache_groups": [{"kind": "sliding_window"}]}, "needs `window`"),
    "unknown kind": (GOOD | {"kv_cache_groups": [{"kind": "mla"}]}, "kind"),
    "not chunked": (
        GOOD | {"enable_chunked_prefill": False, "max_num_batched_tokens": 64},
        "chunked prefill",
    ),
    "not JSON": ("{", "not JSON"),
    "a list": ("[]", "JSON object"),
    "prompt longer than the pool": (
        GOOD | {"requests": [{"id": "a", "output_len": 5, "prompt": [{"len": 150}]}], "num_gpu_blocks": 9},
        "needs 10 free KV blocks at once and the pool has 8",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line that says what is wrong, no traceback."""
    scenario, word = BAD[case]
    assert call(monkeypatch, tmp_path, scenario, "--summary") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert word in error


def test_outgrowing_the_pool_is_a_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that fits at first and outgrows the whole pool ends the run with exit code 1."""
    assert call(monkeypatch, tmp_path, scenarios()["stuck_grows"], "--summary") == 1
    assert "request g (100 prompt and 29 output tokens) needs 9 free KV blocks" in capsys.readouterr().err


def test_missing_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is one line too."""
    monkeypatch.setattr("sys.argv", ["kvplan.conformance", "/nowhere/x.json"])
    assert main() == 2
    assert capsys.readouterr().err == "error: /nowhere/x.json: No such file or directory\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--engine-version", "0.31"), "error: --engine-version 0.31: vllm has a twin of 0.32\n"),
        (
            ("--engine", "sglang", "--engine-version", "0.32"),
            "error: --engine-version 0.32: sglang has a twin of 0.5.23\n",
        ),
        (
            ("--engine", "sglang", "--leap"),
            "error: --leap is vLLM's leaping scheduler; leave it out for sglang\n",
        ),
    ],
)
def test_a_twin_that_is_not_there(
    flags: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Versions and schedulers without a twin are one line; the version that there is runs."""
    assert call(monkeypatch, tmp_path, GOOD, "--engine-version", "0.32", "--summary") == 0
    capsys.readouterr()
    assert call(monkeypatch, tmp_path, GOOD, *flags) == 2
    assert capsys.readouterr().err == message
