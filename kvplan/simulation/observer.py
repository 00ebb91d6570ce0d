"""Somebody who looks at a run from outside: asks it to stop, notes what sampled moments and branches are like.

A run with an observer gives the same results as one without. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[int, int], None]
"""Called with (requests or problems ended, all of them)."""


def _never() -> bool:
    return False


def _look_away(*_: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Observer:
    """What an onlooker wants to be told, each by a function; all of them may be left out."""

    cancelled: Callable[[], bool] = field(default=_never)
    """Asked now and then; once it says yes the run ends, `interrupted`, with what was simulated."""
    on_sample: Callable[[float, Sequence[Any]], None] = field(default=_look_away)
    """Called with (seconds, replicas) whenever the timeline takes a sample."""
    on_branch: Callable[[int, Any], None] = field(default=_look_away)
    """Called with (problem, launch) for every branch that a strategy starts."""
    copies: bool = False
    """Whether the result is to list every copy to and from a tier beyond the GPUs."""


NO_OBSERVER = Observer()
