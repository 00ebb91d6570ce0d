"""A script's text as a shell's tokens: words with what is quoted in them, operators, redirections, here-documents.

Source: POSIX.1-2017, Shell Command Language, 2.2 and 2.3. Taken besides: blanks behind a backslash at a line's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kvplan.ground.errors import KvplanError

Kind = Literal["text", "variable", "sum", "command"]
Within = Literal["", "quotes", "default", "document"]
"""Where a text stands: by itself, between double quotes, in `${NAME:-...}` between such, in a here-document."""


class WordPart(NamedTuple):
    """A part of a word."""

    kind: Kind
    text: str
    """As it stands, or what is between the brackets: `VAR:-x`, `2 * N`, `nproc`."""
    quoted: bool


Parts = tuple[WordPart, ...]


@dataclass(slots=True)
class Token:
    """A word, an assignment, a redirection, or an operator that ends a command."""

    operator: str = ""
    parts: Parts = ()
    array: tuple[Parts, ...] | None = None
    """Of `NAME=(...)`: `parts` are the name."""
    redirect: str = ""
    """`>`, `<<` ...; `parts` are where to."""
    body: str = ""
    """Of a here-document."""
    literal: bool = False
    """Whether nothing in it is expanded."""

    @property
    def plain(self) -> str:
        """The word, where nothing of it is quoted or expanded."""
        alone = len(self.parts) == 1 and self.parts[0].kind == "text" and not self.parts[0].quoted
        return self.parts[0].text if alone and self.array is None else ""

    @property
    def assignment(self) -> tuple[str, bool, Parts] | None:
        """(name, whether it is added to, the value's parts), where the word assigns."""
        if not self.parts or self.parts[0].kind != "text" or self.parts[0].quoted:
            return None
        found = re.match(r"([A-Za-z_]\w*)(\+?)=", self.parts[0].text)
        if not found:
            return None
        first = self.parts[0]._replace(text=self.parts[0].text[found.end() :])
        return found[1], bool(found[2]), (first, *self.parts[1:])


_OPERATOR = re.compile(r";;&?|;&|\|\||&&|\|&?|;|&(?!>)|[()\n]")
_REDIRECT = re.compile(r"(\d*)(<<<|<<-?|<&|<>|<|>>|>&|>\||>|&>>?)")
_NAME = re.compile(r"\$(?:([A-Za-z_]\w*|[0-9@*#?$!-]))")
_BLANK = re.compile(r"(?:[ \t\r]|\\[ \t\r]*\n|\\\Z)+")
_TEXT = re.compile(r"[^\s\\'\"$`;&|()<>]+")
_DOCUMENT = re.compile(
    r"<<-?[ \t]*(['\"]?)([A-Za-z_]\w*)\1[^\n]*\n(?:.*\n)*?[ \t]*\2(?=[ \t]*[\n)]|[ \t]*\Z)"
)
_QUOTED_TEXT = re.compile(r"[^\\\"$`]+")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "f": "\f", "v": "\v"}


def tokens_of(text: str) -> Iterator[Token]:
    """The tokens of a script.

    Raises:
        KvplanError: a quotation or a bracket that does not close.

    >>> tokens = tokens_of("A=(-tp 2); vllm serve m >log")
    >>> [t.operator or t.redirect or "".join(p.text for p in t.parts) for t in tokens]
    ['A=', ';', 'vllm', 'serve', 'm', '>']
    """
    at, documents = 0, list[Token]()
    while at < len(text):
        if blank := _BLANK.match(text, at):
            at = blank.end()
        elif text[at] == "#":
            at = _line_end(text, at)
        elif text.startswith(("<(", ">("), at):
            end = _closing(text, at + 1)
            yield Token(parts=(WordPart("command", text[at + 2 : end], quoted=True),))
            at = end + 1
        elif found := _REDIRECT.match(text, at):
            token, at = _redirection(text, found)
            if token.redirect == "<<":
                documents.append(token)
            yield token
        elif found := _OPERATOR.match(text, at):
            at = found.end()
            if found[0] == "\n":
                for document in documents:
                    at = _read_document(text, at, document)
                documents = []
            yield Token(operator=found[0])
        else:
            token, at = _word_token(text, at)
            yield token


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _redirection(text: str, found: re.Match[str]) -> tuple[Token, int]:
    blank = _BLANK.match(text, found.end())
    at = blank.end() if blank else found.end()
    if text.startswith(("<(", ">("), at):
        end = _closing(text, at + 1)
        return Token(redirect=found[2]), end + 1
    parts, at = _word(text, at)
    kind = found[2]
    if kind == "<<-":
        return Token(redirect="<<", parts=parts, literal=any(p.quoted for p in parts), body="\t"), at
    return Token(redirect=kind, parts=parts, literal=any(p.quoted for p in parts)), at


def _read_document(text: str, at: int, token: Token) -> int:
    """A here-document's lines, into its token; where the text goes on."""
    mark, strip = "".join(part.text for part in token.parts), token.body == "\t"
    lines: list[str] = []
    while at < len(text):
        end = _line_end(text, at)
        line, at = text[at:end].rstrip("\r"), end + 1
        line = line.lstrip("\t") if strip else line
        if line.strip() == mark:
            break
        lines.append(line)
    token.body = "".join(f"{line}\n" for line in lines)
    return at


def _word_token(text: str, at: int) -> tuple[Token, int]:
    parts, end = _word(text, at)
    assigned = re.fullmatch(r"[A-Za-z_]\w*\+?=", parts[0].text) if len(parts) == 1 else None
    if end == at:
        raise KvplanError(f"the command cannot be read: {text[at : at + 20]!r}")
    if assigned and not parts[0].quoted and text.startswith("(", end):
        close = _closing(text, end)
        inner = tuple(token.parts for token in tokens_of(text[end + 1 : close]) if token.parts)
        return Token(parts=parts, array=inner), close + 1
    return Token(parts=parts), end


