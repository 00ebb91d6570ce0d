"""`result.plot.kv()`: results draw themselves; no room knows the charts above it, the face says who draws what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from kvplan.ground.errors import KvplanError, did_you_mean

DRAWN: dict[str, Mapping[str, str]] = {}
"""Class -> picture -> "module:function" that draws an instance; filled in by the package itself."""


class Pictures:
    """Stands in a class as `plot`; asked of an instance, its attributes are the pictures of it."""

    def __get__(self, result: Any, owner: type) -> Any:
        """The pictures of a result; of the class, this."""
        return self if result is None else Drawn(result)


class Drawn:
    """The pictures of one result: each a function that returns an Altair chart."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Raise AttributeError with the names there are; KvplanError where Altair is missing."""
        known = DRAWN.get(type(self._result).__name__, {})
        if name not in known:
            raise AttributeError(
                f"no picture {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}"
            )
        module, _, function = known[name].partition(":")
        try:
            return partial(getattr(import_module(module), function), self._result)
        except ModuleNotFoundError as error:
            raise KvplanError(f"pictures need {error.name}: pip install 'kvplan[plot]'") from None

    def __dir__(self) -> list[str]:
        return list(DRAWN.get(type(self._result).__name__, {}))
