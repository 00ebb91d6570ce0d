"""Types of strategy parameters, so that a scenario's values are read and refused in one place."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from kvplan.units import human_readable_int

_Read = BeforeValidator(lambda value: human_readable_int(value) if isinstance(value, str) else value)

Tokens = Annotated[int, _Read, Field(ge=1)]
"""A number of tokens, 1 or more; 32k = 32,000 and 32K = 32,768 as everywhere."""
TokensOrNone = Annotated[int, _Read, Field(ge=0)]
"""A number of tokens, 0 allowed."""
Count = Annotated[int, Field(ge=1)]
"""1 or more."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A probability or a share."""