def _word(text: str, at: int) -> tuple[Parts, int]:
    """The parts of the word that begins here, and where it ends."""
    parts: list[WordPart] = []
    while at < len(text):
        char = text[at]
        if found := _TEXT.match(text, at):
            parts.append(WordPart("text", found[0], quoted=False))
            at = found.end()
        elif char == "\\":
            if _BLANK.match(text, at) or at + 1 >= len(text):
                break
            parts.append(WordPart("text", text[at + 1], quoted=True))
            at += 2
        elif char == "'":
            end = _find(text, "'", at + 1)
            parts.append(WordPart("text", text[at + 1 : end], quoted=True))
            at = end + 1
        elif char == '"':
            inner, at = _double(text, at + 1)
            parts += inner
        elif text.startswith("$'", at):
            told, at = _escaped(text, at + 2)
            parts.append(told)
        elif text.startswith('$"', at):
            at += 1
        elif char in "$`":
            part, at = _expansion(text, at, quoted=False)
            parts.append(part)
        else:
            break
    return _merged(parts), at


def _merged(parts: list[WordPart]) -> Parts:
    """Neighbours that are alike as one."""
    merged: list[WordPart] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last and part.kind == last.kind == "text" and part.quoted == last.quoted:
            merged[-1] = last._replace(text=last.text + part.text)
        else:
            merged.append(part)
    return tuple(merged)


def parts_of(text: str, within: Within = "") -> Parts:
    """The parts of a text that is one word, blanks and all."""
    if within:
        return _merged(_double(text, 0, within)[0])
    parts: list[WordPart] = []
    at = 0
    while at < len(text):
        found, end = _word(text, at)
        if end == at:
            found, end = (WordPart("text", text[at], quoted=False),), at + 1
        parts += found
        at = end
    return _merged(parts)


def _double(text: str, at: int, within: Within = "quotes") -> tuple[list[WordPart], int]:
    """The parts up to the closing double quote, or to the end; where the text goes on."""
    parts: list[WordPart] = []
    empty = [WordPart("text", "", quoted=True)]
    while at < len(text):
        char = text[at]
        if char == '"' and within == "quotes":
            return parts or empty, at + 1
        if found := _QUOTED_TEXT.match(text, at):
            parts.append(WordPart("text", found[0], quoted=True))
            at = found.end()
        elif char == "\\":
            follows = text[at + 1 : at + 2]
            escaped = "$`\\" if within == "document" else '$`"\\'
            kept = "" if follows == "\n" else follows if follows in escaped else char + follows
            parts.append(WordPart("text", kept, quoted=True))
            at += 2
        elif char in "$`":
            part, at = _expansion(text, at, quoted=True)
            parts.append(part)
        else:
            parts.append(WordPart("text", "" if within == "default" else char, quoted=True))
            at += 1
    if within == "quotes":
        raise KvplanError("the command cannot be read: no closing quotation")
    return parts or empty, at


def _escaped(text: str, at: int) -> tuple[WordPart, int]:
    """`$'...'`, with the escapes of C."""
    said = ""
    while at < len(text) and text[at] != "'":
        if text[at] == "\\" and at + 1 < len(text):
            said += ESCAPES.get(text[at + 1], text[at + 1])
            at += 2
        else:
            said += text[at]
            at += 1
    if at >= len(text):
        raise KvplanError("the command cannot be read: no closing quotation")
    return WordPart("text", said, quoted=True), at + 1


def _expansion(text: str, at: int, quoted: bool) -> tuple[WordPart, int]:
    """What begins with a dollar or a backquote."""
    if text[at] == "`":
        end = _find(text, "`", at + 1)
        return WordPart("command", text[at + 1 : end], quoted), end + 1
    if text.startswith("$((", at):
        end = _closing(text, at + 1)
        if text[end - 1] == ")":
            return WordPart("sum", text[at + 3 : end - 1].strip(), quoted), end + 1
    if text.startswith("$(", at):
        end = _closing(text, at + 1)
        return WordPart("command", text[at + 2 : end].strip(), quoted), end + 1
    if text.startswith("${", at):
        end = _closing(text, at + 1)
        return WordPart("variable", text[at + 2 : end], quoted), end + 1
    if found := _NAME.match(text, at):
        return WordPart("variable", found[1], quoted), found.end()
    return WordPart("text", "$", quoted), at + 1


def _find(text: str, mark: str, at: int) -> int:
    while (end := text.find(mark, at)) >= 0:
        if mark != "`" or text[end - 1] != "\\":
            return end
        at = end + 1
    raise KvplanError("the command cannot be read: no closing quotation")


def _closing(text: str, at: int) -> int:
    """Where the bracket that stands here is closed; quotations are passed over."""
    opens = text[at]
    closes = {"(": ")", "{": "}"}[opens]
    depth, i = 0, at
    while i < len(text):
        char = text[i]
        if char == "\\":
            i += 1
        elif opens == "(" and (document := _DOCUMENT.match(text, i)):
            i = document.end() - 1
        elif opens == "(" and char == "#" and text[i - 1] in " \t\n(":
            i = _line_end(text, i)
        elif char == "'":
            i = _find(text, "'", i + 1)
        elif char == '"':
            i = _double(text, i + 1)[1] - 1
        elif char == opens:
            depth += 1
        elif char == closes:
            depth -= 1
            if not depth:
                return i
        i += 1
    raise KvplanError("the command cannot be read: a bracket does not close")
