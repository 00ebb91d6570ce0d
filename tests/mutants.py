"""Wrong rules under their names, each with a reference log in which it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

Apply = Callable[[pytest.MonkeyPatch], None]


class Mutant(NamedTuple):
    """A wrong rule and the log in which it shows."""

    apply: Apply
    scenario: str
    mode: str


class Mutants(dict[str, Mutant]):
    """Name -> mutant; calling it gives the decorator that enters a patch."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def __call__(self, scenario: str, mode: str = "") -> Callable[[Apply], Apply]:
        """Enter a patch under its name."""

        def enter(apply: Apply) -> Apply:
            self[apply.__name__] = Mutant(apply, scenario, mode or self.mode)
            return apply

        return enter
