"""A log of finished requests: JSON lines that hold an OpenAI `usage` object, as proxies and clients write them.

Kept are token counts, a time, and a class's name; prompts and answers are not looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from kvplan.ground.errors import KvplanError

MOST = 1e9
"""Tokens of one request."""
_TIMES = ("time", "timestamp", "created", "ts", "end_time", "finish_s")
_CLASSES = ("class", "request_class", "prompt_class", "task", "tag")
_INPUT = ("prompt_tokens", "input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")


class Usage(NamedTuple):
    """One finished request."""

    prompt_tokens: float
    output_tokens: float
    """Thinking included."""
    thinking_tokens: float
    """NaN where usage does not tell."""
    time_s: float
    """NaN where the line has none."""
    request_class: str
    """As the line names it; empty where it does not."""


def read_usage(lines: Iterable[str], where: str = "the request log") -> tuple[Usage, ...]:
    """Read a log, one request a line. Lines without usage (errors, comments of a proxy) are passed over.

    Raises:
        KvplanError: a line that is no JSON, counts that are none, no request in it.
    """
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            usage = _of_line(line, f"{where}: line {number}")
            if usage is not None:
                found.append(usage)
    if not found:
        raise KvplanError(
            f"{where}: neither a /metrics page nor a log of usage; a line of such a log is e.g."
            ' {"usage": {"prompt_tokens": 9, ...}}'
        )
    return tuple(found)


def _of_line(line: str, where: str) -> Usage | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise KvplanError(f"{where} is not JSON") from None
    if not isinstance(row, dict):
        raise KvplanError(f"{where} is no JSON object")
    told = _usage_of(row)
    if told is None:
        return None
    prompt, output = (_count(told, names, where) for names in (_INPUT, _OUTPUT))
    if prompt is None or output is None:
        return None
    thinking = _thinking(told, where)
    return Usage(prompt, output, math.nan if thinking is None else thinking, _time(row), _class(row))


def _usage_of(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The usage object: of the line, of its response (also the Responses API's), or the line itself."""
    response = row.get("response")
    inner = response if isinstance(response, dict) else {}
    body = inner.get("body") if isinstance(inner.get("body"), dict) else {}
    for holder in (row, inner, body):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            return usage
    return row if any(name in row for name in _OUTPUT) else None


def _thinking(told: Mapping[str, Any], where: str) -> float | None:
    """reasoning_tokens: of the output's details, or beside the counts."""
    for name in ("completion_tokens_details", "output_tokens_details"):
        details = told.get(name)
        if isinstance(details, dict) and details.get("reasoning_tokens") is not None:
            return _count(details, ("reasoning_tokens",), where)
    return _count(told, ("reasoning_tokens", "thinking_tokens"), where)


def _count(told: Mapping[str, Any], names: Iterable[str], where: str) -> float | None:
    value = next((told[name] for name in names if told.get(name) is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        raise KvplanError(f"{where}: {next(iter(names))} is {str(value)[:40]!r}, no count of tokens")
    return float(value)


def _time(row: Mapping[str, Any]) -> float:
    value = next((row[name] for name in _TIMES if row.get(name) is not None), None)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value / 1000 if value > 1e11 else float(value)  # milliseconds since 1970
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError):
            return math.nan
    return math.nan


def _class(row: Mapping[str, Any]) -> str:
    metadata = row.get("metadata")
    for holder in (row, metadata if isinstance(metadata, dict) else {}):
        name = next((holder[key] for key in _CLASSES if isinstance(holder.get(key), str)), "")
        if name:
            return str(name)[:60]
    return ""
