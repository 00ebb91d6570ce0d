"""Bytes, tokens and how people write them. 1 GiB = 1,073,741,824 bytes; sizes are printed in GiB and say so."""

from __future__ import annotations

import re

from kvplan.ground.errors import KvplanError

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30

TICKS_PER_S = 10**12
"""The simulator's clock counts whole picoseconds, so that sums of step times are exact in any order."""

_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_INT = re.compile(r"^([+-]?\d+(?:\.\d+)?)([kKmMgGtT]?)$")


def human_readable_int(text: str | int) -> int:
    """Read a count as vLLM reads `--max-model-len`: 32k = 32,000, 32K = 32,768, 25.6k = 25,600, -1 as it is.

    A decimal fraction is allowed before a decimal suffix only (vLLM refuses 1.5K). Underscores and
    commas between digits are ignored. Source: vLLM `engine/arg_utils.py: human_readable_int`.

    >>> human_readable_int("32k"), human_readable_int("32K"), human_readable_int("25.6k")
    (32000, 32768, 25600)
    """
    if isinstance(text, int):
        return text
    match = _INT.match(text.strip().replace(",", "").replace("_", ""))
    if not match:
        raise KvplanError(
            f"{text!r} is not a count; write 32768, 32k (= 32,000), 32K (= 32,768) or 20G (= 20 GiB)"
        )
    number, suffix = match.groups()
    if suffix in _DECIMAL:
        return int(float(number) * _DECIMAL[suffix])
    if "." in number:
        raise KvplanError(
            f"{text!r}: decimals go with k, m, g, t (powers of 1,000), not with {suffix or 'none'}"
        )
    return int(number) * _BINARY.get(suffix, 1)


def cdiv(a: int, b: int) -> int:
    """Divide and round up; `formulas.capacity.cdiv` does it for arrays.

    >>> cdiv(33, 16)
    3
    """
    return -(-a // b)


def gib(num_bytes: float) -> float:
    """Bytes as GiB.

    >>> gib(1 << 30)
    1.0
    """
    return num_bytes / GiB
