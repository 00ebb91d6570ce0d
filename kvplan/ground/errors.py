"""The errors a user can cause. Each prints as one line; the CLI maps them to exit codes.

`KvplanError` (exit 2) is a question that cannot be answered as asked; `DoesNotFit` (exit 1) is an
answer: no. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import Any


class KvplanError(ValueError):
    """Bad input: an unknown name, a contradictory config, a file that is not what it says. Exit code 2."""


class DoesNotFit(KvplanError):
    """A sound question whose answer is no: says what is needed, what there is, what would fit. Exit code 1."""


CLOSE = 0.7
"""Share of its letters that a word has in common with one that was meant; words that have less are other words."""
CLOSE_SHORT = 0.66
"""The same of words below five letters, where one of three may be wrong."""


def did_you_mean(word: str, known: Iterable[str], limit: int = 3) -> str:
    """Return `"; did you mean a, b?"`, or an empty string when nothing is close or begins with the word.

    >>> did_you_mean("h10", ["h100", "a100"]), did_you_mean("llama", ["llama-2-7b", "glm"])
    ('; did you mean h100?', '; did you mean llama-2-7b?')
    >>> did_you_mean("bogus", ["uds", "host"]), did_you_mean("hf_config_path", ["eplb_config"])
    ('', '')
    """
    by_fold, asked = {k.casefold(): k for k in known}, word.casefold()
    cutoff = CLOSE if len(asked) > 4 else CLOSE_SHORT
    close = get_close_matches(asked, by_fold, n=limit, cutoff=cutoff)
    close = close or [k for k in by_fold if len(asked) > 3 and k.startswith(asked)][:limit]
    return f"; did you mean {', '.join(by_fold[c] for c in close)}?" if close else ""


_FLAG = re.compile(
    r"(?P<spoken>`[^`]*`|\bkvplan [a-z]+ --[a-z-]+)"
    r"|(?<![\w-])--(?P<name>[a-z][a-z0-9-]*)"
    r"(?:[ =](?P<value>'[^']*'|\"[^\"]*\"|-?[\w./,=-]*[\dA-Z/=][\w./,=-]*|(?:auto|local|ray)\b))?"
)
"""A flag and what follows it if that is no word of the sentence; whole commands stay."""


def as_parameters(text: str) -> str:
    """A complaint in a command line's words, as a caller in Python reads it: `users=0` for `--users 0`.

    >>> as_parameters("say --users; --max-model-len 0: a length; add --enable-prefix-caching or --no-enforce-eager")
    'say users=; max_model_len=0: a length; add enable_prefix_caching=True or enforce_eager=False'
    """

    def parameter(found: re.Match[str]) -> str:
        if found["spoken"]:
            return found["spoken"]
        name, value = found["name"].replace("-", "_"), found["value"] or ""
        if name.startswith(("no_", "enable_", "disable_")):
            is_off = name.startswith("no_")
            return f"{name.removeprefix('no_')}={not is_off}{value and ' '}{value}"
        return f"{name}={[value]}" if "=" in value and value[0].isalpha() else f"{name}={value}"

    return _FLAG.sub(parameter, text)


def speaks_python(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its complaints `as_parameters`: commands call the same functions and complain of flags."""

    @wraps(function)
    def spoken(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KvplanError as error:
            error.args = tuple(as_parameters(a) if isinstance(a, str) else a for a in error.args)
            raise

    spoken.__module__, spoken.__qualname__ = "kvplan", function.__name__
    return spoken
