"""A script as a shell reads it: commands, one after another, with their words and the environment that they get.

Conditions are asked where the script itself states what they ask for, of a script that is run as it stands, without
arguments; else each branch is read in turn, as what stands behind `||` is, and what it sets is doubtful. Bodies of
loops are read once. What commands print is not known.

Source: POSIX.1-2017, Shell Command Language, 2.9 to 2.14; GNU bash manual, 3.2, 4.1 and 6.4.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvplan.engines.pasted.expansion import UNSTATED, Value, Variables, arithmetic
from kvplan.engines.pasted.grammar import (
    CaseBlock,
    Commands,
    FunctionBlock,
    GroupBlock,
    IfBlock,
    ListStep,
    LoopBlock,
    PlainCommand,
    block_of,
)
from kvplan.engines.pasted.tokens import Parts, Token, parts_of
from kvplan.ground.errors import KvplanError

ASSIGNS = ("export", "declare", "typeset", "local", "readonly")
DEEPEST = 4
"""Functions that call functions."""
MOST_STEPS = 20_000
LONGEST = 500_000
"""Commands that are run, and characters of a variable, of what strangers paste."""


class Simple(NamedTuple):
    """One command: what is started, and what it is given."""

    words: list[str]
    environment: Mapping[str, str] = {}
    """Of the process: what is exported, and what stands before the command."""
    prefix: Mapping[str, str] = {}
    """What stands before the command itself: its own words are expanded without it."""
    others: Mapping[str, str] = {}
    """Variables that are not exported: the process does not get them."""
    text: str = ""
    """Its here-document."""
    image: str = ""
    """Of the container that it runs in."""
    by_image: bool = False
    """Whether the words are given to what the image starts by itself."""
    doubtful: Mapping[str, str] = {}
    """Variables of its words that a condition or a loop sets -> as they were taken."""


@dataclass(slots=True)
class Script(Variables):
    """What a script has set and started so far."""

    exported: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)
    """Variables that a condition or a loop sets."""
    files: dict[str, str] = field(default_factory=dict)
    """Files that it writes."""
    functions: dict[str, Commands] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    running: int = 0
    """Functions and `eval`s that are open."""
    doubt: int = 0
    """Blocks that are open and may not be run, or more than once."""
    steps: int = 0
    commands: list[Simple] = field(default_factory=list)
    """Those that the script runs, in order."""

    def read(self, text: str) -> list[Simple]:
        """The commands of a text, in order.

        >>> script = "TP=2; [ $TP -gt 1 ] && A+=(-tp $TP); if [[ -n ${X:-} ]]; then A+=(-x); fi; show ${A[@]}"
        >>> [command.words for command in Script().read(script)][-1]
        ['show', '-tp', '2']
        """
        before = len(self.commands)
        self._block(block_of(text))
        return self.commands[before:]

    def uncalled(self) -> list[Simple]:
        """The commands of functions that nothing called."""
        before = len(self.commands)
        for name, body in list(self.functions.items()):
            if name not in self.called:
                self._block(body)
        return self.commands[before:]

    # ---- what is run

    def _block(self, block: Sequence[ListStep]) -> bool | None:
        """Run a list of commands; how the last ends, where that is known."""
        ended: bool | None = True
        before = ""
        for step in block:
            if before not in ("&&", "||") or ended is not (before == "||"):
                doubtful = before == "||" and ended is None
                self.doubt += doubtful
                ended = self._node(step)
                self.doubt -= doubtful
                ended = ended if not step.negated or ended is None else not ended
            before = step.operator
        return ended

    def _node(self, step: ListStep) -> bool | None:
        node = step.node
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise KvplanError("the command cannot be read: the script does not come to an end")
        if isinstance(node, PlainCommand):
            return self._run(node.tokens)
        if isinstance(node, FunctionBlock):
            self.functions[node.name] = node.body
            return True
        if isinstance(node, GroupBlock):
            return self._block(node.body)
        if isinstance(node, IfBlock):
            self._branch(node)
        elif isinstance(node, CaseBlock):
            self._case(node)
        else:
            self._loop(node)
        return None

    def _doubtful(self, body: Commands) -> None:
        self.doubt += 1
        self._block(body)
        self.doubt -= 1

    def _branch(self, node: IfBlock) -> None:
        is_open = False
        for condition, body in node.arms:
            holds = self._block(condition) if condition else True
            if holds is not False:
                (self._doubtful if is_open or holds is None else self._block)(body)
            is_open = is_open or holds is None
            if holds:
                return

    def _case(self, node: CaseBlock) -> None:
        word = self.as_it_runs(node.word)
        for patterns, body in node.arms:
            if UNSTATED in word:
                self._doubtful(body)
            elif any(fnmatch.fnmatchcase(word, self.pattern(pattern)) for pattern in patterns):
                self._block(body)
                return

    def _loop(self, node: LoopBlock) -> None:
        """A body is read once, with the first of `for`'s values."""
        if node.name:
            words = [word for token in node.words for word in self.expand(token.parts)]
            if words:
                self.variables[node.name] = words[0]
            if len(words) > 1 or (words and UNSTATED in words[0]):
                self.doubtful.add(node.name)
            self._doubtful(node.body)
        elif self._block(node.condition) is not node.ends_on:
            self._doubtful(node.body)

    def _run(self, tokens: list[Token]) -> bool | None:
        """One command; how it ends, where the shell itself says."""
        plain = [token for token in tokens if not token.redirect]
        if plain and plain[0].plain == "[[":
            return ShellTest(self, tokens[1:-1]).holds()
        said: list[tuple[str, Value]] = []
        while plain and (assignment := plain[0].assignment):
            said.append((assignment[0], self._assigned(plain[0])))
            plain = plain[1:]
        if plain and plain[0].plain in ASSIGNS:
            self._declare(plain)
            return True
        if not plain:
            for name, value in said:
                self._set(name, value)
            return True
        if plain[0].plain in ("[", "test"):
            words = plain[1:-1] if plain[0].plain == "[" else plain[1:]
            return ShellTest(self, words).holds()
        return self._start(tokens, plain, {name: value for name, value in said if isinstance(value, str)})

    def _start(self, tokens: list[Token], plain: list[Token], prefix: dict[str, str]) -> bool | None:
        texts = [self._document(token) for token in tokens if token.redirect == "<<"]
        before, self.used = self.used, set()
        words = [word for token in plain for word in self.expand(token.parts)]
        doubtful = {name: _spaced(self.variables[name]) for name in self.used & self.doubtful}
        self.used |= before
        if words[:1] and self._is_own(words):
            return None
        exported = {name: self.text_of(name) for name in self.exported if name in self.variables}
        others = {name: self.text_of(name) for name in self.variables if name not in self.exported}
        self._keep(words, tokens, "\n".join(texts))
        self.commands.append(
            Simple(words, exported | prefix, prefix, others, "\n".join(texts), doubtful=doubtful)
        )
        return {"true": True, ":": True, "false": False}.get(words[0]) if words else True

    def _is_own(self, words: list[str]) -> bool:
        """Whether a command is the shell's own, or a function; it is then run."""
        name, given = words[0], words[1:]
        if name in self.functions and self.running < DEEPEST:
            self.called.add(name)
            stated = [word for word in given if word not in (f"{UNSTATED}$@", f"{UNSTATED}$*")]
            before = {key: self.variables.get(key) for key in self._set_arguments(stated)}
            self.running += 1
            self._block(self.functions[name])
            self.running -= 1
            for key, value in before.items():
                self.variables.pop(key, None)
                self.variables |= {} if value is None else {key: value}
        elif name == "set" and given[:1] == ["--"]:
            self._set_arguments(given[1:])
        elif name == "shift" and isinstance(given_now := self.variables.get("@"), list):
            self._set_arguments(given_now[int(given[0]) if given and given[0].isdecimal() else 1 :])
        elif name == "eval" and self.running < DEEPEST:
            text = " ".join(given)
            self.running += 1
            self._block(block_of(text.replace(f"{UNSTATED}$", f"{UNSTATED}\\$")))
            self.running -= 1
        else:
            return False
        return True

    def _set_arguments(self, given: list[str]) -> list[str]:
        """`$1`, `$#`, `$@` ...; their names, those of before too."""
        held = self.variables.get("@")
        size = max(len(given), len(held) if isinstance(held, list) else 0)
        for i in range(size):
            self.variables.pop(str(i + 1), None)
        self.variables |= {str(i + 1): word for i, word in enumerate(given)}
        self.variables |= {"@": list(given), "*": list(given), "#": str(len(given))}
        return [*(str(i + 1) for i in range(size)), "@", "*", "#"]

    def _keep(self, words: list[str], tokens: list[Token], document: str) -> None:
        """A file that `cat`, `tee` or `echo` writes of what stands in the script."""
        paths = [self.joined(token.parts) for token in tokens if token.redirect in (">", ">>", ">|")]
        if words[:1] == ["tee"] and document:
            paths += [word for word in words[1:] if not word.startswith("-")]
        elif words[:1] == ["echo"]:
            document = (
                " ".join(word for word in words[1:] if word not in ("-e", "-n")).replace("\\n", "\n") + "\n"
            )
        elif words != ["cat"]:
            return
        added = any(token.redirect == ">>" for token in tokens)
        for path in paths:
            self.files[path] = (self.files.get(path, "") if added else "") + document

    def _declare(self, tokens: list[Token]) -> None:
        for token in tokens[1:]:
            if assignment := token.assignment:
                name = assignment[0]
                self._set(name, self._assigned(token))
            else:
                name = token.plain
            if tokens[0].plain == "export" or any(t.plain in ("-x", "-gx") for t in tokens):
                self.exported.add(name)

    def _assigned(self, token: Token) -> Value:
        """What a token assigns: one text without splitting, or an array's words."""
        name, adds, parts = token.assignment or ("", False, ())
        before = self.variables.get(name, "")
        if token.array is not None:
            words = [word for inner in token.array for word in self.expand(inner)]
            return [*_listed(before), *words] if adds else words
        value = self.joined(parts)
        if adds and isinstance(before, list):
            return [before[0] + value, *before[1:]] if before else [value]
        return f"{before}{value}" if adds else value

    def _set(self, name: str, value: Value) -> None:
        """Set a variable; a script's own argument, which nobody stated, leaves what was set before."""
        before = self.variables.get(name)
        if sum(map(len, _listed(value))) > LONGEST:
            raise KvplanError(f"the command cannot be read: ${name} grows beyond {LONGEST:,} characters")
        if before is not None and isinstance(value, str) and re.search(UNSTATED + r"\$\{?\d", value):
            return
        if self.doubt and before is not None and before != value:
            self.doubtful.add(name)
        self.variables[name] = value

    def _document(self, token: Token) -> str:
        """A here-document's text; one whose mark is quoted is as it stands."""
        if token.literal:
            return token.body
        return self.joined(parts_of(token.body, "document"))

    def _printed(self, text: str) -> str:
        """What a command prints, where that stands in the script: `cat` of a here-document, `echo`."""
        inner = Script(dict(self.variables), exported=set(self.exported), running=self.running + 1)
        is_stated = "cat" in text or text.lstrip().startswith("echo")
        commands = inner.read(text) if is_stated and self.running < DEEPEST else []
        if len(commands) == 1:
            words, said = commands[0].words, commands[0].text
            if words == ["cat"] and said:
                return said.rstrip("\n")
            if words[:1] == ["echo"] and UNSTATED not in " ".join(words):
                return " ".join(words[1:])
        return f"{UNSTATED}$({text})"

    def as_it_runs(self, parts: Parts) -> str:
        """A word, without splitting, of a script that is run as it stands: what nothing sets is empty."""
        self.as_run = True
        try:
            return self.joined(parts)
        finally:
            self.as_run = False


