"""The one base of every user-facing config: frozen, typo-proof, documented by its field docstrings."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


class Config(BaseModel):
    """A frozen pydantic model; unknown keys are errors; a field's docstring is its description in the JSON schema.

    Docstrings are read when a schema is asked for: pydantic's `use_attribute_docstrings` reads every class's source on
    import, a tenth of what a cold command takes. Validators are built when first asked for, for the same reason.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, defer_build=True
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name, text in field_docstrings(cls).items():
            if name in properties:
                properties[name].setdefault("description", text)
        return found


def field_docstrings(config: type[Config]) -> dict[str, str]:
    """What stands under each field of a config class and of those it inherits from."""
    found: dict[str, str] = {}
    for made in reversed(config.__mro__):
        if not issubclass(made, Config):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(made))).body[0]
        lines = body.body if isinstance(body, ast.ClassDef) else []
        for field, below in pairwise(lines):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def json_object(told: Any) -> Mapping[str, Any]:
    """A flag's JSON object, as its text or already read; raises ValueError for anything else.

    >>> json_object('{"image": 2}')
    {'image': 2}
    """
    try:
        read = json.loads(told) if isinstance(told, str) else told
    except ValueError:
        read = None
    if not isinstance(read, Mapping):
        raise ValueError(f"must be a JSON object, not {str(told)[:60]}")
    return read


C = TypeVar("C", bound=Config)


def read_object(config: type[C], told: Any) -> C:
    """A flag's JSON object as a config class reads it; raises ValueError in one line for what that refuses."""
    try:
        return config.model_validate(dict(json_object(told)))
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def complaint(error: ValidationError, flag: bool = False) -> str:
    """The first problem of a config class in one line; `flag` names the field as a command line does."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0] if first["loc"] else "")
    name = "--" + name.replace("_", "-") if flag else name
    text = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"].endswith("_parsing"):  # ", unable to parse string as ..." says it twice
        text = text.partition(", ")[0]
    if not first["loc"] and first["type"] == "value_error":  # of several fields together
        return text
    return f"{name} {first['input']!r}: must be {text}" if "should be" in first["msg"] else f"{name}: {text}"
