"""What commands share: the parameters that make a question, and how documents are printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

from cyclopts import Parameter

from kvplan.engines.flags import EngineArgs
from kvplan.errors import KvplanError
from kvplan.memory.demand import Demand

SWITCH = Parameter(negative="")
"""A parameter without a --no- form."""
FLAGS = Annotated[EngineArgs | None, Parameter(name="*")]
"""The engine's flags, flattened into the command's own."""
DEMAND = Annotated[Demand | None, Parameter(name="*")]
"""The expected load, flattened."""


def print_json(document: Any) -> None:
    """One document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def read_colocate(pairs: tuple[str, ...]) -> dict[str, str]:
    """Read ROLE=MODEL pairs."""
    found: dict[str, str] = {}
    for pair in pairs:
        role, equals, model = pair.partition("=")
        if not equals or not role or not model:
            raise KvplanError(f"--colocate {pair!r}: write ROLE=MODEL, e.g. reward=Qwen/Qwen2.5-Math-RM-72B")
        if role in found:
            raise KvplanError(f"--colocate names {role!r} twice")
        found[role] = model
    return found
