"""How a plan's parts read: the memory table as text and HTML, sources cut to length, the engine's own log lines.

Functions of plain parts; `answers.Plan` puts them together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape

from kvplan.engines.flags import Engine
from kvplan.ground.tables import Table
from kvplan.ground.units import KiB, gib
from kvplan.memory.budget import Budget, Row

SCHEMA_VERSION = 1
"""Of the JSON documents of `kvplan estimate` and `kvplan reconcile`."""


def memory_table(budget: Budget, num_gpus: int, kv_of_a_token: str) -> Table:
    """One row per use of the fullest GPU's memory: GiB and source."""
    rows = tuple(
        (f"  {label:<29}", size, f" {source}") for label, size, source in _memory_rows(budget, kv_of_a_token)
    )
    return Table((_title(num_gpus), "GiB", ""), rows, frozenset({0, 2}))


def memory_html(budget: Budget, num_gpus: int, kv_of_a_token: str, lines: Iterable[str]) -> str:
    """The same rows as an HTML table, `lines` below it."""
    rows = [("use", "GiB", "source"), *_memory_rows(budget, kv_of_a_token)]
    cells = ["".join(f"<{tag}>{escape(text)}</{tag}>" for text in row) for tag, row in _tagged(rows)]
    table = "".join(f"<tr>{row}</tr>" for row in cells)
    below = "<br>".join(map(escape, lines))
    return f"<table><caption>{_title(num_gpus)}</caption>{table}</table><p>{below}</p>"


def _tagged(rows: list[tuple[str, str, str]]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    return (("td" if place else "th", row) for place, row in enumerate(rows))


def _title(num_gpus: int) -> str:
    return "Memory per GPU" + (f" (fullest of {num_gpus})" if num_gpus > 1 else "")


def _memory_rows(budget: Budget, kv_of_a_token: str) -> Iterator[tuple[str, str, str]]:
    """(label, GiB, source) of every use that is not zero."""
    for row in (budget.total, *budget.rows):
        if row.size.value or row.name in ("total", "kv_pool"):
            yield row.label, f"{gib(row.size.value):.2f}", short_source(_note(row, kv_of_a_token))


def _note(row: Row, kv_of_a_token: str) -> str:
    return f"{kv_of_a_token}, {row.source}" if row.name == "kv_pool" else row.source


def kib(num_bytes: int) -> str:
    """KiB, with one place where it is no whole number.

    >>> kib(2048), kib(2560)
    ('2', '2.5')
    """
    return f"{num_bytes / KiB:,.{0 if num_bytes % KiB == 0 else 1}f}"


def short_source(text: str, width: int = 88) -> str:
    """A source's first statement and its range; `--json` has the whole of it.

    >>> short_source("measured: start-up logs: V100 0.69 (0.18), RTX 4090 0.68 (0.19); agrees (0.50-0.95)", 40)
    'measured: start-up logs (0.50-0.95)'
    """
    if len(text) <= width:
        return text
    span = re.search(r" \([\d.,]+-[\d.,]+\)$", text)
    end = span.group() if span else ""
    for cut in (text.split("; ")[0], ": ".join(text.split(": ")[:2])):
        if len(cut.removesuffix(end) + end) <= width:
            break
    return cut.removesuffix(end) + end


def log_lines(
    engine: Engine, tokens: int, max_model_len: int, pool_bytes: int, concurrency: float
) -> list[str]:
    """What the engine itself would log of a pool of `tokens` tokens and `pool_bytes` bytes."""
    if engine == "sglang":
        return [f"max_total_num_tokens={tokens}, context_len={max_model_len}"]
    if engine == "tensorrt-llm":
        return [f"Allocated {gib(pool_bytes):.2f} GiB for max tokens in paged KV cache ({tokens})."]
    return [
        f"GPU KV cache size: {tokens:,} tokens",
        f"Maximum concurrency for {max_model_len:,} tokens per request: {concurrency:.2f}x",
    ]
