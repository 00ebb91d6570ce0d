"""Trace readers: real requests with their times, lengths and shared prefixes, one reader per file format.

A row that is damaged or out of order is named by its number; nothing is guessed. Knows no clock and no engine.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from kvplan.config import Config
from kvplan.errors import KvplanError
from kvplan.workload.lengths import LONGEST

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens that one hash id of a Mooncake trace stands for (its README)."""


class TraceRow(NamedTuple):
    """One request of a trace."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    """Thinking and answer together."""
    thinking_tokens: int = 0
    block_ids: tuple[int, ...] = ()
    """Names of the prompt's consecutive blocks; the same name is the same content."""


class Trace(NamedTuple):
    """What a reader found."""

    rows: list[TraceRow]
    block_tokens: int
    """Tokens per entry of `block_ids`; 0 where the trace tells nothing about sharing."""
    num_bad_rows: int
    """Rows left out because they were damaged (only with `skip_bad_rows`)."""


class TraceSpec(Config):
    """A file of real requests."""

    path: str
    """Relative to the scenario file."""
    format: Literal["mooncake", "azure", "servegen", "vllm_bench", "csv"]
    """mooncake (JSONL with hash ids), azure, servegen (CSV), vllm_bench (JSON, JSONL), csv (any column names
    that the other formats use)."""
    limit: int | None = Field(None, ge=1)
    """Keep the first so many rows."""
    sample: float = Field(1.0, gt=0, le=1)
    """Keep this share of the rows, drawn at random, in their order."""
    skip_bad_rows: bool = False
    """Leave damaged rows out and count them, instead of refusing the file."""


def read_trace(spec: TraceSpec, folder: Path, rng: np.random.Generator) -> Trace:
    """Read, check, cut and sample a trace; its times start at 0.

    Raises KvplanError with the file and row for what cannot be read.
    """
    path = folder / spec.path
    if not path.is_file():
        raise KvplanError(f"workload.trace.path: {path} is not a file")
    found = _checked(_READERS[spec.format](path), path, spec)
    rows = found.rows
    if spec.sample < 1:
        rows = [row for row, u in zip(rows, rng.random(len(rows)), strict=True) if u < spec.sample]
    if not rows:
        raise KvplanError(f"{path}: no requests in it (rows skipped as damaged: {found.num_bad_rows})")
    start = rows[0].arrival_s
    return found._replace(rows=[row._replace(arrival_s=row.arrival_s - start) for row in rows])


def _checked(rows: Iterator[tuple[int, TraceRow | str]], path: Path, spec: TraceSpec) -> Trace:
    """Keep sound rows in order of time; a bad one is an error or, if so asked, a count."""
    kept: list[TraceRow] = []
    bad = 0
    for number, row in rows:
        problem = row if isinstance(row, str) else _problem(row, kept)
        if problem and not spec.skip_bad_rows:
            raise KvplanError(f"{path} row {number}: {problem}; --skip-bad-rows leaves such rows out")
        if problem:
            bad += 1
        elif not isinstance(row, str):
            kept.append(row)
        if len(kept) == spec.limit:
            break
    return Trace(kept, MOONCAKE_BLOCK_TOKENS if spec.format == "mooncake" else 0, bad)


def _problem(row: TraceRow, before: list[TraceRow]) -> str:
    """What is wrong with a row that could be parsed; empty if nothing."""
    if not 0 <= row.arrival_s < 1e12:
        return f"arrival time {row.arrival_s} s"
    if before and row.arrival_s < before[-1].arrival_s:
        return f"arrives at {row.arrival_s:g} s, before the row above it ({before[-1].arrival_s:g} s)"
    if not 1 <= row.prompt_tokens <= LONGEST:
        return f"{row.prompt_tokens} prompt tokens"
    if not 1 <= row.output_tokens <= LONGEST:
        return f"{row.output_tokens} output tokens"
    if not 0 <= row.thinking_tokens <= row.output_tokens:
        return f"{row.thinking_tokens} thinking tokens of {row.output_tokens} output tokens"
    return ""


# The columns of the CSV formats. Azure: AzurePublicDataset README; ServeGen: its released fields;
# arrived_at and num_*_tokens: Vidur; the rest: kvplan's own records and `vllm bench serve`.
_ARRIVAL = ("arrival_s", "timestamp", "arrived_at", "arrival_time", "start_time")
_PROMPT = ("prompt_tokens", "input_tokens", "contexttokens", "num_prefill_tokens", "input_length", "prompt_len",
           "input_len")  # fmt: skip
_OUTPUT = ("output_tokens", "generatedtokens", "num_decode_tokens", "output_length", "output_len",
           "completion_tokens")  # fmt: skip
