"""Trace readers: real requests with their times, lengths and shared prefixes, one reader per file format.

A row that is damaged or out of order is named by its number; nothing is guessed. Knows no clock and no engine.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError
from kvplan.workload.arrivals import Arrivals
from kvplan.workload.bench_result import BenchResult, bench_result, json_lines, read_text
from kvplan.workload.lengths import LONGEST


class TraceRow(NamedTuple):
    """One request of a trace."""

    arrival_s: float | None
    """None = the file has no times."""
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
    """Rows left out: damaged ones (only with `skip_bad_rows`), and requests that failed."""
    num_failed: int = 0
    """How many of them are requests that the file itself says have failed."""
    sent: Arrivals | None = None
    """How a benchmark was told to send, where its result has no times."""

    @property
    def has_times(self) -> bool:
        """Whether its requests can be replayed."""
        return self.rows[0].arrival_s is not None


class TraceSpec(Config):
    """A file of real requests."""

    path: str
    """Relative to the scenario file."""
    format: Literal[
        "mooncake", "qwen_bailian", "azure", "servegen", "burstgpt", "vllm_bench", "aiperf", "csv"
    ]
    """mooncake (JSONL with hash ids, milliseconds; also AIPerf's input files), qwen_bailian (the same in seconds),
    azure, servegen, burstgpt (CSV), vllm_bench (JSON, JSONL; SGLang's too), aiperf (its profile_export.jsonl), csv
    (any column names that the other formats use)."""
    block_size: int | None = Field(None, ge=1, le=1_000_000)
    """Prompt tokens that one hash id stands for; None = the format's: mooncake 512, qwen_bailian 16."""
    limit: int | None = Field(None, ge=1, le=10**9)
    """Keep the first so many rows."""
    sample: float = Field(1.0, gt=0, le=1)
    """Keep this share of the rows, drawn at random, in their order."""
    skip_bad_rows: bool = False
    """Leave damaged rows out and count them, instead of refusing the file."""


class _Hashed(NamedTuple):
    """JSONL with the hashes of a prompt's blocks; both formats' READMEs."""

    block_tokens: int
    per_second: float
    """Units of `timestamp` in a second."""


_HASHED = {"mooncake": _Hashed(512, 1e3), "qwen_bailian": _Hashed(16, 1.0)}
_SAYS_FAILURES = ("burstgpt", "vllm_bench", "aiperf")
"""Formats in which 0 output tokens mean that the request failed, not that the row is damaged."""


def read_trace(spec: TraceSpec, folder: Path, rng: np.random.Generator) -> Trace:
    """Read, check, cut and sample a trace; its times start at 0.

    Raises KvplanError with the file and row for what cannot be read.
    """
    path = folder / spec.path
    try:
        if not path.is_file():
            raise KvplanError(f"workload.trace.path: {str(path)[:200]} is not a file")
        found = _read(path, spec)
    except (OSError, csv.Error) as error:
        raise KvplanError(f"{path}: cannot be read ({error})") from None
    rows = found.rows
    if spec.sample < 1:
        rows = [row for row, u in zip(rows, rng.random(len(rows)), strict=True) if u < spec.sample]
    if not rows:
        raise KvplanError(f"{path}: no requests in it (rows left out: {found.num_bad_rows})")
    start = rows[0].arrival_s
    if start:
        rows = [row._replace(arrival_s=row.arrival_s - start) for row in rows if row.arrival_s is not None]
    return found._replace(rows=rows)


def _read(path: Path, spec: TraceSpec) -> Trace:
    bench = bench_result(read_text(path), path) if spec.format == "vllm_bench" else None
    if bench is not None:
        return _checked(_bench_rows(bench), path, spec)._replace(sent=bench.sent)
    hashed = _HASHED.get(spec.format)
    if hashed is None:
        return _checked(_READERS[spec.format](path), path, spec)
    hashed = hashed._replace(block_tokens=spec.block_size or hashed.block_tokens)
    return _checked(_read_hashed(path, hashed), path, spec)._replace(block_tokens=hashed.block_tokens)


def _checked(rows: Iterator[tuple[int, TraceRow | str]], path: Path, spec: TraceSpec) -> Trace:
    """Keep sound rows in order of time; a failed request is counted, a bad row an error or, if so asked, counted."""
    kept: list[TraceRow] = []
    bad = failed = 0
    says_failures = spec.format in _SAYS_FAILURES
    for number, row in rows:
        if says_failures and isinstance(row, TraceRow) and row.output_tokens == 0:
            failed += 1
            continue
        problem = row if isinstance(row, str) else _problem(row, kept)
        if problem and not spec.skip_bad_rows:
            raise KvplanError(f"{path} row {number}: {problem}; --skip-bad-rows leaves such rows out")
        if problem:
            bad += 1
        elif not isinstance(row, str):
            kept.append(row)
        if len(kept) == spec.limit:
            break
    return Trace(kept, 0, bad + failed, failed)


def _problem(row: TraceRow, before: list[TraceRow]) -> str:
    """What is wrong with a row that could be parsed; empty if nothing."""
    last = before[-1].arrival_s if before else row.arrival_s
    if (row.arrival_s is None) != (last is None):
        return "no arrival time, unlike rows above it" if row.arrival_s is None else "rows above have no time"
    if row.arrival_s is not None and last is not None:
        if not 0 <= row.arrival_s < 1e12:
            return f"arrival time {row.arrival_s} s"
        if row.arrival_s < last:
            return f"arrives at {row.arrival_s:g} s, before the row above it ({last:g} s)"
    if not 1 <= row.prompt_tokens <= LONGEST:
        return f"{row.prompt_tokens} prompt tokens"
    if not 1 <= row.output_tokens <= LONGEST:
        return f"{row.output_tokens} output tokens"
    if not 0 <= row.thinking_tokens <= row.output_tokens:
        return f"{row.thinking_tokens} thinking tokens of {row.output_tokens} output tokens"
    return ""


# The columns of the CSV formats. Azure: AzurePublicDataset README; ServeGen: its released fields; BurstGPT: its
# released files; arrived_at and num_*_tokens: Vidur; the rest: kvplan's own records and `vllm bench serve`.
_ARRIVAL = ("arrival_s", "timestamp", "arrived_at", "arrival_time", "start_time")
_PROMPT = ("prompt_tokens", "input_tokens", "contexttokens", "num_prefill_tokens", "input_length", "prompt_len",
           "input_len", "request tokens")  # fmt: skip
_OUTPUT = ("output_tokens", "generatedtokens", "num_decode_tokens", "output_length", "output_len",
           "completion_tokens", "response tokens")  # fmt: skip
_THINKING = ("reason_tokens", "thinking_tokens", "reasoning_tokens")
_NEEDED = {"azure": ("timestamp", "contexttokens", "generatedtokens"),
           "burstgpt": ("timestamp", "request tokens", "response tokens")}  # fmt: skip


def _column(header: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((header[name] for name in names if name in header), None)


def _read_csv(path: Path, needed: tuple[str, ...] = ()) -> Iterator[tuple[int, TraceRow | str]]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
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


def _seconds(value: Any) -> float | None:
    """Seconds from a number or from a date and time such as Azure's (seven digits of a second)."""
    if value in (None, ""):
        return None
    try:
        return float(value)
    except ValueError:
        whole, _, fraction = str(value).strip().removesuffix("Z").split("+")[0].partition(".")
        date = datetime.fromisoformat(whole).replace(tzinfo=None)
        return (date - datetime(2000, 1, 1)).total_seconds() + float(f"0.{fraction or 0}")


def _read_hashed(path: Path, kind: _Hashed) -> Iterator[tuple[int, TraceRow | str]]:
    for number, record in json_lines(path):
        yield number, record if isinstance(record, str) else _hashed_row(record, kind)


def _hashed_row(record: dict[str, Any], kind: _Hashed) -> TraceRow | str:
    try:
        ids = tuple(map(_count, record.get("hash_ids") or ()))
        prompt, output = _count(record["input_length"]), _count(record["output_length"])
        row = TraceRow(float(record["timestamp"]) / kind.per_second, prompt, output, block_ids=ids)
    except (KeyError, ValueError, TypeError, OverflowError):
        return "needs timestamp, input_length, output_length and hash_ids, all numbers"
    size = kind.block_tokens
    if ids and not 0 <= len(ids) * size - prompt < size:
        return f"{len(ids)} hash ids of {size} tokens for {prompt} prompt tokens; say trace.block_size"
    return row


def _read_requests(path: Path) -> Iterator[tuple[int, TraceRow | str]]:
    """One request per JSONL line, under the names that the CSV formats use."""
    for number, record in json_lines(path):
        yield number, record if isinstance(record, str) else _csv_row(record, _json_columns(record))


def _json_columns(record: dict[str, Any]) -> list[str | None]:
    header = {key.lower(): key for key in record}
    return [_column(header, names) for names in (_ARRIVAL, _PROMPT, _OUTPUT, _THINKING)]


def _bench_rows(result: BenchResult) -> Iterator[tuple[int, TraceRow | str]]:
    starts = result.start_times
    count = range(len(result.input_lens))
    for i in count if starts is None else sorted(count, key=lambda i: float(starts[i])):
        record = {"t": starts and starts[i], "p": result.input_lens[i], "o": result.output_lens[i]}
        yield i + 1, _csv_row(record, ["t", "p", "o", None])


def _read_aiperf(path: Path) -> Iterator[tuple[int, TraceRow | str]]:
    """AIPerf's `profile_export.jsonl`: a record per request in order of its end; here in order of its start."""
    found = [(number, row if isinstance(row, str) else _aiperf_row(row)) for number, row in json_lines(path)]
    yield from sorted(found, key=lambda entry: _start(entry[1]))


def _start(row: TraceRow | str) -> float:
    return (row.arrival_s or 0.0) if isinstance(row, TraceRow) and row.arrival_s == row.arrival_s else 0.0


def _aiperf_row(record: dict[str, Any]) -> TraceRow | str:
    """AIPerf's docs/tutorials/working-with-profile-exports.md; a failed request has an `error`."""
    metrics: Any = record.get("metrics")
    said: Any = record.get("metadata")
    if record.get("error") is not None:
        return TraceRow(None, 1, 0)
    try:
        start = float(said["request_start_ns"]) / 1e9
        prompt, output = (_count(metrics[f"{name}_sequence_length"]["value"]) for name in ("input", "output"))
        thinking = (
            _count(metrics["reasoning_token_count"]["value"]) if "reasoning_token_count" in metrics else 0
        )
        return TraceRow(start, prompt, output, thinking)
    except (KeyError, ValueError, TypeError, OverflowError):
        return "needs metadata.request_start_ns, and metrics input_sequence_length and output_sequence_length"


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, TraceRow | str]]]] = {
    "azure": partial(_read_csv, needed=_NEEDED["azure"]),
    "servegen": lambda path: _read_requests(path) if path.suffix == ".jsonl" else _read_csv(path),
    "burstgpt": partial(_read_csv, needed=_NEEDED["burstgpt"]),
    "vllm_bench": _read_requests,
    "aiperf": _read_aiperf,
    "csv": _read_csv,
}
