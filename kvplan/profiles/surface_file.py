"""Measured surfaces on disk: one compressed file beside a profile, read when a step is first timed.

An xz stream of a JSON line (axes, shapes, data sheets, scalars) and 16-bit numbers: ln(measured / sheet) in steps of
`STEP`, all high bytes before all low ones, which halves the file.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kvplan.ground.errors import KvplanError
from kvplan.timing.surfaces import AttentionSurface, Curve, ExpertSurface, GemmSurface, Sheet

Surface = GemmSurface | ExpertSurface | AttentionSurface | Curve
Surfaces = Mapping[str, Surface]
"""By family (gemm.bf16, moe.fp8_block, gqa.fp8) or link (all_reduce.4, all_gather.2)."""

KINDS: dict[str, type[Surface]] = {
    "gemm": GemmSurface, "moe": ExpertSurface, "gqa": AttentionSurface, "mla": AttentionSurface,
}  # fmt: skip
"""By the first part of the name; links are curves."""
PACKED = ("ratio", "decode", "prompt")
MOST_BYTES = 1 << 26
"""Read of a file, decompressed; the bundled ones have less than 2 MiB."""
STEP = 0.01
"""Resolution of a stored ratio: half a percent at most is lost."""


def packed(surfaces: Surfaces) -> bytes:
    """The file's content."""
    head: dict[str, dict[str, Any]] = {}
    body = b""
    for name, surface in surfaces.items():
        head[name] = {}
        for key in (f.name for f in fields(surface) if not f.name.startswith("_")):
            value = getattr(surface, key)
            if key in PACKED:
                head[name][key] = value.shape
                numbers = np.ascontiguousarray(np.round(value / STEP), "<i2")
                body += numbers.view(np.uint8).reshape(-1, 2).T.tobytes()
            else:
                head[name][key] = value.tolist() if isinstance(value, np.ndarray) else value
    return lzma.compress(json.dumps(head).encode() + b"\n" + body, preset=9)


def read_surfaces(path: Path) -> Surfaces:
    """The surfaces of a file, remembered until it is written again.

    Raises:
        KvplanError: no such file, or not one of ours.
    """
    try:
        found = path.stat()
        return _read(path, found.st_mtime_ns, found.st_size)
    except OSError:
        raise KvplanError(
            f"{path}: the profile's measured surfaces are not beside it; copy both files"
        ) from None


@lru_cache(64)
def _read(path: Path, mtime_ns: int, size: int) -> Surfaces:
    """The time and size of the file tell it from a later one of its name."""
    try:
        content = lzma.LZMADecompressor().decompress(path.read_bytes(), MOST_BYTES)
        first, _, body = content.partition(b"\n")
        return _unpacked(json.loads(first), body)
    except (lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise KvplanError(f"{path}: not a file of measured surfaces") from None


def _unpacked(head: dict[str, dict[str, Any]], body: bytes) -> Surfaces:
    found: dict[str, Surface] = {}
    at = 0
    for name, values in head.items():
        kind = KINDS.get(name.split(".")[0], Curve)
        for key, value in values.items():
            if key in PACKED:
                size = 2 * int(np.prod(value))
                planes = np.frombuffer(body[at : at + size], np.uint8).reshape(2, -1)
                values[key] = planes.T.copy().view("<i2").reshape(value) * STEP
                at += size
            elif key == "sheet":
                values[key] = Sheet(*value)
            elif key in ("x", "y"):
                values[key] = tuple(value)
            elif key.endswith("shapes") and kind is AttentionSurface:
                values[key] = tuple(tuple(shape) for shape in value)
            elif isinstance(value, list):
                values[key] = np.array(value, float)
        found[name] = kind(**values)
    return found