_THINKING = ("reason_tokens", "thinking_tokens", "reasoning_tokens")
_NEEDED = {"azure": ("timestamp", "contexttokens", "generatedtokens"),
           "servegen": ("arrival_s", "input_tokens", "output_tokens", "reason_tokens")}  # fmt: skip


def _column(header: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((header[name] for name in names if name in header), None)


def _read_csv(path: Path, needed: tuple[str, ...] = ()) -> Iterator[tuple[int, TraceRow | str]]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        header = {name.strip().lower(): name for name in reader.fieldnames or ()}
        missing = [name for name in needed if name not in header]
        picked = [_column(header, names) for names in (_ARRIVAL, _PROMPT, _OUTPUT, _THINKING)]
        if missing or picked[1] is None or picked[2] is None:
            wanted = ", ".join(missing) or "prompt_tokens and output_tokens"
            raise KvplanError(f"{path}: columns {', '.join(header) or 'none'}; needs {wanted}")
        for number, record in enumerate(reader, start=2):
            yield number, _csv_row(record, picked)


def _csv_row(record: dict[str, Any], picked: list[str | None]) -> TraceRow | str:
    arrival, prompt, output, thinking = (record.get(c) if c else None for c in picked)
    if None in record:
        return "more fields than the header"
    try:
        return TraceRow(_seconds(arrival), _count(prompt), _count(output), _count(thinking or 0))
    except (ValueError, TypeError, OverflowError):
        return f"not numbers: {', '.join(str(record.get(c)) for c in picked if c)}"


def _count(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _seconds(value: Any) -> float:
    """Seconds from a number or from a date and time such as Azure's (seven digits of a second)."""
    if value in (None, ""):
        return 0.0
    try:
        return float(value)
    except ValueError:
        whole, _, fraction = str(value).strip().removesuffix("Z").split("+")[0].partition(".")
        date = datetime.fromisoformat(whole)
        return (date - datetime(2000, 1, 1)).total_seconds() + float(f"0.{fraction or 0}")


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each line; a line that is not a JSON object comes as what is wrong with it."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            yield number, found if isinstance(found, dict) else f"not a JSON object: {line.strip()[:40]}"


def _read_mooncake(path: Path) -> Iterator[tuple[int, TraceRow | str]]:
    for number, record in _json_lines(path):
        yield number, record if isinstance(record, str) else _mooncake_row(record)


def _mooncake_row(record: dict[str, Any]) -> TraceRow | str:
    try:
        ids = tuple(map(_count, record.get("hash_ids", ())))
        prompt, output = _count(record["input_length"]), _count(record["output_length"])
        row = TraceRow(float(record["timestamp"]) / 1e3, prompt, output, block_ids=ids)
    except (KeyError, ValueError, TypeError, OverflowError):
        return "needs timestamp, input_length, output_length and hash_ids, all numbers"
    if ids and not 0 <= len(ids) * MOONCAKE_BLOCK_TOKENS - row.prompt_tokens < MOONCAKE_BLOCK_TOKENS:
        return f"{len(ids)} hash ids of {MOONCAKE_BLOCK_TOKENS} tokens for {row.prompt_tokens} prompt tokens"
    return row


def _read_vllm_bench(path: Path) -> Iterator[tuple[int, TraceRow | str]]:
    """A result of `vllm bench serve --save-result --save-detailed` (one JSON), or one request per JSONL line."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and "input_lens" in whole:
        yield from _bench_rows(whole, path)
        return
    for number, record in _json_lines(path):
        yield number, record if isinstance(record, str) else _csv_row(record, _json_columns(record))


def _json_columns(record: dict[str, Any]) -> list[str | None]:
    header = {key.lower(): key for key in record}
    return [_column(header, names) for names in (_ARRIVAL, _PROMPT, _OUTPUT, _THINKING)]


def _bench_rows(result: dict[str, Any], path: Path) -> Iterator[tuple[int, TraceRow | str]]:
    lens, outs = result["input_lens"], result.get("output_lens")
    starts = result.get("start_times") or [0.0] * len(lens)
    if not (isinstance(lens, list) and isinstance(outs, list) and len(lens) == len(outs) == len(starts)):
        raise KvplanError(f"{path}: input_lens, output_lens and start_times must be lists of one length")
    order = sorted(range(len(lens)), key=lambda i: starts[i])
    for i in order:
        record = {"t": starts[i], "p": lens[i], "o": outs[i]}
        yield i + 1, _csv_row(record, ["t", "p", "o", None])


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, TraceRow | str]]]] = {
    "mooncake": _read_mooncake,
    "azure": lambda path: _read_csv(path, _NEEDED["azure"]),
    "servegen": lambda path: _read_csv(path, _NEEDED["servegen"]),
    "vllm_bench": _read_vllm_bench,
    "csv": _read_csv,
}
