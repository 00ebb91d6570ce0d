"""Start-up logs with something broken in them: a report or one named error, never a traceback."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from drawn import examples
from places import FIXTURES

from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.observed.diagnosis.findings import findings
from kvplan.observed.patterns import ENGINES
from kvplan.observed.reconciliation import reconcile
from kvplan.observed.startup import read_log

LOGS = sorted((FIXTURES / "logs").rglob("*.txt")) + sorted((FIXTURES / "logs").rglob("*.log"))
ODD = (
    "0", "-1", "1", "3", "0.0", "-0.5", "1e40", "nan", "inf", "-inf", "None", "True", "[]", "{}", "''", "auto",
    "9" * 30, "9" * 400, "9" * 5000, "1,0,0", "0.00000001", "12345678901234567890", "\u0663\u0664", "\u00b2", "x" * 300,
)  # fmt: skip
"""Values that no engine prints."""
FLAGS = (
    "tensor-parallel-size", "pipeline-parallel-size", "decode-context-parallel-size", "max-model-len", "block-size",
    "max-num-seqs", "max-num-batched-tokens", "num-gpu-blocks-override", "kv-cache-memory-bytes", "kv-cache-dtype",
    "gpu-memory-utilization", "attention-backend", "mamba-block-size", "num-speculative-tokens", "dtype",
    "quantization",
)  # fmt: skip
NUMBERED = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _number(lines: list[str], draw: random.Random) -> None:
    """One number of one line becomes another value."""
    at = draw.randrange(len(lines))
    found = list(NUMBERED.finditer(lines[at]))
    if found:
        hit = draw.choice(found)
        lines[at] = lines[at][: hit.start()] + draw.choice(ODD) + lines[at][hit.end() :]


def _value(lines: list[str], draw: random.Random) -> None:
    """What stands after one colon, equals sign or flag becomes another value."""
    at = draw.randrange(len(lines))
    found = list(re.finditer(r"(?<=[:=] )[^\s,)}]+|(?<==)[^\s,)}]+|(?<=\w )[\w./-]+", lines[at]))
    if found:
        hit = draw.choice(found)
        lines[at] = lines[at][: hit.start()] + draw.choice(ODD) + lines[at][hit.end() :]


def _drop(lines: list[str], draw: random.Random) -> None:
    del lines[draw.randrange(len(lines))]


def _repeat(lines: list[str], draw: random.Random) -> None:
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))


def _cut(lines: list[str], draw: random.Random) -> None:
    at = draw.randrange(len(lines))
    lines[at] = lines[at][: draw.randrange(len(lines[at]) + 1)]


def _borrow(lines: list[str], draw: random.Random) -> None:
    """A line of another log."""
    other = draw.choice(LOGS).read_text().splitlines()
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(other))


def _flag(lines: list[str], draw: random.Random) -> None:
    """A flag that was not there, with a value that may not be one."""
    flag = draw.choice(FLAGS)
    lines.insert(0, f"vllm serve --{flag} {draw.choice((*ODD, '2', '7', '16', 'fp8', '4096', '0.5'))}")


KINDS: tuple[Callable[[list[str], random.Random], None], ...] = (
    _number, _number, _value, _drop, _repeat, _cut, _borrow, _flag,
)  # fmt: skip


def mutated(seed: int) -> str:
    """A log with one to three things broken; the same for the same seed."""
    draw = random.Random(seed)
    lines = draw.choice(LOGS).read_text().splitlines()
    for _ in range(draw.randint(1, 3)):
        if lines:
            draw.choice(KINDS)(lines, draw)
    return "\n".join(lines)


@pytest.mark.parametrize("block", range(6))
def test_a_broken_log_gives_a_report_or_a_named_error(block: int) -> None:
    """Seeded mutations: no exception but KvplanError, whose text is one short line; reports can be printed."""
    for seed in range(50 * block, 50 * block + examples(50)):
        try:
            found = reconcile(mutated(seed), gpu="h100", model="Qwen/Qwen3-8B" if seed % 3 == 0 else None)
            said = found.conclusion
            assert str(found).endswith(said), seed
        except KvplanError as error:
            said = str(error)
        assert 0 < len(said) < 2000, seed


def test_a_broken_log_has_causes_or_a_named_error() -> None:
    """Seeded mutations through `why`, with and without model and card: its document can be printed."""
    for seed in (60, 133, 147, *range(examples(47))):  # the first three once ended in a traceback
        gpu, model = ("h100" if seed % 4 else None), ("Qwen/Qwen3-8B" if seed % 3 == 0 else None)
        try:
            found = findings(mutated(seed), gpu=gpu, model=model)
            json.dumps(found.to_dict(), allow_nan=False)
            said = found.verdict
        except KvplanError as error:
            said = str(error)
        assert 0 < len(said) < 2000, seed


def printed_figures(text: str) -> list[tuple[int, int]]:
    """Where the figures of a log stand that the reader takes."""
    found = [
        match.span(1)
        for patterns in ENGINES.values()
        for pattern in patterns
        for line in re.finditer(r"[^\n]+", text)
        if pattern.literal in line[0]
        for match in pattern.regex.finditer(text, line.start(), line.end())
    ]
    return sorted(set(found))


@pytest.mark.parametrize("path", [p for p in LOGS if p.parent.name == "logs"], ids=lambda path: path.stem)
@pytest.mark.parametrize("huge", ["9" * 400, "9" * 17])
def test_no_figure_is_more_than_a_card_holds(path: Path, huge: str) -> None:
    """Every figure in turn, past any float and past any card: an error, or a document without infinities."""
    text = path.read_text()
    model = estimate("Qwen/Qwen3-8B", "h100").question.model
    for start, end in printed_figures(text):
        with suppress(KvplanError):
            json.dumps(
                reconcile(text[:start] + huge + text[end:], model=model, gpu="h100").to_dict(),
                allow_nan=False,
            )


@pytest.mark.parametrize("pasted", ["7", "7,", "7.", "-"])
def test_a_pasted_line_of_digits_costs_linear_time(pasted: str) -> None:
    """60,000 characters after every literal that a figure's line holds: read in a second each, not in minutes."""
    literals = sorted({pattern.literal for patterns in ENGINES.values() for pattern in patterns})
    begun = time.process_time()
    for literal in literals:
        with suppress(KvplanError):
            read_log(f"{literal} {pasted * (60_000 // len(pasted))}")
    assert time.process_time() - begun < len(literals)
