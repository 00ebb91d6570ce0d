"""Seeded damage to text files: mostly well-formed, so that it gets past the first check."""

from __future__ import annotations

import re
from random import Random

NASTY = (
    "-1", "0", "1", "2.5", "1e40", "1.0e+40", "1e400", "-1e-300", "1000000000", "1" + "0" * 30, "9" * 500, "nan",
    ".nan", "NaN", ".inf", "inf", "Infinity", "true", "null", "~", '""', "''", "[]", "{}", "[0.5]", "[1, [2]]",
    "{a: 1}", "x", "=1+1", "1:30", "0x10", "-0", "16K", "2024-01-01", "!!set {a}", "!!binary AAAA", "&a [*a]", "é",
    "\x00", "\ud7ff", '"\\ud800"', "'", '"', ",", ": ", "\n", "\r", "\t",
)  # fmt: skip
"""Put in the place of a value."""

VALUE = re.compile(r"""-?\d[\w.+-]*|(?<=: )[^\s,\[\]{}]+|"[^"]*"|\[[^\[\]]*\]|true|false|null""")


def mutated(text: str, rng: Random, other: str = "") -> str:
    """The text with one to three pieces of damage."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        text = rng.choice(DAMAGE)(text, rng, other or text)
    return text


def _value(text: str, rng: Random, other: str) -> str:
    """Another value: a nasty one, or one from elsewhere."""
    places = list(VALUE.finditer(text))
    if not places:
        return text + rng.choice(NASTY)
    place = rng.choice(places)
    new = rng.choice(NASTY) if rng.random() < 0.7 else rng.choice(places).group()
    return text[: place.start()] + new + text[place.end() :]


def _line(text: str, rng: Random, other: str) -> str:
    """A line gone, twice, moved, or from another file."""
    lines, more = text.splitlines(), other.splitlines() or [""]
    i = rng.randrange(len(lines) or 1)
    j = rng.randrange(len(lines) or 1)
    taken = lines[i : i + 1]
    return "\n".join(
        rng.choice(
            [
                lines[:i] + lines[i + 1 :],
                lines[:i] + taken + lines[i:],
                lines[:j] + taken + lines[j:],
                [*lines[:i], rng.choice(more), *lines[i + 1 :]],
            ]
        )
    )


def _characters(text: str, rng: Random, other: str) -> str:
    """A few characters gone, twice, or cut off behind."""
    i = rng.randrange(len(text) or 1)
    n = rng.choice([1, 1, 2, 8])
    return rng.choice([text[:i] + text[i + n :], text[:i] + text[i : i + n] + text[i:], text[:i]])


def _key(text: str, rng: Random, other: str) -> str:
    """A word in the place of another."""
    words = list(re.finditer(r"[A-Za-z_]{3,}", text))
    if not words:
        return text
    old, new = rng.choice(words), rng.choice(words).group()
    return text[: old.start()] + new + text[old.end() :]


DAMAGE = (_value, _value, _value, _line, _characters, _key)
