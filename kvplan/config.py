"""The one base of every user-facing config: frozen, typo-proof, documented by its field docstrings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen pydantic model; unknown keys are errors; a field's docstring is its description and --help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
