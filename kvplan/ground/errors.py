"""The errors a user can cause. Each prints as one line; the CLI maps them to exit codes.

`KvplanError` (exit 2) is a question that cannot be answered as asked; `DoesNotFit` (exit 1) is an
answer: no. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class KvplanError(ValueError):
    """Bad input: an unknown name, a contradictory config, a file that is not what it says. Exit code 2."""


class DoesNotFit(KvplanError):
    """A sound question whose answer is no: says what is needed, what there is, what would fit. Exit code 1."""


def did_you_mean(word: str, known: Iterable[str], limit: int = 3) -> str:
    """Return `"; did you mean a, b?"`, or an empty string when nothing is close.

    >>> did_you_mean("h10", ["h100", "a100"])
    '; did you mean h100, a100?'
    """
    by_fold = {k.casefold(): k for k in known}
    close = get_close_matches(word.casefold(), by_fold, n=limit, cutoff=0.5)
    return f"; did you mean {', '.join(by_fold[c] for c in close)}?" if close else ""
