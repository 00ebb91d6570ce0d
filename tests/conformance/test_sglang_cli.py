"""`python -m kvplan.conformance --engine sglang`: logs, hashes, and one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conformance.conftest import Command
from sglang_conformance import golden, scenarios

GOOD: dict[str, Any] = {
    "max_total_tokens": 500,
    "max_model_len": 200,
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


SGLANG = ("--engine", "sglang")


@pytest.mark.parametrize(("mode", "flags"), [("normal", ()), ("overlap", ("--overlap",))])
def test_log_ends_with_the_hashes(mode: str, flags: tuple[str, ...], command: Command) -> None:
    """One header, one line per pass, and the totals of SGLang's own run."""
    name = "g06_multiturn_lru"
    said = command(scenarios()[name], *SGLANG, *flags)
    assert said.code == 0
    header, *steps, summary = map(json.loads, said.out.splitlines())
    log = golden()[name, mode]
    assert header["mirrors"] == "SGLang 0.5.23"
    assert len(steps) == log["all_rows"]
    for key in summary.keys() & log["summary"].keys():
        assert summary[key] == log["summary"][key], key
    assert summary["sched_sha256"] == log["sched_sha256"]


def test_a_follow_up_hits_what_was_generated(tmp_path: Path, command: Command) -> None:
    """Token granularity: all but the last of 32 tokens; --summary prints one line, -o writes the log to a file."""
    assert json.loads(command(GOOD, *SGLANG, "--summary").out)["hit_tokens"] == 31
    said = command(GOOD, *SGLANG, "-o", str(tmp_path / "log.jsonl"))
    assert said.code == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) > 10
    assert len(said.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_total_tokens": None}, "give num_gpu_blocks or max_total_tokens"),
        ({"policy": "random"}, "policy: Input should be"),
        ({"block_size": 64}, "max_total_tokens 500 is no multiple of page_size 64"),
        ({"radix_eviction_policy": "mru"}, "radix_eviction_policy: Input should be 'lru' or 'lfu'"),
        ({"watermark": 0.1}, "watermark: Extra inputs"),
        ({"requests": [{"id": "a", "output_len": 1, "prompt": []}]}, "request a has an empty prompt"),
        ({"policy": "shortest-prefill-first", "enable_prefix_caching": False}, "needs the radix cache"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, Any], message: str, command: Command) -> None:
    """Exit code 2, the key and what is wrong with it."""
    said = command(GOOD | change, *SGLANG)
    assert said.code == 2
    assert message in said.err
    assert len(said.err.splitlines()) == 1


def test_a_request_that_never_fits_is_stuck(command: Command) -> None:
    """Without the radix cache and with a known length, admission wants a token to spare for ever."""
    request = {"id": "a", "output_len": 60, "ignore_eos": True, "prompt": [{"len": 40}]}
    scenario = {"max_total_tokens": 102, "max_model_len": 200, "enable_prefix_caching": False}
    said = command(scenario | {"requests": [request]}, *SGLANG, "--summary")
    assert said.code == 1
    assert "stuck" in said.err
