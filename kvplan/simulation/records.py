"""One flat record per request that left the system: 64-bit integers in one array, 23 of them a request.

A million requests take 184 MB. Times are picoseconds of the simulator's clock; statistics live in `metrics`.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.ground.errors import KvplanError
from kvplan.ground.files import safe_cell, written_whole
from kvplan.ground.units import TICKS_PER_S

UNSET = -1
"""In a request or a record, instead of a time or a count: it did not happen (yet)."""

FINISH_REASONS = ("stop", "length", "timeout", "rejected", "refused", "unfinished", "pruned")
"""stop = ended by itself, length = cut by max_tokens, timeout = the client left, rejected = can never fit,
refused = the queue was full, unfinished = the run ended first, pruned = ended by a strategy or under pressure."""


class Record(NamedTuple):
    """A request's life. Ticks are picoseconds, `UNSET` = did not happen. Times are a client's unless named engine_."""

    request_id: int
    arrival: int
    engine_arrival: int
    """The engine has it: the API server is done with the prompt."""
    scheduled: int
    """First admission into a batch, in the engine."""
    first_token: int
    """First token of any kind (vLLM's TTFT)."""
    first_visible: int
    """First token after the thinking."""
    finish: int
    engine_first_token: int
    """The end of the step that gave it; the client's is later by the API server."""
    engine_finish: int
    prompt_tokens: int
    output_tokens: int
    """Generated and kept."""
    thinking_tokens: int
    num_preemptions: int
    recomputed_tokens: int
    """Tokens computed again after preemptions."""
    hit_tokens: int
    """Prompt tokens found in the prefix cache at the first admission."""
    discarded_tokens: int
    """Tokens computed and thrown away: after an EOS under asynchronous scheduling, or of an aborted request."""
    kv_token_us: int
    """Integral of the tokens held in the cache over time, token-microseconds."""
    finish_reason: int
    """Index into `FINISH_REASONS`."""
    class_id: int
    replica: int
    """The (last) replica that served it."""
    session: int
    """Row of the session's first turn, or the problem's id; the request itself when it has none."""
    turn: int
    """0 for the first; the branch's id under a strategy."""
    preempted_ticks: int
    """Time between a preemption and the next token."""


_TIMES = (
    "arrival", "engine_arrival", "scheduled", "first_token", "first_visible", "finish", "engine_first_token",
    "engine_finish",
)  # fmt: skip


SUMMARY_FIELDS = (
    "arrival", "engine_arrival", "scheduled", "first_token", "first_visible", "finish", "engine_first_token",
    "engine_finish", "prompt_tokens", "output_tokens", "thinking_tokens",
    "hit_tokens", "discarded_tokens", "kv_token_us", "finish_reason", "class_id",
)  # fmt: skip
"""What the report needs of each request; the rest of a record can be left out of memory."""


@dataclass(slots=True)
class Records:
    """All records of a run, in the order in which requests ended."""

    class_names: list[str]
    kv_bytes_per_token: float = 0.0
    fields: tuple[str, ...] = Record._fields
    """The fields that are kept, in the order of `Record`."""
    _flat: array[int] = field(default_factory=lambda: array("q"))
    _pick: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None

    def keep(self, fields: tuple[str, ...]) -> None:
        """Keep only these fields of the records to come."""
        self.fields = fields
        self._pick = itemgetter(*map(Record._fields.index, fields))

    def add(self, record: tuple[int, ...]) -> None:
        """Append one record, given in the order of `Record`."""
        self._flat.extend(record if self._pick is None else self._pick(record))

    def __len__(self) -> int:
        return len(self._flat) // len(self.fields)

    @property
    def table(self) -> NDArray[np.int64]:
        """The records as an (n, fields) array of integers, without a copy."""
        width = len(self.fields)
        found = np.frombuffer(self._flat, np.int64) if self._flat else np.zeros(0, np.int64)
        return found.reshape(-1, width)

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        """One column by its name in `Record`."""
        return self.table[:, self.fields.index(name)]

    def seconds(self, name: str) -> NDArray[np.float64]:
        """A column of times in seconds; NaN where it did not happen."""
        ticks = self[name]
        return np.where(ticks == UNSET, np.nan, ticks / TICKS_PER_S)

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Which requests got their whole answer."""
        return self["finish_reason"] <= FINISH_REASONS.index("length")

    def columns(self) -> dict[str, NDArray[Any]]:
        """The records as users read them: seconds, names, byte-seconds; sorted by request."""
        order = np.argsort(self["request_id"], kind="stable")
        found: dict[str, NDArray[Any]] = {}
        for name in Record._fields:
            is_time = name in _TIMES
            found[f"{name}_s" if is_time else name] = (self.seconds(name) if is_time else self[name])[order]
        found["first_visible_token_s"] = found.pop("first_visible_s")
        found["kv_gib_s"] = found.pop("kv_token_us") * (self.kv_bytes_per_token / 1e6 / 2**30)
        found["preempted_s"] = found.pop("preempted_ticks") / TICKS_PER_S
        found["finish_reason"] = np.array(FINISH_REASONS)[found["finish_reason"]]
        found["class"] = np.array(self.class_names)[found.pop("class_id")]
        return {name: found[name] for name in CSV_COLUMNS}


CSV_COLUMNS = (
    "request_id", "class", "arrival_s", "scheduled_s", "prompt_tokens", "output_tokens", "thinking_tokens",
    "first_token_s", "first_visible_token_s", "finish_s", "finish_reason", "num_preemptions", "preempted_s",
    "recomputed_tokens", "hit_tokens", "discarded_tokens", "kv_gib_s", "replica", "session", "turn",
    "engine_arrival_s", "engine_first_token_s", "engine_finish_s",
)  # fmt: skip
"""The columns of `--records`; seconds count from the start of the run, empty = did not happen."""


def write_records(records: Records, path: Path) -> None:
    """Write the records as CSV, JSONL or Parquet, by the file's suffix. Raises KvplanError if that cannot be."""
    check_target(path)
    try:
        _WRITERS[path.suffix](records.columns(), path)
    except OSError as error:
        raise KvplanError(f"--records {path}: {error.strerror or error}") from None


def check_target(path: Path) -> None:
    """Raise KvplanError for a suffix that no records are written as."""
    if path.suffix not in _WRITERS:
        raise KvplanError(f"--records {path}: the name must end in {', '.join(_WRITERS)}")


def _rows(columns: dict[str, NDArray[Any]]) -> zip[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in columns.values()), strict=True)


def _write_csv(columns: dict[str, NDArray[Any]], path: Path) -> None:
    with written_whole(path, newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(columns)
        out.writerows([_plain(v) for v in row] for row in _rows(columns))


def _plain(value: Any) -> Any:
    """Nine decimals of a second, nothing where nothing happened, and no name that a spreadsheet would run."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.9f}".rstrip("0").rstrip(".")
    return safe_cell(value)


def _write_jsonl(columns: dict[str, NDArray[Any]], path: Path) -> None:
    with written_whole(path) as file:
        for row in _rows(columns):
            values = (None if isinstance(v, float) and v != v else v for v in row)
            file.write(json.dumps(dict(zip(columns, values, strict=True))) + "\n")


def _write_parquet(columns: dict[str, NDArray[Any]], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise KvplanError(f"--records {path}: Parquet needs pyarrow: pip install 'kvplan[sweep]'") from None
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    with written_whole(path, mode="wb") as file:
        pq.write_table(table, file)


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
