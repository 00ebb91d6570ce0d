"""The one base of every user-facing config: frozen, typo-proof, documented by its field docstrings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """A frozen pydantic model; unknown keys are errors; a field's docstring is its description and --help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


def complaint(error: ValidationError, flag: bool = False) -> str:
    """The first problem of a config class in one line; `flag` names the field as a command line does."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0] if first["loc"] else "")
    name = "--" + name.replace("_", "-") if flag else name
    text = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not first["loc"] and first["type"] == "value_error":  # of several fields together
        return text
    return f"{name} {first['input']!r}: must be {text}" if "should be" in first["msg"] else f"{name}: {text}"
