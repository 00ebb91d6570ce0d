"""Reading measurement files: JSONL in, checked rows by family out. The format is `calibration/README.md`.

A family is what shares coefficients: `gemm.bf16`, `gqa.fp8`, `mla.bf16`, `moe.bf16`, `reduce.4`, `step`.
Every complaint names file and line. Knows the format, not the physics.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvplan.ground.errors import KvplanError, did_you_mean

Row = dict[str, Any]

SCHEMA_VERSION = 1
_TIME_UNITS = {"time_s": 1.0, "time_ms": 1e-3, "time_us": 1e-6, "time_ns": 1e-9}
_SHORT = {"bfloat16": "bf16", "float16": "bf16", "bf16": "bf16", "fp16": "bf16", "auto": "bf16"}

LARGEST = 1e30
"""Of any number in a row: beyond all bytes, FLOPs and nanoseconds that a step can take."""
IGNORED = (
    "host_step",
    "copy",
    "sampling",
    "draft_step",
    "verify_step",
    "eager_mixed_step",
    "shared_attention",
    "batching",
    "stage",
    "done",
)
"""Ops that are read and kept in the file, not fitted."""
_ATTENTION = ("num_heads", "num_kv_heads", "head_dim")
_REQUIRED: dict[str, tuple[str, ...]] = {
    "gemm": ("num_tokens", "out_features", "in_features"),
    "moe": ("num_tokens", "hidden_size", "intermediate_size", "num_experts", "experts_per_token"),
    "decode_attention": (*_ATTENTION, "num_decodes", "decode_context"),
    "prefill_attention": (*_ATTENTION, "num_prefill_tokens", "prefill_attention"),
    "mixed_attention": (
        *_ATTENTION,
        "num_decodes",
        "decode_context",
        "num_prefill_tokens",
        "prefill_attention",
    ),
    "mla_decode": ("num_heads", "kv_lora_rank", "qk_rope_head_dim", "num_decodes", "decode_context"),
    "mla_module": ("num_heads", "kv_lora_rank", "qk_rope_head_dim", "hidden_size", "q_lora_rank"),
    "all_reduce": ("num_ranks", "num_bytes"),
    "decode_step": ("num_decodes", "decode_context"),
    "prefill_step": ("num_prefill_tokens", "prefill_attention"),
    "mixed_step": ("num_decodes", "decode_context", "num_prefill_tokens", "prefill_attention"),
    "eager_step": ("num_decodes", "decode_context"),
    "host_link": ("num_bytes",),
    "file_read": ("file_bytes", "num_files", "num_threads"),
    "file_write": ("file_bytes", "num_files", "num_threads"),
    **dict.fromkeys(IGNORED, ()),
}
"""Fields an op cannot do without, besides its time."""
LINK_OPS = ("host_link", "file_read", "file_write")
STEP_OPS = ("decode_step", "prefill_step", "mixed_step")


class Measurements(NamedTuple):
    """All rows of some files that belong to one machine and one engine."""

    machine: Row
    families: dict[str, list[Row]]
    skipped: int
    """Rows marked `skipped` or `noisy`."""
    memory: Sequence[Row] = ()
    """What pools, context, activations and graphs took; not timed."""
    links: Sequence[Row] = ()
    """Copies to and from host memory and files; no part of a step."""
    eager: Sequence[Row] = ()
    """Decode steps outside CUDA graphs, of a card whose other steps are in them: they tell launches."""


def read_measurements(paths: Iterable[Path]) -> Measurements:
    """Read and check files; one machine and one engine in all of them."""
    return collect(row for path in paths for row in read_rows(path))


def collect(rows: Iterable[Row]) -> Measurements:
    """Sort checked rows into families; rows carry `_at`, where they came from, for complaints."""
    machine: Row = {}
    families: dict[str, list[Row]] = defaultdict(list)
    eager: list[Row] = []
    memory: list[Row] = []
    links: list[Row] = []
    skipped = 0
    for row in rows:
        op = row.get("op")
        if op == "machine":
            machine = _same_machine(machine, row)
        elif op in _REQUIRED:
            if row.get("skipped") or row.get("noisy"):
                skipped += 1
                continue
            _same_machine(machine, row)
            row = {**machine.get("defaults", {}), **row}
            if op == "eager_step":
                eager.append(_checked(row))
            elif op in LINK_OPS:
                links.append(_checked(row))
            elif op not in IGNORED:
                families[family(row)].append(_checked(row))
        elif str(op).startswith("memory"):
            memory += [] if row.get("skipped") else [row]
        else:
            raise KvplanError(f"{_at(row)}: unknown op {op!r}{did_you_mean(str(op), _REQUIRED)}")
    if not families:
        raise KvplanError(
            "no timed rows; an op is one of "
            + ", ".join(o for o in _REQUIRED if o not in (*IGNORED, "eager_step"))
        )
    return Measurements(machine, dict(families), skipped, memory, links, eager)


def family(row: Mapping[str, Any]) -> str:
    """The coefficients a row speaks of."""
    op = row["op"]
    if op in STEP_OPS:
        return "step"
    if op == "all_reduce":
        return f"reduce.{row.get('num_ranks')}"
    if op in ("gemm", "moe"):
        return f"{op}.{short_dtype(row.get('dtype', 'bf16'))}"
    return f"{'mla' if op.startswith('mla') else 'gqa'}.{short_dtype(row.get('kv_dtype', 'bf16'))}"


def short_dtype(name: str) -> str:
    """One spelling per format: bf16 for any 16-bit float, else the name as it is.

    >>> short_dtype("bfloat16"), short_dtype("fp8")
    ('bf16', 'fp8')
    """
    return _SHORT.get(str(name), str(name))


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of one file, whatever its op; each carries `_at`, its file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise KvplanError(f"{path}: no measurement file that can be read ({why})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise KvplanError(f"{path}:{number}: not a JSON object; measurement files are JSONL") from None
        if not isinstance(row, dict) or not isinstance(row.get("op"), str):
            raise KvplanError(f"{path}:{number}: not a measurement row (an object with an op)")
        row["_at"] = f"{path}:{number}"
        yield row


def _at(row: Mapping[str, Any]) -> str:
    return str(row.get("_at", "row"))


def _same_machine(machine: Row, row: Row) -> Row:
    """One engine and one machine per fit: constants of one do not transfer to another."""
    for key in ("machine", "engine", "engine_version"):
        if machine.get(key) and row.get(key) and machine[key] != row[key]:
            raise KvplanError(
                f"{_at(row)}: {key} {row[key]!r} among rows of {machine[key]!r}; fit each {key} apart"
            )
    if row.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise KvplanError(
            f"{_at(row)}: schema_version {row['schema_version']!r}; this kvplan reads {SCHEMA_VERSION}"
        )
    if not isinstance(row.get("defaults", {}), dict):
        raise KvplanError(f"{_at(row)}: defaults must be an object, not {str(row['defaults'])[:40]}")
    return machine | {k: v for k, v in row.items() if k != "_at"} if row["op"] == "machine" else machine


def _checked(row: Row) -> Row:
    """The row with `time_s` in seconds and every required field a finite number."""
    at, op = _at(row), row["op"]
    row = row | {"time_s": _seconds(row)}
    for name in _REQUIRED[op]:
        value = row.get(name)
        if value is None:
            raise KvplanError(f"{at}: {op} row without {name}; it needs {', '.join(_REQUIRED[op])}")
    for name, value in row.items():
        counts = name in _REQUIRED[op] or name.startswith("num_")
        if counts and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST
        ):
            raise KvplanError(f"{at}: {name} must be a number from 0 up, not {str(value)[:40]}")
    if row.get("num_tokens", math.inf) < row.get("num_prefill_tokens", 0) + row.get("num_decodes", 0):
        raise KvplanError(
            f"{at}: num_tokens {row['num_tokens']:g} are fewer than its decodes and its prompt's"
        )
    return row


def _seconds(row: Row) -> float:
    """Read the one `time_<unit>` of a row; its unit is in the name."""
    names = [k for k in row if k == "time" or k.startswith("time_")]
    known = [k for k in names if k in _TIME_UNITS]
    if names and not known:
        raise KvplanError(f"{_at(row)}: unknown unit in {names[0]!r}; write {', '.join(_TIME_UNITS)}")
    if len(known) != 1:
        found = " and ".join(known) or "no time"
        raise KvplanError(f"{_at(row)}: {found}; a row has one of {', '.join(_TIME_UNITS)}")
    value = row[known[0]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
        raise KvplanError(f"{_at(row)}: {known[0]} must be above 0, not {str(value)[:40]}")
    return value * _TIME_UNITS[known[0]]
