"""What a pasted command says, read; and what is asked of its words whichever engine it starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kvplan.engines.flags import EngineArgs
from kvplan.engines.pasted.expansion import UNSTATED
from kvplan.engines.pasted.started import Started
from kvplan.ground.config import complaint
from kvplan.ground.errors import KvplanError


@dataclass(frozen=True, slots=True)
class Command:
    """A command, read."""

    engine: str
    model: str
    args: EngineArgs
    draft: str = ""
    """The model that drafts."""
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    hf_config_path: str = ""
    """Where the config lies, if not beside the model."""
    no_effect: tuple[str, ...] = ()
    """Flags, and variables, that do not change the plan."""
    not_planned: tuple[str, ...] = ()
    """Flags, and variables, that change it in ways that are not planned, with what they are about."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """`export`ed and prefixed variables."""
    notes: tuple[str, ...] = ()
    version: str = ""
    """Of the container's image, where its tag is one."""

    @property
    def engine_asked(self) -> str:
        """The engine with its version, as `parse_engine` reads it."""
        return f"{self.engine}@{self.version}" if self.version else self.engine


def check_model(model: str, start: Started) -> None:
    """Raises KvplanError where no model is named, or one that is not stated."""
    if not model:
        raise KvplanError("the command names no model")
    if UNSTATED in model:
        raise KvplanError(f"the model {shown(model)}: {_why_open(model, start)}")


def check_stated(flag: str, value: Any, start: Started) -> None:
    """Raises KvplanError for a value that acts and that only the shell or the machine could tell."""
    if UNSTATED in str(value):
        raise KvplanError(f"{flag} {shown(str(value))}: {_why_open(str(value), start)}")


def _why_open(value: str, start: Started) -> str:
    """Why what is marked in a word is not known."""
    what = value.partition(UNSTATED)[2]
    name = re.match(r"\$\{?(\w+)", what)
    if name and name[1] in start.prefix:
        return (
            f"{name[1]}={start.prefix[name[1]][:40]} stands before the command itself, whose words the shell"
            f" makes without it; set it on a line before"
        )
    if re.match(r"\$\((?!\()(?![A-Z_][A-Z0-9_]*\))", what):
        return "what a command prints is not known here; write the value"
    return "the variable's value is not stated"


def left_open(words: list[str]) -> list[str]:
    """A note on words for more flags that are not stated."""
    told = ", ".join(dict.fromkeys(shown(word) for word in words))
    return [f"{told}: not stated; what it holds is not planned"] if told else []


def shown(text: str) -> str:
    """A word as it was pasted."""
    return text.replace(UNSTATED, "")[:80]


def spare_words(words: list[str], model: str) -> list[str]:
    """Words that no flag takes: of those that are not stated, what they hold is left open; others are refused."""
    if stated := [word for word in words if UNSTATED not in word]:
        raise KvplanError(f"unrecognized argument {stated[0][:60]!r} beside the model {shown(model)[:60]!r}")
    return words


def engine_args(fields: Mapping[str, Any]) -> EngineArgs:
    """The flags; raises KvplanError of one line for what they refuse."""
    try:
        return EngineArgs(**fields)
    except ValidationError as error:
        raise KvplanError(complaint(error, flag=True)) from None
