"""What `estimate` offers instead: every printed option, run as a command, fits; no flag comes twice; nothing spare."""

from __future__ import annotations

import json
import shlex
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest
from drawn import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvplan.cli.main import run, spell
from kvplan.memory.forward import estimate
from kvplan.memory.inverse import what_would_fit

QWEN, QWQ, R1 = "Qwen/Qwen3-8B", "Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1"
HYBRID, OSS = "Qwen/Qwen3-Next-80B-A3B-Instruct", "openai/gpt-oss-20b"
Capture = pytest.CaptureFixture[str]


def maybe(flag: str, *values: object) -> st.SearchStrategy[list[str]]:
    """A flag with one of some values, or not at all."""
    return st.sampled_from([[], *([flag, str(value)] for value in values)])


LINES = st.tuples(
    st.sampled_from([[QWEN], [QWQ], [R1], [HYBRID], [OSS]]),
    st.sampled_from([["--gpu", gpu] for gpu in ("h100", "l4", "rtx-4090", "v100-32gb", "h200")]),
    maybe("--engine", "vllm@0.11", "vllm@0.19", "sglang", "tensorrt-llm"),
    maybe("-tp", 2, 8),
    maybe("--max-model-len", 600, 8192, 40_000),
    maybe("--max-num-seqs", 4, 300),
    maybe("--gpu-memory-utilization", 0.5, 0.8),
    maybe("--kv-cache-dtype", "bfloat16", "fp8"),
    st.sampled_from([[], ["--input-len", "512", "--output-len", "16K"], ["--input-len", "512", "--output-len", "112"]]),
    maybe("--num-samples", 8, 64),
    maybe("--num-requests", 40, 512),
).map(lambda parts: [word for part in parts for word in part])  # fmt: skip


def ask(words: list[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and document of `kvplan estimate ... --json`; the document is empty where the question is refused."""
    with redirect_stdout(StringIO()) as out:
        code = run(["estimate", *words, "--json"])
    return code, json.loads(out.getvalue()) if out.getvalue() else {}


def pairs(words: list[str]) -> dict[str, str]:
    """Flag -> value; fails where a flag comes twice."""
    flags = spell(words)[::2]
    assert len(set(flags)) == len(flags), words
    return dict(zip(flags, words[1::2], strict=True))


@settings(max_examples=examples(60))
@given(LINES)
@example(
    [
        QWEN,
        "--gpu",
        "h100",
        "-tp",
        "2",
        "--input-len",
        "512",
        "--output-len",
        "112",
        "--num-requests",
        "512",
        "--max-num-seqs",
        "300",
        "--max-model-len",
        "600",
    ]
)
@example([QWQ, "--gpu", "h100", "--input-len", "512", "--output-len", "16K", "--num-samples", "64"])
@example([R1, "--gpu", "h100", "--input-len", "512", "--output-len", "16K", "--num-requests", "512"])  # fmt: skip
def test_every_printed_option_fits_when_run(line: list[str]) -> None:
    """The asked line with the printed flags in place of its own fits; so does the whole command of the document."""
    code, document = ask(line)
    assert code in (0, 1, 2)
    if code == 2:
        return
    for option in document["what_would_fit"]:
        changed = pairs(line[1:]) | pairs(shlex.split(option["change"]))
        again, answer = ask([line[0], *(word for pair in changed.items() for word in pair)])
        assert (again, answer["fits"]) == (0, True), option["change"]
        assert answer["traces"]["at_once"] == option["traces_at_once"]
        command = shlex.split(option["command"])
        assert command[:3] == ["kvplan", "estimate", line[0]]
        flags = [word.partition("=")[0] for word in command[3:]]
        assert len(set(flags)) == len(flags), option["command"]
        assert ask(command[2:]) == (0, answer)


@settings(max_examples=examples(30))
@given(LINES)
@example([QWEN, "--gpu", "l4", "--engine", "tensorrt-llm", "--input-len", "512", "--output-len", "16K"])
def test_no_option_has_a_flag_to_spare(line: list[str]) -> None:
    """With one of its flags taken back, an option does not fit any more."""
    _, document = ask(line)
    for option in document.get("what_would_fit", ()):
        change = pairs(shlex.split(option["change"]))
        for spared in change if len(change) > 1 else ():
            fewer = pairs(line[1:]) | {flag: value for flag, value in change.items() if flag != spared}
            again, _ = ask([line[0], *(word for pair in fewer.items() for word in pair)])
            assert again != 0, (option["change"], spared)


@pytest.mark.parametrize(
    ("words", "cards"),
    [
        ([QWQ, "--gpu", "h100", "--num-samples", "64"], "8 cards"),
        ([R1, "--gpu", "h100", "--num-requests", "512"], "128 cards"),
        ([QWEN, "--gpu", "l4", "--num-requests", "512"], "80 cards"),
    ],
)
def test_far_from_fitting_cards_are_counted(words: list[str], cards: str, capsys: Capture) -> None:
    """How many cards, as ranks and copies, and who ranks them; no command of what does not start."""
    assert run(["estimate", *words, "--input-len", "512", "--output-len", "16K"]) == 1
    out = capsys.readouterr().out
    assert cards in out
    assert "kvplan plan" in out


def test_what_is_never_served_is_no_command(capsys: Capture) -> None:
    """Neither a plan that does not start nor one that refuses every asked trace has a command to copy."""
    short = [QWEN, "--max-model-len", "600", "--input-len", "512", "--output-len", "112"]
    for words in (["meta-llama/Llama-3.1-70B"], short):
        assert run(["estimate", *words]) == 1
        assert "vllm serve" not in capsys.readouterr().out
        assert ask(words)[1]["serve_command"] is None
        assert run(["serve-command", *words]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
    waves = [QWEN, "--input-len", "512", "--output-len", "16K", "--num-samples", "64"]
    assert run(["serve-command", *waves]) == 1
    assert capsys.readouterr().out.startswith("vllm serve")


def test_one_option_is_kept_at_both_limits() -> None:
    """Context and batch are both too small: one option changes both, in the words of the command."""
    plan = estimate(
        QWEN, "h100", max_num_seqs=300, max_model_len=600, input_len=512, output_len=112, num_requests=512
    )
    assert what_would_fit(plan)[0].change == "--max-model-len 624 --max-num-seqs 512"
