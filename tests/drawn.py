"""How many random examples costly laws are tried on, by the profile of the run.

| run | examples |
|---|---|
| `make test` | a fifth, the same at every run |
| `make thorough` | all, the same at every run |
| `make explore` | thirty times all, new ones |
"""

from __future__ import annotations

import os

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "kvplan")
SHARE = {"kvplan": 0.2, "thorough": 1, "explore": 30}[PROFILE]
SAID = {
    "kvplan": "a fifth of the examples of `make thorough`",
    "thorough": "all",
    "explore": "new, thirty times all",
}[PROFILE]


def examples(thorough: int) -> int:
    """How many of `thorough` examples to try in this run."""
    return max(1, round(thorough * SHARE))
