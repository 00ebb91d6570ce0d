"""The answer is to the asked question: the asked checkpoint, flags that the engine takes, advice that runs."""

from __future__ import annotations

import json

import pytest

from kvplan.cli.main import run

INSTRUCT, THINKING = "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B-Thinking-2507"
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("written", ["shell", "yaml"])
def test_the_command_serves_the_asked_checkpoint(engine: str, written: str, capsys: Capture) -> None:
    """An alias shares another checkpoint's config, not its weights."""
    command = ["serve-command", INSTRUCT.lower(), "-tp", "2", "--max-model-len", "8192", "--engine", engine]
    assert run([*command, "--format", written]) == 0
    out, err = capsys.readouterr()
    assert THINKING not in out
    assert f"{INSTRUCT} is planned as {THINKING}" in err
    assert INSTRUCT in out or (engine, written) == ("tensorrt-llm", "yaml")


def test_the_document_names_the_asked_checkpoint(capsys: Capture) -> None:
    assert run(["estimate", INSTRUCT, "-tp", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["inputs"]["model"], document["inputs"]["planned_as"]) == (INSTRUCT, THINKING)
    assert f"vllm serve {INSTRUCT} " in document["serve_command"] + " "
    assert run(["estimate", INSTRUCT, "-tp", "2"]) == 0
    assert f"{INSTRUCT} is planned as {THINKING}." in capsys.readouterr().out
