"""What a shell makes of a word: its variables' values, arithmetic, splitting at blanks.

What only the machine could tell - a variable that nothing sets, what a command prints - stays in the word behind the
mark `UNSTATED`. Source: POSIX.1-2017, Shell Command Language, 2.6; GNU bash manual, 3.5.
"""

from __future__ import annotations

import ast
import fnmatch
import glob
import operator
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvplan.engines.pasted.tokens import WordPart, parts_of

UNSTATED = "\ue000"
"""Before what stands in a word for a value that is not stated: `\ue000$TP`, `\ue000$(nproc)`."""
Value = str | list[str]
"""A variable's, or an array's."""


class Fragment(NamedTuple):
    """A part of a word with its values: several of an array, none of one that is empty."""

    values: list[str]
    splits: bool = False
    """Whether blanks in it end words."""
    opens: bool = True
    """Whether it makes a word even where it is empty."""


@dataclass(slots=True)
class Variables:
    """A shell's variables, and the words that they make."""

    variables: dict[str, Value] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    """Those that words were made of."""
    as_run: bool = False
    """Whether what nothing sets is empty, as where the script is run as it stands; else it is marked."""

    def text_of(self, name: str) -> str:
        """A variable's value as one text."""
        value = self.variables.get(name, "")
        return value if isinstance(value, str) else (value or [""])[0]

    def joined(self, parts: Sequence[WordPart]) -> str:
        """A word without splitting."""
        fragments = self._fragments(parts, quoted=True, splits_text=False)
        return "".join(" ".join(fragment.values) for fragment in fragments)

    def expand(self, parts: Sequence[WordPart]) -> list[str]:
        """The words that a word becomes: none, one or several.

        >>> from kvplan.engines.pasted.tokens import tokens_of
        >>> shell = Variables({"A": "-x 'y z'", "L": ["-tp", "2"]})
        >>> [shell.expand(token.parts) for token in tokens_of('$A "$A" "${L[@]}" $((2*4)) ${B:-c}')]
        [['-x', "'y", "z'"], ["-x 'y z'"], ['-tp', '2'], ['8'], ['c']]
        """
        words, is_open = [""], False
        for fragment in self._fragments(parts, quoted=False, splits_text=False):
            values = fragment.values
            if fragment.splits:
                values, starts, ends = _split(values)
                if starts and is_open:
                    words, is_open = [*words, ""], False
            for i, value in enumerate(values):
                words += [""] if i else []
                words[-1] += value
                is_open = is_open or fragment.opens
            if fragment.splits and ends and values:
                words, is_open = [*words, ""], False
        return words if is_open else words[:-1]

    def pattern(self, parts: Sequence[WordPart]) -> str:
        """A word as a pattern: what is quoted stands for itself."""
        told = ((part.quoted, self.joined([part])) for part in parts)
        return "".join(glob.escape(text) if quoted else text for quoted, text in told)

    def _fragments(self, parts: Sequence[WordPart], *, quoted: bool, splits_text: bool) -> Iterator[Fragment]:
        """A word's parts with their values; `splits_text`: text outside of quotes is what a variable left out."""
        for part in parts:
            is_quoted = quoted or part.quoted
            if part.kind == "text":
                opens = is_quoted or bool(part.text)
                yield Fragment([part.text], splits=splits_text and not is_quoted, opens=opens)
            elif part.kind == "sum":
                yield Fragment([self._sum(part.text)], splits=not is_quoted)
            elif part.kind == "command":
                yield Fragment([self._printed(part.text)], splits=not is_quoted)
            else:
                yield from self._variable(part.text, is_quoted)

    def _sum(self, text: str) -> str:
        filled = self.joined(parts_of(text, "document"))
        named = re.sub(r"[A-Za-z_]\w*", lambda found: self.text_of(found[0]) or found[0], filled)
        self.used |= set(re.findall(r"[A-Za-z_]\w*", text))
        result = arithmetic(named)
        return f"{UNSTATED}$(({text}))" if result is None else str(result)

    def _printed(self, text: str) -> str:
        """What a command prints."""
        return f"{UNSTATED}$({text})"

    def _variable(self, text: str, quoted: bool) -> Iterator[Fragment]:
        """What `$NAME` and `${...}` become."""
        found = _PARAMETER.fullmatch(text)
        if not found or found["indirect"]:
            yield Fragment([f"{UNSTATED}${{{text}}}"], splits=not quoted)
            return
        name, index, how, more = found["name"], found["index"], found["how"] or "", found["more"] or ""
        index = name if name in ("@", "*") else index
        self.used.add(name)
        value = self._stated(name, index)
        is_empty = not value or (
            how.startswith(":") and (value == [""] or bool(_ARGUMENT.fullmatch(value[0])))
        )
        if how.strip(":") in ("-", "=", "+") and (how[-1] == "+") != is_empty:
            parts = parts_of(more, "default" if quoted else "")
            if how[-1] == "=":
                self.variables[name] = self.joined(parts)
            yield from self._fragments(parts, quoted=quoted, splits_text=not quoted)
            if quoted:
                yield Fragment([""])
        elif how[-1:] == "+":
            yield Fragment([""] if quoted else [], splits=not quoted)
        elif not value and not (name in self.variables and index in ("@", "*")):
            nothing = "0" if name == "#" else ""
            yield Fragment([nothing if self.as_run else _unstated(text)], splits=not quoted)
        elif found["count"]:
            size = len(value) if index in ("@", "*") else len(value[0])
            yield Fragment([str(size)], splits=not quoted)
        else:
            value = [" ".join(value)] if index == "*" and quoted else value
            changes = how.strip(":") not in ("", "-", "=", "?") or how == ":"
            yield Fragment(
                [_cut(one, how, self._change(how, more)) if changes else one for one in value],
                splits=not quoted,
            )

    def _change(self, how: str, more: str) -> str:
        parts = parts_of(more)
        return self.pattern(parts) if how[0] in "#%" else self.joined(parts)

    def _stated(self, name: str, index: str | None) -> list[str]:
        """The values of a name; none where nothing sets it."""
        if name not in self.variables:
            return []
        value = self.variables[name]
        if isinstance(value, str):
            return [value]
        if index in ("@", "*"):
            return value
        at = int(index) if index and re.fullmatch(r"-?\d+", index) else 0
        return value[at : at + 1 or None]


