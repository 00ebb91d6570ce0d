"""What commands share: the parameters that make a question, and how documents are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvplan.engines.flags import EngineArgs
from kvplan.memory.demand import Demand

SWITCH = Parameter(negative="", show_default=False)
"""A parameter without a --no- form, off or empty unless given."""
FLAGS = Annotated[
    EngineArgs | None, Parameter(name="*", group="The engine's own flags", consume_multiple=True)
]
"""The engine's flags, flattened into the command's own."""
DEMAND = Annotated[Demand | None, Parameter(name="*", group="The expected load")]
"""The expected load, flattened."""


def print_json(document: Any) -> None:
    """One document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def price_file(path: Path | None) -> list[str]:
    """`--prices` as a scenario's key; the path holds wherever the scenario lies."""
    return [] if path is None else [f"pricing.file={json.dumps(str(path.absolute()))}"]
