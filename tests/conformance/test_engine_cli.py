"""`python -m kvplan.conformance`: logs, hashes, and one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conformance.conftest import Command
from engine_conformance import golden, scenarios

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


@pytest.mark.parametrize(("name", "flags"), [("s01_plain_cot", ()), ("mam_align_ckpt", ("--async",))])
def test_log_ends_with_the_hashes(name: str, flags: tuple[str, ...], command: Command) -> None:
    """One JSON object per step; the last line has vLLM's hash."""
    said = command(scenarios()[name], *flags)
    assert said.code == 0
    lines = [json.loads(line) for line in said.out.splitlines()]
    log = golden()[name, "async" if flags else "sync"]
    assert [line["type"] for line in lines] == ["header", *["step"] * len(log["rows"]), "summary"]
    assert lines[-1]["sched_sha256"] == log["sched_sha256"]
    assert lines[-1].items() >= {k: v for k, v in log["summary"].items() if k != "prompt_tokens"}.items()


def test_output_file(tmp_path: Path, command: Command) -> None:
    """With -o the log goes to a file and the totals to the screen."""
    said = command(GOOD, "-o", str(tmp_path / "log.jsonl"))
    assert said.code == 0
    totals = json.loads(said.out)
    assert totals == json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert totals["hit_tokens"] == 16


BAD = {
    "unknown key": (GOOD | {"blocksize": 3}, "blocksize"),
    "unknown request key": (GOOD | {"requests": [{"id": "a", "output": 5, "prompt": [1]}]}, "requests.0"),
    "negative count": (GOOD | {"max_num_seqs": -1}, "max_num_seqs"),
    "no blocks": (GOOD | {"num_gpu_blocks": 1}, "num_gpu_blocks"),
    "more blocks than memory": (GOOD | {"num_gpu_blocks": 10**12}, "num_gpu_blocks"),
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
def test_bad_input_is_one_line(case: str, command: Command) -> None:
    """Exit code 2, one line that says what is wrong, no traceback."""
    scenario, word = BAD[case]
    said = command(scenario, "--summary")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    assert word in said.err


def test_outgrowing_the_pool_is_a_verdict(command: Command) -> None:
    """A request that fits at first and outgrows the whole pool ends the run with exit code 1."""
    said = command(scenarios()["stuck_grows"], "--summary")
    assert said.code == 1
    assert "request g (100 prompt and 29 output tokens) needs 9 free KV blocks" in said.err


def test_missing_file(command: Command) -> None:
    """A file that is not there is one line too."""
    said = command(Path("/nowhere/x.json"))
    assert (said.code, said.err) == (2, "error: /nowhere/x.json: No such file or directory\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--engine-version 0.34", "--engine-version 0.34: vllm has a twin of 0.11 to 0.33"),
        ("--engine sglang --engine-version 0.32", "--engine-version 0.32: sglang has a twin of 0.5.23"),
        ("--engine sglang --leap", "--leap is vLLM's leaping scheduler; leave it out for sglang"),
    ],
)
def test_a_twin_that_is_not_there(flags: str, message: str, command: Command) -> None:
    """Versions and schedulers without a twin are one line; the version that there is runs."""
    assert command(GOOD, "--engine-version", "0.32", "--summary").code == 0
    said = command(GOOD, *flags.split())
    assert (said.code, said.err) == (2, f"error: {message}\n")
