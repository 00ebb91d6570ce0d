"""What a fit is told of mixed steps when the kernels of a card were timed one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kvplan.calibrate.measurements import Row

APART = {
    "mixed_bytes_per_s": (
        math.inf,
        "measured kernels run one after the other: decodes beside a prompt cost as alone",
    ),
    "mixed_crowding": (0.0, "as mixed_bytes_per_s"),
    "mixed_block_s": (0.0, "as mixed_bytes_per_s"),
    "serial_bytes_per_s": (math.inf, "as mixed_bytes_per_s"),
}
"""What the fit is told of kernels that were timed one after the other."""


def timed_apart(machine: Row, families: Mapping[str, Sequence[Row]]) -> dict[str, tuple[float, str]]:
    """What to assume of mixing for the attention families in which no one kernel took decodes and prompts together."""
    if machine.get("engine") != "torch":
        return {}
    together = {name for name, rows in families.items() if any(row.get("one_kernel") for row in rows)}
    if not together:
        return dict(APART)
    return {
        f"{name}.{field}": stated
        for name in families
        for field, stated in APART.items()
        if name not in together
        and (name.startswith("gqa.") or (name.startswith("mla.") and "mixed" not in field))
    }
