"""Types of strategy parameters, so that a scenario's values are read and refused in one place."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import human_readable_int
from kvplan.workload.lengths import LONGEST

MAX_BRANCHES = 100_000
"""That a problem may start at once; more would be hours of work between two looks at the clock."""


def _number(value: object) -> object:
    """Refuses yes and no, which would count as 1 and 0."""
    if isinstance(value, bool):
        raise KvplanError("must be a number")
    return value


_Number = BeforeValidator(_number)
_Read = BeforeValidator(lambda value: human_readable_int(value) if isinstance(value, str) else _number(value))

Tokens = Annotated[int, _Read, Field(ge=1, le=LONGEST)]
"""A number of tokens, 1 or more; 32k = 32,000 and 32K = 32,768 as everywhere."""
TokensOrNone = Annotated[int, _Read, Field(ge=0, le=LONGEST)]
"""A number of tokens, 0 allowed."""
Count = Annotated[int, Field(ge=1, le=10_000), _Number]
"""1 or more."""
Share = Annotated[float, Field(ge=0, le=1), _Number]
"""A probability or a share."""


ModelName = Annotated[str, Field(max_length=200)]
"""One of the scenario's `models`; empty = its main one."""


def check_branches(strategy: str, num_branches: int) -> None:
    """Raise KvplanError for more branches at once than `MAX_BRANCHES`."""
    if num_branches > MAX_BRANCHES:
        raise KvplanError(
            f"{strategy} would start {num_branches:,} branches at once; at most {MAX_BRANCHES:,}"
        )