_PARAMETER = re.compile(
    r"(?P<count>#(?=.))?(?P<indirect>!)?(?P<name>[A-Za-z_]\w*|\d+|[@*#?$!-])(?:\[(?P<index>[^\]]*)\])?"
    r"(?:(?P<how>:?[-=+?]|##?|%%?|//?|:|,,?|\^\^?)(?P<more>.*))?",
    re.DOTALL,
)


_ARGUMENT = re.compile(UNSTATED + r"\$\d")
"""A script's own argument, alone: of a script without arguments it is empty."""


def _unstated(text: str) -> str:
    return f"{UNSTATED}${text}" if re.fullmatch(r"\w+|[@*#?$!-]", text) else f"{UNSTATED}${{{text}}}"


def _split(values: list[str]) -> tuple[list[str], bool, bool]:
    """Values at blanks, and whether the first begins and the last ends with one; marked text stays whole."""
    whole = [
        value if UNSTATED in value and not re.search(r"\s" + UNSTATED, value) else "" for value in values
    ]
    parts = [
        one for value, kept in zip(values, whole, strict=True) for one in ([kept] if kept else value.split())
    ]
    starts = bool(values) and not whole[0] and values[0][:1].isspace()
    ends = bool(values) and not whole[-1] and values[-1][-1:].isspace()
    return parts, starts, ends


def _cut(value: str, how: str, pattern: str) -> str:
    """`${x#a}`, `${x%a}`, `${x/a/b}`, `${x,,}`: the value, changed."""
    if UNSTATED in value:
        return value
    if how[0] in ",^":
        return value.lower() if how[0] == "," else value.upper()
    if how[0] == "/":
        old, _, new = pattern.partition("/")
        return value.replace(old, new, -1 if how == "//" else 1)
    if how == ":":
        start, _, length = pattern.partition(":")
        if not re.fullmatch(r"\s*-?\d+", start) or not re.fullmatch(r"\d*", length):
            return _unstated(f"{value}:{pattern}")
        return value[int(start) :][: int(length) if length else None]
    ends = [i for i in range(len(value) + 1) if _matches(value, i, how, pattern)]
    if not ends:
        return value
    longest = (max if how[0] == "#" else min) if len(how) == 2 else (min if how[0] == "#" else max)
    return value[longest(ends) :] if how[0] == "#" else value[: longest(ends)]


def _matches(value: str, i: int, how: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(value[:i] if how[0] == "#" else value[i:], pattern)


_SUMS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}


def arithmetic(text: str) -> int | None:
    """What `$((...))` is, in whole numbers; None where a part is not stated.

    >>> arithmetic("2 * (3 + 1)"), arithmetic("-7 / 2"), arithmetic("N * 2"), arithmetic("1 / 0")
    (8, -3, None, None)
    """
    if len(text) > 200:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `1if` and its like
            return _sum_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _sum_of(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _sum_of(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
    if isinstance(node, ast.BinOp):
        left, right = _sum_of(node.left), _sum_of(node.right)
        if isinstance(node.op, ast.Div | ast.Mod):
            whole = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
            return whole if isinstance(node.op, ast.Div) else left - whole * right
        if isinstance(node.op, ast.LShift | ast.RShift | ast.Pow) and not 0 <= right < 64:
            raise ValueError
        if isinstance(node.op, ast.Pow):
            return int(left**right)
        if combine := _SUMS.get(type(node.op)):
            return int(combine(left, right))
    raise ValueError
