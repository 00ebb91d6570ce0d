"""What a measurement file says besides step times: memory beside the formula, and what was not measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from kvplan.calibrate.measurements import Row, read_rows
from kvplan.calibrate.session import batches_path
from kvplan.ground.errors import KvplanError

_OUTCOME = ("skipped", "time_s", "spread", "num_repeats", "noisy", "sm_clock_mhz", "power_w", "key", "_at",
            "floor_bytes", "floor_flops")  # fmt: skip
"""Fields that do not tell what was to be measured."""


class PoolCheck(NamedTuple):
    """Measured KV bytes per token of one real pool beside 2 * L * H * d * bytes."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    kv_dtype: str
    formula_bytes: int
    measured_bytes: float

    @property
    def error(self) -> float:
        """Relative excess of what was taken over the formula."""
        return self.measured_bytes / self.formula_bytes - 1


def pool_checks(path: Path) -> list[PoolCheck]:
    """Bytes per token of every real KV pool of a file, beside the formula; each once."""
    found = [
        PoolCheck(
            _positive(row, "num_layers"), _positive(row, "num_kv_heads"), _positive(row, "head_dim"),
            str(row.get("kv_dtype", "bf16")),
            _positive(row, "formula_bytes_per_token"), _positive(row, "bytes_per_token"),
        )
        for row in read_rows(path)
        if row["op"] == "memory_pool" and "skipped" not in row
    ]  # fmt: skip
    return list(dict.fromkeys(found))  # a run that was cut off counted its pools again


def _positive(row: Row, name: str) -> Any:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        raise KvplanError(f"{row['_at']}: {name} of a KV pool must be above 0, not {str(value)[:40]!r}")
    return value


def skipped_points(path: Path) -> dict[str, int]:
    """Why points of a file were not measured -> how many; those that a later run did measure are not counted."""
    rows = list(read_rows(path))
    measured = {point_of(row) for row in rows if "time_s" in row}
    missing = {point_of(row): row for row in rows if "skipped" in row and point_of(row) not in measured}
    has_batches = batches_path(path).exists()
    return dict(
        Counter(
            str(row["skipped"]) for row in missing.values() if not (has_batches and row["op"] == "batching")
        )
    )


def point_of(row: Row, apart: tuple[str, ...] = ()) -> str:
    """What was to be measured, without these fields besides."""
    return json.dumps({k: v for k, v in row.items() if k not in (*_OUTCOME, *apart)}, sort_keys=True)
