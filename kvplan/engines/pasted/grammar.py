"""A script's commands, branches, loops and functions, from its tokens.

Source: POSIX.1-2017, Shell Command Language, 2.9 and 2.10; bash's `[[` and `function`. What is not of the grammar, as
where half a script is pasted, ends what it stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvplan.engines.pasted.tokens import Parts, Token, tokens_of

DEEPEST = 30
"""Blocks within blocks."""


class ListStep(NamedTuple):
    """A command of a list, and the operator behind it."""

    node: Node
    operator: str = ";"
    """`&&`, `||`, `|`, `&`, `;` or a line's end."""
    negated: bool = False


Commands = list[ListStep]


@dataclass(slots=True)
class PlainCommand:
    """A simple command, an assignment, or a `[[` test."""

    tokens: list[Token]


@dataclass(slots=True)
class IfBlock:
    """`if`: conditions with their bodies; the last condition is empty for `else`."""

    arms: list[tuple[Commands, Commands]] = field(default_factory=list)


@dataclass(slots=True)
class LoopBlock:
    """`while` and `until`, with a condition; `for`, with a name and its words."""

    body: Commands
    condition: Commands = field(default_factory=list)
    ends_on: bool = False
    """What the condition is when the loop ends: True of `until`."""
    name: str = ""
    words: list[Token] = field(default_factory=list)


@dataclass(slots=True)
class CaseBlock:
    """A word, and what is run where it is of one of the patterns."""

    word: Parts
    arms: list[tuple[list[Parts], Commands]] = field(default_factory=list)


@dataclass(slots=True)
class FunctionBlock:
    """A definition."""

    name: str
    body: Commands


@dataclass(slots=True)
class GroupBlock:
    """`{ ... }` and `( ... )`."""

    body: Commands


Node = PlainCommand | IfBlock | LoopBlock | CaseBlock | FunctionBlock | GroupBlock


def block_of(text: str) -> Commands:
    """The commands of a script.

    >>> [type(step.node).__name__ for step in block_of("if a; then b; fi; f() { c; }; for x in 1 2; do d; done")]
    ['IfBlock', 'FunctionBlock', 'LoopBlock']
    """
    reader = _Reader(list(tokens_of(text)))
    block: Commands = []
    while not reader.is_at_end:
        block += reader.block(())
        reader.skip()  # a word that nothing opened
    return block


class _Reader:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    @property
    def is_at_end(self) -> bool:
        return self.at >= len(self.tokens)

    def word(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at].plain if at < len(self.tokens) else ""

    def operator(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at].operator if at < len(self.tokens) else ""

    def skip(self, *words: str) -> bool:
        """Pass over the next token, or over one of these words or operators."""
        if words and self.word() not in words and self.operator() not in words:
            return False
        self.at += 1
        return True

    def lines(self) -> None:
        while self.operator() in ("\n", ";"):
            self.at += 1

    def block(self, until: Sequence[str]) -> Commands:
        """Commands up to one of these words, or the bracket that closes."""
        block: Commands = []
        self.depth += 1
        while not self.is_at_end and self.depth < DEEPEST:
            if self.operator() in (")", ";;", ";&", ";;&"):
                break
            if self.operator() not in ("", "("):
                self.at += 1
                continue
            if self.word() in until or (self.word() in _CLOSERS and not until):
                break
            negated = False
            while self.word() in ("!", "time"):
                negated ^= self.word() == "!"
                self.at += 1
            before = self.at
            node = self.node()
            self.at += self.at == before
            block.append(ListStep(node, self.operator() or ";", negated))
        self.depth -= 1
        return block

    def node(self) -> Node:
        word = self.word()
        if word == "if":
            node: Node = self.branch()
        elif word in ("while", "until"):
            self.skip()
            condition = self.block(("do",))
            node = LoopBlock(self.body("do", "done"), condition, ends_on=word == "until")
        elif word == "for":
            node = self.loop()
        elif word == "case":
            node = self.case()
        elif word == "{":
            node = GroupBlock(self.body("{", "}"))
        elif self.operator() == "(":
            self.skip()
            node = GroupBlock(self.block((")",)))
            self.skip(")")
        elif word == "function" or (word and self.operator(1) == "(" and self.operator(2) == ")"):
            return self.function()
        else:
            return PlainCommand(self.simple())
        while not self.is_at_end and self.tokens[self.at].redirect:
            self.skip()
        return node

    def body(self, opens: str, closes: str) -> Commands:
        self.lines()
        self.skip(opens)
        block = self.block((closes,))
        self.skip(closes)
        return block

    def branch(self) -> IfBlock:
        node = IfBlock()
        while self.skip("if", "elif"):
            condition = self.block(("then",))
            self.skip("then")
            node.arms.append((condition, self.block(("elif", "else", "fi"))))
        if self.skip("else"):
            node.arms.append(([], self.block(("fi",))))
        self.skip("fi")
        return node

    def loop(self) -> LoopBlock:
        self.skip()
        name, words = self.word(), list[Token]()
        self.skip()
        self.lines()
        if self.skip("in"):
            while not self.is_at_end and not self.operator():
                words.append(self.tokens[self.at])
                self.skip()
        while not self.is_at_end and self.word() != "do":
            self.skip()
        return LoopBlock(self.body("do", "done"), name=name, words=words)

    def case(self) -> CaseBlock:
        self.skip()
        node = CaseBlock(() if self.is_at_end else self.tokens[self.at].parts)
        self.skip()
        self.lines()
        self.skip("in")
        while not self.is_at_end:
            self.lines()
            if self.skip("esac"):
                break
            self.skip("(")
            patterns: list[Parts] = []
            while not self.is_at_end and self.operator() != ")":
                if not self.operator():
                    patterns.append(self.tokens[self.at].parts)
                self.skip()
            self.skip(")")
            node.arms.append((patterns, self.block(("esac",))))
            self.skip(";;", ";&", ";;&")
        return node

    def function(self) -> FunctionBlock:
        self.skip("function")
        name = self.word()
        self.skip()
        if self.skip("("):
            self.skip(")")
        self.lines()
        return FunctionBlock(name, [ListStep(self.node())])

    def simple(self) -> list[Token]:
        tokens: list[Token] = []
        inside = self.word() == "[["
        while not self.is_at_end and (inside or not self.operator()):
            tokens.append(self.tokens[self.at])
            self.skip()
            if inside and tokens[-1].plain == "]]":
                inside = False
        return tokens


_CLOSERS = ("then", "elif", "else", "fi", "do", "done", "esac", "}")