class ShellTest:
    """`[ ... ]` and `[[ ... ]]`: whether it holds; None where only the machine could tell.

    Files are not looked for. Source: bash manual, 6.4, and 3.2.5.2.
    """

    def __init__(self, script: Script, tokens: Sequence[Token]) -> None:
        self.script = script
        self.tokens = list(tokens)

    def holds(self) -> bool | None:
        """The value of all of it."""
        value = self._any()
        return None if self.tokens else value

    def _word(self) -> str:
        return (
            self.tokens[0].plain or self.tokens[0].operator or self.tokens[0].redirect if self.tokens else ""
        )

    def _next(self, *words: str) -> bool:
        if self._word() in words:
            del self.tokens[0]
            return True
        return False

    def _any(self) -> bool | None:
        value = self._all()
        while self._next("||", "-o"):
            other = self._all()
            value = True if value or other else None if None in (value, other) else False
        return value

    def _all(self) -> bool | None:
        value = self._one()
        while self._next("&&", "-a"):
            other = self._one()
            value = False if False in (value, other) else None if None in (value, other) else True
        return value

    def _one(self) -> bool | None:
        if self._next("!"):
            value = self._one()
            return None if value is None else not value
        if self._next("("):
            value = self._any()
            self._next(")")
            return value
        if not self.tokens:
            return False
        if (
            len(self.tokens) > 1
            and re.fullmatch(r"-[a-zA-Z]", self._word())
            and self._word() not in ("-a", "-o")
        ):
            how = self._word()
            del self.tokens[0]
            return self._alone(how, self._text())
        first = self._text()
        how = self._word()
        if how in _COMPARED or how in ("=", "==", "!=", "=~", "<", ">"):
            quoted = self.tokens[0].redirect
            parts = self.tokens[0].parts if quoted else self.tokens[1].parts if len(self.tokens) > 1 else ()
            del self.tokens[: 1 if quoted else 2]
            second = self.script.as_it_runs(parts)
            return self._compared(first, how, second, self.script.pattern(parts))
        return None if UNSTATED in first else bool(first)

    def _text(self) -> str:
        text = self.script.as_it_runs(self.tokens[0].parts)
        del self.tokens[0]
        return text

    def _alone(self, how: str, text: str) -> bool | None:
        if how == "-v" and text:
            return text in self.script.variables
        if UNSTATED in text or how not in ("-n", "-z"):
            return None
        return bool(text) == (how == "-n")

    def _compared(self, first: str, how: str, second: str, pattern: str) -> bool | None:
        if UNSTATED in first + second or how in ("=~", "<", ">"):
            return None
        if how in ("=", "=="):
            return fnmatch.fnmatchcase(first, pattern)
        if how == "!=":
            return not fnmatch.fnmatchcase(first, pattern)
        numbers = [arithmetic(text or "0") for text in (first, second)]
        return None if None in numbers else _COMPARED[how](*numbers)


_COMPARED: dict[str, Callable[..., bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-lt": operator.lt,
    "-le": operator.le,
    "-gt": operator.gt,
    "-ge": operator.ge,
}


def _listed(value: Value) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


def _spaced(value: Value) -> str:
    return value if isinstance(value, str) else " ".join(value)
